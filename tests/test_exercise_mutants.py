"""Solutions with one thing changed are refused: the exercises' cases leave no room for a wrong answer.

Each solution in `tutorials/solutions` is changed in every way that `mutants_of_code` knows. What is still
accepted is listed here, with the reason why it is right.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from minimask.lessons import exercises
from minimask.lessons.exercises.exercise import EXERCISES
from tests.exercise_mistakes import SOLUTIONS, function
from tests.mutants_of_code import mutants

ORDER = "the order of axes in a sum or maximum, or of terms, does not matter"
BEHIND = "zeros behind what the last window reads"
ARRAY = "a list, which check takes as an array"
WHOLE = "of a whole number, which it is already"
SQUARE = "a mask has as many rows as columns"

# For each exercise: {what stands in the changed line: why that is right}.
EQUIVALENT = {
    "im2col": {
        "np.ones((n, c, kh, kw, p, q)": "every element is assigned",
        "h + 3 * padding": BEHIND,
        "w + 3 * padding": BEHIND,
    },
    "conv2d_forward": {"height + 3 * padding": BEHIND, "width + 3 * padding": BEHIND},
    "conv2d_backward": {
        "np.ones_like(w)": "every element is assigned",
        "gy.dtype": "gy has the dtype of x",
        "axis=(3, 2, 0)": ORDER,
        "height + 3 * padding": BEHIND,
        "width + 3 * padding": BEHIND,
    },
    "oks": {"np.ones((len(found)": "every element is assigned"},
    "transfer_weights": {"{'anew': anew}": "a list of True and False, which are as good as ones and zeros"},
    "group_norm_backward": {
        "len(gy)": "gy has the shape of x",
        "groups, -2": "any negative number says: as many as there are",
        "axis=(3, 2, 0)": ORDER,
        "reshape(gy.shape)": "gy has the shape of x",
    },
    "box_iou": {
        "np.where(union >= 0, ": "the intersection is 0 where the union is",
        "np.where(union > -1, ": "the intersection is 0 where the union is",
        "union, 2)": "any number but 0 divides an intersection of 0",
    },
    "nms": {
        "return kept": ARRAY,
        "np.array(kept)": "of nothing, it is float, but has nothing in it either",
        "= width * max(height, 0)": "a negative intersection is below the threshold, as none is",
        "max(width, 0) * height": "a negative intersection is below the threshold, as none is",
        "max(width, -1)": "a negative intersection is below the threshold, as none is",
        "max(height, -1)": "a negative intersection is below the threshold, as none is",
        "iou(boxes[k], boxes[i])": "IoU is symmetric",
    },
    "anchors": {"return made": ARRAY},
    "assign_levels": {"else 4 + np.log2": "the array of whole numbers cuts the fraction off"},
    "detect": {
        "proposals = [": ARRAY,
        "labels = [": ARRAY,
        "labels, [": ARRAY,
        "in found])": "of nothing, it is float, but has nothing in it either; else of the right kind",
        "box_iou(of_class[kept], of_class[[i]])": "IoU is symmetric",
    },
    "last_seen": {"stages, -2)": "the maximum begins with -1"},
    "roi_pool": {
        "round(math.copysign": WHOLE,
        "return zip(": "looped over once, as the list is",
        "round(roi[0])": WHOLE,
        "math.copysign(abs(v) + 0.5, v)": "int cuts the fraction off, as floor has done",
        "k * size // bins": "floor of what floor has been taken of",
        "np.clip(end, -1, length)": "a bin that ends before 0 is as empty as one that ends there",
        "axis=(2, 1)": ORDER,
    },
    "warmup_cosine": {"np.ones(len(steps))": "every element is assigned"},
    "average_precision": {
        "taken[best] = left[best]": "frees an object once all are found, when precision can only fall",
        "np.where(taken, -2,": "any number below the threshold says: taken",
        "np.where(taken, -0,": "any number below the threshold says: taken",
    },
    "roi_align_forward": {
        "((min(top + 1, height - 1), v - top), (top, 1 - (v - top)))": ORDER,
        "((min(left + 1, width - 1), u - left), (left, 1 - (u - left)))": ORDER,
        "round(roi[0])": WHOLE,
    },
    "paste_mask": {
        "mask.shape[1], image_size[0]": SQUARE,
        "mask.shape[-1]": SQUARE,
        "mask.shape[0], image_size[1]": SQUARE,
    },
}
EQUIVALENT["roi_align_backward"] = EQUIVALENT["roi_align_forward"]


def verdict_on(name: str, text: str):
    return replace(EXERCISES[name], mistakes={}).check(
        function(name, text)
    )  # none is to be named: that is faster


@pytest.mark.slow
@pytest.mark.parametrize("name", exercises.names())
def test_a_solution_with_one_thing_changed_is_refused(name):
    text = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    taken = [line for line, changed in mutants(text) if (v := verdict_on(name, changed)) and not v.notes]
    known = EQUIVALENT.get(name, {})
    unknown = [line for line in taken if not any(part in line.split(" -> ")[1] for part in known)]
    assert unknown == [], "taken: refuse these, or say in EQUIVALENT why they are right"
    unused = [part for part in known if not any(part in line for line in taken)]
    assert unused == [], "refused: these need not stand in EQUIVALENT"


def test_the_mutants_are_many_and_of_every_kind():
    text = "def f(x):\n    y = max(x[1:], 0) // 2\n    y += 1\n    return y < x\n"
    changed = [line.split(" -> ")[1] for line, _ in mutants(text)]
    kinds = [
        "max(x[2:]",
        "max(x[:]",
        "min(x[1:]",
        "y = x[1:] // 2",
        "/ 2",
        "// 3",
        "pass",
        "y = 1",
        "y <= x",
        "y > x",
    ]
    assert [kind for kind in kinds if not any(kind in line for line in changed)] == []
