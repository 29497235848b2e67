"""The documentation site: built without a warning or a network, and every link in it leads somewhere."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.browser import BROWSER, Browser

ROOT = Path(__file__).parent.parent
MISSING = [name for name in ("sphinx", "furo", "myst_nb", "numpydoc") if not importlib.util.find_spec(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: pip install ".[docs]"'),
]
NOWHERE = "http://127.0.0.1:9"  # a proxy that does not answer: whatever is fetched fails
ADDRESS = re.compile(r"""(?:\burl\(|@import)\s*["']?([^"')]+)""")
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}
WITH_PAGES = (
    *("minimask", "minimask.functions", "minimask.nn", "minimask.models", "minimask.data"),
    *("minimask.inspection", "minimask.weights", "minimask.config", "minimask.results.report"),
    *("minimask.exercises", "minimask.tutorial", "minimask.misalign", "minimask.backend"),
)


@dataclass
class Page(HTMLParser):
    """What a page has, links to and loads."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    undescribed: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        text = self.path.read_text(encoding="utf-8")
        self.feed(text)
        self.loads += ADDRESS.findall(text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.ids |= {has[name] for name in ("id", "name") if has.get(name)}
        if tag == "a" and has.get("href"):
            self.links.append(has["href"])
        if tag == "img" and not (has.get("alt") or "").strip():
            self.undescribed.append(has.get("src", ""))
        if has.get(LOADING.get(tag, "")):
            self.loads.append(has[LOADING[tag]])
        if tag == "link" and LOADING_LINKS & set((has.get("rel") or "").split()):
            self.loads.append(has["href"])


def build(source: Path, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", folder / "work" / "doctrees", source, folder / "site"]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | proxies)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    run = build(ROOT / "docs", folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 200
    return found


def test_every_link_and_anchor_leads_somewhere(site, pages):
    broken = set()
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto):", link):
                continue
            target, _, anchor = link.partition("#")
            there = (path.parent / unquote(target.partition("?")[0])).resolve() if target else path
            if not there.exists():
                broken.add((path.relative_to(site).as_posix(), link))
            elif anchor and there in pages and unquote(anchor) not in pages[there].ids:
                broken.add((path.relative_to(site).as_posix(), link))
    assert sorted(broken) == []


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loads = {(path.name, load) for path, page in pages.items() for load in page.loads}
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        loads |= {(sheet.name, url) for url in ADDRESS.findall(text)}
    assert any(load.endswith(".js") for _, load in loads)
    assert sorted((page, load) for page, load in loads if re.match(r"(https?:)?//", load)) == []


def test_every_picture_is_described(site, pages):
    assert sorted((path.name, image) for path, page in pages.items() for image in page.undescribed) == []
    notebook = (site / "tutorials" / "05_roipool_and_roialign.html").read_text("utf-8")
    assert len(re.findall(r'<img alt="[^"]{40,}', notebook)) > 10


def test_the_reference_has_every_public_name(site):
    _, _, _, _, packed = (site / "objects.inv").read_bytes().split(b"\n", 4)
    documented = {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}
    wanted = set()
    for name in WITH_PAGES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        for n in public:
            thing = getattr(module, n)
            if callable(thing) and thing.__module__.startswith("minimask"):
                here = hasattr(module, "__all__") or hasattr(module, "__path__") or thing.__module__ == name
                wanted |= {f"{name}.{n}"} if here else set()
    ops = vars(importlib.import_module("minimask.ops"))
    for n, thing in ops.items():
        if callable(thing) and not n.startswith("_"):
            home = thing.__module__
            wanted.add(f"minimask.functions.{n}" if home.startswith("minimask.functions") else f"{home}.{n}")
    assert len(wanted) > 100
    assert sorted(wanted - documented) == []


def test_the_command_has_its_help(site):
    text = re.sub("<[^>]+>", "", (site / "reference" / "command.html").read_text("utf-8"))
    for option in ("--per-class", "--category-ids", "--label-maps", "train.batch_size"):
        assert option in text


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("../minimask/there.py#L2", None),
        ("../minimask", None),
        ("other.md#a-title", None),
        ("../minimask/there.py#L4", "has no line"),
        ("../minimask/there.py#there", "has no line"),
        ("../minimask/absent.py", "not found"),
        ("../other/unshown.py", "has no page"),
        ("absent.md", "not found"),
        ("other.md#no-such-title", "not found"),
    ],
)
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, link, said):
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs" / "_ext", docs / "_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (docs / "conf.py").write_text(
        "import sys; from pathlib import Path; sys.path.insert(0, str(Path(__file__).parent / '_ext'))\n"
        "extensions = ['myst_parser', 'repository']\nmyst_url_schemes = ['http', 'https', 'source']\n"
        "myst_heading_anchors = 4\nexclude_patterns = ['_ext']\n"
    )
    for path, text in {
        docs / "index.md": f"# Index\n\n[link]({link})\n\n```{{toctree}}\nother\n```\n",
        docs / "other.md": "# Other\n\n## A title\n",
        tmp_path / "minimask" / "there.py": "one = 1\ntwo = 2\nthree = 3\n",
        tmp_path / "other" / "unshown.py": "one = 1\n",
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    run = build(docs, tmp_path)
    assert (run.returncode == 0) == (said is None), run.stderr
    assert (said or "") in run.stderr
    if said is None:
        page = Page(tmp_path / "site" / "index.html")
        target, _, anchor = next(
            t for t in page.links if "there" in t or "source" in t or "other" in t
        ).partition("#")
        assert not anchor or anchor in Page(tmp_path / "site" / target).ids


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    "page", ["index", "tutorials/05_roipool_and_roialign", "reference/functions", "kernels", "performance"]
)
def test_a_browser_loads_it_without_errors_or_network_and_nothing_sticks_out(site, page, width):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(folder)
        try:
            browser.open((site / f"{page}.html").as_uri())
            browser.size(width, 900)
            typeset = "window.MathJax?.startup?.promise?.then(() => true) ?? true"
            assert browser.send("Runtime.evaluate", expression=typeset, awaitPromise=True)["result"]["value"]
            if "roialign" in page:
                assert browser.value("document.querySelectorAll('mjx-container').length") > 20
            assert browser.value("document.documentElement.scrollWidth") <= width
        finally:
            browser.close()
    events = browser.events
    loaded = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert loaded and all(url.startswith(("file:", "data:")) for url in loaded)
    assert [e for e in events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
