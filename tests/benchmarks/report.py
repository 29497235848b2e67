"""What the figures are held against, and how they are shown: on the screen, as JSON, as Markdown."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from minimask import backend
from tests.benchmarks.measure import Figures, Row, geometric_mean


@dataclass(frozen=True)
class Bound:
    """At most so long as torch: in the geometric mean over the rows that match, and in each of them."""

    pattern: str
    mean: float
    worst: float | None = None


BOUNDS = [
    Bound("conv/forward/*", 1.1, 1.6),
    Bound("conv/both/*", 1.15, 1.6),
    Bound("roi_align/forward/*", 0.25),
    Bound("roi_align/both/*", 0.2),
    Bound("nms/*", 1.0),
    Bound("boxes/*", 1.0),
    Bound("proposals/*", 1.0),
    Bound("paste/*", 1.0),
    Bound("whole/maskrcnn_resnet50_fpn inference", 1.0),
    Bound("whole/maskrcnn_resnet50_fpn step", 1.0),
    Bound("whole/maskrcnn_small step", 0.9),
]


def about() -> dict[str, str]:
    """Machine, BLAS and its kernel, threads and versions."""
    import torch
    import torchvision

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return backend.describe() | versions | {"torch_threads": str(torch.get_num_threads())}


def matching(rows: list[Row], patterns: list[str]) -> list[Row]:
    """The rows whose names match one of the patterns, or stand in a group that does; all for no pattern."""
    return [
        row
        for row in rows
        if not patterns or any(fnmatch.fnmatchcase(row.name, p + end) for p in patterns for end in ("", "/*"))
    ]


@dataclass(frozen=True)
class Summary:
    """Rows of one group: geometric mean, largest ratio, ratio of the whole network's time, and the bound."""

    name: str
    mean: float
    worst: float
    whole: float | None  # sum of medians times how often a network does it, minimask's over torch's
    bound: Bound | None

    @property
    def reached(self) -> bool:
        b = self.bound
        return b is None or (self.mean <= b.mean and (b.worst is None or self.worst <= b.worst))

    @property
    def wanted(self) -> str:
        if self.bound is None:
            return ""
        worst = f", each {self.bound.worst:.2f}" if self.bound.worst else ""
        return f"at most {self.bound.mean:.2f}{worst}" + ("" if self.reached else "  NOT REACHED")


def summaries(figures: dict[Row, Figures]) -> list[Summary]:
    """One for each bound that rows were measured for, and one for each group of the rest."""
    rest, out = dict(figures), []
    for bound in BOUNDS:
        own = {row: rest.pop(row) for row in list(rest) if fnmatch.fnmatchcase(row.name, bound.pattern)}
        if own:
            out.append(_summary(bound.pattern.removesuffix("/*"), own, bound))
    for group in dict.fromkeys(row.group for row in rest):
        out.append(_summary(group, {r: f for r, f in rest.items() if r.group == group}, None))
    return out


def _summary(name: str, figures: dict[Row, Figures], bound: Bound | None) -> Summary:
    ratios = [f.ratio for f in figures.values()]
    ours, theirs = (
        sum(r.count * list(map(f.median, f.seconds))[i] for r, f in figures.items()) for i in (0, 1)
    )
    whole = ours / theirs if any(row.count > 1 for row in figures) else None
    return Summary(name, geometric_mean(ratios), max(ratios), whole, bound)


# --------------------------------------------------------------------------------------------------- screen

WIDTH = 66


def header() -> str:
    return f"{'row':{WIDTH}}{'minimask':>11}{'torch':>11}{'ratio':>7}"


def line(row: Row, figures: Figures) -> str:
    times = "".join(f"{duration(figures.median(k)):>11}" for k in figures.seconds)
    mark = "  (other processes were busy)" if figures.disturbed else ""
    return f"{row.name:{WIDTH}}{times}{figures.ratio:7.2f}{mark}"


def duration(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.3g} ms"
        if seconds < 0.1
        else f"{seconds * 1e3:.0f} ms"
    )


def summary_lines(figures: dict[Row, Figures]) -> list[str]:
    lines = [f"{'geometric means':{WIDTH - 15}}{'mean':>8}{'worst':>8}{'network':>9}  wanted"]
    for s in summaries(figures):
        whole = "" if s.whole is None else f"{s.whole:.2f}"
        lines.append(f"{s.name:{WIDTH - 15}}{s.mean:8.2f}{s.worst:8.2f}{whole:>9}  {s.wanted}".rstrip())
    return lines


# ---------------------------------------------------------------------------------------- JSON and Markdown


def as_json(about: dict, figures: dict[Row, Figures]) -> dict:
    rows = {
        row.name: {
            "ratio": f.ratio,
            "count": row.count,
            "disturbed": f.disturbed,
            "median_ms": {k: 1e3 * f.median(k) for k in f.seconds},
            "turns_ms": {k: [1e3 * t for t in v] for k, v in f.seconds.items()},
        }
        for row, f in figures.items()
    }
    means = {
        s.name: {"mean": s.mean, "worst": s.worst, "network": s.whole, "reached": s.reached}
        | ({"bound": s.bound.mean, "bound_worst": s.bound.worst} if s.bound else {})
        for s in summaries(figures)
    }
    return {"about": about, "rows": rows, "geometric_means": means}


def as_markdown(about: dict, figures: dict[Row, Figures]) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"Medians of one run. {machine}.", ""]
    lines += [
        "| group | geometric mean | largest | whole network | wanted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for s in summaries(figures):
        whole = "" if s.whole is None else f"{s.whole:.2f}"
        lines.append(f"| {s.name} | {s.mean:.2f} | {s.worst:.2f} | {whole} | {s.wanted} |")
    for group in dict.fromkeys(row.group for row in figures):
        lines += ["", f"**{group}**", "", "| | minimask | torch | ratio |", "| --- | --- | --- | --- |"]
        for row, f in figures.items():
            if row.group == group:
                name, mark = row.name.rpartition("/")[2], " (disturbed)" if f.disturbed else ""
                times = " | ".join(duration(f.median(k)) for k in f.seconds)
                lines.append(f"| {name}{mark} | {times} | {f.ratio:.2f} |")
    return "\n".join(lines) + "\n"
