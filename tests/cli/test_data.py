"""``masters data check`` as a user runs it."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from masters.cli.main import main

NASTY = "<script>alert('x')</script> & {{ 7 * 7 }}"


class Done(NamedTuple):
    code: int
    stdout: str
    stderr: str


Masters = Callable[..., Done]


@pytest.fixture
def masters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Masters:
    """Run the command from a folder, as the console script does."""
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(folder: Path, *arguments: str) -> Done:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["masters", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        return Done(int(stopped.value.code or 0), said.out, said.err)

    return run


class Page(HTMLParser):
    """The text of a page, its tags and the sources of its images."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.words, self.tags, self.images = "", set[str](), list[str]()
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for number in range(30):
        values = rng.integers(0, 256, (20 + number, 600, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": f"{NASTY} {number}", "answer": ["a", NASTY]})
    lines.append({"image": f"{NASTY}.png", "question": "a"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.yaml").write_text(
        "student: gone\nunknown: 1\ndata: {train: train.jsonl, eval: {split_from_train: 8}}\n"
    )
    return tmp_path


def test_the_page_shows_counts_samples_and_skipped_rows(folder: Path, masters: Masters) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = masters(elsewhere, "data", "check", str(folder / "run.yaml"))
    assert done.code == 0, done.stderr
    path = folder / "run-data.html"
    assert done.stdout.rstrip().endswith(f"page: {path}")
    assert re.search(r"train +│ +22 │", done.stdout) and re.search(r"eval +│ +8 │", done.stdout)
    assert "1 of 31 rows are skipped; the first is train.jsonl row 31: picture" in done.stdout
    page = Page(path.read_text())
    assert "script" not in page.tags and page.words.count(f"{NASTY} ") >= 18, "texts are shown as they are"
    assert "49" not in page.words.replace("600", "").split()
    assert len(page.images) == 18 and all(image.startswith("data:image/") for image in page.images)
    for words in ("Data of run.yaml", "words per question", "longest side of a picture", "Skipped rows"):
        assert words in page.words
    assert f"a | {NASTY}" in page.words and "does not exist" in page.words
    assert not re.search(r"""(?:src|href)=["']?http""", path.read_text())


def test_the_page_goes_where_it_is_told(folder: Path, masters: Masters) -> None:
    done = masters(folder, "data", "check", "run.yaml", "--output", "sub/page.html")
    assert done.code == 0 and (folder / "sub" / "page.html").is_file()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read the parameter file run.yaml"),
        ("student: a", "run.yaml has no section data with at least 'train: FILE'"),
        (
            "data: {train: train.jsonl, evil: 3}",
            "data.evil: Extra inputs are not permitted (known: name, train",
        ),
        ("data: {train: gone.jsonl}", "data.train: there is no file or folder 'gone.jsonl'"),
        ("data: {train: ~nobody-x/a.jsonl}", "there is no file or folder '~nobody-x/a.jsonl'"),
        ('data: {train: "**/**/**/*.jsonl"}', "has more than two '**'"),
        ("data: {train: train.jsonl, on_bad_row: stop}", "train.jsonl row 31: picture"),
        ("data: {eval: a.jsonl}", "data.train: Field required"),
        (
            "data: {train: train.jsonl, eval: {split_from_train: 0}}",
            "run.yaml: data.eval.cut.split_from_train: Input",
        ),
        ("data: {train: train.jsonl, eval: 7}", "run.yaml: data.eval.file: Input should be a valid string"),
        ("a: [", "run.yaml is not valid YAML"),
    ],
)
def test_mistakes_are_one_line(content: str | None, reason: str, folder: Path, masters: Masters) -> None:
    if content is None:
        (folder / "run.yaml").unlink()
    else:
        (folder / "run.yaml").write_text(content)
    done = masters(folder, "data", "check", "run.yaml")
    assert done.code == 1 and reason in done.stderr
    assert done.stderr.startswith("masters: ") and done.stderr.count("\n") == 1
    assert not (folder / "run-data.html").exists()
