"""Evaluation: the same numbers as pycocotools used as usual, and sensible ones where that fails."""

import contextlib
import io
import sys
import threading
import types

import numpy as np
import pytest
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from minimask.results.evaluate import METRICS, evaluate, score

H, W = 160, 200


def rle(mask):
    encoded = rle_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def rectangle(x, y, w, h):
    mask = np.zeros((H, W), np.uint8)
    mask[int(y) : int(y + h), int(x) : int(x + w)] = 1
    return mask


def annotation(number, image, category, box, crowd=0):
    mask = rectangle(*box)
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(map(float, box)),
        "segmentation": rle(mask),
        "area": float(mask.sum()),
        "iscrowd": crowd,
    }


def result(image, category, box, value):
    return {
        "image_id": image,
        "category_id": category,
        "bbox": list(map(float, box)),
        "score": value,
        "segmentation": rle(rectangle(*box)),
    }


def a_document(rng, images=6, objects=9):
    annotations = []
    for image in range(images - 1):  # the last image has no objects
        for _ in range(objects):
            w, h = rng.integers(8, 140, 2)
            box = (rng.integers(0, W - w), rng.integers(0, H - h), w, h)
            crowd = int(rng.random() < 0.1)
            annotations.append(annotation(len(annotations) + 1, image, int(rng.choice([3, 70])), box, crowd))
    return {
        "images": [{"id": i, "height": H, "width": W, "file_name": f"{i}.png"} for i in range(images)],
        "categories": [{"id": 3, "name": "cup"}, {"id": 70, "name": "bowl"}],
        "annotations": annotations,
    }


def guesses(rng, document, false=30):
    found = []
    for truth in document["annotations"]:
        x, y, w, h = np.asarray(truth["bbox"]) + rng.integers(-4, 5, 4) * (rng.random() < 0.7)
        box = (max(x, 0), max(y, 0), max(w, 1), max(h, 1))
        found.append(result(truth["image_id"], truth["category_id"], box, float(rng.random())))
    for _ in range(false):
        box = (rng.integers(0, 100), rng.integers(0, 100), rng.integers(5, 60), rng.integers(5, 60))
        found.append(result(int(rng.integers(0, 6)), 3, box, float(rng.random())))
    return found


def by_the_usual_way(document, found, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        if kind == "segm":  # so that loadRes takes the masks' areas, as detectron2 and the papers' tools do
            found = [{key: value for key, value in one.items() if key != "bbox"} for one in found]
        comparison = COCOeval(truth, truth.loadRes([dict(one) for one in found]), kind)
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    return dict(zip(METRICS, comparison.stats[:6]))


@pytest.mark.parametrize("seed", range(3))
def test_with_100_detections_the_numbers_are_those_of_cocoeval(seed, capsys):
    rng = np.random.default_rng(seed)
    document = a_document(rng)
    found = guesses(rng, document)
    evaluation = score(document, found, 100)
    assert capsys.readouterr().out == ""
    assert evaluation.box == pytest.approx(by_the_usual_way(document, found, "bbox"), abs=1e-12)
    assert evaluation.mask == pytest.approx(by_the_usual_way(document, found, "segm"), abs=1e-12)
    assert 0.1 < evaluation.mask["AP"] < 0.9


def test_more_objects_than_100_in_an_image_count_when_so_many_detections_do():
    boxes = [(x, y, 8, 8) for x in range(0, 200, 10) for y in range(0, 160, 10)][:300]
    document = {
        "images": [{"id": 1, "height": H, "width": W}],
        "categories": [{"id": 1, "name": "dot"}],
        "annotations": [annotation(i, 1, 1, box) for i, box in enumerate(boxes, 1)],
    }
    found = [result(1, 1, box, 0.9 - i / 1000) for i, box in enumerate(boxes)]  # more than a byte can count
    assert score(document, found, 300).mask["AP"] == pytest.approx(1.0)
    # 100 of 300 found: recall ends at 1/3, and 34 of the 101 points of the curve lie below it.
    assert score(document, found, 100).mask["AP"] == pytest.approx(34 / 101)
    assert score(document, found, 5).mask["AP"] == pytest.approx(2 / 101)


def test_no_detections_give_zero_and_no_objects_of_a_size_give_minus_one():
    document = a_document(np.random.default_rng(0))
    evaluation = score(document, [])
    assert evaluation.box["AP"] == evaluation.mask["AP50"] == 0.0
    small_only = document | {"annotations": [annotation(1, 0, 3, (5, 5, 9, 9))]}
    evaluation = score(small_only, [result(0, 3, (5, 5, 9, 9), 0.5)])
    assert evaluation.mask == pytest.approx(dict(zip(METRICS, [1.0, 1.0, 1.0, 1.0, -1.0, -1.0])))
    assert "COCO writes -1" in evaluation.table() and "-1" not in evaluation.table().splitlines()[2]
    nothing = score(document | {"annotations": []}, [])
    assert set(nothing.mask.values()) == {-1.0} and nothing.objects == 0


def test_scoring_changes_neither_the_document_nor_the_results():
    document = a_document(np.random.default_rng(1), images=2)
    found = guesses(np.random.default_rng(2), document, false=1)
    keys = [set(entry) for entry in document["annotations"] + found]
    score(document, found)
    assert [set(entry) for entry in document["annotations"] + found] == keys


def test_threads_that_score_at_once_leave_standard_output_alone(capsys):
    document = a_document(np.random.default_rng(5), images=2, objects=2)
    found, seen, before = guesses(np.random.default_rng(6), document, false=1), set(), sys.stdout
    evaluations = []
    threads = [threading.Thread(target=lambda: evaluations.append(score(document, found))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(sys.stdout)
    assert seen <= {before} and sys.stdout is before and len(evaluations) == 4
    assert all(evaluation == evaluations[0] for evaluation in evaluations)
    assert capsys.readouterr().out == ""


def test_pycocotools_of_others_still_tells_what_it_does(capsys):
    score(a_document(np.random.default_rng(7), images=1), [])
    COCO().createIndex()
    assert "creating index" in capsys.readouterr().out


class FullMasks:
    def __init__(self, masks):
        self.masks = masks

    def rle(self, threshold):
        return [rle(mask > threshold) for mask in self.masks]


class Oracle:
    """Answers with the annotations, worst score first, so that whoever keeps the best must sort."""

    def __init__(self, document):
        self.document = document

    def predict(self, images):
        (image,) = images
        entries = [a for a in self.document["annotations"] if a["image_id"] == image and not a["iscrowd"]]
        boxes = np.array([e["bbox"] for e in entries], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [rectangle(*e["bbox"]).astype(float) for e in entries]
        labels = np.array([{3: 1, 70: 2}[e["category_id"]] for e in entries], int)
        return [
            {
                "boxes": boxes,
                "labels": labels,
                "scores": np.linspace(0.1, 0.9, len(entries), dtype=np.float32),
                "masks": FullMasks(masks),
            }
        ]


class Documented:
    def __init__(self, document):
        self.document, self.category_ids = document, [3, 70]
        self.image_ids = [image["id"] for image in document["images"]]

    def __len__(self):
        return len(self.document["images"])

    def image(self, index):
        return self.image_ids[index]  # all that the oracle looks at

    def coco_document(self):
        return self.document


def test_a_model_that_knows_everything_scores_one_through_its_sparse_category_ids():
    document = a_document(np.random.default_rng(3), objects=4)
    seen = []

    def progress(indices):
        for index in indices:
            seen.append(index)
            yield index

    evaluation = evaluate(Oracle(document), Documented(document), progress=progress)
    assert evaluation.box["AP"] == pytest.approx(1.0) and evaluation.mask["AP"] == pytest.approx(1.0)
    assert seen == list(range(6))
    assert {found["category_id"] for found in evaluation.detections} == {3, 70}


def test_only_the_best_detections_of_an_image_are_kept():
    document = a_document(np.random.default_rng(4), images=2, objects=9)
    evaluation = evaluate(Oracle(document), Documented(document), max_detections=2)
    objects = sum(a["image_id"] == 0 and not a["iscrowd"] for a in document["annotations"])
    assert objects > 2
    scores = [found["score"] for found in evaluation.detections]
    assert scores == [float(value) for value in np.linspace(0.1, 0.9, objects, dtype=np.float32)[:-3:-1]]


def test_by_default_as_many_detections_count_as_the_model_may_give():
    document = a_document(np.random.default_rng(4), images=2, objects=9)
    model = Oracle(document)
    assert evaluate(model, Documented(document)).max_detections == 100
    model.box_head = types.SimpleNamespace(options=types.SimpleNamespace(detections_per_img=3))
    evaluation = evaluate(model, Documented(document))
    assert evaluation.max_detections == len(evaluation.detections) == 3
