"""COCO files as datasets: masks of every kind, crowds, categories, windows, truth for pycocotools."""

import contextlib
import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minimask.data import Shapes, nuclei_sample, read_coco, rle
from minimask.data.sample import crop, tight_boxes
from minimask.errors import InputError
from tests.test_data_checks import HEIGHT, WIDTH, annotation, folder, load, tiny_document

__all__ = ["folder"]  # the fixture

needs_data = pytest.mark.skipif("MINIMASK_DATA" not in os.environ, reason="MINIMASK_DATA is not set")
decodes_by_pycocotools = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SETS = ["nuclei/train", "nuclei/val", "coco200/train", "coco200/val"]


def read_set(name):
    root = Path(os.environ["MINIMASK_DATA"])
    return read_coco(root / f"{name}.json", root / name.split("/")[0] / "images")


def assert_same(a, b):
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def evaluate(document, detections):
    """(bbox AP, segm AP) of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    result = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        found = truth.loadRes(detections)
        for kind in ("bbox", "segm"):
            evaluation = COCOeval(truth, found, kind)
            evaluation.params.maxDets = [1, 10, 400]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][:, :, :, 0, -1]  # all areas, 400 detections
            result.append(precision[precision > -1].mean())
    return tuple(result)


def ground_truth_as_detections(document):
    keys = ("image_id", "category_id", "bbox", "segmentation")
    return [{**{k: a[k] for k in keys}, "score": 0.9} for a in document["annotations"] if not a["iscrowd"]]


# ---------------------------------------------------------------- masks


@decodes_by_pycocotools
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32), st.floats(0, 1))
def test_runs_are_read_as_pycocotools_reads_them(height, width, seed, share):
    from pycocotools import mask as coco_mask

    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    counts = rle.encode_mask(mask)
    runs = rle.read_runs(counts)
    assert runs.sum() == height * width
    np.testing.assert_array_equal(rle.decode_runs(runs, height, (0, 0, width, height)), mask)
    np.testing.assert_array_equal(coco_mask.decode({"size": [height, width], "counts": counts}), mask)
    assert rle.encode_runs(runs.tolist(), height, width) == counts


@given(st.integers(0, 2**32), st.data())
def test_a_window_of_a_mask_is_decoded_without_the_rest(seed, data):
    height, width = 9, 14
    rng = np.random.default_rng(seed)
    mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    part = rle.decode_runs(rle.read_runs(rle.encode_mask(mask)), height, (x1, y1, x2, y2))
    np.testing.assert_array_equal(part, mask[y1:y2, x1:x2])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_pixels_and_extent_of_run_lengths_are_those_of_the_masks(height, width, seed, share):
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    masks = np.stack([mask, mask[::-1]])
    encoded = [{"size": [height, width], "counts": rle.encode_mask(m)} for m in masks]
    pixels, extents = rle.measure(encoded)
    np.testing.assert_array_equal(pixels, masks.sum(axis=(1, 2)))
    np.testing.assert_array_equal(extents, tight_boxes(masks))
    assert pixels.dtype == extents.dtype == np.int64
    assert [len(a) for a in rle.measure([])] == [0, 0]


def test_a_run_as_long_as_the_largest_image_survives():
    runs = [0, 5, 2**31 - 7, 1]  # 2^31 - 1 pixels
    np.testing.assert_array_equal(rle.read_runs(rle.encode_runs(runs, 2**31 - 1, 1)), runs)


@settings(max_examples=300)
@given(st.binary(max_size=40))
def test_any_bytes_give_runs_or_a_value_error(counts):
    try:
        runs = rle.read_runs(counts)
    except ValueError:
        return
    assert runs.min() >= 0
    assert runs.sum() < 2**62


def test_all_kinds_of_masks_mean_the_same_square(folder):
    dataset = load(folder, tiny_document())
    sample = dataset[dataset.image_ids.index(4)]
    square = np.zeros((HEIGHT, WIDTH), np.uint8)
    square[8:14, 10:16] = 1
    np.testing.assert_array_equal(sample.masks, [square, square])
    np.testing.assert_array_equal(sample.crowd_masks, [square])
    np.testing.assert_array_equal(sample.boxes, [[10, 8, 16, 14]] * 2)
    np.testing.assert_array_equal(sample.crowd_boxes, [[10, 8, 16, 14]])


def test_the_polygons_of_one_object_are_one_mask(folder):
    document = tiny_document()
    parts = [[2, 2, 6, 2, 6, 6, 2, 6], [20, 10, 24, 10, 24, 14, 20, 14]]
    document["annotations"] = [annotation(1, 4, 7, bbox=[2, 2, 22, 12], segmentation=parts)]
    dataset = load(folder, document)
    mask = dataset[dataset.image_ids.index(4)].masks[0]
    assert mask.sum() == 32
    np.testing.assert_array_equal(tight_boxes(mask[None])[0], [2, 2, 24, 14])


# ---------------------------------------------------------------- the dataset


def test_images_and_categories_are_sorted_by_id_and_categories_numbered_from_1(folder):
    dataset = load(folder, tiny_document())
    assert dataset.image_ids == (2, 4)
    assert dataset.category_ids == (7, 90)
    assert dataset.class_names == ("dog", "cat")
    assert dataset[1].labels.tolist() == [2, 1]
    assert dataset.name == "train.json"
    assert dataset.describe(1) == "train.json: image 4 (a.png)"


def test_an_image_without_objects_is_an_ordinary_sample(folder):
    sample = load(folder, tiny_document())[0]
    assert sample.image.shape == (3, HEIGHT, WIDTH)
    assert sample.boxes.shape == sample.crowd_boxes.shape == (0, 4)
    assert sample.masks.shape == sample.crowd_masks.shape == (0, HEIGHT, WIDTH)
    assert sample.labels.shape == (0,)
    assert sample.labels.dtype == np.int64
    assert sample.image_id == 2


def test_a_document_without_annotations_is_accepted(folder):
    document = tiny_document()
    document["annotations"] = []
    dataset = load(folder, document)
    assert [len(dataset[i].boxes) for i in range(2)] == [0, 0]
    assert dataset.coco_document()["annotations"] == []


def test_indices_behave_as_a_sequences(folder):
    dataset = load(folder, tiny_document())
    assert dataset[-1].image_id == 4
    assert [sample.image_id for sample in dataset] == [2, 4]
    for wrong in (2, -3):
        with pytest.raises(IndexError):
            dataset[wrong]


def test_boxes_are_those_of_the_file_clipped_to_the_image(folder):
    document = tiny_document()
    document["annotations"] = [
        annotation(1, 4, 7, bbox=[-1.5, 7.25, 40, 8.5], segmentation=[[0, 8, 32, 8, 32, 15]])
    ]
    dataset = load(folder, document)
    np.testing.assert_array_equal(dataset[1].boxes, [[0, 7.25, 32, 15.75]])
    assert dataset.coco_document()["annotations"][0]["bbox"] == [-1.5, 7.25, 40, 8.5]


def test_a_missing_area_is_the_masks_and_a_missing_iscrowd_is_0(folder):
    document = tiny_document()
    del document["annotations"][0]["area"], document["annotations"][0]["iscrowd"]
    document["annotations"][2]["area"] = 35.5
    entries = load(folder, document).coco_document()["annotations"]
    assert [(a["area"], a["iscrowd"]) for a in entries] == [(36.0, 0), (36.0, 1), (35.5, 0)]


@pytest.mark.parametrize("ids", [(0, 1, 2), (None, None, None), (-5, 7, 9), (3, None, 4)])
def test_annotation_ids_below_1_or_missing_are_numbered_anew(folder, ids):
    document = tiny_document()
    for entry, number in zip(document["annotations"], ids):
        entry["id"] = number
        if number is None:
            del entry["id"]
    dataset = load(folder, document)
    assert [a["id"] for a in dataset.coco_document()["annotations"]] == [1, 2, 3]
    assert "numbered anew" in dataset.notes[0]


def test_a_size_that_only_the_stored_picture_has_is_used_with_a_note(folder):
    document = tiny_document()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    dataset = load(folder, document)
    assert (
        "1 of 2 images are annotated as stored, without their EXIF rotation, and read so: image 4"
        in dataset.notes[0]
    )
    np.testing.assert_array_equal(dataset.image(1)[0], pixels / np.float32(255))
    document["images"][0].update(height=WIDTH, width=HEIGHT)
    document["annotations"] = []
    dataset = load(folder, document)
    assert dataset.notes == []
    np.testing.assert_array_equal(dataset.image(1)[0], np.rot90(pixels, -1) / np.float32(255))


def test_an_image_that_changed_after_reading_is_refused(folder):
    dataset = load(folder, tiny_document())
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "a.png")
    with pytest.raises(InputError, match=r"train\.json: image 4: .*a\.png is 5 x 5, annotated as 32 x 24"):
        dataset[1]


def test_images_in_subfolders_are_found(folder):
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    document = tiny_document()
    document["images"][0]["file_name"] = "sub/a.png"
    assert load(folder, document)[1].image.shape == (3, HEIGHT, WIDTH)


# ---------------------------------------------------------------- pycocotools


def test_ground_truth_given_as_detections_has_ap_1(folder):
    document = tiny_document()
    for entry in document["annotations"]:
        entry["id"] -= 17  # 0, 1, 2: as given, pycocotools would make less than 1 of it
    ground_truth = load(folder, document).coco_document()
    assert evaluate(ground_truth, ground_truth_as_detections(ground_truth)) == pytest.approx(
        (1.0, 1.0), abs=1e-12
    )


def test_each_document_is_a_new_one(folder):
    dataset = load(folder, tiny_document())
    first = dataset.coco_document()
    text = json.dumps(first)  # nothing but JSON's own types
    evaluate(first, ground_truth_as_detections(first))
    assert json.dumps(dataset.coco_document()) == text


def test_a_document_can_be_written_and_read_again(folder):
    dataset = load(folder, tiny_document())
    again = load(folder, dataset.coco_document())
    assert json.dumps(again.coco_document()) == json.dumps(dataset.coco_document())
    for index in range(2):
        assert_same(again[index], dataset[index])


def test_shapes_given_as_detections_have_ap_1():
    document = Shapes(6, seed=0, size=64).coco_document()
    assert evaluate(document, ground_truth_as_detections(document)) == pytest.approx((1.0, 1.0), abs=1e-12)


# ---------------------------------------------------------------- the packaged nuclei


def test_the_packaged_nuclei_are_as_their_readme_says():
    train, val = nuclei_sample("train"), nuclei_sample("val")
    assert (len(train), len(val)) == (32, 10)
    assert not set(train.image_ids) & set(val.image_ids)
    for dataset, nuclei in ((train, 1115), (val, 305)):
        assert dataset.class_names == ("nucleus",)
        assert dataset.notes == []
        assert len(dataset.coco_document()["annotations"]) == nuclei
        for sample in dataset:
            assert max(sample.image.shape) <= 360
            np.testing.assert_array_equal(sample.boxes, tight_boxes(sample.masks))
    files = Path(train.path).parent
    assert (
        (files / "LICENSE").read_text("utf-8").startswith("Creative Commons Legal Code\n\nCC0 1.0 Universal")
    )
    assert "BBBC038" in (files / "README.md").read_text("utf-8")
    assert sum(path.stat().st_size for path in files.rglob("*") if path.is_file()) < 4_000_000


def test_every_packaged_image_is_used():
    used = {
        record["file_name"]
        for split in ("train", "val")
        for record in nuclei_sample(split).coco_document()["images"]
    }
    assert used == {path.name for path in (Path(nuclei_sample("val").path).parent / "images").iterdir()}


def test_packaged_nuclei_given_as_detections_have_ap_1():
    document = nuclei_sample("val").coco_document()
    assert evaluate(document, ground_truth_as_detections(document)) == pytest.approx((1.0, 1.0), abs=1e-12)


def test_another_split_is_refused():
    with pytest.raises(InputError, match="split must be 'train' or 'val', is 'test'"):
        nuclei_sample("test")


def test_a_window_is_what_cropping_the_whole_sample_gives():
    dataset = nuclei_sample("val")
    rng = np.random.default_rng(0)
    for index in range(len(dataset)):
        whole = dataset[index]
        height, width = whole.image.shape[1:]
        np.testing.assert_array_equal(dataset.image(index), whole.image)
        assert dataset.outline(index)[:2] == (height, width)
        np.testing.assert_array_equal(dataset.outline(index)[2], whole.boxes)
        for _ in range(5):
            x1, y1 = int(rng.integers(width)), int(rng.integers(height))
            window = (x1, y1, int(rng.integers(x1, width)) + 1, int(rng.integers(y1, height)) + 1)
            assert_same(dataset.load(index, window), crop(whole, window))


# ---------------------------------------------------------------- real data


@needs_data
@pytest.mark.parametrize("name", [pytest.param(SETS[0], marks=pytest.mark.slow), *SETS[1:]])
def test_a_whole_real_set_passes_the_checks_and_is_decoded(name):
    dataset = read_set(name)
    assert dataset.notes == []
    counts = {"nuclei/train": 21804, "nuclei/val": 2874, "coco200/train": 746, "coco200/val": 434}
    assert len(dataset.coco_document()["annotations"]) == counts[name]
    for index in range(0, len(dataset), len(dataset) // 5):
        sample = dataset[index]
        tight = tight_boxes(np.concatenate([sample.masks, sample.crowd_masks]))
        np.testing.assert_array_equal(np.concatenate([sample.boxes, sample.crowd_boxes]), tight)


@needs_data
@decodes_by_pycocotools
def test_masks_of_real_photographs_equal_pycocotools():
    from pycocotools import mask as coco_mask

    dataset = read_set("coco200/train")
    document = dataset.coco_document()
    assert len(dataset.class_names) == 80
    assert max(dataset.category_ids) == 90
    crowds = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        entries = [a for a in document["annotations"] if a["image_id"] == sample.image_id]
        for masks, crowd in ((sample.masks, 0), (sample.crowd_masks, 1)):
            expected = [coco_mask.decode(a["segmentation"]) for a in entries if a["iscrowd"] == crowd]
            np.testing.assert_array_equal(masks, np.array(expected).reshape(masks.shape))
        assert sample.labels.tolist() == [
            dataset.category_ids.index(a["category_id"]) + 1 for a in entries if not a["iscrowd"]
        ]
        crowds += len(sample.crowd_boxes)
    assert crowds == 6


@needs_data
def test_real_photographs_ground_truth_given_as_detections_has_ap_1():
    document = read_set("coco200/val").coco_document()
    assert evaluate(document, ground_truth_as_detections(document)) == pytest.approx((1.0, 1.0), abs=1e-12)


@needs_data
def test_a_crop_of_a_large_image_costs_the_memory_of_the_crop():
    dataset = read_set("nuclei/train")
    large = max(range(len(dataset)), key=lambda i: np.prod(dataset.outline(i)[:2]))
    height, width, boxes = dataset.outline(large)
    assert height * width > 1_000_000
    dataset.load(large, (0, 0, 256, 256))  # decodes the image into the cache
    tracemalloc.start()
    try:
        sample = dataset.load(large, (256, 256, 512, 512))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * (sample.image.nbytes + (len(sample.masks) + 5) * 256 * 256) + 2_000_000
    assert peak < height * width * len(boxes) / 10
