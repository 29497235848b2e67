"""A checkpoint says how large the objects were that it learnt from; `predict` says when it sees others."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimask import models
from minimask.command import cli
from minimask.errors import InputError
from minimask.models.detector import Detector, load_detector
from minimask.results.sizes import size_note
from minimask.training.object_sides import object_sides
from minimask.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.cli_data import make_dataset

PATH = Path("a.png")


class Squares:
    """A set of images of one size with square objects of these sides."""

    def __init__(self, sides: list[list[float]], height: int = 100, width: int = 200):
        self.sides, self.size = sides, (height, width)

    def __len__(self) -> int:
        return len(self.sides)

    def outline(self, index: int):
        boxes = [[1.0, 2.0, 1.0 + side, 2.0 + side] for side in self.sides[index]]
        return *self.size, np.array(boxes).reshape(-1, 4)


def transform(**options):
    return models.maskrcnn_small(2, seed=None, **options).transform


def test_sides_are_percentiles_of_all_objects_in_pixels_of_the_network():
    sides = [[float(s)] for s in range(1, 102)]
    assert object_sides(Squares(sides), transform(), 0) == [2.0, 51.0, 100.0]
    # The shorter side, 100, becomes 50; of a crop of 25 pixels, which it becomes too, objects are magnified.
    assert object_sides(Squares(sides), transform(min_size=50), 0) == [1.0, 25.5, 50.0]
    assert object_sides(Squares(sides), transform(min_size=50), 25) == [4.0, 102.0, 200.0]
    assert object_sides(Squares(sides), transform(max_size=100), 0) == [1.0, 25.5, 50.0]


@pytest.mark.parametrize("dataset", [Squares([]), Squares([[]]), Squares([[0.0]]), [1, 2]])
def test_without_objects_or_where_nothing_is_known_there_are_none(dataset):
    assert object_sides(dataset, transform(), 0) == []


def detector(sides=(10.0, 20.0, 40.0), **options) -> Detector:
    return Detector(models.maskrcnn_small(2, seed=None, **options), ["cell"], [1], object_sides=list(sides))


def found(*sides: float) -> dict:
    return {"boxes": np.array([[5, 5, 5 + s, 5 + s] for s in sides], np.float32).reshape(-1, 4)}


@pytest.mark.parametrize(
    ("shape", "boxes", "says"),
    [
        ((100, 100), [20, 12, 39], None),
        ((100, 100), [20, 12, 30, 25, 9], None),  # one in five is no more than may be
        ((100, 100), [20, 9, 9], "67% of the objects found are smaller than in training: the weights have"),
        ((100, 100), [20, 41, 50], "larger than in training: the weights have learnt objects of 10 to 40 "),
        (
            (100, 100),
            [],
            "nothing found; the weights have learnt objects of 10 to 40 pixels: scale the image",
        ),
        (
            (3000, 4000),
            [60, 90],
            "learnt objects of 25 to 100 pixels at the 0.4 of its size that the network",
        ),
        ((3000, 4000), [60, 200], "50% of the objects found are larger"),
    ],
)
def test_a_line_says_where_objects_are_of_another_size_than_in_training(shape, boxes, says):
    line = size_note(PATH, shape, found(*boxes), detector())
    assert line is None if says is None else line.startswith("a.png: ") and says in line


def test_weights_that_do_not_say_their_sizes_say_nothing_and_a_resized_image_counts_as_it_is_seen():
    assert size_note(PATH, (3000, 4000), found(), detector(())) is None
    resized = detector(min_size=50)  # an image of 100 pixels is halved: objects of 20 to 80 are as learnt
    assert size_note(PATH, (100, 100), found(21, 79), resized) is None
    halved = detector(magnification=0.5)  # as in training: nothing to be said
    assert size_note(PATH, (100, 100), found(21, 79), halved) is None
    assert "cut it into tiles" in size_note(PATH, (5000, 5000), found(40), halved)
    assert "20 to 80 pixels at the 0.5" in size_note(PATH, (100, 100), found(15, 15), resized)


def test_a_run_writes_its_sides_and_predict_tells_of_others(tmp_path, capsys):
    make_dataset(tmp_path)
    data = ["--data", tmp_path / "train.json", "--images", tmp_path / "images"]
    few = ["--set", "train.steps=1", "--set", "train.batch_size=1", "--set", "data.crop=48"]
    assert cli.main([str(part) for part in ["train", *data, *few, "--output", tmp_path / "run"]]) == 0
    path = tmp_path / "run" / "checkpoint.npz"
    checkpoint = load_checkpoint(path)
    low, middle, high = checkpoint.object_sides
    assert 0 < low <= middle <= high <= 48
    assert load_detector(path).object_sides == checkpoint.object_sides
    capsys.readouterr()
    image = str(next((tmp_path / "images").iterdir()))
    shown = ["predict", "--weights", str(path), image, "--score-threshold", "1", "--output", str(tmp_path)]
    assert cli.main(shown) == 0
    assert f"nothing found; the weights have learnt objects of {low:.0f} to {high:.0f} pixels" in (
        " ".join(capsys.readouterr().err.split())
    )
    save_checkpoint(path, replace(checkpoint, object_sides=[]))  # as a version before this one wrote it
    assert load_detector(path).object_sides == []


@pytest.mark.parametrize("sides", [[1.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0], ["1", "2", "3"], [1, 2, 1e300]])
def test_sides_that_no_run_writes_are_refused(tmp_path, sides):
    path = tmp_path / "c.npz"
    model = models.maskrcnn_small(2)
    checkpoint = Checkpoint(model.state_dict(), class_names=["a"], category_ids=[1], object_sides=sides)
    save_checkpoint(path, checkpoint)
    with pytest.raises(InputError, match="object_sides must be three rising numbers above 0"):
        load_checkpoint(path)
