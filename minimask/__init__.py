"""Mask R-CNN from scratch on NumPy and CuPy: every forward beside its hand-derived backward."""

from minimask import functions, models, nn, ops
from minimask._version import __version__
from minimask.autograd import Function, Tensor, no_grad
from minimask.errors import InputError
from minimask.gradient_check import GradientError, GradientReport, gradcheck

__all__ = [
    "Function",
    "GradientError",
    "GradientReport",
    "InputError",
    "Tensor",
    "__version__",
    "functions",
    "gradcheck",
    "models",
    "nn",
    "no_grad",
    "ops",
]
