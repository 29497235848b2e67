"""COCO's average precision of boxes and masks, by pycocotools, for any number of detections per image."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minimask.errors import one_line
from minimask.files import write_json
from minimask.results.large import predict_at

FILES = ("detections.json", "metrics.json")
METRICS = ("AP", "AP50", "AP75", "small", "medium", "large")


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found: AP and AP50 of boxes and of masks, -1 where there is no object."""

    category_id: int
    name: str
    objects: int
    box: tuple[float, float] | None
    mask: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes and of masks, and the detections it was computed from.

    Attributes
    ----------
    box, mask : dict of str to float, or None
        None where the results have no boxes, or no masks.
        `METRICS`: AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes; AP50 and
        AP75 are at one threshold; small, medium and large are the AP of objects with an area below 32**2
        pixels, from there to 96**2, and above. -1 where the data has no such object.
    max_detections : int
        How many detections per image were counted at most, best first.
    images, objects : int
        Number of images, and of objects (without crowds), that were evaluated on.
    detections : list of dict
        COCO results: image_id, category_id, bbox (x, y, width, height), score, segmentation (RLE).
    classes : tuple of ClassScore
        In the order of the categories.
    """

    box: dict[str, float] | None
    mask: dict[str, float] | None
    max_detections: int
    images: int
    objects: int
    detections: list[dict]
    classes: tuple["ClassScore", ...] = ()

    def table(self) -> str:
        """The metrics as a text table; a dash where the data has no such object."""
        rows = ["      " + "".join(f"{name:>8}" for name in METRICS)]
        for kind, values in self._kinds():
            cells = ["-" if values[name] < 0 else f"{values[name]:.3f}" for name in METRICS]
            rows.append(f"{kind:<6}" + "".join(f"{cell:>8}" for cell in cells))
        if any(value < 0 for _, values in self._kinds() for value in values.values()):
            rows.append("-: no object of that size in the data (COCO writes -1)")
        return "\n".join(rows)

    def _kinds(self) -> list[tuple[str, dict[str, float]]]:
        return [
            (kind, values) for kind, values in (("box", self.box), ("mask", self.mask)) if values is not None
        ]

    def class_table(self) -> str:
        """AP, AP50 and the number of objects of each class as a text table."""
        width = max([5, *(len(one_line(score.name, 30)) for score in self.classes)])
        heads = "".join(f"{f'{kind} AP':>10}{'AP50':>8}" for kind, _ in self._kinds())
        rows = [f"{'class':<{width}}{'objects':>9}{heads}"]
        for score in self.classes:
            values = [value for pair in (score.box, score.mask) if pair for value in pair]
            cells = ["-" if value < 0 else f"{value:.3f}" for value in values]
            shown = "".join(f"{cell:>{(10, 8)[i % 2]}}" for i, cell in enumerate(cells))
            rows.append(f"{one_line(score.name, 30):<{width}}{score.objects:>9}{shown}")
        return "\n".join(rows)

    def write(self, directory: Path, per_class: bool = False, with_detections: bool = True) -> None:
        """Write detections.json, COCO results that other tools read, and metrics.json."""
        detections, metrics = FILES
        if with_detections:
            write_json(directory / detections, self.detections)
        values = {name: value for name, value in vars(self).items() if name not in ("detections", "classes")}
        values |= {"classes": [vars(score) for score in self.classes]} if per_class else {}
        write_json(directory / metrics, values, indent=2)


def evaluate(
    model: Any,
    dataset: Any,
    max_detections: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Evaluation:
    """Predict every image of a data set, at its own size, and compare with its annotations.

    Parameters
    ----------
    model
        Has ``predict(images)``.
    dataset
        Has ``image_ids``, ``category_ids``, ``coco_document()`` and ``image(index)``.
    max_detections : int, >= 1, optional
        How many detections of each image are kept, best first, in the results and in the metrics; by default
        as many as the model gives at most (``box_detections_per_img``), or 100 where it does not say.
    progress : callable
        Wraps the range of image indices, to show progress.

    Returns
    -------
    Evaluation
    """
    if max_detections is None:
        max_detections = _most_of(model)
    detections: list[dict] = []
    for index in progress(range(len(dataset))):
        prediction = predict_at(model, dataset, index)
        found = coco_results(prediction, dataset.image_ids[index], dataset.category_ids)
        detections += sorted(found, key=lambda result: -result["score"])[:max_detections]
    return score(dataset.coco_document(), detections, max_detections)


def _most_of(model: Any) -> int:
    options = getattr(getattr(model, "box_head", None), "options", None)
    return getattr(options, "detections_per_img", 100)


def beyond_limit(dataset: Any, most: int) -> str | None:
    """A line that says which images have more objects than `most`, so that some can never be found; or None.

    Parameters
    ----------
    dataset
        Has ``object_counts()`` and ``describe(index)``; others are not looked at.
    most : int
        The limit of detections an image.
    """
    counts = dataset.object_counts() if hasattr(dataset, "object_counts") else np.zeros(0, int)  # (N,)
    beyond = int((counts > most).sum())
    if not beyond:
        return None
    worst = int(counts.argmax())
    images = "1 image has" if beyond == 1 else f"{beyond} images have"
    return (
        f"{images} more objects than the {most} detections that each may have, so some cannot be found; most "
        f"has {dataset.describe(worst)}: {counts[worst]}. Raise model.detections, or --max-detections"
    )


def coco_results(prediction: dict, image_id: int, category_ids: list[int]) -> list[dict]:
    """One image's predictions as COCO results; masks are thresholded at 0.5 and run-length encoded.

    Parameters
    ----------
    prediction : dict
        boxes (N, 4) x1, y1, x2, y2; labels (N,) from 1; scores (N,); masks with ``rle(threshold)``.
    category_ids : list of int
        The COCO id of label 1, 2, ...
    """
    boxes = np.asarray(prediction["boxes"], dtype=np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(label) - 1]),
            "bbox": [round(float(value), 3) for value in (*box[:2], *size)],
            "score": float(value),
            "segmentation": rle,
        }
        for box, size, label, value, rle in zip(
            boxes, sizes, prediction["labels"], prediction["scores"], prediction["masks"].rle(0.5)
        )
    ]


def score(
    document: dict,
    detections: list[dict],
    max_detections: int = 100,
    kinds: Sequence[str] = ("bbox", "segm"),
    box_areas: bool = False,
) -> Evaluation:
    """Compare COCO results with a COCO document.

    Parameters
    ----------
    document : dict
        images, annotations (with area and iscrowd, ids from 1 up) and categories.
    detections : list of dict
        COCO results with a bbox and a segmentation (RLE), or one of the two; may be empty.
    kinds : "bbox" and "segm", or one of them
        What is compared, and what all detections have.
    box_areas : bool
        Whether masks are small or large by the areas of their boxes, as `COCO.loadRes` has it for results
        that have both; by default by their own, as in detectron2 and mmdetection, which drop the boxes.
    """
    areas = {kind: _areas(detections, "bbox" if box_areas else kind) for kind in kinds}
    precisions = {kind: _precision(document, detections, areas[kind], kind, max_detections) for kind in kinds}
    metrics = {kind: _metrics(precision) for kind, precision in precisions.items()}
    objects = Counter(a["category_id"] for a in document["annotations"] if not a["iscrowd"])
    names = {category["id"]: category["name"] for category in document["categories"]}
    classes = []
    for k, number in enumerate(sorted(names)):  # as COCOeval orders them
        found = [precisions[kind][:, :, k, 0] if kind in kinds else None for kind in ("bbox", "segm")]
        pairs = (
            None if precision is None else (_mean(precision), _mean(precision[:1])) for precision in found
        )
        classes.append(ClassScore(number, names[number], objects[number], *pairs))
    return Evaluation(
        box=metrics.get("bbox"),
        mask=metrics.get("segm"),
        max_detections=max_detections,
        images=len(document["images"]),
        objects=sum(objects.values()),
        detections=detections,
        classes=tuple(classes),
    )


def _areas(detections: list[dict], kind: str) -> list[float]:
    """A detection is small or large by the area of its box in one metric and of its mask in the other."""
    from pycocotools import mask as rle_masks

    if kind == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in detections]
    # One by one: pycocotools 2.0.11 refuses the area of more than 255 masks at once.
    return [rle_masks.area(result["segmentation"]) for result in detections]


def _precision(
    document: dict, detections: list[dict], areas: list[float], kind: str, max_detections: int
) -> np.ndarray:
    """COCOeval's precisions: (T thresholds, R recalls, K classes, 4 areas); -1 where there is no object.

    Parameters
    ----------
    areas : list of float
        Of each detection, in pixels.
    kind : "bbox" or "segm"

    Notes
    -----
    Its own summary is fixed to 100 detections, and prints.
    """
    # COCO.loadRes fails without results and writes into those given; the same annotations are made here.
    results = [
        result | {"id": number, "area": float(area), "iscrowd": 0}
        for number, (result, area) in enumerate(zip(detections, areas), start=1)
    ]
    truth, found = _indexed(document), _indexed(document | {"annotations": results})
    comparison = _silent("cocoeval").COCOeval(truth, found, kind)
    comparison.params.maxDets = [max_detections]
    comparison.evaluate()
    comparison.accumulate()
    return comparison.eval["precision"][..., 0]


def _metrics(precision: np.ndarray) -> dict[str, float]:
    """The `METRICS` of (T, R, K, 4) precisions; the thresholds are 0.50, 0.55, ..., 0.95."""
    any_size, small, medium, large = np.moveaxis(precision, 3, 0)  # (T, R, K) each
    return {
        "AP": _mean(any_size),
        "AP50": _mean(any_size[:1]),
        "AP75": _mean(any_size[5:6]),
        "small": _mean(small),
        "medium": _mean(medium),
        "large": _mean(large),
    }


def _mean(precision: np.ndarray) -> float:
    """Over the entries for which there are objects; -1 without any."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0


def _indexed(document: dict):
    """A pycocotools COCO of a document in memory; its annotations are copies: COCOeval writes into them."""
    coco = _silent("coco").COCO()
    coco.dataset = document | {"annotations": [dict(annotation) for annotation in document["annotations"]]}
    coco.createIndex()
    return coco


@cache
def _silent(name: str) -> ModuleType:
    """A copy of our own of a module of pycocotools, in which ``print`` prints nothing.

    Its classes tell of every step they take. Taking ``sys.stdout`` away from them takes it away from all
    threads, and leaves it so where two of them score at once.
    """
    specification = importlib.util.find_spec(f"pycocotools.{name}")
    module = importlib.util.module_from_spec(specification)
    module.print = lambda *values, **options: None  # found before the built-in one
    specification.loader.exec_module(module)
    return module
