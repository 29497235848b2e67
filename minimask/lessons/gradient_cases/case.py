"""What a row of the table of gradient cases says, and the makers of inputs that rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minimask.autograd import Function, Tensor


@dataclass(frozen=True)
class Case:
    """Inputs of a Function, and what its results must equal there.

    Parameters
    ----------
    name : str
        What is special about it. Begins with "no " where an input has size 0.
    inputs : callable
        Generator -> tuple of inputs. Floating point arrays are differentiated; integers, numbers and None are
        passed on.
    options : dict, or callable that makes one
        Of the Function. A callable where an option has a state, such as a generator: called for each use.
    reference : callable, optional
        ``reference(*arrays, **options)``: the forward pass by a slow loop or a library.
    composition : callable, optional
        ``composition(*tensors, **options)``: the same from small Functions, whose gradients must agree, too.
    constants : tuple of int
        Which floating point inputs no gradient flows into, such as targets and RoIs.
    """

    name: str
    inputs: Callable[[np.random.Generator], tuple]
    options: dict | Callable[[], dict] = field(default_factory=dict)
    reference: Callable | None = None
    composition: Callable | None = None
    constants: tuple[int, ...] = ()

    def keywords(self) -> dict:
        """The options of one call."""
        return self.options() if callable(self.options) else self.options

    def function(self, cls: type[Function]) -> Function:
        """A Function object, good for one call."""
        return cls(**self.keywords())

    def variables(self, inputs: tuple) -> list[int]:
        """Positions of the inputs that are differentiated."""
        is_float = [isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in inputs]
        return [i for i, yes in enumerate(is_float) if yes and i not in self.constants]

    def tensors(self, inputs: tuple, needs: list[int] | None = None) -> list:
        """The inputs as a Function takes them; those in `needs`, by default all variables, need gradients."""
        needs = self.variables(inputs) if needs is None else needs
        return [Tensor(x, i in needs) if isinstance(x, np.ndarray) else x for i, x in enumerate(inputs)]


Inputs = Callable[[np.random.Generator], tuple]


def normal(*shapes) -> Inputs:
    """Standard normal arrays; None gives None."""
    return lambda rng: tuple(None if s is None else rng.normal(size=s) for s in shapes)


def positive(*shapes) -> Inputs:
    """Numbers from 0.5 to 2."""
    return lambda rng: tuple(rng.uniform(0.5, 2.0, s) for s in shapes)


def apart(*shapes) -> Inputs:
    """Evenly spaced: no two elements of an array closer than 0.02, none to 0 than 0.01, far from kinks."""
    return lambda rng: tuple(spread(rng, s) for s in shapes)


def spread(rng: np.random.Generator, shape) -> np.ndarray:
    """An array as `apart` gives it, in random order."""
    n = int(np.prod(shape))
    half = rng.permutation(n) - (n - 1) / 2  # symmetric about 0, a step of 1 apart
    return (half * max(0.02, 3.0 / max(n, 1)) + 0.01 * (n % 2)).reshape(shape)


def far_out(*shapes) -> Inputs:
    """Numbers around -100, -1, 1 and 100: where exp overflows float32 or rounds to nothing."""
    return lambda rng: tuple(rng.choice([-100.0, -1.0, 1.0, 100.0], s) + rng.normal(size=s) for s in shapes)


def elementwise(f: Callable[..., float]) -> Callable:
    """A reference from a function of Python numbers, element by element with broadcasting."""
    vectorized = np.vectorize(f, otypes=[np.float64])
    return lambda *xs, **_: vectorized(*xs)
