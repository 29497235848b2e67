"""The explorer draws what the layers read; its page works alone in a browser, by keys and at any width."""

import base64
import io
import itertools
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from minimask.errors import InputError
from minimask.kernels.roi_align import Sampling
from minimask.lessons import explorer, misalign
from tests.browser import BROWSER, Browser

X = np.random.default_rng(0).normal(size=(8, 10))
BOX = (37.0, 30.0, 79.0, 81.0)


# -------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", explorer.LAYERS)
def test_bins_are_drawn_where_the_layer_is_measured_to_read(name, aligned):
    """`misalign` finds the bins' edges from what a layer says of a map of positions, without a formula."""
    rng = np.random.default_rng(1)
    for box in 16 * misalign.random_boxes(rng, 20, 1, 4, 9):
        read = explorer.reading(name, np.zeros((12, 12)), box, Sampling((3, 3), 2, aligned), 16)
        columns, rows = misalign.bin_edges(name, box[None], 3, 16, aligned)[0]
        np.testing.assert_allclose(read.columns, columns, rtol=0, atol=1e-11)
        np.testing.assert_allclose(read.rows, rows, rtol=0, atol=1e-11)
        off = misalign.displacements(name, box[None], 3, 16, aligned)
        assert read.off == pytest.approx(np.abs(off).max(), abs=1e-11)


@pytest.mark.parametrize("points", ["centers", "crossings"])
@pytest.mark.parametrize("aggregation, combine", [("average", np.mean), ("max", np.max)])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("name", ["RoIWarp", "RoIAlign"])
def test_points_are_drawn_where_their_values_give_what_the_bins_read(
    name, ratio, aggregation, combine, points
):
    """On a plane, a point's value is known from its place alone."""
    v, u = np.indices((8, 10)) + 0.5
    s = Sampling((2, 3), ratio, True, points, aggregation)
    read = explorer.reading(name, 3 * u - v, BOX, s)
    values = read.points @ [3, -1] / 16
    each_y, each_x = (ratio or int(np.ceil(np.diff(e[0])[0] / 16)) for e in (read.rows, read.columns))
    bins = values.reshape(2, each_y, 3, each_x)
    np.testing.assert_allclose(combine(bins, axis=(1, 3)), read.values, rtol=0, atol=1e-12)


def test_the_points_of_roi_pool_are_the_maxima():
    read = explorer.reading("RoIPool", X, BOX)
    u, v = (read.points.T // 16).astype(int)
    assert sorted(set(X[v, u])) == sorted(set(read.values.ravel()))


def test_a_figure_has_a_row_for_each_layer_and_leaves_pyplot_alone():
    figure = explorer.draw(X, BOX, layers=("RoIWarp", "RoIAlign"))
    titles = [axes.get_title() for axes in figure.axes]
    of_warp = "RoIWarp: edges up to 5.0 px off\n(at most 8.0 for any box)"
    of_align = "RoIAlign: edges up to 0.0 px off\n(at most 0.0 for any box)"
    assert titles == [of_warp, "reads", of_align, "reads"]
    numbers = [text.get_text() for text in figure.axes[3].texts]
    want = explorer.reading("RoIAlign", X, BOX).values
    assert numbers == [f"{value:.2f}" for value in want.ravel()]
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()


def test_a_box_without_area_or_outside_the_map_is_drawn_and_an_unknown_layer_refused():
    for box in ((40, 40, 40, 40), (-100, -100, -60, -60)):
        for ratio in (0, 2):
            figure = explorer.draw(X, box, Sampling((7, 7), ratio, True))
            figure.savefig(io.BytesIO(), format="png", dpi=20)
    with pytest.raises(ValueError, match="'RoiAlign' among RoIPool"):
        explorer.draw(X, BOX, layers=("RoiAlign",))


# --------------------------------------------------------------------------------------------------- sliders


def test_without_a_person_the_figure_has_no_sliders():
    assert isinstance(explorer.explore(X, BOX), Figure)
    assert isinstance(explorer.explore(X, BOX, live=False), Figure)


def test_sliders_move_the_box():
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    shown = explorer.explore(X, BOX, live=True)
    sliders = {child.description: child for child in shown.children[:-1]}
    assert sliders["left"].value == 37 and sliders["height"].value == 51
    for name, value in dict(left=40.0, width=48.0, top=16.0, height=64.0, points="crossings").items():
        sliders[name].value = value
    shown.update()
    titles = [axes.get_title() for axes in shown.result.axes]
    # half a cell, and 3 cells in 2 bins
    assert titles[0] == "RoIPool: edges up to 16.0 px off\n(at most 16.0 for any box)"
    points = shown.result.axes[4].lines[-1].get_xydata()
    assert points[0] == pytest.approx([40 + 8, 16 + 32 / 3])


# -------------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    boxes = misalign.moved(np.array(BOX), 16, 4.0)
    assert explorer.write_page(path, X, boxes, title="$title <b> & more") == path
    return path


def test_the_page_is_one_file_whose_pictures_have_words(page):
    text = page.read_text(encoding="utf-8")
    tags = Page(text).tags
    assert not re.search(r"(src|href|url)\s*[=(]\s*[\"']?(?!data:)[\w/]", text)
    assert "<title>$title &lt;b&gt; &amp; more</title>" in text
    pictures = [attributes for tag, attributes in tags if tag == "img"]
    frames = [attributes for tag, attributes in tags if attributes.get("class") == "frame"]
    assert len(frames) == 4 and len(pictures) == 12
    assert ["hidden" in frame for frame in frames] == [False, True, True, True]
    assert frames[1]["aria-label"] == "box from (41, 34) to (83, 85) in input pixels"
    for (box, name), picture in zip(
        itertools.product(misalign.moved(np.array(BOX), 16, 4.0), explorer.LAYERS), pictures
    ):
        assert picture["alt"] == explorer.describe(explorer.reading(name, X, box))
        with Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))) as image:
            assert image.format == "PNG" and image.width > 700 and len(image.convert("L").getcolors()) > 20


def test_alternative_text_says_what_the_picture_shows():
    x = np.broadcast_to(16.0 * (np.arange(10) + 0.5), (8, 10))  # a cell holds its x: bins read their middles
    assert explorer.describe(explorer.reading("RoIAlign", x, BOX)) == (
        "RoIAlign: 2 by 2 bins, x from 37.0 to 79.0, y from 30.0 to 81.0, their edges exactly where they "
        "should be. Row by row, it reads 47.50, 68.50; 47.50, 68.50."
    )
    assert "edges up to 10.0 pixels from where" in explorer.describe(explorer.reading("RoIPool", x, BOX))


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        explorer.write_page(tmp_path / "missing" / "page.html", X, [BOX])


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium to open the explorer's page in")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        browser.open(page.as_uri())
        yield browser
    finally:
        browser.close()


FRAME = "frames.map((frame, i) => frame.getClientRects().length ? i : -1).filter((i) => i >= 0).join()"


def test_in_a_browser_the_keys_move_the_box(browser):
    assert browser.value(FRAME) == "0"
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):  # nothing has the focus
        browser.press(key)
        seen.append(browser.value(FRAME))
    browser.press("ArrowRight", modifiers=1)  # with Alt, the browser's own
    assert (*seen, browser.value(FRAME)) == ("1", "2", "1", "1")
    browser.press("Tab")
    assert browser.value("document.activeElement.id") == "box", "the slider is reached first"
    seen = []
    for key in ("ArrowRight", "End", "ArrowRight", "Home", "ArrowLeft"):
        browser.press(key)
        seen.append(browser.value(FRAME))
    assert seen == ["2", "3", "3", "0", "0"], "one frame a key, and none beyond the ends"
    browser.press("ArrowRight")
    assert browser.value("where.textContent") == "box from (41, 34) to (83, 85) in input pixels"


def test_a_screen_reader_is_told_what_the_slider_does_and_where_it_is(browser):
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    told = {
        node["role"]["value"]: node["name"]["value"]
        for node in nodes
        if not node["ignored"] and node.get("name") and node["role"]["value"] in ("slider", "group", "image")
    }
    assert told["slider"] == "Move the box, here or with the arrow keys"
    assert told["group"] == browser.value("slider.getAttribute('aria-valuetext')")
    assert told["image"].startswith("RoIAlign: 2 by 2 bins, x from 41.0 to 83.0")


@pytest.mark.parametrize("width, columns", [(1280, 3), (400, 1)])
def test_at_any_width_nothing_is_cut_off(browser, width, columns, tmp_path):
    browser.size(width, 900)
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = "[...document.querySelectorAll('.frame:not([hidden]) img')]"
    places = browser.value(
        f"{shown}.map((i) => {{const r = i.getBoundingClientRect(); return [r.left, r.right]}})"
    )
    assert len({round(left) for left, _ in places}) == columns
    assert all(0 <= left and right <= width and right - left >= 340 for left, right in places)
    assert browser.value(f"{shown}.every((i) => i.complete && i.naturalWidth > 700)")
    browser.screenshot(tmp_path / f"{width}.png")
    with Image.open(tmp_path / f"{width}.png") as image:
        assert image.width == width and len(image.convert("L").getcolors()) > 50


def test_the_browser_has_no_complaint_and_asks_for_nothing(browser, page):
    problems = [
        event
        for event in browser.events
        if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    ]
    assert not problems
    asked = {
        event["params"]["request"]["url"].split(",")[0]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {page.as_uri(), "data:image/png;base64", "data:"}
    assert page.as_uri() in asked, "requests are seen"
    browser.value("new Image().src = 'http://127.0.0.1:9/planted.png'; console.error('planted')")
    browser.value("0")
    methods = {event["method"] for event in browser.events}
    assert {"Runtime.consoleAPICalled", "Log.entryAdded"} <= methods, "a planted error and request are seen"


# ---------------------------------------------------------------------------------------------- in JupyterLab

CELL = """\
import matplotlib.pyplot as plt
import numpy as np
from minimask.lessons import explorer
explorer.explore(np.random.default_rng(0).normal(size=(8, 10)), (37.0, 30.0, 79.0, 81.0))"""
PICTURE = "document.querySelector('.jp-OutputArea img[src^=\"data:image/png\"]')?.src"


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab with one notebook, whose only cell has sliders."""
    if BROWSER is None:
        pytest.skip("no Chromium to open JupyterLab in")
    for package in ("jupyterlab", "ipywidgets"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata=kernel)
    nbformat.write(book, tmp_path / "book.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    server += [f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "IPYTHONDIR": str(tmp_path)}
    process = subprocess.Popen(server, cwd=tmp_path, env=environment, **quiet)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def soon(seen, seconds: float = 300):
    """What `seen` returns, as soon as it is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := seen():
            return found
        time.sleep(0.5)
    raise AssertionError("it did not come")


@pytest.mark.full
def test_in_jupyterlab_the_picture_is_displayed_and_a_slider_changes_it(lab, tmp_path):
    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"{lab}/api", timeout=10).status == 200
        except OSError:
            return False

    soon(answers)
    browser = Browser(tmp_path / "chromium")
    try:
        browser.open(f"{lab}/lab/tree/book.ipynb")
        soon(lambda: browser.value("document.querySelector('.jp-Notebook .jp-Cell') && !!window.jupyterapp"))
        soon(lambda: browser.value("document.body.innerText.includes('Python 3 (ipykernel) | Idle')"))
        browser.value("window.jupyterapp.commands.execute('notebook:run-all-cells'); 0")
        first = soon(lambda: browser.value(PICTURE))
        assert first.startswith("data:image/png;base64,")
        browser.value("document.querySelector('.widget-slider .noUi-handle').focus()")
        browser.press("ArrowRight")
        soon(lambda: browser.value(PICTURE) not in (None, first))
    finally:
        browser.screenshot(tmp_path / "lab.png")
        browser.close()
