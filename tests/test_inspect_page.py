"""`minimask inspect`: one page that loads nothing, works with the keyboard alone, and fits a telephone."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from minimask.command import cli
from minimask.data.augmentation import Augmentation
from minimask.inspection import page, trace
from minimask.inspection.encoding import picture_uri
from minimask.inspection.figures import FIGURES
from minimask.inspection.source import index_of, read_source
from tests.browser import BROWSER, Browser
from tests.cli_data import make_dataset
from tests.model_data import discs, tiny_model
from tests.test_report import NAMES, Page

LIMIT = 8_000_000


@pytest.fixture(scope="module")
def found():
    image, target = discs(np.random.default_rng(2), 4)
    model = tiny_model(box_score_thresh=0.0, box_detections_per_img=6)
    return trace(model, image, target, class_names=(NAMES[0], NAMES[1]), above=0.0)


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    facts = [("image", NAMES[0]), ("weights", NAMES[1])]
    assert page.write_page(path, found, NAMES[0], facts, Augmentation(), 0.0) == len(FIGURES) + 1
    return path


def parsed(path):
    content = path.read_text(encoding="utf-8")
    return content, Page(
        re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL).replace("<!DOCTYPE html>", "")
    )


def data_of(content):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', content)[1])


@pytest.mark.slow
def test_the_page_is_one_file_of_all_figures_and_takes_names_for_text(written):
    content, shown = parsed(written)
    assert len(content) < LIMIT and len(shown.all("section")) == len(FIGURES) + 2
    for picture in shown.all("img") + shown.all("source"):
        address = picture.get("src") or picture["srcset"]
        assert re.match(r"data:image/(webp|jpeg);base64,", address)
    assert all(picture["alt"] for picture in shown.all("img"))
    assert "default-src 'none'" in content and "http:" not in content.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert content.count("<script") == 2 and "onerror" not in {name for _, a in shown.tags for name in a}
    assert NAMES[0] in shown.said and {o["name"] for o in data_of(content)["objects"]} <= set(NAMES[:2])


@pytest.mark.slow
def test_an_objects_data_are_those_of_the_trace(found, written):
    objects = data_of(written.read_text(encoding="utf-8"))["objects"]
    detected = [o for o in objects if "lost" not in o]
    assert len(detected) == len(found.result["boxes"]) == 6
    for d, o in enumerate(detected):
        np.testing.assert_allclose(o["box"], found.result["boxes"][d], atol=0.005)
        proposal = found.proposing.proposals[o["number"] - 1]
        np.testing.assert_allclose(o["proposal"], proposal, atol=0.005)  # the scale is 1 here
        at = found.masking.readings[d]
        assert o["maskReading"]["level"] == at.level and o["maskReading"]["points"] == [28, 28]
        np.testing.assert_allclose(o["maskReading"]["x"], at.columns, atol=0.005)
    causes = [cause for cause, d in zip(found.failures.causes, found.failures.detections) if d < 0]
    assert [o["lost"] for o in objects if "lost" in o] == causes


def test_a_picture_keeps_within_its_bytes_whatever_is_on_it():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8))
    assert len(picture_uri(noise, 60_000)) < 60_100


# -------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    document = make_dataset(folder, 2)
    data = ["--data", folder / "train.json", "--images", folder / "images"]
    steps = ["--set", "train.steps=1", "--set", "data.crop=48", "--output", folder / "run"]
    assert cli.main([str(a) for a in ["train", *data, *steps]]) == 0
    return folder, document["images"][0]["file_name"]


def run(*arguments):
    return cli.main(["inspect", *map(str, arguments)])


@pytest.mark.slow
def test_the_command_writes_a_page_with_annotations_and_without(trained, tmp_path, capsys):
    folder, name = trained
    weights = ["--weights", folder / "run/checkpoint.npz"]
    given = [folder / "images" / name, *weights, "--output", tmp_path / "page.html"]
    assert run(*given, "--annotations", folder / "train.json") == 0
    _, shown = parsed(tmp_path / "page.html")
    assert "Failures by cause" in shown.said and "The image as training varies it" in shown.said
    assert run(*given) == 0
    content, shown = parsed(tmp_path / "page.html")
    assert "Failures by cause" not in shown.said and len(content) < LIMIT
    assert len(shown.all("picture")) >= 8 and "open it in a browser" in capsys.readouterr().out


WRONG = {
    "no such image": (dict(image="none.png"), "none.png: no such image file"),
    "an image not annotated": (dict(image="other.png"), "has no image with the file_name other.png"),
    "another size": (dict(image="elsewhere/{name}"), "64 x 64 there, while"),
    "no JSON": (dict(annotations="images/{name}"), "is not"),
    "a directory as page": (dict(output="."), "is a directory; name the HTML file"),
    "no directory for it": (dict(output="none/page.html"), "there is no directory"),
    "the image as page": (dict(output="images/{name}"), "would be overwritten"),
    "the annotations as page": (dict(output="train.json"), "would be overwritten"),
    "no weights": (dict(weights="none.npz"), "none.npz"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_inspected_is_one_line(case, trained, capsys, monkeypatch):
    folder, name = trained
    monkeypatch.chdir(folder)
    (folder / "elsewhere").mkdir(exist_ok=True)
    for path in (folder / "other.png", folder / "elsewhere" / name):
        Image.new("RGB", (20, 30)).save(path)
    before = {path: path.read_bytes() for path in (folder / "train.json", folder / "images" / name)}
    changes, words = WRONG[case]
    given = dict(
        image="images/{name}", annotations="train.json", weights="run/checkpoint.npz", output="page.html"
    )
    given = {key: value.format(name=name) for key, value in (given | changes).items()}
    options = [text for key in ("annotations", "weights", "output") for text in (f"--{key}", given[key])]
    assert run(given["image"], *options) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "note:" not in line]
    assert len(lines) == 1 and words in lines[0], lines
    assert not (folder / "page.html").exists()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_annotations_follow_an_image_that_is_shrunk(trained, monkeypatch):
    from minimask.data import read_coco
    from minimask.inspection import source

    folder, name = trained
    dataset, path = read_coco(folder / "train.json", None), folder / "images" / name
    labels, model = list(range(1, len(dataset.class_names) + 1)), tiny_model(min_size=32, max_size=32)
    whole = read_source(model, path, dataset, labels)
    monkeypatch.setattr(source, "MASKS_MOST", 1)
    small = read_source(model, path, dataset, labels)
    assert whole.image.shape == (3, 64, 64) and small.image.shape == (3, 32, 32) and small.size == (64, 64)
    sample = read_coco(folder / "train.json", folder / "images")[index_of(dataset, path)]
    for key in ("boxes", "labels", "masks"):
        np.testing.assert_array_equal(whole.target[key], getattr(sample, key))
    np.testing.assert_array_equal(small.target["boxes"], whole.target["boxes"] / 2)
    np.testing.assert_array_equal(small.target["masks"], whole.target["masks"][:, 1::2, 1::2])
    assert whole.target["masks"].any(axis=(1, 2)).all()


# -------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(written, tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no Chromium to open the page in")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        browser.open(written.as_uri())
        yield browser
    finally:
        browser.close()


SEEN = "stages.map((s, i) => s.getClientRects().length ? i : -1).filter((i) => i >= 0).join()"


@pytest.mark.slow
def test_the_keys_lead_from_stage_to_stage_and_from_object_to_object(browser):
    assert browser.value(SEEN) == "0"
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft"):
        browser.press(key)
        seen.append(browser.value(SEEN))
    last = str(len(FIGURES) + 1)
    assert seen == ["1", "2", "1", last, last, "0", "0"]
    reached = []
    for _ in range(8):
        browser.press("Tab")
        reached.append(browser.value("document.activeElement.id"))
    assert {"stage", "next", "object", "after"} <= set(reached)
    browser.value("by('object').focus()")
    first = browser.value("by('about').textContent")
    browser.press("ArrowDown")
    assert browser.value("chosen.value") == "1" and browser.value("by('about').textContent") != first
    assert browser.value(SEEN) == "0"


@pytest.mark.slow
def test_a_click_on_an_object_shows_its_way(browser):
    browser.value("showStage(0); showObject(0)")
    browser.value("outlines[2].dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.value("chosen.value") == "2" and browser.value("views.children.length") == 5
    words = browser.value("[...views.querySelectorAll('figcaption')].map((f) => f.textContent).join(' | ')")
    for part in ("Anchor of P", "The box head reads", "14 × 14 bins", "28 × 28 probabilities", "Pasted: "):
        assert part in words
    browser.value("showObject(data.objects.length - 1)")
    assert (
        "not found" in browser.value("by('about').textContent") or browser.value("views.children.length") == 5
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_at_any_width_nothing_is_cut_off(browser, width, tmp_path):
    browser.size(width, 900)
    for i in range(len(FIGURES) + 2):
        browser.value(f"showStage({i})")
        assert browser.value("document.documentElement.scrollWidth") <= width, i
        pictures = "[...document.querySelectorAll('.stage:not([hidden]) img')]"
        assert browser.value(
            f"{pictures}.every((i) => i.complete && i.naturalWidth && i.clientWidth > 300)"
        ), i
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert width - 20 <= image.width <= width and len(image.convert("L").getcolors()) > 50


@pytest.mark.slow
def test_the_browser_has_no_complaint_and_asks_for_nothing(browser, written):
    complaints = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    assert not [event for event in browser.events if event["method"] in complaints]
    asked = {
        event["params"]["request"]["url"].partition(":")[0]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked == {"file", "data"}
