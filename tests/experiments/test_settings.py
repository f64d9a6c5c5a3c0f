import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from masters import settings
from masters.runtime.parameters import read_parameters
from masters.settings import PARAMS, load_profile, profiles
from masters_book.pages.parameters import NOTEBOOKS, notebook_parameters


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the profile ``smoke``, so that a test may change it."""
    shutil.copytree(PARAMS / "smoke", tmp_path / "smoke")
    monkeypatch.setattr(settings, "PARAMS", tmp_path)
    return tmp_path / "smoke"


def change(path: Path, **values: Any) -> None:
    """Set values in a YAML file; ``a__b`` is field b of a."""
    content = yaml.safe_load(path.read_text())
    for name, value in values.items():
        *parents, last = name.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(yaml.safe_dump(content))


def refusal(*names: str) -> str:
    """Return the one-line error for an invalid profile or notebook."""
    with pytest.raises(ValueError) as error:
        load_profile(*names) if len(names) == 1 else notebook_parameters(*names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_shipped_profiles_exist() -> None:
    assert {"smoke", "mini"} <= set(profiles())


@pytest.mark.parametrize("name", profiles())
def test_every_shipped_profile_is_complete_and_valid(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and set(profile.ladder) == {"student", "mid", "large"}
    assert set(profile.minutes) == set(NOTEBOOKS)
    for notebook, model in NOTEBOOKS.items():
        found = notebook_parameters(name, notebook)
        assert type(found) is model and found.profile == name


@pytest.mark.parametrize("name", profiles())
def test_every_arm_that_a_shipped_notebook_names_exists(name: str) -> None:
    from masters.experiments.arms import arm

    profile = load_profile(name)
    for notebook in NOTEBOOKS:
        values = notebook_parameters(name, notebook).model_dump()
        for one in (*values.get("arms", ()), *values.get("stabilised", ())):
            arm(one, profile)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"color": 3}, ["color", "known: ", "seeds"]),
        ({"distillation__color": 3}, ["distillation.color"]),
        ({"ladder__mid__color": 3}, ["ladder.mid.color"]),
        ({"ladder__giant": {}}, ["ladder.giant"]),
        ({"seeds": "many"}, ["seeds", "integer"]),
        ({"seeds": 0}, ["seeds", "greater than or equal to 1"]),
        ({"tasks": "charts"}, ["tasks"]),
        ({"wrong_labels": 1.5}, ["wrong_labels"]),
        ({"sampling__top_p": 0}, ["sampling.top_p", "greater than 0"]),
        ({"sampling__temperature": 0}, ["sampling.temperature"]),
        ({"sampling__top_k": -1}, ["sampling.top_k"]),
        ({"distillation__r_max": 1.5}, ["distillation.r_max", "less than 1"]),
        ({"distillation__r_step": 0}, ["distillation.r_step", "greater than 0"]),
        ({"distillation__r_step": 0.15}, ["distillation", "0.15", "does not divide r_max 0.2"]),
        ({"distillation__beta": -0.1}, ["distillation.beta"]),
        (
            {"distillation__memory_savings": {"accumulate": 3}},
            ["accumulate 3 does not divide the batch of"],
        ),
        ({"distillation__memory_savings": {"accumulate": 0}}, ["distillation.memory_savings.accumulate"]),
        ({"distillation__memory_savings": {"lora": {"rank": 0}}}, ["distillation.memory_savings.lora.rank"]),
        ({"distillation__memory_savings": {"lora": 8}}, ["distillation.memory_savings.lora"]),
        ({"distillation__memory_savings": {"fp8": True}}, ["distillation.memory_savings.fp8", "known: "]),
        ({"distillation__watch": {"kl": 0}}, ["distillation.watch.kl", "greater than 0"]),
        ({"distillation__watch": {"growth": 1}}, ["distillation.watch.growth", "greater than 1"]),
    ],
)
def test_a_bad_parameter_is_named_with_its_file(
    params: Path, values: dict[str, Any], words: list[str]
) -> None:
    change(params / "profile.yaml", **values)
    message = refusal("smoke")
    for word in ("profile.yaml", *words):
        assert word in message


def test_several_bad_parameters_are_named_at_once(params: Path) -> None:
    change(params / "profile.yaml", seeds=0, color=1)
    message = refusal("smoke")
    assert "seeds: " in message and "color: " in message


def test_a_missing_parameter_is_named(params: Path) -> None:
    content = yaml.safe_load((params / "profile.yaml").read_text())
    del content["seeds"]
    (params / "profile.yaml").write_text(yaml.safe_dump(content))
    assert "seeds: Field required" in refusal("smoke")


def test_a_missing_profile_is_refused_with_a_list_of_profiles() -> None:
    message = refusal("smoky")
    assert "'smoky'" in message and all(name in message for name in profiles())
    assert refusal("smoky", "7_claims") == message


def test_an_unknown_notebook_is_refused_with_a_list_of_notebooks() -> None:
    message = refusal("smoke", "8_more")
    assert "'8_more'" in message and all(name in message for name in NOTEBOOKS)


def test_a_missing_notebook_file_is_named(params: Path) -> None:
    (params / "5_offline_rl.yaml").unlink()
    assert "smoke/5_offline_rl.yaml: No such file" in refusal("smoke", "5_offline_rl")


def test_a_bad_notebook_parameter_is_named_with_its_file(params: Path) -> None:
    path = params / "2_masking_ablations.yaml"
    change(path, r_max_grid=[0.0, 1.5], color=1)
    message = refusal("smoke", "2_masking_ablations")
    assert "2_masking_ablations.yaml" in message and "r_max_grid.1" in message and "color" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds: [1, 2", "is not valid YAML"),
        ("a: 1\n  b: 2\n", "is not valid YAML"),
        ("- 1\n- 2\n", "holds list"),
        ("just words", "holds str"),
        ("", "holds NoneType"),
    ],
)
@pytest.mark.parametrize("file", ["profile.yaml", "7_claims.yaml"])
def test_a_file_without_parameters_is_named(params: Path, file: str, text: str, words: str) -> None:
    (params / file).write_text(text)
    message = refusal("smoke", "7_claims")
    assert f"smoke/{file}" in message and words in message


def test_a_profile_is_frozen() -> None:
    profile = load_profile("smoke")
    with pytest.raises(ValueError, match="frozen"):
        profile.seeds = 5  # type: ignore[misc]


def test_a_top_k_without_a_cache_is_refused(params: Path) -> None:
    change(params / "profile.yaml", distillation__cache_teacher=False, distillation__top_k_logprobs=8)
    assert "needs cache_teacher, which is off" in refusal("smoke")


def test_a_name_that_stands_twice_in_a_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("training: {batch: 2}\nmask: {step: 0.1}\ntraining: {batch: 4}\n")
    with pytest.raises(ValueError, match="'training' stands twice in one section"):
        read_parameters(tmp_path / "run.yaml")
