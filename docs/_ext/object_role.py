"""The role of `single backticks` in docstrings: a link if they hold a documented name, code if not."""

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxRole


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
    if node["reftarget"] in ("dict[str","tuple[float"): print(node.document["source"], node.parent.parent.astext()[:300])
    return content if node.get("may_lead_nowhere") else None


def setup(app: Sphinx) -> dict:
    app.add_role("object_or_code", ObjectOrCode())
    app.connect("missing-reference", as_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
