"""The other networks: gradients of each as a whole, and that each trains on only what it needs."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minimask import InputError, Tensor, models
from minimask.backend import to_cpu
from minimask.config import Config, options, with_settings
from minimask.models.assembly import Architecture, assemble
from minimask.models.box_head import Pooler
from minimask.models.conventions import DETECTRON2, MINIMASK, TORCHVISION
from minimask.models.networks import NETWORKS, resolved
from minimask.models.resnet import BasicBlock
from minimask.nn import BatchNorm2d, GroupNorm
from minimask.randomness import Draws
from tests.model_data import discs
from tests.whole_gradient import gradient_errors, spread_out

TINY = Architecture(
    blocks=(1, 1, 1, 1),
    channels=(4, 4, 8, 8),
    width_per_group=64,
    fpn_channels=8,
    box_width=16,
    anchor_sizes=(8, 16, 32, 64, 128),
)
GROUPS = partial(GroupNorm, groups=4)
KINDS = {
    "bottlenecks with torchvision's conventions": (TINY, TORCHVISION, GROUPS),
    "frozen norms with detectron2's conventions": (TINY, DETECTRON2, None),
    "grouped convolutions": (replace(TINY, groups=2), MINIMASK, GROUPS),
    "half the strides": (
        replace(TINY, pool=False, box_convs=2, block=BasicBlock, head_norm=GROUPS),
        MINIMASK,
        GROUPS,
    ),
    "C4": (replace(TINY, pyramid=False), DETECTRON2, GROUPS),
    "Faster R-CNN": (replace(TINY, masks=False), TORCHVISION, GROUPS),
    "the second version": (
        replace(TINY, rpn_convs=2, box_convs=2, mask_convs=2, head_norm=BatchNorm2d),
        TORCHVISION,
        BatchNorm2d,
    ),
    "the second version without masks": (
        replace(TINY, rpn_convs=2, box_convs=2, masks=False, block=BasicBlock, head_norm=BatchNorm2d),
        TORCHVISION,
        BatchNorm2d,
    ),
}


class InTurn(Pooler):
    """One RoI after another reads the next level: by their size, all of these small ones would read P2."""

    def __call__(self, levels, rois):
        scales = tuple(1.0 / s for s in self.strides)
        return self.roi_layer(levels[:4], rois, self.output_size, scales, levels=np.arange(len(rois)) % 4)


def tiny(kind: str, **options):
    architecture, conventions, norm = KINDS[kind]
    counts = dict(rpn_post_nms_top_n_train=40, box_batch_size_per_image=12, rpn_batch_size_per_image=32)
    model = assemble(
        architecture,
        3,
        conventions,
        min_size=None,
        max_size=1000,
        norm=norm,
        rpn_and_box=counts | options,
    )
    if architecture.pyramid:
        for head in filter(None, (model.box_head, model.mask_head)):
            was = head.pooler
            head.pooler = InTurn(was.output_size, was.roi_layer, strides=was.strides)
    return model.astype(np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_each_networks_loss_agrees_with_finite_differences_in_every_parameter(kind):
    model, rng = tiny(kind), np.random.default_rng(3)
    # Of four times as many values, one would too often be near a ReLU's kink.
    side = 64 if KINDS[kind][0].pool else 32
    images, targets = zip(discs(rng, 4, side), discs(rng, 3, side))
    spread_out(model, rng)
    record = model.training_record(images, targets, Draws(seed=1))
    sum(record.losses.values()).backward()
    errors = gradient_errors(model, images, targets, record, tries=20)
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-5, f"{worst}: {errors[worst]:.1e}"
    assert len(errors) == len(model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_along_the_gradient_lowers_each_networks_loss_and_reaches_every_parameter(kind):
    model, rng = tiny(kind), np.random.default_rng(0)
    images, targets = zip(discs(rng, 4), discs(rng, 3))
    record = model.training_record(images, targets, Draws(seed=1))
    before = sum(record.losses.values())
    before.backward()
    assert all(np.any(p.grad != 0) for p in model.parameters())
    square = sum(float((p.grad**2).sum()) for p in model.parameters())
    for p in model.parameters():
        p.data = p.data - 1e-3 * float(before) / square * p.grad
    after = sum(model.training_record(images, targets, Draws(seed=1), held=record).losses.values())
    assert float(after) < float(before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["C4", "Faster R-CNN", "the second version", "grouped convolutions"])
def test_each_network_computes_the_same_on_a_gpu(kind, fake_cupy):
    (image, target), found = discs(np.random.default_rng(0), 3, size=32), []
    for device in ("cpu", "cuda"):
        model = tiny(kind, box_score_thresh=0.0).to(device)
        losses = model.loss([image], [target], Draws(seed=1))
        sum(losses.values()).backward()
        gradients = {name: to_cpu(p.grad) for name, p in model.named_parameters()}
        found.append(
            ({name: float(loss) for name, loss in losses.items()}, gradients, model.predict([image])[0])
        )
    (losses, gradients, result), (theirs, their_gradients, their_result) = found
    assert theirs == pytest.approx(losses, rel=1e-9)
    for name, gradient in gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(their_gradients[name], gradient, rtol=0, atol=1e-7 * scale, err_msg=name)
    np.testing.assert_allclose(their_result["boxes"], result["boxes"], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_results_have_masks_where_there_is_a_mask_head(kind):
    model, (image, _) = tiny(kind, box_score_thresh=0.0).eval(), discs(np.random.default_rng(0), 3)
    (result,) = model([image])
    assert len(result["boxes"]) == len(result["labels"]) == len(result["scores"]) > 0
    assert ("masks" in result) == KINDS[kind][0].masks
    if "masks" in result:
        assert result["masks"].shape == (len(result["boxes"]), 1, *image.shape[1:])


def test_faster_rcnn_needs_no_masks_and_has_no_loss_of_them():
    model, (image, target) = tiny("Faster R-CNN"), discs(np.random.default_rng(0), 3)
    without = {name: value for name, value in target.items() if name != "masks"}
    losses = model.loss([image], [without], Draws())
    assert list(losses) == ["loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"]
    assert float(losses["loss_box_reg"]) == float(model.loss([image], [target], Draws())["loss_box_reg"])
    with pytest.raises(
        InputError, match=r"targets\[0\]: lacks labels; give boxes \(G, 4\), labels \(G,\), with"
    ):
        model.loss([image], [{"boxes": target["boxes"]}])
    with pytest.raises(InputError, match=r"targets\[0\]: lacks masks"):
        tiny("C4").loss([image], [without])


def test_c4s_mask_head_goes_on_from_what_the_box_head_pooled_and_has_no_parameters_twice():
    model, rng = tiny("C4"), np.random.default_rng(0)
    images, targets = zip(discs(rng, 4), discs(rng, 3))
    record = model.training_record(images, targets, Draws(seed=1))
    anew = model.mask_head(record.levels, record.rois.positive.boxes)
    np.testing.assert_allclose(record.mask.data, anew.data, rtol=1e-12)
    assert record.mask.shape[1:] == (3, 14, 14)
    names = [name for name, _ in model.named_parameters()]
    assert sum("layer4" in name for name in names) == sum(
        "roi_heads.box_head.layer4" in name for name in names
    )
    assert len(names) == len(set(names)) and not any("mask" in name and "layer4" in name for name in names)


def test_c4_takes_images_of_any_size_without_padding_and_its_anchors_lie_16_apart():
    model, image = tiny("C4").eval(), np.random.default_rng(0).random((3, 70, 101))
    batch = model.transform([image], model.dtype)
    assert batch.padded_size == (70, 101)
    anchors = model.rpn(model.backbone(Tensor(batch.images)), batch).anchors
    centres = np.unique(np.round((anchors[:, 0] + anchors[:, 2]) / 2, 3))
    np.testing.assert_allclose(centres, 16.0 * np.arange(7), atol=0)  # ceil(101 / 16) cells


def test_c4_refuses_a_scale_of_levels_that_it_does_not_have():
    with pytest.raises(ValueError, match="canonical_scale: C4 has a single level"):
        models.maskrcnn_resnet50_c4(3, architecture=replace(TINY, pyramid=False, canonical_scale=112))


@pytest.mark.parametrize("build", [models.maskrcnn_resnet50_c4, models.maskrcnn_resnet50_fpn])
def test_the_last_stage_counts_among_the_layers_that_train_wherever_it_is(build):
    def trained(layers: int) -> set[str]:
        parameters = build(3, layers, seed=None).named_parameters()
        return {stage for name, p in parameters if p.requires_grad for stage in re.findall(r"layer\d", name)}

    assert trained(0) == set()
    assert trained(1) == {"layer4"}
    assert trained(3) == {"layer2", "layer3", "layer4"}
    assert trained(5) == {"layer1", "layer2", "layer3", "layer4"}


@pytest.mark.parametrize(
    ("name", "option"),
    [("maskrcnn_resnet50_c4", "mask_branch=mlp2"), ("maskrcnn_small", "trainable_layers=3")],
)
def test_what_a_network_has_no_choice_of_is_refused_by_name(name, option):
    config = with_settings(Config(), [f"model.name={name}", f"model.{option}"])
    with pytest.raises(InputError, match=rf"^model\.{option.split('=')[0]}: {name} has no such choice"):
        resolved(config)


def test_every_network_that_a_configuration_can_name_is_built_from_its_name():
    names = {key: entry for key, entry in options() if key == "model.name"}["model.name"].metadata["choices"]
    assert set(names) == set(NETWORKS)
    for name in names:
        network = NETWORKS[name]
        more = {"num_keypoints": 5} if network.keypoints else {}
        assert network.build(3, seed=None, **more).transform.conventions == network.conventions
