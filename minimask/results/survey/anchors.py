"""Object sizes against a network's anchors, as training and as prediction scale the images.

Shapes: G objects.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minimask.anchors import AnchorGenerator
from minimask.config import Config
from minimask.data.coco import CocoDataset
from minimask.models.networks import NETWORKS
from minimask.results.survey.findings import HARMFUL, Finding, finding

THRESHOLDS = (0.5, 0.7)
MISSED = 0.5  # share of objects that no anchor reaches at IoU 0.5, at which it becomes a finding
_NEAR = 0.03  # by how much the share may exceed the least, for the sake of sizes nearer to the present ones
TINY = 4.0  # pixels, square root of the area: one cell of a map at stride 4
_MANY_TINY = 0.01
_CUT = 0.05  # share of objects larger than the crop
_SCALES = 5  # that stand for a range of random magnifications
_FACTORS = 2.0 ** (np.arange(-16, 17) / 4)  # tried on the anchors


@dataclass(frozen=True)
class View:
    """The objects as the network sees them.

    Attributes
    ----------
    boxes : (G, 4) float64
        x1, y1, x2, y2 in pixels of the network's input.
    areas : (G,) float64
        Of their masks, in the same.
    sizes : (G, 2) int
        Height and width of the padded input that each is in.
    factors : (G,) float64
        Pixels of the input per pixel of the image.
    """

    boxes: np.ndarray
    areas: np.ndarray
    sizes: np.ndarray
    factors: np.ndarray


@dataclass(frozen=True)
class Fit:
    """How anchors fit objects.

    Attributes
    ----------
    missed : dict of float to float
        IoU -> share of the objects that no anchor reaches with it.
    anchors, images : (factor, float) or None
        The factor by which all anchors, or all images, would have to be scaled for less than half as many
        objects to be missed at IoU 0.5, and the share that is missed then.
    """

    missed: dict[float, float]
    anchors: tuple[float, float] | None = None
    images: tuple[float, float] | None = None


def strides_of(model: Any) -> tuple[int, ...]:
    """Pixels per cell of each level of a model's feature maps."""
    from minimask.autograd import Tensor, no_grad

    side = 256
    with no_grad():
        levels = model.backbone(Tensor(np.zeros((1, 3, side, side), np.float32)))
    return tuple(side // level.shape[3] for level in levels)


def view_of(dataset: CocoDataset, transform: Any, scale: float = 1.0, crop: int = 0) -> View:
    """The objects of a data set at the size at which the network sees them.

    Parameters
    ----------
    transform : models.transform.Transform
    scale : float
        Magnification by augmentation, before all else.
    crop : int
        Side of a crop after that; 0 is none. Larger objects are cut.
    """
    table = dataset.table
    rows = np.flatnonzero(~table.crowd)
    shapes = []
    for record in dataset.records:
        seen = [max(1.0, side * scale) for side in (record.height, record.width)]
        seen = [min(side, crop) for side in seen] if crop else seen
        resized = transform.resized(tuple(seen), transform.min_sizes[-1])
        shapes.append((scale * resized[0] / seen[0], *transform.padded([resized]), *resized))
    factor, *sides = np.array(shapes, np.float64).reshape(-1, 5)[table.images[rows]].T
    padded, resized = np.stack(sides[:2], axis=1), np.stack(sides[2:], axis=1)  # (G, 2): height, width
    boxes = table.boxes[rows] * factor[:, None]
    low, size = boxes[:, :2], np.minimum(boxes[:, 2:], resized[:, ::-1])
    room = resized[:, ::-1] - size
    low = np.minimum(low % np.maximum(room, 1), room) if crop else low  # somewhere in the crop
    corners = np.concatenate([low, low + size], axis=1)
    return View(corners, table.pixels[rows] * factor**2, padded.astype(int), factor)


def best_overlaps(view: View, generator: AnchorGenerator, strides: Sequence[int]) -> np.ndarray:
    """The greatest IoU of each object with any anchor: (G,) float64.

    Of the anchors of one shape, all with the same area, the one whose centre is nearest in x and in y has the
    greatest intersection; so only one cell per level needs to be looked at.
    """
    middle = (view.boxes[:, :2] + view.boxes[:, 2:]) / 2  # (G, 2): x, y
    size = view.boxes[:, 2:] - view.boxes[:, :2]
    best = np.zeros(len(size))
    for level, stride in enumerate(generator.strides or strides):
        cells = -(-view.sizes[:, ::-1] // stride)  # (G, 2): across, down
        cell = np.clip(np.rint(middle / stride - generator.offset), 0, cells - 1)
        centre = (cell + generator.offset) * stride
        for anchor in generator.cell_anchors(level).astype(np.float64):  # (4,) around the origin
            low = np.maximum(view.boxes[:, :2], centre + anchor[:2])
            high = np.minimum(view.boxes[:, 2:], centre + anchor[2:])
            shared = np.clip(high - low, 0, None).prod(axis=1)
            area = (anchor[2:] - anchor[:2]).prod()
            best = np.maximum(best, shared / np.maximum(size.prod(axis=1) + area - shared, 1e-9))
    return best


def fit_of(views: Sequence[View], generator: AnchorGenerator, strides: Sequence[int]) -> Fit:
    """How anchors fit the objects of several views, which count alike."""

    def missed(threshold: float, of: AnchorGenerator = generator, scale: float = 1.0) -> float:
        overlaps = (best_overlaps(_enlarged(view, scale), of, strides) for view in views)
        return float(np.mean([np.mean(overlap < threshold) for overlap in overlaps]))

    def best(of_factor: Callable[[float], float]) -> tuple[float, float] | None:
        tried = [(of_factor(factor), abs(np.log2(factor)), float(factor)) for factor in _FACTORS]
        least = min(tried)[0]
        _, factor, share = min((far, factor, share) for share, far, factor in tried if share <= least + _NEAR)
        return (factor, share) if share < 0.5 * shares[0.5] else None

    shares = {threshold: missed(threshold) for threshold in THRESHOLDS}
    if shares[0.5] < MISSED:
        return Fit(shares)
    anchors = best(lambda factor: missed(0.5, _scaled(generator, factor)))
    return Fit(shares, anchors, best(lambda factor: missed(0.5, scale=factor)))


def _enlarged(view: View, factor: float) -> View:
    """The same objects in images that are so many times as large."""
    sizes = np.ceil(view.sizes * factor).astype(int)
    return View(view.boxes * factor, view.areas * factor**2, sizes, view.factors * factor)


def _scaled(generator: AnchorGenerator, factor: float) -> AnchorGenerator:
    return replace(generator, sizes=tuple(tuple(s * factor for s in sizes) for sizes in generator.sizes))


def training_views(dataset: CocoDataset, transform: Any, config: Config) -> list[View]:
    """The objects as training sees them, at several of its random magnifications."""
    low, high = config.data.scale
    scales = np.geomspace(low, high, _SCALES) if low < high else [low]
    return [view_of(dataset, transform, float(scale), config.data.crop) for scale in scales]


def of_sizes(dataset: CocoDataset, model: Any, config: Config) -> tuple[list[Finding], dict]:
    """What the objects' sizes show, and the facts about them for report.json and the histogram."""
    transform, generator = model.transform, model.rpn.anchors
    views, strides = training_views(dataset, transform, config), strides_of(model)
    if not len(views[0].areas):
        return [], {}
    fit, seen = fit_of(views, generator, strides), view_of(dataset, transform)
    sizes = np.sqrt(np.concatenate([view.areas for view in views]))
    facts = {
        "network": config.model.name,
        "anchor_sizes": [list(map(float, sizes)) for sizes in generator.sizes],
        "strides": list(strides),
        "missed": {str(threshold): share for threshold, share in fit.missed.items()},
        "sqrt_area": {str(q): float(np.quantile(sizes, q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)},
    }
    findings = list(_of_fit(dataset, config, fit, generator))
    total = len(seen.areas)
    tiny = int((np.sqrt(seen.areas) < TINY).sum())
    if tiny > _MANY_TINY * total:
        text = f"smaller than {TINY:g} x {TINY:g} pixels to the network, whose finest stride is {strides[0]}"
        mend = f"enlarge the images ({_larger(dataset, config, 2)}), or remove what nobody could see"
        findings.append(
            finding(HARMFUL, "tiny objects", dataset.name, text, mend, (), tiny, total, "objects")
        )
    ratio = float(np.median(np.concatenate([view.factors for view in views])) / np.median(seen.factors))
    if not 2 / 3 < ratio < 3 / 2:
        text = f"training shows objects {ratio:.2g} times as large as prediction does"
        mend = "--set data.crop=0, or data.scale and model.min_size so that both see the same size"
        findings.append(finding(HARMFUL, "two scales", dataset.name, text, mend, count=1))
    crop = config.data.crop
    longer = dataset.table.boxes[~dataset.table.crowd, 2:].max(axis=1) * np.sqrt(np.prod(config.data.scale))
    cut = int((longer > crop).sum()) if crop else 0
    if cut > _CUT * total:
        text = f"longer than the crop of {crop} pixels: training never sees one of them whole"
        mend = f"--set data.crop={_rounded(np.quantile(longer, 0.95) * 1.5)}, or 0 for whole images"
        findings.append(finding(HARMFUL, "crop", dataset.name, text, mend, (), cut, total, "objects"))
    return findings, facts


def _of_fit(dataset: CocoDataset, config: Config, fit: Fit, generator: AnchorGenerator) -> Iterator[Finding]:
    total = int((~dataset.table.crowd).sum())
    if fit.missed[0.5] < MISSED:
        return
    much = round(100 * fit.missed[0.7])
    text = (
        f"overlap no anchor with IoU 0.5 (and {much} % none with 0.7): each is learnt from one anchor alone"
    )
    mends = []
    if fit.anchors:
        factor, share = fit.anchors
        sizes = ",".join(f"{factor * size:.3g}" for level in generator.sizes for size in level)
        mends.append(f"--set model.anchor_sizes={sizes} would miss {100 * share:.0f} %")
    if fit.images:
        factor, share = fit.images
        scaling = f"{_larger(dataset, config, factor)} (data.scale alone scales in training only)"
        mends.append(f"images scaled by {factor:.2g} would miss {100 * share:.0f} %: {scaling}")
    mend = "; ".join(mends) or "their shapes are unusual (thin, or long): neither other sizes nor scales help"
    yield finding(
        HARMFUL, "anchors", dataset.name, text, mend, (), round(fit.missed[0.5] * total), total, "objects"
    )


def _larger(dataset: CocoDataset, config: Config, factor: float) -> str:
    """The options that scale the images by a factor, in training and in prediction."""
    small = "magnification" not in NETWORKS[config.model.name].without
    if small and not config.model.min_size:
        return f"--set model.magnification={(config.model.magnification or 1) * factor:.2g}"
    shorter = np.median([min(record.height, record.width) for record in dataset.records])
    now = config.model.min_size or shorter
    return f"--set model.min_size={_rounded(now * factor)} --set data.crop=0"


def _rounded(pixels: float) -> int:
    return max(32, int(np.ceil(pixels / 32)) * 32)
