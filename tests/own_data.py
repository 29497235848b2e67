"""Images with known masks, written as other tools annotate them: label maps, labelme, YOLO."""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from minimask.data import Shapes, nuclei_sample


def samples(source, count=20):
    """So many samples of the packaged nuclei or of generated shapes, and the names of the classes."""
    dataset = nuclei_sample("train") if source == "nuclei" else Shapes(count, seed=11)
    return [dataset[i] for i in range(count)], dataset.class_names


def write_image(path, sample):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(sample).save(path)


def picture(sample):
    return Image.fromarray((sample.image.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def id_map(sample):
    """(H, W) uint16: object k has the value k + 1, and the first of several at a pixel has it."""
    ids = np.zeros(sample.masks.shape[1:], np.uint16)
    for number, mask in reversed(list(enumerate(sample.masks, start=1))):
        ids[mask > 0] = number
    return ids


def outlines(mask):
    """The outlines of a mask along the edges of its pixels, each (P, 2); its holes are filled."""
    padded = np.pad(ndimage.binary_fill_holes(mask), 1)
    following = {}
    for y, x in zip(*np.nonzero(padded)):
        # Clockwise around the pixel, where the neighbour on the left of the way is none.
        for dy, dx, begin, end in (
            (-1, 0, (x, y), (x + 1, y)),
            (0, 1, (x + 1, y), (x + 1, y + 1)),
            (1, 0, (x + 1, y + 1), (x, y + 1)),
            (0, -1, (x, y + 1), (x, y)),
        ):
            if not padded[y + dy, x + dx]:
                following.setdefault(begin, []).append(end)
    loops = []
    while following:
        start = next(iter(following))
        loop, here = [], start
        while True:
            ends = following[here]
            there = ends.pop()
            if not ends:
                del following[here]
            loop.append(here)
            here = there
            if here == start:
                break
        points = np.array(loop, float) - 1
        ahead, behind = np.roll(points, -1, axis=0) - points, points - np.roll(points, 1, axis=0)
        points = points[(ahead != behind).any(axis=1)]  # corners alone
        loops.append(points)
    return loops


def labelme(sample, class_names, image_path, **fields):
    """A labelme document; parts of one object share a group_id."""
    shapes = []
    for number, (mask, label) in enumerate(zip(sample.masks, sample.labels)):
        parts = outlines(mask)
        for part in parts:
            shapes.append(shape(class_names[label - 1], part.tolist(), number if len(parts) > 1 else None))
    height, width = sample.image.shape[1:]
    document = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image_path, "imageData": None}
    return document | {"imageHeight": height, "imageWidth": width} | fields


def shape(label, points, group=None, kind="polygon", **fields):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}} | fields


def yolo(sample):
    """The lines of a YOLO text; of an object in several parts, the largest."""
    height, width = sample.image.shape[1:]
    lines = []
    for mask, label in zip(sample.masks, sample.labels):
        part = max(outlines(mask), key=len)
        numbers = (part / (width, height)).ravel()
        lines.append(" ".join([str(label - 1), *(f"{number:.6f}" for number in numbers)]))
    return "\n".join(lines) + "\n"


def base64_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_json(path: Path, document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


def ious(found, truth):
    """The best IoU of each true mask, its holes filled, with any found one of its class: (G,).

    Parameters
    ----------
    found, truth
        With masks and labels. An outline cannot tell of holes.
    """
    best = []
    for mask, label in zip(truth.masks, truth.labels):
        candidates = found.masks[found.labels == label] > 0
        inside = ndimage.binary_fill_holes(mask)
        union = (candidates | inside).sum(axis=(1, 2))
        best.append(((candidates & inside).sum(axis=(1, 2)) / union).max(initial=0))
    return np.array(best)
