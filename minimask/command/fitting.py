"""`--config auto`: a configuration that fits the data, printed with its reasons."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minimask.config import Config, set_by
from minimask.errors import InputError

AUTO = "auto"
AS_SET = "as you set it"
OF_WEIGHTS = "as the weights need it"


def is_auto(config: str | None) -> bool:
    """Whether ``--config`` asks for a recipe that fits the data; a file of this name takes precedence."""
    return config == AUTO and not Path(AUTO).is_file()


def fitted(config: Config, dataset: Any, settings: Sequence[str]) -> Any:
    """The recipe of a data set (`minimask.results.survey.recipe.Recipe`).

    Parameters
    ----------
    config : Config
        All that is given; if it names weights, with the network that they need.
    dataset
        As `minimask.data` makes them.
    settings : sequence of str
        ``--set`` arguments, which have been put into `config` and stay.

    Raises
    ------
    InputError
    """
    from minimask.results.survey.recipe import OF_NETWORK, choose
    from minimask.results.survey.statistics import network_of, statistics_of

    given = {}
    if config.train.weights or config.train.backbone_weights:
        given = dict.fromkeys(OF_NETWORK, OF_WEIGHTS)
    given |= dict.fromkeys(set_by(settings), AS_SET)
    return choose(statistics_of(dataset), config, given, network_of)


def fitted_to_files(
    config: Config, files: tuple[str | Path, str | Path], settings: Sequence[str], note: Callable[[str], None]
) -> Any:
    """The recipe of a COCO file and its images' folder; None, and a note, where training refuses them."""
    from minimask.data.coco import survey_coco

    dataset, faults, _ = survey_coco(*files)
    if dataset is None or faults.found:
        return note("a recipe needs data that training takes: mend what is refused, and run this again")
    try:
        return fitted(config, dataset, settings)
    except InputError as error:  # a damaged image, say, which the survey reports as well
        return note(f"there is no recipe: {error}")
