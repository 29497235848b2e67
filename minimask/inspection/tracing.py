"""`trace`: one image through a model, with everything that the stages compute on the way.

Nothing is computed a second way: `MaskRCNN.inference_record` and `MaskRCNN.training_record` are what
`predict` and `loss` run, and what these do not keep comes from the methods that they call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np

from minimask.autograd import Tensor, no_grad
from minimask.backend import array_module, to_cpu
from minimask.boxes import box_iou, clip_boxes_to_image, scale_boxes
from minimask.functions.activation import sigmoid_array
from minimask.functions.roi import as_rois
from minimask.inspection import failures, reading
from minimask.inspection.records import (
    Anchors,
    Classifying,
    Masking,
    NetworkInput,
    Proposing,
    Trace,
    Training,
)
from minimask.inspection.weights import summarise
from minimask.kernels import resample
from minimask.masks import crop_masks, paste_mask
from minimask.models.inputs import Objects, check_images, check_targets
from minimask.models.mask_rcnn import InferenceRecord, MaskRCNN, TrainingRecord
from minimask.models.transform import Batch
from minimask.nn import Buffer, inference
from minimask.randomness import Draws


def trace(
    model: MaskRCNN,
    image: Any,
    targets: Mapping | None = None,
    draws: Draws | None = None,
    class_names: Sequence[str] | None = None,
    above: float = 0.5,
) -> Trace:
    """Everything that a model computes for one image.

    Parameters
    ----------
    model : MaskRCNN
        In either mode, on either device; it is left as it was.
    image : (3, H, W) float
        RGB in 0..1.
    targets : dict, optional
        The image's objects, as `MaskRCNN.loss` takes them. With them a training step is traced, too, in
        training mode, and the trace says why each missed object was missed.
    draws : Draws, optional
        Which anchors and RoIs the training step samples.
    class_names : sequence of str, optional
        Of labels 1, 2, ...
    above : float
        The lowest score of a detection that counts as confident, when failures are judged.

    Returns
    -------
    Trace
        Its ``result`` is ``model.predict([image])[0]`` and its ``training.losses`` are
        ``model.train().loss([image], [targets], draws)``, to the bit.

    Raises
    ------
    InputError
        If image or targets have the wrong form.
    """
    (image,) = check_images([image])
    record = model.inference_record([image])
    image, result = to_cpu(image), record.results[0]
    target = None
    if targets is not None:
        sizes, options = [image.shape[1:]], model.annotations
        (target,) = check_targets([targets], sizes, model.dtype, model.box_head.num_classes, **options)
        target = on_cpu(target)
    boxes = result["boxes"] if target is None else target.boxes
    proposing = _proposing(record, target)
    classifying = _classifying(model, record)
    judged = None
    if target is not None:
        scale = record.batch.scale(0)
        judged = failures.judge(target, scale, proposing, classifying, result, above)
    names = class_names or getattr(model.origin, "class_names", None)
    if names is None:
        names = [f"class {k}" for k in range(1, classifying.candidates.probabilities.shape[1])]
    return Trace(
        image=image,
        class_names=tuple(names),
        target=target,
        input=_input(model, record.batch, image, boxes),
        activations=_activations(model, record),
        anchors=_anchors(model, record),
        proposing=proposing,
        classifying=classifying,
        masking=_masking(model, record),
        result=result,
        training=None if target is None else _training(model, image, targets, target, draws or Draws()),
        failures=judged,
        weights=summarise(model),
        mask_convention=model.mask_head and model.mask_head.convention,
    )


def on_cpu(record: Any) -> Any:
    """A record with its arrays on the CPU."""
    arrays = {f.name: getattr(record, f.name) for f in fields(record)}
    return replace(record, **{k: to_cpu(v) for k, v in arrays.items() if hasattr(v, "dtype")})


# ------------------------------------------------------------------------------------------------ inference


def _input(model: MaskRCNN, batch: Batch, image: np.ndarray, boxes: np.ndarray) -> NetworkInput:
    pixels, (h, w), scale = to_cpu(batch.images[0]), batch.sizes[0], batch.scale(0)
    mean, std = (
        np.asarray(values, pixels.dtype)[:, None, None]
        for values in (model.transform.conventions.mean, model.transform.conventions.std)
    )
    seen = np.ascontiguousarray(pixels[:, :h, :w] * std + mean)
    restored = seen if (h, w) == image.shape[1:] else resample.bilinear(seen, image.shape[1:])
    back = scale_boxes(scale_boxes(boxes, scale), (1 / scale[0], 1 / scale[1]))
    return NetworkInput(pixels, (h, w), scale, seen, restored, float(np.abs(back - boxes).max(initial=0)))


@no_grad()
@inference()
def _activations(model: MaskRCNN, record: InferenceRecord) -> dict[str, np.ndarray]:
    stages = model.backbone.body(Tensor(record.batch.images))
    found = {f"C{i}": x for i, x in enumerate(stages, 2)}
    if hasattr(model.backbone, "fpn"):
        found |= dict(zip(level_names(model, len(record.levels)), record.levels))
    return {name: to_cpu(x.data[0]) for name, x in found.items()}


def level_names(model: MaskRCNN, count: int) -> list[str]:
    """P2, P3 and so on; without a pyramid, the body's last stage: C4 if it has three."""
    if hasattr(model.backbone, "fpn"):
        return [f"P{i}" for i in range(2, 2 + count)]
    return [f"C{len(model.backbone.body.channels) + 1}"]


def _anchors(model: MaskRCNN, record: InferenceRecord) -> Anchors:
    return Anchors(
        to_cpu(record.rpn.anchors),
        level_names(model, len(record.levels)),
        [tuple(x.shape[2:]) for x in record.levels],
        model.rpn.anchors.num_anchors_per_location(),
    )


def _proposing(record: InferenceRecord, target: Objects | None) -> Proposing:
    ranked = on_cpu(record.ranked[0])
    logits = to_cpu(record.rpn.logits.data[0])
    recall = None
    if target is not None:
        anchors = to_cpu(record.rpn.anchors)
        steps = {
            "all anchors": anchors,
            "best anchors": anchors[ranked.anchors],
            "refined": ranked.refined,
            "clipped": ranked.boxes,
            "after NMS": ranked.boxes[ranked.survivors],
            "proposals": ranked.proposals,
        }
        objects = scale_boxes(target.boxes, record.batch.scale(0)).astype(anchors.dtype)
        recall = {name: _greatest_iou(objects, boxes) for name, boxes in steps.items()}
    return Proposing(sigmoid_array(logits, np), to_cpu(record.rpn.deltas.data[0]), ranked, recall)


def _greatest_iou(objects: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(G,): of each object with any of the boxes; a few objects at a time, since anchors are many."""
    if not len(boxes):
        return np.zeros(len(objects), boxes.dtype)
    parts = [box_iou(objects[i : i + 16], boxes).max(axis=1) for i in range(0, len(objects), 16)]
    return np.concatenate(parts) if parts else np.zeros(0, boxes.dtype)


def _classifying(model: MaskRCNN, record: InferenceRecord) -> Classifying:
    found = record.candidates[0]
    rois = as_rois([record.ranked[0].proposals[found.proposals[found.kept]]])
    names = level_names(model, len(record.levels))
    readings = reading.readings(model.box_head.pooler, record.levels, rois, names)
    return Classifying(to_cpu(record.box.deltas.data), on_cpu(found), readings)


def _masking(model: MaskRCNN, record: InferenceRecord) -> Masking | None:
    if record.mask is None:
        return None
    detections, names = record.detections[0], level_names(model, len(record.levels))
    return Masking(
        to_cpu(record.mask.data),
        to_cpu(model.mask_head.mask_loss.channel(detections.labels)),
        to_cpu(record.results[0]["masks"].probabilities),
        reading.readings(model.mask_head.pooler, record.levels, as_rois([detections.boxes]), names),
    )


# ------------------------------------------------------------------------------------------------- training


@contextmanager
def _in_training(model: MaskRCNN) -> Iterator[None]:
    """Inside, the model is in training mode, and no parameter takes a gradient; after it all is as it was."""
    modes = [(module, module._training) for _, module in model.named_modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    buffers = [(b, b.data.copy()) for _, b in model.named_state() if isinstance(b, Buffer)]
    model.train()
    for p, _ in wanted:
        p.requires_grad = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for p, requires_grad in wanted:
            p.requires_grad = requires_grad
        for buffer, data in buffers:  # the running statistics that batch norms keep
            buffer.data = data


def _training(model: MaskRCNN, image, targets: Mapping, target: Objects, draws: Draws) -> Training:
    with _in_training(model):
        record = model.training_record([image], [targets], draws, image_gradient=True)
        stages = _training_stages(model, record)
        losses = {name: to_cpu(loss.data).copy() for name, loss in record.losses.items()}
        gradients = {}
        for i, name in enumerate(losses):
            if i:  # a backward pass frees the graph, which the losses share
                record = model.training_record([image], [targets], draws, record, image_gradient=True)
            if record.losses[name].requires_grad:
                record.losses[name].backward()
            gradient = record.x.grad
            gradients[name] = np.zeros(record.x.shape[1:]) if gradient is None else to_cpu(gradient[0])
    cells = stages["mask_targets"].shape[-1] if stages["mask_targets"] is not None else None
    return Training(
        losses=losses,
        image_gradients=gradients,
        round_trip=None if cells is None else _round_trip(model, target, cells),
        **stages,
    )


@no_grad()
def _training_stages(model: MaskRCNN, record: TrainingRecord) -> dict[str, Any]:
    """All of `Training` that can be read from a record, or asked of the stages."""
    rpn, positive, rois = record.rpn, record.anchors.positive, record.rois
    deltas = rpn.deltas.data[0][positive]
    anchors = rpn.anchors[positive]
    labels = rois.labels
    roi_deltas = record.box.deltas.data.reshape(len(labels), record.box.deltas.shape[1] // 4, 4)
    which = np.zeros_like(labels) if model.box_head.options.class_agnostic else labels
    rows = array_module(roi_deltas).arange(len(labels))
    refined = model.box_head.coder.decode(roi_deltas[rows, which], rois.boxes[:, 1:])[:, 0]
    refined = clip_boxes_to_image(refined, record.batch.sizes[0])
    refined[labels == 0] = rois.boxes[labels == 0, 1:]
    mask_targets = probabilities = None
    if record.mask is not None:
        own = rois.positive
        mask_targets = to_cpu(model.mask_head.targets(own, record.targets, record.mask.shape[-1]))
        probabilities = to_cpu(model.mask_head.mask_loss.probabilities(record.mask.data, own.labels))
    return dict(
        boxes=to_cpu(record.targets[0].boxes),
        scale=record.batch.scale(0),
        matches=model.rpn.match(rpn, record.targets)[0],
        positive=positive,
        negative=record.anchors.negative,
        anchor_targets=to_cpu(record.anchors.targets),
        wanted=to_cpu(model.rpn.coder.decode(record.anchors.targets, anchors)[:, 0]),
        refined=to_cpu(model.rpn.coder.decode(deltas, anchors)[:, 0]),
        rois=on_cpu(rois),
        roi_targets=to_cpu(model.box_head.encoded(rois, record.targets)),
        roi_refined=to_cpu(refined),
        mask_targets=mask_targets,
        mask_probabilities=probabilities,
    )


def _round_trip(model: MaskRCNN, target: Objects, cells: int) -> np.ndarray:
    """(G,): IoU of each mask with itself after it was cropped to its box, as a target, and pasted back."""
    head, out = model.mask_head, np.zeros(len(target.labels))
    for g, box in enumerate(target.boxes):
        truth = target.masks[g] != 0
        crop = crop_masks([target.masks[g]], box[None], np.zeros(1, np.int64), cells, head.convention)[0]
        (y0, y1, x0, x1), patch = paste_mask(crop, box, truth.shape, head.convention)
        both = np.count_nonzero((patch > 0.5) & truth[y0:y1, x0:x1])
        out[g] = both / max(np.count_nonzero(patch > 0.5) + np.count_nonzero(truth) - both, 1)
    return out
