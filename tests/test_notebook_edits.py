"""What a teacher changes in a notebook before a class breaks none of its cells."""

import ast
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minimask import functions
from tests.notebook_cells import code_cells, edited

ROOT = Path(__file__).parent.parent

# Notebook, what is there, and what a teacher puts in its place: another stride, box, size, sample, threshold.
EDITS = [
    ("00", 'sample = nuclei_sample("val")[6]', 'sample = nuclei_sample("val")[8]'),
    ("00", "CONFIDENT = 0.5", "CONFIDENT = 0.4"),
    ("01", "x, w = Tensor(2.0, requires_grad=True)", "x, w = Tensor(-1.5, requires_grad=True)"),
    ("01", "for _ in range(4)]\nx = np.ones((100, 200))", "for _ in range(3)]\nx = np.ones((50, 200))"),
    ("01", "blocks = 24", "blocks = 12"),
    ("02", "output, pixel = 5, 15", "output, pixel = 6, 0"),
    ("02", "moved, size, reach = (-9, 5), 112, 12", "moved, size, reach = (4, -7), 96, 8"),
    ("02", 'nuclei_sample("train").image(8)', 'nuclei_sample("train").image(3)'),
    ("02", "s, d, P, K, H = 3, 2, 2, 3, 18", "s, d, P, K, H = 2, 1, 1, 3, 16"),
    ("02", "apart = 6", "apart = 4"),
    ("03", "image = nuclei[5].image", "image = nuclei[0].image"),
    ("03", "for i in (0, 1, 28))", "for i in (2, 3, 29))"),
    ("03", "SIDE = 704", "SIDE = 576"),
    ("03", "top, left = 2, 1", "top, left = 0, 3"),
    ("04", "sample = train_set[4]", "sample = train_set[9]"),
    ("04", "HIGH, LOW = 0.7, 0.3", "HIGH, LOW = 0.6, 0.4"),
    ("04", "DRAWN, SHARE = 256, 0.5", "DRAWN, SHARE = 128, 0.25"),
    ("04", "scene = validation_set[6]", "scene = validation_set[2]"),
    ("04", "THRESHOLD = 0.5", "THRESHOLD = 0.3"),
    ("05", "STRIDE = 16 ", "STRIDE = 8 "),
    ("05", "box = np.array([25.0, 30.0, 91.0, 93.0])", "box = np.array([20.0, 12.0, 120.0, 81.5])"),
    ("05", "s = Sampling((3, 3), ratio=2, aligned=True)", "s = Sampling((2, 4), ratio=3, aligned=True)"),
    ("05", "STRIDE * np.array([3.3125, 2.5625, 8.75, 7.5])", "STRIDE * np.array([2.5, 2.0, 10.0, 5.5])"),
    ("06", "channels, bins, blocks, threads = 3, 3, 2, 8", "channels, bins, blocks, threads = 2, 4, 3, 5"),
    ("06", "boxes[0, 1:] = 3.2, 2.6, 29.4, 24.1", "boxes[0, 1:] = 5.0, 4.0, 26.0, 19.0"),
    ("07", "seed=1, size=SIDE)[7]", "seed=1, size=SIDE)[3]"),
    ("07", "SIDE = 128", "SIDE = 160"),
    ("07", "THRESHOLD = 0.5", "THRESHOLD = 0.6"),
    ("07", "sizes = [8, 16, 32, 64, 128] if FAST", "sizes = [10, 20, 40, 80] if FAST"),
    ("08", "IMAGE = 6 ", "IMAGE = 9 "),
    ("08", "CONFIDENT = 0.5", "CONFIDENT = 0.3"),
    ("08", "MARGIN = 16", "MARGIN = 10"),
    ("08", "nms_thresh=0.8)", "nms_thresh=0.5)"),
    ("12", "figures = data.Figures(200, seed=3)", "figures = data.Figures(150, seed=8)"),
    ("12", "row, column = 30, 21", "row, column = 3, 50"),
    ("12", "sides = np.array([7, 14, 28, 56, 112])", "sides = np.array([8, 16, 32, 48, 64])"),
    ("12", "widths = [14, 28, 42, 56, 84, 112, 224] if FAST", "widths = [20, 40, 60, 120] if FAST"),
    ("13", "np.random.default_rng(21)", "np.random.default_rng(4)"),
    ("13", "for i in ((1,) if FAST", "for i in ((2,) if FAST"),
]


@pytest.mark.parametrize("name, old, new", EDITS)
def test_what_is_edited_is_there_once(name, old, new):
    before = code_cells(name)
    assert edited(before, [(old, new)]) != before


def run(name: str, edits: list[tuple[str, str]], folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.notebook_cells", name],
        input=json.dumps(edits),
        cwd=folder,
        env=os.environ | {"MINIMASK_FAST": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{name}, {edits}: {result.stdout.splitlines()[-1:]}{result.stderr}"


STRIDE = ("05", "STRIDE = 16 ", "STRIDE = 8 ")  # the other edits of 05 are meant for 16
TOGETHER = [([e for e in EDITS if e[0] == name and e != STRIDE]) for name in sorted({e[0] for e in EDITS})]


@pytest.mark.slow
@pytest.mark.parametrize("edits", [*TOGETHER, [STRIDE]], ids=[e[0][0] for e in TOGETHER] + ["05 stride"])
def test_a_notebooks_edits_together_break_no_cell(edits, tmp_path):
    run(edits[0][0], [(old, new) for _, old, new in edits], tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name, old, new", EDITS)
def test_an_edit_breaks_no_cell(name, old, new, tmp_path):
    run(name, [(old, new)], tmp_path)


@pytest.mark.slow
def test_a_cell_that_breaks_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"cell 4, .*ZeroDivisionError"):
        run(
            "01",
            [("x, w = Tensor(2.0, requires_grad=True)", "x, w = Tensor(1 / 0, requires_grad=True)")],
            tmp_path,
        )


def test_each_bug_that_notebook_13_may_plant_has_its_place_in_todays_source():
    text = (ROOT / "tutorials" / "src" / "13_gradient_check_of_everything.py").read_text(encoding="utf-8")
    bugs = next(
        ast.unparse(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUGS"
    )
    for cls, method, old, _ in eval(bugs, {"F": functions}):
        assert inspect.getsource(vars(cls)[method]).count(old) == 1, f"{cls.__name__}.{method}: {old}"
