"""Is `--config auto` as good as the defaults? python -m tests.full.auto_recipe DIR [--sets ...] [--seeds ...]

Trains maskrcnn_small with the defaults and with the recipe on the packaged nuclei, and on two generated sets
of 50 images each, for several seeds, and compares box and mask AP on images of their own. Hours on two cores;
it can be stopped at any time and started again with the same DIR, where a broken run is resumed. What a
finished one reached is kept in ``tests/full/measured`` with its options (a trial with ``--set``, in DIR
alone), and is not done again. The table so far is printed after each run, and by ``--print`` without
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
    output, status = run_path(root, name, recipe, seed), 0
    if not settings and record(root, name, recipe, seed):
        return 0
    if not (output / "metrics.json").exists():
        arguments = ["train", "--resume", "--output", output]
        if not (output / "checkpoint.npz").exists():
            arguments = ["train", *data_of(root, name), *RECIPES[recipe], "--output", output]
            arguments += [part for text in (f"train.seed={seed}", *settings) for part in ("--set", text)]
        status = main([str(argument) for argument in arguments])
    if status == 0 and not settings:  # also if it was stopped between the end of a run and this line
        metrics = json.loads((output / "metrics.json").read_text())
        options = _without_paths((output / "config.toml").read_text(encoding="utf-8"))
        keep(record_name(name, recipe, seed), {"options": options} | {k: metrics[k] for k in ("box", "mask")})
    return status


def record_name(name: str, recipe: str, seed: int) -> str:
    return f"auto_recipe-{name}-{recipe}-{seed}"


def record(root: Path, name: str, recipe: str, seed: int) -> dict | None:
    """What a finished run reached, if today's options are those it was trained with."""
    found = kept(record_name(name, recipe, seed))
    if found and found["options"] != options_today(root, name, recipe, seed):
        print(f"{record_name(name, recipe, seed)}: was trained with other options, and does not count")
        return None
    return found


@cache
def options_today(root: Path, name: str, recipe: str, seed: int) -> dict:
    """The options that a run would be trained with, as its record has them."""
    settings = [f"train.seed={seed}"]
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


def scores(root: Path, name: str, recipe: str, seeds: list[int]) -> np.ndarray:
    """(seeds that are finished, metrics)."""
    found = []
    for seed in seeds:
        path = run_path(root, name, recipe, seed) / "metrics.json"
        here = json.loads(path.read_text()) if path.exists() else None
        if metrics := here or record(root, name, recipe, seed):
            found.append([metrics[kind][metric] for kind, metric in METRICS])
    return np.array(found).reshape(-1, len(METRICS))


def table(root: Path, names: list[str], seeds: list[int]) -> tuple[list[str], bool]:
    """The comparison in Markdown, and whether the recipe holds wherever all seeds are there."""
    titles = [f"{kind} {metric}" for kind, metric in METRICS]
    lines = [f"| data | recipe | runs | {' | '.join(titles)} | |", "| --- " * (len(titles) + 4) + "|"]
    holds = True
    for name in names:
        defaults, auto = (scores(root, name, recipe, seeds) for recipe in RECIPES)
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
                print("\n".join(table(root, given.sets, given.seeds)[0]), flush=True)
    lines, holds = table(root, given.sets, given.seeds)
    print("\n".join(lines))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
