"""Exercises about training and judging: SGD, the learning rate, average precision, a difference over seeds.

Shapes: S steps, D detections and G objects of one image, N seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from minimask.kernels.sgd import update
from minimask.lessons.exercises.exercise import exercise
from minimask.training.optim import LearningRate

# ------------------------------------------------------------------------------------------- a step of SGD


def _step_cases(rng):
    w, g, v = rng.normal(size=(3, 3, 4))
    return {
        "all of it": (w, g, v, 0.1, 0.8, 0.3),
        "the first step: no velocity yet": (w, g, np.zeros_like(v), 0.1, 0.9, 0.1),
        "without decay": (w, g, v, 0.5, 0.9, 0.0),
        "without momentum": (w, g, v, 0.5, 0.0, 0.1),
        "no weights": (*np.zeros((3, 0)), 0.1, 0.9, 0.1),
    }


def _step(
    w, g, v, rate, momentum, decay, of_gradient: float = 1.0, decoupled: bool = False, ahead: bool = False
):
    """The right step, or a wrong one, written out."""
    slope = g if decoupled else g + decay * w
    v_new = momentum * v + of_gradient * slope
    moved = slope + momentum * v_new if ahead else v_new
    return w - rate * (moved + decay * w if decoupled else moved), v_new


def _rate_inside(w, g, v, rate, momentum, decay):
    v_new = momentum * v + rate * (g + decay * w)
    return w - v_new, v_new


def _before_it_is_updated(w, g, v, rate, momentum, decay):
    return w - rate * v, sgd_step(w, g, v, rate, momentum, decay)[1]


def _damped(w, g, v, rate, momentum, decay):
    return _step(w, g, v, rate, momentum, decay, of_gradient=1 - momentum)


@exercise(
    _step_cases,
    {
        "Nesterov's momentum: the weights move by the new velocity itself": partial(_step, ahead=True),
        "decay after momentum: it is part of the gradient, and goes into the velocity": partial(
            _step, decoupled=True
        ),
        "momentum left out: the velocity is the gradient alone": dict(momentum=lambda a: 0.0),
        "the rate inside the velocity: with a rate that changes, old steps keep their old rate": _rate_inside,
        "the old velocity moves the weights: update it first": _before_it_is_updated,
        "the gradient damped by 1 - momentum: that is a mean, not a sum of gradients": _damped,
        "decay left out": dict(decay=lambda a: 0.0),
        "decay pushes the weights away from 0": dict(decay=lambda a: -a.decay),
        "twice the decay: the penalty is decay / 2 times the square": dict(decay=lambda a: 2 * a.decay),
        "uphill: the weights move against the gradient": dict(rate=lambda a: -a.rate),
    },
)
def sgd_step(w, g, v, rate, momentum, decay):
    """A step of SGD with classical momentum and weight decay.

    w, g, v : float arrays of one shape: weights, their gradient, their velocity
    rate, momentum, decay : float

    Give w_new, v_new: arrays of that shape. The step goes down a loss of which g is the gradient, plus
    decay / 2 times the sum of the squares of w. The velocity is multiplied by momentum and gains the gradient
    of both; then the weights move by rate times the new velocity.
    """
    v_new = np.array(v, order="C")  # which `update` changes
    return update([(w, g, v_new, decay)], rate, momentum)[0], v_new


# ---------------------------------------------------------------------------------- the rate over the steps


def _rate_cases(rng):
    return {
        "warm-up and fall": (np.arange(20), 0.02, 5, 20),
        "without warm-up": (np.arange(0, 30, 3), 0.5, 0, 30),
        "beyond the end": (np.array([3, 11, 12, 13, 17]), 0.1, 4, 12),
        "no steps": (np.zeros(0, np.int64), 0.1, 4, 12),
    }


def _half_cosine(done):
    return (1 + np.cos(np.pi * done)) / 2


def _rates(
    steps,
    base,
    warmup,
    total,
    rise: int = 1,
    fall: Callable = _half_cosine,
    hold: Callable = lambda done: np.minimum(done, 1.0),
    from_start: bool = False,
):
    done = hold(steps / total if from_start else (steps - warmup) / (total - warmup))
    return np.where(steps < warmup, base * (steps + rise) / max(warmup, 1), base * fall(done))


@exercise(
    _rate_cases,
    {
        "warm-up begins at 0: the first step would do nothing": partial(_rates, rise=0),
        "no warm-up": lambda *a: _rates(a[0], a[1], 0, a[3]),
        "the cosine begins at step 0: it begins where warm-up ends": partial(_rates, from_start=True),
        "a whole cosine: the rate rises again in the second half": partial(
            _rates, fall=lambda done: (1 + np.cos(2 * np.pi * done)) / 2
        ),
        "a quarter of a cosine: it starts flat, but ends steep": partial(
            _rates, fall=lambda done: np.cos(np.pi / 2 * done)
        ),
        "a straight line: it is a cosine that falls": partial(_rates, fall=lambda done: 1 - done),
        "1 + cos not halved": partial(_rates, fall=lambda done: 2 * _half_cosine(done)),
        "beyond the end it rises again: hold it at 0": partial(_rates, hold=lambda done: done),
    },
)
def warmup_cosine(steps, base, warmup, total):
    """The learning rate of each step: a linear rise, then half a cosine.

    steps : (S,) int, counted from 0
    base : float, the greatest rate
    warmup : int, steps of the rise; may be 0
    total : int > warmup

    Give rates : (S,) float. Step 0 has base / warmup, and step warmup - 1 has base, with equal differences in
    between. From step warmup, which has base, to step total, which has 0, the rate falls along half a period
    of a cosine; beyond, it is 0.
    """
    rate = LearningRate(base, total, warmup)
    return np.array([rate(int(step)) for step in steps], np.float64)


# ---------------------------------------------------------------------------------------- average precision


def _judged_cases(rng):
    # Rows by falling score are 2, 0, 1, 6, 3, 5, 4, 7: the first and the third want the same object.
    iou = np.array(
        [
            [0.0, 0.3, 0.1, 0.0, 0.0, 0.0],
            [0.82, 0.61, 0.0, 0.0, 0.0, 0.0],
            [0.91, 0.2, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.5, 0.1, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.74],
            [0.7, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 0.0, 0.66, 0.0, 0.0],
            [0.0, 0.2, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    scores = np.array([0.9, 0.8, 0.97, 0.6, 0.2, 0.4, 0.7, 0.1])
    return {
        "found twice, and one of two": (iou, scores, 0.5),
        "a higher threshold": (iou, scores, 0.75),
        "all found, and one more": (np.eye(3)[[2, 0, 1, 0]] * 0.9, np.array([0.3, 0.2, 0.9, 0.1]), 0.5),
        "several objects under one detection": (
            np.array([[0.6, 0.8, 0.55, 0], [0.7, 0, 0, 0], [0, 0, 0.9, 0], [0, 0, 0, 0.6], [0, 0, 0, 0.9]]),
            np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
            0.5,
        ),
        "nothing right": (iou / 2, scores, 0.5),
        "no detections": (np.zeros((0, 3)), np.zeros(0), 0.5),
    }


def _coco_match(free: np.ndarray, iou: np.ndarray) -> int:  # the best of the objects that are left
    return int(free.argmax())


def _hits(
    iou,
    scores,
    threshold,
    enough: Callable = np.greater_equal,
    choose: Callable = _coco_match,
    once: bool = True,
    order=None,
) -> np.ndarray:
    """(D,) bool by falling score: whether each detection finds an object that is left."""
    taken, hits = np.zeros(iou.shape[1], bool), []
    for d in np.argsort(-scores, kind="stable") if order is None else order:
        free = np.where(taken & once, -1, iou[d])
        g = choose(free, iou[d])
        hits.append(bool(enough(free[g], threshold)))
        taken[g] |= hits[-1]
    return np.array(hits, bool)


def _curve(hits: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after each detection."""
    found = hits.cumsum()
    return found / np.arange(1, len(hits) + 1), found / objects


def _mean_at(hits, objects: int, points: int = 101, best: bool = True, reached_only: bool = False) -> float:
    """The mean precision at `points` recalls: the best from there on, or the first that reaches it."""
    precision, recall = _curve(hits, objects)
    values = []
    for r in np.arange(points) / (points - 1):
        reached = precision[recall >= r]
        if len(reached) or not reached_only:
            values.append((reached.max() if best else reached[0]) if len(reached) else 0.0)
    return float(np.mean(values)) if values else 0.0


def _area(hits, objects: int) -> float:
    """The area under the steps of the same curve, without points."""
    precision, recall = _curve(hits, objects)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * np.diff(recall, prepend=0.0)).sum())


def _ap(*inputs, curve: Callable = _mean_at, **changed) -> float:
    hits = _hits(*inputs, **changed)
    return curve(hits, inputs[0].shape[1])


@exercise(
    _judged_cases,
    {
        "not by falling score: the most confident chooses first": lambda iou, scores, threshold: _ap(
            iou, scores, threshold, order=range(len(scores))
        ),
        "by rising score: the most confident chooses first": lambda iou, scores, threshold: _ap(
            iou, -scores, threshold
        ),
        "an object counts each time that it is found: it can be found once": partial(_ap, once=False),
        "a detection whose best object is taken gives up: it takes the best of those that are left": partial(
            _ap, choose=lambda free, iou: int(iou.argmax())
        ),
        "an IoU of the threshold itself is enough": partial(_ap, enough=np.greater),
        "precision at a recall is the best from there on, not the first that reaches it": partial(
            _ap, curve=partial(_mean_at, best=False)
        ),
        "11 recalls, as PASCAL VOC had until 2009; COCO has 101": partial(
            _ap, curve=partial(_mean_at, points=11)
        ),
        "the area under the curve, not the mean at 101 recalls": partial(_ap, curve=_area),
        "recalls that are never reached left out: precision there is 0": partial(
            _ap, curve=partial(_mean_at, reached_only=True)
        ),
        "recall is a share of the objects, not of the detections": partial(
            _ap, curve=lambda hits, objects: _mean_at(hits, max(len(hits), 1))
        ),
    },
)
def average_precision(iou, scores, threshold):
    """COCO's average precision of one image's detections of one class, at one IoU threshold.

    iou : (D, G) float, of each detection with each object; G is at least 1
    scores : (D,) float, all different, in any order
    threshold : float

    Give ap : () float. By falling score, each detection finds the object with which it has the greatest IoU
    among those not yet found, if that is at least the threshold. Precision after a detection is the share of
    detections up to it that found one; recall, the share of all objects found by then. ap is the mean, over
    the 101 recalls r = 0, 0.01, ..., 1, of the greatest precision at any recall of at least r; 0 where there
    is none.
    """
    return _ap(iou, scores, threshold)


# ----------------------------------------------------------------------------------- a difference over seeds


def _seed_cases(rng):
    shared = rng.normal(30, 4, 5)  # what a seed gives, or takes, both
    return {
        "five seeds": (shared + rng.normal(2, 1, 5), shared, 2.776),
        "three seeds, the second is better": (
            np.array([21.0, 25.0, 18.0]),
            np.array([26.0, 28.5, 20.0]),
            4.303,
        ),
        "two seeds": (np.array([0.5, 0.25]), np.array([0.25, 0.125]), 12.71),
        "no difference": (shared, shared, 2.776),
    }


def _interval(values, t: float, mean: float | None = None, ddof: int = 1, count: int | None = None):
    """Mean, and the interval around it, of values: as if there were `count` of them, if given."""
    mean = values.mean() if mean is None else mean
    half = t * values.std(ddof=ddof) / math.sqrt(count or len(values))
    return mean, mean - half, mean + half


def _unpaired(a, b, t):
    mean, half = (a - b).mean(), t * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    return mean, mean - half, mean + half


def _median(a, b, t):
    return _interval(a - b, t, mean=float(np.median(a - b)))


@exercise(
    _seed_cases,
    {
        "as if the two had nothing in common: take the differences seed by seed, and their spread": _unpaired,
        "the spread divided by n: one degree of freedom went into the mean, so n - 1": lambda a, b, t: (
            _interval(a - b, t, ddof=0)
        ),
        "the spread of one seed, not of the mean over n": lambda a, b, t: _interval(a - b, t, count=1),
        "the mean's spread falls with the root of n, not with n": lambda a, b, t: _interval(
            a - b, t, count=len(a) ** 2
        ),
        "t left out: that is one standard error": dict(t=lambda a: 1.0),
        "1.96 holds for many seeds: with few, t is greater": dict(t=lambda a: 1.96),
        "the other way round: the first less the second": lambda a, b, t: _interval(b - a, t),
        "the median: the interval is the mean's": _median,
    },
)
def paired_difference(first, second, t):
    """How much better one way of training is than another, and how surely.

    first, second : (N,) float, a score of each way by seed, the same seeds in the same order; N is at least 2
    t : float, the quantile of Student's distribution for N seeds

    Give mean, low, high: () float each. With d = first - second, seed by seed, mean is that of d, and low and
    high lie t standard errors of it below and above. The standard error is s / sqrt(N), where s is the
    standard deviation of d, with N - 1 in its denominator.
    """
    return _interval(first - second, t)
