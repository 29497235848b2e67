"""Mutated COCO files and images, thousands of them: each gives a value, or an InputError of one line.

``python -m tests.data_fuzz coco|images FIRST LAST DIRECTORY`` tries the mutations of these numbers and prints
how many were taken and refused, and the most memory in MiB; one that is neither ends it with a traceback.
An alarm ends the process if one takes longer than `SECONDS`.
"""

import copy
import io
import json
import random
import re
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

SECONDS = 10


def peak_memory() -> int:
    """The most memory that this process has had, in MiB.

    Not `ru_maxrss` where it can be helped: on Linux that begins with what the parent had when it forked.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) >> 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


# ---------------------------------------------------------------- COCO files, by structure

EXTREMES = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    0.5,
    -0.0,
    1e-7,
    1e-300,
    5e-324,
    1e9,
    1e18,
    1e300,
    1e308,
    2**31,
    2**32,
]
EXTREMES += [
    2**62,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    10**400,
    float("nan"),
    float("inf"),
    float("-inf"),
    255,
    65536,
]
EXTREMES += [
    "",
    " ",
    "a",
    "\n",
    "\x1b[2J",
    "\0",
    "\ud800",
    "\udce9",
    "a" * 5000,
    "/etc/passwd",
    "../a.png",
    "a\\b.png",
]
EXTREMES += [
    "%2e%2e/a.png",
    "A.PNG",
    "0",
    "nan",
    "h76b0000000000h;",
    "o" * 400 + "0",
    "~" * 99,
    "\u202e",
    "\u732b",
]
EXTREMES += [
    [],
    {},
    [[]],
    [{}],
    [None],
    [0],
    [[0, 0]],
    [[0] * 6],
    [[0, 0, 32, 24] * 3000],
    [1e9] * 6,
    {"a": []},
]
EXTREMES += [[2**62] * 4, [0] * 999, [768], [0, 768], {"size": [24, 32], "counts": [768]}, [[10**400] * 6]]
EXTREMES += [
    {"size": [24, 32], "counts": "o" * 9 + "0"},
    {"size": [2**31, 2**31], "counts": [2**62]},
    [[[1, 2]] * 3],
]


def place_in(value, draw):
    """A random container somewhere in a document, and one of its keys."""
    container, key = value, draw.choice(sorted(value))
    while isinstance(container[key], (dict, list)) and container[key] and draw.random() < 0.97:
        container = container[key]
        key = (
            draw.choice(sorted(container)) if isinstance(container, dict) else draw.randrange(len(container))
        )
    return container, key


def mutated_document(document, draw):
    document = copy.deepcopy(document)
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not document:
            break
        container, key = place_in(document, draw)
        change = draw.randrange(8)
        if type(container[key]) in (int, float) and abs(container[key]) < 1e300 and change > 3:
            container[key] = container[key] * draw.choice((-1, 0.5, 1, 1, 2, 1e-9, 1e9)) + draw.choice(
                (-1, 0, 1e-7, 3)
            )
        elif change == 0:
            del container[key]
        elif change == 1 and isinstance(container, list):
            container.insert(draw.randrange(len(container) + 1), copy.deepcopy(container[key]))
        elif change == 2:
            other, from_key = place_in(document, draw)
            container[key] = copy.deepcopy(other[from_key])
        else:
            container[key] = copy.deepcopy(draw.choice(EXTREMES))
    return document


def try_document(number, directory):
    from minimask.data import read_coco
    from tests.test_data_checks import tiny_document

    draw = random.Random(f"coco {number}")
    text = json.dumps(mutated_document(tiny_document(), draw))
    if draw.random() < 0.1:  # also as text
        place = draw.randrange(len(text))
        text = text[:place] + draw.choice(("", "}", '"', "[" * 5000, "9" * 5000, text[place:] * 2))
    (directory / "train.json").write_text(text, encoding="utf-8")
    dataset = read_coco(directory / "train.json", directory)
    evaluated(dataset)
    return dataset.notes


def evaluated(dataset):
    """Let pycocotools measure what passed the checks, and see that training can use it."""
    from pycocotools import mask as coco_mask

    for entry in dataset.coco_document()["annotations"]:
        mask = entry["segmentation"]
        assert 0 < coco_mask.area(mask) <= mask["size"][0] * mask["size"][1]
        assert coco_mask.iou([mask], [mask], [entry["iscrowd"]]) == 1.0
        assert entry["area"] > 0
    for sample in dataset:
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert sample.masks.any(axis=(1, 2)).all()


# ---------------------------------------------------------------- image files, by bytes

FORMATS = [
    ("PNG", {}),
    ("PNG", {"transparency": 3}),
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG2000", {}),
]
FORMATS += [
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
    ("BMP", {}),
]
FORMATS += [
    ("GIF", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {}),
    ("PPM", {}),
    ("PCX", {}),
    ("SGI", {}),
]
FORMATS += [("TGA", {})]


def seed_images():
    """Small files of every format that is read, in several modes; with EXIF and more than one picture."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    pixels[8:] = 99
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        mode: Image.fromarray(pixels).convert(mode) for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK")
    }
    pictures["I;16"] = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    pictures["F"] = Image.fromarray(np.float32(pixels[..., 0]) / 255)
    for kind, options in FORMATS:
        for mode, picture in pictures.items():
            if options.get("compression") == "jpeg" and mode not in ("L", "RGB"):
                continue  # libtiff refuses most, and Pillow 11.3 then frees memory twice
            for more in ({}, {"exif": exif}, {"save_all": True, "append_images": [picture]}):
                file = io.BytesIO()
                try:
                    picture.save(file, kind, **options, **more)
                except (OSError, ValueError, TypeError, KeyError, AttributeError, SystemError, RuntimeError):
                    continue  # a mode that the format does not have
                yield kind, file.getvalue()


def with_right_checksums(png):
    """A PNG whose chunks' checksums are made right again, so that what is wrong in them is looked at."""
    out, at = png[:8], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        out += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out + png[at:]


def mutated_bytes(content, draw):
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        change, place = draw.randrange(7), draw.randrange(max(len(content), 1))
        head = draw.randrange(min(len(content), 120)) if content else 0
        if change == 0:
            del content[place:]
        elif change == 1 and content:
            content[place] ^= 1 << draw.randrange(8)
        elif change == 2 and content:
            content[head] = draw.choice((0, 1, 127, 128, 255))
        elif change == 3:
            extreme = draw.choice(
                (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff")
            )
            content[head : head + len(extreme)] = extreme
        elif change == 4:
            content[place:place] = content[head : head + draw.randrange(1, 60)]
        elif change == 5:
            del content[place : place + draw.randrange(1, 20)]
        else:
            content[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
    return bytes(content)


def try_image(number, directory, seeds):
    from minimask.data import read_image

    draw = random.Random(f"image {number}")
    kind, content = seeds[number % len(seeds)]
    content = mutated_bytes(content, draw)
    if kind == "PNG" and draw.random() < 0.7:
        content = with_right_checksums(content)
    path = directory / ("a.tga" if kind == "TGA" else "a.png")
    path.write_bytes(content)
    try:
        image = read_image(path)
    finally:
        path.unlink()
    assert image.ndim == 3 and image.shape[0] == 3 and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1


# ---------------------------------------------------------------- running


def run(what, first, last, directory):
    from minimask.errors import InputError

    if what == "coco":
        from PIL import Image

        for name in ("a.png", "b.png"):
            Image.new("L", (32, 24)).save(directory / name)
        attempt = lambda number: try_document(number, directory)  # noqa: E731
    else:
        seeds = list(seed_images())
        attempt = lambda number: try_image(number, directory, seeds)  # noqa: E731
    taken = refused = 0
    for number in range(first, last):
        signal.alarm(SECONDS)
        print(number, end="\r", file=sys.stderr)
        try:
            notes = attempt(number) or []
            taken += 1
        except InputError as error:
            notes = [str(error)]
            refused += 1
        for line in notes:
            assert line.isprintable() and len(line) < 1500, line
            line.encode("utf-8")
    signal.alarm(0)
    print(taken, refused, peak_memory())


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
