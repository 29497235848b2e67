"""kill -9 at random moments of training, validation and the demo: once resumed, nothing is different."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from minimask.training.run_log import read_run_log
from minimask.weights.checkpoint import load_checkpoint
from tests.systems import needs_signals

TRAIN = ["train", "--data", "shapes", "--val", "shapes"]
SETTINGS = ["train.steps=12", "train.save_every=3", "data.crop=64", "train.batch_size=1"]
# Validations take about as long as all else, so that kills fall into them and around best.npz.
SETTINGS += ["train.validate_every=2", "train.validation_images=8", "model.score_threshold=0"]
for setting in SETTINGS:
    TRAIN += ["--set", setting]
DEMO = ["demo", "--quick"]


def start(arguments: list[str], output) -> subprocess.Popen:
    command = [sys.executable, "-m", "minimask", *arguments, "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(arguments: list[str], output) -> float:
    """Run to the end; returns the seconds it took."""
    began, process = time.monotonic(), start(arguments, output)
    assert process.communicate()[1] is not None and process.returncode == 0
    return time.monotonic() - began


def validations(directory) -> list[tuple[int, dict]]:
    """The steps after which a run was validated, and what that gave, but for the time it took."""
    rows = [row for row in read_run_log(directory / "log.jsonl") if "validation" in row]
    return [(row["step"], row["validation"] | {"seconds": 0}) for row in rows]


def assert_as_unbroken(output, whole) -> None:
    ours, theirs = (load_checkpoint(directory / "checkpoint.npz") for directory in (output, whole))
    assert ours.step == theirs.step
    for group in ("parameters", "momentum"):
        for name, array in getattr(theirs, group).items():
            assert np.array_equal(getattr(ours, group)[name], array), name
    for name in ("best.npz", "losses.csv", "metrics.json", "detections.json"):
        if (whole / name).exists():
            assert (output / name).read_bytes() == (whole / name).read_bytes(), name
    assert validations(output) == validations(whole)
    sheets = [sorted(path.name for path in (d / "validation").glob("*")) for d in (output, whole)]
    assert sheets[0] == sheets[1]
    left = {path.name for path in output.iterdir()} - {path.name for path in whole.iterdir()}
    assert not left, f"left behind: {left}"


@pytest.mark.full
@needs_signals
@pytest.mark.parametrize(("arguments", "kills"), [(TRAIN, 16), (DEMO, 4)], ids=["train", "demo"])
def test_after_kills_at_random_moments_all_is_as_without_them(tmp_path, arguments, kills):
    whole, moments = tmp_path / "whole", random.Random(0)
    seconds = run(arguments, whole)
    if arguments is DEMO:  # which evaluates into the same files that `train --val` does
        run(["train", "--resume"], whole)
    for k in range(kills):
        output = tmp_path / f"killed{k}"
        process = start(arguments, output)
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL and (output / "checkpoint.npz").exists():
            for _ in range(moments.randrange(2)):  # now and then the resumed run is killed as well
                process = start(["train", "--resume"], output)
                time.sleep(moments.uniform(0.2, 0.8) * seconds)
                process.kill()
                process.communicate()
            run(["train", "--resume"], output)
        elif not (output / "checkpoint.npz").exists():
            run(arguments, output)
        elif arguments is DEMO:
            run(["train", "--resume"], output)
        if arguments is DEMO:  # pictures are the demo's alone
            (output / "predictions.png").unlink(missing_ok=True)
            (whole / "predictions.png").unlink(missing_ok=True)
        assert_as_unbroken(output, whole)
