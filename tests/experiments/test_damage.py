"""Damaged or lost files of models, runs and checkpoints: named in one line, or computed again."""

import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import small
from fuzzing import count, rounds
from labs import profile

from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.results import run_arms
from masters.experiments.run import run_folder
from masters.models.loading import load
from masters.objective.diagnostics import Diverged
from masters.settings import Profile, TrainerOptions, Watch
from masters_book.analysis.latency import answer_times
from masters_book.study.models import keep, with_kept

ARM = "masters+steps=4"


def tiny(**changes: object) -> Profile:
    made = profile(trainer=TrainerOptions(save_steps=1), **changes)
    ladder = {name: spec for name, spec in made.ladder.items() if name != "mid"}
    return made.model_copy(update={"ladder": ladder})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with a ladder, a finished run, and a second one that ended before its last step."""
    data = tmp_path_factory.mktemp("damage")
    with small.scratch(data):
        log = run_arms(Lab(tiny()), [ARM]).log["kl"]
        bound = Watch(kl=(log[2] + log[3]) / 2)
        with pytest.raises(Diverged, match=r"^stopped at step 4"):
            run_arms(Lab(tiny(watch=bound)), [ARM], split="validation")
        yield data / "cache"


@pytest.fixture
def place(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache."""
    monkeypatch.setenv("MASTERS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(cache, tmp_path / "cache")
    return tmp_path / "cache"


def outcome(split: str) -> tuple[str, pd.DataFrame]:
    """The weights and answers of the run on a split, run where they are missing."""
    lab = Lab(tiny())
    predictions = run_arms(lab, [ARM], split=split).predictions
    answer_times(lab, [ARM], 1)  # reads the kept model
    folder = run_folder(lab, arm(ARM, lab.profile), 0, split)
    return small.weights_hash(load(folder / "model")[0]), predictions


def damage(path: Path, rng: random.Random) -> str:
    content = bytearray(path.read_bytes())
    how = rng.choice(["flipped", "cut", "emptied", "lost"])
    if how == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[rng.randrange(len(content) + 1) :]
    elif how == "emptied":
        content.clear()
    path.write_bytes(content)
    if how == "lost":
        path.unlink()
    return f"{path} was {how}"


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("kind", "split"),
    [
        ("models/*[!k]/*", "test"),
        ("runs/*[!n]/**/*", "test"),
        ("runs/*.run/checkpoint-*/**/*", "validation"),
    ],
)
def test_a_damaged_file_is_named_or_changes_nothing(place: Path, cache: Path, kind: str, split: str) -> None:
    weights, predictions = outcome(split)
    for number in range(rounds(1)):
        shutil.rmtree(place)
        shutil.copytree(cache, place)
        rng = random.Random(f"{kind} {number}")
        damaged = rng.choice(sorted(path for path in place.glob(kind) if path.is_file()))
        what = damage(damaged, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                again = outcome(split)
        except ValueError as error:
            assert damaged.name in str(error) and "\n" not in str(error), what
            count("models, runs and checkpoints, damaged", named=True)
        else:
            assert again[0] == weights, what
            pd.testing.assert_frame_equal(again[1], predictions, obj=what)
            count("models, runs and checkpoints, damaged", named=False)


@pytest.mark.parametrize("lost", ["models/large-*/config.json", "runs/*/result.json"])
def test_a_folder_without_its_last_file_is_made_again(place: Path, lost: str) -> None:
    expected = outcome("test")
    (path,) = place.glob(lost)
    path.unlink()
    name = path.parent.name
    with pytest.warns(UserWarning, match=f"{name} is incomplete: set aside as {name}.incomplete-1"):
        weights, predictions = outcome("test")
    assert weights == expected[0] and path.is_file()
    pd.testing.assert_frame_equal(predictions, expected[1])


def test_a_damaged_result_of_an_older_version_is_named(place: Path) -> None:
    (listed,) = place.glob("runs/*/SHA256SUMS")
    listed.unlink()
    path = listed.with_name("predictions.parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"predictions.parquet is damaged \(.*\): delete its folder") as told:
        run_arms(Lab(tiny()), [ARM])
    assert "\n" not in str(told.value)


def test_a_damaged_kept_model_is_named_and_one_without_its_last_file_replaced(
    place: Path, tmp_path: Path
) -> None:
    lab, kept = Lab(tiny()), tmp_path / "kept"
    keep(lab, kept)
    assert all(spec.path for spec in with_kept(lab.profile, kept).ladder.values())
    (folder,) = kept.glob("0/large-*")
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{folder.name}: model.safetensors damaged: delete the folder to"):
        with_kept(lab.profile, kept)
    (folder / "config.json").unlink()
    assert with_kept(lab.profile, kept).ladder["large"].path is None
    with pytest.warns(UserWarning, match="is incomplete: set aside"):
        keep(lab, kept)
    assert weights.read_bytes() == content
