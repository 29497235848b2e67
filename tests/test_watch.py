"""Watching a run changes nothing in it, survives every kind of end, and ends it early when asked to."""

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from minimask.command import watching
from minimask.config import Config, TrainConfig, with_settings
from minimask.data import Batches, Shapes
from minimask.errors import InputError
from minimask.results import validation
from minimask.results.validation import Part, kept, save_sheet, sheet, spread
from minimask.training import loop
from minimask.training.loop import goes_on, train
from minimask.training.progress import Progress
from minimask.training.run_log import RunLog, read_run_log
from minimask.training.watch import Rarely, Watch
from minimask.weights.checkpoint import load_checkpoint
from tests.systems import needs_signals

SHAPES = Shapes(4, seed=3, size=64)
SETTINGS = [
    "train.steps=6",
    "train.save_every=4",
    "train.warmup_steps=2",
    "data.crop=32",
    "train.batch_size=1",
]
EVERY = ["train.validate_every=2"]


def config(*settings):
    return with_settings(Config(), [*SETTINGS, *settings])


class Scores:
    """A `validate` that says what it is told to, by step; it draws numbers and moves weights about."""

    def __init__(self, scores, at=None):
        self.scores, self.at, self.steps = scores, at or {}, []

    def __call__(self, model, step, go_on):
        if not go_on(0, 1):
            return None
        np.random.default_rng().random(3)
        model.predict([np.full((3, 40, 40), 0.5, np.float32)])
        self.steps.append(step)
        self.at.get(step, lambda: None)()
        return {"by": "mask AP", "score": self.scores.get(step, 0.0), "mask": {"AP": 0.1}}


def run(directory, scores, *settings, at=None, resume=False, note=lambda line: None):
    validate = Scores(scores, at)
    settings = config(*EVERY, *settings)
    outcome = train(settings, SHAPES, directory, resume=resume, note=note, watch=Watch(validate))
    return outcome, validate.steps


def validations(directory):
    return [row for row in read_run_log(directory / "log.jsonl") if "validation" in row]


def same_weights(a, b):
    ours, theirs = load_checkpoint(a), load_checkpoint(b)
    assert ours.step == theirs.step
    for group in ("parameters", "momentum"):
        mine, other = getattr(ours, group), getattr(theirs, group)
        assert list(mine) == list(other)
        assert all(mine[name].tobytes() == other[name].tobytes() for name in other)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that nobody watched."""
    directory = tmp_path_factory.mktemp("plain")
    train(config(), SHAPES, directory, note=lambda line: None)
    return directory


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run whose second of three validations is the best."""
    directory = tmp_path_factory.mktemp("watched")
    outcome, steps = run(directory, {2: 0.1, 4: 0.3, 6: 0.2})
    assert steps == [2, 4, 6] and outcome.best["step"] == 4 and not outcome.early
    return directory


def test_validation_changes_no_bit_of_training(plain, watched):
    same_weights(watched / "checkpoint.npz", plain / "checkpoint.npz")
    assert (watched / "losses.csv").read_bytes() == (plain / "losses.csv").read_bytes()
    assert not (plain / "best.npz").exists()


def test_the_best_weights_are_those_after_their_step_and_come_without_momentum(watched, tmp_path):
    best = load_checkpoint(watched / "best.npz")
    assert best.step == 4 and not best.momentum
    train(config("train.steps=4", "train.schedule=constant"), SHAPES, tmp_path / "a", note=lambda line: None)
    run(tmp_path / "b", {2: 0.1, 4: 0.3, 6: 0.2}, "train.schedule=constant")
    ours, theirs = (load_checkpoint(tmp_path / name) for name in ("b/best.npz", "a/checkpoint.npz"))
    assert all(ours.parameters[k].tobytes() == v.tobytes() for k, v in theirs.parameters.items())


def test_the_log_has_an_object_a_line_for_the_start_each_step_and_each_validation(watched):
    rows = [json.loads(line) for line in (watched / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert rows[0]["start"]["images"] == 4
    step = rows[1]
    assert (
        step["seconds"] > 0 and step["images_per_second"] > 0 and re.match(r"\d{4}-\d\d-\d\dT", step["time"])
    )
    assert {"loss", "loss_mask", "learning_rate", "gradient_norm"} <= step.keys()
    assert rows[3]["validation"]["score"] == 0.1 and rows[3]["validation"]["seconds"] >= 0


def _killed(directory, scores, step, when):
    """In a process of its own: a run that ends by kill -9 around the validation of a step."""
    from minimask.training import keeper, run_log

    write, save = run_log.RunLog.write, keeper.Keeper.save_best
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731

    def write_or_die(log, at, values):
        if at == step and "validation" in values:
            kill()
        write(log, at, values)

    def save_or_die(k):
        if k.done == step and when == "before best.npz":
            kill()
        save(k)
        if k.done == step:
            kill()

    if when == "before the line":
        run_log.RunLog.write = write_or_die
    if when in ("before best.npz", "after it"):
        keeper.Keeper.save_best = save_or_die
    run(directory, scores, at={step: kill} if when == "validating" else None)


def killed_in(*arguments):
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@needs_signals
@pytest.mark.parametrize(
    "when",
    [
        "validating",
        pytest.param("before the line", marks=pytest.mark.slow),
        "before best.npz",
        pytest.param("after it", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_killed_around_a_validation_the_resumed_run_ends_as_the_unbroken_one(step, when, watched, tmp_path):
    scores = {2: 0.1, 4: 0.3, 6: 0.2} if step == 4 else {2: 0.1, 4: 0.3, 6: 0.4}
    if step == 6:
        watched = tmp_path / "whole"
        run(watched, scores)
    killed_in(tmp_path / "run", scores, step, when)
    outcome, steps = run(tmp_path / "run", scores, resume=True)
    assert outcome.step == 6 and outcome.best["step"] == step
    assert (step in steps) == (when in ("validating", "before the line")), "made up for, and not made twice"
    for name in ("checkpoint.npz", "best.npz"):
        same_weights(tmp_path / "run" / name, watched / name)
        assert (tmp_path / "run" / name).read_bytes() == (watched / name).read_bytes()
    assert (tmp_path / "run/losses.csv").read_bytes() == (watched / "losses.csv").read_bytes()
    ours, theirs = (validations(d) for d in (tmp_path / "run", watched))
    assert [(r["step"], r["validation"]["score"]) for r in ours] == [
        (r["step"], r["validation"]["score"]) for r in theirs
    ]


def test_early_stop_waits_as_often_as_asked_and_is_remembered(tmp_path):
    scores = {1: 0.3, 2: 0.2, 3: 0.29, 4: 0.9}
    settings = ["train.validate_every=1", "train.patience=2", "train.steps=8"]
    outcome, steps = run(tmp_path / "run", scores, *settings)
    assert outcome.early and outcome.step == 3 and steps == [1, 2, 3] and outcome.stopped_by is None
    again, steps = run(tmp_path / "run", scores, *settings, resume=True)
    assert again.early and again.step == 3 and steps == []
    on, steps = run(tmp_path / "run", scores, *settings, "train.patience=3", "train.steps=5", resume=True)
    assert not on.early and on.step == 5 and on.best["step"] == 4 and steps == [4, 5]


def test_a_signal_while_validating_leaves_it_and_the_resumed_run_makes_up_for_it(watched, tmp_path):
    scores = {2: 0.1, 4: 0.3, 6: 0.2}
    sent = iter([lambda: signal.raise_signal(signal.SIGTERM)])

    class Interrupted(Scores):
        def __call__(self, model, step, go_on):
            if step == 6:
                next(sent, lambda: None)()
            return super().__call__(model, step, go_on)

    given = config(*EVERY)
    quiet = lambda line: None  # noqa: E731
    outcome = train(given, SHAPES, tmp_path / "run", note=quiet, watch=Watch(Interrupted(scores)))
    assert (
        outcome.stopped_by == signal.SIGTERM and outcome.step == 6 and len(validations(tmp_path / "run")) == 2
    )
    outcome, steps = run(tmp_path / "run", scores, resume=True)
    assert outcome.stopped_by is None and steps == [6]
    same_weights(tmp_path / "run/checkpoint.npz", watched / "checkpoint.npz")


def test_a_best_that_is_lost_is_said_and_the_next_one_is_kept(watched, tmp_path):
    shutil.copytree(watched, tmp_path / "run")
    (tmp_path / "run/best.npz").unlink()
    notes = []
    more = {8: 0.15, 10: 0.1}
    outcome, _ = run(tmp_path / "run", more, "train.steps=10", resume=True, note=notes.append)
    assert any("best.npz is not of step 4" in line for line in notes)
    assert outcome.best["step"] == 8 and load_checkpoint(tmp_path / "run/best.npz").step == 8
    shutil.copytree(watched, tmp_path / "lost")
    (tmp_path / "lost/log.jsonl").unlink()
    notes.clear()
    run(tmp_path / "lost", more, "train.steps=8", resume=True, note=notes.append)
    told = "\n".join(notes)
    assert "log.jsonl lacks 6 of the 6 steps" in told and "of step 4, which is not in the log" in told


@pytest.mark.parametrize(
    "settings, watch, words",
    [
        (["train.patience=2"], None, "train.patience does nothing: there is no data.val to validate on"),
        (EVERY, None, "train.validate_every does nothing: there is no data.val"),
        (["train.patience=2"], Watch(Scores({})), "train.patience does nothing: train.validate_every is 0"),
    ],
)
def test_what_does_nothing_without_validation_is_said(settings, watch, words, tmp_path):
    notes = []
    train(config(*settings, "train.steps=1"), SHAPES, tmp_path, note=notes.append, watch=watch)
    assert any(words in line for line in notes)


def test_curves_are_drawn_after_saves_and_change_no_bit(plain, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loop, "Rarely", lambda call: call)

    def draw():
        drawn.append(watching.draw_curves(tmp_path).read_bytes())

    train(config(), SHAPES, tmp_path, note=lambda line: None, watch=Watch(draw=draw))
    assert len(drawn) == 2 and drawn[0] != drawn[1] and drawn[0].startswith(b"\x89PNG")
    same_weights(tmp_path / "checkpoint.npz", plain / "checkpoint.npz")


def test_an_error_in_a_validation_names_it_and_loses_nothing(tmp_path):
    def fails():
        raise InputError("val.json: image 3 is damaged")

    with pytest.raises(
        InputError, match=r"in the validation after step 4: val.json: image 3 .*of step 4; mend"
    ):
        run(tmp_path / "run", {}, at={4: fails})
    assert load_checkpoint(tmp_path / "run/checkpoint.npz").step == 4


# --------------------------------------------------------------------------------------------------- log


def test_lines_beyond_the_checkpoint_and_a_torn_one_are_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1.0 / step, "seconds": 0.1})
        log.write(3, {"validation": {"score": 0.5}})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read_run_log(path)] == [1, 2, 3, 3]
    notes = []
    with RunLog(path, 2, note=notes.append) as log:
        assert log.validations == [] and notes == []
        log.write(3, {"loss": 0.25, "seconds": 0.1})
    assert [row.get("loss") for row in read_run_log(path)] == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[1]",
        '{"step": "2"}',
        '{"step": -1}',
        '{"step": 2, "validation": 3}',
        '{"step": 2, "validation": {"score": "high"}}',
        '{"step": 2, "validation": {"score": NaN}}',
        '{"step": 2, "loss": "low"}',
        '{"step": 2, "seconds": ' + "9" * 400 + "}",
        "[" * 100_000,
        '{"step": 0}',
        "\0\0\0",
        '{"step": 2, "name": "\udcff"}',
    ],
    ids=range(13),
)
def test_a_damaged_line_is_named_with_its_mend_and_stays(line, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n', errors="surrogateescape")
    before = path.read_bytes()
    for read in (lambda: RunLog(path, 3), lambda: read_run_log(path)):
        with pytest.raises(InputError, match=r"log.jsonl: damaged \(line 2 .*move it away") as caught:
            read()
        assert len(str(caught.value)) < 400
    assert path.read_bytes() == before


# -------------------------------------------------------------------------------- schedule, steps, drawing


def test_raising_the_steps_of_a_finished_run_says_what_the_learning_rate_does(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "run")
    notes = []
    outcome = train(config("train.steps=8"), SHAPES, tmp_path / "run", resume=True, note=notes.append)
    assert outcome.step == 8
    (line,) = [line for line in notes if "learning rate was" in line]
    assert "train.steps is 8, was 6: " in line and "in step 6, and rises to" in line and "by step 8" in line
    rates = [row["learning_rate"] for row in read_run_log(tmp_path / "run/log.jsonl") if "loss" in row]
    before, after = (float(x) for x in re.search(r"was (\S+) in step 6, and rises to (\S+)", line).groups())
    assert before == pytest.approx(rates[5], rel=0.01) and after == pytest.approx(rates[6], rel=0.01)


def test_what_other_numbers_of_steps_make_of_the_rate_depends_on_the_schedule():
    options = {"learning_rate": 0.02, "reference_batch": 2, "batch_size": 2, "warmup_steps": 0}
    constant = [TrainConfig(**options, steps=n, schedule="constant") for n in (10, 20)]
    assert "and is 0.02 in step 11" in goes_on(*constant, 10)
    cosine = [TrainConfig(**options, steps=n) for n in (10, 20)]
    assert "rises to 0.01 in step 11, to fall to 0 by step 20" in goes_on(*cosine, 10)
    assert "and falls to" in goes_on(*cosine[::-1], 5)
    assert goes_on(cosine[0], cosine[0], 5) is None and goes_on(*cosine, 0) is None


def test_what_is_drawn_on_the_way_takes_a_hundredth_of_the_time(monkeypatch):
    from minimask.training import watch

    clock = SimpleNamespace(now=0.0, drawn=0)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock.now)

    def draw():
        clock.now += 2.0
        clock.drawn += 1

    rarely = Rarely(draw)
    for _ in range(10_000):
        clock.now += 1.0
        rarely()
    assert 40 <= clock.drawn <= 51 and 2 * clock.drawn <= 0.0105 * clock.now


# ------------------------------------------------------------------------------------------------- sheets


def test_a_part_of_a_data_set_is_its_images_evenly_spaced():
    assert spread(10, 0) == list(range(10)) and spread(3, 9) == [0, 1, 2] and spread(10, 4) == [0, 2, 5, 7]
    part = Part(SHAPES, spread(len(SHAPES), 2))
    document = part.coco_document()
    assert [image["id"] for image in document["images"]] == list(part.image_ids) == [1, 3]
    assert {a["image_id"] for a in document["annotations"]} <= {1, 3} and len(part) == 2
    assert np.array_equal(part.image(1), SHAPES.image(2))


def test_a_sheet_shows_truth_beside_what_was_found_and_few_sheets_are_kept(tmp_path):
    document = SHAPES.coco_document()
    found = [a | {"score": 0.9} for a in document["annotations"]]
    picture = sheet(SHAPES, document, found, "after step 2")
    pixels = np.asarray(picture)
    side, gap = validation._SIDE, validation._GAP
    left, right = pixels[40:200, gap : gap + side], pixels[40:200, 2 * gap + side : 2 * (gap + side)]
    assert not np.array_equal(left, pixels[40:200, :side]) and left.std() > 10 and right.std() > 10
    for step in range(20, 20 * 41, 20):
        save_sheet(tmp_path / "validation", step, picture.resize((8, 8)))
    names = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert len(names) <= validation.MOST and "step-000020.png" in names and names[-1] == "step-000800.png"
    steps = [int(name[5:11]) for name in names]
    assert kept(range(20, 20 * 41, 20)) == set(steps)


def test_the_command_validates_draws_sheets_and_leaves_when_asked_to(tmp_path):
    validator = watching.Validator(config("train.validation_images=2"), SHAPES, tmp_path, pytest.fail)
    model = load_model()
    assert (
        validator(model, 2, lambda done, total: done < 1) is None and not (tmp_path / "validation").exists()
    )
    found = validator(model, 2, lambda done, total: True)
    assert found["by"] == "mask AP" and found["images"] == 2 and set(found["mask"]) >= {"AP", "AP50"}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [path.name for path in (tmp_path / "validation").iterdir()] == ["step-000002.png"]
    assert validator.best is None, "an evaluation of a part is not the one at the end"


def load_model():
    from minimask.models.networks import build_model, resolved

    return build_model(resolved(config()), len(SHAPES.class_names) + 1, "cpu").eval()


# ------------------------------------------------------------------------------------------ which images


class Sized:
    """A data set of which only sizes are asked for; every third image is tall."""

    name = "sized"

    def __len__(self):
        return 31

    def outline(self, index):
        return (60, 40, np.zeros((0, 4))) if index % 3 == 0 else (40, 60, np.zeros((0, 4)))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 16, 40])
def test_grouped_by_aspect_an_epoch_still_has_every_image_once_and_few_batches_are_mixed(size):
    batches, epochs = Batches(Sized(), size, seed=1, by_aspect=True), 8
    steps = [batches.indices(step) for step in range(-(-31 * epochs // size))]
    places = [index for step in steps for index in step][: 31 * epochs]
    for epoch in range(epochs):
        assert sorted(places[31 * epoch : 31 * (epoch + 1)]) == list(range(31))
    mixed = sum(len({index % 3 == 0 for index in step}) > 1 for step in steps)
    assert mixed <= 2 * epochs + 1
    parts = [Batches(Sized(), size, seed=1, part=range(i, i + 1), by_aspect=True) for i in range(size)]
    assert [part.indices(3)[0] for part in parts] == steps[3] if len(steps) > 3 else True
    assert batches.indices(0) == steps[0], "whatever was asked for before"


def test_without_grouping_the_order_is_the_one_there_always_was():
    plain = Batches(Sized(), 4, seed=1)
    assert plain.indices(5) == Batches(Sized(), 4, seed=1, by_aspect=False).indices(5)
    grouped = Batches(Sized(), 4, seed=1, by_aspect=True)
    assert any(plain.indices(step) != grouped.indices(step) for step in range(7))
    assert Batches(SHAPES, 2, seed=1, by_aspect=True).indices(1) == Batches(SHAPES, 2, seed=1).indices(1)


def test_grouping_that_does_nothing_is_said(tmp_path):
    notes = []
    train(config("data.group_by_aspect=true", "train.steps=1"), SHAPES, tmp_path, note=notes.append)
    assert any("group_by_aspect does nothing" in line for line in notes)


def test_images_without_objects_are_trained_on():
    class Emptied:
        """Every picture twice: as it is, and with nothing annotated."""

        def __getattr__(self, name):
            return getattr(SHAPES, name)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            sample = SHAPES[index // 2]
            if index % 2 == 0:
                return sample
            none = {"boxes": sample.boxes[:0], "labels": sample.labels[:0], "masks": sample.masks[:0]}
            return type(sample)(**vars(sample) | none)

        def describe(self, index):
            return f"image {index}"

    batches = Batches(Emptied(), 1, seed=0)
    samples = [batches(step)[0] for step in range(8)]
    assert sorted(len(sample.boxes) == 0 for sample in samples) == [False] * 4 + [True] * 4


def test_crowd_regions_are_ignored_and_are_no_background():
    model = load_model()
    model.train()
    image = SHAPES[0].image
    nothing = {"boxes": np.zeros((0, 4), np.float32), "labels": np.zeros(0, np.int64)}
    nothing |= {"masks": np.zeros((0, 64, 64), np.uint8), "crowd_masks": np.ones((1, 64, 64), np.uint8)}
    background = model.loss([image], [nothing | {"crowd_boxes": np.zeros((0, 4), np.float32)}])
    crowd = model.loss([image], [nothing | {"crowd_boxes": np.array([[-64, -64, 128, 128]], np.float32)}])
    assert float(background["loss_objectness"].data) > 0 and float(background["loss_classifier"].data) > 0
    assert float(crowd["loss_objectness"].data) == 0 and float(crowd["loss_classifier"].data) == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_a_validation_is_told_above_the_bar_and_takes_no_time_of_the_steps(terminal, monkeypatch):
    class Output(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Output())
    with Progress(10, "training") as progress:
        progress.update(1)
        began = progress.began
        progress.show("validating 3/9")
        progress.pause(50.0)
        progress.say("validation after step 1: mask AP 0.100")
        assert progress.began == began + 50.0
    said = sys.stderr.getvalue()
    assert "validation after step 1: mask AP 0.100\n" in said and ("validating 3/9" in said) == terminal
