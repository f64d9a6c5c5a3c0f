"""What is changed in built pages: lighter, described, and each picture with its own words."""

from pathlib import Path

from masters.report.finish import BETWEEN, finish, finished

HEAD = (
    "<html><head><title>A &amp; B</title>\n<script>window.MathJax = {\n}</script>\n"
    '<script defer="defer" src="mathjax.js"></script>\n</head>'
)


def test_mathjax_is_loaded_only_for_formulas() -> None:
    plain = finished(f"{HEAD}<article><p>No formula.</p></article>")
    assert "mathjax.js" not in plain and "window.MathJax" not in plain
    formula = finished(f'{HEAD}<article><p>A <span class="math notranslate">x</span>.</p></article>')
    assert "mathjax.js" in formula and "window.MathJax" in formula


def test_each_image_of_a_cell_has_its_own_text() -> None:
    image = f'<img alt="first{BETWEEN}second" src="x.png" />'
    page = finished(f'{image}\n{image}<img alt="alone" src="y.png" />')
    assert page == (
        '<img alt="first" src="x.png" />\n<img alt="second" src="x.png" /><img alt="alone" src="y.png" />'
    )


def test_a_page_is_described_by_its_first_paragraph() -> None:
    edition = '<p class="edition">Version</p>'
    page = finished(f"{HEAD}<article>{edition}<p>It <b>helps</b>, a &quot;bit&quot;\n&lt; 1.</p></article>")
    assert '<meta name="description" content="It helps, a &quot;bit&quot; &lt; 1.">' in page
    assert '<meta property="og:title" content="A &amp; B">' in page
    long = finished(f"{HEAD}<article><p>{'word ' * 100}</p></article>")
    assert 'word word ...">' in long and len(long) < 1500


def test_source_maps_are_left_out(tmp_path: Path) -> None:
    static = tmp_path / "_static"
    static.mkdir()
    (static / "a.js.map").write_text("{}")
    (static / "a.js").write_text("let a = 1;\n//# sourceMappingURL=a.js.map\n")
    (static / "a.css").write_text("a{}\n/*# sourceMappingURL=a.css.map*/\n")
    finish(tmp_path)
    assert not list(tmp_path.rglob("*.map"))
    assert (static / "a.js").read_text() == "let a = 1;\n" and (static / "a.css").read_text() == "a{}\n"
