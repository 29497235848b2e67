"""Draw the README's picture, docs/images/predictions.png: python tools/readme_picture.py

What the packaged weights find in the validation images that `minimask demo` shows, evenly spaced rather than
chosen by hand; above it the image and its annotation. Prints the numbers of objects for the README's caption.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from minimask.command.demo import PICTURES, SHOWN_ABOVE
from minimask.data import nuclei_sample
from minimask.models import from_checkpoint
from minimask.results.fonts import font
from minimask.results.predict import confident
from minimask.results.visualize import draw_instances

TARGET = Path(__file__).parent.parent / "docs" / "images" / "predictions.png"
HEIGHT, GAP, MARGIN = 224, 6, 34  # of a picture, between two, and of the rows' titles, in pixels
PAPER, INK = "white", (30, 30, 30)
MOST = 300_000  # bytes


def column(sample, found, class_names) -> list[Image.Image]:
    """An image, its annotation and what was found in it, all of one height."""
    height, width = sample.image.shape[1:]
    bright = min(0.9 / np.quantile(sample.image, 0.995), 8) if sample.image.mean() < 0.5 else 1
    image = np.clip(bright * sample.image, 0, 1)
    nothing = np.zeros((0, 4)), np.zeros(0, int), None
    shown = (
        nothing,
        (sample.boxes, sample.labels, sample.masks),
        (found["boxes"], found["labels"], found["masks"]),
    )
    drawn = [
        draw_instances(image, *objects, class_names, zoom=HEIGHT / height, names=False) for objects in shown
    ]
    return [picture.crop((0, 0, round(width * HEIGHT / height), HEIGHT)) for picture in drawn]  # no caption


def sheet(columns: list[list[Image.Image]], titles: tuple[str, ...]) -> Image.Image:
    """Columns side by side, the rows' titles upright at the left."""
    widths = [pictures[0].width + GAP for pictures in columns]
    paper = Image.new("RGB", (MARGIN + sum(widths), len(titles) * (HEIGHT + GAP) + GAP), PAPER)
    for row, title in enumerate(titles):
        y = GAP + row * (HEIGHT + GAP)
        text = Image.new("RGB", (HEIGHT, MARGIN), PAPER)
        ImageDraw.Draw(text).text((HEIGHT / 2, MARGIN / 2), title, INK, font(24), anchor="mm")
        paper.paste(text.rotate(90, expand=True), (0, y))
        for pictures, x in zip(columns, MARGIN + np.cumsum([0, *widths[:-1]])):
            paper.paste(pictures[row], (int(x), y))
    return paper


def main() -> None:
    validation, model = nuclei_sample("val"), from_checkpoint("minimask:nuclei")
    columns = []
    for i in range(PICTURES):
        sample = validation[i * len(validation) // PICTURES]
        found = confident(model.predict([sample.image])[0], SHOWN_ABOVE)
        print(f"{len(sample.boxes)} annotated, {len(found['boxes'])} found")
        columns.append(column(sample, found, validation.class_names))
    picture = sheet(columns, ("image", "annotated", "found"))
    picture.quantize(128, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET}: {picture.width} x {picture.height}, {TARGET.stat().st_size:,} bytes")
    assert TARGET.stat().st_size <= MOST


if __name__ == "__main__":
    main()
