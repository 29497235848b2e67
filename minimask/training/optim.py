"""Stochastic gradient descent with momentum, its learning rate over the steps, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from minimask import backend
from minimask.errors import InputError
from minimask.kernels.sgd import scaled, sum_of_squares, update


class SGD:
    """v <- momentum v + (g + weight_decay w);  w <- w - lr v.

    Parameters
    ----------
    named_parameters : iterable of (name, Parameter)
        All of the model's, frozen ones too: `step` moves those that require a gradient at that time.
    lr : float
        Default of `step`.
    momentum, weight_decay : float
    decay_norms_and_biases : bool
        Whether one-dimensional parameters decay as well, although they are not the ones that overfit.

    Raises
    ------
    InputError
        If parameters come without names, or one of the numbers is not a finite number from 0 up.
    """

    def __init__(
        self,
        named_parameters: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        decay_norms_and_biases: bool = False,
    ):
        named = list(named_parameters)
        if not all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in named):
            raise InputError("SGD: parameters need their names; give model.named_parameters()")
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not (isinstance(value, Real) and 0 <= value < math.inf):
                raise InputError(f"SGD: {name} must be a number from 0 up, is {value!r}")
        self.parameters = dict(named)
        self.lr, self.momentum = lr, momentum
        self.decay = {
            name: weight_decay if p.ndim > 1 or decay_norms_and_biases else 0.0
            for name, p in self.parameters.items()
        }
        self.velocity = {name: _zeros(p) for name, p in self.trained().items()}

    def trained(self) -> dict[str, Any]:
        """The parameters that require a gradient now, by name."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    def step(self, lr: float | None = None) -> None:
        """Update the parameters that require a gradient and have one; `lr` overrides the optimizer's own.

        On the CPU a parameter gets a new array, and whoever holds the old one keeps the old weights. On a GPU
        the array is updated in place: copy it to keep the old weights.
        """
        lr = self.lr if lr is None else lr
        moved = {name: p for name, p in self.trained().items() if p.grad is not None}
        for name in moved.keys() - self.velocity.keys():  # unfrozen since
            self.velocity[name] = _zeros(moved[name])
        rows = [(p.data, p.grad, self.velocity[name], self.decay[name]) for name, p in moved.items()]
        for p, weights in zip(moved.values(), update(rows, lr, self.momentum)):
            p.data = weights

    def zero_grad(self) -> None:
        """Discard all gradients, those of frozen parameters too."""
        for p in self.parameters.values():
            p.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """The velocities by parameter name."""
        return dict(self.velocity)

    def load_state_dict(self, state) -> None:
        """Take over velocities.

        Raises
        ------
        InputError
            If names or shapes are not those of the parameters.
        """
        for name, v in self.velocity.items():
            if name not in state or state[name].shape != v.shape:
                raise InputError(
                    f"the optimizer state is of another model: entry {name} is missing or has another shape"
                )
        self.velocity = {
            name: backend.array_module(v).array(state[name], dtype=v.dtype, order="C")
            for name, v in self.velocity.items()
        }


def _zeros(parameter):
    return backend.array_module(parameter.data).zeros(parameter.shape, dtype=parameter.dtype)


def gradient_norm(parameters: Sequence) -> float:
    """Euclidean norm of the gradients of all parameters that require one, taken together."""
    return math.sqrt(sum_of_squares([p.grad for p in parameters if p.requires_grad and p.grad is not None]))


def clip_gradients(parameters: Sequence, max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm` (0: no bound); returns the norm before.

    As with `SGD.step`, arrays on a GPU are written in place.
    """
    norm = gradient_norm(parameters)
    if 0 < max_norm < norm:
        given = [p for p in parameters if p.grad is not None]
        for p, gradient in zip(given, scaled([p.grad for p in given], max_norm / norm)):
            p.grad = gradient
    return norm


def scaled_learning_rate(base: float, batch_size: int, reference_batch: int) -> float:
    """The linear rule: the rate stated for `reference_batch` images, times batch_size / reference_batch."""
    return base * batch_size / reference_batch


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each step: linear warm-up, then constant, steps or half a cosine to 0.

    Parameters
    ----------
    base : float
    total_steps : int
    warmup_steps : int
        Over which it rises linearly from base / warmup_steps to base.
    kind : "cosine", "step" or "constant"
    milestones : sequence of int
        For "step": the steps from which it is multiplied by `gamma`.
    gamma : float
    """

    base: float
    total_steps: int
    warmup_steps: int = 0
    kind: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1

    def __post_init__(self):
        if self.kind not in ("cosine", "step", "constant"):
            raise InputError(f'schedule: must be "cosine", "step" or "constant", is {self.kind!r}')

    def __call__(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.base * (step + 1) / self.warmup_steps
        if self.kind == "cosine":
            done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
            return self.base * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        if self.kind == "step":
            return self.base * self.gamma ** sum(step >= m for m in self.milestones)
        return self.base
