"""Layers and losses against torch, forward and backward, to float64 rounding; skipped without torch."""

import numpy as np
import pytest

from minimask import functions as F
from minimask.autograd import Tensor

torch = pytest.importorskip("torch")
nn = torch.nn.functional


def compare(ours, theirs, *arrays, tolerance: float = 1e-11) -> None:
    """Outputs, and the gradients of all floating point arrays, weighted by the same random numbers."""
    rng = np.random.default_rng(7)
    leaves = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    tensors = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
    y, want = ours(*leaves), theirs(*tensors)
    np.testing.assert_allclose(y.numpy(), want.detach().numpy(), rtol=0, atol=tolerance)
    u = rng.normal(size=y.shape)
    y.backward(u)
    want.backward(torch.tensor(u))
    for leaf, tensor in zip(leaves, tensors):
        if tensor.requires_grad:
            np.testing.assert_allclose(leaf.grad, tensor.grad.numpy(), rtol=0, atol=tolerance)


def normal(*shapes) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=s) for s in shapes]


@pytest.mark.parametrize(
    "x, w, options",
    [
        ((2, 3, 9, 11), (4, 3, 3, 3), {}),
        ((2, 3, 9, 11), (4, 3, 3, 3), dict(stride=2, padding=1)),
        ((1, 4, 12, 10), (6, 2, 3, 5), dict(stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2)),
        ((2, 3, 17, 15), (4, 3, 7, 7), dict(stride=2, padding=3)),
        ((2, 8, 6, 6), (4, 8, 1, 1), {}),
        ((2, 8, 7, 6), (4, 8, 1, 1), dict(stride=2)),
        ((1, 6, 40, 38), (6, 1, 3, 3), dict(padding=1, groups=6)),
    ],
)
def test_conv2d(x, w, options):
    arrays = normal(x, w, w[:1])
    compare(lambda *a: F.conv2d(*a, **options), lambda *a: nn.conv2d(*a, **options), *arrays)


@pytest.mark.parametrize(
    "x, w, options",
    [
        ((2, 3, 5, 4), (3, 4, 2, 2), dict(stride=2)),
        ((2, 3, 5, 4), (3, 4, 3, 3), dict(stride=2, padding=1, output_padding=1)),
        ((1, 4, 5, 6), (4, 3, 3, 2), dict(stride=(3, 1), padding=(0, 1), dilation=2, groups=2)),
    ],
)
def test_conv_transpose2d(x, w, options):
    arrays = normal(x, w, (w[1] * options.get("groups", 1),))
    compare(
        lambda *a: F.conv_transpose2d(*a, **options), lambda *a: nn.conv_transpose2d(*a, **options), *arrays
    )


def test_linear():
    compare(F.linear, nn.linear, *normal((5, 7), (3, 7), (3,)))


def test_batch_norm_in_training():
    def theirs(x, w, b):
        return nn.batch_norm(x, None, None, w, b, training=True, eps=1e-5)

    compare(lambda *a: F.batch_norm(*a)[0], theirs, *normal((3, 4, 5, 6), (4,), (4,)))


def test_frozen_batch_norm():
    mean, var = np.array([0.3, -1.0, 2.0]), np.array([0.5, 2.0, 1.0])

    def theirs(x, w, b):
        return nn.batch_norm(x, torch.tensor(mean), torch.tensor(var), w, b, training=False, eps=1e-5)

    compare(lambda *a: F.frozen_batch_norm(*a, mean, var), theirs, *normal((2, 3, 4, 5), (3,), (3,)))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(groups):
    arrays = normal((2, 6, 5, 4), (6,), (6,))
    compare(
        lambda x, w, b: F.group_norm(x, groups, w, b), lambda x, w, b: nn.group_norm(x, groups, w, b), *arrays
    )
    compare(
        lambda x, w, b: F.group_norm(x, groups, w, b, relu=True),
        lambda x, w, b: torch.relu(nn.group_norm(x, groups, w, b)),
        *arrays,
    )


@pytest.mark.parametrize(
    "options",
    [dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=(2, 3), stride=(1, 2))],
)
def test_max_pool2d(options):
    (x,) = normal((2, 3, 9, 10))
    ties = (
        np.random.default_rng(0).integers(0, 3, (2, 3, 9, 10)).astype(float)
    )  # to the first of equal ones, both
    for values in (x, ties):
        compare(lambda x: F.max_pool2d(x, **options), lambda x: nn.max_pool2d(x, **options), values)


@pytest.mark.parametrize("size", [(10, 12), (7, 9), (3, 4), (5, 6), (13, 2)])
def test_interpolate(size):
    (x,) = normal((2, 3, 5, 6))
    compare(lambda x: F.upsample_nearest(x, size), lambda x: nn.interpolate(x, size), x)
    compare(
        lambda x: F.upsample_bilinear(x, size),
        lambda x: nn.interpolate(x, size, mode="bilinear", align_corners=False),
        x,
    )


def test_nearest_rounds_as_torch_does_at_every_size():
    """The position is computed in float32 there: a whole number may fall on either side."""
    for size in range(1, 70):
        x = np.arange(float(size)).reshape(1, 1, 1, size)
        for out in range(1, 70):
            got = F.upsample_nearest(x, (1, out)).numpy()
            np.testing.assert_array_equal(got, nn.interpolate(torch.tensor(x), (1, out)).numpy())


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_activations(scale):
    (x,) = normal((4, 5))
    for ours, theirs in (
        (F.relu, torch.relu),
        (F.sigmoid, torch.sigmoid),
        (lambda x: F.softmax(x, axis=1), lambda x: torch.softmax(x, 1)),
    ):
        compare(ours, theirs, scale * x)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropies(scale):
    (x,) = normal((6, 4))
    labels = np.array([0, 3, 1, 1, 2, 0])
    targets = np.random.default_rng(1).uniform(size=(6, 4))
    compare(F.softmax_cross_entropy, nn.cross_entropy, scale * x, labels)
    compare(
        lambda x: F.sigmoid_cross_entropy(x, targets),
        lambda x: nn.binary_cross_entropy_with_logits(x, torch.tensor(targets)),
        scale * x,
    )


@pytest.mark.parametrize("beta", [1.0, 1 / 9, 0.0])
def test_smooth_l1(beta):
    x, t = normal((6, 4), (6, 4))
    theirs = nn.l1_loss if beta == 0 else lambda x, t: nn.smooth_l1_loss(x, t, beta=beta)
    compare(lambda x, t: F.smooth_l1(x, t, beta), theirs, x, t)
    compare(
        lambda x, t: F.l1(x, t, normalizer=5.0), lambda x, t: nn.l1_loss(x, t, reduction="sum") / 5.0, x, t
    )


def test_the_box_and_mask_losses_are_torchvision_s():
    """As torchvision's roi_heads writes them: fastrcnn_loss and maskrcnn_loss."""
    logits, deltas, targets, masks = normal((7, 4), (7, 16), (7, 4), (7, 4, 5, 5))
    labels = np.array([0, 2, 1, 3, 0, 3, 1])
    rows = np.flatnonzero(labels)

    def box(deltas):
        own = deltas.reshape(7, 4, 4)[rows, labels[rows]]
        return nn.smooth_l1_loss(own, torch.tensor(targets[rows]), beta=1 / 9, reduction="sum") / 7

    compare(
        lambda x: F.box_head_loss(x, deltas, labels, targets)[0],
        lambda x: nn.cross_entropy(x, torch.tensor(labels)),
        logits,
    )
    compare(lambda d: F.box_head_loss(logits, d, labels, targets)[1], box, deltas)
    shapes = np.random.default_rng(2).integers(0, 2, (7, 5, 5)).astype(float)
    compare(
        lambda m: F.mask_loss(m, labels, shapes),
        lambda m: nn.binary_cross_entropy_with_logits(
            m[torch.arange(7), torch.tensor(labels)], torch.tensor(shapes)
        ),
        masks,
    )


def test_softmax_mask_loss_is_the_cross_entropy_of_a_mixture_of_class_and_background():
    labels, targets = np.array([2, 1, 3]), np.random.default_rng(1).random((3, 6, 6))
    mixture = torch.zeros((3, 4, 6, 6), dtype=torch.float64)
    mixture[range(3), labels] += torch.tensor(targets)
    mixture[:, 0] += 1 - torch.tensor(targets)
    compare(
        lambda x: F.softmax_mask_loss(x, labels, targets),
        lambda x: nn.cross_entropy(x, mixture),
        *normal((3, 4, 6, 6)),
    )
