"""The API as one page per room, from the one list of modules in ``book/api.md``."""

import re


def api_pages(source: str) -> dict[str, str]:
    """Return the pages by name: ``index``, and one per heading of the list.

    Args:
        source: text of ``book/api.md``: a title, an introduction, and a room per heading of the second level.
    """
    start, *rooms = re.split(r"^## ", source, flags=re.MULTILINE)
    pages, links = {}, []
    for number, room in enumerate(rooms, start=1):
        title = room.partition("\n")[0].strip()
        name = f"{number:02d}_{re.sub(r'[^a-z0-9]+', '_', title.lower()).strip('_')}"
        pages[name] = "# " + re.sub(r"^### ", "## ", room, flags=re.MULTILINE)
        modules = re.findall(r"automodule:: (\S+)", room)
        links.append(f"- [{title}]({name}.md): {', '.join(f'{{py:mod}}`{module}`' for module in modules)}")
    return {"index": start + "\n".join(links) + "\n", **pages}
