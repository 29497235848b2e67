"""Keypoints: heat map cells, decoding, the head, the whole model, and torchvision where it is installed."""

import numpy as np
import pytest

from minimask import functions as F
from minimask import models
from minimask.autograd import Tensor
from minimask.errors import InputError
from minimask.keypoints import (
    _resized_columns,
    _resized_rows,
    heatmaps_to_keypoints,
    heatmaps_to_keypoints_reference,
    keypoints_to_heatmap,
)
from minimask.models.inputs import check_targets
from minimask.models.keypoint_head import KeypointNet, KeypointOptions
from minimask.randomness import Draws
from tests.model_data import discs, fill

SIZES = dict(channels=(8, 8, 16, 16), fpn_channels=8, box_width=16, keypoint_width=8, keypoint_convs=2)
COUNTS = dict(rpn_post_nms_top_n_train=40, box_batch_size_per_image=24, rpn_batch_size_per_image=48)


def tiny(num_keypoints: int = 3, **options):
    """A Keypoint R-CNN small enough for finite differences, in float64."""
    built = models.keypointrcnn_small(3, num_keypoints, **(SIZES | COUNTS | options))
    return built.astype(np.float64)


def with_keypoints(rng: np.random.Generator, count: int, num_keypoints: int = 3, size: int = 64):
    """An image of discs, each with keypoints inside its box, some of them hidden or not labelled."""
    image, target = discs(rng, count, size)
    low, high = target["boxes"][:, None, :2], target["boxes"][:, None, 2:]
    xy = low + rng.random((count, num_keypoints, 2)) * (high - low)
    seen = rng.integers(0, 3, (count, num_keypoints, 1))
    return image, target | {"keypoints": np.concatenate([xy * (seen > 0), seen], axis=2)}


def blobs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Heat maps as trained nets give them: a few hills on a rough plane, float32."""
    yy, xx = np.mgrid[: shape[2], : shape[3]]
    maps = rng.normal(0, 0.5, shape)
    for _ in range(3):
        y, x, width = rng.uniform(0, shape[2], (3, *shape[:2], 1, 1))
        maps += rng.uniform(3, 12) * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 + width))
    return maps.astype(np.float32)


def boxes_of(rng: np.random.Generator, count: int, greatest: float) -> np.ndarray:
    corners, sides = rng.uniform(0, 200, (count, 2)), rng.uniform(0.2, greatest, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


# ------------------------------------------------------------------------------------------- heat map cells


def test_a_keypoint_is_in_the_cell_that_covers_it_and_on_the_far_border_in_the_last():
    boxes = np.array([[10.0, 20.0, 66.0, 132.0]], np.float32)
    keypoints = np.array([[[10, 20, 2], [66, 132, 1], [38.5, 77, 2], [10, 20, 0], [9.9, 50, 2]]], np.float32)
    cells, valid = keypoints_to_heatmap(keypoints, boxes, 56)
    assert cells.tolist() == [[0, 55 * 56 + 55, 28 * 56 + 28, 0, 0]]
    assert valid.tolist() == [[True, True, True, False, False]]


def test_a_box_without_width_holds_no_keypoint_beside_it():
    boxes = np.array([[10.0, 20.0, 10.0, 40.0]], np.float32)
    keypoints = np.array([[[11.0, 30.0, 2.0], [9.0, 30.0, 2.0]]], np.float32)
    assert not keypoints_to_heatmap(keypoints, boxes, 56)[1].any()


def test_cells_of_no_boxes_are_none():
    cells, valid = keypoints_to_heatmap(np.zeros((0, 4, 3), np.float32), np.zeros((0, 4), np.float32), 56)
    assert cells.shape == valid.shape == (0, 4)


# ------------------------------------------------------------------------------------------------- decoding


def test_cubic_interpolation_gives_back_a_line_and_the_cells_themselves():
    line = np.arange(8.0)[None, None]
    fine = _resized_columns(line, 32)[0, 0]
    np.testing.assert_allclose(np.diff(fine)[8:-8], 0.25, atol=0.16)
    rough = np.random.default_rng(0).normal(size=(1, 8, 8))
    np.testing.assert_array_equal(_resized_columns(_resized_rows(rough, 8), 8), rough)


@pytest.mark.parametrize("greatest", [30.0, 120.0, 700.0])
@pytest.mark.parametrize("make", [blobs, lambda rng, s: rng.normal(size=s).astype(np.float32)])
def test_the_fast_decoding_equals_the_slow_one_to_the_bit(make, greatest):
    rng = np.random.default_rng(1)
    maps, boxes = make(rng, (6, 3, 56, 56)), boxes_of(rng, 6, greatest)
    for fast, slow in zip(heatmaps_to_keypoints(maps, boxes), heatmaps_to_keypoints_reference(maps, boxes)):
        assert fast.dtype == np.float32
        np.testing.assert_array_equal(fast, slow)


def test_of_equal_maxima_the_first_is_taken_by_both_decodings():
    maps = np.zeros((2, 2, 8, 8), np.float32)
    maps[1, 0, 2, 3] = maps[1, 0, 5, 1] = 1
    boxes = np.array([[0, 0, 20, 30], [5, 5, 13, 13]], np.float32)
    fast, slow = heatmaps_to_keypoints(maps, boxes), heatmaps_to_keypoints_reference(maps, boxes)
    np.testing.assert_array_equal(fast.xy, slow.xy)
    assert fast.xy[0, 0].tolist() == [0.5, 0.5]
    assert fast.xy[1, 0].tolist() == [8.5, 7.5]


def test_a_keypoint_comes_back_from_its_own_cell_to_within_half_a_cell():
    rng = np.random.default_rng(2)
    boxes = boxes_of(rng, 20, 300.0)
    boxes[:, 2:] += 20
    sides = boxes[:, None, 2:] - boxes[:, None, :2]
    xy = boxes[:, None, :2] + rng.random((20, 5, 2), np.float32) * sides
    keypoints = np.concatenate([xy, np.full((20, 5, 1), 2, np.float32)], axis=2)
    cells, valid = keypoints_to_heatmap(keypoints, boxes, 56)
    maps = np.full((20, 5, 56 * 56), -10, np.float32)
    np.put_along_axis(maps, cells[..., None], 10, axis=2)
    found = heatmaps_to_keypoints(maps.reshape(20, 5, 56, 56), boxes)
    assert valid.all()
    # a cell, and a pixel of the resized map
    assert (np.abs(found.xy - xy) <= sides / 56 / 2 + 1).all()


def test_probabilities_are_the_softmax_of_the_cells_at_the_peaks_height():
    rng = np.random.default_rng(13)
    maps, boxes = blobs(rng, (4, 3, 56, 56)), boxes_of(rng, 4, 100.0)
    peaks = heatmaps_to_keypoints(maps, boxes)
    shares = np.exp(peaks.logits.astype(float)) / np.exp(maps.astype(float)).sum(axis=(2, 3))
    np.testing.assert_allclose(peaks.probabilities, shares, rtol=1e-4)
    far_out = heatmaps_to_keypoints(300 * maps, boxes)  # exp would overflow float32
    assert np.isfinite(far_out.probabilities).all()


def test_no_boxes_and_no_keypoints_decode_to_nothing():
    none = heatmaps_to_keypoints(np.zeros((0, 3, 56, 56), np.float32), np.zeros((0, 4), np.float32))
    assert none.xy.shape == (0, 3, 2) and none.logits.shape == none.probabilities.shape == (0, 3)
    assert heatmaps_to_keypoints(np.zeros((2, 0, 56, 56)), np.ones((2, 4))).xy.shape == (2, 0, 2)


# ---------------------------------------------------------------------------------------- the net and losses


def test_the_net_gives_56_cells_of_a_side_for_14_and_has_torchvisions_names():
    net = KeypointNet(4, 5, np.random.default_rng(0), width=8, convs=8)
    assert net(Tensor(np.zeros((2, 4, 14, 14), np.float32))).shape == (2, 5, 56, 56)
    names = [f"keypoint_head.{i}.{part}" for i in range(0, 16, 2) for part in ("weight", "bias")]
    last = [f"keypoint_predictor.kps_score_lowres.{part}" for part in ("weight", "bias")]
    assert list(net.state_dict()) == names + last
    assert net.num_keypoints == 5


def test_the_loss_of_uniform_maps_is_the_logarithm_of_their_cells():
    cells, valid = np.array([[3, 0]]), np.array([[True, False]])
    loss = F.keypoint_loss(np.zeros((1, 2, 56, 56), np.float32), cells, valid)
    assert float(loss.data) == pytest.approx(np.log(56 * 56), rel=1e-6)


@pytest.mark.parametrize("options", [KeypointOptions(), KeypointOptions(16.0), KeypointOptions(16.0, 2.5)])
def test_options_say_what_divides_the_loss(options):
    image, target = with_keypoints(np.random.default_rng(3), 4)
    plain, other = tiny(), tiny(keypoint_options=options)
    records = [m.training_record([image, image], [target, target], Draws(1)) for m in (plain, other)]
    head = plain.keypoint_head
    visible = head.select(records[0].rois.positive, records[0].targets)
    number = head.targets(visible, records[0].targets, 56)[1].sum()
    mean, value = (float(r.losses["loss_keypoint"].data) for r in records)
    divisor = options.normalizer_per_image
    expected = mean * options.weight * (1 if divisor is None else number / (2 * divisor))
    assert value == pytest.approx(expected, rel=1e-12) and number > 0


def test_objects_without_labelled_keypoints_get_no_roi_and_give_no_loss():
    image, target = with_keypoints(np.random.default_rng(4), 4)
    target["keypoints"][1:] = 0
    target["keypoints"][0, 0] = [*target["boxes"][0, :2] + 2, 1]
    record = tiny().training_record([image], [target], Draws(1))
    assert 0 < len(record.keypoint) < len(record.rois.positive.labels)
    target["keypoints"][:] = 0
    record = tiny().training_record([image], [target], Draws(1))
    assert len(record.keypoint) == 0 and record.losses["loss_keypoint"].data == 0


# ------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("with_masks", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_whole_models_gradients_agree_with_finite_differences(with_masks):
    rng = np.random.default_rng(5)
    model = tiny(with_masks=with_masks)
    image, target = with_keypoints(rng, 3)
    held = model.training_record([image], [target], Draws(2))
    assert ("loss_mask" in held.losses) == with_masks and len(held.keypoint)
    parameters = model.parameters()

    def loss(*values):
        for parameter, value in zip(parameters, values):
            parameter.data = value.data
        return sum(model.training_record([image], [target], Draws(2), held).losses.values())

    start = [Tensor(p.data.copy()) for p in parameters]
    sum(held.losses.values()).backward()
    _check_directions(model, parameters, start, loss, rng)


def _check_directions(model, parameters, start, loss, rng, h: float = 1e-6):
    """The derivative along a random direction of each parameter, by central differences, to 1e-5."""
    gradients = [p.grad.copy() for p in parameters]
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        derived = float((gradient * direction).sum())
        values = []
        for sign in (1, -1):
            moved = [Tensor(s.data + sign * h * direction if j == i else s.data) for j, s in enumerate(start)]
            values.append(float(loss(*moved).data))
        numeric = (values[0] - values[1]) / (2 * h)
        assert numeric == pytest.approx(derived, rel=1e-5, abs=1e-7), f"parameter {i}"


def test_masks_and_keypoints_together_have_both_losses_and_both_results():
    model = models.keypointrcnn_small(3, 4, with_masks=True, box_score_thresh=0.0, **SIZES)
    image, target = with_keypoints(np.random.default_rng(6), 3, 4)
    image = image.astype(np.float32)
    losses = model.train()([image], [target])
    assert {"loss_mask", "loss_keypoint", "loss_classifier", "loss_box_reg"} <= losses.keys()
    (found,) = model.eval()([image])
    count = len(found["scores"])
    assert count and found["keypoints"].shape == (count, 4, 3)
    assert found["keypoints_scores"].shape == found["keypoints_probabilities"].shape == (count, 4)
    assert found["masks"].shape == (count, 1, 64, 64)
    assert (found["keypoints"][..., 2] == 1).all() and found["keypoints"].dtype == np.float32


def test_keypoints_lie_in_their_boxes_in_pixels_of_the_image_given():
    model = models.keypointrcnn_small(3, 4, min_size=96, max_size=200, box_score_thresh=0.0, **SIZES).eval()
    image = np.random.default_rng(7).random((3, 64, 80)).astype(np.float32)
    (found,) = model([image])
    low, high = found["boxes"][:, None, :2], found["boxes"][:, None, 2:]
    inside = (found["keypoints"][..., :2] >= low - 1) & (found["keypoints"][..., :2] <= high + 1)
    assert len(found["boxes"]) and inside.all()


def test_a_model_without_a_mask_head_needs_no_masks_and_gives_none():
    model = models.keypointrcnn_small(3, 3, **SIZES)
    image, target = with_keypoints(np.random.default_rng(8), 2)
    del target["masks"]
    losses = model.train()([image.astype(np.float32)], [target])
    assert "loss_mask" not in losses and "masks" not in model.predict([image.astype(np.float32)])[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("keypoints"), "lacks keypoints"),
        (lambda t: t.update(keypoints=t["keypoints"][:, :2]), r"keypoints must be \(2, 3, 3\)"),
        (lambda t: t["keypoints"].__setitem__((0, 1, 2), 3), "keypoint 1 of object 0 .* visibility"),
        (lambda t: t["keypoints"].__setitem__((1, 0, 0), np.nan), "keypoint 0 of object 1"),
        (lambda t: t.update(keypoints=t["keypoints"] / [64, 64, 1]), "normalised"),
        (lambda t: t.update(keypoints="none"), "keypoints must be numbers"),
    ],
)
def test_wrong_keypoints_are_answered_in_one_line(change, words):
    model = models.keypointrcnn_small(3, 3, **SIZES).train()
    image, target = with_keypoints(np.random.default_rng(9), 2)
    target["keypoints"][0, 0] = [*target["boxes"][0, :2] + 1, 2]
    change(target)
    with pytest.raises(InputError, match=words) as caught:
        model([image.astype(np.float32)], [target])
    assert "\n" not in str(caught.value) and "targets[0]" in str(caught.value)


def test_the_only_labelled_keypoint_may_lie_in_the_first_pixel_as_where_a_crop_begins_at_it():
    target = {"boxes": [[0, 0, 20, 20]], "labels": [1], "keypoints": [[[0.5, 0.5, 2], [0, 0, 0]]]}
    (found,) = check_targets([target], [(32, 32)], with_masks=False, num_keypoints=2)
    assert found.keypoints.tolist() == target["keypoints"]


def test_a_model_has_at_least_one_keypoint():
    with pytest.raises(ValueError, match="num_keypoints must be a whole number from 1 up"):
        models.keypointrcnn_small(2, 0)


# ------------------------------------------------------------------------------------------- torchvision


def test_decoding_and_cells_equal_torchvisions_to_rounding():
    torch = pytest.importorskip("torch")
    heads = pytest.importorskip("torchvision.models.detection.roi_heads")
    rng = np.random.default_rng(10)
    maps, boxes = blobs(rng, (12, 5, 56, 56)), boxes_of(rng, 12, 250.0)
    xy, logits = heads.heatmaps_to_keypoints(torch.tensor(maps), torch.tensor(boxes))
    peaks = heatmaps_to_keypoints(maps, boxes)
    np.testing.assert_allclose(peaks.xy, xy[..., :2].numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(peaks.logits, logits.numpy(), rtol=1e-5, atol=1e-5)

    keypoints = rng.uniform(0, 300, (12, 9, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (12, 9))
    keypoints[:, 0, :2] = boxes[:, 2:]
    cells, valid = heads.keypoints_to_heatmap(torch.tensor(keypoints), torch.tensor(boxes), 56)
    ours = keypoints_to_heatmap(keypoints, boxes, 56)
    np.testing.assert_array_equal(ours[1], valid.numpy().astype(bool))
    np.testing.assert_array_equal(ours[0], cells.numpy())


def test_torchvisions_weights_of_other_sizes_give_its_detections_and_keypoints():
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchvision.models.detection")
    sizes = dict(num_classes=4, num_keypoints=5, min_size=128, max_size=160, box_score_thresh=0.0)
    sizes |= dict(rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=60)
    ours = fill(models.keypointrcnn_resnet50_fpn(**sizes)).eval()
    theirs = detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sizes).eval()
    counters = {k: v for k, v in theirs.state_dict().items() if k.endswith("num_batches_tracked")}
    state = {name: torch.tensor(value) for name, value in ours.state_dict().items()}
    theirs.load_state_dict(state | counters)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    image = np.random.default_rng(11).random((3, 128, 160)).astype(np.float32)
    with torch.no_grad():
        want = {name: value.numpy() for name, value in theirs([torch.tensor(image)])[0].items()}
    (got,) = ours([image])
    assert len(want["scores"]) == len(got["scores"]) > 10
    for name, tolerance in {"scores": 1e-3, "boxes": 0.05, "labels": 0, "keypoints_scores": 2e-2}.items():
        np.testing.assert_allclose(got[name][:20], want[name][:20], rtol=2e-3, atol=tolerance)
    near = np.abs(got["keypoints"][:20] - want["keypoints"][:20]).max(axis=2) < 0.5
    assert near.mean() > 0.97  # two cells of nearly the same height may change places
