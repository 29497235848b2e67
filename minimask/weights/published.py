"""Weights with a name: those in this package, and those published by others, with address and licence."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from minimask.errors import InputError

PACKAGED = {"minimask:nuclei": Path(__file__).parent / "nuclei" / "nuclei.npz"}
"""Trained by us (model card: ``nuclei/README.md``); used by `predict`, `evaluate`, `inspect` by default."""

DEFAULT = "minimask:nuclei"

_TORCHVISION = "https://download.pytorch.org/models/"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


@dataclass(frozen=True)
class Published:
    """A file of weights on somebody's server.

    Attributes
    ----------
    url : str
        torchvision's names end in the first eight digits of the file's SHA-256, which the download checks;
        detectron2's in the first six of its MD5, which nobody checks here.
    licence : str
        Of the weights, as a phrase.
    """

    url: str
    licence: str


def _torchvision(file: str) -> Published:
    return Published(
        _TORCHVISION + file, "torchvision's; what it was trained on, COCO or ImageNet, may set terms"
    )


def _detectron2(path: str) -> Published:
    return Published(_DETECTRON2 + path, "detectron2's model zoo, CC BY-SA 3.0; trained on COCO")


def _zoo(kind: str, models: dict[str, str]) -> dict[str, Published]:
    """Rows of detectron2's model zoo, by model: the number of its run and the MD5 in the file's name."""
    rows = {}
    for name, number in models.items():
        run, digits = number.split("/")
        rows[f"detectron2:{name}"] = _detectron2(f"COCO-{kind}/{name}/{run}/model_final_{digits}.pkl")
    return rows


PUBLISHED: dict[str, Published] = {
    "torchvision:maskrcnn_resnet50_fpn": _torchvision("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
    "torchvision:maskrcnn_resnet50_fpn_v2": _torchvision("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"),
    "torchvision:fasterrcnn_resnet50_fpn": _torchvision("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
    "torchvision:fasterrcnn_resnet50_fpn_v2": _torchvision("fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
    "torchvision:keypointrcnn_resnet50_fpn": _torchvision("keypointrcnn_resnet50_fpn_coco-fc266e95.pth"),
    # Classifiers, for --backbone-weights.
    "torchvision:resnet50": _torchvision("resnet50-0676ba61.pth"),
    "torchvision:resnet101": _torchvision("resnet101-63fe2227.pth"),
    "torchvision:resnext101_32x8d": _torchvision("resnext101_32x8d-8ba56ff5.pth"),
}
PUBLISHED |= _zoo(
    "InstanceSegmentation",
    {
        "mask_rcnn_R_50_C4_1x": "137259246/9243eb",
        "mask_rcnn_R_50_C4_3x": "137849525/4ce675",
        "mask_rcnn_R_50_FPN_1x": "137260431/a54504",
        "mask_rcnn_R_50_FPN_3x": "137849600/f10217",
        "mask_rcnn_R_101_C4_3x": "138363239/a2914c",
        "mask_rcnn_R_101_FPN_3x": "138205316/a3ec72",
        "mask_rcnn_X_101_32x8d_FPN_3x": "139653917/2d9806",
    },
)
PUBLISHED |= _zoo(
    "Detection",
    {
        "faster_rcnn_R_50_C4_1x": "137257644/721ade",
        "faster_rcnn_R_50_C4_3x": "137849393/f97cb7",
        "faster_rcnn_R_50_FPN_1x": "137257794/b275ba",
        "faster_rcnn_R_50_FPN_3x": "137849458/280758",
        "faster_rcnn_R_101_C4_3x": "138204752/298dad",
        "faster_rcnn_R_101_FPN_3x": "137851257/f6e8b1",
        "faster_rcnn_X_101_32x8d_FPN_3x": "139173657/68b088",
    },
)
PUBLISHED |= _zoo(
    "Keypoints",
    {
        "keypoint_rcnn_R_50_FPN_1x": "137261548/04e291",
        "keypoint_rcnn_R_50_FPN_3x": "137849621/a6e10b",
        "keypoint_rcnn_R_101_FPN_3x": "138363331/997cc7",
        "keypoint_rcnn_X_101_32x8d_FPN_3x": "139686956/5ad38f",
    },
)


def published(name: str) -> Published:
    """The entry of a name such as ``torchvision:maskrcnn_resnet50_fpn``.

    Raises
    ------
    InputError
        If there is none; suggests the closest.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    close = difflib.get_close_matches(name, [*PACKAGED, *PUBLISHED], 1, 0.0)
    raise InputError(f"{name}: no such published weights; did you mean {close[0]}?")
