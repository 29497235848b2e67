"""`minimask check-data`: each planted fault is found, with its mend, and nothing in a clean data set."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from minimask import models
from minimask.anchors import AnchorGenerator
from minimask.boxes import box_iou
from minimask.command import cli
from minimask.config import Config
from minimask.data import Shapes, read_coco
from minimask.results.survey import survey
from minimask.results.survey.anchors import View, best_overlaps, strides_of, training_views, view_of
from minimask.results.survey.findings import HARMFUL, NOTE, REFUSED

COUNTS = {"train": 24, "val": 16}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Generated shapes as train and val: their documents, and the folder of their images."""
    root = tmp_path_factory.mktemp("clean")
    (root / "images").mkdir()
    documents = {}
    for seed, (split, count) in enumerate(COUNTS.items(), start=5):
        shapes = Shapes(count, seed=seed)
        documents[split] = shapes.coco_document()
        for index, record in enumerate(documents[split]["images"]):
            record["file_name"] = f"{split}-{index}.png"
            pixels = (shapes[index].image.transpose(1, 2, 0) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / record["file_name"])
    return root, documents


@pytest.fixture
def own(clean, tmp_path):
    """A copy of the clean set that a test may spoil."""
    root, documents = clean
    (tmp_path / "images").mkdir()
    for path in (root / "images").iterdir():
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
    return tmp_path, copy.deepcopy(documents)


def surveyed(root, documents, *settings, images=None):
    from minimask.config import with_settings

    for split, document in documents.items():
        (root / f"{split}.json").write_text(json.dumps(document))
    config = with_settings(Config(), list(settings))
    images = images or root / "images"
    return survey(config, (root / "train.json", images), (root / "val.json", images)).report


def test_nothing_is_found_in_a_clean_data_set(clean, tmp_path):
    root, documents = clean
    report = surveyed(tmp_path, documents, images=root / "images")
    assert report.findings == [] and not report.refused
    facts = report.facts[str(tmp_path / "train.json")]
    assert facts["images"] == 24 and facts["objects"] == len(documents["train"]["annotations"])
    assert "nothing to mend" in report.table()


def entry(split, key, index, **fields):
    """A change: these fields of one entry."""
    return lambda documents, images: documents[split][key][index].update(fields)


def corners_of(number):
    """A change: the boxes of so many annotations as x1, y1, x2, y2."""

    def change(documents, images):
        for annotation in documents["train"]["annotations"][:number]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [x, y, x + w, y + h]

    return change


def centres(documents, images):
    """A change: all boxes by their centres, as YOLO has them."""
    for annotation in documents["train"]["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x + w / 2, y + h / 2, w, h]


def twice(**fields):
    def change(documents, images):
        first = documents["train"]["annotations"][0]
        number = len(documents["train"]["annotations"]) + 1
        documents["train"]["annotations"].append(first | {"id": number} | fields)

    return change


def thrice(documents, images):
    """Two objects of different classes share a box, and the second is there again, as a third class."""
    place, below = {"bbox": [5, 5, 16, 16]}, {"segmentation": [[5, 5, 21, 21, 5, 21]]}
    twice(**place, **below, category_id=2)(documents, images)
    twice(**place, **below, category_id=3)(documents, images)
    above = {"segmentation": [[5, 5, 21, 5, 21, 21]], "category_id": 1}
    documents["train"]["annotations"][0] |= place | above


def loose(documents, images):
    annotation = documents["train"]["annotations"][1]
    annotation["bbox"] = [0, 0, 128, 128]


def tight(documents, images):
    x, y, w, h = documents["train"]["annotations"][1]["bbox"]
    documents["train"]["annotations"][1]["bbox"] = [x, y, w / 2, h]


def all_crowd(documents, images):
    for annotation in documents["train"]["annotations"][:-3]:
        annotation["iscrowd"] = 1


def rename(split, **names):
    def change(documents, images):
        for category in documents[split]["categories"]:
            category["name"] = names.get(category["name"], category["name"])

    return change


def both(*changes):
    def change(documents, images):
        for one in changes:
            one(documents, images)

    return change


def without(split, name):
    """A change: no object of this class in one of the sets."""

    def change(documents, images):
        number = next(c["id"] for c in documents[split]["categories"] if c["name"] == name)
        kept = [a for a in documents[split]["annotations"] if a["category_id"] != number]
        documents[split]["annotations"] = kept

    return change


def another_category(documents, images):
    for document in documents.values():
        document["categories"].append({"id": 9, "name": "Circle"})


def no_annotations(split, image):
    def change(documents, images):
        kept = [a for a in documents[split]["annotations"] if a["image_id"] != image]
        documents[split]["annotations"] = kept

    return change


def same_bytes(documents, images):
    (images / "val-3.png").write_bytes((images / "train-7.png").read_bytes())


def same_pixels(documents, images):
    Image.open(images / "train-7.png").save(images / "val-3.png", compress_level=1)


def same_file(documents, images):
    documents["val"]["images"][3]["file_name"] = "train-7.png"


def picture_twice(documents, images):
    Image.open(images / "train-7.png").save(images / "train-8.png", compress_level=1)


def damaged(documents, images):
    content = (images / "train-2.png").read_bytes()
    (images / "train-2.png").write_bytes(content[: len(content) // 2])


def no_image(documents, images):
    (images / "train-2.png").write_bytes(b"<html>not found</html>")


def gone(documents, images):
    for number in (2, 4):
        (images / f"train-{number}.png").unlink()


def on_its_side(size):
    def change(documents, images):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.zeros((100, 128, 3), np.uint8)).save(images / "train-0.jpg", exif=exif)
        record = documents["train"]["images"][0]
        record.update(file_name="train-0.jpg", **dict(zip(("height", "width"), size)))
        no_annotations("train", record["id"])(documents, images)

    return change


def rescaled(factor):
    """A change: all polygons of squares with a side of so many pixels."""

    def change(documents, images):
        for split in documents:
            for annotation in documents[split]["annotations"]:
                x, y = (np.array(annotation["bbox"][:2]) // 2).tolist()
                annotation["bbox"], annotation["area"] = [x, y, factor, factor], factor**2
                corners = [x, y, x + factor, y, x + factor, y + factor, x, y + factor]
                annotation["segmentation"] = [corners]

    return change


def huge(documents, images):
    for name in images.iterdir():
        Image.open(name).resize((640, 640)).save(name)
    for document in documents.values():
        for record in document["images"]:
            record.update(height=640, width=640)
        for number, annotation in enumerate(document["annotations"]):
            x, y = number % 7, number % 5
            annotation["bbox"], annotation["area"] = [x, y, 600, 600], 360_000
            annotation["segmentation"] = [[x, y, x + 600, y, x + 600, y + 600, x, y + 600]]


FIRST = ("train", "annotations", 0)
# What is planted -> (change, settings, level, kind, count, words in the finding).
PLANTED = {
    "box without width": (
        entry(*FIRST, bbox=[5, 5, 0, 9]),
        (),
        HARMFUL,
        "degenerate box",
        1,
        ["annotation 1"],
    ),
    "box outside": (entry(*FIRST, bbox=[200, 5, 9, 9]), (), HARMFUL, "degenerate box", 1, ["remove"]),
    "corners everywhere": (corners_of(1000), (), REFUSED, "corners", None, ["x1, y1, x2, y2", "write ["]),
    "centres everywhere": (centres, (), REFUSED, "centres", None, ["the centre's x, y", "write ["]),
    "corners in some": (
        corners_of(4),
        (),
        HARMFUL,
        "corners of some",
        4,
        ["annotation 1 (image 1)", "convert"],
    ),
    "normalised boxes": (
        lambda documents, images: [
            a.update(bbox=[v / 128 for v in a["bbox"]]) for a in documents["train"]["annotations"]
        ],
        (),
        REFUSED,
        "normalised bbox",
        None,
        ["0..1", "multiply"],
    ),
    "box larger than mask": (loose, (), HARMFUL, "box larger than mask", 1, ["annotation 2"]),
    "mask larger than box": (tight, (), HARMFUL, "mask larger than box", 1, ["annotation 2"]),
    "mask elsewhere": (
        entry(*FIRST, bbox=[0, 0, 2, 2]),
        (),
        HARMFUL,
        "mask outside box",
        1,
        ["annotation 1"],
    ),
    "NaN in a box": (entry(*FIRST, bbox=[float("nan"), 5, 9, 9]), (), REFUSED, "bbox", 1, ["annotation 1"]),
    "no mask": (entry(*FIRST, segmentation=[]), (), REFUSED, "no mask", 1, ["draw the object's mask"]),
    "unknown image": (entry(*FIRST, image_id=99), (), REFUSED, "image_id", 1, ["99"]),
    "unknown class": (entry(*FIRST, category_id=99), (), REFUSED, "category_id", 1, ["99"]),
    "an id twice": (entry(*FIRST, id=2), (), REFUSED, "id twice", 1, ["annotation 2 occurs twice"]),
    "no area": (entry(*FIRST, area=0), (), NOTE, "no area given", 1, ["measured"]),
    "annotated twice": (twice(), (), HARMFUL, "duplicate", 1, ["remove one"]),
    "of two classes": (twice(category_id=2), (), HARMFUL, "two classes", 1, ["keep the class"]),
    "the second of a box's objects": (thrice, (), HARMFUL, "two classes", 1, ["keep the class"]),
    "a crowd": (entry(*FIRST, iscrowd=1), (), NOTE, "crowd", 1, ["annotation 1", "iscrowd"]),
    "nearly all crowds": (all_crowd, (), HARMFUL, "crowd", None, ["set iscrowd to 0"]),
    "a name twice": (rename("train", circle="square"), (), REFUSED, "name twice", 1, ["both named 'square'"]),
    "other names": (
        rename("val", circle="disc"),
        (),
        REFUSED,
        "other categories",
        2,
        ["circle only in train.json"],
    ),
    "another order": (
        rename("val", circle="square", square="circle"),
        (),
        REFUSED,
        "other categories",
        1,
        ["has the classes in another order than train.json"],
    ),
    "names in another case": (another_category, (), HARMFUL, "names alike", 1, ["circle and Circle"]),
    "a class that is not used": (
        another_category,
        (),
        NOTE,
        "unused categories",
        1,
        ["Circle", "annotate some"],
    ),
    "a class missing in val": (without("val", "square"), (), NOTE, "class missing in val", 1, ["square"]),
    "a class missing in train": (
        without("train", "square"),
        (),
        HARMFUL,
        "class missing in train",
        1,
        ["square"],
    ),
    "images without objects": (no_annotations("train", 3), (), NOTE, "empty images", 1, ["train-2.png"]),
    "no object at all": (
        lambda documents, images: documents["train"]["annotations"].clear(),
        (),
        REFUSED,
        "no object",
        1,
        ["annotate some"],
    ),
    "the same file in both": (same_file, (), HARMFUL, "shared file", 1, ["train-7.png", "no validation"]),
    "the same bytes in both": (same_bytes, (), HARMFUL, "shared bytes", 1, ["val-3.png", "train-7.png"]),
    "the same pixels in both": (same_pixels, (), HARMFUL, "shared pixels", 1, ["val-3.png", "train-7.png"]),
    "a picture twice": (picture_twice, (), HARMFUL, "same picture twice", 1, ["train-8.png"]),
    "a file twice": (
        entry("train", "images", 3, file_name="train-7.png"),
        (),
        HARMFUL,
        "one file twice",
        1,
        ["give each file one entry"],
    ),
    "files gone": (gone, (), REFUSED, "missing", 2, ["train-2.png", "right folder"]),
    "a file that is no image": (no_image, (), REFUSED, "no image", 1, ["a web page (HTML)"]),
    "a file cut off": (damaged, (), REFUSED, "damaged", 1, ["train-2.png", "replace the file"]),
    "another size": (
        entry("train", "images", 2, height=60),
        (),
        REFUSED,
        "image size",
        1,
        ["train-2.png is 128 x 128"],
    ),
    "annotated as stored": (on_its_side((100, 128)), (), NOTE, "as stored", 1, ["EXIF"]),
    "turned, of another size": (on_its_side((90, 90)), (), REFUSED, "image size", 1, ["train-0.jpg"]),
    "a name that leads out": (
        entry("train", "images", 2, file_name="../x.png"),
        (),
        REFUSED,
        "leads out",
        1,
        ["x.png"],
    ),
    "more objects than detections": (
        lambda documents, images: None,
        ("model.detections=4",),
        HARMFUL,
        "detections",
        None,
        ["--set model.detections=50"],
    ),
    "tiny objects": (
        rescaled(3),
        (),
        HARMFUL,
        "tiny objects",
        None,
        ["finest stride is 4", "--set model.magnification=2)"],
    ),
    "objects below all anchors": (
        rescaled(4),
        (),
        HARMFUL,
        "anchors",
        None,
        ["images scaled by 2.", "--set model.magnification=2."],
    ),
    "objects above all anchors": (
        huge,
        ("data.crop=0",),
        HARMFUL,
        "anchors",
        None,
        ["--set model.anchor_sizes="],
    ),
    "objects that the crop cuts": (huge, (), HARMFUL, "crop", None, ["--set data.crop=928"]),
    "another scale in training": (
        lambda documents, images: None,
        ("model.min_size=512", "data.crop=64"),
        HARMFUL,
        "two scales",
        1,
        ["2 times as large as prediction"],
    ),
}


LONG = ("objects that the crop cuts", "objects above all anchors")  # they take large images


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PLANTED]
)
def test_a_planted_fault_is_found_with_its_mend(name, own):
    root, documents = own
    change, settings, level, kind, count, words = PLANTED[name]
    change(documents, root / "images")
    report = surveyed(root, documents, *settings)
    found = [f for f in report.findings if f.kind == kind]
    assert found and found[0].level == level, report.table()
    assert report.refused == any(f.level == REFUSED for f in report.findings)
    assert count is None or found[0].count == count
    assert found[0].mend
    text = "\n".join(found[0].lines())
    assert all(word in text for word in words), text
    expected = {kind} | SIDE_EFFECTS.get(name, set())
    assert {f.kind for f in report.findings} <= expected, report.table()


# What a change brings along besides what it is there for.
SIDE_EFFECTS = {
    "nearly all crowds": {"few objects", "empty images", "unused categories", "class missing in train"},
    "a name twice": {"other categories", "empty images"},
    "names in another case": {"unused categories"},
    "a class that is not used": {"names alike"},
    "a class missing in val": {"empty images"},
    "a class missing in train": {"empty images", "unused categories"},
    "no object at all": {"unused categories", "class missing in train"},
    "a file twice": {"few objects"},
    "annotated as stored": {"empty images"},
    "tiny objects": {"anchors", "duplicate", "two classes"},
    "objects below all anchors": {"duplicate", "two classes"},
    "objects above all anchors": {"duplicate", "two classes"},
    "objects that the crop cuts": {"anchors", "duplicate", "two classes"},
    "another scale in training": {"crop", "anchors"},
}


def test_all_faults_are_listed_where_training_stops_at_the_first(own):
    root, documents = own
    gone(documents, root / "images")
    documents["train"]["annotations"][0]["bbox"] = "wide"
    documents["train"]["annotations"][1]["iscrowd"] = 7
    documents["train"]["annotations"][2]["area"] = -1
    documents["train"]["categories"][2]["name"] = ""
    report = surveyed(root, documents)
    kinds = {f.kind for f in report.findings if f.level == REFUSED}
    assert {"missing", "bbox", "iscrowd", "area", "name"} <= kinds
    assert "category_id" not in kinds and "image_id" not in kinds, "what follows from other faults is none"


def run(capsys, *arguments):
    status = cli.main(["check-data", *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_the_command_writes_report_and_pictures_and_tells_by_its_status(own, capsys):
    root, documents = own
    for split, document in documents.items():
        (root / f"{split}.json").write_text(json.dumps(document))
    data = ["--data", root / "train.json", "--images", root / "images", "--val", root / "val.json"]
    status, out, err = run(capsys, *data, "--output", root / "check")
    assert status == 0, err
    assert "nothing to mend" in out and "sqrt(area)" in out
    names = {path.name for path in (root / "check").iterdir()}
    assert names == {"report.json", "sheet.png", "val-sheet.png", "sizes.png"}
    with Image.open(root / "check" / "sheet.png") as sheet:
        assert sheet.width > 1500 and len(sheet.convert("RGB").getcolors(2**24)) > 1000
    document = json.loads((root / "check" / "report.json").read_text(encoding="utf-8"))
    assert document["findings"] == [] and document["refused"] is False

    documents["train"]["annotations"][0]["bbox"] = [1, 2, 3]
    (root / "train.json").write_text(json.dumps(documents["train"]))
    status, out, err = run(capsys, *data, "--output", root / "check")
    assert status == 1 and "refused" in out and "annotation 1" in out
    assert cli.main(["train", *map(str, data), "--output", str(root / "run")]) == 2, (
        "training refuses it, too"
    )
    capsys.readouterr()
    (root / "train.json").write_text("[")
    status, out, err = run(capsys, *data, "--output", root / "other")
    assert status == 2 and "is not JSON" in err and not (root / "other").exists()


def test_the_packaged_nuclei_can_be_looked_at(tmp_path, capsys):
    status, out, _ = run(capsys, "--data", "nuclei", "--val", "nuclei", "--output", tmp_path / "check")
    assert status == 0 and "nucleus 1115" in out and "24 of them grey" in out
    report = json.loads((tmp_path / "check" / "report.json").read_text(encoding="utf-8"))
    assert [finding["kind"] for finding in report["findings"]] == ["detections"]


def test_wrong_arguments_are_named(tmp_path, capsys):
    output = "--output", tmp_path / "check"
    for arguments, words in (
        (["--data", "shapes"], "is generated, and sound"),
        (["--data", "x.json"], "--images: missing"),
        (["--data", "x.json", "--images", tmp_path], "x.json: no such file"),
        (["--data", "nuclei", "--set", "model.detections=0"], "model.detections"),
    ):
        status, _, err = run(capsys, *arguments, *output)
        assert status == 2 and words in err and not (tmp_path / "check").exists()


# ------------------------------------------------------------------------------------------------ the anchors


def test_the_best_anchor_is_that_of_all_anchors(clean):
    rng = np.random.default_rng(0)
    for generator in (AnchorGenerator(), AnchorGenerator(((8, 11), (40,)), ((0.5, 2.0), (1.0,)), False, 0.5)):
        strides = (4, 8, 16, 32, 64)[: len(generator.sizes)]
        padded = (192, 256)
        low = rng.uniform(0, 150, (200, 2))
        boxes = np.concatenate([low, np.minimum(low + rng.uniform(1, 200, (200, 2)), padded[::-1])], axis=1)
        sizes = [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in strides]
        exact = replace(generator, strides=strides)
        expected = box_iou(boxes, exact(padded, sizes).astype(np.float64)).max(axis=1)
        view = View(boxes, np.ones(200), np.full((200, 2), padded), np.ones(200))
        np.testing.assert_allclose(
            best_overlaps(view, generator, strides), expected, rtol=0, atol=2e-6
        )  # float32


def test_strides_are_those_of_the_network():
    assert strides_of(models.maskrcnn_small(2)) == (4, 8, 16, 32, 64)


def test_objects_are_measured_as_the_network_sees_them(clean, tmp_path):
    root, documents = clean
    (tmp_path / "train.json").write_text(json.dumps(documents["train"]))
    dataset = read_coco(tmp_path / "train.json", root / "images")
    transform = models.maskrcnn_small(4, min_size=320).transform
    seen = view_of(dataset, transform)
    assert set(seen.factors) == {2.5} and set(map(tuple, seen.sizes.tolist())) == {(320, 320)}
    np.testing.assert_allclose(seen.areas, 6.25 * dataset.table.pixels)
    config = replace(Config(), data=replace(Config().data, crop=64, scale=(0.5, 2.0)))
    views = training_views(dataset, transform, config)
    # Crops of 64 pixels, of images that are 64 to 256 pixels large then, are enlarged to 320.
    np.testing.assert_allclose([view.factors[0] for view in views], 5 * np.geomspace(0.5, 2, 5))
    assert all((view.boxes[:, 2:] <= 320).all() for view in views)
