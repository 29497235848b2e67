"""Whatever a COCO file or an image holds: a value or one line, soon, in little memory, and nothing left."""

import subprocess
import sys

import pytest

from minimask.data.images import MEMORY

pytest.importorskip("resource", reason="not on Windows")


@pytest.mark.parametrize(("what", "left"), [("coco", ["a.png", "b.png", "train.json"]), ("images", [])])
@pytest.mark.parametrize("last", [400, pytest.param(10_000, marks=pytest.mark.full)])
def test_every_mutation_gives_a_value_or_one_line(tmp_path, what, left, last):
    arguments = ["-m", "tests.data_fuzz", what, "0", str(last), tmp_path]
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, errors="replace")
    assert result.returncode == 0, result.stderr[-3000:]
    taken, refused, megabytes = map(int, result.stdout.split())
    assert taken + refused == last
    assert min(taken, refused) > last // 20  # neither do all pass, nor does what is right in them not count
    assert megabytes < MEMORY >> 20
    assert sorted(path.name for path in tmp_path.iterdir()) == left
