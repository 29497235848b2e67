"""Validation during training: the images that take part, and a sheet of what is found in some of them."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minimask.errors import one_line
from minimask.files import replacing
from minimask.results.fonts import font
from minimask.results.report.scene import Scenes

if TYPE_CHECKING:
    from PIL import Image

SHOWN, SHOWN_ABOVE = 4, 0.5  # images on a sheet; the least score that is drawn
MOST = 12  # sheets that are kept
_SIDE, _GAP, _LINE = 360, 12, 20  # display pixels
_BACKGROUND, _INK = (250, 250, 250), (30, 30, 30)
_SHEET = re.compile(r"step-(\d{6,})\.png")


def spread(count: int, most: int) -> list[int]:
    """At most `most` indices out of `count`, evenly spaced; all if `most` is 0."""
    most = min(most or count, count)
    return [i * count // most for i in range(most)]


class Part:
    """Some of a data set's images, as `evaluate` takes a data set."""

    def __init__(self, dataset: Any, indices: Sequence[int]):
        self._dataset, self._indices = dataset, list(indices)
        self.name, self.skeleton = dataset.name, getattr(dataset, "skeleton", None)
        self.category_ids, self.class_names = dataset.category_ids, dataset.class_names
        self.image_ids = [dataset.image_ids[index] for index in self._indices]
        if hasattr(dataset, "pixels"):
            self.pixels = lambda index: dataset.pixels(self._indices[index])

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> Any:
        """The image alone, (3, H, W) float32."""
        return self._dataset.image(self._indices[index])

    def coco_document(self) -> dict:
        """The ground truth of these images."""
        document, kept = self._dataset.coco_document(), set(self.image_ids)
        annotations = [a for a in document["annotations"] if a["image_id"] in kept]
        images = {image["id"]: image for image in document["images"]}
        return document | {"images": [images[i] for i in self.image_ids], "annotations": annotations}


def sheet(dataset: Any, document: dict, detections: Sequence[dict], title: str) -> "Image.Image":
    """Ground truth beside what was found, on a few images, always the same ones.

    Parameters
    ----------
    dataset
        What was evaluated on.
    document : dict
        Its COCO document.
    detections : sequence of dict
        COCO results.
    title : str
    """
    from PIL import Image, ImageDraw

    scenes, rows = Scenes(dataset, document), []
    shown = [index for index in range(len(dataset)) if scenes.can_be_shown(index)]
    for index in [shown[i] for i in spread(len(shown), SHOWN)]:
        number = document["images"][index]["id"]
        truth = [a for a in document["annotations"] if a["image_id"] == number]
        found = [d for d in detections if d["image_id"] == number and d["score"] >= SHOWN_ABOVE]
        objects = sum(not a["iscrowd"] for a in truth)
        words = f"{objects} annotated, {len(found)} found: {one_line(scenes.name(index), 40)}"
        rows.append((words, scenes.draw(index, scenes.whole(index), (truth, found), _SIDE)))
    heights = [pictures[0].height + _LINE + _GAP for _, pictures in rows]
    size = (2 * (_SIDE + _GAP) + _GAP, 2 * _LINE + sum(heights))
    canvas = Image.new("RGB", size, _BACKGROUND)
    pen, y = ImageDraw.Draw(canvas), 2 * _LINE
    pen.text((_GAP, 10), title, _INK, font(16, title))
    for (words, pictures), height in zip(rows, heights):
        for column, picture in enumerate(pictures):
            canvas.paste(picture, (_GAP + column * (_SIDE + _GAP), y))
        pen.text((_GAP, y + pictures[0].height + 2), words, _INK, font(13, words))
        y += height
    return canvas


def save_sheet(directory: Path, step: int, picture: "Image.Image") -> None:
    """Write ``step-000400.png``, and remove sheets so that `MOST` are left, about evenly spaced."""
    directory.mkdir(exist_ok=True)
    with replacing(directory / f"step-{step:06}.png") as file:
        picture.save(file, "PNG")
    steps = sorted(int(m[1]) for m in map(_SHEET.fullmatch, (p.name for p in directory.iterdir())) if m)
    for gone in set(steps) - kept(steps):
        with suppress(OSError):
            (directory / f"step-{gone:06}.png").unlink()


def kept(steps: Sequence[int]) -> set[int]:
    """Of rising steps, those whose sheets are kept: first, last, and multiples of a step that doubles.

    They depend on the first and the last step alone, so that a run that was killed and resumed ends with the
    same files.
    """
    every = max(steps[0], 1)
    while steps[-1] / every > MOST - 2:
        every *= 2
    return {step for step in steps if step % every == 0} | {steps[0], steps[-1]}
