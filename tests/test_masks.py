"""Cropping and pasting masks: against loops, against torchvision, and there and back again."""

import contextlib
import math
import operator
import pickle
from pathlib import Path

import numpy as np
import pytest

from minimask import masks as masks_module
from minimask.boxes import scale_boxes
from minimask.data.sample import tight_boxes
from minimask.masks import (
    FLOAT,
    TORCHVISION,
    MaskConvention,
    Masks,
    crop_masks,
    encode_window,
    paste_mask,
    paste_masks,
)

REFERENCE = Path(__file__).parent / "reference"
CONVENTIONS = (FLOAT, TORCHVISION)
each_convention = pytest.mark.parametrize("convention", CONVENTIONS, ids=["float", "torchvision"])


def ellipse(height, width, center, radii):
    """The pixels whose centres lie within an ellipse; center and radii as (y, x) in pixels."""
    y, x = np.mgrid[:height, :width] + 0.5
    return (((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1).astype(np.uint8)


def boxes_in_and_around(rng, count, height, width, smallest=0.5, largest=60.0):
    center = rng.uniform(-5, 5, (count, 2)) + rng.uniform(0, (width, height), (count, 2))
    half = np.exp(rng.uniform(np.log(smallest), np.log(largest), (count, 2))) / 2
    return np.concatenate((center - half, center + half), axis=1).astype(np.float32)


def dense(window, patch, image_size):
    y0, y1, x0, x1 = window
    image = np.zeros(image_size, patch.dtype)
    image[y0:y1, x0:x1] = patch
    return image


# ---------------------------------------------------------------------------------------------- pasting


def test_pasting_in_torchvisions_convention_equals_torchvision():
    reference = np.load(REFERENCE / "paste.npz")
    pasted = paste_masks(reference["masks"], reference["boxes"], (150, 200))
    assert pasted.dtype == np.float32
    np.testing.assert_allclose(pasted, reference["pasted"], rtol=0, atol=2e-6)


def test_pasting_boxes_of_every_size_also_partly_outside_the_image_equals_torchvision():
    torch = pytest.importorskip("torch")
    roi_heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    rng = np.random.default_rng(0)
    boxes = boxes_in_and_around(rng, 300, 40, 50)  # some corners lie 35 pixels outside
    boxes = boxes[(np.minimum(boxes[:, 2:], [50, 40]) - np.maximum(boxes[:, :2], 0)).min(axis=1) > 0]
    masks = rng.uniform(size=(len(boxes), 1, 14, 14)).astype(np.float32)
    theirs = roi_heads.paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), (40, 50))
    np.testing.assert_allclose(paste_masks(masks, boxes, (40, 50)), theirs.numpy(), rtol=0, atol=5e-6)


def test_pasting_on_float_boxes_equals_grid_sample():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    boxes = boxes_in_and_around(rng, 50, 40, 50).astype(np.float64)
    masks = rng.uniform(size=(50, 1, 14, 14))
    y, x = np.mgrid[:40, :50] + 0.5
    x1, y1, x2, y2 = boxes.T[..., None, None]
    grid = np.stack(((x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1), axis=-1)
    theirs = torch.nn.functional.grid_sample(
        torch.from_numpy(masks), torch.from_numpy(grid), align_corners=False
    )
    np.testing.assert_allclose(paste_masks(masks, boxes, (40, 50), FLOAT), theirs.numpy(), rtol=0, atol=1e-12)


def paste_float_loop(mask, box, height, width):
    """The definition: each pixel's centre, mapped into the mask, interpolates the four cells around it."""
    cells = len(mask)
    padded = np.pad(mask, 1)
    image = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = (i + 0.5 - box[1]) / (box[3] - box[1]) * cells - 0.5
            x = (j + 0.5 - box[0]) / (box[2] - box[0]) * cells - 0.5
            if not (-1 <= y <= cells and -1 <= x <= cells):
                continue
            top, left = min(math.floor(y), cells - 1), min(math.floor(x), cells - 1)
            fy, fx = y - top, x - left
            corners = padded[top + 1 : top + 3, left + 1 : left + 3]
            image[i, j] = [1 - fy, fy] @ corners @ [1 - fx, fx]
    return image


def test_pasting_on_float_boxes_is_bilinear_interpolation_at_pixel_centres():
    rng = np.random.default_rng(2)
    for box in boxes_in_and_around(rng, 12, 20, 24, largest=40).astype(np.float64):
        mask = rng.uniform(size=(5, 5))
        pasted = dense(*paste_mask(mask, box, (20, 24), FLOAT), (20, 24))
        np.testing.assert_allclose(pasted, paste_float_loop(mask, box, 20, 24), rtol=0, atol=1e-13)


def test_a_mask_as_large_as_its_box_is_pasted_unchanged_on_float_boxes():
    mask = np.random.default_rng(3).uniform(size=(6, 6)).astype(np.float32)
    window, patch = paste_mask(mask, np.array([4, 2, 10, 8], np.float32), (20, 20), FLOAT)
    assert window == (2, 8, 4, 10)
    np.testing.assert_array_equal(patch, mask)


def test_a_ramp_stays_a_ramp_wherever_the_box_lies_on_float_boxes():
    cells = (np.arange(14) + 0.5) / 14
    for x1, x2 in ((3.0, 31.0), (3.3, 30.9), (5.75, 26.2)):
        box = np.array([x1, 0, x2, 30])
        pasted = dense(*paste_mask(np.tile(cells, (14, 1)), box, (30, 40), FLOAT), (30, 40))
        margin = (x2 - x1) / 28  # half a cell: beyond, the outermost cell fades out
        x = np.arange(40) + 0.5
        inside = (x > x1 + margin) & (x < x2 - margin)
        np.testing.assert_allclose(pasted[15, inside], ((x - x1) / (x2 - x1))[inside], rtol=0, atol=1e-12)


@each_convention
def test_a_box_outside_the_image_or_without_area_gives_an_empty_window_or_stays_inside(convention):
    mask = np.ones((7, 7), np.float32)
    for box in ([-50, -50, -40, -40], [100, 5, 120, 9], [5, 60, 9, 80]):
        window, patch = paste_mask(mask, np.array(box, np.float32), (30, 40), convention)
        assert patch.size == 0 and patch.shape == (window[1] - window[0], window[3] - window[2])
        assert not dense(window, patch, (30, 40)).any()
    for box in ([5, 5, 5, 5], [5, 5, 9, 5], [-3, -3, 60, 60]):
        y0, y1, x0, x1 = paste_mask(mask, np.array(box, np.float32), (30, 40), convention)[0]
        assert 0 <= y0 <= y1 <= 30 and 0 <= x0 <= x1 <= 40


@each_convention
def test_pasting_no_masks_gives_no_images(convention):
    for shape in ((0, 1, 28, 28), (0, 28, 28)):
        pasted = paste_masks(np.zeros(shape, np.float32), np.zeros((0, 4), np.float32), (30, 40), convention)
        assert pasted.shape == (0, 1, 30, 40) and pasted.dtype == np.float32


def test_a_convention_can_be_put_together_from_others():
    rng = np.random.default_rng(14)
    masks = rng.uniform(size=(6, 5, 5))
    boxes, matches = boxes_in_and_around(rng, 6, 20, 24).astype(np.float64), np.arange(6)
    mixed = MaskConvention(aligned=TORCHVISION.aligned, place=FLOAT.place)
    bitmaps = rng.uniform(size=(6, 20, 24)) < 0.5
    np.testing.assert_array_equal(
        crop_masks(bitmaps, boxes, matches, 7, mixed), crop_masks(bitmaps, boxes, matches, 7, TORCHVISION)
    )
    np.testing.assert_array_equal(
        paste_masks(masks, boxes, (20, 24), mixed), paste_masks(masks, boxes, (20, 24), FLOAT)
    )


def test_torchvisions_convention_is_everyones_default():
    rng = np.random.default_rng(15)
    masks, bitmaps = rng.uniform(size=(6, 5, 5)), rng.uniform(size=(6, 20, 24)) < 0.5
    boxes, matches = boxes_in_and_around(rng, 6, 20, 24).astype(np.float64), np.arange(6)
    every = paste_masks(masks, boxes, (20, 24), TORCHVISION)
    np.testing.assert_array_equal(paste_masks(masks, boxes, (20, 24)), every)
    np.testing.assert_array_equal(Masks(masks, boxes, (20, 24)).numpy(), every)
    np.testing.assert_array_equal(dense(*paste_mask(masks[0], boxes[0], (20, 24)), (20, 24)), every[0, 0])
    np.testing.assert_array_equal(
        crop_masks(bitmaps, boxes, matches, 7), crop_masks(bitmaps, boxes, matches, 7, TORCHVISION)
    )


# --------------------------------------------------------------------------------------- the Masks object


@pytest.fixture(params=CONVENTIONS, ids=["float", "torchvision"])
def masks(request):
    rng = np.random.default_rng(4)
    return Masks(
        rng.uniform(size=(9, 14, 14)).astype(np.float32),
        boxes_in_and_around(rng, 9, 40, 50),
        (40, 50),
        request.param,
    )


def test_masks_paste_the_same_one_at_a_time_and_all_at_once(masks):
    every = paste_masks(masks.probabilities, masks.boxes, (40, 50), masks.convention)
    assert masks.shape == every.shape == (9, 1, 40, 50) and len(masks) == 9
    np.testing.assert_array_equal(masks.numpy(), every)
    np.testing.assert_array_equal(np.asarray(masks), every)
    np.testing.assert_array_equal(np.stack(list(masks)), every)
    np.testing.assert_array_equal(masks[-1], every[-1])
    np.testing.assert_array_equal(dense(*masks.window(3), (40, 50)), every[3, 0])


def test_a_selection_of_masks_is_masks(masks):
    every = masks.numpy()
    for index in (slice(2, 5), np.array([7, 0]), np.arange(9) % 2 == 0):
        selected = masks[index]
        assert isinstance(selected, Masks) and selected.convention == masks.convention
        np.testing.assert_array_equal(selected.numpy(), every[index])


INDICES = [
    (0, 0), (-1, 0), (slice(None), 0), np.array(1), np.int64(-2), (0, 0, 3, 4), (8, 0, slice(9), [1, 5]),
    (slice(2, 6), 0, slice(None), 4), ([7, 0, 7], 0), ([7, 0], 0, [3, 4], [5, 6]), ([[1, 2], [3, 1]], 0, 5),
    [[1, 2], [3, 1]], None, (None, 2), True, (Ellipsis, 0), (Ellipsis, 0, 3, 4), (3, Ellipsis, 2),
    (0, None, 0), (np.arange(9) % 2 == 0, 0, 5), np.ones((9, 1), bool), ([], 0), (slice(4, 4), 0, 1),
    (slice(0, 9, 4), 0, [1, 2]), ([[1, 2], [3, 1]], 0, slice(3)),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_masks_are_indexed_as_the_array_that_they_paste_to(masks, index):
    found, expected = masks[index], masks.numpy()[index]
    assert np.shape(found) == np.shape(expected) and found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "index", [9, -10, (0, 1), (0, 0, 40), "a", 1.0, (0,) * 5, (slice(2), 0, 40), [True], ([9], 0)]
)
def test_an_index_that_the_array_does_not_have_raises_what_numpy_raises(masks, index):
    with pytest.raises(IndexError) as expected:
        masks.numpy()[index]
    with pytest.raises(IndexError) as found:
        masks[index]
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("index", "pasted"),
    [((3, 0), 1), (slice(2, 5), 0), ((slice(2, 5), 0), 3), (([8, 8, 1], 0, slice(3), [1]), 2), ([1, 2], 0),
     ((slice(2, 5), Ellipsis), 0), ((slice(None), slice(None), 0, 0), 9), ((0, 0, 40), 0), ((0, 0, 3, 4), 1)],
)  # fmt: skip
def test_no_mask_is_pasted_that_an_index_does_not_reach(masks, index, pasted, monkeypatch):
    counts = []

    def counting(probabilities, *arguments):
        counts.append(len(probabilities))
        return paste_masks(probabilities, *arguments)

    monkeypatch.setattr("minimask.masks.paste_masks", counting)
    with contextlib.suppress(IndexError):
        masks[index]
    assert sum(counts) == pasted


@pytest.mark.parametrize("value", [0.5, 0, -0.5, np.float32(0.1), np.float64(0.1)])
def test_masks_compare_and_compute_as_the_array_that_they_paste_to(masks, value):
    every = masks.numpy()
    for compare in (operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne):
        np.testing.assert_array_equal(compare(masks, value), compare(every, value))
        np.testing.assert_array_equal(compare(value, masks), compare(value, every))
        np.testing.assert_array_equal(compare(masks, every[:1]), compare(every, every[:1]))
    np.testing.assert_array_equal(value * masks - 1, value * every - 1)
    np.testing.assert_array_equal(np.sum(masks, axis=0), every.sum(axis=0))


def test_what_only_the_array_has_is_said_to_be_had_from_it(masks):
    with pytest.raises(
        AttributeError, match=r"Masks has no 'sum': ask np\.asarray\(masks\), the \(N, 1, H, W\)"
    ):
        masks.sum()
    assert (masks.ndim, masks.size, masks.dtype) == (4, 9 * 40 * 50, np.float32)
    with pytest.raises(ValueError, match="copy=False is impossible"):
        np.array(masks, copy=False)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(masks)), masks)


def test_no_masks_paste_to_nothing():
    masks = Masks(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), (30, 40))
    assert masks.numpy().shape == masks.shape == (0, 1, 30, 40)
    assert masks[:, 0].shape == (0, 30, 40) and (masks > 0.5).shape == (0, 1, 30, 40)
    assert list(masks) == [] and masks.rle() == [] and len(masks[:0]) == 0


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_run_lengths_of_masks_equal_those_of_pycocotools(masks, threshold):
    from pycocotools import mask as coco_mask

    dense_rle = coco_mask.encode(
        np.asfortranarray((masks.numpy()[:, 0] > threshold).astype(np.uint8).transpose(1, 2, 0))
    )
    assert masks.rle(threshold) == [{**rle, "counts": rle["counts"].decode()} for rle in dense_rle]


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_of_any_window_equal_those_of_pycocotools(seed):
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 7, 2))
    y0, y1 = sorted(int(v) for v in rng.integers(0, height + 1, 2))
    x0, x1 = sorted(int(v) for v in rng.integers(0, width + 1, 2))
    if seed % 2:  # as high as the image: runs go on from one column to the next
        y0, y1 = 0, height
    patch = rng.uniform(size=(y1 - y0, x1 - x0)) < rng.choice([0, 0.5, 0.9, 1])
    whole = dense((y0, y1, x0, x1), patch, (height, width))
    rle = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))
    assert encode_window((y0, y1, x0, x1), patch, (height, width)) == {
        **rle,
        "counts": rle["counts"].decode(),
    }


# --------------------------------------------------------------------------------------------- cropping


def roi_align_loop(image, box, bins, aligned):
    """RoIAlign as defined, one sample at a time, as many samples a bin as it has pixels (rounded up)."""
    height, width = image.shape
    x1, y1, x2, y2 = (float(v) - (0.5 if aligned else 0.0) for v in box)
    box_h, box_w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    samples_y, samples_x = math.ceil(box_h / bins), math.ceil(box_w / bins)

    def bilinear(y, x):
        if not (-1 <= y <= height and -1 <= x <= width):
            return 0.0
        y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        fy, fx = y - top, x - left
        upper = (1 - fx) * image[top, left] + fx * image[top, right]
        return (1 - fy) * upper + fy * ((1 - fx) * image[bottom, left] + fx * image[bottom, right])

    out = np.zeros((bins, bins))
    for p in range(bins):
        for q in range(bins):
            ys = [y1 + (p + (i + 0.5) / samples_y) * box_h / bins for i in range(samples_y)]
            xs = [x1 + (q + (j + 0.5) / samples_x) * box_w / bins for j in range(samples_x)]
            out[p, q] = np.mean([bilinear(y, x) for y in ys for x in xs]) if ys and xs else 0.0
    return out


@each_convention
def test_cropping_is_roi_align_as_defined(convention):
    rng = np.random.default_rng(5)
    mask = (rng.uniform(size=(20, 26)) < 0.5).astype(np.uint8)
    boxes = boxes_in_and_around(rng, 25, 20, 26, largest=50).astype(np.float64)
    boxes = np.concatenate([boxes, [[3, 3, 3, 3], [3, 3, 9, 3], [-90, 3, -80, 9], [0, 0, 26, 20]]])
    crops = crop_masks(mask[None], boxes, np.zeros(len(boxes), int), 4, convention)
    for crop, box in zip(crops, boxes):
        expected = roi_align_loop(mask, box, 4, aligned=convention is FLOAT)
        np.testing.assert_allclose(crop, expected, rtol=0, atol=1e-13)


@each_convention
@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 2e-4)])
def test_cropping_equals_torchvisions_roi_align(convention, dtype, bound):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    rng = np.random.default_rng(6)
    masks = np.stack([ellipse(200, 300, rng.uniform(40, 160, 2), rng.uniform(10, 90, 2)) for _ in range(5)])
    boxes, matches = boxes_in_and_around(rng, 300, 200, 300, 2, 300).astype(dtype), rng.integers(0, 5, 300)
    boxes[:50] = np.rint(boxes[:50])  # ground truth often lies on whole pixels
    rois = torch.from_numpy(np.concatenate((matches[:, None], boxes), axis=1).astype(dtype))
    bitmaps = torch.from_numpy(masks[:, None].astype(dtype))
    theirs = torchvision.ops.roi_align(bitmaps, rois, 28, 1.0, -1, convention is FLOAT)[:, 0].numpy()
    crops = crop_masks(masks, boxes, matches, 28, convention)
    assert crops.dtype == dtype
    # in float32 torchvision's sample positions are off by up to 3e-5 pixel at x = 300
    np.testing.assert_allclose(crops, theirs, rtol=0, atol=bound)


def test_targets_are_soft_unless_a_threshold_makes_them_binary():
    mask = ellipse(40, 40, (20, 20), (9, 13))[None]
    box, match = np.array([[6.5, 10.2, 34, 30]], np.float32), np.array([0])
    soft = crop_masks(mask, box, match, 28, FLOAT)
    binary = crop_masks(mask, box, match, 28, FLOAT, threshold=0.5)
    assert ((soft > 0) & (soft < 1)).any()
    assert soft.dtype == binary.dtype == np.float32
    np.testing.assert_array_equal(binary, soft >= 0.5)


def test_each_roi_sees_the_mask_of_its_own_object_and_each_mask_is_looked_up_once():
    masks = np.stack(
        [ellipse(40, 50, (20, 20), (9, 9)), ellipse(40, 50, (15, 30), (7, 12)), np.zeros((40, 50), np.uint8)]
    )

    class Decoding(list):
        asked = []

        def __getitem__(self, index):
            self.asked.append(index)
            return super().__getitem__(index)

    boxes = boxes_in_and_around(np.random.default_rng(7), 30, 40, 50, 4)
    matches = np.random.default_rng(8).integers(0, 2, 30)
    crops = crop_masks(Decoding(masks), boxes, matches, 14, FLOAT)
    assert sorted(Decoding.asked) == [0, 1]
    for crop, box, match in zip(crops, boxes, matches):
        alone = crop_masks(masks[match][None], box[None], np.array([0]), 14, FLOAT)
        np.testing.assert_array_equal(crop, alone[0])


def test_no_rois_and_no_objects_give_no_targets():
    none, no_match = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for masks in (np.zeros((0, 30, 40), np.uint8), np.ones((2, 30, 40), np.uint8)):
        targets = crop_masks(masks, none, no_match, 28, FLOAT, threshold=0.5)
        assert targets.shape == (0, 28, 28) and targets.dtype == np.float32


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_a_mask_filled_by_ones_gives_targets_of_exactly_one(dtype):
    masks, box = np.ones((1, 30, 40), dtype), np.array([[3.7, 2.2, 31.4, 28.9]], np.float32)
    crop = crop_masks(masks, box, np.array([0]), 28, FLOAT)
    np.testing.assert_allclose(crop, 1.0, rtol=0, atol=3e-7)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def round_trip(radii, center, convention, extent=64):
    mask = ellipse(extent, extent, center, radii)
    boxes = tight_boxes(mask[None])
    crops = crop_masks(mask[None], boxes, np.array([0]), 28, convention)
    pasted = dense(*paste_mask(crops[0], boxes[0], mask.shape, convention), mask.shape)
    return iou(pasted > 0.5, mask > 0)


def test_cropping_and_pasting_an_ellipse_of_16_pixels_gives_it_back_on_float_boxes_and_not_in_torchvisions():
    rng = np.random.default_rng(9)
    trips = [(rng.uniform(5, 8, 2), rng.uniform(24, 40, 2)) for _ in range(60)]
    exact = [round_trip(*trip, FLOAT) for trip in trips]
    quantised = [round_trip(*trip, TORCHVISION) for trip in trips]
    assert min(exact) > 0.98 and np.mean(exact) > 0.999
    assert np.mean(quantised) < 0.95  # what the quantisation costs: docs and the RoI laboratory show it


@pytest.mark.parametrize("radius", [3, 8, 14, 28])
def test_round_trips_of_every_size_keep_the_mask_on_float_boxes(radius):
    rng = np.random.default_rng(radius)
    trips = [round_trip(rng.uniform(0.7, 1, 2) * radius, rng.uniform(30, 34, 2), FLOAT) for _ in range(20)]
    assert min(trips) > 0.97


def test_a_target_does_not_change_when_image_box_and_mask_are_doubled():
    masks, match = ellipse(40, 40, (20, 21), (9, 13))[None], np.array([0])
    box = np.array([[7.0, 10, 35, 30]])
    doubled = masks.repeat(2, axis=1).repeat(2, axis=2)
    crop = crop_masks(masks, box, match, 7, FLOAT)
    of_doubled = crop_masks(doubled, scale_boxes(box, (2, 2)), match, 7, FLOAT)
    # same geometry, sampled on finer pixels: half-pixel mistakes would shift a whole cell's share
    assert abs(crop - of_doubled).max() < 0.04


def test_masks_are_not_written_to():
    masks = Masks(np.ones((1, 28, 28), np.float32), np.float32([[0, 0, 8, 8]]), (8, 8))
    with pytest.raises(TypeError, match=r"masks cannot be written to: use np.asarray\(masks\)"):
        masks *= 2


def test_a_mask_that_fills_a_large_image_is_encoded_in_bands_as_in_one_piece(monkeypatch):
    """Float boxes, a mask that reaches the image's edges, one outside, and a narrow one."""
    rng = np.random.default_rng(8)
    boxes = np.array([[-5, -5, 70, 60], [10, 3, 30, 50], [80, 80, 90, 90], [20, 0, 21, 50]], np.float32)
    masks = Masks(rng.random((4, 14, 14), dtype=np.float32), boxes, (48, 64), FLOAT)
    whole = masks.rle(0.5)
    for band in (1, 48 * 7, 48 * 64 - 1):
        monkeypatch.setattr(masks_module, "BAND", band)
        assert masks.rle(0.5) == whole
        windows = [window for window, _ in masks.bands(0)]
        assert all((w.y1 - w.y0) * (w.x1 - w.x0) <= max(band, 48) for w in windows) and len(windows) > 1
        assert [w.x1 for w in windows[:-1]] == [w.x0 for w in windows[1:]]
