"""The page itself: what is on it, and in which order. What others wrote is escaped by `charts.text`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from minimask.errors import InputError
from minimask.files import write_text
from minimask.results.evaluate import METRICS, Evaluation
from minimask.results.report.charts import Series, line_chart, text
from minimask.results.report.judging import MATCHED, TOUCHED, Judged, confusion, judge
from minimask.results.report.scene import Scenes, data_uri
from minimask.results.visualize import smooth, validated

SHOWN_ABOVE = 0.5  # the score of detections that are drawn and judged; the metrics take all
IMAGES, ERRORS = 3, 6  # best and worst images; pictures of each kind of error
CLASSES = 12  # with more, only the most frequent confusions are listed
LARGE_SIDE, SMALL_SIDE = 422, 165  # display pixels

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Story:
    """What is told besides the evaluation; every part may be empty.

    Attributes
    ----------
    title : str
    facts : sequence of (name, value)
        What was run, on what, for how long.
    configuration : str
        All options, as TOML.
    losses : dict of str to (steps,) array
        As `training.log.read_losses` gives them.
    validations : sequence of dict
        The lines of log.jsonl that have a validation.
    best : int or None
        The step whose weights were evaluated, if validations chose them.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    configuration: str = ""
    losses: dict[str, np.ndarray] = field(default_factory=dict)
    validations: Sequence[dict[str, Any]] = ()
    best: int | None = None


def write_report(path: str | Path, dataset: Any, evaluation: Evaluation, story: Story) -> None:
    """Write the page.

    Parameters
    ----------
    dataset
        What was evaluated on.
    evaluation : Evaluation
        Its detections with the data set's own category ids.
    story : Story
    """
    document = dataset.coco_document()
    judged = judge(document, evaluation.detections, SHOWN_ABOVE)
    scenes = Scenes(dataset, document)
    parts = [*_head(story), *_curves(story), *_precision(evaluation), *_images(judged, scenes)]
    parts += [*_errors(judged, scenes), *_confusions(judged, dataset), *_configuration(story)]
    title, style = text(story.title), (resources.files(__package__) / "style.css").read_text(encoding="utf-8")
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
"""
    write_text(path, page + "\n".join(parts) + "\n</main>\n</body>\n</html>\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """A table of cells that are HTML already."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{text(label)}">{table}</div>'


def _cell(cell: str) -> str:
    return cell if cell.startswith("<td") else f"<td>{cell}</td>"


def _name(value: object, most: int = 200) -> str:
    """Text that others wrote, perhaps from right to left."""
    return f"<bdi>{text(value, most)}</bdi>"


def _head(story: Story) -> Iterator[str]:
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{_name(value, 4000)}</td></tr>" for name, value in story.facts
    )
    yield f'<table class="facts"><tbody>{rows}</tbody></table>'


def _curves(story: Story) -> Iterator[str]:
    steps = story.losses.get("step", np.zeros(0))
    if not len(steps) and not story.validations:
        return
    yield "<h2>Training</h2>"
    charts = []
    if "loss" in story.losses:
        lines = [
            Series("each step", steps, story.losses["loss"], faint=True),
            replace(_mean_of(story.losses, "loss"), name="running mean"),
        ]
        charts.append(("Sum of the losses", line_chart(lines, "sum of the losses", "step")))
    parts = [name for name in story.losses if name.startswith("loss_")]
    if parts:
        lines = [_mean_of(story.losses, name) for name in parts]
        charts.append(("Each loss, running mean", line_chart(lines, "losses", "step", logarithmic=True)))
    if story.validations:
        charts.append(("Validation", line_chart(_validated(story.validations), "average precision", "step")))
    if "learning_rate" in story.losses:
        rate = Series("learning rate", steps, story.losses["learning_rate"])
        charts.append(("Learning rate", line_chart([rate], "learning rate", "step")))
    shown = "".join(f"<div><h3>{title}</h3>{chart}</div>" for title, chart in charts)
    yield f'<div class="charts">{shown}</div>'
    if story.best is not None:
        yield (
            f"<p>What follows is for the weights after step {story.best}, the best in validation. They "
            "were chosen on the images that they are evaluated on here: expect a little less on others.</p>"
        )


def _mean_of(losses: dict[str, np.ndarray], name: str) -> Series:
    known = np.isfinite(losses[name])
    return Series(name.removeprefix("loss_"), losses["step"][known], smooth(losses[name][known]))


def _validated(rows: Sequence[dict[str, Any]]) -> list[Series]:
    steps = np.array([row["step"] for row in rows], np.float64)
    lines = []
    for kind in ("mask", "box", "keypoint"):
        for metric in ("AP", "AP50"):
            values = [validated(row, kind, metric) for row in rows]
            if any(value >= 0 for value in values):
                lines.append(Series(f"{kind} {metric}", steps, np.array(values), dots=True))
    return lines


def _precision(evaluation: Evaluation) -> Iterator[str]:
    yield "<h2>Average precision</h2>"
    rows = [
        [text(kind), *("–" if values.get(m, -1) < 0 else f"{values[m]:.3f}" for m in METRICS)]
        for kind, values in evaluation.kinds.items()
    ]
    yield (
        f"<p>{evaluation.images} images with {evaluation.objects} objects; up to {evaluation.max_detections} "
        "detections per image, of any score.</p>"
    )
    yield _table(["", *METRICS], rows, "average precision")
    if any(value < 0 for values in evaluation.kinds.values() for value in values.values()):
        yield "<p>–: no object of that size in the data.</p>"
    if evaluation.sigmas:
        yield f"<p>{text(evaluation.sigmas)}.</p>"
    if len(evaluation.classes) > 1:
        yield from _classes(evaluation)
    yield "<h3>Precision over recall</h3>"
    charts = "".join(f"<div>{_recall(kind, values)}</div>" for kind, values in evaluation.curves.items())
    yield f'<div class="charts">{charts}</div>'


def _classes(evaluation: Evaluation) -> Iterator[str]:
    head = ["class", "objects", *(f"{text(kind)} {m}" for kind in evaluation.kinds for m in ("AP", "AP50"))]
    rows = []
    for score in evaluation.classes:
        pairs = [value for kind in evaluation.kinds for value in getattr(score, kind)]
        shown = ["–" if value < 0 else f"{value:.3f}" for value in pairs]
        rows.append([_name(score.name), str(score.objects), *shown])
    yield _table(head, rows, "average precision of each class")


def _recall(kind: str, precision: np.ndarray) -> str:
    """Precision over recall, the mean over classes that have objects; `precision` is (T, R, K)."""
    known = np.where(precision >= 0, precision, np.nan)
    known = known[:, :, ~np.isnan(known).all(axis=(0, 1))]
    if known.shape[2] == 0:
        return f"<p>{text(kind)}: no object to find.</p>"
    curves = known.mean(axis=2)  # (T, R)
    recall = np.linspace(0, 1, curves.shape[1])
    shown = {"0.50": curves[0], "0.75": curves[5], "0.50 to 0.95": curves.mean(axis=0)}
    lines = [Series(f"{kind}, IoU {name}", recall, values) for name, values in shown.items()]
    return line_chart(lines, f"{kind}: precision over recall", "recall", high=1.0)


def _pair(scenes: Scenes, image: Judged, box: Sequence[float] | None, caption: str, alt: str) -> str:
    """Truth beside prediction, of a whole image or around a box; only the caption without pictures."""
    large, index = box is None, image.index
    region = scenes.whole(index) if large else scenes.around(index, box)
    side, pictures = (LARGE_SIDE if large else SMALL_SIDE), ""
    try:
        if not large or scenes.can_be_shown(index):
            drawn = scenes.draw(index, region, ([*image.truth, *image.crowds], image.found), side)
            for picture, what in zip(drawn, ("ground truth", "prediction")):
                size = f'width="{picture.width}" height="{picture.height}"'
                pictures += f'<img src="{data_uri(picture)}" {size} alt="{text(f"{what}, {alt}")}">'
    except InputError as error:  # the image file is gone by now, or damaged
        caption += f" ({text(error)})"
    kind = "large" if large else "small"
    return f'<figure class="{kind}"><div>{pictures}</div><figcaption>{caption}</figcaption></figure>'


def _images(judged: Sequence[Judged], scenes: Scenes) -> Iterator[str]:
    ranked = sorted((j for j in judged if j.quality is not None), key=lambda j: -j.quality)
    if not ranked:
        return
    yield "<h2>Best and worst images</h2>"
    yield (
        f"<p>Ground truth on the left, detections that score at least {SHOWN_ABOVE} on the right. Ranked by "
        "panoptic quality, classes aside: the sum of the matches' IoU, divided by the mean of the numbers of "
        f"objects and detections. A detection matches an object at an IoU of {MATCHED} or more. The mean "
        f"over {len(ranked)} images is {np.mean([j.quality for j in ranked]):.2f}.</p>"
    )
    best = ranked[:IMAGES]
    worst = [image for image in ranked[::-1][:IMAGES] if image not in best]
    for title, images in (("Best", best), ("Worst", worst)):
        if not images:
            continue
        yield f"<h3>{title}</h3>"
        pairs = []
        for image in images:
            name, right = scenes.name(image.index), int((image.match >= 0).sum())
            counts = f"{len(image.truth)} annotated, {len(image.found)} detected, {right} matched"
            caption = f"{_name(name)}: quality {image.quality:.2f}; {counts}"
            pairs.append(_pair(scenes, image, None, caption, f"image {name}"))
        yield f'<div class="pairs">{"".join(pairs)}</div>'


WORDS = {
    "missed": (
        f"Objects that no detection touches with an IoU of {TOUCHED} or more, the largest first; in the "
        "middle of the picture on the left."
    ),
    "invented": (
        f"Detections without an object at an IoU of {TOUCHED} or more, the most confident first; in the "
        "middle of the picture on the right."
    ),
    "badly shaped": (
        f"Detections whose best IoU with an object is at least {TOUCHED} and under {MATCHED}, the most "
        "confident first: half an object, two in one, or an outline far off."
    ),
}


def _errors(judged: Sequence[Judged], scenes: Scenes) -> Iterator[str]:
    found: dict[str, list[tuple[Judged, int]]] = {}
    for image in judged:
        for kind, which in image.errors().items():
            found.setdefault(kind, []).extend((image, i) for i in which)
    right = sum(int((image.match >= 0).sum()) for image in judged)
    yield "<h2>Errors</h2>"
    counts = [f"{len(cases)} {kind}" for kind, cases in found.items()]
    yield (
        f"<p>At a score of {SHOWN_ABOVE} or more, {right} detections match an object of their own; "
        f"{', '.join(counts)}. Crowd regions count for neither side.</p>"
    )
    for kind, words in WORDS.items():
        cases = found.get(kind, [])
        if not cases:
            continue
        yield f"<h3>{kind.capitalize()}</h3><p>{words}</p>"
        size = _area if kind == "missed" else _score
        pairs = [_case(scenes, image, i, kind) for image, i in sorted(cases, key=size, reverse=True)[:ERRORS]]
        yield f'<div class="pairs">{"".join(pairs)}</div>'


def _area(case: tuple[Judged, int]) -> float:
    return case[0].truth[case[1]]["area"]


def _score(case: tuple[Judged, int]) -> float:
    return case[0].found[case[1]]["score"]


def _case(scenes: Scenes, image: Judged, i: int, kind: str) -> str:
    entry = (image.truth if kind == "missed" else image.found)[i]
    name = scenes.name(image.index)
    label = scenes.names[scenes.labels[entry["category_id"]] - 1]
    told = f"area {entry['area']:.0f} pixels" if kind == "missed" else f"score {entry['score']:.2f}"
    if kind == "badly shaped":
        told += f", IoU {image.overlap[i]:.2f}"
    caption = f"{_name(label)}, {told}, in {_name(name)}"
    return _pair(scenes, image, entry["bbox"], caption, f"{kind}: {label}, {told}, in image {name}")


def _confusions(judged: Sequence[Judged], dataset: Any) -> Iterator[str]:
    names, counts = list(dataset.class_names), confusion(judged, dataset.category_ids)
    yield "<h2>Confusion of classes</h2>"
    few = len(names) <= CLASSES
    which = "Objects of a class (rows) by the class that they were found as (columns)"
    which = which if few else "Objects that were found as another class, the 20 most frequent pairs"
    yield f"<p>{which}, at an IoU of {MATCHED} and a score of {SHOWN_ABOVE} or more.</p>"
    if few:
        head = ["class", *map(_name, names), "not found"]
        rows = []
        for r, title in enumerate([*map(_name, names), "nothing there"]):
            cells = [_count(counts, r, c) for c in range(len(names) + 1)]
            rows.append([title, *cells])
        yield _table(head, rows, "confusion of classes")
        return
    pairs = [
        (counts[a, b], a, b) for a in range(len(names)) for b in range(len(names)) if a != b and counts[a, b]
    ]
    rows = [[_name(names[a]), _name(names[b]), str(n)] for n, a, b in sorted(pairs, reverse=True)[:20]]
    if rows:
        yield _table(["class", "found as", "times"], rows, "the most frequent confusions of classes")
    else:
        yield "<p>No two classes were confused.</p>"


def _count(counts: np.ndarray, r: int, c: int) -> str:
    last = len(counts) - 1
    if r == c == last:
        return "<td></td>"
    kind = "" if not counts[r, c] else ' class="right"' if r == c else ' class="wrong"'
    return f"<td{kind}>{counts[r, c]}</td>"


def _configuration(story: Story) -> Iterator[str]:
    if story.configuration:
        lines = "\n".join(text(line, 4000) for line in story.configuration.split("\n"))
        yield f"<h2>Configuration</h2><details><summary>All options</summary><pre>{lines}</pre></details>"
