"""The book: what is put in from the run's files, and the pages: clean, linked, from this host alone."""

import ast
import json
import pkgutil
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from claim_lines import claim_line, write_lines

import masters
import masters_book
from masters.runtime.files import ROOT
from masters.settings import load_profile
from masters_book.claims import table as claim_rows
from masters_book.claims.comparisons import COLUMNS
from masters_book.claims.verdicts import judge_claims, write_claims
from masters_book.pages.departures import departures_page, paragraphs
from masters_book.pages.first import (
    RESULTS,
    Judged,
    abstract,
    answer,
    claims_section,
    draw_claims,
    headline,
    in_short,
)
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.report import book
from masters_book.report.finish import BETWEEN
from masters_book.study.provenance import record_provenance

LOADING = ("src", "srcset", "href", "data", "poster")  # no srcset here has more than one address


class _Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.texts: list[str] = []  # alternative texts of images
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key, value in values.items() if key in ("id", "name") and value}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        elif tag != "a":
            self.loads += [str(values[key]) for key in LOADING if values.get(key)]
        if tag == "img":
            self.texts.append(values.get("alt") or "")


def _pages(folder: Path) -> Iterator[tuple[Path, _Page]]:
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts:
            yield path, _Page(path)


@pytest.mark.slow
def test_every_page_of_the_contents_is_built(built_book: Path) -> None:
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    assert [f"notebooks/{name}" for name in NOTEBOOKS] == [c for c in chapters if c.startswith("notebooks/")]
    for name in [contents["root"], *chapters]:
        assert (built_book / f"{name}.html").is_file()


@pytest.mark.slow
def test_links_within_the_book_lead_somewhere(built_book: Path) -> None:
    pages = {path.resolve(): page for path, page in _pages(built_book)}
    broken = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            # "#" alone is a button of the theme.
            anchor_lost = parts.fragment and target in pages and parts.fragment not in pages[target].anchors
            if not target.exists() or anchor_lost:
                broken.append(f"{path.relative_to(built_book)} -> {link}")
    assert not broken


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(built_book: Path) -> None:
    foreign = re.compile(r"^(https?:)?//")
    for path, page in _pages(built_book):
        assert not [link for link in page.loads if foreign.match(link)], path.name
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"unpkg|jsdelivr|cdnjs|googleapis|googletagmanager", text), path.name
    for style in built_book.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8")), (
            style.name
        )


@pytest.mark.slow
def test_pictures_have_words_and_pages_are_light(built_book: Path) -> None:
    seen = 0
    for path, page in _pages(built_book):
        text = path.read_text(encoding="utf-8")
        for words in page.texts:
            seen += 1
            assert len(words) > 20 and re.search(r"\d|^Images with", words), f"{path.name}: {words!r}"
            assert not re.search(r"\.(png|svg|jpe?g)\b|^\S*/\S*$", words), f"{path.name}: {words!r} is a path"
            assert BETWEEN not in words, path.name
        assert ("mathjax.js" in text) == bool(re.search(r'class="[^"]*\bmath\b', text)), path.name
        if path.name not in ("search.html", "genindex.html"):
            assert '<meta name="description" content="' in text, path.name
    assert seen > 20
    assert not list(built_book.rglob("*.map"))


@pytest.mark.slow
def test_text_from_the_run_is_shown_as_text(built_book: Path) -> None:
    page = (built_book / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;bold&lt;/b&gt; claim &amp; $x_1$ `code` *star* | pipe" in page
    assert "<b>bold</b>" not in page


@pytest.mark.slow
def test_front_page_counts_the_verdicts(built_book: Path) -> None:
    page = (built_book / "index.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]+>", "", page).split())
    counted = "5 claims: 1 supported, 1 not supported, 1 reversed, 1 undecided"
    assert f"It tested 4 of the paper's {counted}" in text


def test_every_module_is_in_the_api() -> None:
    modules = {
        name
        for package in (masters, masters_book)
        for name in (
            package.__name__,
            *(info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")),
        )
    }
    modules -= {"masters.cli.__main__"}
    documented = re.findall(r"automodule:: (\S+)", (ROOT / "book" / "api.md").read_text())
    assert sorted(documented) == sorted(modules)


def test_claims_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "claims.csv"
    with pytest.raises(ValueError, match=r"claims\.csv is missing: run `make reproduce PROFILE="):
        claim_rows.read_claims(path)
    path.write_text("id,statement\nC1,x\n")
    short = {name: value for name, value in claim_line(1, "supported").items() if name not in ("p", "seeds")}
    write_lines(path, [short])
    with pytest.raises(ValueError, match="no column p, seeds: delete it and run `make reproduce PROFILE="):
        claim_rows.read_claims(path)
    write_lines(path, [claim_line(1, "proven")])
    with pytest.raises(ValueError, match="line 2: verdict is 'proven', not one of supported, "):
        claim_rows.read_claims(path)


def test_frame_is_what_was_judged(tmp_path: Path) -> None:
    judged = judge_claims(pd.DataFrame(columns=COLUMNS))
    write_claims(judged, tmp_path / "claims.csv")
    read = claim_rows.read_claims(tmp_path / "claims.csv")
    pd.testing.assert_frame_equal(read[list(judged)], judged, check_dtype=False)


def test_first_page_says_what_the_file_says(example_claims: Path) -> None:
    frame = claim_rows.read_claims(example_claims)
    smoke, effects = load_profile("smoke"), pd.DataFrame(columns=COLUMNS)
    own = Judged("Your run (smoke)", frame, effects, {"masters": "beta <0.1>"})
    page = re.sub(r">\s+<", "><", claims_section(smoke, own))
    assert '<tr id="c1" data-entry="C1"><th scope="row">C1. a &lt;b&gt;bold' in page
    assert (
        '<td data-label="Paper">+1.3 points</td><td data-label="Ours">+0.4 points <br>(-0.2 to +1.0)</td>'
        in page
    )
    assert '<span class="verdict not-supported">not supported</span>' in page
    assert '<a href="notebooks/7_claims.html#c1">C1 in full</a>' in page
    assert "<li>C1: a &lt;b&gt;bold" in page, "claims on which sampled answers disagree"
    assert "<code>masters train smoke r_max=0.4 --seed 0</code>" in page
    assert f'href="notebooks/5_offline_rl.html#{RESULTS}"' in page
    assert '<th scope="col">Your run (smoke)</th>' in page
    # A longer run fills the table, and its verdicts stand first in the fold; what it lacks is ours.
    other = frame[frame["id"] != "C1"].assign(verdict="reversed", ours="-9.5", paper="+7.7")
    study = Judged("A <longer> other run", other, effects, {}, "study", "Replicates: <7>.")
    page = re.sub(r">\s+<", "><", claims_section(smoke, own, study))
    assert "Replicates: &lt;7&gt;. Effects have" in page
    assert "<caption>The paper's claims and what <em>A &lt;longer&gt; other run</em> found.</caption>" in page
    assert 'A &lt;longer&gt; other run</th><th scope="col">Your run (smoke)</th>' in page
    assert page.count('<span class="verdict reversed">reversed</span>') == len(frame) - 1
    assert page.count("<td>reversed<br>-9.5</td>") == len(frame) - 1
    assert page.count('"Ours">-9.5 points') == page.count('"Paper">+7.7 points') == len(frame) - 1
    assert '<a href="study.html#c2">C2 in full</a>' in page
    assert "<code>masters train smoke r_max=0.4 --seed 0</code>" in page


def test_first_page_opens_with_the_figure_and_its_edition(example_claims: Path, tmp_path: Path) -> None:
    frame = claim_rows.read_claims(example_claims)
    effects = pd.DataFrame(columns=COLUMNS)
    page = headline(Judged("x", frame, effects, {}), None, tmp_path / "claims.svg")
    assert "C5 not tested: paper +1.3 points." in page, "the figure's alternative text"
    assert f"Version {masters.__version__}, commit <code>" in page and "license Apache-2.0" in page
    assert "C1: +0.4 points, -0.2 to +1.0" in page and "It was not tested" in page
    assert (tmp_path / "claims.svg").is_file() and (tmp_path / "claims-narrow.svg").is_file()
    assert "<b>bold" not in page


def test_three_sentences_say_what_helps_and_what_hurts() -> None:
    pairs = [("masters", "base", 1.6), ("naive_multi", "base", 2.1), ("masters", "naive_multi", -0.4)]
    rows = [
        ["helps", *pair, "accuracy", effect, effect - 0.2, effect + 0.2, 9.0, 10] for *pair, effect in pairs
    ]
    rows += [
        ["C10", "masters", "responses=2", "accuracy", 1.1, 0.7, 1.4, 9.0, 10],
        ["C12", "masters=skewed_kl", "alone=skewed_kl", "accuracy", -0.5, -1.0, -0.02, 9.0, 5],
        ["C13", "masters", "large", "accuracy", -32.0, -36.0, -28.0, 9.0, 10],
        ["C13", "masters", "mid", "accuracy", -22.0, -26.0, -18.0, 9.0, 10],
    ]
    effects = pd.DataFrame([[*row, *[None] * 4] for row in rows], columns=COLUMNS).astype({"sampled": float})
    effects = effects.astype(dict.fromkeys(("sampled_low", "sampled_high", "gap"), float))
    columns = ["effect", "treatment", "control", "points", "low", "high"]
    places = pd.DataFrame(
        [
            ["rewards", "masters+learning_rate=1e-04", "masked+learning_rate=1e-04", -6.6, -8.7, -4.4],
            ["rewards", "masters+steps=3000", "masked+steps=3000", -0.9, -1.5, -0.4],
            ["rewards", "masters", "masked", -0.5, -1.0, 0.02],
            ["masking", "masked", "naive_multi", 0.1, -0.1, 0.3],
        ],
        columns=columns,
    )

    def answers(places: pd.DataFrame | None = None) -> list[str]:
        return [words for _, words in abstract(Judged("x", judge_claims(effects), effects, {}), places)]

    whether, helps, hurts = answers()
    assert whether == (
        "Training with Masters helps the student, but mask and rewards lower the score of plain "
        "distillation, each at its own learning rate: +1.6 points (+1.4 to +1.8) over the student before "
        "training, -0.4 points (-0.6 to -0.2) over distillation on as many responses."
    )
    assert helps == (
        "Eight responses per question beat two (C10: +1.1 points, +0.7 to +1.4; equal steps, not equal "
        "computation). 1 of 2 tested claims that something improves accuracy are supported."
    )
    below = "Masters with skewed KL scores below skewed KL alone (C12: -0.5 points, -1.0 to -0.02"
    assert hurts == f"No claim is reversed. {below}; less than the margin).", "a larger model is no change"
    assert answers(places)[2].endswith(
        "On the map of settings, not corrected, intervals below zero: rewards in 2 of 3 pairs of arms (most "
        "of all Masters, learning rate 1e-04 against mask-progressive, learning rate 1e-04: -6.6 points)."
    )
    effects.loc[effects["id"] == "C12", ["effect", "effect_low", "effect_high"]] = [-4.0, -4.5, -3.5]
    hurts = answers()[2]
    assert hurts == "Masters with skewed KL scores below skewed KL alone (C12: -4.0 points, -4.5 to -3.5)."


def test_first_page_answers_whether_the_method_helps(tmp_path: Path) -> None:
    pairs = [("masters", "base"), ("naive_multi", "base"), ("masters", "naive_multi")]

    def page(*effects: tuple[float, float, float]) -> str:
        rows = [
            ["helps", *pair, "accuracy", *effect, 9.0, 10, 3.1, 2.2, 4.0, 30.0]
            for pair, effect in zip(pairs, effects, strict=True)
        ]
        frame = pd.DataFrame(rows, columns=COLUMNS)
        return answer(Judged("The <study>", frame, frame, {"masters": "policy weight 0.03"}))

    assert page((1.6, 0.9, 2.4), (2.1, 1.1, 3.0), (-0.4, -0.9, 0.1)) == (
        "Training with Masters helps: +1.6 points (+0.9 to +2.4; sampled +3.1, +2.2 to +4.0) over the "
        "student before training. Distillation on as many responses without mask and rewards gives +2.1 "
        "points (+1.1 to +3.0; sampled +3.1, +2.2 to +4.0). Mask and rewards together change it by -0.4 "
        "points (-0.9 to +0.1; sampled +3.1, +2.2 to +4.0): no established effect. "
        "Masters was trained with policy weight 0.03."
    )
    assert "Training with Masters harms: -1.0 points" in page((-1, -2, -0.5), (0, -1, 1), (-1, -2, -0.5))
    assert "+4.0): they harm. Masters" in page((-1, -2, -0.5), (0, -1, 1), (-1, -2, -0.5))
    none = page((0.1, -0.2, 0.4), (0, -1, 1), (1.0, 0.2, 1.8))
    assert "Training with Masters has no established effect: +0.1 points" in none
    assert "sampled +3.1, +2.2 to +4.0): they help. Masters was" in none
    nothing = pd.DataFrame(columns=COLUMNS)
    assert answer(Judged("x", nothing, nothing, {})) == in_short(Judged("x", nothing, nothing, {})) == ""
    rows = [["helps", *pair, "accuracy", 1.0, 0.5, 1.5, 9.0, 10, 0, 0, 0, 30.0] for pair in pairs]
    found = pd.DataFrame(rows, columns=COLUMNS)
    assert in_short(Judged("x", found, found, {})) == (
        "Training with Masters helps the student, and mask and rewards raise the score of plain "
        "distillation, each at its own learning rate."
    )


def test_picture_has_the_same_bytes_for_the_same_claims(example_claims: Path, tmp_path: Path) -> None:
    frame = claim_rows.read_claims(example_claims)
    for folder in ("first", "second"):
        draw_claims(frame, tmp_path / folder / "claims.svg")
    draw_claims(frame.assign(effect=0.3), tmp_path / "other" / "claims.svg")
    for name in ("claims.svg", "claims-narrow.svg"):
        first, second, other = ((tmp_path / f / name).read_bytes() for f in ("first", "second", "other"))
        assert first == second != other


@pytest.mark.slow
def test_first_page_shows_the_picture_of_the_claims(built_book: Path) -> None:
    page = _Page(built_book / "index.html")
    assert "claims.svg" in page.loads and "claims-narrow.svg" in page.loads
    assert (built_book / "claims.csv").read_text().startswith("id,statement")


def test_every_module_that_departs_is_on_the_page() -> None:
    page = departures_page(ROOT / "book" / "api.md", ROOT)
    sections = dict(re.findall(r"^### (\S+)\n\n```{eval-rst}\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL))
    departing = 0
    for path in (path for part in ("masters", "masters_book") for path in (ROOT / part).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not re.search("^(Departures from the paper|Choices where the paper is silent)", docstring, re.M):
            assert module not in sections
            continue
        departing += 1
        # Whole, in words: emphasis and line breaks aside.
        said = " ".join(sections[module].replace("**", "").split())
        for block in re.split(r"\n\n(?=\S)", docstring):
            if re.match("Departures from the paper|Choices where the paper is silent", block):
                assert " ".join(block.split()) in said, module
    assert departing == len(sections) > 5


def test_a_paragraph_ends_where_the_next_begins() -> None:
    docstring = """One idea.

Departures from the paper, both tested:
    * One, which is
      long.

    * Two.

Choices where the paper is silent: a choice,
told in two lines.

Something else.
    * Not a choice."""
    assert paragraphs(docstring) == [
        "**Departures from the paper**, both tested:\n\n* One, which is\n  long.\n\n* Two.",
        "**Choices where the paper is silent**: a choice,\ntold in two lines.",
    ]


def test_a_module_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "api.md").write_text(".. automodule:: masters.gone\n")
    with pytest.raises(ValueError, match=r"the API page names masters\.gone, but there is no .*gone\.py"):
        departures_page(tmp_path / "api.md", ROOT)


def test_provenance_page_shows_what_the_run_recorded(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    for name in ("1_tasks_and_models", "2_masking_ablations"):
        record_provenance(path, name, {"profile": "x"}, 1.7e9, 2.5, {"shapes": "0123456789abcdef"})
    page = book.provenance_page("x", json.loads(path.read_text()), {"2_masking_ablations": 4.75})
    page = page.replace("<wbr>", "")
    for text in (
        "5.0 minutes in total with nothing cached, 4.75 expected",
        "<td>4.75</td>",
        "2_masking_ablations",
        "2023-11-14 22:13:20",
        "0123456789abcdef",
        "torch",
    ):
        assert text in page
    assert "no record" in book.provenance_page("x", {}, {})
