# ruff: noqa: E402, E501

# %% [markdown]
# # 10 Fine-tune on your own images
#
# **Time** an hour to read, 2 to 3 hours with the exercises, and more with images of your own; it runs in
# about three minutes, nearly all of which is training. **Needs** notebooks 01 (the tape), 07 (the heads and
# their losses) and 09 (SGD and AP). No GPU, no downloads.
#
# You have ten photos, somebody has drawn around the objects in them, and there are weights that were trained on something
# else. This notebook goes from there to a model, and to a number that says how good it is. The second is the harder part.
# Afterwards you can
#
# 1. turn annotations into COCO JSON, and find what is wrong with them before training does;
# 2. say which arrays of a trained network fit yours, which start afresh, and what a new head does to the layers below it
#    in the first steps;
# 3. say what freezing does to the backward pass, what it saves and what it costs, and prove that frozen layers did not move;
# 4. draw a learning curve, and say how far an AP from twenty images can be trusted;
# 5. split a data set so that the score is honest, and say how far off it is if you do not.

# %%
# Where minimask is missing, it is installed from the clone or wheel that MINIMASK_CLONE names, if it does.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import distributions

from IPython.core.error import UsageError

cupy = [f"{d.name}=={d.version}" for d in distributions() if str(d.name).startswith("cupy")]
if importlib.util.find_spec("minimask") is None:
    where = os.environ.get("MINIMASK_CLONE")
    if not where:
        raise UsageError("minimask is missing: '%pip install PATH' installs it from a clone or a wheel.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if subprocess.run([*pip, where, *cupy]).returncode:  # named with its version, a CuPy that is there stays
        raise UsageError(f"minimask is missing, and pip could not install it from MINIMASK_CLONE, {where}.")

import minimask

FAST = os.environ.get("MINIMASK_FAST") == "1"  # fewer points and steps: how the tests run this notebook
print(f"minimask {minimask.__version__}; CuPy: {', '.join(cupy) or 'none, and none is needed'}")

# %%
import base64
import io
import json
import shlex
import tempfile
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageFilter

from minimask import InputError, Tensor, exercises, models, tutorial
from minimask import functions as F
from minimask.data import Augmentation, Batches, Figures, Shapes, read_coco
from minimask.data.figures import CORNERS, INSET
from minimask.data.sample import PixelBox, crop
from minimask.models.recognition import recognise
from minimask.models.starting import Start, fill
from minimask.randomness import Draws
from minimask.results.evaluate import evaluate, score
from minimask.training.loop import training_step
from minimask.training.optim import SGD, LearningRate
from minimask.tutorial import BLUE, GREEN, GREY, ORANGE, RED, source
from minimask.weights import read_weights, write_safetensors

plt.rcParams["figure.dpi"] = 85
FOLDER = tempfile.TemporaryDirectory()  # all files of this notebook; gone when it ends
WORK = Path(FOLDER.name)

# %% [markdown]
# ## The idea in a picture
#
# The notebook may not download anything, so the photos are drawn: kites and arrows of any colour, in front of a
# noisy background with a colour gradient. Everything else is as in real life. A *scene* is photographed several times; between
# the shots the camera moves a little and the light changes. The pretrained network knows other things: circles, squares and
# triangles.


# %%
# alt: Two rows of five noisy pictures with white outlines around plain shapes. Above, what the network was
#   trained on: circles, squares and triangles; below, your photos: kites and arrows. The first three photos
#   are shots of scene 0 and look alike but for a small shift.
def scenes(count, seed):
    """`count` scenes with kites and arrows only, as samples with masks and corners."""
    drawn = Figures(100 * count, seed, size=120, objects=(2, 5))
    found = (scene for scene in drawn if len(scene.labels) and 1 not in scene.labels)  # 1: a triangle
    return [next(found) for _ in range(count)]


def photograph(scene, shot):
    """One shot of a scene, 112 x 96 pixels: the camera and the light are a little different each time."""
    rng = np.random.default_rng([scene.image_id, shot])
    x, y = (int(v) for v in rng.integers(0, [9, 25]))
    seen = crop(scene, PixelBox(x, y, x + 112, y + 96))
    image = seen.image * rng.uniform(0.85, 1.15) + rng.normal(0, 0.02, seen.image.shape)
    return replace(seen, image=image.clip(0, 1))


def smoothed(image):
    """An image to look at, without most of its noise: the notebook stays small."""
    pixels = Image.fromarray((image.transpose(1, 2, 0) * 255).round().astype(np.uint8))
    return pixels.filter(ImageFilter.MedianFilter(3))


def picture(axes, sample, title=""):
    axes.imshow(smoothed(sample.image))
    for mask in sample.masks:
        axes.contour(mask, [0.5], colors="white", linewidths=1)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


known = Shapes(400 if FAST else 1200, seed=1, size=96, objects=(1, 4))  # what the pretrained network learns
mine = scenes(40, seed=1)
figure, axes = plt.subplots(2, 5, figsize=(11, 4.2), dpi=60, layout="constrained")
for k in range(5):
    names = ", ".join(known.class_names[label - 1] for label in known[k + 1].labels)
    picture(axes[0, k], known[k + 1], names)
for k, (scene, shot) in enumerate([(0, 0), (0, 1), (0, 2), (3, 0), (5, 0)]):
    picture(axes[1, k], photograph(mine[scene], shot), f"scene {scene}, shot {shot}")
axes[0, 0].set_ylabel("what it was trained on")
axes[1, 0].set_ylabel("your photos")
plt.show()

# %% [markdown]
# The three shots of scene 0 are three images, and very nearly one and the same. Remember them.
#
# ## From ten photos to COCO JSON
#
# The annotation tool labelme writes a JSON file beside each photo: a polygon for what was clicked corner by corner, a small
# PNG for what was painted. We write ten of these as a person would, and then make four mistakes in them that people do make.


# %%
def outline(named, label):
    """The corners of a kite or an arrow, (4, 2), from its keypoints, which lie a little inside of them."""
    tip, _, tail, _ = np.array(CORNERS[label])[:, 1]
    middle = (tail * named[0] - tip * named[2]) / (tail - tip)  # between the two, where the drawing has 0
    return middle + (named - middle) / INSET


def annotation(sample, i):
    """One object as labelme saves it: a polygon if all its corners are seen, else a painted mask."""
    label, keypoints = Figures.class_names[sample.labels[i] - 1], sample.keypoints[i]
    corners = outline(keypoints[:, :2], label)
    in_photo = (corners >= 0).all() and (corners <= sample.image.shape[:0:-1]).all()
    if in_photo and (keypoints[:, 2] == 2).all():  # visible
        return {"label": label, "shape_type": "polygon", "points": corners.round(1).tolist()}
    x1, y1, x2, y2 = sample.boxes[i].astype(int).tolist()
    painted = io.BytesIO()
    Image.fromarray(sample.masks[i, y1:y2, x1:x2].astype(bool)).save(painted, "PNG")
    mask = base64.b64encode(painted.getvalue()).decode()
    return {"label": label, "shape_type": "mask", "points": [[x1, y1], [x2 - 1, y2 - 1]], "mask": mask}


def save(folder, name, sample):
    """A photo and its labelme JSON."""
    (WORK / folder).mkdir(parents=True, exist_ok=True)
    height, width = sample.image.shape[1:]
    pixels = (sample.image.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(WORK / folder / f"{name}.png")
    shapes = [annotation(sample, i) for i in range(len(sample.labels))]
    document = {"version": "5.5.0", "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
    document |= {"imageHeight": height, "imageWidth": width}
    (WORK / folder / f"{name}.json").write_text(json.dumps(document))


def edit(name, change):
    """Change one labelme JSON."""
    path = WORK / "photos" / f"{name}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def fold(text, width=95):
    """Lines that the page shows whole."""
    return textwrap.wrap(text, width, subsequent_indent="    ", break_on_hyphens=False)


def command(line):
    """Run minimask's command in the folder of this notebook; print what it says."""
    run = [sys.executable, "-m", "minimask", *shlex.split(line)]
    done = subprocess.run(run, cwd=WORK, capture_output=True, text=True)
    print(" \\\n".join(fold(f"$ minimask {line}", 93)))
    for text in (done.stdout + done.stderr).strip().splitlines():
        if "images/s" not in text:  # without progress bars
            print("\n".join(fold(text)))
    return done.returncode


for k in range(10):
    save("photos", f"photo{k:02d}", photograph(mine[k], 0))
edit("photo03", lambda d: d.update(imageHeight=112, imageWidth=96))  # turned after it was annotated
edit("photo04", lambda d: d["shapes"][0].update(label="arow"))  # a slip of the finger
edit("photo05", lambda d: d["shapes"].pop(0))  # overlooked
edit("photo06", lambda d: d["shapes"].append(d["shapes"][0]))  # saved twice
status = command("convert photos --output train.json")
assert status == 2 and not (WORK / "train.json").exists()

# %% [markdown]
# The first mistake is found at once, nothing is written, and the message names the file, the fault and the fix. We fix it and go
# on. `convert` reads the rest; `check-data` reads the result as training would, and lists what will do harm.

# %%
edit("photo03", lambda d: d.update(imageHeight=96, imageWidth=112))
assert command("convert photos --output train.json") == 0
print()
assert command("check-data --data train.json --images photos --output check --set data.crop=0") == 0
report = json.loads((WORK / "check" / "report.json").read_text())
found = {(entry["level"], entry["kind"]) for entry in report["findings"]}
assert found == {("harmful", "duplicate"), ("note", "few objects")}

# %% [markdown]
# That is two of the other three: the object that was saved twice, and "arow", which became a class of its own with a single
# object. Had we told `convert` the names, it would have refused the typo: `--classes` is worth typing. (A third of the objects
# overlap no anchor by an IoU of 0.5, because `maskrcnn_small` has few anchors. It does no great harm here; the
# section "Anchors" of [docs/own_data.md](../docs/own_data.md) says when it does.)

# %%
assert command("convert photos --classes kite,arrow --output train.json") == 2
edit("photo04", lambda d: d["shapes"][0].update(label="arrow"))
edit("photo06", lambda d: d["shapes"].pop())
print()
assert command("convert photos --classes kite,arrow --output train.json") == 0
assert command("check-data --data train.json --images photos --output check --set data.crop=0") == 0
assert json.loads((WORK / "check" / "report.json").read_text())["findings"] == []

# %% [markdown]
# "Nothing to mend", says the tool, and it is wrong: the fourth mistake is still there. **No program can tell from the annotations
# that one is missing.** That is what the contact sheet is for, which `check-data` has drawn. Here is its second row, enlarged:

# %%
# alt: Four photos of the contact sheet in a row, with outlines, boxes and names on their objects and a count
#   below each. In photo05 the largest object, a bright green arrow, bears none of these: the count says 2
#   arrow where three can be seen.
sheet = Image.open(WORK / "check" / "sheet.png")
row = sheet.crop((0, sheet.height // 3, sheet.width, 2 * sheet.height // 3 - 8)).quantize(128)
figure, axes = plt.subplots(figsize=(11, 11 * row.height / row.width), dpi=65, layout="constrained")
axes.imshow(row.convert("RGB"))
axes.axis("off")
plt.show()

# %% [markdown]
# The green arrow in photo05 has no outline. In training it would have counted as background, and the better the network found it,
# the more it would have been punished. We annotate it, and thirty more photos; and another sixty, to judge by.

# %%
save("photos", "photo05", photograph(mine[5], 0))  # again, with all its objects
for k in range(10, 40):
    save("photos", f"photo{k:02d}", photograph(mine[k], 0))
for k, scene in enumerate(scenes(12 if FAST else 60, seed=2)):
    save("test", f"test{k:02d}", photograph(scene, 0))
for line in ("photos", "test"):
    assert command(f"convert {line} --classes kite,arrow --output {line}.json") == 0
photos, test = (read_coco(WORK / f"{name}.json", WORK / name) for name in ("photos", "test"))
assert photos.class_names == test.class_names == ("kite", "arrow") and not photos.notes

# %% [markdown]
# ## Weights of another task
#
# Published weights would have to be downloaded, so we make our own: a narrow `maskrcnn_small`, with a quarter of its parameters,
# trained briefly on circles, squares and triangles. With `torchvision:maskrcnn_resnet50_fpn` in its place, nothing below would
# change but the size.

# %%
NARROW = dict(channels=(16, 32, 64, 128), fpn_channels=32, box_width=128)
NARROW |= dict(rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100, box_batch_size_per_image=48)
NARROW |= dict(rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=50, box_detections_per_img=20)
AS_IT_IS, MIRRORED = Augmentation(), Augmentation(flip_horizontal=True, flip_vertical=True)
PRETRAINING, STEPS = (16, 6) if FAST else (400, 150)


def fit(model, samples, steps=STEPS, seed=0, augmentation=AS_IT_IS, batch=2, watch=None):
    """Train on a list of samples; return the losses. `watch(step)` is called after each step."""
    batches = Batches(samples, batch, augmentation, seed)
    optimizer = SGD(model.named_parameters(), lr=0.02)
    rate = LearningRate(0.02, total_steps=steps, warmup_steps=10)
    losses = []
    for step in range(steps):
        model.train()
        row = training_step(model, optimizer, batches(step), Draws(seed, step), rate(step), clip_norm=10)
        losses.append(row["loss"])
        if watch:
            watch(step + 1)
    return np.array(losses)


pretrained = models.maskrcnn_small(len(known.class_names) + 1, seed=0, **NARROW)
losses = fit(pretrained, known, PRETRAINING, augmentation=MIRRORED, batch=4)
write_safetensors(WORK / "shapes.safetensors", pretrained.state_dict())
print(f"{sum(p.data.size for p in pretrained.parameters()):,} parameters, {PRETRAINING} steps")
print(f"loss: {losses[:10].mean():.2f} in the first ten steps, {losses[-10:].mean():.2f} in the last ten")
assert losses[-10:].mean() < losses[:10].mean()

# %% [markdown]
# ## Whose weights fit
#
# Our network has two classes and the background, the other one three and the background. `load_state_dict` is strict: it names every
# array that has another shape, is missing or is left over, and changes nothing.

# %%
state = read_weights(WORK / "shapes.safetensors")
model = models.maskrcnn_small(3, seed=1, **NARROW)
try:
    model.load_state_dict(state)
except InputError as error:
    print("\n  ".join(str(error).replace(": ", ":\n", 1).replace(", roi", ",\nroi").splitlines()))
unfit = [name for name, array in model.state_dict().items() if state[name].shape != array.shape]

# %% [markdown]
# These are exactly the arrays whose rows belong to classes: the class scores, a box for each class, a mask for each class.
# Everything else fits, including the two layers below the class scores. `minimask train --weights` calls this:

# %%
source(fill)


# %%
def fine_tunable(seed, classes=3):
    """A network with our classes, the other task's weights where they fit, and fresh heads of its seed."""
    model = models.maskrcnn_small(classes, seed=seed, **NARROW)
    origin, arrays = recognise(state)
    notes = []
    fill(model, Start(Path("shapes.safetensors"), arrays, origin, origin.note), notes.append)
    return model, notes


model, notes = fine_tunable(seed=1)
print(*(line for note in notes for line in fold(note)), sep="\n")
fresh = models.maskrcnn_small(3, seed=1, **NARROW).state_dict()
for name, array in model.state_dict().items():
    assert np.array_equal(array, fresh[name] if name in unfit else state[name])

# %% [markdown]
# **The trap.** Only shapes are compared. If we had three classes, everything would fit, and class 1 of the head would still mean
# "circle" (`minimask train`, which knows the names of your classes, prints a line that says so). As a starting point that is no
# disaster, since the head learns its new classes as it would from random numbers; but it is not *your* head, and without training
# it calls kites circles.

# %%
same_number, notes = fine_tunable(seed=1, classes=4)
print(*notes, sep="\n")
assert len(notes) == 1
assert all(np.array_equal(array, state[name]) for name, array in same_number.state_dict().items())

# %% [markdown]
# ## What a new head does to the others
#
# With features $x$ of a RoI, logits $z = W x$, probabilities $p$ and the true class $t$ (one-hot $e_t$), notebook 07 had
#
# $$\frac{\partial L}{\partial z} = p - e_t, \qquad
# \frac{\partial L}{\partial W} = (p - e_t)\, x^\top, \qquad
# \frac{\partial L}{\partial x} = W^\top (p - e_t).$$
#
# A trained head has $p \approx e_t$ on most RoIs. A new one has logits near 0, so $p = 1/C$ for each of $C$ classes, and
#
# $$\lVert p - e_t \rVert^2 = (1 - \tfrac1C)^2 + (C - 1) \tfrac1{C^2} = 1 - \tfrac1C ,$$
#
# on *every* RoI, those of the background included: for $C = 3$ the norm is $0.82$. (The most it can be is $\sqrt 2$, for a head that
# is certain of a wrong class.) So $\partial L / \partial W$ is large. One often reads that a new head therefore wrecks the trained
# layers below it. But look at the third formula: what reaches them has a factor $W$, and the weights of `cls_score` begin with a
# standard deviation of 0.01.
#
# We measure the gradient of the class loss alone: its norm at the weights of the class scores, and at the layer below them.


# %%
def class_gradients(model, samples):
    """Norms of the class loss's gradient at the class scores' weights and at the layer below."""
    for p in model.parameters():
        p.grad = None
    model.train()
    record = model.training_record([s.image for s in samples], [s.target() for s in samples])
    record.losses["loss_classifier"].backward()
    heads = dict(model.named_parameters())
    names = ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_head.fc7.weight")
    norms = [float(np.linalg.norm(heads[name].grad)) for name in names]
    logits = Tensor(record.box.logits.numpy(), requires_grad=True)
    F.softmax_cross_entropy(logits, record.rois.labels).backward()
    rows = np.linalg.norm(logits.grad, axis=1) * len(logits.grad)  # of p - e_t, without the mean's 1 / R
    return rows.mean(), *norms


own = [photos[i] for i in range(4)]
cases = {"trained head, its own task": (pretrained, [known[i] for i in range(4)])}
cases["new head, our photos"] = (fine_tunable(seed=1)[0], own)
after, _ = fine_tunable(seed=1)
fit(after, [photos[i] for i in range(20)], 10)
cases["the same, 10 steps later"] = (after, own)
print(f"{'class loss':<28}{'mean |p - e_t|':>15}{'at W':>10}{'below it':>10}{'ratio':>8}")
ratios, spread = {}, {}
for name, (network, samples) in cases.items():
    spread[name], at, below = class_gradients(network, samples)
    ratios[name] = below / at
    print(f"{name:<28}{spread[name]:>15.2f}{at:>10.3f}{below:>10.4f}{ratios[name]:>8.3f}")
trained, new, later = ratios.values()
assert abs(spread["new head, our photos"] - np.sqrt(2 / 3)) < 0.1
assert new < 0.5 * trained

# %% [markdown]
# The new head's own gradient is 25 times that of the trained one. What reaches the layer below is not even three times as large: the
# small initial weights are a damper, and that is why they are small. Ten steps later $W$ has grown and passes on nearly as large a
# share as a trained head does, but by then $p - e_t$ has fallen. So do not start a new head with large weights; and start with a low
# learning rate (a warm-up), because of what does come through.
#
# Does the code compute what the formulas say? Here is the class loss as a function of features and weights, against finite
# differences. Rounding and truncation meet as in notebook 01.

# %%
# alt: Relative error over the step h, both logarithmic: central differences and five points fall along the
#   rounding line and then rise, with the square and the fourth power of h. The valley of the first is near
#   1e-10 at a step of 1e-5 to 1e-4, that of the second reaches 1e-13 at about 6e-4.
rng = np.random.default_rng(0)
x, w, labels = rng.normal(size=(12, 8)), 0.01 * rng.normal(size=(3, 8)), rng.integers(0, 3, 12)
steps = np.logspace(-13, 0, 27 if FAST else 53)
errors = tutorial.step_errors(
    lambda x, w: F.softmax_cross_entropy(F.linear(x, w), labels),
    [x, w],
    kinds=("central", "five points"),
    steps=steps,
)
errors.plot(title="a new head: gradient of the class loss in features and weights")
plt.show()
assert errors.best() < 1e-8

# %% [markdown]
# ## Freezing: the tape stops
#
# A frozen parameter has `requires_grad = False`. It gets no gradient, and SGD passes it by. That alone would save little. What
# matters is the consequence for the tape: a Function none of whose inputs needs a gradient is not recorded, *it keeps nothing for a
# backward pass*, and its output needs no gradient either. Freeze the backbone from the pixels up, and nothing at all is recorded
# before the first layer that trains:

# %%
source(minimask.Function._run, minimask.Function.save)


# %%
def freeze(model, prefix):
    """Freeze the parameters whose names begin with `prefix`, and return them."""
    chosen = {name: p for name, p in model.named_parameters() if prefix and name.startswith(prefix)}
    for p in chosen.values():
        p.requires_grad = False
    return chosen


def arrays_in(saved):
    if isinstance(saved, np.ndarray):
        return [saved]
    values = saved.values() if isinstance(saved, dict) else saved if isinstance(saved, (tuple, list)) else ()
    return [array for value in values for array in arrays_in(value)]


def tape_of(loss):
    """How many calls are on the tape, and how many bytes of arrays they keep."""
    nodes, stack, kept = set(), [loss.creator], {}
    while stack:
        node = stack.pop()
        if node in nodes:
            continue
        nodes.add(node)
        for array in arrays_in(node.saved):
            memory = array if array.base is None else array.base
            kept[id(memory)] = getattr(memory, "nbytes", array.nbytes)
        stack += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return len(nodes), sum(kept.values())


batch = [photos[i] for i in range(2)]
networks = {"everything trains": "", "body frozen": "backbone.body", "backbone frozen": "backbone"}
prefixes, networks = networks, {name: fine_tunable(seed=1)[0] for name in networks}
for name, prefix in prefixes.items():
    freeze(networks[name], prefix)
taped, seconds = {}, {name: [] for name in networks}
for _ in range(3 if FAST else 9):  # in turns, so that whatever else the machine does affects all three
    for name, model in networks.items():
        begin = time.perf_counter()
        loss = sum(model.loss([s.image for s in batch], [s.target() for s in batch], Draws(0, 0)).values())
        between = time.perf_counter()
        taped[name] = tape_of(loss)
        middle = time.perf_counter()
        loss.backward()
        seconds[name].append((between - begin, time.perf_counter() - middle))
print(f"{'':<20}{'trained':>10}{'calls on tape':>15}{'arrays kept':>14}{'forward':>10}{'backward':>10}")
trained = {
    n: sum(p.data.size for p in model.parameters() if p.requires_grad) for n, model in networks.items()
}
for name, (calls, kept) in taped.items():
    forward, backward = 1000 * np.min(seconds[name], axis=0)
    numbers = f"{trained[name]:>10,}{calls:>15}{kept / 2**20:>10.1f} MiB"
    print(f"{name:<20}{numbers}{forward:>7.0f} ms{backward:>7.0f} ms")
(all_calls, all_kept), _, (few_calls, few_kept) = taped.values()
assert few_calls < all_calls / 2 and few_kept < 0.7 * all_kept
back = {name: np.min(values, axis=0)[1] for name, values in seconds.items()}
assert FAST or back["backbone frozen"] < back["everything trains"]

# %% [markdown]
# The forward pass costs about what it did before; the backward pass ends where nothing below it trains. What
# is kept does not fall to nothing, because both heads keep their arrays for every RoI.
#
# Order matters. If the *last* stage is frozen and the first one trains, the backward pass must still go through the frozen stage to
# reach the first: you save the gradients of its weights, but not the pass. That is why one freezes from the pixels up, and why the
# functions that build a model count the layers that train from the other end:

# %%
total = sum(p.data.size for p in models.maskrcnn_resnet50_fpn(3, seed=None).parameters())
print(f"maskrcnn_resnet50_fpn, {total / 1e6:.1f} million parameters")
shares = []
for layers in range(6):
    network = models.maskrcnn_resnet50_fpn(3, trainable_backbone_layers=layers, seed=None)
    shares.append(sum(p.data.size for p in network.parameters() if p.requires_grad))
    print(f"  trainable_backbone_layers={layers}: {shares[-1] / 1e6:5.1f} million train")
assert shares == sorted(shares)

# %% [markdown]
# ## Fine-tuned, frozen, from scratch
#
# We train three networks: the same twenty photos, the same number of steps, the same order of images. Sixty photos that none of them has seen are the
# judge; the score is the AP50 of the masks. The proof that frozen is frozen is not that the loss looks right, but that no bit has
# changed.


# %%
# alt: Left, losses over 150 steps: from scratch it falls from 2.2 to 1.0; fine-tuned and with a frozen
#   backbone it lies below that throughout, from 1.8 to 0.6 and 0.7. Right, bars of mask AP50 on other photos:
#   0.28 from scratch, 0.47 fine-tuned, 0.47 with the backbone frozen.
def ap50(model, dataset):
    return evaluate(model.eval(), dataset).mask["AP50"]


order = np.random.default_rng(0).permutation(len(photos))  # one draw of twenty photos from forty
twenty = [photos[i] for i in order[:20]]
finished, curves = {}, {}
for name in ("from scratch", "fine-tuned", "backbone frozen"):
    model = models.maskrcnn_small(3, seed=0, **NARROW) if name == "from scratch" else fine_tunable(seed=0)[0]
    frozen = freeze(model, "backbone" if "frozen" in name else "")
    before = {each: p.data.copy() for each, p in model.named_parameters()}
    curves[name] = fit(model, twenty)
    finished[name] = model
    moved = {each for each, p in model.named_parameters() if not np.array_equal(p.data, before[each])}
    assert not moved & frozen.keys()  # to the bit
    print(f"{name:<16} {len(moved)} of {len(before)} arrays moved, {len(frozen)} were frozen")
results = {name: evaluate(model.eval(), test) for name, model in finished.items()}
scores = {name: result.mask["AP50"] for name, result in results.items()}

_, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", width_ratios=(1.6, 1))
looks = dict(zip(scores, ((GREY, ":", "o"), (BLUE, "-", "s"), (ORANGE, "--", "^"))))
window = min(10, STEPS // 2)
for name, values in curves.items():
    smooth = np.convolve(values, np.ones(window) / window, "valid")
    axes[0].plot(np.arange(len(smooth)) + window, smooth, looks[name][1], color=looks[name][0], label=name)
axes[0].set(xlabel="step", ylabel=f"loss, mean of {window} steps", title="twenty photos, the same steps")
axes[0].grid(alpha=0.3)
axes[0].legend()
for k, (name, value) in enumerate(scores.items()):
    axes[1].bar(k, value, color=looks[name][0], width=0.6)
    axes[1].text(k, value, f"{value:.2f}", ha="center", va="bottom")
axes[1].set(xticks=range(3), ylabel="mask AP50 on other photos", ylim=(0, max(scores.values()) * 1.2 + 0.01))
axes[1].set_xticklabels([name.replace(" ", "\n") for name in scores])
plt.show()
for name, result in results.items():
    print(
        f"{name:<16} mask AP {result.mask['AP']:.3f}, AP50 {result.mask['AP50']:.3f}; box AP50 {result.box['AP50']:.3f}"
    )
assert FAST or min(scores["fine-tuned"], scores["backbone frozen"]) > scores["from scratch"]

# %% [markdown]
# There are three things to see.
#
# * **Other people's shapes help.** The fine-tuned network begins with a lower loss, and after the same number of steps its AP50 on
#   photos that it has never seen is 0.47 instead of 0.28 (on another machine, with other last bits, 0.39 instead of 0.31: training
#   is chaotic, so your numbers will differ). It had to learn what a kite is, but not what an edge is, where an object
#   ends, or what a box around it looks like.
# * **Freezing costs nothing that sixty photos can show**, and it saves a good part of each step: our photos look like what the
#   backbone was trained on. Where yours do not (X-rays, microscopes), the layers that most need to change are the frozen ones. Then
#   train them too, or unfreeze them later.
# * Nothing was frozen by mistake, and nothing frozen has moved: the counts and the assertion say so, and the loss could not.
#
# The loss says how well the network knows its twenty photos. What we want to know is how it does on others. Here are five of them,
# with every object found with a score above one half. Kites are named above their boxes, arrows below; where one object has both names, the
# network could not decide (suppression works within a class only).

# %%
# alt: Five test photos in two rows with outlines, names and scores of what is found. From scratch, several
#   figures have no outline, and one outline spans two arrows. Fine-tuned, more is found, among it the yellow
#   kite of the last photo, but that one is named both kite 0.6 and arrow 0.5.
_, axes = plt.subplots(2, 5, figsize=(11, 4.2), dpi=60, layout="constrained")
for row, name in zip(axes, ("from scratch", "fine-tuned")):
    for k, panel in enumerate(row):
        image = test.image(k)
        (result,) = finished[name].eval()([image])
        panel.imshow(smoothed(image))
        for i in np.flatnonzero(result["scores"] > 0.5):
            panel.contour(result["masks"].numpy()[i, 0], [0.5], colors="white", linewidths=1)
            x1, y1, _, y2 = result["boxes"][i]
            name_of = photos.class_names[result["labels"][i] - 1]
            at = dict(y=max(y1, 11), va="bottom") if name_of == "kite" else dict(y=min(y2, 84), va="top")
            shown = dict(color="white", fontsize=9, bbox=dict(color="black", alpha=0.5, pad=0.5, lw=0))
            panel.text(x1.clip(1, 66), s=f"{name_of} {result['scores'][i]:.1f}", **shown, **at)
        panel.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## How far can an AP be trusted?
#
# Roughly: each of the $M$ objects in the test images is found or not, with a probability $p$ near the AP. If they were
# independent, the mean of $M$ such draws would have the standard error
#
# $$\mathrm{SE} \approx \sqrt{\frac{p (1 - p)}{M}} \le \frac{1}{2 \sqrt M}, \qquad M = m\, n \text{ for } n \text{ images of } m \text{ objects.}$$
#
# AP is not quite that mean: it also counts false alarms, and takes the precision where it is best. And objects in one photo are not
# independent: they share its light, and hide each other. So we also measure the spread, by the **bootstrap**: we keep the detections
# of one network, draw $n$ of the sixty test images with replacement, score those, draw again, and see how much the scores vary.

# %%
# alt: Mask AP50 of one network over 10, 20, 40 and 60 test images, drawn many times: the dots spread from
#   0.39 to 0.74 with ten images and much less with sixty. Their means, with error bars, come down from 0.54
#   to the dashed line at 0.47; a grey band around it, the rough formula, narrows likewise.
document, found = test.coco_document(), results["fine-tuned"].detections
ids = [entry["id"] for entry in document["images"]]


def resampled(images):
    """The AP50 if these had been the test images; an image may occur several times."""
    truth = {"categories": document["categories"], "images": [], "annotations": []}
    detections = []
    for copy, image in enumerate(images, start=1):
        truth["images"] += [entry | {"id": copy} for entry in document["images"] if entry["id"] == image]
        truth["annotations"] += [
            entry | {"id": len(truth["annotations"]) + k, "image_id": copy}
            for k, entry in enumerate((a for a in document["annotations"] if a["image_id"] == image), start=1)
        ]
        detections += [entry | {"image_id": copy} for entry in found if entry["image_id"] == image]
    return score(truth, detections, 20, ["segm"]).mask["AP50"]


rng = np.random.default_rng(1)
sizes, repeats = (10, 20, 40, 60), 8 if FAST else 60
draws = {n: np.array([resampled(rng.choice(ids, n)) for _ in range(repeats)]) for n in sizes}
objects, p = len(document["annotations"]) / len(ids), scores["fine-tuned"]
rough = np.sqrt(p * (1 - p) / (objects * np.array(sizes)))
measured = np.array([values.std(ddof=1) for values in draws.values()])
_, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for n, values in draws.items():
    jitter = np.random.default_rng(n).uniform(-0.06, 0.06, len(values))
    axes.plot(n * np.exp(jitter), values, ".", color=BLUE, ms=4, alpha=0.5)
axes.errorbar(
    sizes,
    [v.mean() for v in draws.values()],
    measured,
    fmt="s",
    color=ORANGE,
    capsize=6,
    lw=2,
    label="mean and standard deviation",
)
axes.fill_between(sizes, p - rough, p + rough, color=GREY, alpha=0.25, label="$\\pm \\sqrt{p (1 - p) / m n}$")
axes.axhline(p, color=GREY, lw=1, ls="--", label="the AP50 on all test images, $p$")
axes.set_xscale("log")
axes.set_xticks(sizes, sizes)
axes.minorticks_off()
axes.set(xlabel="test images", ylabel="mask AP50", title="one network, other test images")
axes.legend(loc="upper right", fontsize=8)
plt.show()
for n, a, b in zip(sizes, rough, measured):
    print(f"{n:>3} images: standard error {a:.3f} roughly, {b:.3f} by drawing images again")
assert FAST or (
    measured[0] > 1.5 * measured[-1] and np.all((0.5 < measured / rough) & (measured / rough < 2))
)
assert FAST or draws[10].mean() > p

# %% [markdown]
# The rough formula is good enough to plan with. With ten test images an AP50 of one half means "0.4 to 0.6", and that is only one
# standard error: a third of the draws lie outside. Halving the error takes four times as many images. So when somebody
# reports that a trick gained two points on twenty images, you know what to think.
#
# The figure says one more thing: the squares on the left lie higher than the network deserves. AP takes, at each recall, the
# best precision at that recall or any higher one, and among few detections the best is often good by chance. **A small test set flatters.**
#
# Two networks judged on the *same* images share what is hard about them, so the difference of their scores is known better than
# either score. Always compare on the same test set.
#
# ## The learning curve
#
# Is it worth annotating ten more photos? Train on 5, 10 and 20 with the same number of steps, and look. Which five they are is a
# matter of chance, so we draw them twice; the order of the images and the fresh heads change with the draw.

# %%
# alt: Mask AP50 over 5, 10 and 20 photos to train on. The mean of two draws rises from 0.39 to 0.46, well
#   above the dotted line at 0.28, from scratch. The draws differ most at ten photos: one has risen to 0.46,
#   the other, at 0.40, is a little lower than with five.
DRAWS = 2
counts, curve, last = (5, 10, 20), {}, {(0, 20): curves["fine-tuned"][-20:].mean()}
for draw in range(DRAWS):
    order = np.random.default_rng(draw).permutation(len(photos))
    for count in counts:
        if (draw, count) == (0, 20):  # trained above
            curve[draw, count] = scores["fine-tuned"]
            continue
        model, _ = fine_tunable(seed=draw)
        last[draw, count] = fit(model, [photos[i] for i in order[:count]], seed=draw)[-20:].mean()
        curve[draw, count] = ap50(model, test)
table = np.array([[curve[draw, count] for count in counts] for draw in range(DRAWS)])

_, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
for draw in range(DRAWS):
    axes.plot(
        counts, table[draw], "-", color=BLUE, lw=0.8, marker="so"[draw], alpha=0.8, label=f"draw {draw}"
    )
axes.plot(counts, table.mean(axis=0), "-", color=BLUE, lw=2.5, label="mean")
axes.axhline(scores["from scratch"], color=GREY, ls=":", label="from scratch, 20 images")
axes.set_xscale("log")
axes.set_xticks(counts, counts)
axes.minorticks_off()
axes.set(
    xlabel="photos to train on",
    ylabel="mask AP50 on other photos",
    ylim=(0, 1.1 * table.max() + 0.01),
    title=f"{STEPS} steps each",
)
axes.grid(alpha=0.3)
axes.legend(fontsize=8, loc="lower right")
plt.show()
for draw in range(DRAWS):
    print(f"draw {draw}:", ", ".join(f"{n} images {v:.3f}" for n, v in zip(counts, table[draw])))
print("mean:   ", ", ".join(f"{n} images {v:.3f}" for n, v in zip(counts, table.mean(axis=0))))
print(f"difference between the draws: {np.abs(table[0] - table[1]).round(3)}")
losses = [np.mean([last[draw, count] for draw in range(DRAWS)]) for count in counts]
print("loss at the end:", ", ".join(f"{n} images {v:.2f}" for n, v in zip(counts, losses)))
assert FAST or (table.mean(axis=0)[2] > table.mean(axis=0)[0] and losses[0] < losses[2])

# %% [markdown]
# On average more photos are better, and the curve has not levelled off: annotate more. But look at the single draws. With five
# or ten photos they differ by about as much as doubling the photos gains, and one of them says that ten photos are worse than five. With
# one draw, you might conclude anything. (The sixty test photos are the same for all, so they are not what varies: it is which photos
# one happened to take, and in which order.)
#
# The loss goes the other way: it ends lowest with five photos, where AP is lowest too. The network has learnt those photos by heart, and
# that is what makes the next mistake possible.
#
# ## A split with a leak
#
# Someone stands in front of twelve scenes and takes three shots of each: 36 images, a third of which is set aside for validation. The
# usual way is to take every third image: here, the third shot of each scene. The other way is to train on the same 24 images, but to
# validate on one shot each of twelve *other* scenes. Either way, no file is in both parts, and the network is the same: only
# its judge differs. We do this four times, with different scenes.

# %%
burst = scenes(24, seed=3)
for k, scene in enumerate(burst):
    for shot in range(3):
        save("bursts", f"scene{k:02d}-{'abc'[shot]}", photograph(scene, shot))
assert command("convert bursts --classes kite,arrow --output bursts.json") == 0
whole = json.loads((WORK / "bursts.json").read_text())
by_name = {entry["file_name"]: entry["id"] for entry in whole["images"]}


def part(name, wanted):
    """Write the images with these file names, and their annotations, as a data set of its own."""
    kept = {by_name[file] for file in wanted}
    chosen = {
        "images": [entry for entry in whole["images"] if entry["id"] in kept],
        "annotations": [entry for entry in whole["annotations"] if entry["image_id"] in kept],
    }
    (WORK / f"{name}.json").write_text(json.dumps(whole | chosen))
    return read_coco(WORK / f"{name}.json", WORK / "bursts")


def named(numbers, shots="abc"):
    return [f"scene{k:02d}-{shot}.png" for k in numbers for shot in shots]


SPLITS = 1 if FAST else 4
splits = {}  # images to train on, and two sets to validate on
for draw in range(SPLITS):
    order = np.random.default_rng(draw).permutation(24)
    seen, unseen = order[:12], order[12:]
    judges = {"every third image": named(seen, "c"), "by scene": named(unseen, "c")}
    splits[draw] = named(seen, "ab"), judges
for train, judges in splits.values():
    assert len(train) == 24 and all(len(val) == 12 and not set(train) & set(val) for val in judges.values())
part("leaky-train", splits[0][0])
part("leaky-val", splits[0][1]["every third image"])
command(
    "check-data --data leaky-train.json --val leaky-val.json --images bursts --output check --set data.crop=0"
)
report = json.loads((WORK / "check" / "report.json").read_text())
assert report["findings"] == []

# %% [markdown]
# `check-data` compares the two parts: it would find the same file, the same bytes or the same pixels. Two shots of one scene are none
# of these, so it cannot know. *You* know, because you know who took which photo, and when. Write it down: in the file name, in a
# folder, in a table.
#
# Now train, and at some steps ask what each validation says, and what is true: the AP50 on the sixty photos of yet other scenes.

# %%
# alt: Two panels of mask AP50 over the steps, what validation says beside what is true: thin lines for four
#   splits, thick ones for their mean. Validated by every third image, the network is said to have 0.69 at the
#   end, where 0.49 is true; validated by scene, the two means meet at 0.49.
marks = [3, 6] if FAST else [30, 70, 120]

KINDS = ("every third image", "by scene")
told, true = {kind: [] for kind in KINDS}, []  # of each split, the AP50 at the marks
for draw, (train, judges) in splits.items():
    training = part("part-train", train)
    validations = {kind: part(f"part-val-{k}", judges[kind]) for k, kind in enumerate(KINDS)}
    model, _ = fine_tunable(seed=draw)
    seen = []

    def look(step, model=model, validations=validations, seen=seen):
        if step in marks:
            seen.append([ap50(model, judge) for judge in (*validations.values(), test)])

    fit(model, [training[i] for i in range(len(training))], marks[-1], seed=draw, watch=look)
    for values, column in zip((*told.values(), true), np.transpose(seen)):
        values.append(column)
told, true = {kind: np.array(values) for kind, values in told.items()}, np.array(true)

_, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
for panel, (kind, colour) in zip(axes, (("every third image", RED), ("by scene", GREEN))):
    panel.plot(marks, told[kind].T, "-", color=colour, lw=0.8, alpha=0.7)
    panel.plot(marks, true.T, "--", color=GREY, lw=0.8, alpha=0.7)
    panel.plot(
        marks, told[kind].mean(axis=0), "-o", color=colour, lw=2.5, label="what validation says, on average"
    )
    panel.plot(
        marks, true.mean(axis=0), "--s", color=GREY, lw=2.5, label="what is true: 60 other photos, on average"
    )
    panel.set(xlabel="step", title=f"validation: {kind}", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", fontsize=8)
axes[0].set_ylabel("mask AP50")
plt.show()
lie = {kind: (values - true)[:, -1] for kind, values in told.items()}
print(f"at the end                                     the truth {true[:, -1].round(2)}")
for kind in KINDS:
    said = f"{kind:<18} says {told[kind][:, -1].round(2)}"
    print(f"{said}, too high by {lie[kind].mean():.2f} on average")
gains = [(values[:, -1] - values[:, 0]).mean() for values in (*told.values(), true)]
print("from the first mark to the last: {:.2f}, {:.2f}; the truth {:.2f}".format(*gains))
assert FAST or lie["every third image"].mean() > max(0.1, lie["by scene"].mean())

# %% [markdown]
# The networks are the same; what differs is what is *said* of them. Judged by every third image, each of the four is praised beyond
# its worth, by 0.2 on average. That does three kinds of harm:
#
# 1. The number is wrong, and you will find out when the model is used.
# 2. It rises with the steps more than the truth does: part of the progress that it shows is learning by heart. Choose the number
#    of steps by it, and you are likely to train too long; compare two settings by it, and you favour the one that remembers better.
# 3. More shots of the same scenes make it rise further, so it rewards the wrong work.
#
# Twelve other scenes say 0.43, 0.56, 0.41 and 0.57 where 0.45, 0.54, 0.53 and 0.44 are true: twice nearly right, once 0.12 too low and
# once 0.13 too high. That is the spread that we estimated above: the rough standard error for twelve images of three objects
# is $\sqrt{0.25 / 36} = 0.08$. An honest split can be unlucky, but not in one direction only, and more scenes cure it. More scenes do
# not cure a leak.
#
# The network did not cheat. It learnt that the violet thing in front of the green wall is an arrow, which was true in validation, too.
# **Split by what will be new when the model is used**: another scene, another day, another patient, another camera.
#
# ## The same from the command line
#
# Here is all of the above in four commands. The folders `train` and `val` are the split, and all shots of a scene go into the same
# one. There are only three steps of training, to show the commands; the first command, before the four, makes the weights that one
# would otherwise download.

# %%
for k, scene in enumerate(burst[:6]):
    for shot in range(3):
        save("own/train" if k < 4 else "own/val", f"scene{k:02d}-{'abc'[shot]}", photograph(scene, shot))
FEW = "--set train.steps=3 --set train.batch_size=1 --set data.crop=96"
command(f"train --data shapes --output shapes-run {FEW}")
print("\nand now the four lines:\n")
status = command("convert own --split train --classes kite,arrow --output train.json")
status += command("convert own --split val --classes train.json --output val.json")
status += command(
    "check-data --data train.json --val val.json --images own --output check --set data.crop=96"
)
status += command(
    f"train --weights shapes-run/checkpoint.npz --data train.json --val val.json --images own --output run {FEW}"
)
assert status == 0 and (WORK / "run" / "checkpoint.npz").exists()

# %% [markdown]
# As above, the command names the heads that begin anew. To freeze the lower layers of a ResNet, add `--set model.trainable_layers=3`; in
# `maskrcnn_small` everything trains.
#
# ## Exercises
#
# `exercises.check` says that your function is right, or where it is wrong and which common mistake it looks like. Change the cells until
# it says "right". Solutions are in `tutorials/solutions/`.
#
# **1.** Fill a network with another's weights, as far as they fit.

# %%
exercises.describe("transfer_weights")


# %%
def my_transfer_weights(mine, theirs):
    state = {name: theirs.get(name, array) for name, array in mine.items()}
    return state | {"anew": np.array([name not in theirs for name in mine], np.int64)}


exercises.check("transfer_weights", my_transfer_weights)

# %% [markdown]
# **2.** Choose a validation set that splits no group.

# %%
exercises.describe("grouped_split")


# %%
def my_grouped_split(groups, order, wanted):
    return np.isin(groups, order[:wanted]).astype(np.int64)


exercises.check("grouped_split", my_grouped_split)

# %% [markdown]
# **3.** A detector for 80 classes is fine-tuned to find a single class. What is the norm of $p - e_t$ on a RoI at the first step, and what would it be if the new head were made for 80 classes again?
#
# <details><summary>Answer</summary>
#
# $\sqrt{1 - 1/2} = 0.71$ with two outputs, $\sqrt{1 - 1/81} = 0.99$ with 81. With many classes it can only approach 1, while the loss itself, $\log C$, goes on growing: from 0.69 to 4.39.
#
# </details>
#
# **4.** You freeze `backbone.body.layer3` and nothing else. Which gradients are no longer computed, and which still have to be?
#
# <details><summary>Answer</summary>
#
# Those of layer3's own weights are not. Those of its *activations* still have to be, because layers 1 and 2 below it train. `tape_of` shows it: the number of calls does not change.
#
# </details>
#
# **5.** A colleague has 200 test images with 3 objects each and an AP50 of 0.80. Another network has 0.83 on 200 *other* images. Is it better?
#
# <details><summary>Answer</summary>
#
# Each AP50 has a standard error of about $\sqrt{0.8 \cdot 0.2 / 600} = 0.016$, and their difference $\sqrt 2$ times that, 0.023. So 0.03 is 1.3 standard errors: two equal networks differ by that much one time in five. On the same images it might be convincing.
#
# </details>
#
# **6.** Train on five photos with `fit(..., augmentation=MIRRORED)`. How many photos is mirroring worth, read from the learning curve? How many draws do you need to say so?
#
# <details><summary>Answer</summary>
#
# Whatever two draws say, compare it with how far apart they are. With $k$ draws of each kind and a standard deviation $s$ between draws, the difference of the two means has the standard error $s \sqrt{2 / k}$. A gain of $s / 2$ is twice that when $k = 32$. Fewer will do if both kinds train on the same draws and you look at the differences draw by draw. With more steps mirroring is likely to be worth more, because then the five photos are learnt by heart.
#
# </details>
#
# ## Read on
#
# * J. Yosinski, J. Clune, Y. Bengio, H. Lipson, *How transferable are features in deep neural networks?*, NeurIPS 2014: what freezing costs, layer by layer.
# * K. He, R. Girshick, P. Dollár, *Rethinking ImageNet Pre-training*, ICCV 2019: with enough data and steps, from scratch catches up; with little data it does not.
# * S. Kapoor, A. Narayanan, *Leakage and the reproducibility crisis in machine-learning-based science*, Patterns 2023: how often it happens, and to whom.
# * [docs/own_data.md](../docs/own_data.md) and [docs/weights.md](../docs/weights.md); `source(minimask.models.starting)`; `from minimask.results import survey`,
#   then `source(survey)`.
#
# Next: [11 The paper's ablations](11_the_papers_ablations.ipynb), which exchanges one part of the design at a time and asks whether the difference is real.
