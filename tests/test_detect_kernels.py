"""The CUDA sources of suppression, masks and SGD on the CPU, in any order of threads, against NumPy."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimask import backend
from minimask import boxes as box_ops
from minimask import masks as mask_ops
from minimask.anchors import AnchorGenerator
from minimask.backend import to_cpu
from minimask.kernels import nms as launcher
from minimask.kernels import sgd
from minimask.lessons import cuda_on_cpu
from minimask.lessons.cuda_on_cpu import ORDERS, KernelError
from minimask.masks import FLOAT, TORCHVISION
from minimask.nn import Parameter
from minimask.training.optim import SGD, clip_gradients
from tests.fake_cupy import syncs

HERE = Path(__file__).parent
KERNELS = Path(launcher.__file__).parent
PLANTED = {}  # sources to run instead, with a mistake in them
CTYPE = {np.dtype("f4"): "float", np.dtype("f8"): "double"}

pytestmark = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA sources with")


def run(source: str, kernel: str, grid, block, *args, dtype=None, watch=False, **options) -> None:
    """A kernel of kernels/SOURCE.cu; for a template, that of `dtype`."""
    name = f"{kernel}<{CTYPE[np.dtype(dtype)]}>" if dtype else kernel
    text = PLANTED.get(source, KERNELS / f"{source}.cu")
    cuda_on_cpu.load(text, watch=watch).get_function(name)(grid, block, args, **options)


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


# ------------------------------------------------------------------------------------------------- masks


each_convention = pytest.mark.parametrize("convention", [FLOAT, TORCHVISION], ids=["float", "torchvision"])


def crop(masks, boxes, matches, size, convention, **options):
    """What `crop_masks` does on a GPU, on NumPy arrays."""
    targets = np.full((len(boxes), size, size), -1, boxes.dtype)
    sizes = map(np.int32, (len(boxes), *masks.shape, size))
    args = (masks, matches, mask_ops._samples(boxes, size, convention), *sizes, targets)
    run("masks", "crop_masks", (3,), (32,), *args, dtype=boxes.dtype, **options)
    return targets


def paste(masks, boxes, image_size, convention, threshold=None, grid=(3, 2), **options):
    """What `paste_masks` does on a GPU, on NumPy arrays."""
    placements = mask_ops._placements(boxes, masks.shape[-1], image_size, convention)
    images = np.full((len(masks), *image_size), 9, masks.dtype if threshold is None else bool)
    out = (images, np.uintp(0)) if threshold is None else (np.uintp(0), images)
    sizes = map(np.int32, (*masks.shape[:2], *image_size))
    args = (masks, placements, *sizes, masks.dtype.type(threshold or 0), *out)
    run("masks", "paste_masks", grid, (32,), *args, dtype=masks.dtype, **options)
    return images


def some_boxes(count, height, width, dtype=np.float32):
    """Boxes of all sizes in and around an image; the last: whole, without area, far outside, everything."""
    rng = np.random.default_rng(count)
    centre = rng.uniform(-5, 5, (count, 2)) + rng.uniform(0, (width, height), (count, 2))
    half = np.exp(rng.uniform(np.log(0.5), np.log(60), (count, 2))) / 2
    boxes = np.concatenate((centre - half, centre + half), axis=1)
    odd = [[3, 4, 15, 20], [3, 3, 3, 3], [3, 3, 9, 3], [-90, 3, -80, 9], [0, 0, width, height]]
    return np.concatenate((boxes, odd)).astype(dtype)


@pytest.mark.parametrize("order", ORDERS)
@each_convention
def test_a_cropped_mask_is_numpys_and_each_roi_sees_its_own_object(convention, order):
    rng = np.random.default_rng(0)
    masks = (rng.uniform(size=(3, 20, 26)) < 0.5).astype(np.uint8)
    for dtype, bound in ((np.float64, 1e-14), (np.float32, 4e-7)):
        boxes = some_boxes(30, 20, 26, dtype)
        matches = rng.integers(0, 3, len(boxes))
        want = mask_ops.crop_masks(masks, boxes, matches, 7, convention)
        got = crop(masks, boxes, matches, 7, convention, order=order)
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)


def test_a_crop_of_an_object_that_does_not_exist_is_nan():
    masks, boxes = np.ones((2, 8, 8), np.uint8), np.tile(np.array([[1, 1, 7, 7]], np.float32), (4, 1))
    crops = crop(masks, boxes, np.array([0, 2, -1, 1]), 4, FLOAT)
    assert np.isnan(crops[1:3]).all() and (crops[[0, 3]] == 1).all()


@pytest.mark.parametrize("order", ORDERS)
@each_convention
def test_a_pasted_mask_is_numpys_whole_image_and_all(convention, order):
    rng = np.random.default_rng(1)
    for dtype, bound in ((np.float64, 1e-14), (np.float32, 3e-7)):
        boxes = some_boxes(20, 30, 40, dtype)
        masks = rng.uniform(size=(len(boxes), 14, 14)).astype(dtype)
        want = mask_ops.paste_masks(masks, boxes, (30, 40), convention)[:, 0]
        got = paste(masks, boxes, (30, 40), convention, order=order)
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)
        assert (got[want == 0] == 0).all()
        np.testing.assert_array_equal(paste(masks, boxes, (30, 40), convention, 0.5, order=order), got > 0.5)


def test_pasting_is_torchvisions():
    d = np.load(HERE / "reference" / "paste.npz")
    masks = np.ascontiguousarray(d["masks"][:, 0])
    pasted = paste(masks, d["boxes"], (150, 200), TORCHVISION, grid=(40, 1))
    np.testing.assert_allclose(pasted, d["pasted"][:, 0], rtol=0, atol=2e-6)


def test_no_two_threads_write_the_same_pixel_or_cell():
    boxes = some_boxes(4, 12, 16)
    masks = np.random.default_rng(2).uniform(size=(len(boxes), 5, 5)).astype(np.float32)
    paste(masks, boxes, (12, 16), FLOAT, watch=True)
    bitmaps = (np.random.default_rng(2).uniform(size=(2, 12, 16)) < 0.5).astype(np.uint8)
    crop(bitmaps, boxes, np.arange(len(boxes)) % 2, 4, FLOAT, watch=True)


# --------------------------------------------------------------------------------------------------- SGD


def a_model(dtype, sizes=(1, 31, 700, 64, 5000)):
    """Weights, gradients, velocities and decay of parameters of these sizes."""
    rng = np.random.default_rng(3)
    arrays = [[rng.standard_normal(size).astype(dtype) for size in sizes] for _ in range(3)]
    return *arrays, [1e-4 * (size % 2) for size in sizes]


def addresses(*columns):
    return np.array([[*(a.ctypes.data for a in row), row[0].size] for row in zip(*columns)], np.uint64)


def plain_step(weights, gradients, velocities, decay, lr, momentum):
    """The formula, array by array: new weights and velocities."""
    new = [momentum * v + g + d * w for w, g, v, d in zip(weights, gradients, velocities, decay)]
    return [w - lr * v for w, v in zip(weights, new)], new


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (2, 5), (2, 8)])
def test_one_launch_updates_all_parameters(grid, order):
    for dtype, bound in ((np.float64, 1e-15), (np.float32, 5e-7)):
        weights, gradients, velocities, decay = a_model(dtype)
        want = plain_step(weights, gradients, velocities, decay, 0.1, 0.9)
        table, count = addresses(weights, gradients, velocities), np.int32(len(weights))
        args = (table, np.array(decay, dtype), count, dtype(0.1), dtype(0.9))
        run("sgd", "sgd", grid, (32,), *args, dtype=dtype, order=order)
        for got, wanted in zip(weights + velocities, want[0] + want[1]):
            np.testing.assert_allclose(got, wanted, rtol=bound, atol=bound)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (4, 5)])
@pytest.mark.parametrize("watch", [False, True])
def test_the_sums_of_squares_are_numpys_in_double_whatever_the_order_of_threads(watch, grid, order):
    for dtype in (np.float32, np.float64):
        _, gradients, _, _ = a_model(dtype, (1, 31, 700, 0, 2000) if watch else (1, 256, 257, 0, 5000))
        sums = np.full((5, grid[0]), np.nan)
        table, count = addresses(gradients), np.int32(5)
        run("sgd", "squares", grid, (256,), table, count, sums, dtype=dtype, order=order, watch=watch)
        want = [(g.astype(np.float64) ** 2).sum() for g in gradients]
        np.testing.assert_allclose(sums.sum(axis=1), want, rtol=1e-14)


@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (2, 8)])
def test_one_launch_scales_all_gradients(grid):
    for dtype in (np.float64, np.float32):
        _, gradients, _, _ = a_model(dtype)
        want = [g * dtype(0.3) for g in gradients]
        args = addresses(gradients), np.int32(len(gradients)), dtype(0.3)
        run("sgd", "scale", grid, (32,), *args, dtype=dtype, watch=True)
        for got, wanted in zip(gradients, want):
            np.testing.assert_array_equal(got, wanted)


def test_no_two_threads_update_the_same_element():
    weights, gradients, velocities, decay = a_model(np.float32, (1, 31, 100))
    table = addresses(weights, gradients, velocities)
    args = (table, np.array(decay, np.float32), np.int32(3), np.float32(0.1), np.float32(0.9))
    run("sgd", "sgd", (2, 2), (32,), *args, dtype=np.float32, watch=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_on_the_cpu_a_step_is_the_formula_to_the_bit_and_leaves_the_old_weights(dtype, monkeypatch):
    monkeypatch.setattr(backend.workers, "threads", lambda: 3)
    monkeypatch.setattr(backend.workers, "FEW", 0)
    monkeypatch.setattr(sgd, "ELEMENTS_AT_ONCE", 1 << 12)
    weights, gradients, velocities, decay = a_model(
        dtype, (1, 3 * sgd.ELEMENTS_AT_ONCE + 5, 700, 0, sgd.ELEMENTS_AT_ONCE)
    )
    gradients[1] = gradients[1][::-1]  # any layout
    want = plain_step(weights, gradients, velocities, decay, 0.1, 0.9)
    before = [w.copy() for w in weights]
    new = sgd.update(list(zip(weights, gradients, velocities, decay)), 0.1, 0.9)
    for got, wanted in zip([*new, *velocities, *weights], [*want[0], *want[1], *before]):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, wanted)
    assert sgd.sum_of_squares(gradients) == sum(float((g * g).sum(dtype=np.float64)) for g in gradients)
    assert sgd.update([], 0.1, 0.9) == [] and sgd.sum_of_squares([]) == 0


# --------------------------------------------------------------------------------------- planted mistakes


def check_suppression(**options):
    boxes, scores, groups = crowded(200)
    kept = suppress(boxes, scores, groups, 0.3, 96, **options)  # 4 words, 24 threads share each
    np.testing.assert_array_equal(kept, box_ops.batched_nms(boxes, scores, groups, 0.3))


def check_masks(**options):
    boxes, rng = some_boxes(12, 20, 26), np.random.default_rng(5)
    bitmaps, matches = (rng.uniform(size=(3, 20, 26)) < 0.5).astype(np.uint8), np.arange(len(boxes)) % 3
    want = mask_ops.crop_masks(bitmaps, boxes, matches, 7, FLOAT)
    np.testing.assert_allclose(crop(bitmaps, boxes, matches, 7, FLOAT, **options), want, atol=4e-7)
    masks = rng.uniform(size=(len(boxes), 5, 5)).astype(np.float32)
    want = mask_ops.paste_masks(masks, boxes, (20, 26), FLOAT)[:, 0]
    np.testing.assert_allclose(paste(masks, boxes, (20, 26), FLOAT, **options), want, atol=3e-7)


def check_sums(**options):
    sums, gradients = np.full((3, 2), np.nan), a_model(np.float32, (700, 31, 300))[1]
    run("sgd", "squares", (2, 1), (256,), addresses(gradients), np.int32(3), sums, dtype="f4", **options)
    want = [(g.astype(np.float64) ** 2).sum() for g in gradients]
    np.testing.assert_allclose(sums.sum(axis=1), want, rtol=1e-14)


BARRIER = "__syncthreads();"
MISTAKES = [  # check, source, text, which occurrence of it, what stands there instead
    (check_suppression, "nms", BARRIER, 0, ""),  # columns not yet read
    (check_suppression, "nms", BARRIER, 1, ""),  # words not yet zero
    (check_suppression, "nms", BARRIER, 2, ""),  # survivors not yet settled
    (check_suppression, "nms", BARRIER, 3, ""),  # a step begins before the last has ended
    (check_suppression, "nms", "row_group == column_group[b] && ", 0, ""),
    (check_suppression, "nms", "w == blockIdx.y ? t + 1 : 0", 0, "0"),  # a box strikes out itself
    (check_suppression, "nms", "i += parts", 0, "i += 2 * parts"),
    (check_suppression, "nms", "place += alive >> i & 1", 0, "place++"),
    (
        check_masks,
        "masks",
        "samples + 6LL * r, *in_x = in_y + 3",
        0,
        "samples + 6LL * r + 3, *in_x = in_y - 3",
    ),
    (
        check_masks,
        "masks",
        "before = (int)at, after = min(before + 1, length - 1)",
        0,
        "before = after = (int)at",
    ),
    (check_masks, "masks", "matches[r] * H * W", 0, "matches[0] * H * W"),
    (check_masks, "masks", "mask[a * M + b]", 0, "mask[b * M + a]"),
    (check_masks, "masks", "(int)floor(v)", 0, "(int)v"),  # towards zero: the fading edge is lost
    (check_sums, "sgd", BARRIER, 0, ""),
    (check_sums, "sgd", BARRIER, 1, ""),
    (check_sums, "sgd", "half = 128", 0, "half = 64"),
]


def caught(check) -> bool:
    for options in [{"order": order} for order in ORDERS] + [{"watch": True}]:
        try:
            check(**options)
        except (AssertionError, KernelError):
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("check", "source", "text", "which", "instead"), MISTAKES)
def test_a_planted_mistake_is_caught(check, source, text, which, instead, monkeypatch):
    assert not caught(check)
    pieces = (KERNELS / f"{source}.cu").read_text(encoding="utf-8").split(text)
    assert len(pieces) > which + 1
    planted = text.join(pieces[: which + 1]) + instead + text.join(pieces[which + 1 :])
    monkeypatch.setitem(PLANTED, source, planted)
    assert caught(check)


# ----------------------------------------------------------- the functions on a GPU that is a strict stand-in


def test_suppression_on_a_gpu_is_the_cpus_and_waits_once(fake_cupy):
    for count in (0, 1, 64, 65, 300):
        boxes, scores, groups = crowded(count)
        on_gpu = [fake_cupy.asarray(a) for a in (boxes, scores, groups)]
        for suppression, arrays in ((box_ops.nms, 2), (box_ops.batched_nms, 3)):
            before = len(syncs)
            kept = suppression(*on_gpu[:arrays], 0.3)
            assert len(syncs) == before + 1
            want = suppression(boxes, scores, groups, 0.3) if arrays == 3 else suppression(boxes, scores, 0.3)
            np.testing.assert_array_equal(to_cpu(kept), want)
            assert kept.dtype == np.int64


def test_more_boxes_than_a_gpu_can_suppress_at_once_are_refused(fake_cupy, monkeypatch):
    monkeypatch.setattr(launcher, "LIMIT", 99)
    boxes, scores, _ = (fake_cupy.asarray(a) for a in crowded(100))
    with pytest.raises(ValueError, match="100 boxes are more than the 99"):
        box_ops.nms(boxes, scores, 0.5)


@each_convention
def test_targets_and_pasted_masks_of_a_gpu_are_the_cpus(fake_cupy, convention):
    rng = np.random.default_rng(4)
    boxes = some_boxes(12, 30, 40)
    bitmaps, matches = rng.uniform(size=(3, 30, 40)) < 0.5, rng.integers(0, 3, len(boxes))
    masks = mask_ops.Masks(rng.uniform(size=(len(boxes), 14, 14)).astype("f4"), boxes, (30, 40), convention)
    on_gpu, before = masks.to("cuda"), len(syncs)
    arguments = [fake_cupy.asarray(a) for a in (bitmaps, boxes, matches)]
    targets = mask_ops.crop_masks(*arguments, 7, convention, 0.5)
    pasted = mask_ops.paste_masks(on_gpu.probabilities, on_gpu.boxes, (30, 40), convention)
    above = mask_ops.paste_masks(on_gpu.probabilities, on_gpu.boxes, (30, 40), convention, 0.5)
    assert len(syncs) == before
    np.testing.assert_array_equal(
        to_cpu(targets), mask_ops.crop_masks(bitmaps, boxes, matches, 7, convention, 0.5)
    )
    np.testing.assert_allclose(to_cpu(pasted), masks.numpy(), rtol=0, atol=3e-7)
    np.testing.assert_array_equal(to_cpu(above), to_cpu(pasted) > 0.5)
    np.testing.assert_array_equal(on_gpu.numpy(), to_cpu(pasted))
    for index in (
        -1,
        (2, 0),
        (slice(1, 3), 0),
        ([3, 3], 0, slice(2)),
        ([2, 1], 0, [5, 6]),
        fake_cupy.asarray(1),
    ):
        found, index = on_gpu[index], to_cpu(index) if hasattr(index, "get") else index
        assert isinstance(found, fake_cupy.ndarray)
        np.testing.assert_array_equal(to_cpu(found), to_cpu(pasted)[index])
    np.testing.assert_array_equal(to_cpu(on_gpu > 0.5), to_cpu(pasted) > 0.5)
    np.testing.assert_array_equal(to_cpu(on_gpu * 2 <= 1), to_cpu(pasted) * 2 <= 1)
    assert on_gpu.rle() == masks.rle()
    for got, want in zip(on_gpu.window(2), masks.window(2)):
        np.testing.assert_array_equal(got, want)
    assert mask_ops.paste_masks(on_gpu.probabilities[:0], on_gpu.boxes[:0], (30, 40)).shape == (0, 1, 30, 40)
    assert mask_ops.crop_masks(*(a[:0] for a in arguments), 7, convention).shape == (0, 7, 7)


def test_a_step_on_a_gpu_is_the_cpus_in_place_and_the_norm_waits_once(fake_cupy):
    weights, gradients, *_ = a_model(np.float32)
    model = [Parameter(w.copy()) for w in weights]
    device = [Parameter(fake_cupy.asarray(w)) for w in weights]
    steps = []
    for parameters, place in ((model, np.asarray), (device, fake_cupy.asarray)):
        optimizer = SGD([(str(k), p) for k, p in enumerate(parameters)], 0.1, decay_norms_and_biases=True)
        held = parameters[1].data
        for _ in range(2):
            for p, g in zip(parameters[1:], gradients[1:]):  # the first has none
                p.grad = place(g)
            before = len(syncs)
            norm = clip_gradients(parameters, 20.0)
            optimizer.step()
        steps.append((norm, len(syncs) - before, parameters[1].data is held))
    assert steps[0][0] == pytest.approx(steps[1][0], rel=1e-7) and steps[1][0] > 20  # squares in float32
    assert steps[0][1:] == (0, False) and steps[1][1:] == (1, True)
    for p, q in zip(model, device):
        np.testing.assert_allclose(to_cpu(q.data), p.data, rtol=1e-6, atol=1e-6)


def test_parameters_of_two_dtypes_cannot_share_a_launch(fake_cupy):
    arrays = [fake_cupy.zeros(3, np.float32), fake_cupy.zeros(3, np.float64)]
    with pytest.raises(ValueError, match="unpack"):
        sgd.sum_of_squares(arrays)


GPU_CALLS = {
    "area": lambda b: box_ops.box_area(b),
    "iou": lambda b: box_ops.box_iou(b, b),
    "giou": lambda b: box_ops.generalized_box_iou(b, b),
    "coverage": lambda b: box_ops.box_coverage(b, b),
    "clip": lambda b: box_ops.clip_boxes_to_image(b, (25, 35)),
    "small": lambda b: box_ops.remove_small_boxes(b, 5.0),
    "scale": lambda b: box_ops.scale_boxes(b, (2 / 3, 1.5)),
    "encode": lambda b: box_ops.BoxCoder((10, 10, 5, 5)).encode(b[:20], b[1:21]),
    "decode": lambda b: box_ops.BoxCoder().decode(b[:, [0, 1, 2, 3, 3, 2, 1, 0]] / 30, b),
}


@pytest.mark.parametrize("name", GPU_CALLS)
def test_boxes_on_a_gpu_meet_no_numpy_array_and_give_the_same(fake_cupy, name):
    boxes = some_boxes(20, 30, 40)
    got = GPU_CALLS[name](fake_cupy.asarray(boxes))
    want = GPU_CALLS[name](boxes)
    assert isinstance(got, fake_cupy.ndarray) and got.dtype == want.dtype
    np.testing.assert_allclose(to_cpu(got), want, rtol=1e-6, atol=1e-6)


def test_anchors_made_on_a_gpu_are_the_cpus(fake_cupy):
    generator, sizes = AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2, offset=0.5), [(4, 5), (2, 3)]
    anchors = generator((32, 40), sizes, fake_cupy)
    np.testing.assert_array_equal(to_cpu(anchors), generator((32, 40), sizes))


@pytest.mark.slow
@pytest.mark.skipif(bool(os.environ.get(cuda_on_cpu.SANITIZE)), reason="runs inside this very test")
def test_nothing_reads_or_writes_beyond_its_arrays_nor_overflows():
    """All of the above once more, with AddressSanitizer and UBSan, in a process that has their library."""
    environment = dict(os.environ, LD_PRELOAD=cuda_on_cpu.libasan(), ASAN_OPTIONS="detect_leaks=0")
    environment[cuda_on_cpu.SANITIZE] = "address,undefined"
    command = [sys.executable, "-m", "pytest", __file__, "-k", "not planted"]
    result = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert " passed" in result.stdout
