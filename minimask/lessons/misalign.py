"""RoI layers measured without training: where their bins lie, what they read, and where their gradients go.

Shapes: B boxes, S shifts of each, P x P bins, a feature map (H, W) of cells `stride` input pixels wide.

What a layer should read is the mean of the interpolated surface over each bin (`kernels.roi_integral`).
"""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from minimask import data
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.errors import InputError
from minimask.kernels.roi_integral import edges_of_bins, roi_integral, roi_integral_gradient

IMAGE = Path(data.__file__).parent / "nuclei" / "images" / "00ae65c1c6631ae6.png"
STRIDES = (4, 8, 16, 32)
STEP = 0.25  # input pixels that a box moves at a time
FEWEST = 8  # cells along a side of the map: boxes have 2 and more, and need room to move

LAYERS = {  # the rows of Table 2c, with 2 x 2 points a bin where there are points
    "RoIPool": F.roi_pool,
    "RoIWarp, max": partial(F.roi_warp, sampling_ratio=2, aggregation="max"),
    "RoIWarp, average": partial(F.roi_warp, sampling_ratio=2),
    "RoIAlign, max": partial(F.roi_align, sampling_ratio=2, aggregation="max"),
    "RoIAlign, average": partial(F.roi_align, sampling_ratio=2),
}
GEOMETRIES = {name.split(",")[0]: f for name, f in LAYERS.items() if "average" not in name}


# ------------------------------------------------------------------------- how far off can a bin's edge be?


def bound(geometry: str, bins: int, aligned: bool) -> float:
    """The largest displacement of a bin's edge in strides, for boxes of a cell and more.

    Rounding moves the ends of a box by at most 1/2, and so whatever divides the box between them. Rounding
    the edge k W / P of a bin outwards, W whole cells being the box, moves it by a multiple of 1/P below 1.
    Where an edge names a pixel (not `aligned`), the box is a cell too long as well: k / P more for edge k.
    """
    outwards = 1 - 1 / bins
    if aligned:
        return {"RoIAlign": 0.0, "RoIWarp": 1 / 2, "RoIPool": 1 / 2 + outwards}[geometry]
    # RoIPool's last edge is a cell too far; the one before by 1 - 1/P, and by as much again rounded outwards
    return {"RoIAlign": 1 / 2, "RoIWarp": 3 / 2, "RoIPool": 1 / 2 + max(1.0, 2 * outwards)}[geometry]


def bin_edges(geometry: str, boxes, bins: int, stride: int, aligned: bool) -> np.ndarray:
    """Where a layer's bins begin and end, seen from what it reads: (B, 2, P, 2) in input pixels.

    Of a map that holds positions, a maximum layer reads the largest position in each bin, and of its negative
    the smallest: the outermost cells' centres for RoIPool, for the others the points at 1/4 and 3/4.
    """
    u = np.arange(boxes.max() // stride + 3) + 0.5
    maps = np.stack([[u] * 4, [-u] * 4])[None]  # (1, 2, 4, W): equal rows, across which boxes are flat
    ends = []
    for axis, size in enumerate([(1, bins), (bins, 1)]):
        rois = np.zeros((len(boxes), 5))
        rois[:, [1 + axis, 3 + axis]], rois[:, 4 - axis] = boxes[:, [axis, 2 + axis]], stride
        y = GEOMETRIES[geometry](maps, rois, size, 1 / stride, aligned=aligned).numpy()
        ends.append(y.reshape(-1, 2, bins) * [[1], [-1]])
        maps = maps.swapaxes(2, 3)
    last, first = np.stack(ends, axis=2).swapaxes(0, 1)  # (B, 2, P) each
    margin = 0.5 if geometry == "RoIPool" else (last - first) / 2
    return np.stack([first - margin, last + margin], axis=-1) * stride


def displacements(geometry: str, boxes, bins: int, stride: int, aligned: bool) -> np.ndarray:
    """How far each bin's begin and end lie from where they should: (B, 2, P, 2) in input pixels."""
    right = edges_of_bins(boxes, bins)
    right = np.stack([right[..., :-1], right[..., 1:]], axis=-1)
    return bin_edges(geometry, boxes, bins, stride, aligned) - right


def random_boxes(rng, count: int, least, most, room) -> np.ndarray:
    """(B, 4): sizes from `least` to `most`, between 1 and 2 short of `room`, which are (x, y) or numbers."""
    size = rng.uniform(least, most, (count, 2))
    corner = rng.uniform(1, room - 2 - size)
    return np.concatenate([corner, corner + size], axis=1)


def worst_displacements(bins: int, boxes: int, seed: int = 0) -> list[dict]:
    """The worst displacement among random boxes, its bound and box, for each reading, layer and stride."""
    cells, rows = random_boxes(np.random.default_rng([seed, 0]), boxes, 1, 20, 32), []
    for aligned, name, stride in product((True, False), GEOMETRIES, STRIDES):
        off = np.abs(displacements(name, cells * stride, bins, stride, aligned)).max(axis=(1, 2, 3))
        row = dict(layer=name, aligned=aligned, stride=stride, worst=float(off.max()))
        row["bound"] = bound(name, bins, aligned) * stride
        rows.append(row | dict(box=(cells[off.argmax()] * stride).tolist()))
    return rows


# ------------------------------------------------------------------------------- what do the layers read?


def reading(layer, x, boxes, stride: int, bins: int) -> np.ndarray:
    """What a layer reads: (S, P, P)."""
    rois = np.concatenate([np.zeros((len(boxes), 1)), boxes], axis=1)
    return layer(x[None, None], rois, bins, 1 / stride, aligned=True).numpy()[:, 0]


def gradient(layer, x, boxes, stride: int, gy) -> np.ndarray:
    """The gradient (S, H, W) that a layer sends back. Each box has a copy of the map to itself."""
    maps = Tensor(np.broadcast_to(x, (len(boxes), 1, *x.shape)), requires_grad=True)
    rois = np.concatenate([np.arange(len(boxes))[:, None], boxes], axis=1)
    y = layer(maps, rois, gy.shape, 1 / stride, aligned=True)
    y.backward(np.broadcast_to(gy, y.shape))
    return maps.grad[:, 0]


def moved(box, stride: int, step: float = STEP) -> np.ndarray:
    """(4,) -> (S, 4): the box shifted to the right and down over a whole stride."""
    return box + np.arange(0, stride, step)[:, None]


def compare(x, boxes, stride: int, bins: int, seed: int = 0, layers: dict = LAYERS) -> dict[str, dict]:
    """Each layer against the integral, over all shifts of all boxes (B, 4).

    Returns
    -------
    dict of layer to dict of float, means over all
        bias : its error.
        wobble : what of its error changes while a box moves over a stride, as standard deviation.
        gradient : distance of its gradient from the integral's, relative to that one's length.
        unseen : share of the steps of `STEP` pixels that leave all it reads unchanged.
    """
    rng, found = np.random.default_rng([seed, 2]), {name: [] for name in layers}
    for box in boxes:
        at, gy = moved(box, stride), rng.normal(size=(bins, bins))
        right = roi_integral(x, at / stride, bins)
        right_gradient = roi_integral_gradient(gy, at / stride, x.shape)
        length = np.linalg.norm(right_gradient, axis=(1, 2))
        for name, layer in layers.items():
            values = reading(layer, x, at, stride, bins)
            error, wobble = values - right, (values - right).std(axis=0)
            miss = np.linalg.norm(gradient(layer, x, at, stride, gy) - right_gradient, axis=(1, 2)) / length
            still = (np.abs(np.diff(values, axis=0)) < 1e-9 * x.std()).all(axis=(1, 2))  # but for rounding
            found[name].append([error.mean(), wobble.mean(), miss.mean(), still.mean()])
    names = ("bias", "wobble", "gradient", "unseen")
    return {name: dict(zip(names, np.mean(rows, axis=0).tolist())) for name, rows in found.items()}


def ramp_map(shape, stride: int) -> np.ndarray:
    """(H, W): each cell holds its centre's x in input pixels, so that what a bin reads says where it lies."""
    return np.broadcast_to((np.arange(shape[1]) + 0.5) * stride, shape)


def image_map(path: Path, stride: int) -> np.ndarray:
    """(H, W): the brightness of each cell of an image, in standard deviations; incomplete cells are left out.

    Raises
    ------
    InputError
        If there is no such image, or it has too few cells, or a single colour.
    """
    image = data.read_image(path).astype(np.float64).mean(axis=0)
    h, w = (side // stride for side in image.shape)
    if min(h, w) < FEWEST:
        raise InputError(
            f"{path}: {image.shape[1]} x {image.shape[0]} pixels are {w} x {h} cells at stride {stride}, and "
            f"{FEWEST} x {FEWEST} are needed; give a larger image, or a smaller --stride"
        )
    cells = image[: h * stride, : w * stride].reshape(h, stride, w, stride).mean(axis=(1, 3))
    if not cells.std() > 1e-6:
        raise InputError(f"{path}: is of one colour, so that every box reads the same; give another image")
    return cells / cells.std()


# ------------------------------------------------------------------------------------------- all of it


def measure(x, stride: int, bins: int = 7, boxes: int = 20_000, seed: int = 0, image: str = "") -> dict:
    """Measure everything that the command shows.

    Parameters
    ----------
    x : (H, W)
        The map of `image_map`.
    stride : int
        Input pixels a cell of it.
    bins : int
        P: bins along each side of a box.
    boxes : int
        Among how many the worst displacement is looked for; one for each 500 of them is moved over the image.
    seed : int
        Of the boxes and of the upstream gradients.
    image : str
        Its name, for the table.

    Returns
    -------
    dict
        options; worst, of `worst_displacements`; ramp and image, of `compare`; box, the first that was moved.
    """
    sides, count = np.array(x.shape[::-1]), max(1, boxes // 500)
    at = random_boxes(np.random.default_rng([seed, 1]), count, sides / 4, sides / 2, sides) * stride
    return dict(
        options=dict(bins=bins, stride=stride, boxes=boxes, seed=seed, image=image, step=STEP, moved=count),
        worst=worst_displacements(bins, boxes, seed),
        ramp=compare(ramp_map(x.shape, stride), at, stride, bins, seed),
        image=compare(x, at, stride, bins, seed),
        box=at[0].tolist(),
    )


TABLE = """\
Worst displacement of a bin's edge in input pixels, {bins} x {bins} bins, {boxes} boxes (and its bound):
coordinates  layer            stride 4         stride 8        stride 16        stride 32
{worst}

{moved} boxes, read as places, moved over a stride of {stride} pixels by {step} at a time, against the
integral of the bilinear surface over each bin; image: {image}
                        ramp, in pixels          image, in % of its contrast
layer                 bias  wobble  gradient      bias  wobble  gradient    steps unseen
{compared}
bias: mean error; wobble: what of the error changes while a box moves, as standard deviation;
gradient: distance from the integral's, relative to its length; unseen: steps that change no output"""


def table(found: dict) -> str:
    """What `measure` found, as text."""
    worst, compared = [], []
    for first in range(0, len(found["worst"]), len(STRIDES)):
        rows = found["worst"][first : first + len(STRIDES)]
        line = f"{('original', 'places')[rows[0]['aligned']]:<12} {rows[0]['layer']:<8}"
        worst.append(line + "".join(f"{row['worst']:9.2f} ({row['bound']:5.2f})" for row in rows))
    for name, r in found["ramp"].items():
        i = found["image"][name]
        line = f"{name:<18}{r['bias']:z8.2f}{r['wobble']:8.2f}{r['gradient']:10.0%}"
        compared.append(f"{line}{i['bias']:z10.1%}{i['wobble']:8.1%}{i['gradient']:10.0%}{i['unseen']:16.0%}")
    return TABLE.format(worst="\n".join(worst), compared="\n".join(compared), **found["options"])
