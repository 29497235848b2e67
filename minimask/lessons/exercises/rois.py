"""Exercises about RoI layers and masks: the answers come from minimask's own functions.

Shapes: R RoIs; N images, C channels, H x W pixels, output PH x PW, masks M x M, K classes.
"""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np

from minimask import functions as F
from minimask import masks
from minimask.autograd import Tensor
from minimask.kernels.roi_align import Plan, Sampling
from minimask.lessons.exercises.exercise import exercise, gradients
from minimask.lessons.exercises.regions import AXES, ONE, PLUS_ONE, SWAPPED

NO_HALF_PIXEL = "no half pixel: pixel i has its centre at i + 1/2"
ROUNDED = "the box rounded to whole pixels"

# -------------------------------------------------------------------------------------------- RoI layers


def _roi_cases(rng, *wanted: str, more=()) -> dict[str, tuple]:
    """Random boxes, and `more`: (name, output size, scale, sampling ratio, RoIs)."""
    cases = {}
    for name, size, scale, ratio, rois in (
        ("two images", (2, 3), 0.25, 2, _rois(rng, 5, (6, 20))),
        ("3 x 3 points", (2, 2), 0.5, 3, _rois(rng, 2, (6, 20))),
        ("small boxes", (3, 2), 0.25, 2, _rois(rng, 4, (0.4, 3))),
        *more,
        ("no RoIs", (2, 2), 0.25, 2, _rois(rng, 0, (6, 20))),
    ):
        known = dict(x=rng.normal(size=(2, 3, 6, 7)), rois=rois, gy=rng.normal(size=(len(rois), 3, *size)))
        known |= dict(output_size=size, x_shape=(2, 3, 6, 7), scale=scale, sampling_ratio=ratio)
        cases[name] = tuple(known[k] for k in wanted)
    return cases


def _rois(rng, n: int, sides: tuple[float, float]):
    corner, sides = rng.uniform(-4, 14, (n, 2)), rng.uniform(*sides, (n, 2))
    return np.concatenate([np.arange(n)[:, None] % 2, corner, corner + sides], axis=1)


# Feature pixels of -1.5, -0.5, 0.5, ..., exactly: half to even, half up and half away from 0 differ.
HALVES = ("halves", (2, 2), 0.5, 2, np.array([[0.0, 1, 5, 9, 11], [1, -1, -3, 5, 9], [1, 5, 1, 11, 7]]))
ODD_BOXES = ("outside the map, and the wrong way round", (2, 3), 0.5, 2) + (
    np.array([[0.0, 20, 2, 30, 9], [1, -9, -8, -3, 6], [0, 9, 2, 3, 8], [1, 2, 9, 8, 1], [0, 1, 10, 9, 12]]),
)
# Points exactly a pixel outside the outermost centres, on all four sides.
JUST_OUTSIDE = (
    "points exactly a pixel outside",
    (1, 2),
    0.5,
    1,
    np.array([[0.0, -2, -3, 2, 1], [1, 12, 12, 16, 14], [0, 4, 13, 6, 15]]),
)


def _to_map(a):
    return np.array([1, *[a.scale] * 4])  # times a RoI: the RoI in feature pixels


def _clipped(a):
    """The RoIs, clipped to the image."""
    height, width = (a.x_shape if hasattr(a, "x_shape") else a.x.shape)[2:]
    return np.clip(a.rois, 0, [np.inf, *np.array([width, height] * 2) / a.scale])


ROI_MISTAKES = {
    "no batch index: column 0 says which image a RoI reads": dict(rois=lambda a: a.rois * [0, 1, 1, 1, 1]),
    AXES: dict(rois=lambda a: a.rois[:, [0, 2, 1, 4, 3]]),
    "the scale left out: RoIs are in image pixels": dict(scale=lambda a: 1.0),
}


def _towards_zero(v):
    return np.trunc(v + np.copysign(0.5, v))


def _pool(x, rois, output_size, scale, rounded=_towards_zero, longer=1, end=np.ceil, reduce=np.max):
    """The right answer, or a wrong one, in loops."""
    y = np.zeros((len(rois), x.shape[1], *output_size), x.dtype)
    for r, (n, *box) in enumerate(rois):
        first, last = rounded(np.array(box) * scale).reshape(2, 2)[:, ::-1]  # (y, x)
        size = np.maximum(last - first + longer, 1) / output_size
        for bin in np.ndindex(*output_size):
            low, high = first + np.floor(bin * size), first + end((np.array(bin) + 1) * size)
            (top, left), (bottom, right) = np.clip([low, high], 0, x.shape[2:]).astype(int)
            if bottom > top and right > left:
                y[r, :, *bin] = reduce(x[int(n), :, top:bottom, left:right], axis=(1, 2))
    return y


@exercise(
    lambda rng: _roi_cases(rng, "x", "rois", "output_size", "scale", more=[HALVES, ODD_BOXES]),
    ROI_MISTAKES
    | {
        "the last pixel left out: x2 - x1 + 1 belong in": [
            partial(_pool, longer=0),
            partial(_pool, longer=0, rounded=np.rint),
        ],
        "rounded down, not to the nearest": [partial(_pool, rounded=r) for r in (np.floor, np.trunc)],
        "halves rounded to even, as np.round and round do: 2.5 becomes 3, away from 0": partial(
            _pool, rounded=np.rint
        ),
        "halves rounded up: -0.5 becomes -1, away from 0": partial(
            _pool, rounded=lambda v: np.floor(v + 0.5)
        ),
        "not rounded": partial(_pool, rounded=np.asarray),
        "bins end before floor, not before ceil: a pixel may lie in two bins": partial(_pool, end=np.floor),
        "the average, not the maximum": partial(_pool, reduce=np.mean),
    },
)
def roi_pool(x, rois, output_size, scale):
    """RoIPool (Fast R-CNN): the maximum of each bin's pixels, box and bins rounded to whole pixels.

    x : (N, C, H, W) float
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    output_size : (PH, PW)
    scale : float, feature pixels per image pixel

    Give y : (R, C, PH, PW). The box's edges times scale are rounded to the nearest pixel, halves away from 0.
    Both edge pixels belong to it, so it is max(x2 - x1 + 1, 1) pixels wide. Bin j of PW begins at
    floor(j width / PW) and ends before ceil((j + 1) width / PW), both from x1 on and clipped to the map; an
    empty bin gives 0.
    """
    return F.roi_pool(x, rois, output_size, scale).data


# Wrong ways to read the boxes, for both directions of RoIAlign. In image pixels; `a` has the inputs.


def _bins(a):
    """(PH, PW)."""
    return a.output_size if hasattr(a, "output_size") else a.gy.shape[2:]


def _with_sides(a, width, height):
    """The RoIs with other widths and heights."""
    return np.concatenate([a.rois[:, :3], a.rois[:, 1:3] + np.stack([width, height], axis=1)], axis=1)


def _bin_sides(a):
    """Width and height of each RoI's bins."""
    ph, pw = _bins(a)
    return (a.rois[:, 3] - a.rois[:, 1]) / pw, (a.rois[:, 4] - a.rois[:, 2]) / ph


def _bin_for_bin(of_x: int, of_y: int) -> dict:
    """Along x the bins have the side number `of_x`, along y the side `of_y`; 0 is the width."""

    def rois(a):
        (ph, pw), sides = _bins(a), _bin_sides(a)
        return _with_sides(a, pw * sides[of_x], ph * sides[of_y])

    return dict(rois=rois)


def _at_corners(a):
    """Points at k / n of a bin."""
    width, height = (side / (2 * a.sampling_ratio) for side in _bin_sides(a))
    return a.rois - np.stack([0 * width, width, height, width, height], axis=1)


def _widened(a):
    sides = [np.maximum(a.rois[:, i + 2] - a.rois[:, i], 1 / a.scale) for i in (1, 2)]
    return _with_sides(a, *sides)


ALIGN_MISTAKES = ROI_MISTAKES | {
    AXES: [ROI_MISTAKES[AXES], _bin_for_bin(1, 0), _bin_for_bin(0, 0), _bin_for_bin(1, 1)],
    NO_HALF_PIXEL: dict(rois=lambda a: a.rois + [0, *[0.5 / a.scale] * 4]),
    "half a pixel added, not subtracted": dict(rois=lambda a: a.rois + [0, *[1 / a.scale] * 4]),
    "half a pixel subtracted from the box before it is scaled: it is half a feature pixel": dict(
        rois=lambda a: a.rois + [0, *[0.5 / a.scale - 0.5] * 4]
    ),
    PLUS_ONE: [dict(rois=lambda a: a.rois + [0, *ONE]), dict(rois=lambda a: a.rois + [0, *ONE / a.scale])],
    "widened to one cell: with aligned=True, a small box stays small": dict(rois=_widened),
    ROUNDED: [
        dict(rois=lambda a: np.rint(a.rois * _to_map(a)) / _to_map(a)),
        dict(rois=lambda a: np.floor(a.rois * _to_map(a)) / _to_map(a)),
        dict(rois=lambda a: np.rint(a.rois)),
    ],
    "the box clipped to the image: points are moved into the map, the box is not": dict(rois=_clipped),
    "points at k / n of a bin, not at (k + 1/2) / n": dict(rois=_at_corners),
}


def _align_weights(box, output_size, shape, scale, n: int, reads_0, moved=True, bins_swapped=False):
    """How much each row and each column counts in each bin, right or wrong: (PH, H), (PW, W).

    `reads_0` says of positions and a length where they read 0, `moved` whether others are moved into the map;
    with `bins_swapped`, a bin's column says where it lies along y: (PW, H), (PH, W).
    """
    weights = []
    for low, high, bins, turned, length in zip(
        box[[1, 0]], box[[3, 2]], output_size, output_size[::-1], shape
    ):
        points = (np.arange(n * (turned if bins_swapped else bins)) + 0.5) / n  # in bins, from the box's edge
        at = low * scale - 0.5 + points * (high - low) * scale / bins
        inside = np.clip(at, 0, length - 1) if moved else at
        tents = np.maximum(1 - np.abs(inside[:, None] - np.arange(length)), 0) * ~reads_0(at, length)[:, None]
        weights.append(tents.reshape(-1, n, length).mean(axis=1))
    return weights


def _align(x, rois, output_size, scale, sampling_ratio, bins_swapped=False, **wrong):
    """The right answer, or a wrong one: see `_align_weights`."""
    y, sum_up = np.zeros((len(rois), x.shape[1], *output_size), x.dtype), "chw,jh,iw->cij"
    for r, (n, box) in enumerate(zip(rois[:, 0].astype(int), rois[:, 1:])):
        weights = _align_weights(
            box, output_size, x.shape[2:], scale, sampling_ratio, bins_swapped=bins_swapped, **wrong
        )
        y[r] = np.einsum(sum_up if bins_swapped else "chw,ih,jw->cij", x[n], *weights)
    return y


def _limits(below: float, above: float) -> dict:
    """A rule for the points that read 0; the right one has -1 and 1."""
    return dict(reads_0=lambda at, length: (at < below) | (at > length - 1 + above))


def _on_either_side(below: float, above: float) -> list[dict]:
    return [_limits(below, above), _limits(below, 1), _limits(-1, above)]


WRONG_POINTS = {
    "points that lie outside read 0: up to a pixel outside they are moved in": _on_either_side(0, 0),
    "points far outside are moved in, too: more than a pixel outside they read 0": _on_either_side(-inf, inf),
    "exactly a pixel outside reads 0: only farther out does": _on_either_side(-1 + 1e-9, 1 - 1e-9),
    "points outside not moved in: they read zeros beside the map": [_limits(-inf, inf) | dict(moved=False)],
    "the bin's row and column swapped: row i of the bins runs along y": [
        _limits(-1, 1) | dict(bins_swapped=True)
    ],
}


@exercise(
    lambda rng: _roi_cases(rng, "x", "rois", "output_size", "scale", "sampling_ratio", more=[JUST_OUTSIDE]),
    ALIGN_MISTAKES
    | {
        "not divided by the points: a bin is their average": dict(x=lambda a: a.x * a.sampling_ratio**2),
        "the maximum of the points, not their average": lambda *a: (
            F.roi_align(*a, aligned=True, aggregation="max").data
        ),
    }
    | {m: [partial(_align, **wrong) for wrong in each] for m, each in WRONG_POINTS.items()},
)
def roi_align_forward(x, rois, output_size, scale, sampling_ratio):
    """RoIAlign (Mask R-CNN, section 3): the average of bilinear samples, nothing rounded.

    x : (N, C, H, W) float
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    output_size : (PH, PW)
    scale : float, feature pixels per image pixel
    sampling_ratio : int, n: n x n points per bin, at (k + 1/2) / n of it

    Give y : (R, C, PH, PW). In feature pixels, pixel i has its centre at i + 1/2 (aligned=True). A point more
    than a pixel outside the outermost centres reads 0; any other is moved between them if it lies outside,
    and reads its four neighbours.
    """
    return F.roi_align(x, rois, output_size, scale, sampling_ratio, aligned=True).data


def _points_of_pixel(gy, rois, x_shape, scale, sampling_ratio):
    """How many points read each pixel of x."""
    sampling = Sampling(gy.shape[2:], sampling_ratio, True, aggregation="max")  # a row for each point
    matrix = Plan.build(rois, None, [x_shape], (scale,), sampling, gy.dtype).matrix
    counts = np.bincount(matrix.indices[matrix.data != 0], minlength=matrix.shape[1])
    return counts.reshape(x_shape[0], 1, *x_shape[2:])


def _align_gradient(gy, rois, x_shape, scale, sampling_ratio, bins_swapped=False, **wrong):
    """The gradient that belongs to `_align`."""
    gx, sum_up = np.zeros(x_shape, gy.dtype), "cij,jh,iw->chw"
    for g, n, box in zip(gy, rois[:, 0].astype(int), rois[:, 1:]):
        weights = _align_weights(
            box, gy.shape[2:], x_shape[2:], scale, sampling_ratio, bins_swapped=bins_swapped, **wrong
        )
        gx[n] += np.einsum(sum_up if bins_swapped else "cij,ih,jw->chw", g, *weights)
    return gx


def _last_roi_only(gy, rois, x_shape, scale, sampling_ratio):
    """Each RoI's gradient assigned to its image."""
    last = [r for r in range(len(rois)) if r + 1 == len(rois) or rois[r, 0] not in rois[r + 1 :, 0]]
    return roi_align_backward(gy[last], rois[last], x_shape, scale, sampling_ratio)


@exercise(
    lambda rng: _roi_cases(rng, "gy", "rois", "x_shape", "scale", "sampling_ratio", more=[JUST_OUTSIDE]),
    ALIGN_MISTAKES
    | {
        "not divided by the points: a bin is their average": dict(gy=lambda a: a.gy * a.sampling_ratio**2),
        "overwritten by the image's last RoI: those of all RoIs add up": _last_roi_only,
    }
    | {m: [partial(_align_gradient, **wrong) for wrong in each] for m, each in WRONG_POINTS.items()},
    contributions={"gx": _points_of_pixel},
)
def roi_align_backward(gy, rois, x_shape, scale, sampling_ratio):
    """The gradient of RoIAlign's feature map: each bilinear weight sends its share of gy back.

    gy : (R, C, PH, PW) float, gradient of y
    rois : (R, 5) float, image index, x1, y1, x2, y2 in image pixels
    x_shape : (N, C, H, W)
    scale : float
    sampling_ratio : int

    Give gx : (N, C, H, W). See roi_align_forward for where the points lie.
    """
    x, size = np.zeros(x_shape, gy.dtype), gy.shape[2:]
    return gradients(lambda x: F.roi_align(x, rois, size, scale, sampling_ratio, aligned=True), gy, x)[0]


# ------------------------------------------------------------------------------------------------- masks


def _mask_loss(logits, labels, targets, loss_of=F.mask_loss, scale=lambda targets: 1.0):
    """The loss and its gradient."""
    x = Tensor(logits, True)
    loss = loss_of(x, labels, targets) * scale(targets)
    loss.backward()
    return loss.data, x.grad


def _softmax_loss(x, labels, targets):
    p = F.softmax(x, axis=1)[np.arange(len(labels)), labels]
    return (F.log(p) * targets + F.log(1.0 - p) * (1.0 - targets)).mean() * -1.0


EPSILONS = 10.0 ** -np.arange(5, 17)


def _logarithm_of_zero(logits, labels, targets, s=lambda x: 1 / (1 + np.exp(-x)), least=0.0, log=np.log):
    p = np.clip(s(logits[np.arange(len(labels)), labels]), least, 1 - least)
    losses = targets * log(p) + (1 - targets) * log(1 - p)
    return -losses.sum() / max(targets.size, 1), mask_loss(logits, labels, targets)[1]


def _all_channels_loss(x, labels, targets):
    return F.sigmoid_cross_entropy(x, np.broadcast_to(targets[:, None], x.shape))


@exercise(
    lambda rng: {
        "four classes": (rng.normal(size=(3, 5, 4, 4)), np.array([2, 4, 1]), np.rint(rng.random((3, 4, 4)))),
        "large logits": (
            np.array([-800.0, 800.0]).repeat(12).reshape(2, 3, 2, 2),
            np.array([1, 2]),
            np.eye(2)[[[0, 1], [1, 1]]],
        ),
        "a mask of one pixel": (np.array([[[[3.0]], [[-0.5]]]]), np.array([1]), np.ones((1, 1, 1))),
        "no RoIs": (np.zeros((0, 3, 2, 2)), np.zeros(0, np.int64), np.zeros((0, 2, 2))),
    },
    {
        "summed, not averaged": partial(_mask_loss, scale=lambda targets: float(targets.size)),
        "the channel before the label's: channel 0 is the background's": dict(labels=lambda a: a.labels - 1),
        "a softmax: masks do not compete, each has its sigmoid": partial(_mask_loss, loss_of=_softmax_loss),
        "all channels: only the true class's has a loss": partial(_mask_loss, loss_of=_all_channels_loss),
        "a mean over RoIs only: it is one over their pixels, too": partial(
            _mask_loss, scale=lambda targets: float(targets[:1].size or 1)
        ),
        "the logarithm of 0: with large logits, log sigmoid(x) must be simplified before it is computed": [
            *(partial(_logarithm_of_zero, least=eps) for eps in (0.0, *EPSILONS)),
            *(partial(_logarithm_of_zero, log=lambda p, eps=eps: np.log(p + eps)) for eps in EPSILONS),
            partial(_logarithm_of_zero, log=lambda p: np.maximum(np.log(p), -100)),  # PyTorch's BCELoss
        ],
    },
)
def mask_loss(logits, labels, targets):
    """L_mask (Mask R-CNN, section 3): binary cross-entropy of the one mask that belongs to the true class.

    logits : (R, K + 1, M, M) float; channel 0 is the background's, and never read; may be large
    labels : (R,) int in [1, K]
    targets : (R, M, M) float, 0 or 1

    Give loss, gradient : a number, the mean over RoIs and pixels (0 for no RoIs); its gradient, like logits.
    """
    return _mask_loss(logits, labels, targets)


def _to_nearest_cell(mask, box, image_size, whole=np.trunc, center=0.0):
    """Each pixel of a box of whole pixels gets a cell."""
    x1, y1, x2, y2 = whole(box)
    rows, columns = (
        _one_cell(np.arange(n) + center, *edges, len(mask))
        for n, edges in zip(image_size, ((y1, y2), (x1, x2)))
    )
    return rows @ mask @ columns.T


def _one_cell(at, low, high, cells: int):
    """(pixels, cells): 1 for the cell that a pixel within the box lies in."""
    cell = np.floor((at - low) * cells / (high - low))
    return (cell[:, None] == np.arange(cells)).astype(float)


def _paste(mask, box, image_size, weights):
    """A mask pasted with other weights of cells; they take pixels' places in the box, from 0 to 1."""
    x1, y1, x2, y2 = box
    places = [
        (np.arange(n) + 0.5 - low) / (high - low) for n, low, high in zip(image_size, (y1, x1), (y2, x2))
    ]
    rows, columns = (weights(place[:, None], np.arange(len(mask)), len(mask)) for place in places)
    return rows @ mask @ columns.T


def _kept_at_edge(place, j, cells):
    inside = (place >= 0) & (place <= 1)
    return np.maximum(1 - np.abs(np.clip(place * cells - 0.5, 0, cells - 1) - j), 0) * inside


def _cut_at_box(place, j, cells):
    return np.maximum(1 - np.abs(place * cells - 0.5 - j), 0) * ((place >= 0) & (place <= 1))


def _from_corner_to_corner(place, j, cells):
    return np.maximum(1 - np.abs(place * (cells - 1) - j), 0)


def _from_cell_edges(place, j, cells):
    return np.maximum(1 - np.abs(place * cells - j), 0)


@exercise(
    lambda rng: {
        "a box that reaches out": (rng.random((5, 5)), np.array([-3.4, 2.6, 6.3, 11.7]), (8, 9)),
        "a box within": (rng.random((4, 4)), np.array([2.3, 1.6, 9.1, 6.4]), (9, 12)),
        "a box smaller than a pixel": (rng.random((3, 3)), np.array([4.3, 2.2, 4.9, 3.1]), (6, 7)),
        "a box outside": (rng.random((3, 3)), np.array([14.3, -12.2, 20.9, -4.1]), (6, 7)),
    },
    {
        "the box cut to whole pixels, and each of them given one cell: nothing is rounded here": [
            partial(_to_nearest_cell, whole=whole, center=center)
            for whole in (np.trunc, np.floor, np.rint)
            for center in (0.0, 0.5)
        ],
        "each pixel given the cell it lies in: between the cells' centres the mask is bilinear": partial(
            _to_nearest_cell, whole=np.asarray, center=0.5
        ),
        "beyond the outermost centres the mask goes on as it is: it falls to 0, one cell out": partial(
            _paste, weights=_kept_at_edge
        ),
        "cut off at the box: it falls to 0 half a cell outside": partial(_paste, weights=_cut_at_box),
        "the outermost cells' centres laid on the box's edges: they lie half a cell inside": partial(
            _paste, weights=_from_corner_to_corner
        ),
        "no half cell: the centre of cell j lies at (j + 1/2) / M": partial(_paste, weights=_from_cell_edges),
        NO_HALF_PIXEL: dict(box=lambda a: a.box + 0.5),
        PLUS_ONE: dict(box=lambda a: a.box + ONE),
        AXES: dict(box=lambda a: a.box[SWAPPED]),
        ROUNDED: dict(box=lambda a: np.rint(a.box)),
        "the box clipped to the image: one that reaches out is pasted in part, not squeezed": dict(
            box=lambda a: np.clip(a.box, 0, [*a.image_size[::-1]] * 2)
        ),
    },
)
def paste_mask(mask, box, image_size):
    """A predicted mask in its place in the image.

    mask : (M, M) float, probabilities
    box : (4,) float, x1, y1, x2, y2 in image pixels; not whole numbers, and it may reach beyond the image
    image_size : (H, W)

    Give image : (H, W). Pixel i has its centre at i + 1/2; the centre of mask cell j lies at (j + 1/2) / M of
    the box. Between the cells' centres the mask is bilinear; beyond the outermost it falls linearly to 0, one
    cell out.
    """
    return masks.paste_masks(mask[None], box[None], image_size, masks.FLOAT)[0, 0]
