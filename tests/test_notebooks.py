"""The notebooks: built from their sources, complete and clean; run, in their fast setting, from a wheel."""

import ast
import base64
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from minimask.lessons import cuda_on_cpu

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "notebooks.py"

spec = importlib.util.spec_from_file_location("notebooks", TOOL)
notebooks = importlib.util.module_from_spec(spec)
sys.modules["notebooks"] = notebooks  # its dataclass looks its own module up
spec.loader.exec_module(notebooks)

NAMES = notebooks.names([])


def test_there_is_a_notebook_for_every_source_and_the_other_way_round():
    assert NAMES and NAMES == sorted(path.stem for path in (ROOT / "tutorials").glob("*.ipynb"))


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_built_from_its_source_and_keeps_the_rules(name):
    assert notebooks.check(name) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_the_readme_has_the_notebook(name):
    assert f"({name}.ipynb)" in (ROOT / "tutorials" / "README.md").read_text(encoding="utf-8")


def test_the_map_of_the_course_has_every_notebook_behind_it():
    [drawn] = [cell.source for cell in notebooks.source_cells(NAMES[0]) if cell.source.startswith("COURSE =")]
    course = ast.literal_eval(drawn[drawn.index("{") : drawn.index("\n}") + 2])
    assert {name[:2] for name in NAMES[1:]} <= course.keys()


@pytest.mark.parametrize("name", ["exercises", "tutorial", "misalign"])
def test_the_short_name_of_a_lesson_has_everything_that_the_lesson_defines(name):
    lesson, short = (importlib.import_module(f"minimask.{where}{name}") for where in ("lessons.", ""))
    defined = set()
    for node in ast.parse(Path(lesson.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in ast.walk(target)]
            defined |= {part.id for part in targets if isinstance(part, ast.Name)}
    public = {each for each in defined if not each.startswith("_")}
    assert public and public == set(short.__all__)
    assert all(getattr(short, each) is getattr(lesson, each) for each in public)


# ------------------------------------------------------------------------------------- the check can fail


def png(colours: int) -> str:
    picture = Image.new("RGB", (32, 32), "white")
    for i in range(colours):
        picture.putpixel((i, i), (0, 0, i))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def displayed(**data) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {kind.replace("_", "/"): v for kind, v in data.items()})


def stream(text: str, name: str = "stdout") -> nbformat.NotebookNode:
    return nbformat.v4.new_output("stream", name=name, text=text)


BROKEN = {
    "cell 1 differs from the source": lambda book: book.cells[1].update(source="print(1)"),
    "has 2 cells, its source": lambda book: book.update(cells=book.cells[:2]),
    "cell 1 has the id other": lambda book: book.cells[1].update(id="other"),
    "cell 1 has execution count 7, not 1": lambda book: book.cells[1].update(execution_count=7),
    "cell 1 has execution count None, not 1": lambda book: book.cells[1].update(execution_count=None),
    "has metadata of the machine": lambda book: book.metadata.update(widgets={}),
    "cell 0 has other metadata than its source": lambda book: book.cells[0].metadata.update(tags=["x"]),
    "cell 1 ends in ValueError": lambda book: book.cells[1].update(
        outputs=[nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
    ),
    "cell 1 writes to stderr": lambda book: book.cells[1].update(outputs=[stream("Warning", "stderr")]),
    "cell 1 shows an absolute path": lambda book: book.cells[1].update(outputs=[stream("in /home/me/a.py")]),
    "cell 1 shows an address in memory": lambda book: book.cells[1].update(
        outputs=[displayed(text_plain="<Line2D at 0x7f3a5c0d1e80>")]
    ),
    "cell 1 shows a figure without axes": lambda book: book.cells[1].update(
        outputs=[displayed(text_plain="<Figure size 640x480 with 0 Axes>")]
    ),
    "cell 1 has 1 figures, and no # alt: says what they show": lambda book: book.cells[1].update(
        outputs=[displayed(image_png=png(20))]
    ),
    "cell 1 shows an empty figure": lambda book: book.cells[1].update(outputs=[displayed(image_png=png(2))]),
    "cell 1 shows an old minimask/tape.py: build the notebook again": lambda book: book.cells[1].update(
        outputs=[displayed(text_plain="# minimask/tape.py\ndef run_backward(roots) -> int:")]
    ),
    "has 1,": lambda book: book.cells[1].update(outputs=[stream("x" * 1_000_000)]),
}


def test_words_are_renewed_and_nothing_else_is_touched(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(notebooks, "TUTORIALS", tmp_path)
    name = next(name for name in NAMES if name.startswith("03"))
    shutil.copy(ROOT / "tutorials" / "src" / f"{name}.py", tmp_path / "src")
    committed = (ROOT / "tutorials" / f"{name}.ipynb").read_bytes()
    listed = committed.replace(b"class BatchNorm(Function):", b"class BatchNorm(Operator):")
    old = listed.replace(b'"alt": "', b'"alt": "As it was. ').replace(b"**Time**", b"**Space**")
    assert old != listed != committed
    (tmp_path / f"{name}.ipynb").write_bytes(old)
    notebooks.words(name)
    assert (tmp_path / f"{name}.ipynb").read_bytes() == committed


@pytest.mark.parametrize("problem", BROKEN)
def test_the_check_says_what_is_wrong(problem, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "tutorials", tmp_path / "tutorials")
    monkeypatch.setattr(notebooks, "TUTORIALS", tmp_path / "tutorials")
    path = tmp_path / "tutorials" / f"{NAMES[0]}.ipynb"
    book = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    BROKEN[problem](book)
    nbformat.write(book, path)
    assert any(found.startswith(problem) for found in notebooks.check(NAMES[0]))


def test_what_figures_show_stands_in_comments_that_readers_of_the_code_do_not_see():
    written = "# %%\n# alt: Two curves,\n#   one above.\n# draws\nplot()\n# %% [markdown]\n# Text."
    figure, text = notebooks.parse(written)
    assert (figure.source, figure.alt) == ("# draws\nplot()", "Two curves, one above.")
    assert figure.metadata == {"mystnb": {"image": {"alt": "Two curves, one above."}}}
    assert (text.source, text.alt, text.metadata) == ("Text.", "", {})


def test_ordinary_outputs_are_no_problem():
    for output in (
        displayed(image_png=png(20)),
        displayed(text_html="<div>1/2 <b>a</b></div>", text_plain="3/4 of https://example.org/a/b"),
        stream("minimask/autograd.py, 10 images/s, tutorials/src"),
    ):
        assert notebooks._of_output(output) == []


def test_pictures_get_smaller_and_look_the_same():
    rng = np.random.default_rng(0)
    drawing = np.full((200, 300, 3), 255, np.uint8)
    drawing[rng.integers(0, 200, 900), rng.integers(0, 300, 900)] = (0, 114, 178)
    photo = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for pixels in (drawing, photo):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGBA").save(buffer, "PNG", compress_level=1)
        before = base64.b64encode(buffer.getvalue()).decode()
        after = notebooks.smaller(before)
        assert len(after) < len(before)
        assert np.array_equal(np.asarray(notebooks._picture(after)), pixels)


def test_a_source_without_the_recipe_is_told_what_it_lacks():
    cells = notebooks.parse("# %% [markdown]\n# # Title\n# %%\nprint(1)\n")
    assert [cell.kind for cell in cells] == ["markdown", "code"]
    problems = " ".join(notebooks._recipe(cells))
    for lacking in ("**Time**", "SETUP", "## Exercises", "assertions", "step_errors", "source printed"):
        assert lacking in problems


def test_cells_are_parsed_as_they_read():
    text = "# ruff: noqa: E402\n\n# %% [markdown]\n# # T\n#\n#   * a\n\n\n"
    text += "# %%\nx = 1\n\n\ndef f():\n    # %% no\n    pass\n"
    assert notebooks.parse(text) == [
        notebooks.Cell("markdown", "# T\n\n  * a"),
        notebooks.Cell("code", "x = 1\n\n\ndef f():\n    # %% no\n    pass"),
    ]


# ------------------------------------------------------------------------------------- the first code cell


class Distribution:
    def __init__(self, name, version):
        self.name, self.version = name, version


@pytest.mark.parametrize("cupy", [[], ["cupy-cuda12x==13.3.0"]], ids=["no CuPy", "CuPy"])
@pytest.mark.parametrize("missing", [True, False], ids=["minimask missing", "minimask there"])
def test_the_first_cell_installs_minimask_where_it_is_missing_and_leaves_cupy_as_it_is(
    missing, cupy, monkeypatch, capsys
):
    commands = []

    def run(command):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    known = [Distribution("numpy", "2.2.0"), *[Distribution(*entry.split("==")) for entry in cupy]]
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: known)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else spec)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("MINIMASK_CLONE", "a clone")
    exec(compile(notebooks.SETUP, "setup", "exec"), {})
    if missing:  # from there, and CuPy pinned at the version that is there
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        assert commands == [[*pip, "a clone", *cupy]]
    assert len(commands) == missing
    assert (cupy[0] if cupy else "none") in capsys.readouterr().out


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The Python of a virtual environment with everything but minimask."""
    return environment(tmp_path_factory.mktemp("bare"))


def first_cell(python: Path, **variables: str) -> list[str]:
    """The lines that a person sees when the first cell is run as a notebook runs it."""
    code = "import sys; from IPython.core.interactiveshell import InteractiveShell as Shell; "
    code += "sys.exit(not Shell.instance().run_cell(sys.stdin.read()).success)"
    # IPython adds the packages of the virtual environment that the shell calls active, whose Python it is not
    others = ("MINIMASK_CLONE", "VIRTUAL_ENV")
    known = {name: text for name, text in os.environ.items() if name not in others}
    result = subprocess.run(
        [python, "-c", code],
        input=notebooks.SETUP,
        cwd=python.parent,
        env=known | {"PYTHONPATH": ""} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == (0 if result.stdout.startswith("minimask ") else 1)
    return result.stdout.splitlines()


def test_without_minimask_the_first_cell_says_in_one_line_how_to_install_it(bare):
    (line,) = first_cell(bare)
    assert "minimask is missing" in line and "%pip install PATH" in line


def test_a_clone_that_is_none_is_named_in_the_last_line(bare, tmp_path):
    *of_pip, line = first_cell(bare, MINIMASK_CLONE=str(tmp_path / "nothing"))
    assert "could not install" in line and "nothing" in line
    assert of_pip and not any("Traceback" in text for text in of_pip)


@pytest.mark.slow
def test_the_first_cell_installs_the_wheel_that_the_environment_names(wheel, tmp_path):
    lines = first_cell(environment(tmp_path), MINIMASK_CLONE=str(wheel), PIP_NO_INDEX="1")
    assert lines[-1].startswith(f"minimask {importlib.metadata.version('minimask')}; CuPy: ")


def test_without_a_compiler_the_notebook_of_kernels_stops_in_one_line_before_it_has_overwritten_anything():
    book = nbformat.read(ROOT / "tutorials" / "06_cuda_kernels.ipynb", as_version=nbformat.NO_CONVERT)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    code = "import json, os, sys; from IPython.core.interactiveshell import InteractiveShell as Shell; "
    code += "cells = json.load(sys.stdin); os.environ['PATH'] = ''; run = Shell.instance().run_cell; "
    code += "print('cells run:', next(i for i, cell in enumerate(cells) if not run(cell).success))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([cell.source for cell in cells]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    *_, why, run = result.stdout.splitlines()
    assert "no g++" in why and "Traceback" not in result.stdout
    stopped = int(run.removeprefix("cells run: "))
    assert "nothing is run" in cells[stopped].source
    assert all(not cell.outputs for cell in cells[1:stopped])  # those before it have nothing to lose


# ------------------------------------------------------------------------------- from a wheel, elsewhere


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def environment(work: Path) -> Path:
    """The Python of a new virtual environment that has the tests' packages, but not minimask."""
    venv.create(work / "venv", with_pip=False)
    python = work / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    # The dependencies are those of the tests, by links, without minimask; a path in a .pth file is searched
    # last, and its own .pth files, an editable minimask's among them, are not read.
    dependencies = work / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("minimask"):
            try:
                (dependencies / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
            except OSError:
                pytest.skip("this user may not make links, by which the packages but minimask are lent")
    Path(site, "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    return python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of this tree."""
    work = tmp_path_factory.mktemp("wheel")
    tree = (
        work / "tree"
    )  # a copy: building leaves a build directory behind, which would find its way into wheels
    shutil.copytree(ROOT / "minimask", tree / "minimask", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([*PIP, "wheel", "--no-deps", "--wheel-dir", work, tree], check=True)
    (made,) = work.glob("minimask-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The Python of a virtual environment into which the wheel is installed."""
    python = environment(tmp_path_factory.mktemp("installed"))
    subprocess.run([*PIP, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs_from_an_installed_wheel_in_its_fast_setting(name, installed, tmp_path):
    if name.startswith("06") and cuda_on_cpu.compiler() is None:
        pytest.skip("no g++ on Linux to run CUDA kernels with")
    where = [installed, "-c", "import minimask; print(minimask.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert Path(found).is_relative_to(installed.parent.parent)
    result = subprocess.run(
        [installed, TOOL, "run", name],
        cwd=tmp_path,
        env=os.environ | {"MINIMASK_FAST": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    print(result.stdout)
