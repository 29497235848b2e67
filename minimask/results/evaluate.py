"""COCO's average precision of boxes, masks and keypoints, by pycocotools, for any number of detections."""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minimask.data.keypoint_checks import to_coco
from minimask.files import write_json
from minimask.results.large import predict_at
from minimask.results.oks import oks_sigmas

FILES = ("detections.json", "metrics.json")
METRICS = ("AP", "AP50", "AP75", "small", "medium", "large")
KEYPOINT_DETECTIONS = 20
"""Most detections an image in COCO's evaluation of keypoints."""


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes, masks and keypoints, and the detections it was computed from.

    Attributes
    ----------
    box, mask, keypoint : dict of str to float, or None where the model does not find such
        `METRICS`: AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes; AP50 and
        AP75 are at one threshold; small, medium and large are the AP of objects with an area below 32**2
        pixels, from there to 96**2, and above. -1 where the data has no such object. Keypoints are compared
        by object keypoint similarity (OKS) in the place of IoU, have no small objects, and are counted for
        `KEYPOINT_DETECTIONS` detections an image at most, as in COCO.
    max_detections : int
        How many detections per image were counted at most, best first.
    images, objects : int
        Number of images, and of objects (without crowds), that were evaluated on.
    detections : list of dict
        COCO results: image_id, category_id, bbox (x, y, width, height), score, segmentation (RLE), keypoints.
    sigmas : str
        What the tolerance of keypoints rests on; empty without keypoints.
    """

    box: dict[str, float]
    mask: dict[str, float] | None
    max_detections: int
    images: int
    objects: int
    detections: list[dict]
    keypoint: dict[str, float] | None = None
    sigmas: str = ""

    @property
    def kinds(self) -> dict[str, dict[str, float]]:
        """The metrics by kind, of what the model finds."""
        metrics = {"box": self.box, "mask": self.mask, "keypoint": self.keypoint}
        return {kind: values for kind, values in metrics.items() if values is not None}

    def table(self) -> str:
        """The metrics as a text table; a dash where the data has no such object."""
        width = max(6, *(len(kind) + 2 for kind in self.kinds))
        rows = [" " * width + "".join(f"{name:>8}" for name in METRICS)]
        for kind, values in self.kinds.items():
            cells = ["-" if values.get(name, -1) < 0 else f"{values[name]:.3f}" for name in METRICS]
            rows.append(f"{kind:<{width}}" + "".join(f"{cell:>8}" for cell in cells))
        if any(value < 0 for values in self.kinds.values() for value in values.values()):
            rows.append("-: no object of that size in the data (COCO writes -1)")
        if self.keypoint:
            rows.append(f"{self.sigmas}; small objects count among all, but not by themselves")
        return "\n".join(rows)

    def write(self, directory: Path) -> None:
        """Write detections.json, COCO results that other tools read, and metrics.json."""
        detections, metrics = FILES
        write_json(directory / detections, self.detections)
        written = {name: value for name, value in vars(self).items() if value not in (None, "")}
        values = {name: value for name, value in written.items() if name != "detections"}
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
    kinds = ["bbox"]
    kinds += ["segm"] if getattr(model, "mask_head", True) is not None else []
    both = getattr(model, "keypoint_head", None) is not None and getattr(dataset, "skeleton", None)
    kinds += ["keypoints"] if both else []
    return score(dataset.coco_document(), detections, max_detections, kinds)


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
        boxes (N, 4) x1, y1, x2, y2; labels (N,) from 1; scores (N,); where there are, masks with
        ``rle(threshold)`` and keypoints (N, K, 3).
    category_ids : list of int
        The COCO id of label 1, 2, ...
    """
    boxes = np.asarray(prediction["boxes"], dtype=np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    results = [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[int(label) - 1]),
            "bbox": [round(float(value), 3) for value in (*box[:2], *size)],
            "score": float(value),
        }
        for box, size, label, value in zip(boxes, sizes, prediction["labels"], prediction["scores"])
    ]
    for name, entries in _of_heads(prediction).items():
        for result, entry in zip(results, entries):
            result[name] = entry
    return results


def _of_heads(prediction: dict) -> dict[str, list]:
    """What a mask head and a keypoint head add to the results: a list of N entries by name."""
    entries: dict[str, list] = {}
    if "masks" in prediction:
        entries["segmentation"] = prediction["masks"].rle(0.5)
    if "keypoints" in prediction:
        keypoints = np.array(prediction["keypoints"], np.float64)
        keypoints[..., 2] = 2  # all are given, and which are hidden is not predicted
        flat = to_coco(keypoints).reshape(len(keypoints), -1)
        entries["keypoints"] = [[round(value, 3) for value in row] for row in flat.tolist()]
    return entries


def score(
    document: dict,
    detections: list[dict],
    max_detections: int = 100,
    kinds: Sequence[str] = ("bbox", "segm"),
) -> Evaluation:
    """Compare COCO results with a COCO document.

    Parameters
    ----------
    document : dict
        images, annotations (with area and iscrowd, ids from 1 up) and categories.
    detections : list of dict
        COCO results with bbox, and segmentation and keypoints for these kinds; may be empty.
    kinds : of "bbox", "segm" and "keypoints"
        What is compared.
    """
    from pycocotools import mask as rle_masks

    # A detection is small or large by the area of its box in one metric, of its mask in another, and of the
    # box around its keypoints in the third.
    areas = {
        "bbox": lambda result: result["bbox"][2] * result["bbox"][3],
        # One by one: pycocotools 2.0.11 refuses the area of more than 255 masks at once.
        "segm": lambda result: rle_masks.area(result["segmentation"]),
        "keypoints": lambda result: np.prod(np.ptp(np.reshape(result["keypoints"], (-1, 3))[:, :2], axis=0)),
    }
    sigmas, told = oks_sigmas(document) if "keypoints" in kinds else (None, "")
    found: dict[str, dict | None] = dict.fromkeys(("bbox", "segm", "keypoints"))
    for kind in kinds:
        most = min(max_detections, KEYPOINT_DETECTIONS) if kind == "keypoints" else max_detections
        measured = [areas[kind](result) for result in detections]
        found[kind] = _average_precision(document, detections, measured, kind, most, sigmas)
    return Evaluation(
        box=found["bbox"],
        mask=found["segm"],
        max_detections=max_detections,
        images=len(document["images"]),
        objects=sum(not annotation["iscrowd"] for annotation in document["annotations"]),
        detections=detections,
        keypoint=found["keypoints"],
        sigmas=told,
    )


def _average_precision(
    document: dict,
    detections: list[dict],
    areas: list[float],
    kind: str,
    max_detections: int,
    sigmas: np.ndarray | None = None,
) -> dict[str, float]:
    """The `METRICS` from COCOeval's precisions, whose own summary is fixed to 100 detections and prints.

    Parameters
    ----------
    areas : list of float
        Of each detection, in pixels.
    kind : "bbox", "segm" or "keypoints"
    sigmas : (K,) float, optional
        Of keypoints.
    """
    # COCO.loadRes fails without results and writes into those given; the same annotations are made here.
    results = [
        result | {"id": number, "area": float(area), "iscrowd": 0}
        for number, (result, area) in enumerate(zip(detections, areas), start=1)
    ]
    truth, found = _indexed(document), _indexed(document | {"annotations": results})
    comparison = _silent("cocoeval").COCOeval(truth, found, kind)
    comparison.params.maxDets = [max_detections]
    if kind == "keypoints":
        comparison.params.kpt_oks_sigmas = sigmas
    comparison.evaluate()
    comparison.accumulate()
    # (T thresholds, R recalls, K classes, areas, 1); -1 where there is no object
    precision = comparison.eval["precision"]
    by_area = dict(zip(comparison.params.areaRngLbl, np.moveaxis(precision[..., 0], 3, 0)))  # (T, R, K) each
    any_size, thresholds = by_area.pop("all"), comparison.params.iouThrs
    return {
        "AP": _mean(any_size),
        "AP50": _mean(any_size[np.isclose(thresholds, 0.50)]),
        "AP75": _mean(any_size[np.isclose(thresholds, 0.75)]),
        **{name: _mean(values) for name, values in by_area.items()},  # small, which keypoints lack; ...
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
