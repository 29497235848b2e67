"""Links to files of the repository, which the pages of the site follow as a repository's browser does.

Markdown and notebooks link to files beside them: ``../minimask/models/rpn.py``, ``kernels.md``. Pages lead to
pages. Every other file of `SHOWN` has a page of its own with its text and an anchor for each line (``#L12``),
every folder one with its contents, and entries of the API link to their lines. A link that leads nowhere is a
warning.
"""

import html
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIALS = ROOT / "tutorials"  # notebook_pages copies them to docs/tutorials
SHOWN = (
    ".ci/run",
    ".pre-commit-config.yaml",
    "minimask/**/*.*",
    "minimask/**/LICENSE",
    "tests/**/*.py",
    "tests/**/*.sh",
    "tools/*.py",
    "tutorials/solutions/*.py",
    "tutorials/src/*.py",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "setup.py",
)
BINARY = {".npz", ".png", ".pyc", ".json"}  # and packaged annotations, which nobody reads
PREFIX = "source"
LINK = re.compile(r"(?P<text>\[[\w/]+\.md)?\]\((?![a-z]+:|#)(?P<target>[^)\s]+)\)")
FENCED = re.compile(r"^(```+).*?^\1", re.M | re.S)

log = logging.getLogger(__name__)


@cache
def shown_files() -> list[Path]:
    """The files that have a page, as paths within the repository."""
    found = {path for pattern in SHOWN for path in ROOT.glob(pattern)}
    return sorted(path.relative_to(ROOT) for path in found if path.is_file() and path.suffix not in BINARY)


def page_of(path: Path) -> str:
    """The name of a file's page, or of a folder's; the repository's own is not called ``source/.``."""
    return f"{PREFIX}/{'index' if path == Path() else path.as_posix()}"


def place_of(document: str) -> Path:
    """Where the document stands in the repository, as far as its links go."""
    folder = (DOCS / document).parent
    return TUTORIALS if folder == DOCS / "tutorials" else folder


def rewritten(target: str, document: str) -> str:
    """A link of a document as the site has it: to one of its pages, or ``source:`` to what is none."""
    path, _, fragment = target.partition("#")
    file = (place_of(document) / unquote(path)).resolve()
    if not file.exists() or not file.is_relative_to(ROOT):
        return target  # MyST warns of it
    if file.is_relative_to(TUTORIALS) and file.suffix in (".ipynb", ".md"):
        file = DOCS / "tutorials" / ("index.ipynb" if file.name == "README.md" else file.name)
    elif not file.is_relative_to(DOCS):
        return f"{PREFIX}:{file.relative_to(ROOT).as_posix()}" + (f"#{fragment}" if fragment else "")
    here = (DOCS / document).parent.relative_to(DOCS).as_posix() + "/"
    there = file.relative_to(DOCS).as_posix()
    return relative_uri(here.removeprefix("./"), there) + (f"#{fragment}" if fragment else "")


def renamed(link: re.Match, document: str) -> str:
    """The end of a link from where its text is a file's name, as a repository has it: a page has a title."""
    target = rewritten(link["target"], document)
    is_page = link["text"] and not target.startswith(f"{PREFIX}:")
    text = "[" if is_page else link["text"] or ""  # MyST fills in the title of the page or the section
    return f"{text}]({target})"


def rewrite_links(app: Sphinx, document: str, content: list[str]) -> None:
    """Before a document is parsed: its relative links, except those in blocks of code."""
    if not str(app.env.doc2path(document)).endswith((".md", ".ipynb")):
        return
    text, done, parts = content[0], 0, []
    for block in [*FENCED.finditer(text), None]:
        prose = text[done : block.start() if block else None]
        parts += [LINK.sub(lambda link: renamed(link, document), prose), block[0] if block else ""]
        done = block.end() if block else done
    content[0] = "".join(parts)


def resolve_links(app: Sphinx, doctree: nodes.document, document: str) -> None:
    """Once a document is resolved: ``source:`` links become relative ones, to pages that there will be."""
    pages = {page_of(path) for path in shown_files()}
    pages |= {page_of(folder) for path in shown_files() for folder in path.parents}
    for node in doctree.findall(nodes.reference):
        if not node.get("refuri", "").startswith(f"{PREFIX}:"):
            continue
        path, _, fragment = node["refuri"].removeprefix(f"{PREFIX}:").partition("#")
        page = page_of(Path(path))
        lines = (ROOT / path).read_text(encoding="utf-8").count("\n") if fragment else 0
        last = re.fullmatch(r"L(\d+)(?:-L\d+)?", fragment)
        if page not in pages:
            log.warning("%s has no page: see SHOWN in docs/_ext/repository.py", path, location=node)
        elif fragment and not (last and 1 <= int(last[1]) <= lines):
            log.warning("%s has no line #%s", path, fragment, location=node)
        anchor = f"#L{last[1]}" if last else ""
        node["refuri"] = app.builder.get_relative_uri(document, page) + anchor
        node["internal"] = True


def link_source(app: Sphinx, doctree: nodes.document) -> None:
    """Give each entry of the API a link to its lines."""
    for entry in doctree.findall(addnodes.desc):
        for signature in entry.findall(addnodes.desc_signature):
            if signature.parent is not entry or entry.get("domain") != "py":
                continue
            if place := definition(signature["module"], signature["fullname"]):
                path, line = place
                text = nodes.inline("", "source", classes=["viewcode-link"])
                signature += nodes.reference("", "", text, refuri=f"{PREFIX}:{path}#L{line}")


def definition(module: str, name: str) -> tuple[str, int] | None:
    """The file and line where a public name is defined; None for what has no code: an attribute."""
    thing = sys.modules[module]
    for part in name.split("."):
        thing = getattr(thing, part, None)
    thing = thing.fget if isinstance(thing, property) else inspect.unwrap(thing) if callable(thing) else None
    try:
        path = Path(inspect.getsourcefile(thing)).relative_to(ROOT)
        return path.as_posix(), inspect.getsourcelines(thing)[1]
    except (TypeError, ValueError, OSError):  # built in, generated, or defined in another package
        return None


def link_definition(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Lead what the API has no entry for, such as the type of an argument, to its lines."""
    module, _, name = node["reftarget"].rpartition(".")
    if node.get("refdomain") != "py" or not module.startswith("minimask.") or module not in sys.modules:
        return None
    place = definition(module, name)
    return nodes.reference("", "", content, refuri=f"{PREFIX}:{place[0]}#L{place[1]}") if place else None


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    """A page for each file and each folder."""
    files = shown_files()
    for path in files:
        yield page_of(path), context(app, path, listing(app, path)), "page.html"
    for folder in sorted({folder for path in files for folder in path.parents}):
        entries = {path.parts[len(folder.parts)] for path in files if path.is_relative_to(folder)}
        items = []
        for name in sorted(entries):
            there = app.builder.get_relative_uri(page_of(folder), page_of(folder / name))
            slash = "/" if (ROOT / folder / name).is_dir() else ""
            items.append(
                f'<li><a href="{html.escape(there)}"><code>{html.escape(name)}{slash}</code></a></li>'
            )
        yield page_of(folder), context(app, folder, f"<ul>{''.join(items)}</ul>"), "page.html"


def context(app: Sphinx, path: Path, body: str) -> dict:
    """What the theme's template is given."""
    name = path.as_posix() if path.parts else "The repository"
    trail = []
    for folder in reversed(path.parents) if path.parts else ():
        there = app.builder.get_relative_uri(page_of(path), page_of(folder))
        trail.append(f'<a href="{html.escape(there)}">{html.escape(folder.name or "repository")}</a>')
    crumbs = f"<p>{' / '.join(trail)}</p>" if trail else ""
    return {"title": name, "body": f"<h1>{html.escape(path.name or name)}</h1>{crumbs}{body}"}


def listing(app: Sphinx, path: Path) -> str:
    """A file's text, highlighted, each line an anchor."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = "cuda" if path.suffix == ".cu" else "text"
    try:
        language = get_lexer_for_filename(path.name).aliases[0]
    except (ClassNotFound, IndexError):
        pass  # the language above
    highlighted = app.builder.highlighter.highlight_block(text, language, location=path.as_posix())
    start, code, end = re.fullmatch(r"(.*?<pre>)(.*)(</pre>.*)", highlighted, re.S).groups()
    lines = [
        f'<span id="L{i}" class="line">{s}\n</span>' for i, s in enumerate(code.rstrip("\n").split("\n"), 1)
    ]
    return f'<div class="source-listing">{start}{"".join(lines)}{end}</div>'


def setup(app: Sphinx) -> dict:
    app.connect("source-read", rewrite_links)
    app.connect("doctree-read", link_source)
    app.connect("missing-reference", link_definition)
    app.connect("doctree-resolved", resolve_links)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
