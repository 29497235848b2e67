"""The convolution's kernels: loops, one matrix, and blocks over threads; pooling and resizing."""

import contextlib

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minimask import backend
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.kernels import convolution, im2col, pooling, resample
from minimask.kernels.geometry import Geometry

quick = settings(max_examples=60, deadline=None, derandomize=True)
ROUNDING = dict(rtol=0, atol=1e-12)


@st.composite
def geometries(draw, images: int = 2) -> Geometry:
    """Small ones of every kind: strides that skip pixels, padding beyond the kernel, no images."""
    side, small = st.integers(1, 7), st.integers(1, 3)
    groups = draw(small)
    depth, outs = draw(small), draw(small) * groups
    x_shape = (draw(st.integers(0, images)), depth * groups, draw(side), draw(side))
    w_shape = (outs, depth, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    try:
        return Geometry.of(
            x_shape,
            w_shape,
            draw(st.tuples(small, small)),
            draw(st.tuples(st.integers(0, 4), st.integers(0, 4))),
            draw(st.tuples(small, small)),
            groups,
        )
    except ValueError:  # the kernel does not fit
        assume(False)


def arrays(g: Geometry, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=s) for s in (g.x_shape, g.w_shape, g.y_shape, g.w_shape[:1])]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of about a row, and three threads."""
    monkeypatch.setattr(convolution, "BLOCK_ELEMENTS", 30)
    monkeypatch.setattr(backend.workers, "threads", lambda: 3)
    monkeypatch.setattr(backend.workers, "FEW", 0)


@contextlib.contextmanager
def settings_of(threads: int = 2, **constants):
    """The number of threads and the kernel's constants, for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend.workers, "threads", lambda: threads)
        patch.setattr(backend.workers, "FEW", 0)
        for name, value in constants.items():
            patch.setattr(convolution, name, value)
        yield


# ------------------------------------------------------------------------------- three versions of each


@quick
@given(g=geometries())
def test_forward_is_the_same_by_loops_by_one_matrix_and_by_blocks(g):
    x, w, _, b = arrays(g)
    want = im2col.forward_loop(x, w, b, g)
    np.testing.assert_allclose(im2col.forward_im2col(x, w, b, g), want, **ROUNDING)
    with settings_of():
        np.testing.assert_allclose(convolution.forward(x, w, b, g), want, **ROUNDING)


@quick
@given(g=geometries())
def test_input_gradient_is_the_same_by_loops_by_one_matrix_and_by_blocks(g):
    _, w, gy, _ = arrays(g)
    want = im2col.input_gradient_loop(gy, w, g)
    np.testing.assert_allclose(im2col.input_gradient_im2col(gy, w, g), want, **ROUNDING)
    with settings_of():
        np.testing.assert_allclose(convolution.input_gradient(gy, w, g), want, **ROUNDING)


@quick
@given(g=geometries())
def test_weight_gradient_is_the_same_by_loops_by_one_matrix_and_by_blocks(g):
    x, _, gy, _ = arrays(g)
    want = im2col.weight_gradient_loop(gy, x, g)
    np.testing.assert_allclose(im2col.weight_gradient_im2col(gy, x, g), want, **ROUNDING)
    with settings_of():
        np.testing.assert_allclose(convolution.weight_gradient(gy, x, g), want, **ROUNDING)


@quick
@given(geometries(images=6), st.integers(1, 4), st.integers(1, 400))
def test_any_size_of_block_and_number_of_threads_gives_the_same(g, threads, block):
    x, w, gy, b = arrays(g)
    want = (
        im2col.forward_im2col(x, w, b, g),
        im2col.input_gradient_im2col(gy, w, g),
        im2col.weight_gradient_im2col(gy, x, g),
    )
    with settings_of(threads=threads, BLOCK_ELEMENTS=block):
        for got, expected in zip(all_three(g, x, w, gy, b), want, strict=True):
            np.testing.assert_allclose(got, expected, **ROUNDING)


def all_three(g, x, w, gy, b):
    return (
        convolution.forward(x, w, b, g),
        convolution.input_gradient(gy, w, g),
        convolution.weight_gradient(gy, x, g),
    )


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_what_a_buffer_held_before_does_not_matter(garbage):
    """Rows laid out flat compute positions that nobody reads: nothing of them may get through."""
    g = Geometry.of((2, 3, 6, 5), (4, 3, 3, 3), 1, 1, 1, 1)
    x, w, gy, b = arrays(g)
    with settings_of(threads=1):
        clean = all_three(g, x, w, gy, b)
        for name in ("patches", "padded", "product", "weights"):
            backend.scratch(name, 100_000, x.dtype)[:] = garbage
        for got, want in zip(all_three(g, x, w, gy, b), clean, strict=True):
            np.testing.assert_array_equal(got, want)


@quick
@given(geometries())
def test_the_gradients_are_the_transposes_of_the_forward_pass(g):
    """<gy, A x> = <A^T gy, x> = <gw, w>: three ways to one number, without finite differences."""
    x, w, gy, _ = arrays(g)
    number = (gy * convolution.forward(x, w, None, g)).sum()
    assert (convolution.input_gradient(gy, w, g) * x).sum() == pytest.approx(number, abs=1e-10)
    assert (convolution.weight_gradient(gy, x, g) * w).sum() == pytest.approx(number, abs=1e-10)


@quick
@given(geometries())
def test_col2im_is_the_transpose_of_im2col(g):
    x = arrays(g)[0]
    cols = np.random.default_rng(1).normal(size=(*g.x_shape[:2], *g.w_shape[2:], *g.out_size))
    left = (im2col.im2col(x, g) * cols).sum()
    assert (im2col.col2im(cols, g) * x).sum() == pytest.approx(left, abs=1e-10)


def test_a_small_block_divides_the_rows_and_covers_each_once(small_blocks):
    g = Geometry.of((2, 3, 9, 5), (4, 3, 3, 3), 1, 1, 1, 1)
    rows = []
    for part in range(3):
        blocks = list(convolution._blocks(g, part, 3))
        assert len(blocks) > 1, "one block would test nothing"
        rows += [(n, r) for n0, n1, first, last in blocks for n in range(n0, n1) for r in range(first, last)]
    assert rows == [(n, r) for n in range(2) for r in range(9)]


def test_a_large_block_takes_several_small_images():
    g = Geometry.of((12, 3, 4, 4), (4, 3, 3, 3), 1, 1, 1, 1)
    blocks = [b for part in range(2) for b in convolution._blocks(g, part, 2)]
    assert blocks[0][1] - blocks[0][0] > 1
    assert [n for n0, n1, first, last in blocks for n in range(n0, n1)] == list(range(12))
    assert all((first, last) == (0, 4) for _, _, first, last in blocks)


# ---------------------------------------------------------------------------------- what goes with a block


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_bias_residual_and_relu_are_applied_in_this_order(relu, bias, residual, kernel, small_blocks):
    g = Geometry.of((2, 3, 6, 5), (4, 3, kernel, kernel), 1, kernel // 2, 1, 1)
    x, w, r, b = arrays(g)
    want = im2col.forward_loop(x, w, b if bias else None, g) + (r if residual else 0)
    want = np.maximum(want, 0) if relu else want
    options = dict(relu=relu, residual=r if residual else None)
    np.testing.assert_allclose(convolution.forward(x, w, b if bias else None, g, **options), want, **ROUNDING)
    with backend.reference_only():
        np.testing.assert_allclose(
            convolution.forward(x, w, b if bias else None, g, **options), want, **ROUNDING
        )


def test_reference_only_takes_the_plain_way(monkeypatch):
    g = Geometry.of((1, 1, 3, 3), (1, 1, 3, 3), 1, 1, 1, 1)
    x, w, gy, b = arrays(g)
    taken = []
    for name in ("forward_im2col", "input_gradient_im2col", "weight_gradient_im2col"):
        monkeypatch.setattr(convolution, name, lambda *_, name=name: taken.append(name) or np.zeros(1))
    with backend.reference_only():
        convolution.forward(x, w, b, g)
        convolution.input_gradient(gy, w, g)
        convolution.weight_gradient(gy, x, g)
    assert taken == ["forward_im2col", "input_gradient_im2col", "weight_gradient_im2col"]
    convolution.forward(x, w, b, g)
    assert len(taken) == 3


# ------------------------------------------------------------------------------------------ repeatability


@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (1, 4)])
def test_results_are_bitwise_the_same_in_every_run(stride, groups):
    g = Geometry.of((3, 8, 40, 37), (8, 8 // groups, 3, 3), stride, 1, 1, groups)
    x, w, gy, b = (a.astype(np.float32) for a in arrays(g))
    runs = [all_three(g, x, w, gy, b) for _ in range(5)]
    for again in runs[1:]:
        for a, b in zip(runs[0], again):
            np.testing.assert_array_equal(a, b)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    g = Geometry.of((4, 3, 8, 8), (5, 3, 3, 3), 1, 1, 1, 1)
    x, w, _, b = arrays(g)
    together = convolution.forward(x, w, b, g)
    alone = Geometry.of((1, 3, 8, 8), (5, 3, 3, 3), 1, 1, 1, 1)
    for n in range(4):
        np.testing.assert_allclose(convolution.forward(x[n : n + 1], w, b, alone)[0], together[n], **ROUNDING)


def test_an_error_in_one_thread_reaches_the_caller(monkeypatch):
    monkeypatch.setattr(backend.workers, "threads", lambda: 2)

    def work(part, parts):
        if part == 1:
            raise ArithmeticError("part 1")

    with pytest.raises(ArithmeticError, match="part 1"):
        backend.parallel(work)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "x, w, options, message",
    [
        ((2, 3, 4), (4, 3, 1, 1), {}, "x and weight must have 4 axes"),
        ((1, 3, 4, 4), (4, 2, 1, 1), {}, r"x has 3 channels; weight \(4, 2, 1, 1\) with groups=1 reads 2"),
        ((1, 4, 4, 4), (3, 2, 1, 1), dict(groups=2), "must write a multiple of 2"),
        ((1, 3, 4, 4), (4, 3, 5, 5), {}, r"a \(5, 5\) kernel does not fit into \(4, 4\) padded by \(0, 0\)"),
        ((1, 3, 4, 4), (4, 3, 3, 3), dict(dilation=2), "does not fit"),
        ((1, 3, 4, 4), (4, 3, 3, 3), dict(stride=0), r"stride \(0, 0\), .* must be positive"),
        ((1, 3, 4, 4), (4, 3, 3, 3), dict(padding=-1), r"padding \(-1, -1\) not negative"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_sizes(x, w, options, message):
    with pytest.raises(ValueError, match=message):
        F.conv2d(np.zeros(x), np.zeros(w), **options)


def test_transposed_convolution_refuses_what_has_no_inverse_size():
    with pytest.raises(ValueError, match=r"output_padding \(2, 2\) must be below the stride"):
        F.conv_transpose2d(np.zeros((1, 2, 3, 3)), np.zeros((2, 3, 2, 2)), stride=2, output_padding=2)
    with pytest.raises(ValueError, match=r"x has 3 channels, weight \(2, 3, 2, 2\) takes 2"):
        F.conv_transpose2d(np.zeros((1, 3, 3, 3)), np.zeros((2, 3, 2, 2)))
    with pytest.raises(
        ValueError, match=r"padding \(2, 2\) and a \(2, 2\) kernel leave nothing of x \(1, 2, 2, 3\)"
    ):
        F.conv_transpose2d(np.zeros((1, 2, 2, 3)), np.zeros((2, 3, 2, 2)), padding=2)


def test_linear_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match=r"x must be \(rows, 5\), is \(2, 4\)"):
        F.linear(np.zeros((2, 4)), np.zeros((3, 5)))


# ------------------------------------------------------------------------- pooling, resizing, by hand


def test_a_transposed_convolution_undoes_the_size_of_a_convolution():
    for size in (7, 8):
        x = np.zeros((1, 2, size, size))
        y = F.conv2d(x, np.zeros((3, 2, 3, 3)), stride=2, padding=1)
        back = F.conv_transpose2d(y, np.zeros((3, 2, 3, 3)), stride=2, padding=1, output_padding=1 - size % 2)
        assert back.shape == x.shape


def test_max_pool_sends_the_gradient_to_the_first_of_equal_ones():
    x = Tensor(np.zeros((1, 1, 2, 4)), requires_grad=True)
    F.max_pool2d(x, 2).backward(np.array([[[[1.0, 2.0]]]]))
    np.testing.assert_array_equal(x.grad[0, 0], [[1, 0, 2, 0], [0, 0, 0, 0]])


def test_padding_never_wins_a_maximum():
    y = F.max_pool2d(np.full((1, 1, 3, 3), -5.0), 3, stride=2, padding=1)
    np.testing.assert_array_equal(y.numpy(), np.full((1, 1, 2, 2), -5.0))


def test_a_window_with_nothing_above_minus_infinity_sends_its_gradient_to_its_first_pixel_as_in_torch():
    x = Tensor(np.full((1, 1, 4, 4), -np.inf), requires_grad=True)
    y = F.max_pool2d(x, 3, stride=2, padding=1)
    y.backward(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    np.testing.assert_array_equal(y.numpy(), -np.inf)
    np.testing.assert_array_equal(x.grad[0, 0], np.pad([[1.0, 2.0], [3.0, 4.0]], (0, 2)))


def test_max_pool_refuses_padding_beyond_half_the_window():
    with pytest.raises(ValueError, match="more than half of the window"):
        F.max_pool2d(np.zeros((1, 1, 4, 4)), 2, padding=2)


def test_max_pool_names_the_shape_that_it_needs():
    with pytest.raises(ValueError, match=r"max_pool2d: x must be \(N, C, H, W\), is \(1, 4, 4\)"):
        F.max_pool2d(np.zeros((1, 4, 4)), 2)


@quick
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_max_pool_and_its_index_are_those_of_the_loop(size, kernel, stride, padding):
    padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel))
    assume(all(n + 2 * p >= k for n, k, p in zip(size, kernel, padding)))
    g = pooling.geometry((2, 2, *size), kernel, stride, padding)
    x = np.random.default_rng(0).integers(0, 4, (4, 1, *size)).astype(float)  # many equal ones
    for got, want in zip(pooling.max_pool(x, g, want_index=True), pooling.max_pool_loop(x, g)):
        np.testing.assert_array_equal(got, want)
    assert pooling.max_pool(x, g, want_index=False)[1] is None
    assert_gradient_is_that_of_the_windows(g, pooling.max_pool(x, g, want_index=True)[1])


def assert_gradient_is_that_of_the_windows(g, index):
    gy = np.random.default_rng(1).integers(-8, 8, index.shape).astype(float)  # sums are exact in any order
    with backend.reference_only():
        want = pooling.max_pool_gradient(gy, index, g)
    np.testing.assert_array_equal(pooling.max_pool_gradient(gy, index, g), want)


@pytest.mark.parametrize("kernel", [(15, 17), (16, 16), (1, 256), (256, 1), (20, 20)])
def test_a_window_of_max_pool_may_have_more_elements_than_a_byte_counts(kernel):
    g = pooling.geometry((1, 2, kernel[0] + 3, kernel[1] + 2), kernel, (2, 1), (0, 0))
    x = np.random.default_rng(0).integers(0, 3000, (2, 1, *g.x_shape[2:])).astype(float)
    y, index = pooling.max_pool(x, g, want_index=True)
    assert index.dtype == (np.uint8 if kernel == (15, 17) else np.int32)
    for got, want in zip((y, index), pooling.max_pool_loop(x, g)):
        np.testing.assert_array_equal(got, want)
    assert_gradient_is_that_of_the_windows(g, index)


@pytest.mark.parametrize("size, out", [(3, 6), (4, 7), (5, 3), (1, 4), (7, 7)])
def test_rows_of_the_resizing_matrix_are_averages(size, out):
    matrix = resample.bilinear_matrix(size, out, np.float64)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-15)
    assert (matrix >= 0).all()
    np.testing.assert_allclose(
        matrix, matrix[::-1, ::-1], rtol=0, atol=1e-15
    )  # left and right are treated alike


def test_enlarging_a_ramp_gives_a_ramp_between_the_outermost_centres():
    x = np.arange(5.0).reshape(1, 1, 1, 5).repeat(4, axis=2)
    y = F.upsample_bilinear(x, (8, 10)).numpy()
    np.testing.assert_allclose(y[0, 0, 3, 1:-1], (np.arange(1, 9) + 0.5) / 2 - 0.5, rtol=1e-15)
    np.testing.assert_array_equal(y[0, 0, :, [0, -1]], [[0.0] * 8, [4.0] * 8])


@pytest.mark.parametrize("size", [(6, 8), (5, 9), (2, 3)])
def test_resizing_back_is_the_transpose_of_resizing(size):
    rng = np.random.default_rng(0)
    x, gy = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, *size))
    for forward, backward in (
        (resample.nearest, resample.nearest_gradient),
        (resample.bilinear, resample.bilinear_gradient),
    ):
        assert (forward(x, size) * gy).sum() == pytest.approx((x * backward(gy, (3, 4))).sum(), abs=1e-12)


@pytest.mark.parametrize("elements", [1, 40, 1 << 18])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-14), (np.float32, 1e-6)])
@pytest.mark.parametrize("shape, size", [((3, 4, 5), (9, 8)), ((9, 7, 6), (4, 13)), ((2, 3, 1, 5), (3, 1))])
def test_two_sparse_products_resize_as_two_dense_ones_do(
    shape, size, dtype, tolerance, elements, monkeypatch
):
    monkeypatch.setattr(resample, "ELEMENTS_AT_ONCE", elements)  # a row at a time, or several whole images
    rng = np.random.default_rng(0)
    x, gy = rng.normal(size=shape).astype(dtype), rng.normal(size=(*shape[:-2], *size)).astype(dtype)
    with settings_of(threads=2):
        fast = resample.bilinear(x, size), resample.bilinear_gradient(gy, shape[-2:])
    with backend.reference_only():
        plain = resample.bilinear(x, size), resample.bilinear_gradient(gy, shape[-2:])
    for got, want in zip(fast, plain):
        assert got.dtype == want.dtype == dtype and got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def test_nothing_to_resize_gives_nothing():
    assert resample.bilinear(np.zeros((0, 3, 4, 5)), (2, 2)).shape == (0, 3, 2, 2)
    assert resample.bilinear_gradient(np.zeros((0, 3, 2, 2)), (4, 5)).shape == (0, 3, 4, 5)


def test_nearest_repeats_pixels():
    x = np.arange(4.0).reshape(1, 1, 2, 2)
    np.testing.assert_array_equal(F.upsample_nearest(x).numpy()[0, 0], np.kron(x[0, 0], np.ones((2, 2))))
    np.testing.assert_array_equal(
        F.upsample_nearest(x, scale_factor=3).numpy()[0, 0], np.kron(x[0, 0], np.ones((3, 3)))
    )


def test_doubling_has_a_fast_path_that_reference_only_turns_off(monkeypatch):
    def not_to_be_called(*arguments, **options):
        raise AssertionError("the fast path was taken")

    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    fast = resample.nearest(x, (8, 10)), resample.nearest_gradient(np.tile(x, (1, 1, 2, 2)), (4, 5))
    monkeypatch.setattr(backend, "parallel_slices", not_to_be_called)
    with backend.reference_only():
        plain = resample.nearest(x, (8, 10)), resample.nearest_gradient(np.tile(x, (1, 1, 2, 2)), (4, 5))
    np.testing.assert_array_equal(plain[0], fast[0])
    np.testing.assert_allclose(plain[1], fast[1], **ROUNDING)
    with pytest.raises(AssertionError, match="fast path"):
        resample.nearest_gradient(np.tile(x, (1, 1, 2, 2)), (4, 5))
