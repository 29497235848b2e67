"""Notebooks from their sources: ``python tools/notebooks.py build|words|check|run [NAME...]``.

``tutorials/src/NAME.py`` (py:percent: ``# %% [markdown]`` and ``# %%`` begin a cell) is what people edit and
review; ``tutorials/NAME.ipynb`` is what they read, with outputs, on GitHub and Colab.

build     execute the source and write the notebook, with fixed cell ids and nothing of time or machine in it
words     renew what is not computed: the text, what `# alt:` says, and what `source(...)` shows of today's
          package
check     say where a notebook differs from its source or breaks a rule of tutorials/README.md
run       execute the source in an empty folder and write nothing; MINIMASK_FAST=1 for the fast setting

A NAME may be shortened to its number; none means all.
"""

import argparse
import ast
import base64
import io
import itertools
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "tutorials"
MAX_BYTES = 1_000_000
MAX_SECONDS = 240  # top to bottom; 40 in the fast setting
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MARKER = re.compile(r"^# %%(.*)$")
ALT = "# alt: "  # begins the description of a code cell's figures; "#   " goes on with it
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SETUP = """\
# Where minimask is missing, it is installed from the clone or wheel that MINIMASK_CLONE names, if it does.
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import distributions

from IPython.core.error import UsageError

cupy = [f"{d.name}=={d.version}" for d in distributions() if str(d.name).startswith("cupy")]
if importlib.util.find_spec("minimask") is None:
    where = os.environ.get("MINIMASK_CLONE")
    if not where:
        raise UsageError("minimask is missing: '%pip install PATH' installs it from a clone or a wheel.")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if subprocess.run([*pip, where, *cupy]).returncode:  # named with its version, a CuPy that is there stays
        raise UsageError(f"minimask is missing, and pip could not install it from MINIMASK_CLONE, {where}.")

import minimask

FAST = os.environ.get("MINIMASK_FAST") == "1"  # fewer points and steps: how the tests run this notebook
print(f"minimask {minimask.__version__}; CuPy: {', '.join(cupy) or 'none, and none is needed'}")"""
"""The first code cell of every notebook."""

FOREIGN = {
    "an address in memory": re.compile(r" at 0x[0-9a-f]{6,}"),
    "an absolute path": re.compile(r"(?<![\w.:/<\\])(/[\w.-]+){2,}|\b[A-Za-z]:\\\w"),
    "a figure without axes": re.compile(r"<Figure .* with 0 Axes>"),
}


@dataclass(frozen=True)
class Cell:
    """A cell's type, "markdown" or "code", its text, and what its figures show, in words."""

    kind: str
    source: str
    alt: str = ""

    @property
    def metadata(self) -> nbformat.NotebookNode:
        """As MyST-NB reads it."""
        return nbformat.from_dict({"mystnb": {"image": {"alt": self.alt}}} if self.alt else {})


def names(wanted: list[str]) -> list[str]:
    """The names of notebooks, given in full or by their first letters; all of them if none is given."""
    known = sorted(path.stem for path in (TUTORIALS / "src").glob("*.py"))
    for prefix in wanted:
        if not any(name.startswith(prefix) for name in known):
            sys.exit(f"notebooks: no tutorials/src/{prefix}*.py; there are {', '.join(known)}")
    return [name for name in known if not wanted or name.startswith(tuple(wanted))]


def parse(text: str) -> list[Cell]:
    """The cells of a py:percent source; a note to linters before the first marker is left out."""
    cells: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if marker := MARKER.match(line):
            cells.append(("markdown" if marker.group(1).strip() == "[markdown]" else "code", []))
        elif cells:
            cells[-1][1].append(re.sub(r"^# ?", "", line) if cells[-1][0] == "markdown" else line)
    return [Cell(kind, *described(lines)) for kind, lines in cells]


def described(lines: list[str]) -> tuple[str, str]:
    """A code cell's text without the description of its figures, and the description on one line."""
    said = 0
    if lines and lines[0].startswith(ALT):
        said = 1 + len(list(itertools.takewhile(lambda line: line.startswith("#   "), lines[1:])))
    words = " ".join(line.removeprefix(ALT).lstrip("# ").strip() for line in lines[:said])
    return "\n".join(lines[said:]).strip("\n"), words


def source_cells(name: str) -> list[Cell]:
    return parse((TUTORIALS / "src" / f"{name}.py").read_text(encoding="utf-8"))


def notebook(name: str, cells: list[Cell]) -> nbformat.NotebookNode:
    """The notebook of these cells, not yet executed."""
    made = nbformat.v4.new_notebook(metadata=METADATA)
    for i, cell in enumerate(cells):
        new = nbformat.v4.new_markdown_cell if cell.kind == "markdown" else nbformat.v4.new_code_cell
        made.cells.append(new(cell.source, id=f"{name[:2]}-{i}", metadata=cell.metadata))
    return made


def execute(name: str) -> nbformat.NotebookNode:
    """Run a source's cells in a fresh kernel and an empty folder; a failing cell ends the program."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    made = notebook(name, source_cells(name))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            made,
            timeout=MAX_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError) as error:
            sys.exit(f"notebooks: {name}: {ANSI.sub('', str(error))}")
    return made


def build(name: str) -> None:
    """Execute a source and write its notebook."""
    made = execute(name)
    made.metadata = nbformat.from_dict(METADATA)  # the kernel has added its version
    for cell, source in zip(made.cells, source_cells(name)):
        cell.metadata = source.metadata
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.write(made, TUTORIALS / f"{name}.ipynb")


def words(name: str) -> None:
    """Renew text, descriptions, and what cells that end in `source(...)` show, whose names are imported."""
    path, known = TUTORIALS / f"{name}.ipynb", {}
    book, sources = nbformat.read(path, as_version=nbformat.NO_CONVERT), source_cells(name)
    for number, (cell, written) in enumerate(zip(book.cells, sources)):
        cell.metadata = written.metadata
        if cell.cell_type == written.kind == "markdown":
            cell.source = written.source
        for statement in ast.parse(cell.source).body if cell.cell_type == "code" else []:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([statement], []), name, "exec"), known)
            elif isinstance(statement, ast.Expr) and ast.unparse(statement).startswith("source("):
                try:
                    shown = eval(ast.unparse(statement), known)
                except NameError as error:
                    print(f"{name}: cell {number} is left as it is ({error})")
                    continue
                (output,) = (o for o in cell.outputs if o.output_type == "execute_result")
                output.data = {"text/markdown": shown._repr_markdown_(), "text/plain": repr(shown)}
    nbformat.write(book, path)


def smaller(png: str) -> str:
    """A base64 PNG with 256 colours if nobody sees the difference: a third of the bytes."""
    picture = _picture(png)
    reduced = picture.quantize(256, dither=Image.Dither.NONE)
    difference = ImageStat.Stat(ImageChops.difference(picture, reduced.convert("RGB"))).rms  # of each channel
    buffer = io.BytesIO()
    (reduced if max(difference) < 1.5 else picture).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _picture(png: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")


def check(name: str) -> list[str]:
    """What is wrong with a committed notebook, a line each."""
    path, cells = TUTORIALS / f"{name}.ipynb", source_cells(name)
    if not path.exists():
        return ["is not built"]
    made = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(made)
    problems = [*_recipe(cells)]
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    if made.metadata != METADATA:
        problems.append("has metadata of the machine that made it")
    if len(made.cells) != len(cells):
        problems.append(f"has {len(made.cells)} cells, its source {len(cells)}")
    executed = 0
    for i, (cell, source) in enumerate(zip(made.cells, cells)):
        if (cell.cell_type, cell.source) != (source.kind, source.source):
            problems.append(f"cell {i} differs from the source")
        if cell.metadata != source.metadata:
            problems.append(f"cell {i} has other metadata than its source; try words")
        if cell.id != f"{name[:2]}-{i}":
            problems.append(f"cell {i} has the id {cell.id}")
        if cell.cell_type == "code":
            executed += 1
            if cell.execution_count != executed:
                problems.append(f"cell {i} has execution count {cell.execution_count}, not {executed}")
            problems += [f"cell {i} {what}" for output in cell.outputs for what in _of_output(output)]
            figures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
            if bool(figures) != bool(source.alt):
                which = ALT if source.alt else f"no {ALT}"
                problems.append(f"cell {i} has {figures} figures, and {which}says what they show")
    return problems


def _recipe(cells: list[Cell]) -> list[str]:
    """What every notebook has: see tutorials/README.md."""
    prose = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
    code = [cell.source for cell in cells if cell.kind == "code"]
    wanted = {
        "no first cell with a title, **Time** and **Needs**": cells
        and cells[0].source.startswith("# ")
        and all(word in cells[0].source for word in ("**Time**", "**Needs**")),
        "not the common first code cell (SETUP in tools/notebooks.py)": code and code[0] == SETUP,
        "no '## Exercises'": "\n## Exercises" in "\n" + prose,
        "no assertions": any(re.search(r"^ *assert ", source, re.MULTILINE) for source in code),
        "no error over the step size (tutorial.step_errors)": any(
            "step_errors(" in source for source in code
        ),
        "no source printed (tutorial.source)": any("source(" in source for source in code),
    }
    return [f"has {what}" for what, there in wanted.items() if not there]


def _of_output(output) -> list[str]:
    """What is wrong with one output of a cell."""
    if output.output_type == "error":
        return [f"ends in {output.ename}"]
    if output.output_type == "stream":
        stderr = ["writes to stderr"] if output.name == "stderr" else []
        return stderr + [f"shows {what}" for what, pattern in FOREIGN.items() if pattern.search(output.text)]
    text = "\n".join(value for kind, value in output.data.items() if kind.startswith("text/"))
    plain = output.data.get("text/plain", "")
    problems = [f"shows {what}" for what, pattern in FOREIGN.items() if pattern.search(text)]
    if "image/png" in output.data and _is_empty(_picture(output.data["image/png"])):
        problems.append("shows an empty figure")
    return problems + [f"shows an old {where}: build the notebook again" for where in _outdated(plain)]


def _outdated(text: str) -> list[str]:
    """Files that no longer have the text that `tutorial.source` printed."""
    parts = re.split(r"^# (minimask/[\w/.]+)$", text, flags=re.MULTILINE)
    found = []
    for name, shown in zip(parts[1::2], parts[2::2]):
        path = ROOT / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        now = [line.strip() for line in text.splitlines()]
        then = [line.strip() for line in shown.strip().splitlines()]
        if then not in (now[i : i + len(then)] for i in range(len(now))):
            found.append(name)
    return found


def _is_empty(picture: Image.Image) -> bool:
    """Whether there are at most 8 colours; the smooth edges of any letter have more."""
    return picture.getcolors(8) is not None


def main(argv: list[str] | None = None) -> int:
    """Run the command; the status is 1 if a check found something."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["build", "words", "check", "run"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args(argv)
    wrong = 0
    for name in names(arguments.names):
        begin = time.perf_counter()
        if arguments.action == "build":
            os.environ.pop("MINIMASK_FAST", None)
            build(name)
        if arguments.action == "words":
            words(name)
        if arguments.action == "run":
            execute(name)
        else:
            for problem in check(name):
                wrong += 1
                print(f"{name}: {problem}")
        print(f"{name}: {arguments.action}, {time.perf_counter() - begin:.1f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
