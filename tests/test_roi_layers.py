"""The five RoI layers: torchvision's numbers, what must hold on a ramp, and what can be counted by hand."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimask import backend
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.functions.roi import as_rois
from minimask.kernels import roi_align as align
from minimask.kernels import roi_pool as pool
from minimask.kernels.roi_align import Plan, Sampling, roi_align_loop
from minimask.kernels.roi_warp import roi_warp_loop
from minimask.models.box_head import Pooler
from minimask.models.conventions import MINIMASK, TORCHVISION
from tests.model_data import discs, tiny_model

FIVE = {  # the rows of Table 2c
    "RoIPool": F.roi_pool,
    "RoIWarp, max": partial(F.roi_warp, aggregation="max"),
    "RoIWarp, average": F.roi_warp,
    "RoIAlign, max": partial(F.roi_align, aggregation="max"),
    "RoIAlign, average": F.roi_align,
}
five = pytest.mark.parametrize("layer", FIVE.values(), ids=FIVE)
REFERENCE = Path(__file__).parent / "reference"
quick = settings(max_examples=100, deadline=None, derandomize=True)


def vectors(name: str) -> dict:
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


# --------------------------------------------------------------------------------- torchvision's numbers


@pytest.mark.parametrize("number", range(6))
def test_roi_align_forward_and_backward_equal_torchvision(number):
    d = vectors(f"roi_align_{number}")
    x = Tensor(d["x"], requires_grad=True)
    options = float(d["spatial_scale"]), int(d["sampling_ratio"]), bool(d["aligned"])
    y = F.roi_align(x, d["rois"], tuple(d["output_size"]), *options)
    y.backward(d["grad_y"])
    np.testing.assert_allclose(y.numpy(), d["y"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(x.grad, d["grad_x"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", range(6))
def test_roi_pool_forward_and_backward_equal_torchvision(number):
    d = vectors(f"roi_pool_{number}")
    x = Tensor(d["x"], requires_grad=True)
    y = F.roi_pool(x, d["rois"], tuple(d["output_size"]), float(d["spatial_scale"]))
    y.backward(d["grad_y"])
    np.testing.assert_array_equal(y.numpy(), d["y"])  # a maximum is copied, not computed
    np.testing.assert_allclose(x.grad, d["grad_x"], rtol=0, atol=1e-12)


def test_the_reference_vectors_cover_both_conventions_fixed_and_adaptive():
    files = [vectors(f"roi_align_{number}") for number in range(6)]
    options = {(bool(d["aligned"]), int(d["sampling_ratio"]) > 0) for d in files}
    assert options == {(False, True), (True, True), (False, False), (True, False)}


# ----------------------------------------------------------------------------------------------- on a ramp

SIDE = 12


def ramp(a: float, b: float, c: float, scale: float = 1.0) -> np.ndarray:
    """f(x, y) = a x + b y + c at the pixel centres, x and y in image pixels."""
    centre = (np.arange(SIDE) + 0.5) / scale
    return (a * centre + b * centre[:, None] + c)[None, None]


@st.composite
def boxes_inside(draw, scale: float = 1.0):
    """A box between the outermost pixel centres, where linear interpolation has both neighbours."""
    corner = st.floats(0.5 / scale, (SIDE - 0.5) / scale, allow_nan=False)
    (x1, x2), (y1, y2) = (sorted(draw(st.tuples(corner, corner))) for _ in range(2))
    return x1, y1, x2, y2


def bin_centres(box, ph: int, pw: int):
    x1, y1, x2, y2 = box
    u = x1 + (np.arange(pw) + 0.5) * (x2 - x1) / pw
    v = y1 + (np.arange(ph) + 0.5) * (y2 - y1) / ph
    return u, v[:, None]


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("points", ["centers", "crossings"])
@quick
@given(data=st.data(), ratio=st.integers(1, 4), size=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_roi_align_of_a_ramp_is_exact_wherever_the_box_lies(data, points, scale, ratio, size):
    """The mean of a linear function over points that lie evenly about the bin's centre is its value there."""
    box = data.draw(boxes_inside(scale))
    a, b, c = 0.7, -1.3, 0.4
    y = F.roi_align(
        ramp(a, b, c, scale), np.array([[0, *box]]), size, scale, ratio, aligned=True, sampling_points=points
    )
    u, v = bin_centres(box, *size)
    np.testing.assert_allclose(y.numpy()[0, 0], a * u + b * v + c, rtol=0, atol=1e-12 / scale)


@quick
@given(box=boxes_inside())
def test_adaptive_roi_align_of_a_ramp_is_exact_too(box):
    x1, y1, x2, y2 = box
    y = F.roi_align(ramp(0.7, -1.3, 0.4), np.array([[0, *box]]), (2, 3), 1.0, 0, aligned=True).numpy()[0, 0]
    u, v = bin_centres(box, 2, 3)
    want = 0.7 * u - 1.3 * v + 0.4 if x2 > x1 and y2 > y1 else np.zeros((2, 3))  # no area, no points
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-12)


@quick
@given(box=boxes_inside())
def test_without_alignment_a_ramp_is_read_half_a_pixel_off(box):
    """The original's convention: for boxes of a pixel and more, aligned=False reads at x + 1/2, y + 1/2."""
    x1, y1, x2, y2 = box
    box = x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)
    inside = box[2] + 0.5 <= SIDE - 0.5 and box[3] + 0.5 <= SIDE - 0.5
    y = F.roi_align(ramp(1.0, 2.0, 0.0), np.array([[0, *box]]), 2, 1.0, 2).numpy()[0, 0]
    u, v = bin_centres(box, 2, 2)
    difference = y - (u + 2.0 * v)
    if inside:
        np.testing.assert_allclose(difference, 0.5 + 2 * 0.5, rtol=0, atol=1e-12)
    else:
        assert (difference <= 1.5 + 1e-12).all()  # beyond the last centre the last pixel is repeated


def test_roi_pool_of_a_ramp_is_off_by_up_to_a_pixel():
    """What its two roundings cost, and why RoIAlign was made (section 3)."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(1, 5, (50, 2))
    rois = np.concatenate([np.zeros((50, 1)), corner, corner + rng.uniform(3, 6, (50, 2))], axis=1)
    x = ramp(1.0, 0.0, 0.0)
    centre = (rois[:, 1] + rois[:, 3]) / 2
    aligned = F.roi_align(x, rois, 1, 1.0, 2, aligned=True).numpy()[:, 0, 0, 0]
    edge = F.roi_pool(x, rois, 1).numpy()[:, 0, 0, 0]  # its maximum is the centre of the right-most pixel
    assert np.abs(aligned - centre).max() < 1e-12
    off = edge - (rois[:, 3] - 0.5)
    assert 0.4 < off.max() <= 1.5 and off.std() > 0.2


# ------------------------------------------------------------------------------------------------ by hand


def one_box(x, box, n: int = 2, **options) -> float:
    rois = np.array([[0.0, *box]])
    return float(F.roi_align(x[None, None], rois, 1, 1.0, n, aligned=True, **options).item())


def test_crossings_of_a_box_of_three_pixels_lie_at_one_and_two_thirds():
    """From the centre of pixel 0 to that of pixel 3: at 1/3 and 2/3 lie the centres of pixels 1 and 2."""
    x = np.random.default_rng(0).normal(size=(4, 4))
    box = (0.5, 0.5, 3.5, 3.5)
    assert one_box(x, box, sampling_points="crossings") == pytest.approx(x[1:3, 1:3].mean(), abs=1e-15)
    assert one_box(x, box, sampling_points="crossings", aggregation="max") == x[1:3, 1:3].max()


def test_centers_of_a_box_of_two_pixels_lie_at_one_and_three_quarters():
    """Two pixels wide from edge to edge: at 1/4 and 3/4 are their centres."""
    x = np.random.default_rng(0).normal(size=(4, 4))
    assert one_box(x, (1.0, 1.0, 3.0, 3.0)) == pytest.approx(x[1:3, 1:3].mean(), abs=1e-15)
    assert one_box(x, (1.0, 1.0, 3.0, 3.0), aggregation="max") == x[1:3, 1:3].max()


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_points_of_a_bin(n):
    centers, crossings = (Sampling((1, 1), n, points=p).fractions(n) for p in ("centers", "crossings"))
    np.testing.assert_allclose(centers, [(i + 0.5) / n for i in range(n)], rtol=1e-15)
    np.testing.assert_allclose(crossings, [(i + 1) / (n + 1) for i in range(n)], rtol=1e-15)


def test_a_sample_is_weighted_by_its_distance_to_four_pixels():
    x = np.array([[1.0, 2.0], [4.0, 8.0]])
    u, v = 0.25, 0.75  # from the centre of pixel (0, 0): right, down
    by_hand = (1 - v) * ((1 - u) * 1 + u * 2) + v * ((1 - u) * 4 + u * 8)
    box = 0.5 + u - 0.1, 0.5 + v - 0.1, 0.5 + u + 0.1, 0.5 + v + 0.1
    assert one_box(x, box, n=1) == pytest.approx(by_hand)


def test_the_gradient_of_a_sample_is_its_weights():
    x = Tensor(np.zeros((1, 1, 2, 2)), requires_grad=True)
    u, v = 0.25, 0.75
    rois = np.array([[0, u + 0.4, v + 0.4, u + 0.6, v + 0.6]])
    F.roi_align(x, rois, 1, 1.0, 1, aligned=True).backward(np.ones((1, 1, 1, 1)))
    weights = [[(1 - v) * (1 - u), (1 - v) * u], [v * (1 - u), v * u]]
    np.testing.assert_allclose(x.grad[0, 0], weights, rtol=1e-14)


def test_of_a_constant_map_the_average_is_the_maximum_is_the_constant():
    x = np.full((1, 2, 8, 8), 3.0)
    rois = np.array([[0, 1.3, 2.1, 5.7, 6.2], [0, 0.5, 0.5, 7.5, 7.5]])
    for points in ("centers", "crossings"):
        average, largest = (
            F.roi_align(x, rois, (3, 2), 1.0, 2, True, aggregation=a, sampling_points=points).numpy()
            for a in ("average", "max")
        )
        np.testing.assert_allclose(average, 3.0, rtol=1e-15)
        np.testing.assert_allclose(largest, average, rtol=1e-15)


def test_the_maximum_is_at_least_the_average():
    rng = np.random.default_rng(1)
    x, rois = rng.normal(size=(1, 3, 8, 8)), np.array([[0, 0.3, 1.1, 6.7, 7.2]])
    average, largest = (
        F.roi_align(x, rois, 2, 1.0, 0, True, aggregation=a).numpy() for a in ("average", "max")
    )
    assert (largest > average).all()


def test_a_maximum_of_negative_samples_is_negative():
    """Points that a RoI with fewer samples does not have must not count as zeros."""
    x = np.full((1, 1, 8, 8), -2.0)
    rois = np.array([[0, 1.0, 1.0, 2.0, 2.0], [0, 1.0, 1.0, 7.0, 7.0]])  # 1 x 1 and 3 x 3 points a bin
    y = F.roi_align(x, rois, 2, 1.0, 0, True, aggregation="max").numpy()
    np.testing.assert_array_equal(y, np.full((2, 1, 2, 2), -2.0))


@pytest.mark.parametrize("aligned", [True, False])
def test_more_than_a_pixel_outside_reads_zero_and_the_rim_repeats_the_border(aligned):
    x = np.full((1, 1, 4, 4), 5.0)
    shift = 0.5 if aligned else 0.0
    for at, want in ((-1.1, 0.0), (-0.9, 5.0), (3.9, 5.0), (4.1, 0.0)):
        box = np.array([[0, at + shift - 0.5, 1.0, at + shift + 0.5, 2.0]])
        assert F.roi_align(x, box, 1, 1.0, 1, aligned).item() == pytest.approx(want)


def test_boxes_of_less_than_a_pixel_are_widened_only_without_alignment():
    x = ramp(1.0, 0.0, 0.0)
    box = np.array([[0, 4.0, 4.0, 4.2, 4.2]])
    aligned = F.roi_align(x, box, 1, 1.0, 1, aligned=True).item()
    original = F.roi_align(x, box, 1, 1.0, 1, aligned=False).item()
    assert aligned == pytest.approx(4.1, abs=1e-12)
    assert original == pytest.approx(4.5 + 0.5, abs=1e-12)  # the middle of 4..5, and half a pixel off


def test_roi_pool_rounds_half_away_from_zero_and_takes_both_edge_pixels():
    x = np.arange(36.0).reshape(1, 1, 6, 6)
    y = F.roi_pool(x, np.array([[0, 0.5, 0.5, 2.5, 2.5]]), 1)  # pixels 1..3
    assert y.item() == x[0, 0, 3, 3]
    y = F.roi_pool(x, np.array([[0, 0.4, 0.4, 2.4, 2.4]]), 1)  # pixels 0..2
    assert y.item() == x[0, 0, 2, 2]


def test_bins_of_roi_pool_overlap_where_the_box_does_not_divide():
    """3 pixels in 2 bins: floor and ceil give both the middle one."""
    x = np.array([[[[1.0, 9.0, 2.0]]]])
    y = F.roi_pool(x, np.array([[0, 0.0, 0.0, 2.0, 0.0]]), (1, 2))
    np.testing.assert_array_equal(y.numpy()[0, 0], [[9.0, 9.0]])


def test_empty_bins_of_roi_pool_are_zero_and_get_no_gradient():
    x = Tensor(np.full((1, 1, 4, 4), -7.0), requires_grad=True)
    y = F.roi_pool(x, np.array([[0, 10.0, 10.0, 12.0, 12.0]]), 2)
    y.backward(np.ones(y.shape))
    assert not y.numpy().any() and not x.grad.any()


# ------------------------------------------------------------------------- the fast versions and the loops


@st.composite
def any_rois(draw, images: int = 2):
    """Boxes in, across and out of a map of 8 x 8 image pixels, degenerate and turned ones among them."""
    number = st.floats(-6, 14, allow_nan=False, width=32)
    rows = draw(st.lists(st.tuples(st.integers(0, images - 1), number, number, number, number), max_size=6))
    return np.array(rows, np.float64).reshape(-1, 5)


@quick
@given(
    rois=any_rois(),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    points=st.sampled_from(["centers", "crossings"]),
    aggregation=st.sampled_from(["average", "max"]),
    scale=st.sampled_from([1.0, 0.5]),
)
def test_the_sparse_matrix_reads_what_the_loop_reads(rois, ratio, aligned, points, aggregation, scale):
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 6))
    sampling = Sampling((2, 3), ratio, aligned, points, aggregation)
    plan = Plan.build(rois, None, [x.shape], (scale,), sampling, x.dtype)
    got, _ = align.forward([x], plan)
    np.testing.assert_allclose(got, roi_align_loop(x, rois, scale, sampling), rtol=0, atol=1e-12)


@quick
@given(
    rois=any_rois(),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    points=st.sampled_from(["centers", "crossings"]),
    aggregation=st.sampled_from(["average", "max"]),
    scale=st.sampled_from([1.0, 0.5, 0.3]),
)
def test_roi_warp_reads_what_its_loop_reads(rois, ratio, aligned, points, aggregation, scale):
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 6))
    options = dict(sampling_ratio=ratio, aligned=aligned, sampling_points=points, aggregation=aggregation)
    got = F.roi_warp(x, rois, (2, 3), scale, **options).numpy()
    want = roi_warp_loop(x, rois, scale, Sampling((2, 3), ratio, aligned, points, aggregation))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@quick
@given(
    rois=any_rois(),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.sampled_from([1.0, 0.5]),
    aligned=st.booleans(),
)
def test_roi_pool_by_bins_of_equal_size_is_that_of_the_loop(rois, size, scale, aligned):
    x = np.random.default_rng(0).integers(0, 5, (2, 3, 8, 6)).astype(float)  # many equal ones: the first wins
    got = pool.forward([x], rois, None, [scale], size, aligned)
    for a, b in zip(got, pool.roi_pool_loop(x, rois, size, scale, aligned)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("values_at_once", [1, 50, pool.VALUES_AT_ONCE])
def test_roi_pool_over_levels_in_portions_of_any_size_is_that_of_the_loop(monkeypatch, values_at_once):
    rng = np.random.default_rng(0)
    xs = [rng.integers(0, 5, (2, 3, n, n + 2)).astype("f4") for n in (16, 8)]
    rois = np.concatenate([rng.integers(0, 2, (40, 1)), rng.uniform(-4, 36, (40, 4))], 1).astype("f4")
    levels, scales = rng.integers(0, 2, 40), (0.5, 0.25)
    monkeypatch.setattr(pool, "VALUES_AT_ONCE", values_at_once)
    y, argmax = pool.forward(xs, rois, levels, scales, (3, 2))
    assert (argmax < 0).any(), "some bins are empty"
    for k, own in enumerate(np.eye(2, dtype=bool)[:, levels]):
        want, won = pool.roi_pool_loop(xs[k], rois[own], (3, 2), scales[k])
        np.testing.assert_array_equal(y[own], want)
        np.testing.assert_array_equal(argmax[own], won)


@pytest.mark.parametrize("width", [255, 256, 300])
def test_a_bin_of_roi_pool_may_have_more_pixels_than_a_byte_counts(width):
    x = np.random.default_rng(0).integers(0, 3000, (1, 2, 2, width)).astype("f4")
    rois = np.array([[0, 0, 0, width - 1, 0], [0, 0, 0, width - 1, 1]], "f4")
    got = pool.forward([x], rois, None, [1.0], (1, 1))
    for a, b in zip(got, pool.roi_pool_loop(x, rois, (1, 1), 1.0)):
        np.testing.assert_array_equal(a, b)


def test_a_bin_of_minus_infinity_has_its_first_pixel_for_a_maximum():
    x, rois = np.full((1, 2, 4, 4), -np.inf), np.array([[0, 1.0, 1.0, 2.0, 2.0]])
    for y, argmax in (pool.forward([x], rois, None, [1.0], (1, 1)), pool.roi_pool_loop(x, rois, (1, 1), 1.0)):
        assert (y == -np.inf).all() and (argmax == 5).all()


@pytest.mark.parametrize("channels_at_once", [1, 2, pool.CHANNELS_AT_ONCE])
def test_the_gradient_of_roi_pool_is_added_up_where_the_maxima_were(monkeypatch, channels_at_once):
    rng = np.random.default_rng(0)
    shapes, levels = [(2, 3, 8, 9), (2, 3, 4, 5)], rng.integers(0, 2, 30)
    rois = np.concatenate([rng.integers(0, 2, (30, 1)), rng.uniform(0, 8, (30, 4))], 1)
    gy = rng.normal(size=(30, 3, 2, 2))
    argmax = np.where(levels == 0, 72, 20)[:, None, None, None] * rng.uniform(-0.2, 1, gy.shape)
    argmax = np.maximum(np.floor(argmax), -1).astype(np.int32)
    monkeypatch.setattr(pool, "CHANNELS_AT_ONCE", channels_at_once)
    want = [np.zeros((n, c, h * w)) for n, c, h, w in shapes]
    for r, c, i, j in np.ndindex(*gy.shape):
        if argmax[r, c, i, j] >= 0:
            want[levels[r]][int(rois[r, 0]), c, argmax[r, c, i, j]] += gy[r, c, i, j]
    for a, b in zip(pool.backward(gy, argmax, rois, levels, (1.0, 0.5), shapes), want):
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=0, atol=1e-14)


@quick
@given(rois=any_rois(), aggregation=st.sampled_from(["average", "max"]), aligned=st.booleans())
def test_backward_is_the_transpose_of_forward(rois, aggregation, aligned):
    """<gy, A x> = <A^T gy, x>, where A, for the maximum, is what won at x."""
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 6))
    sampling = Sampling((2, 2), 2, aligned, "centers", aggregation)
    plan = Plan.build(rois, None, [x.shape], (1.0,), sampling, x.dtype)
    y, argmax = align.forward([x], plan)
    gy = np.random.default_rng(1).normal(size=y.shape)
    (gx,) = align.backward(gy, argmax, [x.shape], plan)
    assert (gx * x).sum() == pytest.approx((gy * y).sum(), abs=1e-10)


@quick
@given(rois=any_rois())
def test_weights_of_a_bin_inside_the_map_sum_to_one_and_are_never_negative(rois):
    sampling = Sampling((2, 2), 2, aligned=True)
    plan = Plan.build(rois, None, [(2, 1, 8, 8)], (1.0,), sampling, np.float64)
    matrix = plan.matrix
    assert matrix.shape == (len(rois) * 4, 2 * 64)
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    assert (matrix.data >= 0).all() and (sums <= 1 + 1e-12).all()
    box = np.sort(rois[:, 1:].reshape(-1, 2, 2), axis=1) if len(rois) else np.zeros((0, 2, 2))
    inside = ((box > 0) & (box < 8)).all(axis=(1, 2))
    np.testing.assert_allclose(sums.reshape(-1, 4)[inside], 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_product_is_bitwise_the_same_in_every_run_and_on_any_threads(threads, monkeypatch):
    """A row is summed by one thread in the matrix's order, however rows are divided."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 20, 20)).astype(np.float32)
    corners = rng.uniform(0, 12, (30, 2))
    rois = np.concatenate([rng.integers(0, 2, (30, 1)), corners, corners + rng.uniform(1, 8, (30, 2))], 1)
    first = forward_and_backward(x, rois)
    monkeypatch.setattr(backend.workers, "threads", lambda: threads)
    for _ in range(3):
        for got, want in zip(forward_and_backward(x, rois), first):
            np.testing.assert_array_equal(got, want)


def forward_and_backward(x, rois):
    leaf = Tensor(x, requires_grad=True)
    y = F.roi_align(leaf, rois.astype(np.float32), 3, 1.0, 2, True)
    y.backward(np.cos(np.arange(y.size)).reshape(y.shape).astype(np.float32))
    return y.numpy(), leaf.grad


# ----------------------------------------------------------------------------------------- several levels


def pyramid(images: int = 2, channels: int = 3):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(images, channels, side, side)) for side in (16, 8, 4)], (0.5, 0.25, 0.125)


def rois_of_all_levels(count: int = 9):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 20, (count, 2))
    rois = np.concatenate(
        [rng.integers(0, 2, (count, 1)), corner, corner + rng.uniform(2, 12, (count, 2))], axis=1
    )
    return rois, rng.integers(0, 3, count)


def test_rois_keep_their_order_over_the_levels():
    """Each level is constant: every RoI must say which level it came from."""
    maps = [np.full((2, 1, side, side), float(k)) for k, side in enumerate((16, 8, 4))]
    rois, levels = rois_of_all_levels()
    y = F.roi_align(maps, rois, 2, (0.5, 0.25, 0.125), 2, True, levels=levels).numpy()
    np.testing.assert_allclose(y, levels[:, None, None, None] * np.ones((1, 1, 2, 2)), rtol=1e-14)


@five
@pytest.mark.parametrize("ratio", [-1, 2])
def test_several_levels_in_one_call_are_each_level_by_itself(layer, ratio):
    options = {} if layer is F.roi_pool else {"sampling_ratio": ratio}
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    leaves = [Tensor(x, requires_grad=True) for x in maps]
    together = layer(leaves, rois, (2, 3), scales, levels=levels, aligned=True, **options)
    gy = np.random.default_rng(2).normal(size=together.shape)
    together.backward(gy)
    for k, x in enumerate(maps):
        readers = np.flatnonzero(levels == k)
        alone = Tensor(x, requires_grad=True)
        y = layer(alone, rois[readers], (2, 3), scales[k], aligned=True, **options)
        y.backward(gy[readers])
        np.testing.assert_array_equal(together.numpy()[readers], y.numpy())
        np.testing.assert_array_equal(leaves[k].grad, alone.grad)


@five
def test_a_permutation_of_the_rois_permutes_the_output(layer):
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    order = np.random.default_rng(3).permutation(len(rois))
    y = layer(maps, rois, 2, scales, levels=levels).numpy()
    shuffled = layer(maps, rois[order], 2, scales, levels=levels[order]).numpy()
    np.testing.assert_array_equal(shuffled, y[order])


@five
def test_a_level_that_no_roi_reads_gets_a_gradient_of_zeros(layer):
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    leaves = [Tensor(x, requires_grad=True) for x in maps]
    y = layer(leaves, rois, 2, scales, levels=list(np.where(levels == 1, 2, levels)))
    y.backward(np.ones(y.shape))
    assert leaves[1].grad.shape == maps[1].shape and not leaves[1].grad.any() and leaves[2].grad.any()


# -------------------------------------------------------------------------------------- what goes in


def test_a_list_of_boxes_an_image_is_the_same_as_rois():
    x = np.random.default_rng(0).normal(size=(3, 2, 8, 8))
    boxes = [np.array([[1.0, 1, 5, 6]]), np.zeros((0, 4)), np.array([[0.0, 2, 3, 4], [2, 2, 7, 7]])]
    rois = np.array([[0, 1.0, 1, 5, 6], [2, 0, 2, 3, 4], [2, 2, 2, 7, 7]])
    np.testing.assert_array_equal(as_rois(boxes), rois)
    for layer in FIVE.values():
        want = layer(x, rois, 2).numpy()
        np.testing.assert_array_equal(layer(x, boxes, 2).numpy(), want)
        np.testing.assert_array_equal(layer(x, [Tensor(b) for b in boxes], 2).numpy(), want)


@pytest.mark.parametrize(
    "rois, options, message",
    [
        (np.zeros((2, 4)), {}, r"RoIs must be \(R, 5\)"),
        (np.zeros(5), {}, r"RoIs must be \(R, 5\)"),
        ([np.zeros((2, 5))], {}, r"or a list of \(R, 4\); got \[\(2, 5\)\]"),
        ([], {}, r"RoIs must be \(R, 5\)"),
        (np.array([[1, 0.0, 0, 1, 1]]), {}, "image indices range from 1 to 1, with 1 images"),
        (np.array([[-1, 0.0, 0, 1, 1]]), {}, "image indices range from -1"),
        (np.array([[np.nan, 0.0, 0, 1, 1]]), {}, "image indices range from nan"),
        (np.zeros((1, 5)), dict(aggregation="mean"), 'aggregation must be "average" or "max", not \'mean\''),
        (
            np.zeros((1, 5)),
            dict(sampling_points="corners"),
            'sampling_points must be "centers" or "crossings"',
        ),
        (np.zeros((1, 5)), dict(spatial_scale=(1.0, 0.5)), r"1 maps need as many scales \(2\)"),
    ],
)
def test_what_makes_no_sense_is_refused(rois, options, message):
    has_no_points = {*options} <= {"spatial_scale"}  # so that roi_pool takes the options, too
    for layer in (F.roi_align, F.roi_warp, *([F.roi_pool] if has_no_points else [])):
        with pytest.raises(ValueError, match=message):
            layer(np.zeros((1, 1, 4, 4)), rois, 2, **options)


@pytest.mark.parametrize(
    "levels, message",
    [
        (None, "2 maps need as many scales .* and the RoIs' levels"),
        ([0], "levels must be one of 0 to 1 for each of 2 RoIs"),
        ([0, 2], "levels must be one of 0 to 1"),
        ([-1, 0], "levels must be one of 0 to 1"),
    ],
)
@five
def test_several_maps_need_the_level_of_each_roi(layer, levels, message):
    with pytest.raises(ValueError, match=message):
        layer([np.zeros((1, 1, 4, 4))] * 2, np.zeros((2, 5)), 2, (1.0, 0.5), levels=levels)


@five
def test_an_output_of_no_bins_is_refused(layer):
    with pytest.raises(ValueError, match="output_size must be positive"):
        layer(np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), 0)


@pytest.mark.parametrize("name", ["sampling_ratio", "aggregation", "sampling_points"])
def test_roi_pool_has_no_options_that_mean_nothing_for_it(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        F.roi_pool(np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), 2, **{name: 2})


@five
def test_no_gradient_flows_into_the_boxes(layer):
    x, rois = np.ones((1, 1, 4, 4)), Tensor(np.array([[0, 1.0, 1, 3, 3]]), requires_grad=True)
    assert not layer(x, rois, 2).requires_grad


# -------------------------------------------------------------------------------- the five beside each other


def whole_boxes(count: int = 20):
    """Corners on whole pixels, one pixel wide at least."""
    rng = np.random.default_rng(4)
    corner = rng.integers(0, 5, (count, 2))
    return np.concatenate([np.zeros((count, 1)), corner, corner + rng.integers(1, 4, (count, 2))], axis=1)


@pytest.mark.parametrize("aggregation", ["average", "max"])
def test_roi_warp_of_a_box_of_whole_pixels_is_roi_align(aggregation):
    """What is whole need not be rounded. In the original's reading the last pixel is inside, too."""
    x, rois = np.random.default_rng(5).normal(size=(1, 3, 8, 8)), whole_boxes()
    options = dict(sampling_ratio=2, aggregation=aggregation)
    want = F.roi_align(x, rois, (2, 3), aligned=True, **options).numpy()
    np.testing.assert_array_equal(F.roi_warp(x, rois, (2, 3), aligned=True, **options).numpy(), want)
    named = rois - [0, 0, 0, 1, 1]  # by its first and last pixel
    np.testing.assert_array_equal(F.roi_warp(x, named, (2, 3), aligned=False, **options).numpy(), want)


def test_roi_pool_of_whole_pixels_a_bin_is_the_maximum_that_roi_align_finds_at_their_centres():
    x, rois = np.random.default_rng(5).normal(size=(1, 3, 8, 8)), np.array([[0, 1.0, 2.0, 5.0, 6.0]])
    want = F.roi_align(x, rois, 2, 1.0, 2, aligned=True, aggregation="max").numpy()  # 2 x 2 pixels a bin
    np.testing.assert_array_equal(F.roi_pool(x, rois, 2, aligned=True).numpy(), want)
    np.testing.assert_array_equal(F.roi_pool(x, rois - [0, 0, 0, 1, 1], 2).numpy(), want)


@five
@pytest.mark.parametrize("aligned", [True, False])
def test_only_roi_align_sees_a_box_move_by_less_than_half_a_pixel(layer, aligned):
    """Corners from -0.4 to +0.4 of whole numbers: the same rounded box."""
    x, rois = np.random.default_rng(5).normal(size=(1, 3, 8, 8)), whole_boxes()
    moved = rois + np.random.default_rng(6).uniform(-0.4, 0.4, rois.shape) * [0, 1, 1, 1, 1]
    still, after = (layer(x, r, 2, aligned=aligned).numpy() for r in (rois, moved))
    blind = layer not in (FIVE["RoIAlign, max"], FIVE["RoIAlign, average"])
    assert (after == still).all() if blind else (after != still).any(axis=(1, 2, 3)).all()


def test_half_a_pixel_is_rounded_away_from_zero_for_the_box_of_roi_warp_too():
    x = ramp(1.0, 0.0, 0.0)
    for box, want in (((0.5, 2.5), 2.0), ((0.4, 2.4), 1.0), ((1.0, 1.2), 1.5)):  # [1, 3), [0, 2), [1, 2)
        rois = np.array([[0, box[0], 0.0, box[1], 1.0]])
        assert F.roi_warp(x, rois, 1, 1.0, 2, aligned=True).item() == pytest.approx(want, abs=1e-14)


def test_bins_of_roi_warp_are_not_rounded():
    """3 pixels in 2 bins: RoIPool gives both bins 2 pixels, RoIWarp reads at 3/4 and 9/4."""
    x, rois = ramp(1.0, 0.0, 0.0), np.array([[0, 1.2, 0.0, 4.4, 1.0]])
    warped = F.roi_warp(x, rois, (1, 2), 1.0, 1, aligned=True).numpy().ravel()
    np.testing.assert_allclose(warped, [1.75, 3.25], rtol=1e-15)
    np.testing.assert_array_equal(F.roi_pool(x, rois, (1, 2), aligned=True).numpy().ravel(), [2.5, 3.5])


@five
def test_what_a_layer_reads_of_a_ramp_is_the_centre_of_gravity_of_its_gradient(layer):
    """y = sum of w x with the gradient's weights w, whose sum is 1: one is misplaced as the other is."""
    rois = np.array([[0, 2.3, 3.1, 7.8, 8.9]])
    x = Tensor(ramp(1.0, 0.0, 0.0), requires_grad=True)
    y = layer(x, rois, 3, aligned=True)
    for i, j in np.ndindex(3, 3):
        x.grad, gy = None, np.zeros(y.shape)
        gy[0, 0, i, j] = 1
        layer(x, rois, 3, aligned=True).backward(gy)
        assert x.grad.sum() == pytest.approx(1, abs=1e-14)
        assert (x.grad * x.data).sum() == pytest.approx(y.numpy()[0, 0, i, j], abs=1e-13)


@five
@pytest.mark.parametrize("conventions", [MINIMASK, TORCHVISION], ids=["minimask", "torchvision"])
def test_mask_r_cnn_trains_with_each_layer(layer, conventions):
    model, results = tiny_model(3), []
    images, targets = zip(*(discs(np.random.default_rng(seed), 3) for seed in (0, 1)))
    how, points = dict(aligned=conventions.aligned), dict(sampling_ratio=conventions.sampling_ratio)
    tried = partial(layer, **how, **({} if layer is F.roi_pool else points))
    for roi_layer in (tried, partial(F.roi_align, **how, **points)):
        model.mask_head.convention = conventions.masks
        for head, size in ((model.box_head, 7), (model.mask_head, 14)):
            head.pooler = Pooler(size, roi_layer)
        for parameter in model.parameters():
            parameter.grad = None
        losses = model.loss(list(images), list(targets))
        sum(losses.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert all(np.isfinite(g).all() for g in gradients.values())
        assert any(gradients[n].any() for n in gradients if n.startswith("backbone"))
        results.append((float(losses["loss_mask"]), gradients))
    (loss, gradients), (of_align, align_gradients) = results
    assert {*gradients} == {*align_gradients}
    assert (loss == of_align) == (layer is F.roi_align)


@pytest.mark.parametrize("aggregation", ["average", "max"])
@pytest.mark.parametrize("ratio", [2, 0])
def test_a_box_that_is_not_finite_reads_zeros_and_leaves_the_others_alone(ratio, aggregation):
    rois = np.array([[0, np.nan, 1, 4, 4], [0, 1, 1, 4, np.inf], [0, 1, 1, 5, 5]], np.float32)
    x = np.random.default_rng(0).normal(size=(1, 2, 8, 8)).astype(np.float32)
    y = F.roi_align(x, rois, 2, 1.0, ratio, aggregation=aggregation).data
    assert not y[:2].any()
    np.testing.assert_array_equal(
        y[2:], F.roi_align(x, rois[2:], 2, 1.0, ratio, aggregation=aggregation).data
    )


def test_many_channels_pixels_and_bins_are_transposed_by_way_of_a_copy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 66, 9, 9))
    rois = np.array([[0, 0.3, 0.7, 8.1, 7.9], [1, 2.2, 1.1, 6.3, 8.4]])
    sampling = Sampling((9, 8), 2)
    plan = Plan.build(rois, None, [x.shape], (1.0,), sampling, x.dtype)
    y, _ = align.forward([x], plan)
    np.testing.assert_allclose(y, roi_align_loop(x, rois, 1.0, sampling), rtol=1e-12, atol=1e-12)
    gy = rng.normal(size=y.shape)
    (gx,) = align.backward(gy, None, [x.shape], plan)
    np.testing.assert_allclose((gx * x).sum(), (gy * y).sum(), rtol=1e-12)  # <A^T g, x> = <g, A x>
