"""A small COCO data set on disk for the command's tests, and the command run as a person runs it."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minimask.data import Shapes


def make_dataset(directory: Path, count: int = 4, size: int = 64) -> dict:
    """Write train.json and images/ of generated shapes; returns the document."""
    shapes = Shapes(count, seed=5, size=size)
    document = shapes.coco_document()
    (directory / "images").mkdir(parents=True)
    for index, record in enumerate(document["images"]):
        pixels = (shapes[index].image.transpose(1, 2, 0) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(directory / "images" / record["file_name"])
    (directory / "train.json").write_text(json.dumps(document))
    return document


def broken(document: dict, change) -> str:
    """The document as JSON text after `change` was done to a copy of it."""
    document = copy.deepcopy(document)
    change(document)
    return json.dumps(document)


def command(*arguments, **options) -> subprocess.Popen:
    """The command in a process of its own, its output captured."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-m", "minimask", *map(str, arguments)], **options)
