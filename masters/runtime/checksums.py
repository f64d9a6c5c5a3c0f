"""Checksums of files, in a list beside them that ``sha256sum -c`` reads too.

Two kinds of list: of all files of a folder that is written once (:func:`write_list`), and of single files
that are written again and again (:func:`masters.runtime.files.write_intact`).
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

SUMS = "SHA256SUMS"
REMEDY = "restore it with git, or delete it"


def write_list(folder: Path, name: str = SUMS, pattern: str = "*") -> None:
    """List the files of a folder, which ``pattern`` may extend to subfolders, in the file ``name`` in it."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file() and path != folder / name)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / name).write_text("".join(lines), encoding="utf-8")


def read_list(path: Path) -> list[tuple[str, str]]:
    """Return name and checksum of each line; none where there is no list.

    Raises:
        ValueError: a line has another form.
    """
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"[0-9a-f]{64} [ *]\S.*", line):
            raise ValueError(f"{path} line {number} is {line[:60]!r}, not a checksum and a name: {REMEDY}")
    return [(line[66:], line[:64]) for line in lines]


def damaged(folder: Path, name: str = SUMS) -> list[str]:
    """Return the listed files that are missing or differ; none where there is no list."""
    try:
        entries = read_list(folder / name)
    except ValueError:
        return [name]
    return [
        listed
        for listed, checksum in entries
        if not (folder / listed).is_file() or _sha256(folder / listed) != checksum
    ]


def check(folder: Path, advice: str) -> None:
    """Raise ``ValueError`` if :func:`damaged` names a file; the message ends in the advice."""
    if names := damaged(folder):
        raise ValueError(f"{folder}: {', '.join(names)} damaged: {advice}")


def is_whole(folder: Path, last: str) -> bool:
    """Return whether a folder has its last file, and no listed file is missing or differs."""
    return (folder / last).is_file() and not damaged(folder)


def read_listed(path: Path) -> tuple[bytes, bool]:
    """Return the content of a file, and whether it matches its listed checksum; True if none is listed.

    Raises:
        ValueError: the list is damaged.
        OSError: the file cannot be read.
    """
    content, intact = b"", False
    for _ in range(2):  # another process may have written the file between reading it and its checksum
        content = path.read_bytes()
        sums = [checksum for name, checksum in read_list(path.with_name(SUMS)) if name == path.name]
        intact = not sums or hashlib.sha256(content).hexdigest() in sums
        if intact:
            break
    return content, intact


def read_intact(path: Path) -> bytes:
    """Read a file.

    Raises:
        ValueError: its checksum differs from that in ``SHA256SUMS``.
        OSError: the file cannot be read.
    """
    content, intact = read_listed(path)
    if not intact:
        raise ValueError(f"{path} has another checksum than in {SUMS}: {REMEDY}")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read names and values from a JSON file.

    Raises:
        ValueError: the file is damaged.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(read_intact(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {REMEDY}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not names and values: {REMEDY}")
    return content


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
