"""The CUDA sources of suppression, masks and SGD on the CPU, in any order of threads, against NumPy."""

from pathlib import Path

import numpy as np
import pytest

from minimask import boxes as box_ops
from minimask.kernels import nms as launcher
from tests import cuda_on_cpu
from tests.cuda_on_cpu import ORDERS

HERE = Path(__file__).parent
KERNELS = Path(launcher.__file__).parent
CTYPE = {np.dtype("f4"): "float", np.dtype("f8"): "double"}

pytestmark = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")


def run(source: str, kernel: str, grid, block, *args, dtype=None, watch=False, **options) -> None:
    """A kernel of kernels/SOURCE.cu; for a template, that of `dtype`."""
    name = f"{kernel}<{CTYPE[np.dtype(dtype)]}>" if dtype else kernel
    cuda_on_cpu.load(KERNELS / f"{source}.cu", watch=watch).get_function(name)(grid, block, args, **options)


# ------------------------------------------------------------------------------- non-maximum suppression


def suppress(boxes, scores, groups, threshold, block=1024, **options):
    """What the launcher of the fast version does, on NumPy arrays."""
    n, words, dtype = len(boxes), -(-len(boxes) // 64), boxes.dtype
    order = np.argsort(-scores, kind="stable")
    groups = np.uintp(0) if groups is None else groups
    strikes = np.full((n, words), 0xAAAAAAAAAAAAAAAA, np.uint64)  # what is not written must not be read
    kept, count = np.full(n, -1), np.zeros(1, np.int32)
    args = (boxes, order, groups, dtype.type(threshold), np.int32(n), np.int32(words), strikes)
    run("nms", "nms_matrix", (words, words), (64,), *args, dtype=dtype, **options)
    run(
        "nms",
        "nms_greedy",
        (1,),
        (block,),
        strikes,
        order,
        np.int32(n),
        np.int32(words),
        kept,
        count,
        **options,
    )
    assert (kept[count[0] :] == -1).all()
    return kept[: count[0]]


def naive(boxes, scores, groups, threshold, **options):
    order, keep = np.argsort(-scores, kind="stable"), np.zeros(len(boxes), bool)
    groups = np.uintp(0) if groups is None else groups
    args = (boxes, order, groups, boxes.dtype.type(threshold), np.int32(len(boxes)), keep)
    run("nms", "nms_naive", (1,), (1,), *args, dtype=boxes.dtype, **options)
    return order[keep]


def crowded(count, seed=0, dtype=np.float32, sides=(10.0, 40.0)):
    """Boxes of which most overlap some others, scores with ties, and three groups."""
    rng = np.random.default_rng(seed)
    centre, half = rng.uniform(0, 100, (count, 2)), rng.uniform(*sides, (count, 2)) / 2
    boxes = np.concatenate((centre - half, centre + half), axis=1).astype(dtype)
    return boxes, (rng.integers(0, 200, count) / 200).astype(dtype), rng.choice([-1, 3, 10**12], count)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("version", [naive, suppress])
def test_suppression_keeps_what_torchvision_keeps(version, order):
    d = np.load(HERE / "reference" / "nms.npz")
    for key, groups, threshold in (
        ("keep_05", None, 0.5),
        ("keep_07", None, 0.7),
        ("keep_batched_05", d["classes"], 0.5),
    ):
        kept = version(d["boxes"], d["scores"], groups, threshold, order=order)
        np.testing.assert_array_equal(kept, d[key])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 500])
def test_suppression_keeps_what_numpy_keeps_at_and_off_whole_words(count, order):
    for dtype in (np.float32, np.float64):
        boxes, scores, groups = crowded(count, seed=count, dtype=dtype)
        want = box_ops.nms(boxes, scores, 0.3)
        np.testing.assert_array_equal(suppress(boxes, scores, None, 0.3, order=order), want)
        np.testing.assert_array_equal(naive(boxes, scores, None, 0.3, order=order), want)
        want = box_ops.batched_nms(boxes, scores, groups, 0.3)
        np.testing.assert_array_equal(suppress(boxes, scores, groups, 0.3, order=order), want)


@pytest.mark.parametrize("block", [64, 96, 256, 512])
def test_the_greedy_pass_needs_no_certain_number_of_threads(block):
    """2000 boxes have 32 words: with 64 threads two parts a word; 5000 have 79, more than the threads."""
    for count in (2000, 5000):
        boxes, scores, _ = crowded(count, sides=(2.0, 8.0))
        np.testing.assert_array_equal(
            suppress(boxes, scores, None, 0.3, block), box_ops.nms(boxes, scores, 0.3)
        )


def test_no_two_threads_of_suppression_touch_one_address_without_a_barrier_between():
    boxes, scores, groups = crowded(200)
    for order in ORDERS:
        kept = suppress(boxes, scores, groups, 0.3, 256, watch=True, order=order)
        np.testing.assert_array_equal(kept, box_ops.batched_nms(boxes, scores, groups, 0.3))


def odd_boxes():
    """Equal boxes, boxes without area, turned round, infinite, and with NaN; NaN scores come last."""
    boxes = np.tile(np.array([[10, 10, 20, 20]], np.float32), (70, 1))
    boxes[5:15] = [10, 10, 10, 20]
    boxes[15:25] = [20, 20, 10, 10]
    boxes[25:30, 2] = np.inf
    boxes[30:34, 0] = np.nan
    boxes[34:36] = np.nan
    return boxes


@pytest.mark.parametrize("version", [naive, suppress])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.99])
def test_odd_boxes_and_scores_are_kept_or_not_as_in_numpy(version, threshold):
    boxes, scores = odd_boxes(), np.random.default_rng(0).integers(0, 9, 70).astype(np.float32)
    scores[[3, 31, 60]] = np.nan
    with np.errstate(invalid="ignore"):
        want = box_ops.nms(boxes, scores, threshold)
        np.testing.assert_array_equal(version(boxes, scores, None, threshold), want)
    assert 0 < len(want) < 70


@pytest.mark.parametrize("tenths", [1, 3, 5, 7, 9])
def test_in_the_kernel_too_an_overlap_of_exactly_the_threshold_does_not_suppress(tenths):
    pair, scores = np.array([[0, 0, 10, 1], [0, 0, tenths, 1]], np.float32), np.array([2, 1], np.float32)
    assert suppress(pair, scores, None, tenths / 10).tolist() == [0, 1]
    assert suppress(pair, scores, None, tenths / 10 - 0.001).tolist() == [0]
