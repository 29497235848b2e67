"""The pages: links lead to files and headings, commands exist, docs/architecture.md finds what it says."""

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import minimask
from minimask.command import cli
from minimask.config.tree import options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "tutorials" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(([^)#]+)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TO_HEADING = re.compile(r"\]\(([\w/.-]*?(?:\.md)?)#([^)]+)\)")
PARSER = cli._parser()
[SUBCOMMANDS] = [action.choices for action in PARSER._actions if isinstance(action.choices, dict)]
SETTINGS = dict(options())
TOOL = re.compile(r"\bpython (?:-m ([\w.]+)|([\w/]+\.py))")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def section(title: str) -> str:
    return ARCHITECTURE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the table in a section, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def shell(page: Path) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    text = "".join(block for language, block in blocks if language == "bash").replace("\\\n", " ")
    return [line.partition(" #")[0] for line in text.splitlines()]


def in_backticks(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(lines: list[str]) -> list[str]:
    """Calls of minimask; each with its subcommand, and without what mpiexec or the shell adds."""
    found = [re.search(r"(?:^|.*[ &;!])minimask ([a-z][a-z-]*\b.*)", line) for line in lines]
    return [re.split(r" && | \| ", match[1])[0] for match in found if match]


def slugs(page: Path) -> set[str]:
    """The anchors that a repository browser, and MyST, make of a page's headings."""
    headings = HEADING.findall(prose(page))
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_the_pages_are_read():
    assert sum(len(commands(shell(page))) for page in PAGES) > 50
    assert sum(len(commands(in_backticks(page))) for page in PAGES) > 80
    assert sum(len(TO_HEADING.findall(prose(page))) for page in PAGES) > 20
    assert "a-recipe-that-fits-the-data" in slugs(ROOT / "docs" / "training.md")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_to_a_heading_finds_it(page):
    for target, anchor in TO_HEADING.findall(prose(page)):
        if not target or target.endswith(".md"):
            there = (page.parent / target).resolve() if target else page
            assert anchor in slugs(there), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_page_exists_with_its_options_and_settings(page):
    for command in commands(shell(page) + in_backticks(page)):
        name, *arguments = shlex.split(command)
        assert name in SUBCOMMANDS, f"minimask {command}"
        known = SUBCOMMANDS[name]._option_string_actions
        given = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
        assert set(given) <= set(known), f"minimask {command}"
        for key, value in zip(arguments, arguments[1:]):
            assert key != "--set" or value.partition("=")[0] in SETTINGS, f"minimask {command}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_in_a_shell_block_is_understood_as_it_stands(page):
    for command in commands(shell(page)):
        if "..." not in command:
            PARSER.parse_args(shlex.split(command))  # an InputError or SystemExit else


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_script_that_a_page_runs_is_in_the_repository(page):
    for module, script in TOOL.findall(page.read_text(encoding="utf-8")):
        path = ROOT / (script or module.replace(".", "/"))
        ours = module.split(".")[0] in ("tests", "minimask") or "/" in script
        assert not ours or path.is_dir() or path.with_suffix(".py").is_file(), module or script


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_a_page_is_python(page):
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(re.sub(r"^!.*$", "pass", block, flags=re.MULTILINE))  # ! is IPython's


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
