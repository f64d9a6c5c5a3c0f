"""Run notebooks: parameters are checked first, output is written only when complete, failures are one line.

papermill alone writes its output while it runs and ignores unknown parameters. Here a notebook runs under a
temporary name and is moved when its last cell has succeeded. Unknown or ill-typed parameters are refused
before it starts. Work finished before a failure is in the cache under ``data/``, and the next start reuses
it.
"""

import errno
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from masters.data.tasks import task_hash
from masters.own_data.tasks import rows_of
from masters.runtime import progress
from masters.runtime.files import ROOT, write_atomic
from masters.settings import Profile, load_profile
from masters_book.pages.parameters import NOTEBOOKS, notebook_parameters
from masters_book.study.provenance import record_provenance

# The same order of sets of strings in every run, and no warnings about forked tokenizers.
KERNEL_ENVIRONMENT = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false"}
CLEAR = "\r\x1b[K"  # clears the terminal line
SMALLER = (
    ": close other programs or use a smaller profile (PROFILE=smoke) and start again; finished work is kept"
)


class ThisPython(AsyncKernelManager):
    """Starts kernels with the running interpreter, whichever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The running interpreter's ipykernel."""
        # ipykernel logs a warning on every start and a traceback on Ctrl-C. Errors of cells are not logged.
        quiet = "--IPKernelApp.log_level=CRITICAL"
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", quiet]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", env=KERNEL_ENVIRONMENT)


def source_of(notebook: str) -> Path:
    """Return the file of a notebook in ``notebooks/``.

    Raises:
        ValueError: there is no such notebook.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"no notebook {notebook!r}; there are: {', '.join(NOTEBOOKS)}")
    return ROOT / "notebooks" / f"{notebook}.ipynb"


def checked_parameters(source: Path, profile: str, notebook: str) -> dict[str, Any]:
    """Return a notebook's parameters at a profile, checked against the settings and the notebook.

    Args:
        source: notebook file, with one cell tagged ``parameters``.
        profile: folder of ``notebooks/params``.
        notebook: name in ``masters_book.pages.parameters.NOTEBOOKS``.

    Raises:
        ValueError: a parameter is unknown to the settings or to the notebook, or has a wrong type or value.
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
            f"{source.name} declares {', '.join(missing)}, which its class in "
            "masters_book.pages.parameters does not have: add it there or remove it from the notebook"
        )
    return parameters


def run_notebook(notebook: str, profile: str, output: Path) -> None:
    """Execute one notebook at one profile and write the executed copy.

    Args:
        notebook: name, such as ``2_masking_ablations``.
        profile: folder of ``notebooks/params``.
        output: file of the executed notebook; ``provenance.json`` is written beside it.

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
    provenance = output.parent / "provenance.json"
    record_provenance(provenance, notebook, parameters, start, minutes, test_sets(settings))


def test_sets(profile: Profile) -> dict[str, str]:
    """Return a hash of each task's texts and pictures in the test split, by name."""
    limit, hashes = profile.test_questions, {}
    for task in profile.tasks:
        if isinstance(task, str):
            hashes[task] = task_hash(task, "test", limit)
        else:
            hashes[task.name] = rows_of(task, "test", limit, profile.folder)[0]
    return hashes


def execute(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook and move the result into place, or keep it as ``NAME.failed.ipynb``.

    The modification time of the result is the time when the run *started*. So make runs it again if a
    parameter file was edited meanwhile.

    Raises:
        ValueError: a cell raised or the kernel died: which notebook, which cell, what to do.
        OSError: the output cannot be written.
    """
    start = time.time()
    partial = output.with_name(f".{output.stem}.{os.getpid()}.ipynb")
    failed = output.with_name(f"{output.stem}.failed.ipynb")
    for left in output.parent.glob(f".{output.stem}.*.ipynb"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):  # left by a killed run
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
            raise ValueError(f"{error} (cells run so far: {_short(failed)})") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _papermill(source: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run papermill on this interpreter's kernel; failures become one line."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    # After Ctrl-C asyncio logs every task that was waiting for the kernel.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    shown = Progress(source)
    try:
        with shown:
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
    """Run a notebook of ``notebooks/`` in place with its defaults; return whether its outputs changed.

    Everything that differs between two equal runs (times, interpreter version, execution metadata) is left
    out, so the tracked file changes only if its content does.

    Raises:
        ValueError: a cell raised or the kernel died; the file is then unchanged.
    """
    source = source_of(notebook)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / source.name
        execute(source, output, {})
        content = nbformat.read(output, as_version=4)
    content.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    for cell in content.cells:
        for output in cell.get("outputs", []):
            output.get("metadata", {}).get("image/png", {}).pop("svg", None)  # large, and beside the PNG
        for key in ("execution", "papermill", *(() if cell.metadata.get("tags") else ("tags",))):
            cell.metadata.pop(key, None)
    text = nbformat.writes(content) + "\n"
    if text == source.read_text():
        return False
    write_atomic(source, text)
    return True


class Progress:
    """Shows and watches a running notebook.

    Each code cell has a line with its heading and time. While it runs, a terminal shows the time and the
    progress of the work (:mod:`masters.runtime.progress`); a log gets a line per minute. The least free
    memory is recorded, and processes that outlive their kernel are ended.
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
        self._open = ExitStack()

    @property
    def where(self) -> str:
        """The running or last cell, for messages."""
        heading = f" ({self.heading})" if self.heading else ""
        return f"code cell {self.number} of {self.total}{heading}" if self.number else "before its first cell"

    def __enter__(self) -> "Progress":
        self._begun = time.monotonic()
        folder = tempfile.TemporaryDirectory(prefix="masters-progress-", ignore_cleanup_errors=True)
        os.environ["MASTERS_PROGRESS"] = self._open.enter_context(folder)
        print(f"{self.name}", flush=True)
        self._open.enter_context(progress.repeatedly(self._look, 1.0))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._open.close()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        del os.environ["MASTERS_PROGRESS"]
        if self._running_since is not None:
            print(flush=True)
        if kind is None:
            print(f"  done in {_clock(time.monotonic() - self._begun)}", flush=True)

    def cell_start(self, cell: Any, cell_index: int) -> None:
        """Remember a heading; print a line for a code cell of the source."""
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
        """Print the time of a code cell that succeeded."""
        if self._running_since is not None and execute_reply["content"]["status"] == "ok":
            seconds = time.monotonic() - self._running_since
            again = f"{CLEAR}{self._line()}" if sys.stdout.isatty() else ""
            if not again and self._reported > self._running_since:  # the line of this cell is above those
                again = f"\n{self._line()}"
            self._running_since = None
            print(f"{again}{_clock(seconds):>8}", flush=True)

    def _line(self) -> str:
        return f"  {self.number:3d}/{self.total}  {self.heading[:60]:<60}"

    def _look(self) -> None:
        self.least_memory = min(self.least_memory, psutil.virtual_memory().available)
        with suppress(psutil.Error):
            self._family |= set(psutil.Process().children(recursive=True))
        since, now = self._running_since, time.monotonic()
        if since is None:
            return
        work = ", ".join(progress.lines(Path(os.environ["MASTERS_PROGRESS"])))
        if sys.stdout.isatty():
            room = max(shutil.get_terminal_size().columns - 80, 0)
            print(f"{CLEAR}{self._line()}{_clock(now - since):>8}  {work[:room]}", end="", flush=True)
        elif now - self._reported >= progress.SHOWN_EVERY:
            self._reported = now
            print(f"\n          {_clock(now - since)}  {work}", end="", flush=True)


def _hint(what: str) -> str:
    """Return what to do about failures of the machine; empty for failures of the notebook."""
    if "start again" in what:
        return ""
    if "No space left on device" in what:
        return ": free some disk space and start again; finished work is kept"
    if what.startswith("MemoryError") or "can't allocate memory" in what or "out of memory" in what.lower():
        return SMALLER
    return ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.resolve().is_relative_to(Path.cwd()) else str(path)


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d} min"
