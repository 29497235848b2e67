"""report.html: one file that loads nothing, tells the truth, and takes any name for what it is: text."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from minimask.command import cli
from minimask.data import Shapes, rle
from minimask.results.evaluate import score
from minimask.results.report import Story, charts, judging, page, write_report
from minimask.results.report.charts import Series, line_chart
from minimask.results.report.judging import confusion, judge
from minimask.results.report.scene import Scenes, data_uri
from tests.cli_data import make_dataset

VOID = {"meta", "link", "img", "source", "line", "circle", "polyline", "br"}


class Page(html.parser.HTMLParser):
    """Tags that are opened and closed in order, their attributes, and the text."""

    def __init__(self, content):
        super().__init__()
        self.open, self.tags, self.said = [], [], ""
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes)
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.said += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_loads_nothing(content):
    """No script, no handler, no address but of the file itself."""
    found = Page(content)
    names = {tag for tag, _ in found.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "a", "base", "video", "audio"}
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "action", "style"):
            assert attributes.get(name, "data:").startswith("data:")
    assert "default-src 'none'" in content and "@import" not in content and "url(" not in content
    return found


def square(x, y, side, size=64):
    mask = np.zeros((size, size), np.uint8)
    mask[y : y + side, x : x + side] = 1
    return {"size": [size, size], "counts": rle.encode_mask(mask).decode("ascii")}


def entry(number, x, y, side, category=1, image=1, **more):
    box = [float(x), float(y), float(side), float(side)]
    shape = {"bbox": box, "area": float(side**2), "segmentation": square(x, y, side)}
    return {"id": number, "image_id": image, "category_id": category, "iscrowd": 0} | shape | more


class Drawn:
    """A data set of grey images with the squares that it is given, and names of anybody's choosing."""

    def __init__(self, annotations, images=1, names=("cell", "dust"), files="{}.png"):
        self.annotations, self.class_names = annotations, names
        self.category_ids = list(range(1, len(names) + 1))
        self.image_ids = list(range(1, images + 1))
        self.name, self.files = "val.json", files

    def __len__(self):
        return len(self.image_ids)

    def image(self, index):
        return np.full((3, 64, 64), 0.4, np.float32)

    def coco_document(self):
        return {
            "images": [
                {"id": i, "file_name": self.files.format(i), "height": 64, "width": 64}
                for i in self.image_ids
            ],
            "annotations": [dict(a) for a in self.annotations],
            "categories": [{"id": i, "name": n} for i, n in zip(self.category_ids, self.class_names)],
        }


def found(score_, x, y, side, category=1, image=1):
    return entry(0, x, y, side, category, image) | {"score": score_}


# -------------------------------------------------------------------------------------------------- errors

TRUTH = [entry(1, 2, 2, 12), entry(2, 30, 2, 12, 2), entry(3, 2, 40, 12), entry(4, 40, 40, 20)]
FOUND = [
    found(0.95, 2, 2, 12),  # right
    found(0.90, 3, 2, 12),  # the same again
    found(0.85, 30, 2, 12, 1),  # right but for its class
    found(0.80, 50, 50, 12),  # a quarter of the fourth
    found(0.75, 20, 22, 8),  # nothing is there
    found(0.30, 2, 40, 12),  # would be right, and is not sure enough
]


def test_each_kind_of_error_is_told_from_the_others():
    (image,) = judge(Drawn(TRUTH).coco_document(), FOUND)
    assert image.match.tolist() == [0, -1, 1, -1, -1]
    assert image.errors() == {"missed": [2], "invented": [4], "badly shaped": [3], "found twice": [1]}
    assert image.quality == pytest.approx(2.0 / ((5 + 4) / 2))
    assert confusion([image], [1, 2]).tolist() == [[1, 0, 2], [1, 0, 0], [3, 0, 0]]


def test_inside_a_crowd_region_nothing_is_an_error():
    crowd = entry(5, 16, 18, 20, iscrowd=1)
    (image,) = judge(Drawn([*TRUTH, crowd]).coco_document(), FOUND)
    assert image.errors()["invented"] == [] and image.ignored.tolist() == [False] * 4 + [True]
    assert image.quality == pytest.approx(2.0 / ((4 + 4) / 2))
    assert confusion([image], [1, 2])[-1].tolist() == [2, 0, 0]


def test_images_with_nothing_are_not_ranked_and_boxes_do_without_masks():
    judged = judge(Drawn([], images=2).coco_document(), [found(0.9, 2, 2, 9, image=2)])
    assert [image.quality for image in judged] == [None, 0.0]
    boxes = [{k: v for k, v in result.items() if k != "segmentation"} for result in FOUND]
    (image,) = judge(Drawn(TRUTH).coco_document(), boxes)
    assert image.errors()["missed"] == [2] and image.match.tolist() == [0, -1, 1, -1, -1]


def test_hundreds_of_objects_are_compared_at_once():
    many = [entry(i + 1, 2 + i % 50, 2 + i // 50, 4) for i in range(400)]
    (image,) = judge(Drawn(many).coco_document(), [a | {"score": 0.9} for a in many])
    assert (image.match >= 0).all() and image.quality == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------ the page


def written(tmp_path, dataset, detections, story=None):
    story = story or Story("A run", [("command", "minimask train")])
    write_report(tmp_path / "report.html", dataset, score(dataset.coco_document(), detections), story)
    content = (tmp_path / "report.html").read_text(encoding="utf-8")
    return content, assert_loads_nothing(content)


def test_the_page_has_tables_curves_images_errors_and_the_confusion_of_classes(tmp_path):
    steps = np.arange(1.0, 1001.0)
    losses = {"step": steps, "learning_rate": 0.02 / steps, "loss": 3 / steps, "loss_mask": 1 / steps}
    rows = [
        {"step": s, "validation": {"score": s / 1000, "by": "mask AP", "mask": {"AP": s / 1000, "AP50": 0.5}}}
        for s in (400, 800)
    ]
    story = Story("A run", [("seed", "7")], "[train]\nsteps = 1000", losses, rows, best=800)
    content, shown = written(tmp_path, Drawn(TRUTH), FOUND, story)
    for title in (
        "Training",
        "Validation",
        "Average precision",
        "Precision over recall",
        "Confusion of classes",
    ):
        assert title in shown.said
    for words in ("after step 800", "1 missed, 1 invented, 1 badly shaped, 1 found twice", "steps = 1000"):
        assert words in shown.said
    figures = [tag["aria-label"] for tag in shown.all("svg") if tag.get("role") == "img"]
    assert len(figures) == 6 and any(re.search(r"mask AP from 0.4 to 0.8", label) for label in figures)
    pictures = shown.all("img")
    assert len(pictures) == 2 + 3 * 2 and all(picture["alt"] for picture in pictures)
    for picture in pictures:
        content_ = base64.b64decode(picture["src"].split(",")[1])
        image = Image.open(io.BytesIO(content_))
        assert image.format == "JPEG" and image.size == (int(picture["width"]), int(picture["height"]))
    assert len(content) < 500_000


NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a&amp;b '\" \\ `",
    "</style></title>",
    "\u202ereversed",
    "细胞 \U0001f52c",
    "]]>-->",
    "javascript:alert(1)",
)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_any_name_is_text_wherever_it_stands(count, tmp_path):
    names = tuple(f"{NAMES[i % len(NAMES)]}{i // len(NAMES) or ''}" for i in range(count))
    boxes = [entry(i + 1, 3 * i, 2 * i, 6, i + 1) for i in range(count)]
    results = [found(0.9, 3 * i, 2 * i, 6, (i + 1) % count + 1) for i in range(count)]
    dataset = Drawn(boxes, names=names, files='"><script>alert({})</script>.png')
    dataset.name = "<b>val</b>.json"
    story = Story("Run <i>", [("command", "minimask 'a<b>'\udce9\n\x1b[31m")], "a = '</pre><script>'")
    content, shown = written(tmp_path, dataset, results, story)
    assert (
        "<script" not in content and "onerror=alert" not in content.replace("&quot;", "")[:0] + shown.said[:0]
    )
    assert NAMES[0] in shown.said and "\\x1b[31m" in shown.said and "a = '</pre><script>'" in shown.said
    assert '"><script>alert(1)</script>.png' in shown.said and "\u202e" not in content


def test_nothing_found_nothing_annotated_and_no_class_but_one(tmp_path):
    for truth, results in (([], []), (TRUTH[:1], []), ([], FOUND[:1])):
        _, shown = written(tmp_path, Drawn(truth, images=3, names=("cell",)), results)
        assert "Average precision" in shown.said
    assert "1 invented" in shown.said


def test_an_image_that_is_gone_leaves_its_words(tmp_path):
    from minimask.errors import InputError

    class Gone(Drawn):
        def image(self, index):
            raise InputError(f"{index}.png: there is no such <file>")

    _, shown = written(tmp_path, Gone(TRUTH), FOUND)
    assert "there is no such <file>" in shown.said and not shown.all("img")


def test_a_region_at_the_edge_has_its_box_in_the_middle():
    scenes = Scenes(Drawn(TRUTH), Drawn(TRUTH).coco_document())
    region = scenes.around(0, [0, 0, 30, 20])
    assert region == (-15, -20, 45, 40)
    (picture,) = scenes.draw(0, region, [TRUTH], 120)
    pixels = np.asarray(picture)
    assert picture.size == (120, 120) and (pixels[2, 2] > 220).all() and pixels[100, 100].mean() < 240
    scenes.draw(0, scenes.around(0, [60, 60, 40, 40]), [TRUTH], 60)


def test_a_picture_shows_masks_where_the_objects_are():
    shapes = Shapes(1, seed=3, size=64)
    document = shapes.coco_document()
    scenes = Scenes(shapes, document)
    plain, drawn = scenes.draw(0, scenes.whole(0), ([], document["annotations"]), 64)
    changed = (np.asarray(plain) != np.asarray(drawn)).any(axis=2)
    inside = shapes[0].masks.any(axis=0).astype(bool)
    assert changed[inside].mean() > 0.9 and changed[~inside].mean() < 0.5


def test_a_picture_as_thin_as_a_thread_keeps_a_row_of_pixels():
    class Thread(Drawn):
        def image(self, index):
            return np.full((3, 2, 2000), 0.4, np.float32)

    document = Thread([]).coco_document()
    document["images"][0] |= {"height": 2, "width": 2000}
    scenes = Scenes(Thread([]), document)
    (picture,) = scenes.draw(0, scenes.whole(0), ([],), 422)
    assert picture.size == (422, 1) and data_uri(picture).startswith("data:image/jpeg")


# -------------------------------------------------------------------------------------------------- charts


def test_a_loss_that_the_log_lacks_leaves_the_running_mean_whole(tmp_path):
    losses = {"step": np.arange(1.0, 21.0), "loss": np.ones(20)}
    losses["loss"][3] = np.nan
    content, _ = written(tmp_path, Drawn(TRUTH), FOUND, Story("A run", losses=losses))
    lines = re.findall(r'points="([^"]*)"', content)[:2]
    assert [len(points.split()) for points in lines] == [19, 19]


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [-1e300, 1e300], [1e-30, 2e-30], [5, np.nan, 7], [np.inf]]
)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_chart_of_any_numbers_is_drawn_within_its_frame(values, logarithmic):
    lines = [Series("a", np.arange(len(values)), np.array(values, float), dots=True)]
    for low in (0.0, None):
        chart = line_chart(lines, "title", "x", low=low, logarithmic=logarithmic)
        assert "nan" not in chart and "inf" not in chart.replace("info", "")
        for y in re.findall(r' cy="([^"]+)"', chart):
            assert 0 <= float(y) <= charts.HEIGHT


def test_a_long_curve_is_thinned_to_means():
    line = Series("a", np.arange(90_000.0), np.arange(90_000.0))
    thin = charts._thinned(line)
    assert len(thin.x) == charts.MOST_POINTS and thin.y.mean() == pytest.approx(line.y.mean(), rel=1e-6)
    assert len(line_chart([line], "t", "x")) < 12_000


def test_ticks_are_round_numbers_inside():
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.ticks(0, 1500) == pytest.approx([0, 500, 1000, 1500])


# ------------------------------------------------------------------------------------------- the commands


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, and a run on it with two validations, by the command."""
    directory = tmp_path_factory.mktemp("trained")
    make_dataset(directory)
    data = ["--data", directory / "train.json", "--images", directory / "images"]
    few = "train.steps=4 train.validate_every=2 data.crop=48 train.batch_size=1 model.detections=5".split()
    settings = [part for setting in few for part in ("--set", setting)]
    arguments = ["train", *data, "--val", directory / "train.json", *settings, "--output", directory / "run"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return directory


def test_train_leaves_a_report_of_its_best_weights(trained):
    run = trained / "run"
    shown = assert_loads_nothing((run / "report.html").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert "minimask train --data" in shown.said and "4 of 1 image, seed 0" in shown.said
    assert "validations" in shown.said and "train.validate_every = 2" in shown.said
    last = [row for row in rows if "validation" in row][-1]
    metrics = json.loads((run / "metrics.json").read_text())
    if "best.npz, after step 4" in shown.said:
        assert metrics["mask"] == last["validation"]["mask"]
    assert {path.name for path in (run / "validation").iterdir()} == {"step-000002.png", "step-000004.png"}
    assert (run / "best.npz").exists() and (run / "curves.png").exists()


def test_evaluate_leaves_a_report_and_scores_the_best_as_train_did(trained, tmp_path, capsys):
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    weights = ["--weights", trained / "run" / "best.npz"]
    assert cli.main([str(p) for p in ["evaluate", *weights, *data, "--output", tmp_path / "out"]]) == 0
    assert "report.html" in capsys.readouterr().out
    shown = assert_loads_nothing((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "minimask evaluate --weights" in shown.said and "seed 0" in shown.said
    ours, theirs = (p.read_text() for p in (tmp_path / "out/metrics.json", trained / "run/metrics.json"))
    assert ours == theirs


def test_a_report_that_fails_loses_nothing(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "judge", lambda *_: 1 / 0)
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    weights = ["--weights", trained / "run" / "best.npz"]
    assert cli.main([str(p) for p in ["evaluate", *weights, *data, "--output", tmp_path / "out"]]) == 0
    out, err = capsys.readouterr()
    assert "report.html is not drawn (division by zero)" in err and "report.html" not in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"metrics.json", "detections.json"}


def test_weights_in_the_place_of_the_report_are_not_overwritten(trained, tmp_path, capsys):
    (tmp_path / "report.html").write_bytes((trained / "run/best.npz").read_bytes())
    data = ["--data", trained / "train.json", "--images", trained / "images"]
    arguments = ["evaluate", "--weights", tmp_path / "report.html", *data, "--output", tmp_path]
    assert cli.main([str(p) for p in arguments]) == 2
    assert "would be overwritten" in capsys.readouterr().err


def test_resuming_a_best_without_momentum_is_one_line(trained, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.npz").write_bytes((trained / "run/best.npz").read_bytes())
    assert cli.main(["train", "--resume", "--output", str(tmp_path / "run")]) == 2
    *notes, line = capsys.readouterr().err.splitlines()
    assert "holds weights without momentum, as best.npz does" in line
    assert all(note.startswith("minimask: note: ") for note in notes)


def test_the_reasons_of_an_error_are_in_the_words(trained):
    assert judging.MATCHED == 0.5 and set(page.WORDS) == {"missed", "invented", "badly shaped"}
