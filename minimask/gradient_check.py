"""Derived gradients against finite differences, with a report that says where and how they differ.

The outputs are weighted by a random vector u (a plain sum would be blind: the outputs of softmax and of batch
norm sum to a constant), and the inputs are moved along random vectors v, all in float64:

    numeric = d/dt <u, f(x + t v)>  by central differences,   analytic = <f's backward of u, v>

`relative_error` measures how far they differ, here and in the plots of the notebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from minimask import backend
from minimask.autograd import Tensor, backward, no_grad

# Too short a step to reach most kinks; for values of order 1, rounding leaves errors near 1e-10.
STEP = 1e-5
# A slope below this fraction of the gradient's norm is mostly cancellation: another direction is drawn.
NEAR_ZERO = 1e-2


def relative_error(numeric, analytic):
    """``|numeric - analytic| / (|numeric| + |analytic|)``, element by element: how far two slopes differ.

    It lies between 0 and 1 and treats both alike: 0 where they are equal (both 0, too), 1 where
    only one is 0 or the sign is wrong, infinite where one is not finite. If the analytic slope is off by a
    small fraction of itself, the error is half that fraction.

    Parameters
    ----------
    numeric, analytic : float arrays or floats, of shapes that broadcast

    Returns
    -------
    float64 array of the common shape; for two numbers, a number.
    """
    numeric, analytic = np.asarray(numeric, np.float64), np.asarray(analytic, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference, size = np.abs(numeric - analytic), np.abs(numeric) + np.abs(analytic)
        error = np.divide(difference, size, out=np.zeros(size.shape), where=difference != 0)
    return np.where(np.isfinite(error), error, np.inf)[()]  # NaN would pass every comparison with a bound


class GradientError(AssertionError):
    """A derived gradient differs from finite differences; the message says where and how."""


@dataclass(frozen=True)
class Mismatch:
    """The worst element of a wrong gradient: of which input, where, and both values of its derivative.

    `wrong` of the `checked` elements are off by more than 100 times the tolerance.
    """

    input: int
    index: tuple[int, ...]
    numeric: float
    analytic: float
    wrong: int
    checked: int

    def __str__(self) -> str:
        ratio = self.analytic / self.numeric if self.numeric else float("inf")
        count = f"{self.wrong} of {self.checked} elements wrong" if self.wrong else "no one element far off"
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
    """What a gradient check found; truthy when the gradients agree.

    Attributes
    ----------
    worst_error : float
        Largest `relative_error` over all directions.
    where : str
        The input that was moved when it occurred, or "all inputs".
    mismatch : Mismatch or None
        The worst element, if an error is above the tolerance.
    kink : str
        If not empty, where f is not differentiable. That says nothing about the gradient: move the inputs.
    errors : list of float
        The `relative_error` along each direction, in the order of the checks.
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
        Takes a Tensor for each floating-point input and returns one Tensor or several. It must give the same
        output for the same inputs, so seed whatever it draws.
    inputs : sequence of arrays
        Floating-point arrays are checked, in float64. A Tensor that requires no gradient, an integer array
        and anything that is not an array are passed on as constants.
    tolerance : float
        Bound on the `relative_error` along each direction.
    directions : int
        Random directions for each input alone, and as many again for all inputs together.
    step : float
        Step of the finite differences, in the unit of the inputs.
    seed : int
        Seed of the random vectors.
    raise_error : bool
        If False, return the report whatever it says.

    Returns
    -------
    GradientReport
        Truthy if all directions agree.

    Raises
    ------
    GradientError
        If the gradient is wrong, or the function has a kink at the inputs; the message says which. Also if
        the function changes one of its inputs in place, or something at the inputs is not finite.
    ValueError
        If there is nothing to check: no floating-point array among the inputs, or no Tensor of floating-point
        numbers among the outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from minimask import functions
    >>> bool(gradcheck(functions.sigmoid, [np.array([0.3, -1.0])]))
    True
    """
    # Not the stream of default_rng(seed), which people draw their inputs from: u would equal x.
    point = FunctionAtPoint(function, inputs, np.random.default_rng([seed, *b"gradcheck"]))
    point.require_something_to_check()
    report = GradientReport()
    alone = [[i] for i in point.variables]
    together = [point.variables] if len(point.variables) > 1 else []
    for group in alone + together:
        for _ in range(directions):
            numeric, analytic, v = point.direction(group, step)
            error = float(relative_error(numeric, analytic))
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


class FunctionAtPoint:
    """A function at the point where it is examined, with its derived gradient there.

    Parameters
    ----------
    function, inputs
        As for `gradcheck`.
    rng : numpy Generator
        Draws the weights u, and later the directions.

    Attributes
    ----------
    arrays : list
        The inputs as arrays, floating-point ones in float64.
    variables : list of int
        Positions of the inputs that are differentiated.
    weights : list of arrays
        u: random weights for each output; None for an output that is not floating-point.
    scale : float
        The sum of ``|u f(x)|``, which the rounding errors of ``value`` are proportional to.
    gradients : dict of int to array
        Position of a variable -> derived gradient of <u, f(x)>.
    """

    def __init__(self, function: Callable, inputs: Sequence, rng: np.random.Generator):
        self.function, self.rng = function, rng
        self.arrays = [self._prepare(x) for x in inputs]
        self.variables = [i for i, x in enumerate(inputs) if self._is_variable(x, self.arrays[i])]
        before = [self.arrays[i].copy() for i in self.variables]
        tensors = [
            Tensor(x, requires_grad=True) if i in self.variables else x for i, x in enumerate(self.arrays)
        ]
        outputs = self._outputs(function(*tensors))
        self.outputs = [y.numpy() for y in outputs]
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

    def require_something_to_check(self) -> None:
        """Raise ValueError if nothing would be checked, and GradientError at NaN or infinity."""
        if not self.variables:
            raise ValueError("gradcheck: no input is a floating-point array, so there is nothing to check")
        if all(u is None for u in self.weights):
            raise ValueError("gradcheck: the function gives no Tensor of floating-point numbers to check")
        named = [(f"input {i}", self.arrays[i]) for i in self.variables]
        named += [(f"output {k}", y) for k, y in enumerate(self.outputs) if y.dtype.kind == "f"]
        named += [(f"the derived gradient of input {i}", g) for i, g in self.gradients.items()]
        for name, array in named:
            bad = np.argwhere(~np.isfinite(array))
            if len(bad):
                at = tuple(bad[0].tolist())
                raise GradientError(f"gradcheck: {name} is {array[at]} at {at}")

    @staticmethod
    def _prepare(x):
        x = x.data if isinstance(x, Tensor) else x
        is_float = getattr(x, "dtype", None) is not None and x.dtype.kind == "f"
        return np.array(x, np.float64) if is_float else x

    @staticmethod
    def _is_variable(given, array) -> bool:
        is_float = isinstance(array, np.ndarray) and array.dtype == np.float64
        return is_float and (not isinstance(given, Tensor) or given.requires_grad)

    @staticmethod
    def _outputs(result) -> list[Tensor]:
        results = result if isinstance(result, (tuple, list)) else [result]
        return [y for y in results if isinstance(y, Tensor)]

    def _backward(self, outputs: list[Tensor]) -> None:
        """The backward pass of <u, f(x)>: u goes in as it is, and no Function but those under test runs."""
        graded = [(y, u) for y, u in zip(outputs, self.weights) if u is not None and y.requires_grad]
        backward(
            [y for y, _ in graded],
            [backend.array_module(y.data).asarray(u, dtype=y.dtype) for y, u in graded],
        )

    def value(self, moves: dict[int, np.ndarray]) -> float:
        """<u, f(x + moves)>; `moves` holds an array for each variable that is moved."""
        arrays = [x + moves[i] if i in moves else x for i, x in enumerate(self.arrays)]
        tensors = [Tensor(x) if i in self.variables else x for i, x in enumerate(arrays)]
        with no_grad():
            outputs = self._outputs(self.function(*tensors))
        return float(sum((y.numpy() * u).sum() for y, u in zip(outputs, self.weights) if u is not None))

    def slope(self, v: dict[int, np.ndarray], h: float) -> float:
        """d/dt <u, f(x + t v)> at t = 0, by central differences of 4th order with step h."""
        f = [self.value({i: t * h * d for i, d in v.items()}) for t in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    def direction(self, group: list[int], step: float) -> tuple[float, float, dict[int, np.ndarray]]:
        """The slope along a random direction of some inputs: numeric, analytic, and the direction."""
        size = sum(self.arrays[i].size for i in group)
        norm = np.sqrt(sum((self.gradients[i] ** 2).sum() for i in group))
        for _ in range(20):
            v = self.random_direction(group)
            numeric = self.slope(v, step)
            analytic = float(sum((self.gradients[i] * v[i]).sum() for i in group))
            if abs(numeric) + abs(analytic) >= NEAR_ZERO * norm:
                break
        # Where the gradient is 0, both slopes are differences of rounding errors: their ratio means nothing.
        if size == 0 or abs(numeric) + abs(analytic) < self.noise(step):
            numeric = analytic = 0.0
        return numeric, analytic, v

    def random_direction(self, group: list[int]) -> dict[int, np.ndarray]:
        """Elements between 0.5 and 1 in size, of either sign: none is nearly left out of the check."""
        v = {i: self.rng.uniform(0.5, 1, self.arrays[i].shape) for i in group}
        return {i: d * self.rng.choice([-1.0, 1.0], d.shape) for i, d in v.items()}

    def noise(self, h: float) -> float:
        """The slope that rounding alone can produce: some tens of units in the values' last place, over h."""
        return 1e-14 * self.scale / h

    def has_kink(self, v: dict[int, np.ndarray], h: float, tolerance: float) -> bool:
        """Whether the slope along v jumps within 2h, or depends on the step as no smooth function's would."""
        here, finest = self.value({}), h / 16

        def jump(t):
            # The difference of the one-sided slopes: t f'' for a smooth f, independent of t across a kink
            right, left = (self.value({i: s * t * d for i, d in v.items()}) for s in (1, -1))
            return abs((right - here) - (here - left)) / t

        if jump(finest) > max(jump(h) / 4, self.noise(finest)):
            return True  # a kink at the point itself, where central differences of all steps agree
        slopes = [self.slope(v, step) for step in (h, h / 4, finest)]
        return max(slopes) - min(slopes) > tolerance / 2 * max(map(abs, slopes)) + self.noise(finest)


def _explain(report: GradientReport, point: FunctionAtPoint, group, v, step: float, tolerance: float) -> None:
    """Enter in the report why the slopes along v differ: a kink, or else the worst of the wrong elements."""
    if point.has_kink(v, step, tolerance):
        where = f"within {2 * step:g} of the inputs ({report.where})"
        report.kink = f"the function is not differentiable {where}: move them"
    else:
        report.mismatch = _worst_element(point, group, step, tolerance)


def _worst_element(point: FunctionAtPoint, group: list[int], step: float, tolerance: float) -> Mismatch:
    """Find the worst element by moving one at a time; of a large input, 512 elements are tried."""
    worst, wrong, checked = None, 0, 0
    for i in group:
        g = point.gradients[i]
        for flat in _elements_to_check(g, point.rng):
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
    return Mismatch(*worst[1:], int(wrong), checked)


def _elements_to_check(g: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flat indices: all of up to 512 elements, else the 256 of the largest gradient and 256 of the others."""
    order = np.argsort(-np.abs(g).ravel(), kind="stable")
    if g.size <= 512:
        return order
    return np.concatenate([order[:256], rng.choice(order[256:], 256, False)])
