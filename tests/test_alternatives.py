"""The alternatives that the paper compares: RoI layers, softmax and class-agnostic masks, the MLP branch."""

import json
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
from scipy import special

from minimask import InputError, Tensor, backend, models, no_grad
from minimask import functions as F
from minimask.anchors import AnchorGenerator
from minimask.command import cli
from minimask.config import Config, from_dict, to_dict, with_settings
from minimask.lessons import cuda_on_cpu
from minimask.models.box_head import BoxHead, BoxOptions, BoxOutput, BoxPredictor, Pooler, RoIs
from minimask.models.conventions import MINIMASK, TORCHVISION
from minimask.models.mask_head import MaskFCN, MaskHead, MaskMLP, SigmoidMasks, SoftmaxMasks
from minimask.models.networks import MASK_BRANCHES, MASK_LOSSES, ROI_LAYERS, build_model, checkpoint_config
from minimask.models.rpn import RPN, RPNHeadNet
from minimask.models.transform import Batch
from minimask.nn import Conv2d, Linear, Module
from minimask.randomness import Draws
from minimask.training.optim import SGD
from minimask.weights.checkpoint import Checkpoint
from tests.cli_data import make_dataset
from tests.fake_cupy import installed
from tests.model_data import discs, tiny_model


@dataclass(frozen=True)
class Choice:
    """Arguments of a builder, and the stride of the one map that the heads read, if it is no pyramid."""

    options: dict = field(default_factory=dict)
    stride: int | None = None


ALIGN_MAX = partial(F.roi_align, sampling_ratio=2, aligned=True, aggregation="max")
WARP = partial(F.roi_warp, sampling_ratio=2, aligned=True)
CHOICES = {
    "RoIPool, softmax": Choice(dict(roi_layer=F.roi_pool, mask_loss=SoftmaxMasks())),
    "RoIWarp (max), class-agnostic": Choice(
        dict(
            roi_layer=partial(WARP, aggregation="max"),
            mask_loss=SigmoidMasks(class_agnostic=True),
            box_class_agnostic=True,
        )
    ),
    "RoIWarp (average), MLP": Choice(dict(roi_layer=WARP, mask_branch=MaskMLP)),
    "RoIAlign (max), class-agnostic softmax, MLP of three": Choice(
        dict(
            roi_layer=ALIGN_MAX,
            mask_loss=SoftmaxMasks(class_agnostic=True),
            mask_branch=partial(MaskMLP, layers=3),
        )
    ),
    "RoIPool on C4": Choice(dict(roi_layer=F.roi_pool), stride=16),
    "RoIAlign on C5, softmax": Choice(dict(mask_loss=SoftmaxMasks()), stride=32),
}
each_choice = pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)


class OneMap(Module):
    """A backbone of one map, C4 or C5, with its channels reduced: no pyramid."""

    def __init__(self, body, stage: int, channels: int, rng):
        self.body, self.stage = body, stage
        self.reduce = Conv2d(body.channels[stage], channels, 1, rng, gain=1.0)
        if stage == 2:  # C5 is computed, and nobody reads it
            for p in body.layer4.parameters():
                p.requires_grad = False

    def forward(self, images):  # (N, 3, H, W) -> one (N, C, H/s, W/s)
        return [self.reduce(self.body(images)[self.stage])]


def build(choice: Choice, **options):
    """A tiny model with that choice, in float64."""
    model, rng = tiny_model(**options, **choice.options), np.random.default_rng(0)
    if choice.stride:
        model.backbone = OneMap(model.backbone.body, {16: 2, 32: 3}[choice.stride], 8, rng)
        anchors = AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),), rounded=False, offset=0.5)
        model.rpn = RPN(RPNHeadNet(8, 9, rng), anchors, model.rpn.options)
        for head in (model.box_head, model.mask_head):
            head.pooler = replace(head.pooler, strides=(choice.stride,))
        model.astype(np.float64)
    return model


def spread_out(model, rng):
    """Move the weights off their start: predictors near 0 hide what lies below, ReLU has a kink at 0."""
    for name, p in model.named_parameters():
        if p.ndim == 1 and name.endswith("bias"):
            p.data = rng.normal(size=p.shape) * 0.1
        elif "pred" in name or "cls" in name or "logits" in name:
            p.data = rng.normal(size=p.shape) * 0.3 / np.sqrt(np.prod(p.shape[1:]))


def two_images():
    rng = np.random.default_rng(3)
    images, targets = zip(discs(rng, 4), discs(rng, 3))
    return images, targets


# --------------------------------------------------------------------------------------------- the two losses


def logits_and_masks(rng, soft=False):
    """Logits (R, K+1, M, M) of three RoIs and three classes, labels (R,), targets (R, M, M)."""
    targets = rng.random((3, 5, 5)) if soft else rng.integers(0, 2, (3, 5, 5)).astype(float)
    return rng.normal(size=(3, 4, 5, 5)), np.array([1, 3, 3]), targets


def test_a_pixel_inside_wants_the_rois_class_and_one_outside_wants_background():
    logits, labels, targets = logits_and_masks(np.random.default_rng(0))
    expected = 0.0
    for r, i, j in np.ndindex(targets.shape):
        wanted = labels[r] if targets[r, i, j] == 1 else 0
        expected -= special.log_softmax(logits[r, :, i, j])[wanted] / targets.size
    assert float(F.softmax_mask_loss(logits, labels, targets)) == pytest.approx(expected, rel=1e-14)


def test_a_soft_target_is_a_mixture_of_object_and_background():
    logits, labels, targets = logits_and_masks(np.random.default_rng(0), soft=True)
    targets[:] = 0.3
    ends = [float(F.softmax_mask_loss(logits, labels, np.full_like(targets, t))) for t in (0.0, 1.0)]
    mixed = 0.7 * ends[0] + 0.3 * ends[1]
    assert float(F.softmax_mask_loss(logits, labels, targets)) == pytest.approx(mixed, rel=1e-14)


def test_a_softmax_of_two_channels_is_a_sigmoid_of_their_difference():
    logits, labels, targets = logits_and_masks(np.random.default_rng(1), soft=True)
    two = Tensor(logits[:, :2], requires_grad=True)
    one = Tensor(logits[:, 1:2] - logits[:, :1], requires_grad=True)
    losses = [SoftmaxMasks(True).loss(two, labels, targets), SigmoidMasks(True).loss(one, labels, targets)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-14)
    for loss in losses:
        loss.backward()
    np.testing.assert_allclose(two.grad, np.concatenate([-one.grad, one.grad], axis=1), atol=1e-16)
    probabilities = SoftmaxMasks(True).probabilities(two.data, labels)
    np.testing.assert_allclose(probabilities, SigmoidMasks(True).probabilities(one.data, labels), rtol=1e-14)


def test_logits_beyond_what_exp_can_hold_give_finite_losses_and_gradients():
    rng = np.random.default_rng(2)
    _, labels, targets = logits_and_masks(rng)
    x = Tensor(rng.choice([-3e4, 3e4], (3, 4, 5, 5)).astype(np.float32), requires_grad=True)
    loss = F.softmax_mask_loss(x, labels, targets.astype(np.float32))
    loss.backward()
    assert loss.dtype == x.grad.dtype == np.float32
    assert 1e3 < float(loss) < 6e4 and np.isfinite(x.grad).all()


def test_softmax_masks_compete_and_sigmoid_masks_do_not():
    logits, labels, _ = logits_and_masks(np.random.default_rng(0))
    raised = logits.copy()
    raised[:, 2] += 1.0  # the class of none of the RoIs
    sigmoid, softmax = SigmoidMasks(), SoftmaxMasks()
    np.testing.assert_array_equal(
        sigmoid.probabilities(raised, labels), sigmoid.probabilities(logits, labels)
    )
    assert np.all(softmax.probabilities(raised, labels) < softmax.probabilities(logits, labels))
    total = sum(softmax.probabilities(logits, np.full(3, label)) for label in range(4))
    np.testing.assert_allclose(total, 1.0, rtol=1e-14)


def test_a_softmax_trains_every_channel_of_every_roi_and_sigmoids_one_alone():
    values, labels, targets = logits_and_masks(np.random.default_rng(0))
    sigmoid, softmax = (Tensor(values, requires_grad=True) for _ in range(2))
    SigmoidMasks().loss(sigmoid, labels, targets).backward()
    SoftmaxMasks().loss(softmax, labels, targets).backward()
    others = np.arange(4) != labels[:, None]  # (R, K+1)
    assert np.all(sigmoid.grad[others] == 0) and np.all(sigmoid.grad[:, 0] == 0)
    assert np.all(softmax.grad != 0)
    np.testing.assert_allclose(softmax.grad.sum(axis=1), 0, atol=1e-17)  # what one gains, others lose


@pytest.mark.parametrize(
    "masks, channels",
    [
        (SigmoidMasks(), 4),
        (SigmoidMasks(class_agnostic=True), 1),
        (SoftmaxMasks(), 4),
        (SoftmaxMasks(class_agnostic=True), 2),
    ],
)
def test_there_are_as_many_channels_as_the_masks_need_and_no_rois_are_no_loss(masks, channels):
    assert masks.channels(4) == channels
    labels = np.array([1, 3])
    assert np.all(masks.channel(labels) < channels)
    none = Tensor(np.zeros((0, channels, 5, 5), np.float32), requires_grad=True)
    loss = masks.loss(none, labels[:0], np.zeros((0, 5, 5), np.float32))
    loss.backward()
    assert float(loss) == 0 and loss.dtype == np.float32 and none.grad.shape == none.shape
    assert masks.probabilities(none.data, labels[:0]).shape == (0, 5, 5)


def test_class_agnostic_masks_are_the_same_whatever_the_class():
    rng = np.random.default_rng(0)
    for masks in (SigmoidMasks(class_agnostic=True), SoftmaxMasks(class_agnostic=True)):
        logits, targets = rng.normal(size=(2, masks.channels(9), 5, 5)), rng.random((2, 5, 5))
        found = [masks.probabilities(logits, np.array(labels)) for labels in ([1, 1], [3, 8])]
        np.testing.assert_array_equal(*found)
        losses = [float(masks.loss(logits, np.array(labels), targets)) for labels in ([1, 1], [3, 8])]
        assert losses[0] == losses[1]


def test_a_net_with_too_few_channels_is_named():
    net = MaskFCN(8, 1, np.random.default_rng(0))
    rois = RoIs(np.array([[0, 0.0, 0.0, 8.0, 8.0]]), np.array([2]), np.array([0]))
    logits = Tensor(np.zeros((1, 1, 28, 28)))
    for masks in (SigmoidMasks(), SoftmaxMasks(), SoftmaxMasks(class_agnostic=True)):
        head = MaskHead(Pooler(14, F.roi_align), net, MINIMASK.masks, mask_loss=masks)
        with pytest.raises(InputError, match="the mask head's net has outputs for labels up to 0 only"):
            head.loss(logits, rois, [])


# --------------------------------------------------------------------------------------------- the MLP branch


@pytest.mark.parametrize("layers", [2, 3])
def test_the_mlp_branch_is_so_many_products_and_relus(layers):
    rng = np.random.default_rng(0)
    net = MaskMLP(2, 3, rng, layers=layers, size=4).astype(np.float64)
    names = [f"mask_head.{i}.{part}" for i in range(layers) for part in ("weight", "bias")]
    assert list(net.state_dict()) == [*names, "mask_predictor.weight", "mask_predictor.bias"]
    spread_out(net, rng)
    x, state = rng.normal(size=(3, 2, 4, 4)), net.state_dict()
    for y, roi in zip(net(x).data, x):
        h = [v for v in roi.flat]
        for i in range(layers):
            w, b = state[f"mask_head.{i}.weight"], state[f"mask_head.{i}.bias"]
            assert len(w) == 8  # four times the channels
            h = [max(0.0, sum(w[o, k] * h[k] for k in range(len(h))) + b[o]) for o in range(len(w))]
        w, b = state["mask_predictor.weight"], state["mask_predictor.bias"]
        expected = [sum(w[o, k] * h[k] for k in range(len(h))) + b[o] for o in range(len(w))]
        np.testing.assert_allclose(y.ravel(), expected, rtol=1e-12, atol=1e-14)
        assert y.shape == (3, 8, 8)
    assert net(x[:0]).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("options, parameters", [({}, 117_522_448), (dict(layers=3), 118_572_048)])
def test_the_mlp_branch_is_the_papers_at_256_channels(options, parameters, monkeypatch):
    shapes = []  # instead of drawing 117 M numbers
    monkeypatch.setattr(Linear, "__init__", lambda self, i, o, rng, gain=2.0: shapes.append((i, o)))
    MaskMLP(256, 81, None, **options)
    assert shapes[0] == (256 * 14 * 14, 1024) and shapes[-1] == (1024, 81 * 28 * 28)
    assert set(shapes[1:-1]) == {(1024, 1024)}
    assert sum(i * o + o for i, o in shapes) == parameters


# --------------------------------------------------------------------------- RoI layers, class-agnostic boxes


def test_both_heads_read_with_the_layer_they_are_given_on_every_level():
    calls = []

    def layer(maps, rois, output_size, scales, levels):
        calls.append((output_size, scales))
        return WARP(maps, rois, output_size, scales, levels=levels)

    model = tiny_model(roi_layer=layer)
    image, target = discs(np.random.default_rng(0), 3)
    model.loss([image], [target])
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    assert calls == [(7, scales), (14, scales)]


@pytest.mark.parametrize("name", ROI_LAYERS)
def test_on_one_map_a_pooler_reads_it_at_its_stride(name):
    rng, layer = np.random.default_rng(0), ROI_LAYERS[name](MINIMASK)
    c4 = rng.normal(size=(2, 3, 8, 8))
    rois = np.array([[0, 3.0, 9.0, 61.0, 50.0], [1, 0.0, 0.0, 128.0, 128.0], [1, 70.5, 20.25, 80.0, 90.0]])
    pooled = Pooler(7, layer, strides=(16,))([c4, "never read"], rois)
    np.testing.assert_array_equal(pooled.data, layer(c4, rois, 7, 1 / 16).data)


def test_the_names_of_roi_layers_stand_for_table_2c_under_the_networks_conventions():
    for conventions in (MINIMASK, TORCHVISION):
        found = {name: make(conventions) for name, make in ROI_LAYERS.items()}
        assert {name: layer.func for name, layer in found.items()} == {
            "roi_pool": F.roi_pool,
            "roi_warp_max": F.roi_warp,
            "roi_warp": F.roi_warp,
            "roi_align_max": F.roi_align,
            "roi_align": F.roi_align,
        }
        for name, layer in found.items():
            assert layer.keywords["aligned"] == conventions.aligned
            if name != "roi_pool":
                assert layer.keywords["sampling_ratio"] == conventions.sampling_ratio
                aggregation = layer.keywords.get("aggregation", "average")
                assert aggregation == ("max" if name.endswith("max") else "average")


def box_head(class_agnostic: bool) -> BoxHead:
    options = BoxOptions(class_agnostic=class_agnostic, score_thresh=0.0, nms_thresh=1.0)
    predictor = BoxPredictor(5, 4, np.random.default_rng(0), class_agnostic)
    return BoxHead(Pooler(7, F.roi_align), Linear(5, 5, np.random.default_rng(0)), predictor, options)


def test_class_agnostic_boxes_are_those_of_a_head_in_which_all_classes_agree():
    rng, specific, agnostic = np.random.default_rng(0), box_head(False), box_head(True)
    assert agnostic.box_predictor.bbox_pred.weight.shape == (4, 5)
    assert specific.box_predictor.bbox_pred.weight.shape == (16, 5)
    logits, deltas = Tensor(rng.normal(size=(3, 4))), rng.normal(size=(3, 4))
    corners = np.sort(rng.uniform(0, 60, (3, 2, 2)), axis=1).reshape(3, 4)
    batch = Batch(np.zeros((1, 3, 64, 64)), [(64, 64)], [(64, 64)])
    (one,) = agnostic.detect(BoxOutput(logits, Tensor(deltas)), [corners], batch)
    (all_,) = specific.detect(BoxOutput(logits, Tensor(np.tile(deltas, 4))), [corners], batch)
    assert len(one.boxes) == 9
    for name in ("boxes", "labels", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(all_, name))


# ----------------------------------------------------------------------------------------------- whole models


def test_the_defaults_are_the_papers_choice_to_the_bit():
    explicit = dict(
        roi_layer=partial(F.roi_align, sampling_ratio=2, aligned=True),
        mask_loss=SigmoidMasks(),
        mask_branch=MaskFCN,
        box_class_agnostic=False,
    )
    images, targets = two_images()
    found = []
    for model in (tiny_model(), tiny_model(**explicit)):
        losses = model.loss(images, targets, Draws(seed=1))
        sum(losses.values()).backward()
        gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
        found.append(model.state_dict() | {k: v.data for k, v in losses.items()} | gradients)
    ours, theirs = found
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_a_choice_in_the_heads_leaves_the_initial_weights_of_all_else_as_they_were():
    default = tiny_model().state_dict()
    for choice in (dict(mask_loss=SoftmaxMasks()), dict(mask_branch=MaskMLP), dict(roi_layer=F.roi_pool)):
        state = tiny_model(**choice).state_dict()
        for name, value in default.items():
            if "roi_heads.mask" not in name or "mask_branch" not in choice:
                np.testing.assert_array_equal(state[name], value, err_msg=name)


def directional(model, images, targets, group, held):
    """The losses' sum along a direction of some parameters at once, as a function of the step."""
    rng, start = np.random.default_rng(5), [p.data for p in group]
    size = np.sqrt(sum(p.size for p in group))

    def attempt():
        directions = [rng.choice([-1.0, 1.0], p.shape) / size for p in group]
        analytic = sum((p.grad * v).sum() for p, v in zip(group, directions))

        def slope(step):
            f = []
            for t in (-2, -1, 1, 2):
                for p, at, v in zip(group, start, directions):
                    p.data = at + t * step * v
                with no_grad():
                    losses = model.training_record(images, targets, Draws(1), held).losses
                f.append(sum(map(float, losses.values())))
            for p, at in zip(group, start):
                p.data = at
            return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)

        return analytic, slope(3e-6), slope(3e-6 / 4)

    return attempt


def error(a: float, b: float) -> float:
    return abs(a - b) / (abs(a) + abs(b))


def worst_error(choice: Choice, groups) -> tuple[float, str]:
    """The greatest relative error of a directional derivative over groups of parameters, and of which."""
    model, (images, targets) = build(choice), two_images()
    spread_out(model, np.random.default_rng(4))
    record = model.training_record(images, targets, Draws(1))
    assert len(record.rois.positive.labels) > 4 and len(record.box.logits) > 8
    sum(record.losses.values()).backward()
    errors = {}
    for key, group in groups(model).items():
        attempt = directional(model, images, targets, group, record)
        norm = np.sqrt(sum((p.grad**2).sum() for p in group) / sum(p.size for p in group))
        for _ in range(10):
            analytic, wide, narrow = attempt()
            # Another direction where the slope is near 0, or a kink lies between the two steps' ends
            if abs(analytic) > 0.1 * norm and error(wide, narrow) < 5e-6:
                break
        errors[key] = error(narrow, analytic)
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def by_part(model) -> dict[str, list]:
    groups: dict[str, list] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault(".".join(name.split(".")[:2]), []).append(p)
    return groups


def one_by_one(model) -> dict[str, list]:
    return {name: [p] for name, p in model.named_parameters() if p.requires_grad}


@each_choice
def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences_in_every_part(choice):
    worst, name = worst_error(choice, by_part)
    assert worst < 1e-5, name


@pytest.mark.slow
@each_choice
def test_the_gradient_of_the_whole_loss_agrees_with_finite_differences_in_every_parameter(choice):
    worst, name = worst_error(choice, one_by_one)
    assert worst < 1e-5, name


@pytest.mark.slow
@each_choice
def test_thirty_steps_lower_every_loss_of_the_heads_and_the_masks_are_found(choice):
    model, (images, targets) = build(choice).astype(np.float32), two_images()
    images = [image.astype(np.float32) for image in images]

    def losses():
        return {name: float(loss) for name, loss in model.loss(images, targets, Draws(1)).items()}

    before, optimizer = losses(), SGD(list(model.named_parameters()), 0.02, 0.9, 1e-4)
    for step in range(30):
        optimizer.zero_grad()
        total = sum(model.loss(images, targets, Draws(1, step)).values())
        assert total.dtype == np.float32
        total.backward()
        optimizer.step(0.02)
    after = losses()
    assert after["loss_mask"] < before["loss_mask"]
    assert sum(after.values()) < 0.8 * sum(before.values())
    model.eval().box_head.options = replace(model.box_head.options, score_thresh=0.0)
    (found, _) = model(images)
    masks = found["masks"].numpy()
    assert masks.dtype == np.float32 and masks.shape == (len(found["boxes"]), 1, 64, 64) and len(masks) > 0
    assert 0 <= masks.min() and masks.max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ on Linux to run CUDA kernels with")
@each_choice
def test_a_step_and_a_prediction_on_a_gpu_give_the_cpus_numbers(choice):
    images, targets = two_images()
    with installed(), backend.deterministic():
        found = {}
        for device in ("cpu", "cuda"):
            model = build(choice, box_score_thresh=0.0, box_detections_per_img=6)
            spread_out(model, np.random.default_rng(4))
            model.to(device)
            losses = model.loss(images, targets, Draws(1))
            sum(losses.values()).backward()
            (result,) = model.eval()([images[0]])
            found[device] = (
                {name: backend.to_cpu(loss.data) for name, loss in losses.items()},
                {n: backend.to_cpu(p.grad) for n, p in model.named_parameters() if p.requires_grad},
                {name: result[name] for name in ("boxes", "labels", "scores")}
                | {"masks": result["masks"].numpy()},
            )
        for ours, theirs in zip(found["cuda"], found["cpu"]):
            for name, value in theirs.items():
                np.testing.assert_allclose(ours[name], value, rtol=1e-9, atol=1e-10, err_msg=name)


# --------------------------------------------------------------------------------------- from a configuration


def configured(*settings: str):
    return build_model(with_settings(Config(), [f"model.{setting}" for setting in settings]), 4)


def test_every_choice_of_the_configuration_is_what_the_model_is_built_with():
    default = configured()
    assert default.mask_head.mask_loss == SigmoidMasks() and isinstance(default.mask_head.net, MaskFCN)
    assert default.box_head.pooler.roi_layer.func is F.roi_align
    for name in MASK_LOSSES:
        for agnostic in (False, True):
            model = configured(f"mask_loss={name}", f"class_agnostic_mask={str(agnostic).lower()}")
            masks = MASK_LOSSES[name](class_agnostic=agnostic)
            assert model.mask_head.mask_loss == masks
            predictor = model.mask_head.net.mask_predictor.mask_fcn_logits
            assert len(predictor.bias) == masks.channels(4)
    assert configured("class_agnostic_mask=true").mask_head.mask_loss == SigmoidMasks(class_agnostic=True)
    for name, layers in {"mlp2": 2, "mlp3": 3}.items():
        assert len(configured(f"mask_branch={name}").mask_head.net.mask_head) == layers
    assert set(MASK_BRANCHES) == {"fcn", "mlp2", "mlp3"}
    for name in ROI_LAYERS:
        model = configured(f"roi_layer={name}")
        for head in (model.box_head, model.mask_head):
            layer, expected = head.pooler.roi_layer, ROI_LAYERS[name](MINIMASK)
            assert (layer.func, layer.keywords) == (expected.func, expected.keywords)
    model = configured("class_agnostic_box=true")
    assert len(model.box_head.box_predictor.bbox_pred.bias) == 4 and model.box_head.options.class_agnostic


def test_the_large_network_takes_the_same_choices_under_torchvisions_conventions():
    model = configured("name=maskrcnn_resnet50_fpn", "roi_layer=roi_align_max", "mask_loss=softmax")
    expected = dict(sampling_ratio=2, aligned=False, aggregation="max")
    assert model.mask_head.pooler.roi_layer.keywords == expected
    assert model.mask_head.mask_loss == SoftmaxMasks()


@pytest.mark.parametrize(
    "setting, words",
    [
        ("model.roi_layer=roi_alin", "did you mean roi_align?"),
        ("model.mask_loss=sofmax", "did you mean softmax?"),
        ("model.mask_branch=x", "it can be fcn, mlp2, mlp3"),
        ("model.class_agnostic_mask=1", "must be true or false, is 1"),
    ],
)
def test_a_choice_that_there_is_not_is_named(setting, words):
    with pytest.raises(InputError) as caught:
        with_settings(Config(), [setting])
    assert words in str(caught.value)


def test_a_checkpoint_from_before_these_choices_is_of_the_papers():
    new = {"roi_layer", "mask_loss", "mask_branch", "class_agnostic_mask", "class_agnostic_box"}
    old = to_dict(Config())
    old["model"] = {name: value for name, value in old["model"].items() if name not in new}
    read = checkpoint_config(Checkpoint({}, config=old), "run/checkpoint.npz")
    assert read.model == from_dict({}, "").model == Config().model
    model = build_model(read, 3)
    assert model.mask_head.mask_loss == SigmoidMasks() and isinstance(model.mask_head.net, MaskFCN)


COMMANDS = [
    ("mask_loss=softmax", "class_agnostic_mask=true", "mask_branch=mlp3", "roi_layer=roi_align_max"),
    ("mask_loss=softmax", "roi_layer=roi_pool"),
    ("mask_branch=mlp2", "class_agnostic_mask=true", "class_agnostic_box=true", "roi_layer=roi_warp"),
]
SLOW = [pytest.param(settings, marks=pytest.mark.slow) for settings in COMMANDS[1:]]


@pytest.mark.parametrize("settings", [COMMANDS[0], *SLOW], ids=", ".join)
def test_the_command_trains_evaluates_and_predicts_with_them(settings, tmp_path, capsys):
    make_dataset(tmp_path)
    data = ["--data", tmp_path / "train.json", "--images", tmp_path / "images"]
    few = ["train.steps=2", "data.crop=48", "train.batch_size=1", *(f"model.{s}" for s in settings)]
    sets = [part for setting in few for part in ("--set", setting)]
    weights = tmp_path / "run" / "checkpoint.npz"
    picture = next((tmp_path / "images").iterdir())
    for arguments in (
        ["train", *data, *sets, "--output", tmp_path / "run"],
        ["evaluate", "--weights", weights, *data, "--output", tmp_path / "eval"],
        ["predict", "--weights", weights, picture, "--output", tmp_path / "out", "--json"]
        + ["--score-threshold", "0", "--max-detections", "3"],
    ):
        assert cli.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == 3


def test_models_have_these_names():
    for name in ("MaskFCN", "MaskMLP", "SigmoidMasks", "SoftmaxMasks"):
        assert getattr(models, name).__name__ == name
