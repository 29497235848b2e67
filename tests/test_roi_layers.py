"""RoIAlign and RoIPool: torchvision's numbers, what must hold on a ramp, and what can be counted by hand."""

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
    return float(
        F.roi_align(x[None, None], np.array([[0.0, *box]]), 1, 1.0, n, aligned=True, **options).item()
    )


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
    assert one_box(x, (0.5 + u - 0.1, 0.5 + v - 0.1, 0.5 + u + 0.1, 0.5 + v + 0.1), n=1) == pytest.approx(
        by_hand
    )


def test_the_gradient_of_a_sample_is_its_weights():
    x = Tensor(np.zeros((1, 1, 2, 2)), requires_grad=True)
    u, v = 0.25, 0.75
    F.roi_align(x, np.array([[0, u + 0.4, v + 0.4, u + 0.6, v + 0.6]]), 1, 1.0, 1, aligned=True).backward(
        np.ones((1, 1, 1, 1))
    )
    np.testing.assert_allclose(
        x.grad[0, 0], [[(1 - v) * (1 - u), (1 - v) * u], [v * (1 - u), v * u]], rtol=1e-14
    )


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
    rois=any_rois(), size=st.tuples(st.integers(1, 3), st.integers(1, 3)), scale=st.sampled_from([1.0, 0.5])
)
def test_roi_pool_by_bins_of_equal_size_is_that_of_the_loop(rois, size, scale):
    x = np.random.default_rng(0).integers(0, 5, (2, 3, 8, 6)).astype(float)  # many equal ones: the first wins
    for got, want in zip(pool.roi_pool(x, rois, size, scale), pool.roi_pool_loop(x, rois, size, scale)):
        np.testing.assert_array_equal(got, want)


def test_roi_pool_in_small_portions_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    x, rois = (
        rng.normal(size=(2, 3, 8, 8)),
        np.concatenate([rng.integers(0, 2, (20, 1)), rng.uniform(0, 8, (20, 4))], 1),
    )
    whole = pool.roi_pool(x, rois, (2, 2), 1.0)
    monkeypatch.setattr(pool, "LARGEST_GATHER", 50)
    for a, b in zip(pool.roi_pool(x, rois, (2, 2), 1.0), whole):
        np.testing.assert_array_equal(a, b)


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
    (matrix,) = plan.matrices
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
    monkeypatch.setattr(backend, "threads", lambda: threads)
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


@pytest.mark.parametrize("aggregation", ["average", "max"])
@pytest.mark.parametrize("ratio", [2, 0])
def test_several_levels_in_one_call_are_each_level_by_itself(aggregation, ratio):
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    options = dict(sampling_ratio=ratio, aligned=True, aggregation=aggregation)
    leaves = [Tensor(x, requires_grad=True) for x in maps]
    together = F.roi_align(leaves, rois, (2, 3), scales, levels=levels, **options)
    gy = np.random.default_rng(2).normal(size=together.shape)
    together.backward(gy)
    for k, x in enumerate(maps):
        own = np.flatnonzero(levels == k)
        alone = Tensor(x, requires_grad=True)
        y = F.roi_align(alone, rois[own], (2, 3), scales[k], **options)
        y.backward(gy[own])
        np.testing.assert_array_equal(together.numpy()[own], y.numpy())
        np.testing.assert_array_equal(leaves[k].grad, alone.grad)


def test_a_permutation_of_the_rois_permutes_the_output():
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    order = np.random.default_rng(3).permutation(len(rois))
    y = F.roi_align(maps, rois, 2, scales, 0, True, levels=levels).numpy()
    shuffled = F.roi_align(maps, rois[order], 2, scales, 0, True, levels=levels[order]).numpy()
    np.testing.assert_array_equal(shuffled, y[order])


def test_a_level_that_no_roi_reads_gets_a_gradient_of_zeros():
    maps, scales = pyramid()
    rois, levels = rois_of_all_levels()
    leaves = [Tensor(x, requires_grad=True) for x in maps]
    y = F.roi_align(leaves, rois, 2, scales, 2, levels=np.where(levels == 1, 2, levels))
    y.backward(np.ones(y.shape))
    assert leaves[1].grad.shape == maps[1].shape and not leaves[1].grad.any() and leaves[2].grad.any()


# -------------------------------------------------------------------------------------- what goes in


def test_a_list_of_boxes_an_image_is_the_same_as_rois():
    x = np.random.default_rng(0).normal(size=(3, 2, 8, 8))
    boxes = [np.array([[1.0, 1, 5, 6]]), np.zeros((0, 4)), np.array([[0.0, 2, 3, 4], [2, 2, 7, 7]])]
    rois = np.array([[0, 1.0, 1, 5, 6], [2, 0, 2, 3, 4], [2, 2, 2, 7, 7]])
    np.testing.assert_array_equal(as_rois(boxes), rois)
    np.testing.assert_array_equal(F.roi_align(x, boxes, 2).numpy(), F.roi_align(x, rois, 2).numpy())
    np.testing.assert_array_equal(
        F.roi_pool(x, [Tensor(b) for b in boxes], 2).numpy(), F.roi_pool(x, rois, 2).numpy()
    )


@pytest.mark.parametrize(
    "rois, options, message",
    [
        (np.zeros((2, 4)), {}, r"RoIs must be \(R, 5\)"),
        (np.zeros(5), {}, r"RoIs must be \(R, 5\)"),
        (np.array([[1, 0.0, 0, 1, 1]]), {}, "image indices reach 1, with 1 images"),
        (np.array([[-1, 0.0, 0, 1, 1]]), {}, "image indices"),
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
    with pytest.raises(ValueError, match=message):
        F.roi_align(np.zeros((1, 1, 4, 4)), rois, 2, **options)


def test_several_maps_need_the_levels_of_the_rois():
    with pytest.raises(ValueError, match="and the RoIs' levels"):
        F.roi_align([np.zeros((1, 1, 4, 4))] * 2, np.zeros((1, 5)), 2, (1.0, 0.5))


def test_an_output_of_no_bins_is_refused():
    with pytest.raises(ValueError, match="output_size must be positive"):
        F.roi_align(np.zeros((1, 1, 4, 4)), np.zeros((1, 5)), 0)


def test_no_gradient_flows_into_the_boxes():
    x, rois = np.ones((1, 1, 4, 4)), Tensor(np.array([[0, 1.0, 1, 3, 3]]), requires_grad=True)
    assert not F.roi_align(x, rois, 2).requires_grad
