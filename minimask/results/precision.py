"""COCOeval's precisions, by pycocotools, for any number of detections and without its printing."""

import importlib.util
from functools import cache
from types import ModuleType

import numpy as np


def areas_by(kind: str, detections: list[dict]) -> list[float]:
    """The areas that make detections small or large, in pixels.

    Of the box for "bbox", of the mask for "segm", of the box around the keypoints for "keypoints".
    """
    from pycocotools import mask as rle_masks

    if kind == "bbox":
        return [result["bbox"][2] * result["bbox"][3] for result in detections]
    if kind == "keypoints":
        points = (np.reshape(result["keypoints"], (-1, 3))[:, :2] for result in detections)  # (K, 2) each
        return [float(np.prod(np.ptp(xy, axis=0))) for xy in points]
    # One by one: pycocotools 2.0.11 refuses the area of more than 255 masks at once.
    return [float(rle_masks.area(result["segmentation"])) for result in detections]


def coco_precision(
    document: dict,
    detections: list[dict],
    areas: list[float],
    kind: str,
    max_detections: int,
    sigmas: np.ndarray | None = None,
) -> np.ndarray:
    """COCOeval's precision, (T thresholds, R recalls, K classes, areas); -1 where there is no object.

    The areas are all sizes, small (not for keypoints), medium and large.

    Parameters
    ----------
    document : dict
        As for `evaluate.score`.
    detections : list of dict
        COCO results.
    areas : list of float
        Of each detection, in pixels.
    kind : "bbox", "segm" or "keypoints"
    max_detections : int
        How many of each class count in an image, best first.
    sigmas : (K keypoints,) float, optional
        Of keypoints.

    Notes
    -----
    COCOeval's own summary is fixed to 100 detections, and prints.
    """
    # COCO.loadRes fails without results and writes into its input: what it would make of them is made here.
    results = [
        result | {"id": number, "area": area, "iscrowd": 0}
        for number, (result, area) in enumerate(zip(detections, areas), start=1)
    ]
    truth, found = _indexed(document), _indexed(document | {"annotations": results})
    comparison = _silent("cocoeval").COCOeval(truth, found, kind)
    comparison.params.maxDets = [max_detections]
    if kind == "keypoints":
        comparison.params.kpt_oks_sigmas = sigmas
    comparison.evaluate()
    comparison.accumulate()
    return comparison.eval["precision"][..., 0]


def _indexed(document: dict):
    """A pycocotools COCO of a document in memory; its annotations are copies: COCOeval writes into them."""
    coco = _silent("coco").COCO()
    coco.dataset = document | {"annotations": [dict(annotation) for annotation in document["annotations"]]}
    coco.createIndex()
    return coco


@cache
def _silent(name: str) -> ModuleType:
    """Our own copy of a module of pycocotools, in which ``print`` prints nothing.

    Its classes report every step they take. Redirecting ``sys.stdout`` would silence all threads, and for
    good if two of them score at once.
    """
    specification = importlib.util.find_spec(f"pycocotools.{name}")
    module = importlib.util.module_from_spec(specification)
    module.print = lambda *values, **options: None  # found before the built-in one
    specification.loader.exec_module(module)
    return module
