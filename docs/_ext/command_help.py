"""``.. command-help::``, what ``minimask --help`` and ``minimask COMMAND --help`` print."""

import contextlib
import io
import os
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from minimask.command import cli

WIDTH = 96  # characters a line, whatever terminal the site is built in


def help_of(*command: str) -> str:
    """What the command prints."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = cli.main([*command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    assert status == 0, command
    return printed.getvalue()


class CommandHelp(SphinxDirective):
    """A block for the command, and a section for each of its subcommands."""

    def run(self) -> list[nodes.Node]:
        whole = help_of()
        names = re.findall(r"^    ([a-z-]+) ", whole.partition("\ncommands:\n")[2], re.M)
        assert names, "the help lists no commands"
        return [self.block(whole), *(self.section(name) for name in names)]

    def block(self, text: str) -> nodes.literal_block:
        return nodes.literal_block(text, text, language="text", classes=["command-help"])

    def section(self, name: str) -> nodes.section:
        title = f"minimask {name}"
        section = nodes.section("", nodes.title(title, title), self.block(help_of(name)), names=[title])
        self.state.document.note_implicit_target(section, section)
        return section


def setup(app: Sphinx) -> dict:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
