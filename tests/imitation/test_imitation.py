"""The imitation study on a tiny model: divergences, students, controls at one dose, learning, its page."""

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from masters.objective.divergence import divergence
from masters.runtime.files import write_folder_once
from masters_book import commands
from masters_book.imitation import learning, plan, results, texts
from masters_book.imitation.changes import (
    changes,
    controls,
    direction,
    doses,
    effects,
    helps,
    trend,
    verdicts,
)
from masters_book.imitation.distances import (
    DIVERGENCES,
    WHOLE,
    divergences,
    measure,
    missing_jobs,
    whole_teacher,
)
from masters_book.imitation.learning import Run, learn, ratio_of, temperature_of
from masters_book.imitation.models import load_teacher, pruned
from masters_book.imitation.tables import add_learning, read_learning, tables
from masters_book.imitation.texts import docstrings, held_out, question, training_sequences
from masters_book.pages.imitation import imitation_page

SMALL = {
    "TEXTS": 3,
    "QUESTIONS": 3,
    "VALIDATION": 2,
    "PLACES": 3,
    "LAYERS": (2, 4),
    "HEALED": (0, 512),
    "DRAWS": 2,
    "BATCH": 2,
    "RATIOS": (0.1, 0.2, 0.4),
    "RANDOM_RATIOS": (0.05, 0.5),
    "TEMPERATURES": (1.1, 4.0),
    "CALIBRATION": 4,
    "STEPS": 10,
    "LOOKS": (5, 10),
    "TRIED_STEPS": 5,
    "SEEDS": 2,
    "STARTS": {"far": plan.Start(2, 512), "near": plan.Start(4, 512)},
}


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a teacher of six layers and random weights in place of the pretrained one."""
    cache = tmp_path_factory.mktemp("imitation")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[end], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(docstrings(("click",)), trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )

    def save(folder: Path) -> None:
        LlamaForCausalLM(config).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(folder)

    write_folder_once(cache / "imitation" / "teacher", save)
    return cache


@pytest.fixture
def small(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plan with small numbers and the tiny teacher; return a folder for tables."""
    monkeypatch.setenv("MASTERS_CACHE", str(tiny_teacher))
    for name, package in {"TRAINING": "rich", "HELD_OUT": "click", "CHOOSING": "typer"}.items():
        monkeypatch.setattr(texts, name, (package,))
    for name, value in SMALL.items():
        monkeypatch.setattr(plan, name, value)
    whole_teacher.cache_clear()
    return tmp_path / "tables"


@pytest.fixture
def compared(small: Path) -> Path:
    """Tables of the divergences."""
    for job, arguments in missing_jobs():
        job(*arguments)
    assert missing_jobs() == []
    of_teachers, distances = measure()
    tables(small).write("teachers.csv", doses(of_teachers))
    tables(small).write("changes.csv", changes(distances))
    tables(small).write("controls.csv", controls(of_teachers, distances))
    return small


def test_divergences_are_those_of_the_objective() -> None:
    torch.manual_seed(0)
    p, q = (3 * torch.randn(4, 2, 50)).log_softmax(-1), (3 * torch.randn(4, 3, 50)).log_softmax(-1)
    found = divergences(p, q)
    for teacher in range(2):
        for student in range(3):
            for place, kind in enumerate(DIVERGENCES):
                expected = divergence(p[:, teacher], q[:, student], kind)
                torch.testing.assert_close(found[:, teacher, student, place], expected, atol=1e-5, rtol=1e-4)


def test_every_equation_of_a_rationale_holds() -> None:
    for number in range(200):
        asked, rationale = question(random.Random(number))
        equations = re.findall(r"(\d+) ([-+x]) (\d+) = (-?\d+)", rationale)
        assert equations
        for left, sign, right, result in equations:
            a, b = int(left), int(right)
            assert int(result) == {"+": a + b, "-": a - b, "x": a * b}[sign]
        assert rationale.endswith(f"The answer is {equations[-1][3]}.") and asked.endswith("Answer:")


def test_judged_places_of_a_question_are_in_its_rationale(small: Path) -> None:
    _, tokenizer = load_teacher()
    test = held_out(tokenizer)
    assert test.kinds == ("text",) * 3 + ("question",) * 3
    for row in range(3, 6):
        asked, rationale = question(random.Random(f"held out {row - 3}"))
        before = len(tokenizer(asked)["input_ids"])
        assert test.places[row].min() == before - 1  # predicts the first token of the rationale
        last = int(test.places[row].max())
        whole = tokenizer.decode(test.tokens[row, : last + 2])
        assert whole == f"{asked} {rationale}"
    torch.testing.assert_close(test.at_places(test.tokens)[:, 0], test.tokens[range(6), test.places[:, 0]])


def test_training_texts_depend_on_the_seed_only(small: Path) -> None:
    _, tokenizer = load_teacher()
    first, again, other = (training_sequences(tokenizer, 20, seed) for seed in (0, 0, 1))
    assert first.shape == (20, plan.LENGTH)
    assert first.equal(again) and not first.equal(other)


def test_a_student_is_the_teacher_without_a_middle_block(small: Path) -> None:
    model, tokenizer = load_teacher()
    ids = held_out(tokenizer).tokens[:2]
    student = pruned(load_teacher()[0], 4)
    layers = model.model.layers
    state = model.model.embed_tokens(ids)
    positions = model.model.rotary_emb(state, torch.arange(ids.shape[1])[None])
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    for layer in (layers[0], layers[1], layers[4], layers[5]):
        state = layer(state, attention_mask=mask, position_embeddings=positions)
    with torch.no_grad():
        expected, found = model.lm_head(model.model.norm(state)), student(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not student.get_input_embeddings().weight.requires_grad


def test_the_whole_teacher_has_no_dose_and_a_mask_has(compared: Path) -> None:
    table = tables(compared).read("teachers.csv")
    of_all = table[table["kind"] == "all"].set_index(["way", "value"])
    assert of_all.at[WHOLE, "dose"] == pytest.approx(0, abs=1e-6)
    assert of_all.at[WHOLE, "argmax_changed"] == 0
    magnitude = of_all.loc["magnitude"]["dose"]
    assert magnitude.is_monotonic_increasing and magnitude.min() > 0
    assert of_all.loc["temperature"]["argmax_changed"].eq(0).all()  # softer, same most likely token


def test_tables_of_divergences_have_every_student(compared: Path) -> None:
    table = verdicts(compared)
    assert set(table[["layers", "healed"]].itertuples(index=False, name=None)) == {
        (layers, healed) for layers in plan.LAYERS for healed in plan.HEALED
    }
    assert table["distance"].is_monotonic_increasing
    assert table.set_index("healed")["draws"].to_dict() == {0: 1, 512: 2}
    assert set(table["verdict"]) <= {"nearer", "farther", "no change", "undecided"}


def _distances(shares: dict[tuple[str, float], float]) -> pd.DataFrame:
    """Divergences of one student: that of the whole teacher times a share per changed teacher."""
    base = {sequence: 0.1 + 0.01 * sequence for sequence in range(20)}
    return pd.DataFrame(
        {"layers": 8, "healed": 512, "draw": draw, "way": way, "value": value, "kind": kind}
        | {"sequence": sequence, **dict.fromkeys(DIVERGENCES, base[sequence] * share)}
        for (way, value), share in shares.items()
        for draw in range(3)
        for sequence, kind in enumerate(["text"] * 10 + ["question"] * 10)
    )


def test_a_change_is_in_percent_of_the_distance() -> None:
    table = changes(_distances({WHOLE: 1.0, ("magnitude", 0.2): 0.9}))
    of_all = table[(table["kind"] == "all") & (table["divergence"] == "jsd")].iloc[0]
    assert of_all["distance"] == pytest.approx(0.195)
    assert of_all["change"] == pytest.approx(-10)
    assert of_all["low"] < -10 < of_all["high"] < 0


def test_controls_are_taken_at_the_dose_of_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "RATIOS", (0.2, 0.5))
    dose = {WHOLE: 0.0, ("magnitude", 0.2): 0.03, ("magnitude", 0.5): 9.0, ("activation", 0.2): 0.01}
    dose |= {("temperature", 1.1): 0.02, ("temperature", 1.5): 0.04, ("activation", 0.5): 0.1}
    dose |= {("random", 0.1): 0.06}
    shares = dict.fromkeys(dose, 1.0)
    shares |= {("temperature", 1.1): 0.9, ("temperature", 1.5): 0.7, ("random", 0.1): 1.2}
    of_teachers = pd.DataFrame({"way": way, "value": value, "dose": at} for (way, value), at in dose.items())
    table = controls(of_teachers, _distances(shares))
    found = table[table["kind"] == "all"].set_index(["control", "ratio"])
    assert found.at[("temperature", 0.2), "matched"] == pytest.approx(1.3)
    assert found.at[("temperature", 0.2), "change"] == pytest.approx(20)  # 1.0 for the mask, 0.8 here
    assert found.at[("random", 0.2), "matched"] == pytest.approx(0.05)
    assert found.at[("random", 0.2), "change"] == pytest.approx(-10)
    assert ("temperature", 0.5) not in found.index  # no temperature has such a dose


@pytest.mark.parametrize(
    ("effect", "verdict"),
    [
        ((-3, -4, -2), "nearer"),
        ((3, 2, 4), "farther"),
        ((-0.5, -0.9, -0.1), "no change"),
        ((-3, -7, 1), "undecided"),
        ((-0.5, -1.5, 0.5), "undecided"),
    ],
)
def test_a_verdict_follows_from_interval_and_margin(effect: tuple[float, ...], verdict: str) -> None:
    assert direction(*effect) == verdict


def test_the_trend_is_a_rank_correlation() -> None:
    table = pd.DataFrame({"distance": [0.1, 0.2, 0.3, 0.9], "change": [9.0, 4.0, 2.0, -5.0]})
    assert trend(table)[0] == pytest.approx(-1)


def test_the_progressive_mask_ends_with_the_whole_teacher() -> None:
    assert [ratio_of("progressive", stage) for stage in range(5)] == [0.2, 0.15, 0.1, 0.05, 0]
    assert {ratio_of("constant", stage) for stage in range(5)} == {0.2}
    assert {ratio_of("temperature", stage) for stage in range(5)} == {0.0}


def test_a_temperature_has_the_dose_of_the_stage() -> None:
    rows = [("temperature", 1.2, 0.02), ("temperature", 1.4, 0.06), ("magnitude", 0.2, 0.04)]
    table = pd.DataFrame(rows, columns=["way", "value", "dose"]).assign(kind="all")
    assert temperature_of(0, table) == pytest.approx(1.3)
    assert temperature_of(4, table) == 1.0


def test_a_stopped_run_ends_like_an_undisturbed_one(
    compared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_teacher: Path
) -> None:
    monkeypatch.setattr(learning, "SAVED_EVERY", 4)
    table = tables(compared).read("teachers.csv")
    table = pd.concat([table, table[table["value"] == 0.1].assign(value=0.15)], ignore_index=True)
    table = pd.concat([table, table[table["value"] == 0.1].assign(value=0.05)], ignore_index=True)
    run = Run("far", "progressive", 0, 1e-3)
    undisturbed = learn(run, table)
    learning.forget(run)

    def stop(what: str, done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(learning, "report", stop)
        learn(run, table)
    resumed = learn(run, table)
    learning.forget(run)
    pd.testing.assert_frame_equal(resumed, undisturbed)
    first = undisturbed[undisturbed["step"] == 0]["jsd"].mean()
    assert undisturbed[undisturbed["step"] == 10]["jsd"].mean() < first  # it learns


def test_updates_of_the_whole_teacher_get_the_length_of_the_masked_ones(compared: Path) -> None:
    doses_ = tables(compared).read("teachers.csv")
    masked, scaled = Run("far", "progressive", 1, 1e-3), Run("far", "step length", 1, 1e-3)
    learn(scaled, doses_)  # makes the masked run first
    folder = learning.folder()
    assert (folder / f"lengths-{masked.key}.safetensors").read_bytes() == (
        folder / f"lengths-{scaled.key}.safetensors"
    ).read_bytes()


def test_learning_needs_the_tables_only(compared: Path, tiny_teacher: Path) -> None:
    for folder in (tiny_teacher / "imitation").glob("states-*"):
        shutil.rmtree(folder)
    learn(Run("near", "whole", 0, 1e-3), tables(compared).read("teachers.csv"))


def test_a_diverged_trial_is_the_worst_and_a_diverged_run_is_named(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = pd.DataFrame(
        {"step": [1], "kind": ["text"], "sequence": [0], "jsd": [float("nan")], "loss": [1.0]}
    )
    monkeypatch.setattr(results, "learn", lambda run, doses: lost)
    results.learn_one(Run("far", "whole", 0, 3e-3, trial=True), compared)
    assert tables(compared).read("trials.csv")["jsd"].item() == pytest.approx(np.log(2), abs=1e-5)
    with pytest.raises(ValueError, match=r"far whole, seed 0, diverged at learning rate 0\.003"):
        results.learn_one(Run("far", "whole", 0, 3e-3), compared)
    assert read_learning(compared).empty


def test_a_run_that_another_process_has_stored_is_not_repeated(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("far", "whole", 0, 1e-3, trial=True)
    results.learn_one(run, compared)
    monkeypatch.setattr(results, "learn", None)
    results.learn_one(run, compared)


def test_a_lost_table_is_named(compared: Path) -> None:
    (compared / "controls.csv").unlink()
    with pytest.raises(ValueError, match=r"controls\.csv is missing, and SHA256SUMS lists it"):
        tables(compared).read("controls.csv")


def _learned(folder: Path, arm: str, share: float) -> None:
    for seed in range(plan.SEEDS):
        rows = pd.DataFrame(
            {"start": "far", "arm": arm, "seed": seed, "key": f"{arm} {seed}", "step": step}
            | {"kind": "text", "sequence": sequence, "jsd": 0.1 * share if step else 0.3, "loss": 2.0}
            for step in (0, *plan.LOOKS)
            for sequence in range(4)
        )
        add_learning(rows, folder)


def test_an_effect_needs_all_runs_of_its_comparison(small: Path) -> None:
    _learned(small, "whole", 1.0)
    assert effects(read_learning(small)).empty
    _learned(small, "constant", 0.9)
    table = effects(read_learning(small))
    assert list(table["arm"]) == ["constant", "constant"]
    np.testing.assert_allclose(table["change"], -10, rtol=1e-4)
    assert (table[["loss", "loss_control"]] == 2.0).all().all()
    assert effects(read_learning(small)[lambda rows: rows["key"] != "whole 1"]).empty


@pytest.mark.parametrize(
    ("against_whole", "against_length", "said"),
    [
        ((-3, -4, -2), (-3, -4, -2), ["helps", "by its target"]),
        ((-3, -4, -2), (-1, -3, 1), ["helps", "not shown to be by its target"]),
        ((0, -0.5, 0.5), (-3, -4, -2), ["no help", ""]),
        ((3, 2, 4), (3, 2, 4), ["harms", ""]),
        ((-3, -7, 1), (-3, -4, -2), ["undecided", ""]),
    ],
)
def test_help_comes_from_the_target_only_if_it_beats_the_same_step_length(
    against_whole: tuple[float, ...], against_length: tuple[float, ...], said: list[str]
) -> None:
    about = {"start": "far", "arm": "progressive"}
    rows = [
        about | {"control": control, "step": step} | dict(zip(("change", "low", "high"), effect, strict=True))
        for control, effect in (("whole", against_whole), ("step length", against_length))
        for step in (100, plan.STEPS)
    ]
    assert helps(pd.DataFrame(rows)) == ["", said[0], "", said[1]]


def test_a_trial_and_a_run_are_stored_and_not_repeated(compared: Path) -> None:
    assert len(results.untried(compared)) == len(results.trials()) == 32
    for run in results.untried(compared)[:4]:
        results.learn_one(run, compared)
    assert len(results.untried(compared)) == 28
    assert set(results.rates(compared)) == {("far", "whole")}
    todo = results.unlearned(compared)
    assert [(run.arm, run.seed) for run in todo] == [("whole", 0), ("whole", 1)]
    results.learn_one(todo[0], compared)
    assert [run.seed for run in results.unlearned(compared)] == [1]
    assert results.missing(compared)["runs of learning"] == (1, 19)


def test_the_page_shows_students_and_what_is_missing(compared: Path, tmp_path: Path) -> None:
    page = imitation_page(tmp_path / "imitation.svg", compared)
    assert (tmp_path / "imitation.svg").is_file()
    assert f"of {len(verdicts(compared))} students" in page
    assert "No verdict: 0 of 20 runs are finished" in page
    for words in plan.CRITERIA.values():
        assert words.split(".")[0].replace("`", "") in page


def test_the_page_says_which_teachers_help(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arm, share in (("whole", 1.0), ("constant", 0.9), ("temperature", 1.1)):
        _learned(compared, arm, share)
    monkeypatch.setattr("masters_book.pages.imitation.learned", read_learning)
    page = " ".join(imitation_page(tmp_path / "imitation.svg", compared).split())
    how = "by the final JSD to the whole teacher against learning from it unchanged:"
    assert f"these teachers help, {how} constant -10.0 % (-10.0 to -10.0)." in page
    assert f"these teachers harm, {how} temperature +10.0 % (+10.0 to +10.0)." in page
    assert "<td>0.300 to 0.100</td>" in page and "<td>2.000<br>2.000</td>" in page


def test_the_page_says_that_nothing_was_measured(tmp_path: Path) -> None:
    assert "no results yet" in imitation_page(tmp_path / "imitation.svg", tmp_path)


def test_a_dry_run_lists_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["masters", "study", "imitation", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 0
    assert "runs of learning" in capsys.readouterr().out


def test_the_imitation_study_has_no_replicates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["masters", "study", "imitation", "--replicates", "3"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 1
    assert "leave out --replicates" in capsys.readouterr().err
