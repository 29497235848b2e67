"""`evaluate --results`: pycocotools' numbers to the digit, ids matched, and why an AP is 0."""

import contextlib
import copy
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from minimask.command import cli
from minimask.data import read_coco, rle
from minimask.results.elsewhere import read_results
from minimask.results.evaluate import METRICS, coco_results, score
from minimask.results.reasons import reasons

DATA = os.environ.get("MINIMASK_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="no MINIMASK_DATA")
SETS = [
    pytest.param("nuclei", marks=[needs_data, pytest.mark.slow]),  # 30 seconds
    pytest.param("coco200", marks=needs_data),
]


class Encoded:
    """Masks of an image as a model's: ``rle(threshold)``."""

    def __init__(self, masks):
        self.masks = masks

    def rle(self, threshold):
        size = list(self.masks.shape[1:])
        return [
            {"size": size, "counts": rle.encode_mask(mask > threshold).decode("ascii")} for mask in self.masks
        ]


def as_detections(dataset, rng=None):
    """The ground truth as predict encodes what it finds; with `rng`, moved, confused and ranked at random."""
    results = []
    for index in range(len(dataset)):
        sample = dataset[index]
        boxes, labels, masks = sample.boxes.copy(), sample.labels.copy(), sample.masks
        scores = np.linspace(0.9, 0.1, len(labels))
        if rng is not None:
            scores = rng.random(len(labels)).round(2)  # with ties
            boxes += rng.normal(0, 0.08, boxes.shape) * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            labels = np.where(rng.random(len(labels)) < 0.1, 1, labels)
            masks = np.array([np.roll(m, rng.integers(-2, 3), 1) for m in masks], np.uint8).reshape(
                masks.shape
            )
        prediction = {"boxes": boxes, "labels": labels, "scores": scores, "masks": Encoded(masks)}
        results += coco_results(prediction, sample.image_id, dataset.category_ids)
    return results


@pytest.fixture(scope="module")
def opened():
    cache = {}

    def open_set(name):
        folder = Path(DATA, name)
        return cache.setdefault(name, read_coco(folder / "val.json", folder / "images"))

    return open_set


def evaluated(capsys, results, data, *arguments):
    status = cli.main(["evaluate", "--results", str(results), "--data", str(data), *map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out, err


def directly(data, results, kind, most=100):
    """pycocotools, with no line of ours in between."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(data))
        comparison = COCOeval(truth, truth.loadRes(str(results)), kind)
        comparison.params.maxDets = [1, 10, most]
        comparison.evaluate()
        comparison.accumulate()
    precision = comparison.eval["precision"][..., 2]  # (T, R, K, areas)

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else -1

    parts = [
        precision[..., 0],
        precision[:1, ..., 0],
        precision[5:6, ..., 0],
        *np.moveaxis(precision, 3, 0)[1:],
    ]
    return dict(zip(METRICS, map(mean, parts)))


@pytest.mark.parametrize("name", SETS)
def test_the_numbers_are_those_of_pycocotools_on_the_same_json(name, opened, tmp_path, capsys):
    data, results = Path(DATA, name, "val.json"), tmp_path / "detections.json"
    found = as_detections(opened(name), np.random.default_rng(3))
    kinds = {"bbox": ["segmentation"], "segm": ["bbox"], "both": []}
    for kind, left_out in kinds.items():
        results.write_text(json.dumps([{k: v for k, v in one.items() if k not in left_out} for one in found]))
        evaluated(capsys, results, data, "--output", tmp_path / kind)
        metrics = json.loads((tmp_path / kind / "metrics.json").read_text())
        for ours, theirs in (("box", "bbox"), ("mask", "segm")):
            if kind in ("both", theirs):
                assert metrics[ours] == directly(data, results, theirs)
            else:
                assert ours not in metrics
    assert 0.05 < metrics["mask"]["AP"] < 0.95 and 0.05 < metrics["box"]["AP"] < 0.95


@pytest.mark.parametrize("name", SETS)
def test_the_truth_as_detections_scores_one(name, opened, tmp_path, capsys):
    (tmp_path / "truth.json").write_text(json.dumps(as_detections(opened(name))))
    data = Path(DATA, name, "val.json")
    options = "--images", Path(DATA, name, "images"), "--max-detections", 400, "--per-class"
    out, _ = evaluated(capsys, tmp_path / "truth.json", data, *options, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {round(v, 12) for kind in ("box", "mask") for v in metrics[kind].values()} <= {1.0, -1.0}
    assert metrics["box"]["AP"] == metrics["mask"]["AP"] == 1.0
    with_objects = [entry for entry in metrics["classes"] if entry["objects"]]
    assert all(entry["box"] + entry["mask"] == pytest.approx([1.0] * 4, abs=1e-12) for entry in with_objects)
    table = opened(name).table
    numbers = np.array(opened(name).category_ids)[table.labels[~table.crowd] - 1]
    assert {entry["category_id"]: entry["objects"] for entry in with_objects} == Counter(numbers.tolist())
    assert f"{with_objects[0]['name']} " in out and "1.000" in out


# ---------------------------------------------------------------------------------- a set of sparse classes

H, W = 60, 80
IDS = {2: "cat", 5: "dog", 9: "cow"}


def document():
    """Three images; a square of each class in each of the first two."""
    annotations = []
    for image in (11, 12):
        for place, category in enumerate(IDS):
            x, y = 5 + 20 * place, 10
            mask = np.zeros((H, W), np.uint8)
            mask[y : y + 15, x : x + 12] = 1
            segmentation = {"size": [H, W], "counts": rle.encode_mask(mask).decode("ascii")}
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": 0}
            annotations.append(entry | {"bbox": [x, y, 12, 15], "area": 180, "segmentation": segmentation})
    images = [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in (11, 12, 13)]
    categories = [{"id": number, "name": name} for number, name in IDS.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def truth(**changes):
    keys = ("image_id", "category_id", "bbox", "segmentation")
    results = [
        {key: a[key] for key in keys} | {"score": 0.9 - a["id"] / 100} for a in document()["annotations"]
    ]
    for result in results:
        result.update({key: change(result[key]) for key, change in changes.items()})
    return results


@pytest.fixture
def files(tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(document()))

    def write(results):
        (tmp_path / "results.json").write_text(results if isinstance(results, str) else json.dumps(results))
        return tmp_path / "results.json", tmp_path / "val.json"

    return write


def test_results_need_no_images_and_write_nothing_unless_told(files, tmp_path, capsys):
    out, err = evaluated(capsys, *files(truth()))
    assert out.count("1.000") >= 6 and "pycocotools then judges by the boxes which masks are small" in err
    assert {path.name for path in tmp_path.iterdir()} == {"val.json", "results.json"}
    out, _ = evaluated(capsys, *files(truth()), "--per-class")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()}
    assert lines["dog"] == ["2", "1.000", "1.000", "1.000", "1.000"]


def test_polygons_in_results_are_masks_too(files, capsys):
    def polygon(segmentation):
        return [[5, 10, 17, 10, 17, 25, 5, 25]]

    results = [r | {"segmentation": polygon(0)} for r in truth() if r["category_id"] == 2]
    out, _ = evaluated(capsys, *files(results), "--per-class")
    lines = [line.split() for line in out.splitlines()]
    assert ["cat", "2", "1.000", "1.000", "1.000", "1.000"] in lines


CONTIGUOUS = {2: 1, 5: 2, 9: 3}


@pytest.mark.parametrize(
    "change, option, words",
    [
        (
            lambda number: CONTIGUOUS[number] - 1,
            "from-0",
            ["count from 0 (to 2)", "begin at 2 (cat)", "--category-ids from-0"],
        ),
        (
            lambda number: CONTIGUOUS[number],
            "from-1",
            ["lie between 1 and 3", "there is no 1", "9, cow", "from-1"],
        ),
    ],
)
def test_ids_that_number_the_classes_in_order_are_recognised(change, option, words, files, capsys):
    results, data = files(truth(category_id=change))
    assert cli.main(["evaluate", "--results", str(results), "--data", str(data)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(word in line for word in words), line
    out, _ = evaluated(capsys, results, data, "--category-ids", option)
    assert out.count("1.000") >= 6


def test_results_of_classes_and_images_that_the_data_lacks_do_not_count(files, capsys):
    extra = truth()[0] | {"category_id": 77}, truth()[0] | {"image_id": 99}
    results, data = files([*truth(), *extra])
    out, err = evaluated(capsys, results, data)
    assert out.count("1.000") >= 6
    assert "1 of 7 results have category ids that the data lacks" in err and "[77]" in err
    assert "1 of 8 results are of images that the data lacks" in err


def test_a_document_of_predict_is_matched_by_names(files, capsys):
    """Images and categories have other ids there: those of the order in which files were given."""
    numbers, names = {11: 2, 12: 1}, {2: 3, 5: 1, 9: 2}
    annotations = truth(image_id=numbers.__getitem__, category_id=names.__getitem__)
    images = [{"id": new, "file_name": f"somewhere/{old}.png"} for old, new in numbers.items()]
    categories = [{"id": new, "name": IDS[old]} for old, new in names.items()]
    predictions = {"images": images, "categories": categories, "annotations": annotations}
    out, _ = evaluated(capsys, *files(predictions))
    assert out.count("1.000") >= 6


def without(key):
    return [{k: v for k, v in result.items() if k != key} for result in truth()]


def first(**fields):
    results = truth()
    results[0].update(fields)
    return results


WRONG = {
    "no JSON": ("[{", ["is not JSON"]),
    "not even text": ("\x00\x01", ["give a file of COCO results"]),
    "a number": ("5", ["is 5, not COCO results"]),
    "an object": ({"a": 1}, ["not COCO results: a list"]),
    "entries no objects": ([1, 2], ["result number 1 must be an object, is 1", "2 of 2 results"]),
    "no image_id": (without("image_id"), ["result number 1: lacks the key 'image_id'", "6 of 6 results"]),
    "no category_id": (without("category_id"), ["lacks the key 'category_id'"]),
    "no score": (without("score"), ["result number 1 (image 11): lacks the key 'score'"]),
    "score no number": (first(score="high"), ["score must be a finite number, is 'high'"]),
    "score NaN": (first(score=float("nan")), ["score must be a finite number, is nan"]),
    "image id a text": (first(image_id="11.png"), ["image_id must be a whole number, is '11.png'"]),
    "box of three": (first(bbox=[1, 2, 3]), ["bbox [1, 2, 3] must be four finite numbers"]),
    "box of NaN": (first(bbox=[1, 2, 3, float("inf")]), ["must be four finite numbers"]),
    "box as corners from the right": (
        first(bbox=[9, 5, -4, 2]),
        ["bbox [9, 5, -4, 2] has a negative width or height"],
    ),
    "neither box nor mask": (
        [{"image_id": 11, "category_id": 2, "score": 1}],
        ["result number 1 has no bbox"],
    ),
    "some masks, some boxes": (
        [truth()[0] | {"bbox": None}, truth()[1] | {"segmentation": None}],
        ["result number 1 has no bbox, and not all have a segmentation"],
    ),
    "mask of another size": (first(segmentation={"size": [9, 9], "counts": [81]}), ["mask of size [9, 9]"]),
    "mask damaged": (first(segmentation={"size": [H, W], "counts": "zz"}), ["compressed RLE"]),
    "polygon far outside": (first(segmentation=[[0, 0, 1e9, 0, 5, 5]]), ["far outside the image"]),
    "no image in common": (
        truth(image_id=lambda i: i - 11),
        ["none of its image_ids is in the data", "[11, 12, 13]"],
    ),
    "no category in common": (
        truth(category_id=lambda i: i + 100),
        ["no category id in common", "[102, 105, 109]"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_results_get_one_line(name, files, tmp_path, capsys):
    content, words = WRONG[name]
    results, data = files(content)
    output = tmp_path / "out"
    status = cli.main(["evaluate", "--results", str(results), "--data", str(data), "--output", str(output)])
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and err.count("\n") == 1 and not output.exists(), err
    assert "results.json" in err and all(word in err for word in words), err


def test_wrong_arguments_are_named(files, capsys):
    results, data = files(truth())
    for arguments, words in (
        ([], "--output is missing; name a directory for detections.json"),
        (["--weights", "w", "--results", results], "give either --weights"),
        (["--weights", "w"], "--output is missing"),
        (["--weights", "w", "--output", "o", "--category-ids", "from-0"], "--category-ids: is for --results"),
    ):
        assert cli.main(["evaluate", "--data", str(data), *map(str, arguments)]) == 2
        assert words in capsys.readouterr().err


def corners(bbox):
    x, y, w, h = bbox
    return [x, y, x + w, y + h]


def crowds_only(data):
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1


ZERO = {
    "no detection": (lambda data: [], ["box and mask AP is 0: there is no detection"]),
    "empty images": (
        lambda data: truth(image_id=lambda i: 13),
        ["no detection is in an image that has objects"],
    ),
    "other classes": (
        lambda data: [r | {"category_id": 9} for r in truth() if r["category_id"] == 2],
        ["of other classes (IoU up to 1.00, 0.00 of the same class)"],
    ),
    "far away": (
        lambda data: truth(bbox=lambda b: [60, 40, 12, 15], segmentation=lambda s: blank(40, 60)),
        ["no box overlaps an object of its class by more than IoU 0.00"],
    ),
    "masks elsewhere": (
        lambda data: truth(segmentation=lambda s: blank(40, 60)),
        ["mask AP is 0: the boxes fit, but the masks do not"],
    ),
    "boxes by chance": (
        lambda data: [
            *truth(segmentation=lambda s: blank(40, 60), score=lambda s: 0.1),
            *truth(bbox=lambda b: [60, 40, 12, 15], segmentation=lambda s: blank(40, 60)) * 30,
        ],
        ["mask AP is 0: the boxes hardly fit, either (AP50 0.0"],
    ),
    "corners": (
        lambda data: [{k: v for k, v in r.items() if k != "segmentation"} for r in truth(bbox=far_corners)],
        ["box AP is 0: the boxes look like x1, y1, x2, y2"],
    ),
    "crowds": (
        lambda data: crowds_only(data) or [],
        ["AP is -1: the data has no object in 3 images (6 annotations are crowd regions"],
    ),
    "equal scores": (
        lambda data: truth(
            bbox=lambda b: [60, 40, 12, 15], segmentation=lambda s: blank(40, 60), score=lambda s: 0.5
        ),
        ["all scores are 0.5"],
    ),
}


def far_corners(bbox):
    """Of an object that lies far from the origin, so that half of the box is outside."""
    x, y, w, h = bbox
    return [x + 45 - x // 2, y + 30, x + 45 - x // 2 + w, y + 30 + h]


def blank(y, x):
    mask = np.zeros((H, W), np.uint8)
    mask[y : y + 15, x : x + 12] = 1
    return {"size": [H, W], "counts": rle.encode_mask(mask).decode("ascii")}


@pytest.mark.parametrize("name", ZERO)
def test_where_ap_is_zero_or_minus_one_it_says_why(name, tmp_path):
    make, words = ZERO[name]
    data = copy.deepcopy(document())
    (tmp_path / "results.json").write_text(json.dumps(make(data)))
    results = read_results(tmp_path / "results.json", data)
    lines = reasons(data, score(data, results.detections, 100, results.kinds))
    assert len(lines) == 1 and all(word in lines[0] for word in words), lines


def test_a_box_that_fits_but_ranks_below_the_limit_is_told():
    data, wrong = document(), truth(bbox=lambda b: [60, 40, 12, 15], score=lambda s: 1.0)
    evaluation = score(data, wrong + truth(score=lambda s: 0.1), 1, ("bbox",))
    (line,) = reasons(data, evaluation)
    assert "by IoU 1.00, but is not among the best 1 of its image and class; --max-detections" in line


def test_masks_that_are_right_and_rank_below_the_limit_are_not_called_wrong():
    data = document()
    wrong = truth(segmentation=lambda s: blank(40, 60), bbox=lambda b: [60, 40, 12, 15], score=lambda s: 1.0)
    evaluation = score(data, wrong + truth(score=lambda s: 0.1), 1, ("segm",))
    (line,) = reasons(data, evaluation)
    assert line.startswith("mask AP is 0") and "is not among the best 1 of its image and class" in line


def test_nothing_is_said_where_all_is_well(tmp_path):
    evaluation = score(document(), truth())
    assert reasons(document(), evaluation) == []
    assert [(c.name, c.objects, c.box, c.mask) for c in evaluation.classes] == [
        (name, 2, pytest.approx((1.0, 1.0)), pytest.approx((1.0, 1.0))) for name in IDS.values()
    ]


def test_corners_and_equal_scores_are_noted_wherever_ap_is(files, capsys):
    _, err = evaluated(capsys, *files(truth(bbox=corners)))
    assert "most others read like x1, y1, x2, y2" in err
    _, err = evaluated(capsys, *files(truth(score=lambda s: 1)))
    assert "all 6 scores are 1: nothing ranks the detections" in err
