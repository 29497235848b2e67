"""`minimask convert`: what label maps, labelme and YOLO say comes back, through read_coco, as it was."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from minimask.command import cli
from minimask.data import read_coco
from tests import own_data
from tests.own_data import id_map, ious, labelme, samples, shape, write_image, write_json, yolo


def convert(capsys, source, *arguments, output=None):
    """The data set that the command makes of a folder, and what it printed."""
    output = output or source.parent / "train.json"
    status = cli.main(["convert", str(source), "--output", str(output), *map(str, arguments)])
    out, err = capsys.readouterr()
    assert status == 0, err
    images = arguments[arguments.index("--images") + 1] if "--images" in arguments else source
    return read_coco(output, images), out + err


@pytest.mark.parametrize("source", ["nuclei", "shapes"])
def test_label_maps_of_objects_come_back_exactly(source, tmp_path, capsys):
    truth, _ = samples(source)
    for number, sample in enumerate(truth):
        write_image(tmp_path / "set" / f"{number:02}.jpg", sample)
        Image.fromarray(id_map(sample)).save(tmp_path / "set" / f"{number:02}.png")
    dataset, said = convert(capsys, tmp_path / "set", "--classes", "thing")
    assert "label maps, as found" in said and dataset.class_names == ("thing",)
    assert len(dataset) == 20
    for index, sample in enumerate(truth):
        ids, found = id_map(sample), dataset[index]
        values = np.unique(ids[ids > 0])
        assert len(found.masks) == len(values)
        for mask, box, value in zip(found.masks, found.boxes, values):
            np.testing.assert_array_equal(mask, ids == value)
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
    areas = [a["area"] for a in json.loads((tmp_path / "train.json").read_text())["annotations"]]
    assert areas == dataset.table.pixels.tolist()


def test_ids_with_a_map_of_their_classes_come_back_with_classes(tmp_path, capsys):
    truth, names = samples("shapes")
    for number, sample in enumerate(truth):
        ids = id_map(sample)
        classes = np.concatenate([[0], sample.labels])[ids].astype(np.uint8)
        write_image(tmp_path / "photos" / f"{number}.png", sample)
        (tmp_path / "maps").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "maps" / f"{number}-ids.png")
        palette = Image.fromarray(classes).convert("P")  # as predict writes them: the index is the class
        palette.putpalette([7, 8, 9] * 256)
        palette.save(tmp_path / "maps" / f"{number}-classes.png")
    options = "--images", tmp_path / "photos", "--classes", ",".join(names)
    dataset, _ = convert(capsys, tmp_path / "maps", *options)
    by_name = {record.file_name: index for index, record in enumerate(dataset.records)}
    for number, sample in enumerate(truth):
        found = dataset[by_name[f"{number}.png"]]
        np.testing.assert_array_equal(found.labels, sample.labels)
        np.testing.assert_array_equal(found.masks, sample.masks)


def test_predict_label_maps_are_read_as_they_were_written(tmp_path, capsys):
    from minimask.results.visualize import label_maps, save_picture

    (sample, *_), _ = samples("shapes")
    prediction = {
        "labels": sample.labels,
        "scores": np.linspace(0.9, 0.5, len(sample.labels)),
        "masks": sample.masks,
    }
    ids, classes = label_maps(prediction, 128, 128, 3)
    write_image(tmp_path / "set" / "a.jpg", sample)
    save_picture(tmp_path / "set" / "a-ids.png", ids)
    save_picture(tmp_path / "set" / "a-classes.png", classes)
    write_image(tmp_path / "set" / "a-instances.png", sample)  # the drawing that predict puts beside them
    dataset, _ = convert(capsys, tmp_path / "set", "--classes", "circle,square,triangle")
    np.testing.assert_array_equal(dataset[0].labels, sample.labels)
    np.testing.assert_array_equal(dataset[0].masks, sample.masks)


@pytest.fixture
def two_regions(tmp_path):
    """An image, and a map whose class 1 has two regions that touch at no corner, and class 2 has one."""
    values = np.zeros((20, 30), np.uint8)
    values[2:6, 2:8] = 1
    values[6, 8] = 1  # touches at a corner
    values[12:15, 20:25] = 1
    values[10:18, 3:9] = 2
    Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(tmp_path / "a.png")
    return tmp_path, values


def test_a_class_map_gives_an_object_for_each_region_or_one_for_each_class(two_regions, capsys):
    root, values = two_regions
    (root / "set" / "images").mkdir(parents=True)
    (root / "set" / "masks").mkdir()
    (root / "a.png").rename(root / "set" / "images" / "a.png")
    Image.fromarray(values).save(root / "set" / "masks" / "a.png")
    source = root / "set"
    names = "--classes", "cat,dog"
    regions, _ = convert(capsys, source, "--values", "classes", *names)
    assert sorted(regions[0].labels.tolist()) == [1, 1, 2]
    whole, _ = convert(capsys, source, "--values", "classes-whole", *names)
    assert whole.records[0].file_name == "images/a.png" and whole[0].labels.tolist() == [1, 2]
    np.testing.assert_array_equal(whole[0].masks, [values == 1, values == 2])
    assert regions[0].masks[regions[0].labels == 1].sum() == (values == 1).sum()
    numbered, _ = convert(capsys, source, "--values", "classes", "--classes", "2=dog", "--ignore", 1)
    assert numbered.class_names == ("dog",) and len(numbered[0].masks) == 1


@pytest.mark.parametrize(
    "table",
    [
        "128,0,0 cat\n0;255;7;dog\n9 9 9 void\n",
        "name,r,g,b\ncat,128,0,0\ndog,0,255,7\nVoid,9,9,9\n",
        "# my colours\n#800000 cat\n#00ff07: dog\n#090909 ignore",
    ],
)
def test_colours_are_classes_by_a_table(table, two_regions, capsys):
    root, values = two_regions
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 255, 7]], np.uint8)[values]
    colours[0, :5] = 9
    (root / "set").mkdir()
    (root / "a.png").rename(root / "set" / "a.png")
    Image.fromarray(colours).save(root / "set" / "a_mask.png")
    (root / "table.txt").write_text(table)
    dataset, _ = convert(capsys, root / "set", "--colours", root / "table.txt")
    assert dataset.class_names == ("cat", "dog") and sorted(dataset[0].labels.tolist()) == [1, 1, 2]
    np.testing.assert_array_equal(dataset[0].masks.max(axis=0), values > 0)


def test_without_a_table_each_colour_is_an_object(two_regions, capsys):
    root, values = two_regions
    (root / "set").mkdir()
    (root / "a.png").rename(root / "set" / "a.png")
    Image.fromarray(np.array([[0, 0, 0], [128, 0, 0], [0, 255, 7]], np.uint8)[values]).save(
        root / "set" / "a_mask.png"
    )
    dataset, _ = convert(capsys, root / "set")
    np.testing.assert_array_equal(
        dataset[0].masks.sum(axis=(1, 2)), [(values == 2).sum(), (values == 1).sum()]
    )


def test_maps_with_one_value_or_one_class_painted_white(two_regions, capsys):
    root, values = two_regions
    (root / "set").mkdir()
    for name in "ab":
        Image.fromarray(np.full((20, 30, 3), 90, np.uint8)).save(root / "set" / f"{name}.jpg")
        Image.fromarray(np.uint8(255) * (values > 0)).save(root / "set" / f"{name}.png")
    (root / "a.png").unlink()
    dataset, said = convert(capsys, root / "set")
    assert [len(sample.masks) for sample in dataset] == [1, 1] and "--values classes" in said
    dataset, _ = convert(capsys, root / "set", "--values", "classes", "--classes", "cell")
    assert [len(sample.masks) for sample in dataset] == [3, 3] and dataset.class_names == ("cell",)


@pytest.mark.parametrize("source", [pytest.param("nuclei", marks=pytest.mark.slow), "shapes"])
def test_labelme_polygons_come_back(source, tmp_path, capsys):
    truth, names = samples(source)
    for number, sample in enumerate(truth):
        write_image(tmp_path / "set" / f"{number:02}.png", sample)
        write_json(tmp_path / "set" / f"{number:02}.json", labelme(sample, names, f"{number:02}.png"))
    dataset, said = convert(capsys, tmp_path / "set")
    assert "labelme JSON, as found" in said and dataset.class_names == tuple(sorted(names))
    assert sum(len(sample.masks) for sample in truth) == len(dataset.table.ids)
    worst = min(ious(found, sample).min() for found, sample in zip(dataset, truth))
    assert worst >= 0.95
    segmentation = json.loads((tmp_path / "train.json").read_text())["annotations"][0]["segmentation"]
    assert isinstance(segmentation, list), "polygons stay polygons"


@pytest.mark.parametrize("source", [pytest.param("nuclei", marks=pytest.mark.slow), "shapes"])
def test_yolo_polygons_come_back(source, tmp_path, capsys):
    truth, names = samples(source)
    for number, sample in enumerate(truth):
        write_image(tmp_path / "set" / "images" / "train" / f"{number:02}.png", sample)
        text = tmp_path / "set" / "labels" / "train" / f"{number:02}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(yolo(sample))
    listed = "".join(f"  {number}: '{name}'  # a class\n" for number, name in enumerate(names))
    (tmp_path / "set" / "data.yaml").write_text(f"path: .\nnames:\n{listed}nc: {len(names)}\n")
    dataset, said = convert(capsys, tmp_path / "set")
    assert "YOLO segmentation text, as found" in said and dataset.class_names == names
    assert "--split train" in said
    in_one_part = [[len(own_data.outlines(mask)) == 1 for mask in sample.masks] for sample in truth]
    worst = min(ious(found, sample)[parts].min() for found, sample, parts in zip(dataset, truth, in_one_part))
    assert worst >= 0.95


# ------------------------------------------------------------------------------------------ labelme's details


@pytest.fixture
def grey(tmp_path):
    """A folder with a grey image a.png of 60 x 40."""
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(np.full((40, 60), 100, np.uint8)).save(folder / "a.png")
    return folder


def of_shapes(*shapes, **fields):
    document = {"version": "5.4.1", "shapes": list(shapes), "imagePath": "a.png", "imageData": None}
    return document | {"imageHeight": 40, "imageWidth": 60} | fields


def test_rectangles_circles_and_masks_of_labelme(grey, capsys):
    patch = np.zeros((5, 6), bool)
    patch[1:, 2:] = True
    shapes = [
        shape("box", [[30.0, 25.0], [10.0, 5.0]], kind="rectangle"),  # from any corner
        shape("circle", [[40.0, 20.0], [40.0, 30.0]], kind="circle"),
        shape("mask", [[3.0, 4.0], [8.0, 8.0]], kind="mask", mask=own_data.base64_png(patch)),
        shape("turned", [[50, 5], [55, 10], [50, 15], [45, 10]], kind="rotation"),
        shape("dot", [[5.0, 5.0]], kind="point"),
    ]
    write_json(grey / "a.json", of_shapes(*shapes))
    dataset, said = convert(capsys, grey)
    assert dataset.class_names == ("box", "circle", "mask", "turned"), "a class of points alone is none"
    assert "1 points and lines have no area" in said and "shape 5 ('dot')" in said
    box, circle, mask, _ = dataset[0].masks
    assert box[5:25, 10:30].all() and box.sum() == 400
    y, x = np.mgrid[:40, :60] + 0.5
    inside = (x - 40) ** 2 + (y - 20) ** 2 <= 100
    assert (circle & inside).sum() / (circle | inside).sum() > 0.97
    np.testing.assert_array_equal(mask[4:9, 3:9], patch)
    assert mask.sum() == patch.sum()


def test_shapes_of_a_group_are_one_object(grey, capsys):
    square = [[2, 2], [8, 2], [8, 8], [2, 8]]
    other = [[20, 2], [28, 2], [28, 8], [20, 8]]
    patch = own_data.base64_png(np.ones((4, 4), bool))
    parts = [shape("cat", square, 1), shape("dog", other, 1), shape("cat", other, 1), shape("cat", square)]
    parts += [shape("cat", square, 2), shape("cat", [[30, 30], [33, 33]], 2, "mask", mask=patch)]
    write_json(grey / "a.json", of_shapes(*parts))
    dataset, _ = convert(capsys, grey)
    assert dataset[0].labels.tolist() == [1, 2, 1, 1]
    assert dataset[0].masks.sum(axis=(1, 2)).tolist() == [36 + 48, 48, 36, 36 + 16]


def test_the_first_versions_of_labelme_have_neither_types_nor_sizes(grey, capsys):
    old = {"label": "cat", "points": [[2, 2], [8, 2], [8, 8], [2, 8]], "line_color": None, "fill_color": None}
    write_json(
        grey / "a.json",
        {"shapes": [old], "imagePath": "a.png", "imageData": None, "lineColor": [0, 255, 0, 128]},
    )
    dataset, _ = convert(capsys, grey)
    assert dataset.class_names == ("cat",) and dataset[0].masks.sum() == 36


@pytest.mark.parametrize(
    "path", ["a.png", "..\\set\\a.png", "C:\\Users\\me\\photos\\a.png", "/home/me/a.png", "b.png", ""]
)
def test_the_image_of_a_labelme_file_is_found_wherever_it_was(path, grey, capsys):
    write_json(grey / "a.json", of_shapes(shape("cat", [[2, 2], [8, 2], [8, 8]]), imagePath=path))
    dataset, _ = convert(capsys, grey)
    assert dataset.records[0].file_name == "a.png"


def test_an_image_that_is_only_inside_its_json_is_written_beside_it(grey, capsys):
    (grey / "a.png").unlink()
    pixels = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    square = shape("cat", [[2, 2], [8, 2], [8, 8], [2, 8]])
    write_json(
        grey / "one.json", of_shapes(square, imagePath="gone.png", imageData=own_data.base64_png(pixels))
    )
    dataset, said = convert(capsys, grey)
    assert "1 images were only inside their JSON" in said
    np.testing.assert_array_equal(dataset.pixels(0), pixels)
    again, said = convert(capsys, grey)
    assert "inside" not in said and again.records == dataset.records


def test_sizes_are_those_after_exif_orientation(grey, capsys):
    image = Image.fromarray(np.full((40, 60), 100, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side: 60 x 40 as stored, 40 x 60 upright
    image.save(grey / "a.jpg", exif=exif)
    (grey / "a.png").unlink()
    square = shape("cat", [[2, 50], [8, 50], [8, 56], [2, 56]])
    write_json(grey / "a.json", of_shapes(square, imagePath="a.jpg", imageHeight=60, imageWidth=40))
    dataset, _ = convert(capsys, grey)
    assert (dataset.records[0].height, dataset.records[0].width) == (60, 40)
    write_json(grey / "a.json", of_shapes(shape("cat", [[2, 2], [8, 2], [8, 8]]), imagePath="a.jpg"))
    dataset, _ = convert(capsys, grey)
    assert (dataset.records[0].height, dataset.records[0].width) == (40, 60), "annotated as stored"


# --------------------------------------------------------------------------------------------- YOLO's details


def test_yolo_boxes_are_taken_for_rectangles_where_that_is_asked_for(grey, capsys):
    (grey / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (grey / "classes.txt").write_text("cat\ndog\n")
    dataset, said = convert(capsys, grey, "--boxes")
    assert dataset.class_names == ("cat", "dog") and dataset[0].boxes.tolist() == [[15, 10, 45, 30]]
    assert "1 objects have boxes only" in said


def test_the_command_to_go_on_with_can_be_pasted_whatever_the_names(grey, tmp_path, capsys):
    (grey / "a.txt").write_text("0 0.5 0.5 0.1 0.1 0.5 0.9\n")
    photos = grey.rename(tmp_path / "my photos")
    _, said = convert(capsys, photos)
    assert f"--images {shlex.quote(str(photos))} --output check" in said


def test_an_image_without_yolo_text_has_no_objects(grey, capsys):
    Image.fromarray(np.full((40, 60), 100, np.uint8)).save(grey / "b.png")
    Image.fromarray(np.full((40, 60), 100, np.uint8)).save(grey / "c.png")
    (grey / "a.txt").write_text("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (grey / "b.txt").write_text("\n")
    (grey / "README.txt").write_text("Photographs of my cat.")
    dataset, said = convert(capsys, grey)
    assert dataset.object_counts().tolist() == [1, 0, 0] and dataset.class_names == ("class 1",)
    assert "1 of 3 images have no text" in said and "the classes are called class 1\n" in said


def test_a_split_is_converted_by_itself(tmp_path, capsys):
    for split, name in (("train", "a"), ("val", "b")):
        for kind in ("images", "labels"):
            (tmp_path / "set" / kind / split).mkdir(parents=True)
        Image.fromarray(np.full((40, 60), 100, np.uint8)).save(
            tmp_path / "set" / "images" / split / f"{name}.png"
        )
        (tmp_path / "set" / "labels" / split / f"{name}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    dataset, _ = convert(capsys, tmp_path / "set", "--split", "val", "--classes", "cat")
    assert [record.file_name for record in dataset.records] == ["images/val/b.png"]


@pytest.mark.parametrize(
    "text, names",
    [
        ("names: [cat, 'dog, large', \"it's\"]\n", ("cat", "dog, large", "it's")),
        ("names:\n- cat\n- dog\nnc: 2\n", ("cat", "dog")),
        ("names:\n  - cat  # mine\n  - dog\n", ("cat", "dog")),
        ("nc: 2\nnames: {0: cat, 1: dog}\n", ("cat", "dog")),
        ("names: [\n  cat,\n  dog\n]\ntrain: x\n", ("cat", "dog")),
        ("names:\n  0: cat\n  1: 'dog'\n", ("cat", "dog")),
    ],
)
def test_names_are_read_from_yaml_in_each_of_its_forms(text, names, tmp_path):
    from minimask.data.convert.names import read_classes

    (tmp_path / "data.yaml").write_text(text)
    assert read_classes(str(tmp_path / "data.yaml")).names == names


# ----------------------------------------------------------------------------------------------------- both


def test_classes_and_their_ids_can_be_those_of_another_file(grey, capsys):
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    write_json(grey.parent / "old.json", {"images": [], "annotations": [], "categories": categories})
    write_json(grey / "a.json", of_shapes(shape("dog", [[2, 2], [8, 2], [8, 8]])))
    dataset, _ = convert(capsys, grey, "--classes", grey.parent / "old.json")
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (3, 7)
    assert dataset[0].labels.tolist() == [2]


def test_names_that_are_no_utf8_are_found_again(tmp_path, capsys):
    folder = tmp_path / "set"
    folder.mkdir()
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    try:
        Image.fromarray(np.full((40, 60), 100, np.uint8)).save(folder / f"{name}.png")
    except OSError:
        pytest.skip("this file system has no such names")
    (folder / f"{name}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    dataset, said = convert(capsys, folder, "--classes", "cat")
    assert dataset.pixels(0).shape == (40, 60) and said.isprintable() is False and "\udce9" not in said


def test_an_earlier_output_is_replaced_and_never_read_as_annotations(grey, capsys):
    write_json(grey / "a.json", of_shapes(shape("cat", [[2, 2], [8, 2], [8, 8]])))
    first, _ = convert(capsys, grey, output=grey / "train.json")
    second, said = convert(capsys, grey, output=grey / "train.json")
    assert len(first) == len(second) == 1 and "1 JSON files are not of labelme" in said


def test_the_runs_of_values_are_those_of_each_mask():
    from minimask.data import rle
    from minimask.data.convert.label_maps import runs_of_values

    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(0, 4, rng.integers(1, 9, 2)) * rng.integers(0, 2)
        values = values.astype(rng.choice([np.uint8, np.uint16, np.int32, np.int64]))
        for value, runs in runs_of_values(values):
            assert rle.encode_runs(runs, *values.shape) == rle.encode_mask(values == value)
