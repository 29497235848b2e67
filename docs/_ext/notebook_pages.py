"""The notebooks as pages: copied below docs/ for the build.

Sphinx reads what lies below docs/, so tutorials/ is copied to docs/tutorials/, which git ignores; links in
the copies are followed from where the originals stand (`repository`). What a figure shows is said in the
metadata of its cell (``"mystnb": {"image": {"alt": ...}}``; tools/notebooks.py puts it there).
Nothing of a notebook is run; explorer.html, which one of them writes, is made by the same function.
"""

import json
from pathlib import Path

import numpy as np
from sphinx.application import Sphinx
from sphinx.config import Config

from minimask.data import nuclei_sample
from minimask.kernels.roi_align import Sampling
from minimask.lessons import explorer

ROOT = Path(__file__).parents[2]
TUTORIALS, COPIES = ROOT / "tutorials", ROOT / "docs" / "tutorials"


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


def write_explorer(app: Sphinx, exception: Exception | None) -> None:
    """The page that notebook 05 writes and links to: its feature map, and its box on its way to the right."""
    if exception or app.builder.format != "html":
        return
    image = nuclei_sample("val")[8].image[:, 82:210, 6:166].mean(axis=0, dtype=np.float64)  # (128, 160)
    cells = image.reshape(8, 16, 10, 16).mean(axis=(1, 3))
    boxes = np.array([25.0, 30.0, 91.0, 93.0]) + np.arange(16)[:, None] * np.array([1.0, 0.0, 1.0, 0.0])
    sampling = Sampling((3, 3), ratio=2, aligned=True)
    explorer.write_page(app.outdir / "tutorials" / "explorer.html", cells / cells.max(), boxes, sampling)


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", copy_notebooks)
    app.connect("build-finished", write_explorer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
