"""The kernels that keep a training step's launches few: the CPU's numbers, no race, and planted bugs found.

They run on the stand-in for CuPy, their threads in a random order; tests/test_gpu_functions.py has every
gradient case beside these.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from minimask import backend
from minimask.autograd import Tensor
from minimask.boxes import BoxCoder, clip_boxes_to_image
from minimask.functions import explicit_rpn_head, loss
from minimask.kernels import convolution, convolution_gpu, rpn_levels
from minimask.kernels.geometry import Geometry
from minimask.lessons import cuda_on_cpu
from minimask.lessons.gradient_cases import CASES
from minimask.matching import Matcher, assign_fpn_levels, match_images
from minimask.training.optim import clip_gradients
from tests.fake_cupy import installed
from tests.test_functions import some_inputs

pytestmark = pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ to run CUDA kernels with")


def boxes(rng, count, size=60.0):
    low = rng.uniform(0, size, (count, 2))
    return np.concatenate((low, low + rng.uniform(4, size / 2, (count, 2))), axis=1)


def matched(put):
    rng = np.random.default_rng(0)
    candidates = [boxes(rng, 300), boxes(rng, 50)]
    targets = [SimpleNamespace(boxes=boxes(rng, n), crowd_boxes=boxes(rng, c)) for n, c in ((9, 2), (4, 0))]
    targets[0].boxes[1] = targets[0].boxes[0]  # of equal ones the first is matched
    targets[0].boxes[2] = 900, 900, 910, 910  # nothing touches it
    there = [SimpleNamespace(**{k: put(v) for k, v in vars(t).items()}) for t in targets]
    return match_images(Matcher(0.5, 0.3, True), [put(c) for c in candidates], there, 0.5)


def coded(put):
    rng, coder = np.random.default_rng(0), BoxCoder((10.0, 8.0, 5.0, 4.0), 0.3)
    a, b, deltas = boxes(rng, 300), boxes(rng, 300), rng.normal(0, 2, (300, 8))
    places = boxes(rng, 300, 1500.0)
    places[0] = 3, 3, 3, 9  # no area
    yield coder.encode(put(a), put(b))
    yield coder.decode(put(deltas), put(b))
    yield clip_boxes_to_image(put(a - 20), (30, 25))
    yield assign_fpn_levels(put(places))


def losses(put):
    rng = np.random.default_rng(0)
    x, t = 4 * rng.normal(size=(2, 3000))
    for pieces in (
        loss._sigmoid_cross_entropy(put(x), put(1 / (1 + np.exp(-t))), backend.array_module(put(x))),
        loss._smooth_l1(put(x), put(t), 1.5, backend.array_module(put(x))),
        loss._softmax_cross_entropy(put(x.reshape(600, 5)), np.arange(600) % 5, backend.array_module(put(x))),
    ):
        yield from pieces


def rpn(put):
    """Both passes of the RPN's head on three levels of two images."""
    inputs = [Tensor(put(x), True) for x in some_inputs(CASES[explicit_rpn_head.RPNHead][0])]
    function = explicit_rpn_head._RPNHeadAtOnce()
    outputs = function(*inputs)
    rng = np.random.default_rng(1)
    yield from (y.data for y in outputs)
    yield from function.backward(*(put(rng.normal(size=y.shape)) for y in outputs))


def convolved(put):
    """A convolution's gradients behind a ReLU, at once and in blocks of rows."""
    g, rng = Geometry.of((3, 4, 7, 5), (6, 4, 3, 3), 2, 1, 1, 1), np.random.default_rng(0)
    y, gy, x, w = (rng.normal(size=s) for s in (g.y_shape, g.y_shape, g.x_shape, g.w_shape))
    for workspace in (convolution_gpu.WORKSPACE, 3000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution_gpu, "WORKSPACE", workspace)
            yield from convolution.gradients(put(gy.copy()), put(x), put(w), g, y=put(y))


def clipped(put):
    gradients = [np.linspace(-1, 2, n) for n in (700, 1, 40)]
    parameters = [SimpleNamespace(grad=put(g), requires_grad=True) for g in gradients]
    yield np.array(clip_gradients(parameters, 0.5))
    yield from (p.grad for p in parameters)


CHECKS = [matched, coded, losses, rpn, convolved, clipped]


def error(check, **options) -> float:
    """The largest relative difference between the kernels' numbers and the CPU's; NaN if there is one."""
    want = list(check(lambda x: x))
    with installed(**options) as cupy:
        got = [backend.to_cpu(a) for a in check(cupy.asarray)]
    assert [a.shape for a in got] == [a.shape for a in want]
    sizes = [max(1.0, np.abs(a).max(initial=0)) for a in want]
    return np.max([np.abs(a - b).max(initial=0) / size for a, b, size in zip(got, want, sizes)])


@pytest.mark.parametrize("check", CHECKS)
def test_the_numbers_are_the_cpus_without_a_race(check):
    assert error(check, watch=True) < 1e-13


def test_levels_that_do_not_fit_the_workspace_go_one_by_one(monkeypatch):
    monkeypatch.setattr(convolution_gpu, "WORKSPACE", 1)
    with installed() as cupy:
        assert not rpn_levels.has_room([cupy.zeros((1, 2, 3, 3))], np.zeros((2, 2, 3, 3)))
    assert error(rpn) < 1e-13


PLANTED = {  # check, source, old, new
    "the last of equal objects": (matched, "matching", "|| value > best)", "|| value >= best)"),
    "an object that nothing touches": (matched, "matching", "most > 0 || unt", "most >= 0 || unt"),
    "another image's objects": (matched, "matching", "best_of[image.first_object + g];", "best_of[g];"),
    "crowds forgotten": (matched, "matching", "c < image.C", "c < 0"),
    "the other box's height": (coded, "coding", "(box.y - other.y) / other.h", "(box.y - other.y) / box.h"),
    "sizes not limited": (coded, "coding", "exp(dw > limit ? limit : dw)", "exp(dw)"),
    "width and height exchanged": (coded, "coding", "k % 2 ? height : width", "k % 2 ? width : height"),
    "a level too low": (coded, "coding", "min(max(floor(k0 + ", "min(max(floor(k0 - 1 + "),
    "the target left out": (losses, "loss", "(1 + e) - t[k]", "(1 + e)"),
    "linear where it is quadratic": (losses, "loss", "a < beta ? d / beta : sign", "sign"),
    "1 not subtracted at the label": (losses, "loss", "exponentials - T(k == label)", "exponentials"),
    "a patch of the next line": (rpn, "rpn_levels", "0 <= v && v < width;", "true;"),
    "a level's images mixed": (rpn, "rpn_levels", "begin[l] / images + s", "begin[l] / (images + 1) + s"),
    "gradients of one level alone": (rpn, "rpn_levels", "j + down * width + right];", "j];"),
    "the second product forgotten": (rpn, "rpn_levels", "(g[k] + other[k])", "(g[k] + 0 * other[k])"),
    "a ReLU's zero let through": (convolved, "elementwise", "gy[place] * T(y[place] > 0)", "gy[place]"),
    "an image's place without its rows": (convolved, "elementwise", "+ begin + k %", "+ 0 * begin + k %"),
    "sums of the last block alone": (convolved, "elementwise", "(add ? g_bias", "(add && false ? g_bias"),
    "one gradient not clipped": (clipped, "sgd", "g[i] *= factor", "if (k) g[i] *= factor"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name, monkeypatch):
    check, source, old, new = PLANTED[name]
    real = backend.cuda._source

    def changed(asked: str):
        text, kernels = real(asked)
        assert asked != source or text.count(old) == 1, f"{source}.cu has {text.count(old)} of: {old}"
        return (text.replace(old, new) if asked == source else text), kernels

    monkeypatch.setattr(backend.cuda, "_source", changed)
    assert not error(check) < 1e-3  # a NaN is an error, too
