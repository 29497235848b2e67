"""The checker is checked: it must find what is wrong, say where, and take no kink for a mistake."""

import re

import numpy as np
import pytest

from minimask import autograd
from minimask import functions as F
from minimask.autograd import Function, Tensor
from minimask.gradient_check import GradientError, gradcheck, relative_error
from minimask.tutorial import step_errors


class Bent(Function):
    """y = exp x, whose gradient goes through `bend` on its way out."""

    def __init__(self, bend):
        self.bend = bend

    def forward(self, x):
        y = np.exp(x)
        self.save(y)
        return y

    def backward(self, gy):
        return self.bend(gy * self.saved[0])


def bent(bend):
    return lambda x: Bent.apply(x, bend=bend)


def point(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# --------------------------------------------------------------------------------------- wrong gradients


def one_percent_off_at(index):
    def bend(g):
        g = g.copy()
        g[index] *= 1.01
        return g

    return bend


def test_one_percent_in_one_of_24_elements_is_found_and_named():
    with pytest.raises(GradientError) as error:
        gradcheck(bent(one_percent_off_at((2, 3))), [point(4, 6)])
    text = str(error.value)
    assert "1 of 24 elements wrong; worst at (2, 3)" in text
    numeric, analytic = (
        float(re.search(rf"{word} (\S+?),? ", text + " ").group(1)) for word in ("numeric", "analytic")
    )
    assert analytic / numeric == pytest.approx(1.01, abs=1e-5)
    assert "(ratio 1.01); it looks like a term that is slightly off" in text


def test_one_percent_is_found_wherever_it_is():
    for index in np.ndindex(4, 6):
        report = gradcheck(bent(one_percent_off_at(index)), [point(4, 6, seed=1)], raise_error=False, seed=2)
        assert not report
        assert (report.mismatch.index, report.mismatch.wrong, report.mismatch.checked) == (index, 1, 24)


@pytest.mark.parametrize(
    "bend, hint",
    [
        (lambda g: -g, "(ratio -1); it looks like the sign"),
        (lambda g: 2.0 * g, "(ratio 2); it looks like a factor 2: added twice?"),
        (lambda g: 0.5 * g, "(ratio 0.5); it looks like a factor 1/2: one of two contributions missing?"),
        (lambda g: 0.0 * g, "(ratio 0); it looks like a gradient that is never written"),
        (lambda g: 1.02 * g, "(ratio 1.02); it looks like a term that is slightly off"),
    ],
)
def test_the_ratio_hints_at_the_usual_bugs(bend, hint):
    with pytest.raises(GradientError, match=re.escape(hint)):
        gradcheck(bent(bend), [point(3, 2)])


def test_a_ratio_that_fits_no_usual_bug_gets_no_hint():
    with pytest.raises(GradientError, match=r"\(ratio 1\.7\)$"):
        gradcheck(bent(lambda g: 1.7 * g), [point(3, 2)])


def test_the_wrong_input_of_several_is_named():
    class Product(Function):
        def forward(self, a, b, c):
            self.save(a, b, c)
            return a * b * c

        def backward(self, gy):
            a, b, c = self.saved
            return gy * b * c, gy * a * b, gy * a * b  # the second lacks c, has b

    with pytest.raises(GradientError, match="input 1: 6 of 6 elements wrong"):
        gradcheck(Product.apply, [point(6, seed=k) for k in range(3)])


def test_an_error_in_a_large_array_is_found_and_the_search_is_bounded():
    x = point(40, 50)
    report = gradcheck(bent(lambda g: 1.5 * g), [x], raise_error=False)
    assert report.mismatch.checked == report.mismatch.wrong == 512
    assert report.mismatch.analytic == pytest.approx(1.5 * report.mismatch.numeric)


def test_an_error_in_the_second_output_is_found():
    def two(x):
        return F.exp(x), bent(lambda g: -g)(x * 2.0)

    with pytest.raises(GradientError):
        gradcheck(two, [point(3)])


def test_a_gradient_of_a_constant_function_is_wrong():
    class Constant(Function):
        def forward(self, x):
            return np.ones_like(x)

        def backward(self, gy):
            return gy

    with pytest.raises(
        GradientError, match=r"numeric 0, analytic \S+ \(ratio inf\); the output does not depend"
    ):
        gradcheck(Constant.apply, [point(3)])
    assert gradcheck(lambda x: (x * 0.0).sum(), [point(3)])


def test_a_lost_gradient_is_found():
    """The graph is cut by detach: nothing arrives, though the output moves."""
    with pytest.raises(GradientError, match="never written"):
        gradcheck(lambda x: F.exp(x.detach()) + x * 0.0, [point(3)])


# ------------------------------------------------------------------------------------ blind without weights


class LosesItsGradient(Function):
    """Softmax with a backward that gives nothing."""

    def forward(self, x):
        e = np.exp(x)
        return e / e.sum(axis=-1, keepdims=True)

    def backward(self, gy):
        return np.zeros_like(gy)


def test_summing_outputs_would_be_blind_and_random_weights_are_not():
    x = point(2, 3)
    leaf = Tensor(x, requires_grad=True)
    LosesItsGradient.apply(leaf).sum().backward()
    h = 1e-6
    moved = [LosesItsGradient.apply(x + t * point(2, 3, seed=1)).numpy().sum() for t in (-h, h)]
    assert not leaf.grad.any() and abs(moved[1] - moved[0]) / (2 * h) < 1e-8, "by the sum it passes"
    with pytest.raises(GradientError):
        gradcheck(LosesItsGradient.apply, [x])


@pytest.mark.parametrize("seed", range(5))
def test_the_weights_are_not_the_inputs_even_where_the_seeds_agree(seed):
    """With u = x the gradient of a norm nearly vanishes, and all that remains are roundings."""
    x = np.random.default_rng(seed).normal(size=(1, 1, 4, 3))
    assert gradcheck(lambda x: F.group_norm(x, 1, np.ones(1), np.zeros(1)), [x], seed=seed).worst_error < 1e-8


# ---------------------------------------------------------------------------------------------- kinks


def is_kink(function, x, **options) -> bool:
    report = gradcheck(function, [x], raise_error=False, **options)
    return not report and bool(report.kink) and report.mismatch is None


def test_relu_at_zero_is_a_kink():
    x = np.array([1.0, -2.0, 0.0, 3.0])
    assert is_kink(F.relu, x)
    with pytest.raises(
        GradientError, match=r"not differentiable within 2e-05 of the inputs \(input 0\): move them"
    ):
        gradcheck(F.relu, [x])


@pytest.mark.parametrize("distance", [1e-9, 1e-7, 1e-6, 2e-6, 5e-6, -1e-5, 1.5e-5])
def test_relu_within_the_step_of_zero_is_a_kink(distance):
    assert is_kink(F.relu, np.array([1.0, -2.0, distance, 3.0]))


@pytest.mark.parametrize("distance", [3e-5, -1e-3])
def test_relu_beyond_the_step_from_zero_is_smooth(distance):
    assert gradcheck(F.relu, [np.array([1.0, -2.0, distance, 3.0])])


def test_equal_largest_elements_of_a_window_are_a_kink():
    x = np.arange(16.0).reshape(1, 1, 4, 4)
    assert gradcheck(lambda x: F.max_pool2d(x, 2), [x])
    x[0, 0, 1, 0] = x[0, 0, 1, 1]
    assert is_kink(lambda x: F.max_pool2d(x, 2), x)


def test_equal_largest_pixels_of_a_bin_of_roi_pool_are_a_kink():
    x = np.random.default_rng(0).permutation(36).astype(float).reshape(1, 1, 6, 6)
    rois = np.array([[0, 0.0, 0.0, 5.0, 5.0]])
    assert gradcheck(lambda x: F.roi_pool(x, rois, 2), [x])
    x[0, 0, 0, 0] = x[0, 0, 2, 2] = 50.0
    assert is_kink(lambda x: F.roi_pool(x, rois, 2), x)


def test_equal_largest_samples_of_roi_align_are_a_kink():
    x = np.zeros((1, 1, 6, 6))
    rois = np.array([[0, 1.0, 1.0, 5.0, 5.0]])
    assert is_kink(lambda x: F.roi_align(x, rois, 1, 1.0, 2, True, aggregation="max"), x)


def test_l1_beside_its_corner_is_a_kink_and_at_it_has_the_mean_slope():
    target = np.array([0.5, 1.0])
    assert is_kink(lambda x: F.l1(x, target), np.array([0.5 + 1e-6, 3.0]))
    assert gradcheck(lambda x: F.l1(x, target), [np.array([0.5, 3.0])])  # sign(0) = 0 is what differences see


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 1e-3])
def test_smooth_l1_at_its_corner_is_never_called_wrong(beta):
    """The slope is continuous there, its own slope is not: differences see it only for small beta."""
    report = gradcheck(
        lambda x: F.smooth_l1(x, np.zeros(3), beta), [np.array([beta, 3.0, -0.1 * beta])], raise_error=False
    )
    assert report.mismatch is None


def test_a_kink_does_not_excuse_a_wrong_gradient_elsewhere():
    """Away from the kink the same function must be found out."""

    def wrong(x):
        return F.relu(bent(lambda g: -g)(x) - 1.0)

    with pytest.raises(GradientError, match="the sign"):
        gradcheck(wrong, [np.array([0.5, 1.0, 2.0])])


def test_a_steep_but_smooth_function_is_no_kink():
    assert gradcheck(lambda x: F.sigmoid(x * 100.0), [0.01 * point(5)])
    report = gradcheck(lambda x: bent(lambda g: 2.0 * g)(x * 30.0), [0.1 * point(5)], raise_error=False)
    assert report.mismatch is not None and not report.kink


# ------------------------------------------------------------------------------------ what goes in and out


def test_a_function_that_changes_its_input_in_place_is_refused():
    class InPlace(Function):
        def forward(self, x):
            x += 1.0
            return x * 2.0

        def backward(self, gy):
            return gy * 2.0

    with pytest.raises(GradientError, match="the function changed its input 0 in place"):
        gradcheck(InPlace.apply, [point(3)])


def test_a_backward_that_changes_an_input_in_place_is_refused():
    class InPlace(Function):
        def forward(self, x):
            self.save(x)
            return x * x

        def backward(self, gy):
            (x,) = self.saved
            x *= 2.0 * gy
            return x.copy()

    with pytest.raises(GradientError, match="the function changed its input 0 in place"):
        gradcheck(InPlace.apply, [point(3)])


def test_the_caller_s_arrays_are_copied_and_checked_in_float64():
    seen = []

    def watch(x):
        seen.append(x.dtype)
        return F.exp(x)

    x = point(3).astype(np.float32)
    before = x.copy()
    assert gradcheck(watch, [x])
    np.testing.assert_array_equal(x, before)
    assert set(seen) == {np.dtype(np.float64)}


def test_integers_numbers_and_constant_tensors_are_passed_on():
    labels = np.array([0, 2, 1])

    def loss(x, labels, scale, nothing, constant):
        assert labels.dtype == np.int64 and scale == 0.5 and nothing is None
        return F.softmax_cross_entropy(x * constant, labels) * scale

    constant = Tensor(np.full((3, 4), 2.0))
    report = gradcheck(loss, [point(3, 4), labels, 0.5, None, constant])
    assert report and report.where == "input 0"


def test_a_tensor_that_requires_a_gradient_is_checked_and_left_alone():
    x = Tensor(point(3), requires_grad=True)
    assert gradcheck(F.exp, [x])
    assert x.grad is None


def test_arithmetic_alone_is_checked():
    """Operators of arrays would give arrays: the function must see Tensors at every point."""
    assert gradcheck(lambda x: x * x, [point(3)]).worst_error > 0
    with pytest.raises(GradientError):
        gradcheck(lambda x: x * x.detach(), [point(3)])


def test_several_outputs_of_which_one_is_no_tensor():
    assert gradcheck(lambda x: (F.exp(x), "text", [1.0], x * 2.0), [point(3)])


def test_nothing_to_differentiate_passes():
    assert gradcheck(F.relu, [np.zeros((0, 3))])
    assert gradcheck(lambda a, b: F.add(a, b), [np.zeros((0, 3)), point(3)])


def test_the_report_tells_the_worst_error_and_where():
    report = gradcheck(lambda a, b: a * F.exp(b), [point(3), point(3, seed=1)], directions=3)
    assert len(report.errors) == 9, "three directions for each input and three for both together"
    assert report.worst_error == max(report.errors) < 1e-8
    assert report.where in ("input 0", "input 1", "all inputs")


def test_the_same_seed_gives_the_same_report():
    reports = [gradcheck(F.softmax, [point(2, 3)], seed=seed) for seed in (7, 7, 8)]
    assert reports[0].errors == reports[1].errors != reports[2].errors


def test_raise_error_false_returns_what_it_found():
    report = gradcheck(bent(lambda g: -g), [point(3)], raise_error=False)
    assert not report and report.worst_error > 0.5 and report.mismatch.input == 0
    assert str(report.mismatch).startswith("input 0: 3 of 3 elements wrong; worst at (")


def test_a_looser_tolerance_lets_small_errors_pass():
    slightly = bent(lambda g: (1 + 1e-5) * g)
    with pytest.raises(GradientError, match=r"no one element far off; worst at .* \(ratio 1\.00001\)"):
        gradcheck(slightly, [point(3)])
    assert gradcheck(slightly, [point(3)], tolerance=1e-4)


@pytest.mark.parametrize("cls", [autograd.Sum, autograd.Multiply, autograd.Add], ids=lambda cls: cls.__name__)
def test_the_checker_does_not_lean_on_what_it_checks(cls, monkeypatch):
    right = cls.backward

    def negated(self, gy):
        gradients = right(self, gy)
        several = isinstance(gradients, tuple)
        return tuple(g if g is None else -g for g in gradients) if several else -gradients

    monkeypatch.setattr(cls, "backward", negated)
    inputs = [np.arange(6.0).reshape(2, 3) + 0.5] * (1 if cls is autograd.Sum else 2)
    report = gradcheck(cls.apply, inputs, raise_error=False)
    assert (
        not report and report.mismatch and report.mismatch.analytic == pytest.approx(-report.mismatch.numeric)
    )


def test_outputs_that_share_a_graph_are_checked_together():
    assert gradcheck(lambda x: (x * x, (x * x * x).sum(), x), [np.arange(1.0, 4.0)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(value):
    class Damaged(Function):
        def forward(self, x):
            return x * 2

        def backward(self, gy):
            gradient = gy * 2
            gradient[1] = value
            return gradient

    with pytest.raises(GradientError, match=rf"derived gradient of input 0 is {value} at \(1,\)"):
        gradcheck(Damaged.apply, [np.ones(3)])
    with pytest.raises(GradientError, match=rf"input 0 is {value} at \(0,\)"):
        gradcheck(lambda x: x * 2.0, [np.array([value, 1.0])])


@pytest.mark.parametrize("inputs", [[np.ones(3, int)], [[1.0, 2.0]], [1.0]])
def test_a_check_of_nothing_is_no_success(inputs):
    with pytest.raises(ValueError, match="no input is a floating-point array"):
        gradcheck(lambda x: x * 2.0 if isinstance(x, Tensor) else Tensor(np.ones(2)), inputs)
    with pytest.raises(ValueError, match="gives no Tensor of floating-point numbers"):
        gradcheck(lambda x: x.numpy() * 2, [np.ones(2)])


# ------------------------------------------------------------------------------------- the relative error


def test_the_relative_error_lies_between_0_and_1_and_says_when_nothing_can_be_said():
    numeric = np.array([2.0, 0.0, 0.0, 3.0, -1.0, 1.01, np.nan, np.inf, np.inf])
    analytic = np.array([2.0, 0.0, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0, np.inf])
    error = relative_error(numeric, analytic)
    np.testing.assert_allclose(error, [0, 0, 1, 1, 1, 0.01 / 2.01, *[np.inf] * 3], rtol=1e-14)
    assert np.array_equal(error, relative_error(analytic, numeric))
    assert relative_error(2.0, 2.0) == 0.0 and relative_error(0.0, 1e-300) == 1.0


def test_gradcheck_and_step_errors_mean_the_same_by_it():
    wrong = bent(lambda g: 1.5 * g)  # 1.5 for 1: an error of 0.5 / 2.5, in every direction
    report = gradcheck(wrong, [point(3)], raise_error=False)
    errors = step_errors(wrong, [point(3)], kinds=("central",), steps=np.array([1e-5, 1e-4]))
    assert report.worst_error == pytest.approx(0.2, abs=1e-9)
    np.testing.assert_allclose(errors.errors["central"], 0.2, rtol=0, atol=1e-7)
