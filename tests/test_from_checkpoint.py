"""Weights of other systems: which model they are of, their numbers, what is said where they do not fit."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minimask import InputError, models
from minimask.models import naming
from minimask.models.conventions import (
    DETECTRON2,
    DETECTRON2_RESNEXT,
    MINIMASK,
    TORCHVISION,
    TORCHVISION_COCO_V1,
)
from minimask.models.recognition import recognise
from minimask.models.zoo import (
    RESNET50_C4,
    RESNET50_FPN,
    RESNET50_FPN_V2,
    RESNET101_C4,
    RESNET101_FPN,
    RESNEXT101_FPN,
)
from minimask.nn import BatchNorm2d, FrozenBatchNorm2d, GroupNorm
from tests.model_data import discs, fill, tiny_model, weights_by_name

REFERENCE = Path(__file__).parent / "reference"
FEW = dict(rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=200)


def blank(shape) -> np.ndarray:
    """An array of any size that takes no memory."""
    return np.broadcast_to(np.float32(0), shape)


def detectron2_shapes(name: str) -> dict[str, tuple[int, ...]]:
    d = np.load(REFERENCE / f"{name}.npz")
    shapes = (tuple(int(n) for n in shape.split(",") if n) for shape in d["state_shapes"])
    return dict(zip(map(str, d["state_names"]), shapes))


def names_of(build, num_classes: int, **options) -> dict[str, np.ndarray]:
    """A state dict of a builder's model that takes no memory."""
    return build(num_classes, seed=None, **options).state_dict()


# --------------------------------------------------------------------------------------- which model it is


@pytest.mark.parametrize(
    ("build", "options", "system", "architecture", "conventions"),
    [
        (models.maskrcnn_resnet50_fpn, {}, "torchvision", RESNET50_FPN, TORCHVISION),
        (models.fasterrcnn_resnet50_fpn, {}, "torchvision", replace(RESNET50_FPN, masks=False), TORCHVISION),
        (models.maskrcnn_resnet50_fpn_v2, {}, "torchvision", RESNET50_FPN_V2, TORCHVISION),
        (models.maskrcnn_resnet101_fpn, {}, "torchvision", RESNET101_FPN, TORCHVISION),
        (models.maskrcnn_resnext101_32x8d_fpn, {}, "torchvision", RESNEXT101_FPN, TORCHVISION),
        (models.maskrcnn_resnet50_c4, {}, "minimask", RESNET50_C4, DETECTRON2),
        (models.maskrcnn_resnet101_c4, {}, "minimask", RESNET101_C4, DETECTRON2),
        (
            models.maskrcnn_resnet50_fpn,
            {"norm": partial(GroupNorm, groups=32)},
            "minimask",
            RESNET50_FPN,
            TORCHVISION,
        ),
    ],
)
def test_names_and_shapes_say_which_model_it_is(build, options, system, architecture, conventions):
    origin, state = recognise(names_of(build, 7, **options))
    assert origin.system == system and origin.conventions == conventions
    assert origin.architecture == architecture and origin.num_classes == 7 and origin.num_keypoints == 0
    model = models.from_checkpoint(state)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    ("name", "architecture", "conventions"),
    [
        ("d2_mask_rcnn_R_50_FPN", RESNET50_FPN, DETECTRON2),
        ("d2_mask_rcnn_R_50_C4", RESNET50_C4, DETECTRON2),
        ("d2_mask_rcnn_X_101_32x8d_FPN", RESNEXT101_FPN, DETECTRON2_RESNEXT),
    ],
)
def test_detectron2s_names_say_which_model_it_is_and_the_model_zoos_rule_the_rest(
    name, architecture, conventions
):
    origin, _ = recognise({k: blank(shape) for k, shape in detectron2_shapes(name).items()})
    assert origin.system == "detectron2" and origin.architecture == architecture
    assert origin.conventions == conventions and origin.num_classes == 81
    assert origin.class_names[-1] == "toothbrush" and origin.category_ids[-1] == 90
    deviation, stride = ("57.4", "3x3") if architecture.groups > 1 else ("1", "1x1")
    assert f"deviation {deviation} and stride in the {stride}" in origin.note


def test_keypoint_models_are_recognised_under_both_systems_names():
    mask = detectron2_shapes("d2_mask_rcnn_R_50_FPN")
    theirs = {k: v for k, v in mask.items() if "mask_head" not in k and "box_predictor" not in k}
    theirs |= {
        "roi_heads.box_predictor.cls_score.weight": (2, 1024),
        "roi_heads.box_predictor.cls_score.bias": (2,),
    }
    theirs |= {
        "roi_heads.box_predictor.bbox_pred.weight": (4, 1024),
        "roi_heads.box_predictor.bbox_pred.bias": (4,),
    }
    for i in range(8):
        theirs[f"roi_heads.keypoint_head.conv_fcn{i + 1}.weight"] = (512, 512 if i else 256, 3, 3)
    theirs["roi_heads.keypoint_head.score_lowres.weight"] = (512, 17, 4, 4)
    origin, state = recognise({k: blank(shape) for k, shape in theirs.items()})
    assert (origin.num_classes, origin.num_keypoints, origin.architecture.masks) == (2, 17, False)
    assert origin.class_names == ["person"] and "Keypoint R-CNN" in origin.note
    assert state["roi_heads.keypoint_head.14.weight"].shape == (512, 512, 3, 3)
    assert "roi_heads.keypoint_predictor.kps_score_lowres.weight" in state
    assert recognise(state)[0].num_keypoints == 17


def test_the_small_network_is_recognised_with_its_widths():
    model = fill(tiny_model(4).astype(np.float32))
    again = models.from_checkpoint(model.state_dict())
    assert again.origin.conventions == MINIMASK and again.origin.system == "minimask"
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)
    image = discs(np.random.default_rng(0), 3)[0].astype(np.float32)
    np.testing.assert_array_equal(again.predict([image])[0]["boxes"], model.predict([image])[0]["boxes"])


def test_eps_is_0_for_the_first_versions_coco_weights_alone():
    coco = names_of(models.maskrcnn_resnet50_fpn, 91)
    origin, _ = recognise(coco)
    assert origin.conventions == TORCHVISION_COCO_V1 and "eps 0" in origin.note
    assert origin.class_names[:2] == ["person", "bicycle"] and origin.class_names[11] == "N/A"
    assert models.from_checkpoint(coco).backbone.body.bn1.eps == 0
    assert models.from_checkpoint(coco, conventions=TORCHVISION).backbone.body.bn1.eps == 1e-5
    # norms that count their batches are not those of the published file
    assert (
        recognise(coco | {"backbone.body.bn1.num_batches_tracked": np.zeros(())})[0].conventions
        == TORCHVISION
    )
    assert recognise(names_of(models.maskrcnn_resnet50_fpn_v2, 91))[0].conventions == TORCHVISION
    assert recognise(names_of(models.maskrcnn_resnet101_fpn, 91))[0].conventions == TORCHVISION


def test_the_norms_of_the_second_version_train_and_those_of_the_first_are_frozen():
    first = models.from_checkpoint(names_of(models.maskrcnn_resnet50_fpn, 3))
    second = models.from_checkpoint(names_of(models.maskrcnn_resnet50_fpn_v2, 3))
    assert (
        type(first.backbone.body.bn1) is FrozenBatchNorm2d and type(second.backbone.body.bn1) is BatchNorm2d
    )


def test_options_go_before_what_was_found():
    given = dict(
        min_size=100, max_size=200, box_score_thresh=0.3, rpn_nms_thresh=0.6, trainable_backbone_layers=1
    )
    model = models.from_checkpoint(names_of(models.maskrcnn_resnet50_fpn, 3), image_std=(1, 1, 1), **given)
    assert model.transform.min_sizes == (100,) and model.transform.max_size == 200
    assert model.box_head.options.score_thresh == 0.3 and model.rpn.options.nms_thresh == 0.6
    assert model.transform.conventions.std == (1, 1, 1)
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and ".body." in n}
    assert trained == {"layer4"}
    with pytest.raises(TypeError, match="there is no argument 'rpn_magic'"):
        models.from_checkpoint(names_of(models.maskrcnn_resnet50_fpn, 3), rpn_magic=1)


# ------------------------------------------------------------------------------------------- names, values


def test_torchvisions_names_until_2022_and_dataparallels_prefix_are_read():
    new = fill(models.maskrcnn_resnet50_fpn(2)).state_dict()
    old = {}
    for name, array in new.items():
        name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
        name = re.sub(r"_blocks\.(\d)\.0\.", r"_blocks.\1.", name)
        name = re.sub(
            r"roi_heads\.mask_head\.(\d)\.0\.",
            lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.",
            name,
        )
        old[f"module.{name}"] = array
    assert "module.roi_heads.mask_head.mask_fcn4.bias" in old and "module.rpn.head.conv.weight" in old
    state = models.from_checkpoint(old).state_dict()
    assert list(state) == list(new) and all(np.array_equal(state[name], new[name]) for name in new)


def test_detectron2s_channels_and_classes_change_their_order():
    rng = np.random.default_rng(0)
    shapes = detectron2_shapes("d2_mask_rcnn_R_50_C4")
    theirs = {k: blank(shape) for k, shape in shapes.items()}
    varied = ("stem.conv1.weight", "cls_score", "bbox_pred", "mask_head.predictor")
    theirs |= {k: rng.normal(size=s) for k, s in shapes.items() if any(part in k for part in varied)}
    ours = naming.our_names(theirs)[1]
    np.testing.assert_array_equal(
        ours["backbone.body.conv1.weight"][:, 0], theirs["backbone.stem.conv1.weight"][:, 2]
    )
    box, mask = "roi_heads.box_predictor.", "roi_heads.mask_head.predictor."
    np.testing.assert_array_equal(ours[f"{box}cls_score.bias"][0], theirs[f"{box}cls_score.bias"][80])
    np.testing.assert_array_equal(ours[f"{box}cls_score.weight"][1:], theirs[f"{box}cls_score.weight"][:80])
    np.testing.assert_array_equal(ours[f"{box}bbox_pred.weight"][4:], theirs[f"{box}bbox_pred.weight"])
    assert not ours[f"{box}bbox_pred.weight"][:4].any()
    logits = ours["roi_heads.mask_predictor.mask_fcn_logits.weight"]
    np.testing.assert_array_equal(logits[1:], theirs[f"{mask}weight"])


def test_class_agnostic_boxes_and_masks_are_repeated_for_each_class():
    shapes = detectron2_shapes("d2_mask_rcnn_R_50_FPN")
    agnostic = {
        "roi_heads.box_predictor.bbox_pred.weight": np.arange(4.0)[:, None] * np.ones(1024),
        "roi_heads.box_predictor.bbox_pred.bias": np.arange(4.0),
        "roi_heads.mask_head.predictor.weight": np.ones((1, 256, 1, 1)),
        "roi_heads.mask_head.predictor.bias": np.array([3.0]),
    }
    model = models.from_checkpoint({k: blank(s) for k, s in shapes.items()} | agnostic)
    bias = model.box_head.box_predictor.bbox_pred.bias.data.reshape(81, 4)
    assert not bias[0].any() and (bias[1:] == np.arange(4)).all()
    assert (model.mask_head.net.mask_predictor.mask_fcn_logits.bias.data[1:] == 3).all()


def test_pixel_means_and_anchors_that_old_files_hold_are_understood():
    theirs = {k: blank(shape) for k, shape in detectron2_shapes("d2_mask_rcnn_R_50_FPN").items()}
    theirs["pixel_mean"], theirs["pixel_std"] = (
        np.array([[[1.0]], [[2.0]], [[3.0]]]),
        np.array([10.0, 20.0, 30.0]),
    )
    theirs["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4))
    conventions = models.from_checkpoint(theirs).origin.conventions
    assert conventions.mean == (3 / 255, 2 / 255, 1 / 255) and conventions.std == (
        30 / 255,
        20 / 255,
        10 / 255,
    )


# ------------------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "not weights of a Mask, Keypoint or Faster R-CNN .* no entry at all"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, "they hold a, b$"),
        (
            {"layer1.0.conv1.weight": np.zeros(2), "fc.weight": np.zeros(2)},
            "of a backbone alone, not of a detector",
        ),
        ({"model": {"a": np.zeros(2)}}, "entry 'model' is not an array; give the state dict alone"),
        ({3: np.zeros(2)}, "entry 3 is not an array"),
        ({"a": None}, "entry 'a' is not an array of numbers"),
        (
            {"rpn.head.cls_logits.weight": np.zeros((3, 1, 1, 1)), "backbone.body.conv1.weight": np.zeros(3)},
            "lack stage 1 of a ResNet",
        ),
        (
            {
                "proposal_generator.rpn_head.conv.weight": np.zeros((2, 2, 3, 3)),
                "backbone.bottom_up.stem.conv1.norm.weight": np.zeros(64),
            },
            "the weights lack ",
        ),
    ],
)
def test_what_is_no_detector_is_named(state, message):
    with pytest.raises(InputError, match=message):
        models.from_checkpoint(state)


def test_what_is_missing_unexpected_or_of_another_shape_is_told_ten_of_a_kind():
    state = dict(names_of(models.maskrcnn_resnet50_fpn, 3))
    state = {k: v for k, v in state.items() if "layer2.1" not in k}
    state |= {f"extra{i}": np.zeros(1) for i in range(12)}
    state["roi_heads.box_head.fc7.bias"] = np.zeros(9)
    with pytest.raises(InputError) as caught:
        models.from_checkpoint(state)
    told = str(caught.value)
    assert "\n" not in told
    assert "wrong shape: roi_heads.box_head.fc7.bias has shape (9,), not (1024,)" in told
    assert "unexpected: extra0, extra1, " in told and "extra9 and 2 more" in told and "extra10" not in told
    missing = told.split("missing: ")[1].split(";")[0]
    assert missing.count("backbone.body.layer") == 10 and missing.endswith(" and 5 more")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("roi_heads.box_predictor.cls_score.weight", np.zeros(5), r"cls_score\.weight has shape \(5,\)"),
        (
            "rpn.head.cls_logits.weight",
            np.zeros((9, 256, 1, 1)),
            "the RPN has 9 anchors at each position, not 3",
        ),
        ("backbone.body.layer3.0.conv3.weight", blank((4_000_000, 256, 1, 1)), "wrong shape: .*layer3"),
        ("backbone.body.layer1.0.conv2.weight", np.zeros((0, 0, 3, 3)), "none of them 0"),
        ("backbone.body.layer1.0.conv2.weight", blank((64, 63, 3, 3)), "wrong shape"),
        ("backbone.body.layer1.999999999.conv1.weight", blank((1,)), "no ResNet has so many"),
    ],
)
def test_shapes_that_cannot_be_are_refused_before_memory_is_taken_for_them(name, array, message):
    state = dict(names_of(models.maskrcnn_resnet50_fpn, 3)) | {name: array}
    with pytest.raises(InputError, match=message):
        models.from_checkpoint(state)


def test_entries_that_become_the_same_one_are_refused():
    state = dict(names_of(models.maskrcnn_resnet50_fpn, 3))
    state["rpn.head.conv.weight"] = state["rpn.head.conv.0.0.weight"]
    with pytest.raises(InputError, match=r"hold rpn\.head\.conv\.0\.0\.weight twice"):
        models.from_checkpoint(state)


# ------------------------------------------------------------------------------------------- their numbers


def reference(name: str):
    d = np.load(REFERENCE / f"{name}.npz")
    stem = 0.02 if d["pixel_std"][0] == 1 else 1.0
    state = weights_by_name(detectron2_shapes(name), stem, small=True)
    h, w = d["image"].shape[1:]
    return d, state, dict(min_size=h, max_size=w), d["image"].astype(np.float32) / 255


def agree(result: dict, d) -> None:
    """The five best detections are the reference's, and their masks wherever rounding does not decide."""
    np.testing.assert_array_equal(result["labels"][:5], d["det_labels"][:5] + 1)
    np.testing.assert_allclose(result["scores"][:5], d["det_scores"][:5], rtol=1e-4)
    np.testing.assert_allclose(result["boxes"][:5], d["det_boxes"][:5], atol=2e-3)
    assert len(result["scores"]) == len(d["det_scores"])
    width = d["image"].shape[2]
    want = np.unpackbits(d["det_masks"], axis=-1)[:5, :, :width].astype(bool)
    probabilities = result["masks"].numpy()[:5, 0]
    # Boxes agree to 5e-4 pixels, which moves a pasted probability by up to 1e-3.
    certain = np.abs(probabilities - 0.5) > 2e-3
    np.testing.assert_array_equal((probabilities > 0.5)[certain], want[certain])
    assert want.any() and (~certain).sum() < 0.05 * want.sum()


NAMES = {  # of detectron2's losses
    "loss_cls": "loss_classifier",
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_loc": "loss_rpn_box_reg",
}


@pytest.mark.parametrize(
    "name",
    [
        "d2_mask_rcnn_R_50_FPN",
        pytest.param("d2_mask_rcnn_R_50_C4", marks=pytest.mark.slow),
        pytest.param("d2_mask_rcnn_X_101_32x8d_FPN", marks=pytest.mark.slow),
    ],
)
def test_detectron2s_detections_losses_and_gradients(name):
    d, state, size, image = reference(name)
    counts = dict(rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200, **FEW)
    all_of_them = dict(rpn_batch_size_per_image=50000, box_batch_size_per_image=10000)
    model = models.from_checkpoint(state, box_score_thresh=0.0, **size, **counts, **all_of_them)
    agree(model.predict([image])[0], d)
    masks = np.unpackbits(d["target_masks"], axis=-1)[..., : image.shape[2]]
    target = dict(boxes=d["target_boxes"], labels=d["target_labels"] + 1, masks=masks)
    losses = model([image], [target])
    for key in (key for key in d.files if key.startswith("loss_")):
        ours = key.removeprefix("loss_")
        assert float(losses[NAMES.get(ours, ours)]) == pytest.approx(float(d[key]), rel=2e-5)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    # Both go through the same rules, so that the names that remain must be the same parameters.
    renamed = naming.our_names({str(n): np.zeros(1) for n in d["grad_norm_names"]} | stem_of(state))[1]
    wanted = [name for name in renamed if name in gradients]
    assert set(wanted) == set(gradients) and len(wanted) == len(d["grad_norms"])
    norms = [np.linalg.norm(gradients[name].astype(np.float64)) for name in wanted]
    np.testing.assert_allclose(norms, d["grad_norms"], rtol=2e-3)


@pytest.mark.slow
def test_detectron2s_keypoints_and_losses():
    d, state, size, image = reference("d2_keypoint_rcnn_R_50_FPN")
    counts = dict(rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200, **FEW)
    all_of_them = dict(rpn_batch_size_per_image=50000, box_batch_size_per_image=10000)
    model = models.from_checkpoint(state, box_score_thresh=0.0, **size, **counts, **all_of_them)
    (result,) = model.predict([image])
    assert len(result["scores"]) == len(d["det_scores"])
    np.testing.assert_allclose(result["scores"][:5], d["det_scores"][:5], rtol=1e-4)
    np.testing.assert_allclose(result["boxes"][:5], d["det_boxes"][:5], atol=2e-3)
    np.testing.assert_allclose(result["keypoints"][:5, :, :2], d["det_keypoints"][:5, :, :2], atol=2e-3)
    target = dict(boxes=d["target_boxes"], labels=d["target_labels"] + 1, keypoints=d["target_keypoints"])
    losses = model([image], [target])
    for key in (key for key in d.files if key.startswith("loss_")):
        ours = key.removeprefix("loss_")
        assert float(losses[NAMES.get(ours, ours)]) == pytest.approx(float(d[key]), rel=2e-5), key


@pytest.mark.slow
def test_torchvisions_keypoints_losses_and_gradients():
    d = np.load(REFERENCE / "keypointrcnn_resnet50_fpn.npz")
    image = d["image"].astype(np.float32) / 255
    sizes = dict(num_classes=2, min_size=256, max_size=320, trainable_backbone_layers=5)
    few = dict(rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200, box_score_thresh=0.0)
    (result,) = fill(models.keypointrcnn_resnet50_fpn(**sizes, **few)).predict([image])
    np.testing.assert_allclose(result["scores"], d["det_scores"], rtol=1e-3)
    np.testing.assert_allclose(result["keypoints"][:5, :, :2], d["det_keypoints"][:5, :, :2], atol=0.02)
    all_of_them = dict(rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**6, **FEW)
    model = fill(models.keypointrcnn_resnet50_fpn(**sizes, **all_of_them))
    target = dict(boxes=d["target_boxes"], labels=d["target_labels"], keypoints=d["target_keypoints"])
    losses = model([image], [target])
    for key in (key for key in d.files if key.startswith("loss_")):
        assert float(losses[key.removeprefix("loss_")]) == pytest.approx(float(d[key]), rel=1e-5), key
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, norm in zip(d["grad_norm_names"].tolist(), d["grad_norms"].tolist()):
        found = np.linalg.norm(gradients[name].astype(np.float64))
        if name == "roi_heads.keypoint_predictor.kps_score_lowres.bias":
            # A softmax over all positions does not see it: in both systems there is rounding alone.
            assert found < 1e-6 and norm < 1e-6
        else:
            assert found == pytest.approx(norm, rel=2e-3), name


def stem_of(state: dict) -> dict:
    """The entries by which detectron2's files are known, which have no gradient."""
    return {name: array for name, array in state.items() if "stem.conv1.weight" in name}


def test_torchvisions_second_version_gives_its_detections():
    d = np.load(REFERENCE / "maskrcnn_resnet50_fpn_v2.npz")
    h, w = d["image"].shape[1:]
    counts = dict(rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200, box_score_thresh=0.0)
    shapes = {k: v.shape for k, v in names_of(models.maskrcnn_resnet50_fpn_v2, 91).items()}
    model = models.from_checkpoint(
        weights_by_name(shapes, small=True), min_size=h, max_size=w, **counts
    ).eval()
    (result,) = model([d["image"].astype(np.float32) / 255])
    np.testing.assert_array_equal(result["labels"][:5], d["det_labels"][:5])
    np.testing.assert_allclose(result["scores"], d["det_scores"], rtol=1e-3)
    np.testing.assert_allclose(result["boxes"][:5], d["det_boxes"][:5], atol=0.02)
    got, want = result["masks"].numpy()[:5], d["det_masks"][:5] / 255
    assert np.abs(got - want).max() < 1.5 / 255  # the reference keeps 8 bits, truncated
