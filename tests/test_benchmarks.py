"""The benchmarks: rows are complete, compare equal things, and are reported as measured. None is timed."""

import fnmatch
import signal
import sys

import numpy as np
import pytest

from tests.benchmarks import measure, report, rows_boxes, rows_conv, rows_operators, rows_roi, table
from tests.benchmarks.measure import Contest, Figures, Row


def figures(ours, theirs, **options) -> Figures:
    return Figures({"minimask": [ours], "torch": [theirs]}, **options)


# ------------------------------------------------------------------------------------------------- the rows


def test_every_convolution_of_the_network_is_there():
    found = rows_conv.convolutions()
    counts = {place: sum(n for c, n in found.items() if c.place == place) for place in ("body", "fpn", "rpn")}
    assert counts == {"body": 53, "fpn": 8, "rpn": 10}  # RPN: 3x3, and both 1x1 as one, on five levels
    assert sum(n for c, n in found.items() if c.residual) == 16  # one a block


def test_the_body_s_convolutions_are_as_many_operations_as_published():
    products = sum(
        n * c.geometry.patch_size * np.prod(c.geometry.y_shape)
        for c, n in rows_conv.convolutions((224, 224)).items()
        if c.place == "body"
    )
    assert products == pytest.approx(
        4.09e9, rel=2e-3
    )  # torchvision's table; it counts the classifier's 2 M too


def test_rows_have_names_of_their_own_and_every_bound_has_rows():
    names = [row.name for row in table.rows()]
    assert len(names) == len(set(names))
    for bound in report.BOUNDS:
        assert any(fnmatch.fnmatchcase(name, bound.pattern) for name in names), bound.pattern


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("conv", 2),
        ("conv/forward", 1),
        ("*/both", 1),
        ("conv/*/3x3*", 2),
        ("conv/forward/3x3 a", 1),
        ("con", 0),
    ],
)
def test_rows_are_chosen_by_group_name_or_pattern(pattern, matches):
    rows = [Row(name, None) for name in ("conv/forward/3x3 a", "conv/both/3x3 a", "nms/1000")]
    assert len(report.matching(rows, [pattern])) == matches
    assert report.matching(rows, []) == rows


SMALL = {
    "nms": lambda: rows_boxes.nms(60),
    "encode": lambda: rows_boxes.box_coding("encode", 20),
    "decode": lambda: rows_boxes.box_coding("decode", 20, 3),
    "mask loss": lambda: rows_boxes.mask_loss(2, 5, 3),
    "crop": lambda: rows_boxes.crop(2, 5),
    "paste": lambda: rows_boxes.paste(3),
    "run lengths": lambda: rows_boxes.decode(3),
    "linear": lambda: rows_operators.linear(3)("both"),
    "group norm": lambda: rows_operators.group_norm("both"),
    "roi_align": lambda: rows_roi.roi_layer("roi_align", 6, 7, "both"),
    "roi_pool": lambda: rows_roi.roi_layer("roi_pool", 6, 7, "forward"),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools, under NumPy 2
@pytest.mark.parametrize("name", SMALL)
def test_a_small_row_gives_torch_s_results(name):
    pytest.importorskip("torchvision")
    measure.agree(SMALL[name]())


@pytest.mark.parametrize("kind", ["forward", "both"])
def test_convolution_rows_give_torch_s_results(kind):
    pytest.importorskip("torch")
    make = {"forward": rows_conv.forward, "both": rows_conv.both}[kind]
    for conv in rows_conv.convolutions((64, 96)):
        if conv.geometry.x_shape[1] <= 256:  # the others differ in their number of channels only
            measure.agree(make(conv))


# ------------------------------------------------------------------------------------------ the comparison


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        ([np.ones(3)], "1 arrays"),
        ([np.ones(3), np.ones((2, 1))], "shape"),
        ([np.ones(3), np.array([1, 1.001])], "differs by 7.1e-04"),
        ([np.ones(3), np.array([1, np.nan])], "differs by nan"),
    ],
)
def test_other_results_are_not_timed(mine, problem):
    contest = Contest({"minimask": lambda: mine, "torch": lambda: [np.ones(3), np.ones(2)]})
    with pytest.raises(AssertionError, match=problem):
        measure.time_contest(contest, 1.0)


def test_a_row_whose_check_fails_is_not_timed():
    def check(mine, peer):
        assert mine == peer, "they differ"

    with pytest.raises(AssertionError, match="they differ"):
        measure.time_contest(Contest({"minimask": lambda: 1, "torch": lambda: 2}, check=check), 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_load_computes_until_its_context_ends_and_does_not_count_as_foreign():
    with measure.Load() as load:
        begin = load.seconds()
        while load.seconds() < begin + 0.1:
            assert load.process.poll() is None
    assert load.process.returncode == -signal.SIGKILL
    load.seconds = lambda: 1e6  # more than others can take between two looks at the counters
    assert measure._foreign_seconds(None) - measure._foreign_seconds(load) == pytest.approx(1e6, abs=1e3)


# ---------------------------------------------------------------------------------------------- the report


def test_the_report_says_what_is_not_reached():
    measured = {
        Row("conv/forward/a", None, count=3): figures(1.0, 2.0),
        Row("conv/forward/b", None): figures(2.0, 1.0),
        Row("nms/1000", None): figures(0.9, 1.0),
        Row("memory/x", None): figures(101.0, 100.0, unit="MB"),
        Row("import/y", None): figures(0.2, 0.1),
        Row("pool/z", None): figures(5.0, 1.0),
    }
    found = {s.name: s for s in report.summaries(measured)}
    conv = found["conv/forward"]
    assert (conv.mean, conv.worst) == pytest.approx((1.0, 2.0))
    assert conv.network == pytest.approx((3 * 1 + 2) / (3 * 2 + 1))
    assert not conv.reached and conv.wanted == "mean at most 1.1, each at most 1.6: NOT REACHED"
    assert found["nms"].reached and found["nms"].wanted == "mean at most 1"
    assert not found["memory"].reached
    assert found["import"].reached and found["import"].wanted == "itself at most 0.3"
    assert found["pool"].reached and found["pool"].wanted == ""
    text = "\n".join(report.summary_lines(measured))
    assert text.count("NOT REACHED") == 2
    markdown = report.as_markdown({"machine": "m"}, measured)
    assert "| a | 1.00 s | 2.00 s | 0.50 |" in markdown and "| x | 101 MB | 100 MB | 1.01 |" in markdown
    assert report.as_json({}, measured)["rows"]["nms/1000"]["ratio"] == pytest.approx(0.9)


def test_the_exponent_is_the_power_that_cost_grows_with():
    rows = {Row(f"growth/n/{n}", None, size=n): figures(n**1.5, 3.0 * n) for n in (1, 10, 70)}
    assert report.exponents(rows)["growth/n"] == pytest.approx([1.5, 1.0])
    assert report.summaries(rows) == []
    assert "n^1.50, torch's as n^1.00" in report.summary_lines(rows)[0]
    assert "n^1.50" in report.as_markdown({}, rows)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(2.5, "s", "2.50 s"), (0.0123, "s", "12.3 ms"), (0.456, "s", "456 ms"), (1671.2, "MB", "1671 MB")],
)
def test_quantities_are_given_to_three_digits(value, unit, text):
    assert report.quantity(value, unit) == text
