"""The command does what its help says: train, evaluate, predict, and what the files then hold."""

import io
import json
import signal
import sys
import time

import numpy as np
import pytest
from PIL import Image

from minimask.command import cli
from minimask.config import read_config
from minimask.data import nuclei_sample, read_coco
from minimask.training.progress import Progress
from minimask.weights.checkpoint import load_checkpoint
from tests.cli_data import command, make_dataset
from tests.systems import needs_signals

FEW = [
    "--set",
    "train.steps=3",
    "--set",
    "data.crop=48",
    "--set",
    "train.batch_size=1",
    "--set",
    "model.detections=5",
]


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a data set and, in run/, three steps of training on it."""
    directory = tmp_path_factory.mktemp("trained")
    make_dataset(directory)
    data = ["--data", directory / "train.json", "--images", directory / "images"]
    arguments = ["train", *data, "--val", directory / "train.json", *FEW, "--output", directory / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return directory


def test_training_leaves_checkpoint_configuration_losses_and_metrics(trained):
    files = {path.name for path in (trained / "run").iterdir()}
    assert files == {
        "checkpoint.npz",
        "config.toml",
        "losses.csv",
        "log.jsonl",
        "curves.png",
        "detections.json",
        "metrics.json",
        "report.html",
    }
    config = read_config(str(trained / "run" / "config.toml"))
    assert config.train.steps == 3 and config.data.train == str(trained / "train.json")
    metrics = json.loads((trained / "run" / "metrics.json").read_text())
    assert set(metrics["mask"]) == {"AP", "AP50", "AP75", "small", "medium", "large"}


def test_the_written_configuration_repeats_the_run(trained, tmp_path, capsys):
    run(capsys, "train", "--config", trained / "run" / "config.toml", "--output", tmp_path / "again")
    for name in ("checkpoint.npz", "losses.csv", "detections.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / "run" / name).read_bytes()


def test_a_resumed_run_needs_no_other_arguments_from_any_directory(trained, tmp_path, capsys, monkeypatch):
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    monkeypatch.chdir(trained)
    data = ["--data", "train.json", "--images", "images", "--val", "train.json"]
    run(capsys, "train", *data, *FEW, "--set", "train.steps=2", "--output", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--resume", "--set", "train.steps=4", "--output", "run"]) == 0
    assert "train.steps is 4, was 2" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz").step == 4


def test_evaluate_writes_results_that_the_metrics_come_from(trained, tmp_path, capsys):
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    weights = ["--weights", trained / "run" / "checkpoint.npz"]
    out = run(capsys, "evaluate", *weights, *data, "--max-detections", 7, "--output", tmp_path / "out")
    assert "7 detections an image" in out and "AP50" in out
    detections = json.loads((tmp_path / "out" / "detections.json").read_text())
    counts = np.unique([found["image_id"] for found in detections], return_counts=True)[1]
    assert detections and counts.max() <= 7
    assert set(detections[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["max_detections"] == 7


def test_predict_writes_pictures_label_maps_and_a_document_that_reads_back(trained, tmp_path, capsys):
    images = [trained / "images" / "1.png", trained / "images" / "2.png"]
    weights = ["--weights", trained / "run" / "checkpoint.npz", "--score-threshold", "0"]
    arguments = ["predict", *images, *weights, "--json", "--label-maps", "--output", tmp_path / "out"]
    out = run(capsys, *arguments)
    assert out.count("5 objects") == 2
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.json"} | {
        f"{stem}-{kind}.png" for stem in "12" for kind in ("instances", "ids", "classes")
    }
    with (
        Image.open(tmp_path / "out" / "1-ids.png") as ids,
        Image.open(tmp_path / "out" / "1-classes.png") as classes,
    ):
        assert ids.size == classes.size == (64, 64)
        np.testing.assert_array_equal(np.asarray(ids) > 0, np.asarray(classes) > 0)
    back = read_coco(tmp_path / "out" / "predictions.json", trained / "images")
    assert len(back) == 2 and back.class_names == ("circle", "square", "triangle")


def test_predict_without_any_object_writes_a_picture_all_the_same(trained, tmp_path, capsys):
    weights = ["--weights", trained / "run" / "checkpoint.npz", "--score-threshold", "1"]
    out = run(
        capsys, "predict", trained / "images" / "1.png", *weights, "--json", "--output", tmp_path / "out"
    )
    assert "0 objects" in out and (tmp_path / "out" / "1-instances.png").exists()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"] == []


@needs_signals
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(number, status, tmp_path, capsys):
    output = tmp_path / "my run"
    process = command(
        "train", "--data", "shapes", *FEW, "--set", "train.steps=5000", "--output", output, "--device", "cpu"
    )
    log = output / "losses.csv"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == status, err
    assert f"go on with: minimask train --resume --output '{output}' --device cpu" in err
    assert load_checkpoint(output / "checkpoint.npz").step >= 2
    assert "Traceback" not in err and out == ""


@pytest.mark.parametrize(
    "name", [None, "demo", "train", "evaluate", "predict", "convert", "check-data", "gradcheck", "info"]
)
def test_every_command_has_help_that_fits_a_terminal(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    out = run(capsys, *filter(None, [name]), "--help")
    assert out.startswith("usage: minimask") and len(out) > 250
    assert max(map(len, out.splitlines())) <= 120


def test_info_names_what_numbers_depend_on(capsys):
    out = run(capsys, "info")
    for word in ("minimask", "python", "numpy", "blas", "threads", "gpu", "pycocotools"):
        assert any(line.startswith(word) for line in out.splitlines()), word


def test_gradcheck_checks_what_is_named_and_knows_near_names(capsys):
    assert "RoIPool" in run(capsys, "gradcheck", "roi_pool")
    assert cli.main(["gradcheck", "roi_pol"]) == 2
    assert "RoIPool" in capsys.readouterr().err


def test_a_failed_gradient_check_is_status_1(monkeypatch, capsys):
    monkeypatch.setattr("minimask.lessons.gradient_cases.run_table", lambda names, out: False)
    assert cli.main(["gradcheck"]) == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    monkeypatch.setattr(sys, "stderr", Screen())
    with Progress(5, "training", done=2) as progress:
        for _ in range(3):
            progress.update(2, "loss 1.00")
    text = sys.stderr.getvalue()
    assert "training" in text and "5/5" in text and "images/s, " in text and "00:00 left" in text
    assert ("100% |" in text) == terminal and text.count("\n") == 1


def test_version_is_printed(capsys):
    assert run(capsys, "--version").startswith("minimask ")


@pytest.mark.slow
def test_the_demo_leaves_pictures_curves_checkpoint_and_results(tmp_path, capsys, monkeypatch):
    from minimask.command import demo

    quick = demo.configuration(quick=True, seed=3)
    assert quick.train.seed == 3
    few = demo.replace(quick, train=demo.replace(quick.train, steps=2))
    monkeypatch.setattr(demo, "configuration", lambda *_: few)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "checkpoint.npz").write_text("of an earlier demo")
    out = run(capsys, "demo", "--quick", "--output", tmp_path / "demo")
    assert "box AP " in out and "mask AP " in out and str(tmp_path / "demo" / "predictions.png") in out
    files = {"at-once.png", "predictions.png", "losses.png", "checkpoint.npz"}
    files |= {"detections.json", "metrics.json"}
    assert out.index("at-once.png") < out.index("from random weights") < out.index("box AP ")
    assert files <= {path.name for path in (tmp_path / "demo").iterdir()}
    assert load_checkpoint(tmp_path / "demo" / "checkpoint.npz").step == 2
    assert len(nuclei_sample("val")) >= demo.PICTURES


@pytest.mark.slow
def test_the_quick_demo_finds_nuclei(tmp_path):
    process = command("demo", "--quick", "--output", tmp_path / "demo")
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert float(out.split("(AP50 ")[1].split(")")[0]) > 0.05


# ---------------------------------------------------------------------------------- one limit of detections


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set whose first image has 12 objects, and a run with a limit of 7 on it."""
    directory = tmp_path_factory.mktemp("many")
    document = make_dataset(directory)
    first = document["annotations"][0]
    extra = [first | {"id": 1000 + i} for i in range(12)]
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 1] + extra
    (directory / "train.json").write_text(json.dumps(document))
    data = ["--data", directory / "train.json", "--images", directory / "images"]
    few = [*FEW, "--set", "model.detections=7", "--set", "model.score_threshold=0"]
    arguments = ["train", *data, "--val", directory / "train.json", *few, "--output", directory / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return directory


@pytest.mark.slow
def test_one_limit_holds_for_the_evaluation_after_training_for_evaluate_and_for_predict(
    many, tmp_path, capsys
):
    data = ["--data", many / "train.json", "--images", many / "images"]
    weights = ["--weights", many / "run" / "checkpoint.npz"]
    out = run(capsys, "evaluate", *weights, *data, "--output", tmp_path / "out")
    assert "7 detections an image" in out
    for name in ("metrics.json", "detections.json"):
        assert (tmp_path / "out" / name).read_text() == (many / "run" / name).read_text()
    assert json.loads((many / "run" / "metrics.json").read_text())["max_detections"] == 7
    image = many / "images" / "1.png"
    shown = [*weights, "--score-threshold", "0", "--output", tmp_path / "out"]
    assert "7 objects" in run(capsys, "predict", image, *shown)
    assert "9 objects" in run(capsys, "predict", image, *shown, "--max-detections", 9)


def test_more_objects_than_the_limit_get_a_note(many, tmp_path, capsys):
    data = ["--data", many / "train.json", "--images", many / "images"]
    weights = ["--weights", many / "run" / "checkpoint.npz"]
    words = "1 image has more objects than the 7 detections that each may have, so some cannot be found; the "
    words += "most, 12, are in train.json: image 1 (1.png)."
    evaluated = ["evaluate", *weights, *data, "--output", tmp_path / "out"]
    assert cli.main([str(part) for part in evaluated]) == 0
    assert f"minimask: note: {words}" in capsys.readouterr().err
    assert cli.main([str(part) for part in [*evaluated, "--max-detections", 12]]) == 0
    assert "more objects" not in capsys.readouterr().err
    limit = ["--set", "model.detections=7"]
    assert cli.main([str(part) for part in ["train", *data, *FEW, *limit, "--output", tmp_path / "run"]]) == 0
    assert words in capsys.readouterr().err
    shown = ["predict", many / "images" / "1.png", *weights, "--score-threshold", 0, "--output", tmp_path]
    assert cli.main([str(part) for part in shown]) == 0
    assert "1.png: may have more objects than the 7 shown" in capsys.readouterr().err


# ------------------------------------------------------------------------------- inputs, outputs, their order


def test_a_pattern_that_the_shell_left_as_it_is_names_the_files_that_fit(trained, tmp_path, capsys):
    weights = ["--weights", trained / "run" / "checkpoint.npz", "--output", tmp_path]
    out = run(capsys, "predict", trained / "images" / "[12].png", *weights)
    assert out.count(" objects, ") == 2 and (tmp_path / "2-instances.png").exists()
    (tmp_path / "a[1].png").write_bytes((trained / "images" / "1.png").read_bytes())
    assert "a[1].png: " in run(capsys, "predict", tmp_path / "a[1].png", *weights)
