"""Links from the built pages to the glossary: each term at its first use on a page.

Only running text counts: not headings, heads of tables, links, code, formulas, figures or folded code. A page
that already links a term keeps its own link if it comes first.
"""

import os
import re
from pathlib import Path

from masters.runtime.files import write_atomic

# What readers look up, with the anchor of its entry.
TERMS = {
    "arm": "arm",
    "replicate": "replicate",
    "profile": "profile",
    "register": "register",
    "rung": "ladder",
    "flat group": "flat-group",
    "policy weight": "policy-weight",
    "margin": "margin",
    "nats": "nats",
}
# Elements whose text stays as it is.
SKIPPED = re.compile(
    r"a|code|pre|script|style|h[1-6]|svg|math|button|nav|title|summary|caption|figcaption|dt|th|textarea"
)
LEFT = re.compile(r'class="[^"]*\b(math|cell_input|edition)\b')
VOID = ("area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr")
_TOKEN = re.compile(r"(<!--.*?-->|<[^>]*>)", re.DOTALL)
_WORDS = re.compile(rf"\b({'|'.join(TERMS)})(s?)\b")


def link_terms(folder: Path) -> None:
    """Rewrite the built pages of a folder in place; leave the API and the glossary itself as they are."""
    glossary = folder / "glossary.html"
    for path in folder.rglob("*.html"):
        parts = path.relative_to(folder).parts
        if path == glossary or parts[0] in ("_static", "generated") or len(parts) > 2:
            continue
        address = Path(os.path.relpath(glossary, path.parent)).as_posix()
        page = path.read_text(encoding="utf-8")
        linked = linked_page(page, address)
        if linked != page:
            write_atomic(path, linked)


def linked_page(page: str, address: str) -> str:
    """Return a page with a link at the first use of each term in its article.

    Args:
        page: HTML.
        address: the glossary's, relative to the page.
    """
    start = page.find("<article")
    end = page.find("</article>")
    if start < 0 or end < 0:
        return page
    missing = dict(TERMS)
    inside: list[str] = []
    made: list[str] = []

    def link(match: re.Match[str]) -> str:
        anchor = missing.pop(match[1], None)
        return f'<a class="term" href="{address}#term-{anchor}">{match[0]}</a>' if anchor else match[0]

    for token in _TOKEN.split(page[start:end]):
        if not token.startswith("<"):
            made.append(token if inside or not missing else _WORDS.sub(link, token))
            continue
        made.append(token)
        name = re.match(r"</?([a-zA-Z0-9-]+)", token)
        if name is None or name[1] in VOID:
            continue
        if found := re.search(r'glossary\.html#term-([\w-]+)"', token):
            missing = {term: anchor for term, anchor in missing.items() if anchor != found[1]}
        if token.startswith("</"):
            if inside and inside[-1] == name[1]:
                inside.pop()
        elif SKIPPED.fullmatch(name[1]) or name[1] in inside[-1:] or LEFT.search(token):
            inside.append(name[1])
    return page[:start] + "".join(made) + page[end:]
