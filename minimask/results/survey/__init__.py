"""What is wrong with a data set: everything that `minimask check-data` says, and the pictures beside it.

`survey` reads a set as training would, but goes on after faults; `annotations`, `contents` and `anchors`
look at annotations, at image files, and at sizes beside the network's anchors. Begin with `findings.py`.

Imports `data`, `models` and `results`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minimask.config import Config
from minimask.data.coco import CocoDataset, survey_coco
from minimask.results.survey import anchors, annotations, contents, sheets
from minimask.results.survey.findings import Report

FILES = ("report.json", "sheet.png", "sizes.png", "val-sheet.png")


@dataclass(frozen=True)
class Surveyed:
    """A report, and what its pictures are drawn from; None if there is nothing to draw."""

    report: Report
    train: CocoDataset | None
    val: CocoDataset | None
    sizes: np.ndarray | None  # square roots of areas in pixels of the network's input
    size_facts: dict[str, Any] | None

    def draw(self, path: Path) -> bool:
        """Draw one of `FILES`; False if there is nothing to draw."""
        from minimask.results.visualize import save_picture

        if path.name == "sizes.png":
            if self.sizes is None or not self.size_facts:
                return False
            sheets.size_histogram(self.sizes, self.size_facts, self.train.name, path)
            return True
        dataset = self.train if path.name == "sheet.png" else self.val
        if dataset is None:
            return False
        save_picture(path, sheets.contact_sheet(dataset))
        return True


def survey(
    config: Config,
    train: tuple[str | Path, str | Path],
    val: tuple[str | Path, str | Path] | None = None,
    progress: Callable[[Iterable, str], Iterable] = lambda items, title: items,
) -> Surveyed:
    """Look for everything that would stop training or harm it.

    Parameters
    ----------
    config : Config
        Of the planned training: its network, scaling, crop and limit of detections.
    train, val : (json_path, images_dir)
    progress : callable
        Wraps what is iterated over, with a title.

    Raises
    ------
    InputError
        If a file is no COCO instances JSON, or there is no such folder of images.
    """
    report = Report()
    ours, our_contents, boxes_hold = _one(report, config, *train, progress)
    theirs, their_contents = None, None
    if val:
        theirs, their_contents, _ = _one(report, config, *val, progress)
    sizes, size_facts = None, None
    if ours is not None:
        report.add(annotations.of_categories(ours))
        if boxes_hold:
            sizes, size_facts = _sizes(report, config, ours)
    if ours is not None and theirs is not None:
        report.add(annotations.of_both(ours, theirs))
        report.add(contents.of_both_contents(ours, our_contents, theirs, their_contents))
    return Surveyed(report, ours, theirs, sizes, size_facts)


def _one(
    report: Report, config: Config, path: str | Path, images: str | Path, progress: Callable
) -> tuple[CocoDataset | None, contents.Contents | None, bool]:
    """Look at one data set; the last of the result is whether its boxes can be believed."""
    dataset, faults, notes = survey_coco(path, images)
    report.add(annotations.of_reading(Path(path).name, faults, notes))
    if dataset is None:
        return None, None, False
    boxes_hold = annotations.boxes_hold(faults)
    report.add(annotations.of_annotations(dataset, config.model.detections, boxes_hold))
    found = contents.read_contents(dataset, lambda indices: progress(indices, f"reading {dataset.name}"))
    report.add(contents.of_contents(dataset, found))
    facts = annotations.facts(dataset) | {"grey_images": found.grey}
    report.facts[str(path)] = facts | {"shown": _shown(facts)}
    return dataset, found, boxes_hold


def _shown(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as lines."""
    grey = facts["grey_images"]
    colour = "all grey" if grey == facts["images"] else f"{grey} of them grey" if grey else "all in colour"
    counts, classes = facts["objects_per_image"], facts["classes"]
    most = sorted(classes.items(), key=lambda item: -item[1])[:6]
    listed = ", ".join(f"{name} {count}" for name, count in most) + (", ..." if len(classes) > 6 else "")
    crowds = f"; {facts['crowds']} crowd regions" if facts["crowds"] else ""
    sizes = f"{facts['smallest_image']} to {facts['largest_image']}"
    sizes = facts["smallest_image"] if facts["smallest_image"] == facts["largest_image"] else sizes
    return {
        "images": f"{facts['images']}, {sizes}, {colour}",
        "objects": f"{facts['objects']}, {counts['least']} to {counts['most']} an image{crowds}",
        "classes": f"{len(classes)}: {listed}",
    }


def _sizes(report: Report, config: Config, dataset: CocoDataset) -> tuple[np.ndarray | None, dict | None]:
    from minimask.models.networks import build_model

    model = build_model(config, len(dataset.class_names) + 1)
    findings, facts = anchors.of_sizes(dataset, model, config)
    report.add(findings)
    if not facts:
        return None, None
    entry = next(iter(report.facts.values()))
    entry["anchors"] = facts
    low, middle, high = (facts["sqrt_area"][q] for q in ("0.05", "0.5", "0.95"))
    entry["shown"]["sizes"] = (
        f"sqrt(area) {low:.3g} to {high:.3g} pixels (5 to 95 %), median {middle:.3g}, to the network"
    )
    listed = " ".join(f"{size:g}" for level in facts["anchor_sizes"] for size in level)
    half, much = (100 * facts["missed"][threshold] for threshold in ("0.5", "0.7"))
    entry["shown"]["anchors"] = (
        f"{listed}: none reaches {half:.1f} % of the objects at IoU 0.5, {much:.1f} % at 0.7"
    )
    views = anchors.training_views(dataset, model.transform, config)
    return np.sqrt(views[len(views) // 2].areas), facts
