"""minimask's own kernels on the CPU: what stands in for `backend.launch` where there is no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minimask import backend
from minimask.lessons.cuda_on_cpu import load


class Launches:
    """Takes launches as `backend.launch` does, and runs their kernels here, on NumPy arrays.

        backend.launch = Launches(order="shuffled")
        OnDevice(rois, None, (1.0,), Sampling((7, 7), 2)).forward([x])  # NumPy arrays

    Parameters
    ----------
    order : "forward", "reverse" or "shuffled"
        Of a kernel's threads; shuffled differs from launch to launch.
    watch : bool
        Look for races; ten times slower.
    seed : int
        Of the shuffling.
    sources : mapping of str to str, optional
        Texts that replace the sources of these names.
    """

    def __init__(
        self,
        order: str = "forward",
        *,
        watch: bool = False,
        seed: int = 1,
        sources: Mapping[str, str] | None = None,
    ):
        self.order, self.watch, self.sources = order, watch, sources or {}
        self.rng = np.random.default_rng(seed)

    def __call__(
        self, source: str, kernel: str, grid: tuple, block: int | tuple, args: Sequence, dtype=None
    ) -> None:
        """Run a kernel; parameters and errors are those of `backend.launch`, but for NumPy arrays."""
        block = (block,) if isinstance(block, int) else block
        if 0 in grid or 0 in block:
            return
        text, declared = backend.cuda._source(source)
        is_template, types = declared[kernel]
        if len(args) != len(types):
            raise TypeError(f"{kernel}: {len(args)} arguments for {len(types)} parameters")
        t = "float" if dtype is not None and np.dtype(dtype) == np.float32 else "double"
        numbers = backend.cuda._C_TYPES | {"T": backend.cuda._C_TYPES[t]}
        values = [
            np.uintp(0) if value is None else numbers[c_type].type(value) if c_type in numbers else value
            for value, c_type in zip(args, types)
        ]
        function = load(self.sources.get(source, text), watch=self.watch).get_function(
            f"{kernel}<{t}>" if is_template else kernel
        )
        function(grid, block, values, order=self.order, seed=int(self.rng.integers(2**32)))
