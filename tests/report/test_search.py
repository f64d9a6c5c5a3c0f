"""Search entries: claims and arms lead to their anchors."""

from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes

from masters_book.report.search import add_entries


def test_named_rows_become_entries_of_the_search() -> None:
    page = new_document("page")
    html = (
        '<tr id="c10" data-entry="C10"><td>x</td></tr>\n<tr id="arm-a" data-entry="a&lt;b&gt;=1"><tr id="c9">'
    )
    page += nodes.paragraph("", "words")
    page += nodes.raw("", html, format="html")
    add_entries(page)
    (found,) = page.findall(addnodes.index)
    assert [(entry[1], entry[2]) for entry in found["entries"]] == [("C10", "c10"), ("a<b>=1", "arm-a")]
    assert page.index(found) == 1 and len(page) == 3


def test_other_html_has_none() -> None:
    page = new_document("page")
    page += nodes.raw("", '<p id="a">data-entry</p>', format="html")
    add_entries(page)
    assert not list(page.findall(addnodes.index))
