"""Line charts as SVG text: nothing to load, sharp at any size, with words for those who cannot see them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from minimask.errors import one_line

WIDTH, HEIGHT = 440, 270  # in the drawing's own units, in which text is 13 high
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 42
COLOURS = ("#0072B2", "#D55E00", "#008060", "#B0558F", "#7A6A00", "#555555")
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")
MOST_POINTS = 400
FARTHEST = 1e100  # values beyond are left out: differences between diverged ones are infinite


@dataclass(frozen=True, eq=False)
class Series:
    """A line: x rising, y of the same length; `faint` is thin and grey, `dots` mark each point."""

    name: str
    x: np.ndarray
    y: np.ndarray
    faint: bool = False
    dots: bool = False


def text(value: object, most: int = 200) -> str:
    """Anything as text for a page: one line of at most so many characters, escaped."""
    return escape(one_line(value, most), quote=True)


def line_chart(
    lines: Sequence[Series],
    title: str,
    xlabel: str,
    low: float | None = 0.0,
    high: float | None = None,
    logarithmic: bool = False,
) -> str:
    """A chart of some lines.

    Parameters
    ----------
    title : str
        For those who cannot see the chart; not drawn.
    low, high : float or None
        Limits of y; None takes that of the values.
    logarithmic : bool
        Whether the y axis is: the limits are then those of the values, and those not positive are left out.
    """
    lines = [_thinned(_known(line, logarithmic)) for line in lines]
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return f"<p>{text(title)}: nothing to draw.</p>"
    xs, ys = (np.concatenate([getattr(line, axis) for line in lines]) for axis in "xy")
    if logarithmic:
        ys, low, high = np.log10(ys), None, None
    strong = [line.y for line in lines if not line.faint] or [ys]
    top = high if high is not None else float(np.max(np.concatenate(strong) if not logarithmic else ys))
    bottom = low if low is not None else float(ys.min())
    x_range, y_range = _range(float(xs.min()), float(xs.max())), _range(bottom, top)
    parts = [_axes(x_range, y_range, xlabel, logarithmic)]
    order = sorted(range(len(lines)), key=lambda i: not lines[i].faint)
    colour = iter(range(len(lines)))
    parts += [
        _drawn(lines[i], x_range, y_range, logarithmic, None if lines[i].faint else next(colour))
        for i in order
    ]
    label = text(f"{title}; {_in_words(lines)}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return svg + _legend(lines)


def _known(line: Series, logarithmic: bool) -> Series:
    keep = (np.abs(line.y) < FARTHEST) & ((line.y > 0) | (not logarithmic))  # False for NaN
    return Series(line.name, np.asarray(line.x)[keep], np.asarray(line.y)[keep], line.faint, line.dots)


def _thinned(line: Series) -> Series:
    """At most `MOST_POINTS` points, each the mean of the neighbours that it stands for."""
    if len(line.x) <= MOST_POINTS:
        return line
    pieces = np.array_split(np.arange(len(line.x)), MOST_POINTS)
    x, y = (np.array([values[piece].mean() for piece in pieces]) for values in (line.x, line.y))
    return Series(line.name, x, y, line.faint, line.dots)


def _range(low: float, high: float) -> tuple[float, float]:
    if high - low < 1e-12 * max(1.0, abs(high)):  # a single value; a 0 is most often an AP
        return (low, low + 1) if low == 0 else (low - 0.5 * abs(low), high + 0.5 * abs(high))
    return low, high + 0.04 * (high - low)


def _place(value: float, limits: tuple[float, float], begin: float, end: float) -> float:
    share = (value - limits[0]) / (limits[1] - limits[0])
    return round(begin + min(max(share, 0.0), 1.0) * (end - begin), 1)


def _x(value: float, limits: tuple[float, float]) -> float:
    return _place(value, limits, LEFT, WIDTH - RIGHT)


def _y(value: float, limits: tuple[float, float]) -> float:
    return _place(value, limits, HEIGHT - BOTTOM, TOP)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and 2 and 5 times them; round numbers if the range is too small for those."""
    found = [
        math.log10(m * 10.0**e)
        for e in range(math.floor(low), math.ceil(high) + 1)
        for m in ((1, 2, 5) if high - low < 3 else (1,))
        if low <= math.log10(m) + e <= high
    ]
    return found if len(found) > 1 else [math.log10(v) for v in ticks(10**low, 10**high) if v > 0]


def _axes(x_range: tuple, y_range: tuple, xlabel: str, logarithmic: bool) -> str:
    parts = []
    for value in _log_ticks(*y_range) if logarithmic else ticks(*y_range):
        y, shown = _y(value, y_range), f"{10**value if logarithmic else value:.4g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{shown}</text>')
    for value in ticks(*x_range):
        x = _x(value, x_range)
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{value:.6g}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{text(xlabel)}</text>')
    return "".join(parts)


def _style(number: int | None) -> str:
    if number is None:
        return 'stroke="#BBBBBB" stroke-width="1"'
    dash = DASHES[number % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2"{dashes}'


def _drawn(line: Series, x_range: tuple, y_range: tuple, logarithmic: bool, number: int | None) -> str:
    values = np.log10(line.y) if logarithmic else line.y
    points = [(_x(x, x_range), _y(y, y_range)) for x, y in zip(line.x.tolist(), values.tolist())]
    path = " ".join(f"{x},{y}" for x, y in points)
    drawn = f'<polyline fill="none" {_style(number)} points="{path}"/>'
    if line.dots or len(points) == 1:
        colour = COLOURS[(number or 0) % len(COLOURS)]
        drawn += "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points)
    return drawn


def _legend(lines: Sequence[Series]) -> str:
    numbers, entries = iter(range(len(lines))), []
    for line in lines:
        style = _style(None if line.faint else next(numbers))
        mark = (
            f'<svg viewBox="0 0 30 8" aria-hidden="true"><line x1="0" x2="30" y1="4" y2="4" {style}/></svg>'
        )
        entries.append(f"<li>{mark} <bdi>{text(line.name)}</bdi></li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _in_words(lines: Sequence[Series]) -> str:
    """The first and the last value of each line."""
    told = [f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines if not line.faint]
    return ", ".join(told or [f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines])
