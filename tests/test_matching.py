"""Matching, crowds, sampling and pyramid levels."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minimask.boxes import box_iou
from minimask.lessons import cuda_on_cpu
from minimask.matching import (
    BELOW_LOW,
    BETWEEN,
    Matcher,
    assign_fpn_levels,
    ignore_crowds,
    match_images,
    sample_balanced,
)
from tests.fake_cupy import installed, syncs

needs_gpp = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA kernels with")
REFERENCE = Path(__file__).parent / "reference"


@pytest.mark.parametrize(
    ("matcher", "key"),
    [(Matcher(0.7, 0.3, allow_low_quality_matches=True), "rpn"), (Matcher(0.5, 0.5), "roi")],
    ids=["rpn", "roi"],
)
def test_matches_equal_torchvision(matcher, key):
    reference = np.load(REFERENCE / "matcher.npz")
    matches = matcher(reference["iou"])
    assert matches.dtype == np.int64
    np.testing.assert_array_equal(matches, reference[key])


def test_a_candidate_on_a_threshold_counts_as_having_reached_it():
    iou = np.array([[0.1, 0.3, 0.5, 0.7, 0.9]], np.float32)
    np.testing.assert_array_equal(Matcher(0.7, 0.3)(iou), [BELOW_LOW, BETWEEN, BETWEEN, 0, 0])
    np.testing.assert_array_equal(Matcher(0.5, 0.5)(iou), [BELOW_LOW, BELOW_LOW, 0, 0, 0])


def test_low_quality_matches_go_to_every_best_candidate_and_to_the_object_that_candidate_prefers():
    iou = np.array([[0.1, 0.2, 0.2, 0.0], [0.0, 0.4, 0.1, 0.8]])
    # object 0 is overlapped most by candidates 1 and 2, but candidate 1 overlaps object 1 more
    np.testing.assert_array_equal(Matcher(0.7, 0.3)(iou), [BELOW_LOW, BETWEEN, BELOW_LOW, 1])
    np.testing.assert_array_equal(Matcher(0.7, 0.3, True)(iou), [BELOW_LOW, 1, 0, 1])


def test_an_object_that_no_candidate_touches_does_not_claim_them_all():
    iou = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.6]])
    np.testing.assert_array_equal(Matcher(0.7, 0.3, True)(iou), [BELOW_LOW, BELOW_LOW, 1])


def test_without_objects_all_is_background_and_without_candidates_there_is_nothing():
    for matcher in (Matcher(0.7, 0.3, True), Matcher(0.5, 0.5)):
        np.testing.assert_array_equal(matcher(np.zeros((0, 3), np.float32)), [BELOW_LOW] * 3)
        assert matcher(np.zeros((2, 0), np.float32)).shape == (0,)
        assert matcher(np.zeros((0, 0), np.float32)).dtype == np.int64


def test_thresholds_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match=r"low_threshold 0\.7 exceeds high_threshold 0\.3"):
        Matcher(0.3, 0.7)


# ------------------------------------------------------------------------------------------------ crowds


def test_only_background_inside_a_crowd_is_ignored():
    crowd = np.array([[0, 0, 100, 100], [200, 0, 300, 100]], np.float32)
    candidates = np.array(
        [[10, 10, 30, 30], [10, 10, 30, 30], [95, 0, 105, 10], [96, 0, 106, 10], [250, 5, 260, 9]], np.float32
    )
    assert box_iou(candidates, crowd).max() < 0.05  # by IoU, none of them would be near the crowd
    matches = np.array([BELOW_LOW, 0, BELOW_LOW, BELOW_LOW, BELOW_LOW])
    ignored = ignore_crowds(matches, candidates, crowd)
    np.testing.assert_array_equal(ignored, [BETWEEN, 0, BETWEEN, BELOW_LOW, BETWEEN])
    np.testing.assert_array_equal(matches, [BELOW_LOW, 0, BELOW_LOW, BELOW_LOW, BELOW_LOW])
    assert ignored.dtype == np.int64


def test_a_higher_threshold_ignores_less():
    candidate, crowd = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 6, 10]])
    assert ignore_crowds(np.array([BELOW_LOW]), candidate, crowd, 0.6) == BETWEEN
    assert ignore_crowds(np.array([BELOW_LOW]), candidate, crowd, 0.7) == BELOW_LOW


def test_without_crowds_matches_stay_as_they_are():
    matches, none = np.array([0, BELOW_LOW, BETWEEN]), np.zeros((0, 4))
    np.testing.assert_array_equal(ignore_crowds(matches, np.ones((3, 4)), none), matches)
    assert ignore_crowds(matches[:0], none, np.ones((1, 4))).shape == (0,)


# ---------------------------------------------------------------------------------------------- sampling


def some_matches(positives, negatives, ignored):
    matches = np.repeat([3, BELOW_LOW, BETWEEN], [positives, negatives, ignored])
    return np.random.default_rng(0).permutation(matches)


@pytest.mark.parametrize(
    ("positives", "negatives", "want"),
    [(50, 500, (16, 48)), (5, 500, (5, 59)), (50, 20, (16, 20)), (0, 500, (0, 64)), (50, 0, (16, 0))],
)
def test_a_sample_takes_the_positive_share_and_fills_up_with_background(positives, negatives, want):
    matches = some_matches(positives, negatives, 40)
    chosen = sample_balanced(matches, 64, 0.25, np.random.default_rng(1))
    assert tuple(map(len, chosen)) == want
    assert (matches[chosen[0]] >= 0).all() and (matches[chosen[1]] == BELOW_LOW).all()
    for indices in chosen:
        assert indices.dtype == np.int64 and (np.diff(indices) > 0).all()


def test_a_sample_depends_on_the_generator_alone():
    matches = some_matches(100, 400, 10)
    first, again, other = (sample_balanced(matches, 64, 0.5, np.random.default_rng(s)) for s in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_every_candidate_is_as_likely_as_any_other():
    matches, rng = some_matches(8, 24, 4), np.random.default_rng(0)
    counts = np.zeros(len(matches))
    for _ in range(4000):
        for indices in sample_balanced(matches, 8, 0.25, rng):
            counts[indices] += 1
    # 2 of 8 positives, 6 of 24 negatives: each has probability 1/4; 5 standard deviations of 4000 draws
    assert abs(counts[matches != BETWEEN] / 4000 - 0.25).max() < 5 * (0.25 * 0.75 / 4000) ** 0.5
    assert not counts[matches == BETWEEN].any()


def test_taking_everything_needs_no_generator_and_takes_exactly_everything():
    matches = some_matches(5, 7, 3)
    positives, negatives = sample_balanced(matches, 10**6, 0.5)
    np.testing.assert_array_equal(positives, np.flatnonzero(matches >= 0))
    np.testing.assert_array_equal(negatives, np.flatnonzero(matches == BELOW_LOW))


def test_leaving_something_out_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="drawing 1 of 5 candidates needs rng="):
        sample_balanced(some_matches(5, 7, 3), 2, 0.5)


def test_a_sample_of_no_candidates_is_empty():
    for indices in sample_balanced(np.zeros(0, np.int64), 64, 0.5):
        assert indices.shape == (0,) and indices.dtype == np.int64


# ------------------------------------------------------------------------------------------- both devices


def some_boxes(rng, count, size=100):
    low = rng.uniform(0, size, (count, 2))
    return np.concatenate((low, low + rng.uniform(2, size / 2, (count, 2))), axis=1).astype(np.float32)


@needs_gpp
@pytest.mark.parametrize("objects", [(3, 0), (0, 0), (5, 4)])
def test_images_are_matched_one_by_one_and_on_the_gpu_alike_with_one_wait(objects):
    rng, matcher = np.random.default_rng(1), Matcher(0.4, 0.2, allow_low_quality_matches=True)
    candidates = [some_boxes(rng, 60), some_boxes(rng, 40)]
    targets = [
        SimpleNamespace(boxes=some_boxes(rng, count), crowd_boxes=some_boxes(rng, crowds))
        for count, crowds in zip(objects, (2, 0))
    ]
    found = match_images(matcher, candidates, targets, 0.5)
    for matches, boxes, target in zip(found, candidates, targets):
        alone = ignore_crowds(matcher(box_iou(target.boxes, boxes)), boxes, target.crowd_boxes, 0.5)
        np.testing.assert_array_equal(matches, alone)
    assert (found[0] == BETWEEN).any()
    with installed() as cupy:
        there = [SimpleNamespace(**{k: cupy.asarray(v) for k, v in vars(t).items()}) for t in targets]
        syncs.clear()
        again = match_images(matcher, list(map(cupy.asarray, candidates)), there, 0.5)
        assert len(syncs) == 1
    for here, matches in zip(found, again):
        assert isinstance(matches, np.ndarray)
        np.testing.assert_array_equal(matches, here)


@needs_gpp
@pytest.mark.parametrize("rescue, untouched", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_kernels_match_all_images_as_numpy_does_each(dtype, rescue, untouched):
    rng, matcher = np.random.default_rng(2), Matcher(0.5, 0.3, rescue, untouched)
    for objects in ((7, 0, 3), (0, 0, 0), (40, 1, 0)):
        candidates = [some_boxes(rng, count).astype(dtype) for count in (300, 0, 61)]
        targets = [
            SimpleNamespace(
                boxes=some_boxes(rng, n).astype(dtype), crowd_boxes=some_boxes(rng, c).astype(dtype)
            )
            for n, c in zip(objects, (2, 0, 5))
        ]
        targets[0].boxes[:2] = candidates[0][5]  # of two equal objects the first is matched
        targets[0].boxes[2:3] = 500, 500, 510, 510  # no candidate touches it
        want = match_images(matcher, candidates, targets, 0.5)
        with installed(watch=True) as cupy:
            there = [SimpleNamespace(**{k: cupy.asarray(v) for k, v in vars(t).items()}) for t in targets]
            got = match_images(matcher, [cupy.asarray(c) for c in candidates], there, 0.5)
        for mine, expected in zip(got, want, strict=True):
            np.testing.assert_array_equal(mine, expected)
            assert mine.dtype == np.int64


# ---------------------------------------------------------------------------------------- pyramid levels


def test_levels_are_the_same_on_the_gpu():
    boxes = some_boxes(np.random.default_rng(2), 500, 1500)
    with installed() as cupy:
        levels = assign_fpn_levels(cupy.asarray(boxes))
        assert isinstance(levels, cupy.ndarray) and not syncs
        np.testing.assert_array_equal(levels.get(), assign_fpn_levels(boxes))


def test_levels_equal_torchvision():
    reference = np.load(REFERENCE / "levels.npz")
    levels = assign_fpn_levels(reference["boxes"])
    assert levels.dtype == np.int64
    np.testing.assert_array_equal(levels, reference["levels"])


def squares(*sides):
    sides = np.array(sides, np.float32)
    return np.stack((0 * sides, 0 * sides, sides, sides), axis=1) + np.float32(3)


def test_a_box_of_224_pixels_is_pooled_from_p4_and_the_level_changes_at_each_doubling():
    levels = assign_fpn_levels(squares(0, 1, 55, 56, 111, 112, 223, 224, 447, 448, 895, 896, 5000))
    np.testing.assert_array_equal(levels, [2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5])


def test_the_area_decides_the_level_not_the_longer_side():
    np.testing.assert_array_equal(assign_fpn_levels(np.array([[0, 0, 896, 56]], np.float32)), [4])


def test_levels_follow_the_canonical_scale_and_the_levels_there_are():
    levels = assign_fpn_levels(
        squares(10, 32, 64, 500), k_min=3, k_max=4, canonical_scale=32, canonical_level=3
    )
    np.testing.assert_array_equal(levels, [3, 3, 4, 4])
    assert assign_fpn_levels(np.zeros((0, 4), np.float32)).shape == (0,)


def test_levels_of_boxes_of_every_size_equal_torchvisions():
    torch = pytest.importorskip("torch")
    poolers = pytest.importorskip("torchvision.ops.poolers")
    sides = np.exp(np.random.default_rng(0).uniform(0, np.log(2000), (5000, 2))).astype(np.float32)
    boxes = np.concatenate((np.concatenate((0 * sides, sides), 1), squares(*(7 * 2**k for k in range(9)))))
    theirs = poolers.initLevelMapper(2, 5)([torch.from_numpy(boxes)])
    np.testing.assert_array_equal(assign_fpn_levels(boxes), theirs.numpy() + 2)
