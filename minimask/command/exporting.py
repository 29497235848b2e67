"""What `minimask export` writes, and what it says about loading it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimask.errors import InputError, one_line
from minimask.models.pretrained import own_options
from minimask.weights import Weights, write_pth, write_safetensors

SUFFIXES = (".safetensors", ".pth", ".pt")
_CLASSES_SHOWN = 5


def check_target(target: Path, source: Path) -> None:
    """Check that the ending of the file to write names a format, and that it is not the file being read.

    Raises
    ------
    InputError
        If not.
    """
    if target.suffix not in SUFFIXES:
        ending = f"the ending {target.suffix}" if target.suffix else "no ending"
        raise InputError(f"{target}: has {ending}; name a file that ends in .safetensors or .pth")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{source}: would be overwritten by {target}; choose another name")


def write(weights: Weights, target: Path) -> None:
    """Write the file that the target's ending names; raises what the writers raise."""
    if target.suffix == ".safetensors":
        beside = {name: str(value) for name, value in weights.metadata.items()}
        if weights.class_names:
            beside["class_names"] = json.dumps(weights.class_names)
            beside["category_ids"] = json.dumps(weights.category_ids)
        write_safetensors(target, weights, beside)
    else:
        write_pth(target, weights)


def _sizes(weights: Weights) -> dict[str, Any]:
    """The builder's arguments that the run set and that the arrays' shapes do not show."""
    try:
        model = own_options(weights)
    except InputError:  # the arrays are written all the same
        return {}
    given = {
        name: getattr(model, name, None) for name in ("anchor_sizes", "canonical_scale", "magnification")
    }
    return {name: value for name, value in given.items() if value is not None}


def how_to_load(weights: Weights, target: Path) -> Iterator[str]:
    """Lines that tell how to load the file in torch."""
    name = json.dumps(str(target), ensure_ascii=False)
    if target.suffix == ".safetensors":
        yield f"in torch: model.load_state_dict(safetensors.torch.load_file({name}))"
    else:
        yield f"in torch: model.load_state_dict(torch.load({name}, weights_only=True))"
    if weights.class_names and "model" in weights.metadata:
        network, classes = one_line(weights.metadata["model"], 40), len(weights.class_names) + 1
        given = "".join(f", {name}={value}" for name, value in _sizes(weights).items())
        how = "docs/weights.md shows how to build it in torchvision"
        yield f"where model is {network} with num_classes={classes}{given}; {how}"
    if weights.class_names and target.suffix != ".safetensors":
        shown = [one_line(name, 40) for name in weights.class_names[:_CLASSES_SHOWN]]
        more = len(weights.class_names) - len(shown)
        names = ", ".join([*shown, *([f"{more} more"] if more else [])])
        yield f"its classes, which a .pth does not hold: {names}"
