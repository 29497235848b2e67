"""The forecast of a training step's memory, beside what a process of its own takes."""

import subprocess
import sys

import numpy as np
import pytest

from minimask import models
from minimask.training import memory

STEP = """
import re, sys
from pathlib import Path
import numpy as np
from minimask import models
from minimask.training.memory import training_memory
from minimask.training.optim import SGD
from minimask.randomness import Draws

def peak():  # not getrusage's, which begins with that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

images, side = map(int, sys.argv[1:])
model = models.maskrcnn_small(2).train()
weights = sum(p.data.nbytes for p in model.parameters())
rng = np.random.default_rng(0)
corners = rng.uniform(0, side - 40, (20, 2)).astype(np.float32)
boxes = np.concatenate([corners, corners + 30], axis=1)
target = dict(boxes=boxes, labels=np.ones(20, int), masks=np.ones((20, side, side), np.uint8))
batch = [rng.random((3, side, side), np.float32) for _ in range(images)]
optimizer, before = SGD(model.named_parameters(), 0.0), peak()
for _ in range(2):
    sum(model.loss(batch, [target] * images, Draws()).values()).backward()
    optimizer.step()
    optimizer.zero_grad()
print(peak() - before + weights, training_memory(model, images, side, side))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc to read the peak from")
@pytest.mark.parametrize(("images", "side"), [(2, 256), (6, 256), (2, 448)])
def test_the_forecast_is_near_what_a_step_takes(images, side):
    run = subprocess.run([sys.executable, "-c", STEP, str(images), str(side)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    taken, forecast = map(int, run.stdout.split())
    assert 0.8 < forecast / taken < 1.3, (taken >> 20, forecast >> 20)


def test_the_forecast_grows_with_images_and_pixels_and_leaves_the_model_as_it_was():
    model = models.maskrcnn_small(2, min_size=300).train()
    state = {name: value.copy() for name, value in model.state_dict().items()}
    one, two, large = (
        memory.training_memory(model, *size) for size in ((1, 64, 64), (2, 64, 64), (1, 128, 64))
    )
    assert one < two and one < large
    assert model.transform.min_size == 300 and all(p.grad is None for p in model.parameters())
    assert all(np.array_equal(value, state[name]) for name, value in model.state_dict().items())
