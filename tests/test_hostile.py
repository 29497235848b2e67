"""Damaged checkpoints and configurations: taken, or refused in one line, within bounds of time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile_weights import GOOD


def judged(kind: str, count: int, directory: Path, module: str = "tests.hostile") -> dict[str, int]:
    """Try so many mutations in a process of their own; how many had which end."""
    command = [sys.executable, "-W", "error", "-m", module, kind, "0", str(count), str(directory)]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False
    )
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoint", "toml"])
def test_three_hundred_mutations_are_taken_or_refused_in_one_line(kind, tmp_path):
    counts = judged(kind, 300, tmp_path)
    assert sum(counts.values()) == 300
    assert {ending.split()[1] for ending in counts} == {"taken", "refused"}, counts


@pytest.mark.full
@pytest.mark.parametrize("kind", ["checkpoint", "toml"])
def test_ten_thousand_mutations_are_taken_or_refused_in_one_line(kind, tmp_path):
    assert sum(judged(kind, 10_000, tmp_path).values()) == 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_three_hundred_damaged_files_of_weights_are_read_or_refused_in_one_line(name, tmp_path):
    counts = judged(name, 300, tmp_path, "tests.hostile_weights")
    assert counts.keys() == {"taken", "refused"} and sum(counts.values()) == 300


@pytest.mark.full
@pytest.mark.parametrize("name", GOOD)
def test_ten_thousand_damaged_files_of_weights_are_read_or_refused_in_one_line(name, tmp_path):
    assert sum(judged(name, 10_000, tmp_path, "tests.hostile_weights").values()) == 10_000
