"""Bugs planted in every Function's backward pass: the gradient check of its cases must notice each of them.

A mutant is a Function with one piece of its source replaced, compiled in memory; or, where the gradient is
computed in a helper or a kernel, that one is replaced while the check runs.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from unittest import mock

import pytest

from minimask import backend
from minimask.functions import activation, array, conv, keypoint, loss, norm, pool, roi
from minimask.functions import explicit_keypoint_head as keypoint_head
from minimask.functions import explicit_mask_head as mask_head
from minimask.functions import explicit_rpn_head as rpn_head
from minimask.functions.conv_norm import ConvFrozenNorm
from minimask.kernels import convolution, elementwise, pooling, resample, roi_align, roi_pool
from minimask.lessons.gradient_cases import CASES, all_functions, check_function

# Function: (what is wrong, this piece of its source, what it is replaced by[, the helper it is a piece of])
MUTANTS = {
    array.Add: [
        ("a mean over broadcast axes", "g.sum(", "g.mean(", elementwise.unbroadcast),
    ],
    array.Subtract: [
        ("the sign", "unbroadcast(-gy", "unbroadcast(gy"),
    ],
    array.Multiply: [
        ("the other's gradient", "gy * b, *self", "gy * b * b, *self"),
        ("a missing factor", "gy * a", "gy + 0 * a"),
    ],
    array.Divide: [
        ("the sign", "-gy * a", "gy * a"),
        ("a missing factor", "(b * b)", "b"),
    ],
    array.Power: [
        ("a missing factor", "self.exponent * x", "x"),
        ("the exponent not lowered", "(self.exponent - 1)", "self.exponent"),
    ],
    array.Exp: [
        ("a missing factor", "gy * y", "gy + 0 * y"),
    ],
    array.Log: [
        ("times instead of over", "gy / x", "gy * x"),
    ],
    array.Sqrt: [
        ("a factor 2", "(2 * y)", "y"),
    ],
    array.MatMul: [
        ("the sign", "a.swapaxes(-1, -2) @ gy", "a.swapaxes(-1, -2) @ -gy"),
        ("a factor 2", "gy @ b", "2 * gy @ b"),
    ],
    array.Sum: [
        ("a factor 1/2", "broadcast_to(gy,", "broadcast_to(gy / 2,"),
    ],
    array.Mean: [
        ("a missing factor", "gy / count", "gy"),
        ("the count of all axes", "self.save(x.shape, count)", "self.save(x.shape, max(x.size, 1))"),
    ],
    array.Reshape: [
        ("columns first", "gy.reshape(self.saved[0])", "gy.reshape(self.saved[0], order='F')"),
    ],
    array.Transpose: [
        ("reshaped, not transposed", "gy.transpose()", "gy.reshape(gy.shape[::-1])"),
        ("not the inverse permutation", "back[axis] = i", "back[i] = axis"),
    ],
    array.Concatenate: [
        ("always the first part", "begin += length", "begin += 0"),
    ],
    array.GetItem: [
        ("overwritten instead of added", "self.xp.add.at(gx, self.index, gy)", "gx[self.index] = gy"),
        ("repeated indices added once", "self.xp.add.at(gx, self.index, gy)", "gx[self.index] += gy"),
    ],
    activation.ReLU: [
        ("let through everywhere", "relu_gradient(gy, y)", "relu_gradient(gy, y + 1)"),
        ("the mask of the gradient", "relu_gradient(gy, y)", "relu_gradient(gy, gy)"),
        ("the sign of the mask", "y_flat[part] > 0", "y_flat[part] <= 0", elementwise.relu_gradient),
    ],
    activation.Sigmoid: [
        ("a missing factor", " * (1 - y)", ""),
        ("the sign", "(1 - y)", "(1 + y)"),
    ],
    activation.Softmax: [
        ("a diagonal Jacobian", "(gy * y).sum(axis=self.axis, keepdims=True)", "gy * y"),
        ("the wrong axis", "(gy * y).sum(axis=self.axis", "(gy * y).sum(axis=0"),
        ("a missing factor", "return y * (gy", "return (gy"),
    ],
    conv.Conv2d: [
        ("the kernel upside down", "gradient(gy, w,", "gradient(gy, w[:, :, ::-1, ::-1],"),
        ("the sign", "weight_gradient(gy, x,", "weight_gradient(-gy, x,"),
        ("a mean", "bias_gradient(gy)", "bias_gradient(gy) / max(gy[:, 0].size, 1)"),
        ("not turned", "[:, :, :, ::-1, ::-1]", "[:, :, :, :, :]", convolution.input_gradient),
        (
            "overwritten instead of added",
            "channels, *pixels] +=",
            "channels, *pixels] =",
            convolution._input_gradient_by_patches,
        ),
        ("the last image alone", "total += gw", "total[...] = gw", convolution.weight_gradient),
        ("the last image alone", "reshape(n, o).sum(axis=0)", "reshape(n, o)[-1]", convolution.bias_gradient),
    ],
    conv.ConvTranspose2d: [
        ("the kernel upside down", "forward(gy, w,", "forward(gy, w[:, :, ::-1, ::-1],"),
        ("a mean over the images", "weight_gradient(x, gy,", "weight_gradient(x / max(len(x), 1), gy,"),
        ("a factor 2", "bias_gradient(gy)", "bias_gradient(2 * gy)"),
    ],
    conv.Linear: [
        ("the sign", "gx = product(gy, w)", "gx = -gy @ w"),
        ("a row off by one", "product(gy.T, x)", "product(gy[::-1].T, x)"),
        ("a mean", "gy.sum(axis=0)", "gy.sum(axis=0) / max(len(gy), 1)"),
    ],
    ConvFrozenNorm: [
        ("the scale left out of gw", "gw *= s[:, None, None, None]", "gw *= 1"),
        ("the scale left out of gx", "gradient(gz, w * s[:, None, None, None],", "gradient(gz, w,"),
        ("the residual before the ReLU", "gz if self.needs[4]", "gy if self.needs[4]"),
    ],
    norm.BatchNorm: [
        ("the mean a constant", "slope * gy - a - x_hat * b", "slope * gy - x_hat * b"),
        ("the variance a constant", "slope * gy - a - x_hat * b", "slope * gy - a"),
        ("the sign of the mean's gradient", "- g_mean)", "+ g_mean)"),
        ("a factor 2 of the variance's", "- 2 * g_var", "- g_var"),
    ],
    norm.FrozenBatchNorm: [
        ("a missing factor", "gx = gy * scale[:, None, None]", "gx = +gy"),
        ("not centred", "(x - mean[:, None, None])", "x"),
        ("the last image alone", "g_bias = gy.sum(axis=(0, 2, 3))", "g_bias = gy[-1:].sum(axis=(0, 2, 3))"),
    ],
    norm.GroupNorm: [
        ("the mean a constant", "x_hat -= r * a", "pass"),
        ("the variance a constant", "x_hat *= -r * b", "x_hat *= 0"),
        ("the weight left out", "w * r, out=gxs", "w * 0 + r, out=gxs"),
        ("the ReLU left out", "gys[part] * (ys[part] > 0)", "gys[part]"),
        ("the last image alone", ".sum(axis=0) for v in (g_w", "[-1:].sum(axis=0) for v in (g_w"),
    ],
    pool.MaxPool2d: [
        ("always the first pixel", "index, self.geometry)", "0 * index, self.geometry)"),
        (
            "overwritten instead of added",
            "csr_array(matrix, shape=(count, height * width)).toarray(out=gx[planes].reshape(count, -1))",
            "gx[planes] = 0; flat = gx[planes].reshape(count, -1)"
            "; np.put_along_axis(flat, pixel.reshape(count, -1), gy[planes].reshape(count, -1), 1)",
            pooling._add_up_by_plane,
        ),
        (
            "rows and columns exchanged",
            "corner + k + (k // g.w_shape[3]) * np.int32(width - g.w_shape[3])",
            "corner + (k % g.w_shape[3]) * np.int32(width) + k // g.w_shape[3]"
            "; pixel = np.clip(pixel, 0, height * width - 1)",
            pooling._add_up_by_plane,
        ),
    ],
    pool.UpsampleNearest: [
        ("one of two columns", "rows[..., 1::2]", "0 * rows[..., 1::2]", resample._doubled_gradient),
        (
            "a mean of the copies",
            "rows @ gy",
            "rows @ gy / rows.sum(1, keepdims=True)",
            resample.nearest_gradient,
        ),
    ],
    pool.UpsampleBilinear: [
        ("a factor 1/2", "bilinear_gradient(gy", "bilinear_gradient(gy / 2"),
        (
            "the matrix the other way",
            "_both(_sparse_matrix(h, p, gy.dtype).T,",
            "_both(_sparse_matrix(h, p, gy.dtype)[::-1].T,",
            resample.bilinear_gradient,
        ),
    ],
    roi.RoIAlign: [
        ("the sign", "backward(gy, argmax", "backward(-gy, argmax"),
        ("bins upside down", "backward(gy, argmax", "backward(gy[:, :, ::-1], argmax"),
        (
            "the maximum spread evenly",
            "np.put_along_axis(spread, argmax[:, :, None], g[:, :, None], axis=2)",
            "spread += g[:, :, None] / spread.shape[2]",
            roi_align.backward,
        ),
        (
            "always the first point",
            "argmax[:, :, None]",
            "0 * argmax[:, :, None]",
            roi_align.backward,
        ),
        ("only the first image", "transpose(sums[", "transpose((first == 0) * sums[", roi_align.backward),
    ],
    roi.RoIWarp: [
        (
            "the gradient of the box as it was",
            "return super().forward(warp.quantised(rois, levels, **self.rounding), *xs)",
            "y = super().forward(warp.quantised(rois, levels, **self.rounding), *xs)"
            "; super().forward(rois, *xs); return y",
        ),
    ],
    roi.RoIPool: [
        ("the first pixel gets all", "gradient(gy, argmax", "gradient(gy, 0 * argmax", roi_pool.backward),
        ("no image index", "gradient(gy, argmax, rois", "gradient(gy, argmax, 0 * rois", roi_pool.backward),
        (
            "overwritten instead of added",
            "coo_array((g[filled], places), shape=planes.shape).toarray(out=planes)",
            "planes[places] = g[filled]",
            roi_pool._pool_gradient,
        ),
    ],
    rpn_head.RPNHead: [
        ("the last level alone", "[t + g for t, g in zip(totals, level)]", "level"),
        ("the ReLU left out", "elementwise.relu_gradient(gh, h, in_place=True)", "gh"),
        ("each level reads the first one's gradient", "begin = end", "begin = 0 * end"),
        (
            "anchors and values exchanged",
            "h, w, a, values)",
            "h, w, values, a).swapaxes(3, 4)",
            rpn_head._channel_major,
        ),
    ],
    mask_head.MaskHead: [
        (
            "the deconvolution's ReLU left out",
            "relu_gradient(gt, t, in_place=True)",
            "relu_gradient(gt, t * 0 + 1)",
        ),
        ("the output of the layer for its input", "gradients(gh, hs[i], ", "gradients(gh, hs[i + 1], "),
        ("the first layer's weights", "hs[i], convs[i][0]", "hs[i], convs[0][0]"),
        ("a ReLU of the wrong layer", "y=hs[i + 1]", "y=hs[-1]"),
    ],
    keypoint_head.KeypointHead: [
        ("the size before doubling taken for the one after", "gy.shape[2] // 2,", "gy.shape[2],"),
        ("the bias of one RoI alone", "bias_gradient(gt)", "bias_gradient(gt[:1])"),
        ("the deconvolution upside down", "forward(gt, deconv,", "forward(gt, deconv[:, :, ::-1, ::-1],"),
        ("a layer upside down", "gradient(gz, convs[i][0],", "gradient(gz, convs[i][0][:, :, ::-1],"),
        ("a ReLU of the wrong layer", "relu_gradient(gh, hs[i + 1]", "relu_gradient(gh, hs[-1]"),
    ],
    keypoint.KeypointLoss: [
        ("1 not subtracted at the cell", "gx[rows, cells] -= weights", "gx[rows, cells] -= 0"),
        ("a cell off by one", "gx[rows, cells] -= weights", "gx[rows, cells - 1] -= weights"),
        ("a missing factor", "weights = gy * weights", "weights = 1 * weights"),
    ],
    loss.SoftmaxCrossEntropy: [
        ("not divided by the rows", "gy * scale * slope", "gy * slope", loss._SummedLoss),
        (
            "1 not subtracted at the label",
            "p[rows, labels] -= 1",
            "p[rows, labels] -= 0",
            loss._softmax_cross_entropy,
        ),
        (
            "a label off by one",
            "p[rows, labels] -= 1",
            "p[rows, labels - 1] -= 1",
            loss._softmax_cross_entropy,
        ),
    ],
    loss.SigmoidCrossEntropy: [
        ("the sign", "gy * scale * slope", "-gy * scale * slope", loss._SummedLoss),
        (
            "s' left in",
            "sigmoid_array(x, xp) - t",
            "(sigmoid_array(x, xp) - t) * sigmoid_array(x, xp) * sigmoid_array(-x, xp)",
            loss._sigmoid_cross_entropy,
        ),
    ],
    loss.SmoothL1: [
        ("the target's sign", "gt = -gx", "gt = gx"),
        ("not divided by beta", "xp.where(inner, d / beta,", "xp.where(inner, d,", loss._smooth_l1),
        ("no corner", "xp.where(inner, d / beta, xp.sign(d))", "d / beta", loss._smooth_l1),
    ],
    loss.RPNLoss: [
        (
            "overwritten by the negatives",
            "[sampled] = g_cls * scale * slope_logits",
            "[sampled[-1:]] = (g_cls * scale * slope_logits)[-1:]",
        ),
        ("positives in rising order", "[self.positive] = g_box", "[self.xp.sort(self.positive)] = g_box"),
        ("the other loss's gradient", "g_box * scale * slope_deltas", "g_cls * scale * slope_deltas"),
    ],
    loss.BoxHeadLoss: [
        ("the box of the class before", "[rows, classes] = g_box", "[rows, classes - 1] = g_box"),
        ("divided by the positives", "g_box * scale", "g_box / max(len(rows), 1)"),
        ("a missing factor", "g_cls * scale * slope_logits", "scale * slope_logits"),
    ],
    loss.MaskLoss: [
        (
            "every class's mask",
            "g[rows, classes] = gy * scale * slope",
            "g[...] = (gy * scale * slope)[:, None]",
        ),
        ("the background's mask", "g[rows, classes] =", "g[rows, 0 * classes] ="),
        ("averaged over the RoIs alone", "gy * scale * slope", "gy * slope / max(len(rows), 1)"),
    ],
    loss.SoftmaxMaskLoss: [
        ("background takes no part", "p[:, 0] -= 1 - targets", "pass"),
        ("background everywhere", "p[:, 0] -= 1 - targets", "p[:, 0] -= 1"),
        ("the class on the whole RoI", "p[rows, labels] -= targets", "p[rows, labels] -= 1"),
        ("not normalised", "p /= total[:, None]", "p /= total.max()"),
        ("a missing factor", "gy * scale * slope", "scale * slope"),
    ],
}


def _compiled(thing, old: str = "", new: str = ""):
    """A class or function from its source, with `old` replaced; in its module's namespace."""
    source = inspect.getsource(thing)
    assert not old or source.count(old) == 1, f"{thing.__name__} has {source.count(old)} of {old!r}, not one"
    # Another __name__: the walk over the package's Functions shall not find the mutants.
    namespace = vars(inspect.getmodule(thing)) | {"__name__": "mutants"}
    exec(compile(source.replace(old, new) if old else source, f"<{thing.__name__}>", "exec"), namespace)
    return namespace[thing.__name__]


def _holders(thing) -> list:
    """The modules of the package that hold a class or function: its own, and those that import it."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "minimask"]
    return [module for module in modules if vars(module).get(thing.__name__) is thing]


def is_caught(cls, old: str, new: str, where=None) -> bool:
    """Whether a case of the Function notices the bug: as a wrong gradient, and not as a kink."""
    changed = _compiled(where or cls, old, new)
    # two threads, so that one of them has several images
    patches = [mock.patch.multiple(backend.workers, threads=lambda: 2, FEW=0)]
    if inspect.isclass(where):  # a base class, which its subclasses hold: no name in a module leads to it
        patches += [mock.patch.object(where, "backward", changed.backward)]
    else:
        patches += [mock.patch.object(m, changed.__name__, changed) for m in _holders(where or cls)]
    with contextlib.ExitStack() as planted:
        for patch in patches:
            planted.enter_context(patch)
        try:
            return any(check_function(cls if where else changed, case).mismatch for case in CASES[cls])
        except RuntimeError as error:
            if "gave a gradient of" not in str(error):
                raise
            return True  # of another shape than the input: the engine refuses it


@pytest.mark.slow
def test_the_gradient_check_notices_every_planted_bug():
    survivors = [
        f"{cls.__name__}: {bug}"
        for cls, mutants in MUTANTS.items()
        for bug, *mutant in mutants
        if not is_caught(cls, *mutant)
    ]
    assert sum(map(len, MUTANTS.values())) >= 40
    assert not survivors, f"{len(survivors)} survive: " + "; ".join(survivors)


def test_every_function_has_a_mutant():
    without = set(all_functions()) - set(MUTANTS)
    assert not without, ", ".join(cls.__name__ for cls in without)


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_compiled_without_a_bug_the_check_passes(cls):
    assert check_function(_compiled(cls), CASES[cls][0])  # so what a mutant fails by is its bug
