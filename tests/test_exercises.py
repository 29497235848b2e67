"""The exercises: solutions are right, and common mistakes, made in their text, are named."""

import re
from pathlib import Path

import numpy as np
import pytest

from minimask import InputError, boxes
from minimask.anchors import AnchorGenerator
from minimask.kernels import roi_align
from minimask.lessons import exercises
from minimask.lessons.exercises.exercise import EXERCISES, OVERWRITTEN
from minimask.results.evaluate import score
from tests.exercise_mistakes import MISTAKES, solution

ROWS = [(name, *row) for name, rows in MISTAKES.items() for row in rows]
NOTEBOOKS = sorted((Path(__file__).parent.parent / "tutorials" / "src").glob("*.py"))
CELL = re.compile(r'^exercises\.check\("(\w+)", (\w+)\)', re.MULTILINE)
FIRST_TRIES = [
    (path.stem, *CELL.search(cell).groups(), cell[: CELL.search(cell).start()])
    for path in NOTEBOOKS
    for cell in re.split(r"^# %%.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if CELL.search(cell)
]
IN_NOTEBOOKS = {  # what the first tries find there
    "np": np,
    "box_iou": boxes.box_iou,
    "nms": boxes.nms,
    "align": roi_align,
    "Plan": roi_align.Plan,
    "Sampling": roi_align.Sampling,
}


@pytest.mark.parametrize("name", exercises.names())
def test_the_solution_is_right(name, capsys):
    verdict = exercises.check(name, solution(name))
    assert verdict and verdict.mistakes == () and verdict.notes == ()
    assert verdict.text.startswith(f"{name}: right, in ")
    printed = capsys.readouterr().out
    assert printed.split() == verdict.text.split() and max(map(len, printed.splitlines())) <= 95


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1][:25]}")
def test_a_usual_mistake_is_called_by_its_name(row):
    name, called, *changes = row
    verdict = exercises.check(name, solution(name, *changes))
    assert not verdict
    assert any(mistake.startswith(called) for mistake in verdict.mistakes), verdict.text
    assert len(verdict.mistakes) == 1, verdict.text


@pytest.mark.parametrize("name", exercises.names())
def test_every_mistake_that_an_exercise_knows_is_made_in_its_solution(name):
    made = tuple(called for called, *_ in MISTAKES[name])
    known = [*EXERCISES[name].mistakes, *[OVERWRITTEN] * bool(EXERCISES[name].contributions)]
    assert [mistake for mistake in known if not mistake.startswith(made)] == []


@pytest.mark.parametrize("name", exercises.names())
def test_each_mistake_is_named_alone_wherever_it_is_made(name):
    exercise = EXERCISES[name]
    for variant in exercise.variants():
        verdict = exercises.check(name, lambda *inputs, variant=variant: exercise.mistaken(variant, inputs))
        assert verdict.mistakes == variant[:1], verdict.text


@pytest.mark.parametrize("row", FIRST_TRIES, ids=lambda row: f"{row[0][:2]}, {row[1]}")
def test_the_mistake_of_each_notebooks_first_try_is_named(row):
    _, name, mine, text = row
    namespace = dict(IN_NOTEBOOKS)
    exec(compile(text, f"{name}.py", "exec"), namespace)
    verdict = exercises.check(name, namespace[mine])
    assert not verdict and len(verdict.mistakes) == 1, verdict.text


def test_the_first_try_at_roi_pool_has_the_two_mistakes_that_its_notebook_tells_of():
    [text] = [text for _, name, _, text in FIRST_TRIES if name == "roi_pool"]
    longer = text
    for side in ("y2 - y1", "x2 - x1"):
        longer = longer.replace(f"({side})", f"max({side} + 1, 1)")
    rounded = "np.trunc(roi[1:] * scale + np.copysign(0.5, roi[1:] * scale))"
    right = longer.replace("np.round(roi[1:] * scale)", rounded)
    verdicts = []
    for tried in (text, longer, right):
        namespace = dict(IN_NOTEBOOKS)
        exec(compile(tried, "roi_pool.py", "exec"), namespace)
        verdicts.append(exercises.check("roi_pool", namespace["my_roi_pool"]))
    assert [v.mistakes[0][:25] for v in verdicts[:2]] == [
        "the last pixel left out: ",
        "halves rounded to even, a",
    ]
    assert verdicts[2]


def test_the_notebooks_have_a_first_try_for_each_exercise():
    assert {name for _, name, *_ in FIRST_TRIES} == set(exercises.names())


@pytest.mark.parametrize("name", exercises.names())
def test_a_task_names_what_it_takes_and_gives(name, capsys):
    exercises.describe(name)
    text = capsys.readouterr().out
    exercise = EXERCISES[name]
    assert text.startswith(f"{name}({', '.join(exercise.parameters)})")
    task = text.split("Give ")[0]
    assert all(parameter in task.split("\n", 1)[1] for parameter in exercise.parameters)
    assert exercise.results and all(result in text for result in exercise.results)
    assert text.split() == exercise.describe().split()  # filled anew for the width of a page, and whole
    assert max(map(len, text.splitlines())) <= 95


def test_an_unknown_exercise_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'roi_align_backward'"):
        exercises.check("roialign_backward", lambda: None)
    with pytest.raises(InputError, match="there are tape_backward, relu_backward"):
        exercises.describe("?")


def test_the_anchors_of_the_exercise_are_those_of_minimask():
    answer = EXERCISES["anchors"].answer((16, 32), (0.5, 1.0, 2.0), 8, 3, 4)
    generator = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),), rounded=False, offset=0.5, strides=(8,))
    np.testing.assert_allclose(answer, generator((24, 32), [(3, 4)]), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_average_precision_of_the_exercise_is_that_of_the_evaluator(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 80, (7, 2))
    truth = np.hstack([corners, corners + rng.uniform(10, 30, (7, 2))])  # (7, 4)
    found = truth[rng.integers(0, 7, 12)] + rng.normal(0, 2, (12, 4))
    scores = rng.permutation(12) / 12 + 0.05

    def xywh(box):
        return [*box[:2], *(box[2:] - box[:2])]

    document = {"images": [{"id": 1, "width": 128, "height": 128}], "categories": [{"id": 1, "name": "one"}]}
    document["annotations"] = [
        {"id": g + 1, "image_id": 1, "category_id": 1, "bbox": xywh(b), "area": 400.0, "iscrowd": 0}
        for g, b in enumerate(truth)
    ]
    results = [{"image_id": 1, "category_id": 1, "bbox": xywh(b), "score": s} for b, s in zip(found, scores)]
    box = score(document, results, kinds=["bbox"]).box
    answer, iou = EXERCISES["average_precision"].answer, boxes.box_iou(found, truth)
    assert answer(iou, scores, 0.5) == pytest.approx(box["AP50"], rel=1e-12)
    assert answer(iou, scores, 0.75) == pytest.approx(box["AP75"], rel=1e-12)
