"""Tables that stay readable where the page is narrower than they are, and scroll.

A browser makes every column as narrow as its longest word before it lets a table scroll: sentences become
towers of one word a line, and "0.59 to 0.62" is torn. So cells are told apart here, and `site.css` gives
sentences a least width and keeps short entries on one line.
"""

from docutils import nodes
from sphinx.application import Sphinx

SHORT = 14  # characters that never need a second line: a number with its spread, a name
SENTENCE = 40  # characters from which on a cell makes its column one of sentences


def tell_cells_apart(app: Sphinx, doctree: nodes.document, document: str) -> None:
    """Short cells below the header get the class ``short-cell``, columns with sentences ``sentences``."""
    for group in doctree.findall(nodes.tgroup):
        rows = [list(row.findall(nodes.entry)) for row in group.findall(nodes.row)]
        if len({len(row) for row in rows}) != 1 or any("morecols" in cell for row in rows for cell in row):
            continue  # cells that span columns: none of ours do
        for column in zip(*rows, strict=True):
            lengths = [len(cell.astext()) for cell in column]
            for cell, length in zip(column, lengths, strict=True):
                if max(lengths) >= SENTENCE:
                    cell["classes"].append("sentences")
                elif length <= SHORT and not isinstance(cell.parent.parent, nodes.thead):
                    cell["classes"].append("short-cell")


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", tell_cells_apart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
