"""Let the book's search find rows by name: claims and arms lead to their anchors.

Sphinx indexes the words of the generated HTML, but only whole pages. This extension adds an entry for each
element with an ``id`` and a name in ``data-entry``, such as ``<tr id="c10" data-entry="C10">``.
"""

import html
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

NAMED = re.compile(r'<\w+ id="([^"]+)" data-entry="([^"]+)"')


def setup(app: Any) -> dict[str, bool]:
    """Register the extension; Sphinx calls this."""
    app.connect("doctree-read", lambda app, doctree: add_entries(doctree))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def add_entries(doctree: nodes.document) -> None:
    """Add a search entry for each named element in the HTML of a page."""
    for raw in list(doctree.findall(nodes.raw)):
        entries = [
            ("single", html.unescape(name), anchor, "", None) for anchor, name in NAMED.findall(raw.astext())
        ]
        if entries:
            raw.parent.insert(raw.parent.index(raw), addnodes.index(entries=entries))
