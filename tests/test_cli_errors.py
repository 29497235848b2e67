"""What bad input gets: one line that names it, status 2, no traceback, and nothing written."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minimask import models
from minimask.command import cli
from minimask.config import Config, to_dict
from minimask.data import Shapes, images
from minimask.errors import InputError, OutOfMemory
from minimask.training import loop as training_loop
from minimask.weights.checkpoint import Checkpoint, save_checkpoint
from tests.cli_data import broken, command, make_dataset
from tests.systems import needs_links


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A directory with a valid data set, an untrained checkpoint and one of another model."""
    directory = tmp_path_factory.mktemp("good")
    make_dataset(directory)
    names, ids = ["circle", "square", "triangle"], [1, 2, 3]
    model = models.maskrcnn_small(4)
    whole = Checkpoint(model.state_dict(), {}, 0, 0, to_dict(Config()), names, ids, {}, {})
    save_checkpoint(directory / "weights.npz", whole)
    fewer = Checkpoint(model.state_dict(), {}, 0, 0, to_dict(Config()), names[:2], ids[:2], {}, {})
    save_checkpoint(directory / "two.npz", fewer)
    content = (directory / "weights.npz").read_bytes()
    (directory / "cut.npz").write_bytes(content[: len(content) // 2])
    return directory


def refused(capsys, *arguments) -> str:
    """Run the command; see that it refuses as it should; return its line."""
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 2, (status, out, err)
    assert err.startswith("minimask: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert out == "" and "Traceback" not in err
    return err.removeprefix("minimask: ").rstrip()


def first(key):
    return lambda document: document[key][0]


def in_annotation(**values):
    return lambda document: document["annotations"][0].update(values)


def in_image(**values):
    return lambda document: document["images"][0].update(values)


CORNERS = [20.0, 30.0, 50.0, 55.0]
DOCUMENTS = {
    "no images": (lambda d: d.pop("images"), ["'images'"]),
    "no annotations": (lambda d: d.pop("annotations"), ["'annotations'"]),
    "images is no list": (lambda d: d.update(images={}), ["'images' must be a list"]),
    "duplicate image id": (lambda d: d["images"][1].update(id=1), ["image 1", "twice"]),
    "duplicate annotation id": (lambda d: d["annotations"][1].update(id=1), ["annotation 1", "twice"]),
    "annotation without image": (in_annotation(image_id=99), ["annotation 1", "99"]),
    "unknown category": (in_annotation(category_id=77), ["annotation 1", "77"]),
    "box of NaN": (in_annotation(bbox=[float("nan"), 1, 2, 3]), ["annotation 1", "bbox"]),
    "box of three": (in_annotation(bbox=[1, 2, 3]), ["annotation 1", "bbox"]),
    "box of text": (in_annotation(bbox=["a", 1, 2, 3]), ["annotation 1", "bbox"]),
    "odd polygon": (in_annotation(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), ["annotation 1", "odd"]),
    "polygon of NaN": (in_annotation(segmentation=[[1, 2, float("nan"), 4, 5, 6]]), ["annotation 1"]),
    "polygon far outside": (in_annotation(segmentation=[[1, 2, 1e9, 4, 5, 6]]), ["annotation 1", "outside"]),
    "mask of another size": (
        in_annotation(segmentation={"size": [9, 9], "counts": [40, 41]}),
        ["annotation 1", "9"],
    ),
    "file name that leads out": (in_image(file_name="../../etc/passwd"), ["image 1", "../../etc/passwd"]),
    "absolute file name": (in_image(file_name="/etc/passwd"), ["image 1", "/etc/passwd"]),
    "missing image": (in_image(file_name="none.png"), ["none.png"]),
    "no objects": (lambda d: d["annotations"].clear(), ["no object"]),
    "no image": (lambda d: (d["images"].clear(), d["annotations"].clear()), ["'images' is empty"]),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_bad_annotation_file_is_refused_by_name_and_id(name, good, tmp_path, capsys):
    change, words = DOCUMENTS[name]
    path, output = tmp_path / "bad.json", tmp_path / "run"
    path.write_text(broken(json.loads((good / "train.json").read_text()), change))
    line = refused(capsys, "train", "--data", path, "--images", good / "images", "--output", output)
    assert "bad.json" in line and all(word in line for word in words), line
    assert not output.exists()


def test_boxes_given_as_corners_are_recognised(good, tmp_path, capsys):
    def to_corners(document):
        for annotation in document["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]

    path = tmp_path / "corners.json"
    path.write_text(broken(json.loads((good / "train.json").read_text()), to_corners))
    line = refused(capsys, "train", "--data", path, "--images", good / "images", "--output", tmp_path / "run")
    assert "x1, y1, x2, y2" in line and "annotation" in line


@pytest.mark.parametrize(
    "text, words",
    [("{", "is not JSON"), ("[1, 2]", "COCO"), ("", "is not JSON"), ("\xff\x00", "is not JSON")],
)
def test_a_file_that_is_not_coco_is_refused(text, words, good, tmp_path, capsys):
    (tmp_path / "bad.json").write_bytes(text.encode("latin-1"))
    data = ["--data", tmp_path / "bad.json", "--images", good / "images"]
    assert words in refused(capsys, "train", *data, "--output", tmp_path / "run")
    weights = ["--weights", good / "weights.npz"]
    assert words in refused(capsys, "evaluate", *weights, *data, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_annotations_without_area_are_dropped_and_counted_or_an_error_when_strict(good, tmp_path, capsys):
    path = tmp_path / "flat.json"
    document = json.loads((good / "train.json").read_text())
    flat = [dict(document["annotations"][0], id=900 + i, bbox=[5, 5, 0, 9]) for i in range(3)]
    path.write_text(broken(document, lambda d: d["annotations"].extend(flat)))
    data = ["train", "--data", path, "--images", good / "images", "--output", tmp_path / "run"]
    line = refused(capsys, *data, "--strict")
    assert "3 of" in line and "900" in line
    few = ["--set", "train.steps=1", "--set", "data.crop=32"]
    assert cli.main([str(part) for part in [*data, *few]]) == 0
    assert "minimask: note: " in (err := capsys.readouterr().err) and "dropped 3 of" in err and "900" in err


def bad_images(directory):
    Image.new("RGB", (32, 32), "red").save(directory / "whole.png")
    content = (directory / "whole.png").read_bytes()
    (directory / "cut.png").write_bytes(content[: len(content) // 2])
    (directory / "text.png").write_text("hello")
    (directory / "empty.png").write_text("")
    (directory / "folder.png").mkdir()


@pytest.mark.parametrize("name", ["missing.png", "text.png", "empty.png", "folder.png"])
def test_a_bad_image_is_refused_before_the_weights_are_read(name, good, tmp_path, capsys):
    bad_images(tmp_path)
    arguments = ["predict", tmp_path / "whole.png", tmp_path / name, "--output", tmp_path / "out"]
    assert str(tmp_path / name) in refused(capsys, *arguments, "--weights", good / "cut.npz")
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_refused_in_its_turn_and_what_was_written_before_is_whole(
    good, tmp_path, capsys
):
    bad_images(tmp_path)
    paths = [tmp_path / "whole.png", tmp_path / "cut.png"]
    options = ["--weights", good / "weights.npz", "--json", "--output", tmp_path / "out"]
    line = refused(capsys, "predict", *paths, *options)
    assert str(tmp_path / "cut.png") in line and "truncated" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole-instances.png"]
    with Image.open(tmp_path / "out" / "whole-instances.png") as picture:
        picture.load()


def test_each_image_is_decoded_once(good, tmp_path, capsys, monkeypatch):
    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda path, *size: decoded.append(path) or decode(path, *size))
    paths = [good / "images" / "1.png", good / "images" / "2.png"]
    options = ["--weights", good / "weights.npz", "--output", tmp_path / "out"]
    assert cli.main([str(part) for part in ["predict", *paths, *options]]) == 0
    assert decoded == paths


@pytest.mark.parametrize("name", ["photo.png", "photo.eps"])
def test_a_picture_that_is_a_program_is_refused_by_predict_and_in_a_data_set(name, good, tmp_path, capsys):
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    )
    arguments = ["predict", tmp_path / name, "--weights", good / "weights.npz", "--output", tmp_path / "out"]
    assert f"{name}: is PostScript (EPS), which is not read" in refused(capsys, *arguments)
    path = tmp_path / "bad.json"
    path.write_text(broken(json.loads((good / "train.json").read_text()), in_image(file_name=name)))
    for file in (good / "images").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = ["--data", path, "--images", tmp_path, "--output", tmp_path / "out"]
    assert f"{name}: is PostScript (EPS), which is not read" in refused(capsys, "train", *data)
    assert not (tmp_path / "out").exists()


def test_an_image_too_large_for_its_masks_is_refused_before_the_weights_are_read(
    good, tmp_path, capsys, monkeypatch
):
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MEMORY", 99_999)
    arguments = ["predict", tmp_path / "a.png", "--weights", good / "cut.npz", "--output", tmp_path / "out"]
    for option in ("--json", "--label-maps"):
        assert "a.png: 100 x 100 pixels would take" in (line := refused(capsys, *arguments, option))
        assert "with --json or --label-maps" in line
    assert "cut.npz" in refused(capsys, *arguments)  # without them it is none of its faults


def test_what_surprises_in_an_image_is_noted_and_pillow_is_not_heard(good, tmp_path, capsys):
    values = np.linspace(0, 4095, 32 * 32).astype(np.uint16).reshape(32, 32)
    pages = [Image.fromarray(values), Image.fromarray(values)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    directory = int.from_bytes(content[4:8], "little")
    # The first tag's, the width's, number of values: Pillow warns that it expected one.
    extra = directory + 2 + 12 * (int.from_bytes(content[directory : directory + 2], "little") - 1)
    content[extra : extra + 8] = (
        (65000).to_bytes(2, "little") + (3).to_bytes(2, "little") + b"\xff\xff\xff\x0f"
    )
    (tmp_path / "b.tif").write_bytes(content)  # in which not every Pillow finds the second page
    arguments = [
        "predict",
        tmp_path / "a.tif",
        tmp_path / "b.tif",
        "--weights",
        good / "weights.npz",
        "--output",
        tmp_path / "out",
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0  # under pytest a warning is an error
    err = capsys.readouterr().err
    assert "a.tif: is an animation or has several pages, of which the first alone is read" in err
    assert "a.tif: uses only 12 of its 16 bits" in err
    assert "Warning" not in err and "Tag data" not in err


@pytest.mark.parametrize("size", [(1, 2000), (20000, 10)])
def test_thin_images_are_predicted_and_trained_on(size, good, tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "thin.png")
    height, width = size
    annotation = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [0, 0, width, height],
        "segmentation": [[0, 0, width, 0, width, height, 0, height]],
        "area": width * height,
        "iscrowd": 0,
    }
    document = {
        "images": [{"id": 1, "file_name": "thin.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "stripe"}],
        "annotations": [annotation],
    }
    (tmp_path / "train.json").write_text(json.dumps(document))
    thin = tmp_path / "images" / "thin.png"
    arguments = ["predict", thin, "--weights", good / "weights.npz", "--output", tmp_path / "out", "--json"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    data = ["--data", tmp_path / "train.json", "--images", tmp_path / "images"]
    few = ["--set", "train.steps=1", "--set", "train.batch_size=1", "--set", "data.crop=0"]
    arguments = ["train", *data, *few, "--output", tmp_path / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err


def test_two_images_whose_results_would_collide_are_refused(good, tmp_path, capsys):
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    paths = [tmp_path / "a.png", tmp_path / "a.jpg"]
    line = refused(capsys, "predict", *paths, "--weights", good / "weights.npz", "--output", tmp_path / "out")
    assert "a.jpg" in line and "a.png" in line


def test_weights_that_cannot_be_used_are_refused(good, tmp_path, capsys):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for path, words in [
        (good / "cut.npz", "damaged"),
        (good / "two.npz", "another model"),
        (good / "train.json", "is JSON, not weights"),
        (tmp_path / "other.npz", "not a checkpoint of minimask"),
        (tmp_path / "none.npz", "No such file"),
        (tmp_path, "Is a directory"),
    ]:
        line = refused(capsys, "predict", tmp_path / "a.png", "--weights", path, "--output", tmp_path / "out")
        assert str(path) in line and words in line
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_other_classes_is_not_evaluated(good, tmp_path, capsys):
    def rename(document):
        document["categories"][0]["name"] = "disc"

    (tmp_path / "disc.json").write_text(broken(json.loads((good / "train.json").read_text()), rename))
    data = ["--data", tmp_path / "disc.json", "--images", good / "images"]
    line = refused(capsys, "evaluate", "--weights", good / "weights.npz", *data, "--output", tmp_path / "out")
    assert "disc, square, triangle" in line and "circle, square, triangle" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["demo", "train", "evaluate", "predict"])
def test_devices_and_output_directories_are_checked_first(name, good, tmp_path, capsys, monkeypatch):
    data = ["--data", good / "train.json", "--images", good / "images"]
    arguments = {
        "demo": ["demo", "--quick"],
        "train": ["train", *data],
        "evaluate": ["evaluate", "--weights", good / "weights.npz", *data],
        "predict": ["predict", "--weights", good / "weights.npz", good / "images" / "1.png"],
    }[name]
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "is a file, not a directory" in refused(capsys, *arguments, "--output", output)
    assert (tmp_path / "file").read_text() == "mine"
    output = ["--output", tmp_path / "out"]
    assert "--device tpu: unknown device" in refused(capsys, *arguments, *output, "--device", "tpu")
    monkeypatch.setitem(sys.modules, "cupy", None)  # not installed
    line = refused(capsys, *arguments, *output, "--device", "cuda")
    assert line.startswith("--device cuda: CuPy is not installed; install minimask[cuda12]")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "COMMAND; see 'minimask --help'"),
        (["trian"], "invalid choice: 'trian'"),
        (["train"], "--output; see 'minimask train --help'"),
        (["train", "--output", "x"], "give --data FILE and --images DIR"),
        (["train", "--output", "x", "--data", "a.json"], "--images: missing"),
        (
            ["train", "--output", "x", "--data", "shapes", "--set", "train.stesp=3"],
            "did you mean train.steps?",
        ),
        (["train", "--output", "x", "--data", "shapes", "--config", "dmeo"], "demo, figures, nuclei, quick"),
        (["train", "--output", "x", "--resume"], "no checkpoint to resume"),
        (["demo", "--seed", "-1"], "--seed: must be a whole number from 0 up, is '-1'"),
        (["demo", "--fast"], "--fast: no such option; see 'minimask demo --help'"),
        (["demo", "--qick"], "--qick: no such option; did you mean --quick?; see 'minimask demo --help'"),
        (["predict", "a.png", "--ouput=x"], "--ouput: no such option; did you mean --output?"),
        (["--verison"], "--verison: no such option; did you mean --version?; see 'minimask --help'"),
        (["demo", "now"], "unrecognized arguments: now; see 'minimask COMMAND --help'"),
        (["predict", "--weights", "w", "--output", "x"], "IMAGE"),
        (["predict", "a.png", "--weights", "w", "--output", "x", "--score-threshold", "2"], "from 0 to 1"),
        (
            ["evaluate", "--weights", "w", "--data", "d", "--output", "x", "--max-detections", "0"],
            "from 1 up",
        ),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_debug_shows_where_an_error_was_raised(tmp_path, capsys):
    for arguments in (["--debug", "train", "--output", "x"], ["train", "--output", "x", "--debug"]):
        assert cli.main(arguments) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err and err.splitlines()[-1].startswith("minimask: train: give --data")


@pytest.mark.parametrize(
    "error, status, words",
    [
        (
            RuntimeError("oh"),
            1,
            "RuntimeError: oh: this is a bug in minimask, not a mistake of yours; --debug",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("2 TiB"), 2, "not enough memory: 2 TiB in commands.info; a smaller train.batch_size, "),
        (OutOfMemory("2 TiB in Conv2d.forward"), 2, "not enough memory: 2 TiB in Conv2d.forward; a smaller"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: Permission denied"),
    ],
)
def test_every_error_ends_in_one_line(error, status, words, monkeypatch, capsys):
    def report():
        raise error

    monkeypatch.setattr("minimask.backend.machine.report", report)
    assert cli.main(["info"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"minimask: {words}") and err.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(good):
    process = command("train", "--help")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() in (0, 141)  # 0 when all of it fitted into the pipe
    assert process.stderr.read() == ""
    process.stderr.close()


# ------------------------------------------------------------------------------------ what must not be lost


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--output", ""],
        ["train", "--data", "shapes", "--output", ""],
        ["train", "--data", "shapes", "--output", "x", "--val", ""],
        ["train", "--data", "shapes", "--output", "x", "--config", ""],
        ["evaluate", "--weights", "", "--data", "shapes", "--output", "x"],
        ["predict", "", "--weights", "w", "--output", "x"],
        ["misalign", "--image", "", "--output", "x"],
    ],
)
def test_an_empty_name_is_no_name(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "is empty; give a name" in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_an_empty_name_is_refused_in_python_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--output: is empty"):
        training_loop.train(Config(), Shapes(2, 0), "")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_demo_replaces_only_what_a_demo_has_made(good, tmp_path, monkeypatch, capsys):
    from minimask.command import demo

    quick = demo.configuration(quick=True)
    few = demo.replace(quick, train=demo.replace(quick.train, steps=1))
    monkeypatch.setattr(demo, "configuration", lambda *_: few)
    for name in ("checkpoint.npz", "losses.csv", "predictions.png", "config.toml"):
        output = tmp_path / name
        output.mkdir()
        (output / name).write_bytes((good / "weights.npz").read_bytes())
        line = refused(capsys, "demo", "--quick", "--output", output)
        assert f"holds {name}, which no demo has made; choose another --output" in line
        assert [path.name for path in output.iterdir()] == [name]
        assert (output / name).read_bytes() == (good / "weights.npz").read_bytes()
    output = tmp_path / "demo"
    for _ in range(2):  # the second replaces what the first left
        assert cli.main(["demo", "--quick", "--output", str(output)]) == 0
    more = ["train", "--resume", "--set", "train.steps=2", "--output", str(output)]
    assert cli.main(more) == 0  # from here on it is no demo's
    capsys.readouterr()
    before = (output / "checkpoint.npz").read_bytes()
    assert "which no demo has made" in refused(capsys, "demo", "--quick", "--output", output)
    assert (output / "checkpoint.npz").read_bytes() == before


@needs_links
def test_no_result_takes_the_place_of_an_input(good, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "x-instances.png", "x-ids.png", "misalign-bins.png"):
        Image.new("RGB", (256, 256), "red").save(name)
    shutil.copy(good / "weights.npz", "predictions.json")
    shutil.copy(good / "train.json", "metrics.json")
    Path("config.toml").write_text("[train]\nsteps = 1\n")
    Path("link").mkdir()
    Path("link/x-instances.png").symlink_to(tmp_path / "x-instances.png")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    weights, images = ["--weights", good / "weights.npz"], ["--images", good / "images"]
    for arguments, word in [
        (["predict", "x.png", "x-instances.png", *weights, "--output", "."], "x-instances.png"),
        (["predict", "x.png", "link/x-instances.png", *weights, "--output", "."], "link/x-instances.png"),
        (["predict", "x.png", "x-ids.png", *weights, "--output", ".", "--label-maps"], "x-ids.png"),
        (
            ["predict", "x.png", "--weights", "predictions.json", "--json", "--output", "."],
            "predictions.json",
        ),
        (["evaluate", *weights, "--data", "metrics.json", *images, "--output", "."], "metrics.json"),
        (["train", "--data", "metrics.json", *images, "--output", "."], "metrics.json"),
        (["train", "--data", "shapes", "--config", "config.toml", "--output", "."], "config.toml"),
        (["misalign", "--image", "misalign-bins.png", "--output", "."], "misalign-bins.png"),
    ]:
        line = refused(capsys, *arguments)
        assert f"{word}: would be overwritten by " in line and "choose another --output" in line
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert cli.main(["predict", "x.png", "x-ids.png", *map(str, weights), "--output", "."]) == 0


def test_a_path_that_was_not_typed_says_where_it_comes_from(good, tmp_path, capsys):
    shutil.copytree(good / "images", tmp_path / "images")
    for name in ("a.json", "a2.json"):
        shutil.copy(good / "train.json", tmp_path / name)
    data = ["--images", tmp_path / "images", "--output", tmp_path / "run"]
    few = ["--set", "train.steps=1", "--set", "data.crop=32"]
    begin = ["train", "--data", tmp_path / "a.json", "--val", tmp_path / "a.json", *data, *few]
    assert cli.main([str(part) for part in begin]) == 0
    (tmp_path / "a.json").unlink()
    capsys.readouterr()
    line = refused(capsys, "train", "--resume", "--data", tmp_path / "a2.json", *data)
    assert line.startswith(f"data.val of the resumed run: {tmp_path / 'a.json'}: no such file")
    assert line.endswith("give another file with --val")
    line = refused(capsys, "train", "--resume", "--val", tmp_path / "a2.json", *data)
    assert line.startswith(f"data.train of the resumed run: {tmp_path / 'a.json'}: no such file")


def test_a_pattern_that_fits_no_file_is_named_as_one(good, tmp_path, capsys):
    line = refused(capsys, "predict", tmp_path / "*.png", "--weights", good / "weights.npz", "--output", "x")
    assert line == f"{tmp_path / '*.png'}: no file matches this pattern; look in the folder, or name files"


@pytest.mark.parametrize("name", ["evaluate", "predict", "misalign"])
def test_whether_results_can_be_written_is_tried_before_the_work(name, good, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    def work(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("minimask.results.evaluate.evaluate", work)
    monkeypatch.setattr("minimask.results.predict.predict_pixels", work)
    monkeypatch.setattr("minimask.lessons.misalign.measure", work)
    monkeypatch.setattr("os.fsync", full)
    weights = ["--weights", good / "weights.npz", "--output", tmp_path / "new" / "out"]
    data = ["--data", good / "train.json", "--images", good / "images"]
    arguments = {"evaluate": [*weights, *data], "predict": [good / "images" / "1.png", *weights]}
    line = refused(capsys, name, *arguments.get(name, weights[2:]))
    assert "cannot be written (No space left on device)" in line
    assert not (tmp_path / "new").exists()


def test_an_evaluation_is_told_though_its_files_cannot_be_written(good, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise InputError("detections.json: cannot be written (No space left on device)")

    monkeypatch.setattr("minimask.results.evaluate.write_json", full)
    data = ["--data", good / "train.json", "--images", good / "images", "--output", tmp_path / "out"]
    assert cli.main(["evaluate", "--weights", str(good / "weights.npz"), *map(str, data)]) == 2
    out, err = capsys.readouterr()
    assert "AP50" in out and "metrics.json" not in out
    assert err.splitlines()[-1] == "minimask: detections.json: cannot be written (No space left on device)"
    assert not (tmp_path / "out").exists()


def test_a_damaged_first_image_leaves_no_directory_behind(good, tmp_path, capsys):
    bad_images(tmp_path)
    options = ["--weights", good / "weights.npz", "--output", tmp_path / "a" / "b"]
    assert "truncated" in refused(capsys, "predict", tmp_path / "cut.png", *options)
    assert not (tmp_path / "a").exists()


def test_nothing_that_is_printed_has_control_characters(good, tmp_path, capsys):
    bad = "\x1b[31mred\n\x07"
    for arguments in (
        ["predict", bad, "--weights", "w", "--output", "x"],
        ["predict", good / "images" / "1.png", "--weights", bad, "--output", "x"],
        ["evaluate", "--weights", good / "weights.npz", "--data", bad, "--images", bad, "--output", "x"],
        ["train", "--data", bad, "--images", bad, "--output", "x"],
        ["train", "--data", "shapes", "--output", tmp_path / "train.json" / bad],
        ["train", "--data", "shapes", "--output", "x", bad],
        ["gradcheck", bad],
        [bad],
    ):
        (tmp_path / "train.json").write_text("")
        line = refused(capsys, *arguments)
        assert line.isprintable() and "\\x1b[31mred\\n\\x07" in line
