"""Checksums of files, in a list beside them that ``sha256sum -c`` reads too.

A list covers all files of a folder that is written once.
"""

import hashlib
import re
from pathlib import Path

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


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
