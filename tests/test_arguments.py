"""Wrong arguments to functions and builders: one InputError that names the argument, before any work."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import minimask
from minimask import InputError, Tensor, models, nn, ops
from minimask import functions as F
from minimask.matching import assign_fpn_levels
from minimask.models.conventions import MINIMASK
from minimask.models.transform import PIXELS_MOST, Transform
from minimask.randomness import Draws
from minimask.training.optim import SGD

BOXES = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [50, 50, 60, 60]], np.float32)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
MAP = np.ones((2, 3, 16, 16), np.float32)
ROIS = np.array([[0, 0, 0, 8, 8]], np.float32)
MASKS = np.ones((3, 1, 28, 28), np.float32)
decode, encode = ops.BoxCoder().decode, ops.BoxCoder().encode

WRONG = {
    "fewer scores": (
        partial(ops.nms, BOXES, SCORES[:2], 0.5),
        r"nms: scores must be \(3,\).*shape is \(2,\)",
    ),
    "more scores": (partial(ops.nms, BOXES, np.ones(4), 0.5), r"nms: scores must be \(3,\)"),
    "scores in a column": (partial(ops.nms, BOXES, SCORES[:, None], 0.5), r"nms: scores .*is \(3, 1\)"),
    "scores of text": (partial(ops.nms, BOXES, ["a", "b", "c"], 0.5), "nms: scores must be an array of num"),
    "one box": (partial(ops.nms, BOXES[0], SCORES[:1], 0.5), r"nms: boxes must be \(N, 4\).*is \(4,\)"),
    "five columns": (partial(ops.nms, np.ones((3, 5)), SCORES, 0.5), r"nms: boxes must be \(N, 4\)"),
    "transposed": (partial(ops.nms, BOXES.T, SCORES, 0.5), r"nms: boxes .*the shape is \(4, 3\)"),
    "complex boxes": (partial(ops.nms, BOXES + 1j, SCORES, 0.5), "nms: boxes must be an array of numbers"),
    "a threshold of text": (partial(ops.nms, BOXES, SCORES, "0.5"), "nms: iou_threshold must be a number"),
    "a threshold of NaN": (partial(ops.nms, BOXES, SCORES, np.nan), "nms: iou_threshold must be a number"),
    "a threshold below 0": (
        partial(ops.nms, BOXES, SCORES, -0.1),
        "iou_threshold must be a number from 0 on",
    ),
    "fewer idxs": (partial(ops.batched_nms, BOXES, SCORES, [0, 1], 0.5), r"batched_nms: idxs must be \(3,\)"),
    "more idxs": (partial(ops.batched_nms, BOXES, SCORES, [0] * 4, 0.5), r"batched_nms: idxs must be \(3,\)"),
    "one idx": (partial(ops.batched_nms, BOXES, SCORES, 0, 0.5), r"batched_nms: idxs must be \(3,\)"),
    "IoU of a box": (partial(ops.box_iou, BOXES[0], BOXES), r"box_iou: a must be \(N, 4\)"),
    "IoU of RoIs": (partial(ops.box_iou, BOXES, ROIS), r"box_iou: b must be \(N, 4\).*is \(1, 5\)"),
    "GIoU of text": (partial(ops.generalized_box_iou, "ab", BOXES), "generalized_box_iou: a must be an arr"),
    "areas of RoIs": (partial(ops.box_area, ROIS), r"box_area: boxes must be \(\.\.\., 4\)"),
    "clipped RoIs": (partial(ops.clip_boxes_to_image, ROIS, (5, 5)), "clip_boxes_to_image: boxes must be"),
    "one side": (partial(ops.clip_boxes_to_image, BOXES, 5), r"image_size must be \(height, width\).*is 5"),
    "three sides": (partial(ops.clip_boxes_to_image, BOXES, (3, 5, 5)), r"image_size must be \(height, wid"),
    "small RoIs": (partial(ops.remove_small_boxes, ROIS, 1), "remove_small_boxes: boxes must be"),
    "levels of RoIs": (partial(assign_fpn_levels, ROIS), "assign_fpn_levels: boxes must be"),
    "fewer proposals": (partial(encode, BOXES, BOXES[:2]), "3 reference_boxes need as many proposals, not 2"),
    "five deltas": (partial(decode, np.ones((3, 5)), BOXES), r"deltas must be \(3, 4 K\).*is \(3, 5\)"),
    "fewer deltas": (partial(decode, np.ones((2, 4)), BOXES), r"deltas must be \(3, 4 K\)"),
    "fewer boxes than masks": (
        partial(ops.paste_masks, MASKS, BOXES[:2], (64, 64)),
        r"paste_masks: masks must be \(2, 1, M, M\), one for each box; the shape is \(3, 1, 28, 28\)",
    ),
    "a negative side": (partial(ops.paste_masks, MASKS, BOXES, (-64, 64)), "paste_masks: image_size must be"),
    "one image": (
        partial(ops.roi_align, MAP[0], ROIS, 7),
        r"roi_align: a feature map must be \(N, C, H, W\)",
    ),
    "half a bin": (partial(ops.roi_align, MAP, ROIS, 7.5), "output_size must be a whole number or two"),
    "three sizes": (partial(ops.roi_pool, MAP, ROIS, (7, 7, 7)), "output_size must be a whole number or two"),
    "a scale of 0": (partial(ops.roi_align, MAP, ROIS, 7, 0.0), "roi_align: spatial_scale must be .*is 0.0"),
    "half a point": (partial(ops.roi_align, MAP, ROIS, 7, sampling_ratio=1.5), "sampling_ratio must be a wh"),
    "half a stride": (partial(F.max_pool2d, MAP, 3, stride=1.5), "stride must be a whole number or two"),
    "anchors of size 0": (partial(ops.AnchorGenerator, ((0,),), ((1.0,),)), "sizes must be positive numbers"),
    "a negative ratio": (partial(ops.AnchorGenerator, ((8,),), ((-1.0,),)), "aspect_ratios must be positive"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_array_of_the_wrong_shape_or_kind_is_named_with_the_function_and_the_right_shape(case):
    call, words = WRONG[case]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_boxes_in_lists_and_tensors_are_taken_as_arrays_are():
    kept = ops.nms(BOXES, SCORES, 0.5)
    for given in (BOXES.tolist(), Tensor(BOXES)):
        np.testing.assert_array_equal(ops.nms(given, SCORES.tolist(), 0.5), kept)
        array = np.asarray(given)  # float64 of a list
        np.testing.assert_array_equal(ops.box_iou(given, given), ops.box_iou(array, array))
        np.testing.assert_array_equal(ops.clip_boxes_to_image(given, (5, 7)), BOXES.clip(0, [7, 5, 7, 5]))


def test_an_anchor_generator_takes_numbers_for_tuples_as_torchvisions_does():
    short, long = (
        ops.AnchorGenerator((8, 16), (0.5, 2.0)),
        ops.AnchorGenerator(((8,), (16,)), ((0.5, 2.0),) * 2),
    )
    assert short == long and short.num_anchors_per_location() == [2, 2]


# --------------------------------------------------------------------------------------------- builders


@pytest.mark.parametrize("build", [models.maskrcnn_resnet50_fpn, partial(models.maskrcnn_small, 2)])
@pytest.mark.parametrize(
    "given",
    [
        {"weights": None},
        {"weights": "DEFAULT"},
        {"pretrained": True},
        {"weights_backbone": None},
        {"progress": 1},
    ],
)
def test_torchvisions_arguments_for_weights_are_answered_with_where_weights_come_from(build, given):
    with pytest.raises(TypeError, match=r"nothing is downloaded.*models\.from_checkpoint\(FILE\)"):
        build(**given)


def test_a_misspelt_argument_names_the_one_that_is_meant():
    with pytest.raises(TypeError, match="'num_clases'; did you mean num_classes"):
        models.maskrcnn_resnet50_fpn(num_clases=3)
    with pytest.raises(TypeError, match="did you mean box_score_thresh"):
        models.maskrcnn_small(2, box_score_tresh=0.3)


@pytest.mark.parametrize("count", [0, 1, -3, 2.0, 2.5, "2", None, True])
def test_a_number_of_classes_that_is_none_is_refused(count):
    with pytest.raises(
        InputError, match="num_classes must be a whole number from 2 up, one for the background"
    ):
        models.maskrcnn_small(count)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rpn_pre_nms_top_n_test": -1}, "rpn_pre_nms_top_n_test must be a whole number from 0 up, is -1"),
        ({"rpn_post_nms_top_n_train": 1.5}, "rpn_post_nms_top_n_train must be a whole number"),
        ({"box_detections_per_img": "10"}, "box_detections_per_img must be a whole number"),
        ({"box_batch_size_per_image": 0}, "box_batch_size_per_image must be a whole number from 1 up"),
        ({"box_score_thresh": 50}, "box_score_thresh must be a number from 0 to 1, is 50"),
        ({"box_score_thresh": -0.1}, "box_score_thresh must be a number from 0 to 1"),
        ({"box_nms_thresh": float("nan")}, "box_nms_thresh must be a number from 0 to 1"),
        ({"rpn_nms_thresh": None}, "rpn_nms_thresh must be a number from 0 to 1"),
        ({"rpn_positive_fraction": 2}, "rpn_positive_fraction must be a number from 0 to 1"),
        ({"rpn_min_size": -1}, "rpn_min_size must be a number of at least 0"),
        ({"box_bg_iou_thresh": 0.7}, "box_bg_iou_thresh is 0.7, more than box_fg_iou_thresh, 0.5"),
        ({"min_size": "800"}, "min_size and max_size must be at least 1, are '800' and 1600"),
        ({"max_size": None}, "min_size and max_size must be at least 1"),
        ({"canonical_scale": 0}, "canonical_scale must be a number of at least 1, is 0"),
        ({"seed": -1}, "seed must be a whole number from 0 up, is -1"),
    ],
)
def test_an_option_out_of_range_is_named_as_the_builder_takes_it(given, words):
    with pytest.raises(InputError, match=words):
        models.maskrcnn_small(2, **given)


def test_layers_that_train_are_counted_from_0_to_5():
    for count in (6, -1, 2.5, None):
        with pytest.raises(InputError, match="trainable_backbone_layers must be a whole number from 0 to 5"):
            models.maskrcnn_resnet50_fpn(2, count)


def test_means_and_deviations_of_colours_are_three_and_no_zeros():
    for given in ({"image_mean": (1, 2)}, {"image_std": (1, 0, 1)}, {"image_mean": (np.nan, 0, 0)}):
        with pytest.raises(InputError, match="image_mean and image_std must be three numbers each"):
            models.maskrcnn_resnet50_fpn(2, **given)
    assert Draws(np.int64(3)).seed == 3  # any whole number will do


def test_a_batch_that_would_take_all_memory_is_refused_before_anything_is_resized():
    transform = Transform(MINIMASK, 60_000, 65_536)
    with pytest.raises(
        InputError, match=rf"a batch of 1 x 60000 x 60000 pixels has more than {PIXELS_MOST:,}"
    ):
        transform([np.zeros((3, 4, 4), np.float32)])


def test_boxes_left_of_their_image_are_not_taken_for_normalised_ones():
    model, box = (
        models.maskrcnn_small(2, channels=(8, 8, 8, 8), fpn_channels=8, box_width=8),
        [[-30.0, 2, -20, 9]],
    )
    target = dict(boxes=box, labels=[1], masks=np.ones((1, 32, 32), np.uint8))
    with pytest.raises(InputError, match="outside its image"):
        model.loss([np.zeros((3, 32, 32), np.float32)], [target])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": "0.1"}, "SGD: lr must be a number from 0 up, is '0.1'"),
        ({"lr": -1.0}, "SGD: lr must be a number from 0 up"),
        ({"lr": float("nan")}, "SGD: lr must be a number"),
        ({"lr": 0.1, "momentum": None}, "SGD: momentum must be a number"),
    ],
)
def test_an_optimizer_takes_numbers_that_can_be_meant(given, words):
    layer = nn.Linear(2, 2, np.random.default_rng(0))
    with pytest.raises(InputError, match=words):
        SGD(layer.named_parameters(), **given)


def test_an_optimizer_is_told_to_be_given_names():
    layer = nn.Linear(2, 2, np.random.default_rng(0))
    with pytest.raises(InputError, match=r"parameters need their names; give model\.named_parameters\(\)"):
        SGD(layer.parameters(), lr=0.1)


# -------------------------------------------------------------------------------------- the first import


def test_nothing_is_imported_before_the_command_answers_to_ctrl_c():
    code = f"""
import sys
text = open({str(Path(minimask.__file__))!r}).read()
before = set(sys.modules)
exec(text[: text.index("from minimask import functions")], {{"__name__": "minimask"}})
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")
