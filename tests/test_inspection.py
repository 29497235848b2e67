"""`trace` tells the truth: its numbers are those of the model; and each failure is told from the others."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from minimask import functions as F
from minimask import models
from minimask.ablations import networks
from minimask.autograd import Tensor, no_grad
from minimask.boxes import box_iou, scale_boxes
from minimask.inspection import failures, figures, trace
from minimask.inspection.reading import readings
from minimask.inspection.records import Classifying, Proposing
from minimask.inspection.tracing import level_names
from minimask.inspection.weights import dead_channels, summarise
from minimask.lessons import cuda_on_cpu
from minimask.matching import BELOW_LOW, BETWEEN
from minimask.models.box_head import Candidates, Pooler
from minimask.models.inputs import Objects
from minimask.models.rpn import RankedAnchors
from minimask.nn import Linear, Module
from minimask.randomness import Draws
from tests.fake_cupy import installed
from tests.model_data import discs, fill, tiny_model

FOUND = dict(box_score_thresh=0.0, box_detections_per_img=12)


def resized_model(**options):
    """A model that scales its images, so that batch and image have other pixels."""
    return tiny_model(min_size=80, max_size=100, **(FOUND | options))


@pytest.fixture(scope="module")
def traced():
    model, rng = resized_model(), np.random.default_rng(3)
    image, target = discs(rng, 4)
    target["crowd_boxes"] = np.array([[0.0, 0.0, 12.0, 12.0]])
    return model, image, target, trace(model, image, target, Draws(seed=5), ("disc", "ring"))


# ----------------------------------------------------------------------------------------- the very numbers


def same(a, b):
    a, b = (np.asarray(getattr(x, "data", x) if isinstance(x, Tensor) else x) for x in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("stride, name", [(16, "C4"), (32, "C5")])
def test_a_single_level_is_named_after_the_stage_it_comes_from(stride, name):
    model = networks.build(networks.Network(stride), 3, 64, 0, networks.Sizes())
    assert level_names(model, 1) == [name]


@pytest.mark.parametrize(
    "build", [resized_model, partial(resized_model, roi_layer=partial(F.roi_pool, aligned=True))]
)
def test_detections_and_losses_are_the_models_to_the_bit(build):
    model, rng = build(), np.random.default_rng(1)
    image, target = discs(rng, 3)
    found = trace(model, image, target, Draws(seed=7))
    (result,) = model.predict([image])
    assert len(result["boxes"]) and found.result.keys() == result.keys()
    assert all(same(found.result[key], result[key]) for key in result)
    losses = model.train().loss([image], [target], Draws(seed=7))
    assert found.training.losses.keys() == losses.keys()
    assert all(same(found.training.losses[key], losses[key]) for key in losses)
    assert not same(
        trace(model, image, target, Draws(seed=8)).training.losses["loss_objectness"],
        losses["loss_objectness"],
    )


@pytest.mark.parametrize(
    "build, kind",
    [
        (partial(models.fasterrcnn_resnet50_fpn, 3, min_size=64, max_size=64), "no masks"),
        (partial(models.maskrcnn_resnet50_c4, 3, min_size=64, max_size=64), "one level"),
        (partial(models.maskrcnn_resnet50_fpn_v2, 3, min_size=64, max_size=64), "batch norms"),
        (partial(models.keypointrcnn_small, 2, num_keypoints=3), "keypoints"),
    ],
)
@pytest.mark.slow
def test_models_of_every_kind_are_traced_and_left_as_they_were(build, kind):
    model, rng = build(), np.random.default_rng(2)
    image, target = discs(rng, 2, classes=1)
    image, target["boxes"] = image.astype(np.float32), target["boxes"].astype(np.float32)
    points = np.repeat(target["boxes"][:, None, :2] + 1, 3, axis=1)
    target["keypoints"] = np.concatenate([points, np.full((2, 3, 1), 2)], axis=2)
    model.backbone.eval()  # as one does who fine-tunes the heads alone
    state = {name: array.copy() for name, array in model.state_dict().items()}
    modes = [module.training for _, module in model.named_modules()]
    found = trace(model, image, target)
    assert all(same(array, state[name]) for name, array in model.state_dict().items())
    assert modes == [module.training for _, module in model.named_modules()]
    assert all(p.requires_grad and p.grad is None for p in model.box_head.parameters())
    assert (found.masking is None) == (kind in ("no masks", "keypoints"))
    assert found.anchors.names == (["C4"] if kind == "one level" else ["P2", "P3", "P4", "P5", "P6"])
    (result,) = model.predict([image])
    assert all(same(found.result[key], result[key]) for key in result)
    losses = model.train().loss([image], [target], Draws())
    assert all(same(found.training.losses[key], losses[key]) for key in losses)
    for make in figures.FIGURES:
        make(found)


def test_the_stages_lead_from_anchors_to_detections(traced):
    model, image, _, found = traced
    ranked, kept = found.proposing.ranked, found.classifying.candidates
    batch = model.transform([image], model.dtype)
    with no_grad():
        out = model.rpn(model.backbone(Tensor(batch.images)), batch)
    (proposals,) = model.rpn.propose(out, batch)
    assert same(found.proposing.proposals, proposals) and same(ranked.boxes[ranked.kept], proposals)
    assert set(ranked.kept) <= set(ranked.survivors) <= set(range(len(ranked.boxes)))
    decoded = model.rpn.coder.decode(
        found.proposing.deltas[ranked.anchors], found.anchors.boxes[ranked.anchors]
    )
    assert same(ranked.refined, decoded[:, 0])
    boxes = scale_boxes(kept.boxes[kept.kept], tuple(1 / s for s in found.input.scale))
    assert same(boxes, found.result["boxes"])
    assert np.array_equal(kept.probabilities[kept.proposals, kept.labels], kept.scores)
    assert found.anchors.per_level == out.per_level
    assert same(
        found.anchors.boxes[found.anchors.level(1)][: found.anchors.per_cell[1]],
        found.anchors.of_cell(1, 0, 0),
    )
    d, channel = 2, found.masking.channels[2]
    assert np.allclose(1 / (1 + np.exp(-found.masking.logits[d, channel])), found.masking.probabilities[d])


def test_what_training_samples_is_told_with_its_targets(traced):
    model, _, _, found = traced
    t = found.training
    assert set(t.positive) <= set(np.flatnonzero(t.matches >= 0))
    assert set(t.negative) <= set(np.flatnonzero(t.matches == BELOW_LOW)) and (t.matches == BETWEEN).any()
    np.testing.assert_allclose(
        t.wanted, t.boxes[t.matches[t.positive]], atol=1e-9
    )  # decoded targets are the objects
    positive = t.rois.labels > 0
    objects = model.box_head.coder.decode(t.roi_targets[positive], t.rois.boxes[positive, 1:])[:, 0]
    np.testing.assert_allclose(objects, t.boxes[t.rois.matches[positive]], atol=1e-9)
    assert not t.roi_targets[~positive].any() and t.mask_targets.shape == t.mask_probabilities.shape
    assert t.round_trip.shape == (4,) and (t.round_trip > 0.8).all()


def test_recall_is_of_the_boxes_that_are_shown(traced):
    _, _, target, found = traced
    objects = scale_boxes(target["boxes"], found.input.scale)
    expected = box_iou(objects, found.proposing.proposals).max(axis=1)
    np.testing.assert_array_equal(found.proposing.recall["proposals"], expected)
    assert (found.proposing.recall["all anchors"] >= found.proposing.recall["best anchors"]).all()


def test_the_gradient_of_each_loss_in_the_image_agrees_with_finite_differences(traced):
    model, image, target, found = traced
    rng = np.random.default_rng(0)
    draws, step = Draws(seed=5), 1e-5
    held = model.train().training_record([image], [target], draws)
    std = np.asarray(model.transform.conventions.std)[:, None, None]
    v = rng.normal(size=image.shape)
    moved = (
        model.transform([image + step * std * v], model.dtype).images
        - model.transform([image], model.dtype).images
    )
    sides = [
        model.training_record([image + sign * step * std * v], [target], draws, held).losses
        for sign in (1, -1)
    ]
    for name, gradient in found.training.image_gradients.items():
        numeric = (float(sides[0][name].data) - float(sides[1][name].data)) / (2 * step)
        analytic = float((gradient * moved[0]).sum()) / step
        assert np.any(gradient) and numeric == pytest.approx(analytic, rel=2e-4, abs=1e-9), name


def test_what_the_network_gets_can_be_undone(traced):
    _, image, _, found = traced
    given = found.input
    assert given.size == (80, 80) and given.pixels.shape == (3, 96, 96) and given.scale == (1.25, 1.25)
    assert not given.pixels[:, 80:].any() and not given.pixels[:, :, 80:].any()
    assert given.restored.shape == image.shape and np.abs(given.restored - image).mean() < 0.03
    assert given.box_error < 1e-12
    plain = trace(tiny_model(**FOUND), image)
    assert plain.training is None and plain.failures is None and plain.proposing.recall is None
    np.testing.assert_allclose(plain.input.restored, image, atol=1e-12)  # neither resized nor rounded


@pytest.mark.slow
@pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ on Linux to run CUDA kernels with")
def test_a_model_on_a_gpu_is_traced_as_well_and_its_records_are_on_the_cpu():
    image, target = discs(np.random.default_rng(1), 3)
    cpu = trace(fill(tiny_model(box_score_thresh=0.0, box_detections_per_img=4)), image, target)
    with installed():
        model = fill(tiny_model(box_score_thresh=0.0, box_detections_per_img=4)).to("cuda")
        gpu = trace(model, image, target)
        assert model.device == "cuda"
        figures.rois(gpu), figures.masks(gpu), figures.filtering(gpu)
    for a, b in (
        (cpu.proposing.ranked.boxes, gpu.proposing.ranked.boxes),
        (cpu.training.roi_refined, gpu.training.roi_refined),
        (cpu.masking.logits, gpu.masking.logits),
        (cpu.training.image_gradients["loss_mask"], gpu.training.image_gradients["loss_mask"]),
        (cpu.masking.readings[0].columns, gpu.masking.readings[0].columns),
    ):
        assert type(b) is np.ndarray
        np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)
    assert cpu.failures.causes == gpu.failures.causes


# ---------------------------------------------------------------------------------------- where it is read

LAYERS = {
    "RoIAlign": partial(F.roi_align, sampling_ratio=2, aligned=True),
    "adaptive, not aligned": F.roi_align,
    "RoIWarp": partial(F.roi_warp, sampling_ratio=2, aligned=True),
    "RoIPool": partial(F.roi_pool, aligned=True),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_layer_reads_only_around_the_points_that_are_told(layer):
    """The gradient of what it reads lies at the cells around the points, and nowhere else."""
    levels = [Tensor(np.random.default_rng(0).normal(size=(1, 1, 96 // s, 96 // s)), True) for s in (4, 8)]
    pooler = Pooler(3, layer, canonical_scale=100.0, strides=(4, 8))
    rois = np.array([[0, 10.3, 14.2, 41.7, 37.9], [0, 2.0, 8.0, 94.0, 90.0]])
    for k, (roi, told) in enumerate(zip(rois, readings(pooler, levels, rois, ("P2", "P3")))):
        level = ("P2", "P3").index(told.level)
        assert level == k and told.stride == (4, 8)[k] and told.bins == (3, 3)
        for x in levels:
            x.grad = None
        y = pooler(levels, roi[None])
        y.backward(np.random.default_rng(1).uniform(1, 2, y.shape))
        read = np.argwhere(levels[level].grad[0, 0])  # (cells, 2) row, column
        assert len(read) and all(
            x.grad is None or not np.any(x.grad) for x in levels if x is not levels[level]
        )
        for axis, places in ((0, told.rows), (1, told.columns)):
            centres = read[:, axis] + 0.5
            distance = np.abs(centres[:, None] - places / told.stride)
            assert distance.min(axis=1).max() < 1, "each cell that is read has a point less than a cell away"
            if not (isinstance(layer, partial) and layer.func is F.roi_pool):  # whose maxima leave cells out
                assert distance.min(axis=0).max() <= 0.5, (
                    "each point has a cell that is read, at most half off"
                )


def test_a_layer_of_another_kind_tells_no_points():
    levels = [Tensor(np.ones((1, 2, 8, 8)))]

    def doubled(maps, rois, size, scales, levels):
        return F.roi_align(maps[0], rois, size, scales[0]) * 2.0

    (told,) = readings(Pooler(2, doubled, strides=(4,)), levels, np.array([[0, 1.0, 1, 9, 9]]), ("C4",))
    assert told.level == "C4" and not len(told.columns)
    assert readings(Pooler(2, doubled, strides=(4,)), levels, np.zeros((0, 5)), ("C4",)) == []


# -------------------------------------------------------------------------------------------------- failures

BOX = np.array([10.0, 10, 30, 30])
FAR = np.array([60.0, 60, 80, 80])


def judged(ranked, kept, candidates, found, above=0.5, objects=1):
    """`objects` of class 1 at BOX; what the stages have is given as (box, label, score)."""
    anchors = RankedAnchors(
        None, None, None, np.array(ranked), np.array(ranked), np.array(kept), np.array(kept)
    )
    boxes = np.array([b for b, *_ in candidates]).reshape(-1, 4)
    labels = np.array([label for _, label, _ in candidates], np.int64)
    scores = np.array([score for *_, score in candidates])
    probabilities = np.tile([0.9, 0.05, 0.05], (len(kept), 1))
    probabilities[:, 1] = scores.max(initial=0.05)
    stage = Classifying(None, Candidates(probabilities, None, labels, scores, boxes, boxes, None, None), [])
    result = {
        "boxes": np.array([b for b, *_ in found]).reshape(-1, 4),
        "labels": np.array([label for _, label, _ in found], np.int64),
        "scores": np.array([score for *_, score in found]),
    }
    target = Objects(np.tile(BOX, (objects, 1)), np.ones(objects, np.int64), None, np.zeros((0, 4)))
    return failures.judge(target, (1.0, 1.0), Proposing(None, None, anchors, None), stage, result, above)


NEAR, ONE, OTHER, LOW = BOX + 1, (BOX + 1, 1, 0.9), (BOX + 1, 2, 0.9), (BOX + 1, 1, 0.2)
CASES = {
    "found": ([NEAR], [0], [ONE], [ONE]),
    "wrong class": ([NEAR], [0], [OTHER], [OTHER]),
    "suppressed": ([NEAR], [0], [ONE], [(FAR, 1, 0.95)]),
    "scored too low": ([NEAR], [0], [LOW], [LOW]),
    "badly placed": ([NEAR], [0], [(BOX + 15, 1, 0.9)], [(BOX + 15, 1, 0.9)]),
    "suppressed by the RPN": ([NEAR, FAR], [1], [], []),
    "missed by the RPN": ([FAR], [0], [], []),
}


@pytest.mark.parametrize("cause", CASES)
def test_each_cause_is_told_from_the_others(cause):
    found = judged(*CASES[cause])
    assert found.causes == [cause] and cause in failures.CAUSES
    assert (found.detections[0] >= 0) == (cause in ("found", "wrong class"))
    assert bool(found.invented) == (cause in ("suppressed", "badly placed", "wrong class"))


def test_a_box_with_another_mask_is_a_poor_mask(traced):
    _, image, target, found = traced
    masks = found.result["masks"]
    result = found.result | {
        "boxes": target["boxes"][:1],
        "labels": target["labels"][:1],
        "scores": np.ones(1),
    }
    for value, cause in ((1.0, "found"), (0.0, "poor mask")):
        given = replace(masks[:1], probabilities=np.full((1, 28, 28), value), boxes=target["boxes"][:1])
        truth = np.zeros((1, *image.shape[1:]), np.uint8)
        x1, y1, x2, y2 = target["boxes"][0].astype(int)
        truth[0, y1:y2, x1:x2] = 1
        objects = replace(found.target, boxes=target["boxes"][:1], labels=target["labels"][:1], masks=truth)
        stages = (found.proposing, found.classifying, result | {"masks": given})
        assert failures.judge(objects, found.input.scale, *stages, 0.5).causes == [cause]


def test_two_detections_of_one_object_are_one_found_and_one_invented():
    found = judged([NEAR], [0], [ONE, ONE], [ONE, (BOX, 1, 0.8)])
    assert found.causes == ["found"] and found.detections.tolist() == [0] and found.invented == [1]


def test_a_detection_of_another_class_stands_for_one_object():
    found = judged([NEAR], [0], [OTHER], [OTHER], objects=2)
    assert found.detections.tolist() == [0, -1]
    assert found.causes[0] == "wrong class" != found.causes[1]


# --------------------------------------------------------------------------------------------------- weights


class Three(Module):
    def __init__(self, rng):
        self.well, self.dead, self.exploding = (Linear(3, 4, rng) for _ in range(3))
        self.dead.weight.data[:] = 0.25
        self.exploding.weight.data[1, 2] = np.nan


def test_dead_and_exploding_tensors_are_named():
    table = {w.name: w for w in summarise(Three(np.random.default_rng(0)))}
    marks = {name: (w.dead, w.exploding) for name, w in table.items() if name.endswith("weight")}
    assert marks == {
        "well.weight": (False, False),
        "dead.weight": (True, False),
        "exploding.weight": (False, True),
    }
    assert table["well.weight"].counts.sum() == 12 and table["exploding.weight"].counts.sum() == 11
    model = Three(np.random.default_rng(0))
    model.well.weight.data[0, 0] = 2000.0
    assert summarise(model)[0].exploding
    x = np.stack([np.ones((2, 2)), np.arange(4.0).reshape(2, 2)])
    assert dead_channels(x).tolist() == [True, False]


# --------------------------------------------------------------------------------------------------- figures


def test_there_is_a_figure_of_every_stage_with_title_and_story(traced):
    *_, found = traced
    assert len(figures.FIGURES) >= 12
    for make in figures.FIGURES:
        title, _, story = make.__doc__.partition("\n")
        assert title and not title.endswith(".") and story.strip().endswith((".", ".)"))
        figure = make(found, layout=figures.NARROW)
        drawn = [axes for axes in figure.axes if axes.axison]
        assert drawn and all(axes.has_data() for axes in drawn), make.__name__
        assert figure.get_figwidth() == figures.NARROW.width


def test_figures_of_training_are_left_out_without_targets():
    found = trace(tiny_model(box_score_thresh=1.0), discs(np.random.default_rng(0), 2)[0])
    assert not len(found.result["boxes"])
    made = {make.__name__: make(found) for make in figures.FIGURES}
    without = {name for name, figure in made.items() if figure is None}
    assert without == {"anchor_targets", "rois", "reading", "mask_targets", "masks", "failures", "gradients"}
