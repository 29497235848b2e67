"""The training loop: the same bits after every kind of interruption, and one line for what stops it."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minimask import backend
from minimask.config import Config, to_dict, with_settings
from minimask.data import Augmentation, Batches, Shapes
from minimask.errors import InputError
from minimask.models.networks import build_model, resolved
from minimask.randomness import Draws
from minimask.results.visualize import loss_curves
from minimask.training import lock, loop
from minimask.training.log import LossLog, read_losses
from minimask.training.loop import augmentation, gives_finite_loss, learning_rate, train
from minimask.training.stopping import StopSignals
from minimask.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.systems import needs_links, needs_signals

SHAPES = Shapes(6, seed=3, size=64)
SETTINGS = [
    "train.steps=6",
    "train.save_every=2",
    "train.warmup_steps=2",
    "data.crop=48",
    "train.batch_size=2",
]


def config(*settings):
    return with_settings(Config(), [*SETTINGS, *settings])


def quiet(line):
    assert re.fullmatch(r"the first step took memory up to [\d,]+ MiB on cpu", line), (
        f"nothing else was to be said: {line}"
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of six steps without any interruption: its directory."""
    directory = tmp_path_factory.mktemp("unbroken")
    outcome = train(config(), SHAPES, directory, note=quiet)
    assert outcome.step == 6 and outcome.stopped_by is None
    return directory


def assert_equal_runs(a, b):
    """Weights, momentum and losses equal bit for bit, and so does all else but the machine."""
    assert (a / "losses.csv").read_bytes() == (b / "losses.csv").read_bytes()
    ours, theirs = (vars(load_checkpoint(directory / "checkpoint.npz")) for directory in (a, b))
    for group in ("parameters", "momentum"):
        assert list(ours[group]) == list(theirs[group])
        for name, array in theirs[group].items():
            assert ours[group][name].dtype == array.dtype
            assert ours[group][name].tobytes() == array.tobytes(), name
    for name in ("step", "seed", "config", "class_names", "category_ids", "data"):
        assert ours[name] == theirs[name]


class StoppingAt:
    """A data set that sends this process a signal while a step's images are prepared."""

    def __init__(self, dataset, reads, number):
        self.dataset, self.reads, self.number = dataset, reads, number

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads == 0:
            signal.raise_signal(self.number)
        return self.dataset[index]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_the_resumed_run_equals_the_unbroken_one(
    tmp_path, unbroken, number, capfd
):
    before = signal.getsignal(number)  # a background job's shell has it ignored
    outcome = train(config(), StoppingAt(SHAPES, 5, number), tmp_path)
    assert outcome.stopped_by == number and 0 < outcome.step < 6
    assert load_checkpoint(tmp_path / "checkpoint.npz").step == outcome.step
    assert "finishing the step" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    assert train(config(), SHAPES, tmp_path, resume=True, note=quiet).step == 6
    assert_equal_runs(tmp_path, unbroken)


@pytest.mark.slow
@needs_signals
def test_after_kill_9_the_resumed_run_equals_the_unbroken_one(tmp_path):
    def run(output, *more, wait=True):
        settings = ["train.steps=12", "train.save_every=3", "data.crop=64", "train.batch_size=1"]
        arguments = (
            [part for setting in settings for part in ("--set", setting)] if "--resume" not in more else []
        )
        data = ["--data", "shapes"] if "--resume" not in more else []
        command = [
            sys.executable,
            "-m",
            "minimask",
            "train",
            "--output",
            str(output),
            *data,
            *arguments,
            *more,
        ]
        process = subprocess.Popen(
            command,
            env=os.environ | {"MINIMASK_THREADS": "2"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        return process if not wait else (process.communicate()[1], process.returncode)

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = run(killed, wait=False)
    log = killed / "losses.csv"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 8):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    written, saved = len(read_losses(log)["step"]), load_checkpoint(killed / "checkpoint.npz").step
    assert 0 < saved < 12 and written >= saved
    with log.open("a") as file:
        file.write("2")  # and a row cut off in its middle
    assert run(killed, "--resume")[1] == 0
    assert run(whole)[1] == 0
    assert load_checkpoint(whole / "checkpoint.npz").step == 12
    assert_equal_runs(killed, whole)


def test_the_second_signal_ends_at_once():
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143


def test_a_handler_that_was_not_set_from_python_is_left_alone(monkeypatch):
    """`getsignal` is None for it, and `signal` does not take that back."""
    known = signal.getsignal
    monkeypatch.setattr(
        signal, "getsignal", lambda number: None if number == signal.SIGINT else known(number)
    )
    before = known(signal.SIGINT)
    with StopSignals() as stop:
        assert known(signal.SIGINT) is before
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with StopSignals() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, signal.getsignal(signal.SIGTERM))]


def test_a_loss_that_is_not_finite_stops_with_its_name_step_and_images_and_keeps_the_checkpoint(tmp_path):
    wild = config(
        "train.learning_rate=1e30", "train.clip_norm=0", "train.warmup_steps=0", "train.save_every=1"
    )
    with pytest.raises(InputError) as caught:
        train(wild, SHAPES, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "training stopped at step" in message
    assert "loss_" in message or "weight is not finite" in message
    checkpoint = load_checkpoint(tmp_path / "checkpoint.npz")
    assert f"the last good state, of step {checkpoint.step}" in message
    assert all(np.isfinite(array).all() for array in checkpoint.parameters.values())


def test_an_image_that_would_make_the_loss_nan_is_named(tmp_path):
    class Poisoned(StoppingAt):
        def __getitem__(self, index):
            sample = self.dataset[index]
            image = np.full_like(sample.image, np.nan) if index == 4 else sample.image
            return dataclasses.replace(sample, image=image)

    message = r"step \d+: images\[\d\]: holds NaN .* \(images: .*shapes \(seed 3\): image 5.* go on with"
    with pytest.raises(InputError, match=message):
        train(config("train.save_every=1"), Poisoned(SHAPES, 0, 0), tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.npz").step < 3


def test_a_disk_that_fills_up_stops_with_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def filling(handle):
        calls.append(handle)
        if (tmp_path / "losses.csv").exists() and (tmp_path / "losses.csv").read_text().count("\n") > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", filling)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        train(config(), SHAPES, tmp_path)
    assert calls and load_checkpoint(tmp_path / "checkpoint.npz").step == 2
    assert not list(tmp_path.glob(".*"))


def test_a_directory_with_a_run_is_not_overwritten_unasked(tmp_path, unbroken):
    with pytest.raises(InputError, match="holds a training run; go on with --resume"):
        train(config(), SHAPES, unbroken)
    with pytest.raises(InputError, match="there is no checkpoint to resume; leave out --resume"):
        train(config(), SHAPES, tmp_path, resume=True)


def test_what_makes_a_resumed_run_another_one_is_said(tmp_path, unbroken):
    checkpoint = load_checkpoint(unbroken / "checkpoint.npz")
    environment = backend.describe() | {"threads": "64"}
    older = dataclasses.replace(checkpoint, environment=environment, step=5)
    save_checkpoint(tmp_path / "checkpoint.npz", older)
    notes = []
    train(config("train.learning_rate=0.05"), Shapes(7, 3, size=64), tmp_path, resume=True, note=notes.append)
    assert "train.learning_rate is 0.05, was 0.02" in notes[0] and "training images are others" in notes[0]
    assert "threads 64 then" in notes[1] and "last bits" in notes[1]


def test_a_checkpoint_that_does_not_fit_is_not_resumed(tmp_path, unbroken):
    checkpoint = load_checkpoint(unbroken / "checkpoint.npz")
    path = tmp_path / "checkpoint.npz"
    for change, words in [
        (
            {"class_names": ["cat"], "category_ids": [1]},
            "was trained on the classes cat; shapes .* has circle, square, triangle",
        ),
        ({"step": 7}, "has done 7 steps, more than train.steps, 6"),
        ({"momentum": {}}, "holds weights without momentum"),
        ({"data": {}}, r"has no data.images, .* it cannot be resumed"),
        ({"parameters": {}}, "another model"),
        ({"config": to_dict(config()) | {"old": {}}}, r"no section \[old\]"),
    ]:
        save_checkpoint(path, dataclasses.replace(checkpoint, **change))
        with pytest.raises(InputError, match=f"{path.name}.*{words}"):
            train(config(), SHAPES, tmp_path, resume=True)


def image_of_third_step() -> int:
    """One that the first two steps do not show."""
    order = Batches(SHAPES, 2, None, 0)
    return next(i for i in order.indices(2) if i not in order.indices(0) + order.indices(1))


class Broken(StoppingAt):
    """A data set one of whose images turns out to be damaged."""

    def __init__(self, dataset, index, error):
        super().__init__(dataset, 0, 0)
        self.index, self.error = index, error

    def __getitem__(self, index):
        if index == self.index:
            raise self.error
        return self.dataset[index]


@pytest.mark.parametrize(
    "error",
    [InputError("a.png: damaged; replace the file"), OSError(errno.EIO, "Input/output error", "a.png")],
)
def test_an_image_that_cannot_be_read_costs_no_step_and_the_line_says_how_to_go_on(tmp_path, unbroken, error):
    settings = config("train.save_every=100")
    with pytest.raises(InputError) as caught:
        train(settings, Broken(SHAPES, image_of_third_step(), error), tmp_path, note=quiet)
    line = str(caught.value)
    assert line.startswith("training stopped at step 3: ") and "a.png" in line and "\n" not in line
    assert "holds the last good state, of step 2; mend that, then go on with: minimask train --resume" in line
    assert load_checkpoint(tmp_path / "checkpoint.npz").step == 2
    assert train(settings, SHAPES, tmp_path, resume=True, note=quiet).step == 6
    ours, theirs = (load_checkpoint(d / "checkpoint.npz").parameters for d in (tmp_path, unbroken))
    assert all(np.array_equal(ours[name], array) for name, array in theirs.items())


def test_a_bug_saves_what_is_done_and_stays_visible(tmp_path):
    with pytest.raises(ZeroDivisionError):
        train(
            config("train.save_every=100"),
            Broken(SHAPES, image_of_third_step(), ZeroDivisionError()),
            tmp_path,
        )
    done = load_checkpoint(tmp_path / "checkpoint.npz").step
    assert done == len(read_losses(tmp_path / "losses.csv")["step"]) == 2


def test_weights_with_which_the_loss_is_infinite_are_never_the_last_good_state(tmp_path):
    wild = ["train.learning_rate=1e6", "train.clip_norm=0", "train.warmup_steps=0", "train.save_every=1"]
    with pytest.raises(InputError, match=r"step 1: (after the update the loss|a weight) is not finite"):
        train(config(*wild), SHAPES, tmp_path)
    checkpoint = load_checkpoint(tmp_path / "checkpoint.npz")
    model = build_model(config(), 4)
    model.load_state_dict(checkpoint.parameters)
    samples = [SHAPES[0], SHAPES[1]]
    assert gives_finite_loss(model, samples, Draws())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_stops_nothing(tmp_path, number, monkeypatch):
    step = loop.training_step

    def interrupted(*arguments):
        row = step(*arguments)
        signal.raise_signal(number)
        return row

    monkeypatch.setattr(loop, "training_step", interrupted)
    outcome = train(config("train.steps=1"), SHAPES, tmp_path, note=quiet)
    assert outcome.step == 1 and outcome.stopped_by is None


HOLD = """
import sys, time
from pathlib import Path
from minimask.training.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_training_in_the_same_directory_ends_in_one_line_and_a_dead_one_is_no_obstacle(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="another training is writing into this directory; wait for its end"):
        train(config(), SHAPES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]  # the second has left nothing
    holder.kill()
    holder.communicate()
    assert train(config("train.steps=1"), SHAPES, tmp_path, note=quiet).step == 1
    assert not (tmp_path / lock.NAME).exists()


def test_another_number_of_processes_is_said(tmp_path, unbroken):
    checkpoint = load_checkpoint(unbroken / "checkpoint.npz")
    assert checkpoint.environment["processes"] == "1"
    two = checkpoint.environment | {"processes": "2"}
    save_checkpoint(tmp_path / "checkpoint.npz", dataclasses.replace(checkpoint, environment=two, step=5))
    notes = []
    train(config(), SHAPES, tmp_path, resume=True, note=notes.append)
    assert "processes 2 then, 1 now" in notes[0]


def test_the_directory_tells_all_about_the_run(unbroken):
    files = ["checkpoint.npz", "config.toml", "log.jsonl", "losses.csv"]
    assert sorted(path.name for path in unbroken.iterdir()) == files
    checkpoint = load_checkpoint(unbroken / "checkpoint.npz")
    assert checkpoint.config == to_dict(resolved(config())) and checkpoint.class_names == [
        "circle",
        "square",
        "triangle",
    ]
    losses = read_losses(unbroken / "losses.csv")
    assert losses["step"].tolist() == [1, 2, 3, 4, 5, 6]
    parts = sum(losses[name] for name in losses if name.startswith("loss_"))
    np.testing.assert_allclose(losses["loss"], parts, rtol=1e-6)
    rate = learning_rate(resolved(config()).train)
    assert losses["learning_rate"].tolist() == [rate(step) for step in range(6)]


def test_the_learning_rate_is_linear_in_the_batch_size():
    small, large = (resolved(config(f"train.batch_size={size}")).train for size in (2, 6))
    assert learning_rate(large)(3) == pytest.approx(3 * learning_rate(small)(3), rel=1e-12)


def test_the_log_is_cut_back_to_the_checkpoint_and_a_torn_row_is_dropped(tmp_path):
    path = tmp_path / "losses.csv"
    with LossLog(path, 0) as log:
        for step in range(1, 13):
            log.write(step, {"loss": 1 / step})
    with path.open("a") as file:
        file.write("1")
    with LossLog(path, 7) as log:
        log.write(8, {"loss": 0.5})
    losses = read_losses(path)
    assert losses["step"].tolist() == [*range(1, 9)]
    assert losses["loss"].tolist() == [1 / step for step in range(1, 8)] + [0.5]


def written(path, *rows, step=0):
    with LossLog(path, step) as log:
        for number, row in enumerate(rows, step + 1):
            log.write(number, row)
    return path.read_text()


def test_a_loss_that_the_first_row_lacked_gets_a_column_and_a_missing_one_stays_empty(tmp_path):
    path = tmp_path / "losses.csv"
    rows = [{"loss": 1.0}, {"loss": 2.0, "loss_a": 0.5}, {"loss_b, c": 1e-30, "loss": np.float32(3.0)}]
    text = written(path, *rows)
    assert text == 'step,loss,loss_a,"loss_b, c"\n1,1.0,,\n2,2.0,0.5,\n3,3.0,,1e-30\n'
    losses = read_losses(path)
    nan = np.nan
    np.testing.assert_array_equal(losses["loss_a"], [nan, 0.5, nan])
    np.testing.assert_array_equal(losses["loss_b, c"], [nan, nan, 1e-30])
    # A run that is cut back before the new columns came ends with the same bytes as the unbroken one.
    written(path, *rows[1:], step=1)
    assert path.read_text() == text
    assert not [entry for entry in tmp_path.iterdir() if entry != path]


HEAD = b"step,loss,loss_mask\n"
DAMAGED = {
    "a short row": (HEAD + b"1,1.0\n2,1.0,0.5\n", "line 2 has 2 values, for 3 columns"),
    "a long row": (HEAD + b"1,1.0,0.5,7\n2,1.0,0.5\n", "line 2 has 4 values, for 3 columns"),
    "a short last row": (HEAD + b"1,1.0,0.5\n2,1.0\n", "line 3 has 2 values, for 3 columns"),
    "semicolons": (b"step;loss\n1;1.0\n", "line 1 must name .* separated by semicolons, not commas"),
    "tabs": (b"step\tloss\n1\t1.0\n", "line 1 must name .* separated by tabs, not commas"),
    "no names": (b"1,1.0,0.5\n2,1.0,0.5\n", "line 1 must name the columns, step first"),
    "equal names": (b"step,loss,loss\n1,1.0,0.5\n", "line 1 must name the columns"),
    "decimal commas": (b"step;loss\n1;1,0\n", "line 1 must name the columns"),
    "Latin-1": (HEAD + b"1,1.0,\xe9\n", "line 2 is not UTF-8 text"),
    "UTF-16": ("step,loss\n1,1.0\n".encode("utf-16"), "line 1 is not UTF-8 text"),
    "text": (HEAD + b"1,1.0,abc\n", "line 2 has 'abc', which is not a finite number"),
    "infinity": (HEAD + b"1,inf,0.5\n", "line 2 has 'inf', which is not a finite number"),
    "control characters": (
        HEAD + b"1,1.0,\x1b[2J\n",
        r"line 2 has '\\\\x1b\[2J', which is not a finite number",
    ),
    "NUL": (HEAD + b"1,1.0,\0\0\0\n", "line 2"),
    "a step in other digits": (HEAD + "²,1.0,0.5\n".encode(), "line 2 has step ² after step 0"),
    "a step below 0": (HEAD + b"-1,1.0,0.5\n", "line 2 has step -1 after step 0"),
    "a step of many digits": (HEAD + b"1" * 5000 + b",1.0,0.5\n", "line 2 has step 111"),
    "a step twice": (HEAD + b"1,1.0,0.5\n1,1.0,0.5\n", "line 3 has step 1 after step 1"),
    "an open quote": (HEAD + b'1,1.0,"0.5\n2,1.0,0.5\n', "line 3"),
    "a field of 200 kB": (HEAD + b"1,1.0," + b"5" * 200_000 + b"\n", "line 2"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_log_is_named_with_line_and_mend_and_stays_as_it_is(name, tmp_path):
    content, words = DAMAGED[name]
    path = tmp_path / "losses.csv"
    path.write_bytes(content)
    for read in (lambda: LossLog(path, 2), lambda: read_losses(path)):
        with pytest.raises(InputError, match=words) as caught:
            read()
        text = str(caught.value)
        assert text.startswith(f"{path}: damaged (line ") and text.isprintable() and len(text) < 500
        assert "put it right, or move it away: --resume then goes on" in text
        assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_a_log_that_is_sound_but_written_otherwise_is_gone_on_with(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_bytes(b"\xef\xbb\xbfstep,loss\r\n1,1.0\r\n\r\n2,0.5\r\nno,thing\r\n3")
    with pytest.raises(InputError, match="line 5 has step no after step 2"):
        LossLog(path, 2)
    path.write_bytes(path.read_bytes().replace(b"no,thing", b"3,thing"))
    assert written(path, {"loss": 0.25}, step=2) == "step,loss\n1,1.0\n2,0.5\n3,0.25\n"


@pytest.mark.parametrize("content", [None, b"", HEAD, HEAD + b"1,1.0", HEAD + b"7,1.0,0.5\n"])
def test_a_lost_log_is_told_and_the_run_goes_on(content, tmp_path):
    path, notes = tmp_path / "losses.csv", []
    if content is not None:
        path.write_bytes(content)
    with LossLog(path, 4, note=notes.append) as log:
        log.write(5, {"loss": 1.0})
    assert notes == [f"{path} lacks the losses of 4 of the 4 steps done"]
    assert read_losses(path)["step"].tolist() == [5.0]
    loss_curves(read_losses(path), tmp_path / "losses.png")


@needs_links
def test_a_log_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in {
        "folder": "Is a directory",
        "loop": "Too many levels",
        "none": "No such file",
    }.items():
        with pytest.raises(InputError, match=f"{name}: cannot be read .*{words}"):
            read_losses(tmp_path / name)
    with pytest.raises(InputError, match="folder: cannot be read"):
        LossLog(tmp_path / "folder", 2)


def test_resuming_with_a_damaged_log_loses_nothing_and_without_it_goes_on(tmp_path, unbroken):
    directory, notes = tmp_path / "run", []
    shutil.copytree(unbroken, directory)
    checkpoint = dataclasses.replace(load_checkpoint(directory / "checkpoint.npz"), step=4)
    save_checkpoint(directory / "checkpoint.npz", checkpoint)
    log = directory / "losses.csv"
    log.write_text(log.read_text().replace(",", ";"))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(InputError, match=r"losses\.csv: damaged .* separated by semicolons"):
        train(config(), SHAPES, directory, resume=True)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    log.unlink()
    assert train(config(), SHAPES, directory, resume=True, note=notes.append).step == 6
    assert f"{log} lacks the losses of 4 of the 4 steps done" in notes
    losses = read_losses(log)
    assert losses["step"].tolist() == [5, 6]
    loss_curves(losses, tmp_path / "losses.png")


def test_curves_of_nothing_are_drawn_all_the_same(tmp_path):
    for log in ({}, {"step": np.arange(2.0)}, {"step": np.arange(2.0), "loss": np.full(2, np.nan)}):
        loss_curves(log, tmp_path / "losses.png")
        assert (tmp_path / "losses.png").stat().st_size > 1000


@needs_links
def test_a_checkpoint_that_is_a_circle_of_links_is_named_whether_or_not_resumed(tmp_path):
    (tmp_path / "checkpoint.npz").symlink_to(tmp_path / "checkpoint.npz")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"checkpoint\.npz: is a symbolic link that leads back"):
            train(config(), SHAPES, tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_what_could_not_be_loaded_again_is_refused_before_anything_is_written(tmp_path):
    class Named(StoppingAt):
        class_names = ("a\n", "b", "c")

    with pytest.raises(InputError, match=r"class_names must be .*change them"):
        train(config(), Named(SHAPES, 0, 0), tmp_path)
    wide = dataclasses.replace(config(), train=dataclasses.replace(config().train, seed=2**70))
    with pytest.raises(InputError, match=r"train\.seed must be a whole number of 64 bits"):
        train(wide, SHAPES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_random_change_of_images_can_be_configured():
    changed = config("data.rotate90=true", "data.scale=0.5,2", "data.contrast=0.25", "data.crop=32")
    expected = Augmentation(crop=32, flip_horizontal=True, rotate90=True, scale=(0.5, 2.0), contrast=0.25)
    assert augmentation(changed.data) == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["train.schedule=step"], "train.schedule is 'step', and train.milestones is empty: .* never falls"),
        (["train.schedule=step", "train.milestones=6, 9"], "lie beyond the last step, 6: .* never falls"),
        (["train.milestones=3"], "train.milestones are only for train.schedule 'step'; it is 'cosine'"),
        (["train.schedule=step", "train.milestones=3, 9"], None),
        (["train.schedule=constant"], None),
    ],
)
def test_a_schedule_of_steps_that_has_none_gets_a_note(settings, words):
    line = loop.without_a_fall(config(*settings).train)
    assert line is None if words is None else re.fullmatch(f".*{words}", line)


def test_the_note_of_the_schedule_comes_before_the_first_step(tmp_path):
    lines = []
    train(config("train.steps=1", "train.schedule=step"), SHAPES, tmp_path / "run", note=lines.append)
    assert "never falls" in lines[0] and len(lines) == 2
