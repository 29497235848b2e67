"""What a row of the table of gradient cases says, and the makers of inputs that the rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minimask.autograd import Function, Tensor


@dataclass(frozen=True)
class Case:
    """Inputs to try a Function on, and what its results must equal there.

    Parameters
    ----------
    name : str
        What is special about the case. It begins with "no " where an input has size 0.
    inputs : callable
        Generator -> tuple of inputs. Floating-point arrays are differentiated; integers, numbers and None are
        passed on as they are.
    options : dict
        Keyword arguments of the Function.
    reference : callable, optional
        ``reference(*arrays, **options)``: the forward pass by a slow loop or by a library.
    composition : callable, optional
        ``composition(*tensors, **options)``: the same with small Functions, whose gradients must agree too.
    constants : tuple of int
        Positions of the floating-point inputs that no gradient flows into, such as targets and RoIs.
    """

    name: str
    inputs: Callable[[np.random.Generator], tuple]
    options: dict = field(default_factory=dict)
    reference: Callable | None = None
    composition: Callable | None = None
    constants: tuple[int, ...] = ()

    def function(self, cls: type[Function]) -> Function:
        """A Function object, good for one call."""
        return cls(**self.options)

    def variables(self, inputs: tuple) -> list[int]:
        """Positions of the inputs that are differentiated."""
        floats = [i for i, x in enumerate(inputs) if isinstance(x, np.ndarray) and x.dtype.kind == "f"]
        return [i for i in floats if i not in self.constants]

    def tensors(self, inputs: tuple, needs: list[int] | None = None) -> list:
        """The inputs as a Function takes them; those in `needs` (by default all variables) need gradients."""
        needs = self.variables(inputs) if needs is None else needs
        return [Tensor(x, i in needs) if isinstance(x, np.ndarray) else x for i, x in enumerate(inputs)]


Inputs = Callable[[np.random.Generator], tuple]


def normal(*shapes) -> Inputs:
    """Arrays of standard normal numbers of these shapes; None in place of a shape gives None."""
    return lambda rng: tuple(None if s is None else rng.normal(size=s) for s in shapes)


def positive(*shapes) -> Inputs:
    """Arrays of uniform numbers from 0.5 to 2."""
    return lambda rng: tuple(rng.uniform(0.5, 2.0, s) for s in shapes)


def apart(*shapes) -> Inputs:
    """Evenly spaced numbers, far from kinks: at least 0.02 apart within an array, at least 0.01 from 0."""
    return lambda rng: tuple(spread(rng, s) for s in shapes)


def spread(rng: np.random.Generator, shape) -> np.ndarray:
    """One array of `apart`; the numbers are in random order."""
    n = int(np.prod(shape))
    steps = rng.permutation(n) - (n - 1) / 2  # whole steps apart, symmetric about 0
    return (steps * max(0.02, 3.0 / max(n, 1)) + 0.01 * (n % 2)).reshape(shape)


def far_out(*shapes) -> Inputs:
    """Numbers around -100, -1, 1 and 100: at 100, exp overflows float32 or vanishes beside 1."""
    return lambda rng: tuple(rng.choice([-100.0, -1.0, 1.0, 100.0], s) + rng.normal(size=s) for s in shapes)


def elementwise(f: Callable[..., float]) -> Callable:
    """A reference that applies a function of Python numbers element by element, with broadcasting."""
    vectorized = np.vectorize(f, otypes=[np.float64])
    return lambda *xs, **_: vectorized(*xs)
