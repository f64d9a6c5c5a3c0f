"""Single files that are written again and again, each with its checksum in ``SHA256SUMS`` beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from masters.runtime.checksums import REMEDY, SUMS, read_list
from masters.runtime.files import write_atomic


def write_intact(path: Path, content: bytes | str) -> None:
    """Write a file and its checksum in ``SHA256SUMS`` beside it; processes that write there must take turns.

    Until the new file is in place, the checksums of both are recorded, so a kill makes neither look damaged.

    Raises:
        ValueError: ``SHA256SUMS`` is damaged.
        OSError: as :func:`write_atomic`.
    """
    data = content.encode() if isinstance(content, str) else content
    new, before = (path.name, hashlib.sha256(data).hexdigest()), read_list(path.with_name(SUMS))

    def record(sums: list[tuple[str, str]]) -> None:
        lines = (f"{checksum}  {name}\n" for name, checksum in sorted(set(sums)))
        write_atomic(path.parent / SUMS, "".join(lines))

    others = [line for line in before if line[0] != path.name]
    if len(others) < len(before):
        record([*before, new])
    write_atomic(path, data)
    record([*others, new])


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
