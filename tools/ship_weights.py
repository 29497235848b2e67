"""Make a finished run's weights the package's own: python tools/ship_weights.py RUN/checkpoint.npz

In half precision, without momentum, and without the training machine's paths in the configuration.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from minimask.weights.checkpoint import load_checkpoint, save_checkpoint
from minimask.weights.published import DEFAULT, PACKAGED

MOST = 8_000_000  # bytes
PATHS = ("train", "images", "val", "val_images")


def main() -> None:
    run, target = Path(sys.argv[1]), PACKAGED[DEFAULT]
    checkpoint = load_checkpoint(run)
    halves = {name: array.astype(np.float16) for name, array in checkpoint.parameters.items()}
    if not all(np.isfinite(array).all() for array in halves.values()):
        sys.exit(f"{run}: has weights that half precision cannot hold")
    data = {name: value for name, value in checkpoint.config["data"].items() if name not in PATHS}
    config = checkpoint.config | {"data": data}
    target.parent.mkdir(exist_ok=True)
    save_checkpoint(target, replace(checkpoint, parameters=halves, momentum={}, config=config))
    size = target.stat().st_size
    print(f"{target}: {size:,} bytes, of {checkpoint.step} steps, seed {checkpoint.seed}")
    if size > MOST:
        sys.exit(f"{target}: has more than {MOST:,} bytes")


if __name__ == "__main__":
    main()
