"""Which model do these weights belong to? Read from their names and shapes alone.

What those do not tell (how images are normalised, where a bottleneck has its stride, the batch norms' eps)
follows the rules of the two model zoos: see `_conventions`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minimask.data.coco_names import contiguous_labels, labels_by_id
from minimask.errors import InputError
from minimask.models import naming
from minimask.models.assembly import RATIOS, Architecture
from minimask.models.conventions import (
    DETECTRON2,
    DETECTRON2_RESNEXT,
    MINIMASK,
    TORCHVISION,
    TORCHVISION_COCO_V1,
    Conventions,
    with_keypoints,
)
from minimask.models.resnet import BasicBlock, Bottleneck
from minimask.nn import BatchNorm2d, GroupNorm, MakeNorm

_HEADS = "roi_heads."
_BLOCK = re.compile(r"^(?:backbone\.body|roi_heads\.box_head)\.layer([1-4])\.(\d+)\.conv1\.weight$")
_MOST_BLOCKS = 200  # over five times as many as the deepest published ResNet has in a stage
_DEPTHS = {  # by whether the blocks are bottlenecks, and by their number in each stage
    (False, (2, 2, 2, 2)): "18",
    (False, (3, 4, 6, 3)): "34",
    (True, (3, 4, 6, 3)): "50",
    (True, (3, 4, 23, 3)): "101",
    (True, (3, 8, 36, 3)): "152",
}


@dataclass(frozen=True)
class Origin:
    """Which model a file's weights were found to belong to.

    Attributes
    ----------
    system : str
        "torchvision", "detectron2" or "minimask".
    architecture : Architecture
    conventions : Conventions
        The system's, which names and shapes tell only in part.
    num_classes : int
        Background included.
    num_keypoints : int
        0 where there is no keypoint head.
    norm : callable or None
        Makes the backbone's norm; None is a frozen batch norm with the conventions' eps.
    class_names, category_ids : list of str and of int, or None
        Of labels 1, 2, ..., where the file gives them, or the numbers of classes and keypoints are those of
        a COCO model.
    note : str
        What was found and what was assumed, in words.
    """

    system: str
    architecture: Architecture
    conventions: Conventions
    num_classes: int
    num_keypoints: int
    norm: MakeNorm | None
    class_names: list[str] | None
    category_ids: list[int] | None
    note: str

    @property
    def backbone(self) -> str:
        """Such as ``ResNet-50-FPN``."""
        return _backbone(self.architecture)


def recognise(arrays: Mapping) -> tuple[Origin, dict[str, np.ndarray]]:
    """The model that the weights belong to, and the weights under our names.

    Raises
    ------
    InputError
        If no model that can be built has such weights.
    """
    system, state = naming.our_names(arrays)
    shapes = _Shapes(state)
    architecture = _architecture(shapes)
    num_classes = shapes[f"{_HEADS}box_predictor.cls_score.weight", 2][0]
    num_keypoints = architecture.num_keypoints
    if system == naming.TORCHVISION and _is_ours(architecture, state):
        system = "minimask"
    counted = any(name.endswith("num_batches_tracked") for name in arrays)
    found = Origin(
        system,
        architecture,
        _conventions(system, architecture, num_classes, num_keypoints, counted, arrays),
        num_classes,
        num_keypoints,
        _norm(architecture, state),
        *_coco_names(system, num_classes, num_keypoints),
        note="",
    )
    return replace(found, note=_note(found)), state


class _Shapes:
    """``shapes[name, ndim]``: the shape of an entry, which must exist and have `ndim` axes."""

    def __init__(self, state: dict[str, np.ndarray]):
        self.state = state

    def __getitem__(self, key: tuple[str, int]) -> tuple[int, ...]:
        name, ndim = key
        if name not in self.state:
            raise InputError(f"the weights lack {name}, which is needed to recognise the model")
        shape = self.state[name].shape
        if len(shape) != ndim or 0 in shape:
            raise InputError(
                f"the weights: {name} has shape {shape}; it should have {ndim} axes, none of them 0"
            )
        return shape


def _architecture(shapes: _Shapes) -> Architecture:
    state, body = shapes.state, "backbone.body."
    numbers = [(int(m[1]), int(m[2])) for m in map(_BLOCK.match, state) if m]
    blocks = tuple(max((k + 1 for stage, k in numbers if stage == n), default=0) for n in (1, 2, 3, 4))
    if 0 in blocks:
        raise InputError(
            f"the weights lack stage {blocks.index(0) + 1} of a ResNet, needed to recognise the model"
        )
    if max(blocks) > _MOST_BLOCKS:
        raise InputError(f"the weights name block {max(blocks) - 1} of a stage; no ResNet has so many")
    pyramid = any(name.startswith("backbone.fpn.") for name in state)
    stages = [f"{body}layer{n}.0." for n in (1, 2, 3)]
    stages.append(f"{body}layer4.0." if pyramid else f"{_HEADS}box_head.layer4.0.")
    bottleneck = f"{stages[0]}conv3.weight" in state
    last, expansion = ("conv3.weight", 4) if bottleneck else ("conv2.weight", 1)
    channels = tuple(max(1, shapes[stage + last, 4][0] // expansion) for stage in stages)
    width, per_group = shapes[f"{stages[0]}conv2.weight", 4][:2]
    groups = max(1, width // per_group) if bottleneck else 1
    fpn = "backbone.fpn.inner_blocks.0.0.weight" if pyramid else f"{_HEADS}mask_predictor.conv5_mask.bias"
    fpn_channels = shapes[fpn, 4 if pyramid else 1][0] if fpn in state else 256
    masks = f"{_HEADS}mask_predictor.conv5_mask.weight" in state
    box_convs = _count(r"roi_heads\.box_head\.(\d+)\.0\.weight", state) if pyramid else 0
    architecture = Architecture(
        blocks=blocks,
        channels=channels,
        block=Bottleneck if bottleneck else BasicBlock,
        stem=shapes[f"{body}conv1.weight", 4][2],
        groups=groups,
        width_per_group=max(1, width * 64 // (channels[0] * groups)),
        pyramid=pyramid,
        fpn_channels=fpn_channels,
        rpn_convs=max(1, _count(r"rpn\.head\.conv\.(\d+)\.0\.weight", state)),
        box_convs=box_convs,
        mask_convs=_count(r"roi_heads\.mask_head\.(\d+)\.0\.weight", state) if masks else 4 * pyramid,
        box_width=shapes[f"{_HEADS}box_predictor.cls_score.weight", 2][1],
        head_norm=_head_norm(state),
        masks=masks,
        **_keypoint_head(shapes),
    )
    rows, wanted = shapes["rpn.head.cls_logits.weight", 4][0], len(RATIOS) * (1 if pyramid else 5)
    if rows != wanted:
        raise InputError(
            f"the weights: the RPN has {rows} anchors at each position, not {wanted} as in published models; "
            "weights do not tell their sizes and ratios"
        )
    return architecture


def _keypoint_head(shapes: _Shapes) -> dict:
    """The fields of `Architecture` about keypoints."""
    state, head = shapes.state, f"{_HEADS}keypoint_predictor.kps_score_lowres.weight"
    if head not in state:
        return {}
    width, num_keypoints = shapes[head, 4][:2]
    normed = f"{_HEADS}keypoint_head.0.1.weight" in state
    convs = _count(rf"roi_heads\.keypoint_head\.(\d+){r'.0' if normed else ''}\.weight", state)
    return {
        "num_keypoints": num_keypoints,
        "keypoint_convs": convs,
        "keypoint_width": width,
        "keypoint_norm": GroupNorm if normed else None,
    }


def _count(pattern: str, names: Mapping) -> int:
    return len({m[1] for m in (re.fullmatch(pattern, name) for name in names) if m})


def _head_norm(state: Mapping) -> MakeNorm | None:
    if "backbone.fpn.inner_blocks.0.1.weight" not in state:
        return None
    if "backbone.fpn.inner_blocks.0.1.running_var" in state:
        return BatchNorm2d
    return partial(GroupNorm, groups=32)


def _norm(architecture: Architecture, state: Mapping) -> MakeNorm | None:
    """The backbone's norm: group norm where there are no running statistics; batch norm that trains where
    the heads have it, as in torchvision's v2; None, for frozen batch norm, otherwise.
    """
    if "backbone.body.bn1.running_var" not in state:
        return GroupNorm if is_small(architecture) else partial(GroupNorm, groups=32)
    return BatchNorm2d if architecture.head_norm is BatchNorm2d else None


def _is_ours(architecture: Architecture, state: Mapping) -> bool:
    """Whether torchvision has no such model."""
    return not architecture.pyramid or "backbone.body.bn1.running_var" not in state


def is_small(architecture: Architecture) -> bool:
    """Whether it is that of `maskrcnn_small`, of any width, or of a network derived from it."""
    return architecture.block is BasicBlock and architecture.stem == 3


def _conventions(
    system: str, a: Architecture, num_classes: int, num_keypoints: int, counted: bool, arrays: Mapping
) -> Conventions:
    """The system's conventions; by the rules of its model zoo where the weights do not tell.

    detectron2: ResNeXt, converted from Caffe2, has the stride in the 3x3 and pixels divided by their
    standard deviation, 57 to 58; the others, converted from MSRA's Caffe files, have it in the 1x1 and
    undivided pixels. torchvision: with the first version's COCO weights (91 classes, or persons with 17
    keypoints), the batch norms' eps is 0. Those weights have no ``num_batches_tracked``; `counted` tells
    whether these do.
    """
    if system == "minimask":
        return MINIMASK if is_small(a) else TORCHVISION if a.pyramid else DETECTRON2
    if system == naming.DETECTRON2:
        conventions = DETECTRON2_RESNEXT if a.groups > 1 else DETECTRON2
        return _with_stored_pixels(with_keypoints(conventions) if num_keypoints else conventions, arrays)
    is_coco = num_classes == 91 if not num_keypoints else (num_classes, num_keypoints) == (2, 17)
    is_v1_resnet50 = a.head_norm is None and _backbone(a) == "ResNet-50-FPN"
    return TORCHVISION_COCO_V1 if is_coco and is_v1_resnet50 and not counted else TORCHVISION


def _with_stored_pixels(conventions: Conventions, arrays: Mapping) -> Conventions:
    """With the mean and the standard deviation that old files of detectron2 hold, in BGR and for 0..255."""
    values = {}
    for field, name in (("mean", "pixel_mean"), ("std", "pixel_std")):
        stored = np.ravel(np.asarray(arrays[name], np.float64)) if name in arrays else np.zeros(0)
        if stored.size == 3 and np.isfinite(stored).all() and (field == "mean" or (stored > 0).all()):
            values[field] = tuple(float(v) / 255 for v in stored[::-1])
    return replace(conventions, **values)


def _coco_names(system: str, num_classes: int, num_keypoints: int) -> tuple:
    """Names and ids of the labels, where the number of classes is that of the system's COCO models."""
    if num_keypoints == 17 and num_classes == 2:
        return ["person"], [1]
    known: dict[tuple[str, int], Callable] = {
        (naming.TORCHVISION, 91): labels_by_id,
        (naming.DETECTRON2, 81): contiguous_labels,
    }
    return known[system, num_classes]() if (system, num_classes) in known else (None, None)


def _note(found: Origin) -> str:
    a, c = found.architecture, found.conventions
    heads = tuple(name for name, there in (("masks", a.masks), ("keypoints", found.num_keypoints)) if there)
    network = {(): "Faster R-CNN", ("keypoints",): "Keypoint R-CNN"}.get(heads, "Mask R-CNN")
    version = " v2" if found.system == naming.TORCHVISION and a.head_norm is not None else ""
    classes = "1 class" if found.num_classes == 2 else f"{found.num_classes - 1} classes"
    what = [f"{found.system}'s {network}{version} on {_backbone(a)}", classes]
    if found.num_keypoints:
        what.append(f"{found.num_keypoints} keypoints")
    note = ", ".join(what)
    if found.system == naming.DETECTRON2:
        deviation = "1" if c.std[0] == c.std[1] else f"{255 * c.std[2]:.1f}"  # of blue, which is first there
        where = "1x1" if c.stride_in_1x1 else "3x3"
        note += f"; by its model zoo's rule, deviation {deviation} and stride in the {where}"
    elif found.system == naming.TORCHVISION and not version:
        why = "as with its COCO weights" if c.norm_eps == 0 else "as it builds it"
        note += f"; batch norm eps {c.norm_eps:g}, {why}"
    return note


def _backbone(a: Architecture) -> str:
    depth = _DEPTHS.get((a.block is Bottleneck, a.blocks), "+".join(map(str, a.blocks)))
    resnet = f"ResNeXt-{depth}-{a.groups}x{a.width_per_group}d" if a.groups > 1 else f"ResNet-{depth}"
    return f"{resnet}-{'FPN' if a.pyramid else 'C4'}"
