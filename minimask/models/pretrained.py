"""From the weights of a published model to that model, whoever published it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from minimask.models.mask_rcnn import MaskRCNN
from minimask.models.recognition import Origin, is_small, recognise
from minimask.models.zoo import keypointrcnn_small, maskrcnn_resnet50_fpn, maskrcnn_small


def from_checkpoint(source: Mapping, **options) -> MaskRCNN:
    """The model that weights of torchvision, detectron2 or minimask belong to, with these weights.

    Names and shapes say which it is (`minimask.models.recognition`), and it gets that system's conventions
    (`minimask.models.conventions`).

    Parameters
    ----------
    source : mapping of name to array
        A state dict, as the system writes it.
    **options
        Of the builders (`minimask.models.zoo.maskrcnn_resnet50_fpn`): ``box_score_thresh``, ``min_size``,
        ``trainable_backbone_layers``, also ``conventions``, ``norm``, ``image_mean`` and ``image_std``. They
        go before what was found.

    Returns
    -------
    MaskRCNN
        In training mode, as the builders give it. Its `origin` says what was found, in words in
        ``origin.note``, and has the names of COCO's classes where there are as many.

    Raises
    ------
    InputError
        If the weights are of no such model, or are not complete; says which are missing, unexpected or of
        another shape, ten of each kind at most.
    TypeError
        For an option that no builder has.
    """
    if not isinstance(source, Mapping):
        raise TypeError(f"from_checkpoint takes a mapping of names to arrays, not {type(source).__name__}")
    origin, state = recognise(source)
    model = build(origin, **options)
    load(model, state)
    return model


def build(origin: Origin, **options) -> MaskRCNN:
    """The model that was recognised, without its weights, with the builders' options."""
    a = origin.architecture
    given = {"num_classes": origin.num_classes, "seed": None} | options
    if is_small(a):
        sizes = dict(channels=a.channels, fpn_channels=a.fpn_channels, box_width=a.box_width)
        build_small = maskrcnn_small
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
    """Give a model that was built without weights these: one at a time, so that none is there twice.

    Raises
    ------
    InputError
        If names or shapes differ; nothing has been changed.
    """
    model.check_state_dict(state)
    for name, tensor in model.named_state():
        tensor.data = np.array(state[name], tensor.dtype, order="C")
