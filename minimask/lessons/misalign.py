"""RoI layers measured without training: where their bins lie, what they read, and where their gradients go.

Shapes: B boxes, S shifted copies of a box, P x P bins, a feature map (H, W) of cells `stride` input pixels
wide.

What a layer should read is the mean of the interpolated surface over each bin (`roi_integral`).
"""

from __future__ import annotations

import math
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from minimask import data
from minimask import functions as F
from minimask.autograd import Tensor
from minimask.errors import InputError, one_line
from minimask.lessons.roi_integral import edges_of_bins, roi_integral, roi_integral_gradient

IMAGE = Path(data.__file__).parent / "nuclei" / "images" / "00ae65c1c6631ae6.png"
STRIDES = (4, 8, 16, 32)
STEP = 0.25  # input pixels that a box moves at a time
_BINS_MOST, _BOXES_MOST = 256, 1_000_000
_BINS_AT_ONCE = 2**20
_AT_ONCE = 2**25  # numbers that one layer is measured with
FEWEST = 8  # cells along a side of the map: boxes take 2 and more, and need room to move

LAYERS = {  # the rows of Table 2c, with 2 x 2 points per bin where a layer reads at points
    "RoIPool": F.roi_pool,
    "RoIWarp, max": partial(F.roi_warp, sampling_ratio=2, aggregation="max"),
    "RoIWarp, average": partial(F.roi_warp, sampling_ratio=2),
    "RoIAlign, max": partial(F.roi_align, sampling_ratio=2, aggregation="max"),
    "RoIAlign, average": partial(F.roi_align, sampling_ratio=2),
}
GEOMETRIES = {name.split(",")[0]: f for name, f in LAYERS.items() if "average" not in name}


# ------------------------------------------------------------------------- how far off can a bin's edge be?


def bound(geometry: str, bins: int, aligned: bool) -> float:
    """The largest displacement of a bin's edge in strides, for boxes of at least one cell.

    Rounding moves each end of a box by at most 1/2, and with the ends whatever divides the box between them.
    Rounding edge k W / P of a box of W whole cells outwards moves it by a multiple of 1/P below 1. Where an
    edge names a pixel (not `aligned`), the box is also one cell too long, which moves edge k by k / P more.
    """
    outwards = 1 - 1 / bins
    if aligned:
        return {"RoIAlign": 0.0, "RoIWarp": 1 / 2, "RoIPool": 1 / 2 + outwards}[geometry]
    # RoIPool's last edge is 1 too far; the one before it by 1 - 1/P, and as much again once rounded outwards
    return {"RoIAlign": 1 / 2, "RoIWarp": 3 / 2, "RoIPool": 1 / 2 + max(1.0, 2 * outwards)}[geometry]


def bin_edges(geometry: str, boxes, bins: int, stride: int, aligned: bool) -> np.ndarray:
    """Where a layer's bins begin and end in x and y, judged by what it reads: (B, 2, P, 2) in input pixels.

    From a map that holds positions, a layer that takes the maximum reads the last position it looks at in
    each bin; from the negative map, the first. For RoIPool these are the centres of the bin's outermost
    cells, half a cell from its ends; the other layers look at the points at 1/4 and 3/4 of the bin.
    """
    positions = np.arange(boxes.max() // stride + 3) + 0.5  # (W,), in cells
    maps = np.stack([[positions] * 4, [-positions] * 4])[None]  # (1, 2, 4, W): four equal rows
    outermost = []
    for axis, output_size in enumerate([(1, bins), (bins, 1)]):
        rois = np.zeros((len(boxes), 5))  # across the axis, each box covers the map's first cell
        rois[:, [1 + axis, 3 + axis]] = boxes[:, [axis, 2 + axis]]
        rois[:, 4 - axis] = stride
        y = GEOMETRIES[geometry](maps, rois, output_size, 1 / stride, aligned=aligned).numpy()
        outermost.append(y.reshape(-1, 2, bins) * [[1], [-1]])  # (B, last and first, P)
        maps = maps.swapaxes(2, 3)
    last, first = np.stack(outermost, axis=2).swapaxes(0, 1)  # (B, 2, P) each
    margin = 0.5 if geometry == "RoIPool" else (last - first) / 2
    return np.stack([first - margin, last + margin], axis=-1) * stride


def displacements(geometry: str, boxes, bins: int, stride: int, aligned: bool) -> np.ndarray:
    """How far each bin's begin and end lie from where they should: (B, 2, P, 2) in input pixels."""
    edges = edges_of_bins(boxes, bins)  # (B, 2, P + 1)
    ideal = np.stack([edges[..., :-1], edges[..., 1:]], axis=-1)
    return bin_edges(geometry, boxes, bins, stride, aligned) - ideal


def _check_size(map_shape: tuple[int, int], stride: int, bins: int, boxes: int) -> None:
    """Refuse what would take gigabytes or days.

    Raises
    ------
    InputError
        With the greatest number allowed.
    """
    if bins > _BINS_MOST or boxes > _BOXES_MOST:
        raise InputError(
            f"misalign: at most {_BINS_MOST} bins and {_BOXES_MOST:,} boxes can be measured, not "
            f"{bins:,} and {boxes:,}"
        )
    shifts = len(moved(np.zeros(4), stride))
    if shifts * max(math.prod(map_shape), 16 * bins**2) > _AT_ONCE:
        raise InputError(
            f"misalign: {shifts} boxes of {bins} x {bins} bins on a map of {map_shape[1]} x {map_shape[0]} "
            "take more than a gigabyte; take fewer --bins, a smaller image, or another --stride"
        )


def random_boxes(rng, count: int, least, most, room) -> np.ndarray:
    """(B, 4): boxes with sides from `least` to `most`, which lie between 1 and `room` - 2.

    The three bounds are numbers, or (x, y).
    """
    size = rng.uniform(least, most, (count, 2))
    corner = rng.uniform(1, room - 2 - size)
    return np.concatenate([corner, corner + size], axis=1)


def worst_displacements(bins: int, boxes: int, seed: int = 0) -> list[dict]:
    """The worst displacement among random boxes, its bound and box, for each reading, layer and stride."""
    cells = random_boxes(np.random.default_rng([seed, 0]), boxes, 1, 20, 32)  # (B, 4) in cells
    rows = []
    parts = np.array_split(cells, -(-boxes * bins // _BINS_AT_ONCE))
    for aligned, name, stride in product((True, False), GEOMETRIES, STRIDES):
        off = np.concatenate(  # (B,)
            [
                np.abs(displacements(name, part * stride, bins, stride, aligned)).max(axis=(1, 2, 3))
                for part in parts
            ]
        )
        row = dict(layer=name, aligned=aligned, stride=stride, worst=float(off.max()))
        row["bound"] = bound(name, bins, aligned) * stride
        row["box"] = (cells[off.argmax()] * stride).tolist()
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------- what do the layers read?


def reading(layer, x, boxes, stride: int, bins: int) -> np.ndarray:
    """What a layer reads of the map x in each box: (S, P, P)."""
    rois = np.concatenate([np.zeros((len(boxes), 1)), boxes], axis=1)
    return layer(x[None, None], rois, bins, 1 / stride, aligned=True).numpy()[:, 0]


def gradient(layer, x, boxes, stride: int, gy) -> np.ndarray:
    """The gradient (S, H, W) that a layer sends back to the map; each box has a copy of the map to itself."""
    maps = Tensor(np.broadcast_to(x, (len(boxes), 1, *x.shape)), requires_grad=True)
    rois = np.concatenate([np.arange(len(boxes))[:, None], boxes], axis=1)
    y = layer(maps, rois, gy.shape, 1 / stride, aligned=True)
    y.backward(np.broadcast_to(gy, y.shape))
    return maps.grad[:, 0]


def moved(box, stride: int, step: float = STEP) -> np.ndarray:
    """(4,) -> (S, 4): the box shifted to the right and down, `step` pixels at a time, over a whole stride."""
    return box + np.arange(0, stride, step)[:, None]


def compare(x, boxes, stride: int, bins: int, seed: int = 0, layers: dict = LAYERS) -> dict[str, dict]:
    """Each layer against the integral, over all shifts of all boxes (B, 4).

    Returns
    -------
    dict of layer to dict of float, each a mean over boxes, shifts and bins
        - bias: the error of what it reads.
        - wobble: the part of it that changes while a box moves over a stride, as a standard deviation.
        - gradient: the distance of its gradient from the integral's, relative to the latter's length.
        - unseen: the share of the steps of `STEP` pixels that change nothing it reads.
    """
    rng = np.random.default_rng([seed, 2])
    rows = {name: [] for name in layers}
    for box in boxes:
        shifted, gy = moved(box, stride), rng.normal(size=(bins, bins))  # (S, 4), (P, P)
        exact = roi_integral(x, shifted / stride, bins)  # (S, P, P)
        exact_gradient = roi_integral_gradient(gy, shifted / stride, x.shape)  # (S, H, W)
        length = np.linalg.norm(exact_gradient, axis=(1, 2))
        for name, layer in layers.items():
            values = reading(layer, x, shifted, stride, bins)
            error = values - exact
            wobble = error.std(axis=0)
            distance = np.linalg.norm(gradient(layer, x, shifted, stride, gy) - exact_gradient, axis=(1, 2))
            unchanged = np.abs(np.diff(values, axis=0)) < 1e-9 * x.std()  # up to rounding
            unseen = unchanged.all(axis=(1, 2))
            rows[name].append([error.mean(), wobble.mean(), (distance / length).mean(), unseen.mean()])
    columns = ("bias", "wobble", "gradient", "unseen")
    return {name: dict(zip(columns, np.mean(of_boxes, axis=0).tolist())) for name, of_boxes in rows.items()}


def ramp_map(shape, stride: int) -> np.ndarray:
    """(H, W): each cell holds the x of its centre in input pixels, so a bin reads where it lies."""
    return np.broadcast_to((np.arange(shape[1]) + 0.5) * stride, shape)


def image_map(path: Path, stride: int) -> np.ndarray:
    """(H, W): the brightness of each cell of an image, in standard deviations; incomplete cells are dropped.

    Raises
    ------
    InputError
        If the image cannot be read, has too few cells, or is of a single colour.
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
        raise InputError(f"{path}: is of one colour, so every box reads the same; give another image")
    return cells / cells.std()


# ------------------------------------------------------------------------------------------- all of it


def measure(x, stride: int, bins: int = 7, boxes: int = 20_000, seed: int = 0, image: str = "") -> dict:
    """Measure everything that the command shows.

    Parameters
    ----------
    x : (H, W)
        The map of `image_map`.
    stride : int
        Input pixels per cell of it.
    bins : int
        P: bins along each side of a box.
    boxes : int
        How many boxes to search for the worst displacement; for every 500 of them, one box is moved over the
        image.
    seed : int
        Seed of the boxes and of the upstream gradients.
    image : str
        The image's name, for the table.

    Returns
    -------
    dict
        options, these arguments; worst, from `worst_displacements`; ramp and image, from `compare`; box, the
        first that was moved.
    """
    _check_size(x.shape, stride, bins, boxes)
    sides, count = np.array(x.shape[::-1]), max(1, boxes // 500)
    to_move = random_boxes(np.random.default_rng([seed, 1]), count, sides / 4, sides / 2, sides) * stride
    return dict(
        options=dict(bins=bins, stride=stride, boxes=boxes, seed=seed, image=image, step=STEP, moved=count),
        worst=worst_displacements(bins, boxes, seed),
        ramp=compare(ramp_map(x.shape, stride), to_move, stride, bins, seed),
        image=compare(x, to_move, stride, bins, seed),
        box=to_move[0].tolist(),
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
        rows = found["worst"][first : first + len(STRIDES)]  # of one reading and layer
        coordinates = "places" if rows[0]["aligned"] else "original"
        line = f"{coordinates:<12} {rows[0]['layer']:<8}"
        worst.append(line + "".join(f"{row['worst']:9.2f} ({row['bound']:5.2f})" for row in rows))
    for name, ramp in found["ramp"].items():
        line = f"{name:<18}{ramp['bias']:z8.2f}{ramp['wobble']:8.2f}{ramp['gradient']:10.0%}"
        image = found["image"][name]
        line += f"{image['bias']:z10.1%}{image['wobble']:8.1%}{image['gradient']:10.0%}"
        compared.append(f"{line}{image['unseen']:16.0%}")
    options = found["options"] | {"image": one_line(found["options"]["image"])}
    return TABLE.format(worst="\n".join(worst), compared="\n".join(compared), **options)
