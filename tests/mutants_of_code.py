"""Small changes to a piece of Python, one at a time: what a person who writes it might get wrong.

`mutants(text)` gives (what was changed, the changed text): comparisons, arithmetic, rounding, clamps, axes,
indices, numbers one off, names of the other axis, statements left out, sums assigned.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

COMPARISONS = {
    ast.Lt: [ast.LtE, ast.Gt],
    ast.LtE: [ast.Lt, ast.GtE],
    ast.Gt: [ast.GtE, ast.Lt],
    ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq],
    ast.In: [ast.NotIn],
}
OPERATORS = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Div],
    ast.Pow: [ast.Mult],
}
CALLS = {  # one function for another, by name or attribute
    "min": ["max"],
    "max": ["min"],
    "maximum": ["minimum"],
    "minimum": ["maximum"],
    "floor": ["ceil", "round"],
    "ceil": ["floor", "round"],
    "argmax": ["argmin"],
    "zeros": ["ones"],
    "zeros_like": ["ones_like"],
    "mean": ["sum"],
    "sum": ["mean"],
    "var": ["std"],
    "all": ["any"],
    "exp": ["log"],
    "log": ["exp"],
    "log1p": ["log"],
    "rounded": ["round", "math.floor", "int"],
    "int": ["round"],
}
TWINS = [  # what belongs to one axis, and what to the other
    *[("height", "width"), ("h", "w"), ("kh", "kw"), ("p", "q"), ("i", "j"), ("v", "u"), ("row", "column")],
    *[("rows", "columns"), ("top", "left"), ("bottom", "right"), ("y", "x"), ("y1", "x1"), ("y2", "x2")],
    *[("bin_h", "bin_w"), ("x1", "x2"), ("y1", "y2"), ("low", "high"), ("first", "last"), ("a", "b")],
    *[("size", "anchor_size"), ("center", "anchor_center"), ("gy", "x"), ("begin", "end")],
]
TWIN = {}
for one, other in TWINS:
    TWIN.setdefault(one, set()).add(other)
    TWIN.setdefault(other, set()).add(one)


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """Every single change to a text: (the changed line before -> after, the whole text)."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    original, seen = ast.unparse(tree), set()
    bound = {getattr(n, "id", None) or getattr(n, "arg", None) for n in nodes}
    for index, node in enumerate(nodes):
        for change in _changes(node, bound):
            mutant = ast.parse(text)
            change(list(ast.walk(mutant))[index])
            changed = ast.unparse(ast.fix_missing_locations(mutant))
            if changed != original and changed not in seen and _is_python(changed):
                seen.add(changed)
                yield _where(original, changed), changed


def _is_python(text: str) -> bool:
    try:
        return compile(text, "mutant", "exec") is not None
    except SyntaxError:  # a starred expression without its tuple
        return False


def _where(original: str, changed: str) -> str:
    """The lines that differ, in words."""
    before, after = original.splitlines(), changed.splitlines()
    while before and after and before[0] == after[0]:
        before, after = before[1:], after[1:]
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    return " -> ".join("; ".join(line.strip() for line in lines) for lines in (before, after))


def _become(name: str, value) -> Callable:
    """A change: set a field."""
    return lambda node: setattr(node, name, value)


def _replace(by: Callable) -> Callable:
    """A change: the node turns into another one."""

    def change(node):
        new = by(node)
        node.__class__, fields = new.__class__, vars(new).copy()
        node.__dict__.clear()
        node.__dict__.update(fields)

    return change


def _changes(node, bound: set[str]) -> Iterator[Callable]:
    if isinstance(node, ast.Compare):
        yield from _compared(node)
    elif isinstance(node, ast.BinOp):
        for operator in OPERATORS.get(type(node.op), []):
            yield _become("op", operator())
        yield _replace(lambda n: n.left)
        yield _replace(lambda n: n.right)
    elif isinstance(node, ast.UnaryOp):
        yield _replace(lambda n: n.operand)
    elif isinstance(node, ast.BoolOp):
        yield from (_replace(lambda n, i=i: n.values[i]) for i in range(len(node.values)))
    elif isinstance(node, ast.IfExp):
        yield _replace(lambda n: n.body)
        yield _replace(lambda n: n.orelse)
    elif isinstance(node, ast.Constant):
        yield from _numbers(node)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        yield from (_become("id", twin) for twin in sorted(TWIN.get(node.id, set()) & bound))
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Slice):
        yield from (_become(part, None) for part in ("lower", "upper", "step") if getattr(node, part))
    elif isinstance(node, ast.Tuple) and isinstance(node.ctx, ast.Load):
        yield from _tuples(node)
    elif isinstance(node, ast.AugAssign):
        yield _replace(lambda n: ast.Assign([n.target], n.value))
    yield from _statements(node)


def _compared(node: ast.Compare) -> Iterator[Callable]:
    for i, operator in enumerate(node.ops):
        for other in COMPARISONS.get(type(operator), []):
            yield lambda n, i=i, other=other: n.ops.__setitem__(i, other())


def _numbers(node: ast.Constant) -> Iterator[Callable]:
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        return
    others = (node.value + 1, node.value - 1) if isinstance(node.value, int) else (0.0, 2 * node.value)
    yield from (_become("value", other) for other in others)


def _calls(node: ast.Call) -> Iterator[Callable]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)
    for other in CALLS.get(name, []):
        if "." in other or isinstance(function, ast.Name) or other == "round":
            yield _become("func", ast.parse(other, mode="eval").body)
        else:
            yield lambda n, other=other: setattr(n.func, "attr", other)
    if node.args and name not in ("range", "enumerate"):
        yield _replace(lambda n: n.args[0])  # the call left out, or all but its first argument
    if len(node.args) == 2:
        yield _replace(lambda n: n.args[1])
        if name not in ("min", "max", "minimum", "maximum"):
            yield lambda n: n.args.reverse()
    if isinstance(function, ast.Attribute) and not isinstance(function.value, ast.Name):
        yield _replace(lambda n: n.func.value)
    for i in range(len(node.keywords)):
        yield lambda n, i=i: n.keywords.pop(i)


def _tuples(node: ast.Tuple) -> Iterator[Callable]:
    if len(node.elts) > 1:
        yield from (lambda n, i=i: n.elts.pop(i) for i in range(len(node.elts)))
        yield lambda n: n.elts.reverse()


def _statements(node) -> Iterator[Callable]:
    """Each statement left out; a condition always or never true; a loop that stops after its first turn."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and not isinstance(node, ast.Module):
        for i, statement in enumerate(body):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if not is_docstring and not isinstance(statement, ast.FunctionDef):
                yield lambda n, i=i: n.body.__setitem__(i, ast.Pass())
    if isinstance(node, ast.If):
        yield from (_become("test", ast.Constant(value)) for value in (True, False))
    if isinstance(node, ast.For):
        yield lambda n: n.body.append(ast.Break())
