"""Links to the glossary: the first use of each term in running text, once per page, and nowhere else."""

import re
from pathlib import Path

from masters.runtime.files import ROOT
from masters_book.report.glossary import TERMS, link_terms, linked_page

ADDRESS = "../glossary.html"


def _page(body: str) -> str:
    return f"<p>arm</p><article>{body}</article><p>margin</p>"


def test_first_use_is_linked_and_no_other() -> None:
    page = linked_page(_page("<p>Two arms, each <em>arm</em>; alarms.</p>"), ADDRESS)
    assert page == _page(
        '<p>Two <a class="term" href="../glossary.html#term-arm">arms</a>, each <em>arm</em>; alarms.</p>'
    )


def test_headings_links_code_and_formulas_are_left_alone() -> None:
    body = (
        "<h2>Arms and margins<br></h2><th>arm</th><pre><span>arm</span></pre><a href=''>the <b>margin</b></a>"
        '<code>nats</code><div class="math"><div>arm</div>margin</div><!-- nats --><img alt="an arm">'
    )
    page = linked_page(_page(f"{body}<p>the margin</p>"), ADDRESS)
    assert body in page and page.count('class="term"') == 1 and page.endswith("<p>margin</p>")


def test_a_link_that_is_there_counts_as_the_first() -> None:
    body = '<p><a href="glossary.html#term-ladder"><span>ladder</span></a> with rungs, flat groups</p>'
    page = linked_page(_page(body), "glossary.html")
    assert "rungs</a>" not in page
    assert '<a class="term" href="glossary.html#term-flat-group">flat groups</a>' in page


def test_terms_have_entries() -> None:
    entries = re.findall(r"^(\S.*)\n  \S", (ROOT / "book" / "glossary.md").read_text(), re.MULTILINE)
    assert set(TERMS.values()) <= {entry.replace(" ", "-") for entry in entries}


def test_pages_of_a_folder(tmp_path: Path) -> None:
    for name in (
        "glossary.html",
        "index.html",
        "notebooks/one.html",
        "generated/api/x.html",
        "_static/x.html",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(_page("<p>a profile</p>"))
    link_terms(tmp_path)
    linked = [path for path in tmp_path.rglob("*.html") if 'class="term"' in path.read_text()]
    assert sorted(path.name for path in linked) == ["index.html", "one.html"]
    assert 'href="../glossary.html#term-profile"' in (tmp_path / "notebooks" / "one.html").read_text()
