"""Images and targets as users give them: converted where there is no doubt, else refused before any work."""

import types

import numpy as np
import pytest

from minimask import InputError, Tensor, models
from minimask.data import Augmentation, Batches, Shapes, nuclei_sample
from minimask.models.inputs import check_images, check_targets
from minimask.nn import BatchNorm2d, Linear, Module, inference
from minimask.randomness import Draws
from minimask.training.optim import SGD
from minimask.weights.checkpoint import Checkpoint, fit
from tests.fake_cupy import installed, syncs
from tests.model_data import discs, tiny_model


@pytest.fixture(scope="module")
def scene():
    """An image of 64 x 64 and its target of two objects."""
    return discs(np.random.default_rng(0), 2)


def target_changes(boxes, labels, masks):
    """What is wrong with a target, and the message: what it names, then its mend."""
    soft = masks * 0.7
    return {
        "masks of 0 and 255": (dict(masks=masks * 255), r"masks must hold .* 255; give masks > 0$"),
        "masks of 0 and 255 in float": (dict(masks=masks * 255.0), r"mask 0 holds 255; give masks > 0$"),
        "numbered masks": (dict(masks=masks * np.uint8([[[1]], [[2]]])), r"mask 1 holds 2; give masks > 0$"),
        "negative masks": (dict(masks=-masks.astype(int)), r"mask 0 holds -1; give masks != 0$"),
        "NaN in masks": (dict(masks=np.where(masks, np.nan, 0)), r"masks must hold .* mask 0 holds nan"),
        "soft masks": (dict(masks=soft), r"mask 0 holds 0\.7; give masks > 0\.5$"),
        "masks of another size": (dict(masks=masks[:, :10]), r"masks must be \(2, 64, 64\)"),
        "masks of one object": (dict(masks=masks[:1]), r"masks \(1, 64, 64\) do not belong together"),
        "masks of text": (dict(masks=[["a"]]), "masks must be numbers, are text"),
        "run lengths": (dict(masks=[{"counts": "a"}] * 2), r"are object; give \(G, H, W\) of 0"),
        "ragged masks": (dict(masks=[[1], [1, 2]]), r"masks: cannot be read as one array"),
        "no masks": (dict(masks=None), r"lacks masks; give boxes \(G, 4\), labels"),
        "no boxes and no labels": (dict(boxes=None, labels=None), "lacks boxes and labels; give"),
        "boxes of five columns": (dict(boxes=np.ones((2, 5))), r"boxes must be \(G, 4\), .* are \(2, 5\)"),
        "flat boxes": (dict(boxes=boxes.ravel()), r"boxes must be \(G, 4\), .* are \(8,\)"),
        "boxes in 0..1": (dict(boxes=boxes / 64), "boxes look normalised .* multiply x by 64 and y by 64"),
        "the whole image in 0..1": (dict(boxes=np.array([[0, 0, 1, 1]] * 2)), "boxes look normalised"),
        "a box outside": (dict(boxes=boxes + [[0], [99]]), "box 1 is .*, outside its image of 64 x 64"),
        "a box before the image": (dict(boxes=boxes - [[99], [0]]), "box 0 is .*, outside its image"),
        "width and height": (dict(boxes=np.array([[31, 40, 12, 39]] * 2)), "box 0 is .* x1 < x2, y1 < y2"),
        "NaN in boxes": (dict(boxes=boxes * np.nan), r"box 0 is \[nan"),
        "boxes of infinite size": (dict(boxes=np.array([[0, 0, np.inf, 9]] * 2)), "box 0 is"),
        "boxes of text": (dict(boxes=np.full((2, 4), "1")), "boxes must be numbers, are text"),
        "complex boxes": (dict(boxes=boxes * 1j), "boxes must be numbers, are complex"),
        "broken labels": (dict(labels=[1, 1.7]), r"labels must be whole numbers from 1, one is 1\.7"),
        "NaN in labels": (dict(labels=[1, np.nan]), "labels must be whole numbers from 1, one is nan"),
        "labels of text": (dict(labels=["a\n", "b"]), r"labels must be numbers, are text; give \(G,\) class"),
        "labels of bool": (dict(labels=[True, False]), "labels must be whole numbers from 1, are bool"),
        "the label of background": (dict(labels=[0, 1]), "label 0; classes are numbered from 1"),
        "a negative label": (dict(labels=[-1, 1]), "label -1; classes are numbered from 1"),
        "a label without a class": (dict(labels=[1, 3]), "label 3, but labels .* 1 to 2; build it with num"),
        "an enormous label": (dict(labels=[1, 1e30]), "but labels of this model are 1 to 2"),
        "labels one too few": (dict(labels=labels[:1]), r"labels \(1,\) and masks .* must be \(2,\)"),
        "one-hot labels": (dict(labels=np.eye(2)), r"labels \(2, 2\) and masks .* must be \(2,\)"),
        "crowds of five columns": (dict(crowd_boxes=np.ones((1, 5))), r"crowd_boxes must be \(G, 4\)"),
        "NaN in crowds": (dict(crowd_boxes=[[0, 0, np.nan, 4]]), "crowd_box 0 is .* crowd_boxes are x1"),
    }  # fmt: skip


IMAGES = {
    "NaN": (lambda i: i * np.nan, r"images\[0\]: holds NaN or infinity"),
    "one NaN": (lambda i: np.where(np.arange(64) == 63, np.nan, i), r"images\[0\]: holds NaN"),
    "infinity": (lambda i: i + np.inf, r"images\[0\]: holds NaN or infinity"),
    "0..255": (lambda i: i * 255, r"images\[0\]: must be RGB in 0..1, reaches .*; divide it by 255"),
    "normalised": (lambda i: (i - 0.45) / 0.22, r"images\[0\]: must be RGB in 0..1, spans .* not normalise"),
    "bytes": (lambda i: (i * 255).astype(np.uint8), r"images\[0\]: must be .* uint8; divide it by"),
    "channels last": (lambda i: i.transpose(1, 2, 0), r"images\[0\]: must be .* \(64, 64, 3\) .*; transpose"),
    "grey": (lambda i: i[0], r"images\[0\]: must be .*; repeat a grey image"),
    "grey with an axis": (lambda i: i[:1], r"images\[0\]: must be .*; repeat a grey image"),
    "a batch": (lambda i: i[None], r"images\[0\]: must be .*; give the images of a batch one"),
    "complex": (lambda i: i * 1j, r"images\[0\]: must be \(3, H, W\) floating point .* complex128"),
    "no pixels": (lambda i: i[:, :0, :0], r"images\[0\]: has no pixels, is \(3, 0, 0\)"),
    "no columns": (lambda i: i[:, :, :0], r"images\[0\]: has no pixels, is \(3, 64, 0\)"),
    "a file's name": (lambda i: "a\n.png", r"images\[0\]: must be \(3, H, W\)"),
    "nothing": (lambda i: None, r"images\[0\]: must be \(3, H, W\)"),
}  # fmt: skip


def refused(message, call, *arguments, **options):
    with pytest.raises(InputError, match=message) as error:
        call(*arguments, **options)
    assert str(error.value).isprintable(), "one line, without control characters"


class Untouched(Module):
    """A backbone that must not be asked: what is wrong is found before anything is computed."""

    def forward(self, images):
        raise AssertionError("computed before the check")


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def model(request):
    model = tiny_model()
    model.backbone, model.mask_head.net = Untouched(), Untouched()
    with installed():
        yield model.to(request.param)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", target_changes(*(np.zeros((2, 4)), np.zeros(2), np.zeros((2, 64, 64), np.uint8)))
)
def test_a_target_that_cannot_be_is_refused_by_name_with_its_mend_before_any_work(name, model, scene):
    image, target = scene
    change, message = target_changes(**target)[name]
    good, syncs[:] = discs(np.random.default_rng(1), 1), []
    for n, (images, targets) in enumerate(
        [([image], [target | change]), ([good[0], image], [good[1], target | change])]
    ):
        refused(rf"^targets\[{n}\]: .*{message}", model.loss, images, targets)
    assert not syncs


def test_the_only_object_may_lie_in_the_first_pixel():
    masks = np.zeros((1, 64, 64), np.uint8)
    masks[0, 0, 0] = 1
    target = dict(boxes=[[0, 0, 0.8, 0.8]], labels=[1], masks=masks)  # a pixel, scaled down with its image
    assert check_targets([target], [(64, 64)])[0].boxes.tolist() == [[0, 0, np.float32(0.8), np.float32(0.8)]]
    refused("boxes look normalised", check_targets, [target | {"masks": masks * 0}], [(64, 64)])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_cannot_be_is_refused_in_training_and_in_inference(name, model, scene):
    change, message = IMAGES[name]
    syncs[:] = []
    refused(message, model.loss, [change(scene[0])], [scene[1]])
    refused(message, model.predict, [change(scene[0])])
    refused(message.replace(r"\[0", r"\[1"), model.predict, [scene[0], change(scene[0])])
    assert not syncs


def test_what_is_no_list_of_images_and_targets_is_refused(model, scene):
    image, target = scene
    refused(r"targets: a loss needs one dict per image; for results .* eval\(\)", model, [image])
    refused("targets: a loss needs", model.loss, [image], None)
    refused(r"targets: one dict; give a list of dicts, .* \[target\]", model.loss, [image], target)
    refused("targets: 1 for 2 images; give one dict per image", model.loss, [image, image], [target])
    refused("targets: must be a list of dicts, one per image, is int", model.loss, [image], 3)
    refused(r"targets\[0\]: must be a dict of boxes, labels and masks, is list", model.loss, [image], [[1]])
    refused(r"targets\[0\]: lacks boxes and labels and masks", model.loss, [image], [{}])
    refused(r"images: one array \(3, 64, 64\); give a list", model.loss, image, [target])
    refused(r"images: must be a list of arrays \(3, H, W\), is NoneType", model.predict, None)
    refused("no images: give a list", model.predict, [])
    refused("no images: give a list", model.predict, iter(()))


# -------------------------------------------------------------------------------------------- converted


class Torch:
    """What torch's tensors are taken by: detach().cpu().numpy()."""

    def __init__(self, array):
        self.array = np.asarray(array)

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    def detach(self):
        return self

    def cpu(self):
        return types.SimpleNamespace(numpy=lambda: self.array)


def losses(images, targets):
    return {name: float(value) for name, value in tiny_model().loss(images, targets, Draws(3)).items()}


def test_what_can_be_read_without_doubt_gives_the_same_losses_to_the_bit(scene):
    image, target = scene
    boxes, labels, masks = target.values()
    expected = losses([image], [target])
    for change in (
        dict(masks=masks.astype(bool)),
        dict(masks=masks.astype(np.int64)),
        dict(masks=masks.astype(np.float32)),
        dict(masks=masks[:, None]),
        dict(masks=[list(m) for m in masks]),
        dict(labels=labels.astype(np.float32)),
        dict(labels=labels.tolist()),
        dict(labels=labels[:, None].astype(np.uint8)),
        dict(boxes=boxes.tolist()),
        dict(boxes=boxes.astype(int)),
        dict(crowd_boxes=[]),
        dict(crowd_boxes=None, image_id=3, iscrowd=[0, 0]),
        {name: Tensor(array) for name, array in target.items()},
        {name: Torch(array) for name, array in target.items()},
        dict(boxes=[Torch(box) for box in boxes], labels=[Tensor(label) for label in labels]),
    ):
        assert losses([image], [target | change]) == expected
    assert losses(np.stack([image]), (target,)) == expected
    for other in (Tensor(image), Torch(image), image.tolist()):
        assert losses([other], [target]) == expected
    assert losses((i for i in [image]), (t for t in [target])) == expected
    assert losses([image], [types.MappingProxyType(target)]) == expected


@pytest.mark.filterwarnings("error")
def test_boxes_are_looked_at_in_the_dtype_in_which_they_are_computed_with():
    masks = np.zeros((1, 80, 80), np.uint8)
    target = dict(boxes=[[63.9999999, 10, 64, 20]], labels=[1], masks=masks)
    check_targets([target], [(80, 80)], np.float64)
    refused("box 0 is .* x1 < x2", check_targets, [target], [(80, 80)], np.float32)


def test_no_objects_may_be_given_in_any_empty_form():
    for boxes in ([], np.zeros((0, 4)), np.zeros((0, 5)), np.zeros(0)):
        for masks in ([], np.zeros((0, 8, 9)), np.zeros((0, 1, 8, 9), bool)):
            (found,) = check_targets([dict(boxes=boxes, labels=[], masks=masks)], [(8, 9)])
            shapes = [getattr(found, name).shape for name in ("boxes", "labels", "masks", "crowd_boxes")]
            assert shapes == [(0, 4), (0,), (0, 8, 9), (0, 4)]
            assert (found.boxes.dtype, found.labels.dtype, found.masks.dtype) == (
                np.float32,
                np.int64,
                np.uint8,
            )


def test_the_first_pixel_may_be_an_object():
    masks = np.zeros((1, 8, 9), np.uint8)
    masks[0, 0, 0] = 1
    (found,) = check_targets([dict(boxes=[[0, 0, 1, 1]], labels=[1], masks=masks)], [(8, 9)])
    assert found.boxes.tolist() == [[0, 0, 1, 1]]


def test_images_may_overshoot_as_resizing_makes_them(scene):
    image = 1.4 * scene[0] - 0.2
    assert check_images([image])[0] is image


def test_own_data_pass_unchanged_and_without_a_copy():
    augmentation = Augmentation(crop=64, flip_horizontal=True, flip_vertical=True)
    for dataset in (nuclei_sample("train"), Shapes(12, seed=1, size=64)):
        for step in range(4):
            samples = Batches(dataset, 3, augmentation, seed=step)(step)
            targets = [s.target() for s in samples]
            found = check_targets(targets, [s.image.shape[1:] for s in samples], np.float32, 4)
            for image, sample in zip(check_images([s.image for s in samples]), samples):
                assert image is sample.image
            for mine, target in zip(found, targets):
                assert mine.keypoints is None and "keypoints" not in target
                for name in ("boxes", "labels", "masks", "crowd_boxes"):
                    np.testing.assert_array_equal(getattr(mine, name), target[name])
                assert mine.masks is target["masks"] or not mine.masks.size


def test_arrays_on_a_gpu_are_checked_for_shape_and_dtype_without_waiting(scene):
    image, target = scene
    with installed() as cupy:
        there = {name: cupy.asarray(array) for name, array in target.items() if name != "labels"}
        there["labels"] = target["labels"]
        on_gpu, syncs[:] = cupy.asarray(image), []
        (found,) = check_targets([there], [(64, 64)], np.float32, 3)
        assert check_images([on_gpu])[0] is on_gpu and check_images([Tensor(on_gpu)])[0] is on_gpu
        refused(r"images\[0\]: must be \(3, H, W\)", check_images, [on_gpu[0]])
        for change, message in (
            (dict(boxes=there["boxes"][:, :3]), r"boxes must be \(G, 4\)"),
            (dict(masks=there["masks"][:, 1:]), r"masks must be \(2, 64, 64\)"),
            (dict(masks=there["masks"].astype(complex)), "masks must be numbers, are complex128"),
            (dict(labels=[1, 9]), "label 9, but labels of this model are 1 to 2"),
        ):
            message = rf"targets\[0\]: .*{message}"
            refused(message, check_targets, [there | change], [(64, 64)], num_classes=3)
        (of_255,) = check_targets([there | dict(masks=there["masks"] * 255)], [(64, 64)], np.float32, 3)
        assert not syncs
        for masks in (found.masks, of_255.masks):
            assert isinstance(masks, cupy.ndarray) and masks.dtype == np.uint8
            np.testing.assert_array_equal(masks.get(), target["masks"])
        transform = tiny_model().transform  # a model on the CPU gets them there
        (on_cpu,) = transform.scaled([found], transform([image]))
        np.testing.assert_array_equal(on_cpu.boxes, target["boxes"])


class Predictor(Module):
    """A predictor of another make, which does not say how many classes it has."""

    def __init__(self, theirs):
        self.theirs = theirs

    def forward(self, x):
        return self.theirs(x)


def test_a_label_without_an_output_is_refused_whatever_the_predictors_are(scene):
    image, target = scene
    target = target | dict(labels=np.array([1, 3]))
    model = tiny_model()
    model.box_head.box_predictor = Predictor(model.box_head.box_predictor)
    message = "label 3, but the box predictor has outputs for labels up to 2"
    refused(message, model.loss, [image], [target])
    model = tiny_model()
    model.box_head.box_predictor = tiny_model(num_classes=4).box_head.box_predictor
    message = "label 3, but the mask head's net has outputs for labels up to 2"
    refused(message, model.loss, [image], [target])


# ---------------------------------------------------------------------------- what is asked for, not the mode


def test_results_are_the_same_in_training_mode_and_out_of_it(scene):
    counts = dict(rpn_pre_nms_top_n_train=5, rpn_post_nms_top_n_train=3, rpn_post_nms_top_n_test=50)
    model = tiny_model(box_score_thresh=0.0, **counts)
    (training,), (out_of_it,) = model.train().predict([scene[0]]), model.eval().predict([scene[0]])
    assert len(out_of_it["scores"]) > 3 * 2  # of 3 proposals, at most 2 classes each
    for name in ("boxes", "labels", "scores", "masks"):
        np.testing.assert_array_equal(training[name], out_of_it[name])


def test_losses_take_the_proposals_of_training_in_either_mode(scene):
    model = tiny_model(rpn_post_nms_top_n_train=7, rpn_post_nms_top_n_test=40)
    for mode in (True, False):
        record = model.train(mode).training_record([scene[0]], [scene[1]])
        assert len(record.proposals[0]) == 7


def test_no_module_is_in_training_mode_within_inference_and_statistics_stay():
    norm, x = BatchNorm2d(3), np.random.default_rng(0).random((2, 3, 4, 4), np.float32)
    plain = BatchNorm2d(3).eval()(x)
    with inference():
        assert not norm.training
        np.testing.assert_array_equal(norm(x).data, plain.data)
    assert norm.training and not norm.running_mean.data.any()
    norm(x)
    assert norm.running_mean.data.all()


# --------------------------------------------------------------------------------------- several sizes


@pytest.mark.parametrize("build", [models.maskrcnn_small, models.maskrcnn_resnet50_fpn])
def test_of_several_sizes_a_loss_draws_one_for_each_image_and_results_take_the_last(build):
    model = build(2, min_size=(64, 96, 128), max_size=256)
    images = [np.zeros((3, 40, 50), np.float32)] * 4
    sizes = [[h for h, _ in model.transform(images, draws=Draws(0, step)).sizes] for step in range(12)]
    assert {height for step in sizes for height in step} == {64, 96, 128}
    assert any(len(set(step)) > 1 for step in sizes)
    again = [[h for h, _ in model.transform(images, draws=Draws(0, step)).sizes] for step in range(12)]
    assert again == sizes
    of_second = model.transform(
        images[:2], draws=Draws(0, 3, first_image=2)
    ).sizes  # another process's images
    assert [h for h, _ in of_second] == sizes[3][2:]
    assert [h for h, _ in model.transform(images).sizes] == [128] * 4


def test_a_step_draws_its_size_and_a_single_one_draws_nothing(scene):
    image, target = scene
    model = tiny_model(min_size=[64, 96])
    sizes = {model.training_record([image], [target], Draws(0, step)).batch.sizes[0] for step in range(8)}
    assert sizes == {(64, 64), (96, 96)}
    for min_size in (96, (96,), [96]):
        model = tiny_model(min_size=min_size)
        assert model.training_record([image], [target]).batch.sizes == [(96, 96)]
    (found,) = tiny_model(min_size=(64, 96)).predict([image])
    assert found["masks"].shape[2:] == (64, 64)


@pytest.mark.parametrize("min_size", [(), 0, -3, (64, 0)])
def test_sizes_that_are_none_are_refused(min_size):
    refused("min_size and max_size must be at least 1", tiny_model, min_size=min_size)


@pytest.mark.parametrize("shape", [(3, 1, 2000), (3, 2000, 1), (3, 2, 999)])
def test_a_thin_image_keeps_a_pixel_of_its_short_side(shape):
    model = tiny_model(min_size=64, max_size=100)
    batch = model.transform([np.zeros(shape)])
    assert min(batch.sizes[0]) == 1 and max(batch.sizes[0]) <= 100
    (found,) = model.predict([np.full(shape, 0.5)])
    assert found["masks"].shape[2:] == shape[1:]


# ------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_whose_momentum_is_of_another_model_changes_nothing():
    model, other = (Linear(3, 2, np.random.default_rng(seed)) for seed in (0, 1))
    optimizer = SGD(model.named_parameters(), 0.1)
    optimizer.velocity["bias"] += 1
    zeros = {name: np.zeros_like(v) for name, v in optimizer.velocity.items()}

    def everything():
        return [*model.state_dict().values(), *optimizer.state_dict().values()]

    before = [array.copy() for array in everything()]
    for parameters, momentum in (
        (other.state_dict(), zeros | {"bias": np.zeros(5, np.float32)}),
        ({"weight": other.weight.data}, zeros),
    ):
        checkpoint = Checkpoint(parameters, momentum)
        refused("run.npz: .* of another model", fit, checkpoint, "run.npz", model, optimizer)
        for array, expected in zip(everything(), before):
            np.testing.assert_array_equal(array, expected)


def test_arrays_that_cannot_be_read_leave_a_model_as_it_was():
    model = Linear(3, 2, np.random.default_rng(0))
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = {"weight": np.ones((2, 3)), "bias": np.array(["a", "b"])}
    with pytest.raises(ValueError):
        model.load_state_dict(state)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("box", [[-30, -30, 1000, 1e30], [5, 5, 1e9, 50], [-1e38, -1e38, 3e38, 3e38]])
def test_a_box_whose_corners_are_absurdly_far_away_is_refused_before_anything_is_computed(box):
    target = {"boxes": [box], "labels": [1], "masks": np.ones((1, 64, 64), np.uint8)}
    with pytest.raises(InputError, match=r"targets\[0\]: box 0 is .*, outside its image of 64 x 64 pixels"):
        models.maskrcnn_small(2).loss([np.zeros((3, 64, 64), np.float32)], [target])
