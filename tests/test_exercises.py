"""The exercises: solutions are right, and usual mistakes, made in their text, are called by their names."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from minimask import InputError, Tensor
from minimask.anchors import AnchorGenerator
from minimask.lessons import exercises
from minimask.lessons.exercises.exercise import EXERCISES, OVERWRITTEN, same

SOLUTIONS = Path(__file__).parent.parent / "tutorials" / "solutions"


def solution(name: str, *changes: tuple[str, str]):
    """A solution's function, with parts of its text replaced as a reader might have written them."""
    text = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, f"{name}: the solution has no {old!r}"
        text = text.replace(old, new)
    namespace: dict = {}
    exec(compile(text, f"{name}.py", "exec"), namespace)
    return namespace[name]


NO_PADDING_BEFORE = ("padding : padding + height, padding : padding + width", ":height, :width")

# For each exercise: how the verdict must call it, and the replacements (old text, new text) in its solution.
MISTAKES = {
    "tape_backward": [
        ("overwritten", ("gradients[name] + g if name in gradients else g", "g")),
        (
            "added in place",
            ("{output: gradient}", "{output: gradient.copy()}"),
            (
                "gradients[name] = gradients[name] + g if name in gradients else g",
                "gradients[name] = gradients[name].__iadd__(g) if name in gradients else g",
            ),
        ),
        ("walked forwards", ("reversed(tape)", "tape")),
    ],
    "relu_backward": [
        ("gy left out", ("gy * (x > 0)", "1.0 * (x > 0)")),
        ("the mask is taken from gy", ("x > 0", "gy > 0")),
        ("let through where x is negative", ("x > 0", "x < 0")),
        ("this is the forward pass", ("gy * (x > 0)", "x * (x > 0)")),
        ("the sign", ("gy *", "-gy *")),
        ("a factor of 2", ("gy *", "2 * gy *")),
        ("all zeros", ("gy *", "0 * gy *")),
        ("axes swapped", ("(x > 0)", "(x > 0)\n    return (gy * (x > 0)).T"), ("return gy * (x > 0)\n", "")),
    ],
    "softmax_cross_entropy_backward": [
        ("not divided", ("gy * gx / len(gx)", "gy * gx")),
        ("gy left out", ("gy * gx", "gx")),
        ("1 is not subtracted", ("-= 1", "-= 0")),
        ("softmax along the wrong axis", ("axis=1", "axis=0")),
        ("the sign", ("gy * gx", "-gy * gx")),
    ],
    "im2col": [
        ("padded on one side", ("padding : padding + h, padding : padding + w", ":h, :w")),
        ("the kernel's elements upside down", ("cols[:, :, i, j] =", "cols[:, :, kh - 1 - i, kw - 1 - j] =")),
        ("axes swapped", ("cols[:, :, i, j] =", "cols[:, :, j, i] =")),
    ],
    "conv2d_forward": [
        ("the kernel upside down", ("w[:, :, i, j]", "w[:, :, kh - 1 - i, kw - 1 - j]")),
        ("the kernel's rows and columns", ("w[:, :, i, j]", "w[:, :, j, i]")),
        ("the bias left out", (" + b[:, None, None]", "")),
        ("padded on one side", NO_PADDING_BEFORE),
    ],
    "conv2d_backward": [
        ("the kernel upside down", ("w[:, :, i, j])", "w[:, :, kh - 1 - i, kw - 1 - j])")),
        ("the kernel upside down", ("gw[:, :, i, j]", "gw[:, :, kh - 1 - i, kw - 1 - j]")),
        ("the kernel's rows and columns", ("w[:, :, i, j])", "w[:, :, j, i])")),
        ("padded on one side", NO_PADDING_BEFORE),
        (
            "padded on one side",
            (
                "gx = g_padded[:, :, padding : padding + height, padding : padding + width]",
                "gx = g_padded[:, :, :height, :width]",
            ),
        ),
        ("a mean over the images", ('"nopq,ncpq->oc", gy,', '"nopq,ncpq->oc", gy / max(n, 1),')),
        ("overwritten by the last image", ("gy, padded[window]", "gy[-1:], padded[window][-1:]")),
        ("overwritten by the last image", ("gy.sum", "gy[-1:].sum")),
        ("a factor of 0.03125", ("gy.sum(axis=(0, 2, 3))", "gy.sum(axis=(0, 2, 3)) / max(gy[:, 0].size, 1)")),
        (OVERWRITTEN, ("g_padded[window] +=", "g_padded[window] =")),
    ],
    "max_pool_backward": [
        (
            "each of several equal maxima",
            (
                "i, j = np.unravel_index(window.argmax(), window.shape)",
                "i, j = np.nonzero(window == window.max())",
            ),
        ),
        (
            "spread",
            ("i, j = np.unravel_index(window.argmax(), window.shape)", "i, j = np.indices(window.shape)"),
            ("gy[n, c, p, q]", "gy[n, c, p, q] / kernel**2"),
        ),
        (OVERWRITTEN, ("left + j] +=", "left + j] =")),
    ],
    "group_norm_backward": [
        ("the mean taken", (" - g.mean(axis=2, keepdims=True)", "")),
        ("the variance taken", (" - x_hat * (g * x_hat).mean(axis=2, keepdims=True)", "")),
        ("weight left out", ("(gy * weight[:, None, None])", "gy")),
        ("mean and variance of a channel", ("(len(x), groups, -1)", "(len(x), x.shape[1], -1)")),
    ],
    "box_iou": [
        (
            "+1",
            ("boxes[:, 2] - boxes[:, 0]", "boxes[:, 2] - boxes[:, 0] + 1"),
            ("boxes[:, 3] - boxes[:, 1]", "boxes[:, 3] - boxes[:, 1] + 1"),
            ("high - low, 0", "high - low + 1, 0"),
        ),
        ("the intersection is twice", (" - intersection", "")),
        ("negative sides", ("np.maximum(high - low, 0)", "high - low")),
    ],
    "box_encode": [
        ("+1", ("boxes[:, 2:] - boxes[:, :2]", "boxes[:, 2:] - boxes[:, :2] + 1")),
        (
            "axes swapped",
            ("boxes[:, :2] + size / 2, size", "(boxes[:, :2] + size / 2)[:, ::-1], size[:, ::-1]"),
        ),
        (
            "coded against the box",
            (
                "(center, size), (anchor_center, anchor_size) =",
                "(anchor_center, anchor_size), (center, size) =",
            ),
        ),
        ("no logarithm", ("np.log(size / anchor_size)", "size / anchor_size")),
        ("from corner to corner", ("(center - anchor_center)", "(boxes - anchors)[:, :2]")),
    ],
    "box_decode": [
        ("dw and dh", ("np.minimum(deltas[:, 2:], limit)", "deltas[:, 2:]")),
        ("clipped twice", ("deltas[:, :2] *", "np.minimum(deltas[:, :2], limit) *")),
        (
            "+1",
            ("anchors[:, 2:] - anchors[:, :2]", "anchors[:, 2:] - anchors[:, :2] + 1"),
            ("center + size / 2]", "center + size / 2 - 1]"),
        ),
        ("axes swapped", ("deltas[:, :2]", "deltas[:, 1::-1]"), ("deltas[:, 2:]", "deltas[:, :1:-1]")),
        ("the centre taken", ("center - size / 2, center + size / 2", "center, center + size")),
    ],
    "nms": [
        (
            "a suppressed box",
            ("kept = []", "kept, seen = [], []"),
            ("for k in kept)", "for k in seen)"),
            ("            kept.append(i)", "            kept.append(i)\n        seen.append(i)"),
        ),
        ("the lowest score", ("-scores", "scores")),
        (
            "+1",
            ("b[2]) - max(a[0], b[0])", "b[2]) - max(a[0], b[0]) + 1"),
            ("b[3]) - max(a[1], b[1])", "b[3]) - max(a[1], b[1]) + 1"),
            ("] - a[0])", "] - a[0] + 1)"),
            ("] - a[1])", "] - a[1] + 1)"),
            ("] - b[0])", "] - b[0] + 1)"),
            ("] - b[1])", "] - b[1] + 1)"),
        ),
        (
            "positions after sorting",
            (
                'for i in np.argsort(-scores, kind="stable"):',
                'boxes = boxes[np.argsort(-scores, kind="stable")]\n    for i in range(len(boxes)):',
            ),
        ),
        ("in the order of the list", ("return np.array(kept,", "return np.array(sorted(kept),")),
        ("just the threshold", ("<= threshold", "< threshold")),
    ],
    "anchors": [
        ("no half pixel", ("(j + 0.5) * stride, (i + 0.5) * stride", "j * stride, i * stride")),
        (
            "the ratio taken",
            ("size / np.sqrt(ratio), size * np.sqrt(ratio)", "size * np.sqrt(ratio), size / np.sqrt(ratio)"),
        ),
        ("the area changes", ("size / np.sqrt(ratio), size * np.sqrt(ratio)", "size, size * ratio")),
        (
            "axes swapped",
            (
                "for i in range(height):\n        for j in range(width):",
                "for j in range(width):\n        for i in range(height):",
            ),
        ),
    ],
    "roi_pool": [
        ("no batch index", ("n = int(roi[0])", "n = 0")),
        ("axes swapped", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")),
        ("the scale left out", ("rounded(v * scale)", "rounded(v)")),
        ("the last pixel left out", ("last - first + 1", "last - first")),
        ("rounded down", ("rounded(v * scale)", "math.floor(v * scale)")),
    ],
    "roi_align_forward": [
        ("no batch index", ("n = int(roi[0])", "n = 0")),
        ("axes swapped", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")),
        ("the scale left out", ("roi[1:] * scale", "roi[1:]")),
        ("no half pixel", (" - 0.5  #", "  #")),
        ("+1", ("roi[1:] * scale", "(roi[1:] + [0, 0, 1, 1]) * scale")),
        ("the box rounded", ("roi[1:] * scale", "np.round(roi[1:] * scale)")),
        (
            "clipped twice",
            (
                "for r, roi in enumerate(rois):",
                "for r, roi in enumerate(rois):\n"
                "        roi = np.clip(roi, 0, [9, *np.array([width, height] * 2) / scale])",
            ),
        ),
    ],
    "roi_align_backward": [
        ("no batch index", ("n = int(roi[0])", "n = 0")),
        ("axes swapped", ("x1, y1, x2, y2 =", "y1, x1, y2, x2 =")),
        ("the scale left out", ("roi[1:] * scale", "roi[1:]")),
        ("no half pixel", (" - 0.5  #", "  #")),
        ("+1", ("roi[1:] * scale", "(roi[1:] + [0, 0, 1, 1]) * scale")),
        ("the box rounded", ("roi[1:] * scale", "np.round(roi[1:] * scale)")),
        (
            "clipped twice",
            (
                "for r, roi in enumerate(rois):",
                "for r, roi in enumerate(rois):\n"
                "        roi = np.clip(roi, 0, [9, *np.array([width, height] * 2) / scale])",
            ),
        ),
        ("not divided", (" / sampling_ratio**2", "")),
        (OVERWRITTEN, ("row, column] +=", "row, column] =")),
        (
            OVERWRITTEN,
            ("for r, roi in enumerate(rois):", "for r, roi in reversed([*enumerate(rois)]):"),
            ("row, column] +=", "row, column] ="),
        ),
        ("a factor of 0.5", ("weight * gy", "0.5 * weight * gy")),
    ],
    "mask_loss": [
        ("summed", ("max(targets.size, 1)", "1")),
        ("a factor of 16", ("max(targets.size, 1)", "max(len(targets), 1)")),
        ("the channel before", ("np.arange(len(labels)), labels", "np.arange(len(labels)), labels - 1")),
        (
            "a softmax",
            (
                "    # -t log",
                "    e = np.exp(logits - logits.max(1, keepdims=True))\n"
                "    p = (e / e.sum(1, keepdims=True))[own]\n    # -t log",
            ),
            (
                "losses = np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))",
                "losses = -targets * np.log(p) - (1 - targets) * np.log(1 - p)",
            ),
            (
                "gradient[own] = (sigmoid - targets) / count",
                "gradient = -(e / e.sum(1, keepdims=True)) * ((p - targets) / (1 - p))[:, None] / count\n"
                "    gradient[own] = (p - targets) / count",
            ),
        ),
        (
            "all channels",
            ("x = logits[own]", "x, targets = logits, np.repeat(targets[:, None], logits.shape[1], 1)"),
            ("gradient[own] =", "gradient[:] ="),
        ),
        ("the sign", ("(sigmoid - targets)", "(targets - sigmoid)")),
    ],
    "paste_mask": [
        ("no half pixel", ("np.arange(pixels) + 0.5", "np.arange(pixels)")),
        ("+1", ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = box + [0, 0, 1, 1]")),
        ("axes swapped", ("x1, y1, x2, y2 = box", "y1, x1, y2, x2 = box")),
        ("the box rounded", ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = np.round(box)")),
        (
            "clipped twice",
            ("x1, y1, x2, y2 = box", "x1, y1, x2, y2 = np.clip(box, 0, [*image_size[::-1]] * 2)"),
        ),
    ],
    "keypoint_loss_backward": [
        ("not divided", (" / max(valid.sum(), 1)", "")),
        ("divided by all keypoints", ("max(valid.sum(), 1)", "valid.size")),
        ("gy left out", ("gy * gx", "gx")),
        (
            "keypoints that are not valid",
            ("gx * valid[:, :, None]", "gx"),
            ("max(valid.sum(), 1)", "valid.size"),
        ),
        ("1 is not subtracted", ("-= 1", "-= 0")),
        (
            "one softmax for each row",
            (
                "np.exp(flat - flat.max(axis=2, keepdims=True))",
                "np.exp(logits - logits.max(axis=3, keepdims=True))",
            ),
            (
                "gx = e / e.sum(axis=2, keepdims=True)",
                "gx = (e / e.sum(axis=3, keepdims=True)).reshape(flat.shape)",
            ),
        ),
        (
            "one softmax over all keypoints",
            ("flat.max(axis=2, keepdims=True)", "flat.max(axis=(1, 2), keepdims=True)"),
            ("e.sum(axis=2, keepdims=True)", "e.sum(axis=(1, 2), keepdims=True)"),
        ),
        (
            "sigmoids",
            ("    gx = e / e.sum(axis=2, keepdims=True)", "    gx = 0.5 * (1 + np.tanh(flat / 2))"),
        ),
        ("x and y swapped", ("gx[roi, keypoint, cells]", "gx[roi, keypoint, cells % m * m + cells // m]")),
        ("the sign", ("gy * gx", "-gy * gx")),
    ],
    "oks": [
        ("sigma not doubled", ("(2 * sigmas)", "sigmas")),
        ("the 2 before the area", ("(2 * areas[j]", "(areas[j]")),
        ("area is the scale squared", ("areas[j] *", "areas[j] ** 2 *")),
        ("the square root of the area", ("areas[j] *", "np.sqrt(areas[j]) *")),
        ("the distance not squared", (".sum(axis=1)", ".sum(axis=1) ** 0.5")),
        ("all keypoints counted", ("each[labelled]", "each")),
        ("all keypoints counted", ("each[labelled].mean()", "each[labelled].sum() / len(sigmas)")),
        ("hidden keypoints left out", ("true[:, 2] > 0", "true[:, 2] == 2")),
        ("axes swapped", ("return similarity", "return similarity.T")),
    ],
}

ROWS = [(name, *row) for name, rows in MISTAKES.items() for row in rows]


@pytest.mark.parametrize("name", exercises.names())
def test_the_solution_is_right(name, capsys):
    verdict = exercises.check(name, solution(name))
    assert verdict and verdict.mistakes == ()
    assert capsys.readouterr().out == verdict.text + "\n" and verdict.text.startswith(f"{name}: right, in ")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1][:25]}")
def test_a_usual_mistake_is_called_by_its_name(row):
    name, called, *changes = row
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a wrong function may well divide by zero
        verdict = exercises.check(name, solution(name, *changes))
    assert not verdict
    assert any(mistake.startswith(called) for mistake in verdict.mistakes), verdict.text
    assert len(verdict.mistakes) == 1, verdict.text


@pytest.mark.parametrize("name", exercises.names())
def test_every_mistake_that_an_exercise_knows_is_made_above(name):
    made = tuple(called for called, *_ in MISTAKES[name])
    known = [*EXERCISES[name].mistakes, *[OVERWRITTEN] * bool(EXERCISES[name].contributions)]
    assert [mistake for mistake in known if not mistake.startswith(made)] == []


@pytest.mark.parametrize("name", exercises.names())
def test_mistakes_differ_from_the_answer_and_from_one_another_in_some_case(name):
    exercise = EXERCISES[name]
    cases = [*exercise.cases(np.random.default_rng(0)).values()]
    with np.errstate(all="ignore"):
        given = {
            mistake: [exercise._by_name(exercise.mistaken(mistake, inputs)) for inputs in cases]
            for mistake in exercise.mistakes
        }
    given["right"] = [exercise._by_name(exercise.answer(*inputs)) for inputs in cases]

    def equal(one, other):
        return all(
            same(a.get(k), b.get(k)) for a, b in zip(given[one], given[other]) for k in a.keys() | b.keys()
        )

    assert [(a, b) for a in given for b in given if a < b and equal(a, b)] == []


@pytest.mark.parametrize("name", exercises.names())
def test_a_task_names_what_it_takes_and_gives(name, capsys):
    exercises.describe(name)
    text = capsys.readouterr().out
    exercise = EXERCISES[name]
    assert text.startswith(f"{name}({', '.join(exercise.parameters)})")
    task = text.split("Give ")[0]
    assert all(parameter in task.split("\n", 1)[1] for parameter in exercise.parameters)
    assert exercise.results and all(result in text for result in exercise.results)


def raising(gy, x):
    return gy[len(gy)]


def changing(gy, x):
    gy *= x > 0
    return gy


WORDS = {
    "nothing returned": (lambda gy, x: None, "gx is None (is a return missing?), not an array"),
    "a list": (lambda gy, x: [1, 2], "gx is a list of 2, not an array"),
    "a Tensor": (lambda gy, x: Tensor(gy), "gx is a Tensor, not an array"),
    "another shape": (lambda gy, x: gy[:, :1], "gx has the shape (3, 1), not (3, 4)"),
    "whole numbers": (lambda gy, x: gy.astype(int), "gx is of int64, not of float64"),
    "float64 made of float32": (
        lambda gy, x: np.zeros(x.shape) + gy * (x > 0),
        "Case 'float32': gx is right, but float64",
    ),
    "too few parameters": (lambda gy: gy, "give a function of (gy, x)"),
    "no function": (3, "give a function of (gy, x): 'int' object is not callable"),
    "an exception": (
        raising,
        "your function raises IndexError (index 3 is out of bounds for axis 0 with size 3)",
    ),
    "the line of the exception": (raising, "return gy[len(gy)]"),
    "an input changed": (changing, "your function changes its input gy"),
    "not a number": (lambda gy, x: gy * np.nan, "12 of 12 elements wrong; the worst at [0, 0]: yours nan"),
    "one row wrong": (
        lambda gy, x: np.concatenate([gy[:1], (gy * (x > 0))[1:]]),
        "elements wrong, all in [0, :]; the worst at [0, ",
    ),
}


@pytest.mark.parametrize("what", WORDS)
def test_whatever_a_function_does_is_said_in_words(what, capsys):
    mine, words = WORDS[what]
    verdict = exercises.check("relu_backward", mine)
    assert not verdict and words in verdict.text
    assert "Traceback" not in capsys.readouterr().out


def test_the_wrong_number_of_results_is_said():
    verdict = exercises.check("mask_loss", lambda logits, labels, targets: logits)
    assert "your function gives an array (3, 5, 4, 4); wanted: loss, gradient" in verdict.text
    verdict = exercises.check("tape_backward", lambda tape, output, gradient: {output: gradient})
    assert "your function gives a dict of y; wanted: y, d, b, a, x, w" in verdict.text


def test_an_unknown_exercise_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'roi_align_backward'"):
        exercises.check("roialign_backward", lambda: None)
    with pytest.raises(InputError, match="there are tape_backward, relu_backward"):
        exercises.describe("?")


def test_the_anchors_of_the_exercise_are_those_of_minimask():
    answer = EXERCISES["anchors"].answer((16, 32), (0.5, 1.0, 2.0), 8, 3, 4)
    generator = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),), rounded=False, offset=0.5, strides=(8,))
    np.testing.assert_allclose(answer, generator((24, 32), [(3, 4)]), rtol=1e-6)
