"""Fill the templates of the pages: headings in Markdown, everything else in HTML.

All text is escaped and put on one line. So text from profiles, models and data can neither be HTML nor end
the block of HTML around it, behind which it would be read as MyST.
"""

import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from masters_book.claims.table import shown, signed, span
from masters_book.figures.names import title_of


def _on_one_line(value: Any) -> Markup:
    return Markup(" ".join(escape(value).split()))


ENVIRONMENT = Environment(
    loader=PackageLoader("masters_book.pages"),
    autoescape=True,
    finalize=_on_one_line,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def _breakable(text: str) -> Markup:
    """Let a long name break into lines behind its signs; copied, it stays the same."""
    return Markup(re.sub(r"(?<=\w)([=,+_-])(?=\w)", r"\1<wbr>", str(escape(text))))


def _notebook(name: str) -> str:
    """Return "notebook 5" for 5_offline_rl."""
    return f"notebook {name.split('_')[0]}"


ENVIRONMENT.filters |= {"signed": signed, "shown": shown, "span": span}
ENVIRONMENT.filters["title_of"] = title_of
ENVIRONMENT.filters["notebook"] = _notebook
ENVIRONMENT.filters["breakable"] = _breakable


def fill(template: str, **values: Any) -> str:
    """Fill a template of ``masters_book/pages/templates``; line breaks in a table's cell become ``<br>``."""
    return ENVIRONMENT.get_template(template).render(values)


def paragraph(text: str) -> str:
    """Return text as an HTML paragraph, for notebooks."""
    return fill("paragraph.html", text=text)
