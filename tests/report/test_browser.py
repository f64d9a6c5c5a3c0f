"""The built pages in a headless Chromium, on desktop and phone: quiet, whole, no wider than the screen."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from masters.claims.claims import CLAIMS

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
