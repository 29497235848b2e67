"""The notebooks as pages: copied below docs/ for the build, and their figures described.

Sphinx reads what lies below docs/, so tutorials/ is copied to docs/tutorials/, which git ignores; links in
the copies are followed from where the originals stand (`repository`). A figure may say what it is in the
metadata of its cell (``"mystnb": {"image": {"alt": ...}}``). The text before it describes any other.
Nothing of a notebook is run; explorer.html, which one of them writes, is made by the same function.
"""

import json
from pathlib import Path

import numpy as np
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from minimask.data import nuclei_sample
from minimask.kernels.roi_align import Sampling
from minimask.lessons import explorer

ROOT = Path(__file__).parents[2]
TUTORIALS, COPIES = ROOT / "tutorials", ROOT / "docs" / "tutorials"
LONGEST = 300  # characters of a description


def copy_notebooks(app: Sphinx, config: Config) -> None:
    """Bring docs/tutorials/ up to date; files that have not changed keep their time and are not read anew.

    README.md becomes a notebook of one cell: whatever is Markdown below docs/ is a page of the repository.
    """
    COPIES.mkdir(exist_ok=True)
    wanted = {path.name: path.read_bytes() for path in TUTORIALS.glob("*.ipynb")}
    text = (TUTORIALS / "README.md").read_text(encoding="utf-8")
    cell = {"cell_type": "markdown", "id": "readme", "metadata": {}, "source": text}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    wanted["index.ipynb"] = json.dumps(notebook).encode()
    for copy in COPIES.iterdir():
        if copy.name not in wanted:
            copy.unlink()
    for name, content in wanted.items():
        copy = COPIES / name
        if not copy.exists() or copy.read_bytes() != content:
            copy.write_bytes(content)


def describe_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Give every figure without a description one: its section, and the last words before its code."""
    heading, before = "", ""
    for node in doctree.findall():
        if isinstance(node, nodes.title):
            heading, before = plain(node), ""
        elif isinstance(node, nodes.paragraph) and not within_output(node):
            before = plain(node) or before
        elif isinstance(node, nodes.image) and not node.get("alt"):
            node["alt"] = f"Figure under “{heading}”, drawn by the code above it."
            node["alt"] += f" The text before it: {before}" if before else ""


def write_explorer(app: Sphinx, exception: Exception | None) -> None:
    """The page that notebook 05 writes and links to: its feature map, and its box on its way to the right."""
    if exception or app.builder.format != "html":
        return
    image = nuclei_sample("val")[8].image[:, 82:210, 6:166].mean(axis=0, dtype=np.float64)  # (128, 160)
    cells = image.reshape(8, 16, 10, 16).mean(axis=(1, 3))
    boxes = np.array([25.0, 30.0, 91.0, 93.0]) + np.arange(16)[:, None] * np.array([1.0, 0.0, 1.0, 0.0])
    sampling = Sampling((3, 3), ratio=2, aligned=True)
    explorer.write_page(app.outdir / "tutorials" / "explorer.html", cells / cells.max(), boxes, sampling)


def within_output(node: nodes.Node) -> bool:
    """Whether code has printed it."""
    while node := node.parent:
        if "cell_output" in node.get("classes", ()):
            return True
    return False


def plain(node: nodes.Element) -> str:
    """A node's text on one line, whole sentences from its end as far as they are short enough."""
    text = " ".join(node.astext().split())
    if len(text) <= LONGEST:
        return text
    _, stop, sentences = text[-LONGEST:].partition(". ")
    return sentences if stop else "… " + text[-LONGEST:].partition(" ")[2]


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", copy_notebooks)
    app.connect("doctree-read", describe_figures)
    app.connect("build-finished", write_explorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
