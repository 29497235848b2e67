"""How far a loop has got: tqdm's bar on a terminal, a line now and then where the output goes to a file."""

import sys
import time
from collections.abc import Iterator, Sequence

BAR = "{desc} {percentage:3.0f}% |{bar:8}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """Shows the steps done, images a second and the time left, with some values beside them.

    Used as a context manager, around a loop that calls `update`. Everything goes to standard error.

    Parameters
    ----------
    total, done : int
        Steps in all, and how many were done before (in a resumed run).
    title : str
    shown : bool
        False: stay silent, while another process tells.
    unit : str
        What is counted beside the steps.
    """

    def __init__(self, total: int, title: str, done: int = 0, shown: bool = True, unit: str = "images"):
        from tqdm import tqdm

        self.title, self.unit, self.images, self.began = title, unit, 0, time.monotonic()
        self.shown = shown and sys.stderr is not None  # it was closed, and print() would take standard output
        self.terminal = self.shown and sys.stderr.isatty()
        self.last_line = self.began
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not self.terminal,
            smoothing=0.05,
            bar_format=BAR,
        )
        self.total, self.first, self.done = total, done, done

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception) -> None:
        self.bar.close()

    def pause(self, seconds: float) -> None:
        """Leave out so many seconds, in which something else was done, of the time that steps take."""
        self.began += seconds

    def show(self, values: str) -> None:
        """Show something beside the bar, until the next step; nothing where there is no bar."""
        if self.terminal:
            self.bar.set_postfix_str(values)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        if self.terminal:
            self.bar.write(line, file=sys.stderr)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)

    def update(self, images: int, values: str = "") -> None:
        """Count one more step of so many images, and show some values beside it."""
        self.done += 1
        self.images += images
        now = time.monotonic()
        rate = f"{self.images / max(now - self.began, 1e-9):.1f} {self.unit}/s"
        if self.terminal:
            self.bar.set_postfix_str(", ".join(filter(None, [rate, values])), refresh=False)
            self.bar.update()
        elif self.shown and (now - self.last_line >= LINE_EVERY or self.done == self.total):
            self.last_line = now
            left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
            left = f"{self.bar.format_interval(left)} left"
            parts = filter(None, [f"{self.title} {self.done}/{self.total}", rate, left, values])
            print(", ".join(parts), file=sys.stderr, flush=True)


def each(items: Sequence, title: str, unit: str = "images") -> Iterator:
    """Iterate with a `Progress` of one image, or what the unit is, an item."""
    with Progress(len(items), title, unit=unit) as progress:
        for item in items:
            yield item
            progress.update(1)
