"""A run that is resumed with other data than it was begun with says so; with the same data it does not."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from minimask.config import Config, with_settings
from minimask.data import coco, read_coco
from minimask.training.loop import train
from minimask.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.cli_data import make_dataset

FEW = ["train.batch_size=1", "data.crop=32"]


def read(directory):
    return read_coco(directory / "train.json", directory / "images")


def resumed(directory, steps=2):
    """The notes of resuming the run in a directory's run/ with the data that are now there."""
    notes = []
    config = with_settings(Config(), [*FEW, f"train.steps={steps}"])
    train(config, read(directory), directory / "run", resume=True, note=notes.append)
    return "".join(line for line in notes if "a different run" in line).replace("train.steps is 2, was 1", "")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    directory = tmp_path_factory.mktemp("begun")
    make_dataset(directory)
    train(with_settings(Config(), [*FEW, "train.steps=1"]), read(directory), directory / "run")
    return directory


@pytest.fixture
def here(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "here")
    return tmp_path / "here"


def edited(directory, change):
    document = json.loads((directory / "train.json").read_text())
    change(document)
    (directory / "train.json").write_text(json.dumps(document))


def test_the_same_data_get_no_note_on_another_disk_either(here):
    for path in (here / "images").iterdir():
        os.utime(path, (1, 1))
    edited(here, lambda document: document.update(info={"year": 2026}))  # nothing that training reads
    assert "data" not in resumed(here) and "annotations" not in resumed(here)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["annotations"].pop(),
        lambda document: document["annotations"][0].update(bbox=[1.0, 2.0, 20.0, 20.0]),
        lambda document: document["annotations"][0].update(iscrowd=1),
        lambda document: document["annotations"][0].update(
            category_id=document["annotations"][0]["category_id"] % 3 + 1
        ),
        lambda document: document["annotations"][0].update(
            segmentation=document["annotations"][1]["segmentation"]
        ),
    ],
)
def test_other_annotations_get_a_note(change, here):
    edited(here, change)
    assert "the annotations are others" in resumed(here)


@pytest.mark.parametrize("most", [2**20, 0])
def test_a_repainted_image_of_the_same_size_gets_a_note(most, tmp_path, monkeypatch):
    monkeypatch.setattr(coco, "DIGESTED_BYTES", most)  # with 0, sizes and times alone are compared
    make_dataset(tmp_path)
    train(with_settings(Config(), [*FEW, "train.steps=1"]), read(tmp_path), tmp_path / "run")
    path = tmp_path / "images" / "2.png"
    content = bytearray(path.read_bytes())
    pixels = 255 - np.asarray(Image.open(path))
    Image.fromarray(pixels).save(path)
    assert path.read_bytes() != bytes(content)
    assert "the image files have changed" in resumed(tmp_path)


def test_checkpoints_that_do_not_know_their_data_get_no_note(here):
    path = here / "run" / "checkpoint.npz"
    checkpoint = load_checkpoint(path)
    for key in ("annotations", "files"):
        del checkpoint.data[key]
    save_checkpoint(path, checkpoint)
    edited(here, lambda document: document["annotations"].pop())
    assert "annotations" not in resumed(here)
