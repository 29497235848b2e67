"""Parts of an image with its annotated or detected objects drawn, from COCO's entries."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minimask.data import rle
from minimask.data.images import to_float
from minimask.data.keypoint_checks import from_coco
from minimask.data.sample import PixelBox
from minimask.masks import Window
from minimask.results.large import LARGE
from minimask.results.visualize import draw_instances

if TYPE_CHECKING:
    from PIL import Image


class _Masks:
    """Run-length encoded masks, decoded one at a time, in windows that count from a region's corner."""

    def __init__(self, entries: Sequence[dict], corner: tuple[int, int]):
        self.entries, self.corner = entries, corner

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: slice) -> "_Masks":
        return _Masks(self.entries[key], self.corner)

    def window(self, index: int) -> tuple[Window, np.ndarray]:
        mask = self.entries[index]["segmentation"]
        ((x1, y1, x2, y2),) = rle.measure([mask])[1].tolist()
        counts = mask["counts"].encode("ascii") if isinstance(mask["counts"], str) else mask["counts"]
        patch = rle.decode_runs(rle.read_runs(counts), mask["size"][0], PixelBox(x1, y1, x2, y2))
        left, top = self.corner
        return Window(y1 - top, y2 - top, x1 - left, x2 - left), patch


class Scenes:
    """Draws images of a data set.

    Parameters
    ----------
    dataset
        Has ``category_ids``, ``class_names`` and ``image(index)``; if it has ``pixels(index)``, only the
        region that is shown becomes float.
    document : dict
        Its COCO document.
    """

    def __init__(self, dataset: Any, document: dict):
        self.dataset, self.images = dataset, document["images"]
        self.names = list(dataset.class_names)
        self.labels = {number: k for k, number in enumerate(dataset.category_ids, start=1)}

    def name(self, index: int) -> str:
        """The image's file name."""
        return str(self.images[index]["file_name"])

    def can_be_shown(self, index: int) -> bool:
        """Whether an image is not too large to be drawn whole."""
        return self.images[index]["height"] * self.images[index]["width"] <= LARGE

    def whole(self, index: int) -> PixelBox:
        """The region that is all of an image."""
        return PixelBox(0, 0, self.images[index]["width"], self.images[index]["height"])

    def around(self, index: int, bbox: Sequence[float], least: int = 48) -> PixelBox:
        """A square region twice as large as a COCO box, which is in its middle; it may leave the image."""
        x, y, w, h = bbox
        side = max(least, round(2 * max(w, h)))
        # An annotated box may reach beyond the image; the middle of the region stays inside.
        middle = np.clip((x + w / 2, y + h / 2), 0, self.whole(index)[2:])
        x1, y1 = (round(float(m) - side / 2) for m in middle)
        return PixelBox(x1, y1, x1 + side, y1 + side)

    def draw(
        self, index: int, region: PixelBox, kinds: Sequence[Sequence[dict]], side: int
    ) -> list["Image.Image"]:
        """The region once for each list of COCO entries, `side` display pixels along its longer side."""
        whole = self.whole(index)
        x1, y1 = max(region.x1, 0), max(region.y1, 0)
        x2, y2 = min(region.x2, whole.x2), min(region.y2, whole.y2)
        if hasattr(self.dataset, "pixels"):
            image = to_float(self.dataset.pixels(index)[y1:y2, x1:x2])
        else:
            image = self.dataset.image(index)[:, y1:y2, x1:x2]
        gain = float(np.clip(0.9 / max(np.quantile(image, 0.995), 1e-6), 1, 8))  # as in `comparison`
        margins = ((0, 0), (y1 - region.y1, region.y2 - y2), (x1 - region.x1, region.x2 - x2))
        image = np.pad(gain * image, margins, constant_values=0.93)  # as style.css has it behind images
        return [self._drawn(image, region, entries, side) for entries in kinds]

    def _drawn(
        self, image: np.ndarray, region: PixelBox, entries: Sequence[dict], side: int
    ) -> "Image.Image":
        x1, y1, x2, y2 = region
        zoom = side / max(x2 - x1, y2 - y1)
        boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        seen = (boxes[:, 2:] > (x1, y1)).all(axis=1) & (boxes[:, :2] < (x2, y2)).all(axis=1)
        entries = [entry for entry, inside in zip(entries, seen) if inside]
        labels = [self.labels[entry["category_id"]] for entry in entries]
        masks = _Masks(entries, (x1, y1)) if all("segmentation" in entry for entry in entries) else None
        scores = (
            np.array([entry["score"] for entry in entries]) if entries and "score" in entries[0] else None
        )
        picture = draw_instances(
            image,
            boxes[seen] - (x1, y1, x1, y1),
            labels,
            masks,
            self.names,
            scores,
            zoom=zoom,
            names=len(self.names) > 1,
            **self._keypoints(entries, (x1, y1)),
        )
        return picture.crop((0, 0, picture.width, max(1, round((y2 - y1) * zoom))))  # without its caption

    def _keypoints(self, entries: Sequence[dict], corner: tuple[int, int]) -> dict[str, Any]:
        skeleton = getattr(self.dataset, "skeleton", None)
        if skeleton is None or not entries or not all("keypoints" in entry for entry in entries):
            return {}
        points = np.array([entry["keypoints"] for entry in entries], np.float64)
        points = from_coco(points.reshape(len(entries), -1, 3)) - (*corner, 0)
        return {"keypoints": points, "skeleton": skeleton}


def data_uri(picture: "Image.Image") -> str:
    """A picture as a data URL, a JPEG, for a page that loads nothing."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
