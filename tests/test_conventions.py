"""What systems do differently: each convention is set by one field and changes what it says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimask import Tensor, masks
from minimask.anchors import AnchorGenerator
from minimask.boxes import box_iou
from minimask.matching import BELOW_LOW, Matcher, assign_fpn_levels
from minimask.models.assembly import Architecture, assemble
from minimask.models.box_head import BoxHead, BoxOptions, BoxOutput
from minimask.models.conventions import DETECTRON2, MINIMASK, TORCHVISION, TORCHVISION_COCO_V1
from minimask.models.rpn import RPN, RPNOptions, RPNOutput, RPNSamples
from minimask.models.transform import Batch, Transform

SMALL = Architecture(blocks=(1, 1, 1, 1), channels=(8, 8, 8, 8), fpn_channels=8, box_width=8)


def test_an_object_that_no_anchor_touches_gets_all_of_them_or_none():
    anchors = np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0], [40.0, 40.0, 50.0, 50.0]])
    objects = np.array([[0.0, 0.0, 10.0, 9.0], [100.0, 100.0, 110.0, 110.0]])
    iou = box_iou(objects, anchors)
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    assert matcher(iou).tolist() == [0, BELOW_LOW, BELOW_LOW]
    assert (replace(matcher, untouched_matches_all=True)(iou) >= 0).all()
    assert replace(matcher, untouched_matches_all=True)(iou[:1]).tolist() == [0, BELOW_LOW, BELOW_LOW]


def test_the_level_of_a_side_just_below_112_pixels_is_torchvisions_p3_and_detectron2s_p2():
    side = 112 * (1 - 2e-7)
    boxes = np.array([[0, 0, side, side], [0, 0, 112, 112], [0, 0, 0, 0]])
    assert assign_fpn_levels(boxes, eps=TORCHVISION.level_eps).tolist() == [3, 3, 2]
    assert assign_fpn_levels(boxes, eps=DETECTRON2.level_eps, side_eps=DETECTRON2.side_eps).tolist() == [
        2,
        3,
        2,
    ]


def test_image_sizes_are_rounded_down_or_to_the_nearest():
    sizes = {c: Transform(c, 100, 1000).resized((64, 97), 100) for c in (TORCHVISION, DETECTRON2)}
    assert sizes == {TORCHVISION: (100, 151), DETECTRON2: (100, 152)}  # 151.56


def test_detectron2s_pixels_are_0_to_255_less_their_mean():
    image = np.random.default_rng(0).random((3, 8, 8))
    (normalised,) = Transform(DETECTRON2, None, 100, 1)([image], np.float64).images
    np.testing.assert_allclose(normalised, 255 * image - np.array([123.675, 116.28, 103.53])[:, None, None])


def test_the_rpns_losses_are_divided_by_the_anchors_there_are_or_by_those_there_should_be():
    rng = np.random.default_rng(0)
    logits, deltas = Tensor(rng.normal(size=(2, 40))), Tensor(rng.normal(size=(2, 40, 4)))
    samples = RPNSamples(np.arange(5), np.arange(40, 60), rng.normal(size=(5, 4)))
    out = RPNOutput(logits, deltas, np.zeros((40, 4)), [40])
    sampled, fixed = (
        RPN(None, AnchorGenerator(), RPNOptions(batch_size_per_image=50, fixed_normalizer=fix)).loss(
            out, samples
        )
        for fix in (False, True)
    )
    for name, loss in sampled.items():
        assert float(loss) * 25 == pytest.approx(float(fixed[name]) * 100)


def test_proposals_are_ranked_by_logits_where_probabilities_are_all_1():
    anchors = np.array([[0, 0, 20, 20], [40, 40, 60, 60]], np.float32)
    out = RPNOutput(Tensor(np.float32([[30, 40]])), Tensor(np.zeros((1, 2, 4), np.float32)), anchors, [1, 1])
    batch = Batch(np.zeros((1, 3, 64, 64), np.float32), [(64, 64)], [(64, 64)])
    first = {
        by_logits: RPN(None, None, RPNOptions(ranks_logits=by_logits)).propose(out, batch)[0][0].tolist()
        for by_logits in (False, True)
    }
    assert first == {False: [0, 0, 20, 20], True: [40, 40, 60, 60]}


def test_detections_without_area_are_dropped_before_suppression_or_at_last():
    proposals = np.array([[0.0, 0.0, 0.0, 20.0], [10.0, 10.0, 30.0, 30.0]])
    logits = Tensor(np.array([[0.0, 3.0], [0.0, 1.0]]))
    out = BoxOutput(logits, Tensor(np.zeros((2, 8))))
    batch = Batch(np.zeros((1, 3, 64, 64)), [(64, 64)], [(64, 64)])
    counts = [
        len(
            BoxHead(None, None, None, BoxOptions(min_size_last=last, detections_per_img=1))
            .detect(out, [proposals], batch)[0]
            .boxes
        )
        for last in (False, True)
    ]
    assert counts == [1, 0]  # at last, the one that is kept is the one that goes


@pytest.mark.parametrize("conventions", [MINIMASK, TORCHVISION, TORCHVISION_COCO_V1, DETECTRON2])
def test_a_model_is_made_by_the_conventions_it_is_given(conventions):
    c = conventions
    model = assemble(SMALL, 3, c, min_size=None, max_size=500)
    anchors, rpn, box = model.rpn.anchors, model.rpn.options, model.box_head.options
    assert (anchors.rounded, anchors.offset, anchors.size_major) == (
        c.anchors_rounded,
        c.anchor_offset,
        c.anchors_size_major,
    )
    assert anchors.strides == ((4, 8, 16, 32, 64) if c.nominal_strides else None)
    assert (rpn.beta, rpn.min_size, rpn.fixed_normalizer) == (
        c.rpn_beta,
        c.rpn_min_size,
        c.rpn_fixed_normalizer,
    )
    assert rpn.post_nms_top_n_train == c.rpn_post_nms_top_n_train and rpn.ranks_logits == c.rpn_ranks_logits
    assert model.rpn.matcher.untouched_matches_all == c.untouched_matches_all
    assert (box.beta, box.min_size, box.min_size_last) == (c.box_beta, c.box_min_size, c.box_min_size_last)
    for head in (model.box_head, model.mask_head):
        assert head.pooler.roi_layer.keywords == dict(sampling_ratio=c.sampling_ratio, aligned=c.aligned)
        assert (head.pooler.level_eps, head.pooler.side_eps) == (c.level_eps, c.side_eps)
    assert (model.mask_head.convention, model.mask_head.threshold) == (c.masks, c.mask_threshold)
    block = model.backbone.body.layer2[0]
    strides = block.conv1.options["stride"], block.conv2.options["stride"]
    assert strides == ((2, 1) if c.stride_in_1x1 else (1, 2)) and block.bn1.eps == c.norm_eps


# ------------------------------------------------------------------------------------- docs/conventions.md


def ellipse(size: int, centre: np.ndarray, y, x, rng) -> tuple[np.ndarray, list[float]]:
    """Pixels of an ellipse `size` high, and its box."""
    cy, cx, ry, rx = *centre, size / 2, 0.35 * size
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1, [cx - rx, cy - ry, cx + rx, cy + ry]


def star(size: int, centre: np.ndarray, y, x, rng) -> tuple[np.ndarray, list[float]]:
    """Pixels of a five-pointed star of this diameter, turned at random, and its box."""
    angles = rng.uniform(0, 2 * np.pi) + np.arange(10) * np.pi / 5
    radii = np.where(np.arange(10) % 2, 0.382, 1) * size / 2
    py, px = centre[0] - radii * np.cos(angles), centre[1] + radii * np.sin(angles)
    inside = np.zeros(y.shape, bool)
    for i, j in zip(range(10), np.roll(np.arange(10), -1)):  # even-odd rule
        crosses = (py[i] > y) != (py[j] > y)
        inside ^= crosses & (x < px[i] + (px[j] - px[i]) * (y - py[i]) / (py[j] - py[i]))
    return inside, [px.min(), py.min(), px.max(), py.max()]


def round_trip(shape, size: int, convention: masks.MaskConvention) -> float:
    """Mean IoU of masks with what their crop of 28 x 28 pastes to, at 20 fractional positions."""
    rng, found = np.random.default_rng(size), []
    y, x = np.mgrid[: size + 8, : size + 8] + 0.5
    for _ in range(20):
        mask, box = shape(size, size / 2 + 4 + rng.uniform(-2, 2, 2), y, x, rng)
        crop = masks.crop_masks(mask[None].astype(np.uint8), np.array([box]), np.array([0]), 28, convention)
        pasted = masks.paste_masks(crop, np.array([box]), mask.shape, convention)[0, 0] > 0.5
        found.append((pasted & mask).sum() / (pasted | mask).sum())
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("row", "shape", "convention"),
    [
        ("ellipse, float boxes", ellipse, masks.FLOAT),
        ("ellipse, torchvision", ellipse, masks.TORCHVISION),
        ("star, float boxes", star, masks.FLOAT),
        ("star, torchvision", star, masks.TORCHVISION),
    ],
)
def test_what_a_mask_keeps_when_it_is_cropped_and_pasted_back_is_as_the_page_says(row, shape, convention):
    lines = (
        (Path(__file__).parent.parent / "docs" / "conventions.md").read_text(encoding="utf-8").splitlines()
    )
    cells = [cell.strip() for line in lines if line.startswith(f"| {row} ") for cell in line.split("|")[2:-1]]
    found = [round_trip(shape, size, convention) for size in (16, 32, 64, 128, 256, 400)]
    assert [f"{iou:.3f}" for iou in found] == cells
