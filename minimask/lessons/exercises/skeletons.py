"""Exercises about keypoints: the answers come from minimask's own functions.

Shapes: R RoIs, G objects, D detections, K keypoints each, heat maps M x M.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from minimask import functions as F
from minimask.functions.activation import sigmoid_array, softmax_array
from minimask.lessons.exercises.exercise import exercise, gradients
from minimask.results.oks import similarity

# ------------------------------------------------------------------------------------------------- the loss


def _cases(rng):
    logits, cells = rng.normal(size=(3, 2, 4, 4)), rng.integers(0, 16, (3, 2))
    valid = np.array([[True, True], [False, True], [True, False]])
    return {
        "two keypoints not valid": (np.array(0.7), logits, cells, valid),
        "large logits": (np.array(1.0), logits * np.array([[[1e3]], [[1e4]]]), cells, valid),
        "one valid": (np.array(1.0), logits, cells, valid & (np.arange(6).reshape(3, 2) == 3)),
        "none valid": (np.array(1.0), logits, cells, np.zeros_like(valid)),
    }


def _loss_gradient(gy, logits, cells, valid, axes=(2, 3), at_cell: float = 1.0, squashed=None):
    """p - [k is the cell], over the number of valid keypoints, with one softmax over `axes`."""
    r, k, m, _ = logits.shape
    if squashed is None:
        kept = [i for i in range(4) if i not in axes]
        flat = logits.transpose(*kept, *axes).reshape(*[logits.shape[i] for i in kept], -1)
        p = softmax_array(flat, -1).reshape([logits.shape[i] for i in (*kept, *axes)])
        p = p.transpose(np.argsort([*kept, *axes]))
    else:
        p = squashed(logits)
    is_cell = (np.arange(m * m) == cells[..., None]).reshape(r, k, m, m)
    return gy * valid[..., None, None] * (p - at_cell * is_cell) / max(valid.sum(), 1)


@exercise(
    _cases,
    {
        "not divided by the number of valid keypoints: the loss is their mean": dict(
            gy=lambda a: a.gy * max(a.valid.sum(), 1)
        ),
        "divided by all keypoints, not by those that are valid": dict(
            gy=lambda a: a.gy * a.valid.sum() / a.valid.size
        ),
        "gy left out": dict(gy=lambda a: a.gy**0),
        "keypoints that are not valid have a loss, too": dict(valid=lambda a: np.ones_like(a.valid)),
        "1 is not subtracted at the cells": partial(_loss_gradient, at_cell=0.0),
        "one softmax for each row of cells: all M x M compete": partial(_loss_gradient, axes=(3,)),
        "one softmax over all keypoints of a RoI: each has its own": partial(_loss_gradient, axes=(1, 2, 3)),
        "sigmoids: cells compete in one softmax": partial(_loss_gradient, squashed=sigmoid_array),
        "x and y swapped: a cell is y M + x": dict(
            cells=lambda a: a.cells % a.logits.shape[3] * a.logits.shape[3] + a.cells // a.logits.shape[3]
        ),
    },
)
def keypoint_loss_backward(gy, logits, cells, valid):
    """The gradient of y = mean over valid keypoints of -log softmax(logits)[cell].

    gy : () float, gradient of y
    logits : (R, K, M, M) float; may be large: exp(1000) overflows
    cells : (R, K) int in [0, M^2), y M + x of the right cell
    valid : (R, K) bool, whether a keypoint is labelled and in its RoI; else its cell means nothing

    Give gx : (R, K, M, M), gradient of the logits. A keypoint's softmax is over all of its M x M
    cells. If none is valid, y is 0.
    """
    return gradients(lambda x: F.keypoint_loss(x, cells, valid), gy, logits)[0]


# -------------------------------------------------------------------------------- object keypoint similarity


def _oks_cases(rng):
    def some(detections, objects, keypoints=4):
        true = rng.uniform(20, 40, (objects, keypoints, 2))
        true[:, 0] = 0.0  # in the image's corner, and labelled all the same
        seen = [[2.0, 1, 0, 2, 0, 1], [2, 0, 0, 1, 2, 0], [1, 2, 0, 2, 1, 2]]
        visibility = np.array(seen)[:objects, :keypoints]
        near = true[np.arange(detections) % max(objects, 1)] if objects else np.zeros((0, keypoints, 2))
        found = near + rng.normal(0, 2, near.shape)
        labelled = np.concatenate([true, visibility[..., None]], axis=2) * (visibility > 0)[..., None]
        return found, labelled, rng.uniform(200, 800, objects), rng.uniform(0.03, 0.1, keypoints)

    return {
        "one labelled, one hidden, one not": some(3, 2),
        "six keypoints": some(4, 3, 6),
        "no detections": some(0, 2),
    }


def _unlike(found, keypoints, areas, sigmas, power: float = 2.0, divide_by_all: bool = False):
    d = np.sqrt(((found[:, None] - keypoints[None, ..., :2]) ** 2).sum(axis=3))  # (D, G, K)
    scale = 2 * areas[:, None] * (2 * sigmas) ** 2  # (G, K)
    labelled = keypoints[..., 2] > 0
    each = np.exp(-(d**power) / scale) * labelled
    return each.sum(axis=2) / (len(sigmas) if divide_by_all else labelled.sum(axis=1))


@exercise(
    _oks_cases,
    {
        "sigma not doubled": dict(sigmas=lambda a: a.sigmas / 2),
        "the 2 before the area left out": dict(areas=lambda a: a.areas / 2),
        "area is the scale squared already: it is not squared again": dict(areas=lambda a: a.areas**2),
        "the square root of the area: the distance is squared, the area is not a length": dict(
            areas=lambda a: np.sqrt(a.areas)
        ),
        "the distance not squared": partial(_unlike, power=1.0),
        "all keypoints counted: the mean is over those that are labelled": partial(
            _unlike, divide_by_all=True
        ),
        "hidden keypoints left out: 1 is labelled, and counts as 2 does": dict(
            keypoints=lambda a: a.keypoints * (a.keypoints[..., 2:] == 2)
        ),
    },
)
def oks(found, keypoints, areas, sigmas):
    """Object keypoint similarity of every detection and every object.

    found : (D, K, 2) float, x, y in pixels
    keypoints : (G, K, 3) float, x, y and visibility: 0 not labelled (then x = y = 0), 1 labelled but
        hidden, 2 visible
    areas : (G,) float, pixels
    sigmas : (K,) float

    Give similarity : (D, G), the mean over the object's labelled keypoints k, hidden ones included,
    of exp(-d_k^2 / (2 s^2 c_k^2)), where d_k is the distance, s^2 the area and c_k = 2 sigma_k. Each
    object has a labelled keypoint.
    """
    return similarity(found, keypoints, areas, sigmas)
