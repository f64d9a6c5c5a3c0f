import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from masters.runtime import files
from masters.runtime.files import cache_dir, data_dir, write_atomic, write_folder, write_folder_once
from masters_book.results.paper import paper_table

LARGE = torch.rand(2**17)  # 512 KiB


@pytest.mark.parametrize("content", ["text, ünicode\n", b"\x00bytes\xff", "", b""])
def test_a_written_file_can_be_read(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [child.name for child in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(str(path), "old, and longer")
    write_atomic(str(path), "new")
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("where", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException, old: bool
) -> None:
    path = tmp_path / "file"
    if old:
        path.write_text("old")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(error)):
        write_atomic(path, "new")
    assert {child.name: child.read_text() for child in tmp_path.iterdir()} == ({"file": "old"} if old else {})


def test_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        seen.append(("fsync", os.fstat(handle).st_size, path.exists()))
        fsync(handle)

    def watched_replace(source: str, target: Path) -> None:
        seen.append(("replace", os.stat(source).st_size, path.exists()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_atomic(path, "12345")
    assert seen == [("fsync", 5, False), ("replace", 5, False)]


def test_a_folder_is_written_once_and_completely(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"

    def fail(target: Path) -> None:
        (target / "file").write_text("partial")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder_once(folder, fail)
    assert not [path for path in folder.parent.iterdir() if path.is_dir()]
    write_folder_once(folder, lambda target: (target / "file").write_text("first"))
    write_folder_once(folder, fail)
    assert (folder / "file").read_text() == "first"


@pytest.mark.parametrize("damaged", ["file", "deep/file", "SHA256SUMS"])
def test_damage_in_a_folder_is_named_and_a_folder_without_its_last_file_is_made_again(
    tmp_path: Path, damaged: str
) -> None:
    folder = tmp_path / "folder"

    def save(target: Path) -> None:
        for name in ("file", "deep/file"):
            write_atomic(target / name, f"content of {name}")

    write_folder_once(folder, save)
    whole = (folder / damaged).read_bytes()
    for content in (whole[:-2], whole.replace(b"e", b"f"), whole + whole[:9], b"[]", b"\xff"):
        (folder / damaged).write_bytes(content)
        with pytest.raises(ValueError, match=r"folder.* delete") as error:
            write_folder_once(folder, save)
        assert "\n" not in str(error.value)
    (folder / damaged).write_bytes(whole)
    write_folder_once(folder, save)
    (folder / "SHA256SUMS").unlink()
    with pytest.warns(UserWarning, match="is incomplete"):
        write_folder_once(folder, save)
    assert (folder / damaged).read_bytes() == whole


@pytest.mark.parametrize(
    "save",
    [
        lambda folder: torch.save(LARGE, folder / "file"),
        lambda folder: save_file({"large": LARGE}, folder / "file"),
        lambda folder: np.save(folder / "file", LARGE.numpy()),
        lambda folder: pd.DataFrame({"large": LARGE}).to_parquet(folder / "file"),
        lambda folder: (folder / "file").write_bytes(bytes(2**19)),
        lambda folder: write_atomic(folder / "file", bytes(2**19)),
    ],
    ids=["torch", "safetensors", "numpy", "parquet", "plain", "atomic"],
)
def test_a_full_disk_is_one_line_whoever_writes(small_disk: Path, save: Callable[[Path], object]) -> None:
    folder = small_disk / "folder"
    with pytest.raises(OSError, match=r"No space left on device: free some for .*start again") as error:
        write_folder(folder, save)
    assert error.value.errno == errno.ENOSPC
    assert not list(small_disk.iterdir())


def test_other_errors_on_a_disk_with_space_stay_what_they_are(tmp_path: Path) -> None:
    def fail(target: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        write_folder(tmp_path / "folder", fail)


def test_an_incomplete_folder_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for number in (1, 2):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_text(f"partial {number}")
        with pytest.warns(UserWarning, match=rf"is incomplete: set aside as folder.incomplete-{number}"):
            write_folder(folder, lambda target: (target / "file").write_text("whole"))
        assert (folder / "file").read_text() == "whole"
        assert (tmp_path / f"folder.incomplete-{number}" / "file").read_text() == f"partial {number}"


def test_the_data_folder_comes_from_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    assert data_dir() == tmp_path and cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("MASTERS_DATA")
    assert data_dir() == files.ROOT / "data"


def test_paper_tables() -> None:
    names = sorted(path.stem for path in (files.ROOT / "data" / "paper").glob("*.csv"))
    assert names
    for name in names:
        assert len(paper_table(name))
    with pytest.raises(ValueError, match="no paper table 'table99'") as error:
        paper_table("table99")
    assert all(name in str(error.value) for name in names)
