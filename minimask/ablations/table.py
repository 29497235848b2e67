"""An ablation's results beside the paper's figures: means, spreads, differences by seed, as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from minimask.ablations.designs import Ablation, Comparison, Variant
from minimask.ablations.runs import Results

CONFIDENCE = 0.95
_EXPECTED = {"below": "below", "equal": "inside"}  # the direction that agrees with the paper's claim
SCORES = ("AP", "AP50", "AP75")
TELLS = f"""\
In per cent; mean ± standard deviation over n seeds. Differences are to the last row, seed by seed: both
networks have the same pictures in the same order, and the same initial weights where they have the same
layers. It is beyond the spread if its mean's {100 * CONFIDENCE:.0f} % interval (Student's t) leaves out 0.
"Agrees" means with the paper."""


@dataclass(frozen=True)
class Difference:
    """Paired differences over seeds: their number, mean, standard deviation and interval of the mean."""

    count: int
    mean: float
    deviation: float
    low: float
    high: float

    @property
    def direction(self) -> str | None:
        """ "below" or "above" if beyond the spread, else "inside"; None for one seed, which has no spread."""
        if self.count < 2:
            return None
        return "below" if self.high < 0 else "above" if self.low > 0 else "inside"


def paired(ours: dict[int, float], reference: dict[int, float]) -> Difference | None:
    """The difference of values by seed, over the seeds that both have; None if there are none.

    The interval is mean +- t s / sqrt(n), with t from Student's distribution with n - 1 degrees of freedom.
    """
    values = [ours[seed] - reference[seed] for seed in sorted(ours.keys() & reference.keys())]
    if not values:
        return None
    mean, deviation = mean_and_deviation(values)
    if len(values) < 2:
        return Difference(1, mean, deviation, -math.inf, math.inf)
    t = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    half = float(t) * deviation / math.sqrt(len(values))
    return Difference(len(values), mean, deviation, mean - half, mean + half)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation with n - 1, which is NaN for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def verdict(difference: Difference | None, claim: str | None) -> str:
    """In words, whether a difference is beyond the spread, and whether that agrees with the paper.

    Parameters
    ----------
    difference : Difference or None
    claim : "below", "equal" or None
        As in `minimask.ablations.designs.Variant`.
    """
    if difference is None:
        return ""
    direction = difference.direction
    if direction is None:
        return "one seed tells no spread"
    said = "inside the spread" if direction == "inside" else direction
    if claim is None or (direction == "inside" and claim == "below"):
        return said  # too little to say either
    return f"{said}, {'agrees' if direction == _EXPECTED[claim] else 'disagrees'}"


def table(ablation: Ablation, results: Results, seeds: int) -> str:
    """All comparisons of an ablation as Markdown, as far as the runs are done, and what the columns mean."""
    done, of = len(results), seeds * len(ablation.variants)
    part = "" if done == of else f"; **{done} of {of} runs are done**"
    kind = {"mask": "masks", "box": "boxes"}[ablation.kind]
    head = f"`minimask ablate {ablation.name}`, the paper's {ablation.source}: AP of {kind}{part}."
    tables = [_comparison(ablation, comparison, results) for comparison in ablation.comparisons]
    return "\n\n".join([head, TELLS, *tables])


def _comparison(ablation: Ablation, comparison: Comparison, results: Results) -> str:
    reference, kind, metric = comparison.variants[-1], ablation.kind, ablation.metric
    also = [("box", metric)] if kind == "mask" else []
    rows = [
        [
            comparison.title,
            *(f"{'paper ' * (name == 'AP')}{name}" for name in SCORES),
            *(f"{'ours ' * (name == 'AP')}{name}" for name in SCORES),
            *(f"{other} {name}" for other, name in also),
            "n",
            f"Δ{metric} paper",
            f"Δ{metric} ours",
            f"{metric} is",
        ]
    ]
    known = _of(results, reference, kind, metric)
    place = SCORES.index(metric)
    for variant in comparison.variants:
        ours = _of(results, variant, kind, metric)
        is_reference = variant is reference
        theirs = None if is_reference else _less(variant.paper[place], reference.paper[place])
        difference = None if is_reference else paired(ours, known)
        rows.append(
            [
                variant.title,
                *("" if value is None else f"{value:.1f}" for value in variant.paper),
                *(_spread(_of(results, variant, kind, name)) for name in SCORES),
                *(_spread(_of(results, variant, other, name)) for other, name in also),
                str(len(ours)),
                "" if theirs is None else f"{theirs:+.1f}",
                "" if difference is None else _shown(difference.mean, difference.deviation, "+"),
                verdict(difference, variant.claim),
            ]
        )
    return _markdown(rows)


def _of(results: Results, variant: Variant, kind: str, metric: str) -> dict[int, float]:
    """A variant's metric by seed, in per cent."""
    values: dict[int, float] = {}
    for (name, seed), result in results.items():
        if name == variant.name and kind in result.kinds:
            values[seed] = 100 * result.kinds[kind][metric]
    return values


def _less(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _spread(values: dict[int, float]) -> str:
    return _shown(*mean_and_deviation(list(values.values()))) if values else ""


def _shown(mean: float, deviation: float, sign: str = "") -> str:
    return f"{mean:{sign}.1f}" + ("" if math.isnan(deviation) else f" ± {deviation:.1f}")


def _markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table with aligned columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)
