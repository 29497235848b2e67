"""How far a loop has got: tqdm's bar on a terminal, a line now and then if the output goes to a file."""

import sys
import time
from collections.abc import Iterator, Sequence

BAR = "{desc} {percentage:3.0f}% |{bar:8}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
LINE_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """Shows the steps done, images per second and the time left, with some values beside them.

    Used as a context manager, around a loop that calls `update`. Everything goes to standard error.

    Parameters
    ----------
    total, done : int
        Steps in all, and how many were done before (in a resumed run).
    title : str
    shown : bool
        False: stay silent, because another process shows it.
    unit : str
        What is counted besides the steps.
    """

    def __init__(self, total: int, title: str, done: int = 0, shown: bool = True, unit: str = "images"):
        from tqdm import tqdm

        self.title, self.unit, self.images, self.began = title, unit, 0, time.monotonic()
        self.shown = shown and sys.stderr is not None  # None if closed: print() would use standard output
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
        """Do not count these seconds, spent on something else, as time that steps took."""
        self.began += seconds

    def show(self, values: str) -> None:
        """Show values beside the bar until the next step, if there is a bar."""
        if self.terminal:
            self.bar.set_postfix_str(values)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        if self.terminal:
            self.bar.write(line, file=sys.stderr)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)

    def update(self, images: int, values: str = "") -> None:
        """Count one more step of this many images, and show some values beside it."""
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
    """Iterate with a `Progress` that counts one image, or another unit, per item."""
    with Progress(len(items), title, unit=unit) as progress:
        for item in items:
            yield item
            progress.update(1)
