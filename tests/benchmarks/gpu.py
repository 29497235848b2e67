"""minimask on a GPU beside torch: python -m tests.benchmarks.gpu [ROW ...]

Each ROW is a group ("roi", "nms", "memory", "conv", "whole") or the beginning of a name. Both libraries run
in turn in this process on equal inputs, after a warm-up, timed by CUDA events on the same stream; results are
compared first. Printed are medians and minimask's time over torch's: below 1, minimask is faster. For kernels
that only move memory, also the bytes that they must move, per second, and as a share of the card's peak.
Without torch minimask alone is timed. The row "profile" shows where a training step's time goes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimask import Tensor, backend, models, no_grad, ops
from minimask import functions as F
from minimask.autograd import Function
from minimask.functions.roi import RoIAlign
from minimask.kernels import elementwise, pooling, resample
from minimask.kernels.roi_align import Sampling
from minimask.masks import paste_masks
from minimask.matching import assign_fpn_levels
from minimask.training.optim import SGD
from tests.benchmarks.rows_boxes import crowded_boxes
from tests.benchmarks.rows_conv import Convolution, convolutions
from tests.benchmarks.rows_roi import boxes as random_rois
from tests.benchmarks.rows_whole import as_torch, discs, resnet50, step, torch_resnet50

TURNS = 7
STRIDES = 4, 8, 16, 32


@dataclass(frozen=True)
class Contest:
    """One computation on the GPU, by minimask and, where it is there, by torch.

    Attributes
    ----------
    ours, theirs : callable without arguments
        Give an array or tensor, or a list of them, in the same order.
    moved : int
        Bytes that have to be read and written, if the kernel does nothing else; 0: not looked at.
    tolerance : float or None
        Of the largest difference, relative to the largest value. None: not compared. 0: results are indices.
    whole : bool
        Also compare how much memory a run takes.
    """

    ours: Callable
    theirs: Callable | None = None
    moved: int = 0
    tolerance: float | None = 1e-4
    whole: bool = False


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are; `TINY` is for trying the rows out on a machine without a GPU."""

    image: tuple[int, int] = (800, 1333)
    padded: tuple[int, int] = (800, 1344)
    channels: int = 256
    rois: tuple[int, ...] = (64, 512, 2000)
    bins: tuple[int, ...] = (7, 14)
    boxes: tuple[int, ...] = (1000, 10_000)
    batches: tuple[int, ...] = (1, 2)
    objects: int = 12
    small: int = 256
    planes: int = 64


TINY = Sizes((64, 96), (64, 96), 4, (8,), (7,), (40,), (1,), 2, 64, 2)


def on_torch(torch, *arrays: np.ndarray) -> list:
    return [torch.from_numpy(a).cuda() for a in arrays]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# ------------------------------------------------------------------------------------------------- RoI layers


def roi_align(torch, s: Sizes, count: int, bins: int, backward: bool, deterministic: bool) -> Contest:
    """2 x 2 points a bin, over P2..P5; torchvision's operator once a level, and a copy into RoI order."""
    maps = [(s.padded[0] // k, s.padded[1] // k) for k in STRIDES]
    rois = random_rois(np.random.default_rng(1), count)
    rois[:, 1:] *= s.padded[0] / 800
    levels, scales = assign_fpn_levels(rois[:, 1:], 2, 5) - 2, tuple(1 / k for k in STRIDES)
    arrays = [normal(1, s.channels, *hw) for hw in maps]
    gy = normal(count, s.channels, bins, bins)
    xs, our_rois, our_levels, our_gy = (
        [backend.to_gpu(a) for a in arrays],
        *map(backend.to_gpu, (rois, levels, gy)),
    )
    function = RoIAlign(Sampling((bins, bins), 2), scales, our_levels)

    def forward():
        with no_grad():
            return F.roi_align(xs, our_rois, bins, scales, 2, levels=our_levels)

    def gradients():
        with backend.deterministic(deterministic):
            return list(function.backward(our_gy)[1:])

    moved = gy.nbytes + (
        sum(a.nbytes for a in arrays) if backward else _covered(rois, levels, maps) * s.channels * 4
    )
    if backward:
        function(our_rois, *(Tensor(x, requires_grad=True) for x in xs))
    ours = gradients if backward else forward
    if torch is None:
        return Contest(ours, None, moved)
    import torchvision

    peers, (peer_rois, peer_gy) = on_torch(torch, *arrays), on_torch(torch, rois, gy)
    members = on_torch(torch, *(np.flatnonzero(levels == k) for k in range(4)))

    def pooled():
        y = torch.zeros(gy.shape, device="cuda")
        for x, own, scale in zip(peers, members, scales):
            y[own] = torchvision.ops.roi_align(x, peer_rois[own], bins, scale, 2)
        return y

    if not backward:
        return Contest(ours, torch.no_grad()(pooled), moved)
    for x in peers:
        x.requires_grad_()
    y = pooled()
    return Contest(ours, lambda: torch.autograd.grad(y, peers, peer_gy, retain_graph=True), moved)


def _covered(rois: np.ndarray, levels: np.ndarray, maps: list) -> int:
    """Pixels of the maps that lie under some RoI: what a forward pass must read at least."""
    seen = [np.zeros(hw, bool) for hw in maps]
    for (_, x1, y1, x2, y2), level in zip(rois, levels):
        low, high = (np.array([(y1, x1), (y2, x2)]) / STRIDES[level]).astype(int)
        seen[level][low[0] : high[0] + 2, low[1] : high[1] + 2] = True
    return sum(int(s.sum()) for s in seen)


def nms(torch, s: Sizes, count: int) -> Contest:
    boxes, scores = crowded_boxes(count)
    our_boxes, our_scores = backend.to_gpu(boxes), backend.to_gpu(scores)
    theirs = None
    if torch:
        import torchvision

        peer = on_torch(torch, boxes, scores)
        theirs = lambda: torchvision.ops.nms(*peer, 0.5)  # noqa: E731
    return Contest(lambda: ops.nms(our_boxes, our_scores, 0.5), theirs, tolerance=0)


# ----------------------------------------------------------------------------------- kernels that move memory


def relu(torch, s: Sizes) -> Contest:
    x = normal(s.planes, s.padded[0] // 2, s.padded[1] // 2)
    ours, theirs = backend.to_gpu(x), on_torch(torch, x) if torch else None
    peer = theirs and (lambda: torch.relu(*theirs))
    return Contest(lambda: elementwise.relu(ours), peer, 2 * x.nbytes)


def relu_gradient(torch, s: Sizes) -> Contest:
    gy, y = (normal(s.planes, s.padded[0] // 2, s.padded[1] // 2) for _ in range(2))
    ours, theirs = [backend.to_gpu(a) for a in (gy, y)], on_torch(torch, gy, y) if torch else None
    peer = theirs and (lambda: torch.ops.aten.threshold_backward(*theirs, 0))
    return Contest(lambda: elementwise.relu_gradient(*ours), peer, 3 * y.nbytes)


def max_pool(torch, s: Sizes) -> Contest:
    """3 x 3 with stride 2, of the stem."""
    x = normal(1, s.planes, s.padded[0] // 2, s.padded[1] // 2)
    g = pooling.geometry(x.shape, (3, 3), (2, 2), (1, 1))
    ours, theirs = backend.to_gpu(x.reshape(-1, 1, *x.shape[2:])), on_torch(torch, x)[0] if torch else None
    shape = (1, s.planes, *g.out_size)
    peer = None if theirs is None else lambda: torch.nn.functional.max_pool2d(theirs, 3, 2, 1)
    return Contest(lambda: pooling.max_pool(ours, g, False)[0].reshape(shape), peer, x.nbytes * 5 // 4)


def upsample(torch, s: Sizes) -> Contest:
    x = normal(1, s.channels, s.padded[0] // 8, s.padded[1] // 8)
    size = x.shape[2] * 2, x.shape[3] * 2
    ours, theirs = backend.to_gpu(x), on_torch(torch, x)[0] if torch else None
    peer = None if theirs is None else lambda: torch.nn.functional.interpolate(theirs, size)
    return Contest(lambda: resample.nearest(ours, size), peer, 5 * x.nbytes)


def group_norm(torch, s: Sizes) -> Contest:
    """8 groups and ReLU; torch's in two calls. The input is read twice."""
    channels = max(s.planes, 8)
    x, w, b = normal(2, channels, s.small // 2, s.small // 2), normal(channels), normal(channels)
    ours, theirs = [backend.to_gpu(a) for a in (x, w, b)], on_torch(torch, x, w, b) if torch else None

    def run():
        with no_grad():
            return F.group_norm(ours[0], 8, ours[1], ours[2], relu=True)

    peer = theirs and (lambda: torch.nn.functional.group_norm(theirs[0], 8, *theirs[1:]).relu_())
    return Contest(run, peer, 3 * x.nbytes)


def paste(torch, s: Sizes) -> Contest:
    """100 masks of 28 x 28 into the whole image, dense."""
    count = min(s.rois[-1], 100)
    rois = random_rois(np.random.default_rng(1), count)[:, 1:] * np.float32(s.image[0] / 800)
    masks = np.random.default_rng(0).random((count, 1, 28, 28), np.float32)
    ours = [backend.to_gpu(a) for a in (masks, rois)]
    peer = None
    if torch:
        from torchvision.models.detection.roi_heads import paste_masks_in_image

        theirs = on_torch(torch, masks, rois)
        peer = lambda: paste_masks_in_image(*theirs, s.image)  # noqa: E731
    return Contest(lambda: paste_masks(*ours, s.image), peer, count * s.image[0] * s.image[1] * 4, 1e-3)


def sgd(torch, s: Sizes) -> Contest:
    """A step over all parameters of ResNet-50-FPN; torch's fused version."""
    model = models.maskrcnn_small(2) if s is TINY else models.maskrcnn_resnet50_fpn(91)
    model.to("cuda")
    optimizer = SGD(model.named_parameters(), 1e-7)
    for p in optimizer.parameters.values():
        p.grad = p.data * 1e-3
    moved = 5 * sum(p.data.nbytes for p in optimizer.parameters.values())
    peer = None
    if torch:
        weights = [
            torch.nn.Parameter(torch.zeros(p.shape, device="cuda")) for p in optimizer.parameters.values()
        ]
        for w in weights:
            w.grad = torch.zeros_like(w)
        peer = torch.optim.SGD(weights, 1e-7, momentum=0.9, weight_decay=1e-4, fused=True).step
    return Contest(optimizer.step, peer, moved, tolerance=None)


# ----------------------------------------------------------------------------------------------- convolutions


def convolution(torch, conv: Convolution, backward: bool) -> Contest:
    """As the model has it, norm, residual and ReLU included; torch gets weights with the norm folded in."""
    g, is_stem = conv.geometry, conv.geometry.x_shape[1] == 3
    x, w, gy, b = (
        normal(*g.x_shape),
        normal(*g.w_shape) * g.patch_size**-0.5,
        normal(*g.y_shape),
        normal(g.w_shape[0]),
    )
    w = w.astype(np.float32)
    r = normal(*g.y_shape) if conv.residual else None
    ours = [None if a is None else backend.to_gpu(a) for a in (x, w, b, r, gy)]
    ones, options = backend.to_gpu(np.ones_like(b)), dict(stride=g.stride, padding=g.padding)

    def run():
        ox, ow, ob, residual, ogy = ours
        tx, tw = Tensor(ox, requires_grad=backward and not is_stem), Tensor(ow, requires_grad=backward)
        with contextlib.nullcontext() if backward else no_grad():
            if conv.place == "body":
                y = F.conv_frozen_norm(tx, tw, (ones, ob), residual, relu=conv.relu, **options)
            else:
                y = F.conv2d(tx, tw, ob, **options)
                y = F.relu(y) if conv.relu else y
        if backward:
            y.backward(ogy)
        return [y.data] + [t.grad for t in (tx, tw) if t.grad is not None]

    if torch is None:
        return Contest(run)
    px, pw, pb, pr, pgy = (None if a is None else on_torch(torch, a)[0] for a in (x, w, b, r, gy))
    wanted = [t.requires_grad_() for t in ((pw,) if is_stem else (px, pw))] if backward else []

    def peer():
        with contextlib.nullcontext() if backward else torch.no_grad():
            y = torch.nn.functional.conv2d(px, pw, pb, **options)
            y = y if pr is None else y.add_(pr)
            y = y.relu_() if conv.relu else y
        return [y.detach(), *torch.autograd.grad(y, wanted, pgy)] if backward else [y]

    return Contest(run, peer, tolerance=1e-3)


# ----------------------------------------------------------------------------------------------- whole models


def images_and_targets(s: Sizes, batch: int) -> tuple[list, list]:
    images = [np.random.default_rng(n).random((3, *s.image), np.float32) for n in range(batch)]
    radius = s.image[0] / 9
    return images, [discs(n, s.objects, s.image, (radius / 4, radius)) for n in range(batch)]


def inference(torch, s: Sizes, batch: int) -> Contest:
    """ResNet-50-FPN; images come from the CPU, masks are pasted on the GPU and stay there."""
    images, _ = images_and_targets(s, batch)
    model = resnet50().eval()
    peer_model = torch_resnet50(model.state_dict()).eval().cuda() if torch else None
    model.to("cuda")

    def run():
        found = []
        for result in model.predict(images):
            m = result["masks"]
            found.append(paste_masks(m.probabilities, m.boxes, m.image_size, m.convention))
        return found

    def peer():
        with torch.no_grad():
            return [result["masks"] for result in peer_model([torch.from_numpy(i).cuda() for i in images])]

    return Contest(run, peer if torch else None, tolerance=None, whole=True)


def training_step(torch, s: Sizes, batch: int, small: bool = False) -> Contest:
    """Gradients and the optimizer's step; images and targets come from the CPU, the losses go there."""
    if small:
        s = Sizes(image=(s.small, s.small), objects=30 if s.small == 256 else 2)
        model = models.maskrcnn_small(2)
    else:
        model = resnet50()
    images, targets = images_and_targets(s, batch)
    peer = None
    if torch:
        if small:
            from tests.benchmarks.torch_small import torch_small

            peer_model = torch_small(model).cuda()
        else:
            peer_model = torch_resnet50(model.state_dict()).train().cuda()
        trained = [p for p in peer_model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 1e-7, momentum=0.9, weight_decay=1e-4)

        def peer():
            moved = [{k: v.cuda() for k, v in as_torch(t).items()} for t in targets]
            losses = peer_model([torch.from_numpy(i).cuda() for i in images], moved)
            sum(losses.values()).backward()
            optimizer.step()
            optimizer.zero_grad()
            return [loss.item() for loss in losses.values()]

    model.to("cuda")
    run = step(model, images, targets)
    return Contest(lambda: list(run().values()), peer, tolerance=None, whole=True)


# ------------------------------------------------------------------------------------------------------- rows


def rows(s: Sizes = Sizes()) -> Iterator[tuple[str, Callable]]:
    """Name, and a function of torch (or None) that sets the contest up."""
    for count in s.rois:
        for bins in s.bins:
            for what, *how in (
                ("forward", False, False),
                ("backward", True, False),
                ("deterministic backward", True, True),
            ):
                name = f"roi/roi_align {what}, {count} RoIs, {bins} x {bins}"
                yield name, lambda torch, a=(count, bins, *how): roi_align(torch, s, *a)
    for count in s.boxes:
        yield f"nms/{count} boxes", lambda torch, count=count: nms(torch, s, count)
    for run in (relu, relu_gradient, max_pool, upsample, group_norm, paste, sgd):
        yield f"memory/{run.__name__}", lambda torch, run=run: run(torch, s)
    for small, batch in [(True, 2), *((False, n) for n in s.batches)]:
        name = "maskrcnn_small" if small else "maskrcnn_resnet50_fpn"
        if not small:
            yield f"whole/{name} inference, batch {batch}", lambda torch, n=batch: inference(torch, s, n)
        yield (
            f"whole/{name} step, batch {batch}",
            lambda torch, n=batch, small=small: training_step(torch, s, n, small),
        )
    for backward in (False, True):
        for conv, times in convolutions(s.padded).items():
            name = f"conv/{'both' if backward else 'forward'}/{times} x {conv.name}"
            yield name, lambda torch, conv=conv, backward=backward: convolution(torch, conv, backward)


def host(result) -> list[np.ndarray]:
    """The arrays in a result, of whichever library, on the CPU."""
    if isinstance(result, (list, tuple)):
        return [a for part in result for a in host(part)]
    if hasattr(result, "cpu"):  # torch's
        return [result.detach().cpu().numpy()]
    result = result.data if isinstance(result, Tensor) else result
    return [np.asarray(result) if isinstance(result, float) else backend.to_cpu(result)]


def compare(contest: Contest) -> float | None:
    """The largest relative difference of the results; AssertionError if it is too large."""
    mine = contest.ours()
    if contest.theirs is None or contest.tolerance is None:
        return None
    mine, peer, worst = host(mine), host(contest.theirs()), 0.0
    if (
        contest.tolerance == 0
    ):  # places of boxes kept: a few IoUs may round to the other side of the threshold
        other = len(np.setxor1d(mine[0], peer[0])) / len(peer[0])
        assert other <= 0.002, f"{other:.1%} of the boxes kept are not torch's"
        return other
    assert [a.shape for a in mine] == [b.shape for b in peer], "the results have other shapes than torch's"
    for a, b in zip(mine, peer):
        if b.size:
            difference = np.abs(a.astype(np.float64) - b).max() / max(np.abs(b).max(), 1e-30)
            worst = max(worst, float(difference))
    assert worst <= contest.tolerance, f"differs from torch's result by {worst:.1e} relative"
    return worst


def milliseconds(run: Callable, times: int) -> float:
    """Of one run, on the device, between two events."""
    import cupy

    begin, end = cupy.cuda.Event(), cupy.cuda.Event()
    begin.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(begin, end) / times


def measure(contest: Contest, torch, seconds: float) -> dict[str, float]:
    """Median milliseconds of both, in turn; bytes a second; the memory that a run takes, in MiB."""
    runs = {"minimask": contest.ours} | ({"torch": contest.theirs} if contest.theirs else {})
    times, turns = {}, {name: [] for name in runs}
    for name, run in runs.items():
        milliseconds(run, 2)
        times[name] = int(np.clip(seconds * 1000 / TURNS / milliseconds(run, 2), 1, 200))
    for _ in range(TURNS):
        for name, run in runs.items():
            turns[name].append(milliseconds(run, times[name]))
    found = {f"{name}_ms": statistics.median(turns[name]) for name in runs}
    if contest.theirs:
        found["ratio"] = found["minimask_ms"] / found["torch_ms"]
    if contest.moved:
        found["gb_per_s"] = contest.moved / found["minimask_ms"] / 1e6
    if contest.whole:
        found |= memory(contest, torch)
    return found


def memory(contest: Contest, torch) -> dict[str, float]:
    """What each library's pool holds after a run from an empty pool, weights included."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    contest.ours()
    found = {"minimask_mib": pool.total_bytes() / 2**20}
    if contest.theirs:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        contest.theirs()
        found["torch_mib"] = torch.cuda.max_memory_reserved() / 2**20
    pool.free_all_blocks()
    return found


def card() -> dict:
    """The card's name, its peak bandwidth, what a plain copy reaches, and versions."""
    import cupy

    attributes = cupy.cuda.Device().attributes
    clock, width = attributes.get("MemoryClockRate", 0), attributes.get("GlobalMemoryBusWidth", 0)
    a, b = (cupy.zeros(2**28, cupy.uint8) for _ in range(2))
    copy = milliseconds(lambda: cupy.copyto(a, b), 5) and milliseconds(lambda: cupy.copyto(a, b), 20)
    return backend.describe() | {
        "peak_gb_per_s": 2 * clock * 1e3 * width / 8 / 1e9,  # kHz, bits; two transfers a clock
        "copy_gb_per_s": 2 * a.nbytes / copy / 1e6,
    }


def profile(steps: int = 5) -> str:
    """Where a training step of ResNet-50-FPN spends its time: each Function alone, the device waited for."""
    import cupy

    model = resnet50().to("cuda")
    run = step(model, *images_and_targets(Sizes(), 2))
    run()
    spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def timed(name: str, call: Callable) -> Callable:
        def timing(self, *arrays):
            cupy.cuda.Device().synchronize()
            begin = time.perf_counter()
            result = call(self, *arrays)
            cupy.cuda.Device().synchronize()
            spent[name][0] += 1
            spent[name][1] += time.perf_counter() - begin
            return result

        return timing

    classes = {cls for cls in _subclasses(Function) if "forward" in vars(cls)}
    saved = [
        (cls, way, vars(cls)[way]) for cls in classes for way in ("forward", "backward") if way in vars(cls)
    ]
    for cls, way, call in saved:
        setattr(cls, way, timed(f"{cls.__name__}.{way}", call))
    begin = time.perf_counter()
    for _ in range(steps):
        run()
    cupy.cuda.Device().synchronize()
    total = time.perf_counter() - begin
    for cls, way, call in saved:
        setattr(cls, way, call)
    lines = [f"a step with a wait around every Function: {total / steps * 1e3:.1f} ms"]
    lines += [
        f"{name:34}{n / steps:7.0f} calls{seconds / steps * 1e3:9.2f} ms"
        for name, (n, seconds) in sorted(spent.items(), key=lambda entry: -entry[1][1])[:25]
    ]
    return "\n".join(lines)


def _subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


# ----------------------------------------------------------------------------------------------------- report


def line(name: str, f: dict, about: dict, form: str) -> str:
    """A row of figures: ``form`` is "text" or "markdown"."""
    peak = about["peak_gb_per_s"] or about["copy_gb_per_s"]
    cells = [
        f.get("error") or f"{f['minimask_ms']:.3f}",
        f"{f['torch_ms']:.3f}" if "torch_ms" in f else "",
        f"{f['ratio']:.2f}" if "ratio" in f else "",
        f"{f['gb_per_s']:.0f} ({f['gb_per_s'] / peak:.0%})" if "gb_per_s" in f else "",
        " / ".join(f"{f[key]:.0f}" for key in ("minimask_mib", "torch_mib") if key in f),
    ]
    if form == "markdown":
        return f"| {' | '.join([name, *cells])} |"
    return f"{name:62}" + "".join(f"{cell:>13}" for cell in cells)


def write(args, about: dict, figures: dict) -> None:
    """Both files anew, after every row: a run that is cut off leaves what it has."""
    if args.json:
        args.json.write_text(json.dumps({"about": about, "rows": figures}, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        head = (
            "| row | minimask, ms | torch, ms | ratio | GB/s (of peak) | memory, MiB |\n| --- |"
            + " ---: |" * 5
        )
        told = ", ".join(f"{key} {value}" for key, value in about.items())
        text = [told, "", head, *(line(name, f, about, "markdown") for name, f in figures.items())]
        args.markdown.write_text("\n".join(text) + "\n", encoding="utf-8")


def convolutions_together(figures: dict) -> dict:
    """The convolutions of one pass through the network, each as often as it occurs."""
    found = {}
    for way in ("forward", "both"):
        own = {n: f for n, f in figures.items() if n.startswith(f"conv/{way}/") and "ratio" in f}
        ms = {
            key: sum(f[key] * int(n.split("/")[2].split(" ")[0]) for n, f in own.items())
            for key in ("minimask_ms", "torch_ms")
        }
        if own:
            found[f"conv, all of a network, {way}"] = ms | {"ratio": ms["minimask_ms"] / ms["torch_ms"]}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="beginnings of names; all by default")
    parser.add_argument("--seconds", type=float, default=0.2, help="counted time a library and row (0.2)")
    parser.add_argument("--tf32", action="store_true", help="let both multiply in TF32")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write them as a table")
    args = parser.parse_args(argv)
    missing = backend.gpu.why_no_gpu()
    if missing:
        print(f"nothing to measure: {missing}", file=sys.stderr)
        return 0
    if args.tf32:
        os.environ["CUPY_TF32"] = "1"
    try:
        import torch

        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = args.tf32
        torch = torch if torch.cuda.is_available() else None
    except ImportError:
        torch = None
    about = card() | {"torch": torch.__version__ if torch else "none", "tf32": args.tf32}
    print("\n".join(f"{key:14} {value}" for key, value in about.items()))
    heads = "minimask ms", "torch ms", "ratio", "GB/s of peak", "MiB"
    print(f"\n{'':62}" + "".join(f"{head:>13}" for head in heads), flush=True)
    figures: dict[str, dict] = {}
    for name, setup in rows():
        if args.rows and not name.startswith(tuple(args.rows)):
            continue
        try:
            contest = setup(torch)
            difference = compare(contest)
            figures[name] = measure(contest, torch, args.seconds) | {"difference": difference}
        except Exception as error:  # one row that fails must not cost the others
            figures[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(line(name, figures[name], about, "text"), flush=True)
        write(args, about, figures)
    for name, found in convolutions_together(figures).items():
        figures[name] = found
        print(line(name, found, about, "text"))
    write(args, about, figures)
    if "profile" in args.rows:
        print(f"\n{profile()}")
    return int(any("error" in f for f in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
