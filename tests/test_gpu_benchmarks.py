"""The benchmarks on a GPU, tiny, on the stand-in for CuPy: every row runs, and figures can be read."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tests.benchmarks import gpu

ROWS = list(gpu.rows(gpu.TINY))
SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "name, setup",
    [pytest.param(*row, id=row[0], marks=SLOW if row[0].startswith("whole") else ()) for row in ROWS[:14]],
)
def test_a_row_runs_and_counts_its_bytes(name, setup, fake_cupy):
    contest = setup(None)
    result = contest.ours()
    assert contest.theirs is None
    if result is not None:
        assert all(np.isfinite(a).all() for a in gpu.host(result))
    assert (contest.moved > 0) == name.startswith(("roi", "memory"))


def test_all_convolutions_of_the_network_run(fake_cupy):
    groups = {name.split("/")[0] for name, _ in ROWS}
    assert groups == {"roi", "nms", "memory", "conv", "whole"}
    chosen = [row for row in ROWS if row[0].startswith("conv/both")][::8]
    for name, setup in chosen:
        y, *gradients = gpu.host(setup(None).ours())
        assert y.any() and gradients, name


def test_a_result_that_differs_from_torchs_is_not_timed():
    one = np.ones(3, np.float32)
    assert gpu.compare(gpu.Contest(lambda: one, lambda: one + np.float32(1e-6))) < 2e-6
    with pytest.raises(AssertionError, match=r"differs from torch's result by 1\.0e-02"):
        gpu.compare(gpu.Contest(lambda: one * np.float32(1.01), lambda: one))
    kept = np.arange(1000)
    assert gpu.compare(gpu.Contest(lambda: kept[:999], lambda: kept, tolerance=0)) == 0.001
    with pytest.raises(AssertionError, match=r"50\.0% of the boxes"):
        gpu.compare(gpu.Contest(lambda: kept[:500], lambda: kept, tolerance=0))
    with pytest.raises(AssertionError, match="other shapes"):
        gpu.compare(gpu.Contest(lambda: one, lambda: one[:2]))


def test_figures_are_written_after_every_row(tmp_path):
    args = SimpleNamespace(json=tmp_path / "a.json", markdown=tmp_path / "a.md")
    about = {"peak_gb_per_s": 1000.0, "copy_gb_per_s": 900.0, "gpu": "none"}
    figures = {
        "memory/relu": {"minimask_ms": 1.0, "torch_ms": 2.0, "ratio": 0.5, "gb_per_s": 700.0},
        "nms/1": {"error": "ValueError: no"},
        "conv/both/3 x body": {"minimask_ms": 2.0, "torch_ms": 1.0, "ratio": 2.0},
        "conv/both/1 x fpn": {"minimask_ms": 1.0, "torch_ms": 4.0, "ratio": 0.25},
    }
    figures |= gpu.convolutions_together(figures)
    assert figures["conv, all of a network, both"] == {"minimask_ms": 7.0, "torch_ms": 7.0, "ratio": 1.0}
    gpu.write(args, about, figures)
    assert json.loads(args.json.read_text())["rows"]["memory/relu"]["ratio"] == 0.5
    text = args.markdown.read_text(encoding="utf-8")
    assert "| memory/relu | 1.000 | 2.000 | 0.50 | 700 (70%) |" in text and "ValueError: no" in text


def test_a_row_that_fails_does_not_cost_the_others(tmp_path, monkeypatch, fake_cupy, capsys):
    def milliseconds(run, times):  # the stand-in has no clock
        run()
        return 1.0

    def fails(torch):
        raise RuntimeError("no such kernel")

    chosen = [("memory/fails", fails), *(row for row in ROWS if row[0] == "memory/relu")]
    monkeypatch.setattr(gpu, "rows", lambda: chosen)
    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    monkeypatch.setattr(gpu, "card", lambda: {"gpu": "none", "peak_gb_per_s": 1.0, "copy_gb_per_s": 1.0})
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it fails
    assert gpu.main(["memory", "--json", str(tmp_path / "a.json")]) == 1
    found = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert found["memory/fails"]["error"] == "RuntimeError: no such kernel"
    assert found["memory/relu"]["minimask_ms"] == 1.0 and "ratio" not in found["memory/relu"]
    assert "memory/relu" in capsys.readouterr().out
