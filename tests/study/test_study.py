"""The study on a tiny profile: planning, tuning, keeping, resuming, and which rows stop counting."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small
import yaml
from labs import here, profile
from pydantic import ValidationError
from typer.testing import CliRunner

from masters import settings
from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.results import run_arms
from masters.runtime import keys
from masters.runtime.checksums import SUMS
from masters.settings import LanguageJudge, Profile
from masters_book import commands as cli
from masters_book import results
from masters_book.analysis.costs import measured
from masters_book.study import plan as study_plan
from masters_book.study import study
from masters_book.study.models import keep, with_kept
from masters_book.study.plan import StudyPlan, load_study
from masters_book.study.study import Study
from masters_book.study.tables import PARTS, Tables

DIVERGES = 0.5  # learning rate at which the loss is not finite in these tests
PLAN: dict[str, Any] = {
    "title": "tiny",
    "about": "nothing",
    "profile": "tiny",
    "seeds": 2,
    "few_seeds": 1,
    "validation_questions": 6,
    "test_questions": 8,
    "minutes": {"ladder": 1, "run": 1},
    "trials": {"plain": [1e-3, DIVERGES], "rewarded": [[1e-3, 1.0, 0.1], [1e-2, 0.5, 0.05]]},
    "main": ["base", "masked", "masters", "own_accuracy", "online"],
    "tuned": {"base": [], "masked": [], "masters": ["responses=2", "r_max=0.0"]},
    "fixed": ["masters+learning_rate=1e-05", "naive_multi", "own_accuracy", "online"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("study")
    with small.scratch(folder / "data") as patch:
        patch.setattr(Lab, "parallel", here)
        yield folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "load_study", lambda name: (StudyPlan(**PLAN), profile()))


@pytest.fixture(scope="module")
def finished(data: Path) -> Study:
    """Run a study in two sessions; the second has only the tables of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "load_study", lambda name: (StudyPlan(**PLAN), profile()))
        small.diverge_at(DIVERGES, patch)
        first = Study(folder=data / "tables")
        assert first.untried() and first.settings() == {name: name for name in ("base", *PLAN["fixed"])}
        first.run([0])
        assert first.missing() == {1: PLAN["main"]}
        Study(folder=data / "tables").run()
        return Study(folder=data / "tables")


def copy(study: Study, folder: Path) -> None:
    """Copy tables and models without checksums, so that a test may edit the tables."""
    shutil.copytree(study.folder, folder, ignore=shutil.ignore_patterns(SUMS), dirs_exist_ok=True)


def test_every_arm_has_its_replicates(finished: Study) -> None:
    assert not finished.missing() and not finished.untried()
    runs = finished.runs
    assert len(runs) == 2 * 5 + 1 * 4 and not runs.duplicated(["replicate", "arm"]).any()
    assert set(runs.loc[runs["replicate"] == 1, "arm"]) == set(PLAN["main"])
    assert runs["accuracy"].between(0, 1).all() and (runs["evaluation_seconds"] > 0).all()


def test_the_best_trial_on_validation_is_what_an_arm_and_its_variants_run_with(finished: Study) -> None:
    tried = finished.tried
    assert list(tried["arm"]) == ["masked", "masked", "masters", "masters"]
    for name, trials in tried.groupby("arm"):
        assert trials["chosen"].sum() == 1
        best = trials[trials["chosen"]].iloc[0]
        assert best["accuracy"] == trials["accuracy"].max()
        settings_of = finished.settings()
        assert settings_of[str(name)] == best["setting"]
        if name == "masters":
            assert settings_of["responses=2"] == best["setting"].replace("masters", "responses=2", 1)
            spec = arm(settings_of["responses=2"], finished.profile)
            assert spec.learning_rate == best["learning_rate"] and spec.policy_weight == best["policy_weight"]
            assert spec.beta == best["beta"]
    # A diverged trial counts as a trial and does not stop the study.
    assert tried["accuracy"][1] == 0 and list(tried["chosen"][:2]) == [True, False]
    assert finished.settings()["masters+learning_rate=1e-05"] == "masters+learning_rate=1e-05"


def test_the_tables_hold_what_the_runs_gave(finished: Study) -> None:
    lab, runs = finished.lab(1), finished.runs.set_index(["replicate", "arm"])
    results = run_arms(lab, [finished.settings()["masked"]], seeds=[1])
    assert runs.loc[(1, "masked"), "accuracy"] == pytest.approx(results.runs["accuracy"][0], rel=1e-5)
    kept = finished.predictions()
    kept = kept[(kept["arm"] == "masked") & (kept["seed"] == 1)].sort_values("question")
    made = results.predictions.query("mode == 'greedy'").sort_values("question")
    for column in ("question", "task", "correct", "tokens"):
        assert list(kept[column]) == list(made[column])
    tasks = pd.read_csv(finished.folder / "tasks.csv")
    assert tasks.groupby(["replicate", "arm", "mode"])["share"].sum().tolist() == pytest.approx([1.0] * 28)
    registers = pd.read_csv(finished.folder / "registers.csv")
    row = registers.query("replicate == 1 and arm == 'masked' and mode == 'greedy'")
    assert (row["share"] * row["tokens"]).sum() == pytest.approx(made["tokens"].mean(), rel=1e-4)
    assert json.loads((finished.folder / "machine.json").read_text())["cores"] >= 1


def test_a_replicate_is_everything_anew(finished: Study) -> None:
    labs = finished.lab(0), finished.lab(1)
    for model in ("student", "large"):
        assert labs[0].source(model).weights() != labs[1].source(model).weights()
    assert labs[0].store("student", 0.0).folder != labs[1].store("student", 0.0).folder
    # Replicate 0 has the ladder of the profile itself.
    assert Lab(profile()).source("student").weights() == labs[0].source("student").weights()
    # No arm needs the mid teacher, so none is trained.
    assert list(pd.read_csv(finished.folder / "ladder.csv")["model"]) == ["large", "student"] * 2


def test_the_claims_follow_from_the_tables_alone(
    finished: Study, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = finished.judge(resamples=50).set_index("id")
    assert frame.loc["C3", "verdict"] != "not tested" and frame.loc["C3", "seeds"] == 2
    assert frame.loc["C9", "verdict"] == "not tested"
    monkeypatch.setenv("MASTERS_DATA", str(data / "elsewhere"))
    again = Study(folder=finished.folder)
    assert not again.missing()
    pd.testing.assert_frame_equal(again.judge(resamples=50).set_index("id"), frame)
    places = pd.read_csv(finished.folder / "map.csv")
    assert places[["axis", "value", "control", "seeds"]].values.tolist() == [
        ["r_max", 0.0, "naive_multi", 1],
        ["r_max", 0.2, "masked", 2],
    ]
    accuracy = finished.runs.pivot(index="replicate", columns="arm", values="accuracy").astype(float)
    points = 100 * accuracy["masters"].sub(accuracy["masked"]).mean()
    assert places["points"][1] == pytest.approx(points, abs=1e-6)


def test_what_runs_cost_is_kept_and_makes_a_verdict(finished: Study) -> None:
    costs = finished.costs.set_index(["seed", "arm"])
    assert sorted(costs.index) == [(0, "online"), (0, "own_accuracy"), (1, "online"), (1, "own_accuracy")]
    parts = costs[[*PARTS]]
    assert parts.sum(axis=1).to_numpy() == pytest.approx(costs["total"], rel=1e-4)
    assert (parts.drop(columns="scoring") > 0).all().all()
    results = run_arms(finished.lab(1), ["own_accuracy"], seeds=[1])
    again = measured(finished.lab(1), "own_accuracy", results, 1)
    row = costs.loc[1, "own_accuracy"]
    assert row["training"] == pytest.approx(again.cost.training, rel=1e-4) and row["tokens"] == again.tokens
    equal, as_run = (
        (table["online"] / table["own_accuracy"]).mean()
        for table in (costs[name].unstack() for name in ("total_equal", "total"))
    )
    row = finished.judge(resamples=50).set_index("id").loc["C14"]
    assert row["effect"] == pytest.approx(equal) != pytest.approx(as_run)
    alone = pd.read_csv(finished.folder / "comparisons.csv").query("id == 'C14'").set_index("metric")
    assert alone["effect"]["cost as run"] == pytest.approx(as_run, rel=1e-5)
    assert row["verdict"] != "not tested" and row["seeds"] == 2
    # Costs count only with their run.
    table = pd.read_csv(finished.folder / "costs.csv")
    assert set(table["key"]) <= set(finished.runs["key"])


def test_a_run_that_diverged_has_no_cost(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_of = finished.settings()
    diverged = next(setting for setting in finished.trials("masked") if setting != settings_of["masked"])
    monkeypatch.setattr(study, "COMPARED_BY_COST", {"masked", "own_accuracy"})
    lab, apart = finished.lab(0), Study(folder=tmp_path)
    small.diverge_at(DIVERGES, monkeypatch)
    names = {diverged: "masked", "own_accuracy": "own_accuracy"}
    apart._keep_costs(lab, run_arms(lab, list(names), seeds=[0], diverged=True), names, 0)
    assert list(pd.read_csv(tmp_path / "costs.csv")["arm"]) == ["own_accuracy"]


def test_finished_work_is_not_done_again(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished.folder / "runs.csv").read_bytes()
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    Study(folder=finished.folder).run()
    assert (finished.folder / "runs.csv").read_bytes() == before and not list(tmp_path.iterdir())


def test_rows_that_would_come_out_otherwise_count_no_longer(
    finished: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_profile(changed: Profile) -> Study:
        monkeypatch.setattr(study, "load_study", lambda name: (StudyPlan(**PLAN), changed))
        return Study(folder=finished.folder)

    longer = with_profile(profile(steps=8))
    assert longer.runs.empty and longer.tried.empty and len(longer.untried()) == 4
    same = with_profile(profile().model_copy(update={"description": "other words", "processes": 7}))
    assert not same.missing()
    top_k = profile().distillation.model_copy(update={"top_k_logprobs": 4})
    assert with_profile(profile().model_copy(update={"distillation": top_k})).runs.empty
    judged = []
    for name in ("grader", "another"):
        judge = LanguageJudge(server="http://127.0.0.1:1", model=name)
        named = with_profile(profile().model_copy(update={"judge": judge}))
        assert not named.missing()
        judged.append(named.key("accuracy_only+judge=llm", 0))
    assert judged[0] != judged[1]
    monkeypatch.setitem(keys.VERSIONS, "run", -1)
    assert with_profile(profile()).runs.empty


def test_another_choice_of_a_trial_makes_its_runs_anew(finished: Study, tmp_path: Path) -> None:
    copy(finished, tmp_path)
    trials = Tables(tmp_path).read("trials.csv")
    masters = trials["arm"] == "masters"
    chosen = finished.settings()["masters"]
    trials.loc[masters & (trials["setting"] != chosen), "accuracy"] = 1.0
    trials.to_csv(tmp_path / "trials.csv", index=False)
    assert Study(folder=tmp_path).missing() == {
        0: ["masters", "responses=2", "r_max=0.0"],
        1: ["masters"],
    }


def test_a_replicate_that_is_gone_on_with_has_runs_of_the_same_models_alone(
    finished: Study, tmp_path: Path
) -> None:
    """Continue from another machine's tables: its own models, and one run of replicate 0 missing."""
    copy(finished, tmp_path)
    shutil.rmtree(tmp_path / "models")
    here = Tables(tmp_path).read("ladder.csv")
    student = here.query("replicate == 0 and model == 'student'")["weights"].iloc[0]
    for name in ("ladder.csv", "runs.csv"):
        path = tmp_path / name
        path.write_text(path.read_text().replace(student, "0000000000000123"))
    runs = Tables(tmp_path).read("runs.csv")
    runs[runs["arm"] != "responses=2"].to_csv(tmp_path / "runs.csv", index=False)

    moved = Study(folder=tmp_path)
    assert moved.missing() == {0: ["responses=2"]} and len(moved.runs) == 13 and moved.uncertain() == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "is_trained", lambda self, model: False)
        assert moved.uncertain() == [0] and moved.uncertain([1]) == []
    with pytest.warns(UserWarning, match="replicate 0 differ from those of its 8 finished runs"):
        moved.run()
    pd.testing.assert_frame_equal(moved.runs, finished.runs)
    pd.testing.assert_frame_equal(Tables(tmp_path).read("ladder.csv"), here)


def test_with_the_kept_models_another_machine_goes_on_without_training(
    finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was trained again")

    tables = tmp_path / "tables"
    copy(finished, tables)
    runs = Tables(tables).read("runs.csv")
    runs[(runs["arm"] != "masked") | (runs["replicate"] != 1)].to_csv(tables / "runs.csv", index=False)
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(Lab, "train_rung", refuse)
    moved = Study(folder=tables)
    assert moved.missing() == {1: ["masked"]} and moved.uncertain() == [] and moved.minutes()["ladder"] == 0
    moved.run()
    columns = ["replicate", "arm", "setting", "key", "weights", "accuracy", "tokens"]
    pd.testing.assert_frame_equal(moved.runs[columns], finished.runs[columns])
    for name in ("ladder.csv", "tasks.csv"):
        assert (tables / name).read_bytes() == (finished.folder / name).read_bytes()

    # Kept models replace only what the plan would train.
    other = moved.profile.ladder["student"].model_copy(update={"steps": 21})
    changed = moved.profile.model_copy(update={"ladder": moved.profile.ladder | {"student": other}})
    with_others = with_kept(changed, tables / "models").ladder
    assert with_others["student"] == other and Path(str(with_others["large"].path)).is_dir()


def test_a_model_that_no_run_has_yet_makes_no_run_uncertain(finished: Study, tmp_path: Path) -> None:
    copy(finished, tmp_path)
    shutil.rmtree(tmp_path / "models")
    runs = Tables(tmp_path).read("runs.csv")
    runs[runs["arm"] == "base"].to_csv(tmp_path / "runs.csv", index=False)
    begun = Study(folder=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "is_trained", lambda self, model: model == "student")
        assert set(begun.missing()) == {0, 1} and begun.uncertain() == []
        patch.setattr(Lab, "is_trained", lambda self, model: model != "student")
        assert begun.uncertain() == [0, 1]


def test_a_changed_model_is_kept_in_the_place_of_the_old_one(finished: Study, tmp_path: Path) -> None:
    old = tmp_path / "0" / "student-0123456789abcdef"
    old.mkdir(parents=True)
    assert all(spec.path for spec in finished.lab(0).profile.ladder.values())
    ladder = {name: finished.profile.ladder[name] for name in finished.lab(0).profile.ladder}
    keep(Lab(finished.profile.model_copy(update={"ladder": ladder})), tmp_path)
    names = sorted(path.name.partition("-")[0] for path in old.parent.iterdir())
    assert names == ["large", "student"] and not old.is_dir()


def test_a_stop_between_two_writes_loses_no_run(finished: Study, tmp_path: Path) -> None:
    stopped = Study(folder=tmp_path)
    (tmp_path / "runs.csv").mkdir()  # the last table of a run cannot be written
    with pytest.raises(IsADirectoryError):
        stopped.run()
    assert stopped.runs.empty and len(stopped.tried) == 4 and stopped.predictions().empty
    (tmp_path / "runs.csv").rmdir()
    Study(folder=tmp_path).run()
    columns = ["replicate", "arm", "setting", "key", "accuracy", "tokens"]
    pd.testing.assert_frame_equal(Study(folder=tmp_path).runs[columns], finished.runs[columns])


def test_a_replicate_whose_teacher_is_weak_has_no_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strict(least: float) -> Study:
        arms = {"main": ["mid_then_large"], "tuned": {}, "fixed": ["mid_then_large"]}
        plan = StudyPlan(**(PLAN | arms | {"teacher_at_least": least}))
        monkeypatch.setattr(study, "load_study", lambda name: (plan, profile()))
        return Study(folder=tmp_path)

    tuned = {"main": ["mid_then_large", "masked"], "tuned": {"masked": []}, "fixed": ["mid_then_large"]}
    every = StudyPlan(**(PLAN | tuned | {"teacher_at_least": 0.999}))
    monkeypatch.setattr(study, "load_study", lambda name: (every, profile()))
    hopeless = Study(folder=tmp_path / "tuned")
    with pytest.raises(ValueError, match=r"no replicate has a large model that answers 0\.999 of"):
        hopeless.run()
    assert hopeless.refused() == [0, 1, 2, 3] and hopeless.missing() == {}

    refusing = strict(0.999)
    assert refusing.refused() == [] and refusing.missing() == {at: ["mid_then_large"] for at in (0, 1)}
    refusing.run([0])
    assert refusing.refused() == [0] and refusing.runs.empty
    assert refusing.missing() == {at: ["mid_then_large"] for at in (1, 2)}  # the next takes its place
    found = refusing.tables.read("admissions.csv")
    assert set(found["model"]) == {"mid", "large"} and found["accuracy"].between(0, 1).all()

    def with_scores(mid: float, large: float, weights: str = "") -> list[int]:
        scores = found.assign(accuracy=[{"mid": mid, "large": large}[name] for name in found["model"]])
        if weights:
            scores["weights"] = weights
        (tmp_path / SUMS).unlink(missing_ok=True)
        scores.to_csv(tmp_path / "admissions.csv", index=False)
        return strict(0.85).refused()

    assert refusing.tuned_at() == 1
    assert with_scores(0.7, 0.85) == [] and with_scores(0.7, 0.84) == [0] and with_scores(0.9, 0.9) == [0]
    assert with_scores(0.7, 0.1, weights="of other models") == []


def test_the_shell_says_what_is_missing_and_does_it(
    finished: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "STUDY", tmp_path / "study")
    told = CliRunner().invoke(cli.app, ["study", "--dry-run"])
    assert told.exit_code == 0 and "runs of replicate 1" in told.output and not list(tmp_path.iterdir())
    done = CliRunner().invoke(cli.app, ["study", "--replicates", "0"])
    assert done.exit_code == 0 and "C15" in done.output and (tmp_path / "study" / "claims.csv").is_file()
    assert Study(folder=tmp_path / "study").missing() == {1: PLAN["main"]}
    for wrong, words in (
        ("7", "no replicate 7"),
        ("a-b", "must be a number or"),
        ("1-0", "must be a number or"),
    ):
        refused = CliRunner().invoke(cli.app, ["study", "--replicates", wrong])
        assert isinstance(refused.exception, ValueError) and words in str(refused.exception)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"few_seeds": 3}, "few_seeds 3 is more than seeds 2"),
        ({"fixed": ["base"]}, "listed twice: base"),
        ({"main": ["naive"]}, "main: naive is neither tuned nor fixed"),
        (
            {"trials": {"plain": [1e-3], "rewarded": [[1e-3, 1, 0.1], [1e-2, 1, 0.1]]}},
            "give every arm the same number",
        ),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        StudyPlan(**(PLAN | change))


@pytest.mark.parametrize("name", study_plan.studies())
def test_the_plans_of_the_project(name: str) -> None:
    plan, of_runs = load_study(name)
    assert {"naive", "base", "masked", "naive_multi", "masters", "mid_then_large"} <= set(plan.main)
    assert plan.test_questions * len(of_runs.tasks) >= 10_000
    for each in plan.arms():
        arm(each, of_runs)


def test_the_main_plan_has_power() -> None:
    plan, _ = load_study()
    assert study_plan.studies()[0] == "study" and plan.seeds >= 10 and plan.few_seeds >= 5
    with pytest.raises(ValueError, match="there is no study 'no'; there are: study, imitation"):
        load_study("no")


def test_settings_of_a_plan_stand_in_the_place_of_the_profile_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = yaml.safe_load((settings.PARAMS / "study.yaml").read_text())
    del plan["distillation"]
    source = yaml.safe_dump(plan)
    shutil.copytree(settings.PARAMS / "mini", tmp_path / "mini")
    for module in (settings, study_plan):
        monkeypatch.setattr(module, "PARAMS", tmp_path)
    (tmp_path / "other.yaml").write_text(source + "distillation: {steps: 7, lr_schedule: linear}\n")
    _, of_runs = load_study("other")
    usual = settings.load_profile("mini").distillation
    assert of_runs.distillation == usual.model_copy(update={"steps": 7, "lr_schedule": "linear"})
    (tmp_path / "other.yaml").write_text(source + "distillation: {steps: 0}\n")
    with pytest.raises(ValueError, match=r"other.yaml: distillation.steps: Input should be greater"):
        load_study("other")
