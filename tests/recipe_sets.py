"""Two generated data sets that the defaults do not suit, as COCO files: large objects, and tiny ones."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from minimask.data import Shapes

# Of the pictures of `Shapes`: their side, how many shapes are tried, and their radii in pixels.
SETS = {
    "large": dict(size=640, objects=(20, 20), radius=(40.0, 90.0)),
    "tiny": dict(size=256, objects=(15, 30), radius=(2.5, 5.0)),
}
SEEDS = {"train": 11, "val": 12}


def write_set(name: str, directory: Path, counts: dict[str, int]) -> dict[str, Path]:
    """Write train.json, val.json and images/; returns the files by split. What is there already stays."""
    files = {split: directory / f"{split}.json" for split in counts}
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for split, path in files.items():
        if path.exists():
            continue
        shapes = Shapes(counts[split], SEEDS[split], **SETS[name])
        document = shapes.coco_document()
        for index, record in enumerate(document["images"]):
            record["file_name"] = f"{split}-{record['file_name']}"
            pixels = np.rint(shapes[index].image.transpose(1, 2, 0) * 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / "images" / record["file_name"])
        path.write_text(json.dumps(document))
    return files
