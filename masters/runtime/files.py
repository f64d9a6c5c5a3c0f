"""Paths on disk, and writing that leaves no partial file when killed."""

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import count
from pathlib import Path

from filelock import FileLock

from masters.runtime.checksums import SUMS, check, write_list

ROOT = Path(__file__).resolve().parents[2]
FULL = 1 << 20  # free bytes of a disk below which a failed write means that it is full


def data_dir() -> Path:
    """Return the folder in ``MASTERS_DATA``; default: ``data/`` in the repository."""
    return Path(os.environ.get("MASTERS_DATA", ROOT / "data"))


def cache_dir() -> Path:
    """Return the folder of everything that can be recomputed: checkpoints, responses, run results.

    It is the folder in ``MASTERS_CACHE``; default: ``cache/`` in :func:`data_dir`.
    """
    return Path(os.environ.get("MASTERS_CACHE", data_dir() / "cache"))


@contextmanager
def full_disk_error(folder: Path) -> Iterator[None]:
    """Raise one ``OSError`` with ``ENOSPC`` for whatever a library raises when the disk is full.

    NumPy, torch and others report a failed write as a ``RuntimeError`` or an ``OSError`` without a number.
    """
    try:
        yield
    except Exception as error:
        said = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            words in str(error) for words in ("No space left", "disk is full")
        )
        seen = isinstance(error, OSError | RuntimeError) and shutil.disk_usage(folder).free < FULL
        if not said and not seen:
            raise
        line = f"No space left on device: free some for {folder} and start again; finished work is kept"
        raise OSError(errno.ENOSPC, line) from error


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it.

    Raises:
        OSError: the folder is read-only or the disk is full; an existing file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with full_disk_error(path.parent):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Fill a folder under a temporary name and rename it.

    Args:
        folder: if it exists, it lacks what the caller looked for, and is set aside.
        save: writes into the folder passed to it.

    Raises:
        OSError: the disk is full; nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with full_disk_error(folder.parent):
            temporary.mkdir()
            save(temporary)
        if folder.is_dir():
            _set_aside(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    """Rename an incomplete folder to ``NAME.incomplete-1``, or the next number, and warn."""
    there = {path.name for path in folder.parent.iterdir()}
    names = (f"{folder.name}.incomplete-{number}" for number in count(1))
    aside = next(name for name in names if name not in there)
    os.replace(folder, folder.with_name(aside))
    warnings.warn(f"{folder} is incomplete: set aside as {aside} and made again", stacklevel=3)


def write_folder_once(folder: Path, save: Callable[[Path], object]) -> None:
    """Call :func:`write_folder` unless the folder is there; processes take turns.

    The file written last, ``SHA256SUMS``, holds the checksum of each other file. A folder without it is
    unfinished.

    Raises:
        OSError: the disk is full; nothing is left behind.
        ValueError: a file is missing or its bytes differ from those written.
    """
    if _is_whole(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not _is_whole(folder):
            write_folder(folder, partial(_save_with_checksums, save))


def _save_with_checksums(save: Callable[[Path], object], folder: Path) -> None:
    save(folder)
    write_list(folder, pattern="**/*")


def _is_whole(folder: Path) -> bool:
    if not (folder / SUMS).is_file():
        return False
    if os.environ.get("RANK", "0") == "0":  # for all ranks of a launch
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        _check_once(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))
    return True


@lru_cache(maxsize=1024)
def _check_once(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> None:
    """Compare a folder with its checksums, once per process and state of its files; reading takes long."""
    check(folder, "delete this folder and run again: it is made again")
