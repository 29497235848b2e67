"""Finite differences of a whole model's loss, for the tests that each network's gradient is right."""

import numpy as np

from minimask import no_grad
from minimask.randomness import Draws

STEP = 3e-6
PREDICTORS = ("cls_score", "bbox_pred", "cls_logits", "mask_fcn_logits")


def spread_out(model, rng) -> None:
    """Move the weights off their start: predictors near 0 hide what lies below, ReLU has a kink at 0."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            p.data = rng.normal(size=p.shape) * 0.1
        if any(part in name for part in PREDICTORS) and p.ndim > 1:
            p.data = rng.normal(size=p.shape) * 0.3 / np.sqrt(np.prod(p.shape[1:]))


def loss_along(model, images, targets, parameter, direction, held, step=STEP) -> list[dict[str, float]]:
    """The losses at +-step and +-2 step along a direction of one parameter."""
    at, values = parameter.data, []
    for t in (-2, -1, 1, 2):
        parameter.data = at + t * step * direction
        with no_grad():
            losses = model.training_record(images, targets, Draws(seed=1), held).losses
        values.append({name: float(loss) for name, loss in losses.items()})
    parameter.data = at
    return values


def slope(values, step=STEP) -> float:
    f = [sum(v.values()) for v in values]
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)


def error(a: float, b: float) -> float:
    return abs(a - b) / (abs(a) + abs(b))


def gradient_errors(model, images, targets, record, tries: int = 10) -> dict[str, float]:
    """Of each parameter that trains, how far its gradient is from the difference along a random direction."""
    rng, errors = np.random.default_rng(5), {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        for _ in range(tries):
            v = rng.choice([-1.0, 1.0], p.shape) / np.sqrt(p.size)
            analytic = (p.grad * v).sum()
            wide, narrow = (
                slope(loss_along(model, images, targets, p, v, record, step), step)
                for step in (STEP, STEP / 4)
            )
            # Another direction where the slope is near 0, or a ReLU's kink lies between the two steps' ends
            if abs(analytic) > 0.1 * np.linalg.norm(p.grad) / np.sqrt(p.size) and error(wide, narrow) < 5e-6:
                break
        errors[name] = error(narrow, analytic)
    return errors
