"""`minimask misalign`: the exact integral, the bounds of a displacement, and what the command leaves."""

import json
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minimask import functions as F
from minimask.command import cli
from minimask.kernels import roi_pool as pool
from minimask.lessons import misalign
from minimask.lessons.roi_integral import (
    edges_of_bins,
    integral_weights,
    roi_integral,
    roi_integral_gradient,
)

quick = settings(max_examples=100, deadline=None, derandomize=True)

# ------------------------------------------------------------------------------------- the exact integral


def mean_by_trapezoids(x, a: float, b: float) -> float:
    """Of the piecewise linear function through x at the pixels' centres: exact between its corners."""
    centres = np.arange(len(x)) + 0.5
    t = np.unique(np.clip([a, *centres, b], a, b))
    return np.trapezoid(np.interp(t, centres, x), t) / (b - a)


@quick
@given(
    length=st.integers(1, 9),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda e: abs(e[0] - e[1]) > 1e-3),
    bins=st.integers(1, 5),
)
def test_weights_of_an_axis_integrate_the_interpolated_values(length, ends, bins):
    """Also where bins are far smaller than a pixel, and in the half pixel beyond the outermost centres."""
    low, high = sorted(-0.5 + e * (length + 1) for e in ends)
    edges = np.linspace(low, high, bins + 1)
    x = np.random.default_rng(0).normal(size=length)
    want = [mean_by_trapezoids(x, a, b) for a, b in zip(edges, edges[1:])]
    np.testing.assert_allclose(integral_weights(edges, length) @ x, want, rtol=0, atol=1e-10)
    np.testing.assert_allclose(integral_weights(edges, length).sum(axis=1), 1, rtol=0, atol=1e-10)


def some_boxes(count: int = 12, side: float = 10.0):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, side - 5, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0.5, 5, (count, 2))], axis=1)


def test_the_integral_of_a_ramp_is_its_value_at_each_bins_centre():
    boxes = some_boxes() / 2 + 2  # between the outermost centres
    u, v = np.arange(12) + 0.5, np.arange(10)[:, None] + 0.5
    x, y = (edges[..., :-1] / 2 + edges[..., 1:] / 2 for edges in edges_of_bins(boxes, 3).swapaxes(0, 1))
    want = 0.7 * x[:, None, :] - 1.3 * y[:, :, None]
    np.testing.assert_allclose(roi_integral(0.7 * u - 1.3 * v, boxes, 3), want, rtol=0, atol=1e-12)


def test_the_gradient_of_the_integral_is_its_transpose():
    rng = np.random.default_rng(2)
    x, gy, boxes = rng.normal(size=(10, 12)), rng.normal(size=(3, 3)), some_boxes()
    forward = (gy * roi_integral(x, boxes, 3)).sum(axis=(1, 2))
    backward = (x * roi_integral_gradient(gy, boxes, x.shape)).sum(axis=(1, 2))
    np.testing.assert_allclose(backward, forward, rtol=0, atol=1e-12)


def test_the_average_of_roi_align_tends_to_the_integral_as_points_are_added():
    """The midpoint rule: n times the points along each axis, n^2 times less error, in output and gradient."""
    rng = np.random.default_rng(3)
    x, gy, boxes = rng.normal(size=(12, 12)), rng.normal(size=(3, 3)), some_boxes(200)
    errors = []
    for n in (3, 30):
        layer = partial(F.roi_align, sampling_ratio=n)
        output = misalign.reading(layer, x, boxes, 1, 3) - roi_integral(x, boxes, 3)
        sent = misalign.gradient(layer, x, boxes, 1, gy) - roi_integral_gradient(gy, boxes, x.shape)
        errors.append([np.sqrt((e**2).mean()) for e in (output, sent)])
    assert max(errors[1]) < 1e-3
    assert np.divide(*errors) == pytest.approx([100, 100], rel=0.3)


# ------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize("bins", [2, *(pytest.param(bins, marks=pytest.mark.slow) for bins in (1, 7))])
def test_no_edge_is_displaced_beyond_its_bound_and_the_worst_of_many_comes_within_a_percent(bins):
    rows = misalign.worst_displacements(bins, 20_000)
    assert {(r["layer"], r["aligned"], r["stride"]) for r in rows} == {
        (layer, aligned, stride)
        for layer in ("RoIPool", "RoIWarp", "RoIAlign")
        for aligned in (True, False)
        for stride in (4, 8, 16, 32)
    }
    for row in rows:
        assert row["worst"] <= row["bound"] + 1e-9, row
        assert row["worst"] >= 0.99 * row["bound"], row


def test_the_bounds_are_those_derived_on_paper():
    """Half a stride for the rounded box, and for RoIPool's bins less than one cell more."""
    for bins in (1, 2, 7, 14):
        assert misalign.bound("RoIAlign", bins, True) == 0 and misalign.bound("RoIWarp", bins, True) == 0.5
        assert misalign.bound("RoIPool", bins, True) == pytest.approx(1.5 - 1 / bins, abs=1e-15)
        assert 0.5 <= misalign.bound("RoIPool", bins, True) < 1.5
    assert misalign.bound("RoIPool", 7, False) == pytest.approx(2.5 - 2 / 7)


@pytest.mark.parametrize(
    "aligned, x1, x2, bin_, end, off",
    [
        # Rounded to [3, 9): floor(6/7) = 0, so bin 2 begins at 3 instead of just below 3.5 + 6/7.
        (True, 3.5 - 1e-9, 9.5 - 1e-9, 1, 0, -(1 / 2 + 6 / 7)),
        # To [4, 10): bin 6 ends at 4 + ceil(36/7) = 10 instead of 3.5 + 36/7.
        (True, 3.5, 9.5, 5, 1, 1 / 2 + 6 / 7),
        # Pixels 3 to 8 named, six of them: bin 6 ends at 3 + ceil(36/7) = 9 instead of 2.5 + 6/7 * 5.
        (False, 2.5, 7.5, 5, 1, 5 / 2 - 2 / 7),
    ],
)
def test_a_box_by_hand_is_displaced_by_all_of_the_bound(aligned, x1, x2, bin_, end, off):
    boxes = np.array([[x1, 1.0, x2, 9.0], [1.0, x1, 9.0, x2]])
    for axis, found in enumerate(misalign.displacements("RoIPool", boxes * 16, 7, 16, aligned)):
        assert found[axis, bin_, end] == pytest.approx(off * 16, abs=1e-6)
    assert abs(off) == pytest.approx(misalign.bound("RoIPool", 7, aligned))


def test_a_box_narrower_than_a_cell_may_lie_farther_off():
    """Why the bounds speak of boxes of a cell and more: the rounded box has one pixel at least."""
    off = misalign.displacements("RoIWarp", np.array([[3.5, 3.5, 3.6, 3.6]]), 1, 1, True)
    assert np.abs(off).max() == pytest.approx(1.4)


@pytest.mark.parametrize("aligned", [True, False])
def test_edges_seen_from_what_a_layer_reads_are_those_that_it_computes(aligned):
    boxes = misalign.random_boxes(np.random.default_rng(5), 200, 1, 20, 32) * 16
    measured = misalign.bin_edges("RoIPool", boxes, 7, 16, aligned)
    for axis in (0, 1):
        edges = pool.bin_edges(boxes[:, axis] / 16, boxes[:, 2 + axis] / 16, 7, 100, aligned)
        np.testing.assert_allclose(measured[:, axis] / 16, np.stack(edges, axis=-1), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------ what the layers read


@pytest.fixture(scope="module")
def moved():
    """All layers on a ramp and on an image of noise, boxes moved over a stride of 8 pixels."""
    sides, x = np.array([20, 16]), np.random.default_rng(6).normal(size=(16, 20))
    boxes = misalign.random_boxes(np.random.default_rng(7), 6, sides / 4, sides / 2, sides) * 8
    ramp = misalign.compare(misalign.ramp_map(x.shape, 8), boxes, 8, 7)
    return ramp, misalign.compare(x, boxes, 8, 7)


def test_of_a_ramp_the_average_of_roi_align_is_the_integral_and_its_maximum_is_off_by_a_constant(moved):
    ramp, _ = moved
    assert abs(ramp["RoIAlign, average"]["bias"]) < 1e-10 and ramp["RoIAlign, average"]["wobble"] < 1e-10
    assert ramp["RoIAlign, max"]["bias"] > 1 and ramp["RoIAlign, max"]["wobble"] < 1e-10


def test_layers_that_round_do_not_see_a_box_move_until_they_jump(moved):
    for found in moved:
        for name, row in found.items():
            if name.startswith("RoIAlign"):
                assert row["unseen"] == 0
            else:
                assert row["unseen"] > 0.8 and row["wobble"] > found["RoIAlign, average"]["wobble"] + 0.1


def test_the_layers_stand_in_the_order_of_table_2c(moved):
    """The fewer roundings, the nearer to the integral, in what is read and in the gradient."""
    for found in moved:
        pool_, warp_max, warp, align_max, align = (found[name] for name in misalign.LAYERS)
        assert pool_["gradient"] > warp_max["gradient"] > align_max["gradient"]
        assert pool_["wobble"] > warp_max["wobble"] > align_max["wobble"]
        assert warp["gradient"] > 2 * align["gradient"] and warp["wobble"] > 2 * align["wobble"]


# ---------------------------------------------------------------------------------------------- the command


def run(output, *arguments) -> int:
    few = ["--boxes", "600", "--stride", "32", "--output", output]
    return cli.main([str(argument) for argument in ["misalign", *few, *arguments]])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    output = tmp_path_factory.mktemp("misalign") / "new" / "out"
    assert run(output) == 0
    return output


def test_the_command_writes_numbers_and_figures_for_slides(written):
    found = json.loads((written / "misalign.json").read_text(encoding="utf-8"))
    assert set(found["figures"]) == {"bins", "shift", "worst", "gradient"}
    files = [name for figure in found["figures"].values() for name in figure["files"]]
    assert {path.name for path in written.iterdir()} == {"misalign.json", *files} and len(files) == 8
    assert set(found["ramp"]) == set(found["image"]) == set(misalign.LAYERS)
    assert len(found["worst"]) == 2 * 3 * 4 and found["options"]["boxes"] == 600


def test_every_figure_says_in_words_what_it_shows(written):
    figures = json.loads((written / "misalign.json").read_text(encoding="utf-8"))["figures"]
    for figure in figures.values():
        svg, png = (written / name for name in figure["files"])
        assert len(figure["alt"]) > 150 and not set("{}\n") & set(figure["alt"])
        root, space = ET.parse(svg).getroot(), "{http://www.w3.org/2000/svg}"
        assert root.get("role") == "img" and root[0].tag == f"{space}title" and root[1].tag == f"{space}desc"
        assert (root[0].text, root[1].text) == (figure["title"], figure["alt"])
        with Image.open(png) as image:
            assert image.text["Title"] == figure["title"] and image.text["Description"] == figure["alt"]
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape == (750, 1333, 3) and pixels.std() > 20  # 16:9, and something on it


def test_the_same_seed_gives_the_same_files(written, tmp_path):
    assert run(tmp_path) == 0
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_tables_on_the_screen_fit_it_and_hold_every_layer(tmp_path, capsys):
    image = np.random.default_rng(8).integers(0, 255, (300, 280, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "noise.png")
    assert run(tmp_path / "out", "--image", tmp_path / "noise.png", "--bins", 3, "--seed", 1) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert "3 x 3 bins, 600 boxes" in out and "noise.png" in out and str(tmp_path / "out") in out
    for name in misalign.LAYERS:
        assert sum(line.startswith(name + " ") for line in out.splitlines()) == 1


@pytest.mark.slow
def test_the_page_on_roi_layers_shows_what_the_command_prints():
    x, name = misalign.image_map(misalign.IMAGE, 16), misalign.IMAGE.name
    printed = misalign.table(misalign.measure(x, 16, image=name))
    page = Path(__file__).parent.parent / "docs" / "roi_layers.md"
    assert printed in page.read_text(encoding="utf-8")


def test_the_packaged_image_is_there():
    assert misalign.image_map(misalign.IMAGE, 16).shape == (16, 20)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--image", "none.png"], "none.png: no such image file"),
        (["--image", "small.png"], "small.png: 100 x 300 pixels are 3 x 9 cells at stride 32"),
        (["--image", "white.png"], "white.png: is of one colour"),
        (["--image", "text.png"], "text.png: is not an image"),
        (["--bins", "0"], "--bins: must be a whole number from 1 up"),
        (["--boxes", "few"], "--boxes: must be a whole number"),
        (["--output", "text.png/out"], "is a file, not a directory"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (100, 300)).save("small.png")
    Image.new("RGB", (300, 300), "white").save("white.png")
    (tmp_path / "text.png").write_text("no image")
    before = {path.name for path in tmp_path.iterdir()}
    assert run("out", *arguments) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("minimask: ") and err.count("\n") == 1 and out == ""
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--bins", "100000000"],
            "at most 256 bins and 1,000,000 boxes can be measured, not 100,000,000 and",
        ),
        (["--boxes", "1000000000000"], "at most 256 bins and 1,000,000 boxes"),
        (
            ["--bins", "256", "--stride", "16"],
            "64 boxes of 256 x 256 bins .* take more than a gigabyte; take fewer",
        ),
    ],
)
def test_sizes_that_would_take_all_memory_are_refused_with_the_bound(arguments, words, tmp_path, capsys):
    assert cli.main(["misalign", *arguments, "--output", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert re.search(words, err) and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_worst_box_is_the_same_however_many_are_measured_at_once(monkeypatch):
    whole = misalign.worst_displacements(5, 40, seed=3)
    monkeypatch.setattr(misalign, "_BINS_AT_ONCE", 60)
    assert misalign.worst_displacements(5, 40, seed=3) == whole
