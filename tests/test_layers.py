"""The order of the modules: who may import whom, which packages are needed, and how large a file may grow."""

import ast
import graphlib
import io
import subprocess
import sys
import tokenize
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "minimask"

# From the bottom up; a module imports from its own line and those above it in this list, never from below.
LAYERS = (
    "_version errors",
    "randomness files",
    "backend",
    "kernels",
    "boxes masks anchors matching keypoints",
    "data",
    "tape",
    "autograd",
    "gradient_check",
    "functions",
    "ops nn",
    "config",
    "weights",
    "models",
    "training",
    "minimask",  # the public names
    "results",
    "ablations",
    "inspection",
    "lessons",
    "exercises tutorial misalign",  # lessons under the names that students type
    "command",
    "__main__",
)
# The most code lines of each part; what stands in no other part is the system.
BUDGETS = {"the system": 14000, "results and command": 4500, "lessons": 3700}
BUDGETS |= {"inspection": 1600, "ablations": 800}
PARTS = {
    "results": "results and command",
    "ablations": "ablations",
    "inspection": "inspection",
    "command": "results and command",
    "__main__": "results and command",
}
PARTS |= {name: "lessons" for name in ("lessons", "exercises", "tutorial", "misalign")}

NEEDED = {"numpy", "scipy"}  # of `import minimask`; the others are imported where they are used
OPTIONAL = {"PIL", "matplotlib", "pycocotools", "tqdm", "threadpoolctl", "IPython", "ipywidgets"}
OPTIONAL |= {"cupy", "cupyx", "mpi4py", "pooch", "requests"}


def modules() -> dict[str, Path]:
    """All modules of the package by dotted name; a package is its __init__."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["minimask", *path.relative_to(PACKAGE).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = modules()


def imports(tree: ast.AST, importer: str) -> set[str]:
    """What a piece of module `importer` imports: modules of the package; of others, the top name."""
    package = importer if MODULES[importer].name == "__init__.py" else importer.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            within = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else source for name in within}
    return {name if name.split(".")[0] == "minimask" else name.split(".")[0] for name in found}


def at_module_level(name: str) -> set[str]:
    """What is imported when the module is: not what functions import, nor what only type checkers read."""
    found, waiting = set(), list(tree_of(name).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= imports(node, name)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += ast.iter_child_nodes(node)
    return found


@cache  # here and below: no module is read before a test needs it, and none twice
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imports_of(name: str) -> set[str]:
    return imports(tree_of(name), name)


def modules_imported_by(name: str) -> set[str]:
    return imports_of(name) & MODULES.keys()


def layer(name: str) -> int:
    top = name.split(".")[1] if "." in name else name
    places = [i for i, names in enumerate(LAYERS) if top in names.split()]
    assert places, f"{name} stands in no layer: give it a place in LAYERS"
    return places[0]


def test_the_walk_sees_the_package():
    assert len(MODULES) > 40 and "minimask.kernels.convolution" in MODULES
    assert "minimask.backend" in modules_imported_by("minimask.autograd")
    assert "minimask._version" in modules_imported_by("minimask.backend.machine"), (
        "imports inside functions count"
    )
    assert "minimask._version" not in at_module_level("minimask.backend.machine")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_own_layer_and_below(name):
    wrong = sorted(other for other in modules_imported_by(name) if layer(other) > layer(name))
    assert not wrong, f"{name} must not import {', '.join(wrong)}"


def test_imports_have_no_cycle():
    try:
        graphlib.TopologicalSorter({name: modules_imported_by(name) for name in MODULES}).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_the_backend_imports_cupy():
    importers = {name for name in MODULES if {"cupy", "cupyx"} & imports_of(name)}
    assert importers and {name.rpartition(".")[0] for name in importers} == {"minimask.backend"}


@pytest.mark.parametrize("name", MODULES)
def test_other_packages_are_imported_where_they_are_used(name):
    known = sys.stdlib_module_names | MODULES.keys()
    assert imports_of(name) - known <= NEEDED | OPTIONAL, "a dependency that setup.py does not name"
    assert at_module_level(name) - known <= NEEDED


def python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_minimask_loads_none_of_the_optional_packages():
    loaded = python(
        "import sys, minimask; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    ).split()
    assert "minimask" in loaded and "numpy" in loaded
    assert not set(loaded) & (OPTIONAL | {"torch", "torchvision", "pytest", "IPython"})


def test_every_module_can_be_imported_with_numpy_and_scipy_alone():
    names = [name for name in MODULES if name != "minimask.__main__"]
    code = """
import importlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # an import of it fails
for name in sys.argv[2].split(","):
    importlib.import_module(name)
from minimask.lessons.gradient_cases import run_table
assert run_table(["conv2d", "roi_align"], out=lambda line: None)
"""
    python(code, ",".join(OPTIONAL), ",".join(names))


@cache
def code_lines(name: str) -> set[int]:
    """The numbers of the lines that hold code: neither blank nor comments nor docstrings."""
    source = MODULES[name].read_text(encoding="utf-8")
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(name)):
        has_body = isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        if has_body and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


@pytest.mark.parametrize("name", MODULES)
def test_a_file_has_at_most_400_code_lines_and_a_function_60(name):
    assert len(code_lines(name)) <= 400
    for node in ast.walk(tree_of(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = len(code_lines(name) & set(range(node.lineno, node.end_lineno + 1)))
            assert length <= 60, f"{name}.{node.name} has {length} code lines"


@pytest.mark.parametrize("part", BUDGETS)
def test_each_part_of_the_package_keeps_its_budget(part):
    def part_of(name: str) -> str:
        return PARTS.get(name.split(".")[1] if "." in name else name, "the system")

    assert sum(len(code_lines(name)) for name in MODULES if part_of(name) == part) <= BUDGETS[part]


def test_each_room_says_what_lives_there_what_it_may_import_and_where_to_begin():
    rooms = [name for name, path in MODULES.items() if path.name == "__init__.py" and name.count(".") == 1]
    assert len(rooms) == 13
    for name in rooms:
        text = ast.get_docstring(tree_of(name))
        assert text and "Import" in text and "Begin with" in text, name
