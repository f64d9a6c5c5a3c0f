"""Progress of long work in other processes.

Output of notebook kernels and worker processes is not visible. So each process writes its progress to a file
in the folder ``MASTERS_PROGRESS``, and the command that started it shows the files' content. Without that
environment variable nothing is written.
"""

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

INTERVAL = 0.5  # seconds between two reports
SHOWN_EVERY = 60.0  # seconds between two lines without a terminal
_last = 0.0


def report(what: str, done: int, total: int) -> None:
    """Report this process's progress, at most twice per second.

    Args:
        what: the work, such as ``training large``.
        done: finished units.
        total: all units; at ``done == total`` the report is removed.
    """
    global _last
    folder = os.environ.get("MASTERS_PROGRESS")
    if not folder:
        return
    path = Path(folder) / f"{os.getpid()}.json"
    with suppress(OSError):  # a full disk must not end the work that is reported
        if done >= total:
            path.unlink(missing_ok=True)
        elif time.monotonic() - _last >= INTERVAL:
            _last = time.monotonic()
            Path(folder).mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps({"what": what, "done": done, "total": total}))
            os.replace(temporary, path)


def lines(folder: Path) -> list[str]:
    """Return one line per working process, such as ``training large 1200/5000``."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):  # removed since the listing, or damaged
            entry = json.loads(path.read_text())
            found.append(f"{entry['what']} {entry['done']}/{entry['total']}")
    return found


@contextmanager
def repeatedly(look: Callable[[], None], pause: float) -> Iterator[None]:
    """Call ``look`` repeatedly in a thread while the context is open.

    Args:
        pause: seconds between two calls; at least ten times the duration of the last call.
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
    """Show the progress of this process and its workers: a changing line, or one per minute in a log."""
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
