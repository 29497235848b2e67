"""Cases of the losses, each at ordinary logits, at very large ones, and with nothing to average."""

from __future__ import annotations

import numpy as np
from scipy import special

from minimask.functions import keypoint, loss
from minimask.functions.array import concatenate
from minimask.lessons.gradient_cases.case import Case, far_out, normal

# ------------------------------------------------------------------------------------------ plain losses


def _softmax_reference(x, labels, normalizer=None):
    terms = [-special.log_softmax(row)[label] for row, label in zip(x, labels)]
    return sum(terms, 0.0) / (normalizer or max(len(x), 1))


def _softmax(name: str, rows: int, logits=normal, **options) -> Case:
    def inputs(rng):
        return *logits((rows, 4))(rng), rng.integers(0, 4, rows)

    return Case(name, inputs, options, reference=_softmax_reference)


def _sigmoid_reference(x, t, normalizer=None):
    terms = -t * special.log_expit(x) - (1 - t) * special.log_expit(-x)
    return terms.sum() / (normalizer or max(x.size, 1))


def _sigmoid(name: str, rows: int, logits=normal, **options) -> Case:
    def inputs(rng):
        return *logits((rows, 3))(rng), rng.choice([0.0, 0.25, 1.0], (rows, 3))

    return Case(name, inputs, options, reference=_sigmoid_reference, constants=(1,))


def _smooth_l1_reference(x, t, beta=1.0, normalizer=None):
    total = 0.0
    for d in np.abs(x - t).flat:
        total += d * d / (2 * beta) if d < beta else d - beta / 2
    return total / (normalizer or max(x.size, 1))


def _smooth_l1(name: str, rows: int, **options) -> Case:
    return Case(name, normal((rows, 4), (rows, 4)), options, reference=_smooth_l1_reference)


# ------------------------------------------------------------------------------------- losses of a stage


def _rpn(name: str, positive, negative, images: int = 2, logits=normal) -> Case:
    positive, negative = (np.array(v, np.int64) for v in (positive, negative))

    def inputs(rng):  # 6 anchors per image
        return *logits((images, 6))(rng), *normal((images, 6, 4), (len(positive), 4))(rng)

    def composition(logits, deltas, targets, positive, negative, beta, normalizer):
        return loss.rpn_loss_reference(logits, deltas, positive, negative, targets.data, beta)

    normalizer = max(len(positive) + len(negative), 1)
    options = dict(positive=positive, negative=negative, beta=1 / 9, normalizer=normalizer)
    return Case(name, inputs, options, composition=composition, constants=(2,))


def _box_head(name: str, labels, class_agnostic: bool = False, logits=normal) -> Case:
    labels = np.array(labels, np.int64)

    def inputs(rng):  # background and 2 classes
        deltas = (len(labels), 4 if class_agnostic else 12)
        return *logits((len(labels), 3))(rng), *normal(deltas)(rng), labels, *normal((len(labels), 4))(rng)

    def composition(logits, deltas, labels, targets, beta, class_agnostic):
        deltas = concatenate([deltas] * 3, axis=1) if class_agnostic else deltas
        return loss.box_head_loss_reference(logits, deltas, labels.data, targets.data, beta)

    options = dict(beta=1 / 9, class_agnostic=class_agnostic)
    return Case(name, inputs, options, composition=composition, constants=(3,))


def _mask(name: str, labels, class_agnostic: bool = False, logits=normal) -> Case:
    labels = np.array(labels, np.int64)

    def inputs(rng):  # background, which is never read, and 2 classes
        shape = (len(labels), 1 if class_agnostic else 3, 3, 3)
        return *logits(shape)(rng), labels, rng.choice([0.0, 1.0], (len(labels), 3, 3))

    def composition(logits, labels, targets, class_agnostic):
        logits = concatenate([logits] * 3, axis=1) if class_agnostic else logits
        return loss.mask_loss_reference(logits, labels.data, targets.data)

    return Case(name, inputs, dict(class_agnostic=class_agnostic), composition=composition, constants=(2,))


def _softmax_mask_loop(logits, labels, targets):
    total = 0.0
    for x, label, mask in zip(logits, labels, targets):  # (K+1, M, M), (), (M, M)
        for i, j in np.ndindex(mask.shape):
            log_p = special.log_softmax(x[:, i, j])
            total -= mask[i, j] * log_p[label] + (1 - mask[i, j]) * log_p[0]
    return total / max(targets.size, 1)


def _softmax_mask(name: str, labels, channels: int = 4, masks=(0.0, 1.0), logits=normal) -> Case:
    labels = np.array(labels, np.int64)

    def inputs(rng):
        shape = (len(labels), channels, 3, 3)
        return *logits(shape)(rng), labels, rng.choice(masks, (len(labels), 3, 3))

    def composition(logits, labels, targets):
        return loss.softmax_mask_loss_reference(logits, labels.data, targets.data)

    return Case(name, inputs, reference=_softmax_mask_loop, composition=composition, constants=(2,))


def _keypoint(name: str, valid, logits=normal, **options) -> Case:
    valid = np.array(valid, bool).reshape(-1, 2)  # 2 keypoints per RoI

    def inputs(rng):
        return *logits((*valid.shape, 3, 3))(rng), rng.integers(0, 9, valid.shape), valid

    def composition(logits, cells, valid, normalizer=None):
        return keypoint.keypoint_loss_reference(logits, cells.data, valid.data, normalizer)

    return Case(name, inputs, options, composition=composition)


CASES = {
    loss.SoftmaxCrossEntropy: [
        _softmax("plain", 5),
        _softmax("far out", 12, far_out),
        _softmax("normalizer", 5, normalizer=7.0),
        _softmax("no rows", 0),
    ],
    loss.SigmoidCrossEntropy: [
        _sigmoid("plain", 4),
        _sigmoid("far out", 8, far_out),
        _sigmoid("normalizer", 4, normalizer=7.0),
        _sigmoid("no rows", 0),
    ],
    loss.SmoothL1: [
        _smooth_l1("beta 1", 4),
        _smooth_l1("beta 1/9", 16, beta=1 / 9),  # enough rows that some differences are below beta
        _smooth_l1("beta 0: L1", 4, beta=0.0, normalizer=3.0),
        _smooth_l1("no rows", 0),
    ],
    loss.RPNLoss: [
        _rpn("plain", [7, 2, 3], [0, 11, 5, 6]),
        _rpn("far out", [7, 2, 3], [0, 11, 5, 6], logits=far_out),
        _rpn("no positives", [], [4, 1]),
        _rpn("no anchors sampled", [], []),
        _rpn("no images", [], [], images=0),
    ],
    loss.BoxHeadLoss: [
        _box_head("plain", [1, 0, 2, 2, 0]),
        _box_head("far out", [1, 0, 2, 2, 0], logits=far_out),
        _box_head("class-agnostic", [1, 0, 2, 2, 0], class_agnostic=True),
        _box_head("background alone", [0, 0]),
        _box_head("no rows", []),
    ],
    loss.MaskLoss: [
        _mask("plain", [1, 2, 2]),
        _mask("far out", [1, 2, 2], logits=far_out),
        _mask("class-agnostic", [1, 2], class_agnostic=True),
        _mask("no rows", []),
    ],
    loss.SoftmaxMaskLoss: [
        _softmax_mask("plain", [1, 3, 3]),
        _softmax_mask("soft targets", [2, 1], masks=(0.0, 0.25, 0.7, 1.0)),
        _softmax_mask("far out", [1, 2, 3], logits=far_out),
        _softmax_mask("class-agnostic", [1, 1], channels=2),
        _softmax_mask("no rows", []),
    ],
    keypoint.KeypointLoss: [
        _keypoint("plain", [[1, 0], [1, 1], [0, 1]]),
        _keypoint("far out", [[1, 1], [1, 0]], logits=far_out),
        _keypoint("normalizer", [[1, 0], [1, 1]], normalizer=7.0),
        _keypoint("none valid", [[0, 0]]),
        _keypoint("no RoIs", []),
    ],
}
