"""What users give a model: images and targets, converted where there is no doubt and checked before any work.

Shapes: N images (3, H, W), G objects and C crowd regions in an image.

Arrays on a GPU are checked for shape and dtype only: to see their values, the host would have to wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minimask.autograd import Tensor
from minimask.backend import array_module, to_cpu
from minimask.errors import InputError

_FORMS = {
    "boxes": "(G, 4) x1, y1, x2, y2 in pixels",
    "labels": "(G,) class numbers from 1",
    "masks": "(G, H, W) of 0 and 1",
    "keypoints": "(G, K, 3) x, y, visibility (0 not labelled, 1 hidden, 2 visible)",
    "crowd_boxes": "(C, 4) x1, y1, x2, y2 in pixels",
}
SLACK = 0.5
"""How far an image's values may lie outside 0..1: resizing overshoots, but 0..255 goes far beyond."""


@dataclass(frozen=True)
class Objects:
    """One image's objects as given: in pixels of that image, on the device where they were.

    Attributes
    ----------
    boxes : (G, 4) float
    labels : (G,) int64
        On the CPU.
    masks : (G, H, W) uint8, or None
        0 or 1.
    crowd_boxes : (C, 4) float
    keypoints : (G, K, 3) float, or None
        x, y, visibility.
    """

    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    crowd_boxes: np.ndarray
    keypoints: np.ndarray | None = None


def check_images(images: Any) -> list[np.ndarray]:
    """The images as arrays, each on the device where it was.

    Parameters
    ----------
    images : iterable of N
        (3, H, W) float RGB in 0..1: NumPy or CuPy arrays, Tensors, torch's tensors.

    Raises
    ------
    InputError
        If there are none, or one has another shape or dtype, no pixels, NaN, or values that are not in 0..1.
    """
    if getattr(images, "ndim", 4) == 3:
        raise InputError(f"images: one array {tuple(images.shape)}; give a list of images, [image]")
    images = _listed(images, "images", "arrays (3, H, W)")
    if not images:
        raise InputError("no images: give a list of at least one array (3, H, W)")
    return [_image(image, n) for n, image in enumerate(images)]


def check_targets(
    targets: Any,
    sizes: Sequence[tuple[int, int]],
    dtype=np.float32,
    num_classes: int | None = None,
    with_masks: bool = True,
    num_keypoints: int | None = None,
) -> list[Objects]:
    """The targets of images of these (H, W), as arrays.

    Parameters
    ----------
    targets : iterable of N dicts
        ``boxes`` (G, 4) x1, y1, x2, y2; ``labels`` (G,) from 1 up; ``masks`` (G, H, W) of 0 and 1 and
        ``keypoints`` (G, K, 3) x, y, visibility, where asked for; optionally ``crowd_boxes`` (C, 4). Other
        entries are ignored.
    dtype : floating point dtype
        Boxes are cast to it before their area is checked: a very thin one may have no width once it is cast.
    num_classes : int, optional
        Background included: one more than the largest label allowed.
    with_masks : bool
        Whether masks are needed; if not, they are not looked at.
    num_keypoints : int, optional
        K, where keypoints are needed.

    Raises
    ------
    InputError
        Names the image, the entry and how to mend it.
    """
    if targets is None:
        raise InputError(
            "targets: a loss needs one dict per image; for results without them call eval() first"
        )
    if isinstance(targets, Mapping):
        raise InputError("targets: one dict; give a list of dicts, one per image: [target]")
    targets = _listed(targets, "targets", "dicts, one per image")
    if len(targets) != len(sizes):
        raise InputError(f"targets: {len(targets)} for {len(sizes)} images; give one dict per image")
    objects = [
        _objects(t, n, s, dtype, num_classes, with_masks) for n, (t, s) in enumerate(zip(targets, sizes))
    ]
    if num_keypoints is None:
        return objects
    return [
        replace(o, keypoints=check_keypoints(t, o.boxes, f"targets[{n}]", num_keypoints))
        for n, (t, o) in enumerate(zip(targets, objects))
    ]


def _listed(values: Any, name: str, what: str) -> list:
    try:
        return list(values)
    except TypeError:
        raise InputError(f"{name}: must be a list of {what}, is {type(values).__name__}") from None


def _array(value: Any, name: str):
    """An array as it is, a Tensor's data, a torch tensor as NumPy; anything else as NumPy converts it."""
    value = value.data if isinstance(value, Tensor) else value
    if array_module(value) is not np:
        return value
    try:
        if hasattr(value, "detach"):
            return np.asarray(value.detach().cpu().numpy())
        if isinstance(value, list | tuple) and any(hasattr(part, "detach") for part in value):
            # A list of Tensors becomes one array.
            value = [to_cpu(_array(part, name)) for part in value]  # sync
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name}: cannot be read as one array ({reason})") from error


# ------------------------------------------------------------------------------------------------ images


def _image(image: Any, n: int):
    name = f"images[{n}]"
    image = _array(image, name)
    shape, kind = tuple(image.shape), image.dtype.kind
    if len(shape) != 3 or shape[0] != 3 or kind != "f":
        got = f"{shape} {image.dtype}"
        raise InputError(
            f"{name}: must be (3, H, W) floating point RGB in 0..1, is {got}{_mend(shape, kind)}"
        )
    if 0 in shape:
        raise InputError(f"{name}: has no pixels, is {shape}; leave it out")
    if array_module(image) is not np:
        return image
    least, largest = float(image.min()), float(image.max())  # NaN if there is one
    if not np.isfinite(largest - least):
        raise InputError(f"{name}: holds NaN or infinity; all values must be in 0..1")
    if largest > 1 + SLACK and least >= 0:
        raise InputError(f"{name}: must be RGB in 0..1, reaches {largest:.4g}; divide it by 255")
    if largest > 1 + SLACK or least < -SLACK:
        raise InputError(
            f"{name}: must be RGB in 0..1, spans {least:.3g} to {largest:.3g}; do not normalise it: the "
            "model itself subtracts the mean and divides by the standard deviation"
        )
    return image


def _mend(shape: tuple[int, ...], kind: str) -> str:
    """How to mend an image of this shape and kind of dtype, as far as that can be guessed."""
    mends = []
    if len(shape) == 4:
        mends.append("give the images of a batch one by one, list(batch)")
    elif len(shape) == 3 and shape[0] != 3 and shape[2] in (3, 4):
        mends.append("transpose it, image[..., :3].transpose(2, 0, 1)")
    elif len(shape) == 2 or shape[:1] == (1,):
        mends.append("repeat a grey image, np.broadcast_to(image, (3, H, W))")
    if kind in "iu":
        mends.append("divide it by the largest value, as image / np.float32(255)")
    return f"; {' and '.join(mends)}" if mends else ""


# ----------------------------------------------------------------------------------------------- targets


def _objects(
    target: Any, n: int, size: tuple[int, int], dtype, num_classes: int | None, with_masks: bool
) -> Objects:
    where = f"targets[{n}]"
    if not isinstance(target, Mapping):
        raise InputError(f"{where}: must be a dict of boxes, labels and masks, is {type(target).__name__}")
    needed = ("boxes", "labels", "masks") if with_masks else ("boxes", "labels")
    missing = [key for key in needed if target.get(key) is None]
    if missing:
        forms = "boxes (G, 4), labels (G,) and masks (G, H, W)" if with_masks else "boxes (G, 4), labels (G,)"
        raise InputError(
            f"{where}: lacks {' and '.join(missing)}; give {forms}, with G = 0 where there are no objects"
        )
    arrays = {key: _numbers(target[key], where, key) for key in needed}
    boxes, labels = _boxes(arrays["boxes"], where, "boxes", dtype), arrays["labels"]
    masks = _with_shape(arrays["masks"], len(boxes), size) if with_masks else None
    ours = f"{len(boxes)} boxes, labels {labels.shape}" + (f" and masks {masks.shape}" if with_masks else "")
    theirs = f" and masks must be {(len(boxes), *size)}" if with_masks else ""
    wrong = with_masks and masks.shape != (len(boxes), *size)
    if wrong or labels.shape not in ((len(boxes),), (len(boxes), 1)):
        raise InputError(
            f"{where}: {ours} do not belong together; for an image of {size} labels must be {(len(boxes),)}"
            f"{theirs}"
        )
    labels, masks = (
        _labels(labels.reshape(-1), where, num_classes),
        _masks(masks, where) if with_masks else None,
    )
    _check_places(boxes, masks, size, where)
    crowds = target.get("crowd_boxes")
    crowds = np.zeros((0, 4)) if crowds is None else _numbers(crowds, where, "crowd_boxes")
    crowd_boxes = _boxes(crowds, where, "crowd_boxes", dtype)
    return Objects(boxes, labels, masks if with_masks else None, crowd_boxes)


def _with_shape(masks, count: int, size: tuple[int, int]):
    """Masks as (G, H, W), also from a result's (G, 1, H, W); (0, H, W) from any array without elements."""
    if not count and not masks.size:
        return np.zeros((0, *size), np.uint8)
    return masks[:, 0] if masks.ndim == 4 and masks.shape[1] == 1 else masks


def check_keypoints(target: Mapping, boxes, where: str, num_keypoints: int):
    """The keypoints (G, K, 3) of a target, in the boxes' dtype.

    Raises
    ------
    InputError
        If they are missing, malformed or look normalised.
    """
    if target.get("keypoints") is None:
        raise InputError(f"{where}: lacks keypoints; give {_FORMS['keypoints']} with K = {num_keypoints}")
    keypoints, shape = _numbers(target["keypoints"], where, "keypoints"), (len(boxes), num_keypoints, 3)
    if not len(boxes) and not keypoints.size:
        return np.zeros(shape, boxes.dtype)
    if keypoints.shape != shape:
        raise InputError(
            f"{where}: keypoints must be {shape}, x, y and visibility of the {num_keypoints} keypoints of "
            f"each of {len(boxes)} objects, are {keypoints.shape}"
        )
    with np.errstate(over="ignore"):
        keypoints = keypoints.astype(boxes.dtype, copy=False)
    if array_module(keypoints) is not np:
        return keypoints
    finite, known = np.isfinite(keypoints).all(axis=2), np.isin(keypoints[..., 2], (0, 1, 2))
    bad = np.argwhere(~(finite & known))
    if len(bad):
        i, k = bad[0].tolist()
        raise InputError(
            f"{where}: keypoint {k} of object {i} is {keypoints[i, k].tolist()}; it must be x, y in pixels "
            "and visibility: 0 not labelled, 1 hidden, 2 visible"
        )
    labelled = keypoints[keypoints[..., 2] > 0]
    # A single one may really lie in the first pixel: a crop can begin there.
    if len(labelled) > 1 and labelled[:, :2].max() <= 1.001 and boxes.max() > 2:
        raise InputError(
            f"{where}: keypoints look normalised to 0..1, but must be in pixels: multiply x by the image's "
            "width and y by its height"
        )
    return keypoints


def _numbers(value: Any, where: str, key: str):
    array = _array(value, f"{where}: {key}")
    if array.dtype.kind not in "biuf":
        what = "text" if array.dtype.kind in "US" else str(array.dtype)
        raise InputError(f"{where}: {key} must be numbers, are {what}; give {_FORMS[key]}")
    return array


def _boxes(boxes, where: str, key: str, dtype):
    """Boxes (G, 4) in this dtype, each with an area; (0, 4) from any array without elements."""
    if not boxes.size and not len(boxes):
        return np.zeros((0, 4), dtype)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{where}: {key} must be (G, 4), x1, y1, x2, y2 of each object, are {boxes.shape}")
    with np.errstate(over="ignore"):
        boxes = boxes.astype(dtype, copy=False)
    if array_module(boxes) is np:
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        bad = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & has_area))
        if len(bad):
            raise InputError(
                f"{where}: {key.removesuffix('es')} {bad[0]} is {boxes[bad[0]].tolist()}; {key} are x1, y1, "
                "x2, y2 with x1 < x2, y1 < y2 (x, y, width, height must be converted)"
            )
    return boxes


def _check_places(boxes, masks, size: tuple[int, int], where: str) -> None:
    """Check that boxes (G, 4) lie in an image of (H, W), and are not given as fractions of its sides.

    Masks (G, H, W), or None, tell boxes around the first pixel from such fractions.
    """
    if not len(boxes) or array_module(boxes) is not np:
        return
    height, width = size
    if max(size) > 1 and np.abs(boxes).max() <= 1.001:
        on_cpu = masks is not None and array_module(masks) is np
        elsewhere = on_cpu and (masks[:, 1:].any() or masks[:, :, 1:].any())
        first = on_cpu and masks[:, 0, 0].any()  # an object there may really be that small
        if elsewhere or (not first and (boxes != np.rint(boxes)).any()):
            raise InputError(
                f"{where}: boxes look normalised to 0..1, but must be in pixels: multiply x by {width} and y "
                f"by {height}"
            )
    outside = (boxes[:, :2] >= (width, height)).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    # A box that reaches so far is a mistake, and too much for kernels that count a box's pixels.
    far = np.abs(boxes).max(axis=1) > 100 * max(size)
    bad = np.flatnonzero(outside | far)
    if len(bad):
        raise InputError(
            f"{where}: box {bad[0]} is {boxes[bad[0]].tolist()}, outside its image of {width} x {height} "
            "pixels; boxes are x1, y1, x2, y2 in pixels of the image as given"
        )


def _labels(labels, where: str, num_classes: int | None) -> np.ndarray:
    """Labels (G,) as int64 on the CPU, where RoIs are drawn."""
    labels = to_cpu(labels)  # sync: only for labels that are on a GPU; a data set's never are
    if labels.dtype.kind == "b":
        raise InputError(f"{where}: labels must be whole numbers from 1, are bool; number the classes from 1")
    whole = np.isfinite(labels) & (labels == np.rint(labels))
    if not whole.all():
        raise InputError(f"{where}: labels must be whole numbers from 1, one is {labels[~whole][0]}")
    if len(labels) and labels.min() < 1:
        raise InputError(
            f"{where}: label {int(labels.min())}; classes are numbered from 1, 0 is background; renumber the "
            "labels"
        )
    if num_classes is not None and len(labels) and labels.max() >= num_classes:
        raise InputError(
            f"{where}: label {int(labels.max())}, but labels of this model are 1 to {num_classes - 1}; build "
            "it with num_classes one larger than the largest label (0 is background)"
        )
    return labels.astype(np.int64)


def _masks(masks, where: str):
    """Masks (G, H, W) as uint8 of 0 and 1. On a GPU, where values go unchecked, all but 0 becomes 1."""
    if masks.dtype.kind == "b":
        return masks.view(np.uint8)
    if array_module(masks) is not np:
        return (masks != 0).view(np.uint8)
    if masks.dtype.kind == "f":
        right = bool(((masks == 0) | (masks == 1)).all())
    else:
        right = masks.max(initial=0) <= 1 and (masks.dtype.kind == "u" or masks.min(initial=0) >= 0)
    if not right:
        _refuse_masks(masks, where)
    return masks.astype(np.uint8, copy=False)


def _refuse_masks(masks, where: str) -> None:
    """Raise an InputError that says what the masks hold besides 0 and 1."""
    for i, mask in enumerate(masks):
        others = mask[(mask != 0) & (mask != 1)]
        if len(others):
            value = others[0]
            mend = "!= 0" if value < 0 else "> 0.5" if value < 1 else "> 0"
            raise InputError(
                f"{where}: masks must hold only 0 and 1, mask {i} holds {value:.4g}; give masks {mend}"
            )
