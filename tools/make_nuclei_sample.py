"""Make the sample of nuclei images inside the package, minimask/data/nuclei, from the whole data set.

    MINIMASK_DATA=path/to/data python tools/make_nuclei_sample.py

The rule looks only at names, sizes and colour channels, never at how well anything scores. From each split
it takes images of at most 360 x 360 pixels in the order of their file names: a fixed number with one channel
(fluorescence) and one in colour (stained tissue). Pixels are kept; PNG files are packed tighter.
"""

import json
import os
import sys
from pathlib import Path

from PIL import Image

LARGEST = 360
COUNTS = {"train": {"L": 24, "RGB": 8}, "val": {"L": 8, "RGB": 2}}  # Pillow's modes
TARGET = Path(__file__).parents[1] / "minimask" / "data" / "nuclei"
LIMIT = 4_000_000  # bytes, all files together


def choose(images: list[dict], folder: Path, counts: dict[str, int]) -> list[dict]:
    """The images of a split that the rule takes, sorted by id."""
    left, chosen = dict(counts), []  # how many of each mode are still wanted
    for image in sorted(images, key=lambda image: image["file_name"]):
        with Image.open(folder / image["file_name"]) as picture:
            mode = picture.mode
        if max(image["width"], image["height"]) <= LARGEST and left.get(mode, 0) > 0:
            left[mode] -= 1
            chosen.append(image)
    if any(left.values()):
        raise SystemExit(f"too few images in {folder}: still wanted {left}")
    return sorted(chosen, key=lambda image: image["id"])


def make_split(source: Path, split: str) -> None:
    """Write TARGET/split.json and its images."""
    document = json.loads((source / f"{split}.json").read_text(encoding="utf-8"))
    images = choose(document["images"], source / "images", COUNTS[split])
    ids = {image["id"] for image in images}
    document["images"] = images
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in ids]
    text = json.dumps(document, separators=(",", ":"))
    (TARGET / f"{split}.json").write_text(text + "\n", encoding="utf-8")
    for image in images:
        with Image.open(source / "images" / image["file_name"]) as picture:
            picture.save(TARGET / "images" / image["file_name"], optimize=True)
    print(f"{split}: {len(images)} images, {len(document['annotations'])} nuclei")


def main() -> int:
    if "MINIMASK_DATA" not in os.environ:
        print("set MINIMASK_DATA to the folder that has nuclei/train.json", file=sys.stderr)
        return 2
    (TARGET / "images").mkdir(parents=True, exist_ok=True)
    for old in (TARGET / "images").glob("*.png"):
        old.unlink()
    for split in COUNTS:
        make_split(Path(os.environ["MINIMASK_DATA"]) / "nuclei", split)
    size = sum(path.stat().st_size for path in TARGET.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB")
    return 0 if size <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
