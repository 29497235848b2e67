"""What `minimask convert` says about annotations that cannot be used: one line, with file, field and mend."""

import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minimask.command import cli
from minimask.files import write_text
from tests import own_data
from tests.own_data import shape

HEIGHT, WIDTH = 40, 60


def grey_image(path, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, 100, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder set/ with one image, a.jpg, and nothing that annotates it."""
    grey_image(tmp_path / "set" / "a.jpg")
    return tmp_path / "set"


def refused(capsys, folder, *arguments):
    output = folder.parent / "train.json"
    before = sorted(path for path in folder.rglob("*"))
    status = cli.main(["convert", str(folder), "--output", str(output), *map(str, arguments)])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("minimask: note: ", "converting "))]
    assert status == 2, (status, out, err)
    assert len(lines) == 1 and lines[0].startswith("minimask: "), err
    assert not output.exists() and sorted(folder.rglob("*")) == before, "nothing is written"
    return lines[0].removeprefix("minimask: ").removeprefix(f"{folder}{os.sep}")


TRIANGLE = [[2, 2], [8, 2], [8, 8]]


def document(*shapes, **fields):
    return {"version": "5.4.1", "shapes": list(shapes), "imagePath": "a.jpg", "imageData": None} | fields


def cat(points=TRIANGLE, kind="polygon", **fields):
    return document(shape("cat", points, kind=kind, **fields))


SPIKES = [[0.0 if i % 2 else 59.0, float(i % 40)] for i in range(60_000)]  # edges of 3.5 million pixels

LABELME = {
    "no JSON": ('{"shapes": [', ["holds no annotations"]),
    "shapes no list": (document() | {"shapes": 5}, ["a.json: shapes must be a list, is 5", "save it"]),
    "shape no object": (document(7), ["a.json: shape 1 must be an object, is 7"]),
    "no label": (document({"points": TRIANGLE}), ["shape 1 (None): label must be a name, is None", "class"]),
    "empty label": (document(shape("  ", TRIANGLE)), ["shape 1 ('  '): label must be a name"]),
    "label with a line break": (
        document(shape("a\nb", TRIANGLE)),
        ["label 'a\\nb' has characters", "remove"],
    ),
    "points no list": (cat("abc"), ["shape 1 ('cat'): points must be a list of [x, y], is 'abc'"]),
    "point of three": (cat([[1, 2, 3]] * 3), ["points must be a list of [x, y]"]),
    "point of text": (cat([["1", 2], [3, 4], [5, 6]]), ["points must be a list of [x, y]"]),
    "point of NaN": (cat([[float("nan"), 2], [3, 4], [5, 6]]), ["points must be a list of [x, y]"]),
    "point beyond float": (cat([[10**400, 2], [3, 4], [5, 6]]), ["points must be a list of [x, y]"]),
    "two points": (cat(TRIANGLE[:2]), ["polygon has 2 points", "complete it"]),
    "rectangle of one": (cat(TRIANGLE[:1], "rectangle"), ["rectangle has 1 points"]),
    "circle of three": (cat(TRIANGLE, "circle"), ["circle has 3 points", "centre"]),
    "unknown type": (cat(TRIANGLE, "spline"), ["shape_type 'spline' is unknown", "polygon"]),
    "type no text": (cat(TRIANGLE, 4), ["shape_type 4 is unknown"]),
    "far outside": (
        cat([[2, 2], [1e9, 2], [8, 8]]),
        ["polygon has x from 2 to 1e+09, far outside", "pixels"],
    ),
    "absurd outline": (cat(SPIKES), ["edges are", "simplify"]),
    "circle far outside": (cat([[2, 2], [1e7, 2]], "circle"), ["far outside the image of 60 x 40"]),
    "circle beyond all": (cat([[2, 2], [1e25, 2]], "circle"), ["far outside the image"]),
    "mask no PNG": (cat(TRIANGLE[:2], "mask", mask="////"), ["mask: is not an image"]),
    "mask missing": (cat(TRIANGLE[:2], "mask"), ["mask must be a picture in base64, is None"]),
    "mask of one point": (cat(TRIANGLE[:1], "mask", mask="AAAA"), ["mask has 1 points"]),
    "another size": (
        document(shape("cat", TRIANGLE), imageHeight=80, imageWidth=120),
        [
            "a.json: imageWidth and imageHeight say it is drawn at 120 x 80 pixels",
            "a.jpg has 60 x 40",
            "restore",
        ],
    ),
    "turned": (
        document(shape("cat", TRIANGLE), imageHeight=60, imageWidth=40),
        ["40 x 60", "turned on its side"],
    ),
    "size no number": (
        document(imageHeight="40", imageWidth=60),
        ["imageHeight and imageWidth must be numbers"],
    ),
    "image gone": (
        document(shape("cat", TRIANGLE), imagePath="b.jpg"),
        ["c.json: there is no image 'b.jpg' in", "imageData is empty", "--images"],
    ),
    "image a number": (document(imagePath=5), ["a.json: imagePath must be a name, is 5"]),
    "image with NUL": (document(imagePath="a\0b"), ["imagePath 'a\\x00b' is not a file name"]),
    "inside, but no picture": (
        document(shape("cat", TRIANGLE), imagePath="b.jpg", imageData="aGVsbG8="),
        ["c.json: imageData is not an image of a known kind"],
    ),
    "inside, but no text": (
        document(imagePath="b.jpg", imageData=[1]),
        ["c.json: imageData must be a picture"],
    ),
    "inside, cut off": (
        document(imagePath="b.jpg", imageData=own_data.base64_png(np.zeros((40, 60), np.uint8))[:30]),
        ["c.json: imageData"],
    ),
    "nothing drawn": (document(), ["no object in 1 image", "annotate some"]),
    "only points": (cat([[1, 1]], "point"), ["no object in 1 image"]),
}


@pytest.mark.parametrize("name", LABELME)
def test_wrong_labelme_files_get_one_line(name, folder, capsys):
    content, words = LABELME[name]
    elsewhere = (
        isinstance(content, dict) and content["imagePath"] == "b.jpg"
    )  # no image of the JSON's name either
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / ("c.json" if elsewhere else "a.json")).write_text(text)
    line = refused(capsys, folder)
    assert all(word in line for word in words), line
    assert len(line) < 500


def test_a_label_that_is_none_of_the_classes_is_named(folder, capsys):
    own_data.write_json(folder / "a.json", cat())
    line = refused(capsys, folder, "--classes", "dog,cow")
    assert line.startswith("a.json: shape 1 ('cat'): the label is not among the classes (cow, dog)")


def test_two_labelme_files_of_one_image_are_named(folder, capsys):
    for name in "ab":
        own_data.write_json(folder / f"{name}.json", cat())
    assert "b.json: is of the image a.jpg, and so is" in refused(capsys, folder)


YOLO = {
    "a word": ("0 0.1 0.1 x 0.1 0.5 0.5", ["a.txt: line 1: 'x' is not a number", "class x1 y1"]),
    "NaN": ("0 0.1 0.1 nan 0.1 0.5 0.5", ["'nan' is not a number"]),
    "infinity": ("0 0.1 0.1 1e999 0.1 0.5 0.5", ["'1e999' is not a number"]),
    "class no number": ("cat 0.1 0.1 0.5 0.1 0.5 0.5", ["class 'cat' must be a whole number"]),
    "class a fraction": ("0.5 0.1 0.1 0.5 0.1 0.5 0.5", ["class '0.5' must be a whole number"]),
    "class below 0": ("-1 0.1 0.1 0.5 0.1 0.5 0.5", ["class '-1' must be a whole number"]),
    "class without name": (
        "7 0.1 0.1 0.5 0.1 0.5 0.5",
        ["class 7 has no name (there are 2: 0, 1)", "--classes"],
    ),
    "a box": ("1 0.5 0.5 0.2 0.2", ["is a box (x, y, width, height), not a polygon", "--boxes"]),
    "a box and its score": ("1 0.5 0.5 0.2 0.2 0.9", ["has 5 numbers after the class", "score", "--boxes"]),
    "two points and a half": (
        "1 0.5 0.5 0.2",
        ["has 3 numbers after the class, but an outline has at least 6"],
    ),
    "an odd number": (
        "1 0.1 0.1 0.5 0.1 0.5 0.5 0.9",
        ["has 7 numbers after the class, an odd number", "score"],
    ),
    "pixels": ("1 10 10 30 10 30 30", ["coordinate 30 is not within 0..1", "width 60", "height 40"]),
    "far below": ("1 0.1 -3 0.5 0.1 0.5 0.5", ["coordinate -3 is not within 0..1"]),
    "a class alone": ("0 0.1 0.1 0.5 0.1 0.5 0.5\n1", ["line 2: has 0 numbers after the class"]),
}


@pytest.mark.parametrize("name", YOLO)
def test_wrong_yolo_lines_get_one_line(name, folder, capsys):
    text, words = YOLO[name]
    grey_image(folder / "good.jpg")
    (folder / "good.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "a.txt").write_text(text)
    (folder / "classes.txt").write_text("cat\ndog\n")
    line = refused(capsys, folder, "--format", "yolo")
    assert all(word in line for word in words), line


def test_yolo_texts_that_belong_to_no_image_or_to_two_are_named(folder, capsys):
    (folder / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "b.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    line = refused(capsys, folder)
    assert line.startswith("b.txt: there is no image named b in") and "--images" in line
    (folder / "b.txt").unlink()
    grey_image(folder / "a.png")
    line = refused(capsys, folder)
    assert "a.txt: belongs to a.jpg or to a.png" in line


@pytest.mark.parametrize(
    "text, words",
    [
        ("nc: 2\n", ["has no entry 'names'"]),
        ("names: cat\n", ["'names' is not a list"]),
        ("names: [cat\n", ["'names' is not a list"]),
        ("names: [cat, cat]\n", ["the class 'cat' occurs twice"]),
        ("names:\n  0: cat\n  0: dog\n", ["the number 0 occurs twice"]),
        ("names:\n  0: cat\n  - dog\n", ["has no number, while others have"]),
        ("names: []\n", ["names no class"]),
    ],
)
def test_a_data_yaml_that_is_not_understood_is_named(text, words, folder, capsys):
    (folder / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (folder / "data.yaml").write_text(text)
    line = refused(capsys, folder)
    assert line.startswith("data.yaml: ") and all(word in line for word in words), line


def a_map(folder, values, name="a.png"):
    Image.fromarray(values).save(folder / name)


ONES = np.zeros((HEIGHT, WIDTH), np.uint8)
ONES[5:9, 5:9] = 1

MAPS = {
    "another size": (
        np.ones((20, 30), np.uint8),
        [],
        ["a.png: is drawn at 30 x 20 pixels", "a.jpg has 60 x 40"],
    ),
    "turned": (ONES.T.copy(), [], ["40 x 60", "turned on its side"]),
    "empty": (0 * ONES, [], ["no object in 1 image"]),
    "class without name": (
        3 * ONES,
        ["--values", "classes", "--classes", "cat,dog"],
        ["class 3 (16 pixels", "7=cat"],
    ),
    "void": (255 * ONES, ["--values", "classes", "--classes", "cat,dog"], ["class 255", "--ignore 255"]),
    "colours as classes": (
        np.stack([ONES * 9, ONES, ONES], axis=2),
        ["--values", "classes"],
        ["a.png: has colours", "--colours TABLE"],
    ),
    "transparent": (np.stack([ONES] * 4, axis=2), [], ["has transparent pixels"]),
    "several classes of objects": (
        ONES,
        ["--classes", "cat,dog"],
        ["--classes: names 2 classes", "--values classes"],
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_wrong_label_maps_get_one_line(name, folder, capsys):
    values, options, words = MAPS[name]
    a_map(folder, values)
    line = refused(capsys, folder, *options)
    assert all(word in line for word in words), line


def test_label_maps_of_fractions_or_cut_off_are_named(folder, capsys):
    Image.fromarray(ONES.astype(np.float32)).save(folder / "a.tif")
    assert "a.tif: has fractions for values" in refused(capsys, folder)
    (folder / "a.tif").unlink()
    a_map(folder, ONES)
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(content[:-30])
    assert "a.png: damaged or truncated image" in refused(capsys, folder)


def test_a_label_map_of_absurd_size_is_refused_by_its_header(folder, capsys):
    a_map(folder, ONES)
    content = bytearray((folder / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # width and height in the header, and its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (folder / "a.png").write_bytes(content)
    assert "a.png: is too large to be decoded" in refused(capsys, folder)


def test_a_map_of_which_there_is_no_image_or_two_is_named(folder, capsys):
    (folder / "masks").mkdir()
    a_map(folder, ONES, "masks/a.png")
    a_map(folder, ONES, "masks/b.png")
    line = refused(capsys, folder / "masks", "--images", folder)
    assert "b.png: there is no image for this label map" in line
    (folder / "masks" / "b.png").unlink()
    a_map(folder, ONES, "masks/a_mask.png")
    a_map(folder, ONES, "masks/a_gt.png")
    (folder / "masks" / "a.png").unlink()
    assert "may belong to a_gt.png or to a_mask.png" in refused(capsys, folder / "masks", "--images", folder)


COLOURS = {
    "no colour": ("128,0,0 cat\ndog\n", ["line 2: 'dog' has no colour", "#rrggbb"]),
    "beyond 255": ("128,0,0 cat\n300,0,0 dog\n", ["line 2:", "has no colour"]),
    "no name": ("128,0,0\n", ["line 1: '128,0,0' names no class"]),
    "twice": ("128,0,0 cat\n#800000 dog\n", ["line 2: the colour (128, 0, 0) occurs twice"]),
    "black": ("0,0,0 cat\n", ["black is background here"]),
    "empty": ("", ["has no colour of a class"]),
    "long": ("1" * 2000, ["line 1 is 2000 characters long"]),
    "not in it": (
        "7,7,7 cat\n",
        ["a.png: colour 9,1,1 (16 pixels, the first at x 5, y 5) is not in the table"],
    ),
}


@pytest.mark.parametrize("name", COLOURS)
def test_wrong_tables_of_colours_get_one_line(name, folder, capsys):
    text, words = COLOURS[name]
    a_map(folder, np.stack([ONES * 9, ONES, ONES], axis=2))
    (folder.parent / "table.txt").write_text(text)
    line = refused(capsys, folder, "--colours", folder.parent / "table.txt")
    assert all(word in line for word in words), line


def test_a_folder_that_holds_nothing_or_several_things_is_told(folder, capsys):
    line = refused(capsys, folder)
    assert "holds no annotations that are understood (1 image)" in line and "--images DIR" in line
    own_data.write_json(folder / "a.json", cat())
    a_map(folder, ONES)
    line = refused(capsys, folder)
    assert (
        "holds label maps (1 files), labelme JSON (1 files)" in line
        and "--format label-maps or labelme" in line
    )


def test_wrong_folders_and_outputs_are_named(folder, capsys):
    for arguments, words in (
        (["nowhere"], "nowhere: no such folder"),
        ([str(folder / "a.jpg")], "is a file, not a folder"),
        ([str(folder), "--images", "nowhere"], "nowhere: no such folder; give the folder as --images"),
        ([str(folder), "--split", "train"], "has no folder 'train'"),
    ):
        assert cli.main(["convert", *arguments, "--output", str(folder.parent / "t.json")]) == 2
        assert words in capsys.readouterr().err
    own_data.write_json(folder / "a.json", cat())
    for output, words in (
        (folder / "a.json", "would be overwritten"),
        (folder, "is a directory; name the JSON file"),
        (folder / "new" / "t.json", "there is no directory"),
    ):
        assert cli.main(["convert", str(folder), "--output", str(output)]) == 2
        assert words in capsys.readouterr().err
    assert json.loads((folder / "a.json").read_text()) == cat()


@pytest.mark.parametrize(
    "text, words",
    [
        (",", "names no class"),
        ("cat,cat", "the class 'cat' occurs twice"),
        ("1=cat,dog", "'dog' has no number"),
        ("cat,a\x1bb", "is not a class name"),
        ("none.txt", "none.txt: no such file"),
    ],
)
def test_wrong_names_of_classes_are_named(text, words, folder, capsys):
    a_map(folder, ONES)
    assert words in refused(capsys, folder, "--classes", text)


def test_texts_of_other_encodings_are_told(folder, capsys):
    a_map(folder, ONES)
    (folder.parent / "names.txt").write_bytes("Käfer\n".encode("latin-1"))
    line = refused(capsys, folder, "--classes", folder.parent / "names.txt")
    assert "names.txt: is not UTF-8 text; save it as UTF-8" in line


def test_nesting_by_the_thousand_is_no_annotation(folder, capsys):
    write_text(folder / "a.json", '{"shapes": ' + "[" * 100_000)
    assert "holds no annotations" in refused(capsys, folder)
    line = refused(capsys, folder, "--format", "labelme")
    assert "a.json: is not JSON" in line
