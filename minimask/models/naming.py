"""Other systems' weights under our names, which are torchvision's, with classes numbered from 1.

`our_names` renames the entries of any file; `recognition.py` then reads the architecture from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from minimask.errors import InputError

TORCHVISION, DETECTRON2 = "torchvision", "detectron2"

# detectron2's names, piece by piece, each rule applied once, in this order. {0-1} is group 0's number less 1.
_DETECTRON2 = (
    (r"^backbone\.(?:bottom_up\.)?stem\.", "backbone.body."),
    (r"^backbone\.(?:bottom_up\.)?res(\d+)\.", "backbone.body.layer{0-1}."),
    (r"^roi_heads\.res5\.", "roi_heads.box_head.layer4."),
    (r"\.conv(\d)\.norm\.", ".bn{0}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.fpn_lateral(\d+)\.norm\.", "backbone.fpn.inner_blocks.{0-2}.1."),
    (r"^backbone\.fpn_lateral(\d+)\.", "backbone.fpn.inner_blocks.{0-2}.0."),
    (r"^backbone\.fpn_output(\d+)\.norm\.", "backbone.fpn.layer_blocks.{0-2}.1."),
    (r"^backbone\.fpn_output(\d+)\.", "backbone.fpn.layer_blocks.{0-2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.(?:conv)?(\d+)\.", "rpn.head.conv.{0}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    (r"^roi_heads\.box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^roi_heads\.box_head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d+)\.norm\.", "roi_heads.mask_head.{0-1}.1."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d+)\.", "roi_heads.mask_head.{0-1}.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
    (r"^roi_heads\.keypoint_head\.score_lowres\.", "roi_heads.keypoint_predictor.kps_score_lowres."),
)
_KEYPOINT_CONV = re.compile(r"^roi_heads\.keypoint_head\.conv_fcn(\d+)\.")  # ours skip a number for each ReLU

# torchvision's names until 2022, which the first versions of its published weights still have.
_TORCHVISION = (
    (r"^rpn\.head\.conv\.(weight|bias)$", "rpn.head.conv.0.0.{0}"),
    (r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", "backbone.fpn.{0}_blocks.{1}.0.{2}"),
    (r"^roi_heads\.mask_head\.mask_fcn(\d+)\.", "roi_heads.mask_head.{0-1}.0."),
)
# Entries that are not weights: counters of batch norms, anchors, and what images are normalised with.
_NO_WEIGHTS = re.compile(r"num_batches_tracked$|cell_anchors\.\d+$|^pixel_(mean|std)$")


def our_names(arrays: Mapping) -> tuple[str, dict[str, np.ndarray]]:
    """The system that wrote these entries, and its weights under our names.

    Parameters
    ----------
    arrays : mapping of name to array
        A state dict: torchvision's, detectron2's or ours; a ``module.`` prefix from DataParallel is dropped.

    Returns
    -------
    system : str
        "detectron2", or "torchvision", which includes ours.
    state : dict of name to array
        With labels from 1, background first, and the stem's input channels in the order RGB.

    Raises
    ------
    InputError
        If these are not the weights of such a detector; says what they look like.
    """
    arrays = _without_prefix(arrays)
    system = _system(arrays)
    rules = _DETECTRON2 if system == DETECTRON2 else _TORCHVISION
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if _NO_WEIGHTS.search(name):
            continue
        ours = _renamed(name, rules)
        if ours in state:
            raise InputError(f"the weights hold {ours} twice, as {name} and under another name")
        state[ours] = array
    return system, _converted(state) if system == DETECTRON2 else state


def _without_prefix(arrays: Mapping) -> dict[str, np.ndarray]:
    """The entries as arrays (torch's, too), without a ``module.`` or ``model.`` that all names begin with."""
    named = {}
    for name, value in arrays.items():
        if not isinstance(name, str) or isinstance(value, Mapping):
            raise InputError(
                f"the weights: entry {name!r} is not an array; give the state dict alone, names and arrays"
            )
        named[name] = _array(value)
        if named[name].dtype.kind not in "fiub":
            raise InputError(
                f"the weights: entry {name!r} is not an array of numbers; give the state dict alone"
            )
    for prefix in ("module.", "model.", "module."):
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): array for name, array in named.items()}
    return named


def _array(value) -> np.ndarray:
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()  # torch's
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16


def _system(names: Mapping) -> str:
    def some(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    if some(r"proposal_generator\.rpn_head\.") and some(r"backbone\.(bottom_up\.)?stem\.conv1\."):
        return DETECTRON2
    if some(r"rpn\.head\.") and some(r"backbone\.body\.conv1\."):
        return TORCHVISION
    if some(r"(backbone\.|bottom_up\.|body\.)*(layer1\.0|res2\.0|stem)\.") and not some(r"r(oi|pn)_?"):
        raise InputError(
            "these are the weights of a backbone alone, not of a detector; give them as backbone weights"
        )
    shown = ", ".join(list(names)[:3]) or "no entry at all"
    raise InputError(
        f"these are not weights of a Mask, Keypoint or Faster R-CNN of torchvision, detectron2 or minimask: "
        f"they hold {shown}{' ...' if len(names) > 3 else ''}"
    )


def _renamed(name: str, rules: tuple) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, _filled(replacement), name)
    return _KEYPOINT_CONV.sub(lambda m: f"roi_heads.keypoint_head.{2 * (int(m[1]) - 1)}.", name)


def _filled(replacement: str) -> Callable[[re.Match], str]:
    """``{0}`` stands for the first group, ``{0-2}`` for its number less two."""

    def fill(match: re.Match) -> str:
        def piece(part: re.Match) -> str:
            group = match.groups()[int(part[1])]
            return str(int(group) - int(part[2])) if part[2] else group

        return re.sub(r"\{(\d)(?:-(\d))?\}", piece, replacement)

    return fill


# ------------------------------------------------------------------------------------- detectron2's values


def _converted(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """detectron2's weights for RGB instead of BGR, and for classes from 1 instead of background last."""
    state = _numbered_box_head(state)
    stem, classes = "backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score"
    if stem in state and state[stem].ndim == 4:
        state[stem] = state[stem][:, ::-1]
    count = len(np.atleast_1d(state.get(f"{classes}.bias", np.zeros(1)))) - 1  # without background
    for kind in ("weight", "bias"):
        if f"{classes}.{kind}" in state:
            state[f"{classes}.{kind}"] = np.roll(state[f"{classes}.{kind}"], 1, axis=0)
        for name, rows in ((f"roi_heads.box_predictor.bbox_pred.{kind}", 4), (_MASKS + kind, 1)):
            if name in state:
                state[name] = _with_background(state[name], rows, count)
    return state


_MASKS = "roi_heads.mask_predictor.mask_fcn_logits."


def _with_background(array: np.ndarray, rows: int, count: int) -> np.ndarray:
    """The classes' rows, preceded by `rows` rows of zeros for the background.

    Class-agnostic rows, which exist only once, are repeated for each class: the same boxes and masks.
    """
    if array.ndim and len(array) == rows < rows * count:
        array = np.concatenate([array] * count)
    if array.ndim == 0:
        return array
    return np.concatenate([np.zeros((rows, *array.shape[1:]), array.dtype), array])


def _numbered_box_head(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A box head of convolutions and one fully connected layer, numbered as torchvision's v2 numbers it."""
    conv = re.compile(r"^(roi_heads\.box_head)\.(?:conv|bn)(\d+)\.")
    convs = max((int(m[2]) for m in map(conv.match, state) if m), default=0)
    if not convs:
        return state

    def renamed(name: str) -> str:
        name = name.replace("roi_heads.box_head.fc6.", f"roi_heads.box_head.{convs + 1}.")
        layer = 1 if ".box_head.bn" in name else 0
        return conv.sub(lambda m: f"{m[1]}.{int(m[2]) - 1}.{layer}.", name)

    return {renamed(name): array for name, array in state.items()}
