"""From a file of weights to a model that predicts, and to a training that starts from it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minimask import models
from minimask.command import sources
from minimask.command.cli import main
from minimask.config import Config, with_settings
from minimask.data import Shapes, nuclei_sample
from minimask.errors import InputError
from minimask.models import from_checkpoint
from minimask.models.detector import Detector, load_detector
from minimask.models.networks import build_model
from minimask.models.starting import fill, start_from
from minimask.training.log import read_losses
from minimask.training.loop import train
from minimask.weights import read_weights, write_pth, write_safetensors
from minimask.weights.checkpoint import load_checkpoint
from tests.model_data import weights_by_name

QUICK = ["train.steps=2", "data.crop=64", "train.batch_size=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps with softmax masks, which names and shapes do not tell from sigmoids."""
    directory = tmp_path_factory.mktemp("run")
    config = with_settings(Config(), [*QUICK, "model.mask_loss=softmax"])
    train(config, nuclei_sample("train"), directory, note=lambda line: None)
    return directory / "checkpoint.npz"


def same_bits(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return list(ours) == list(theirs) and all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_a_run_exported_and_read_back_has_the_same_bits(run, tmp_path, suffix):
    trained, path = load_detector(run).model, tmp_path / f"model.{suffix}"
    if suffix == "npz":
        path = run
    else:
        assert main(["export", "--weights", str(run), str(path)]) == 0
    model = from_checkpoint(path, box_score_thresh=0.3)
    assert same_bits(model, trained) and model.box_head.options.score_thresh == 0.3
    if suffix != "pth":  # which holds no configuration
        assert type(model.mask_head.mask_loss) is models.SoftmaxMasks
        assert model.origin.class_names == ["nucleus"]


def test_predict_takes_weights_from_elsewhere_and_tells_what_they_are(tmp_path, capsys):
    write_pth(tmp_path / "theirs.pth", models.maskrcnn_small(4).state_dict())
    image = nuclei_sample("val").image(0)
    from PIL import Image

    pixels = (image.transpose(1, 2, 0) * 255).astype(np.uint8)[:64, :64]
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    arguments = ["predict", "--weights", str(tmp_path / "theirs.pth"), str(tmp_path / "photo.png"), "--json"]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--score-threshold", "0.0"]) == 0
    assert "theirs.pth: minimask's Mask R-CNN" in capsys.readouterr().err
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["class 1", "class 2", "class 3"]


def test_a_detector_has_cocos_names_where_their_number_is_cocos(tmp_path):
    path = tmp_path / "theirs.safetensors"
    write_safetensors(path, models.maskrcnn_resnet50_fpn().state_dict(), {})
    detector = load_detector(path, detections=7)
    assert detector.class_names[0] == "person" and detector.category_ids[-1] == 90
    assert detector.detections == 7 and detector.config is None


def test_weights_from_elsewhere_take_the_builders_arguments_and_name_others(tmp_path):
    write_pth(tmp_path / "theirs.pth", models.maskrcnn_small(2).state_dict())
    assert load_detector(tmp_path / "theirs.pth", min_size=96).model.transform.min_sizes == (96,)
    with pytest.raises(TypeError, match="there is no argument 'nms_threshold'"):
        load_detector(tmp_path / "theirs.pth", nms_threshold=0.4)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"a"', "[[1, 2]]", "{"])
def test_a_configuration_in_metadata_that_is_no_object_is_named(text, tmp_path):
    path = tmp_path / "a.safetensors"
    state = models.maskrcnn_small(2, seed=None).state_dict()
    write_safetensors(path, state, {"model": "maskrcnn_small", "config": text})
    with pytest.raises(InputError, match="metadata's config is no JSON object"):
        from_checkpoint(path)


def test_heads_of_other_classes_begin_anew_and_are_named(run, tmp_path):
    notes = []
    config, start = start_from(with_settings(Config(), [f"train.weights={run}"]), notes.append)
    assert config.model.mask_loss == "softmax"
    model = build_model(config, 3)
    fresh = {name: array.copy() for name, array in model.state_dict().items()}
    fill(model, start, notes.append)
    trained = load_checkpoint(run).parameters
    anew = [n for n, array in model.state_dict().items() if not np.array_equal(array, trained.get(n))]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in anew} == {
        "cls_score",
        "bbox_pred",
        "mask_fcn_logits",
    }
    assert all(np.array_equal(model.state_dict()[name], fresh[name]) for name in anew)
    assert notes[-1].startswith("begin anew") and "mask_predictor.mask_fcn_logits" in notes[-1]


def test_a_training_starts_from_weights_and_resumes_without_them(run, tmp_path):
    weights = tmp_path / "weights.npz"
    weights.write_bytes(run.read_bytes())
    settings = [*QUICK, f"train.weights={weights}", "train.learning_rate=1e-9"]
    config, start = start_from(with_settings(Config(), settings), lambda line: None)
    outcome = train(config, Shapes(6, seed=0), tmp_path / "run", note=lambda line: None, start=start)
    ours, theirs = load_checkpoint(outcome.checkpoint).parameters, load_checkpoint(run).parameters
    name = "backbone.body.layer1.0.conv1.weight"
    np.testing.assert_allclose(ours[name], theirs[name], atol=1e-6)
    weights.unlink()
    more = replace(config, train=replace(config.train, steps=3))
    train(more, Shapes(6, seed=0), tmp_path / "run", resume=True, note=lambda line: None)
    assert load_checkpoint(outcome.checkpoint).step == 3


def test_a_classifiers_weights_fill_the_backbone_alone(tmp_path):
    whole = models.maskrcnn_resnet50_fpn(num_classes=2, seed=5).state_dict()
    body = {n.removeprefix("backbone.body."): a for n, a in whole.items() if n.startswith("backbone.body.")}
    classifier = body | {
        "fc.weight": np.zeros((1000, 2048), np.float32),
        "fc.bias": np.zeros(1000, np.float32),
    }
    write_pth(tmp_path / "resnet50.pth", classifier)
    notes = []
    given = with_settings(Config(), [f"train.backbone_weights={tmp_path / 'resnet50.pth'}"])
    config, start = start_from(given, notes.append)
    assert (config.model.name, config.model.norm, config.model.trainable_layers) == (
        "maskrcnn_resnet50_fpn",
        "frozen",
        3,
    )
    model = build_model(config, 2)
    fill(model, start, notes.append)
    state = model.state_dict()
    assert all(np.array_equal(state[f"backbone.body.{name}"], array) for name, array in body.items())
    assert not np.array_equal(state["rpn.head.conv.0.0.weight"], whole["rpn.head.conv.0.0.weight"])
    assert len(notes) == 1


def a_classifier(path, blocks: int):
    """Weights with the names of a ResNet with this number of blocks in its third stage."""
    names = ["conv1", "layer4.0.conv1", *(f"layer3.{k}.conv1" for k in range(blocks))]
    write_safetensors(path, {f"{name}.weight": np.zeros(1, np.float32) for name in names}, {})
    return f"train.backbone_weights={path}"


@pytest.mark.parametrize(
    ("small", "large"),
    [
        ("maskrcnn_small", "maskrcnn_resnet50_fpn"),
        ("maskrcnn_fine", "maskrcnn_resnet50_fpn"),
        ("keypointrcnn_small", "keypointrcnn_resnet50_fpn"),
    ],
)
def test_on_a_classifier_a_small_network_becomes_the_large_one_that_finds_the_same(small, large, tmp_path):
    settings = [a_classifier(tmp_path / "resnet.safetensors", 6), f"model.name={small}"]
    config, _ = start_from(with_settings(Config(), settings), lambda line: None)
    assert config.model.name == large
    settings[0] = a_classifier(tmp_path / "other.safetensors", 7)
    with pytest.raises(InputError, match="7 blocks in its third stage; train knows those with 6"):
        start_from(with_settings(Config(), settings), lambda line: None)


@pytest.mark.slow
def test_a_classifiers_depth_says_which_network_it_is_for(tmp_path):
    for name, build in {
        "maskrcnn_resnet101_fpn": models.maskrcnn_resnet101_fpn,
        "maskrcnn_resnext101_32x8d_fpn": models.maskrcnn_resnext101_32x8d_fpn,
    }.items():
        whole = build(num_classes=2, seed=None).state_dict()
        path, body = tmp_path / f"{name}.safetensors", "backbone.body."
        write_safetensors(path, {n.removeprefix(body): a for n, a in whole.items() if n.startswith(body)})
        given = with_settings(Config(), [f"train.backbone_weights={path}"])
        config, start = start_from(given, lambda line: None)
        assert config.model.name == name
        fill(build_model(config, 2), start, lambda line: None)
        path.unlink()


def test_heads_of_as_many_other_classes_are_kept_and_that_is_told(run, tmp_path):
    write_pth(tmp_path / "theirs.pth", models.maskrcnn_small(2).state_dict())
    kept = []
    for weights in (run, tmp_path / "theirs.pth"):
        for classes in (["nucleus"], ["cell"]):
            notes = []
            config, start = start_from(with_settings(Config(), [f"train.weights={weights}"]), notes.append)
            fill(build_model(config, 2), start, notes.append, classes)
            kept += [note.split("fits: ")[1] for note in notes if note.startswith("the heads are kept")]
    assert kept == [
        "nucleus; the data have cell",
        "classes whose names the weights do not tell; the data have nucleus",
        "classes whose names the weights do not tell; the data have cell",
    ]


def test_what_is_given_anew_goes_before_what_a_run_was_trained_with(run):
    settings = [f"train.weights={run}", "model.detections=7", "model.max_size=500"]
    config, _ = start_from(with_settings(Config(), settings), lambda line: None)
    assert (config.model.detections, config.model.max_size, config.model.mask_loss) == (7, 500, "softmax")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.weights={run}", "train.backbone_weights={run}"], "give one of the two"),
        (["train.backbone_weights={run}"], "is not a ResNet classifier of torchvision's"),
        (["train.weights={folder}/nothing.pth"], "cannot be read"),
    ],
)
def test_what_cannot_start_a_training_is_named(run, tmp_path, settings, told):
    config = with_settings(Config(), [s.format(run=run, folder=tmp_path) for s in settings])
    with pytest.raises(InputError, match=told):
        start_from(config, lambda line: None)


def test_weights_of_another_network_change_nothing(run):
    state = read_weights(run)
    _, start = start_from(with_settings(Config(), [f"train.weights={run}"]), lambda line: None)
    model = models.maskrcnn_small(2, fpn_channels=32)
    before = {name: array.copy() for name, array in model.state_dict().items()}
    with pytest.raises(InputError, match=r"checkpoint\.npz: does not fit this network: .* \(and \d+ more\)"):
        fill(model, start, lambda line: None)
    assert len(state) and all(np.array_equal(a, before[n]) for n, a in model.state_dict().items())


def test_the_classes_of_weights_from_elsewhere_are_matched_by_name():
    data = nuclei_sample("val")
    known = Detector(None, ["cell", "nucleus", "dog"], [1, 2, 3])
    assert sources.category_ids(known, data, "a.pth") == [-1, data.category_ids[0], -1]
    nameless = Detector(None, ["class 1"], [1])
    assert sources.category_ids(nameless, data, "a.pth") is None
    with pytest.raises(InputError, match=r"does not know \(nucleus\)"):
        sources.category_ids(Detector(None, ["class 1", "class 2"], [1, 2]), data, "a.pth")


@pytest.mark.slow
def test_evaluate_takes_weights_from_elsewhere_whose_classes_have_other_numbers(run, tmp_path, capsys):
    """The same weights with a class more, in front: by names they find the same."""
    ours = main(["evaluate", "--weights", str(run), "--data", "nuclei", "--output", str(tmp_path / "a")])
    weights, labels = read_weights(run), [0, 0, 1]  # background, a class like it, and nuclei
    state = dict(weights)
    for name, rows in (
        ("box_predictor.cls_score", 1),
        ("box_predictor.bbox_pred", 4),
        ("mask_predictor.mask_fcn_logits", 1),
    ):
        for kind in ("weight", "bias"):
            whole = state[f"roi_heads.{name}.{kind}"]
            parts = whole.reshape(2, rows, *whole.shape[1:])[labels]
            state[f"roi_heads.{name}.{kind}"] = parts.reshape(3 * rows, *whole.shape[1:])
    bias = state["roi_heads.box_predictor.cls_score.bias"]
    bias[1] = -1e4  # never
    names = {"class_names": '["other", "nucleus"]', "category_ids": "[7, 9]"}
    write_safetensors(
        tmp_path / "b.safetensors",
        state,
        names | {"model": "maskrcnn_small", "config": weights.metadata["config"]},
    )
    arguments = ["evaluate", "--weights", str(tmp_path / "b.safetensors"), "--data", "nuclei"]
    assert main([*arguments, "--output", str(tmp_path / "b")]) == ours == 0
    a, b = (json.loads((tmp_path / name / "detections.json").read_text()) for name in "ab")
    columns = "image_id", "category_id", "bbox"
    assert a and [[d[c] for c in columns] for d in a] == [[d[c] for c in columns] for d in b]
    write_safetensors(
        tmp_path / "c.safetensors", state, {"class_names": '["cat", "dog"]', "category_ids": "[1, 2]"}
    )
    arguments[2] = str(tmp_path / "c.safetensors")
    assert main([*arguments, "--output", str(tmp_path / "c")]) == 2
    assert "does not know (nucleus)" in capsys.readouterr().err


@pytest.mark.slow
def test_torchvisions_format_is_fine_tuned_on_coco_saved_used_and_exported_with_the_same_bits(
    tmp_path, capsys
):
    if "MINIMASK_DATA" not in os.environ:
        pytest.skip("MINIMASK_DATA is not set: coco200 is not here")
    coco = Path(os.environ["MINIMASK_DATA"]) / "coco200"
    shapes = {k: v.shape for k, v in models.maskrcnn_resnet50_fpn(91, seed=None).state_dict().items()}
    write_pth(tmp_path / "rule.pth", weights_by_name(shapes))
    run, data = tmp_path / "run", ["--data", str(coco / "train.json"), "--images", str(coco / "images")]
    few = [
        "model.min_size=128",
        "model.max_size=192",
        "data.crop=0",
        "train.steps=20",
        "train.warmup_steps=5",
    ]
    settings = [part for setting in few for part in ("--set", setting)]
    start = ["--weights", str(tmp_path / "rule.pth"), *settings]
    assert main(["train", *data, *start, "--output", str(run)]) == 0
    assert "rule.pth: torchvision's Mask R-CNN" in capsys.readouterr().err
    loss = read_losses(run / "losses.csv")["loss"]
    assert len(loss) == 20 and np.mean(loss[-5:]) < 0.8 * np.mean(loss[:5])

    checkpoint = str(run / "checkpoint.npz")
    photo = str(next((coco / "images").iterdir()))
    assert main(["predict", "--weights", checkpoint, photo, "--json", "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    trained = from_checkpoint(checkpoint)
    for name in ("model.pth", "model.safetensors"):
        assert main(["export", "--weights", checkpoint, str(tmp_path / name)]) == 0
        assert same_bits(from_checkpoint(tmp_path / name), trained)
