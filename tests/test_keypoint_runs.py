"""Keypoints in use: training, checkpoints, the command, COCO's evaluation, pictures, the GPU path."""

import contextlib
import copy
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from minimask import backend
from minimask.command import cli
from minimask.config import Config, read_config, with_settings
from minimask.data import Figures, Shapes, Skeleton, read_coco
from minimask.data.figures import SKELETON
from minimask.errors import InputError
from minimask.lessons import cuda_on_cpu
from minimask.models.detector import load_detector
from minimask.randomness import Draws
from minimask.results import oks
from minimask.results.evaluate import KEYPOINT_DETECTIONS, coco_results, evaluate, score
from minimask.results.large import predict_pixels
from minimask.results.visualize import draw_instances, likely_keypoints
from minimask.training.log import read_losses
from minimask.training.loop import train
from minimask.weights.checkpoint import load_checkpoint, save_checkpoint
from tests.fake_cupy import installed, syncs
from tests.test_gpu_path import unmarked
from tests.test_keypoints import tiny, with_keypoints

FEW = ["train.steps=3", "data.crop=48", "train.batch_size=1", "model.detections=5", "data.rotate90=true"]
NETWORK = "model.name=keypointrcnn_small"


def write_figures(directory, count: int = 4, size: int = 64):
    """train.json and images/ of generated figures; returns the document."""
    figures = Figures(count, seed=5, size=size)
    document = figures.coco_document()
    (directory / "images").mkdir(parents=True)
    for index, record in enumerate(document["images"]):
        pixels = (figures[index].image.transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / "images" / record["file_name"])
    (directory / "train.json").write_text(json.dumps(document))
    return document


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def refused(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("minimask:") == 1
    return err


def settings(*values):
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a data set and, in run/, three steps of training on it."""
    directory = tmp_path_factory.mktemp("keypoints")
    write_figures(directory)
    arguments = ["train", "--data", directory / "train.json", "--images", directory / "images"]
    arguments += ["--val", directory / "train.json", *settings(NETWORK, *FEW), "--output", directory / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return directory


# ---------------------------------------------------------------------------------- training and checkpoints


def test_training_logs_the_keypoint_loss_and_evaluates_keypoints(trained):
    losses = read_losses(trained / "run/losses.csv")
    assert np.isfinite(losses["loss_keypoint"]).all() and "loss_mask" not in losses
    metrics = json.loads((trained / "run/metrics.json").read_text())
    assert metrics["keypoint"].keys() == {"AP", "AP50", "AP75", "medium", "large"} and "mask" not in metrics
    assert "sigma 0.05" in metrics["sigmas"]


def test_a_checkpoint_keeps_names_and_skeleton_and_a_detector_has_them(trained):
    checkpoint = load_checkpoint(trained / "run/checkpoint.npz")
    assert checkpoint.keypoint_names == list(SKELETON.names)
    assert checkpoint.skeleton == [list(edge) for edge in SKELETON.edges]
    assert load_detector(trained / "run/checkpoint.npz").skeleton == SKELETON


@pytest.mark.slow
def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(trained, tmp_path, capsys):
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    options = [NETWORK, *FEW, "train.schedule=constant"]
    run(capsys, "train", *data, *settings(*options), "--output", tmp_path / "whole")
    run(capsys, "train", *data, *settings(*options, "train.steps=1"), "--output", tmp_path / "broken")
    run(capsys, "train", "--resume", *settings("train.steps=3"), "--output", tmp_path / "broken")
    ours, theirs = (load_checkpoint(tmp_path / name / "checkpoint.npz") for name in ("broken", "whole"))
    for name, array in theirs.parameters.items():
        np.testing.assert_array_equal(ours.parameters[name], array)


@pytest.mark.slow
def test_a_run_may_have_masks_and_keypoints(tmp_path, capsys):
    write_figures(tmp_path)
    data = ["--data", tmp_path / "train.json", "--images", tmp_path / "images"]
    options = settings(NETWORK, *FEW, "model.with_masks=true")
    run(capsys, "train", *data, "--val", tmp_path / "train.json", *options, "--output", tmp_path / "run")
    losses = read_losses(tmp_path / "run/losses.csv")
    assert np.isfinite([losses["loss_keypoint"], losses["loss_mask"]]).all()
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {"box", "mask", "keypoint"} <= metrics.keys()
    run(capsys, "export", "--weights", tmp_path / "run/checkpoint.npz", tmp_path / "model.safetensors")
    weights = ["--weights", tmp_path / "model.safetensors"]
    run(capsys, "train", *data, *weights, *settings(*FEW), "--output", tmp_path / "tuned")
    tuned = load_checkpoint(tmp_path / "tuned/checkpoint.npz").config["model"]
    assert (tuned["name"], tuned["with_masks"]) == ("keypointrcnn_small", True)
    err = refused(
        capsys, "train", "--data", "shapes", *settings("model.with_masks=true"), "--output", tmp_path / "r"
    )
    assert "model.with_masks: maskrcnn_small has no such choice" in err


def test_a_checkpoint_without_keypoints_says_nothing_of_them(tmp_path):
    config = with_settings(Config(), ["train.steps=1", "data.crop=48", "train.batch_size=1"])
    # figures have keypoints, but maskrcnn_small does not look for any
    train(config, Figures(2, seed=1, size=64), tmp_path, note=lambda line: None)
    with np.load(tmp_path / "checkpoint.npz") as file:
        assert "keypoint" not in str(file["metadata"])
    assert load_detector(tmp_path / "checkpoint.npz").skeleton is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"keypoint_names": ["a", "a", "b", "c"]}, "keypoint_names"),
        ({"skeleton": [[0, 4]]}, "skeleton joins keypoints beyond the 4"),
        ({"skeleton": [[0, -1]]}, "skeleton must be"),
        ({"keypoint_names": ["a", "b"], "skeleton": []}, "of another model"),
    ],
)
def test_edited_keypoints_in_a_checkpoint_are_refused_in_one_line(trained, tmp_path, changes, words):
    checkpoint = load_checkpoint(trained / "run/checkpoint.npz")
    for name, value in changes.items():
        object.__setattr__(checkpoint, name, value)
    save_checkpoint(tmp_path / "edited.npz", checkpoint)
    with pytest.raises(InputError, match=words) as caught:
        load_detector(tmp_path / "edited.npz")
    assert "\n" not in str(caught.value)


def test_data_without_keypoints_and_a_network_with_them_do_not_go_together(tmp_path, capsys):
    err = refused(capsys, "train", "--data", "shapes", *settings(NETWORK), "--output", tmp_path)
    assert "keypointrcnn_small needs keypoints" in err


def test_other_keypoints_than_those_trained_on_are_refused(trained, tmp_path, capsys):
    document = json.loads((trained / "train.json").read_text())
    for category in document["categories"]:
        category["keypoints"][0] = "nose"
    (tmp_path / "other.json").write_text(json.dumps(document))
    data = ["--data", tmp_path / "other.json", "--images", trained / "images"]
    weights = ["--weights", trained / "run/checkpoint.npz"]
    assert "they must be the same" in refused(capsys, "evaluate", *weights, *data, "--output", tmp_path / "e")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.npz").write_bytes((trained / "run/checkpoint.npz").read_bytes())
    arguments = ["--resume", *data, "--val", tmp_path / "other.json"]
    arguments += [*settings("train.steps=4"), "--output", tmp_path / "run"]
    assert "trained on the keypoints tip" in refused(capsys, "train", *arguments)


def test_figures_are_built_in_and_have_a_configuration():
    config = read_config("figures")
    assert (config.model.name, config.data.train) == ("keypointrcnn_small", "figures")


# ------------------------------------------------------------------------------------------------ the command


def test_predict_writes_keypoints_and_skeleton_that_read_as_coco(trained, tmp_path, capsys):
    weights = ["--weights", trained / "run/checkpoint.npz", "--score-threshold", "0"]
    run(capsys, "predict", trained / "images/1.png", *weights, "--json", "--output", tmp_path)
    document = json.loads((tmp_path / "predictions.json").read_text())
    assert document["categories"][0]["keypoints"] == list(SKELETON.names)
    assert document["categories"][0]["skeleton"] == [[1, 2], [2, 3], [3, 4], [4, 1]]
    assert document["annotations"] and (tmp_path / "1-instances.png").exists()
    for found in document["annotations"]:
        keypoints = np.array(found["keypoints"]).reshape(4, 3)
        x, _, w, _ = found["bbox"]
        assert (keypoints[:, 0] >= x - 1.5).all() and (keypoints[:, 0] <= x + w + 0.5).all()
        assert found["num_keypoints"] == len(found["keypoints_probabilities"]) == 4
        assert (keypoints[:, 2] == 2).all() and "segmentation" not in found


def test_label_maps_of_a_model_without_masks_are_refused(trained, tmp_path, capsys):
    weights = ["--weights", trained / "run/checkpoint.npz", "--label-maps", "--output", tmp_path]
    assert "finds no masks" in refused(capsys, "predict", trained / "images/1.png", *weights)
    assert not list(tmp_path.glob("*.png"))


def test_evaluate_tells_of_keypoints_and_their_sigmas(trained, tmp_path, capsys):
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    weights = ["--weights", trained / "run/checkpoint.npz"]
    out = run(capsys, "evaluate", *weights, *data, "--output", tmp_path)
    assert "keypoint" in out and "sigma 0.05 for all" in out
    assert not any(line.startswith("mask ") for line in out.splitlines())


def moved_keypoints(document, rng):
    """The ground truth as results, each keypoint moved by some pixels, ranked at random."""
    results = []
    for entry in document["annotations"]:
        keypoints = np.array(entry["keypoints"], np.float64).reshape(-1, 3)
        keypoints[:, :2] += rng.normal(0, 1.5, (len(keypoints), 2))
        result = {key: entry[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
        results.append(result | {"keypoints": keypoints.ravel().tolist(), "score": float(rng.random())})
    return results


def by_pycocotools(truth, results, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO(str(truth))
        comparison = COCOeval(data, data.loadRes(str(results)), kind)
        if kind == "keypoints":
            comparison.params.kpt_oks_sigmas = np.full(len(SKELETON.names), oks.UNIFORM)
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    names = ["AP", "AP50", "AP75", *(["small"] if kind != "keypoints" else []), "medium", "large"]
    return dict(zip(names, comparison.stats))


@pytest.mark.parametrize(
    "left_out", [(), ("bbox",), ("segmentation",), ("bbox", "segmentation"), ("keypoints",)]
)
def test_keypoints_of_a_results_file_have_pycocotools_numbers(left_out, trained, tmp_path, capsys):
    document = write_figures(tmp_path / "data", count=6, size=160)  # some objects are medium
    results = moved_keypoints(document, np.random.default_rng(2))
    results = [{key: value for key, value in one.items() if key not in left_out} for one in results]
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = tmp_path / "data/train.json"
    arguments = ["--results", tmp_path / "results.json", "--data", data, "--per-class"]
    out = run(capsys, "evaluate", *arguments, "--output", tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    for key, name, kind in (
        ("bbox", "box", "bbox"),
        ("segmentation", "mask", "segm"),
        ("keypoints", "keypoint", "keypoints"),
    ):
        if key in left_out:
            assert name not in metrics and all(name not in row for row in metrics["classes"])
            continue
        assert metrics[name] == pytest.approx(
            by_pycocotools(data, tmp_path / "results.json", kind), abs=1e-12
        )
        classes = [row[name][0] for row in metrics["classes"] if row["objects"]]
        assert np.mean(classes) == pytest.approx(metrics[name]["AP"], abs=1e-12)
    assert ("keypoint AP" in out) == ("keypoints" not in left_out)
    if "keypoints" not in left_out:
        assert 0.05 < metrics["keypoint"]["AP"] < 0.95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keypoints": [1, 2, 2]}, "must be 12 finite numbers.*has 3"),
        ({"keypoints": [float("nan")] * 12}, "must be 12 finite numbers"),
        ({"keypoints": "none"}, "is 'none'"),
        ({"keypoints": [1e7] * 12}, "more than 1e.06 pixels off"),
    ],
)
def test_wrong_keypoints_of_a_results_file_get_one_line(change, words, trained, tmp_path, capsys):
    results = moved_keypoints(json.loads((trained / "train.json").read_text()), np.random.default_rng(2))
    results[1] |= change
    (tmp_path / "results.json").write_text(json.dumps(results))
    data = ["--results", tmp_path / "results.json", "--data", trained / "train.json"]
    assert re.search(words, refused(capsys, "evaluate", *data))


def test_keypoints_that_the_data_lack_are_not_compared_and_told(trained, tmp_path, capsys):
    document = json.loads((trained / "train.json").read_text())
    results = moved_keypoints(document, np.random.default_rng(2))
    for entry in document["categories"] + document["annotations"]:
        for key in ("keypoints", "num_keypoints", "skeleton"):
            entry.pop(key, None)
    (tmp_path / "plain.json").write_text(json.dumps(document))
    (tmp_path / "results.json").write_text(json.dumps(results))
    arguments = ["evaluate", "--results", str(tmp_path / "results.json"), "--data"]
    assert cli.main([*arguments, str(tmp_path / "plain.json")]) == 0
    out, err = capsys.readouterr()
    assert "keypoints are not compared: the data have none" in err and "\nkeypoint" not in out
    alone = [{key: one[key] for key in ("image_id", "category_id", "keypoints", "score")} for one in results]
    (tmp_path / "results.json").write_text(json.dumps(alone))
    assert "keypoints alone" in refused(capsys, *arguments, tmp_path / "plain.json")
    for one in alone:
        one["keypoints"] = (np.array(one["keypoints"]).reshape(-1, 3)[:, [1, 0, 2]] * 3).ravel().tolist()
    (tmp_path / "results.json").write_text(json.dumps(alone))
    assert cli.main([*arguments, str(trained / "train.json")]) == 0
    assert "keypoint AP is 0: " in "".join(capsys.readouterr())


def test_keypoints_of_an_image_that_was_shrunk_are_in_its_own_pixels(trained, monkeypatch):
    model = load_detector(trained / "run/checkpoint.npz", score_threshold=0.0, max_size=48).model
    pixels = np.asarray(Image.open(trained / "images/1.png"))
    (direct,) = model.predict([pixels.transpose(2, 0, 1).astype(np.float32) / 255])
    monkeypatch.setattr("minimask.results.large.LARGE", 100)
    found, image, seen = predict_pixels(model, pixels)
    assert image.shape[1:] == (48, 48)
    np.testing.assert_allclose(found["keypoints"][..., :2], seen["keypoints"][..., :2] * (64 / 48), rtol=1e-5)
    assert found["keypoints"].shape == direct["keypoints"].shape and found["keypoints"].max() <= 65


# ---------------------------------------------------------------------------------------------- evaluation


def person_document(rng, images: int = 5, people: int = 4):
    """People with COCO's keypoints, some not labelled, some crowds."""
    annotations = []
    for image in range(1, images + 1):
        for _ in range(people):
            x, y, w, h = rng.uniform(0, 150), rng.uniform(0, 100), rng.uniform(30, 150), rng.uniform(40, 200)
            seen = rng.integers(0, 3, 17) * (rng.random() < 0.9)
            xy = np.array([x, y]) + rng.random((17, 2)) * (w, h)
            keypoints = np.column_stack([np.round(xy) * (seen > 0)[:, None], seen])
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "area": 0.6 * w * h}
                | {"bbox": [x, y, w, h], "iscrowd": int(rng.random() < 0.1)}
                | {"keypoints": keypoints.ravel().tolist(), "num_keypoints": int((seen > 0).sum())}
            )
    return {
        "images": [{"id": i, "height": 300, "width": 300} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(oks.COCO), "skeleton": []}],
        "annotations": annotations,
    }


def person_guesses(rng, document):
    found = []
    for truth in document["annotations"]:
        keypoints = np.reshape(truth["keypoints"], (17, 3)) + rng.normal(0, 6, (17, 3))
        x1, y1 = keypoints[:, :2].min(axis=0)
        x2, y2 = keypoints[:, :2].max(axis=0)
        found.append(
            {"image_id": truth["image_id"], "category_id": 1, "score": float(rng.random())}
            | {"keypoints": keypoints.ravel().tolist(), "bbox": [x1, y1, x2 - x1, y2 - y1]}
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_keypoint_numbers_are_those_of_cocoeval(seed, capsys):
    rng = np.random.default_rng(seed)
    document = person_document(rng)
    found = person_guesses(rng, document)
    evaluation = score(copy.deepcopy(document), copy.deepcopy(found), 100, ["bbox", "keypoints"])
    assert capsys.readouterr().out == ""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        comparison = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), "keypoints")
        comparison.evaluate()
        comparison.accumulate()
        comparison.summarize()
    names = ("AP", "AP50", "AP75", "medium", "large")
    assert evaluation.keypoint == pytest.approx(dict(zip(names, comparison.stats[:5])), abs=1e-12)
    assert 0.05 < evaluation.keypoint["AP"] < 0.98 and evaluation.mask is None
    assert "COCO's sigmas" in evaluation.table()


def test_cocos_sigmas_are_those_of_pycocotools():
    from pycocotools.cocoeval import Params

    np.testing.assert_allclose(list(oks.COCO.values()), Params("keypoints").kpt_oks_sigmas, rtol=1e-12)


def test_the_similarity_is_that_of_pycocotools():
    rng = np.random.default_rng(4)
    true = np.concatenate([rng.uniform(5, 60, (3, 4, 2)), np.full((3, 4, 1), 2.0)], axis=2)
    true[0, 1], true[1, 2, 2] = 0, 1
    found = np.concatenate(
        [true[[2, 0], :, :2] + rng.normal(0, 1, (2, 4, 2)), np.full((2, 4, 1), 2.0)], axis=2
    )
    areas, sigmas = np.array([300.0, 900.0, 500.0]), rng.uniform(0.03, 0.1, 4)
    common = {"image_id": 1, "category_id": 1}
    document = {"info": {}, "images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    for i, points in enumerate(true):
        document["annotations"].append(
            common
            | {"id": i + 1, "iscrowd": 0, "area": areas[i], "bbox": [0, 0, 60, 60], "num_keypoints": 4}
            | {"keypoints": points.reshape(-1).tolist()}
        )
    results = [
        common | {"score": 1 - 0.1 * i, "keypoints": p.reshape(-1).tolist()} for i, p in enumerate(found)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = document
        coco.createIndex()
        comparison = COCOeval(coco, coco.loadRes(results), "keypoints")
        comparison.params.kpt_oks_sigmas = sigmas
        comparison.evaluate()
    ours = oks.similarity(found[..., :2], true, areas, sigmas)
    np.testing.assert_allclose(ours, comparison.ious[1, 1], rtol=1e-9)
    assert ours.argmax(axis=1).tolist() == [2, 0]
    nothing = np.zeros_like(true[:1])
    assert not oks.similarity(found[..., :2], nothing, areas[:1], sigmas).any()


def test_the_truth_of_the_figures_as_detections_has_ap_1_and_moved_corners_less():
    figures = Figures(12, seed=9)
    exact, moved = [], []
    for index, sample in enumerate(figures):
        found = dict(boxes=sample.boxes, labels=sample.labels, scores=np.ones(len(sample.boxes)))
        for shift, results in ((0.0, exact), (6.0, moved)):
            keypoints = sample.keypoints + np.float32([shift, 0, 0])
            results += coco_results(found | {"keypoints": keypoints}, figures.image_ids[index], [1, 2, 3])
    kinds = ["bbox", "keypoints"]
    assert score(figures.coco_document(), exact, 100, kinds).keypoint["AP"] == pytest.approx(1.0)
    assert score(figures.coco_document(), moved, 100, kinds).keypoint["AP"] < 0.5


def test_keypoints_are_evaluated_where_model_and_data_both_have_them():
    class Exact:
        mask_head = None
        keypoint_head = object()
        figures = Figures(3, seed=9)

        def predict(self, images):
            sample = self.figures[0]
            found = dict(boxes=sample.boxes, labels=sample.labels, scores=np.ones(len(sample.boxes)))
            return [found | {"keypoints": sample.keypoints}]

    one = Figures(1, seed=9)
    evaluation = evaluate(Exact(), one)
    assert evaluation.keypoint["AP"] == pytest.approx(1.0) and evaluation.mask is None
    one.skeleton = None
    assert evaluate(Exact(), one).keypoint is None
    assert KEYPOINT_DETECTIONS == 20


# -------------------------------------------------------------------------------------------------- pictures


def test_visible_keypoints_are_white_hidden_ones_black_and_others_not_drawn():
    image = np.full((3, 60, 80), 0.5, np.float32)
    keypoints = np.array([[[20, 30, 2], [50, 30, 1], [65, 45, 0]]], np.float64)
    boxes, labels = np.array([[5.0, 5, 75, 55]]), np.array([1])
    options = dict(keypoints=keypoints, skeleton=Skeleton(("a", "b", "c"), ((0, 1), (1, 2))))
    drawn = draw_instances(image, boxes, labels, None, ["cup"], zoom=4.0, **options)
    picture = np.asarray(drawn).astype(int)
    assert (picture[4 * 30, 4 * 20] > 250).all() and (picture[4 * 30, 4 * 50] < 5).all()
    assert (picture[4 * 45, 4 * 65] == 128).all()  # neither a dot nor a line
    line = picture[4 * 30, 4 * 35]
    assert (np.abs(line - [0xE6, 0x9F, 0x00]) <= 3).all()


def test_keypoints_outside_of_the_picture_do_no_harm():
    image = np.zeros((3, 20, 20), np.float32)
    keypoints = np.array([[[-50, 5, 2], [90, 5, 2], [5, -1e6, 2]]], np.float64)
    skeleton = Skeleton(("a", "b", "c"), ((0, 1), (1, 2)))
    boxes, labels = np.array([[1.0, 1, 19, 19]]), np.array([1])
    drawn = draw_instances(
        image, boxes, labels, None, ["cup"], keypoints=keypoints, skeleton=skeleton, zoom=1.0
    )
    bare = draw_instances(image, boxes, labels, None, ["cup"], zoom=1.0)
    changed = (np.asarray(drawn) != np.asarray(bare)).any(axis=2)
    assert (
        drawn.size == bare.size and changed[5, 10]
    )  # the line between the two that are to the left and right
    assert not changed[12:20, 8:].any()  # and nothing where no line passes


def test_improbable_keypoints_are_not_drawn():
    prediction = dict(keypoints=np.ones((1, 3, 3), np.float32), keypoints_probabilities=[[0.9, 0.01, 0.05]])
    assert likely_keypoints(prediction)[0, :, 2].tolist() == [2, 0, 2]
    assert likely_keypoints({"boxes": []}) is None


# -------------------------------------------------------------------------------------------------- GPU path


@pytest.mark.slow
@pytest.mark.skipif(cuda_on_cpu.compiler() is None, reason="no g++ on Linux to run CUDA kernels with")
def test_losses_gradients_and_keypoints_on_a_gpu_equal_the_cpus_and_wait_only_where_they_say():
    image, target = with_keypoints(np.random.default_rng(12), 3)
    target["keypoints"][1] = 0
    results = {}
    with installed():
        for device in ("cpu", "cuda"):
            model = tiny(with_masks=True, box_score_thresh=0.0).to(device)
            syncs.clear()
            record = model.train().training_record([image], [target], Draws(3))
            sum(record.losses.values()).backward()
            (found,) = model.predict([image])
            gradients = {n: backend.to_cpu(p.grad) for n, p in model.named_parameters()}
            losses = {n: float(backend.to_cpu(v.data)) for n, v in record.losses.items()}
            results[device] = losses, gradients, found
        assert syncs and unmarked() == set()
    (losses, gradients, found), (wanted, theirs, seen) = results["cuda"], results["cpu"]
    assert losses == pytest.approx(wanted, rel=1e-10) and "loss_keypoint" in losses
    for name, gradient in theirs.items():
        size = np.abs(gradient).max() + 1e-6
        np.testing.assert_allclose(gradients[name], gradient, rtol=0, atol=1e-8 * size, err_msg=name)
    np.testing.assert_allclose(found["keypoints"], seen["keypoints"], rtol=1e-9)
    np.testing.assert_allclose(found["keypoints_scores"], seen["keypoints_scores"], rtol=1e-8)


# ----------------------------------------------------------------------------------------------- data sets


def test_shapes_have_no_keypoints():
    assert Shapes(1, seed=0).skeleton is None and "keypoints" not in Shapes(1, seed=0)[0].target()


def test_a_file_of_figures_is_read_with_its_keypoints(trained):
    dataset = read_coco(trained / "train.json", trained / "images")
    assert dataset.skeleton == SKELETON and dataset.notes == []
