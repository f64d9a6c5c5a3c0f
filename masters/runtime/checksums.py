"""Checksums of the files in a folder, in a list that ``sha256sum -c`` reads too."""

import hashlib
from pathlib import Path

LIST = "SHA256SUMS"


def write_list(folder: Path, name: str = LIST, pattern: str = "*") -> None:
    """List the files of a folder, which ``pattern`` may extend to subfolders, in the file ``name`` in it."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file() and path != folder / name)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths]
    (folder / name).write_text("".join(lines), encoding="utf-8")


def damaged(folder: Path, name: str = LIST) -> list[str]:
    """Return the listed files that are missing or differ; none where there is no list."""
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        return [name]
    entries = [line.split("  ", 1) for line in lines]
    if any(len(entry) != 2 for entry in entries):
        return [name]
    return [
        listed
        for digest, listed in entries
        if not (folder / listed).is_file() or _sha256(folder / listed) != digest
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
