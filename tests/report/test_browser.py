"""The built pages in a headless Chromium, on desktop and phone: quiet, whole, no wider than the screen."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masters_book.claims.claims import CLAIMS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# One page of each kind, where one is like another.
KINDS = [
    "index.html",
    "imitation.html",
    "method.html",
    "notebooks/4_reward_design.html",
    "earlier.html",
    "study.html",
    "responses.html",
    "verdicts.html",
    "your_models.html",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)"),
]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(built_book: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(built_book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def _names(built_book: Path) -> list[str]:
    found = [path.relative_to(built_book) for path in built_book.rglob("*.html")]
    return sorted(str(path) for path in found if path.parts[0] != "_static")


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_are_whole(browser: Any, address: str, built_book: Path, width: int) -> None:
    problems: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on(
        "console", lambda message: message.type == "error" and problems.append(f"console: {message.text}")
    )
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    # Aborted is what is still on its way, such as the favicon, when the next page is opened. A file that is
    # not there is an error of the console.
    page.on(
        "requestfailed",
        lambda request: request.failure == "net::ERR_ABORTED" or problems.append(f"failed: {request.url}"),
    )
    page.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or problems.append(
        f"another host: {request.url}"
    ))  # fmt: skip
    equations = 0
    for name in _names(built_book):
        page.goto(f"{address}/{name}", wait_until="load")
        if page.locator(".math").count():
            page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            page.evaluate("MathJax.startup.promise")
        seen = page.evaluate(
            """async () => {
                const images = [...document.querySelectorAll('article img')];
                images.forEach(image => image.loading = 'eager');
                await Promise.all(images.map(image => image.decode().catch(() => null)));
                const maths = [...document.querySelectorAll('.math')].filter(node => node.textContent.trim());
                return {
                    wide: document.documentElement.scrollWidth - window.innerWidth,
                    broken: images.filter(image => !image.naturalWidth).map(image => image.src),
                    maths: maths.length,
                    unrendered: maths.filter(node => !node.querySelector('mjx-container svg')).length,
                    errors: document.querySelectorAll('[data-mml-node="merror"]').length,
                };
            }"""
        )
        equations += seen["maths"]
        if seen["wide"] > 0:
            problems.append(f"{name} is {seen['wide']} px wider than the screen")
        problems += [f"{name}: figure {source} did not load" for source in seen["broken"]]
        if seen["unrendered"] or seen["errors"]:
            problems.append(
                f"{name}: {seen['unrendered']} equations not rendered, {seen['errors']} with errors"
            )
    page.close()
    assert not problems
    assert equations, "no page has an equation, so this test looked at none"


@pytest.mark.parametrize(
    ("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
)
def test_axe_finds_no_serious_faults(
    browser: Any, address: str, built_book: Path, width: int, scheme: str
) -> None:
    """WCAG and best practices by axe-core, with every fold open: all pages, then one of each kind."""
    from axe_playwright_python.sync_playwright import Axe

    axe, faults = Axe(), []
    names = _names(built_book)
    assert set(KINDS) < set(names)
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.emulate_media(reduced_motion="reduce")  # colors of a fold that fades in are not its colors
    for name in names if (width, scheme) == (1280, "light") else KINDS:
        page.goto(f"{address}/{name}", wait_until="load")
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        page.evaluate("() => MathJax.startup.promise" if page.locator(".math").count() else "null")
        page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        found = axe.run(page).response["violations"]
        faults += [
            f"{name}: {one['id']} at {', '.join(str(node['target']) for node in one['nodes'][:3])}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
    page.close()
    assert not faults


def test_nothing_is_cut_on_a_desktop_or_on_paper(browser: Any, address: str, built_book: Path) -> None:
    """No table scrolls at 1280 px. In print nothing scrolls or is wider than A4, and folds are open.

    Those of run keys stay closed: each is a file's column, and they would double the study's pages.
    """
    cut = []
    look = """() => [...document.querySelectorAll('article *')]
        .filter(box => box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 1
            && getComputedStyle(box).overflowX !== 'visible')
        .map(box => `${box.tagName}.${box.className}: ${box.scrollWidth} > ${box.clientWidth}`)"""
    closed = """() => [...document.querySelectorAll('article details:not(.keys) > :not(summary)')]
        .filter(inside => inside.textContent.trim() && !inside.checkVisibility()).length"""
    desktop = browser.new_page(viewport={"width": 1280, "height": 900})
    paper = browser.new_page(viewport={"width": 718, "height": 1000}, color_scheme="dark")
    paper.emulate_media(media="print")
    for name in _names(built_book):
        desktop.goto(f"{address}/{name}", wait_until="load")
        desktop.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        cut += [
            f"{name}: {words}" for words in desktop.evaluate(look) if not words.startswith(("PRE", "CODE"))
        ]
        paper.goto(f"{address}/{name}", wait_until="load")
        cut += [f"{name} on paper: {words}" for words in paper.evaluate(look)]
        cut += [f"{name} on paper: {number} closed" for number in [paper.evaluate(closed)] if number]
        wide = paper.evaluate("document.documentElement.scrollWidth - innerWidth")
        cut += [f"{name} on paper is {wide} px too wide"] if wide > 0 else []
    desktop.close()
    paper.close()
    assert not cut


def test_filters_of_the_responses(browser: Any, built_book: Path) -> None:
    """They work from a file, by keyboard, and without JavaScript everything is shown."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto((built_book / "responses.html").as_uri(), wait_until="load")
    shown = page.locator(".answered tbody tr:visible")
    everything = shown.count()
    page.get_by_label("source").focus()
    page.keyboard.type("student")
    assert shown.count() == everything / 2
    assert (
        page.locator("[data-count]").inner_text().startswith(f"{everything // 2} of {everything} responses")
    )
    assert {row.locator("td").first.inner_text() for row in shown.all()} == {"student"}
    page.get_by_label("verdict").select_option("correct")
    assert all("correct" in row.inner_text() for row in shown.all())
    page.get_by_role("button", name="Show all").press("Enter")
    page.wait_for_function(
        f"document.querySelectorAll('.answered tbody tr:not([hidden])').length == {everything}"
    )
    page.close()
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto((built_book / "responses.html").as_uri(), wait_until="load")
    assert plain.locator(".answered tbody tr:visible").count() == everything
    assert not plain.locator("form.filters").is_visible()
    plain.context.close()


def test_tables_sort_by_their_buttons(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/study.html", wait_until="load")
    table = page.locator("table.sortable:visible").first
    for sense, sign in (("ascending", 1), ("descending", -1)):
        table.get_by_role("button", name="Above base").press("Enter")
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == sense
        cells = [cell for cell in table.locator("tbody td:nth-child(2)").all_inner_texts() if cell]
        numbers = [sign * float(cell.split()[0]) for cell in cells]
        assert len(numbers) > 10 and numbers == sorted(numbers)
    page.close()


@pytest.mark.parametrize(
    ("query", "target"), [("C10", "study.html#c10"), ("naive_multi", "#arm-naive-multi")]
)
def test_search_leads_to_the_row(browser: Any, address: str, query: str, target: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/search.html?q={query}", wait_until="load")
    # The results appear one after the other, so the test waits for the one that it asks for.
    page.wait_for_selector(f'#search-results li a[href$="{target}"]')
    page.close()


def test_search_finds_a_page(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/search.html?q=verdict", wait_until="load")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results li a").count() >= 1
    page.close()


def test_the_picture_of_the_claims_is_whole_in_its_notebook(browser: Any, address: str) -> None:
    """Every claim has its words left of the axes, and nothing is cut at the edges of the picture."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/notebooks/7_claims.html", wait_until="load")
    seen = page.evaluate(
        """async () => {
            const images = [...document.querySelectorAll('.cell_output img')];
            const image = images[images.length - 1];
            image.loading = 'eager';
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d');
            context.fillStyle = 'white';
            context.fillRect(0, 0, canvas.width, canvas.height);
            context.drawImage(image, 0, 0);
            const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
            const dark = (x, y) => data[4 * (y * width + x)] < 140;
            // Lines of text in the left third: runs of rows with dark pixels.
            let lines = 0, inside = false;
            for (let y = 0; y < height; y++) {
                let ink = false;
                for (let x = 0; x < width / 3; x++) ink ||= dark(x, y);
                if (ink && !inside) lines++;
                inside = ink;
            }
            let cut = 0;
            for (let y = 0; y < height; y++) cut += dark(0, y) + dark(width - 1, y);
            return {lines, cut, width, shown: image.getBoundingClientRect().width, count: images.length};
        }"""
    )
    page.close()
    # A claim has a line with its id and verdict, and one or more with its statement.
    assert seen["lines"] >= 2 * len(CLAIMS), seen
    assert seen["cut"] == 0, seen
    assert seen["width"] >= 600 and seen["shown"] >= 600, seen
