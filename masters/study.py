"""The study: the arms of every claim at many replicates, made in any number of sittings.

A replicate is everything anew: the initial weights and the training of every model of the ladder, the
responses, the order of the questions. So the spread between replicates holds all that could have come out
otherwise. Within a replicate all arms share these, and are compared pairwise.

Before the test questions are seen, every arm with a learning rate of its own is tuned on the validation
questions of replicate 0, with the same number of trials; its variants take over what was chosen.

What a finished run leaves are rows of a few small tables in ``data/results/NAME/``, which git tracks. They
carry a key over all that determines a run, so that a row counts only as long as it would come out again;
the checkpoints and responses behind it may be gone. What is missing is all that another sitting has to do.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from masters.arms import arm
from masters.claims import CLAIMS
from masters.costs import measured
from masters.experiments import VERSION, Lab
from masters.files import STUDY, cache_dir, hash_of, write_atomic
from masters.provenance import machine
from masters.runs import Results
from masters.study_plan import load_study
from masters.verdicts import judge_claims, judge_comparisons, measure_claims

# Arms of the claims about cost.
COMPARED_BY_COST = {
    arm_of
    for claim in CLAIMS
    for each in claim.comparisons
    if each.metric == "cost"
    for arm_of in (each.treatment, each.control)
}
PARTS = ("generation", "judging", "scoring", "training")  # of a cost, in seconds
AT_ONCE = 8  # runs between two writes of the tables
MEASURED = ("accuracy", "sampled_accuracy", "tokens", "kl", "seconds", "evaluation_seconds")
RUN = ("replicate", "arm", "setting", "key", *MEASURED)
COST = ("replicate", "arm", "key", "steps", "responses", "tokens", *PARTS, "total", "accuracy")
TRIAL = ("arm", "setting", "learning_rate", "policy_weight", "key", *MEASURED)


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
        self.folder = folder
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
            f"{name}+learning_rate={rate:g}+policy_weight={weight:g}"
            for rate, weight in self.plan.trials.rewarded
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
        ladder = {name: self.profile.ladder[name] for name in (spec.student, *spec.teachers)}  # type: ignore[index]
        what = self.profile.model_copy(update={"ladder": ladder}).model_dump(
            mode="json", include=of_profile, exclude_defaults=True
        )
        return hash_of([VERSION, what, spec.determining(), replicate, split])

    # --- what is there --------------------------------------------------------------------------------------

    @property
    def tried(self) -> pd.DataFrame:
        """The trials that count, in the order of the plan, and which are ``chosen`` of arms that have all."""
        return self._tried(self._read("trials.csv", TRIAL))

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
        table, settings = self._read("runs.csv", RUN), self.settings()
        counts = [
            row["replicate"] in self.replicates(row["arm"])
            and row["setting"] == settings.get(row["arm"])
            and row["key"] == self.key(row["setting"], row["replicate"])
            for row in table.to_dict("records")
        ]
        return table[pd.Series(counts, index=table.index, dtype=bool)].reset_index(drop=True)

    @property
    def costs(self) -> pd.DataFrame:
        """What the runs took whose cost a claim is about, in seconds of one process; seeds are replicates."""
        counts = self.runs[["replicate", "arm", "key"]]
        table = self._read("costs.csv", COST).merge(counts, on=list(counts))
        return table.rename(columns={"replicate": "seed"})

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
            frame = pd.read_parquet(self._answers(int(str(replicate))))
            frames.append(frame[frame["arm"].isin(kept)].assign(seed=replicate, mode="greedy"))
        columns = ["arm", "task", "question", "correct", "tokens", "seed", "mode"]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)

    def minutes(self, replicates: Iterable[int] | None = None) -> dict[str, float]:
        """Expected minutes of what is missing: ``ladder``, ``trials`` and ``runs``.

        From the means of what was measured so far, on this or another machine; before that from the plan.
        """
        ladder, runs = self._read("ladder.csv", ("replicate", "seconds")), self.runs
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
        needed = {model for spec in specs for model in (spec.student, *spec.teachers)}
        ladder = {name: spec for name, spec in self.profile.ladder.items() if name in needed}
        return Lab(self.profile.model_copy(update={"replicate": replicate, "ladder": ladder}))

    def _is_trained(self, replicate: int) -> bool:
        if not (cache_dir() / "models").is_dir():  # a fresh clone, where asking would make the question sets
            return False
        lab = self.lab(replicate)
        return all(lab.is_trained(model) for model in lab.profile.ladder)

    def tune(self, arms: Iterable[str] | None = None) -> None:
        """Run the trials that are missing, of all arms or before some of them can run."""
        for settings in _chunks(self.untried(arms)):
            results = self.lab(0).results(settings, seeds=[0], split="validation")
            rows = results.runs.rename(columns={"arm": "setting", "key": "folder"}).assign(
                arm=[name.split("+learning_rate=")[0] for name in settings],
                key=[self.key(setting, 0, "validation") for setting in settings],
            )
            with self._lock:
                table = self._with("trials.csv", rows[list(TRIAL)], ["setting"])
                tried = self._tried(table)
                chosen = tried.loc[tried["chosen"], "setting"]
                self._write("trials.csv", table.assign(chosen=table["setting"].isin(chosen)))

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
            for replicate, names in todo.items():
                lab = self.lab(replicate)
                for some in _chunks(names):
                    results = lab.results([settings[name] for name in some], seeds=[replicate])
                    self._keep_costs(lab, results, {settings[name]: name for name in some}, replicate)
                    self._keep(results, {settings[name]: name for name in some}, replicate)
                    self._add("ladder.csv", lab.ladder().assign(replicate=replicate), ["replicate", "model"])

    def judge(self, resamples: int = 2000) -> pd.DataFrame:
        """Write what follows from the runs: the claims, and every comparison that they are made of."""
        effects = measure_claims(self.predictions(), resamples, costs=self.costs)
        frame = judge_claims(effects)
        self._write("claims.csv", frame)
        self._write("comparisons.csv", judge_comparisons(effects))
        return frame

    def _keep(self, results: Results, names: dict[str, str], replicate: int) -> None:
        runs = results.runs.rename(columns={"arm": "setting", "key": "folder"})
        runs = runs.assign(
            arm=runs["setting"].map(names),
            replicate=replicate,
            key=[self.key(setting, replicate) for setting in runs["setting"]],
        )
        answers = results.predictions.assign(arm=results.predictions["arm"].map(names))
        # Answers before rows: a row says that its answers are there.
        self._add_answers(answers[answers["mode"] == "greedy"], replicate)
        by = {}
        for name in ("task", "register"):
            means = answers.groupby(["arm", "mode", name])[["correct", "tokens"]].mean()
            sizes = answers.groupby(["arm", "mode", name]).size() / answers.groupby(["arm", "mode"]).size()
            by[name] = means.assign(share=sizes, replicate=replicate).reset_index()
        self._add("tasks.csv", by["task"], ["replicate", "arm", "mode", "task"])
        self._add("registers.csv", by["register"], ["replicate", "arm", "mode", "register"])
        self._add("runs.csv", runs[list(RUN)], ["replicate", "arm"])
        write_atomic(self.folder / "machine.json", json.dumps(machine(), indent=1) + "\n")

    def _keep_costs(self, lab: Lab, results: Results, names: dict[str, str], replicate: int) -> None:
        """Before the rows of the runs: who has those, has these."""
        rows = []
        for setting, name in names.items():
            if name not in COMPARED_BY_COST:
                continue
            took = measured(lab, setting, results, replicate)
            figures = {
                column: getattr(took, column) for column in ("steps", "responses", "tokens", "accuracy")
            }
            about = {"replicate": replicate, "arm": name, "key": self.key(setting, replicate)}
            rows.append(about | figures | took.cost.parts() | {"total": took.cost.total()})
        if rows:
            self._add("costs.csv", pd.DataFrame(rows)[list(COST)], ["replicate", "arm"])

    def _add_answers(self, rows: pd.DataFrame, replicate: int) -> None:
        path = self._answers(replicate)
        rows = rows[["arm", "task", "question", "correct", "tokens"]]
        with self._lock:
            if path.is_file():
                old = pd.read_parquet(path)
                rows = pd.concat([old[~old["arm"].isin(set(rows["arm"]))], rows])
            text = dict.fromkeys(("arm", "task", "question"), "category")
            rows = rows.astype(dict.fromkeys(text, str)).astype(text | {"tokens": "uint16"})
            content = rows.to_parquet(index=False, compression="zstd", compression_level=19)
            write_atomic(path, content)

    def _answers(self, replicate: int) -> Path:
        return self.folder / f"answers-{replicate}.parquet"

    @cached_property
    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")  # beside the tables, whichever cache a process has

    def _add(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> None:
        with self._lock:
            self._write(name, self._with(name, rows, identity).sort_values(list(identity)))

    def _with(self, name: str, rows: pd.DataFrame, identity: Sequence[str]) -> pd.DataFrame:
        """A table with more rows, in the place of those that are the same but for their values."""
        path = self.folder / name
        old = [pd.read_csv(path, dtype={"key": str})] if path.is_file() else []
        return pd.concat([*old, rows], ignore_index=True).drop_duplicates(list(identity), keep="last")

    def _write(self, name: str, table: pd.DataFrame) -> None:
        write_atomic(self.folder / name, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    def _read(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        path = self.folder / name
        if not path.is_file():
            return pd.DataFrame(columns=list(columns))
        table = pd.read_csv(path, dtype={"key": str})
        if lacking := [column for column in columns if column not in table]:
            raise ValueError(f"{path} has no column {', '.join(lacking)}: restore it with git, or delete it")
        return table


def _chunks(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE))
