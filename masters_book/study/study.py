"""The study: every claim's arms at many replicates, run in any number of sessions.

A replicate redraws everything that is random: initial weights and training of every model, responses, and
question order. The spread between replicates covers all of it. Within a replicate, arms share models and
responses and are compared in pairs.

Before any test question is used, each tuned arm tries the same number of settings on the validation questions
of one replicate, the first that is not refused. Its variants reuse the chosen setting.

Finished runs are rows of small tables in ``data/results/NAME/``, which git tracks. Each row has a key, a hash
of all that determines the run, and counts only while that key is current. Its checkpoints and responses may
be deleted. A session runs what has no row.

A plan may refuse replicates whose teacher is too weak on the validation questions (``teacher_at_least``):
their models are trained and measured, and stay in the tables, but no arm runs. The next replicates take their
place, up to :data:`TRIED` for each that is planned.

Training is not bit-reproducible across machines, so the models of a replicate are kept beside the tables,
outside git (:mod:`masters_book.study.models`). A row also holds the hashes of its models' weights and counts
only while these match the replicate's models. If those are lost and retrain to other weights, the replicate
is rerun in full: arms on different models cannot be compared.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from masters.experiments.arms import arm
from masters.experiments.lab import Lab
from masters.experiments.results import Results, run_arms
from masters.runtime.files import cache_dir
from masters.runtime.keys import key_of
from masters_book.analysis.blind import blind_table
from masters_book.analysis.costs import OFFLINE, ONLINE, measured, with_equal_rates
from masters_book.analysis.ladder import rungs
from masters_book.claims.claims import all_pairs
from masters_book.claims.comparisons import measure
from masters_book.claims.verdicts import judge_claims
from masters_book.results import STUDY
from masters_book.results.intact import write_intact
from masters_book.study.effects import measure_map
from masters_book.study.models import keep, with_kept
from masters_book.study.plan import load_study
from masters_book.study.provenance import machine
from masters_book.study.tables import ANSWERS, SCHEMAS, Tables

COMPARED_BY_COST = {ONLINE, OFFLINE}
AT_ONCE = 8  # runs per write of the tables
TRIED = 2  # replicates that may be trained for each planned one, if some are refused


class Study:
    """A plan with its finished and missing runs.

    Args:
        name: plan in ``notebooks/params``.
        folder: folder of the tables.
        processes: runs in parallel; None takes the profile's number.

    Raises:
        ValueError: as :func:`masters_book.study.plan.load_study`.
    """

    def __init__(self, name: str = "study", folder: Path = STUDY, processes: int | None = None) -> None:
        self.name = name
        self.plan, profile = load_study(name)
        self.profile = profile.model_copy(update={"processes": processes or profile.processes})
        self.folder, self.tables = folder, Tables(folder)

    # --- what is planned ------------------------------------------------------------------------------------

    def replicates(self) -> dict[str, list[int]]:
        """Return the replicates at which each arm runs: the first that are not refused."""
        main, refused = set(self.plan.main), set(self.refused())
        candidates = range(TRIED * self.plan.seeds) if refused else range(self.plan.seeds)
        admitted = [at for at in candidates if at not in refused]
        return {
            name: admitted[: self.plan.seeds if name in main else self.plan.few_seeds]
            for name in self.plan.arms()
        }

    def planned(self) -> list[int]:
        """Return the replicates of all arms."""
        return sorted(set().union(*self.replicates().values()))

    def trials(self, name: str) -> list[str]:
        """Return the settings tried for an arm, as names of arms; none for a model that is not trained."""
        spec = arm(name, self.profile)
        if spec.learn_from == "nothing":
            return []
        if not spec.rewards or spec.learn_from == "online":  # TRL's loss has the policy term alone
            return [f"{name}+learning_rate={rate:g}" for rate in self.plan.trials.plain]
        return [
            f"{name}+learning_rate={rate:g}+policy_weight={weight:g}+beta={beta:g}"
            for rate, weight, beta in self.plan.trials.rewarded
        ]

    def key(self, setting: str, replicate: int, split: str = "test") -> str:
        """Return a hash of all that determines a run, including what its models and responses are made from.

        Settings at their defaults are left out, so a new field does not change old keys.
        """
        names = ("tasks", "train_questions", "wrong_labels", "registers", "sampling", "generation", "reward")
        questions = "test_questions" if split == "test" else "validation_questions"
        of_profile: dict[str, Any] = dict.fromkeys((*names, "ladder", questions), True)
        of_profile["distillation"] = {"top_k_logprobs", "memory_savings", "trainer"}  # the arm holds the rest
        spec = arm(setting, self.profile)
        if spec.judge == "llm":
            of_profile["judge"] = {"model"}
        ladder = {name: self.profile.ladder[name] for name in spec.models}
        changed = self.profile.model_copy(update={"ladder": ladder}).model_dump(
            mode="json", include=of_profile, exclude_defaults=True
        )
        return key_of("run", profile=changed, spec=spec.determining(), replicate=replicate, split=split)

    # --- what is finished and what is missing ---------------------------------------------------------------

    @property
    def tried(self) -> pd.DataFrame:
        """Trials that count, in the plan's order; ``chosen`` marks the best of each fully tried arm."""
        return self._tried(self.tables.read("trials.csv"))

    def _tried(self, table: pd.DataFrame) -> pd.DataFrame:
        wanted = [setting for name in self.plan.tuned for setting in self.trials(name)]
        table = table.set_index("setting", drop=False).rename_axis(None)
        at = self.tuned_at()
        kept = [s for s in wanted if s in table.index and table.at[s, "key"] == self.key(s, at, "validation")]
        table = table.loc[kept].reset_index(drop=True)
        best = table.groupby("arm")["accuracy"].transform("max")
        first = ~table[table["accuracy"] == best].duplicated("arm")
        whole = table.groupby("arm")["setting"].transform("size") == len(self.plan.trials.plain)
        return table.assign(chosen=first.reindex(table.index, fill_value=False) & whole)

    def settings(self) -> dict[str, str]:
        """Return the chosen setting of each arm, also a name of an arm; arms not yet tuned are left out."""
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
        """Runs that count, one row per run."""
        table, settings, planned = self.tables.read("runs.csv"), self.settings(), self.replicates()
        weights = self.tables.read("ladder.csv").set_index(["replicate", "model"])["weights"].to_dict()

        def behind(setting: str, replicate: int) -> str:
            return "+".join(weights.get((replicate, name), "") for name in arm(setting, self.profile).models)

        counts = [
            row["replicate"] in planned.get(row["arm"], ())
            and row["setting"] == settings.get(row["arm"])
            and row["key"] == self.key(row["setting"], row["replicate"])
            and row["weights"] == behind(row["setting"], row["replicate"])
            for row in table.to_dict("records")
        ]
        return table[pd.Series(counts, index=table.index, dtype=bool)].reset_index(drop=True)

    @property
    def costs(self) -> pd.DataFrame:
        """Seconds, in one process, of the runs in :data:`COMPARED_BY_COST`; ``seed`` is the replicate."""
        counts = self.runs[["replicate", "arm", "key"]]
        table = self.tables.read("costs.csv").merge(counts, on=list(counts))
        return with_equal_rates(table.rename(columns={"replicate": "seed"}))

    def missing(self, replicates: Iterable[int] | None = None) -> dict[int, list[str]]:
        """Return the arms without a run, by replicate, including those that still need trials."""
        found: dict[int, list[str]] = {}
        planned = self.replicates()
        there = set(self.runs[["replicate", "arm"]].itertuples(index=False, name=None))
        for replicate in self.planned() if replicates is None else replicates:
            for name, at in planned.items():
                if replicate in at and (replicate, name) not in there:
                    found.setdefault(replicate, []).append(name)
        return found

    def refused(self) -> list[int]:
        """Return the replicates whose models were measured and are not good enough for the plan."""
        least = self.plan.teacher_at_least
        if least is None:
            return []
        found = self._teachers().items()
        return [at for at, of in found if of["large"] < least or of["large"] <= of["mid"]]

    def _teachers(self) -> dict[int, dict[str, float]]:
        """Return the accuracies of the measured teachers, by replicate."""
        weights = self.tables.read("ladder.csv").set_index(["replicate", "model"])["weights"].to_dict()
        scores: dict[int, dict[str, float]] = {}
        for row in self.tables.read("admissions.csv").to_dict("records"):
            model, at = row["model"], row["replicate"]
            current = self.key(model, at, "validation"), weights.get((at, model))
            if (row["key"], row["weights"]) == current:
                scores.setdefault(at, {})[model] = row["accuracy"]
        return {at: of for at, of in scores.items() if {"mid", "large"} <= set(of)}

    def tuned_at(self) -> int:
        """Return the replicate on whose validation questions settings are tried: the first not refused."""
        return next(iter(self.planned()), 0)

    def uncertain(self, replicates: Iterable[int] | None = None) -> list[int]:
        """Return the unfinished replicates that have runs but would have to retrain their models."""
        behind: dict[int, set[str]] = {}
        for replicate, setting in self.runs[["replicate", "setting"]].itertuples(index=False, name=None):
            behind.setdefault(replicate, set()).update(arm(setting, self.profile).models)
        begun = [replicate for replicate in self.missing(replicates) if replicate in behind]
        return [replicate for replicate in begun if not self._is_trained(replicate, behind[replicate])]

    def untried(self, arms: Iterable[str] | None = None) -> list[str]:
        """Return the missing trials, of all arms or of those that ``arms`` depend on."""
        there = set(self.tried["setting"])
        return [s for head in self._heads(arms) for s in self.trials(head) if s not in there]

    def _heads(self, arms: Iterable[str] | None) -> list[str]:
        """Return the tuned arms that some arms depend on; None: all."""
        asked = None if arms is None else set(arms)
        return [
            head
            for head, rest in self.plan.tuned.items()
            if asked is None or asked.intersection((head, *rest))
        ]

    def predictions(self) -> pd.DataFrame:
        """Return the greedy answers of the runs that count; ``seed`` is the replicate."""
        frames = []
        for replicate, kept in self.runs.groupby("replicate")["arm"]:
            frame = self.tables.answers(int(str(replicate)))
            frames.append(frame[frame["arm"].isin(kept)].assign(seed=replicate, mode="greedy"))
        columns = [*ANSWERS, "seed", "mode"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def minutes(self, replicates: Iterable[int] | None = None) -> dict[str, float]:
        """Return the expected minutes of what is missing: ``ladder``, ``trials`` and ``runs``.

        They follow from the mean of the finished work, on whatever machine, or else from the plan.
        """
        ladder, runs = self.tables.read("ladder.csv"), self.runs
        of_run, of_ladder = 60 * self.plan.minutes.run, 60 * self.plan.minutes.ladder  # seconds
        if len(runs):
            of_run = float(runs[["seconds", "evaluation_seconds"]].sum(axis=1).mean())
        if len(ladder):
            of_ladder = float(ladder.groupby("replicate")["seconds"].sum().mean())
        missing, untried = self.missing(replicates), self.untried()
        needed = {self.tuned_at(), *missing} if untried else set(missing)
        untrained = [replicate for replicate in needed if not self._is_trained(replicate)]
        share = 1 / (60 * self.profile.processes)
        return {
            "ladder": of_ladder * len(untrained) * share,
            "trials": of_run * len(untried) * share,
            "runs": of_run * sum(map(len, missing.values())) * share,
        }

    # --- running --------------------------------------------------------------------------------------------

    def lab(self, replicate: int) -> Lab:
        """Return the lab of a replicate, with the models that its arms need."""
        specs = [arm(name, self.profile) for name, at in self.replicates().items() if replicate in at]
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
        if untrained and not (cache_dir() / "models").is_dir():  # is_trained would build the question sets
            return False
        return all(map(lab.is_trained, untrained))

    def tune(self, arms: Iterable[str] | None = None) -> None:
        """Run the missing trials, of all arms or of those that ``arms`` depend on."""
        arms = None if arms is None else set(arms)
        if not self._heads(arms):
            return
        at = self._first_admitted()
        head_of = {setting: head for head in self.plan.tuned for setting in self.trials(head)}
        for settings in _chunks(self.untried(arms)):
            results = run_arms(self.lab(at), settings, seeds=[at], split="validation", diverged=True)
            rows = results.runs.rename(columns={"arm": "setting", "key": "folder"}).assign(
                arm=[head_of[setting] for setting in settings],
                key=[self.key(setting, at, "validation") for setting in settings],
                chosen=False,
            )
            with self.tables.lock:
                table = self.tables.with_rows("trials.csv", rows[list(SCHEMAS["trials.csv"].columns)])
                tried = self._tried(table)
                chosen = tried.loc[tried["chosen"], "setting"]
                self.tables.write("trials.csv", table.assign(chosen=table["setting"].isin(chosen)))

    def _first_admitted(self) -> int:
        """Measure the teachers of one replicate after the other, up to the first that are good enough.

        Raises:
            ValueError: all are refused.
        """
        if self.plan.teacher_at_least is None:
            return self.tuned_at()
        while (planned := self.planned()) and planned[0] not in self._teachers():
            lab = self.lab(planned[0])
            self._keep_ladder(lab, planned[0])
            self._measure_teachers(lab, planned[0])
        if not planned:
            raise ValueError(
                f"study {self.name}: no replicate has a large model that answers "
                f"{self.plan.teacher_at_least:g} of the validation questions and more than mid: train it "
                "longer, or lower teacher_at_least"
            )
        return planned[0]

    def run(self, replicates: Iterable[int] | None = None) -> None:
        """Run what is missing and write the tables every few runs.

        Main arms run first at all replicates, then the others. Each group is tuned before it runs. A
        replicate that is refused on the way is replaced, unless ``replicates`` names those to run.
        """
        main = set(self.plan.main)
        for is_main in (True, False):
            asked = {name for names in self._todo(is_main, replicates).values() for name in names}
            if not asked:
                continue
            self.tune(asked)
            settings = self.settings()
            if lacking := sorted(asked - set(settings)):
                raise ValueError(
                    f"{self.folder / 'trials.csv'} lost trials of {', '.join(lacking)} during this run: run "
                    "the same command again"
                )
            done: set[int] = set()
            while left := [at for at in self._todo(is_main, replicates) if at not in done]:
                replicate = left[0]
                done.add(replicate)
                lab = self.lab(replicate)
                self._keep_ladder(lab, replicate)
                self._measure_teachers(lab, replicate)
                # All of its arms, if its models were retrained to other weights.
                names = self.missing([replicate]).get(replicate, [])
                for some in _chunks([name for name in names if name in main or not is_main]):
                    arms = {settings[name]: name for name in some}
                    results = run_arms(lab, list(arms), seeds=[replicate], diverged=True)
                    self._keep_costs(lab, results, arms, replicate)
                    self._keep(lab, results, arms, replicate)

    def _todo(self, is_main: bool, replicates: Iterable[int] | None) -> dict[int, list[str]]:
        """Return the missing arms that are main arms, or that are not, by replicate."""
        found = {
            at: [name for name in names if (name in self.plan.main) == is_main]
            for at, names in self.missing(replicates).items()
        }
        return {at: names for at, names in found.items() if names}

    def judge(self, resamples: int = 2000) -> pd.DataFrame:
        """Write the claims, every comparison behind them, and the map."""
        predictions, ladder = self.predictions(), self.tables.read("ladder.csv")
        runs = self.runs.rename(columns={"replicate": "seed"})
        effects = measure(predictions, all_pairs(), resamples, runs, self.costs)
        places = measure_map(predictions, ladder, self.profile.distillation.r_max, resamples)
        claims, blind = judge_claims(effects), blind_table(self.profile)
        tables = {"claims": claims, "comparisons": effects, "blind": blind, "map": places}
        for name, table in tables.items():
            self.tables.write(f"{name}.csv", table)
        return claims

    def _keep_ladder(self, lab: Lab, replicate: int) -> None:
        """Keep a replicate's models; called before its runs are kept, which count only for these models."""
        ladder, before = rungs(lab).assign(replicate=replicate), len(self.runs)  # trains what is missing
        with self.tables.lock:
            keep(lab, self._models)
            self.tables.add("ladder.csv", ladder)
        if lost := before - len(self.runs):
            warnings.warn(
                f"the models of replicate {replicate} differ from those of its {lost} finished runs, as "
                "happens on another machine: these runs are repeated; git has the old rows",
                stacklevel=2,
            )

    def _measure_teachers(self, lab: Lab, replicate: int) -> None:
        """Keep the teachers' accuracies on the validation questions, if the plan refuses weak ones."""
        if self.plan.teacher_at_least is None:
            return
        runs = run_arms(lab, ["mid", "large"], seeds=[replicate], split="validation").runs
        rows = runs.rename(columns={"arm": "model"}).assign(
            replicate=replicate,
            key=[self.key(name, replicate, "validation") for name in runs["arm"]],
            weights=[lab.source(name).weights() for name in runs["arm"]],
        )
        self.tables.add("admissions.csv", rows[list(SCHEMAS["admissions.csv"].columns)])

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
        # Answers first: a row of runs.csv implies that its answers are stored.
        self.tables.add_answers(answers[answers["mode"] == "greedy"], replicate)
        for name in ("task", "register"):
            groups = answers.groupby(["arm", "mode", name])
            share = groups.size() / answers.groupby(["arm", "mode"]).size()
            rows = groups[["correct", "tokens"]].mean().assign(share=share, replicate=replicate).reset_index()
            self.tables.replace(f"{name}s.csv", rows, ["replicate", "arm", "mode"])
        self.tables.add("runs.csv", runs[list(SCHEMAS["runs.csv"].columns)])
        with self.tables.lock:
            write_intact(self.folder / "machine.json", json.dumps(machine(), indent=1) + "\n")

    def _keep_costs(self, lab: Lab, results: Results, names: dict[str, str], replicate: int) -> None:
        """Keep costs; called first, as a row of runs.csv implies them. Diverged runs have no cost."""
        rows, diverged = [], set(results.runs.loc[results.runs["diverged"] != "", "arm"])
        for setting, name in names.items():
            if name not in COMPARED_BY_COST or setting in diverged:
                continue
            took = measured(lab, setting, results, replicate)
            row = {"replicate": replicate, "arm": name, "key": self.key(setting, replicate)}
            row |= {c: getattr(took, c) for c in ("steps", "responses", "tokens", "scored", "accuracy")}
            rows.append(row | took.cost.parts() | {"total": took.cost.total()})
        if rows:
            self.tables.add("costs.csv", pd.DataFrame(rows)[list(SCHEMAS["costs.csv"].columns)])


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))
