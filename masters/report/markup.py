"""Text from files inside the pages of the book: it is shown as text, whatever characters it holds."""

import html
from collections.abc import Sequence


class Html(str):
    """A piece of a page that is HTML already; every other string is escaped."""


def escaped(text: str) -> Html:
    """Text as HTML that shows it; what is HTML already stays as it is."""
    return text if isinstance(text, Html) else Html(html.escape(text))


def link(address: str, text: str) -> Html:
    """A link to a page or a place of the book."""
    return Html(f'<a href="{html.escape(address)}">{escaped(text)}</a>')


def code(text: str) -> Html:
    """Something to type, or a name of the code."""
    return Html(f"<code>{escaped(text)}</code>")


def folded(summary: str, body: Html) -> Html:
    """A body that is shown when its summary is touched."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{body}</details>")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table in a box that scrolls when the page is too narrow for it."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escaped(cell)}</{tag}>" for cell in cells) + "</tr>"

    head, body = line(header, "th"), "\n".join(line(row, "td") for row in rows)
    whole = f'<table class="table">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    return Html(f'<div class="wide">{whole}</div>')


def plain(text: str) -> str:
    """Text inside MyST: nothing in it is read as markup."""
    return "".join(f"\\{character}" if character in r"\`*_{}[]<>#|$~" else character for character in text)
