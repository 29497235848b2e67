"""Peak memory of whole runs, and the time that imports take: figures that need a process of their own.

``python -m tests.benchmarks.memory LIBRARY NAME`` runs one model twice and prints how far its resident memory
went beyond what was held after the imports, in bytes. `rows` starts such processes.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.measure import Figures, Row
from tests.benchmarks.rows_whole import WHOLE

ROOT = Path(__file__).parent.parent.parent
IMPORTS = {"minimask": "import minimask", "torch": "import torch, torchvision"}
BASE = "import numpy, scipy.sparse"


def run(library: str, name: str) -> int:
    """Bytes that two runs of a model take at most, its weights included, beyond the imports'."""
    if library == "torch":
        import torch
        import torchvision  # noqa: F401

        from minimask import backend

        torch.set_num_threads(backend.threads())
    held = _status("VmRSS")
    call = getattr(WHOLE[name], library)()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here: building a model is no run
    call()
    call()
    return _status("VmHWM") - held


def _status(field: str) -> int:
    (line,) = (s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def peak(name: str) -> Figures:
    """Of both libraries, each in a fresh process."""
    figures = Figures(unit="MB")
    for library in ("minimask", "torch"):
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.memory", library, name]
        out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        figures.values[library] = [json.loads(out) / 1e6]
    return figures


def import_time(rounds: int = 7) -> Figures:
    """Seconds of the imports beyond those of NumPy and SciPy, medians of fresh processes in turn.

    Bytecode is kept, as for an installed package, whatever the environment says.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    seconds: dict[str, list[float]] = {library: [] for library in IMPORTS}
    for k in range(rounds + 1):  # the first one reads the files from the disk
        for library, statement in IMPORTS.items():
            code = (
                f"import time; {BASE}; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
            )
            command = [sys.executable, "-c", code]
            out = subprocess.run(
                command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
            ).stdout
            if k:
                seconds[library].append(float(out))
    return Figures({library: [statistics.median(v)] for library, v in seconds.items()})


def rows() -> list[Row]:
    peaks = [Row(f"memory/{name}", lambda name=name: peak(name)) for name in WHOLE]
    return [*peaks, Row("import/over numpy and scipy.sparse", import_time)]


if __name__ == "__main__":
    print(run(*sys.argv[1:]))
