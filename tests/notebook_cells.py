"""Runs a notebook's code cells as a plain program: ``python -m tests.notebook_cells NAME < edits.json``.

What it reads is a list of [old, new]: pieces of text to replace, each of which stands in exactly one cell.
The first cell that fails is named, with its error in one line, and the status is 1.
"""

import importlib.util
import json
import sys
import traceback
import warnings
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "notebooks.py"


def code_cells(name: str) -> list[tuple[int, str]]:
    """Index and text of a notebook's code cells, in its source."""
    spec = importlib.util.spec_from_file_location("notebooks", TOOL)
    notebooks = importlib.util.module_from_spec(spec)
    sys.modules["notebooks"] = notebooks  # its dataclass looks its own module up
    spec.loader.exec_module(notebooks)
    (full,) = notebooks.names([name])
    return [(i, cell.source) for i, cell in enumerate(notebooks.source_cells(full)) if cell.kind == "code"]


def edited(cells: list[tuple[int, str]], edits: list[tuple[str, str]]) -> list[tuple[int, str]]:
    """The cells with pieces of text replaced; ValueError for one that is not there once."""
    for old, new in edits:
        found = sum(text.count(old) for _, text in cells)
        if found != 1:
            raise ValueError(f"{old!r} is there {found} times, not once")
        cells = [(i, text.replace(old, new)) for i, text in cells]
    return cells


def main() -> int:
    """Run the cells; the status is 1 where one fails."""
    import matplotlib.pyplot as plt

    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
    namespace = {"__name__": "__main__"}
    for i, text in edited(code_cells(sys.argv[1]), json.load(sys.stdin)):
        try:
            exec(compile(text, f"cell {i}", "exec"), namespace)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[1].lineno
            print(f"cell {i}, {text.splitlines()[line - 1].strip()}: {type(error).__name__}: {error}")
            return 1
        plt.close("all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
