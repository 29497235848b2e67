"""Every wrong input gets one line that names file, id and mend, before pycocotools sees anything."""

import copy
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from minimask.data import read_coco, read_image, rle, shared_files
from minimask.data.fields import Faults
from minimask.data.image_entries import ImageRecord, read_images
from minimask.errors import InputError
from tests.systems import needs_pipes

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


def compressed(runs):
    """Run lengths in COCO's compressed form, of any size."""
    text = ""
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
    return text


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
    "name too long": (("images", 0, "file_name"), "a" * 9999, r"image 4: there is no file 'a"),
    "category name only spaces": (("categories", 0, "name"), " \t", r"category 90: name must be a text"),
    "category name of two lines": (
        ("categories", 0, "name"),
        "two\nlines",
        r"category 90: name 'two\\nlines' has characters that cannot be shown in a line; remove them",
    ),
    "category name that moves the cursor": (
        ("categories", 0, "name"),
        "a\x1b[2J",
        r"category 90: name 'a\\x1b",
    ),
    "category name with a surrogate": (("categories", 0, "name"), "a\udce9", r"category 90: name 'a\\udce9'"),
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
        r"image 4: .*a.png is 32 x 24, annotated as 24 x 32 .* are swapped: write width 32 and height 24",
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
    "polygon of points": (
        (*FIRST, "segmentation"),
        [[[10, 8], [16, 8], [16, 14]]],
        r"17 \(image 4\): segmentation .* as \[x, y\]; they must be flat: \[\[x1, y1, x2, y2, ...\]\]",
    ),
    "points as polygons": (
        (*FIRST, "segmentation"),
        [[10, 8], [16, 8], [16, 14]],
        r"17 \(image 4\): .* must be flat",
    ),
    "polygon of endless edges": (
        (*FIRST, "segmentation"),
        [[0, 0, 32, 24] * 3000],
        r"17 \(image 4\): the polygons' edges are 19\d{4} pixels long together, where 100000 are enough",
    ),
    "polygons of endless edges together": (
        (*FIRST, "segmentation"),
        [[0, 0, 32, 24] * 1000] * 3,
        r"17 \(image 4\): the polygons' edges are 19\d{4} pixels long",
    ),
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
    "polygon NaN": (
        (*FIRST, "segmentation"),
        [[1, 2, NAN, 4, 5, 6]],
        r"17 \(image 4\): .*not a finite number",
    ),
    "polygon of texts": (
        (*FIRST, "segmentation"),
        [["1", 2, 3, 4, 5, 6]],
        r"17 \(image 4\): .*not a finite number",
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
    "runs that add up beyond 64 bits": (
        (*SECOND, "segmentation", "counts"),
        [2**62, 2**62, 2**62, 2**62 + HEIGHT * WIDTH],
        r"18 \(image 4\): .*of at most height x width",
    ),
    "string of runs that add up beyond 64 bits": (
        (*THIRD, "segmentation", "counts"),
        compressed([2**33] * 2**10 + [HEIGHT * WIDTH]),
        r"19 \(image 4\): .*has a run longer than the image",
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
        ("version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS; run 'git lfs pull'"),
        ("<!doctype html>\n<html>", r"is a web page \(HTML\); .* download the file itself again"),
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


def test_the_time_to_collect_missing_images_grows_with_their_number_not_its_square(tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(ImageRecord, "__eq__", lambda one, other: compared.append(one) or one is other)
    entries = [{"id": i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in range(100)]
    faults = Faults()
    assert read_images(entries, tmp_path / "train.json", tmp_path, [], faults) == []
    assert faults.found[0].count == 100 and len(compared) < 100


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


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_entries_that_share_a_fault_are_counted(folder, count):
    document = tiny_document()
    for entry in document["annotations"][:count]:
        entry["bbox"] = [1, 2, 3]
    expected = f"x, y, width, height (so it is in {count} of 3 annotations)"
    assert (expected in message(folder, document)) == (count > 1)
    for entry in document["images"]:
        entry["width"] += 1
    assert "annotated as 33 x 24" in message(folder, document)
    assert "(so it is in 2 of 2 images)" in message(folder, document)


# ---------------------------------------------------------------- what the boxes of a file show together


def as_corners(entry):
    x, y, w, h = entry["bbox"]
    entry["bbox"] = [x, y, x + w, y + h]


def objects(*places, size=6):
    """Annotations of squares at these places."""
    return [
        annotation(i, 4, 7, bbox=[x, y, size, size], segmentation=[square(x, y, size)])
        for i, (x, y) in enumerate(places, start=1)
    ]


def square(x, y, size):
    return [x, y, x + size, y, x + size, y + size, x, y + size]


def test_a_file_of_corner_boxes_is_refused_with_the_mend_and_their_number(folder):
    document = tiny_document()
    for entry in document["annotations"]:
        as_corners(entry)
    assert re.search(
        r"annotation 17 \(image 4\): bbox \[10, 8, 16, 14\] reads like x1, y1, x2, y2; COCO means x, y, "
        r"width, height: write \[10, 8, 6, 6\] \(so it is in 3 of 3 annotations\)",
        message(folder, document),
    )


def test_corner_boxes_are_recognised_though_they_are_drawn_by_hand_or_beside_their_masks(folder):
    document = tiny_document()
    for box in ([9.5, 6.5, 17, 14.5], [20, 15, 30, 24]):
        for entry in document["annotations"]:
            entry["bbox"] = box
        assert "reads like x1, y1, x2, y2" in message(folder, document)


def as_centre(entry):
    x, y, w, h = entry["bbox"]
    entry["bbox"] = [x + w / 2, y + h / 2, w, h]


def test_a_file_of_boxes_given_by_their_centres_is_refused_with_the_mend_and_their_number(folder):
    document = tiny_document()
    for entry in document["annotations"]:
        as_centre(entry)
    assert re.search(
        r"annotation 17 \(image 4\): bbox \[13, 11, 6, 6\] reads like the centre's x, y, then width, height; "
        r"COCO means the upper left corner: write \[10, 8, 6, 6\] \(so it is in 3 of 3 annotations\)",
        message(folder, document),
    )


def test_one_box_beside_its_mask_by_half_its_size_is_no_box_of_a_centre(folder):
    document = tiny_document()
    document["annotations"] = objects((8, 4), (20, 4))
    as_centre(document["annotations"][0])
    assert load(folder, document).notes == []


def test_an_address_of_the_web_is_told_to_be_downloaded():
    for read in (read_image, lambda address: read_coco(address, ".")):
        with pytest.raises(InputError, match=r"no such .*; an address of the web is not read: download it"):
            read("https://example.org/a/b")


def test_a_single_corner_box_that_reaches_far_out_of_the_image_is_refused(folder):
    document = tiny_document()
    document["annotations"] = objects((20, 15))
    as_corners(document["annotations"][0])
    assert "write [20, 15, 6, 6]" in message(folder, document)


@pytest.mark.parametrize("box", [[10, 8, 16, 14], [9.5, 6.5, 17, 14.5], [10, 8, 22, 16], [8, 8, 24, 16]])
def test_an_amodal_box_larger_than_the_visible_mask_is_no_mistake(folder, box):
    document = tiny_document()
    document["annotations"][0]["bbox"] = box
    dataset = load(folder, document)
    assert dataset.notes == []
    assert dataset.coco_document()["annotations"][0]["bbox"] == box
    document["annotations"] = document["annotations"][:1]  # alone in its file, it proves no more
    assert load(folder, document).notes == []


def test_amodal_boxes_throughout_a_file_are_no_mistake(folder):
    document = tiny_document()
    document["annotations"] = objects((0, 0), (2, 10), (12, 4), (20, 12))
    for entry in document["annotations"]:
        x, y, _, _ = entry["bbox"]
        entry["bbox"] = [x, y, 12, 12]
    assert load(folder, document).notes == []


def test_two_amodal_boxes_of_which_one_goes_on_beyond_the_border_are_no_mistake(folder):
    document = tiny_document()
    document["annotations"] = objects((2, 2), (10, 8))
    document["annotations"][0]["bbox"] = [2, 2, 20, 15]
    document["annotations"][1]["bbox"] = [10, 8, 25, 20]
    assert load(folder, document).notes == []


def test_normalised_boxes_and_polygons_are_recognised(folder):
    def normalised(values):
        return [value / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(values)]

    document = tiny_document()
    document["annotations"] = objects((0, 0), (2, 10), (12, 4))
    for entry in document["annotations"]:
        entry["bbox"] = normalised(entry["bbox"])
    expected = (
        r"annotation 1 \(image 4\): bbox \[.*\] looks normalised to 0..1; .* width 32, y by its height 24"
    )
    assert re.search(expected + r" \(so it is in 3 of 3 annotations\)", message(folder, document))
    for entry in document["annotations"]:
        entry["segmentation"] = [normalised(entry["segmentation"][0])]
    assert re.search(expected, message(folder, document))
    document["annotations"] = objects((0, 0), (2, 10), (12, 4))
    for entry in document["annotations"]:
        entry["segmentation"] = [normalised(entry["segmentation"][0])]
    assert re.search(r"polygon from \[.*\] looks normalised", message(folder, document))


def test_an_object_of_one_pixel_is_not_taken_for_normalised(folder):
    document = tiny_document()
    document["annotations"] = objects((0, 0), size=1)
    assert load(folder, document).notes == []


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0])
def test_polygons_at_another_scale_than_their_boxes_are_recognised(folder, factor):
    document = tiny_document()
    document["annotations"] = objects((0, 0), (2, 4), (10, 4), (8, 5))
    for entry in document["annotations"]:
        entry["segmentation"] = [[factor * value for value in entry["segmentation"][0]]]
    text = message(folder, document)
    assert re.search(
        rf"the polygon lies in .* which is its bbox .* times {factor:g}; give both in pixels", text
    )
    assert "(so it is in 4 of 4 annotations)" in text


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


@pytest.mark.parametrize(
    ("name", "file_name", "expected"),
    [
        ("sub/a.png", "sub\\a.png", "it has backslashes: write 'sub/a.png', the file that is there"),
        ("a b.png", "a%20b.png", "it has %-codes: write 'a b.png', the file that is there"),
        ("a&b.png", "a&amp;b.png", "it has HTML's codes: write 'a&b.png'"),
        ("c.png", " c.png", "it has spaces around it: write 'c.png'"),
        ("Sub/C.PNG", "sub/c.png", "it is spelled differently .*: write 'Sub/C.PNG', the file that is there"),
        ("\u00e9.png", "e\u0301.png", "it is spelled differently .* accents.: write '\u00e9.png'"),
        ("sub/c.png", "other/c.png", "it is in another folder: write 'sub/c.png'"),
        ("c.jpg", "c.png", "it has another ending: write 'c.jpg'"),
        (
            "sub/D 1.png",
            "SUB\\d%201.png",
            "it has backslashes and has %-codes and is spelled .* write 'sub/D 1.png'",
        ),
        ("c.png", "C:\\images\\c.png", "it has backslashes and is in another folder: write 'c.png'"),
    ],
)
def test_the_file_that_was_meant_is_named(folder, name, file_name, expected):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "a.png").rename(folder / name)
    document = tiny_document()
    document["images"][0]["file_name"] = file_name
    assert re.search(r"image 4: there is no file .*; " + expected, message(folder, document))


def test_an_absolute_name_into_the_images_folder_is_to_be_written_relative(folder):
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    document = tiny_document()
    document["images"][0]["file_name"] = str(folder / "sub" / "a.png")
    expected = r"file_name .* is absolute; write it relative to the images folder: 'sub/a.png'"
    assert re.search(expected, message(folder, document))
    document["images"][1]["file_name"] = "/elsewhere/b.png"
    document["images"][0]["file_name"] = "sub/a.png"
    assert "leads out of the images folder; write 'b.png', the file that is in it" in message(
        folder, document
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_of_another_encoding_is_named(folder, encoding):
    path = folder / "train.json"
    path.write_bytes(json.dumps(tiny_document()).encode(encoding))
    with pytest.raises(InputError, match=rf"train\.json: is UTF-{encoding[4:6]} text; save it as UTF-8"):
        read_coco(path, folder)


def test_json_of_windows_is_named(folder):
    document = tiny_document()
    document["categories"][0]["name"] = "caf\u00e9"
    path = folder / "train.json"
    path.write_bytes(json.dumps(document, ensure_ascii=False).encode("cp1252"))
    with pytest.raises(
        InputError, match=r"is not UTF-8 text, but perhaps of Windows \(cp1252\); save it as UTF-8"
    ):
        read_coco(path, folder)


@needs_pipes
def test_a_named_pipe_is_neither_json_nor_an_image(folder):
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match=r"pipe: cannot be read .not a regular file."):
        read_coco(folder / "pipe", folder)
    with pytest.raises(InputError, match=r"pipe: cannot be read .not a regular file."):
        read_image(folder / "pipe")


def test_names_of_classes_are_stripped(folder):
    document = tiny_document()
    document["categories"][0]["name"] = " caf\u00e9 \u732b\n"
    assert load(folder, document).class_names == ("dog", "caf\u00e9 \u732b")


def test_control_characters_in_file_names_are_escaped_wherever_they_are_printed(folder):
    name = "a\x1b[2J\n.png"
    (folder / "a.png").rename(folder / name)
    document = tiny_document()
    document["images"][0]["file_name"] = name
    document["images"].append(document["images"][0] | {"id": 9})  # noted
    dataset = load(folder, document)
    assert dataset.describe(1) == r"train.json: image 4 (a\x1b[2J\n.png)"
    assert dataset.coco_document()["images"][1]["file_name"] == name
    (folder / name).write_bytes((folder / name).read_bytes()[:60])
    with pytest.raises(InputError) as caught:
        dataset[1]
    assert [text.isprintable() for text in (*dataset.notes, str(caught.value))] == [True, True]


def test_areas_that_are_0_or_missing_are_measured_with_a_note(folder):
    document = tiny_document()
    document["annotations"][0]["area"] = 0
    document["annotations"][1]["area"] = None
    dataset = load(folder, document)
    assert [a["area"] for a in dataset.coco_document()["annotations"]] == [36.0] * 3
    assert dataset.notes == [
        f"{folder / 'train.json'}: area is 0 or missing in 2 of 3 annotations; measured from their masks"
    ]


@pytest.mark.parametrize(
    "box", [[20, 10, 1e-7, 5], [31.9999999, 10, 5, 5], [20, 10, 5, 1e-300], [20, 23.9999999, 5, 5]]
)
def test_a_box_thinner_than_float32_can_tell_is_dropped(folder, box):
    document = tiny_document()
    document["annotations"][0]["bbox"] = box
    dataset = load(folder, document)
    assert "1 of 3 annotations, whose box has no area" in dataset.notes[0]
    for sample in dataset:
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


def test_a_mask_with_runs_of_length_0_is_measured_rightly(folder):
    document = tiny_document()
    start, rest = 10 * HEIGHT + 8, HEIGHT * WIDTH - 10 * HEIGHT - 14
    for counts in (
        [start, 0, 0, 6, rest],
        [5, 0, start - 5, 2, 0, 4, rest, 0],
        [0, 0, start, 6, 0, 0, rest, 0, 0],
    ):
        for form in (counts, compressed(counts)):
            document["annotations"][0].update(
                segmentation={"size": [HEIGHT, WIDTH], "counts": form}, bbox=[10, 8, 1, 6], area=0
            )
            dataset = load(folder, document)
            mask = dataset[dataset.image_ids.index(4)].masks[0]
            assert mask.sum() == mask[8:14, 10].sum() == 6
            entry = dataset.coco_document()["annotations"][0]
            assert entry["area"] == 6
            assert rle.measure([entry["segmentation"]])[1].tolist() == [[10, 8, 11, 14]]


def test_all_crowds_are_named(folder):
    document = tiny_document()
    for entry in document["annotations"]:
        entry["iscrowd"] = 1
    expected = "all 3 annotations have iscrowd 1, which marks regions of many objects; set iscrowd to 0 where"
    assert expected in message(folder, document, allow_empty=False)
    assert expected in load(folder, document).notes[0]


def test_two_entries_of_one_file_are_noted(folder):
    document = tiny_document()
    document["images"] += [document["images"][0] | {"id": 11, "file_name": "./a.png"}]
    expected = r"images 4, 11 are one file, a.png; what only one entry has annotated counts as background"
    assert re.search(expected, load(folder, document).notes[0])


def test_files_of_both_training_and_validation_are_noted(folder):
    train = load(folder, tiny_document())
    document = tiny_document()
    document["images"] = [document["images"][0] | {"file_name": "./a.png"}]
    (folder / "val.json").write_text(json.dumps(document))
    note = shared_files(train, read_coco(folder / "val.json", folder))
    assert note.startswith("val.json: 1 of 1 images are files of train.json, too, such as a.png: scores on")
    (folder / "a.png").rename(folder / "c.png")
    document["images"][0]["file_name"] = "c.png"
    (folder / "val.json").write_text(json.dumps(document))
    assert shared_files(train, read_coco(folder / "val.json", folder)) is None
    assert shared_files(train, train) is None


def test_masks_outside_of_their_boxes_are_noted(folder):
    document = tiny_document()
    document["annotations"][0]["bbox"] = [20, 15, 10, 8]
    expected = "1 of 3 annotations have their mask outside of their box: annotation 17 (image 4)"
    assert expected in load(folder, document).notes[0]


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_later_pictures_of_a_file_are_noted(folder, suffix):
    pictures = [Image.fromarray(np.full((HEIGHT, WIDTH), v, np.uint8)) for v in (0, 99)]
    document = tiny_document()
    document["images"][0]["file_name"] = f"c.{suffix}"
    pictures[0].save(folder / f"c.{suffix}", save_all=True, append_images=pictures[1:])
    expected = (
        "1 of 2 images are animations or have several pages, of which the first alone is read: image 4;"
    )
    assert expected in load(folder, document).notes[0]
    pictures[0].save(folder / f"c.{suffix}")
    assert load(folder, document).notes == []


def test_twelve_bits_in_sixteen_are_noted(folder):
    document = tiny_document()
    values = np.linspace(0, 4095, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(folder / "a.png")
    expected = (
        "image 4: uses only 12 of its 16 bits (the greatest value is 4095, white is 65535) and is read as "
        "nearly black; multiply the values by 16"
    )
    assert expected in load(folder, document).notes[0]
    Image.fromarray(values * 16).save(folder / "a.png")
    assert load(folder, document).notes == []


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


def test_two_categories_of_one_name_are_named(folder):
    document = tiny_document()
    first = document["categories"][0]
    document["categories"].append({"id": 991, "name": f" {first['name']} "})
    told = message(folder, document)
    assert re.search(rf"categories {first['id']} and 991 are both named .*; rename one", told)
