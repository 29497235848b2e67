"""The network's other operators, at the sizes they have in ResNet-50-FPN at 800 x 1067 (800 x 1088 padded).

Convolutions have a file of their own. `differentiable` turns one call, written for both libraries, into the
rows forward (nothing kept for a backward pass) and both (forward and all gradients).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from minimask import Tensor, no_grad
from minimask import functions as F
from tests.benchmarks.measure import RELU, Contest, Row

MAPS = [(200, 272), (100, 136), (50, 68), (25, 34)]


def differentiable(
    ours: Callable, theirs: Callable, make: Callable, kind: str, trained: int = 1, tolerance: float = 1e-5
) -> Contest:
    """One call on equal arrays.

    Parameters
    ----------
    ours, theirs : callable
        Take the arrays that `make(rng)` gives, theirs as tensors.
    kind : "forward" or "both"
    trained : int
        So many of the arrays, the first ones, get gradients.
    """
    import torch

    rng = np.random.default_rng(0)
    given = make(rng)
    tensors = [torch.from_numpy(a) for a in given]
    if kind == "forward":

        def forward_ours():
            with no_grad():
                return ours(*given)

        def forward_theirs():
            with torch.no_grad():
                return theirs(*tensors)

        return Contest({"minimask": forward_ours, "torch": forward_theirs}, tolerance)
    with torch.no_grad():
        gy = rng.standard_normal(theirs(*tensors).shape, np.float32)
    peer_gy = torch.from_numpy(gy)

    def both_ours():
        xs = [Tensor(a, requires_grad=i < trained) for i, a in enumerate(given)]
        y = ours(*xs)
        y.backward(gy)
        return [y, *(x.grad for x in xs[:trained])]

    def both_theirs():
        xs = [t.detach().requires_grad_(i < trained) for i, t in enumerate(tensors)]
        y = theirs(*xs)
        return [y, *torch.autograd.grad(y, xs[:trained], peer_gy)]

    return Contest({"minimask": both_ours, "torch": both_theirs}, tolerance)


def max_pool(kind: str) -> Contest:
    from torch.nn.functional import max_pool2d

    def make(rng):
        return [rng.standard_normal((1, 64, 400, 544), np.float32)]

    return differentiable(lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: max_pool2d(x, 3, 2, 1), make, kind)


def upsample(kind: str) -> Contest:
    """The pyramid's largest, with the addition behind it."""
    from torch.nn.functional import interpolate

    def make(rng):
        return [rng.standard_normal((1, 256, *size), np.float32) for size in MAPS[1::-1]]

    def ours(x, lateral):
        return F.add(lateral, F.upsample_nearest(x, lateral.shape[2:]))

    def theirs(x, lateral):
        return lateral + interpolate(x, size=lateral.shape[2:], mode="nearest")

    return differentiable(ours, theirs, make, kind, trained=2)


def frozen_norm(kind: str) -> Contest:
    """Frozen batch norm and ReLU as torchvision writes them; our models fold them into convolutions."""

    def make(rng):
        vectors = [rng.uniform(0.5, 1.5, 256).astype(np.float32) for _ in range(4)]
        return [rng.standard_normal((1, 256, 200, 272), np.float32), *vectors]

    def theirs(x, w, b, mean, var):
        scale = w * (var + 1e-5).rsqrt()
        shift = b - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).relu_()

    return differentiable(
        lambda x, *v: F.relu(F.frozen_batch_norm(x, *v)), theirs, make, kind, tolerance=RELU
    )


def group_norm(kind: str) -> Contest:
    """Group norm of 8 groups and ReLU, at the size of `maskrcnn_small`'s first stage."""
    from torch.nn.functional import group_norm as torch_group_norm

    def make(rng):
        vectors = [rng.uniform(0.5, 1.5, 32).astype(np.float32) for _ in range(2)]
        return [rng.standard_normal((2, 32, 128, 128), np.float32), *vectors]

    def ours(x, w, b):
        return F.group_norm(x, 8, w, b, relu=True)

    def theirs(x, w, b):
        return torch_group_norm(x, 8, w, b).relu_()

    return differentiable(ours, theirs, make, kind, trained=3, tolerance=RELU)


def linear(rows: int):
    """The box head's first layer, fully connected, 12544 -> 1024."""

    def contest(kind: str) -> Contest:
        from torch.nn.functional import linear as torch_linear

        def make(rng):
            x = rng.standard_normal((rows, 12544), np.float32)
            w = rng.standard_normal((1024, 12544), np.float32) * np.float32(0.01)
            return [x, w, rng.standard_normal(1024, np.float32)]

        return differentiable(F.linear, torch_linear, make, kind, trained=3)

    return contest


OPERATORS = {
    "pool/KIND/max 3x3 stride 2, 64 at 400x544": max_pool,
    "upsample/KIND/nearest and add, 256 to 200x272": upsample,
    "norm/KIND/frozen + relu, 256 at 200x272": frozen_norm,
    "norm/KIND/group + relu, 2 x 32 at 128x128": group_norm,
    "linear/KIND/512 x 12544 > 1024": linear(512),
    "linear/KIND/1000 x 12544 > 1024": linear(1000),
}


def rows() -> list[Row]:
    return [
        Row(name.replace("KIND", kind), lambda make=make, kind=kind: make(kind))
        for name, make in OPERATORS.items()
        for kind in ("forward", "both")
    ]
