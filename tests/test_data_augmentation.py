"""Image, boxes and masks are cut, scaled, turned and mirrored as one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimask.data import Augmentation, Sample, augment
from minimask.data.augmentation import LUMA, Plan, carry_out, draw_plan, resize_image, resize_masks
from minimask.data.sample import MIN_SHARE, crop, tight_boxes
from minimask.errors import InputError


def rectangle(height, width, box):
    mask = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = 1
    return mask


def make_sample(height=40, width=60, boxes=((10, 5, 20, 12), (30, 20, 55, 38)), crowds=((2, 25, 9, 39),)):
    """Rectangles, each of a grey of its own in the image, so that the image shows where a mask belongs."""
    masks = np.array([rectangle(height, width, box) for box in boxes], np.uint8).reshape(-1, height, width)
    crowd_masks = np.array([rectangle(height, width, box) for box in crowds], np.uint8).reshape(
        -1, height, width
    )
    grey = np.zeros((height, width), np.float32)
    for index, mask in enumerate([*masks, *crowd_masks], start=1):
        grey[mask > 0] = index / 8
    return Sample(
        image=np.stack([grey, grey, grey]),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.arange(1, len(masks) + 1),
        masks=masks,
        crowd_boxes=np.array(crowds, np.float32).reshape(-1, 4),
        crowd_masks=crowd_masks,
        image_id=7,
    )


def plan(sample, **changes):
    """Do nothing but `changes`."""
    height, width = sample.image.shape[1:]
    neutral = dict(window=(0, 0, width, height), height=height, width=width, transpose=False)
    neutral |= dict(flip_x=False, flip_y=False, brightness=1.0, contrast=1.0, saturation=1.0)
    return Plan(**(neutral | changes))


def assert_same(a, b):
    for name in ("image", "boxes", "labels", "masks", "crowd_boxes", "crowd_masks", "image_id"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def assert_consistent(sample):
    """Types and shapes are right, and each mask covers the grey of its own rectangle in its own box."""
    height, width = sample.image.shape[1:]
    assert sample.image.dtype == sample.boxes.dtype == sample.crowd_boxes.dtype == np.float32
    assert sample.masks.dtype == sample.crowd_masks.dtype == np.uint8
    assert sample.masks.shape == (len(sample.boxes), height, width)
    assert sample.crowd_masks.shape == (len(sample.crowd_boxes), height, width)
    assert all(array.flags.c_contiguous for array in (sample.image, sample.masks, sample.crowd_masks))
    for label, mask in zip(sample.labels, sample.masks):
        np.testing.assert_array_equal(sample.image[0] == np.float32(label / 8), mask > 0)


def test_target_is_all_but_the_image():
    sample = make_sample()
    target = sample.target()
    assert set(target) == {"boxes", "labels", "masks", "crowd_boxes", "crowd_masks"}
    assert all(target[name] is getattr(sample, name) for name in target)


def test_tight_boxes_end_one_beyond_the_last_pixel():
    masks = np.stack([rectangle(9, 11, box) for box in [(0, 0, 1, 1), (3, 2, 11, 9), (10, 8, 11, 9)]])
    np.testing.assert_array_equal(tight_boxes(masks), [(0, 0, 1, 1), (3, 2, 11, 9), (10, 8, 11, 9)])
    np.testing.assert_array_equal(tight_boxes(np.zeros((2, 5, 5), np.uint8)), np.zeros((2, 4)))
    assert tight_boxes(np.zeros((0, 5, 5), np.uint8)).shape == (0, 4)


def test_tight_boxes_take_masks_of_any_values_and_are_float32():
    masks = np.zeros((3, 10, 12), np.uint8)
    masks[0, 2:5, 3:9] = 1
    masks[1, 9, 0] = masks[1, 4, 11] = 200
    np.testing.assert_array_equal(tight_boxes(masks), [[3, 2, 9, 5], [0, 4, 12, 10], [0, 0, 0, 0]])
    np.testing.assert_array_equal(tight_boxes(masks.astype(bool)), tight_boxes(masks))
    assert tight_boxes(masks).dtype == np.float32


def test_a_crop_moves_whole_objects_and_boxes_cut_ones_round_what_is_left():
    sample = make_sample()
    part = crop(sample, (5, 0, 40, 30))
    assert_consistent(part)
    np.testing.assert_array_equal(part.boxes, [(5, 5, 15, 12), (25, 20, 35, 30)])
    np.testing.assert_array_equal(part.crowd_boxes, [(0, 25, 4, 30)])
    np.testing.assert_array_equal(part.labels, [1, 2])


def test_a_crop_keeps_the_given_box_of_a_whole_object_and_not_of_a_cut_one():
    sample = make_sample()
    loose = Sample(**{**vars(sample), "boxes": sample.boxes + np.float32([-0.5, -0.25, 0.5, 0.75])})
    np.testing.assert_array_equal(
        crop(loose, (5, 0, 40, 40)).boxes, [(4.5, 4.75, 15.5, 12.75), (25, 20, 35, 38)]
    )


@pytest.mark.parametrize("columns", [0, 1, 2, 3])
def test_an_object_is_dropped_when_less_than_a_tenth_of_it_is_left(columns):
    sample = make_sample(boxes=[(10, 10, 25, 20)])  # 15 columns: one is 6.7 %, two are 13.3 %
    part = crop(sample, (0, 0, 10 + columns, 40))
    assert len(part.boxes) == len(part.masks) == len(part.labels) == (columns / 15 >= MIN_SHARE)


def test_a_small_object_that_is_not_cut_is_never_dropped():
    sample = make_sample(boxes=[(10, 10, 11, 11)], crowds=[])
    assert crop(sample, (10, 10, 11, 11)).boxes.tolist() == [[0, 0, 1, 1]]


def test_of_a_crowd_region_even_a_sliver_is_kept():
    part = crop(make_sample(), (8, 0, 60, 40))
    assert part.crowd_boxes.tolist() == [[0, 25, 1, 39]]


def test_doing_nothing_changes_nothing():
    sample = make_sample()
    assert_same(augment(sample, Augmentation(), np.random.default_rng(0)), sample)


@pytest.mark.parametrize("change", [dict(flip_x=True), dict(flip_y=True), dict(transpose=True)])
def test_mirroring_twice_is_the_identity(change):
    sample = make_sample()
    once = carry_out(sample, plan(sample, **change))
    assert_consistent(once)
    np.testing.assert_array_equal(once.boxes, tight_boxes(once.masks))
    np.testing.assert_array_equal(once.crowd_boxes, tight_boxes(once.crowd_masks))
    assert not np.array_equal(once.boxes, sample.boxes)
    assert_same(carry_out(once, plan(once, **change)), sample)


def test_rotate90_gives_each_quarter_turn():
    sample = make_sample()
    turns = [np.rot90(sample.image, k, axes=(1, 2)) for k in range(4)]
    seen = set()
    for seed in range(40):
        turned = augment(sample, Augmentation(rotate90=True), np.random.default_rng(seed))
        assert_consistent(turned)
        np.testing.assert_array_equal(turned.boxes, tight_boxes(turned.masks))
        seen |= {k for k in range(4) if np.array_equal(turned.image, turns[k])}
    assert seen == {0, 1, 2, 3}


def test_each_mirror_option_mirrors_about_half_of_the_images():
    sample = make_sample()
    for option, axis in (("flip_horizontal", 2), ("flip_vertical", 1)):
        mirrored = 0
        for seed in range(200):
            result = augment(sample, Augmentation(**{option: True}), np.random.default_rng(seed))
            if not np.array_equal(result.image, sample.image):
                np.testing.assert_array_equal(result.image, np.flip(sample.image, axis))
                mirrored += 1
        assert 70 <= mirrored <= 130  # 100 +- 4 standard deviations


@pytest.mark.parametrize("factor", [2, 3])
def test_scaling_by_a_whole_number_repeats_mask_pixels_and_multiplies_boxes(factor):
    sample = make_sample()
    scaled = carry_out(sample, plan(sample, height=40 * factor, width=60 * factor))
    np.testing.assert_array_equal(scaled.masks, sample.masks.repeat(factor, 1).repeat(factor, 2))
    np.testing.assert_array_equal(scaled.boxes, sample.boxes * factor)
    np.testing.assert_array_equal(scaled.boxes, tight_boxes(scaled.masks))
    np.testing.assert_array_equal(scaled.crowd_boxes, tight_boxes(scaled.crowd_masks))


def test_scaling_moves_nothing_by_half_a_pixel():
    ramp = np.tile(np.arange(40, dtype=np.float32) + 0.5, (3, 30, 1))  # each pixel's value is its centre's x
    # shrinking by 40 / 33 averages unevenly many pixels, which ripples but does not shift
    for width, ripple in ((20, 1e-4), (80, 1e-4), (100, 1e-4), (33, 0.1)):
        scaled = resize_image(ramp, 30, width)[0, 0]
        centres = (np.arange(width) + 0.5) * 40 / width
        inner = slice(width // 10, -(width // 10))  # at the border the average is one-sided
        np.testing.assert_allclose(scaled[inner], centres[inner], atol=ripple)
        assert abs((scaled - centres)[inner].mean()) < 1e-4


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 120), st.integers(1, 120))
def test_scaled_masks_stay_where_the_scaled_boxes_are(height, width):
    sample = make_sample()
    masks = resize_masks(sample.masks, height, width)
    boxes = sample.boxes * np.float32([width / 60, height / 40] * 2)
    filled = masks.any(axis=(1, 2))
    # a pixel belongs to the mask if its centre does, so no side is off by more than half a pixel
    assert (abs(tight_boxes(masks) - boxes)[filled] <= 0.5 + 1e-4).all()


def test_an_object_that_shrinks_to_nothing_is_dropped():
    sample = make_sample(boxes=[(10, 10, 11, 11), (20, 10, 40, 30)])
    small = carry_out(sample, plan(sample, height=4, width=6))
    assert small.labels.tolist() == [2]
    assert len(small.boxes) == len(small.masks) == 1


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0), (2.0, 2.0), (0.1, 0.1)])
def test_crops_have_the_size_asked_for_or_that_of_a_smaller_image(scale):
    sample = make_sample(height=100, width=200)
    for seed in range(30):
        plan = draw_plan(
            Augmentation(crop=64, scale=scale), 100, 200, sample.boxes, np.random.default_rng(seed)
        )
        x1, y1, x2, y2 = plan.window
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 100
        factor = plan.height / (y2 - y1)
        assert scale[0] * 0.95 <= factor <= scale[1] * 1.05
        assert plan.width == min(64, round(200 * factor)) or abs(plan.width - 200 * factor) < 2
        assert plan.height == 64 or (y1, y2) == (0, 100)
        assert plan.height <= 64


def test_an_image_smaller_than_the_crop_stays_smaller():
    sample = make_sample()
    result = augment(sample, Augmentation(crop=50), np.random.default_rng(0))
    assert result.image.shape == (3, 40, 50)


def test_crops_show_an_object_wherever_the_tries_find_one_and_not_always_the_same():
    sample = make_sample(height=300, width=300, boxes=[(140, 140, 160, 160)], crowds=[])
    options = Augmentation(crop=100)
    crops = [augment(sample, options, np.random.default_rng(seed)) for seed in range(100)]
    # the middle lies in p = (100 / 201)^2 = 0.25 of all crops, so (1 - p)^10 = 0.06 of the images go without
    assert sum(len(part.boxes) == 1 for part in crops) >= 84  # 94 less 4 standard deviations
    assert len({part.boxes.tobytes() for part in crops if len(part.boxes)}) > 80
    for part in crops:
        np.testing.assert_array_equal(part.boxes, tight_boxes(part.masks))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    crop_size=st.sampled_from([0, 1, 16, 30, 200]),
    objects=st.integers(0, 3),
    scale=st.sampled_from([(1.0, 1.0), (0.05, 3.0)]),
)
def test_whatever_is_drawn_boxes_hold_their_masks_and_lie_in_the_image(seed, crop_size, objects, scale):
    boxes = [(10, 5, 20, 12), (30, 20, 55, 38), (0, 0, 60, 40)][:objects]
    options = Augmentation(crop_size, True, True, True, scale, 0.5, 0.5, 0.5)
    result = augment(make_sample(boxes=boxes), options, np.random.default_rng(seed))
    height, width = result.image.shape[1:]
    assert result.masks.shape == (len(result.boxes), height, width)
    assert len(result.labels) == len(result.boxes)
    assert result.masks.any(axis=(1, 2)).all()
    assert (result.boxes >= 0).all()
    assert (result.boxes <= np.float32([width, height] * 2) + 1e-3).all()
    assert (abs(tight_boxes(result.masks) - result.boxes) <= 0.5 * max(1, scale[1]) + 1e-3).all()
    assert 0 <= result.image.min() <= result.image.max() <= 1
    assert result.image.dtype == result.boxes.dtype == np.float32
    assert result.labels.dtype == np.int64


def test_colours_change_by_the_stated_formulas():
    rng = np.random.default_rng(0)
    sample = make_sample()
    image = rng.uniform(0.3, 0.6, sample.image.shape).astype(np.float32)
    sample = Sample(**{**vars(sample), "image": image})
    grey = np.tensordot(LUMA, image.astype(np.float64), axes=1)
    for change, expected in (
        (dict(brightness=0.5), image * 0.5),
        (dict(saturation=0.0), np.stack([grey] * 3)),
        (dict(saturation=1.5), grey + 1.5 * (image - grey)),
        (dict(contrast=0.0), np.full_like(image, grey.mean())),
        (dict(contrast=1.2), grey.mean() + 1.2 * (image - grey.mean())),
        (dict(brightness=3.0), np.ones_like(image) if image.min() * 3 > 1 else np.minimum(image * 3, 1)),
    ):
        result = carry_out(sample, plan(sample, **change)).image
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_given_sample_is_not_changed():
    sample, copy = make_sample(), make_sample()
    options = Augmentation(20, True, True, True, (0.5, 2.0), 0.5, 0.5, 0.5)
    for seed in range(10):
        result = augment(sample, options, np.random.default_rng(seed))
        result.image[...] = 0.5
        result.masks[...] = 1
    same = augment(sample, Augmentation(flip_horizontal=True), np.random.default_rng(0))
    assert same.image.shape == sample.image.shape
    assert_same(sample, copy)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(crop=-1),
        dict(scale=(0.0, 1.0)),
        dict(scale=(2.0, 1.0)),
        dict(scale=(1.0,)),
        dict(scale=(1.0, np.inf)),
        dict(scale=(np.nan, 1.0)),
        dict(brightness=-0.1),
        dict(contrast=1.1),
        dict(saturation=np.nan),
    ],
)
def test_wrong_options_are_named(wrong):
    with pytest.raises(InputError, match=f"augmentation: {next(iter(wrong))} must be .*; is "):
        Augmentation(**wrong)


def test_a_magnification_that_would_take_all_memory_is_refused():
    sample = make_sample(64, 64)
    with pytest.raises(
        InputError, match=r"data\.scale makes 1280000 x 1280000 pixels of 64 x 64, where at most"
    ):
        augment(sample, Augmentation(scale=(20_000.0, 20_000.0)), np.random.default_rng(0))
