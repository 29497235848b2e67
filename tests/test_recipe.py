"""`--config auto`: each rule at its edges, recipes of exotic data sets, the command from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minimask.anchors import AnchorGenerator
from minimask.boxes import box_iou
from minimask.command import cli
from minimask.config import Config, ModelConfig, from_dict, read_config, to_dict, with_settings
from minimask.data import Figures, Shapes
from minimask.errors import InputError, one_line
from minimask.models.conventions import MINIMASK
from minimask.models.detector import load_detector
from minimask.models.networks import NETWORKS, builder_arguments, resolved
from minimask.models.transform import Transform
from minimask.results import large
from minimask.results.survey import recipe
from minimask.results.survey.statistics import Network, Pixels, Statistics, network_of, seen, statistics_of
from tests.cli_data import make_dataset

SIZES = ((8,), (16,), (32,), (64,), (128,))
SMALL = Network(
    AnchorGenerator(SIZES, rounded=False, offset=0.5),
    (4, 8, 16, 32, 64),
    Transform(MINIMASK, None, 1600),
    224.0,
    256,
    0.02,
    2,
)
SCALING = replace(SMALL, transform=Transform(MINIMASK, 800, 1333))


def data(
    widths=(30.0,) * 6, heights=None, image=(256, 256), images=3, corners=None, names=("cell",), **other
):
    """Numbers of a data set in which objects of these sizes take turns over equal images."""
    widths = np.asarray(widths, np.float64)
    size = np.stack([widths, widths if heights is None else np.asarray(heights, np.float64)], axis=1)
    size = size.reshape(-1, 2)
    corners = np.full(size.shape, 7.0) if corners is None else corners
    pixels = Pixels(np.full(images, False), np.full(images, 0.5), np.linspace(-0.01, 0.01, images))
    given = {
        "class_names": names,
        "keypoints": 0,
        "sizes": np.tile(image, (images, 1)),
        "images": np.sort(np.arange(len(size)) % images),
        "boxes": np.concatenate([corners, corners + size], axis=1),
        "pixels": pixels,
        "total": images,
    }
    return Statistics(**(given | other))


def chosen(rule, statistics, *settings, network=SMALL):
    """The values of a choice by the options' last names, and its reason, which is one line."""
    choice = rule(statistics, with_settings(Config(), settings), network)
    assert one_line(choice.reason) == choice.reason
    return {option.partition(".")[2]: value for option, value in choice.values.items()}, choice.reason


def value_of(rule, statistics, *settings, network=SMALL):
    (value,) = chosen(rule, statistics, *settings, network=network)[0].values()
    return value


@pytest.mark.parametrize(
    ("sides", "image", "factor"),
    [
        ([12.0], 256, 1.0),
        ([11.9], 256, 1.5),
        ([10.0], 256, 2.0),
        ([1.0], 256, 4.0),  # 4 pixels are the most that can be made of one
        ([1.0], 1500, 2.0),  # an image of 6000 would take too much memory
        ([1.0], 9000, 0.3333),
        ([30.0], 4096, 1.0),
        ([30.0], 4097, 2 / 3),  # training and prediction must see the same
        ([150.0], 512, 1.0),
        ([151.0], 512, 0.5),
        ([1600.0], 4000, 0.0625),
        ([3000.0], 4000, 0.0625),
        ([18.5, 200, 200, 200], 512, 2 / 3),  # the smallest ones must still be seen
        ([12.0, 200, 200, 200], 512, 1.0),
    ],
)
def test_small_objects_are_magnified_and_large_ones_shrunk(sides, image, factor):
    found = value_of(recipe.magnification, data(sides * 20, image=(image, image)))
    assert found == pytest.approx(factor, abs=1e-4)


def test_what_is_small_goes_by_the_cells_of_the_network():
    fine = replace(SMALL, strides=(2, 4, 8, 16, 32))
    assert value_of(recipe.magnification, data([6.0] * 9), network=fine) == 1
    assert value_of(recipe.magnification, data([5.9] * 9), network=fine) == 1.5


def test_a_network_that_scales_images_itself_is_left_to_do_it():
    for rule in (recipe.magnification, recipe.max_size):
        assert chosen(rule, data([3.0]), network=SCALING)[0] == {}
    assert value_of(recipe.crop, data([300.0]), network=SCALING) == 0


@pytest.mark.parametrize(
    ("longest", "factor", "size"), [(1600, 1, 1600), (1601, 1, 1601), (801, 2, 1602), (5000, 1, 4096)]
)
def test_prediction_shrinks_nothing_that_training_did_not(longest, factor, size):
    found, reason = chosen(recipe.max_size, data(image=(100, longest)), f"model.magnification={factor}")
    assert found["max_size"] == size and ("memory" in reason) == (size == 4096)


def test_whole_images_are_shrunk_in_training_too():
    assert chosen(recipe.max_size, data(image=(4000, 4000)), "data.crop=0")[0] == {}


@pytest.mark.parametrize(
    ("side", "count", "image", "factor", "crop"),
    [
        (30, 60, 1000, 1, 448),  # 256 x 256 show 1.3 of the 20 objects of an image, 448 x 448 show 4
        (30, 30, 1000, 1, 256),  # none shows 3: more would only cost
        (30, 300, 1000, 1, 256),
        (170, 300, 1000, 1, 256),
        (171, 300, 1000, 1, 320),
        (900, 300, 1000, 1, 448),
        (30, 60, 320, 1, 0),
        (30, 60, 321, 1, 256),
        (10, 300, 1000, 2, 192),  # 128 x 128 show 1.6 of 100 objects, 192 x 192 show 3.7
        (10, 900, 1000, 2, 128),
        (10, 60, 160, 2, 0),
    ],
)
def test_crops_hold_the_large_objects_and_a_few_of_them(side, count, image, factor, crop):
    statistics = data([side] * count, image=(image, image))
    assert value_of(recipe.crop, statistics, f"model.magnification={factor}") == crop


@pytest.mark.parametrize(
    ("sides", "name"),
    [([23.9] * 3, "fine"), ([24.0] * 3, "small"), ([5.0, 24.0, 90.0], "small"), ([], "small")],
)
def test_small_objects_get_the_network_with_finer_maps(sides, name):
    choice = recipe.network(data(sides))
    assert choice.values == {"model.name": f"maskrcnn_{name}"} and one_line(choice.reason) == choice.reason


def test_crops_of_the_finer_maps_are_no_larger_than_they_bear():
    fine = replace(SMALL, strides=(2, 4, 8, 16, 32))
    assert value_of(recipe.crop, data([400] * 9, image=(1000, 1000)), network=fine) == 256
    assert value_of(recipe.crop, data([400] * 9, image=(1000, 1000))) == 448


@pytest.mark.parametrize(
    ("image", "crop", "repeats"),
    [((383, 383), 256, False), ((384, 384), 256, True), ((128, 1152), 256, True), ((4000, 4000), 0, False)],
)
def test_images_repeat_where_crops_show_a_small_part_of_them(image, crop, repeats):
    statistics = data([30] * 3, image=image)
    assert value_of(recipe.repeat_by_size, statistics, f"data.crop={crop}") == repeats


def test_the_share_of_missed_objects_is_that_of_all_anchors():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 190, (60, 2))
    statistics = data(rng.uniform(20, 60, 60), rng.uniform(20, 60, 60), corners=corners)
    found, reason = chosen(recipe.anchor_sizes, statistics)
    sizes = found["anchor_sizes"]
    steps = np.divide(sizes[1:], sizes[:-1])
    assert len(sizes) == 5 and np.ptp(steps) < 0.02 and sizes != SMALL.anchor_sizes
    shares = []
    for generator in (SMALL.with_sizes(sizes), SMALL.anchors):
        anchors = generator((256, 256), [(256 // s, 256 // s) for s in SMALL.strides])
        best = box_iou(statistics.boxes.astype(np.float32), anchors).max(axis=1)
        shares += [f"{np.mean(best < threshold):.0%}" for threshold in (0.5, 0.7)]
    half, much, own_half, own_much = shares
    assert reason == (
        f"{half} of the objects miss IoU 0.5, {much} miss 0.7; the network's own: {own_half}, {own_much}"
    )
    assert float(half[:-1]) + float(much[:-1]) < float(own_half[:-1]) + float(own_much[:-1]) - 10


def test_anchors_that_fit_are_kept():
    level = SMALL.anchors((256, 256), [(256 // s, 256 // s) for s in SMALL.strides])
    inside = level[(level >= 0).all(axis=1) & (level <= 256).all(axis=1)][::40]
    statistics = data(
        inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1], corners=inside[:, :2].astype(np.float64)
    )
    found, reason = chosen(recipe.anchor_sizes, statistics)
    assert found["anchor_sizes"] == SMALL.anchor_sizes and "0% of the objects miss IoU 0.5, 0%" in reason


def test_anchors_are_measured_at_the_size_that_the_network_sees():
    statistics = data(np.linspace(8, 12, 90), image=(128, 128))
    once = value_of(recipe.anchor_sizes, statistics)
    twice = value_of(recipe.anchor_sizes, statistics, "model.magnification=2")
    assert twice[0] > 1.5 * once[0]


def test_a_single_level_gets_all_sizes():
    one_level = replace(
        SMALL, anchors=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1, 2),)), strides=(16,)
    )
    assert one_level.with_sizes((1, 2, 3, 4, 5)).sizes == ((1, 2, 3, 4, 5),)
    assert len(value_of(recipe.anchor_sizes, data([90.0] * 9), network=one_level)) == 5


def test_boxes_are_pooled_from_the_networks_levels():
    assert value_of(recipe.canonical_scale, data()) == 224
    assert chosen(recipe.canonical_scale, data(), network=replace(SMALL, canonical_scale=None))[0] == {}


@pytest.mark.parametrize(("count", "rois"), [(3, 128), (6, 128), (7, 256), (96, 256), (97, 512)])
def test_rois_go_by_the_objects_of_a_training_image(count, rois):
    statistics = data([30.0] * count)  # in three images
    assert value_of(recipe.rois, statistics, "data.crop=0") == rois
    assert value_of(recipe.rois, replace(statistics, keypoints=4), network=replace(SMALL, rois=32)) == 32


@pytest.mark.parametrize(
    ("most", "detections"), [(1, 100), (76, 100), (77, 110), (300, 390), (60_000, 65_535)]
)
def test_there_is_room_for_a_third_more_detections(most, detections):
    assert value_of(recipe.detections, data([9.0] * most, images=1)) == detections


@pytest.mark.parametrize(("count", "threshold"), [(29, 0.05), (30, 0.01)])
def test_faint_detections_count_among_many(count, threshold):
    assert value_of(recipe.score_threshold, data([9.0] * count)) == threshold


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("cell", True),
        ("bright spot", True),  # it has right in it
        ("copyright", True),
        ("left lung", False),
        ("hand_Right", False),
        ("LeftShoe", False),
        ("7", False),
        ("42", False),
        ("b", False),
        ("licence plate", False),
        ("TextLine", False),
    ],
)
def test_what_is_told_by_its_side_or_read_is_not_mirrored(name, flips):
    assert value_of(recipe.flip_horizontal, data(names=("dog", name))) is flips


def scattered(images=30, objects=300, seed=1):
    """Objects of no direction, and images that are no brighter above than below."""
    rng = np.random.default_rng(seed)
    corners, size = rng.uniform(0, 236, (objects, 2)), rng.uniform(10, 30, (2, objects))
    statistics = data(*size, corners=corners, images=images)
    return replace(statistics, pixels=replace(statistics.pixels, fall=rng.normal(0, 0.1, images)))


def test_images_are_turned_upside_down_only_where_nothing_tells_up_from_down():
    statistics = scattered()
    assert value_of(recipe.flip_vertical, statistics) is True
    below, tall = statistics.boxes.copy(), statistics.boxes.copy()
    below[:, 1::2] += 25
    tall[:, 3] += 15
    bright = replace(statistics.pixels, fall=statistics.pixels.fall + 0.1)
    for change, word in (
        ({"boxes": below}, "above than below"),
        ({"boxes": tall}, "tall"),
        ({"pixels": bright}, "brighter"),
        ({"class_names": ("5",)}, "mirror"),
    ):
        found, reason = chosen(recipe.flip_vertical, replace(statistics, **change))
        assert found == {"flip_vertical": False} and word in reason
    for few in (scattered(images=19), scattered(objects=99)):
        assert "too few" in chosen(recipe.flip_vertical, few)[1]


def test_colours_change_where_images_differ_in_them():
    pixels = data(images=10).pixels
    mixed = replace(pixels, grey=np.arange(10) < 4, brightness=np.geomspace(0.1, 0.9, 10))
    assert chosen(recipe.colours, data(images=10, pixels=mixed))[0] == {
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.3,
    }
    for alike in (pixels, replace(pixels, grey=np.full(10, True))):
        assert set(chosen(recipe.colours, data(images=10, pixels=alike))[0].values()) == {0.0}


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [
        (1, 2, 300),
        (9, 2, 1400),
        (10, 2, 1500),
        (125, 2, 1500),
        (126, 2, 1600),
        (126, 8, 1500),
        (9999, 2, 6000),
    ],
)
def test_steps_go_by_the_number_of_images(images, batch, steps):
    found = value_of(recipe.steps, data(total=images), f"train.batch_size={batch}")
    assert found == (1350 if images == 9 else steps)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (30, 2), (1500, 100), (60_000, 500)])
def test_a_fifteenth_of_the_steps_is_for_warming_up(steps, warmup):
    assert value_of(recipe.warmup_steps, data(), f"train.steps={steps}") == warmup


def test_the_learning_rate_is_the_networks():
    assert chosen(recipe.learning_rate, data())[0] == {"learning_rate": 0.02, "reference_batch": 2}
    assert "0.08 for 8" in chosen(recipe.learning_rate, data(), "train.batch_size=8")[1]


def test_what_is_given_stays_and_later_rules_reckon_with_it():
    config = with_settings(Config(), ["model.magnification=2", "train.steps=30", "data.contrast=0.5"])
    given = dict.fromkeys(["model.magnification", "train.steps", "data.contrast"], "as you set it")
    found = recipe.choose(data(image=(300, 300)), config, given, lambda *_: SMALL)
    rows = {row.option: row for row in found.rows}
    assert found.config.model.magnification == 2 and found.config.data.contrast == 0.5
    assert {name for name, row in rows.items() if row.reason == "as you set it"} == set(given)
    assert found.config.data.crop == 128 and found.config.train.warmup_steps == 2
    assert len(found.table().splitlines()) == len(found.rows)
    assert json.loads(json.dumps(found.document()))["train.steps"] == {"value": 30, "reason": "as you set it"}


def nothing():
    return data([], images=2)


EXOTIC = {
    "one image": data([40.0] * 3, images=1),
    "no objects": nothing(),
    "one huge object": data([3900.0], [2900.0], image=(3000, 4000), images=1),
    "a pixel each": data([1.0] * 50),
    "300 objects": data([11.0] * 300, images=1),
    "16 categories": data(names=tuple(f"kind {i}" for i in range(16))),
    "grey": data(pixels=Pixels(np.full(3, True), np.full(3, 0.0), np.zeros(3))),
    "keypoints": data(keypoints=5),
    "an image of one pixel": data([1.0], image=(1, 1), images=1, corners=np.zeros((1, 2))),
}


@pytest.mark.parametrize("name", EXOTIC)
def test_exotic_data_sets_get_a_recipe_that_can_be_built(name):
    found = recipe.choose(EXOTIC[name], Config(), {}, network_of)
    assert from_dict(to_dict(found.config), "the recipe") == found.config
    built = network_of(found.config, EXOTIC[name])
    assert built.anchor_sizes == found.config.model.anchor_sizes
    assert resolved(found.config).model == found.config.model
    fine = name in ("a pixel each", "300 objects", "an image of one pixel")
    small = "maskrcnn_fine" if fine else "maskrcnn_small"
    assert found.config.model.name == ("keypointrcnn_small" if name == "keypoints" else small)
    assert all("nan" not in row.reason for row in found.rows)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_c4"])
def test_large_networks_get_what_they_can_take(name):
    config = with_settings(Config(), [f"model.name={name}"])
    large_network = replace(SCALING, canonical_scale=None if name.endswith("c4") else 224.0)
    found = recipe.choose(data(), config, {"model.name": "as you set it"}, lambda *_: large_network)
    assert found.config.model.name == name and found.config.data.crop == 0
    assert resolved(found.config).model.magnification is None


def test_statistics_of_generated_pictures():
    shapes = Shapes(5, seed=3, size=64)
    found = statistics_of(shapes)
    assert found.total == 5 and found.keypoints == 0 and found.sizes.tolist() == [[64, 64]] * 5
    assert found.counts.tolist() == [len(sample.boxes) for sample in shapes]
    np.testing.assert_array_equal(found.boxes, np.concatenate([sample.boxes for sample in shapes]))
    brightness = [sample.image.mean() for sample in shapes]
    np.testing.assert_allclose(found.pixels.brightness, brightness, rtol=1e-5)
    assert not found.pixels.grey.any() and statistics_of(Figures(3, seed=0)).keypoints == 4
    view = seen(found, np.full(5, 1.5), 32)
    assert (view.sizes == 96).all() and (view.boxes == 1.5 * found.boxes).all()


def test_unset_options_leave_every_network_as_it_is():
    new = {"magnification", "anchor_sizes", "canonical_scale", "rois", "positive_share"}
    arguments = {"box_batch_size_per_image", "box_positive_fraction"} | new
    for name in NETWORKS:
        assert not arguments & builder_arguments(ModelConfig(name=name)).keys()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("maskrcnn_resnet50_fpn", "magnification=2"), ("maskrcnn_resnet50_c4", "canonical_scale=100")],
)
def test_networks_refuse_what_they_have_no_choice_of(name, setting):
    with pytest.raises(InputError, match="has no such choice; leave it out"):
        resolved(with_settings(Config(), [f"model.name={name}", f"model.{setting}"]))


@pytest.mark.parametrize("sizes", ["8,16,32,64", "8,16,16,32,64", "64,32,16,8,4", "0,1,2,3,4"])
def test_anchor_sizes_must_be_five_rising_numbers(sizes):
    with pytest.raises(InputError, match=r"rising|at least 1"):
        with_settings(Config(), [f"model.anchor_sizes={sizes}"])


def test_one_way_of_scaling_is_enough():
    with pytest.raises(InputError, match="give one"):
        with_settings(Config(), ["model.min_size=100", "model.magnification=2"])


def test_options_reach_the_model():
    settings = ["anchor_sizes=5,10,20,40,80", "canonical_scale=112", "rois=40", "positive_share=0.5"]
    settings = [f"model.{text}" for text in [*settings, "magnification=1.5"]]
    for name in ("maskrcnn_small", "maskrcnn_fine", "keypointrcnn_small"):
        options = with_settings(Config(), [f"model.name={name}", *settings]).model
        points = {"num_keypoints": 3} if name.startswith("keypoint") else {}
        model = NETWORKS[name].build(2, seed=None, **builder_arguments(options), **points)
        assert model.rpn.anchors.sizes == ((5,), (10,), (20,), (40,), (80,))
        head = model.keypoint_head if points else model.mask_head
        assert model.box_head.pooler.canonical_scale == head.pooler.canonical_scale == 112
        assert model.box_head.options.batch_size_per_image == 40
        assert model.box_head.options.positive_fraction == 0.5
        assert model.transform.resized((100, 60), None) == (150, 90)


def test_a_magnification_is_a_min_size_of_every_image():
    image = np.random.default_rng(0).random((3, 40, 40), np.float32)
    ours, theirs = Transform(MINIMASK, None, 1600, magnification=2.0), Transform(MINIMASK, 80, 1600)
    assert (ours([image]).images == theirs([image]).images).all()
    assert ours.resized((1000, 500), None) == (1600, 800)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 2.0])
def test_an_image_that_is_shrunk_in_advance_is_not_shrunk_twice(factor):
    class Model:
        transform = Transform(MINIMASK, None, 100, magnification=factor)

    pixels = np.zeros((300, 240), np.uint8)
    height, width = large._as_seen(Model, pixels).shape[1:]
    assert height <= 300 and Model.transform.resized((height, width), None) == Model.transform.resized(
        (300, 240), None
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one step on tiny shapes, by the recipe."""
    root = tmp_path_factory.mktemp("auto")
    make_dataset(root, count=4, size=48)
    return root


def arguments(root, output, *more):
    files = ["--data", root / "train.json", "--images", root / "images", "--output", root / output]
    return ["train", *map(str, files), "--config", "auto", "--set", "train.steps=1", *more]


def test_the_command_chooses_tells_and_keeps_a_recipe(run, capsys):
    settings = ["--set", "model.rois=16", "--set", "model.magnification=0.5"]
    assert cli.main(arguments(run, "run", *settings)) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith("  ")}
    for option in ("model.rois", "model.magnification", "train.steps"):
        assert lines[option].endswith("as you set it")
    assert lines["data.crop"].endswith("whole images, none longer than 48 px")
    written = read_config(str(run / "run" / "config.toml"))
    assert written.model.rois == 16 and written.model.anchor_sizes and written.data.crop == 0
    detector = load_detector(run / "run" / "checkpoint.npz")
    assert detector.config == written
    assert detector.model.rpn.anchors.sizes == tuple((size,) for size in written.model.anchor_sizes)
    assert detector.model.transform.magnification == 0.5

    again = ["train", "--resume", "--output", str(run / "run"), "--set", "train.steps=2"]
    assert cli.main(again) == 0
    assert read_config(str(run / "run" / "config.toml")).model == written.model
    assert cli.main([*again, "--config", "auto"]) == 2
    assert "keeps the recipe" in capsys.readouterr().err

    target = str(run / "weights.pth")
    assert cli.main(["export", "--weights", str(run / "run" / "checkpoint.npz"), target]) == 0
    assert "anchor_sizes=" in capsys.readouterr().out


def test_weights_keep_what_they_were_trained_with(run, capsys):
    if not (run / "own").exists():
        settings = ["--set", "model.anchor_sizes=6,12,24,48,96", "--set", "model.rois=16"]
        assert cli.main(arguments(run, "own", *settings)) == 0
    weights = ["--weights", str(run / "own" / "checkpoint.npz")]
    assert cli.main(arguments(run, "tuned", *weights, "--set", "model.rois=16")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "model.anchor_sizes" in line]
    assert lines[-1].endswith("as the weights need it")
    assert read_config(str(run / "tuned" / "config.toml")).model.anchor_sizes == (6, 12, 24, 48, 96)


def test_check_data_prints_the_recipe_without_training(run, capsys):
    given = ["--data", str(run / "train.json"), "--images", str(run / "images"), "--config", "auto"]
    given += ["--set", "train.steps=7", "--output", str(run / "check")]
    assert cli.main(["check-data", *given]) == 0
    assert "a recipe for these" in capsys.readouterr().out
    report = json.loads((run / "check" / "report.json").read_text(encoding="utf-8"))
    assert report["recipe"]["train.steps"] == {"value": 7, "reason": "as you set it"}
    sizes = report["recipe"]["model.anchor_sizes"]["value"]
    (facts,) = report["data"].values()
    assert facts["anchors"]["anchor_sizes"] == [[size] for size in sizes]


def test_check_data_has_no_recipe_for_what_training_refuses(run, capsys):
    broken = json.loads((run / "train.json").read_text())
    broken["annotations"][0]["bbox"] = [1, 2, 3]
    (run / "broken.json").write_text(json.dumps(broken))
    given = ["--data", str(run / "broken.json"), "--images", str(run / "images"), "--config", "auto"]
    assert cli.main(["check-data", *given, "--output", str(run / "check-broken")]) == 1
    told = capsys.readouterr()
    assert "mend what is refused" in told.err and "a recipe for these" not in told.out


def test_a_file_of_that_name_goes_before(tmp_path, monkeypatch):
    from minimask.command.fitting import is_auto

    monkeypatch.chdir(tmp_path)
    assert is_auto("auto") and not is_auto(None) and not is_auto("nuclei")
    (tmp_path / "auto").write_text("")
    assert not is_auto("auto")


@pytest.mark.full
def test_the_recipe_is_as_good_as_the_defaults(tmp_path):
    from tests.full.auto_recipe import run as measure

    assert measure([str(tmp_path)]) == 0
