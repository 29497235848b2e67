"""`minimask inspect`'s page: a trace in one file that loads nothing, to step through with the keyboard.

`page.html` is its frame. What others wrote (names of classes and files) is escaped by `charts.text`, and in
the objects' data by JSON with `<` as an escape.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from minimask.data.augmentation import Augmentation
from minimask.files import write_text
from minimask.inspection import encoding
from minimask.inspection import figures as drawn
from minimask.inspection.failures import CAUSES
from minimask.inspection.figures.drawing import shown
from minimask.inspection.figures.masks import OF_CAUSE
from minimask.inspection.records import Reading, Trace
from minimask.inspection.weights import EXPLODED
from minimask.results.report.charts import text

OBJECTS = 300
"""The most objects that can be looked at one by one."""

SCENE = 1600  # pixels along the longer side of the image in which objects are chosen
PASTED = 128  # pixels along the longer side of a pasted mask
LINES = 64  # sampling points along an axis beyond which they are not drawn
WIDE_BYTES, NARROW_BYTES, IMAGE_BYTES = 150_000, 90_000, 900_000  # of each picture, as base64


def write_page(
    path: str | Path,
    trace: Trace,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    augmentation: Augmentation | None = None,
    above: float = 0.5,
    progress: Callable[[Sequence], Iterable] = iter,
) -> int:
    """Write a trace as one page of HTML, at most 8 MB.

    Parameters
    ----------
    facts : sequence of (name, value)
        What was inspected, for the head of the page.
    augmentation : Augmentation, optional
        What training does to images, to be shown.
    above : float
        The lowest score of a detection that can be looked at by itself; if none has it, the best 20 can.
    progress : callable
        Wraps the list of figures, to show progress.

    Returns
    -------
    int
        How many figures the page has.
    """
    makers = [*drawn.FIGURES]
    if augmentation is not None:
        varied = partial(drawn.augmentations, options=augmentation)
        varied.__doc__, varied.__name__ = drawn.augmentations.__doc__, drawn.augmentations.__name__
        makers.insert(2, varied)
    stages = [_objects_stage(trace)]
    for make in progress(makers):
        stages += _stage(make, trace)
    template = Template((resources.files(__package__) / "page.html").read_text(encoding="utf-8"))
    style = (resources.files("minimask.results.report") / "style.css").read_text(encoding="utf-8")
    rows = "".join(
        f"<tr><td>{text(name)}</td><td><bdi>{text(value, 4000)}</bdi></td></tr>" for name, value in facts
    )
    options = "".join(f'<option value="{i}">{i + 1}. {name}</option>' for i, (name, _) in enumerate(stages))
    sections = "".join(
        f'<section class="stage" id="stage{i}" aria-label="{name}"><h2>{i + 1}. {name}</h2>{body}</section>\n'
        for i, (name, body) in enumerate(stages)
    )
    data = json.dumps(_data(trace, above), allow_nan=False).replace("<", "\\u003c")
    filled = dict(title=text(title), style=style, facts=rows, options=options, sections=sections, data=data)
    write_text(path, template.substitute(filled))
    return len(stages) - 1


def _stage(make: Callable, trace: Trace) -> Iterator[tuple[str, str]]:
    """A figure's title and HTML, wide and narrow; none where the trace lacks what it shows."""
    wide = make(trace, layout=drawn.WIDE)
    if wide is None:
        return
    title, _, story = inspect.cleandoc(make.__doc__ or "").partition("\n")
    story = " ".join(story.split())
    source, width, height = encoding.figure_uri(wide, 110, WIDE_BYTES)
    narrow, _, _ = encoding.figure_uri(make(trace, layout=drawn.NARROW), 150, NARROW_BYTES)
    size, alt = f'width="{width}" height="{height}"', text(f"{title}. {story}", 600)
    picture = (
        f'<picture><source media="(max-width: 640px)" srcset="{narrow}">'
        f'<img src="{source}" {size} alt="{alt}"></picture>'
    )
    more = MORE.get(make.__name__, lambda trace: "")(trace)
    yield text(title), f"<p>{text(story, 2000)}</p><figure>{picture}</figure>{more}"


# ------------------------------------------------------------------------------- what figures do not tell


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], summary: str) -> str:
    """A table behind a line that opens it."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{text(cell, 120)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    region = f'<div class="wide" tabindex="0" role="region" aria-label="{text(summary)}">{table}</div>'
    return f"<details><summary>{text(summary)}</summary>{region}</details>"


def _classes(trace: Trace) -> str:
    labels = trace.result["labels"]
    truth = trace.target.labels if trace.target is not None else np.zeros(0, np.int64)
    rows = [
        (trace.name(k), np.count_nonzero(truth == k), np.count_nonzero(labels == k))
        for k in range(1, len(trace.class_names) + 1)
        if (truth == k).any() or (labels == k).any()
    ]
    return _table(("class", "annotated", "detected"), rows, "Objects of each class")


def _round_trips(trace: Trace) -> str:
    told = f"A box scaled to the batch and back is off by at most {trace.input.box_error:.2g} pixels. "
    trip = trace.training.round_trip if trace.training is not None else None
    if trip is not None and len(trip):
        cells = trace.training.mask_targets.shape[-1]
        told += (
            f"An object's mask, cut to {cells} × {cells} cells as the mask branch learns it and pasted back, "
            f"keeps an IoU of {trip.mean():.3f} on average, {trip.min():.3f} at worst: no mask of this "
            "model can be better."
        )
    return f"<p>{told}</p>"


def _kept(trace: Trace) -> str:
    found, rows = trace.classifying.candidates, []
    for label in np.unique(found.labels).tolist():
        mine = found.labels == label
        survivors = [i for i in found.survivors.tolist() if mine[i]]
        shown = " ".join(map(str, survivors[:30])) + (" …" if len(survivors) > 30 else "")
        rows.append((trace.name(label), int(mine.sum()), len(survivors), int(mine[found.kept].sum()), shown))
    head = ("class", "candidates", "after NMS", "detected", "candidates kept, the best first")
    return _table(head, rows, "Which candidates suppression keeps, class by class")


def _causes(trace: Trace) -> str:
    judged, rows = trace.failures, []
    for g, (cause, d) in enumerate(zip(judged.causes, judged.detections.tolist())):
        label = trace.name(int(trace.target.labels[g]))
        by = f"{trace.name(int(trace.result['labels'][d]))} {trace.result['scores'][d]:.2f}" if d >= 0 else ""
        overlaps = (judged.proposal_iou[g], judged.box_iou[g], judged.mask_iou[g])
        rows.append((g + 1, label, cause, *("" if np.isnan(v) else f"{v:.2f}" for v in overlaps), by))
    head = ("object", "class", "cause", "IoU: best proposal", "box", "mask", "detection")
    words = "".join(f"<li><b>{text(cause)}</b>: {text(why)}</li>" for cause, why in CAUSES.items())
    return f"<ul>{words}</ul>" + _table(head, rows, "Each object")


def _all_weights(trace: Trace) -> str:
    rows = [
        (
            w.name,
            " × ".join(map(str, w.shape)),
            *(f"{v:.3g}" for v in (w.least, w.greatest, w.mean, w.deviation)),
            "dead" if w.dead else "exploding" if w.exploding else "",
        )
        for w in trace.weights
    ]
    head = ("parameter", "shape", "least", "greatest", "mean", "deviation", f"dead, or beyond {EXPLODED:.0f}")
    return _table(head, rows, f"All {len(rows)} parameters")


MORE = {
    "image": _classes,
    "network_input": _round_trips,
    "filtering": _kept,
    "failures": _causes,
    "weights": _all_weights,
}
"""What is added under a figure, by the figure's name."""


# ------------------------------------------------------------------------------------- objects, one by one


def _objects_stage(trace: Trace) -> tuple[str, str]:
    from PIL import Image

    source = encoding.picture_uri(Image.fromarray(shown(trace.image, SCENE)), IMAGE_BYTES)
    height, width = trace.image.shape[1:]
    body = (
        Template((resources.files(__package__) / "objects.html").read_text(encoding="utf-8"))
        .substitute(source=source, width=width, height=height)
        .strip()
    )
    return "One object after the other", body


def _data(trace: Trace, above: float) -> dict:
    """What the page's script draws: all boxes in pixels of the image."""
    scores = np.asarray(trace.result["scores"])
    confident = np.flatnonzero(scores >= above)
    chosen = (confident if len(confident) else np.arange(min(20, len(scores))))[:OBJECTS]
    objects = [_detection(trace, int(d)) for d in chosen]
    if trace.failures is not None:
        lost = [g for g, d in enumerate(trace.failures.detections.tolist()) if d < 0]
        objects += [_lost(trace, g) for g in lost[:OBJECTS]]
    height, width = trace.image.shape[1:]
    return {"width": width, "height": height, "objects": objects}


def _rounded(values: Any, digits: int = 2) -> list:
    return np.round(np.nan_to_num(np.asarray(values, np.float64)), digits).tolist()


def _detection(trace: Trace, d: int) -> dict:
    stage, ranked = trace.classifying, trace.proposing.ranked
    scale = np.array([trace.input.scale[1], trace.input.scale[0]] * 2)
    proposal = int(stage.proposals[d])
    rank = int(ranked.kept[proposal])
    label, score = int(trace.result["labels"][d]), float(trace.result["scores"][d])
    found = {
        "name": trace.name(label),
        "score": round(score, 3),
        "box": _rounded(trace.result["boxes"][d]),
        "proposal": _rounded(ranked.boxes[rank] / scale),
        "anchor": _rounded(trace.anchors.boxes[ranked.anchors[rank]] / scale),
        "anchorLevel": trace.anchors.names[int(ranked.levels[rank])],
        "objectness": round(float(ranked.scores[rank]), 3),
        "number": proposal + 1,
        "boxReading": _reading(stage.readings[d], scale),
        "verdict": _verdict(trace, d),
    }
    if trace.masking is not None:
        values = trace.masking.probabilities[d]
        found |= {
            "maskReading": _reading(trace.masking.readings[d], scale),
            "cells": values.shape[-1],
            "mask": encoding.cells(values),
            "pasted": _pasted(trace, d),
        }
    return found


def _verdict(trace: Trace, d: int) -> str:
    if trace.failures is None:
        return ""
    of = np.flatnonzero(trace.failures.detections == d)
    if not len(of):
        return "no object" if d in trace.failures.invented else ""
    g = int(of[0])
    overlap = f"box IoU {trace.failures.box_iou[g]:.2f}"
    if np.isfinite(trace.failures.mask_iou[g]):
        overlap += f", mask IoU {trace.failures.mask_iou[g]:.2f}"
    return f"object {g + 1}: {trace.failures.causes[g]}, {overlap}"


def _reading(at: Reading, scale: np.ndarray) -> dict:
    """A reading in pixels of the image; points are left out if there are too many to tell apart."""
    told = {"level": at.level, "stride": at.stride, "cell": _rounded(at.stride / scale[:2], 4)}
    told |= {"bins": list(at.bins), "points": [len(at.columns), len(at.rows)]}
    if 0 < max(len(at.columns), len(at.rows)) <= LINES:
        told |= {"x": _rounded(at.columns / scale[0]), "y": _rounded(at.rows / scale[1])}
    return told


def _pasted(trace: Trace, d: int) -> dict | None:
    (y0, y1, x0, x1), patch = trace.result["masks"].window(d)
    if not patch.size:
        return None
    step = max(1, -(-max(patch.shape) // PASTED))
    thinned = patch[::step, ::step] > 0.5
    place = [x0, y0, thinned.shape[1] * step, thinned.shape[0] * step]
    return {
        "place": place,
        "source": encoding.stencil_uri(thinned, (0, 158, 115)),
        "size": [x1 - x0, y1 - y0],
    }


def _lost(trace: Trace, g: int) -> dict:
    judged = trace.failures
    return {
        "name": trace.name(int(trace.target.labels[g])),
        "lost": judged.causes[g],
        "why": CAUSES[judged.causes[g]],
        "colour": OF_CAUSE[judged.causes[g]],
        "box": _rounded(trace.target.boxes[g]),
        "verdict": f"object {g + 1}: its best proposal overlaps it by an IoU of {judged.proposal_iou[g]:.2f}",
    }
