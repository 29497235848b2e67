"""float16 and integers: computed where they do not overflow, refused in one line where they cannot work."""

import numpy as np
import pytest

from minimask import Tensor, ops
from minimask import functions as F
from minimask.boxes import (
    BoxCoder,
    batched_nms,
    box_area,
    box_coverage,
    box_iou,
    by_falling,
    clip_boxes_to_image,
    generalized_box_iou,
    nms,
    nms_loop,
    remove_small_boxes,
    scale_boxes,
)
from minimask.masks import FLOAT, TORCHVISION, Masks, crop_masks, paste_mask, paste_masks
from minimask.matching import assign_fpn_levels
from minimask.models.rpn import top_k
from tests.model_data import tiny_model

INTEGERS = (bool, np.uint8, np.int8, np.uint16, np.int32, np.uint64)
LARGE = np.array([[0, 0, 300, 300], [10, 0, 310, 300], [500, 400, 900, 800]])
SMALL = np.array([[0, 0, 200, 200], [10, 10, 110, 100], [201, 210, 250, 255]])  # areas beyond 255
pytestmark = pytest.mark.filterwarnings("error")


# ------------------------------------------------------------------------------------------------- boxes


@pytest.mark.parametrize("function", [box_iou, generalized_box_iou, box_coverage])
def test_overlaps_of_float16_are_those_of_float32_rounded(function):
    half = LARGE.astype(np.float16)
    found, expected = function(half, half), function(LARGE.astype(np.float32), LARGE.astype(np.float32))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected.astype(np.float16))
    assert function(half, LARGE.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_overlaps_and_areas_of_integers_are_those_of_the_same_numbers_in_float64(dtype):
    boxes, exact = SMALL.astype(dtype), SMALL.astype(np.float64)
    for function in (box_iou, generalized_box_iou, box_coverage):
        np.testing.assert_array_equal(function(boxes, boxes), function(exact, exact))
    np.testing.assert_array_equal(box_area(boxes), [40000, 9000, 2205])
    np.testing.assert_array_equal(remove_small_boxes(boxes[:, [2, 3, 0, 1]], 1), [])  # sides below 0


def test_areas_and_levels_of_float16_are_finite():
    np.testing.assert_array_equal(box_area(LARGE.astype(np.float16)), [90000, 90000, 160000])
    np.testing.assert_array_equal(assign_fpn_levels(LARGE.astype(np.float16)), [4, 4, 4])
    np.testing.assert_array_equal(assign_fpn_levels(SMALL.astype(np.uint8)), [3, 2, 2])


def test_boxes_of_small_integers_are_clipped_and_scaled():
    boxes = SMALL.astype(np.uint8)
    np.testing.assert_array_equal(clip_boxes_to_image(boxes, (300, 220))[2], [201, 210, 220, 255])
    np.testing.assert_array_equal(scale_boxes(boxes, (0.5, 0.25))[1], [2.5, 5, 27.5, 50])
    assert scale_boxes(LARGE.astype(np.float16), (0.5, 0.5)).dtype == np.float16


@pytest.mark.parametrize("count", [3, 6000])  # few, and so many that threads share them
def test_boxes_are_coded_as_in_a_wider_dtype(count):
    rng, coder = np.random.default_rng(0), BoxCoder((10.0, 10.0, 5.0, 5.0))
    low, size = rng.integers(0, 500, (count, 2)), rng.integers(1, 500, (count, 2))
    boxes, others = np.hstack([low, low + size]), np.hstack([low + 3, low + 2 * size + 5])
    exact = coder.encode(others.astype(np.float64), boxes.astype(np.float64))
    np.testing.assert_array_equal(coder.encode(others, boxes), exact)
    half = coder.encode(others.astype(np.float16), boxes.astype(np.float16))
    np.testing.assert_allclose(half, exact, rtol=1e-3, atol=1e-3)
    back = coder.decode(half, boxes.astype(np.float16))[:, 0]
    assert half.dtype == back.dtype == np.float16
    np.testing.assert_allclose(back, others, rtol=2e-3, atol=2)


@pytest.mark.parametrize("count", [3, 40000])  # few, and so many that threads share them
def test_decoded_boxes_have_the_dtype_of_the_deltas(count):
    deltas, boxes = np.zeros((count, 4), np.float32), np.tile([0.0, 0, 10, 20], (count, 1))
    assert BoxCoder().decode(deltas, boxes).dtype == np.float32


# ----------------------------------------------------------------------------------------------- sorting


@pytest.mark.parametrize("dtype", [*INTEGERS, np.int64, np.float16, np.float32, np.float64])
def test_the_largest_come_first_in_every_dtype_also_where_negation_wraps_around(dtype):
    if np.dtype(dtype).kind in "iu":
        ends = np.iinfo(dtype)
        values = np.array([0, ends.max, 9, ends.min, 9, 0, 1], dtype)
    else:
        values = np.array([0, 1, 0, 1, 1], dtype)
    expected = sorted(range(len(values)), key=lambda i: values[i].item(), reverse=True)
    assert by_falling(values).tolist() == expected
    for k in (1, 3, 9):
        assert top_k(values, k).tolist() == expected[:k]


@pytest.mark.parametrize("suppress", [ops.nms, nms_loop, lambda b, s, t: ops.batched_nms(b, s, [0, 0, 0], t)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16])
def test_suppression_follows_scores_of_any_dtype(suppress, dtype):
    boxes = np.array([[0, 0, 3, 3], [0, 0, 3, 3], [10, 10, 13, 13]])
    lowest = np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else 0
    for box_dtype in (np.float64, np.float16, np.uint8, np.int64):
        kept = suppress(boxes.astype(box_dtype), np.array([lowest, 9, 100], dtype), 0.5)
        assert kept.tolist() == [2, 1]


def test_suppression_of_large_float16_boxes_is_that_of_float32():
    scores = np.array([0.5, 0.4, 0.3], np.float16)
    assert nms(LARGE.astype(np.float16), scores, 0.5).tolist() == [0, 2]
    assert batched_nms(LARGE.astype(np.float16), scores, np.array([0, 1, 0]), 0.5).tolist() == [0, 1, 2]
    assert nms(LARGE.tolist(), scores.tolist(), 0.5).tolist() == [0, 2]


def test_boxes_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="numbers are needed, not <U1"):
        box_iou(np.array([["a"] * 4]), LARGE)


# ------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("convention", [FLOAT, TORCHVISION], ids=["float", "torchvision"])
def test_masks_of_float16_and_integers_are_pasted_and_cropped_as_in_a_wider_dtype(convention):
    cells = np.random.default_rng(0).integers(0, 2, (3, 7, 7))
    boxes, size = SMALL.astype(np.float64), (260, 255)
    exact = paste_masks(cells.astype(np.float64), boxes, size, convention)
    for dtype in (bool, np.uint8, np.int64):
        np.testing.assert_array_equal(paste_masks(cells.astype(dtype), boxes, size, convention), exact)
        masks = Masks(cells.astype(dtype), boxes, size, convention)
        np.testing.assert_array_equal(masks[:, 0], exact[:, 0])
        assert masks[:, 0].dtype == masks.dtype == np.float64
    for dtype in (np.uint8, np.int64):  # x + x' of two bytes is beyond a byte
        np.testing.assert_array_equal(paste_masks(cells, SMALL.astype(dtype), size, convention), exact)
    half = paste_masks(cells.astype(np.float16), boxes, size, convention)
    np.testing.assert_allclose(half, exact, rtol=0, atol=1e-3)
    assert half.dtype == np.float16
    assert paste_mask(cells[0].astype(np.float16), boxes[0], size, convention)[1].dtype == np.float16
    bitmaps = (exact[:, 0] > 0.5).astype(np.uint8)
    targets = crop_masks(bitmaps, boxes, np.arange(3), 28, convention)
    np.testing.assert_array_equal(crop_masks(bitmaps, SMALL, np.arange(3), 28, convention), targets)
    assert ((targets > 0) & (targets < 1)).any()
    half = crop_masks(bitmaps, boxes.astype(np.float16), np.arange(3), 28, convention)
    np.testing.assert_allclose(half, targets, rtol=0, atol=1e-3)
    assert half.dtype == np.float16


# --------------------------------------------------------------------------------------------- Functions


def layers(rng):
    """Functions of inputs whose sums or squares are beyond float16, though the results are not."""
    rois = np.array([[0, 1.5, 2, 6, 7], [0, 0, 0, 3, 3]], np.float32)
    x, flat = 100 * rng.random((1, 8, 8, 8)), 100 * rng.random((300, 300))
    w, b = rng.random((4, 8, 3, 3)) / 100, rng.random(4)
    scale, shift = rng.random(8), rng.random(8)
    return {
        "conv2d": (lambda x, w, b: F.conv2d(x, w, b, padding=1), x, w, b),
        "conv_transpose2d": (F.conv_transpose2d, x, rng.random((8, 3, 2, 2)) / 100),
        "linear": (F.linear, flat, rng.random((5, 300)) / 100),
        "roi_align": (lambda x: F.roi_align(x, rois, 2), x),
        "roi_warp": (lambda x: F.roi_warp(x, rois, 2), x),
        "roi_pool": (lambda x: F.roi_pool(x, rois, 2), x),
        "group_norm": (lambda *a: F.group_norm(a[0], 2, *a[1:]), x, scale, shift),
        "batch_norm": (lambda *a: F.batch_norm(*a)[0], x, scale, shift),
        "mean": (F.mean, flat),
        "smooth_l1": (lambda a, b: F.smooth_l1(a, b, normalizer=9e4), flat, flat.T.copy()),
        "softmax_cross_entropy": (lambda a: F.softmax_cross_entropy(a, np.zeros(300, int)), flat),
    }


@pytest.mark.parametrize("name", layers(np.random.default_rng(0)))
def test_a_layer_in_float16_is_computed_in_float32_and_rounded_at_its_ends(name):
    function, *arrays = layers(np.random.default_rng(0))[name]
    half = [Tensor(a.astype(np.float16), requires_grad=True) for a in arrays]
    full = [Tensor(t.data.astype(np.float32), requires_grad=True) for t in half]
    y, expected = function(*half), function(*full)
    assert y.dtype == np.float16 and np.isfinite(y.data).all()
    np.testing.assert_array_equal(y.data, expected.data.astype(np.float16))
    gy = (np.random.default_rng(1).random(y.shape) / 8).astype(np.float16)
    y.backward(gy)
    expected.backward(gy.astype(np.float32))
    for found, wanted in zip(half, full):
        assert found.grad.dtype == np.float16 and np.isfinite(found.grad).all()
        np.testing.assert_array_equal(found.grad, wanted.grad.astype(np.float16))


def test_results_are_float16_only_where_all_that_decides_is():
    half, full = np.ones((1, 1, 4, 4), np.float16), np.ones((1, 1, 4, 4), np.float32)
    rois = np.array([[0, 0, 0, 3, 3.0]])
    assert F.roi_align(half, rois, 2).dtype == np.float16
    assert F.roi_align(full, rois.astype(np.float16), 2).dtype == np.float32
    assert F.add(half, full).dtype == np.float32 and (half * Tensor(half)).dtype == np.float16


@pytest.mark.parametrize("target", [np.zeros(3), np.array([0, 1, 1])])
@pytest.mark.parametrize("normalizer", [None, np.int64(2), np.float64(2)])
def test_losses_of_float32_have_float32_gradients_whatever_they_are_compared_with(target, normalizer):
    wide = np.array([[0.5, -2.0, 3.0]])
    for loss, right in (
        (F.smooth_l1, target[None]),
        (F.l1, target[None]),
        (F.sigmoid_cross_entropy, target[None]),
        (F.softmax_cross_entropy, np.array([1])),
        (lambda x, cell, **n: F.keypoint_loss(x.reshape(1, 1, 1, 3), cell, cell > 0, **n), np.array([[1]])),
    ):
        x, exact = Tensor(wide.astype(np.float32), requires_grad=True), Tensor(wide, requires_grad=True)
        for each in (x, exact):
            number = normalizer if each is x else normalizer and 2.0
            loss(each, right, normalizer=number).backward()
        assert x.grad.dtype == np.float32
        np.testing.assert_allclose(x.grad, exact.grad, rtol=1e-5)


@pytest.mark.parametrize("loss", [F.smooth_l1, F.l1, F.sigmoid_cross_entropy, F.softmax_cross_entropy])
def test_losses_refuse_a_target_that_would_be_broadcast(loss):
    for x, target in ((np.zeros((4, 1)), np.zeros(4, int)), (np.zeros((4, 3)), np.zeros((4, 1), int))):
        if loss is not F.softmax_cross_entropy or target.ndim > 1:
            with pytest.raises(ValueError, match=rf"^{loss.__name__}: the target must be \(4,.*\), is \(4,"):
                loss(x, target)


@pytest.mark.parametrize(
    ("loss", "inputs"),
    {
        "rpn_loss": ((3, 2), (3, 2, 4), np.array([0, 3]), np.array([1]), (1, 4)),
        "box_head_loss": ((3, 2), (3, 8), np.array([1, 0, 1]), (3, 1)),
        "mask_loss": ((3, 2, 4, 4), np.ones(3, int), (1, 4, 4)),
        "softmax_mask_loss": ((3, 2, 4, 4), np.ones(3, int), (3, 4, 1)),
        "keypoint_loss": ((3, 2, 4, 4), np.ones((3, 2), int), (1, 1)),
    }.items(),
)
def test_the_losses_of_a_stage_refuse_a_target_that_would_be_broadcast(loss, inputs):
    arrays = [np.ones(each) if isinstance(each, tuple) else each for each in inputs]
    with pytest.raises(ValueError, match=rf"^{loss}: the target must be \(\d, \d.*\), is \("):
        getattr(F, loss)(*arrays)


@pytest.mark.parametrize("beta", [np.float64(1 / 9), np.float32(1 / 9)])
def test_a_beta_of_numpy_leaves_gradients_in_float32(beta):
    logits, deltas = np.zeros((3, 2), np.float32), np.ones((3, 8), np.float32)
    labels, targets = np.array([1, 0, 1]), np.zeros((3, 4))
    for loss in (
        lambda x: F.rpn_loss(logits, x.reshape(3, 2, 4), np.array([0, 3]), np.array([1]), targets[:2], beta)[
            1
        ],
        lambda x: F.box_head_loss(logits, x, labels, targets, beta)[1],
        lambda x: F.smooth_l1(x, np.zeros((3, 8)), beta),
    ):
        x = Tensor(deltas, requires_grad=True)
        loss(x).backward()
        assert x.grad.dtype == np.float32 and x.grad.any()


def test_what_is_put_together_from_two_dtypes_gives_each_its_gradient_in_its_own():
    for join in (
        lambda a, b: F.concatenate([a, b]),
        lambda a, b: F.upsample_nearest(a, scale_factor=1, add=b),
    ):
        a, b = (Tensor(np.ones((1, 1, 2, 2), dtype), requires_grad=True) for dtype in ("f4", "f8"))
        join(a, b).sum().backward()
        assert a.grad.dtype == np.float32 and b.grad.dtype == np.float64
        np.testing.assert_array_equal(a.grad, b.grad)


@pytest.mark.parametrize("loss", [F.smooth_l1, F.l1, F.sigmoid_cross_entropy, F.softmax_cross_entropy])
def test_losses_take_targets_as_lists(loss):
    x = np.random.default_rng(0).normal(size=(4, 3))
    target = np.array([0, 2, 1, 1]) if loss is F.softmax_cross_entropy else np.eye(4, 3)
    assert loss(x, target.tolist()).item() == loss(x, target).item()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_layers_refuse_integers_in_one_line(dtype):
    x, w, rois = (
        np.ones((1, 2, 4, 4), dtype),
        np.ones((2, 2, 1, 1), np.float32),
        np.array([[0, 0, 0, 3, 3.0]]),
    )
    for call in (
        lambda: F.conv2d(x, w),
        lambda: F.conv_transpose2d(x, w),
        lambda: F.linear(x[0, 0], w),
        lambda: F.roi_align(x, rois, 2),
        lambda: F.roi_warp(x, rois, 2),
        lambda: F.conv2d(w, x.reshape(2, 2, 2, 4)),
    ):
        with pytest.raises(TypeError, match=r"must be floating point, is .*astype\(np.float32\)") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("narrow", [0, 1, 2])
def test_layers_refuse_two_dtypes_before_they_compute(narrow):
    rng = np.random.default_rng(0)
    arrays = rng.random((1, 4, 4, 4)), rng.random((4, 4, 1, 1)), rng.random(4)
    x, w, b = (a.astype(np.float32 if i == narrow else np.float64) for i, a in enumerate(arrays))
    norms = x, w[:, 0, 0, 0], b
    for call in (
        lambda: F.conv2d(x, w, b),
        lambda: F.conv_transpose2d(x, w, b),
        lambda: F.linear(x[0, 0], w[:, :, 0, 0], b),
        lambda: F.batch_norm(*norms),
        lambda: F.frozen_batch_norm(*norms, np.zeros(4), np.ones(4)),
        lambda: F.group_norm(x, 2, *norms[1:]),
        lambda: F.conv_frozen_norm(x, w, norms[1:]),
        lambda: F.mask_head(x, [], (w, b), (w, b)),
        lambda: F.keypoint_head(x, [], (w, b)),
        lambda: F.rpn_head([x], (w, b), (w, b), (w, b)),
    ):
        with pytest.raises(TypeError, match=r"^\w+: .+ is float\d\d, .+ float\d\d, and all must") as error:
            call()
        assert "\n" not in str(error.value)


def test_the_losses_of_a_stage_take_targets_of_any_dtype():
    rng = np.random.default_rng(0)
    logits, deltas, boxes = rng.normal(size=(3, 2)), rng.normal(size=(3, 8)), rng.normal(size=(3, 4))
    masks, cells = rng.normal(size=(3, 2, 2, 2)), rng.random((3, 2, 2)) > 0.5
    labels = np.array([1, 0, 1])
    positive, negative = np.array([0, 3]), np.array([1])
    for loss, inputs, target in (
        (
            lambda x, d, t: F.rpn_loss(x, d.reshape(3, 2, 4), positive, negative, t),
            (logits, deltas),
            boxes[:2],
        ),
        (lambda x, d, t: F.box_head_loss(x, d, labels, t), (logits, deltas), boxes),
        (lambda x, t: (F.mask_loss(x, labels, t),), (masks,), cells),
        (lambda x, t: (F.softmax_mask_loss(x, labels, t),), (masks,), cells),
    ):
        target = target.astype(np.float32).astype(np.float64)  # the same numbers in both
        given = [Tensor(x.astype(np.float32), requires_grad=True) for x in inputs]
        wanted = [Tensor(x.data.copy(), requires_grad=True) for x in given]
        sum(loss(*given, target)).backward()
        sum(loss(*wanted, target.astype(np.float32))).backward()
        for x, same in zip(given, wanted):
            assert x.grad.dtype == np.float32
            np.testing.assert_array_equal(x.grad, same.grad)


def test_rois_may_be_whole_numbers():
    x, rois = np.arange(64.0).reshape(1, 1, 8, 8), np.array([[0, 1, 2, 5, 7]])
    for layer in (F.roi_align, F.roi_warp, F.roi_pool):
        for dtype in (np.uint8, np.int64):
            found = layer(x, rois.astype(dtype), 2).data
            np.testing.assert_array_equal(found, layer(x, rois.astype(np.float64), 2).data)
            np.testing.assert_array_equal(layer(x, [rois[:, 1:].astype(dtype)], 2).data, found)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8, bool, complex, np.longdouble])
def test_a_model_in_another_dtype_than_float32_and_float64_is_refused_and_stays_as_it_was(dtype):
    model = tiny_model()
    with pytest.raises(TypeError, match="a model computes in float32 or float64, not in"):
        model.astype(dtype)
    assert all(value.dtype == np.float64 for value in model.state_dict().values())


def test_gradients_are_converted_with_their_parameters():
    model = tiny_model()
    for parameter in model.parameters():
        parameter.grad = np.ones(parameter.shape)
    assert all(p.grad.dtype == p.dtype == np.float32 for p in model.astype(np.float32).parameters())
