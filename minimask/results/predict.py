"""From image files to what a detector finds in them: pictures, label maps, a COCO document."""

import glob
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minimask.data import images as files
from minimask.data.image_entries import unused_bits
from minimask.errors import InputError, one_line
from minimask.files import check_inputs_are_kept, output_directory, write_json
from minimask.models.detector import Detector
from minimask.results.evaluate import coco_results
from minimask.results.large import predict_pixels
from minimask.results.sizes import size_note
from minimask.results.visualize import draw_instances, label_maps, likely_keypoints, save_picture

_PASTED = 9  # bytes per pixel for one mask at the size of the image: as float32, thresholded, encoded


def confident(prediction: dict, threshold: float) -> dict:
    """The part of an image's prediction that scores at least `threshold`."""
    keep = np.asarray(prediction["scores"]) >= threshold
    return {name: values[keep] for name, values in prediction.items()}


def expanded(paths: Iterable[str]) -> list[str]:
    """Names of image files, with patterns (``*.png``) expanded: the shell of Windows passes them on as is.

    Raises
    ------
    InputError
        If no file matches a pattern.
    """
    names: list[str] = []
    for path in paths:
        found = [path]
        if glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(glob.glob(path))  # noqa: PTH207 (names as they were typed)
            if not found:
                raise InputError(f"{path}: no file matches this pattern; look in the folder, or name files")
        names += found
    return names


def results_of(path: str | Path, output: str | Path, with_label_maps: bool) -> list[Path]:
    """The files that `predict_files` writes for an image: its picture and, if asked for, two label maps."""
    kinds = ("instances", "ids", "classes") if with_label_maps else ("instances",)
    return [Path(output) / f"{Path(path).stem}-{kind}.png" for kind in kinds]


def check_images(
    paths: Sequence[str | Path], output: str | Path, json: bool = False, with_label_maps: bool = False
) -> list[str]:
    """Check that every file is an image, by its header, and that no result would overwrite another file.

    Damage further inside a file shows when it is decoded, in `predict_files`.

    Parameters
    ----------
    output : str or Path
        The directory that results will be written to.
    json, with_label_maps : bool
        Whether these will be written; they need masks pasted at the image's size.

    Returns
    -------
    list of str
        What may surprise, a line each.

    Raises
    ------
    InputError
        For the first file that is not an image, or whose results would overwrite those of another or one of
        the images, or that would take more than `images.MEMORY`.
    """
    results = [result for path in paths for result in results_of(path, output, with_label_maps)]
    check_inputs_are_kept(paths, results)
    stems: dict[str, Path] = {}
    notes = []
    for path in map(Path, paths):
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{path} and {other}: results are named after the image, and both would be {path.stem}; "
                "rename one, or predict them into two directories"
            )
        header = files.examine(path)
        needed = header.pixels * (header.bytes_per_pixel + _PASTED)
        if (json or with_label_maps) and needed > files.MEMORY:
            purpose = "with --json or --label-maps, which need masks of its size"
            raise files.too_large(path, header.height, header.width, needed, purpose)
        if header.several:
            notes.append(
                f"{path}: is an animation or has several pages, of which the first alone is read; save the "
                "others as files of their own"
            )
    return [one_line(note) for note in notes]


def predict_files(
    detector: Detector,
    paths: Sequence[str | Path],
    output: str | Path,
    json: bool = False,
    with_label_maps: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
    note: Callable[[str], None] = lambda line: None,
) -> list[int]:
    """Predict image files, one after another, and write a picture of each.

    Parameters
    ----------
    output : str or Path
        The directory for NAME-instances.png, smaller than an image above `large.LARGE`; with
        `with_label_maps` also NAME-ids.png (16 bits: the number of the instance) and NAME-classes.png (the
        label, in 8 bits, or in 16 for more than 255 classes); with `json` also predictions.json, a COCO
        document whose annotations have a score, which `read_coco` reads back.
    progress : callable
        Wraps the list of paths, to show progress.
    note : callable
        Called with what may surprise, a line each.

    Returns
    -------
    list of int
        How many objects were found in each image.

    Raises
    ------
    InputError
        If label maps are asked for and the model finds no masks; if a file turns out to be damaged, or
        something cannot be written. The pictures of earlier images have been written then;
        predictions.json has not.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    counts = []
    if with_label_maps and detector.model.mask_head is None:
        raise InputError("--label-maps: this model finds no masks; leave it out, or give other weights")
    with output_directory(output) as folder:
        for number, path in enumerate(progress(list(map(Path, paths))), start=1):
            pixels = files.decode(path)
            height, width = pixels.shape[:2]
            dark = unused_bits(int(pixels.max())) if pixels.dtype == np.uint16 else None
            if dark:
                note(one_line(f"{path}: {dark}"))
            found, image, seen = predict_pixels(detector.model, pixels)
            if line := size_note(path, (height, width), found, detector):
                note(one_line(line))
            picture, *maps = results_of(path, folder, with_label_maps)
            names = detector.class_names
            save_picture(picture, _drawn(image, seen, detector))
            if maps:
                for name, values in zip(maps, label_maps(found, height, width, len(names))):
                    save_picture(name, values)
            counts.append(len(found["scores"]))
            images.append({"id": number, "file_name": path.name, "height": height, "width": width})
            if json:
                annotations += _annotations(found, number, detector)
        if json:
            write_json(folder / "predictions.json", _coco_document(images, annotations, detector))
    return counts


def _drawn(image: np.ndarray, seen: dict, detector: Detector) -> Any:
    return draw_instances(
        image,
        seen["boxes"],
        seen["labels"],
        seen.get("masks"),
        detector.class_names,
        seen["scores"],
        keypoints=likely_keypoints(seen),
        skeleton=detector.skeleton,
    )


def _annotations(found: dict, image_id: int, detector: Detector) -> list[dict]:
    """An image's COCO results; with keypoints, also how many there are and how probable each is."""
    results = coco_results(found, image_id, detector.category_ids)
    if "keypoints" not in found:
        return results
    probabilities = np.round(found["keypoints_probabilities"].astype(np.float64), 4).tolist()
    return [
        result | {"num_keypoints": len(row), "keypoints_probabilities": row}
        for result, row in zip(results, probabilities)
    ]


def _coco_document(images: list[dict], annotations: list[dict], detector: Detector) -> dict:
    names = zip(detector.category_ids, detector.class_names)
    keypoints = detector.skeleton.category() if detector.skeleton else {}
    return {
        "images": images,
        "categories": [{"id": number, "name": name} | keypoints for number, name in names],
        "annotations": [{"id": i, "iscrowd": 0} | found for i, found in enumerate(annotations, start=1)],
    }
