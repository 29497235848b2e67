"""What the notebooks share: minimask's own source, and the error of finite differences over the step."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minimask.autograd import Tensor
from minimask.gradient_check import FunctionAtPoint, relative_error

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#CC3311"  # the colour-blind tell them apart too
GREY = "#666666"


class Stencil(NamedTuple):
    """A finite difference: the sum of weights[a] f(x + a h) over a, divided by h.

    Its truncation error falls with h to the power `order`; `colour` is that of its curve.
    """

    weights: dict[int, float]
    order: int
    colour: str


STENCILS = {
    "one-sided": Stencil({0: -1.0, 1: 1.0}, 1, ORANGE),
    "central": Stencil({-1: -0.5, 1: 0.5}, 2, BLUE),
    "five points": Stencil({-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}, 4, GREEN),
}


class Source:
    """Source text: highlighted in a notebook, plain everywhere else."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.text}\n```"


def source(*objects: Any) -> Source:
    """The installed source of functions, classes, methods or modules, for a notebook to show."""
    parts = []
    for thing in objects:
        module = inspect.getmodule(thing)
        path = module.__name__.replace(".", "/") + ("/__init__" if hasattr(module, "__path__") else "")
        parts.append(f"# {path}.py\n{textwrap.dedent(inspect.getsource(thing)).rstrip()}")
    return Source("\n\n\n".join(parts))


@dataclass(frozen=True)
class StepErrors:
    """Errors of finite differences against one derived gradient, over the step.

    Attributes
    ----------
    steps : (S,) float
    errors : dict of (S,) float
        For each kind of difference: the `gradient_check.relative_error` along one random direction.
    rounding : (S,) float
        The error that rounding alone would cause: one unit in the values' last place, over the step.
    """

    steps: np.ndarray
    errors: dict[str, np.ndarray]
    rounding: np.ndarray

    def best(self, kind: str = "central") -> float:
        """The smallest error of a kind, where truncation and rounding meet; one lucky step does not count."""
        neighbours = np.lib.stride_tricks.sliding_window_view(self.errors[kind], 3)  # (S - 2, 3)
        return float(np.median(neighbours, axis=1).min())

    def plot(self, axes=None, title: str = ""):
        """Draw the errors over the step on logarithmic axes, with the straight lines that theory predicts.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            By default, those of a new figure.
        title : str
            Of the axes.

        Returns
        -------
        matplotlib Axes
        """
        import matplotlib.pyplot as plt

        if axes is None:
            _, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        axes.loglog(self.steps, self.rounding, "--", color=GREY, lw=1, label="rounding: last place / h")
        for kind, errors in self.errors.items():
            order, colour = STENCILS[kind].order, STENCILS[kind].colour
            drawn = np.maximum(errors, 1e-17)  # an error of exactly 0 has no logarithm
            axes.loglog(self.steps, drawn, ".-", color=colour, lw=1, ms=4, label=kind)
            anchor = self._truncation(drawn, order)
            if anchor is not None:
                line = drawn[anchor] * (self.steps / self.steps[anchor]) ** order
                power = "h" if order == 1 else f"$h^{order}$"
                axes.loglog(self.steps, line, ":", color=colour, lw=1, label=f"truncation: {power}")
        axes.set(xlabel="step h", ylabel="relative error", title=title, ylim=(3e-18, 10))
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
        return axes

    def _truncation(self, errors, order: int) -> int | None:
        """The index of the largest step below which errors fall as step ** order; None if there is none.

        They must do so over a factor of 16, or down to where rounding takes over: beyond the first kink that
        a step reaches they wander, and two points alone have the right slope now and then.
        """
        x, y = np.log(self.steps), np.log(errors)
        clear = errors > 3 * self.rounding
        for i in range(len(x) - 1, -1, -1):
            at = [int(np.abs(x - x[i] + np.log(factor)).argmin()) for factor in (1, 4, 16)]
            pairs = [(a, b) for a, b in zip(at, at[1:]) if x[a] > x[b] and clear[b]]
            if pairs and all(abs((y[a] - y[b]) / (x[a] - x[b]) - order) < 0.2 for a, b in pairs):
                return i
        return None


def step_errors(
    function: Callable,
    inputs: Sequence,
    *,
    kinds: Sequence[str] = tuple(STENCILS),
    steps=None,
    dtype=np.float64,
    seed: int = 0,
) -> StepErrors:
    """Compare a derived gradient with finite differences of many step sizes.

    The outputs are weighted by a random u, and all floating-point inputs are moved along a random v, as in
    `minimask.gradcheck`. The derived <backward(u), v> is always computed in float64.

    Parameters
    ----------
    function, inputs
        As for `minimask.gradcheck`.
    kinds : sequence of "one-sided", "central", "five points"
    steps : (S,) float, optional
        By default 53 steps from 1e-13 to 1.
    dtype : float dtype
        In which the finite differences are computed.
    seed : int
        Seed of u and v.
    """
    rng = np.random.default_rng([seed, *b"steps"])
    steps = np.logspace(-13, 0, 53) if steps is None else np.asarray(steps, np.float64)
    point = FunctionAtPoint(function, inputs, rng)
    shapes = {i: point.arrays[i].shape for i in point.variables}
    v = {i: rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1, shape) for i, shape in shapes.items()}
    derived = sum(float((point.gradients[i] * d).sum()) for i, d in v.items())

    def in_dtype(*xs):
        return function(*(Tensor(x.data.astype(dtype)) if isinstance(x, Tensor) else x for x in xs))

    point.function = in_dtype
    errors = {}
    for kind in kinds:
        weights = STENCILS[kind].weights.items()
        numeric = [
            sum(w * point.value({i: a * h * d for i, d in v.items()}) for a, w in weights) / h for h in steps
        ]
        errors[kind] = relative_error(numeric, derived)
    # relative_error divides by the sum of both slopes, which are about equal
    rounding = np.finfo(dtype).eps * point.scale / steps / (2 * abs(derived))
    return StepErrors(steps, errors, rounding)
