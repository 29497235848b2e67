"""Boxes against torchvision's numbers, slow definitions and what holds for any boxes at all."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from minimask import backend
from minimask import boxes as box_ops
from minimask.backend import reference_only
from minimask.boxes import (
    BoxCoder,
    batched_nms,
    box_area,
    box_coverage,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou,
    nms,
    nms_loop,
    remove_small_boxes,
    scale_boxes,
)
from minimask.kernels import nms as nms_kernel

REFERENCE = Path(__file__).parent / "reference"
quick = settings(max_examples=150, deadline=None, derandomize=True)


def some_boxes(max_count=12):
    """Boxes on a coarse grid, so that equal, nested, touching and degenerate ones turn up often."""
    corners = arrays.arrays(
        np.float32, st.tuples(st.integers(0, max_count), st.just(4)), elements=st.integers(-4, 8).map(float)
    )
    return corners.map(
        lambda c: np.concatenate((np.minimum(c[:, :2], c[:, 2:]), np.maximum(c[:, :2], c[:, 2:])), 1)
    )


def random_boxes(rng, count, extent=100.0, sides=(5.0, 40.0), dtype=np.float32):
    center, half = rng.uniform(0, extent, (count, 2)), rng.uniform(*sides, (count, 2)) / 2
    return np.concatenate((center - half, center + half), axis=1).astype(dtype)


@pytest.fixture(scope="module")
def boxes():
    return np.load(REFERENCE / "boxes.npz")


@pytest.fixture(scope="module")
def suppression():
    return np.load(REFERENCE / "nms.npz")


# ------------------------------------------------------------------------------------ areas and overlaps


def test_iou_equals_torchvision(boxes):
    np.testing.assert_allclose(box_iou(boxes["a"], boxes["b"]), boxes["iou"], rtol=0, atol=2e-7)


def test_generalized_iou_equals_torchvision(boxes):
    np.testing.assert_allclose(generalized_box_iou(boxes["a"], boxes["b"]), boxes["giou"], rtol=0, atol=3e-7)


def test_iou_of_boxes_that_share_a_quarter():
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 5, 15, 15], [10, 0, 20, 10], [0, 0, 10, 10]])
    np.testing.assert_array_equal(box_iou(a, b), [[25 / 175, 0, 1]])


@quick
@given(some_boxes(), some_boxes())
def test_iou_is_symmetric_and_between_0_and_1(a, b):
    iou = box_iou(a, b)
    assert iou.dtype == np.float32 and iou.shape == (len(a), len(b))
    assert (iou >= 0).all() and (iou <= 1).all()
    np.testing.assert_array_equal(iou, box_iou(b, a).T)


@quick
@given(some_boxes())
def test_iou_with_itself_is_1_where_there_is_area_and_0_where_there_is_none(a):
    np.testing.assert_array_equal(np.diagonal(box_iou(a, a)), (box_area(a) > 0).astype(np.float32))


@quick
@given(some_boxes(), some_boxes())
def test_iou_does_not_change_when_both_boxes_move(a, b):
    np.testing.assert_array_equal(box_iou(a + np.float32(64), b + np.float32(64)), box_iou(a, b))


@quick
@given(some_boxes(), some_boxes())
def test_generalized_iou_is_at_most_iou_and_at_least_minus_1(a, b):
    generalized = generalized_box_iou(a, b)
    assert (generalized <= box_iou(a, b)).all() and (generalized >= -1).all()


def test_generalized_iou_of_distant_boxes_tells_how_far():
    a, b = np.array([[0.0, 0, 1, 1]]), np.array([[1.0, 0, 2, 1], [3, 0, 4, 1], [9, 0, 10, 1]])
    np.testing.assert_allclose(generalized_box_iou(a, b), [[0, -2 / 4, -8 / 10]], rtol=1e-15)


def test_coverage_counts_the_candidates_own_area_whatever_the_size_of_the_region():
    crowd = np.array([[0.0, 0, 100, 100]])
    candidates = np.array([[10.0, 10, 20, 20], [95, 0, 105, 10], [200, 0, 210, 10], [5, 5, 5, 9]])
    np.testing.assert_array_equal(box_coverage(candidates, crowd), [[1], [0.5], [0], [0]])


# ----------------------------------------------------------------------------------- shaping and sieving


def test_clipping_equals_torchvision(boxes):
    np.testing.assert_array_equal(clip_boxes_to_image(boxes["a"], (150, 200)), boxes["clipped"])


def test_clipping_takes_x_from_the_width_and_y_from_the_height():
    clipped = clip_boxes_to_image(np.array([[[-1.0, -2, 300, 300]], [[30, 40, 50, 60]]]), (20, 35))
    np.testing.assert_array_equal(clipped, [[[0, 0, 35, 20]], [[30, 20, 35, 20]]])


def test_small_boxes_are_those_with_either_side_too_short():
    candidates = np.array([[0, 0, 3, 3], [0, 0, 2, 9], [0, 0, 9, 2], [5, 5, 5, 5], [1, 1, 4, 4]], np.float32)
    np.testing.assert_array_equal(remove_small_boxes(candidates, 3), [0, 4])


def test_scaling_goes_height_first():
    np.testing.assert_array_equal(scale_boxes(np.array([[1.0, 2, 3, 4]]), (10, 2)), [[2, 20, 6, 40]])


# ------------------------------------------------------------------------------------------ the box coder


def test_encoding_equals_torchvision(boxes):
    coder = BoxCoder(tuple(map(float, boxes["weights"])))
    np.testing.assert_allclose(
        coder.encode(boxes["pair"], boxes["a"]), boxes["encoded"], rtol=1e-6, atol=2e-6
    )


def test_decoding_equals_torchvision_also_where_it_clamps(boxes):
    decoded = BoxCoder(tuple(map(float, boxes["weights"]))).decode(boxes["deltas"], boxes["a"])
    assert decoded.shape == (40, 2, 4)
    np.testing.assert_allclose(decoded.reshape(40, 8), boxes["decoded"], rtol=1e-6, atol=1e-4)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_decoding_what_was_encoded_gives_the_box_back(seed, count):
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, count, dtype=np.float64), random_boxes(rng, count, dtype=np.float64)
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    np.testing.assert_allclose(coder.decode(coder.encode(b, a), a)[:, 0], b, rtol=0, atol=1e-11)


def test_zero_offsets_decode_to_the_box_itself_for_every_class():
    a = np.array([[2.0, 4, 10, 20], [0, 0, 8, 2]])
    np.testing.assert_array_equal(BoxCoder().decode(np.zeros((2, 12)), a), np.repeat(a[:, None], 3, axis=1))


def test_decoding_moves_by_the_boxs_size_and_grows_by_exp():
    a = np.array([[0.0, 0, 10, 20]])
    deltas = np.array([[1.0, 0, 0, 0, 0, 0, 0, math.log(2)]])
    np.testing.assert_allclose(
        BoxCoder().decode(deltas, a), [[[10, 0, 20, 20], [0, -10, 10, 30]]], atol=1e-14
    )


def test_a_wild_offset_is_clamped_and_does_not_overflow():
    grown = BoxCoder().decode(
        np.array([[0, 0, 1e4, 1e4]], np.float32), np.array([[0, 0, 16, 16]], np.float32)
    )
    np.testing.assert_allclose(grown, [[[-492, -492, 508, 508]]], rtol=1e-6)


# ------------------------------------------------------------------------------- non-maximum suppression


@pytest.mark.parametrize(("threshold", "key"), [(0.5, "keep_05"), (0.7, "keep_07")])
def test_nms_equals_torchvision(suppression, threshold, key):
    kept = nms(suppression["boxes"], suppression["scores"], threshold)
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, suppression[key])


def test_batched_nms_equals_torchvision(suppression):
    kept = batched_nms(suppression["boxes"], suppression["scores"], suppression["classes"], 0.5)
    assert kept.dtype == np.int64
    np.testing.assert_array_equal(kept, suppression["keep_batched_05"])


@quick
@given(some_boxes(30), st.data(), st.sampled_from([0.0, 0.25, 0.5, 0.7]))
def test_nms_equals_its_definition_with_tied_scores_and_degenerate_boxes(candidates, data, threshold):
    scores = data.draw(
        arrays.arrays(np.float32, len(candidates), elements=st.sampled_from([0.25, 0.5, 0.75]))
    )
    np.testing.assert_array_equal(nms(candidates, scores, threshold), nms_loop(candidates, scores, threshold))


@pytest.mark.parametrize("count", [63, 64, 65, 400])
@pytest.mark.parametrize("sides", [(8.0, 20.0), (20.0, 60.0)], ids=["few overlap", "most overlap"])
def test_nms_equals_its_definition_over_several_blocks(count, sides):
    rng = np.random.default_rng(count)
    candidates, scores = random_boxes(rng, count, sides=sides), rng.integers(0, 50, count) / 50
    kept = nms(candidates, scores, 0.1)
    np.testing.assert_array_equal(kept, nms_loop(candidates, scores, 0.1))
    assert 0 < len(kept) < count


def test_nms_of_a_chain_keeps_every_other_box():
    x = np.arange(200.0)  # each box overlaps the next with IoU 1/2 and the one after that not at all
    chain = np.stack((2 * x, 0 * x, 2 * x + 3, 0 * x + 1), axis=1)
    np.testing.assert_array_equal(nms(chain, -x, 0.1), np.arange(0, 200, 2))


@pytest.mark.parametrize("tenths", [1, 3, 5, 7, 9])
def test_an_overlap_of_exactly_the_threshold_does_not_suppress(tenths):
    pair = np.array([[0, 0, 10, 1], [0, 0, tenths, 1]], np.float32)
    np.testing.assert_array_equal(nms(pair, np.array([2, 1], np.float32), tenths / 10), [0, 1])
    np.testing.assert_array_equal(nms(pair, np.array([2, 1], np.float32), tenths / 10 - 0.001), [0])


def test_reference_only_suppresses_by_the_definition_itself(monkeypatch):
    rng = np.random.default_rng(3)
    candidates, scores, classes = random_boxes(rng, 150), rng.uniform(size=150), rng.integers(0, 3, 150)
    want = batched_nms(candidates, scores, classes, 0.2)
    monkeypatch.setattr("minimask.boxes._nms_in_order", None)  # the fast version is not called
    with reference_only():
        np.testing.assert_array_equal(batched_nms(candidates, scores, classes, 0.2), want)


@pytest.mark.parametrize("count", [0, 1, 4096, 4097, 20_000])
def test_coding_many_boxes_piece_by_piece_is_coding_them_all_at_once(count):
    rng, coder = np.random.default_rng(4), BoxCoder((10.0, 10.0, 5.0, 5.0))
    a, b = random_boxes(rng, count), random_boxes(rng, count)
    encoded = coder.encode(a, b)
    np.testing.assert_array_equal(encoded, coder._encode(a, b))
    deltas = np.concatenate((encoded, -encoded), axis=1)
    np.testing.assert_array_equal(coder.decode(deltas, b), coder._decode(deltas.reshape(-1, 2, 4), b))


def test_of_equal_scores_the_box_that_comes_first_is_kept():
    same = np.tile(np.array([[0.0, 0, 10, 10]]), (5, 1))
    np.testing.assert_array_equal(nms(same, np.array([0.5, 0.9, 0.9, 0.9, 0.1]), 0.5), [1])


def test_batched_nms_is_nms_within_each_class_also_where_an_offset_would_round():
    rng = np.random.default_rng(0)
    candidates = random_boxes(rng, 300, extent=30) + np.float32(1e4)
    scores, classes = rng.uniform(size=300), rng.choice([-1, 3, 10**6], 300)
    kept = []
    for members in (np.flatnonzero(classes == c) for c in (-1, 3, 10**6)):
        kept.extend(members[nms(candidates[members], scores[members], 0.4)])
    want = sorted(kept, key=lambda i: -scores[i])
    np.testing.assert_array_equal(batched_nms(candidates, scores, classes, 0.4), want)


def test_nms_of_ten_thousand_boxes_equals_torchvision():
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    rng = np.random.default_rng(1)
    candidates, classes = random_boxes(rng, 10_000, 1000, (10, 200)), rng.integers(0, 5, 10_000)
    scores = rng.permutation(10_000).astype(
        np.float32
    )  # no ties: batched, torchvision orders them as it likes
    theirs = [torch.from_numpy(a) for a in (candidates, scores, classes)]
    np.testing.assert_array_equal(nms(candidates, scores, 0.6), torchvision.ops.nms(*theirs[:2], 0.6))
    np.testing.assert_array_equal(
        batched_nms(candidates, scores, classes, 0.6), torchvision.ops.batched_nms(*theirs, 0.6)
    )


# ------------------------------------------------------------------------------- dtypes, inputs, nothing

NONE = np.zeros((0, 4), np.float32)
TWO = np.array([[0, 0, 4, 4], [1, 1, 9, 9]], np.float32)
CALLS = {
    "area": lambda b: box_area(b),
    "iou": lambda b: box_iou(b, b),
    "giou": lambda b: generalized_box_iou(b, b),
    "coverage": lambda b: box_coverage(b, b),
    "clip": lambda b: clip_boxes_to_image(b, (8, 8)),
    "scale": lambda b: scale_boxes(b, (2 / 3, 1.5)),
    "encode": lambda b: BoxCoder((10, 10, 5, 5)).encode(b, b),
    "decode": lambda b: BoxCoder().decode(np.zeros((len(b), 8), b.dtype), b),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays_and_the_boxes_are_not_written_to(name, dtype):
    given_boxes = TWO.astype(dtype)
    given_boxes.flags.writeable = False
    assert CALLS[name](given_boxes).dtype == dtype


@pytest.mark.parametrize("name", CALLS)
def test_no_boxes_give_no_results_of_the_same_dtype(name):
    nothing = CALLS[name](NONE)
    assert nothing.size == 0 and len(nothing) == 0 and nothing.dtype == np.float32


def test_one_side_without_boxes_gives_an_empty_table():
    for overlap in (box_iou, generalized_box_iou, box_coverage):
        assert overlap(NONE, TWO).shape == (0, 2) and overlap(TWO, NONE).shape == (2, 0)


def test_nothing_is_left_of_no_boxes():
    no_scores = np.zeros(0, np.float32)
    for kept in (
        nms(NONE, no_scores, 0.5),
        nms_loop(NONE, no_scores, 0.5),
        batched_nms(NONE, no_scores, np.zeros(0, np.int64), 0.5),
        remove_small_boxes(NONE, 1.0),
    ):
        assert kept.shape == (0,) and kept.dtype == np.int64


def test_every_other_row_of_an_array_works_like_a_copy_of_it():
    rng = np.random.default_rng(2)
    wide = random_boxes(rng, 80)
    strided, scores = wide[::2], rng.uniform(size=80)[::2]
    np.testing.assert_array_equal(box_iou(strided, strided), box_iou(strided.copy(), strided.copy()))
    np.testing.assert_array_equal(nms(strided, scores, 0.2), nms(strided.copy(), scores.copy(), 0.2))


def test_slices_and_threads_change_no_bit(monkeypatch):
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(0, 90, (2, 300, 2))
    anchors = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    scores, groups = rng.random(300).astype(np.float32), rng.integers(0, 3, 300)
    coder = BoxCoder((10, 10, 5, 5))

    def results():
        deltas = coder.encode(anchors[::-1], anchors)
        several = np.tile(deltas, 4)
        return (
            deltas,
            coder.decode(several, anchors),
            nms(anchors, scores, 0.5),
            batched_nms(anchors, scores, groups, 0.5),
        )

    whole = results()
    monkeypatch.setattr(backend.workers, "threads", lambda: 3)
    monkeypatch.setattr(backend.workers, "FEW", 0)
    monkeypatch.setattr(box_ops, "BOXES_AT_ONCE", 7)
    monkeypatch.setattr(nms_kernel, "COMPARED_AT_ONCE", 8)
    for got, wanted in zip(results(), whole):
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted)


@pytest.mark.parametrize("groups", [1, 3, 60, 200, 700])
def test_suppression_within_few_and_many_groups_is_that_of_each_group_alone(groups):
    rng = np.random.default_rng(groups)
    corners, scores = rng.uniform(0, 40, (700, 2)), np.round(rng.random(700), 2)  # with ties
    boxes = np.concatenate([corners, corners + rng.uniform(2, 30, (700, 2))], axis=1)
    of_box = rng.integers(0, groups, 700)
    members = [np.flatnonzero(of_box == group) for group in range(groups)]
    alone = np.sort(np.concatenate([each[nms(boxes[each], scores[each], 0.5)] for each in members]))
    kept = batched_nms(boxes, scores, of_box, 0.5)
    assert np.array_equal(np.sort(kept), alone) and len(alone) < 700
    assert (np.diff(scores[kept]) <= 0).all()
