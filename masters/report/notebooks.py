"""One notebook through papermill: parameters checked first, output whole or absent, a record kept.

papermill alone writes its output while it runs, marks every cell completed after Ctrl-C and only warns of a
parameter that the notebook does not have. Here the notebook runs under a temporary name and is moved into
place when its last cell has succeeded; a parameter that is unknown or ill-typed is refused before anything
starts; whatever goes wrong ends in one line that says which notebook, which cell and what to do. Everything
that was finished before the failure is in the cache under ``data/``: the next start goes on from there.
"""

import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from masters.own_data.tasks import content_of
from masters.runtime import progress
from masters.runtime.files import ROOT, write_atomic
from masters.runtime.provenance import record_provenance
from masters.settings import NOTEBOOKS, load_profile, notebook_parameters

KERNEL_ENVIRONMENT = {
    # Sets of strings in the same order in every run, and no warning about forked tokenizers in the outputs.
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


# Back to the start of the terminal line and wipe it.
CLEAR = "\r\x1b[K"
SMALLER = (
    ": close other programs or use a smaller profile (PROFILE=smoke) and start again; finished work is kept"
)


class ThisPython(AsyncKernelManager):
    """Starts kernels with the interpreter that runs this module, whatever kernels the user has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel: this interpreter's ipykernel."""
        # ipykernel's own log: a warning on every start, a traceback when it is shut down on Ctrl-C. What a
        # cell raises does not go there.
        quiet = "--IPKernelApp.log_level=CRITICAL"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=KERNEL_ENVIRONMENT)


def source_of(notebook: str) -> Path:
    """The notebook as it stands in ``notebooks/``.

    Raises:
        ValueError: there is no such notebook; the message lists those that exist.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"no notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def checked_parameters(source: Path, profile: str, notebook: str) -> dict[str, Any]:
    """The parameters of one notebook at one profile, checked against the settings and against the notebook.

    Args:
        source: the notebook file, with one cell tagged ``parameters``.
        profile: a folder of ``notebooks/params``.
        notebook: the notebook's name in ``masters.settings.NOTEBOOKS``.

    Returns:
        What papermill puts in place of the notebook's defaults.

    Raises:
        ValueError: a parameter is unknown to the settings or to the notebook, has the wrong type or value, or
            the notebook declares one that the settings do not have.
    """
    import papermill

    parameters: dict[str, Any] = notebook_parameters(profile, notebook).model_dump(mode="json")
    declared = set(papermill.inspect_notebook(source))
    if unknown := sorted(set(parameters) - declared):
        raise ValueError(
            f"{source.name} has no parameter {', '.join(unknown)}; its cell tagged 'parameters' has: "
            f"{', '.join(sorted(declared)) or 'none'}"
        )
    if missing := sorted(declared - set(parameters)):
        raise ValueError(
            f"{source.name} declares {', '.join(missing)}, which masters.settings does not have for it: "
            "add it there or remove it from the notebook"
        )
    return parameters


def run_notebook(notebook: str, profile: str, output: Path) -> None:
    """Execute one notebook at one profile and write the executed copy, with a line for each cell as it runs.

    Args:
        notebook: its name, such as ``2_masking_ablations``.
        profile: a folder of ``notebooks/params``.
        output: where the executed notebook goes; its folder also gets ``provenance.json``.

    Raises:
        ValueError: a parameter is wrong, a cell raised, or the kernel died; the message is one line.
        OSError: the output cannot be written.
    """
    source = source_of(notebook)
    parameters = checked_parameters(source, profile, notebook)
    output.parent.mkdir(parents=True, exist_ok=True)
    start = time.time()
    execute(source, output, parameters)
    minutes = (time.time() - start) / 60
    settings = load_profile(profile)
    data = content_of(settings.tasks, "test", settings.test_questions, settings.folder)
    record_provenance(output.parent / "provenance.json", notebook, parameters, start, minutes, data)


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook with papermill and move the result into place, or keep it as ``<name>.failed.ipynb``.

    The modification time of the result is the time the run *started*, so that a parameter file edited while
    the notebook ran is newer and make runs it again.

    Raises:
        ValueError: a cell raised or the kernel died: which notebook, which cell, what to do.
        OSError: the output cannot be written.
    """
    start = time.time()
    partial = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    for left in output.parent.glob(f".{output.stem}.*.ipynb"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):  # was killed
            left.unlink(missing_ok=True)
    try:
        _papermill(source, partial, parameters)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.utime(partial, (start, start))
        os.replace(partial, output)
        failed.unlink(missing_ok=True)
    except ValueError as error:
        if partial.exists():
            os.replace(partial, failed)
            raise ValueError(f"{error} (as far as it came: {_short(failed)})") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _papermill(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """papermill on this interpreter's kernel, its failures told in one line."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    # After Ctrl-C asyncio tells of each task that was waiting for the kernel.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    shown = Progress(source)
    try:
        with _terminate_as_interrupt(), shown:
            papermill.execute_notebook(
                source,
                output,
                parameters,
                kernel_name="python3",
                cwd=source.parent,
                progress_bar=False,
                kernel_manager_class=ThisPython,
                shutdown_kernel="immediate",
                on_cell_start=shown.cell_start,
                on_cell_executed=shown.cell_end,
            )
    except papermill.PapermillExecutionError as error:
        what = ": ".join(part for part in (error.ename, _first_line(error.evalue)) if part)
        raise ValueError(f"{source.name}, {shown.where}: {what}{_hint(what)}") from error
    except DeadKernelError as error:
        raise ValueError(
            f"{source.name}, {shown.where}: the kernel died; the least free memory seen was "
            f"{shown.least_memory / 2**30:.1f} of {psutil.virtual_memory().total / 2**30:.1f} GiB" + SMALLER
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise ValueError(f"{source.name}, {shown.where}: {error.strerror}{_hint(str(error))}") from error
        raise


def refresh(notebook: str) -> bool:
    """Run a notebook of ``notebooks/`` in place at its defaults; True if its outputs changed.

    What differs between two equal runs (times, interpreter patch version, execution metadata) is left out, so
    the tracked file changes only when its content does.

    Raises:
        ValueError: a cell raised or the kernel died; the file is then as it was.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    source = source_of(notebook)
    content = nbformat.read(source, as_version=4)
    shown = Progress(source)
    client = NotebookClient(
        content,
        kernel_manager_class=ThisPython,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_start=shown.cell_start,
        on_cell_executed=shown.cell_end,
    )
    try:
        with shown:
            client.execute()
    except CellExecutionError as error:
        raise ValueError(
            f"{source.name}, {shown.where}: {error.ename}: {_first_line(error.evalue)}"
        ) from error
    except DeadKernelError as error:
        raise ValueError(f"{source.name}, {shown.where}: the kernel died") from error
    content.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    for cell in content.cells:
        for key in ("execution", "papermill"):
            cell.metadata.pop(key, None)
    text = nbformat.writes(content) + "\n"
    if text == source.read_text():
        return False
    write_atomic(source, text)
    return True


class Progress:
    """What a running notebook shows, and what is watched meanwhile.

    A line for each code cell with its heading and time. While it runs, a terminal shows the time counting up
    and how far the work is (see ``masters.runtime.progress``); elsewhere, such as in a log, that is a line a
    minute. The least free memory is noted, and processes that outlive their kernel are ended.
    """

    def __init__(self, source: Path) -> None:
        notebook = nbformat.read(source, as_version=4)
        self.name = source.stem
        self.total = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)
        self.number = 0
        self.heading = ""
        self.least_memory = psutil.virtual_memory().available
        self._running_since: float | None = None
        self._reported = 0.0
        self._family: set[psutil.Process] = set()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def where(self) -> str:
        """The cell that runs or ran last, in words."""
        heading = f" ({self.heading})" if self.heading else ""
        return f"code cell {self.number} of {self.total}{heading}" if self.number else "before its first cell"

    def __enter__(self) -> "Progress":
        self._begun = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="masters-progress-", ignore_cleanup_errors=True)
        os.environ["MASTERS_PROGRESS"] = self._folder.name
        print(f"{self.name}", flush=True)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._stop.set()
        self._watcher.join()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        del os.environ["MASTERS_PROGRESS"]
        self._folder.cleanup()
        if self._running_since is not None:
            print(flush=True)
        if kind is None:
            print(f"  done in {_clock(time.monotonic() - self._begun)}", flush=True)

    def cell_start(self, cell: Any, cell_index: int) -> None:
        """Called before each cell: a heading is remembered, a code cell of the source is announced."""
        if "injected-parameters" in cell.metadata.get("tags", []):
            return
        if cell.cell_type == "markdown":
            headings = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            self.heading = headings[-1] if headings else self.heading
        elif cell.cell_type == "code" and cell.source.strip():
            self.number += 1
            self._running_since = self._reported = time.monotonic()
            print(self._line(), end="", flush=True)

    def cell_end(self, cell: Any, cell_index: int, execute_reply: Any) -> None:
        """Called after each code cell, whether it raised or not."""
        if self._running_since is not None and execute_reply["content"]["status"] == "ok":
            seconds = time.monotonic() - self._running_since
            self._running_since = None
            print(
                (f"{CLEAR}{self._line()}" if sys.stdout.isatty() else "") + f"{_clock(seconds):>8}",
                flush=True,
            )

    def _line(self) -> str:
        return f"  {self.number:3d}/{self.total}  {self.heading[:60]:<60}"

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.least_memory = min(self.least_memory, psutil.virtual_memory().available)
            with suppress(psutil.Error):
                self._family |= set(psutil.Process().children(recursive=True))
            since, now = self._running_since, time.monotonic()
            if since is None:
                continue
            work = ", ".join(progress.lines(Path(self._folder.name)))
            if sys.stdout.isatty():
                room = max(shutil.get_terminal_size().columns - 80, 0)
                print(f"{CLEAR}{self._line()}{_clock(now - since):>8}  {work[:room]}", end="", flush=True)
            elif now - self._reported >= 60:
                self._reported = now
                print(f"\n          {_clock(now - since)}  {work}", end="", flush=True)


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that the kernel is shut down and the temporary file removed."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _hint(what: str) -> str:
    """What to do about the failures that are not the notebook's own; empty for those that are."""
    if "No space left on device" in what:
        return ": free some disk space and start again; finished work is kept"
    # A worker that was killed from outside nearly always was killed for its memory.
    if (
        what.startswith(("MemoryError", "BrokenProcessPool"))
        or "can't allocate memory" in what
        or "out of memory" in what.lower()
    ):
        return SMALLER
    return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
