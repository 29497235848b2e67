"""What CuPy 14 has: names, and the parameters of each function and method, read from `api.txt`.

``python -m tests.fake_cupy.api`` writes the file anew where CuPy is installed (it needs no GPU for that), and
a test compares the two.
"""

from __future__ import annotations

import inspect
import re
import types
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("api.txt")
# of the methods with two underscores those that our code can call
OPERATORS = set(
    "abs add and array array_ufunc array_function bool complex copy deepcopy divmod eq float floordiv"
    " format ge getitem gt iadd iand ifloordiv ilshift imod imul int invert ior ipow irshift isub iter"
    " itruediv ixor le len lshift lt matmul mod mul ne neg or pos pow radd rand rdivmod repr rfloordiv"
    " rlshift rmatmul rmod rmul ror rpow rrshift rshift rsub rtruediv rxor setitem str sub truediv xor"
    " index contains imatmul".split()
)


@cache
def api() -> dict[str, dict[str, inspect.Signature | str]]:
    """Kind -> name -> signature, or for a ufunc "inputs outputs"."""
    found: dict[str, dict] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        kind, entry = line.split(" ", 1)
        name, _, rest = entry.partition("(" if "(" in entry else " ")
        what = _signature(rest[:-1]) if "(" in entry else rest
        found.setdefault(kind, {})[name] = what
    return found


def _signature(parameters: str) -> inspect.Signature:
    return inspect.signature(eval(f"lambda {parameters}: None"))  # the file is ours


def real_api() -> list[str]:
    """The lines of `api.txt`, from the CuPy that is installed."""
    import cupy
    import cupyx

    lines = []
    for name in sorted(n for n in dir(cupy) if not n.startswith("_")):
        value = getattr(cupy, name)
        if isinstance(value, cupy.ufunc):
            lines.append(f"ufunc {name} {value.nin} {value.nout}")
        elif isinstance(value, types.ModuleType):
            lines.append(f"module {name}")
        else:
            lines.append(_line("value" if isinstance(value, type) else "function", name, value))
    for kind, module in (("linalg", cupy.linalg), ("cupyx", cupyx)):
        for name in sorted(n for n in dir(module) if not n.startswith("_")):
            if isinstance(getattr(module, name), types.FunctionType):
                lines.append(_line(kind, name, getattr(module, name)))
    for name in sorted(dir(cupy.ndarray)):
        value = getattr(cupy.ndarray, name)
        declared = re.match(r"(?:_ndarray_base|ndarray)\.\w+\((.*?)\)", value.__doc__ or "")
        if name.startswith("__") and name.strip("_") in OPERATORS:
            lines.append(f"operator {name}")
        elif not name.startswith("_"):
            lines.append(f"method {name}({_without_types(declared[1])})" if declared else f"attribute {name}")
    return [re.sub(r" \w+ at 0x\w+", "", line) for line in lines]


def _line(kind: str, name: str, value) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return f"{kind} {name}"
    if kind == "value":
        return f"{kind} {name}"
    parameters = [
        p.replace(annotation=p.empty, default=None if p.default is not p.empty else p.empty)
        for p in signature.parameters.values()
    ]
    text = str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return f"{kind} {name}{text}"


def _without_types(declared: str) -> str:
    """Parameters as Cython writes them, ``self, int axis=-1``, without types, and None for every default."""
    parameters = [p.strip().split("=") for p in declared.split(",")]
    return ", ".join(p[0].split()[-1] + ("=None" if len(p) > 1 else "") for p in parameters)


if __name__ == "__main__":
    FILE.write_text("\n".join(real_api()) + "\n", encoding="utf-8")
