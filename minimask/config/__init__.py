"""Everything that decides a training run, as one tree of options; and the packaged configurations.

Imports `errors` and `files`. Begin with `tree.py`, which has every option with its meaning; `reading.py`
reads their values from TOML files and ``--set``.
"""

from minimask.config.reading import from_dict, packaged_names, read_config, set_by, to_toml, with_settings
from minimask.config.tree import (
    DETECTIONS_MOST,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    describe,
    differences,
    options,
    shown,
    to_dict,
)

__all__ = [
    "DETECTIONS_MOST",
    "Config",
    "DataConfig",
    "ModelConfig",
    "TrainConfig",
    "describe",
    "differences",
    "from_dict",
    "options",
    "packaged_names",
    "read_config",
    "set_by",
    "shown",
    "to_dict",
    "to_toml",
    "with_settings",
]
