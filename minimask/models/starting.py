"""Starting training from weights: which network they need, and which of its parts they fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from minimask.config import Config
from minimask.errors import InputError, one_line
from minimask.models import naming
from minimask.models.conventions import DETECTRON2, DETECTRON2_RESNEXT, TORCHVISION_COCO_V1
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.pretrained import own_options
from minimask.models.recognition import Origin, is_small, recognise
from minimask.weights import read_weights
from minimask.weights.download import local_weights

_HEADS, _BODY = "roi_heads.", "backbone.body."
_NETWORKS = {  # by backbone and whether the heads have norms, as torchvision's v2: with masks, and without
    ("ResNet-50-FPN", False): ("maskrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn"),
    ("ResNet-50-FPN", True): ("maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2"),
    ("ResNet-101-FPN", False): ("maskrcnn_resnet101_fpn", None),
    ("ResNeXt-101-32x8d-FPN", False): ("maskrcnn_resnext101_32x8d_fpn", None),
    ("ResNet-50-C4", False): ("maskrcnn_resnet50_c4", None),
    ("ResNet-101-C4", False): ("maskrcnn_resnet101_c4", None),
}


@dataclass(frozen=True)
class Start:
    """Weights to start from, under our names, and where they come from.

    Attributes
    ----------
    path : Path
    state : mapping of name to array
    origin : Origin or None
        None for a classifier's, which are the backbone's body alone.
    note : str
        What was found, in words.
    """

    path: Path
    state: Mapping[str, np.ndarray]
    origin: Origin | None
    note: str


def start_from(config: Config, note: Callable[[str], None]) -> tuple[Config, Start | None]:
    """The configuration with the network that its ``train.weights`` or ``train.backbone_weights`` need, and
    these weights; as it was, and None, if it names neither.

    The network is that of the weights, with their conventions; unless the configuration says otherwise, its
    norms are frozen and the last three stages of its ResNet train: torchvision's default with weights.

    Raises
    ------
    InputError
        If both are given, the file cannot be used, or the command has no such network.
    """
    train, model = config.train, config.model
    if not (train.weights or train.backbone_weights):
        return config, None
    if train.weights and train.backbone_weights:
        raise InputError("train.backbone_weights: train.weights has a backbone already; give one of the two")
    path = local_weights(train.weights or train.backbone_weights, note)
    arrays = read_weights(path)
    layers = 3 if model.trainable_layers is None else model.trainable_layers
    frozen = {"norm": model.norm or "frozen", "trainable_layers": layers}
    if train.backbone_weights:
        state = _classifier(arrays, path)
        if model.name.endswith(("_small", "_fine")):
            model = replace(model, name=_network_on(state, path, model.name))
        found = Start(path, state, None, "a ResNet's weights, for the backbone")
        return replace(config, model=replace(model, **frozen)), found
    try:
        origin, state = recognise(arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if arrays.class_names:
        origin = replace(origin, class_names=list(arrays.class_names))
    start, own = Start(path, state, origin, origin.note), own_options(arrays)
    if own is not None:  # everything as it was trained, except for what is given anew
        given = {f.name: getattr(model, f.name) for f in fields(model) if getattr(model, f.name) != f.default}
        return replace(config, model=replace(own, **given)), start
    name = model.name if model.name in _alternatives(origin) else _network(origin, path)
    both = name.startswith("keypointrcnn") and origin.architecture.masks
    model = replace(model, name=name, with_masks=model.with_masks or both)
    if is_small(origin.architecture):
        return replace(config, model=model), start
    if origin.architecture.head_norm is not None:
        frozen["norm"] = model.norm or "batch"
    changed = replace(model, conventions=model.conventions or _conventions(origin), **frozen)
    return replace(config, model=changed), start


def _classifier(arrays: Mapping, path: Path) -> dict[str, np.ndarray]:
    """The weights of a ResNet that torchvision trained on ImageNet, as the body's, without its last layer."""
    state = {f"{_BODY}{name}": array for name, array in arrays.items() if not name.startswith("fc.")}
    if "conv1.weight" not in arrays or "layer4.0.conv1.weight" not in arrays:
        raise InputError(
            f"{path}: is not a ResNet classifier of torchvision's (it has no conv1.weight, or no layer4); "
            "weights of a whole detector are given by --weights"
        )
    return {name: array for name, array in state.items() if not name.endswith("num_batches_tracked")}


def _network_on(state: Mapping, path: Path, small: str) -> str:
    """The large network that finds what `small` does, on a classifier's ResNet, known by its third stage."""
    blocks = len({name.split(".")[3] for name in state if name.startswith(f"{_BODY}layer3.")})
    conv = state.get(f"{_BODY}layer1.0.conv2.weight")
    grouped = conv is not None and conv.shape[1:2] == (8,)  # 8 channels a group
    known = {
        ("maskrcnn", 6, False): "maskrcnn_resnet50_fpn",
        ("maskrcnn", 23, False): "maskrcnn_resnet101_fpn",
        ("maskrcnn", 23, True): "maskrcnn_resnext101_32x8d_fpn",
        ("keypointrcnn", 6, False): "keypointrcnn_resnet50_fpn",
    }
    key = small.partition("_")[0], blocks, grouped
    if key not in known:
        raise InputError(
            f"{path}: is a ResNet with {blocks} blocks in its third stage; train knows those with 6 "
            "(ResNet-50) and, without keypoints, with 23 (ResNet-101, ResNeXt-101 32x8d)"
        )
    return known[key]


def _network(origin: Origin, path: Path) -> str:
    """The network known to the command that matches these weights'."""
    names = _alternatives(origin)
    if not names:
        raise InputError(
            f"{path}: {origin.note}: train knows no network like it; predict and evaluate accept it"
        )
    return names[0]


def _alternatives(origin: Origin) -> list[str]:
    """Names of networks with this backbone, the one with these heads first."""
    a = origin.architecture
    if is_small(a):
        names = ["maskrcnn_fine" if a.head_norm else "maskrcnn_small", "keypointrcnn_small"]
        return names[::-1] if a.num_keypoints else names
    with_masks, without = _NETWORKS.get((origin.backbone, a.head_norm is not None), (None, None))
    names = [with_masks, without] if a.masks else [without, with_masks]
    if origin.backbone == "ResNet-50-FPN" and a.head_norm is None:
        names.insert(0 if a.num_keypoints else 2, "keypointrcnn_resnet50_fpn")
    return [name for name in names if name]


def _conventions(origin: Origin) -> str:
    if origin.system == naming.DETECTRON2:
        return "detectron2_resnext" if origin.architecture.groups > 1 else "detectron2"
    if origin.conventions == TORCHVISION_COCO_V1:
        return "torchvision_coco_v1"
    of_detectron2 = origin.conventions in (DETECTRON2, DETECTRON2_RESNEXT)
    return "detectron2" if of_detectron2 else "torchvision"


def fill(model: MaskRCNN, start: Start, note: Callable[[str], None], class_names: Sequence[str] = ()) -> None:
    """Load the weights that fit; heads for other classes keep their random weights, and `note` names them.

    Heads for the same number of classes are loaded. If `class_names`, the data's, are given and the weights'
    classes are others or unknown, `note` says so.

    Raises
    ------
    InputError
        If the backbone or the RPN does not fit; nothing has been changed.
    """
    wanted, state = dict(model.state_dict()), start.state
    fits = {name for name in wanted if name in state and state[name].shape == wanted[name].shape}
    covered = _BODY if start.origin is None else ""
    unfit = sorted(name for name in wanted if name.startswith(covered) and name not in fits)
    wrong = [name for name in unfit if not name.startswith(_HEADS) or covered]
    wrong += [name for name in state if name not in wanted and not name.startswith(_HEADS)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        had = f"shape {tuple(state[wrong[0]].shape)}" if wrong[0] in state else "nothing"
        need = f"{wanted[wrong[0]].shape}" if wrong[0] in wanted else "no such part"
        raise InputError(
            f"{start.path}: does not fit this network: {wrong[0]} is {need} there, the weights have {had}"
            f"{more}; leave out model.name and model.norm, which then follow the weights"
        )
    model.load_state_dict(wanted | {name: state[name] for name in fits})
    note(one_line(f"{start.path.name}: {start.note}"))
    if anew := sorted({".".join(name.split(".")[1:3]) for name in unfit}):
        note(f"begin anew, for other classes or because the weights have none: {', '.join(anew)}")
    kept = class_names and f"{_HEADS}box_predictor.cls_score.weight" in fits
    if kept and start.origin.class_names != list(class_names):
        known = start.origin.class_names
        theirs = one_line(", ".join(known), 150) if known else "classes whose names the weights do not tell"
        ours = one_line(", ".join(class_names), 150)
        note(f"the heads are kept, since their number of classes fits: {theirs}; the data have {ours}")
