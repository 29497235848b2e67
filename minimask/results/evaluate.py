"""COCO's average precision of boxes and masks, by pycocotools, for any number of detections per image."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minimask.files import write_json
from minimask.results.large import predict_at

FILES = ("detections.json", "metrics.json")
METRICS = ("AP", "AP50", "AP75", "small", "medium", "large")


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes and of masks, and the detections it was computed from.

    Attributes
    ----------
    box, mask : dict of str to float
        `METRICS`: AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes; AP50 and
        AP75 are at one threshold; small, medium and large are the AP of objects with an area below 32**2
        pixels, from there to 96**2, and above. -1 where the data has no such object.
    max_detections : int
        How many detections per image were counted at most, best first.
    images, objects : int
        Number of images, and of objects (without crowds), that were evaluated on.
    detections : list of dict
        COCO results: image_id, category_id, bbox (x, y, width, height), score, segmentation (RLE).
    """

    box: dict[str, float]
    mask: dict[str, float]
    max_detections: int
    images: int
    objects: int
    detections: list[dict]

    def table(self) -> str:
        """The metrics as a text table; a dash where the data has no such object."""
        rows = ["      " + "".join(f"{name:>8}" for name in METRICS)]
        for kind, values in (("box", self.box), ("mask", self.mask)):
            cells = ["-" if values[name] < 0 else f"{values[name]:.3f}" for name in METRICS]
            rows.append(f"{kind:<6}" + "".join(f"{cell:>8}" for cell in cells))
        if any(value < 0 for value in (self.box | self.mask).values()):
            rows.append("-: no object of that size in the data (COCO writes -1)")
        return "\n".join(rows)

    def write(self, directory: Path) -> None:
        """Write detections.json, COCO results that other tools read, and metrics.json."""
        detections, metrics = FILES
        write_json(directory / detections, self.detections)
        values = {name: value for name, value in vars(self).items() if name != "detections"}
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


def score(document: dict, detections: list[dict], max_detections: int = 100) -> Evaluation:
    """Compare COCO results with a COCO document.

    Parameters
    ----------
    document : dict
        images, annotations (with area and iscrowd, ids from 1 up) and categories.
    detections : list of dict
        COCO results with both bbox and segmentation; may be empty.
    """
    from pycocotools import mask as rle_masks

    # A detection is small or large by the area of its box in one metric and of its mask in the other.
    box_areas = [result["bbox"][2] * result["bbox"][3] for result in detections]
    # One by one: pycocotools 2.0.11 refuses the area of more than 255 masks at once.
    mask_areas = [rle_masks.area(result["segmentation"]) for result in detections]
    return Evaluation(
        box=_average_precision(document, detections, box_areas, "bbox", max_detections),
        mask=_average_precision(document, detections, mask_areas, "segm", max_detections),
        max_detections=max_detections,
        images=len(document["images"]),
        objects=sum(not annotation["iscrowd"] for annotation in document["annotations"]),
        detections=detections,
    )


def _average_precision(
    document: dict, detections: list[dict], areas: list[float], kind: str, max_detections: int
) -> dict[str, float]:
    """The `METRICS` from COCOeval's precisions, whose own summary is fixed to 100 detections and prints.

    Parameters
    ----------
    areas : list of float
        Of each detection, in pixels.
    kind : "bbox" or "segm"
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
    # (T thresholds, R recalls, K classes, 4 areas, 1); -1 where there is no object
    precision = comparison.eval["precision"]
    any_size, small, medium, large = np.moveaxis(precision[..., 0], 3, 0)  # (T, R, K) each
    thresholds = comparison.params.iouThrs
    return {
        "AP": _mean(any_size),
        "AP50": _mean(any_size[np.isclose(thresholds, 0.50)]),
        "AP75": _mean(any_size[np.isclose(thresholds, 0.75)]),
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
