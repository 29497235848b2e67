"""A network of torchvision's parts, trained beside ours on the same batches: the same losses, step by step.

Both samplers take every anchor and every RoI, since their draws cannot be the same. In float64: in float32
the losses drift apart after some thirty steps, when rounding lets a proposal change places with another or a
RoI its side of a threshold, and after that two digits are all that can be compared.
"""

import os

import numpy as np
import pytest

from minimask.config import read_config
from minimask.data import Batches, nuclei_sample
from minimask.models import maskrcnn_resnet50_fpn
from minimask.models.zoo import SMALL
from minimask.nn import GroupNorm
from minimask.randomness import Draws
from minimask.training.loop import augmentation, learning_rate, make_optimizer, resolved, training_step

STEPS, CLIP = 50, 10.0
ALL = 10**6


def _ours():
    counts = dict(rpn_batch_size_per_image=ALL, box_batch_size_per_image=ALL)
    counts |= dict(rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=1000)
    sizes = dict(architecture=SMALL, norm=GroupNorm, min_size=256, max_size=1600)
    return maskrcnn_resnet50_fpn(2, trainable_backbone_layers=5, **sizes, **counts).astype(np.float64).train()


def _theirs(ours):
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    from tests.benchmarks.torch_small import torch_small

    peer = torch_small(ours).double()
    peer.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(ALL, 0.5)
    peer.roi_heads.fg_bg_sampler = BalancedPositiveNegativeSampler(ALL, 0.25)
    return peer


@pytest.mark.slow
def test_the_first_fifty_losses_are_those_of_a_network_of_torchvisions_parts():
    pytest.importorskip("torchvision")
    from tests.benchmarks.torch_small import torch_optimizer, torch_step

    config = resolved(read_config("demo"))
    dataset = nuclei_sample("train")
    whole = [i for i in range(len(dataset)) if min(dataset.outline(i)[:2]) >= 256]  # no crop needs padding
    batches = Batches([dataset[i] for i in whole], 2, augmentation(config.data), seed=0)
    ours = _ours()
    theirs, mine = _theirs(ours), make_optimizer(ours, config.train)
    other, rate = torch_optimizer(theirs, config.train), learning_rate(config.train)
    worst = 0.0
    for step in range(STEPS):
        samples = batches(step)
        row = training_step(ours, mine, samples, Draws(0, step), rate(step), CLIP)
        want = torch_step(theirs, other, samples, rate(step), CLIP)
        error = {name: abs(row[name] - value) / max(1.0, value) for name, value in want.items()}
        worst = max(worst, *error.values())
        print(step, {name: f"{row[name]:.5f} {value:.5f}" for name, value in want.items()})
        assert max(error.values()) < 1e-6, f"step {step + 1}: {error}"
    print(f"worst {worst:.1e}")


@pytest.mark.full
def test_our_network_learns_as_well_as_one_of_torchvisions_parts():
    """What runs reached that are kept in tests/full/measured is compared, the others are trained."""
    pytest.importorskip("torchvision")
    if "MINIMASK_DATA" not in os.environ:
        pytest.skip("MINIMASK_DATA is not set: the whole set of nuclei is not here")
    from tests.full.beside_torch import run

    assert run([]) == 0
