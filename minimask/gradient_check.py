"""Derived gradients against finite differences, with a report that says where and how they differ.

The outputs are weighted by a random vector u (summing them would be blind: softmax and batch norm sum to a
constant), the inputs moved along random vectors v, all in float64:

    numeric = d/dt <u, f(x + t v)>  by central differences,   analytic = <f's backward of u, v>
    error = |numeric - analytic| / (|numeric| + |analytic|)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minimask import backend
from minimask.autograd import Tensor, no_grad

STEP = 1e-5  # short of most kinks; rounding leaves errors near 1e-10 for values of order 1
NEAR_ZERO = (
    1e-2  # a directional derivative this much below the typical one is dominated by cancellation: redraw
)


class GradientError(AssertionError):
    """A derived gradient differs from finite differences; the text says where and how."""


@dataclass(frozen=True)
class Mismatch:
    """The worst element of a wrong gradient."""

    input: int
    index: tuple[int, ...]
    numeric: float
    analytic: float
    wrong: int
    checked: int

    def __str__(self) -> str:
        ratio = self.analytic / self.numeric if self.numeric else float("inf")
        count = f"{self.wrong} of {self.checked} elements wrong" if self.wrong else "no element far off alone"
        text = (
            f"input {self.input}: {count}; worst at {self.index}: "
            f"numeric {self.numeric:.6g}, analytic {self.analytic:.6g} (ratio {ratio:.6g})"
        )
        return text + _hint(ratio)


def _hint(ratio: float) -> str:
    if np.isinf(ratio):
        return "; the output does not depend on it"
    for value, meaning in (
        (-1.0, "the sign"),
        (0.0, "a gradient that is never written, or overwritten instead of added"),
        (2.0, "a factor 2: added twice?"),
        (0.5, "a factor 1/2: one of two contributions missing?"),
    ):
        if abs(ratio - value) < 1e-4:
            return f"; it looks like {meaning}"
    return "; it looks like a term that is slightly off" if abs(ratio - 1) < 0.05 else ""


@dataclass
class GradientReport:
    """What a gradient check found; true when the gradients agree.

    Attributes
    ----------
    worst_error : float
        Largest relative error over all directions.
    where : str
        Input and direction of it.
    mismatch : Mismatch or None
        The worst element, when an error is above the tolerance.
    kink : str
        Not empty: f is not differentiable there, which says nothing about the gradient; move the inputs.
    """

    worst_error: float = 0.0
    where: str = ""
    mismatch: Mismatch | None = None
    kink: str = ""
    errors: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.mismatch is None and not self.kink


def gradcheck(
    function: Callable,
    inputs: Sequence,
    *,
    tolerance: float = 1e-6,
    directions: int = 4,
    step: float = STEP,
    seed: int = 0,
    raise_error: bool = True,
) -> GradientReport:
    """Check the gradient of `function` at `inputs`.

    Parameters
    ----------
    function : callable
        Gets a Tensor for each floating point input, returns a Tensor or several. It must give the same
        output for the same inputs: seed whatever it draws.
    inputs : sequence of arrays
        Floats are checked, in float64; a Tensor that requires no gradient, an array of integers
        and whatever is no array is passed on as a constant.
    tolerance : float
        Bound of the relative error in each direction.
    directions : int
        Random directions for each input, besides as many over all inputs together.
    step : float
        Step of the finite differences, in the unit of the inputs.
    seed : int
        Of the random vectors.
    raise_error : bool
        False: return the report whatever it says.

    Returns
    -------
    GradientReport
        True where all agree.

    Raises
    ------
    GradientError
        The gradient is wrong, or the function has a kink at the inputs; the text tells which.
    """
    # Not the stream of default_rng(seed), from which people draw the inputs: u would equal x.
    point = _Point(function, inputs, np.random.default_rng([seed, *b"gradcheck"]))
    report = GradientReport()
    alone = [[i] for i in point.variables]
    together = [point.variables] if len(point.variables) > 1 else []
    for group in alone + together:
        for _ in range(directions):
            numeric, analytic, v = point.direction(group, step)
            error = 0.0 if numeric == analytic else abs(numeric - analytic) / (abs(numeric) + abs(analytic))
            report.errors.append(error)
            if error >= report.worst_error:
                report.worst_error = error
                report.where = f"input {group[0]}" if len(group) == 1 else "all inputs"
            if error > tolerance:
                _explain(report, point, group, v, step, tolerance)
                break
        if not report:
            break
    if raise_error and not report:
        text = report.kink or str(report.mismatch)
        raise GradientError(f"gradcheck: relative error {report.worst_error:.2e} > {tolerance:g}: {text}")
    return report


class _Point:
    """The function, where it is examined, and its gradient there."""

    def __init__(self, function, inputs, rng):
        self.function, self.rng = function, rng
        self.arrays = [self._prepare(x) for x in inputs]
        self.variables = [
            i for i, x in enumerate(self.arrays) if isinstance(x, np.ndarray) and x.dtype == np.float64
        ]
        self.variables = [
            i for i in self.variables if not isinstance(inputs[i], Tensor) or inputs[i].requires_grad
        ]
        before = [self.arrays[i].copy() for i in self.variables]
        tensors = [
            Tensor(x, requires_grad=True) if i in self.variables else x for i, x in enumerate(self.arrays)
        ]
        outputs = self._outputs(function(*tensors))
        self.weights = [rng.normal(size=y.shape) if y.dtype.kind == "f" else None for y in outputs]
        self.scale = float(
            sum(np.abs(y.numpy() * u).sum() for y, u in zip(outputs, self.weights) if u is not None)
        )
        self._backward(outputs)
        self.gradients = {}
        for i, old in zip(self.variables, before):
            g = tensors[i].grad
            self.gradients[i] = np.zeros_like(old) if g is None else backend.to_cpu(g)
            if not np.array_equal(old, self.arrays[i], equal_nan=True):
                raise GradientError(f"gradcheck: the function changed its input {i} in place")

    @staticmethod
    def _prepare(x):
        x = x.data if isinstance(x, Tensor) else x
        is_float = getattr(x, "dtype", None) is not None and x.dtype.kind == "f"
        return np.array(x, np.float64) if is_float else x

    @staticmethod
    def _outputs(result) -> list[Tensor]:
        return [
            y for y in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(y, Tensor)
        ]

    def _backward(self, outputs) -> None:
        total = None
        for y, u in zip(outputs, self.weights):
            if u is not None and y.requires_grad:
                term = (y * u).sum()
                total = term if total is None else total + term
        if total is not None:
            total.backward()

    def value(self, moves: dict[int, np.ndarray]) -> float:
        """<u, f(x + moves)>."""
        arrays = [x + moves[i] if i in moves else x for i, x in enumerate(self.arrays)]
        tensors = [Tensor(x) if i in self.variables else x for i, x in enumerate(arrays)]
        with no_grad():
            outputs = self._outputs(self.function(*tensors))
        return float(sum((y.numpy() * u).sum() for y, u in zip(outputs, self.weights) if u is not None))

    def slope(self, v: dict[int, np.ndarray], h: float) -> float:
        """d/dt <u, f(x + t v)> at 0, central differences of 4th order."""
        f = [self.value({i: t * h * d for i, d in v.items()}) for t in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    def direction(self, group: list[int], step: float):
        """Slope along a random direction: numeric, analytic, and the direction."""
        size = sum(self.arrays[i].size for i in group)
        norm = np.sqrt(sum((self.gradients[i] ** 2).sum() for i in group))
        for _ in range(20):
            v = {
                i: self.rng.uniform(0.5, 1, self.arrays[i].shape) for i in group
            }  # no element is nearly left out
            v = {i: d * self.rng.choice([-1.0, 1.0], d.shape) for i, d in v.items()}
            numeric = self.slope(v, step)
            analytic = float(sum((self.gradients[i] * v[i]).sum() for i in group))
            if abs(numeric) + abs(analytic) >= NEAR_ZERO * norm:
                break
        # Gradients that are 0 leave differences of rounding errors, which no ratio should be formed of
        if size == 0 or abs(numeric) + abs(analytic) < self.noise(step):
            numeric = analytic = 0.0
        return numeric, analytic, v

    def noise(self, h: float) -> float:
        """What rounding alone may make of a slope of 0: some tens of units in the values' last place."""
        return 1e-14 * self.scale / h

    def has_kink(self, v: dict[int, np.ndarray], h: float, tolerance: float) -> bool:
        """Whether the slope along v jumps within 2h, or depends on the step as no smooth function's does."""
        at, finest = self.value({}), h / 16

        def jump(t):  # difference of the one-sided slopes: t f'' for a smooth f, constant across a kink
            right, left = (self.value({i: s * t * d for i, d in v.items()}) for s in (1, -1))
            return abs((right - at) - (at - left)) / t

        if jump(finest) > max(jump(h) / 4, self.noise(finest)):
            return True  # at the point itself, where all central differences agree
        slopes = [self.slope(v, step) for step in (h, h / 4, finest)]
        return max(slopes) - min(slopes) > tolerance / 2 * max(map(abs, slopes)) + self.noise(finest)


def _explain(report: GradientReport, point: _Point, group, v, step: float, tolerance: float) -> None:
    """After an error along v: a kink, or which element of which input is wrong."""
    if point.has_kink(v, step, tolerance):
        where = f"within {2 * step:g} of the inputs ({report.where})"
        report.kink = f"the function is not differentiable {where}: move them"
        return
    worst, wrong, checked = None, 0, 0
    for i in group:
        g = point.gradients[i]
        order = np.argsort(-np.abs(g).ravel(), kind="stable")
        some = (
            order
            if g.size <= 512
            else np.concatenate([order[:256], point.rng.choice(order[256:], 256, False)])
        )
        for flat in some:
            index = tuple(int(k) for k in np.unravel_index(flat, g.shape))
            e = np.zeros_like(g)
            e[index] = 1.0
            numeric, analytic = point.slope({i: e}, step), float(g[index])
            numeric = numeric if abs(numeric) > point.noise(step) else 0.0
            checked += 1
            difference = abs(numeric - analytic)
            wrong += difference > 100 * tolerance * max(abs(numeric), abs(analytic), 1e-3 * np.abs(g).max())
            if worst is None or difference > worst[0]:
                worst = (difference, i, index, numeric, analytic)
    report.mismatch = Mismatch(*worst[1:], int(wrong), checked)
