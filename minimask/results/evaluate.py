"""COCO's average precision of boxes, masks and keypoints, by pycocotools, for any number of detections."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data.keypoint_checks import to_coco
from minimask.errors import one_line
from minimask.files import write_json
from minimask.results.large import predict_at
from minimask.results.oks import oks_sigmas
from minimask.results.precision import areas_by, coco_precision

FILES = ("detections.json", "metrics.json")
METRICS = ("AP", "AP50", "AP75", "small", "medium", "large")
NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
"""What COCO's kinds of evaluation are called here."""
KEYPOINT_DETECTIONS = 20
"""The most detections per image in COCO's evaluation of keypoints."""


@dataclass(frozen=True)
class ClassScore:
    """How well one class is found: AP and AP50 of each kind, -1 where there is no object."""

    category_id: int
    name: str
    objects: int
    box: tuple[float, float] | None = None
    mask: tuple[float, float] | None = None
    keypoint: tuple[float, float] | None = None


@dataclass(frozen=True)
class Evaluation:
    """Average precision of boxes, masks and keypoints, and the detections it was computed from.

    Attributes
    ----------
    box, mask, keypoint : dict of str to float, or None
        None for a kind that the model, the results or the data do not have.
        `METRICS`: AP is the mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the classes; AP50 and
        AP75 are at one threshold; small, medium and large are the AP of objects with an area below 32**2
        pixels, from there to 96**2, and above. -1 where the data has no such object. Keypoints are compared
        by object keypoint similarity (OKS) instead of IoU, have no small objects, and count at most
        `KEYPOINT_DETECTIONS` detections per image, as in COCO.
    max_detections : int
        How many detections per image were counted at most, best first.
    images, objects : int
        Number of images, and of objects (without crowds), that were evaluated on.
    detections : list of dict
        COCO results: image_id, category_id, bbox (x, y, width, height), score, segmentation (RLE), keypoints.
    sigmas : str
        What the tolerance of keypoints rests on; empty without keypoints.
    classes : tuple of ClassScore
        In the order of the categories.
    curves : dict of str to (T, R, K) array
        By kind, the precision at T IoU thresholds 0.50, 0.55, ..., R recalls 0, 0.01, ..., 1, and K classes;
        -1 where there is no object.
    """

    box: dict[str, float] | None
    mask: dict[str, float] | None
    max_detections: int
    images: int
    objects: int
    detections: list[dict]
    keypoint: dict[str, float] | None = None
    sigmas: str = ""
    classes: tuple[ClassScore, ...] = ()
    curves: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kinds(self) -> dict[str, dict[str, float]]:
        """The metrics by kind, of the kinds that were compared."""
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

    def class_table(self) -> str:
        """AP, AP50 and the number of objects of each class as a text table."""
        width = max([5, *(len(one_line(score.name, 30)) for score in self.classes)])
        widths = {kind: max(10, len(kind) + 5) for kind in self.kinds}
        heads = "".join(f"{f'{kind} AP':>{wide}}{'AP50':>8}" for kind, wide in widths.items())
        rows = [f"{'class':<{width}}{'objects':>9}{heads}"]
        for score in self.classes:
            shown = ""
            for kind, wide in widths.items():
                ap, ap50 = ("-" if value < 0 else f"{value:.3f}" for value in getattr(score, kind))
                shown += f"{ap:>{wide}}{ap50:>8}"
            rows.append(f"{one_line(score.name, 30):<{width}}{score.objects:>9}{shown}")
        return "\n".join(rows)

    def write(self, directory: Path, per_class: bool = False, with_detections: bool = True) -> None:
        """Write detections.json, COCO results that other tools read, and metrics.json."""
        detections, metrics = FILES
        if with_detections:
            write_json(directory / detections, self.detections)
        values = _present(vars(self) | {"classes": [_present(vars(score)) for score in self.classes]})
        left_out = ("detections", "curves") if per_class else ("detections", "curves", "classes")
        values = {name: value for name, value in values.items() if name not in left_out}
        write_json(directory / metrics, values, indent=2)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    """The values, without what was not compared."""
    return {name: value for name, value in values.items() if value not in (None, "")}


def evaluate(
    model: Any,
    dataset: Any,
    max_detections: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
    category_ids: Sequence[int] | None = None,
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
        as many as the model gives at most (``box_detections_per_img``), or 100 if it does not say.
    progress : callable
        Wraps the range of image indices, to show progress.
    category_ids : sequence of int, optional
        Of the model's labels 1, 2, ...; the data set's by default. Detections with other ids than the data
        set's are dropped.

    Returns
    -------
    Evaluation
    """
    ids, known = category_ids or dataset.category_ids, set(dataset.category_ids)
    if max_detections is None:
        max_detections = _most_of(model)
    detections: list[dict] = []
    for index in progress(range(len(dataset))):
        prediction = predict_at(model, dataset, index)
        found = coco_results(prediction, dataset.image_ids[index], ids)
        found = [result for result in found if result["category_id"] in known]
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
        Has ``object_counts()`` and ``describe(index)``; one without them is not looked at.
    most : int
        The limit of detections per image.
    """
    counts = dataset.object_counts() if hasattr(dataset, "object_counts") else np.zeros(0, int)  # (N,)
    beyond = int((counts > most).sum())
    if not beyond:
        return None
    worst = int(counts.argmax())
    images = "1 image has" if beyond == 1 else f"{beyond} images have"
    return (
        f"{images} more objects than the {most} detections that each may have, so some cannot be found; the "
        f"most, {counts[worst]}, are in {dataset.describe(worst)}. Raise model.detections or --max-detections"
    )


def coco_results(prediction: dict, image_id: int, category_ids: list[int]) -> list[dict]:
    """One image's predictions as COCO results; masks are thresholded at 0.5 and run-length encoded.

    Parameters
    ----------
    prediction : dict
        boxes (N, 4) x1, y1, x2, y2; labels (N,) from 1; scores (N,); if there are any, masks with
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
        keypoints[..., 2] = 2  # all have a position; which are hidden is not predicted
        flat = to_coco(keypoints).reshape(len(keypoints), -1)
        entries["keypoints"] = [[round(value, 3) for value in row] for row in flat.tolist()]
    return entries


def score(
    document: dict,
    detections: list[dict],
    max_detections: int = 100,
    kinds: Sequence[str] = ("bbox", "segm"),
    areas_of: str | None = None,
) -> Evaluation:
    """Compare COCO results with a COCO document.

    Parameters
    ----------
    document : dict
        images, annotations (with area and iscrowd, ids from 1 up) and categories.
    detections : list of dict
        COCO results with what the kinds compare: bbox, segmentation (RLE), keypoints; may be empty.
    max_detections : int
        How many of each class count in an image, best first, as in COCOeval.
    kinds : of "bbox", "segm" and "keypoints"
        What is compared, and what all detections have.
    areas_of : one of `kinds`, optional
        The kind whose areas make detections small or large in all metrics: `COCO.loadRes` takes the first
        that results have. By default each kind measures its own, as in detectron2 and mmdetection.
    """
    sigmas, told = oks_sigmas(document) if "keypoints" in kinds else (None, "")
    precisions = {}
    for kind in kinds:
        most = min(max_detections, KEYPOINT_DETECTIONS) if kind == "keypoints" else max_detections
        areas = areas_by(areas_of or kind, detections)
        precisions[kind] = coco_precision(document, detections, areas, kind, most, sigmas)
    metrics = {kind: _metrics(values) for kind, values in precisions.items()}
    objects = Counter(a["category_id"] for a in document["annotations"] if not a["iscrowd"])
    names = {category["id"]: category["name"] for category in document["categories"]}
    classes = []
    for k, number in enumerate(sorted(names)):  # as COCOeval orders them
        pairs = {NAMES[kind]: _pair(values[:, :, k, 0]) for kind, values in precisions.items()}
        classes.append(ClassScore(number, names[number], objects[number], **pairs))
    return Evaluation(
        box=metrics.get("bbox"),
        mask=metrics.get("segm"),
        max_detections=max_detections,
        images=len(document["images"]),
        objects=sum(objects.values()),
        detections=detections,
        keypoint=metrics.get("keypoints"),
        sigmas=told,
        classes=tuple(classes),
        curves={NAMES[kind]: values[..., 0] for kind, values in precisions.items()},
    )


def _metrics(precision: np.ndarray) -> dict[str, float]:
    """The `METRICS` of (T, R, K, areas) precisions; the thresholds are 0.50, 0.55, ..., 0.95."""
    any_size, *sizes = np.moveaxis(precision, 3, 0)  # (T, R, K) each
    return {
        "AP": _mean(any_size),
        "AP50": _mean(any_size[:1]),
        "AP75": _mean(any_size[5:6]),
        # small, which keypoints lack, medium, large
        **{name: _mean(values) for name, values in zip(METRICS[-len(sizes) :], sizes)},
    }


def _pair(precision: np.ndarray) -> tuple[float, float]:
    """AP and AP50 of (T, R) precisions."""
    return _mean(precision), _mean(precision[:1])


def _mean(precision: np.ndarray) -> float:
    """The mean over the entries for which there are objects; -1 if there are none."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else -1.0
