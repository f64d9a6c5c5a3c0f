"""The last step of the book: what Sphinx leaves too heavy or too vague in the built pages.

MathJax is loaded only where a formula is, source maps are left out, each picture of a notebook cell gets its
own alternative text, and each page a description from its first paragraph.
"""

import html
import re
from pathlib import Path

from masters.runtime.files import write_atomic

BETWEEN = " \u2016 "  # between the alternative texts of a cell's images
LONGEST = 200  # characters of a description


def finish(folder: Path) -> None:
    """Rewrite the built pages in a folder in place and delete source maps."""
    for path in folder.rglob("*.html"):
        if "_static" not in path.parts:
            write_atomic(path, finished(path.read_text(encoding="utf-8")))
    for path in folder.rglob("*.map"):
        path.unlink()
    for path in [*folder.rglob("*.js"), *folder.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        shorter = re.sub(r"\n?(//|/\*)# sourceMappingURL=\S+?\.map( ?\*/)?", "", text)
        if shorter != text:
            write_atomic(path, shorter)


def finished(page: str) -> str:
    """Return a built page with these changes."""
    if not re.search(r'class="[^"]*\bmath\b', page):
        page = re.sub(r"<script[^>]*mathjax\.js[^>]*></script>\s*", "", page)
        page = re.sub(r"<script>window\.MathJax = .*?</script>\s*", "", page, flags=re.DOTALL)
    return _described(_own_texts(page))


def _own_texts(page: str) -> str:
    """Give the images of a cell, which all carry the cell's texts, one text each, in their order."""
    shown: dict[str, int] = {}

    def own(match: re.Match[str]) -> str:
        texts = match[1].split(BETWEEN)
        place = shown.get(match[1], 0)
        shown[match[1]] = place + 1
        return f'alt="{texts[place % len(texts)]}"'

    return re.sub(r'(?<=<img )alt="([^"]*)"', own, page)


def _described(page: str) -> str:
    """Add the description that search engines and previews show: the page's title and first paragraph."""
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    body = page[page.find("<article") :]
    first = re.search(r"<p>(.*?)</p>", body, re.DOTALL)
    if title is None or first is None:
        return page
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", first[1])).split())
    if len(words) > LONGEST:
        words = words[:LONGEST].rsplit(" ", 1)[0] + " ..."
    said = html.escape(words)
    tags = (
        f'<meta name="description" content="{said}">\n<meta property="og:description" content="{said}">\n'
        f'<meta property="og:title" content="{" ".join(title[1].split())}">\n'
        '<meta property="og:type" content="article">\n'
    )
    return page.replace("</head>", f"{tags}</head>", 1)
