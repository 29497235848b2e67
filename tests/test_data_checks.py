"""Every wrong input gets one line that names file, id and mend, before pycocotools sees anything."""

import copy
import json
import re

import numpy as np
import pytest
from PIL import Image

from minimask.data import read_coco, read_image
from minimask.errors import InputError

HEIGHT, WIDTH = 24, 32


def tiny_document():
    """Two images of 32 x 24; on one, the same square as a polygon, an RLE (a crowd) and a compressed RLE."""
    square = [10.0, 8.0, 16.0, 8.0, 16.0, 14.0, 10.0, 14.0]  # 6 x 6 pixels from (10, 8)
    runs = [10 * HEIGHT + 8]
    for _ in range(6):
        runs += [6, HEIGHT - 6]
    runs[-1] += HEIGHT * WIDTH - sum(runs)
    return {
        "images": [
            {"id": 4, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 2, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            annotation(17, 4, 90, segmentation=[square]),
            annotation(18, 4, 7, segmentation={"size": [HEIGHT, WIDTH], "counts": runs}, iscrowd=1),
            annotation(19, 4, 7, segmentation={"size": [HEIGHT, WIDTH], "counts": "h76b0000000000h;"}),
        ],
    }


def annotation(number, image_id, category_id, **fields):
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [10, 8, 6, 6],
        "area": 36,
        "iscrowd": 0,
        **fields,
    }


@pytest.fixture
def folder(tmp_path):
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def load(folder, document, **options):
    path = folder / "train.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return read_coco(path, folder, **options)


def message(folder, document, **options):
    with pytest.raises(InputError) as caught:
        load(folder, document, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def set_in(path, value):
    """A mutation that sets document[path[0]][path[1]]... = value, or removes it where value is `REMOVE`."""

    def change(document):
        place = document
        for key in path[:-1]:
            place = place[key]
        if value is REMOVE:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


REMOVE = object()
FIRST, SECOND, THIRD = (("annotations", i) for i in range(3))
NAN = float("nan")

MUTATIONS = {
    "no images key": (("images",), REMOVE, r"lacks the key 'images': not COCO"),
    "no annotations key": (("annotations",), REMOVE, r"lacks the key 'annotations': not COCO"),
    "no categories key": (("categories",), REMOVE, r"lacks the key 'categories': not COCO"),
    "images no list": (("images",), {"a": 1}, r"'images' must be a list"),
    "no images": (("images",), [], r"'images' is empty"),
    "no categories": (("categories",), [], r"'categories' is empty"),
    "image no object": (("images", 1), 5, r"image number 2 must be an object, is 5"),
    "image without id": (("images", 1, "id"), REMOVE, r"image number 2: lacks the key 'id'"),
    "image id a text": (("images", 1, "id"), "b", r"image 'b': id must be a whole number"),
    "image id beyond int64": (("images", 1, "id"), 10**30, r"image 1000+: id must be a whole number"),
    "image id true": (("images", 1, "id"), True, r"image True: id must be a whole number"),
    "image id twice": (("images", 1, "id"), 4, r"image 4 occurs twice"),
    "image without name": (("images", 0, "file_name"), REMOVE, r"image 4: lacks the key 'file_name'"),
    "name no text": (("images", 0, "file_name"), 3, r"image 4: file_name must be a name, is 3"),
    "name empty": (("images", 0, "file_name"), "", r"image 4: file_name must be a name"),
    "name leads out": (("images", 0, "file_name"), "../a.png", r"image 4: file_name '../a.png' leads out of"),
    "name leads out late": (
        ("images", 0, "file_name"),
        "x/../../a.png",
        r"image 4: file_name .* leads out of",
    ),
    "name absolute": (("images", 0, "file_name"), "/etc/passwd", r"image 4: file_name .* leads out of"),
    "name with NUL": (("images", 0, "file_name"), "a\0.png", r"image 4: there is no file 'a\\x00.png'"),
    "file missing": (
        ("images", 0, "file_name"),
        "c.png",
        r"image 4: there is no file 'c.png' in .*right folder",
    ),
    "file a directory": (("images", 0, "file_name"), ".", r"image 4: a directory, not a file, is '.'"),
    "height missing": (("images", 0, "height"), REMOVE, r"image 4: lacks the key 'height'"),
    "width a text": (("images", 0, "width"), "32", r"image 4: width must be a whole number, is '32'"),
    "width zero": (("images", 0, "width"), 0, r"image 4: width 0 and height 24 must be at least 1"),
    "size not the file's": (("images", 0, "width"), 33, r"image 4: .*a.png is 32 x 24, annotated as 33 x 24"),
    "size turned": (
        ("images", 0),
        {"id": 4, "file_name": "a.png", "height": WIDTH, "width": HEIGHT},
        r"image 4: .*a.png is 32 x 24, annotated as 24 x 32",
    ),
    "category without id": (("categories", 0, "id"), REMOVE, r"category number 1: lacks the key 'id'"),
    "category without name": (("categories", 0, "name"), REMOVE, r"category 90: lacks the key 'name'"),
    "category name no text": (("categories", 0, "name"), 1, r"category 90: name must be a text, is 1"),
    "category twice": (("categories", 0, "id"), 7, r"category 7 occurs twice"),
    "annotation no object": (FIRST, [1], r"annotation number 1 must be an object, is \[1\]"),
    "annotation twice": ((*FIRST, "id"), 18, r"annotation 18 occurs twice"),
    "annotation id a text": ((*FIRST, "id"), "x", r"annotation 'x': id must be a whole number"),
    "image id missing": ((*FIRST, "image_id"), REMOVE, r"annotation 17: lacks the key 'image_id'"),
    "image unknown": ((*FIRST, "image_id"), 5, r"annotation 17: image_id 5 is not among the images"),
    "category missing": (
        (*FIRST, "category_id"),
        REMOVE,
        r"annotation 17 \(image 4\): lacks .*'category_id'",
    ),
    "category unknown": (
        (*FIRST, "category_id"),
        1,
        r"annotation 17 \(image 4\): category_id 1 is not .*\[7, 90\]",
    ),
    "no id, named by place": (
        FIRST,
        {k: v for k, v in annotation(0, 4, 1).items() if k != "id"},
        r"annotation number 1 \(image 4\): category_id 1",
    ),
    "box missing": ((*FIRST, "bbox"), REMOVE, r"annotation 17 \(image 4\): lacks the key 'bbox'"),
    "box NaN": (
        (*FIRST, "bbox"),
        [10, NAN, 6, 6],
        r"annotation 17 \(image 4\): bbox \[10, nan, 6, 6\] must be",
    ),
    "box infinite": (
        (*FIRST, "bbox"),
        [10, 8, float("inf"), 6],
        r"17 \(image 4\): bbox .*inf.* must be four finite",
    ),
    "box beyond float": (
        (*FIRST, "bbox"),
        [10, 8, 10**400, 6],
        r"17 \(image 4\): bbox .* must be four finite",
    ),
    "box of three": ((*FIRST, "bbox"), [10, 8, 6], r"17 \(image 4\): bbox \[10, 8, 6\] must be four"),
    "box of texts": ((*FIRST, "bbox"), ["10", "8", "6", "6"], r"17 \(image 4\): bbox .* must be four"),
    "box of booleans": ((*FIRST, "bbox"), [True, True, True, True], r"17 \(image 4\): bbox .* must be four"),
    "box no list": ((*FIRST, "bbox"), {"x": 1}, r"17 \(image 4\): bbox .* must be four"),
    "box as corners": (
        (*FIRST, "bbox"),
        [10, 8, 16, 14],
        r"17 \(image 4\): bbox \[10, 8, 16, 14\] reads like x1, y1, x2, y2; COCO means x, y, width, height: "
        r"write \[10, 8, 6, 6\]",
    ),
    "rough box as corners": (
        (*FIRST, "bbox"),
        [9.5, 6.5, 17, 14.5],
        r"17 \(image 4\): .*reads like x1, y1, x2, y2",
    ),
    "corners beside the mask": (
        (*FIRST, "bbox"),
        [20, 15, 30, 24],
        r"17 \(image 4\): .*reads like x1, y1, x2, y2",
    ),
    "area NaN": ((*FIRST, "area"), NAN, r"17 \(image 4\): area must be a number of pixels, is nan"),
    "area negative": ((*FIRST, "area"), -1, r"17 \(image 4\): area must be a number of pixels"),
    "crowd 2": ((*FIRST, "iscrowd"), 2, r"17 \(image 4\): iscrowd must be 0 or 1, is 2"),
    "crowd a list": ((*FIRST, "iscrowd"), [], r"17 \(image 4\): iscrowd must be 0 or 1"),
    "mask missing": ((*FIRST, "segmentation"), REMOVE, r"17 \(image 4\): lacks the key 'segmentation'"),
    "mask empty": ((*FIRST, "segmentation"), [], r"17 \(image 4\): segmentation is empty; draw"),
    "mask a text": (
        (*FIRST, "segmentation"),
        "abc",
        r"17 \(image 4\): segmentation must be polygons or an RLE",
    ),
    "polygon flat": ((*FIRST, "segmentation"), [1, 2, 3, 4, 5, 6], r"17 \(image 4\): .*a list of polygons"),
    "polygon odd": (
        (*FIRST, "segmentation"),
        [[1, 2, 3, 4, 5, 6, 7]],
        r"17 \(image 4\): .*odd number.*\(7\)",
    ),
    "polygon of two points": (
        (*FIRST, "segmentation"),
        [[1, 2, 3, 4]],
        r"17 \(image 4\): .*fewer than three",
    ),
    "polygon NaN": ((*FIRST, "segmentation"), [[1, 2, NAN, 4, 5, 6]], r"17 \(image 4\): .*no finite number"),
    "polygon of texts": (
        (*FIRST, "segmentation"),
        [["1", 2, 3, 4, 5, 6]],
        r"17 \(image 4\): .*no finite number",
    ),
    "polygon far right": (
        (*FIRST, "segmentation"),
        [[1, 2, 1e9, 4, 5, 6]],
        r"17 \(image 4\): polygon has x from 1 to 1e\+09, far outside the image of 32 x 24",
    ),
    "polygon far above": (
        (*FIRST, "segmentation"),
        [[1, -25, 3, 4, 5, 6]],
        r"17 \(image 4\): polygon has y from -25",
    ),
    "RLE size turned": (
        (*SECOND, "segmentation", "size"),
        [WIDTH, HEIGHT],
        r"18 \(image 4\): mask of size \[32, 24\], but the image is \[24, 32\]; an RLE's size is \[height",
    ),
    "RLE size wrong": (
        (*THIRD, "segmentation", "size"),
        [24, 31],
        r"19 \(image 4\): mask of size \[24, 31\]",
    ),
    "RLE size missing": (
        (*THIRD, "segmentation", "size"),
        REMOVE,
        r"19 \(image 4\): segmentation: lacks .*'size'",
    ),
    "RLE counts missing": ((*THIRD, "segmentation", "counts"), REMOVE, r"19 \(image 4\): .*lacks .*'counts'"),
    "RLE counts a number": (
        (*THIRD, "segmentation", "counts"),
        5,
        r"19 \(image 4\): the RLE's counts must be",
    ),
    "runs too short": (
        (*SECOND, "segmentation", "counts"),
        [5, 5],
        r"18 \(image 4\): .*add up to 10 pixels.*768",
    ),
    "runs too long": (
        (*SECOND, "segmentation", "counts"),
        [700, 100],
        r"18 \(image 4\): .*add up to 800 pixels",
    ),
    "runs negative": (
        (*SECOND, "segmentation", "counts"),
        [-1, 769],
        r"18 \(image 4\): .*whole numbers >= 0",
    ),
    "runs fractional": (
        (*SECOND, "segmentation", "counts"),
        [0.5, 767.5],
        r"18 \(image 4\): .*whole numbers >= 0",
    ),
    "string empty": ((*THIRD, "segmentation", "counts"), "", r"19 \(image 4\): .*cut off"),
    "string cut": ((*THIRD, "segmentation", "counts"), "h76b00000", r"19 \(image 4\): .*add up to"),
    "string cut in a number": ((*THIRD, "segmentation", "counts"), "h76b00h", r"19 \(image 4\): .*cut off"),
    "string of odd characters": (
        (*THIRD, "segmentation", "counts"),
        "h7 6!",
        r"19 \(image 4\): .*no RLE has",
    ),
    "string not ASCII": ((*THIRD, "segmentation", "counts"), "h7\u00e9", r"19 \(image 4\): .*no RLE has"),
    "string of huge runs": (
        (*THIRD, "segmentation", "counts"),
        "o" * 40 + "0",
        r"19 \(image 4\): .*longer than any",
    ),
    "string of negative runs": (
        (*THIRD, "segmentation", "counts"),
        "h70T20",
        r"19 \(image 4\): .*(negative|add up)",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_document_is_refused_in_one_line_with_file_and_id(folder, name):
    where, value, expected = MUTATIONS[name]
    document = copy.deepcopy(tiny_document())
    set_in(where, value)(document)
    assert re.search(r"train\.json: .*" + expected, message(folder, document))


def test_the_unchanged_document_is_accepted_without_a_note(folder):
    dataset = load(folder, tiny_document())
    assert dataset.notes == []
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not JSON .*cut off"),
        ('{"images": [1, 2', "is not JSON .*cut off"),
        ('{"images": nonsense}', r"is not JSON \(Expecting value, line 1\)"),
        ("[" * 100_000, "is not JSON"),
        ("1" * 5000, "is not JSON"),
        ("[]", "not COCO instances"),
        ('[{"image_id": 1, "score": 0.5}]', "a results file.*not COCO instances"),
        ("5", "is 5, not COCO instances"),
        ("null", "is None, not COCO instances"),
        ("{}", "lacks the key 'images'"),
    ],
)
def test_what_is_not_coco_json_is_refused(folder, text, expected):
    assert re.search(r"train\.json: .*" + expected, message(folder, text))


def test_a_missing_file_a_directory_and_an_image_are_no_coco_json(folder):
    for name, expected in (("none.json", "no such file"), (".", "is a directory"), ("a.png", "is not JSON")):
        with pytest.raises(InputError, match=re.escape(str(folder / name)) + ".*" + expected):
            read_coco(folder / name, folder)


def test_a_byte_order_mark_is_accepted(folder):
    path = folder / "train.json"
    path.write_text(json.dumps(tiny_document()), encoding="utf-8-sig")
    assert len(read_coco(path, folder)) == 2


@pytest.mark.parametrize(
    ("name", "expected"), [("none", "no such directory"), ("a.png", "is not a directory")]
)
def test_a_wrong_images_folder_is_named(folder, name, expected):
    load(folder, tiny_document())
    with pytest.raises(InputError, match=rf"{name}: {expected}.*train\.json"):
        read_coco(folder / "train.json", folder / name)


def test_missing_images_are_counted(folder):
    (folder / "a.png").unlink()
    (folder / "b.png").unlink()
    assert re.search("2 of 2 images are missing, image 4", message(folder, tiny_document()))


def test_an_image_that_is_none_is_found_on_reading_the_document(folder):
    (folder / "a.png").write_text("no image")
    assert re.search(r"a\.png: is not an image", message(folder, tiny_document()))


def test_a_truncated_image_is_found_when_it_is_used(folder):
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    dataset = load(folder, tiny_document())
    with pytest.raises(InputError, match=r"a\.png: damaged or truncated"):
        dataset[dataset.image_ids.index(4)]


@pytest.mark.parametrize(
    "box", [[10, 8, 0, 6], [10, 8, 6, -6], [40, 8, 6, 6], [10, 24, 6, 6], [-6, 8, 6, 6], [10, -20, 6, 6]]
)
def test_a_box_without_area_in_the_image_is_dropped_with_a_note_and_refused_when_strict(folder, box):
    document = tiny_document()
    document["annotations"][0].update(bbox=box, segmentation=[[900, 900, 1000, 1000, 950, 1000]])
    dataset = load(folder, document)
    expected = (
        r"1 of 3 annotations, whose box has no area or lies outside the image: annotation 17 \(image 4\)"
    )
    assert len(dataset.notes) == 1
    assert re.search(r"train\.json: dropped " + expected, dataset.notes[0])
    assert [a["id"] for a in dataset.coco_document()["annotations"]] == [18, 19]
    assert re.search(r"train\.json: " + expected, message(folder, document, strict=True))


def test_a_mask_without_a_pixel_is_dropped_with_a_note(folder):
    document = tiny_document()
    document["annotations"][1]["segmentation"]["counts"] = [HEIGHT * WIDTH]
    dataset = load(folder, document)
    assert re.search(r"dropped 1 of 3 annotations, whose mask has no pixel: annotation 18", dataset.notes[0])
    assert len(dataset.coco_document()["annotations"]) == 2


def test_the_first_five_dropped_annotations_are_named(folder):
    document = tiny_document()
    document["annotations"] = [annotation(i, 4, 7, bbox=[0, 0, 0, 0], segmentation=[]) for i in range(1, 10)]
    note = load(folder, document).notes[0]
    assert "9 of 9 annotations" in note
    assert "annotation 5 (image 4), ..." in note
    assert "annotation 6" not in note


def test_nothing_to_learn_from_is_an_error_for_training_only(folder):
    for change in ("none", "crowd", "dropped"):
        document = tiny_document()
        if change == "none":
            document["annotations"] = []
        for entry in document["annotations"]:
            entry.update({"crowd": {"iscrowd": 1}, "dropped": {"bbox": [0, 0, 0, 0]}}[change])
        assert len(load(folder, document)) == 2
        text = message(folder, document, allow_empty=False)
        assert re.search(r"train\.json: no object is left to learn from in 2 images", text)
        assert ("dropped 3 of 3" in text) == (change == "dropped")


def test_a_loose_box_or_one_that_reaches_over_the_border_is_no_mistake(folder):
    for box in ([10, 8, 8, 8], [8, 6, 10.5, 10.5], [0, 0, 32, 24], [9, 7, 30, 30], [0, 0, 16, 14]):
        document = tiny_document()
        document["annotations"][0]["bbox"] = box
        assert load(folder, document).notes == []


def test_a_box_that_goes_on_beyond_the_border_is_compared_with_its_mask_inside(folder):
    document = tiny_document()
    polygon = [20, 8, 32, 8, 32, 20, 20, 20]
    document["annotations"][0].update(
        bbox=[20, 8, 30, 12], segmentation=[polygon]
    )  # (20, 8, 30, 12) is a box, too
    dataset = load(folder, document)
    assert dataset.notes == []
    assert dataset[dataset.image_ids.index(4)].boxes[0].tolist() == [20, 8, 32, 20]


def test_whole_numbers_written_as_floats_are_whole_numbers(folder):
    document = tiny_document()
    document["images"][0].update(id=4.0, width=32.0)
    document["annotations"][0].update(id=17.0, image_id=4.0, category_id=90.0)
    assert load(folder, document).coco_document()["annotations"][0]["category_id"] == 90


def test_read_image_refuses_what_is_no_image_in_one_line(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-100])
    for name, expected in (
        ("none.png", "no such image file"),
        (".", "is a directory"),
        ("text.png", "is not an image"),
        ("empty.png", "is not an image"),
        ("cut.jpg", "truncated"),
    ):
        with pytest.raises(InputError, match=re.escape(str(tmp_path / name)) + ".*" + expected) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)


def places(value, path=()):
    """The path of every value in a document, but the document's own."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(value[key], (*path, key))


STRANGE = [None, True, -1, 0.5, NAN, 1e308, 10**30, "\ud800", [], {}, [[10**400] * 6], {"size": None}]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: repr(value)[:20])
def test_whatever_stands_in_a_field_gives_a_dataset_or_one_short_line(folder, value):
    refused = 0
    for place in places(tiny_document()):
        document = tiny_document()
        set_in(place, value)(document)
        try:
            dataset = load(folder, document)
            assert sum(len(sample.boxes) for sample in dataset) <= len(dataset.coco_document()["annotations"])
        except InputError as error:
            refused += 1
            assert str(error).startswith(str(folder / "train.json"))
            assert len(str(error).splitlines()) == 1
            assert len(str(error)) < len(str(folder)) + 300
    assert refused > 40
