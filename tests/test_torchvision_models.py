"""torchvision's own models through `from_checkpoint`: the same parameters, the same detections."""

import numpy as np
import pytest

from minimask import models
from tests.model_data import weights_by_name

torch = pytest.importorskip("torch")
detection = pytest.importorskip("torchvision").models.detection

SIZE = dict(min_size=160, max_size=224)


def theirs(name: str, num_classes: int, **options):
    """torchvision's model with the weights of the reference vectors, by which classes and boxes differ."""
    build = getattr(detection, name)
    with torch.device("meta"):
        model = build(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes,
            box_score_thresh=0.0,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_test=100,
            **SIZE,
            **options,
        )
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items() if v.ndim}
    state = {k: torch.from_numpy(v) for k, v in weights_by_name(shapes, small=True).items()}
    counters = {k: torch.tensor(0) for k in model.state_dict() if k.endswith("num_batches_tracked")}
    model.load_state_dict(state | counters, assign=True)
    return model.eval()


def photo() -> np.ndarray:
    rng = np.random.default_rng(4)
    image = rng.random((3, 150, 200)).astype(np.float32) * 0.2
    image[:, 30:90, 40:120] += 0.6
    image[0, 80:140, 100:190] += 0.3
    return image.clip(0, 1)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("maskrcnn_resnet50_fpn", 4),
        ("maskrcnn_resnet50_fpn_v2", 3),
        ("fasterrcnn_resnet50_fpn", 6),
        ("fasterrcnn_resnet50_fpn_v2", 2),
    ],
)
def test_a_state_dict_of_torchvisions_gives_its_detections(name, num_classes):
    model, image = theirs(name, num_classes), photo()
    with torch.no_grad():
        (want,) = model([torch.from_numpy(image)])
    want = {key: value.numpy() for key, value in want.items()}
    few = dict(rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=100)
    ours = models.from_checkpoint(model.state_dict(), box_score_thresh=0.0, **few, **SIZE).eval()
    (got,) = ours([image])
    assert ours.origin.num_classes == num_classes and ours.origin.system == "torchvision"
    assert len(got["scores"]) == len(want["scores"]) > 50
    assert want["scores"][0] > want["scores"][20] + 0.02  # the order is more than rounding
    np.testing.assert_allclose(got["scores"], want["scores"], atol=1e-3)
    best = 20  # of lower ones, equal scores may have changed places
    np.testing.assert_array_equal(got["labels"][:best], want["labels"][:best])
    np.testing.assert_allclose(got["boxes"][:best], want["boxes"][:best], atol=0.5)
    if "masks" in want:
        np.testing.assert_allclose(got["masks"].numpy()[:best], want["masks"][:best], atol=1e-2)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2"])
def test_the_builders_parameters_have_torchvisions_names_and_shapes(name):
    with torch.device("meta"):
        model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5)
    want = {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.endswith("batches_tracked")}
    ours = getattr(models, name)(5, seed=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == want


def test_a_fasterrcnn_with_another_resnet_of_torchvisions_is_found():
    backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = detection.FasterRCNN(backbone, num_classes=3, box_score_thresh=0.0, **SIZE).eval()
    image = photo()
    with torch.no_grad():
        (want,) = model([torch.from_numpy(image)])
    ours = models.from_checkpoint(model.state_dict(), box_score_thresh=0.0, **SIZE).eval()
    assert "ResNet-18-FPN" in ours.origin.note
    (got,) = ours([image])
    np.testing.assert_allclose(got["scores"], want["scores"].numpy(), atol=1e-3)
    np.testing.assert_allclose(got["boxes"][:10], want["boxes"].numpy()[:10], atol=0.5)
