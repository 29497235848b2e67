"""What the figures are held against, and how they are shown: on the screen, as JSON, as Markdown."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

import numpy as np

from minimask import backend
from tests.benchmarks.measure import Figures, Row, geometric_mean


@dataclass(frozen=True)
class Bound:
    """At most so long as torch: in the geometric mean over the rows that match, and in each of them.

    `absolute` bounds minimask's own figure instead, in the unit that it has.
    """

    pattern: str
    mean: float | None = None
    worst: float | None = None
    absolute: float | None = None


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
    Bound("memory/*", worst=1.0),
    Bound("import/*", absolute=0.3),
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
    """Rows of one group: geometric mean, largest ratio, ratio of the whole network's time, and the bound.

    `network` is the sum of minimask's medians, each times how often a network does it, over torch's sum.
    """

    name: str
    mean: float
    worst: float
    network: float | None
    longest: float  # minimask's own largest figure
    bound: Bound | None

    @property
    def wanted(self) -> str:
        b = self.bound
        if b is None:
            return ""
        pairs = [
            ("mean", self.mean, b.mean),
            ("each", self.worst, b.worst),
            ("itself", self.longest, b.absolute),
        ]
        pairs = [p for p in pairs if p[2] is not None]
        text = ", ".join(f"{what} at most {bound:g}" for what, _, bound in pairs)
        return text + ("" if self.reached else ": NOT REACHED")

    @property
    def reached(self) -> bool:
        b = self.bound or Bound("")
        pairs = (self.mean, b.mean), (self.worst, b.worst), (self.longest, b.absolute)
        return all(bound is None or value <= bound for value, bound in pairs)


def summaries(figures: dict[Row, Figures]) -> list[Summary]:
    """One for each bound that rows were measured for, and one for each group of the rest."""
    rest, out = {row: f for row, f in figures.items() if row.size is None}, []
    for bound in BOUNDS:
        own = {row: rest.pop(row) for row in list(rest) if fnmatch.fnmatchcase(row.name, bound.pattern)}
        if own:
            out.append(_summary(bound.pattern.removesuffix("/*"), own, bound))
    for group in dict.fromkeys(row.group for row in rest):
        out.append(_summary(group, {r: f for r, f in rest.items() if r.group == group}, None))
    return out


def _summary(name: str, figures: dict[Row, Figures], bound: Bound | None) -> Summary:
    ratios = [f.ratio for f in figures.values()]
    ours, theirs = (sum(r.count * f.medians[i] for r, f in figures.items()) for i in (0, 1))
    network = ours / theirs if any(row.count > 1 for row in figures) else None
    longest = max(f.medians[0] for f in figures.values())
    return Summary(name, geometric_mean(ratios), max(ratios), network, longest, bound)


def exponents(figures: dict[Row, Figures]) -> dict[str, list[float]]:
    """For each group of rows that have sizes: p of cost ~ size^p, minimask's and torch's, least squares."""
    out = {}
    for group in dict.fromkeys(row.group for row in figures if row.size is not None):
        own = [(row.size, f.medians) for row, f in figures.items() if row.group == group]
        if len(own) > 1:
            x = np.log([size for size, _ in own])
            out[group] = [float(np.polyfit(x, np.log([m[i] for _, m in own]), 1)[0]) for i in (0, 1)]
    return out


# --------------------------------------------------------------------------------------------------- screen

WIDTH = 66


def header() -> str:
    return f"{'row':{WIDTH}}{'minimask':>11}{'torch':>11}{'ratio':>7}"


def line(row: Row, figures: Figures) -> str:
    values = "".join(f"{quantity(v, figures.unit):>11}" for v in figures.medians)
    mark = "  (other processes were busy)" if figures.disturbed else ""
    return f"{row.name:{WIDTH}}{values}{figures.ratio:7.2f}{mark}"


def quantity(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        value, unit = 1e3 * value, "ms"
    return f"{value:.{max(0, 2 - int(np.log10(max(value, 1))))}f} {unit}"


def summary_lines(figures: dict[Row, Figures]) -> list[str]:
    lines = []
    if found := summaries(figures):
        lines = [f"{'geometric means':{WIDTH - 15}}{'mean':>8}{'worst':>8}{'network':>9}  wanted"]
    for s in found:
        network = "" if s.network is None else f"{s.network:.2f}"
        lines.append(f"{s.name:{WIDTH - 15}}{s.mean:8.2f}{s.worst:8.2f}{network:>9}  {s.wanted}".rstrip())
    for group, (ours, theirs) in exponents(figures).items():
        lines.append(f"{group}: cost grows as n^{ours:.2f}, torch's as n^{theirs:.2f}")
    return lines


# ---------------------------------------------------------------------------------------- JSON and Markdown


def as_json(about: dict, figures: dict[Row, Figures]) -> dict:
    rows = {
        row.name: {
            "ratio": f.ratio,
            "unit": f.unit,
            "medians": dict(zip(f.values, f.medians)),
            "runs": f.values,
            "disturbed": f.disturbed,
            "count": row.count,
        }
        for row, f in figures.items()
    }
    groups = {
        s.name: {"mean": s.mean, "worst": s.worst, "network": s.network, "wanted": s.wanted}
        for s in summaries(figures)
    }
    return {"about": about, "rows": rows, "groups": groups, "exponents": exponents(figures)}


def as_markdown(about: dict, figures: dict[Row, Figures]) -> str:
    machine = "; ".join(f"{key} {value}" for key, value in about.items())
    lines = [f"Medians of one run. {machine}.", ""]
    lines += [
        "| group | geometric mean | largest | whole network | wanted |",
        "| --- | --- | --- | --- | --- |",
    ]
    for s in summaries(figures):
        network = "" if s.network is None else f"{s.network:.2f}"
        lines.append(f"| {s.name} | {s.mean:.2f} | {s.worst:.2f} | {network} | {s.wanted} |")
    powers = exponents(figures)
    for group in dict.fromkeys(row.group for row in figures):
        grows = ""
        if group in powers:
            grows = " (cost grows as n^{:.2f}; torch's, n^{:.2f})".format(*powers[group])
        lines += ["", f"**{group}**{grows}", ""]
        lines += ["| | minimask | torch | ratio |", "| --- | --- | --- | --- |"]
        for row, f in figures.items():
            if row.group == group:
                name, mark = row.name.rpartition("/")[2], " (disturbed)" if f.disturbed else ""
                values = " | ".join(quantity(v, f.unit) for v in f.medians)
                lines.append(f"| {name}{mark} | {values} | {f.ratio:.2f} |")
    return "\n".join(lines) + "\n"
