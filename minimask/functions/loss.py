"""The losses: L = L_cls + L_box + L_mask (section 3), and the RPN's two.

Shapes: R rows (RoIs or anchors), K classes and background 0, M x M mask cells, N images, A anchors an image.
The loss of an empty batch is 0, and so are its gradients. Labels and indices may stay on the CPU while the
rest is on a GPU: the loss copies them there and never waits.
"""

from __future__ import annotations

import numpy as np

from minimask import backend
from minimask.autograd import Function, Tensor
from minimask.functions.activation import sigmoid_array, softmax_array
from minimask.functions.array import exp, log
from minimask.kernels import loss as kernels

# -------------------------------------------------------- the pieces, as (value, derivative) of arrays


def _softmax_cross_entropy(logits, labels, xp):  # (R, K), (R,) -> sum over rows, (R, K)
    if backend.fit_kernels(logits):
        return kernels.softmax_cross_entropy(logits, labels)
    if not len(logits):
        return xp.zeros((), logits.dtype), xp.zeros_like(logits)
    rows, labels = xp.arange(len(logits)), xp.asarray(labels)
    p = softmax_array(logits, 1, xp)
    shifted = logits - logits.max(axis=1, keepdims=True)
    # -log p_label, from the logits: p itself may have rounded to 0
    loss = xp.log(xp.exp(shifted).sum(axis=1)) - shifted[rows, labels]
    p[rows, labels] -= 1  # d loss / d logit_k = p_k - [k is the label]
    return loss.sum(), p


def _sigmoid_cross_entropy(x, t, xp):  # any shape twice -> sum, same shape
    if backend.fit_kernels(x, t) and x.shape == t.shape:
        return kernels.sigmoid_cross_entropy(x, t)
    # -t log s(x) - (1 - t) log(1 - s(x)) = max(x, 0) - x t + log(1 + exp(-|x|)), which never overflows
    loss = xp.maximum(x, 0) - x * t + xp.log1p(xp.exp(-xp.abs(x)))
    return loss.sum(), sigmoid_array(x, xp) - t


def _smooth_l1(x, t, beta: float, xp):  # any shape twice -> sum, same shape
    if backend.fit_kernels(x, t) and x.shape == t.shape:
        return kernels.smooth_l1(x, t, beta)
    d = x - t
    a = xp.abs(d)
    if beta == 0:
        return a.sum(), xp.sign(d)
    # 0.5 d^2 / beta where |d| < beta, |d| - 0.5 beta beyond: value and slope meet at beta
    inner = a < beta
    loss = xp.where(inner, 0.5 / beta * d * d, a - 0.5 * beta)
    return loss.sum(), xp.where(inner, d / beta, xp.sign(d))


# -------------------------------------------------------------------------------------------- plain losses


def require_shape(name: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raise ValueError if a target has another shape than it is compared with."""
    if given != wanted:  # (R, 1) beside (R,) would broadcast to (R, R)
        raise ValueError(f"{name}: the target must be {wanted}, is {given}")


class _SummedLoss(Function):
    """y = loss(x, target) / normalizer: a sum, divided by its number of terms if no number is given."""

    name: str
    target_axes: int | None = None  # how many of x's axes the target has; None: all

    def __init__(self, normalizer: float | None = None):
        self.normalizer = normalizer and float(normalizer)  # one of NumPy's would make everything float64

    def value_and_slope(self, x, target):
        """The sum as a () array, its derivative with respect to x, and its number of terms."""
        raise NotImplementedError(f"{type(self).__name__} has no value_and_slope")

    def forward(self, x, target):  # -> ()
        given = target.shape if hasattr(target, "shape") else np.shape(target)  # of a list
        require_shape(self.name, given, x.shape[: self.target_axes])
        loss, slope, terms = self.value_and_slope(x, target)
        scale = 1.0 / (self.normalizer or max(terms, 1))
        self.save(slope, scale)
        return loss * scale

    def backward(self, gy):  # () -> as x
        slope, scale = self.saved
        gx = gy * scale * slope
        return gx.astype(self.input_kinds[0][1], copy=False) if self.needs[0] else None, None


class SoftmaxCrossEntropy(_SummedLoss):
    """y = sum_r -log softmax(x_r)[label_r] / normalizer."""

    name, target_axes = "softmax_cross_entropy", 1

    def value_and_slope(self, x, labels):  # (R, K), (R,)
        return *_softmax_cross_entropy(x, labels, self.xp), len(x)


class SigmoidCrossEntropy(_SummedLoss):
    """y = sum of -t log s(x) - (1 - t) log(1 - s(x)) / normalizer, s the sigmoid."""

    name = "sigmoid_cross_entropy"

    def value_and_slope(self, x, target):  # same shape twice
        return *_sigmoid_cross_entropy(x, target, self.xp), x.size


class SmoothL1(_SummedLoss):
    """y = sum of f(x - t) / normalizer, f(d) = d^2 / (2 beta) within beta, |d| - beta / 2 beyond."""

    def __init__(self, beta: float = 1.0, normalizer: float | None = None):
        if beta < 0:
            raise ValueError(f"smooth_l1: beta must not be negative, is {beta}")
        super().__init__(normalizer)
        self.beta, self.name = float(beta), "smooth_l1" if beta else "l1"

    def value_and_slope(self, x, target):  # same shape twice
        return *_smooth_l1(x, target, self.beta, self.xp), x.size

    def backward(self, gy):
        slope, scale = self.saved
        gx = gy * scale * slope
        gt = -gx if self.needs[1] else None  # f(x - t): what x gets, t gets with the other sign
        return tuple(g.astype(k[1], copy=False) if k else None for g, k in zip((gx, gt), self.input_kinds))


# --------------------------------------------------------------------------------------- losses of a stage


class RPNLoss(Function):
    """Objectness and box loss of sampled anchors (Faster R-CNN, equation 1)."""

    def __init__(self, positive, negative, beta: float, normalizer: float):
        self.positive, self.negative = positive, negative  # flat indices into (N A)
        self.beta, self.normalizer = float(beta), normalizer

    def forward(self, logits, deltas, targets):  # (N, A), (N, A, 4), (R+, 4) -> (), ()
        xp, scale = self.xp, 1.0 / self.normalizer
        self.positive, self.negative = xp.asarray(self.positive), xp.asarray(self.negative)
        sampled = xp.concatenate([self.positive, self.negative])
        is_object = (xp.arange(len(sampled)) < len(self.positive)).astype(logits.dtype)
        cls, g_logits = _sigmoid_cross_entropy(logits.reshape(-1)[sampled], is_object, xp)
        targets = xp.asarray(targets, deltas.dtype)
        require_shape("rpn_loss", targets.shape, (len(self.positive), 4))
        box, g_deltas = _smooth_l1(deltas.reshape(-1, 4)[self.positive], targets, self.beta, xp)
        self.save(sampled, g_logits, g_deltas, logits.shape, scale)
        return cls * scale, box * scale

    def backward(self, g_cls, g_box):
        sampled, slope_logits, slope_deltas, shape, scale = self.saved
        g_logits = self.xp.zeros(shape, slope_logits.dtype)
        g_deltas = self.xp.zeros((*shape, 4), slope_deltas.dtype)
        g_logits.reshape(-1)[sampled] = g_cls * scale * slope_logits  # each anchor is sampled at most once
        g_deltas.reshape(-1, 4)[self.positive] = g_box * scale * slope_deltas
        return g_logits, g_deltas, None


class BoxHeadLoss(Function):
    """L_cls + L_box of R RoIs, as two numbers (Fast R-CNN, equations 1 to 3)."""

    def __init__(self, beta: float, class_agnostic: bool = False):
        self.beta, self.class_agnostic = float(beta), class_agnostic

    def forward(self, logits, deltas, labels, targets):  # (R, K+1), (R, 4(K+1)), (R,), (R, 4) -> (), ()
        xp, scale = self.xp, 1.0 / max(len(logits), 1)
        cls, g_logits = _softmax_cross_entropy(logits, labels, xp)
        labels = backend.to_cpu(labels)  # sync, for labels on a GPU: ours were drawn on the CPU
        rows = np.flatnonzero(labels)  # background has no box
        classes = np.zeros_like(rows) if self.class_agnostic else labels[rows]
        rows, classes = xp.asarray(rows), xp.asarray(classes)
        boxes = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)  # (R, K+1, 4)
        targets = xp.asarray(targets, deltas.dtype)
        require_shape("box_head_loss", targets.shape, (len(logits), 4))
        box, g_deltas = _smooth_l1(boxes[rows, classes], targets[rows], self.beta, xp)
        self.save(g_logits, g_deltas, rows, classes, deltas.shape, scale)
        # L_box, too, is divided by the number of all RoIs, so every positive weighs the same in any image.
        return cls * scale, box * scale

    def backward(self, g_cls, g_box):  # -> (R, K+1), (R, 4(K+1))
        slope_logits, slope_deltas, rows, classes, shape, scale = self.saved
        g_deltas = self.xp.zeros(shape, slope_deltas.dtype)
        g_deltas.reshape(shape[0], shape[1] // 4, 4)[rows, classes] = g_box * scale * slope_deltas
        return g_cls * scale * slope_logits, g_deltas, None, None


class MaskLoss(Function):
    """L_mask: the average binary cross-entropy of the one mask, out of K, that belongs to the true class."""

    def __init__(self, class_agnostic: bool = False):
        self.class_agnostic = class_agnostic

    def forward(self, logits, labels, targets):  # (R, K+1, M, M), (R,), (R, M, M) -> ()
        xp, targets = self.xp, self.xp.asarray(targets, logits.dtype)
        require_shape("mask_loss", targets.shape, (len(logits), *logits.shape[2:]))
        scale = 1.0 / max(targets.size, 1)
        rows = xp.arange(len(logits))
        classes = xp.zeros_like(rows) if self.class_agnostic else xp.asarray(labels)
        loss, slope = _sigmoid_cross_entropy(logits[rows, classes], targets, xp)
        self.save(slope, rows, classes, logits.shape, scale)
        return loss * scale

    def backward(self, gy):
        slope, rows, classes, shape, scale = self.saved
        g = self.xp.zeros(shape, slope.dtype)  # the other classes' masks do not compete: exactly 0
        g[rows, classes] = gy * scale * slope
        return g, None, None


class SoftmaxMaskLoss(Function):
    """L_mask where classes compete: a pixel's multinomial cross-entropy, averaged (Table 2b; FCN's loss).

    A pixel with target t is the RoI's class c with probability t and background with 1 - t.
    """

    def forward(self, logits, labels, targets):  # (R, K+1, M, M), (R,), (R, M, M) -> ()
        xp, targets = self.xp, self.xp.asarray(targets, logits.dtype)
        require_shape("softmax_mask_loss", targets.shape, (len(logits), *logits.shape[2:]))
        scale = 1.0 / max(targets.size, 1)
        rows, labels = xp.arange(len(logits)), xp.asarray(labels)
        p = logits - logits.max(axis=1, keepdims=True)  # cancels below, and no exponential overflows
        wanted = targets * p[rows, labels] + (1 - targets) * p[:, 0]  # (R, M, M)
        xp.exp(p, out=p)
        total = p.sum(axis=1)  # (R, M, M), at least 1
        # -t log p_c - (1 - t) log p_0 = log sum_k exp(x_k) - t x_c - (1 - t) x_0
        loss = xp.log(total) - wanted
        p /= total[:, None]
        # so d loss / d x_k = p_k - t [k = c] - (1 - t) [k = 0]: what lifts one class lowers every other one
        p[rows, labels] -= targets
        p[:, 0] -= 1 - targets
        self.save(p, scale)
        return loss.sum() * scale

    def backward(self, gy):  # () -> (R, K+1, M, M)
        slope, scale = self.saved
        return gy * scale * slope, None, None


# -------------------------------------------------------------------------------------- what people call


def softmax_cross_entropy(logits, labels, normalizer: float | None = None) -> Tensor:
    """-log softmax(logits)[label], summed over rows and divided by their number, or by `normalizer`.

    Parameters
    ----------
    logits : (R, K) float
    labels : (R,) int in [0, K)

    Returns
    -------
    () Tensor.

    Raises
    ------
    ValueError
        If there is not one label for each row.
    """
    return SoftmaxCrossEntropy.apply(logits, labels, normalizer=normalizer)


def sigmoid_cross_entropy(logits, targets, normalizer: float | None = None) -> Tensor:
    """Binary cross-entropy with logits, summed over elements and divided by their number, or by `normalizer`.

    Parameters
    ----------
    logits, targets : same shape, float
        Targets in [0, 1].

    Returns
    -------
    () Tensor.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    return SigmoidCrossEntropy.apply(logits, targets, normalizer=normalizer)


def smooth_l1(x, target, beta: float = 1.0, normalizer: float | None = None) -> Tensor:
    """Smooth L1 (Fast R-CNN, equation 3, where beta is 1); with beta 0 it is L1.

    Summed over elements and divided by their number, or by `normalizer`.

    Parameters
    ----------
    x, target : same shape, float
    beta : float, >= 0
        Where the loss turns from quadratic to linear, in x's unit.

    Returns
    -------
    () Tensor.

    Raises
    ------
    ValueError
        If the shapes differ, or beta is negative.
    """
    return SmoothL1.apply(x, target, beta=beta, normalizer=normalizer)


def l1(x, target, normalizer: float | None = None) -> Tensor:
    """Mean absolute difference, or the sum divided by `normalizer`."""
    return SmoothL1.apply(x, target, beta=0.0, normalizer=normalizer)


def rpn_loss(
    logits, deltas, positive, negative, targets, beta: float = 1 / 9, normalizer: float | None = None
):
    """The RPN's two losses over sampled anchors.

    Parameters
    ----------
    logits : (N, A) float
        Objectness.
    deltas : (N, A, 4) float
        Encoded boxes.
    positive, negative : (R+,), (R-,) int
        Flat indices into (N A), without repetition.
    targets : (R+, 4) float
        Encoded boxes of the positives' objects.
    beta : float
        Of smooth L1.
    normalizer : float, optional
        Divides both; the number of sampled anchors by default.

    Returns
    -------
    objectness, box : () Tensors.
    """
    normalizer = float(normalizer or max(len(positive) + len(negative), 1))
    options = dict(positive=positive, negative=negative, beta=beta, normalizer=normalizer)
    return RPNLoss.apply(logits, deltas, targets, **options)


def rpn_loss_reference(logits, deltas, positive, negative, targets, beta: float = 1 / 9):
    """`rpn_loss` from small Functions."""
    sampled = np.concatenate([positive, negative])
    is_object = (np.arange(len(sampled)) < len(positive)).astype(logits.dtype)
    count = max(len(sampled), 1)
    objectness = sigmoid_cross_entropy(logits.reshape(-1)[sampled], is_object, count)
    return objectness, smooth_l1(deltas.reshape(-1, 4)[positive], targets, beta, count)


def box_head_loss(logits, deltas, labels, targets, beta: float = 1 / 9, class_agnostic: bool = False):
    """L_cls and L_box of the second stage.

    Parameters
    ----------
    logits : (R, K + 1) float
    deltas : (R, 4 (K + 1)) float; (R, 4) when class_agnostic
    labels : (R,) int
        0 is background, which has no box loss.
    targets : (R, 4) float
        Encoded boxes; rows of background are not read.

    Returns
    -------
    classification, box : () Tensors, both divided by R.
    """
    return BoxHeadLoss.apply(logits, deltas, labels, targets, beta=beta, class_agnostic=class_agnostic)


def box_head_loss_reference(logits, deltas, labels, targets, beta: float = 1 / 9):
    """`box_head_loss` from small Functions."""
    rows = np.flatnonzero(labels)
    boxes = deltas.reshape(len(labels), deltas.shape[1] // 4, 4)[rows, labels[rows]]  # (R+, 4)
    count = max(len(labels), 1)
    return softmax_cross_entropy(logits, labels, count), smooth_l1(boxes, targets[rows], beta, count)


def mask_loss(logits, labels, targets, class_agnostic: bool = False) -> Tensor:
    """L_mask (section 3): per-pixel sigmoid, average binary cross-entropy, only on the true class's mask.

    Parameters
    ----------
    logits : (R, K + 1, M, M) float; (R, 1, M, M) when class_agnostic
    labels : (R,) int in [1, K]
    targets : (R, M, M) float in [0, 1]

    Returns
    -------
    () Tensor.
    """
    return MaskLoss.apply(logits, labels, targets, class_agnostic=class_agnostic)


def mask_loss_reference(logits, labels, targets) -> Tensor:
    """`mask_loss` from small Functions."""
    return sigmoid_cross_entropy(logits[np.arange(len(labels)), labels], targets)


def softmax_mask_loss(logits, labels, targets) -> Tensor:
    """L_mask with a softmax over classes at each pixel, as in FCN: what Table 2b compares sigmoids with.

    Parameters
    ----------
    logits : (R, K + 1, M, M) float
        Channel 0 is background and takes part, unlike in `mask_loss`.
    labels : (R,) int in [1, K]
        The channel that should win where a RoI's object is.
    targets : (R, M, M) float in [0, 1]
        1: the pixel is of the RoI's class; 0: it is background, whatever else may be there. Between them, a
        mixture: t log p_class + (1 - t) log p_background.

    Returns
    -------
    () Tensor, the mean over all R M^2 pixels.
    """
    return SoftmaxMaskLoss.apply(logits, labels, targets)


def softmax_mask_loss_reference(logits, labels, targets) -> Tensor:
    """`softmax_mask_loss` from small Functions."""
    x = logits - logits.data.max(axis=1, keepdims=True)  # a constant: softmax does not change with it
    loss = log(exp(x).sum(axis=1)) - targets * x[np.arange(len(labels)), labels] - (1 - targets) * x[:, 0]
    return loss.sum() / max(targets.size, 1)
