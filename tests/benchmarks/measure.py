"""How two libraries are timed against each other in one process, so that neither pays for the other.

What was measured on two virtual cores before these rules were chosen:

- After a parallel region torch's OpenMP threads spin for about 16 ms in the hope of more work, and OpenBLAS's
  for about 100 ms. Whoever runs meanwhile lacks a core: calls simply taken in turn made a 1x1 convolution of
  minimask's 25 % slower, and torch's fully connected layer twice as slow. So before each turn we wait until
  this process's other threads use no processor time (`settle`).
- Waiting cools caches and processors down (30 ms of sleep: up to twice the time), so each turn begins with a
  run that does not count, unless runs are so long that it makes no difference.
- ``OMP_WAIT_POLICY=passive`` would avoid the spinning, but costs torch 10 to 20 % on its shortest calls:
  nothing is set, torch runs as its users run it.
- Another process on the same cores costs a spinning library most: torch ran 5 to 20 times slower beside one
  busy process, minimask 1.5 times. So a turn in which other processes (or the virtual machine's host) took
  more than `FOREIGN` of the processors' time is thrown away; a row of which too little is left is marked.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

LONG = 0.15  # seconds: from here on a turn is one run, without one before it that does not count
TURN = 0.04  # seconds that the counted runs of a turn take together, about
FOREIGN = 0.05  # share of all processor time that others may take during a turn
TURNS = 3, 15  # at least and at most
RELU = 5e-3  # tolerance of gradients through a ReLU: of millions of values some are 0 to rounding, and flip


@dataclass(frozen=True)
class Contest:
    """One computation written for several libraries.

    Attributes
    ----------
    runs : dict of callables without arguments
        "minimask", then whom it is compared with, "torch" nearly always. Each gives its results: an array
        or tensor, or a sequence or dict of them, in the same order.
    tolerance : float
        Root mean square of the results' difference, over the other's own.
    check : callable, optional
        Replaces that comparison: gets both results, raises AssertionError.
    """

    runs: dict[str, Callable]
    tolerance: float = 1e-5
    check: Callable | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    name : str
        group/subgroup/what.
    setup : callable
        Gives the contest to be timed, or figures already measured.
    count : int
        How often a network does it.
    size : float, optional
        How large the input is, where rows show how cost grows.
    """

    name: str
    setup: Callable[[], Contest | Figures]
    count: int = 1
    size: float | None = None

    @property
    def group(self) -> str:
        return self.name.rpartition("/")[0]


@dataclass
class Figures:
    """What each library took, run by run: minimask, then torch or whom else it is compared with.

    Attributes
    ----------
    values : dict of lists of float
        In `unit`, "s" or "MB".
    disturbed : bool
        Whether other processes were busy during too many runs.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    unit: str = "s"
    disturbed: bool = False

    @property
    def medians(self) -> list[float]:
        return [statistics.median(v) for v in self.values.values()]

    @property
    def ratio(self) -> float:
        """Below 1, minimask takes less."""
        ours, theirs = self.medians
        return ours / theirs


def arrays(result) -> list[np.ndarray]:
    """The arrays in a result, whatever library and container they come in."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [a for part in result for a in arrays(part)]
    if hasattr(result, "detach"):  # torch's
        return [result.detach().numpy()]
    data = result if isinstance(result, np.ndarray) else getattr(result, "data", result)
    return [np.asarray(data)]


def agree(contest: Contest) -> dict[str, float]:
    """Run each library once and compare the results; gives the seconds of these first runs.

    Raises
    ------
    AssertionError
        Saying how large the difference is: a fast result that is wrong must not be timed.
    """
    results, seconds = {}, {}
    for library, run in contest.runs.items():
        begin = time.perf_counter()
        results[library] = run()
        seconds[library] = time.perf_counter() - begin
    mine, peer = results.values()
    if contest.check:
        contest.check(mine, peer)
    else:
        compare(mine, peer, contest.tolerance)
    return seconds


def compare(mine, peer, tolerance: float) -> None:
    """Raise AssertionError unless the results have equal shapes and, to the tolerance, equal values."""
    ours, theirs = arrays(mine), arrays(peer)
    assert len(ours) == len(theirs), f"{len(ours)} arrays, the other gives {len(theirs)}"
    for i, (a, b) in enumerate(zip(ours, theirs)):
        assert a.shape == b.shape, f"result {i} has shape {a.shape}, the other's {b.shape}"
        if a.size:
            error = rms(a - b.astype(np.float64)) / max(rms(b), 1e-30)
            assert error <= tolerance, f"result {i} differs by {error:.1e} relative"


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


class Load:
    """Another process that multiplies matrices in one thread, as long as the context lasts."""

    CODE = "import numpy as np; a = np.ones((256, 256), np.float32)\nwhile True: a @ a"

    def __enter__(self) -> Load:
        one_thread = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", self.CODE], env=os.environ | one_thread)
        while self.seconds() < 0.5:  # it has begun to compute
            if self.process.poll() is not None:
                raise RuntimeError(f"the load has ended with status {self.process.returncode}")
            time.sleep(0.05)
        return self

    def __exit__(self, *exception) -> None:
        self.process.kill()
        self.process.wait()

    def seconds(self) -> float:
        """Processor time that it has used."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, after_name[11:13])) / os.sysconf("SC_CLK_TCK")  # user and system


def measure(row: Row, seconds: float, load: Load | None = None) -> Figures:
    """A row's figures; see `time_contest`."""
    found = row.setup()
    return found if isinstance(found, Figures) else time_contest(found, seconds, load)


def time_contest(contest: Contest, seconds: float, load: Load | None = None) -> Figures:
    """The libraries in turn until about `seconds` have gone into counted runs of each.

    With a load, what that process takes disturbs nothing: it is meant to.

    Raises
    ------
    AssertionError
        If their results differ.
    """
    expected = agree(contest)
    gc.collect()
    for library, run in contest.runs.items():
        if expected[library] < 10 * LONG:  # the first run of all is slower
            settle()
            expected[library] = _time(run)
    good: dict[str, list[float]] = {library: [] for library in contest.runs}
    bad: dict[str, list[float]] = {library: [] for library in contest.runs}
    slowest = max(expected.values())
    turns = int(np.clip(seconds / max(slowest, TURN), *TURNS))
    for _ in range(2 * turns):  # as many again where turns are thrown away
        for library, run in contest.runs.items():
            if len(good[library]) < turns:
                settle()
                took, disturbed = _turn(run, expected[library], load)
                (bad if disturbed else good)[library].append(took)
    figures = Figures()
    for library in contest.runs:
        few = len(good[library]) < TURNS[0]
        figures.values[library] = good[library] + (bad[library] if few else [])
        figures.disturbed |= few
    return figures


def _turn(run: Callable, expected: float, load: Load | None) -> tuple[float, bool]:
    """Median seconds of the runs of one turn, and whether others took processor time from it."""
    if expected < LONG:
        run()
    before, begin = _foreign_seconds(load), time.perf_counter()
    times = [_time(run) for _ in range(max(1, round(TURN / max(expected, 1e-5))))]
    wall = time.perf_counter() - begin
    others = _foreign_seconds(load) - before
    # the counters tick every 10 ms: one tick too many says nothing
    return statistics.median(times), others > FOREIGN * wall * (os.cpu_count() or 1) + 0.02


def _time(run: Callable) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def settle() -> None:
    """Wait until this process's threads have stopped spinning, 0.3 s at most."""
    for _ in range(100):
        cpu, begin = time.process_time(), time.perf_counter()
        time.sleep(0.003)
        if time.process_time() - cpu < 0.2 * (time.perf_counter() - begin):
            return


def _foreign_seconds(load: Load | None) -> float:
    """Processor time that all others but the load have used, the virtual machine's host too; 0 if unknown."""
    try:
        fields = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy - own.user - own.system - (load.seconds() if load else 0)


def geometric_mean(values) -> float:
    return float(np.exp(np.mean(np.log(list(values)))))
