"""Pictures: instances over images, truth beside prediction, loss curves, and label maps.

Shapes: G instances on an image of H x W. An image pixel is drawn as `zoom` x `zoom` display pixels.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from minimask.boxes import by_falling
from minimask.data.augmentation import LUMA
from minimask.data.sample import tight_boxes
from minimask.data.skeleton import Skeleton
from minimask.errors import InputError, one_line
from minimask.files import replacing
from minimask.masks import Window
from minimask.results.fonts import font
from minimask.results.plotting import new_figure

if TYPE_CHECKING:
    from PIL import Image

# Okabe and Ito's palette (2008), distinct under every common colour blindness; black is left to the halos.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_BASE = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in PALETTE], np.float32)
# The seven, then lighter and darker ones: all that can be told apart, repeated for further classes.
_RGB = np.concatenate([_BASE, 0.55 * _BASE + 0.45 * 255, 0.6 * _BASE])  # (21, 3)
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)
_LINE, _HALO = 2.0, 1.2  # widths in display pixels
_FILL = 0.32  # opacity of a mask
_LABEL_HEIGHT = 15  # display pixels
_BONE, _JOINT = 1.3, 3.4  # half a line's width and a keypoint's radius, in display pixels


def windows(masks: Any) -> Iterator[tuple[Window, np.ndarray]]:
    """Each mask as the window that it fills and the patch inside it, with values from 0 to 1.

    Parameters
    ----------
    masks : (G, H, W) array, or a model's masks, which have ``window(i)``
    """
    if hasattr(masks, "window"):
        yield from map(masks.window, range(len(masks)))
    else:
        for mask, (x1, y1, x2, y2) in zip(masks, tight_boxes(masks).astype(int).tolist()):
            yield Window(y1, y2, x1, x2), mask[y1:y2, x1:x2]


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    masks: Any,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    zoom: float | None = None,
    names: bool = True,
    keypoints: np.ndarray | None = None,
    skeleton: Skeleton | None = None,
) -> "Image.Image":
    """Draw masks, boxes, keypoints, class names and scores over an image.

    Parameters
    ----------
    image : (3, H, W) float, 0..1
    boxes : (G, 4) float
        x1, y1, x2, y2 in pixels.
    labels : (G,) int
        From 1 up; ``class_names[label - 1]`` is the name.
    masks : (G, H, W) array, a model's masks, or None
    scores : (G,) float, optional
        Written beside the name.
    zoom : float, optional
        Display pixels per image pixel; by default small images are enlarged to about 1000 pixels, in
        steps of one half and at most four times.
    names : bool
        Whether each instance is labelled with the name of its class; the caption has it in any case.
    keypoints : (G, K, 3) float, optional
        x, y in pixels, and visibility: 0 is not drawn, 1 (hidden) a ring, 2 a dot.
    skeleton : Skeleton, optional
        Which keypoints are joined by lines.

    Returns
    -------
    PIL image, RGB, with a strip below that counts the instances of each class.

    Notes
    -----
    Each class has a colour, the same as in `label_maps`; if there is only one class, neighbours differ in
    colour. Every line is coloured and has a dark halo, so that it shows on dark and on bright
    images. A label that would hide another one or the middle of another instance is shortened to the score
    or left out; the caption says how many were left out.
    """
    from PIL import Image

    if zoom is None:
        zoom = float(np.clip(2000 // max(image.shape[1:]) / 2, 1, 4))
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels).reshape(-1)
    canvas = _resized(image, zoom)  # (H*zoom, W*zoom, 3) float 0..255
    colours = _colours(boxes) if len(class_names) == 1 else [(label - 1) % len(_RGB) for label in labels]
    class_names = [one_line(name) for name in class_names]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for index in by_falling(areas):  # the small ones on top
        if masks is not None:  # one at a time: a patch may fill the image
            ((window, patch),) = windows(masks[index : index + 1])
            _draw_mask(canvas, window, patch, _RGB[colours[index]], zoom)
        _draw_box(canvas, boxes[index] * zoom, _RGB[colours[index]])
        if keypoints is not None:
            scaled = np.asarray(keypoints[index], np.float64) * (zoom, zoom, 1)
            _draw_keypoints(canvas, scaled, skeleton.edges if skeleton else (), _RGB[colours[index]])
    picture = Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))
    texts = _texts([class_names[label - 1] if names else "" for label in labels], scores)
    order = by_falling(scores) if scores is not None else range(len(labels))
    missing = _draw_labels(picture, boxes * zoom, texts, colours, order)
    counts = Counter(class_names[label - 1] for label in labels)
    caption = ", ".join(f"{number} × {name}" for name, number in counts.most_common()) or "no objects"
    if missing:
        caption += f" ({missing} label{'s' * (missing > 1)} left out for room)"
    return _with_caption(picture, caption)


def comparison(
    samples: Sequence[Any], predictions: Sequence[dict], class_names: Sequence[str], size: int = 420
) -> "Image.Image":
    """Rows of image, ground truth and prediction.

    Parameters
    ----------
    samples : sequence of Sample
        With image, boxes, labels, masks.
    predictions : sequence of dict
        What the model finds in each: boxes, labels, scores, masks.
    size : int
        Longer side of each picture in display pixels.
    """
    from PIL import Image, ImageDraw

    rows = [_compared(sample, found, class_names, size) for sample, found in zip(samples, predictions)]
    gap, head = 12, 34
    heights = [max(picture.height for picture in row) + gap for row in rows]
    sheet = Image.new("RGB", (3 * (size + gap) + gap, head + sum(heights)), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(("image", "ground truth", "prediction")):
        pen.text((gap + column * (size + gap), 9), title, _INK, font(16))
    y = head
    for row, height in zip(rows, heights):
        for column, picture in enumerate(row):
            sheet.paste(picture, (gap + column * (size + gap), y))
        y += height
    return sheet


def _compared(sample: Any, found: dict, class_names: Sequence[str], size: int) -> list["Image.Image"]:
    """One row of `comparison`: the image, the ground truth and the prediction."""
    from PIL import Image

    zoom = size / max(sample.image.shape[1:])
    # In a dark image nobody would notice that an object was missed.
    gain = float(np.clip(0.9 / max(np.quantile(sample.image, 0.995), 1e-6), 1, 8))
    image, caption = gain * sample.image, f"shown {gain:.1f} times brighter" if gain > 1.2 else ""
    plain = Image.fromarray(_resized(image, zoom).astype(np.uint8))
    names = len(class_names) > 1
    options = dict(zoom=zoom, names=names, skeleton=getattr(sample, "skeleton", None))
    keypoints = getattr(sample, "keypoints", None)
    truth = draw_instances(
        image, sample.boxes, sample.labels, sample.masks, class_names, keypoints=keypoints, **options
    )
    guess = draw_instances(
        image,
        found["boxes"],
        found["labels"],
        found.get("masks"),
        class_names,
        found["scores"],
        keypoints=likely_keypoints(found),
        **options,
    )
    return [_with_caption(plain, caption), truth, guess]


def loss_curves(
    log: dict[str, np.ndarray], path: str | Path, validations: Sequence[dict[str, Any]] = ()
) -> None:
    """Plot the losses of a training run over its steps, as PNG; and what validations found on the way.

    Parameters
    ----------
    log : dict of str to (steps,) array
        ``step``, ``loss`` (the sum), and each ``loss_...``; other columns are not shown. NaN where there is
        no value; an empty or absent column gets no curve.
    validations : sequence of dict
        The lines of log.jsonl that have one.
    """
    panels = 3 if validations else 2
    figure = new_figure(figsize=(6 * panels, 4.2), layout="constrained")
    left, right, *more = figure.subplots(1, panels)
    _plot_sum(left, log)
    _plot_parts(right, log)
    for axes in more:
        _plot_validations(axes, validations)
    for axes in (left, right, *more):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _plot_validations(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for number, kind in enumerate(("mask", "box", "keypoint")):
        for metric, style in (("AP", "-"), ("AP50", "--")):
            points = [(row["step"], validated(row, kind, metric)) for row in rows]
            steps, values = zip(*points)
            if np.isfinite(values).any():
                colour = PALETTE[(number + 4) % len(PALETTE)]
                axes.plot(
                    steps, values, style, marker="o", markersize=4, color=colour, label=f"{kind} {metric}"
                )
    axes.set(title="validation", xlabel="step", ylabel="average precision")
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(frameon=False)


def validated(row: dict[str, Any], kind: str, metric: str) -> float:
    """A number of a validation in log.jsonl; NaN if it has none, because there was no object, say."""
    values = row["validation"].get(kind)
    value = values.get(metric) if isinstance(values, dict) else None
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else float("nan")


def _curve(log: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a column has a value, and its values there."""
    values = log.get(name, np.zeros(0))
    known = np.isfinite(values)
    return log.get("step", np.zeros(0))[: len(values)][known], values[known]


def _plot_sum(axes: Any, log: dict[str, np.ndarray]) -> None:
    steps, sums = _curve(log, "loss")
    axes.plot(steps, sums, color="#B0B0B0", linewidth=0.6, label="each step")
    axes.plot(steps, smooth(sums), color="black", linewidth=1.8, label="running mean")
    axes.set(title="sum of the losses", xlabel="step", ylabel="loss")
    if len(sums):
        axes.set_ylim(bottom=0, top=float(np.quantile(sums, 0.99)) * 1.1 + 1e-12)
    axes.legend(frameon=False)


def _plot_parts(axes: Any, log: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
    parts = [name for name in log if name.startswith("loss_")]
    for index, name in enumerate(parts):
        steps, values = _curve(log, name)
        axes.plot(
            steps,
            smooth(values),
            color=PALETTE[(index + 4) % len(PALETTE)],
            linestyle=styles[index % len(styles)],
            linewidth=1.8,
            label=name.removeprefix("loss_"),
        )
    axes.set(title="each loss, running mean", xlabel="step", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")  # 0.2, not 2 x 10^-1
    axes.yaxis.set_minor_locator(NullLocator())
    if parts:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def label_maps(
    prediction: dict, height: int, width: int, classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The instances as two images of labels; where masks overlap, the higher score is on top.

    Parameters
    ----------
    prediction : dict
        labels, scores and masks; masks are thresholded at 0.5.
    classes : int, optional
        How many classes there are, which decides the type of their map; by default the greatest label.

    Returns
    -------
    ids : (H, W) uint16
        0 is background; i + 1 is instance i of the prediction.
    classes : (H, W) uint8, or uint16 where there are more than 255
        0 is background, else the label of the class: a semantic segmentation.

    Raises
    ------
    InputError
        If there are more instances or classes than the 65535 that a picture of 16 bits can tell apart.
    """
    greatest = max(classes or 0, int(np.max(prediction["labels"], initial=0)))
    for what, count in (("objects", len(prediction["labels"])), ("classes", greatest)):
        if count > 65_535:
            raise InputError(f"label maps have room for 65535 {what}, not for {count}; do without them")
    ids = np.zeros((height, width), np.uint16)
    of_class = np.zeros((height, width), np.uint8 if greatest < 256 else np.uint16)
    masks = prediction["masks"]
    for index in np.argsort(np.asarray(prediction["scores"]), kind="stable"):
        (((y0, y1, x0, x1), patch),) = windows(masks[index : index + 1])
        inside = patch > 0.5
        ids[y0:y1, x0:x1][inside] = index + 1
        of_class[y0:y1, x0:x1][inside] = prediction["labels"][index]
    return ids, of_class


def save_picture(path: str | Path, picture: Any) -> None:
    """Write a PIL image as PNG, or an array of labels: uint16, or uint8, which gets a palette for viewers."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        palette = picture.dtype == np.uint8
        picture = Image.fromarray(picture)
        if palette:  # the pixels stay the labels; only viewers show colours
            picture = picture.convert("L")
            picture.putpalette([0, 0, 0] + _RGB[np.arange(255) % len(_RGB)].astype(int).ravel().tolist())
    with replacing(path) as file:
        picture.save(file, "PNG")


# ----------------------------------------------------------------------------------------------- drawing


def _resized(image: np.ndarray, zoom: float) -> np.ndarray:
    """(3, H, W) in 0..1 -> (H*zoom, W*zoom, 3) float32 in 0..255."""
    from PIL import Image

    pixels = np.clip(image.transpose(1, 2, 0) * 255 + 0.5, 0, 255).astype(np.uint8)  # (H, W, 3)
    height, width = (max(1, round(side * zoom)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _draw_mask(canvas: np.ndarray, window: tuple, patch: np.ndarray, colour: np.ndarray, zoom: float) -> None:
    """Fill a mask and stroke its edge, both anti-aliased by the distance from the edge."""
    from PIL import Image

    if patch.size == 0:
        return
    # An empty margin closes the outline of a mask that fills its window, and makes room for the halo.
    margin = int(np.ceil((_LINE + _HALO) / zoom)) + 1
    y0, x0 = window[0] - margin, window[2] - margin
    padded = np.pad(patch.astype(np.float32), margin)
    top, left = round(y0 * zoom), round(x0 * zoom)
    size = (round((x0 + padded.shape[1]) * zoom) - left, round((y0 + padded.shape[0]) * zoom) - top)
    inside = np.asarray(Image.fromarray(padded).resize(size, Image.Resampling.BILINEAR)) >= 0.5
    # Signed distance to the edge in display pixels, positive inside.
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    depth -= np.where(inside, 0.5, -0.5)
    rows = slice(max(-top, 0), max(canvas.shape[0] - top, 0))  # the part that lies in the image
    columns = slice(max(-left, 0), max(canvas.shape[1] - left, 0))
    depth = depth[rows, columns]
    target = canvas[max(top, 0) : max(top, 0) + depth.shape[0], max(left, 0) : max(left, 0) + depth.shape[1]]
    _blend(target, np.zeros(3, np.float32), 0.75 * _band(depth, -_HALO, 0))
    _blend(target, colour, _FILL * _band(depth, 0, np.inf))
    _blend(target, colour, _band(depth, 0, _LINE))


def _band(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """What share of each pixel lies between two depths, from 0 to 1."""
    return np.clip(np.minimum(depth - low, high - depth) + 0.5, 0, 1).astype(np.float32)


def _blend(target: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> None:
    target += opacity[..., None] * (colour - target)


def _draw_box(canvas: np.ndarray, box: np.ndarray, colour: np.ndarray) -> None:
    height, width = canvas.shape[:2]
    x1, x2 = (int(np.clip(round(x), 0, width - 1)) for x in (box[0], box[2] - 1))
    y1, y2 = (int(np.clip(round(y), 0, height - 1)) for y in (box[1], box[3] - 1))
    black = np.zeros(3, np.float32)
    for grow, ink, opacity in ((1, black, 0.35), (0, colour, 0.8)):  # a dark frame around the coloured one
        a, b = max(y1 - grow, 0), min(y2 + grow, height - 1)
        c, d = max(x1 - grow, 0), min(x2 + grow, width - 1)
        for edge in (canvas[a, c : d + 1], canvas[b, c : d + 1], canvas[a : b + 1, c], canvas[a : b + 1, d]):
            edge += opacity * (ink - edge)


def likely_keypoints(prediction: dict, probability: float = 0.05) -> np.ndarray | None:
    """A prediction's keypoints (G, K, 3) to draw: visible where they are at least this probable, else not.

    The threshold is detectron2's. A pure guess among 56 x 56 cells has a probability of 1/3136.
    """
    if "keypoints" not in prediction:
        return None
    keypoints = np.array(prediction["keypoints"], np.float64)
    keypoints[..., 2] = np.where(np.asarray(prediction["keypoints_probabilities"]) >= probability, 2, 0)
    return keypoints


def _draw_keypoints(
    canvas: np.ndarray, keypoints: np.ndarray, edges: Iterable[tuple[int, int]], colour: np.ndarray
) -> None:
    """Lines in the instance's colour, then white dots with a rim of it (black ones for hidden keypoints).

    All have a dark halo. `keypoints` is (K, 3): x, y in display pixels, and visibility.
    """
    black, white = np.zeros(3, np.float32), np.full(3, 255, np.float32)
    lines = [(a, b) for a, b in edges if keypoints[a, 2] > 0 and keypoints[b, 2] > 0]
    points = [k for k in range(len(keypoints)) if keypoints[k, 2] > 0]
    for ink, grow in ((black, _HALO), (colour, 0.0)):
        for a, b in lines:
            _stroke(canvas, keypoints[a, :2], keypoints[b, :2], _BONE + grow, ink)
    for k in points:
        place, hidden = keypoints[k, :2], keypoints[k, 2] == 1
        _stroke(canvas, place, place, _JOINT + _HALO, black)
        _stroke(canvas, place, place, _JOINT, colour)
        _stroke(canvas, place, place, _JOINT - 1.5, black if hidden else white)


def _stroke(canvas: np.ndarray, a: np.ndarray, b: np.ndarray, radius: float, colour: np.ndarray) -> None:
    """Colour what is nearer than `radius` to the line from a to b (x, y in display pixels), anti-aliased."""
    height, width = canvas.shape[:2]
    x1, y1 = np.floor(np.minimum(a, b) - radius - 1).astype(int)
    x2, y2 = np.ceil(np.maximum(a, b) + radius + 1).astype(int)
    x1, x2, y1, y2 = max(x1, 0), min(x2, width), max(y1, 0), min(y2, height)
    if x1 >= x2 or y1 >= y2:
        return
    x, y = np.arange(x1, x2) + 0.5 - a[0], np.arange(y1, y2)[:, None] + 0.5 - a[1]
    dx, dy = b - a
    along = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)  # 0 at a, 1 at b
    distance = np.hypot(x - along * dx, y - along * dy)
    _blend(canvas[y1:y2, x1:x2], colour, np.clip(radius - distance + 0.5, 0, 1).astype(np.float32))


def _colours(boxes: np.ndarray) -> list[int]:
    """Indices into the palette; boxes that touch get different ones, as long as seven colours suffice."""
    colours: list[int] = []
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        before = boxes[:index]
        near = (before[:, 0] < x2 + 8) & (before[:, 2] > x1 - 8) & (before[:, 1] < y2 + 8)
        taken = {colours[i] for i in np.flatnonzero(near & (before[:, 3] > y1 - 8))}
        choice = [(index + shift) % len(PALETTE) for shift in range(len(PALETTE))]
        colours.append(next((colour for colour in choice if colour not in taken), choice[0]))
    return colours


def _texts(names: Sequence[str], scores: np.ndarray | None) -> list[list[str]]:
    """What may be written at each instance, the longest first; an empty name is not written."""
    if scores is None:
        return [[name] if name else [] for name in names]
    return [[f"{name} {score:.2f}".strip(), f"{score:.2f}"] for name, score in zip(names, scores)]


def _draw_labels(
    picture: "Image.Image",
    boxes: np.ndarray,
    texts: Sequence[Sequence[str]],
    colours: Sequence[int],
    order: Iterable[int],
) -> int:
    """Label boxes (G, 4), in display pixels, each with the first of its texts for which there is room.

    Returns how many got no label for lack of room; boxes earlier in `order` choose first.
    """
    from PIL import ImageDraw

    pen, unlabelled = ImageDraw.Draw(picture), 0
    low, high = boxes[:, :2], boxes[:, 2:]
    middles = np.concatenate([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high], axis=1)  # (G, 4)
    labels = np.zeros((0, 4))  # the boxes of the labels drawn so far
    for index in order:
        # A label may cover the rim of another instance, but neither its middle nor another label.
        kept_free = np.vstack([labels, middles[:index], middles[index + 1 :]])
        place = _find_place(boxes[index], texts[index], kept_free, picture.size, pen)
        if place:
            label, text = place
            labels = np.vstack([labels, label])
            _draw_label(pen, label, text, _RGB[colours[index]])
        else:
            unlabelled += bool(texts[index])
    return unlabelled


def _find_place(
    box: np.ndarray, texts: Sequence[str], kept_free: np.ndarray, size: tuple[int, int], pen: Any
) -> tuple[tuple, str] | None:
    """The box of a label and its text: above `box`, or below it, or inside at its top; None if all is taken.

    Parameters
    ----------
    kept_free : (N, 4)
        Boxes that it must not overlap.
    size : (width, height)
        Of the picture.
    """
    x1, y1, _, y2 = box
    for text in texts:
        width, height = pen.textlength(text, font(12, text)) + 5, _LABEL_HEIGHT
        left = min(max(x1, 0), size[0] - width)
        for top in (y1 - height, y2 + 1, y1 + 1):
            right, bottom = left + width, top + height
            apart_in_x = (kept_free[:, 0] >= right) | (kept_free[:, 2] <= left)
            apart_in_y = (kept_free[:, 1] >= bottom) | (kept_free[:, 3] <= top)
            if left >= 0 and top >= 0 and bottom <= size[1] and (apart_in_x | apart_in_y).all():
                return (left, top, right, bottom), text
    return None


def _draw_label(pen: Any, label: tuple, text: str, colour: np.ndarray) -> None:
    """Dark text on a bright colour, and white on a dark one."""
    ink = (0, 0, 0) if colour @ LUMA > 110 else (255, 255, 255)
    pen.rectangle(label, tuple(int(value) for value in colour))
    pen.text((label[0] + 3, label[1] + 1), text, ink, font(12, text))


def _with_caption(picture: "Image.Image", caption: str) -> "Image.Image":
    """The picture with its caption below, in as many lines as it takes."""
    from PIL import Image, ImageDraw

    lines = [""]
    measure = ImageDraw.Draw(picture).textlength
    for word in caption.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure(longer, font(13, caption)) > picture.width - 4:
            lines.append(word)
        else:
            lines[-1] = longer
    framed = Image.new("RGB", (picture.width, picture.height + 5 + 17 * len(lines)), _BACKGROUND)
    framed.paste(picture, (0, 0))
    pen = ImageDraw.Draw(framed)
    for row, line in enumerate(lines):
        pen.text((2, picture.height + 4 + 17 * row), line, _INK, font(13, caption))
    return framed


def smooth(values: np.ndarray) -> np.ndarray:
    """Exponential mean over the last steps (a 40th of all, at least 5), without a bias from its start."""
    keep = np.exp(-1.0 / max(5.0, len(values) / 40))
    total, weight, means = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        means.append(total / weight)
    return np.asarray(means)
