"""`maskrcnn_fine`: half the strides of `maskrcnn_small`, the levels of its boxes, its files."""

import numpy as np
import pytest

from minimask import Tensor, models
from minimask.config import Config, to_dict, with_settings
from minimask.matching import assign_fpn_levels
from minimask.models.detector import load_detector
from minimask.models.starting import start_from
from minimask.models.zoo import FINE, SMALL
from minimask.weights import write_pth, write_safetensors
from minimask.weights.checkpoint import Checkpoint, save_checkpoint
from tests.model_data import discs


def test_every_level_has_half_the_stride_and_anchors_of_the_same_sizes():
    image = np.random.default_rng(0).random((3, 128, 192)).astype(np.float32)
    centres, strides = {}, {}
    for name, build in {"small": models.maskrcnn_small, "fine": models.maskrcnn_fine}.items():
        model = build(2).eval()
        batch = model.transform([image])
        levels = model.backbone(Tensor(batch.images))
        strides[name] = [batch.images.shape[3] // level.shape[3] for level in levels]
        anchors = model.rpn(levels, batch).anchors
        sides = np.round(np.sqrt(np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)))
        assert sorted(set(sides.tolist())) == [8, 16, 32, 64, 128]
        centres[name] = np.unique(np.round(anchors[sides == 8][:, [0, 2]].mean(axis=1), 3))
    assert strides == {"small": [4, 8, 16, 32, 64], "fine": [2, 4, 8, 16, 32]}
    np.testing.assert_allclose(centres["small"], np.arange(2, 192, 4), atol=1e-4)
    np.testing.assert_allclose(centres["fine"], np.arange(1, 192, 2), atol=1e-4)


@pytest.mark.parametrize("side", [10, 55, 57, 111, 113, 400])
def test_a_box_is_pooled_from_the_level_in_which_it_has_as_many_cells_as_in_the_small_network(side):
    """FPN's equation 1 counts cells: halving all strides halves the canonical size."""
    found = []
    for build, seen in ((models.maskrcnn_small, 2 * side), (models.maskrcnn_fine, side)):
        pooler = build(2, seed=None).box_head.pooler
        level = assign_fpn_levels(np.array([[0.0, 0.0, seen, seen]]), canonical_scale=pooler.canonical_scale)
        found.append((int(level[0]), seen / pooler.strides[int(level[0]) - 2]))
    assert found[0] == found[1]


def test_it_has_the_parameters_that_its_architecture_says_and_at_most_three_million():
    model = models.maskrcnn_fine(2)
    names = [name for name, _ in model.named_parameters()]
    assert sum(name.startswith("roi_heads.box_head.") and name.endswith("0.weight") for name in names) == 2
    assert "backbone.fpn.inner_blocks.0.1.weight" in names  # a norm
    assert sum(p.size for p in model.parameters()) <= 3_000_000
    assert not FINE.pool and SMALL.pool


def test_the_body_has_the_weights_of_the_small_network_and_sees_twice_as_much_of_the_image():
    small, fine = models.maskrcnn_small(2, seed=3), models.maskrcnn_fine(2, seed=3)
    ours = {k: v for k, v in fine.state_dict().items() if "body" in k}
    assert all(np.array_equal(v, small.state_dict()[k]) for k, v in ours.items()) and ours


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".npz"])
def test_its_weights_are_recognised_wherever_they_come_from_and_find_the_same(tmp_path, ending):
    model, path = models.maskrcnn_fine(2, seed=1, box_score_thresh=0.0).eval(), tmp_path / f"w{ending}"
    config = to_dict(Config()) | {"model": {"name": "maskrcnn_fine"}}
    if ending == ".npz":
        checkpoint = Checkpoint(model.state_dict(), config=config, class_names=["cell"], category_ids=[1])
        save_checkpoint(path, checkpoint)
    else:
        {".pth": write_pth, ".safetensors": write_safetensors}[ending](path, model.state_dict())
    detector = load_detector(path, score_threshold=0.0)
    image = discs(np.random.default_rng(0), 3)[0].astype(np.float32)
    (want,), (got,) = model.predict([image]), detector.model.predict([image])
    assert len(want["scores"]) > 10
    for name in ("boxes", "scores", "labels"):
        np.testing.assert_array_equal(got[name], want[name])


def test_training_that_starts_from_its_weights_takes_the_same_network(tmp_path):
    write_pth(tmp_path / "w.pth", models.maskrcnn_fine(2).state_dict())
    config = with_settings(Config(), [f"train.weights={tmp_path / 'w.pth'}"])
    told = []
    config, _ = start_from(config, told.append)
    assert config.model.name == "maskrcnn_fine"
