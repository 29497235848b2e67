"""Keypoints in data: COCO files, crops, flips, generated figures."""

import json

import numpy as np
import pytest
from PIL import Image

from minimask.data import Augmentation, Batches, Figures, Shapes, Skeleton, augment, read_coco
from minimask.data.augmentation import Plan, carry_out
from minimask.data.coco import survey_coco
from minimask.data.figures import SKELETON
from minimask.data.keypoint_checks import from_coco, to_coco
from minimask.data.sample import PixelBox, crop
from minimask.errors import InputError
from minimask.keypoints import keypoints_to_heatmap
from minimask.results.oks import COCO

HEIGHT, WIDTH = 24, 32


def document():
    """Two cats and a dog on an image of 32 x 24; cats and dogs have a nose, a left and a right ear."""
    names = {"keypoints": ["nose", "left_ear", "right_ear"], "skeleton": [[1, 2], [1, 3]]}
    square = [[10, 8, 16, 8, 16, 14, 10, 14]]
    rest = {"image_id": 4, "bbox": [10, 8, 6, 6], "area": 36, "iscrowd": 0, "segmentation": square}
    return {
        "images": [{"id": 4, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 90, "name": "cat"} | names, {"id": 7, "name": "dog"} | names],
        "annotations": [
            {"id": 1, "category_id": 90, "keypoints": [11, 9, 2, 13, 9, 1, 0, 0, 0], "num_keypoints": 2}
            | rest,
            {"id": 2, "category_id": 90} | rest,
            {"id": 3, "category_id": 7, "keypoints": [15, 10.5, 2, 0, 0, 0, 12, 13, 2]} | rest,
        ],
    }


@pytest.fixture
def folder(tmp_path):
    Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    return tmp_path


def load(folder, content):
    path = folder / "train.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_coco(path, folder)


# ----------------------------------------------------------------------------------------------- COCO files


def test_keypoints_are_read_with_names_and_edges_in_coordinates_of_pixels(folder):
    dataset = load(folder, document())
    assert dataset.skeleton == Skeleton(("nose", "left_ear", "right_ear"), ((0, 1), (0, 2)))
    assert dataset.notes == []
    sample = dataset[0]
    assert sample.keypoints.dtype == np.float32 and sample.skeleton is dataset.skeleton
    assert sample.keypoints.tolist() == [
        [[11.5, 9.5, 2], [13.5, 9.5, 1], [0, 0, 0]],
        [[0, 0, 0]] * 3,
        [[15.5, 11, 2], [0, 0, 0], [12.5, 13.5, 2]],
    ]
    assert sample.target()["keypoints"] is sample.keypoints


def test_the_document_for_pycocotools_has_the_keypoints_as_they_were(folder):
    given, dataset = document(), load(folder, document())
    kept = dataset.coco_document()
    assert [c["keypoints"] for c in kept["categories"]] == [given["categories"][0]["keypoints"]] * 2
    assert kept["categories"][0]["skeleton"] == [[1, 2], [1, 3]]
    assert [a["keypoints"] for a in kept["annotations"]] == [
        given["annotations"][0]["keypoints"],
        [0.0] * 9,
        given["annotations"][2]["keypoints"],
    ]
    assert [a["num_keypoints"] for a in kept["annotations"]] == [2, 0, 2]
    again = load(folder, kept)
    np.testing.assert_array_equal(again[0].keypoints, dataset[0].keypoints)


def test_a_file_without_keypoints_has_none_anywhere(folder):
    content = document()
    for entry in content["categories"] + content["annotations"]:
        for key in ("keypoints", "skeleton", "num_keypoints"):
            entry.pop(key, None)
    dataset = load(folder, content)
    assert dataset.skeleton is None and dataset[0].keypoints is None
    assert "keypoints" not in dataset[0].target()
    assert not any("keypoint" in key for a in dataset.coco_document()["annotations"] for key in a)
    assert all(category.keys() == {"id", "name"} for category in dataset.coco_document()["categories"])


def test_changed_keypoints_are_other_annotations(folder):
    before, content = load(folder, document()).digests(), document()
    content["annotations"][0]["keypoints"][0] = 12
    assert load(folder, content).digests()["annotations"] != before["annotations"]


def annotation(change):
    return lambda content: content["annotations"][0].update(change)


def category(change):
    return lambda content: content["categories"][0].update(change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (annotation({"keypoints": [1, 2, 2]}), "has 3 numbers.*needs 9"),
        (annotation({"keypoints": "none"}), "keypoints is 'none'.*needs 9"),
        (annotation({"keypoints": [1, 2, 3] * 3}), "keypoint 1 has the visibility 3.*0 not labelled"),
        (annotation({"keypoints": [1, 2, 1.5] * 3}), "visibility 1.5"),
        (annotation({"keypoints": [1, float("nan"), 2] * 3}), "not a finite number"),
        (annotation({"keypoints": [1, None, 2] * 3}), "not a finite number"),
        (annotation({"keypoints": [1, True, 2] * 3}), "not a finite number"),
        (annotation({"keypoints": [1, 10**400, 2] * 3}), "not a finite number"),
        (annotation({"keypoints": [500, 2, 2] * 3}), "keypoint 1 at 500, 2 is far outside"),
        (annotation({"num_keypoints": "two"}), "num_keypoints must be a whole number"),
        (category({"keypoints": ["nose", "nose", "ear"]}), "two keypoints are named 'nose'"),
        (category({"keypoints": "nose"}), "keypoints must be a list of names"),
        (category({"keypoints": ["nose", "", "ear"]}), "keypoints must be a list of names"),
        (category({"keypoints": ["nose", "ea\nr", "ear"]}), "keypoints must be a list of names"),
        (category({"keypoints": [str(i) for i in range(1001)]}), "at most 1000"),
        (category({"skeleton": [[0, 1]]}), "counted from 1 to 3"),
        (category({"skeleton": [[1, 4]]}), "counted from 1 to 3"),
        (category({"skeleton": [1, 2]}), "counted from 1 to 3"),
        (category({"keypoints": ["a", "b", "c"]}), "categories 7 and 90|categories 90 and 7"),
        (category({"skeleton": [[2, 3]]}), "different skeletons"),
    ],
)
def test_wrong_keypoints_get_one_line_that_names_file_entry_and_mend(folder, spoil, words):
    content = document()
    spoil(content)
    with pytest.raises(InputError, match=words) as caught:
        load(folder, content)
    text = str(caught.value)
    assert "\n" not in text and "train.json" in text and len(text) < 400


def test_keypoints_in_shares_of_the_sides_are_refused(folder):
    content = document()
    for entry in content["annotations"]:
        entry["keypoints"] = [0.3, 0.4, 2, 0.5, 0.9, 1, 0, 0, 0]
        entry.pop("num_keypoints", None)
    with pytest.raises(InputError, match="normalised; multiply"):
        load(folder, content)


def test_what_may_surprise_is_noted(folder):
    content = document()
    content["annotations"][0]["num_keypoints"] = 3
    assert "counted anew" in load(folder, content).notes[0]
    content = document()
    for entry in content["categories"]:
        del entry["keypoints"], entry["skeleton"]
    (note,) = load(folder, content).notes
    assert "keypoints of 2 of 3 annotations are not read" in note
    content = document()
    for entry in content["annotations"]:
        entry["keypoints"], entry["num_keypoints"] = [0] * 9, 0
    assert "not one is labelled" in load(folder, content).notes[0]


def surveyed(folder, content):
    (folder / "train.json").write_text(json.dumps(content), encoding="utf-8")
    return survey_coco(folder / "train.json", folder)


def test_a_survey_reads_keypoints_as_training_does(folder):
    dataset, faults, notes = surveyed(folder, document())
    assert (faults.found, notes) == ([], [])
    assert dataset.skeleton == load(folder, document()).skeleton
    np.testing.assert_array_equal(dataset[0].keypoints, load(folder, document())[0].keypoints)


@pytest.mark.parametrize(
    ("spoil", "kinds", "rows", "skeleton"),
    [
        (annotation({"keypoints": [1, 2, 2]}), ["keypoints"], 2, True),
        (annotation({"keypoints": [1, 2, 3] * 3}), ["visibility"], 2, True),
        (annotation({"keypoints": [500, 2, 2] * 3}), ["far keypoint"], 2, True),
        (annotation({"num_keypoints": "two"}), ["num_keypoints"], 2, True),
        (category({"keypoints": "nose"}), ["names"], 3, True),
        (category({"skeleton": [1, 2]}), ["skeleton"], 3, True),
        # With one name, the nine numbers of a cat are too many.
        (category({"keypoints": ["nose"], "skeleton": []}), ["different keypoints", "keypoints"], 2, False),
        (category({"skeleton": [[2, 3]]}), ["different keypoints"], 3, False),
    ],
)
def test_a_survey_goes_on_behind_faults_of_keypoints(folder, spoil, kinds, rows, skeleton):
    content = document()
    spoil(content)
    dataset, faults, notes = surveyed(folder, content)
    assert [found.kind for found in faults.found] == kinds and notes == []
    assert (dataset.skeleton is not None) == skeleton and len(dataset.table.ids) == rows


def test_a_survey_tells_what_all_keypoints_show_together(folder):
    content = document()
    for entry in content["annotations"]:
        entry["keypoints"] = [0.3, 0.4, 2, 0.5, 0.9, 1, 0, 0, 0]
    _, faults, notes = surveyed(folder, content)
    assert [found.kind for found in faults.found] == ["normalised keypoints"]
    assert notes == []
    content = document()
    content["annotations"][0]["num_keypoints"] = 3
    _, _, notes = surveyed(folder, content)
    assert [(note.kind, note.count) for note in notes] == [("number of keypoints", 1)]


def test_unlabelled_keypoints_lie_nowhere_whatever_the_file_says(folder):
    content = document()
    content["annotations"][0]["keypoints"] = [11, 9, 0, 900, 9, 0, 13, 9, 1]
    content["annotations"][0]["num_keypoints"] = 1
    assert load(folder, content)[0].keypoints[0].tolist() == [[0, 0, 0], [0, 0, 0], [13.5, 9.5, 1]]


def test_cocos_coordinates_come_back():
    keypoints = np.array([[[3.25, 7.0, 2.0], [0, 0, 0], [1e3, 0.0, 1.0]]])
    np.testing.assert_array_equal(to_coco(from_coco(keypoints)), keypoints)


# ------------------------------------------------------------------------------------------ crops and flips


def test_a_window_keeps_the_keypoints_in_it_and_no_others(folder):
    dataset = load(folder, document())
    window = PixelBox(9, 8, 14, 15)
    for sample in (dataset.load(0, window), crop(dataset[0], window)):
        assert sample.keypoints.tolist() == [
            [[2.5, 1.5, 2], [4.5, 1.5, 1], [0, 0, 0]],
            [[0, 0, 0]] * 3,
            [[0, 0, 0], [0, 0, 0], [3.5, 5.5, 2]],
        ]


def test_left_and_right_change_places_in_names_whatever_surrounds_them():
    assert Skeleton(("left_eye", "nose", "right_eye")).mirrored == [2, 1, 0]
    assert Skeleton(("Left Hand", "Right Hand", "tail-left", "tail-right")).mirrored == [1, 0, 3, 2]
    assert Skeleton(("left_only", "bright_spot", "upright")).mirrored == [0, 1, 2]
    person = Skeleton(tuple(COCO))
    assert person.mirrored == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


TURNS = [(t, x, y) for t in (False, True) for x in (False, True) for y in (False, True)]


@pytest.mark.parametrize(("transpose", "flip_x", "flip_y"), TURNS)
def test_a_turned_corner_lies_at_the_same_corner_of_the_turned_figure(transpose, flip_x, flip_y):
    """In its own frame: whoever looks from tail to tip has the right corner at the right, in mirrors too."""
    for sample in Figures(20, seed=2):
        height, width = sample.image.shape[1:]
        plan = Plan(PixelBox(0, 0, width, height), 96, 192, transpose, flip_x, flip_y, 1.0, 1.0, 1.0)
        turned = carry_out(sample, plan)
        assert turned.keypoints.shape == sample.keypoints.shape
        labelled = turned.keypoints[..., 2] > 0
        assert labelled.sum() == (sample.keypoints[..., 2] > 0).sum()
        size = np.array(turned.image.shape[:0:-1])
        assert (turned.keypoints[labelled][:, :2] <= size).all() and turned.keypoints.min() >= 0
        for tip, right, _, left in turned.keypoints:
            if tip[2] and right[2] and left[2]:
                ahead, across = tip[:2] - (right + left)[:2] / 2, (right - left)[:2]
                assert ahead[0] * across[1] - ahead[1] * across[0] > 0  # clockwise, as y points down


def test_two_mirrors_give_back_the_keypoints():
    sample = Figures(3, seed=4)[1]
    height, width = sample.image.shape[1:]
    plan = Plan(PixelBox(0, 0, width, height), height, width, False, True, False, 1.0, 1.0, 1.0)
    once = carry_out(sample, plan)
    assert not np.array_equal(once.keypoints, sample.keypoints)
    np.testing.assert_allclose(carry_out(once, plan).keypoints, sample.keypoints, atol=1e-4)


def test_random_augmentation_keeps_visible_corners_on_their_figures():
    options = Augmentation(crop=96, flip_horizontal=True, flip_vertical=True, rotate90=True, scale=(0.7, 1.4))
    distances = []
    for index, sample in enumerate(Figures(30, seed=5)):
        changed = augment(sample, options, np.random.default_rng(index))
        assert changed.keypoints.shape[0] == len(changed.boxes) and changed.skeleton is SKELETON
        for keypoints, mask in zip(changed.keypoints, changed.masks):
            ys, xs = np.nonzero(mask)
            for x, y, _ in keypoints[keypoints[:, 2] == 2]:
                distances.append(np.hypot(xs + 0.5 - x, ys + 0.5 - y).min())
    # A sharp corner ends before its tip, and another figure may cover what is around it.
    assert len(distances) > 60 and np.mean(np.array(distances) < 2) > 0.9


def test_samples_without_keypoints_stay_without():
    sample = augment(Shapes(3, seed=1)[0], Augmentation(flip_horizontal=True), np.random.default_rng(0))
    assert sample.keypoints is None and sample.skeleton is None


# --------------------------------------------------------------------------------------------------- figures


def test_figures_depend_on_seed_and_number_alone_and_differ_from_shapes():
    few, many = Figures(4, seed=3), Figures(40, seed=3)
    for index in range(4):
        np.testing.assert_array_equal(few[index].image, many[index].image)
        np.testing.assert_array_equal(few[index].keypoints, many[index].keypoints)
    assert not np.array_equal(few[0].image, Figures(1, seed=4)[0].image)
    assert not np.array_equal(few[0].image, Shapes(1, seed=3)[0].image)
    assert few.describe(0) == "figures (seed 3): image 1"


def test_figures_have_all_classes_and_kinds_of_visibility():
    samples = list(Figures(80, seed=6))
    keypoints = np.concatenate([s.keypoints for s in samples])
    labels = np.concatenate([s.labels for s in samples])
    assert set(labels) == {1, 2, 3} and set(np.unique(keypoints[..., 2])) == {0, 1, 2}
    tail = SKELETON.names.index("tail")
    assert not keypoints[labels == 1, tail].any() and (keypoints[labels == 2, tail, 2] > 0).mean() > 0.8
    assert keypoints.dtype == np.float32 and keypoints[..., :2].max() <= 128


def test_keypoints_lie_in_the_boxes_of_their_figures_and_on_them_where_visible():
    inside, visible = [], []
    for sample in Figures(80, seed=6):
        labelled = sample.keypoints[..., 2] > 0
        inside.append(keypoints_to_heatmap(sample.keypoints, sample.boxes, 56)[1][labelled])
        for mask, keypoints in zip(sample.masks, sample.keypoints):
            x, y = keypoints[keypoints[:, 2] == 2, :2].astype(int).T
            visible.append(mask[y, x])
    # In the box of what is visible: of a hidden point nothing may be.
    assert np.concatenate(inside).mean() > 0.98 and np.concatenate(visible).mean() > 0.98


def test_a_hidden_corner_lies_under_another_figure():
    hidden = 0
    for sample in Figures(80, seed=7):
        for own, keypoints in zip(sample.masks, sample.keypoints):
            for x, y, visible in keypoints:
                if visible == 1:
                    hidden += 1
                    window = (slice(max(int(y) - 1, 0), int(y) + 2), slice(max(int(x) - 1, 0), int(x) + 2))
                    assert (sample.masks.any(axis=0) & (own == 0))[window].any()
    assert hidden > 5


def test_figures_give_a_document_that_read_coco_takes_back(tmp_path):
    figures = Figures(5, seed=8)
    for index, number in enumerate(figures.image_ids):
        pixels = (figures[index].image.transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    dataset = load(tmp_path, figures.coco_document())
    assert dataset.skeleton == SKELETON and dataset.notes == []
    for one, other in zip(dataset, figures):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        np.testing.assert_array_equal(one.masks, other.masks)


def test_batches_carry_keypoints():
    samples = Batches(Figures(6, seed=1), 3, Augmentation(crop=64, flip_horizontal=True))(0)
    assert all(s.target()["keypoints"].shape == (len(s.boxes), 4, 3) for s in samples)
