"""The pages: links lead to files, and docs/architecture.md finds what it says is there."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import minimask

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "tutorials" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#]+)")


def section(title: str) -> str:
    return ARCHITECTURE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_table_of_rooms_has_every_room_and_module():
    package = ROOT / "minimask"
    rooms = {path.parent.name + "/" for path in package.glob("*/__init__.py")}
    modules = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    short_names = {"exercises", "tutorial", "misalign"}  # lessons under the names that students type
    listed = [name for row in rows("Rooms") for name in re.findall(r"`([\w/]+)`", row[0])]
    assert sorted(listed) == sorted(rooms | modules - short_names)


@pytest.mark.parametrize("row", rows("Where is ...?"), ids=lambda row: row[0].replace("`", ""))
def test_what_is_looked_for_is_in_one_of_the_files_beside_it(row):
    files = [ROOT / "docs" / target for target in LINK.findall(row[1])]
    assert files and all(path.exists() for path in files)
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    for name in re.findall(r"`([\w.]+)`", row[1]):
        *_, last = name.split(".")
        assert re.search(rf"\b(class|def) {last}\b|\b{last}\b *[:=]", text), f"{name} is in none of its files"


def test_the_examples_in_docstrings_are_right():
    names = [
        m.name for m in pkgutil.walk_packages(minimask.__path__, "minimask.") if "__main__" not in m.name
    ]
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    for name in names:
        for examples in finder.find(importlib.import_module(name)):
            if examples.examples:
                runner.run(examples)
    assert runner.tries > 10 and runner.failures == 0
