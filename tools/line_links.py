"""Links to a line of a source file: ``python tools/line_links.py check|mend``.

In the pages, `` [`RPN.sample`](../minimask/models/rpn.py#L213) `` leads to the line that defines what the
link is called: a function, a method as ``Class.method``, a class, or a name that is assigned. A link with a
title, ``[other words](file.py#L8 "function")``, leads to what the title names. Code moves, and its lines with
it.

check   say which links lead to the wrong line, or to nothing
mend    write the right lines into the pages; what is no longer defined is reported and left alone
"""

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[([^\]\n]+)\]\(([^)#\s]+\.py)#L(\d+)(?: \"([\w.]+)\")?\)")
SYMBOL = re.compile(r"`([\w.]+)`")


@dataclass(frozen=True)
class LineLink:
    """A link to a line: the page it is in, what it is called, the file, the line, and its title."""

    page: Path
    text: str
    target: str
    line: int
    title: str = ""

    @property
    def file(self) -> Path:
        return (self.page.parent / self.target).resolve()

    def wanted(self) -> int | None:
        """The line that defines what the link is called; None if nothing does."""
        symbol = SYMBOL.fullmatch(f"`{self.title}`" if self.title else self.text)
        return definitions(self.file).get(symbol[1]) if symbol and self.file.is_file() else None


def pages() -> list[Path]:
    """The Markdown pages that people read."""
    return [ROOT / "README.md", ROOT / "tutorials" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page: Path) -> list[LineLink]:
    """The links of a page that lead to a line."""
    text = page.read_text(encoding="utf-8")
    return [
        LineLink(page, name, target, int(line), title) for name, target, line, title in LINK.findall(text)
    ]


@cache
def definitions(file: Path) -> dict[str, int]:
    """{name: line} of all that a source file defines outside functions; of several, the first."""
    found: dict[str, int] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(prefix + node.name, node.lineno)
            if isinstance(node, ast.ClassDef):
                walk(node.body, f"{prefix}{node.name}.")
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                for name in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(name, ast.Name):
                        found.setdefault(prefix + name.id, node.lineno)

    walk(ast.parse(file.read_text(encoding="utf-8")).body, "")
    return found


def problems(page: Path) -> list[str]:
    """What is wrong with the links of a page, a line each."""
    found = []
    for link in links(page):
        wanted, where = link.wanted(), f"{page.relative_to(ROOT)}: {link.title or link.text}"
        if wanted is None:
            found.append(f"{where} is not defined in {link.target}: name the link as the source names it")
        elif wanted != link.line:
            found.append(
                f"{where} is in line {wanted} of {link.target}, not in {link.line}: "
                "python tools/line_links.py mend"
            )
    return found


def mend(page: Path) -> None:
    """Write the right lines into a page."""

    def right(match: re.Match) -> str:
        name, target, line, title = match.groups(default="")
        line = LineLink(page, name, target, int(line), title).wanted() or line
        return f'[{name}]({target}#L{line} "{title}")' if title else f"[{name}]({target}#L{line})"

    text = page.read_text(encoding="utf-8")
    if (mended := LINK.sub(right, text)) != text:
        page.write_text(mended, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["check", "mend"])
    if parser.parse_args().what == "mend":
        for page in pages():
            mend(page)
    found = [problem for page in pages() for problem in problems(page)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
