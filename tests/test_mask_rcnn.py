"""The whole system: its gradient, the paper's claims, torchvision's numbers, and what it makes of nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimask import InputError, Tensor, backend, models, no_grad
from minimask.backend import to_cpu
from minimask.config import Config, to_dict, with_settings
from minimask.models.box_head import RoIs
from minimask.models.mask_head import MaskHead
from minimask.models.networks import build_model, checkpoint_config
from minimask.models.rpn import top_k, top_of_each_level
from minimask.nn import Linear, Module
from minimask.randomness import Draws
from minimask.weights.checkpoint import Checkpoint
from tests.fake_cupy import installed, syncs
from tests.model_data import discs, fill, tiny_model
from tests.whole_gradient import STEP, gradient_errors, loss_along, spread_out

REFERENCE = Path(__file__).parent / "reference" / "maskrcnn_resnet50_fpn.npz"


@pytest.fixture(scope="module")
def training():
    """A model, two images (one with a crowd), and the record of a step whose losses' sum has flowed back."""
    model, rng = tiny_model(), np.random.default_rng(3)
    images, targets = zip(discs(rng, 4), discs(rng, 3))
    targets[1]["crowd_boxes"] = np.array([[0.0, 0.0, 20.0, 20.0]])
    spread_out(model, rng)
    record = model.training_record(images, targets, Draws(seed=1))
    sum(record.losses.values()).backward()
    return model, images, targets, record


def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences_in_every_parameter(training):
    model, images, targets, record = training
    errors = gradient_errors(model, images, targets, record)
    worst = max(errors, key=errors.get)
    assert errors[worst] < 1e-5, f"{worst}: {errors[worst]:.1e}"
    assert len(errors) == len(model.state_dict())


def test_finite_differences_disagree_when_the_proposals_may_move(training):
    model, images, targets, record = training
    p = model.rpn.head.bbox_pred.bias  # moves every proposal a little
    v = np.ones(p.shape)
    held = loss_along(model, images, targets, p, v, record)
    moving = loss_along(model, images, targets, p, v, None)
    heads = ("loss_classifier", "loss_box_reg", "loss_mask")
    for name in heads:
        assert held[0][name] == held[3][name]  # the analytic gradient of the heads' losses is 0 here ...
    assert any(
        abs(moving[3][name] - moving[0][name]) / (4 * STEP) > 1e-3 for name in heads
    )  # ... they do move


def test_the_mask_loss_reaches_no_class_or_box_predictor_and_no_other_classs_mask():
    model, rng = tiny_model(), np.random.default_rng(0)
    image, target = discs(rng, 4, classes=1)  # class 2 of the model does not occur
    record = model.training_record([image], [target])
    record.losses["loss_mask"].backward()
    for module in (model.box_head, model.rpn):
        assert all(p.grad is None for p in module.parameters())  # not even reached: exactly no gradient
    predictor = model.mask_head.net.mask_predictor.mask_fcn_logits
    assert np.all(predictor.weight.grad[[0, 2]] == 0)
    assert np.all(predictor.bias.grad[[0, 2]] == 0)
    assert np.any(predictor.weight.grad[1] != 0)
    logits = Tensor(record.mask.data, requires_grad=True)
    model.mask_head.loss(logits, record.rois.positive, record.targets)["loss_mask"].backward()
    assert np.all(logits.grad[:, [0, 2]] == 0)
    assert np.count_nonzero(logits.grad[:, 1]) > 0.9 * logits.grad[:, 1].size


class MaskMLP(Module):
    """Another mask branch, as in the paper's table 2e: fully connected, 3 classes of 28 x 28."""

    def __init__(self, channels: int, rng):
        self.fc = Linear(channels * 14 * 14, 3 * 28 * 28, rng)

    def forward(self, x):
        return self.fc(x.reshape(len(x), self.fc.weight.shape[1])).reshape(len(x), 3, 28, 28)


def test_a_mask_head_is_given_its_net_and_another_net_trains_as_well():
    model, rng = tiny_model(), np.random.default_rng(0)
    paper = model.mask_head
    names = [name for name in model.state_dict() if "mask" in name]
    assert names[0] == "roi_heads.mask_head.0.0.weight"
    assert names[-1] == "roi_heads.mask_predictor.mask_fcn_logits.bias"
    model.mask_head = MaskHead(paper.pooler, MaskMLP(8, rng).astype(np.float64), paper.convention)
    assert [name for name in model.state_dict() if name.startswith("roi_heads.fc")] == [
        "roi_heads.fc.weight",
        "roi_heads.fc.bias",
    ]
    image, target = discs(rng, 3)
    model.loss([image], [target])["loss_mask"].backward()
    assert np.any(model.mask_head.net.fc.weight.grad != 0)
    (found,) = model.eval().predict([image])
    assert found["masks"].probabilities.shape == (len(found["boxes"]), 28, 28)


def test_mask_logits_do_not_change_with_the_class_predictors_weights():
    model, rng = tiny_model(), np.random.default_rng(0)
    image, target = discs(rng, 3)
    before = model.training_record([image], [target])
    for p in model.box_head.box_predictor.parameters():
        p.data = rng.normal(size=p.shape)
    after = model.training_record([image], [target])
    assert not np.array_equal(before.box.logits.data, after.box.logits.data)
    assert np.array_equal(before.rois.boxes, after.rois.boxes)
    assert np.array_equal(before.mask.data, after.mask.data)


# ------------------------------------------------------------------------------------------- the stages


def test_the_largest_come_first_and_equal_ones_in_their_order_on_both_devices():
    values = np.random.default_rng(0).integers(0, 9, 200).astype(np.float32)
    expected = sorted(range(200), key=lambda i: -values[i])
    with installed() as cupy:
        for k in (0, 1, 57, 200, 300):
            assert top_k(values, k).tolist() == expected[:k]
            assert top_k(cupy.asarray(values), k, cupy).get().tolist() == expected[:k]


@pytest.mark.parametrize("per_level", [[7, 3, 0, 1], [100, 25], [5]])
def test_the_largest_of_each_level_are_the_same_ones_on_both_devices(per_level):
    logits = np.random.default_rng(0).integers(0, 5, sum(per_level)).astype(np.float32)
    with installed() as cupy:
        for k in (0, 1, 3, 50):
            chosen, levels = top_of_each_level(logits, per_level, k)
            found, theirs = top_of_each_level(cupy.asarray(logits), per_level, k, cupy)
            np.testing.assert_array_equal(found.get(), chosen)
            np.testing.assert_array_equal(theirs.get(), levels)


def test_both_devices_draw_the_same_samples_and_wait_once_for_each_kind():
    model, rng = tiny_model(), np.random.default_rng(0)
    images, targets = zip(discs(rng, 5), discs(rng, 3))
    record = model.training_record(images, targets, Draws(seed=1))
    moved = {"boxes", "masks", "crowd_boxes"}
    with installed() as cupy:
        there = [
            replace(t, **{name: cupy.asarray(getattr(t, name)) for name in moved}) for t in record.targets
        ]
        rpn = replace(record.rpn, anchors=cupy.asarray(record.rpn.anchors))
        syncs.clear()
        anchors = model.rpn.sample(rpn, there, Draws(seed=1))
        rois = model.box_head.sample(list(map(cupy.asarray, record.proposals)), there, Draws(seed=1))
        positive = rois.positive
        assert len(syncs) == 2, syncs  # the matches of anchors, the matches of proposals
        for mine, theirs in (
            (anchors, record.anchors),
            (rois, record.rois),
            (positive, record.rois.positive),
        ):
            for name, array in vars(theirs).items():
                np.testing.assert_array_equal(to_cpu(getattr(mine, name)), array, err_msg=name)
        assert isinstance(rois.boxes, cupy.ndarray) and isinstance(anchors.targets, cupy.ndarray)
    assert rois.images.tolist() == rois.boxes.get()[:, 0].tolist()


def test_anchors_are_made_once_for_each_size():
    model, rng = tiny_model(), np.random.default_rng(0)
    (small, _), (large, _) = discs(rng, 1), discs(rng, 1, size=96)
    first, again, other = (
        model.rpn(model.backbone(Tensor(batch.images)), batch).anchors
        for batch in (model.transform([image], model.dtype) for image in (small, small, large))
    )
    assert again is first and len(other) > len(first)


# -------------------------------------------------------------------------------------------- torchvision


def torchvision_like(**options):
    size = dict(num_classes=91, min_size=256, max_size=320, trainable_backbone_layers=5)
    return fill(models.maskrcnn_resnet50_fpn(**(size | options)))


@pytest.fixture
def two_threads(monkeypatch):
    """Whatever share of the processors the process has."""
    monkeypatch.setattr(backend.workers, "threads", lambda: 2)


def test_inference_gives_torchvisions_detections(two_threads):
    d = np.load(REFERENCE)
    model = torchvision_like(
        box_score_thresh=0.0, rpn_pre_nms_top_n_test=500, rpn_post_nms_top_n_test=200
    ).eval()
    result = model([d["image"].astype(np.float32) / 255])[0]
    assert np.array_equal(result["labels"][:20], d["det_labels"][:20])
    np.testing.assert_allclose(result["scores"], d["det_scores"], rtol=5e-4)
    np.testing.assert_allclose(result["boxes"][:20], d["det_boxes"][:20], atol=0.02)
    got, want = result["masks"].numpy()[:20], d["det_masks"].reshape(20, 1, *d["image"].shape[1:]) / 255
    assert np.abs(got - want).max() < 1 / 255  # the reference keeps 8 bits, truncated


def test_losses_and_gradients_are_torchvisions(two_threads):
    d = np.load(REFERENCE)
    counts = dict(rpn_pre_nms_top_n_train=500, rpn_post_nms_top_n_train=200)
    model = torchvision_like(rpn_batch_size_per_image=10**6, box_batch_size_per_image=10**6, **counts)
    masks = np.unpackbits(d["target_masks"], axis=-1)[..., :320]
    target = dict(boxes=d["target_boxes"], labels=d["target_labels"], masks=masks)
    losses = model([d["image"].astype(np.float32) / 255], [target])
    for name, loss in losses.items():
        assert float(loss) == pytest.approx(float(d[f"loss_{name}"]), rel=1e-5)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    norms = [np.linalg.norm(gradients[name].astype(np.float64)) for name in d["grad_norm_names"]]
    # torchvision with one thread or two differs from itself by 1.1e-3
    np.testing.assert_allclose(norms, d["grad_norms"], rtol=2e-3)


def test_frozen_stages_have_no_gradient_and_keep_no_graph():
    model = models.maskrcnn_resnet50_fpn(num_classes=2, min_size=64, max_size=64)
    image, target = discs(np.random.default_rng(0), 2, classes=1)
    sum(model([image.astype(np.float32)], [target]).values()).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[2] for n in frozen} == {"conv1", "layer1"}
    assert all((p.grad is None) == (name in frozen) for name, p in model.named_parameters())


# ------------------------------------------------------------------------------------------------ nothing


def test_an_image_without_objects_trains_the_classifiers_and_has_no_box_or_mask_loss():
    model, rng = tiny_model(), np.random.default_rng(0)
    image, target = discs(rng, 0)
    losses = model.loss([image], [target])
    assert (
        float(losses["loss_box_reg"]) == float(losses["loss_mask"]) == float(losses["loss_rpn_box_reg"]) == 0
    )
    assert float(losses["loss_classifier"]) > 0 and float(losses["loss_objectness"]) > 0
    sum(losses.values()).backward()
    for p in model.mask_head.parameters():
        assert np.all(p.grad == 0)


def test_no_proposals_and_no_detections_flow_through():
    model = tiny_model(rpn_post_nms_top_n_test=0).eval()
    image, _ = discs(np.random.default_rng(0), 2)
    (result,) = model([image])
    assert result["boxes"].shape == (0, 4) and len(result["masks"]) == 0
    assert result["masks"].numpy().shape == (0, 1, 64, 64)
    (result,) = tiny_model(box_score_thresh=1.0).eval()([image])
    assert result["boxes"].shape == (0, 4) and result["labels"].shape == result["scores"].shape == (0,)


def test_a_step_without_a_single_positive_roi_has_gradients_of_zero_in_the_mask_head():
    model = tiny_model()
    image, target = discs(np.random.default_rng(0), 2)
    record = model.training_record([image], [target])
    none = RoIs(np.zeros((0, 5)), np.zeros(0, np.int64), np.zeros(0, np.int64))
    logits = model.mask_head(record.levels, none.boxes)
    assert logits.shape == (0, 3, 28, 28)
    model.mask_head.loss(logits, none, record.targets)["loss_mask"].backward()


# ----------------------------------------------------------------------------------------------- in and out


def test_results_are_in_the_pixels_of_each_original_image():
    model = tiny_model(min_size=64, box_score_thresh=0.0).eval()
    rng = np.random.default_rng(2)
    images = [rng.random((3, 40, 50)), rng.random((3, 128, 96))]
    for image, result in zip(images, model(images)):
        h, w = image.shape[1:]
        assert len(result["boxes"]) == 100
        assert result["boxes"].min() >= 0 and (result["boxes"].max(axis=0) <= [w, h, w, h]).all()
        assert result["boxes"][:, 2].max() > 0.6 * w  # boxes were scaled back, not merely clipped
        assert result["masks"].shape == (100, 1, h, w)


def test_a_batch_gives_what_its_images_give_alone():
    model = tiny_model(box_score_thresh=0.0).eval()
    rng = np.random.default_rng(2)
    images = [rng.random((3, 64, 64)), rng.random((3, 64, 64))]
    for together, image in zip(model(images), images):
        alone = model([image])[0]
        np.testing.assert_allclose(together["boxes"], alone["boxes"], rtol=1e-9)
        np.testing.assert_allclose(together["scores"], alone["scores"], rtol=1e-9)


def test_the_same_draws_give_the_same_losses_to_the_bit_and_others_others():
    image, target = discs(np.random.default_rng(0), 6)
    values = [
        {k: float(v) for k, v in tiny_model().loss([image], [target], draws).items()}
        for draws in (Draws(0, 5), Draws(0, 5), Draws(0, 6))
    ]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(boxes=np.array([[5.0, 5.0, 3.0, 9.0]] * 2)), r"targets\[0\]: box 0 .* x1 < x2"),
        (dict(labels=np.array([0, 1])), r"targets\[0\]: label 0; classes are numbered from 1"),
        (dict(masks=np.zeros((2, 10, 10), np.uint8)), r"targets\[0\]: .* masks must be \(2, 64, 64\)"),
        (dict(boxes=np.full((2, 4), np.nan)), r"targets\[0\]: box 0 is"),
    ],
)
def test_a_target_that_cannot_be_is_named(change, message):
    image, target = discs(np.random.default_rng(0), 2)
    with pytest.raises(InputError, match=message):
        tiny_model().loss([image], [target | change])


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((3, 64, 64), np.uint8), np.zeros((64, 64))]
)
def test_an_image_of_another_form_is_named(image):
    with pytest.raises(InputError, match=r"images\[0\]: must be \(3, H, W\)"):
        tiny_model().eval()([image])


def test_weights_of_another_model_are_refused_by_name_and_change_nothing():
    model, other = tiny_model(num_classes=3), tiny_model(num_classes=4)
    before = {k: v.copy() for k, v in model.state_dict().items()}
    with pytest.raises(InputError, match=r"roi_heads\.box_predictor\.cls_score\.weight has shape \(4, 16\)"):
        model.load_state_dict(other.state_dict())
    assert all(np.array_equal(v, before[k]) for k, v in model.state_dict().items())


def test_maskrcnn_small_has_at_most_three_million_parameters():
    assert sum(p.size for p in models.maskrcnn_small(2).parameters()) <= 3_000_000


def test_from_random_weights_every_part_of_the_large_network_trains_and_its_maps_keep_their_scale():
    config = with_settings(Config(), ["model.name=maskrcnn_resnet50_fpn"])
    model = build_model(config, 3)
    assert all(p.requires_grad for p in model.parameters())
    noise = np.random.default_rng(0).standard_normal((1, 3, 128, 128)).astype(np.float32)
    with no_grad():
        scales = [float(level.data.std()) for level in model.backbone.body(Tensor(noise))]
    assert all(0.3 < scale < 5 for scale in scales), scales  # frozen norms that change nothing: 5 to 319


def test_a_checkpoint_from_before_norms_could_be_chosen_has_frozen_ones():
    config = with_settings(Config(), ["model.name=maskrcnn_resnet50_fpn"])
    old = {name: dict(section) for name, section in to_dict(config).items()}
    assert "norm" not in old["model"]
    read = checkpoint_config(Checkpoint({}, config=old), "run/checkpoint.npz")
    assert (read.model.norm, read.model.trainable_layers) == ("frozen", 3)
    assert any("running_mean" in name for name in build_model(read, 3).state_dict())
