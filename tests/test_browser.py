"""The built pages in a headless Chromium, on desktop and phone: quiet, whole, no wider than the screen."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
