"""One notebook: checked first, whole or absent, failures in one line; and what make runs after a change."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
import pytest
import yaml
from pydantic import BaseModel

from masters.runtime import progress
from masters.runtime.files import ROOT
from masters.settings import profiles
from masters_book.pages.parameters import NOTEBOOKS
from masters_book.report import notebooks as reproduce
from masters_book.study import provenance
from masters_book.study.provenance import record_provenance


def _write(path: Path, *cells: str) -> Path:
    """A notebook with a parameters cell, then a heading and a code cell for each source."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells.append(nbformat.v4.new_code_cell("width = 1", metadata={"tags": ["parameters"]}))
    for number, source in enumerate(cells, start=1):
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"## Part {number}"))
        notebook.cells.append(nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, path)
    return path


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "build").mkdir()
    return tmp_path / "build" / "toy.ipynb"


def test_output_is_whole_carries_the_parameters_and_dates_from_the_start(
    tmp_path: Path, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kernel of that name elsewhere, which does not work: this interpreter must be used all the same.
    bogus = tmp_path / "jupyter" / "kernels" / "python3"
    bogus.mkdir(parents=True)
    (bogus / "kernel.json").write_text(
        json.dumps({"argv": ["/bin/false"], "display_name": "no", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = _write(
        tmp_path / "toy.ipynb", "import sys; print(sys.executable)", "import time; time.sleep(1); width"
    )
    before = time.time()
    reproduce.execute(source, output, {"width": 7})
    executed = nbformat.read(output, as_version=4)
    results = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert results[2].outputs[0].text.strip() == sys.executable
    assert results[3].outputs[0].data["text/plain"] == "7"
    assert _visible(output.parent) == ["toy.ipynb"]
    assert before - 1 <= output.stat().st_mtime < time.time() - 1
    shown = capsys.readouterr().out
    assert "Part 2" in shown and "done in" in shown


def test_in_a_log_every_time_has_its_own_line(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SHOWN_EVERY", 0.5)
    work = (
        "import time; from masters.runtime import progress; progress.report('work', 1, 2); time.sleep(4);"
        "progress.report('work', 2, 2)"
    )
    reproduce.execute(_write(tmp_path / "toy.ipynb", work), output, {"width": 7})
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r" +\d\.\d s  work 1/2", line) for line in lines)
    assert all(len(re.findall(r"\d\.\d s", line)) <= 1 for line in lines)
    assert re.fullmatch(r" +2/2  Part 1 +\d\.\d s", lines[-2])


def test_a_cell_that_raises_is_named_and_the_old_output_stays(tmp_path: Path, output: Path) -> None:
    output.write_text("what an earlier run left")
    source = _write(tmp_path / "toy.ipynb", "1 + 1", "raise RuntimeError('first line\\nsecond line')")
    with pytest.raises(ValueError) as caught:
        reproduce.execute(source, output, {"width": 7})
    message = str(caught.value)
    assert "toy.ipynb, code cell 3 of 3 (Part 2): RuntimeError: first line" in message
    assert "toy.failed.ipynb" in message and "\n" not in message
    assert output.read_text() == "what an earlier run left"
    assert _visible(output.parent) == ["toy.failed.ipynb", "toy.ipynb"]
    reproduce.execute(_write(source, "1 + 1"), output, {"width": 7})
    assert _visible(output.parent) == ["toy.ipynb"]


def test_what_a_killed_run_left_goes_and_what_another_writes_stays(tmp_path: Path, output: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (dead.pid, os.getppid(), "mine"):
        (output.parent / f".toy.{name}.ipynb").write_text("half")
    reproduce.execute(_write(tmp_path / "toy.ipynb", "1 + 1"), output, {"width": 7})
    assert _visible(output.parent) == [f".toy.{os.getppid()}.ipynb", ".toy.mine.ipynb", "toy.ipynb"]


def test_a_dead_kernel_is_told_from_a_hang(tmp_path: Path, output: Path) -> None:
    source = _write(tmp_path / "toy.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(
        ValueError, match=r"code cell 2 of 2 \(Part 1\): the kernel died; the least free memory.*GiB"
    ):
        reproduce.execute(source, output, {"width": 7})
    assert not output.exists()


@pytest.mark.parametrize("cell", ["raise OSError(28, 'No space left on device')", "raise MemoryError"])
def test_what_to_do_is_said_when_the_machine_is_at_fault(tmp_path: Path, output: Path, cell: str) -> None:
    with pytest.raises(ValueError, match="start again; finished work is kept"):
        reproduce.execute(_write(tmp_path / "toy.ipynb", cell), output, {"width": 7})


def test_a_full_disk_under_the_output_is_one_line(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(papermill, "execute_notebook", full)
    with pytest.raises(
        ValueError, match=r"toy\.ipynb, before its first cell: No space left on device: free some"
    ):
        reproduce.execute(_write(tmp_path / "toy.ipynb", "1"), output, {})
    assert _visible(output.parent) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing_half_written_and_no_process(
    tmp_path: Path, output: Path, how: int
) -> None:
    mark = tmp_path / "kernel.pid"
    source = _write(
        tmp_path / "toy.ipynb",
        "import os, pathlib, subprocess, time\n"
        "worker = subprocess.Popen(['sleep', '120'])\n"
        "time.sleep(1.5)\n"
        f"pathlib.Path({str(mark)!r}).write_text(f'{{os.getpid()}} {{worker.pid}}')\n"
        "time.sleep(120)",
    )
    program = (
        "import masters.cli.main, masters_book.report.notebooks as r, pathlib, signal, sys\n"
        "source, output = map(pathlib.Path, sys.argv[1:])\n"
        # Tests that a shell runs in the background inherit that it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "masters.cli.main.app = lambda **options: r.execute(source, output, {'width': 7})\n"
        "masters.cli.main.main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(source), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    family = [psutil.Process(int(pid)) for pid in mark.read_text().split()]
    running.send_signal(how)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors == "masters: interrupted; finished work is kept: run the same command to continue\n"
    assert _visible(output.parent) == []
    for process in family:
        process.wait(timeout=20)


class _Toy(BaseModel):
    width: int = 3
    height: int = 4


def test_parameters_must_be_those_of_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _write(tmp_path / "toy.ipynb", "1")
    monkeypatch.setattr(reproduce, "notebook_parameters", lambda profile, notebook: _Toy())
    with pytest.raises(ValueError, match=r"toy\.ipynb has no parameter height; .* has: width"):
        reproduce.checked_parameters(source, "smoke", "toy")
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[0].source = "width = 1\nheight = 2\ndepth = 3"
    nbformat.write(notebook, source)
    with pytest.raises(ValueError, match=r"declares depth, which its class in masters_book"):
        reproduce.checked_parameters(source, "smoke", "toy")
    notebook.cells[0].source = "width = 1\nheight = 2"
    nbformat.write(notebook, source)
    assert reproduce.checked_parameters(source, "smoke", "toy") == {"width": 3, "height": 4}


@pytest.mark.parametrize("profile", profiles())
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_every_profile_has_the_parameters_of_every_notebook(profile: str, notebook: str) -> None:
    assert (
        reproduce.checked_parameters(reproduce.source_of(notebook), profile, notebook)["profile"] == profile
    )


def test_refresh_keeps_what_a_run_gives_and_nothing_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _write(tmp_path / "toy.ipynb", "print(width)")
    monkeypatch.setattr(reproduce, "source_of", lambda notebook: source)
    assert reproduce.refresh("toy")
    first = source.read_text()
    executed = nbformat.reads(first, as_version=4)
    assert executed.cells[2].outputs[0].text == "1\n" and executed.cells[2].execution_count == 2
    assert not reproduce.refresh("toy") and source.read_text() == first
    _write(source, "1 / 0")
    broken = source.read_text()
    with pytest.raises(
        ValueError, match=r"toy\.ipynb, code cell 2 of 2 \(Part 1\): ZeroDivisionError: division by"
    ):
        reproduce.refresh("toy")
    assert source.read_text() == broken


def test_provenance_keeps_other_notebooks_and_the_longest_run(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    record_provenance(path, "a", {"seeds": 2}, 1.7e9, 30.0, {"shapes": "ab"})
    record_provenance(path, "b", {}, 1.7e9, 1.0, {})
    record_provenance(path, "a", {"seeds": 2}, 1.8e9, 0.5, {"shapes": "ab"})
    entries = json.loads(path.read_text())
    assert set(entries) == {"a", "b"}
    assert (entries["a"]["minutes"], entries["a"]["minutes_longest"]) == (0.5, 30.0)
    for key in ("commit", "dirty", "python", "processor", "cores", "memory_gib", "parameters", "started"):
        assert key in entries["a"]
    # Other parameters are other work: the longest run starts anew.
    record_provenance(path, "a", {"seeds": 3}, 1.8e9, 0.5, {})
    assert json.loads(path.read_text())["a"]["minutes_longest"] == 0.5


def test_results_that_are_written_do_not_make_the_code_dirty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.machine()["dirty"] is None
    code, result = tmp_path / "masters" / "a.py", tmp_path / "data" / "results" / "study" / "runs.csv"
    for path in (code, result):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    as_someone = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*as_someone, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    result.write_text("2")
    assert provenance.machine()["dirty"] is False
    code.write_text("2")
    assert provenance.machine()["dirty"] is True


# --- the command line ---------------------------------------------------------------------------------------


def _masters(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "masters_book.commands", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "nope"], r"there is no profile 'nope'; there are: .*smoke"),
        (["notebook", "nope", "--profile", "smoke"], r"no notebook 'nope'; there are: 1_tasks_and_models"),
        (["notebook", "7_claims", "--profile", "nope"], r"there is no profile 'nope'"),
        (["claims", "nope"], r"claims\.csv is missing: run `make reproduce PROFILE=nope` first"),
        (["book", "nope"], r"is missing: run `make reproduce PROFILE=nope` first|there is no profile 'nope'"),
        (["plan"], r"Missing argument"),
        (["fly"], r"No such command"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(words: list[str], message: str) -> None:
    done = _masters(*words)
    assert done.returncode == (2 if words in (["plan"], ["fly"]) else 1)
    assert re.fullmatch(rf"masters: .*({message}).*\n", done.stderr), done.stderr
    assert done.stdout == "" or words[0] == "book"


def test_bad_values_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An r_max of 1.5, a step of 0, a word for a number, a misspelt name: each is named in one line."""
    program = (
        "import masters.settings as s, masters_book.commands as c, pathlib, sys\n"
        "s.PARAMS = pathlib.Path(sys.argv.pop(1))\n"
        "c.main()"
    )
    for place, name, value in (
        ("distillation", "r_max", 1.5),
        ("distillation", "r_step", 0),
        ("distillation", "steps", "many"),
        ("distillation", "lerning_rate", 0.1),
        (None, "seeds", 0),
    ):
        params = tmp_path / f"{name}"
        shutil.copytree(ROOT / "notebooks" / "params" / "smoke", params / "smoke")
        path = params / "smoke" / "profile.yaml"
        content = yaml.safe_load(path.read_text())
        (content[place] if place else content)[name] = value
        path.write_text(yaml.safe_dump(content))
        done = subprocess.run(
            [sys.executable, "-c", program, str(params), "plan", "smoke"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 1 and done.stdout == ""
        assert re.fullmatch(r"masters: .*\n", done.stderr) and name in done.stderr, done.stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in _masters("plan", "nope", MASTERS_DEBUG="1").stderr


def test_plan_says_minutes_and_limits() -> None:
    done = _masters("plan", "smoke", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for text in [*NOTEBOOKS, "expected minutes", "It can show", "It cannot show"]:
        assert text in done.stdout


def test_claims_table_shows_text_as_text(
    example_claims: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from masters_book import commands as cli
    from masters_book.claims import table as claim_rows

    hostile = claim_rows.read_claims(example_claims).assign(statement="[red]not markup[/]")
    monkeypatch.setattr(claim_rows, "read_claims", lambda path: hostile)
    monkeypatch.setenv("COLUMNS", "300")
    cli.claims("smoke")
    shown = capsys.readouterr().out
    assert "[red]not markup[/]" in shown and "not supported" in shown and "-0.2 to +1.0" in shown


# --- make ---------------------------------------------------------------------------------------------------

FAKE = """#!/bin/sh
echo "$@" >> log
case "$1" in
  notebook) mkdir -p "$(dirname "$6")"; touch "$6" ;;
  book) mkdir -p book/_build/html; touch book/_build/html/index.html ;;
esac
"""


SHOWN = ("book/index.md", "CITATION.cff", "examples/run.yaml", "data/results/study/runs.csv")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The Makefile in a small tree, with a `masters` command that writes down what it was asked."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    files = [
        "requirements.in",
        "constraints.txt",
        "pyproject.toml",
        "masters/a.py",
        "masters/b/c.py",
        *SHOWN,
        "data/results/bench.csv",
    ]
    files += [f"notebooks/{name}.ipynb" for name in NOTEBOOKS]
    files += [
        f"notebooks/params/{p}/{name}.yaml" for p in ("mini", "smoke") for name in ["profile", *NOTEBOOKS]
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".installed").touch()
    fake = tmp_path / ".venv" / "bin" / "masters"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    return tmp_path


def _make(tree: Path, *words: str) -> list[str]:
    """Run make and return what it asked of `masters`."""
    (tree / "log").unlink(missing_ok=True)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "PROFILE")
    }
    done = subprocess.run(["make", *words], cwd=tree, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    log = tree / "log"
    return log.read_text().splitlines() if log.exists() else []


def _numbers(asked: list[str]) -> list[int]:
    return [int(line.split()[1][0]) for line in asked if line.startswith("notebook")]


def test_make_runs_every_stage_once_in_order(tree: Path) -> None:
    asked = _make(tree, "-j4", "reproduce")
    assert asked[0] == "plan mini" and asked[-2:] == ["book mini", "claims mini"]
    numbers = _numbers(asked)
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6, 7]
    place = {number: numbers.index(number) for number in numbers}
    for later, earlier in [(2, 1), (3, 1), (4, 3), (5, 3), (5, 2), (6, 5), *((7, n) for n in range(2, 7))]:
        assert place[earlier] < place[later]
    assert _make(tree, "reproduce") == ["plan mini", "claims mini"]


@pytest.mark.parametrize(
    ("touched", "expected"),
    [
        ("notebooks/params/mini/1_tasks_and_models.yaml", [1, 2, 3, 4, 5, 6, 7]),
        ("notebooks/params/mini/2_masking_ablations.yaml", [2, 5, 6, 7]),
        ("notebooks/params/mini/4_reward_design.yaml", [4, 7]),
        ("notebooks/params/mini/6_benchmark_evaluation.yaml", [6, 7]),
        ("notebooks/7_claims.ipynb", [7]),
        ("notebooks/params/mini/profile.yaml", [1, 2, 3, 4, 5, 6, 7]),
        ("masters/b/c.py", [1, 2, 3, 4, 5, 6, 7]),
        ("notebooks/params/smoke/profile.yaml", []),
        ("data/results/bench.csv", [5, 6, 7]),
        *((name, []) for name in SHOWN),
    ],
)
def test_make_runs_what_a_change_reaches(tree: Path, touched: str, expected: list[int]) -> None:
    _make(tree, "reproduce")
    later = time.time() + 1
    os.utime(tree / touched, (later, later))
    asked = _make(tree, "reproduce")
    assert sorted(_numbers(asked)) == expected
    assert ("book mini" in asked) == (bool(expected) or touched in SHOWN)


def test_make_builds_the_book_again_when_the_profile_changes(tree: Path) -> None:
    assert "book mini" in _make(tree, "book")
    assert "book smoke" in _make(tree, "book", "PROFILE=smoke")
    assert _make(tree, "book", "PROFILE=smoke") == []
    assert _make(tree, "book") == ["book mini"]


def test_make_without_a_target_lists_them(tree: Path) -> None:
    done = subprocess.run(["make"], cwd=tree, capture_output=True, text=True)
    for target in ("reproduce", "test", "book", "notebooks", "bench", "lint", "lock", "clean"):
        assert re.search(rf"^  {target} +\S", done.stdout, re.MULTILINE)


def test_make_refuses_a_python_that_is_too_old(tree: Path) -> None:
    (tree / ".venv" / ".installed").unlink()
    old = tree / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(["make", "test", f"PYTHON={old}"], cwd=tree, capture_output=True, text=True)
    assert done.returncode != 0 and "Python 3.11, 3.12 or 3.13 is needed" in done.stderr
