"""The loss of keypoints (section 5): one of the m x m positions is right, so they compete in a softmax.

Shapes: R RoIs, K keypoints each, M x M heat map cells.
"""

from __future__ import annotations

import numpy as np

from minimask.autograd import Function, Tensor
from minimask.functions.loss import require_shape, softmax_cross_entropy


class KeypointLoss(Function):
    """y = sum over valid keypoints of -log softmax(x)[cell] / normalizer, by default their number."""

    def __init__(self, normalizer: float | None = None):
        self.normalizer = normalizer

    def forward(self, x, cells, valid):  # (R, K, M, M), (R, K) int, (R, K) bool -> ()
        xp, rows = self.xp, np.arange(cells.size)
        for target in (cells, valid):
            require_shape("keypoint_loss", target.shape, x.shape[:2])
        maps = x.reshape(cells.size, x.shape[2] * x.shape[3])  # (R K, M^2)
        cells = xp.asarray(cells).reshape(-1)
        counted = xp.asarray(valid).reshape(-1).astype(x.dtype)
        # Weights, not a selection of rows: how many are valid stays on the device. If none are: 0, not 0 / 0.
        weights = counted / (self.normalizer or xp.maximum(counted.sum(), 1))
        shifted = maps - maps.max(axis=1, keepdims=True)
        # log p = x - max - log sum exp(x - max): p itself may have rounded to 0
        log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
        self.save(xp.exp(log_p), rows, cells, weights, x.shape)
        return -(weights * log_p[rows, cells]).sum()

    def backward(self, gy):  # () -> (R, K, M, M)
        p, rows, cells, weights, shape = self.saved
        # d(-log p_cell) / d logit_k = p_k - [k is the cell]
        weights = gy * weights
        gx = weights[:, None] * p
        gx[rows, cells] -= weights
        return gx.reshape(shape), None, None


def keypoint_loss(logits, cells, valid, normalizer: float | None = None) -> Tensor:
    """Cross-entropy of one softmax over the M^2 cells of each valid keypoint.

    Parameters
    ----------
    logits : (R, K, M, M) float
    cells : (R, K) int in [0, M^2)
        The right cell of each keypoint, counted row by row; any cell for one that is not valid, as its weight
        is 0.
    valid : (R, K) bool
        Whether a keypoint is labelled and lies in its RoI.
    normalizer : float, > 0, optional
        Divides the sum; the number of valid keypoints by default.

    Returns
    -------
    () Tensor; 0 where no keypoint is valid.
    """
    return KeypointLoss.apply(logits, cells, valid, normalizer=normalizer and float(normalizer))


def keypoint_loss_reference(logits, cells, valid, normalizer: float | None = None) -> Tensor:
    """`keypoint_loss` from small Functions."""
    rows = np.flatnonzero(valid)
    maps = logits.reshape(cells.size, logits.shape[2] * logits.shape[3])
    return softmax_cross_entropy(maps[rows], cells.reshape(-1)[rows], normalizer)
