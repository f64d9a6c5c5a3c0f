"""Progress of long work, from whatever process does it to whoever watches.

Notebooks run in a kernel and training in worker processes, so nobody sees what they print. Each process
therefore leaves one line in a folder named by ``MASTERS_PROGRESS``; the command that started them
reads the lines and shows them. Without that variable nothing is written.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

INTERVAL = 0.5
SHOWN_EVERY = 60.0  # seconds, where no terminal is
_last = 0.0


def report(what: str, done: int, total: int) -> None:
    """Leave word of how far this process is, at most twice a second.

    Args:
        what: the work, such as ``training large``.
        done: units finished.
        total: all units; reaching it takes the line away.
    """
    global _last
    folder = os.environ.get("MASTERS_PROGRESS")
    if not folder:
        return
    path = Path(folder) / f"{os.getpid()}.json"
    if done >= total:
        path.unlink(missing_ok=True)
    elif time.monotonic() - _last >= INTERVAL:
        _last = time.monotonic()
        Path(folder).mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"what": what, "done": done, "total": total}))
        os.replace(temporary, path)


def lines(folder: Path) -> list[str]:
    """The lines that working processes have left, such as ``training large 1200/5000``."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            entry = json.loads(path.read_text())
        except (OSError, ValueError):  # taken away or replaced while we looked
            continue
        found.append(f"{entry['what']} {entry['done']}/{entry['total']}")
    return found


@contextmanager
def repeatedly(look: Callable[[], None], pause: float) -> Iterator[None]:
    """Look again and again beside the work, in a thread that ends with it.

    Args:
        look: should be quick; if it is not, the pauses grow with it, to ten times what it takes.
        pause: seconds between two looks.
    """
    stop = threading.Event()

    def watch() -> None:
        took = 0.0
        while not stop.wait(max(pause, 10 * took)):
            start = time.monotonic()
            look()
            took = time.monotonic() - start

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


@contextmanager
def shown() -> Iterator[None]:
    """Show how far this process and its workers are: on a terminal a line that changes, else one a minute."""
    every = 1.0 if sys.stderr.isatty() else SHOWN_EVERY
    begin, end = ("\r\033[K", "") if sys.stderr.isatty() else ("", "\n")

    with tempfile.TemporaryDirectory(prefix="masters-progress-", ignore_cleanup_errors=True) as name:

        def look() -> None:
            if work := ", ".join(lines(Path(name))):
                room = shutil.get_terminal_size().columns - 1
                print(f"{begin}{work[:room]}", end=end, file=sys.stderr, flush=True)

        os.environ["MASTERS_PROGRESS"] = name
        try:
            with repeatedly(look, every):
                yield
        finally:
            del os.environ["MASTERS_PROGRESS"]
            print(begin, end="", file=sys.stderr, flush=True)
