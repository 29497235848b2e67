"""Links to lines of the source, of docs/paper.md first of all, lead to what they name."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "line_links.py"

spec = importlib.util.spec_from_file_location("line_links", TOOL)
line_links = importlib.util.module_from_spec(spec)
sys.modules["line_links"] = line_links  # its dataclass looks its own module up
spec.loader.exec_module(line_links)

PAPER = ROOT / "docs" / "paper.md"
WITH_LINKS = [page for page in line_links.pages() if line_links.links(page)]


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_line_leads_to_what_it_names(page):
    assert line_links.problems(page) == []


@pytest.mark.parametrize("page", line_links.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_to_a_line_of_python_is_read_as_one(page):
    text = page.read_text(encoding="utf-8")
    assert len(re.findall(r"\.py#L", text)) == len(line_links.links(page))


def test_the_map_reaches_every_stage_every_loss_and_every_table_of_the_paper():
    files = {link.target.removeprefix("../") for link in line_links.links(PAPER)}
    stages = ("resnet", "fpn", "rpn", "box_head", "mask_head", "keypoint_head", "mask_rcnn")
    assert {f"minimask/models/{stage}.py" for stage in stages} <= files
    losses = line_links.definitions(ROOT / "minimask" / "functions" / "loss.py")
    named = {link.text.strip("`") for link in line_links.links(PAPER)}
    assert {name for name in losses if name.endswith("HeadLoss") or name in ("MaskLoss", "RPNLoss")} <= named
    rows = re.findall(r"^\| (\d[a-e]?)[,| ]", PAPER.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"1", "2a", "2b", "2c", "2d", "2e", "3", "4", "5", "6"} <= set(rows)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page beside a source; what the tool calls the root is theirs."""
    (tmp_path / "source.py").write_text(
        "X = 1\n\n\n@property\ndef f():\n    pass\n\n\nclass A:\n    def f(self): ...\n"
    )
    monkeypatch.setattr(line_links, "ROOT", tmp_path)
    line_links.definitions.cache_clear()
    return tmp_path / "page.md"


def test_code_that_moved_is_told_with_its_line_and_mended(page):
    page.write_text("[`f`](source.py#L4), [`A.f`](source.py#L10), [`X`](source.py#L1)\n")
    [problem] = line_links.problems(page)
    assert problem.startswith("page.md: `f` is in line 5 of source.py, not in 4: ")
    line_links.mend(page)
    assert line_links.problems(page) == []
    assert page.read_text() == "[`f`](source.py#L5), [`A.f`](source.py#L10), [`X`](source.py#L1)\n"


@pytest.mark.parametrize("text", ["`g`", "`A.g`", "f", "the function `f`"])
def test_a_name_that_the_source_does_not_define_is_told_and_left(page, text):
    page.write_text(f"[{text}](source.py#L5)\n")
    assert line_links.problems(page) == [
        f"page.md: {text} is not defined in source.py: name the link as the source names it"
    ]
    line_links.mend(page)
    assert page.read_text() == f"[{text}](source.py#L5)\n"


def test_a_file_that_is_not_there_is_told(page):
    page.write_text("[`f`](elsewhere.py#L5)\n")
    assert line_links.problems(page) == [
        "page.md: `f` is not defined in elsewhere.py: name the link as the source names it"
    ]
