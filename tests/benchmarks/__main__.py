"""minimask beside torch and torchvision: python -m tests.benchmarks [ROW ...]

Each ROW is a name, a group of names ("conv", "conv/forward", "whole") or a pattern ("conv/*/body 3x3*");
--list shows them all. The libraries run in turn in this process on equal inputs with equal numbers of
threads; their results are compared first. Printed are medians, and minimask's time over torch's: below 1,
minimask is faster.

`python -m tests.benchmarks launches` counts instead what a training step asks of a GPU; it needs neither a
GPU nor torch (launches.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path

from minimask import backend


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["launches"]:
        from tests.benchmarks import launches

        return launches.main(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; all by default")
    parser.add_argument("--list", action="store_true", help="list the rows and stop")
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="counted time a library and row, at least 3 turns (0.3)"
    )
    parser.add_argument(
        "--busy", action="store_true", help="while another process computes on one of the processors (Linux)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write them as tables for docs/performance.md")
    args = parser.parse_args(argv)
    try:
        import torch
        import torchvision  # noqa: F401
    except ImportError:
        print("torch and torchvision are not installed: there is nothing to compare with", file=sys.stderr)
        return 0
    from tests.benchmarks import report, table
    from tests.benchmarks.measure import Load, measure

    torch.set_num_threads(backend.threads())
    rows = report.matching(table.rows(), args.rows)
    if not rows:
        parser.error(f"no row is called or matches {' or '.join(args.rows)}; --list shows them")
    if args.list:
        print("\n".join(row.name for row in rows))
        return 0
    about = report.about()
    print("\n".join(f"{key:14} {value}" for key, value in about.items()))
    print(f"\n{report.header()}")
    figures = {}
    with Load() if args.busy else contextlib.nullcontext() as load:
        for row in rows:
            try:
                figures[row] = measure(row, args.seconds, load)
                print(report.line(row, figures[row]), flush=True)
            except AssertionError as error:
                print(f"{row.name}: the results differ, so it is not timed: {error}", file=sys.stderr)
    print("\n" + "\n".join(report.summary_lines(figures)))
    if args.json:
        args.json.write_text(json.dumps(report.as_json(about, figures), indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(report.as_markdown(about, figures), encoding="utf-8")
    return int(len(figures) < len(rows))


if __name__ == "__main__":
    sys.exit(main())
