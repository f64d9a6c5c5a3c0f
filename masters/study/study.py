"""The study: the arms of every claim at many replicates, made in any number of sittings.

A replicate is everything anew: the initial weights and the training of every model of the ladder, the
responses, the order of the questions. So the spread between replicates holds all that could have come out
otherwise. Within a replicate all arms share these, and are compared pairwise.

Before the test questions are seen, every arm with a learning rate of its own is tuned on the validation
questions of replicate 0, with the same number of trials; its variants take over what was chosen.

What a finished run leaves are rows of a few small tables in ``data/results/NAME/``, which git tracks. They
carry a key over all that determines a run, so that a row counts only as long as it would come out again;
the checkpoints and responses behind it may be gone. What is missing is all that another sitting has to do.

Another machine rounds otherwise, and models trained on it come out as other models. Those of a replicate
are therefore kept beside the tables (:mod:`masters.study.models`). A row has the hashes of the weights behind
it and counts as long as they are those of its replicate: who goes on with a replicate whose models are gone
makes all of its runs anew, instead of comparing arms across ladders.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from masters.analysis.blind import blind_table
from masters.analysis.costs import measured, with_equal_rates
from masters.claims.claims import CLAIMS, all_pairs
from masters.claims.comparisons import measure
from masters.claims.verdicts import judge_claims
from masters.experiments.arms import arm
from masters.experiments.lab import VERSION, Lab
from masters.experiments.results import Results, run_arms
from masters.runtime.files import STUDY, cache_dir, hash_of, write_atomic
from masters.runtime.provenance import machine
from masters.study.effects import measure_map
from masters.study.models import keep, with_kept
from masters.study.plan import load_study
from masters.study.tables import ANSWERS, COLUMNS, Tables

# Arms of the claims about cost.
COMPARED_BY_COST = {
    arm_of
    for claim in CLAIMS
    for each in claim.comparisons
    if each.unit == "times"
    for arm_of in (each.treatment, each.control)
}
AT_ONCE = 8  # runs between two writes of the tables


class Study:
    """A plan, what is there of it and what is missing.

    Args:
        name: of the plan in ``notebooks/params``.
        folder: of its tables.
        processes: side by side; those of the profile when None.

    Raises:
        ValueError: no such plan, or a parameter of it is wrong, or an arm that nobody knows.
    """

    def __init__(self, name: str = "study", folder: Path = STUDY, processes: int | None = None) -> None:
        self.name = name
        self.plan, profile = load_study(name)
        self.profile = profile.model_copy(update={"processes": processes or profile.processes})
        self.folder, self.tables = folder, Tables(folder)
        for name_of_arm in self.plan.arms():
            arm(name_of_arm, self.profile)

    # --- what is planned ------------------------------------------------------------------------------------

    def replicates(self, name: str) -> range:
        """The replicates at which an arm runs."""
        return range(self.plan.seeds if name in self.plan.main else self.plan.few_seeds)

    def trials(self, name: str) -> list[str]:
        """What is tried for a tuned arm, as names of arms; nothing for a model that is not trained."""
        spec = arm(name, self.profile)
        if spec.learn_from == "nothing":
            return []
        if not spec.rewards or spec.learn_from == "online":  # TRL's loss is the policy term alone
            return [f"{name}+learning_rate={rate:g}" for rate in self.plan.trials.plain]
        return [
            f"{name}+learning_rate={rate:g}+policy_weight={weight:g}+beta={beta:g}"
            for rate, weight, beta in self.plan.trials.rewarded
        ]

    def key(self, setting: str, replicate: int, split: str = "test") -> str:
        """A hash of all that determines a run, models and responses by what they are made from.

        Of settings only what differs from a default, so that the keys outlive a new field.
        """
        of_profile: dict[str, Any] = dict.fromkeys(
            (
                *("tasks", "train_questions", "wrong_labels", "sampling", "generation", "ladder"),
                "test_questions" if split == "test" else "validation_questions",
            ),
            True,
        )
        of_profile["distillation"] = {"top_k_logprobs", "fit"}  # the rest is in the arm
        spec = arm(setting, self.profile)
        if spec.judge == "llm":
            of_profile["judge"] = {"model"}
        ladder = {name: self.profile.ladder[name] for name in spec.models}  # type: ignore[index]
        what = self.profile.model_copy(update={"ladder": ladder}).model_dump(
            mode="json", include=of_profile, exclude_defaults=True
        )
        return hash_of([VERSION, what, spec.determining(), replicate, split])

    # --- what is there --------------------------------------------------------------------------------------

    @property
    def tried(self) -> pd.DataFrame:
        """The trials that count, in the order of the plan, and which are ``chosen`` of arms that have all."""
        return self._tried(self.tables.read("trials.csv"))

    def _tried(self, table: pd.DataFrame) -> pd.DataFrame:
        wanted = [setting for name in self.plan.tuned for setting in self.trials(name)]
        table = table.set_index("setting", drop=False).rename_axis(None)
        kept = [s for s in wanted if s in table.index and table.at[s, "key"] == self.key(s, 0, "validation")]
        table = table.loc[kept].reset_index(drop=True)
        best = table.groupby("arm")["accuracy"].transform("max")
        first = ~table[table["accuracy"] == best].duplicated("arm")
        whole = table.groupby("arm")["setting"].transform("size") == len(self.plan.trials.plain)
        return table.assign(chosen=first.reindex(table.index, fill_value=False) & whole)

    def settings(self) -> dict[str, str]:
        """Each arm with the setting chosen for it, itself a name of an arm; without those not yet tuned."""
        tried = self.tried
        tried = tried[tried["chosen"]]
        chosen: dict[str, str] = dict(zip(tried["arm"], tried["setting"], strict=True))
        found = {name: name for name in self.plan.fixed}
        for head, variants in self.plan.tuned.items():
            if self.trials(head) and head not in chosen:
                continue
            suffix = chosen.get(head, head).removeprefix(head)
            found |= {name: name + suffix for name in (head, *variants)}
        return found

    @property
    def runs(self) -> pd.DataFrame:
        """The runs that count, one row a run."""
        table, settings = self.tables.read("runs.csv"), self.settings()
        weights = self.tables.read("ladder.csv").set_index(["replicate", "model"])["weights"].to_dict()

        def behind(setting: str, replicate: int) -> str:
            return "+".join(weights.get((replicate, name), "") for name in arm(setting, self.profile).models)

        counts = [
            row["replicate"] in self.replicates(row["arm"])
            and row["setting"] == settings.get(row["arm"])
            and row["key"] == self.key(row["setting"], row["replicate"])
            and row["weights"] == behind(row["setting"], row["replicate"])
            for row in table.to_dict("records")
        ]
        return table[pd.Series(counts, index=table.index, dtype=bool)].reset_index(drop=True)

    @property
    def costs(self) -> pd.DataFrame:
        """What the runs took whose cost a claim is about, in seconds of one process; seeds are replicates."""
        counts = self.runs[["replicate", "arm", "key"]]
        table = self.tables.read("costs.csv").merge(counts, on=list(counts))
        return with_equal_rates(table.rename(columns={"replicate": "seed"}))

    def missing(self, replicates: Iterable[int] | None = None) -> dict[int, list[str]]:
        """The arms that have no run yet, by replicate; those that wait for trials are among them."""
        asked = range(self.plan.seeds) if replicates is None else replicates
        there = set(self.runs[["replicate", "arm"]].itertuples(index=False, name=None))
        wanted = {
            replicate: [
                name
                for name in self.plan.arms()
                if replicate in self.replicates(name) and (replicate, name) not in there
            ]
            for replicate in asked
        }
        return {replicate: names for replicate, names in wanted.items() if names}

    def uncertain(self, replicates: Iterable[int] | None = None) -> list[int]:
        """The replicates that are begun and not finished, and whose models would have to be trained again."""
        behind: dict[int, set[str]] = {}
        for replicate, setting in self.runs[["replicate", "setting"]].itertuples(index=False, name=None):
            behind.setdefault(replicate, set()).update(arm(setting, self.profile).models)
        return [
            each
            for each in self.missing(replicates)
            if each in behind and not self._is_trained(each, behind[each])
        ]

    def untried(self, arms: Iterable[str] | None = None) -> list[str]:
        """The trials that are missing, of all arms or before some of them can run."""
        there, asked = set(self.tried["setting"]), None if arms is None else set(arms)
        heads = [
            head
            for head, variants in self.plan.tuned.items()
            if asked is None or not asked.isdisjoint((head, *variants))
        ]
        return [setting for head in heads for setting in self.trials(head) if setting not in there]

    def predictions(self) -> pd.DataFrame:
        """Greedy answers of the runs that count, as ``measure_claims`` takes them; seeds are replicates."""
        frames = []
        for replicate, kept in self.runs.groupby("replicate")["arm"]:
            frame = self.tables.answers(int(str(replicate)))
            frames.append(frame[frame["arm"].isin(kept)].assign(seed=replicate, mode="greedy"))
        columns = [*ANSWERS, "seed", "mode"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def minutes(self, replicates: Iterable[int] | None = None) -> dict[str, float]:
        """Expected minutes of what is missing: ``ladder``, ``trials`` and ``runs``.

        From the means of what was measured so far, on this or another machine; before that from the plan.
        """
        ladder, runs = self.tables.read("ladder.csv"), self.runs
        of_run = 60 * self.plan.minutes.run
        if len(runs):
            of_run = float(runs[["seconds", "evaluation_seconds"]].sum(axis=1).mean())
        of_ladder = 60 * self.plan.minutes.ladder
        if len(ladder):
            of_ladder = float(ladder.groupby("replicate")["seconds"].sum().mean())
        missing, untried = self.missing(replicates), self.untried()
        needed = {0, *missing} if untried else set(missing)
        untrained = [replicate for replicate in needed if not self._is_trained(replicate)]
        share = 1 / (60 * self.profile.processes)
        return {
            "ladder": of_ladder * len(untrained) * share,
            "trials": of_run * len(untried) * share,
            "runs": of_run * sum(map(len, missing.values())) * share,
        }

    # --- what is done ---------------------------------------------------------------------------------------

    def lab(self, replicate: int) -> Lab:
        """The models that the arms of a replicate need, its responses and its runs."""
        specs = [arm(name, self.profile) for name in self.plan.arms() if replicate in self.replicates(name)]
        needed = {model for spec in specs for model in spec.models}
        ladder = {name: spec for name, spec in self.profile.ladder.items() if name in needed}
        profile = self.profile.model_copy(update={"replicate": replicate, "ladder": ladder})
        return Lab(with_kept(profile, self._models))

    @property
    def _models(self) -> Path:
        return self.folder / "models"

    def _is_trained(self, replicate: int, models: Iterable[str] | None = None) -> bool:
        lab = self.lab(replicate)
        asked = set(lab.profile.ladder if models is None else models)
        untrained = [name for name, spec in lab.profile.ladder.items() if name in asked and not spec.path]
        if untrained and not (cache_dir() / "models").is_dir():  # asking would make the question sets
            return False
        return all(map(lab.is_trained, untrained))

    def tune(self, arms: Iterable[str] | None = None) -> None:
        """Run the trials that are missing, of all arms or before some of them can run."""
        for settings in _chunks(self.untried(arms)):
            results = run_arms(self.lab(0), settings, seeds=[0], split="validation", diverged=True)
            rows = results.runs.rename(columns={"arm": "setting", "key": "folder"}).assign(
                arm=[name.split("+learning_rate=")[0] for name in settings],
                key=[self.key(setting, 0, "validation") for setting in settings],
            )
            with self.tables.lock:
                table = self.tables.with_rows("trials.csv", rows[list(COLUMNS["trials.csv"])], ["setting"])
                tried = self._tried(table)
                chosen = tried.loc[tried["chosen"], "setting"]
                self.tables.write("trials.csv", table.assign(chosen=table["setting"].isin(chosen)))

    def run(self, replicates: Iterable[int] | None = None) -> None:
        """Run what is missing and keep it in the tables every few runs.

        The main arms of all replicates go before the others; each kind is tuned before it runs.
        """
        missing, main = self.missing(replicates), set(self.plan.main)
        for is_main in (True, False):
            todo = {
                replicate: [name for name in names if (name in main) == is_main]
                for replicate, names in missing.items()
            }
            asked = {name for names in todo.values() for name in names}
            self.tune(asked)
            settings = self.settings()
            if lacking := sorted(asked - set(settings)):
                raise ValueError(
                    f"trials of {', '.join(lacking)} were taken out of {self.folder / 'trials.csv'} "
                    "meanwhile: start the same command again"
                )
            for replicate in filter(todo.get, todo):
                lab = self.lab(replicate)
                self._keep_ladder(lab, replicate)
                # All of them, where its models came out otherwise.
                names = self.missing([replicate]).get(replicate, [])
                for some in _chunks([name for name in names if name in main or not is_main]):
                    results = run_arms(
                        lab, [settings[name] for name in some], seeds=[replicate], diverged=True
                    )
                    self._keep_costs(lab, results, {settings[name]: name for name in some}, replicate)
                    self._keep(lab, results, {settings[name]: name for name in some}, replicate)

    def judge(self, resamples: int = 2000) -> pd.DataFrame:
        """Write what follows from the runs: the claims, every comparison behind them, and the map."""
        predictions, ladder = self.predictions(), self.tables.read("ladder.csv")
        runs = self.runs.rename(columns={"replicate": "seed"})
        effects = measure(predictions, all_pairs(), resamples, runs, self.costs)
        frame = judge_claims(effects)
        settings, usual = self.settings().items(), self.profile.distillation
        rates = {name: arm(setting, self.profile).learning_rate for name, setting in settings}
        places = measure_map(predictions, ladder, usual, rates, resamples)
        self.tables.write("claims.csv", frame)
        self.tables.write("comparisons.csv", effects)
        self.tables.write("blind.csv", blind_table(self.profile))
        self.tables.write("map.csv", places)
        return frame

    def _keep_ladder(self, lab: Lab, replicate: int) -> None:
        """Before the runs, which count by it."""
        ladder, before = lab.ladder().assign(replicate=replicate), len(self.runs)  # trains what is missing
        with self.tables.lock:
            keep(lab, self._models)
            self.tables.add("ladder.csv", ladder, ["replicate", "model"])
        if lost := before - len(self.runs):
            warnings.warn(
                f"the models of replicate {replicate} came out otherwise than those of its {lost} runs so "
                "far, as they do on another machine: these runs are made anew; git has the old ones",
                stacklevel=2,
            )

    def _keep(self, lab: Lab, results: Results, names: dict[str, str], replicate: int) -> None:
        runs = results.runs.rename(columns={"arm": "setting", "key": "folder"})
        specs = [arm(setting, self.profile) for setting in runs["setting"]]
        runs = runs.assign(
            arm=runs["setting"].map(names),
            replicate=replicate,
            key=[self.key(setting, replicate) for setting in runs["setting"]],
            weights=["+".join(lab.source(name).weights() for name in spec.models) for spec in specs],
        )
        answers = results.predictions.assign(arm=results.predictions["arm"].map(names))
        # Answers before rows: a row says that its answers are there.
        self.tables.add_answers(answers[answers["mode"] == "greedy"], replicate)
        by = {}
        for name in ("task", "register"):
            means = answers.groupby(["arm", "mode", name])[["correct", "tokens"]].mean()
            sizes = answers.groupby(["arm", "mode", name]).size() / answers.groupby(["arm", "mode"]).size()
            by[name] = means.assign(share=sizes, replicate=replicate).reset_index()
        self.tables.add("tasks.csv", by["task"], ["replicate", "arm", "mode", "task"])
        self.tables.add("registers.csv", by["register"], ["replicate", "arm", "mode", "register"])
        self.tables.add("runs.csv", runs[list(COLUMNS["runs.csv"])], ["replicate", "arm"])
        write_atomic(self.folder / "machine.json", json.dumps(machine(), indent=1) + "\n")

    def _keep_costs(self, lab: Lab, results: Results, names: dict[str, str], replicate: int) -> None:
        """Before the rows of the runs: who has those, has these. What diverged has no cost to compare."""
        rows, diverged = [], set(results.runs.loc[results.runs["diverged"] != "", "arm"])
        for setting, name in names.items():
            if name not in COMPARED_BY_COST or setting in diverged:
                continue
            took = measured(lab, setting, results, replicate)
            figures = {
                column: getattr(took, column)
                for column in ("steps", "responses", "tokens", "scored", "accuracy")
            }
            about = {"replicate": replicate, "arm": name, "key": self.key(setting, replicate)}
            rows.append(about | figures | took.cost.parts() | {"total": took.cost.total()})
        if rows:
            self.tables.add("costs.csv", pd.DataFrame(rows)[list(COLUMNS["costs.csv"])], ["replicate", "arm"])


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))
