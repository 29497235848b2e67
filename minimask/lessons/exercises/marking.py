"""Marking what a class hands in: a folder of files, every exercise in them checked, and a table of it.

Each file is looked at in a process of its own, so that an endless loop or a call that ends Python costs one
exercise and not the others. That is no protection: the files are run with the rights of whoever marks them.
"""

from __future__ import annotations

import ast
import csv
import faulthandler
import io
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from minimask.errors import InputError
from minimask.files import write_text
from minimask.lessons.exercises.exercise import EXERCISES, Verdict
from minimask.lessons.exercises.running import one_line

_CODE = "from minimask.lessons.exercises.marking import work; work()"
_ENDINGS = (".py", ".ipynb")
_DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Marked:
    """What became of a file.

    Attributes
    ----------
    file : Path
    verdicts : dict of str to Verdict
        Of the exercises that it has.
    problem : str
        Which part of the file could not be run, in words; "" if all could.
    """

    file: Path
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    problem: str = ""


def mark_files(
    folder: str | Path, names: Sequence[str], seconds: float, table: str | Path | None
) -> list[Marked]:
    """See `minimask.exercises.mark`."""
    files = _files(Path(folder))
    marked = [_mark(file, names or list(EXERCISES), seconds) for file in files]
    columns = list(names) or [name for name in EXERCISES if any(name in m.verdicts for m in marked)]
    if table is not None:
        write_text(table, _csv(marked, columns))
    print(_as_text(marked, columns))
    for m in marked:
        said = [f"{m.file.name}: {m.problem}."] if m.problem else []
        said += [f"{m.file.name}, {v.text}" for v in m.verdicts.values() if not v]
        for line in "\n".join(said).splitlines():
            print(textwrap.fill(line, 100, subsequent_indent=" " * 4, break_long_words=False))
    return marked


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; give the one with the students' files")
    files = sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file())
    if not files:
        raise InputError(f"{folder}: has no .py and no .ipynb file; give the folder with the students' files")
    return files


def _mark(file: Path, names: Sequence[str], seconds: float) -> Marked:
    """Check a file's exercises in another process, and go on in a new one after an exercise that ends it."""
    verdicts, problem, left = {}, "", list(names)
    end = f"ends Python, or takes more than {seconds:g} s"
    while left:
        rows = list(_rows_of_process(file, left, seconds))
        problem = problem or next((row["problem"] for row in rows if "problem" in row), "")
        given = [row for row in rows if "text" in row]
        verdicts |= {row.pop("name"): _verdict(row) for row in given}
        begun = next((row["begun"] for row in reversed(rows) if "begun" in row), None)
        if rows and "done" in rows[-1]:
            break
        if begun is None:
            return Marked(file, verdicts, problem or f"running it {end}")
        verdicts[begun] = Verdict(False, f"{begun}: not yet right. Your function {end}")
        left = left[left.index(begun) + 1 :]
    return Marked(file, verdicts, problem)


def _verdict(row: dict) -> Verdict:
    return Verdict(row["right"], row["text"], tuple(row["mistakes"]), tuple(row["notes"]))


def _rows_of_process(file: Path, names: list[str], seconds: float) -> Iterator[dict]:
    """What `work` writes, as far as it gets."""
    package = Path(__file__).parents[3]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows"
        # -P: else the folder would come first in sys.path, and NumPy would import a hand-in called random.py
        command = [sys.executable, "-Pc", _CODE, str(file.resolve()), str(rows), str(seconds), *names]
        null = subprocess.DEVNULL
        subprocess.run(command, cwd=file.parent, env=environment, stdin=null, stdout=null, stderr=null)
        for line in rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []:
            yield json.loads(line)


def work() -> None:
    """Check one file; the arguments are its path, that of the answers, the seconds and the exercises."""
    file, answers, seconds, *names = sys.argv[1:]
    sys.argv[1:] = []
    sys.path.append(str(Path(file).parent))  # a module of the student's own beside the hand-in
    with Path(answers).open("w", encoding="utf-8") as rows, Path(os.devnull).open("wb") as null:

        def tell(**row) -> None:
            rows.write(json.dumps(row) + "\n")
            rows.flush()

        def watch() -> None:  # a Python thread could wait forever for a loop in C
            faulthandler.dump_traceback_later(float(seconds), exit=True, file=null)

        watch()
        functions, problem = functions_of(Path(file))
        tell(problem=problem)
        for name in filter(functions.__contains__, names):
            tell(begun=name)
            watch()
            verdict = EXERCISES[name].check(functions[name])
            tell(name=name, **{k: v for k, v in asdict(verdict).items() if k != "inputs"})
        faulthandler.cancel_dump_traceback_later()
        tell(done=True)


def functions_of(file: Path) -> tuple[dict[str, Callable], str]:
    """The functions of a file by exercise, and which part of it could not be run.

    Only imports, functions, classes and constants are run. A function belongs to an exercise if
    ``check("NAME", function)`` stands in the file, or if it is called NAME or my_NAME.
    """
    namespace, checked, problems = {"__name__": file.stem}, {}, []
    try:
        sources = list(_sources(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"it cannot be read ({one_line(error)})"
    for where, source in sources:
        try:
            tree = ast.parse(source, where)
        except (SyntaxError, ValueError) as error:
            problems.append(f"it cannot be read ({one_line(error)})")
            continue
        for node in filter(_defines, tree.body):
            try:
                exec(compile(ast.Module([node], []), where, "exec"), namespace)
            except BaseException as error:  # SystemExit of a module that is imported, too
                what = one_line(f"{type(error).__name__}: {error}")
                problems.append(f"line {node.lineno} of {Path(where).name} cannot be run ({what})")
        checked |= dict(filter(None, map(_of_check, ast.walk(tree))))
    functions = {}
    for name in EXERCISES:
        for called in (checked.get(name), name, f"my_{name}"):
            if name not in functions and callable(namespace.get(called)):
                functions[name] = namespace[called]
    return functions, "; ".join(problems)


def _sources(file: Path) -> Iterator[tuple[str, str]]:
    """The file, or a notebook's cells without IPython's own commands, each with its name."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield str(file), text
        return
    for number, cell in enumerate(json.loads(text)["cells"], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("%%"):
            lines = ["pass" if line[:1] in ("%", "!") else line for line in source.splitlines()]
            yield f"cell {number}", "\n".join(lines)


def _defines(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        try:
            ast.literal_eval(node.value)
        except (ValueError, TypeError):  # no constant; TypeError for one that Python refuses, {[1]: 2}
            return False
        return True
    return isinstance(node, _DEFINING)


def _of_check(node: ast.AST) -> tuple[str, str] | None:
    """The exercise and the function in ``exercises.check("NAME", function)``."""
    if not (isinstance(node, ast.Call) and len(node.args) == 2):
        return None
    called, (name, function) = node.func, node.args
    is_check = getattr(called, "attr", getattr(called, "id", None)) == "check"
    if is_check and isinstance(name, ast.Constant) and isinstance(function, ast.Name):
        return name.value, function.id
    return None


def _mark_of(m: Marked, name: str) -> str:
    return ("right" if m.verdicts[name] else "wrong") if name in m.verdicts else "-"


def _as_text(marked: list[Marked], columns: list[str]) -> str:
    """The table: a row for each file, a column for each exercise, and how many are right."""
    rows = [["", *columns, "right"]]
    for m in marked:
        right = sum(map(bool, (m.verdicts[name] for name in columns if name in m.verdicts)))
        rows.append([m.file.name, *(_mark_of(m, name) for name in columns), f"{right} of {len(columns)}"])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _csv(marked: list[Marked], columns: list[str]) -> str:
    """A row for each file and exercise, for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "exercise", "mark", "mistakes"])
    for m in marked:
        for name in columns:
            mistakes = "; ".join(m.verdicts[name].mistakes) if name in m.verdicts else m.problem
            writer.writerow([m.file.name, name, _mark_of(m, name), mistakes])
    return text.getvalue()
