"""What is changed in built pages: lighter, described, and each picture with its own words."""

from pathlib import Path

from masters_book.report.finish import BETWEEN, finish, finished, in_both_schemes

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


def test_svg_figures_have_a_variant_for_the_dark_scheme(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text('<svg width="1"><path style="fill: #ffffff"/></svg>')
    (tmp_path / "a-narrow.svg").write_text("<svg ></svg>")
    picture = '<picture><source srcset="a-narrow.svg">\n<img src="a.svg" alt="x"></picture>'
    others = '<img src="b.png" alt="y"><img src="gone.svg" alt="z">'
    page = in_both_schemes(f'<p>{picture}{others}<img class="c" src="a.svg" /></p>', tmp_path)
    light = picture.replace("<img", '<img class="only-light"')
    dark = picture.replace("a.svg", "a-dark.svg").replace("narrow", "narrow-dark")
    dark = dark.replace("<img", '<img class="only-dark" loading="lazy"')
    last = (
        '<img class="only-light c" src="a.svg" /><img loading="lazy" class="only-dark c" src="a-dark.svg" />'
    )
    assert page == f"<p>{light}{dark}{others}{last}</p>"
    assert "#121212" in (tmp_path / "a-dark.svg").read_text() and (tmp_path / "a-narrow-dark.svg").is_file()


def test_tables_have_a_name_and_scopes() -> None:
    table = (
        '<table class="dataframe"><thead><tr><th>a_b</th></tr></thead><tr><th>r</th><td>c_d</td></tr></table>'
    )
    page = finished(f'<h2>Rewards &amp; <em>more</em><a class="headerlink" href="#x">#</a></h2>{table}')
    assert '<table aria-label="Rewards &amp; more" class="dataframe">' in page
    assert '<th scope="col">a_<wbr>b</th>' in page and '<th scope="row">r</th><td>c_<wbr>d</td>' in page
    named = '<table><caption>x</caption><thead><tr><th scope="col">a</th></tr></thead></table>'
    assert finished(f"<h2>Rewards</h2>{named}") == f"<h2>Rewards</h2>{named}"


def test_pages_have_a_picture_for_previews(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    for name in ("index.html", "notebooks/a.html"):
        (tmp_path / name).write_text(HEAD)
    finish(tmp_path)
    assert "og:image" not in (tmp_path / "index.html").read_text(), "no picture was drawn"
    (tmp_path / "preview.png").write_bytes(b"")
    finish(tmp_path)
    assert '<meta property="og:image" content="preview.png">' in (tmp_path / "index.html").read_text()
    assert 'og:image" content="../preview.png">' in (tmp_path / "notebooks" / "a.html").read_text()


def test_folds_of_the_contents_have_a_name() -> None:
    link = '<a class="x" href="a.html">API</a>'
    fold = f'{link}<details>{{}}<span class="toctree-toggle"></span></summary></details>'
    named = fold.format('<summary aria-label="Pages below API">')
    assert finished(fold.format("<summary>")) == named
