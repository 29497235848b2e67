"""How often Python calls the GPU in a training step, counted without one: python -m tests.benchmarks launches

`maskrcnn_small` takes a step on two images of 256 x 256 with 30 objects each (--size, --objects) on the
stand-in for CuPy (tests/fake_cupy), which counts by stage: our kernels, products, CuPy's own functions
(elementwise, reductions, copies, uploads), and allocations. On a GPU each launch costs 10 to 40 us in Python,
whatever the GPU does. Gradients are clipped in this step.
"""

from __future__ import annotations

import argparse
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from unittest import mock

import numpy as np

from minimask import models
from minimask.autograd import Function
from minimask.randomness import Draws
from minimask.training import loop
from minimask.training.optim import SGD
from tests.benchmarks.rows_whole import discs
from tests.fake_cupy import installed
from tests.fake_cupy.counting import KINDS, counted, current_stage, stage

# what of a model belongs to which stage; a method's calls outside these count for the stage around it
METHODS = {
    "images and targets to the GPU": ["transform.batch", "transform.scaled"],
    "backbone": ["backbone.body.forward"],
    "FPN": ["backbone.fpn.forward"],
    "RPN": ["rpn.forward"],
    "anchors' targets": ["rpn.sample"],
    "proposals": ["rpn.propose"],
    "RoIs' targets": ["box_head.sample"],
    "box head": ["box_head.forward"],
    "mask head": ["mask_head.forward"],
    "box head's loss": ["box_head.loss"],
    "mask head's loss": ["mask_head.loss"],
    "RPN's loss": ["rpn.loss"],
}
BACKWARD = ": backward"
UPDATE = "clipping and update"
ORDER = [*METHODS, *(name + BACKWARD for name in METHODS), "gradients added up", UPDATE, "rest"]


def batch(size: int, objects: int) -> list[SimpleNamespace]:
    """Two samples, as `training_step` takes them."""
    rng = np.random.default_rng(0)
    targets = [discs(n, objects, (size, size), (4, 15)) for n in range(2)]
    images = [rng.random((3, size, size), np.float32) for _ in targets]
    return [SimpleNamespace(image=i, target=lambda t=t: t) for i, t in zip(images, targets)]


def staged(function: Callable, name: str) -> Callable:
    def call(*args, **options):
        with stage(name):
            return function(*args, **options)

    return call


@contextlib.contextmanager
def stages_of(model) -> Iterator[None]:
    """Inside, calls count for the stages of this model; of a Function's backward pass, for its forward's."""
    record = Function._record

    def note(function, *args):
        record(function, *args)
        function.backward = staged(function.backward, current_stage() + BACKWARD)

    with contextlib.ExitStack() as stack:
        for name, paths in METHODS.items():
            for path in paths:
                *way, method = path.split(".")
                owner = model
                for part in way:
                    owner = getattr(owner, part)
                stack.enter_context(mock.patch.object(owner, method, staged(getattr(owner, method), name)))
        stack.enter_context(mock.patch.object(Function, "_record", note))
        clip = staged(loop.clip_gradients, UPDATE)
        stack.enter_context(mock.patch.object(loop, "clip_gradients", clip))
        stack.enter_context(mock.patch.object(SGD, "step", staged(SGD.step, UPDATE)))
        yield


def step_counts(size: int = 256, objects: int = 30, steps: int = 2, model=None) -> Counter:
    """(stage, kind, name) -> number of calls in the last of some training steps; the first one warms up."""
    with installed(order="forward"):
        model = (model or models.maskrcnn_small(2)).to("cuda").train()
        optimizer, samples = SGD(model.named_parameters(), 1e-4), batch(size, objects)
        for number in range(steps):
            with stages_of(model), counted() as calls:
                loop.training_step(model, optimizer, samples, Draws(step=number), 1e-4, 1e-3)
    return calls


def of_kind(calls: Counter, kind: str, name: str | None = None) -> int:
    """The number of calls of a kind, in one stage or in all."""
    return sum(n for (where, what, _), n in calls.items() if what == kind and name in (None, where))


def launches(calls: Counter, name: str | None = None) -> int:
    """The number of calls that launch something: all but allocations."""
    return sum(of_kind(calls, kind, name) for kind in KINDS if kind != "allocation")


def table(calls: Counter) -> str:
    """A Markdown table: a row a stage, a column a kind of call."""
    lines = ["| Stage | our kernels | products | CuPy's | together | allocations |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    found = {where for where, _, _ in calls}
    for name in [*(n for n in ORDER if n in found), *sorted(found - set(ORDER)), None]:
        kinds = [of_kind(calls, kind, name) for kind in KINDS]
        cells = [*kinds[:3], launches(calls, name), kinds[3]]
        lines.append(f"| {name or 'all'} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks launches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (256)")
    parser.add_argument("--objects", type=int, default=30, help="of each image (30)")
    parser.add_argument("--names", action="store_true", help="also each stage's calls by name")
    args = parser.parse_args(argv)
    calls = step_counts(args.size, args.objects)
    print(table(calls))
    if args.names:
        for where in sorted({stage for stage, _, _ in calls}, key=lambda s: ORDER.index(s)):
            named = Counter(
                {f"{name} ({kind})": n for (s, kind, name), n in calls.items() if s == where and name}
            )
            print(f"\n{where}: " + ", ".join(f"{n} {name}" for name, n in named.most_common()))
    return 0
