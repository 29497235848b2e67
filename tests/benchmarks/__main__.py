"""minimask beside torch and torchvision: python -m tests.benchmarks [ROW ...] [--rounds N] [--json FILE]

Each row runs both alternately in this process, on equal inputs and with equal numbers of threads, and prints
the medians and their ratio: below 1, minimask is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from minimask import backend
from tests.benchmarks import rows


def alternate(ours, theirs, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each run, the two in turn, after one run of each that does not count."""
    seconds = ([], [])
    for k in range(rounds + 1):
        for run, times in zip((ours, theirs), seconds):
            begin = time.perf_counter()
            run()
            if k:
                times.append(time.perf_counter() - begin)
    return seconds


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"one of {', '.join(rows.ROWS)}; all by default"
    )
    parser.add_argument("--rounds", type=int, default=7, help="counted runs of each (default 7)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    unknown = [name for name in args.rows if name not in rows.ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]}; there are {', '.join(rows.ROWS)}")
    try:
        import torch
        import torchvision
    except ImportError:
        print("torch and torchvision are not installed: there is nothing to compare with", file=sys.stderr)
        return 0
    torch.set_num_threads(backend.threads())
    about = backend.describe() | {"torch": torch.__version__, "torchvision": torchvision.__version__}
    for key, value in about.items():
        print(f"{key:12} {value}")
    print(f"\n{'row':34}{'minimask':>12}{'torch':>12}{'ratio':>8}")
    figures = {}
    for name in args.rows or rows.ROWS:
        ours, theirs = (statistics.median(t) * 1e3 for t in alternate(*rows.ROWS[name](), args.rounds))
        figures[name] = {"minimask_ms": ours, "torch_ms": theirs, "ratio": ours / theirs}
        print(f"{name:34}{ours:9.1f} ms{theirs:9.1f} ms{ours / theirs:8.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
