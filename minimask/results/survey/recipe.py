"""A recipe that fits a data set: the rules of `minimask train --config auto`, each with its reason.

A rule is a function of the data's numbers, of the configuration as the rules before it left it, and of the
network. It returns a `Choice`: values by their options, and the reason as a person reads it; nothing for an
option that the network does not have. Whatever the user has set stays, and later rules build on it. The first
rule chooses the network, which all others need to know; then come those of `RULES`.

Sizes in pixels of the network's input say so; all others are in pixels of the image.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minimask.config import DETECTIONS_MOST, Config, shown
from minimask.errors import one_line
from minimask.results.survey.anchors import best_overlaps
from minimask.results.survey.statistics import Network, Statistics, input_factors, seen


@dataclass(frozen=True)
class Choice:
    """Why, and which option gets which value; None leaves one unset."""

    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)


Rule = Callable[[Statistics, Config, Network], Choice]


FINE_BELOW = 24.0  # pixels of the image: six cells of maskrcnn_small's finest map


def network(data: Statistics) -> Choice:
    """A small network, which learns from random weights: for keypoints, for small objects, or for others."""
    if data.keypoints:
        reason = f"the objects have {data.keypoints} keypoints; model.with_masks adds masks"
        return Choice(reason, {"model.name": "keypointrcnn_small"})
    if not len(data.boxes):
        return Choice("learns from random weights, on any computer", {"model.name": "maskrcnn_small"})
    middle = float(np.median(data.sides))
    why = f"the median object has {middle:.3g} px"
    if middle < FINE_BELOW:
        return Choice(f"{why}, few cells of a coarser map", {"model.name": "maskrcnn_fine"})
    return Choice(f"{why}, cells enough of a map at stride 4", {"model.name": "maskrcnn_small"})


TOO_SMALL, ENOUGH = 3, 4  # cells of the finest map
TOO_LARGE, AMPLE = 150.0, 100.0  # pixels of the input
FACTORS = (1 / 16, 1 / 12, 1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0, 1.5, 2.0, 3.0, 4.0)
LONGEST = 4096  # pixels of the input, in prediction: some 3 GiB


def magnification(data: Statistics, config: Config, network: Network) -> Choice:
    """Enlarge what is too small to be seen, and shrink what is needlessly large; in prediction as well."""
    if network.scales_itself or not len(data.boxes):
        return Choice("")
    middle, small = np.quantile(data.sides, [0.5, 0.1])
    why = f"the median object has {middle:.3g} px"
    cell = network.strides[0]
    if middle < TOO_SMALL * cell:
        factor = next((f for f in FACTORS if f >= 1 and f * middle >= ENOUGH * cell), FACTORS[-1])
    elif middle > TOO_LARGE:  # but the smallest tenth must still be seen
        allowed = [f for f in FACTORS if f <= 1 and f * small >= TOO_SMALL * cell] or [1.0]
        factor = next((f for f in reversed(allowed) if f * middle <= AMPLE), allowed[0])
    else:
        factor, why = 1.0, f"{why}, neither too small nor too large"
    bearable = [f for f in FACTORS if f * data.sizes.max() <= LONGEST] or [FACTORS[0]]
    if bearable[-1] < factor:
        factor, why = bearable[-1], f"{why}, but an image {data.sizes.max()}: more would take too much memory"
    elif factor != 1:
        why = f"{why}, {factor * middle:.3g} to the network"
    return Choice(why, {"model.magnification": round(factor, 4)})


def max_size(data: Statistics, config: Config, network: Network) -> Choice:
    """Prediction must not shrink images of which training sees crops that are not shrunk."""
    if network.scales_itself:
        return Choice("")
    if not config.data.crop:
        return Choice("the network's: training shrinks whole images, too")
    factor = config.model.magnification or network.transform.magnification
    longest, own = int(np.ceil(factor * data.sizes.max())), network.transform.max_size
    if longest <= own:
        return Choice(f"no image is longer, {longest} px at most: none is shrunk", {"model.max_size": own})
    largest = min(longest, max(own, LONGEST))
    less = "" if largest == longest else ", though some are longer: more would take too much memory"
    return Choice(f"prediction does not shrink what training saw in crops{less}", {"model.max_size": largest})


CROPS = (256, 320, 384, 448)  # pixels of the input
CELLS = 128  # along a side of the finest map: as many as two cores can manage in a batch of two crops
ROOM = 1.5  # the crop's side over that of a large object
A_FEW = 3.0  # objects in a crop


def crop(data: Statistics, config: Config, network: Network) -> Choice:
    """Large enough for a large object and for several usual ones; small enough for two cores."""
    if network.scales_itself:
        return Choice("the network scales whole images to a size of its own", {"data.crop": 0})
    factor = config.model.magnification or network.transform.magnification
    bearable = [c for c in CROPS if c <= CELLS * network.strides[0]]
    longest = float(factor * np.quantile(data.longest, 0.95)) if len(data.boxes) else 0.0
    side = next((c for c in bearable if c >= ROOM * longest), bearable[-1])
    wanted = min(A_FEW, float(data.counts.mean()))
    fuller = [c for c in bearable if c >= side and objects_in(data, c / factor) >= wanted]
    reason = f"95 % of the objects are shorter than {longest / factor:.3g} px"
    if side < ROOM * longest:
        reason += ", but larger crops would be slow"
    if fuller and fuller[0] > side:
        side = fuller[0]
        reason = f"objects in a crop: {objects_in(data, side / factor):.2g} on average"
    if factor * data.sizes.max() <= 1.25 * side:
        return Choice(f"whole images, none longer than {data.sizes.max()} px", {"data.crop": 0})
    return Choice(reason, {"data.crop": max(1, round(side / factor))})


REPEATED = 1.5  # times the crop's side: the root of an image's area


def repeat_by_size(data: Statistics, config: Config, network: Network) -> Choice:
    """A crop shows a small part of a large image, whose objects would otherwise be seen too seldom."""
    if not config.data.crop:
        return Choice("images are taken whole", {"data.repeat_by_size": False})
    times = float(np.sqrt(data.sizes.prod(axis=1)).max()) / config.data.crop
    some = f"the largest image is {times:.2g} crops wide and high"
    return Choice(some, {"data.repeat_by_size": times >= REPEATED})


def objects_in(data: Statistics, crop: float) -> float:
    """How many objects a crop shows on average; 0 is the whole image."""
    height, width = data.sizes.T
    shares = np.minimum(crop, height) * np.minimum(crop, width) / (height * width) if crop else 1.0
    return float((data.counts * shares).mean())


STARTS = 2.0 ** (np.arange(17) / 4)  # smallest anchor in strides of the finest map: 1 to 16
RATIOS = (2**0.5, 2**0.75, 2.0)  # from one size to the next
NEAR = 0.03  # by how much more may be missed with sizes nearer to the network's
GAIN = 0.1  # by how much less must be missed for other sizes to be worth it


def anchor_sizes(data: Statistics, config: Config, network: Network) -> Choice:
    """A geometric progression that misses few objects, by their best IoU with any anchor, as in matching."""
    own = network.anchor_sizes
    if not len(data.boxes):
        return Choice("no objects: as the network has them", {"model.anchor_sizes": own})
    view = seen(data, input_factors(data, config, network), network.transform.size_divisible)

    def missed(sizes: tuple[float, ...]) -> tuple[float, float]:
        best = best_overlaps(view, network.with_sizes(sizes), network.strides)
        return float(np.mean(best < 0.5)), float(np.mean(best < 0.7))

    def far(sizes: tuple[float, ...]) -> float:
        return float(np.abs(np.log2(np.divide(sizes, own))).sum())

    stride = network.strides[0]
    tried = [
        tuple(float(f"{stride * s * r**k:.3g}") for k in range(len(own))) for s in STARTS for r in RATIOS
    ]
    shares = {sizes: missed(sizes) for sizes in tried}
    least = min(sum(share) for share in shares.values())
    sizes = min((s for s in tried if sum(shares[s]) <= least + NEAR), key=far)
    (half, much), before = shares[sizes], missed(own)
    if sum(shares[sizes]) > sum(before) - GAIN:
        sizes, (half, much), beside = own, before, ", with the network's own"
    else:
        beside = f"; the network's own: {before[0]:.0%}, {before[1]:.0%}"
    reason = f"{half:.0%} of the objects miss IoU 0.5, {much:.0%} miss 0.7{beside}"
    return Choice(reason, {"model.anchor_sizes": sizes})


def canonical_scale(data: Statistics, config: Config, network: Network) -> Choice:
    """The network's own: a box then spans 14 to 28 cells of its level, one or two for each bin of a mask."""
    if network.canonical_scale is None:
        return Choice("")
    reason = f"boxes above {network.canonical_scale / 2:g} px leave the finest map, at 14 cells of the next"
    return Choice(reason, {"model.canonical_scale": network.canonical_scale})


FEW_ROIS, MANY_ROIS = 128, 512


def rois(data: Statistics, config: Config, network: Network) -> Choice:
    """More of them the more objects there are to be sampled."""
    some, own = objects_in(data, config.data.crop), network.rois
    what = f"objects in a training image: {some:.2g} on average"
    if data.keypoints or not len(data.boxes):
        return Choice(f"the network's; {what}", {"model.rois": own})
    count = min(FEW_ROIS, own) if some <= 2 else own if some <= 32 else max(MANY_ROIS, own)
    return Choice(what, {"model.rois": count})


def detections(data: Statistics, config: Config, network: Network) -> Choice:
    """Room for a third more than the most objects in an image, since new images may have more."""
    most = int(data.counts.max())
    count = min(DETECTIONS_MOST, max(100, int(np.ceil(1.3 * most / 10)) * 10))
    return Choice(f"objects in an image: {most} at most", {"model.detections": count})


CROWD = 10  # objects per image, on average


def score_threshold(data: Statistics, config: Config, network: Network) -> Choice:
    """Among many objects AP counts the faint ones, too; pictures show what scores 0.5 and more anyway."""
    mean = float(data.counts.mean())
    many = mean >= CROWD
    why = "the faint ones count" if many else "few enough for the usual one"
    return Choice(f"{mean:.2g} objects an image; {why}", {"model.score_threshold": 0.01 if many else 0.05})


_SIDED = re.compile(
    r"(?<![a-z])(left|right|digits?|letters?|numbers?|characters?|chars?|text|words?|plates?)(?![a-z])"
)
MIRRORED = "a mirror image is one more image, and as good"


def reads(names: tuple[str, ...]) -> str | None:
    """The first class that a mirror would change: one with a side, or one that is read."""
    for name in names:
        plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
        if len(name) == 1 or name.isdigit() or _SIDED.search(plain):
            return name
    return None


def flip_horizontal(data: Statistics, config: Config, network: Network) -> Choice:
    """Unless a class is told apart by its side, or is read."""
    if (name := reads(data.class_names)) is not None:
        reason = f"class {one_line(name, 30)!r} may be another in a mirror"
        return Choice(reason, {"data.flip_horizontal": False})
    return Choice(MIRRORED, {"data.flip_horizontal": True})


IMAGES_NEEDED, OBJECTS_NEEDED = 20, 100
CERTAIN = 3.0  # standard errors of the mean over images


def flip_vertical(data: Statistics, config: Config, network: Network) -> Choice:
    """Only where neither pixels nor boxes show an up and a down, and enough of them were looked at."""
    off = {"data.flip_vertical": False}
    if (name := reads(data.class_names)) is not None:
        return Choice(f"class {one_line(name, 30)!r} may be another in a mirror", off)
    if np.count_nonzero(data.counts) < IMAGES_NEEDED or len(data.boxes) < OBJECTS_NEEDED:
        few = f"{len(data.boxes)} objects in {len(data.sizes)} images are too few to tell up from down"
        return Choice(few, off)
    size = data.boxes[:, 2:] - data.boxes[:, :2]
    place = (data.boxes[:, 1] + data.boxes[:, 3]) / 2 / data.sizes[data.images, 0] - 0.5
    shape = np.log(np.maximum(size[:, 1], 1e-3) / np.maximum(size[:, 0], 1e-3))
    found = {
        "images are brighter above than below, or below than above": data.pixels.fall,
        "objects lie rather above than below, or below than above": _of_images(data, place),
        "objects are rather tall, or wide": _of_images(data, shape),
    }
    for what, values in found.items():
        if abs(values.mean()) > CERTAIN * values.std(ddof=1) / np.sqrt(len(values)):
            return Choice(f"{what}: they have an up and a down", off)
    reason = "neither brightness nor places nor shapes of objects show an up and a down"
    return Choice(reason, {"data.flip_vertical": True})


def _of_images(data: Statistics, values: np.ndarray) -> np.ndarray:
    """The mean of objects' values in each image that has any: those of one image are not independent."""
    sums = np.bincount(data.images, values, len(data.sizes))
    return (sums / np.maximum(data.counts, 1))[data.counts > 0]


UNLIKE = 1.5  # geometric standard deviation of the images' brightness


def colours(data: Statistics, config: Config, network: Network) -> Choice:
    """Random brightness and contrast where images differ in them; saturation where some are grey."""
    spread = float(np.exp(np.log(np.maximum(data.pixels.brightness, 1e-3)).std()))
    grey = float(data.pixels.grey.mean())
    light = 0.2 if spread > UNLIKE else 0.0
    colour = 0.3 if 0.05 < grey < 0.95 else 0.0
    some = "all grey" if grey == 1 else "all in colour" if grey == 0 else f"{grey:.0%} of them grey"
    reason = f"images {'differ' if light else 'are alike'} in brightness, {some}"
    values = {"data.brightness": light, "data.contrast": light, "data.saturation": colour}
    return Choice(reason, values)


def batch_size(data: Statistics, config: Config, network: Network) -> Choice:
    """Two: small batches learn the most per second on few cores, and group norm does not mind."""
    return Choice("many small steps learn more a minute than few large ones", {"train.batch_size": 2})


LEAST, USUAL, MOST = 300, 1500, 6000  # steps
PASSES = 24


def steps(data: Statistics, config: Config, network: Network) -> Choice:
    """`PASSES` over the images, but no fewer steps than small sets need, and no more than a night allows."""
    images = data.total
    least = min(USUAL, max(LEAST, 150 * images))  # there is less to learn from very few images
    count = int(np.clip(np.ceil(PASSES * images / config.train.batch_size / 100) * 100, least, MOST))
    passes = count * config.train.batch_size / images
    return Choice(f"each image is seen {passes:.3g} times", {"train.steps": count})


def warmup_steps(data: Statistics, config: Config, network: Network) -> Choice:
    """A fifteenth of the steps."""
    count = int(np.clip(config.train.steps // 15, 1, 500))
    return Choice("a fifteenth of the steps: random weights bear no full rate", {"train.warmup_steps": count})


def learning_rate(data: Statistics, config: Config, network: Network) -> Choice:
    """The network's, in proportion to the batch."""
    rate, reference = network.learning_rate, network.batch_size
    now = f"{rate * config.train.batch_size / reference:.3g} for {config.train.batch_size}"
    reason = f"the network's, for {reference} images a step: {now}"
    return Choice(reason, {"train.learning_rate": rate, "train.reference_batch": reference})


RULES: tuple[Rule, ...] = (
    magnification,
    max_size,
    crop,
    repeat_by_size,
    anchor_sizes,
    canonical_scale,
    rois,
    detections,
    score_threshold,
    flip_horizontal,
    flip_vertical,
    colours,
    batch_size,
    steps,
    warmup_steps,
    learning_rate,
)


OF_NETWORK = (
    "model.name",
    "model.magnification",
    "model.max_size",
    "model.anchor_sizes",
    "model.canonical_scale",
)
"""Options that belong to trained weights: another choice would undo what they have learnt."""


@dataclass(frozen=True)
class Row:
    """An option, its value, and the reason for it."""

    option: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A configuration, and why it is as it is."""

    config: Config
    rows: tuple[Row, ...]

    def document(self) -> dict[str, dict]:
        """Value and reason by option, ready for JSON."""
        return {row.option: {"value": row.value, "reason": row.reason} for row in self.rows}

    def table(self) -> str:
        """A line for each option that a rule, or the user in its place, has chosen."""
        cells = [(row.option, shown(row.value), row.reason) for row in self.rows]
        first, second = (max(len(cell[i]) for cell in cells) for i in (0, 1))
        return "\n".join(one_line(f"  {a:<{first}}  {b:<{second}}  {c}") for a, b, c in cells)


def choose(
    data: Statistics,
    config: Config,
    given: Mapping[str, str],
    build: Callable[[Config, Statistics], Network],
) -> Recipe:
    """Ask all rules, one after the other.

    Parameters
    ----------
    data : Statistics
    config : Config
        With the options of `given` as they were given.
    given : dict of str to str
        Options that stay as they are, ``"data.crop"``, and whose choice that was, shown in place of a
        reason.
    build : callable
        `statistics.network_of`.

    Raises
    ------
    InputError
        If the network does not suit the data, or what is given.
    """
    rows: list[Row] = []

    def take(choice: Choice, config: Config) -> Config:
        reason = choice.reason
        for option, value in choice.values.items():
            section, _, name = option.partition(".")
            if option in given:
                value = getattr(getattr(config, section), name)
            else:
                part = replace(getattr(config, section), **{name: value})
                config = replace(config, **{section: part})
            rows.append(Row(option, value, given.get(option, reason)))
            reason = "the same" if option not in given else reason
        return config

    config = take(network(data), config)
    built = build(config, data)
    for rule in RULES:
        config = take(rule(data, config, built), config)
    return Recipe(config, tuple(rows))
