"""Paths on disk, and writing that leaves no partial file when killed."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "data" / "results" / "study"  # tables that the study writes and the book reads


def data_dir() -> Path:
    """Return the folder in ``MASTERS_DATA``; default: ``data/`` in the repository."""
    return Path(os.environ.get("MASTERS_DATA", ROOT / "data"))


def cache_dir() -> Path:
    """Return the folder of everything that can be recomputed: checkpoints, responses, run results.

    It is the folder in ``MASTERS_CACHE``; default: ``cache/`` in :func:`data_dir`.
    """
    return Path(os.environ.get("MASTERS_CACHE", data_dir() / "cache"))


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it.

    Raises:
        OSError: the folder is read-only or the disk is full; an existing file is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
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
        folder: must not exist.
        save: writes into the folder passed to it.

    Raises:
        OSError: the disk is full or the folder exists; nothing is left behind.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save(temporary)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder_once(folder: Path, save: Callable[[Path], object]) -> None:
    """Call :func:`write_folder` unless the folder exists; processes take turns."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            write_folder(folder, save)


def paper_table(name: str) -> pd.DataFrame:
    """Read a table of the paper from ``data/paper/``, such as ``table5a_rmax``.

    Raises:
        ValueError: the table does not exist; the message lists those that do.
    """
    path = ROOT / "data" / "paper" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
        raise ValueError(f"no paper table {name!r} in {path.parent}; there are: {known}")
    return pd.read_csv(path)
