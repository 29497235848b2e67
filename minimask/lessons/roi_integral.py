"""What RoIAlign's average approximates: the mean of the interpolated surface over each bin, without points.

Shapes: R boxes, P x P bins, one feature map (H, W). Positions are places, in feature pixels: pixel i is the
interval [i, i + 1) and holds the value at i + 1/2.

Bilinear interpolation of the pixels' values is the surface

    f(x, y) = sum over v, u of x[v, u] hat(y - v - 1/2) hat(x - u - 1/2),    hat(t) = max(0, 1 - |t|),

continued as a constant beyond the outermost centres. Each term is a function of y times one of x, so its
integral over a bin is a product. Along x, a bin [a, b] weighs pixel u by the integral of u's hat over [a, b],
divided by b - a. Precise RoI Pooling (Jiang and others, IoU-Net, 2018) is the same, for a surface that falls
to 0 outside the map.
"""

from __future__ import annotations

import numpy as np


def edges_of_bins(boxes, bins: int) -> np.ndarray:
    """(R, 4) -> (R, 2, P + 1): the bins' edges along x and along y, in the boxes' unit."""
    corner, size = boxes[:, :2, None], (boxes[:, 2:] - boxes[:, :2])[:, :, None]
    return corner + size * np.arange(bins + 1) / bins


def integral_weights(edges, length: int) -> np.ndarray:
    """Weights of the pixels in the mean of the surface over each bin of one axis.

    Parameters
    ----------
    edges : (..., P + 1) float
        Ascending, between -1/2 and length + 1/2.
    length : int
        Pixels along the axis.

    Returns
    -------
    (..., P, length): each row sums to 1.
    """
    # one more centre on each side, whose weight then goes to the border pixel
    t = edges[..., None] - (np.arange(-1, length + 1) + 0.5)  # (..., P + 1, length + 2)
    # the integral of hat from -1 to t: a parabola that opens upwards, then one that opens downwards
    integral = np.where(t < 0, np.clip(1 + t, 0, 1) ** 2 / 2, 1 - np.clip(1 - t, 0, 1) ** 2 / 2)
    weights = np.diff(integral, axis=-2) / np.diff(edges, axis=-1)[..., None]  # (..., P, length + 2)
    weights[..., 1] += weights[..., 0]
    weights[..., -2] += weights[..., -1]
    return weights[..., 1:-1]


def _weights(boxes, shape, bins: int):
    """The `integral_weights` of the rows, (R, P, H), and of the columns, (R, P, W)."""
    edges = edges_of_bins(boxes, bins)
    return integral_weights(edges[:, 1], shape[0]), integral_weights(edges[:, 0], shape[1])


def roi_integral(x, boxes, bins: int) -> np.ndarray:
    """Means of the map x (H, W) over the bins of boxes (R, 4) in feature pixels: (R, P, P)."""
    rows, columns = _weights(boxes, x.shape, bins)
    return np.einsum("rpv,vu,rqu->rpq", rows, x, columns, optimize=True)


def roi_integral_gradient(gy, boxes, shape) -> np.ndarray:
    """The gradient (R, H, W) that each box sends back for the upstream gradient (P, P)."""
    rows, columns = _weights(boxes, shape, len(gy))
    return np.einsum("rpv,pq,rqu->rvu", rows, gy, columns, optimize=True)
