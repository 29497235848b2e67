"""`exercises.mark`: a folder of hand-ins, of which some do what no hand-in should."""

import csv
import json
from pathlib import Path

import pytest

from minimask import InputError
from minimask.lessons import exercises
from tests.exercise_mistakes import solution

SOLUTIONS = Path(__file__).parent.parent / "tutorials" / "solutions"
RELU = "def relu_backward(gy, x):\n    return gy * (x > 0)\n"
FILES = {
    "anna.py": SOLUTIONS.joinpath("nms.py").read_text(encoding="utf-8") + RELU,
    "bert.py": RELU.replace("x > 0", "x >= 0")
    + "\ndef my_nms(boxes, scores, threshold):\n    while True: pass\n",
    "carla.py": "import os\n" + RELU + "def box_iou(a, b):\n    os._exit(0)\n",
    "dora.py": "def nms(boxes, scores, threshold)\n    return []\n",
    "emil.py": "import no_such_module\n" + RELU,
    "fritz.py": "open('left.txt', 'w').write('not run')\nnumber = 0\nraise SystemExit\n" + RELU,
}
NOTEBOOK = [
    ("markdown", "# relu_backward"),
    ("code", "%matplotlib inline\nfrom minimask import exercises\n!ls"),
    ("code", "%%bash\nls"),
    ("code", "def slope(gy, x):\n    return x > 0\nexercises.check('relu_backward', slope)"),
    ("code", "def slope(gy, x):\n    return gy * (x > 0)\nexercises.check('relu_backward', slope)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hand-ins")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    cells = [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in NOTEBOOK]
    (folder / "gerda.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    (folder / "hans.ipynb").write_text("no notebook", encoding="utf-8")
    (folder / "list-of-names.txt").write_text("not a hand-in", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_a_class_is_marked_whatever_its_files_do(folder, tmp_path, capsys):
    names = ("relu_backward", "nms", "box_iou")
    marked = exercises.mark(folder, *names, seconds=5, table=tmp_path / "marks.csv")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[: 1 + len(marked)]] == [
        [*names, "right"],
        ["anna.py", "right", "right", "-", "2", "of", "3"],
        ["bert.py", "wrong", "wrong", "-", "0", "of", "3"],
        ["carla.py", "right", "-", "wrong", "1", "of", "3"],
        ["dora.py", "-", "-", "-", "0", "of", "3"],
        ["emil.py", "right", "-", "-", "1", "of", "3"],
        ["fritz.py", "right", "-", "-", "1", "of", "3"],
        ["gerda.ipynb", "right", "-", "-", "1", "of", "3"],
        ["hans.ipynb", "-", "-", "-", "0", "of", "3"],
    ]
    told = " ".join(" ".join(lines).split())
    assert "bert.py, relu_backward: not yet right. " in told
    assert "bert.py, nms: not yet right. Your function ends Python, or takes more than 5 s" in told
    assert "carla.py, box_iou: not yet right. Your function ends Python, or takes more than 5 s" in told
    assert "dora.py: it cannot be read (expected ':' (dora.py, line 1))." in told
    assert "emil.py: line 1 of emil.py cannot be run (ModuleNotFoundError: " in told
    assert "hans.ipynb: it cannot be read (Expecting value: " in told
    assert not any(
        name in told for name in ("anna.py,", "fritz.py:", "fritz.py,", "gerda.ipynb:", "list-of-")
    )
    assert max(map(len, lines)) <= 100

    by_name = {m.file.name: m for m in marked}
    assert by_name["bert.py"].verdicts["relu_backward"].mistakes == (
        "let through where x is 0: there, too, nothing passes",
    )
    assert by_name["dora.py"].verdicts == {} and by_name["anna.py"].problem == ""
    with (tmp_path / "marks.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["file"], row["exercise"]): row for row in csv.DictReader(file)}
    assert len(rows) == len(marked) * len(names)
    assert rows["anna.py", "nms"]["mark"] == "right" and rows["anna.py", "box_iou"]["mark"] == "-"
    assert rows["bert.py", "relu_backward"]["mistakes"].startswith("let through where x is 0")
    assert not (folder / "left.txt").exists() and not (folder / "__pycache__").exists()


def test_without_names_the_table_has_the_exercises_that_there_are(tmp_path, capsys):
    (tmp_path / "anna.py").write_text(RELU, encoding="utf-8")
    [anna] = exercises.mark(tmp_path)
    assert capsys.readouterr().out.splitlines()[0].split() == ["relu_backward", "right"]
    assert list(anna.verdicts) == ["relu_backward"]


def test_a_file_is_judged_as_check_judges_its_function(tmp_path, capsys):
    (tmp_path / "anna.py").write_text(RELU.replace("gy * ", ""), encoding="utf-8")
    [anna] = exercises.mark(tmp_path)
    verdict = exercises.check("relu_backward", lambda gy, x: x > 0)
    assert anna.verdicts["relu_backward"] == verdict  # but for the inputs, which are not compared
    assert exercises.check("nms", solution("nms"))


def test_constants_are_run_with_their_annotations_and_one_that_python_refuses_costs_only_itself(tmp_path):
    constants = "LEAST: float = 0.0\nfirst: int\nODD = {[1]: 2}\n"
    (tmp_path / "anna.py").write_text(constants + RELU.replace("x > 0", "x > LEAST"), encoding="utf-8")
    [anna] = exercises.mark(tmp_path)
    assert anna.verdicts["relu_backward"].right, anna


def test_a_hand_in_does_not_take_the_place_of_a_module_that_has_its_name(tmp_path):
    (tmp_path / "random.py").write_text("raise SystemExit\n" + RELU, encoding="utf-8")  # NumPy imports random
    (tmp_path / "anna.py").write_text("import parts.slopes\n" + RELU, encoding="utf-8")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "slopes.py").touch()
    anna, bert = exercises.mark(tmp_path)
    assert anna.verdicts["relu_backward"].right and anna.problem == "", anna
    assert bert.verdicts["relu_backward"].right, bert


def test_what_cannot_be_marked_is_one_line(tmp_path):
    with pytest.raises(InputError, match="did you mean 'nms'"):
        exercises.mark(tmp_path, "nmss")
    with pytest.raises(InputError, match="is not a folder; give the one with the students' files"):
        exercises.mark(tmp_path / "none")
    with pytest.raises(InputError, match=r"has no \.py and no \.ipynb file"):
        exercises.mark(tmp_path)
    (tmp_path / "anna.py").write_text(RELU, encoding="utf-8")
    with pytest.raises(InputError, match="no-such-folder"):
        exercises.mark(tmp_path, table=tmp_path / "no-such-folder" / "marks.csv")
