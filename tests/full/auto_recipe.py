"""Is `--config auto` as good as the defaults? python -m tests.full.auto_recipe DIR [--sets ...] [--seeds ...]

Trains maskrcnn_small with the defaults and with the recipe on the packaged nuclei, and on two generated sets
of 50 images each, for several seeds, and compares box and mask AP on images of their own. Hours on two cores;
it can be stopped at any time and started again with the same DIR, where a broken run is resumed. What a
finished one reached is kept in ``tests/full/measured`` with its options, and is not done again; a trial with
``--set`` stays in DIR. The table so far is printed after each run, and by ``--print`` without
training. A record made with other options than today's recipe has does not count, and its run is done again.
The exit status is 0 if, wherever all seeds are done, the recipe's mean AP is no lower than the defaults' by
more than the spread of the seeds.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from minimask.command.cli import main
from minimask.command.fitting import fitted
from minimask.config import Config, to_toml, with_settings
from minimask.data import nuclei_sample, read_coco
from minimask.models.networks import resolved
from tests.full.measured import keep, kept
from tests.recipe_sets import SETS, write_set

COUNTS = {"train": 50, "val": 30}
RECIPES = {"defaults": [], "auto": ["--config", "auto"]}
PATHS = ("train", "images", "val", "val_images")
METRICS = (("box", "AP"), ("mask", "AP"), ("mask", "AP50"))


def run_path(root: Path, name: str, recipe: str, seed: int) -> Path:
    return root / f"{name}-{recipe}-{seed}"


def data_of(root: Path, name: str) -> list[str]:
    """The arguments that name a data set, which is written first if it is a generated one."""
    if name not in SETS:
        return ["--data", name, "--val", name]
    files = write_set(name, root / name, COUNTS)
    return ["--data", files["train"], "--val", files["val"], "--images", root / name / "images"]


def train(root: Path, name: str, recipe: str, seed: int, settings: list[str]) -> int:
    """One run, or what is missing of it; returns the exit status."""
    if finished(root, name, recipe, seed, settings):
        return 0
    output = run_path(root, name, recipe, seed)
    arguments = ["train", "--resume", "--output", output]
    if not (output / "checkpoint.npz").exists():
        arguments = ["train", *data_of(root, name), *RECIPES[recipe], "--output", output]
        arguments += [part for text in (f"train.seed={seed}", *settings) for part in ("--set", text)]
    if status := main([str(argument) for argument in arguments]):
        return status
    finished(root, name, recipe, seed, settings)  # keeps it
    return 0


def finished(root: Path, name: str, recipe: str, seed: int, settings: list[str]) -> dict | None:
    """What a run reached, if it is done: in DIR, or, unless it is a trial, in the records.

    Raises
    ------
    SystemExit
        If the run in DIR, done or not, has other options.
    """
    output, options = run_path(root, name, recipe, seed), options_today(root, name, recipe, seed, *settings)
    record = f"auto_recipe-{name}-{recipe}-{seed}"
    if (output / "config.toml").exists():
        if _without_paths((output / "config.toml").read_text(encoding="utf-8")) != options:
            sys.exit(f"{output}: holds a run with other options; give another DIR, or remove it")
        if (output / "metrics.json").exists():
            metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
            found = {kind: metrics[kind] for kind in ("box", "mask")}
            if not settings and not kept(record, options):
                keep(record, options, found)
            return found
    return None if settings else kept(record, options)


@cache
def options_today(root: Path, name: str, recipe: str, seed: int, *trial: str) -> dict:
    """The options that a run would be trained with, as its record has them."""
    settings = [f"train.seed={seed}", *trial]
    config = with_settings(Config(), settings)
    if recipe == "auto":
        if name in SETS:
            dataset = read_coco(write_set(name, root / name, COUNTS)["train"], root / name / "images")
        else:
            dataset = nuclei_sample("train")
        config = fitted(config, dataset, settings).config
    return _without_paths(to_toml(resolved(config)))


def _without_paths(toml: str) -> dict:
    options = tomllib.loads(toml)
    options["data"] = {key: value for key, value in options["data"].items() if key not in PATHS}
    return options


def scores(root: Path, name: str, recipe: str, seeds: list[int], settings: list[str]) -> np.ndarray:
    """(seeds that are finished, metrics)."""
    runs = [run for seed in seeds if (run := finished(root, name, recipe, seed, settings))]
    return np.array([[run[kind][metric] for kind, metric in METRICS] for run in runs]).reshape(
        -1, len(METRICS)
    )


def table(root: Path, names: list[str], seeds: list[int], settings: list[str]) -> tuple[list[str], bool]:
    """The comparison in Markdown, and whether the recipe holds wherever all seeds are there."""
    titles = [f"{kind} {metric}" for kind, metric in METRICS]
    lines = [f"| data | recipe | runs | {' | '.join(titles)} | |", "| --- " * (len(titles) + 4) + "|"]
    holds = True
    for name in names:
        defaults, auto = (scores(root, name, recipe, seeds, settings) for recipe in RECIPES)
        verdict = ""
        if len(defaults) == len(auto) == len(seeds):
            spread = np.maximum(np.ptp(defaults, axis=0), np.ptp(auto, axis=0))
            as_good = bool((auto.mean(axis=0) >= defaults.mean(axis=0) - spread).all())
            better = bool((auto.min(axis=0) > defaults.max(axis=0)).all())
            verdict = "better: every run" if better else "as good" if as_good else "WORSE"
            holds &= as_good
        for recipe, found in (("defaults", defaults), ("auto", auto)):
            cells = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in _means(found)] or ["-"] * len(titles)
            said = verdict if recipe == "auto" else ""
            lines.append(f"| {name} | {recipe} | {len(found)} | {' | '.join(cells)} | {said} |")
    return lines, holds


def _means(found: np.ndarray) -> Iterator[tuple[float, float]]:
    """Mean and half the range of each metric."""
    return zip(found.mean(axis=0), np.ptp(found, axis=0) / 2) if len(found) else iter(())


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--sets", nargs="+", default=["nuclei", *SETS], choices=["nuclei", *SETS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], help="of both recipes, such as train.steps=150")
    parser.add_argument("--print", action="store_true", help="the table so far, without training")
    given = parser.parse_args(argv)
    root = given.directory.absolute()
    root.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds if not given.print else []:
        for name in given.sets:
            for recipe in RECIPES:
                print(f"\n# {name}, {recipe}, seed {seed}", flush=True)
                if status := train(root, name, recipe, seed, given.set):
                    return status
                print("\n".join(table(root, given.sets, given.seeds, given.set)[0]), flush=True)
    lines, holds = table(root, given.sets, given.seeds, given.set)
    print("\n".join(lines))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
