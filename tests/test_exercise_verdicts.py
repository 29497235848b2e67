"""What `check` says, in words, about functions that do what nobody expects; and right answers it accepts."""

from __future__ import annotations

import inspect
import sys
import warnings

import numpy as np
import pytest

from minimask import Tensor
from minimask.lessons import exercises
from minimask.lessons.exercises.comparing import NEARLY
from minimask.lessons.exercises.exercise import EXERCISES
from tests import exercise_answers
from tests.exercise_mistakes import solution


def raising(gy, x):
    return gy[len(gy)]


def changing(gy, x):
    gy *= x > 0
    return gy


def recursive(gy, x):
    return recursive(gy, x)


def yielding(gy, x):
    yield gy * (x > 0)


async def waiting(gy, x):
    return gy * (x > 0)


def stopped(gy, x):
    raise KeyboardInterrupt


def dividing(gy, x):
    return gy * (x > 0) / (x - x)


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def speechless(gy, x):
    raise Speechless


class Hostile:
    def __len__(self):
        raise RuntimeError("no length")

    def __array__(self, *_):
        raise RuntimeError("no array")

    __repr__ = __str__ = __len__


WORDS = {
    "nothing returned": (lambda gy, x: None, "gx is None (is a return missing?), not an array"),
    "a list of another shape": (lambda gy, x: [1.0, 2.0], "gx has the shape (2,), not (3, 4)"),
    "rows of two lengths": (
        lambda gy, x: [[1.0], [1.0, 2.0]],
        "gx is a list of 2, which does not make an array",
    ),
    "a comma too many": (
        lambda gy, x: (gy * (x > 0),),
        "gx is a tuple of 1 (a comma too many after return?)",
    ),
    "two results": (lambda gy, x: (gy, x), "gx is a tuple of 2, not an array"),
    "a Tensor": (lambda gy, x: Tensor(gy), "gx is a Tensor (its array is .data), not an array"),
    "Tensors in a list": (lambda gy, x: [Tensor(gy)], "gx has the shape (1, 3, 4), not (3, 4)"),
    "a dict": (lambda gy, x: {"gradient": gy}, "gives a dict of gradient; wanted: gx"),
    "a generator": (yielding, "gx is a generator (yield makes one; return gives a result), not an array"),
    "a coroutine": (waiting, "gx is a coroutine, not an array"),
    "a function": (lambda gy, x: raising, "gx is a function, not an array"),
    "a text": (lambda gy, x: "gy * (x > 0)", "gx is a str, not an array"),
    "an array of text": (lambda gy, x: gy.astype(str), "gx is an array (3, 4) of text, not of numbers"),
    "complex numbers": (lambda gy, x: gy * 1j, "of complex numbers, not of numbers"),
    "objects": (lambda gy, x: gy.astype(object), "of objects, not of numbers"),
    "an object that answers nothing": (lambda gy, x: Hostile(), "gx is a Hostile, not an array"),
    "a list of such": (lambda gy, x: [Hostile()], "gx is a list of 1"),
    "another shape": (lambda gy, x: gy[:, :1], "gx has the shape (3, 1), not (3, 4)"),
    "a number": (lambda gy, x: 0.0, "gx has the shape (), not (3, 4)"),
    "whole numbers": (lambda gy, x: gy.astype(int), "gx is of int64, not of float64"),
    "the mask": (lambda gy, x: x > 0, "gx is of bool, not of float64"),
    "float16": (lambda gy, x: (gy * (x > 0)).astype(np.float16), "gx is of float16, not of float64"),
    "too few parameters": (lambda gy: gy, "give a function of (gy, x)"),
    "a number for a function": (3, "give the function itself, of (gy, x), not an int"),
    "a result for a function": (np.zeros(3), "give the function itself, of (gy, x), not an array (3,)"),
    "nothing for a function": (None, "give the function itself, of (gy, x), not None"),
    "an exception": (
        raising,
        "your function raises IndexError (index 3 is out of bounds for axis 0 with size 3)",
    ),
    "the line of the exception": (raising, "return gy[len(gy)]"),
    "a long exception": (lambda gy, x: int("x" * 5000), "your function raises ValueError"),
    "an exception without words": (speechless, "your function raises Speechless (?)"),
    "an assertion": (lambda gy, x: np.testing.assert_equal(1, 2), "your function raises AssertionError"),
    "no end of calls": (recursive, "your function calls itself without end"),
    "the end of the program": (
        lambda gy, x: sys.exit(1),
        "your function ends the program (sys.exit or exit)",
    ),
    "an interrupt": (stopped, "you stopped it in line"),
    "an input changed": (changing, "your function changes its input gy"),
    "not a number": (lambda gy, x: gy * np.nan, "12 of 12 elements wrong; the worst at [0, 0]: yours nan"),
    "infinity": (lambda gy, x: gy + np.inf, "yours inf"),
    "what NumPy warned of": (dividing, "Note: Python warns: divide by zero encountered in divide (line"),
    "one row wrong": (
        lambda gy, x: np.concatenate([gy[:1], (gy * (x > 0))[1:]]),
        "elements wrong, all in [0, :]; the worst at [0, ",
    ),
    "digits that tell both apart": (
        lambda gy, x: gy * (x > 0) + 1e-8,
        "yours 0.947080973, right 0.947080963",
    ),
    "float32 in between": (lambda gy, x: (gy.astype(np.float32) * (x > 0)).astype(float), NEARLY),
    "an eps": (lambda gy, x: gy * (x > 0) + 1e-7 * x, NEARLY),
}


@pytest.mark.parametrize("what", WORDS)
def test_whatever_a_function_does_is_said_in_words(what, capsys):
    mine, words = WORDS[what]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is warned of: it stands in the verdict
        verdict = exercises.check("relu_backward", mine)
    assert not verdict and words in verdict.text, verdict.text
    assert len(verdict.text) < 700
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out and printed.err == ""


GARBAGE = {
    "None": lambda *a: None,
    "text": lambda *a: "text",
    "an empty tuple": lambda *a: (),
    "an empty list": lambda *a: [],
    "an empty dict": lambda *a: {},
    "too many": lambda *a: (1.0,) * 7,
    "Nones": lambda *a: (None, None, None),
    "two numbers": lambda *a: (0.0, 0.0),
    "three texts": lambda *a: ["a", "b", "c"],
    "NaN": lambda *a: np.full((2, 3), np.nan),
    "three NaNs": lambda *a: (np.nan,) * 3,
    "a huge shape": lambda *a: np.broadcast_to(0.0, (10**6, 10**3, 4))[:2, :2],
    "the first input": lambda *a: a[0],
    "the inputs": lambda *a: a,
    "a Tensor": lambda *a: Tensor(np.zeros(3)),
    "a set": lambda *a: {1, 2},
    "an iterator": lambda *a: iter([1, 2]),
    "its own arguments in a dict": lambda *a: dict(enumerate(a)),
    "a nested list without end": lambda *a: (x := [], x.append(x), x)[2],
    "exit": lambda *a: sys.exit("bye"),
    "a wrong keyword": lambda **a: a,
    "no parameter": lambda: None,
    "hostile": lambda *a: Hostile(),
    "hostile in a tuple": lambda *a: (Hostile(), Hostile(), Hostile()),
    "a masked array": lambda *a: np.ma.masked_all((2, 3)),
    "dates": lambda *a: np.zeros(3, "datetime64[s]"),
    "a record": lambda *a: np.zeros(3, [("a", float)]),
    "True": lambda *a: True,
    "a large int": lambda *a: 10**400,
}


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("name", exercises.names())
def test_garbage_is_refused_by_every_exercise(name, what, capsys):
    verdict = exercises.check(name, GARBAGE[what])
    assert not verdict and verdict.text.startswith(f"{name}: not yet right. Case ")
    assert "Traceback" not in verdict.text and len(verdict.text) < 700


@pytest.mark.parametrize("name", exercises.names())
@pytest.mark.parametrize("nth", [0, 1, 2, 5])
def test_any_result_may_be_garbage_in_a_later_case(name, nth):
    calls = iter(range(100))
    right = solution(name)
    verdict = exercises.check(name, lambda *a: right(*a) if next(calls) != nth else Hostile())
    assert verdict or "Hostile" in verdict.text


@pytest.mark.parametrize("name", exercises.names())
def test_a_change_of_any_input_is_noticed(name):
    right, exercise = solution(name), EXERCISES[name]
    first = next(iter(exercise.all_cases().values()))
    for i, (parameter, value) in enumerate(zip(exercise.parameters, first)):
        if not isinstance(value, (np.ndarray, list)):
            continue

        def spoiling(*inputs, i=i):
            result = right(*inputs)
            if isinstance(inputs[i], list):
                inputs[i].reverse()
            else:
                inputs[i][...] = ~inputs[i] if inputs[i].dtype == bool else inputs[i] + 1
            return result

        verdict = exercises.check(name, spoiling)
        assert f"your function changes its input {parameter}" in verdict.text
        assert exercises.check(name, right), "the next check must not see what that function has spoilt"


def test_prints_are_shown_up_to_a_limit(capsys):
    def talking(gy, x):
        print("the shape of x is", x.shape)
        return gy * (x > 0)

    assert exercises.check("relu_backward", talking)
    assert capsys.readouterr().out.count("the shape of x is") == 4

    def shouting(gy, x):
        for _ in range(10_000):
            print("aaaaaaaaa")
            print("bbbbbbbbb", file=sys.stderr)
        return gy

    verdict = exercises.check("relu_backward", shouting)
    assert "Note: your function prints a lot: 196,000 more characters are not shown" in verdict.text
    printed = capsys.readouterr()
    assert len(printed.out) < 2700 and len(printed.err) < 2100


def test_a_function_that_closes_the_output_or_changes_how_numpy_warns_spoils_nothing(capsys):
    def closing(gy, x):
        sys.stdout.close()
        np.seterr(all="raise")
        print("still here")
        return gy * (x > 0)

    before = np.geterr()
    assert exercises.check("relu_backward", closing)
    assert np.geterr() == before and "still here" in capsys.readouterr().out


def test_numpy_told_to_raise_does_not_stop_the_check():
    with np.errstate(all="raise"):
        assert exercises.check("mask_loss", solution("mask_loss"))
        assert exercises.check("box_iou", exercise_answers.box_iou_where_computed_before)


def test_the_wrong_number_of_results_is_said():
    verdict = exercises.check("mask_loss", lambda logits, labels, targets: logits)
    assert "your function gives an array (3, 5, 4, 4); wanted: loss, gradient" in verdict.text
    verdict = exercises.check("tape_backward", lambda tape, output, gradient: {output: gradient})
    assert "your function gives a dict of y; wanted: y, d, b, a, x, w" in verdict.text


def test_one_result_of_several_is_judged_by_its_name():
    right = solution("mask_loss")
    verdict = exercises.check("mask_loss", lambda *a: (right(*a)[0], None))
    assert "gradient is None" in verdict.text
    verdict = exercises.check("mask_loss", lambda *a: (right(*a)[0] + 1, right(*a)[1]))
    assert "loss is wrong: yours 1.7" in verdict.text


def test_a_single_number_is_said_to_be_off_by_a_factor_only_if_it_is_a_plain_one():
    right = solution("paired_difference")

    def times(factor):
        return exercises.check("paired_difference", lambda *a: [factor * each for each in right(*a)]).text

    assert "a factor of 3" in times(3) and "a factor of 0.05" in times(1 / 20)
    assert "factor" not in times(1.37), "any two numbers have a factor between them"


# -------------------------------------------------------------------------------------------- wrong answers


def preorder(tape, output, gradient):
    """Each value once, as soon as one gradient of it is there."""
    makers, gradients, seen = {call.output: call for call in tape}, {output: gradient}, set()

    def visit(name):
        if name in makers and name not in seen:
            seen.add(name)
            inputs = makers[name].inputs
            for each, g in zip(inputs, makers[name].backward(gradients[name])):
                gradients[each] = gradients.get(each, 0) + g
            for each in inputs:
                visit(each)

    visit(output)
    return gradients


# Changes of a solution's text that a student might make, and that none of an exercise's cases told apart.
PASSED_ONCE = {
    "a box that was suppressed suppresses": (
        *("detect", "                kept.append(i)\n"),
        "                found.append((scores[i], i, label))\n"
        "            kept.append(i)\n        kept = []\n",
    ),
    "each box compared with the last one kept": ("detect", "of_class[kept])", "of_class[kept[-1:]])"),
    "a threshold of one's own": ("detect", "better <= nms_threshold", "better <= 0.5"),
    "class 1's box for every class": ("detect", "boxes[:, label]", "boxes[:, 1]"),
    "the best class's box for every class": (
        *("detect", "boxes[:, label]"),
        "boxes[np.arange(len(boxes)), probabilities.argmax(axis=1)]",
    ),
    "the first object that overlaps enough": (
        *("average_precision", "left.argmax()"),
        "(left >= threshold).argmax()",
    ),
    "the one of these that overlaps least": (
        *("average_precision", "left.argmax()"),
        "np.where(left >= threshold, left, 9).argmin()",
    ),
    "as many numbers are enough": ("transfer_weights", ".shape == array.shape", ".size == array.size"),
    "as many rows are enough": (
        *("transfer_weights", "theirs[name].shape == array.shape"),
        "len(theirs[name]) == len(array)",
    ),
    "their other arrays, too": ("transfer_weights", "return state |", "return theirs | state |"),
    "anew in another order": ("transfer_weights", "np.array(anew, np.int64)", "np.sort(np.int64(anew))"),
    "levels 2 to 5, whatever is asked for": (
        "assign_levels",
        "max(level, lowest), highest",
        "max(level, 2), 5",
    ),
    "counted from two above the lowest": ("assign_levels", "4 + np.log2", "lowest + 2 + np.log2"),
    "labelled as on the first object": ("oks", "true[:, 2] > 0", "keypoints[0, :, 2] > 0"),
    "stages counted, not read": (
        *("last_seen", "(there, stages, -1)"),
        "(there, np.unique(stages, return_inverse=True)[1], -1)",
    ),
    "groups numbered anew": (
        *("grouped_split", "groups == group"),
        "np.unique(groups, return_inverse=True)[1] == group",
    ),
}


@pytest.mark.parametrize("what", PASSED_ONCE)
def test_a_wrong_answer_that_once_passed_is_refused(what):
    name, old, new = PASSED_ONCE[what]
    verdict = exercises.check(name, solution(name, (old, new)))
    assert not verdict and "Error" not in verdict.text, verdict.text


def test_a_walk_without_an_order_is_refused():
    assert not exercises.check("tape_backward", preorder)


def test_a_logarithm_kept_from_0_in_any_way_is_named():
    stable = "np.maximum(x, 0) - x * targets + np.log1p(np.exp(-np.abs(x)))"
    log = "-targets * {0}(p) - (1 - targets) * {0}(1 - p)"
    p = "    p = 0.5 * (1 + np.tanh(x / 2))\n    losses"
    clipped = "    p = np.clip(0.5 * (1 + np.tanh(x / 2)), 1e-7, 1 - 1e-7)\n    losses"
    for before, losses in ((clipped, log.format("np.log")), (p, log.format("clamped"))):
        changes = (stable, losses), ("    losses", before)
        clamped = (
            "import numpy as np",
            "import numpy as np\nclamped = lambda p: np.maximum(np.log(p), -100)",
        )
        verdict = exercises.check("mask_loss", solution("mask_loss", *changes, clamped))
        assert not verdict and "the logarithm of 0" in verdict.text, verdict.text


# -------------------------------------------------------------------------------------------- right answers

ANSWERS = {
    name: function
    for name, function in inspect.getmembers(exercise_answers, inspect.isfunction)
    if function.__module__ == exercise_answers.__name__ and not name.startswith("_")
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_right_answer_of_another_kind_is_taken(what):
    name = max((n for n in exercises.names() if what.startswith(n)), key=len)
    verdict = exercises.check(name, ANSWERS[what])
    assert verdict, verdict.text


@pytest.mark.parametrize("name", exercises.names())
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_another_precision_is_taken_with_a_note_of_what_it_costs(name, dtype):
    right = solution(name)

    def cast(x):
        if isinstance(x, dict):
            return {key: cast(value) for key, value in x.items()}
        if isinstance(x, tuple):
            return tuple(map(cast, x))
        return x.astype(dtype) if x.dtype.kind == "f" else x

    verdict = exercises.check(name, lambda *inputs: cast(right(*inputs)))
    assert verdict, verdict.text
    indices, numbers = (
        ("nms", "grouped_split", "assign_levels", "last_seen"),
        ("average_precision", "paired_difference"),
    )
    no_floats_come_in = name in ("anchors", "warmup_cosine") and dtype is np.float64
    kept = name in indices or name in numbers or no_floats_come_in
    said = {
        np.float64: "float32 is wanted, float64 comes out",
        np.float32: "float64 is wanted, float32 comes out",
    }
    assert len(verdict.notes) == (not kept) and (kept or said[dtype] in verdict.notes[0])


@pytest.mark.parametrize("name", exercises.names())
def test_results_may_lie_in_memory_as_they_like(name):
    right = solution(name)

    def turned(x):
        if isinstance(x, dict):
            return {key: turned(value) for key, value in x.items()}
        if isinstance(x, tuple):
            return list(map(turned, x))
        return np.asfortranarray(x) if x.ndim else x

    assert exercises.check(name, lambda *inputs: turned(right(*inputs)))


def test_a_list_of_arrays_and_a_number_of_python_are_taken_without_a_note():
    right = solution("mask_loss")
    assert exercises.check("mask_loss", lambda *a: [float(right(*a)[0]), right(*a)[1]]).notes == ()
    assert exercises.check("nms", lambda *a: [*solution("nms")(*a)]).notes == ()
    assert exercises.check("nms", lambda *a: tuple(solution("nms")(*a).tolist())).notes == ()


def test_a_mask_for_indices_is_told_how_to_become_one():
    verdict = exercises.check("nms", lambda boxes, scores, threshold: scores > threshold)
    assert "kept is of bool, not of int64; np.nonzero gives the indices" in verdict.text


@pytest.mark.parametrize("name", ["grouped_split", "transfer_weights"])
def test_true_and_false_are_as_good_as_the_ones_and_zeros_of_a_mask(name):
    right = solution(name)

    def as_bool(result):
        return result.astype(bool) if name == "grouped_split" else result | {"anew": list(result["anew"] > 0)}

    def turned_round(result):
        return ~as_bool(result) if name == "grouped_split" else result | {"anew": result["anew"] == 0}

    assert exercises.check(name, lambda *inputs: as_bool(right(*inputs)))
    verdict = exercises.check(name, lambda *inputs: turned_round(right(*inputs)))
    assert not verdict and verdict.mistakes and "of bool" not in verdict.text


def test_the_inputs_that_went_wrong_can_be_tried():
    verdict = exercises.check("relu_backward", lambda gy, x: gy * (x >= 0))
    gy, x = verdict.inputs
    assert "Case 'zeros'" in verdict.text and (x == 0).any() and gy.shape == x.shape
    assert exercises.check("relu_backward", solution("relu_backward")).inputs == ()


def test_a_huge_result_or_one_of_many_axes_takes_neither_memory_nor_time():
    verdict = exercises.check("relu_backward", lambda gy, x: np.broadcast_to(0.0, (10**6, 10**6)))
    assert "gx has the shape (1000000, 1000000), not (3, 4)" in verdict.text
    verdict = exercises.check("relu_backward", lambda gy, x: np.broadcast_to(True, (1,) * 30 + x.shape))
    assert "gx is of bool" in verdict.text
    verdict = exercises.check("relu_backward", lambda gy, x: x.reshape((1,) * 30 + x.shape))
    assert "gx has the shape (1, 1, " in verdict.text


def test_a_side_taken_for_the_other_is_named():
    def square(gy, x, kernel, stride):
        return np.zeros((*x.shape[:2], x.shape[2], x.shape[2]))

    verdict = exercises.check("max_pool_backward", square)
    assert verdict.mistakes == ("height and width taken for each other: they need not be equal",)
