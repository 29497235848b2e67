"""What the API's pages need beside autodoc and numpydoc.

The role of `single backticks` in docstrings: a link if they hold a documented name, code if not. And
signatures whose defaults are no expressions, which Sphinx could not read. And what the fields of a dataclass
say of themselves, for options state their meaning and range there.
"""

import ast
from dataclasses import fields, is_dataclass
from types import ModuleType

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole
from sphinx.util.inspect import signature as read_signature
from sphinx.util.inspect import stringify_signature

from minimask.config.tree import describe


class ObjectOrCode(SphinxRole):
    """A cross-reference that may lead nowhere: most of these are arguments."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        scope = {f"py:{key}": self.env.ref_context.get(f"py:{key}") for key in ("module", "class")}
        options = dict(refdomain="py", reftype="obj", reftarget=self.text, refdoc=self.env.docname)
        name = nodes.literal(self.text, self.text)
        return [addnodes.pending_xref("", name, **options, **scope, may_lead_nowhere=True)], []


def as_code(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.TextElement | None:
    return content if node.get("may_lead_nowhere") else None


class Omitted:
    """A default that only its code could show."""

    def __repr__(self) -> str:
        return "..."


def readable_signature(
    app: Sphinx, what: str, name: str, thing: object, options: dict, signature: str, returned: str | None
) -> tuple[str, str | None] | None:
    """Dots for defaults such as ``<factory>``, a dataclass's."""
    if what != "class" or not is_dataclass(thing):
        return None
    found = read_signature(thing)  # with the types that annotations name
    shown = [
        p if p.default is p.empty or _is_expression(repr(p.default)) else p.replace(default=Omitted())
        for p in found.parameters.values()
    ]
    return stringify_signature(
        found.replace(parameters=shown), show_return_annotation=False, unqualified_typehints=True
    ), returned


def _is_expression(text: str) -> bool:
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    return True


def with_meanings(app: Sphinx, what: str, name: str, thing: object, options: dict, lines: list[str]) -> None:
    """Parameters, for numpydoc to set, of a dataclass whose fields carry their own help."""
    if what != "class" or not is_dataclass(thing):
        return
    documented = [entry for entry in fields(thing) if "help" in entry.metadata]
    lines += ["", "Parameters", "----------"] if documented else []
    for entry in documented:
        lines += [entry.name, f"    {sentence(describe(entry))}"]  # the signature has type and default


def sentence(text: str) -> str:
    """An option's meaning with a capital and a full stop, its names as text: an asterisk is no emphasis."""
    text = text.replace("\\", "\\\\").replace("*", "\\*")
    return f"{text[0].upper()}{text[1:]}."


def is_left_out(app: Sphinx, what: str, name: str, thing: object, skip: bool, options: dict) -> bool | None:
    """Fields of named tuples, which the class describes, and modules kept as attributes, such as NumPy."""
    return True if isinstance(thing, ModuleType) or type(thing).__name__ == "_tuplegetter" else None


def setup(app: Sphinx) -> dict:
    app.add_role("object_or_code", ObjectOrCode())
    app.connect("missing-reference", as_code)
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("autodoc-skip-member", is_left_out)
    app.connect("autodoc-process-docstring", with_meanings, priority=400)  # before numpydoc's
    return {"parallel_read_safe": True, "parallel_write_safe": True}
