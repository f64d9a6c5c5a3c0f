"""The last step of the book: what Sphinx leaves too heavy or too vague in the built pages.

MathJax is loaded only where a formula is, and source maps are left out. Each picture of a notebook cell gets
its own alternative text, each SVG figure a variant for the dark scheme, each table scopes and a name, each
fold of the contents a name. For previews and search engines, each page has a description from its first
paragraph and a picture.
"""

import html
import os
import re
from pathlib import Path

from masters.runtime.files import write_atomic
from masters_book.figures.style import svg_in_dark
from masters_book.pages.first import PREVIEW

BETWEEN = " \u2016 "  # between the alternative texts of a cell's images
LONGEST = 200  # characters of a description


def finish(folder: Path) -> None:
    """Rewrite the built pages in a folder in place and delete source maps."""
    for path in folder.rglob("*.html"):
        if "_static" not in path.parts:
            page = in_both_schemes(finished(path.read_text(encoding="utf-8")), path.parent)
            preview = os.path.relpath(folder / PREVIEW, path.parent)
            tag = f'<meta property="og:image" content="{preview}">\n' if (folder / PREVIEW).is_file() else ""
            write_atomic(path, page.replace("</head>", f"{tag}</head>", 1))
    for path in folder.rglob("*.map"):
        path.unlink()
    for path in [*folder.rglob("*.js"), *folder.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        shorter = re.sub(r"\n?(//|/\*)# sourceMappingURL=\S+?\.map( ?\*/)?", "", text)
        if shorter != text:
            write_atomic(path, shorter)


def finished(page: str) -> str:
    """Return a built page with the changes that need no other file."""
    if not re.search(r'class="[^"]*\bmath\b', page):
        page = re.sub(r"<script[^>]*mathjax\.js[^>]*></script>\s*", "", page)
        page = re.sub(r"<script>window\.MathJax = .*?</script>\s*", "", page, flags=re.DOTALL)
    # The theme gives the folds of its contents no name.
    fold = r'(<a [^>]*>([^<]*)</a><details[^>]*>)<summary>(?=<span class="toctree-toggle")'
    page = re.sub(fold, r'\1<summary aria-label="Pages below \2">', page)
    return _described(_named_tables(_own_texts(page)))


def in_both_schemes(page: str, folder: Path) -> str:
    """Return a page with each of its SVG figures twice, for light and dark, and write the second kind.

    The theme shows one of the two by the classes ``only-light`` and ``only-dark``.

    Args:
        page: HTML of the page.
        folder: folder of the page.
    """

    def dark(match: re.Match[str]) -> str:
        path = (folder / html.unescape(match[2])).resolve()
        if not path.is_file() or "_static" in path.parts:
            return match[0]
        twin = path.with_stem(f"{path.stem}-dark")
        if not twin.is_file():
            write_atomic(twin, svg_in_dark(path.read_text(encoding="utf-8")))
        return f'{match[1]}="{match[2].removesuffix(".svg")}-dark.svg"'

    def both(match: re.Match[str]) -> str:
        second = re.sub(r'(src|srcset)="([^":]+\.svg)"', dark, match[0])
        if second == match[0]:
            return second
        second = second.replace("<img ", '<img loading="lazy" ')
        return _with_class(match[0], "only-light") + _with_class(second, "only-dark")

    return re.sub(r"<picture>.*?</picture>|<img [^>]*>", both, page, flags=re.DOTALL)


def _with_class(element: str, name: str) -> str:
    """Add a class to the image in an element."""

    def changed(match: re.Match[str]) -> str:
        image = match[0]
        if " class=" in image:
            return image.replace(' class="', f' class="{name} ', 1)
        return image.replace("<img ", f'<img class="{name}" ', 1)

    return re.sub(r"<img [^>]*>", changed, element, count=1)


def _named_tables(page: str) -> str:
    """Give each table without a caption the name of its section, and each header cell a scope."""
    section = ""

    def named(match: re.Match[str]) -> str:
        nonlocal section
        if match[1] is not None:
            section = " ".join(html.unescape(re.sub(r"<a .*?</a>|<[^>]+>", "", match[1])).split())
            return match[0]
        table = match[0]
        if "<caption" not in table and section and "aria-label" not in table:
            table = table.replace("<table", f'<table aria-label="{html.escape(section)}"', 1)
        if 'class="dataframe' in table:  # names of columns may break into lines
            table = re.sub(r"(?<=\w)_(?=\w)(?=[^<>]*<)", "_<wbr>", table)
        head, end, body = table.partition("</thead>")
        return _scoped(head, "col") + end + _scoped(body, "row") if end else table

    return re.sub(r"<h[1-6][^>]*>(.*?)</h[1-6]>|<table.*?</table>", named, page, flags=re.DOTALL)


def _scoped(rows: str, scope: str) -> str:
    return re.sub(r"<th(?![a-z])(?![^>]*\bscope=)", f'<th scope="{scope}"', rows)


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
