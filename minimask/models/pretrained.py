"""From the weights of a published model to the model itself, whoever published it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from minimask.config import ModelConfig, from_dict
from minimask.errors import InputError
from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.networks import NETWORKS, builder_arguments, resolved
from minimask.models.recognition import Origin, is_small, recognise
from minimask.models.zoo import keypointrcnn_small, maskrcnn_fine, maskrcnn_resnet50_fpn, maskrcnn_small
from minimask.weights import Weights, read_weights
from minimask.weights.download import local_weights


def from_checkpoint(source: str | Path | Mapping, **options) -> MaskRCNN:
    """The model that weights of torchvision, detectron2 or minimask belong to, with these weights loaded.

    Names and shapes tell which it is (`minimask.models.recognition`), and it gets that system's conventions
    (`minimask.models.conventions`). A run's own checkpoint states its model.

    Parameters
    ----------
    source : path, name, address, or mapping of name to array
        A file that `minimask.weights.read_weights` reads, a name such as
        ``torchvision:maskrcnn_resnet50_fpn`` or an address, both of which are fetched
        (`minimask.weights.download`); or a state dict, as the system writes it.
    **options
        Of the builders (`minimask.models.zoo.maskrcnn_resnet50_fpn`): ``box_score_thresh``, ``min_size``,
        ``trainable_backbone_layers``, also ``conventions``, ``norm``, ``image_mean`` and ``image_std``. They
        take precedence over what was found.

    Returns
    -------
    MaskRCNN
        In training mode, as the builders give it. Its `origin` records what was found, in words in
        ``origin.note``, and has the names of the classes where the file gives them or their number tells.

    Raises
    ------
    InputError
        If the file cannot be read; if the weights are not those of such a model, or are incomplete: says
        which are missing, unexpected or of another shape, at most ten of each kind.
    TypeError
        For an option that no builder has, or a `source` that is none of these.
    """
    if isinstance(source, str | Path):
        source = read_weights(local_weights(source))
    if not isinstance(source, Mapping):
        kind = type(source).__name__
        raise TypeError(f"from_checkpoint takes a path or a mapping of names to arrays, not {kind}")
    where = f"{source.path}: " if isinstance(source, Weights) else ""
    try:
        origin, state = recognise(source)
        if isinstance(source, Weights) and source.class_names:
            names, ids = list(source.class_names), list(source.category_ids)
            origin = replace(origin, class_names=names, category_ids=ids)
        own = own_options(source)
        model = build(origin, **options) if own is None else _build_own(origin, own, options)
        load(model, state)
    except InputError as error:
        raise InputError(f"{where}{error}") from error
    return model


def own_options(source: Mapping) -> ModelConfig | None:
    """What a run's configuration says about the model, in its checkpoint or in an export of it."""
    text = source.metadata.get("config") if isinstance(source, Weights) else None
    if not isinstance(text, str) or source.metadata.get("model") not in NETWORKS:
        return None
    try:
        config = {**json.loads(text)}
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"its metadata's config is no JSON object ({error}); use another copy") from error
    return resolved(from_dict(config, "its metadata's config")).model


def _build_own(origin: Origin, own: ModelConfig, options: dict) -> MaskRCNN:
    arguments = builder_arguments(own) | {"num_classes": origin.num_classes, "seed": None}
    if origin.num_keypoints:
        arguments["num_keypoints"] = origin.num_keypoints
    model = NETWORKS[own.name].build(**(arguments | options))
    model.origin = origin
    return model


def build(origin: Origin, **options) -> MaskRCNN:
    """The model that was recognised, without its weights, with the builders' options."""
    a = origin.architecture
    given = {"num_classes": origin.num_classes, "seed": None} | options
    if is_small(a):
        sizes = dict(channels=a.channels, fpn_channels=a.fpn_channels, box_width=a.box_width)
        build_small = maskrcnn_fine if a.head_norm else maskrcnn_small
        if a.num_keypoints:
            sizes |= dict(keypoint_width=a.keypoint_width, keypoint_convs=a.keypoint_convs)
            sizes |= dict(num_keypoints=a.num_keypoints, with_masks=a.masks)
            build_small = keypointrcnn_small
        model = build_small(**(sizes | given))
    else:
        found = dict(architecture=a, conventions=origin.conventions, norm=origin.norm)
        model = maskrcnn_resnet50_fpn(**(found | given))
    model.origin = origin
    return model


def load(model: MaskRCNN, state: Mapping) -> None:
    """Load weights into a model built without any; one array at a time, so that only one is held twice.

    Raises
    ------
    InputError
        If names or shapes differ; nothing has been changed.
    """
    model.check_state_dict(state)
    for name, tensor in model.named_state():
        tensor.data = np.array(state[name], tensor.dtype, order="C")
