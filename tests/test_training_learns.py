"""That training learns: four images to the pixel, the packaged and the whole set of nuclei, and figures."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from minimask.command.sources import open_dataset
from minimask.config import Config, read_config, with_settings
from minimask.data import nuclei_sample, read_coco
from minimask.models.detector import load_detector
from minimask.results.evaluate import evaluate
from minimask.training.loop import train


class First:
    """The first images of a dataset."""

    def __init__(self, dataset, count: int):
        self.dataset, self.count = dataset, count
        self.class_names, self.category_ids = dataset.class_names, dataset.category_ids
        self.image_ids, self.name, self.notes = dataset.image_ids[:count], dataset.name, []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        return self.dataset[index]

    def image(self, index: int):
        return self.dataset.image(index)

    def describe(self, index: int) -> str:
        return self.dataset.describe(index)

    def coco_document(self) -> dict:
        document, kept = self.dataset.coco_document(), set(self.image_ids)
        return document | {
            "images": [image for image in document["images"] if image["id"] in kept],
            "annotations": [a for a in document["annotations"] if a["image_id"] in kept],
        }


@pytest.mark.parametrize(
    "steps, least",
    [
        pytest.param(400, 0.55, marks=pytest.mark.slow),  # 0.65 on the machine where it was last looked at
        pytest.param(1000, 0.75, marks=pytest.mark.full),
    ],
)
def test_four_images_are_learnt(steps, least, tmp_path):
    four = First(nuclei_sample("train"), 4)
    config = read_config("demo")
    data = replace(config.data, flip_horizontal=False, flip_vertical=False)
    settings = replace(config.train, steps=steps)
    outcome = train(replace(config, data=data, train=settings), four, tmp_path)
    evaluation = evaluate(load_detector(outcome.checkpoint, detections=300).model, four, 300)
    assert evaluation.mask["AP"] >= least


@pytest.mark.full
def test_figures_are_learnt_to_a_keypoint_ap_of_a_half(tmp_path):
    outcome = train(read_config("figures"), open_dataset("figures", None, "train", False), tmp_path)
    evaluation = evaluate(
        load_detector(outcome.checkpoint).model, open_dataset("figures", None, "val", False)
    )
    print(f"box {evaluation.box}, keypoint {evaluation.keypoint}")
    assert evaluation.keypoint["AP"] >= 0.5


@pytest.mark.full
@pytest.mark.parametrize(("seed", "least"), [(0, 0.434), (1, 0.406)])
def test_maskrcnn_small_learns_the_whole_set_of_nuclei_in_1500_steps(tmp_path, seed, least):
    if "MINIMASK_DATA" not in os.environ:
        pytest.skip("MINIMASK_DATA is not set: the whole set of nuclei is not here")
    nuclei = Path(os.environ["MINIMASK_DATA"]) / "nuclei"
    settings = ["model.detections=400", "model.score_threshold=0.01", "data.flip_vertical=true"]
    config = with_settings(Config(), [*settings, f"train.seed={seed}"])
    outcome = train(config, read_coco(nuclei / "train.json", nuclei / "images"), tmp_path)
    validation = read_coco(nuclei / "val.json", nuclei / "images")
    evaluation = evaluate(load_detector(outcome.checkpoint, detections=400).model, validation, 400)
    print(f"seed {seed}: box {evaluation.box}, mask {evaluation.mask}")
    assert evaluation.mask["AP"] >= least
    assert evaluation.mask["AP50"] >= 0.72


@pytest.mark.full
def test_the_demo_reaches_a_mask_ap50_of_0_65_as_the_median_of_three_seeds(tmp_path):
    found = []
    for seed in range(3):
        config = read_config("demo")
        config = replace(config, train=replace(config.train, seed=seed))
        outcome = train(config, nuclei_sample("train"), tmp_path / str(seed))
        model = load_detector(outcome.checkpoint).model
        found.append(evaluate(model, nuclei_sample("val")).mask["AP50"])
    print(f"mask AP50 of three seeds: {found}")
    assert sorted(found)[1] >= 0.65
