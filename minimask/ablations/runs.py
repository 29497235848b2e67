"""Trains and evaluates an ablation's networks, each in its own folder, and goes on where it stopped."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from minimask._version import __version__
from minimask.ablations.designs import Ablation, Variant
from minimask.ablations.networks import build
from minimask.ablations.stars import Stars
from minimask.config import Config
from minimask.errors import InputError
from minimask.files import make_output_directory, write_json
from minimask.results.evaluate import METRICS, evaluate
from minimask.training.keeper import TrainingStopped
from minimask.training.lock import Busy, locked
from minimask.training.loop import CHECKPOINT, CONFIG, LOG, train
from minimask.training.run_log import read_run_log
from minimask.training.stopping import StopSignals
from minimask.training.watch import Watch

DESIGN, RESULT = "design.json", "result.json"


@dataclass(frozen=True)
class Run:
    """One training: a variant and the side of its pictures, a seed, and the folder for both."""

    variant: Variant
    size: int
    seed: int
    folder: Path


@dataclass(frozen=True)
class Result:
    """What a run gave: metrics of each kind from 0 to 1, as in `Evaluation`, and the seconds it took."""

    kinds: dict[str, dict[str, float]]
    seconds: float


Results = dict[tuple[str, int], Result]  # by the variant's name and the seed


@dataclass(frozen=True)
class Finished:
    """How an ablation ended.

    Attributes
    ----------
    results : dict of (str, int) to Result
        Of the runs that are done, by the variant's name and the seed.
    of : int
        How many there are in all.
    stopped_by : int or None
        The signal that stopped it; None also if its time was up.
    elsewhere : int
        How many of the others are being done by other processes, which is why it ended.
    """

    results: Results
    of: int
    stopped_by: int | None
    elsewhere: int

    @property
    def complete(self) -> bool:
        return len(self.results) == self.of


class _Left(Exception):
    """The run is to stop, and its evaluation is abandoned."""


def run(
    ablation: Ablation,
    output: Path,
    seeds: int,
    note: Callable[[str], None],
    device: str = "cpu",
    seconds: float | None = None,
) -> Finished:
    """Do what is left of an ablation's runs, one after another.

    They come seed by seed, so that the first results can already be compared. A run that another process with
    the same output directory is doing is left to it.

    Parameters
    ----------
    ablation : Ablation
    output : Path
        Gets design.json and a folder for each variant, with one for each seed in it.
    seeds : int
    note : callable
        Called with lines for the user to see.
    device : "cpu" or "cuda"
    seconds : float, optional
        The time after which it stops, as it does for Ctrl-C.

    Raises
    ------
    InputError
        If `output` holds an ablation of another design, a result in it is damaged, something cannot be
        written, or a training stops at a loss that is not finite.
    """
    output = make_output_directory(output)
    _check_design(ablation, output)
    runs = list(plan(ablation, output, seeds))
    results = {(r.variant.name, r.seed): found for r in runs if (found := read_result(r.folder)) is not None}
    left = [r for r in runs if (r.variant.name, r.seed) not in results]
    ends = None if seconds is None else time.monotonic() + seconds
    with StopSignals() as stop:

        def enough() -> bool:
            return stop.signal is not None or (ends is not None and time.monotonic() >= ends)

        while left and not enough():
            elsewhere = []
            for each in left:
                try:
                    with _held(each):
                        result = read_result(each.folder)  # by now another process may have done it
                        if result is None and not enough():
                            spent = [result.seconds for result in results.values()]
                            note(_before(each, len(results), len(runs), spent))
                            result = _run(ablation, each, note, device, enough)
                except Busy:
                    elsewhere.append(each)
                    continue
                if result is None:
                    break
                results[each.variant.name, each.seed] = result
                score = result.kinds[ablation.kind][ablation.metric]
                note(f"{ablation.kind} {ablation.metric} {100 * score:.1f}, in {result.seconds:.0f} s")
            if len(elsewhere) == len(left):
                break
            left = elsewhere
    stopped_by = stop.signal if len(results) < len(runs) else None
    return Finished(results, len(runs), stopped_by, 0 if enough() else len(left))


def _held(run: Run) -> AbstractContextManager:
    """Keep other processes with the same output directory from this run; raises `Busy` if one is doing it."""
    return locked(make_output_directory(run.folder.parent), f".{run.folder.name}.lock")


def plan(ablation: Ablation, output: Path, seeds: int) -> Iterator[Run]:
    """All runs, in the order in which they are done."""
    for seed in range(seeds):
        for comparison in ablation.comparisons:
            for variant in comparison.variants:
                yield Run(variant, comparison.size, seed, output / variant.name / f"seed-{seed}")


def read_result(folder: Path) -> Result | None:
    """The result in a run's folder; None if the run is not done.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    path = folder / RESULT
    found = _read_json(path)
    if found is None:
        return None
    try:
        kinds = {
            kind: {name: float(values[name]) for name in METRICS} for kind, values in found["kinds"].items()
        }
        return Result(kinds, float(found["seconds"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged; remove it, and the run is done again") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged; remove it, and what it held is made again") from error


def design_of(ablation: Ablation) -> dict[str, Any]:
    """All that an ablation's results depend on, as read back from JSON."""
    return json.loads(json.dumps(asdict(ablation)))


def _check_design(ablation: Ablation, output: Path) -> None:
    """Check that what is in the directory belongs to this ablation as it is designed now."""
    design = design_of(ablation)
    del design["seeds"]  # more seeds do not change the runs there are
    known = _read_json(output / DESIGN)
    if known is None:
        write_json(output / DESIGN, design, indent=1)
    elif known != design:
        name = known.get("name") if isinstance(known, dict) else None
        what = "another design of it" if name == ablation.name else f"the ablation {name}"
        raise InputError(
            f"{output / DESIGN}: this directory holds {what}, and runs of two do not make one table; choose "
            "another --output"
        )


def _run(
    ablation: Ablation,
    run: Run,
    note: Callable[[str], None],
    device: str,
    enough: Callable[[], bool],
) -> Result | None:
    """Train and evaluate; the result, or None if the run was stopped and is to be resumed."""
    data = ablation.training
    pictures = Stars(data.steps * data.batch_size, run.seed, run.size, data.objects)
    try:
        outcome = train(
            training_config(ablation, run.seed),
            pictures,
            run.folder,
            resume=(run.folder / CHECKPOINT).exists(),
            note=note,
            device=device,
            watch=Watch(enough=enough),
            build=partial(_network, ablation, run),
        )
    except TrainingStopped as error:
        what = str(error).partition(". ")[0]  # the advice behind it is for ordinary runs
        raise InputError(
            f"{run.variant.name}, seed {run.seed}: {what}; remove {run.folder} to try it again, or leave it: "
            "that a design diverges is a result, too"
        ) from error
    except InputError as error:
        raise InputError(f"{run.variant.name}, seed {run.seed}: {error}") from error
    if outcome.stopped_by is not None:
        return None
    began = time.monotonic()
    against = Stars(data.evaluated, data.evaluation_seed, run.size, data.objects)
    try:
        evaluation = evaluate(outcome.model, against, progress=partial(_until, enough))
    except _Left:
        return None
    spent = sum(row.get("seconds", 0.0) for row in read_run_log(run.folder / LOG))
    result = Result(evaluation.kinds, round(spent + time.monotonic() - began, 1))
    about = {"variant": run.variant.name, "seed": run.seed, "minimask": __version__, "steps": data.steps}
    write_json(run.folder / RESULT, about | asdict(result), indent=1)
    # Neither is needed any more, and both name one of the command's networks, which this is not.
    for name in (CHECKPOINT, CONFIG):
        (run.folder / name).unlink(missing_ok=True)
    return result


def training_config(ablation: Ablation, seed: int) -> Config:
    """How the loop trains; `build` makes the network, whatever the configuration's model says."""
    data, config = ablation.training, Config()
    return replace(
        config,
        data=replace(config.data, crop=0, flip_horizontal=False),
        train=replace(
            config.train,
            steps=data.steps,
            batch_size=data.batch_size,
            learning_rate=data.learning_rate,
            reference_batch=data.batch_size,
            warmup_steps=data.warmup_steps,
            seed=seed,
        ),
    )


def _network(
    ablation: Ablation, run: Run, config: Config, num_classes: int, device: str, num_keypoints: int
) -> Any:
    """The model of a run, with the arguments that `train` passes."""
    return build(run.variant.network, num_classes, run.size, config.train.seed, ablation.sizes).to(device)


def _until(enough: Callable[[], bool], indices: Sequence[int]) -> Iterator[int]:
    for index in indices:
        if enough():
            raise _Left
        yield index


def _before(run: Run, done: int, total: int, seconds: list[float]) -> str:
    """The line that says which run begins, and about how long the remaining runs take."""
    line = f"run {done + 1} of {total}: {run.variant.name}, seed {run.seed}"
    if not seconds:
        return line
    left = round((total - done) * sum(seconds) / len(seconds) / 60)
    hours, minutes = divmod(left, 60)
    return f"{line}; about {f'{hours} h ' if hours else ''}{minutes} min left"
