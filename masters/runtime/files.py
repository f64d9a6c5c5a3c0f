"""Where things are on disk, and how they are written so that a kill at any moment leaves no half file."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "data" / "results" / "study"  # tables that the study writes and the book reads


def data_dir() -> Path:
    """The data folder: the environment variable ``MASTERS_DATA``, else ``data/`` of the repository."""
    return Path(os.environ.get("MASTERS_DATA", ROOT / "data"))


def cache_dir() -> Path:
    """Everything that can be computed again: encoded questions, checkpoints, responses, run results."""
    return data_dir() / "cache"


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write a whole file or nothing: a temporary name in the same folder, fsync, then a rename.

    Raises:
        OSError: the folder cannot be written or the disk is full; the old file, if any, is untouched.
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
    """Fill a folder under another name, then rename it: the folder is there as a whole or not at all.

    Args:
        folder: must not exist yet.
        save: fills the folder that it is given.

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


def hash_of(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def paper_table(name: str) -> pd.DataFrame:
    """A table of the paper, such as ``table5a_rmax``, as it stands in ``data/paper/``.

    Raises:
        ValueError: there is no such table; the message lists those that exist.
    """
    path = ROOT / "data" / "paper" / f"{name}.csv"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.csv")))
        raise ValueError(f"no paper table {name!r} in {path.parent}; there are: {known}")
    return pd.read_csv(path)
