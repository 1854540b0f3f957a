"""Sphinx configuration of the documentation site and the manual page: `tox -e docs`."""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from docutils import nodes  # noqa: E402  (the path is set above)

from ipcsrv import __version__  # noqa: E402

project = "ipcsrv"
author = "the ipcsrv authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "pages_from_code"]
exclude_patterns = ["_build"]
smartquotes_action = "qe"  # no dashes: `--log-level` in a text is an option
default_role = "py:obj"  # `name` in a docstring links to that name's entry
suppress_warnings = ["myst.xref_missing"]  # replaced by the stricter check of tests/unit/test_docs.py

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"ipcsrv {release}"
html_static_path = ["_static"]
html_css_files = ["ipcsrv.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

man_pages = [("commands", "ipcsrv", "local IPC server with a pool of worker processes", [], 1)]


def _literal_quotes(app, what, name, obj, options, lines):
    """Make `text` in a docstring literal where it is no name of an object: `--flag`, `ERR <code>`, `status --json`."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(?<![`:\w])`(?![\w.]+`)([^`]+)`(?!`)", r"``\1``", line)


def _links_to_pages(app, what, name, obj, options, lines):
    """Make a link of `docs/PAGE.md` in a docstring."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"\bdocs/([\w-]+)\.md\b", r":doc:`/\1`", line)


def _no_constructor(app, what, name, obj, options, signature, result):
    """Show no arguments for a class that programs do not construct."""
    return ("", "") if what == "class" and name.endswith(".Connection") else None


def _links_as_text(app, doctree, docname):
    """Leave the text of links to other pages, which a manual page cannot follow."""
    if app.builder.name == "man":
        for link in list(doctree.findall(nodes.reference)):
            if link.get("internal"):
                link.replace_self(link.children)


def _figures_keep_their_units(app, doctree, docname):
    """Keep a number and its unit on one line in tables, also on a phone: `13 ms`."""
    if app.builder.format == "html":
        for entry in doctree.findall(nodes.entry):
            for text in list(entry.findall(nodes.Text)):
                if not isinstance(text.parent, nodes.literal):  # code is copied as it is
                    kept = re.sub(r"(?<=\d) (?=(?:[nµm]?s|[kKMG]i?B|min|calls/s|requests/s)\b)", "\u00a0", text)
                    text.parent.replace(text, nodes.Text(kept))


def setup(app):
    """Register the changes to autodoc."""
    app.connect("doctree-resolved", _links_as_text)
    app.connect("doctree-resolved", _figures_keep_their_units)
    app.connect("autodoc-process-signature", _no_constructor)
    app.connect("autodoc-process-docstring", _literal_quotes, priority=100)
    app.connect("autodoc-process-docstring", _links_to_pages, priority=110)
