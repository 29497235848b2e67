"""The documentation site: ``pip install ".[docs]" && sphinx-build -W -b html docs site``.

Nothing is fetched, neither while it is built nor by a browser that reads it; notebooks are shown with the
outputs that were committed with them.
"""

import sys
from importlib.metadata import files
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))  # the API is that of this tree, whatever is installed

from minimask import __version__  # noqa: E402

project = "minimask"
author = "The minimask authors"
copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
    "api",
    "command_help",
    "notebook_pages",
    "repository",
    "tables",
]
exclude_patterns = ["_ext"]
nitpicky = True
# What other packages document: no inventories of theirs, which would have to be fetched.
nitpick_ignore_regex = [
    (r"py:.*", r"(np|numpy|collections|dataclasses|numbers|pathlib|typing|Image)\..*"),
]

# Markdown and notebooks
nb_execution_mode = "off"
nb_merge_streams = True
# Links as repository.py leaves them in the text; it resolves those of the last kind.
myst_url_schemes = ["http", "https", "mailto", "source"]
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_double_inline = True

# The API
default_role = "object_or_code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autosummary_generate = False
numpydoc_show_class_members = False
numpydoc_show_inherited_class_members = False
add_module_names = False
toc_object_entries_show_parents = "hide"
maximum_signature_line_length = 88
python_display_short_literal_types = True

# The pages
html_theme = "furo"
highlight_language = "text"  # of blocks that name none: mostly what a command prints
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "github-dark"
html_title = f"minimask {release}"
html_theme_options = {"navigation_with_keys": False}
html_copy_source = False
html_show_sphinx = False
html_css_files = ["site.css"]
# One file of MathJax, out of the wheel that has all of them: it draws SVG, so it needs no fonts either.
mathjax_path = "tex-svg-full.js"
MATHJAX = next(file for file in files("sphinx-mathjax-offline") or [] if file.name == mathjax_path)
html_static_path = ["_static", str(MATHJAX.locate())]
mathjax3_config = {"options": {"enableMenu": False}}
