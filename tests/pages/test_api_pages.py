"""The API's pages: one per room, with every module of the list once."""

import re

from masters.runtime.files import ROOT
from masters_book.pages.api import api_pages


def test_a_page_per_room_in_the_order_of_the_list() -> None:
    source = (ROOT / "book" / "api.md").read_text()
    index, *rooms = api_pages(source).items()
    assert index[0] == "index" and index[1].startswith("# API\n")
    assert [name for name, _ in rooms] == sorted(name for name, _ in rooms)
    titles = [page.partition("\n")[0].removeprefix("# ") for _, page in rooms]
    assert titles == re.findall(r"^## (.+)$", source, re.MULTILINE)
    modules = re.findall(r"automodule:: (\S+)", source)
    assert re.findall(r"automodule:: (\S+)", "".join(page for _, page in rooms)) == modules
    assert re.findall(r"\{py:mod\}`(\S+?)`", index[1]) == modules
    for name, page in rooms:
        assert page.count("\n# ") == 0 and "\n## masters" in page and f"]({name}.md)" in index[1]
