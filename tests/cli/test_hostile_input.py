"""Wrong parameter files and command lines end in one line within seconds, never in a traceback or a hang."""

import copy
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import count, rounds

from masters.distillation.run_file import load_run_file
from masters.experiments.arms import arm
from masters.runtime.files import ROOT
from masters.runtime.parameters import MAX_BYTES, read_parameters
from masters.settings import Profile, load_profile
from masters_book.commands import main

PROFILE = ROOT / "notebooks" / "params" / "smoke" / "profile.yaml"
RUN_FILE = ROOT / "examples" / "run.yaml"
HUGE = "1" * 100
# No argument of any command takes one of these.
WORDS = [
    "",
    " ",
    "nope",
    "../x",
    "/",
    "a\nb",
    "é\u202e",
    "-",
    "--nope",
    "%s {} $(x)",
    "a" * 5000,
]
NUMBERS = ["-1", "nan", "1e999", "0x10", "²", HUGE, "9" * 5000, "1,2", "", "--seed"]
VALUES: list[Any] = [
    *(
        None,
        True,
        [],
        {},
        [[]],
        {"a": 1},
        "",
        "\x00",
        "é" * 3000,
        "{model:>999999999}",
        "{ratio.x}",
        "../../x",
    ),
    *(0, -1, 10**9, 10**100, 1e-300, -0.5, 1e300, float("nan"), float("inf"), "1e400", "7", "1_000"),
]
SNIPPETS = [
    *(
        "!!bool maybe",
        "!!timestamp x",
        "!!python/object/apply:os.system [ls]",
        "*nothing",
        "&a [*a]",
        "<<: 3",
    ),
    *(
        "[" * 3000,
        "{",
        "? [1]: 2",
        "\t",
        "\x00",
        "---",
        "0b_",
        "2024-13-45",
        "a: &a [x, x]\nb: *a",
        "'",
        "1: 2",
    ),
]


Masters = Callable[..., tuple[int, str, str]]


@pytest.fixture
def masters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Masters:
    """Run a command; return its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["masters", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def mutated(values: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace, remove or add one or two entries anywhere."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 2)):
        place: Any = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and rng.random() < 0.7:
                place = place[key]
                continue
            what = rng.random()
            if what < 0.8:
                place[key] = rng.choice(VALUES)
            elif what < 0.9:
                del place[key]
            elif isinstance(place, dict):
                place[rng.choice(["nope", "a" * 9000, "é", ""])] = rng.choice(VALUES)
            break
    return values


def garbled(text: str, rng: random.Random) -> str:
    """Put a snippet, a cut or a repetition into a text."""
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.randint(0, 60))
    return text[:start] + rng.choice([*SNIPPETS, text[start:end] * 3, ""]) + text[end:]


def written(path: Path, source: Path, rng: random.Random) -> None:
    text = source.read_text()
    changed = yaml.safe_dump(mutated(yaml.safe_load(text), rng)) if rng.random() < 0.7 else garbled(text, rng)
    path.write_text(changed, encoding="utf-8", errors="surrogateescape")


@contextmanager
def refused_or_read(attack: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        text = str(error)
        assert type(error) is ValueError and "\n" not in text and 0 < len(text) < 20_000, repr(error)
        count(attack, named=True)
    else:
        count(attack, named=False)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(rounds(60)))
def test_a_garbled_profile_is_read_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    rng, path = random.Random(seed), tmp_path / "profile.yaml"
    written(path, PROFILE, rng)
    with refused_or_read("profiles, wrong values"):
        profile = Profile.checked(read_parameters(path) | {"name": "smoke"}, path)
        arm(rng.choice(["masters", "clipped", f"steps={HUGE}", f"responses={HUGE}", "beta=1e-999"]), profile)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(rounds(60)))
def test_a_garbled_run_file_is_read_or_refused_in_one_line(seed: int, tmp_path: Path) -> None:
    rng, path = random.Random(seed), tmp_path / "run.yaml"
    written(path, RUN_FILE, rng)
    with refused_or_read("run files, wrong values"):
        run = load_run_file(path)
        run.spec(run.profile(rows=100, evaluated=10), labeled=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(rounds(60)))
def test_a_wrong_command_line_is_one_line(seed: int, masters: Masters, tmp_path: Path) -> None:
    """Every command line here has a profile, study, arm or folder that cannot be right, so none runs."""
    rng = random.Random(seed)
    word, number = rng.choice(WORDS), rng.choice(NUMBERS)
    written(tmp_path / "run.yaml", RUN_FILE, rng)
    code, out, err = masters(
        *rng.choice(
            [
                *([command, word] for command in ("plan", "claims", "book", "refresh", "study", "generate")),
                *([command, word] for command in ("distill", "nope", "responses", "data", "judge")),
                ["train", "smoke", word],
                ["train", "nope", "masters", "--seed", number],
                ["train", "smoke", f"steps={number}"],
                ["train", "smoke", f"masters+r_max={number}"],
                ["study", "nope", "--replicates", number, "--dry-run"],
                ["study", "nope", "--processes", number],
                ["judge", "nope", "--num-shards", number],
                ["generate", "smoke", "--arm", word or "x", "--shard-index", number],
                ["export", "smoke", word or "x", str(tmp_path / "out"), "--ratio", number],
                ["notebook", "1_tasks_and_models", "--profile", word],
                ["responses", "show", word, "x"],
                ["data", "check", str(tmp_path / "run.yaml")],
                ["distill", str(tmp_path / "run.yaml"), "--check"],
                ["chat", str(tmp_path), "--max-new-tokens", number],
            ]
        )
    )
    if code == 0 or (code == 2 and "Usage:" in out):
        count("command lines, wrong", named=code != 0)
        return
    assert code in (1, 2) and re.fullmatch(r"masters: .{1,2100}\n", err), (code, out, err)
    assert "MASTERS_DEBUG" not in err
    count("command lines, wrong", named=True)


@pytest.mark.parametrize(
    ("arguments", "title"),
    [([], "Your own models and data"), (["responses"], "Commands"), (["data"], "Commands")],
)
def test_without_a_command_the_help_is_shown(arguments: list[str], title: str, masters: Masters) -> None:
    code, out, err = masters(*arguments)
    assert (code, err) == (2, "") and "Usage:" in out and title in out


@pytest.mark.parametrize("columns", ["1", "0", "-3", "²", HUGE])
def test_a_table_is_readable_at_any_width(
    columns: str, masters: Masters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = masters("plan", "smoke")
    assert code == 0 and "expected minutes" in out and len(out) < 100_000


def test_a_large_parameter_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("#" * (10 * MAX_BYTES))
    for load in (read_parameters, load_run_file):
        with pytest.raises(ValueError, match="more than 1,000,000 bytes"):
            load(path)


@pytest.mark.parametrize("path", ["", "x" * 5000])
def test_a_rung_without_a_path_is_refused(path: str) -> None:
    values = load_profile("smoke").model_dump()
    values["ladder"]["student"]["path"] = path
    with pytest.raises(ValueError, match=r"ladder\.student\.path: String should have at"):
        Profile.checked(values, Path("profile.yaml"))
