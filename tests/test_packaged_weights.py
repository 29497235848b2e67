"""The weights that the package has: what they reach, what the file holds, and that they need not be named."""

import re

import numpy as np
import pytest

from minimask import models
from minimask.command import cli
from minimask.data import nuclei_sample
from minimask.errors import InputError
from minimask.models.detector import load_detector
from minimask.results.evaluate import evaluate
from minimask.weights.checkpoint import load_checkpoint
from minimask.weights.download import local_weights
from minimask.weights.published import DEFAULT, PACKAGED

PATH = PACKAGED[DEFAULT]
AP, AP50 = 0.543, 0.842  # of masks, on the packaged sample's 10 validation images
CARD = PATH.with_name("README.md").read_text(encoding="utf-8")


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def evaluation():
    detector = load_detector(DEFAULT)
    return evaluate(detector.model, nuclei_sample("val"), detector.detections)


def test_they_find_the_packaged_nuclei_as_well_as_the_model_card_says(evaluation):
    assert evaluation.mask["AP"] >= AP - 0.002  # another BLAS may turn a detection or two
    assert evaluation.mask["AP50"] >= AP50 - 0.002
    assert re.search(rf"the packaged sample, 10 images .*\| {AP:.3f} \| {AP50:.3f} \|", CARD)


def test_the_file_has_half_precision_no_momentum_and_no_paths_of_whoever_trained():
    checkpoint = load_checkpoint(PATH)
    assert PATH.stat().st_size <= 8_000_000
    assert {array.dtype for array in checkpoint.parameters.values()} == {np.dtype(np.float16)}
    assert not checkpoint.momentum and checkpoint.class_names == ["nucleus"]
    assert not any("/" in str(value) for section in checkpoint.config.values() for value in section.values())
    assert checkpoint.config["model"]["name"] == "maskrcnn_fine"
    assert sum(array.size for array in checkpoint.parameters.values()) <= 4_000_000
    low, middle, high = checkpoint.object_sides
    assert 4 < low < 10 < middle < 30 < high < 100


@pytest.mark.parametrize("words", ["CC0", "minimask train --config nuclei", "seed", "train.json", "not "])
def test_the_model_card_tells_data_licence_command_seed_and_limits(words):
    assert words in CARD and f"{load_checkpoint(PATH).step} steps" in CARD


def test_predict_and_evaluate_take_them_where_none_are_named(tmp_path, capsys):
    image = nuclei_sample("val").records[0].path
    status, out, err = run(capsys, "predict", image, "--output", tmp_path)
    assert status == 0 and "minimask:nuclei, as no --weights were given" in err
    assert int(out.split(" objects")[0].split()[-1]) > 0


def test_they_have_a_name_and_names_like_it_are_told_from_it():
    assert local_weights(DEFAULT) == PATH
    with pytest.raises(InputError, match="minimask:nucleus: no such published weights; did you mean minim"):
        local_weights("minimask:nucleus")


def test_a_data_set_of_other_classes_is_refused_in_one_line(tmp_path, capsys):
    status, _, err = run(capsys, "evaluate", "--data", "shapes", "--output", tmp_path / "out")
    assert status == 2 and "while minimask:nuclei was trained on nucleus" in err


def test_python_knows_the_name_too():
    image = nuclei_sample("val")[0].image
    (want,) = load_detector(DEFAULT).model.predict([image])
    (got,) = models.from_checkpoint(DEFAULT, box_score_thresh=0.01, box_detections_per_img=400).eval()(
        [image]
    )
    np.testing.assert_array_equal(got["boxes"], want["boxes"])


def test_training_can_start_from_them(tmp_path, capsys):
    few = ["--set", "train.steps=1", "--set", "data.crop=64", "--set", "train.batch_size=1"]
    given = ["--weights", DEFAULT, "--data", "nuclei", *few, "--output", tmp_path / "run"]
    status, _, err = run(capsys, "train", *given)
    assert status == 0, err
    assert load_checkpoint(tmp_path / "run" / "checkpoint.npz").config["model"]["name"] == "maskrcnn_fine"
