"""The page that explains the null results, from files of the study and of the reader's run."""

from pathlib import Path
from typing import Any

import pandas as pd

from masters.experiments.arms import arm, split
from masters.settings import Profile
from masters_book.figures.names import title_of
from masters_book.imitation.plan import R_MAX, TEACHER
from masters_book.imitation.tables import tables
from masters_book.pages.rendering import fill
from masters_book.pages.study import settings_of_study
from masters_book.pages.study_tables import Table, blind_accuracies
from masters_book.results.tables import TEXT, Number, Schema, read_table
from masters_book.study.study import Study

# A correlation has no value where all responses are equal, for example all wrong.
REWARDS = Schema({"what": TEXT, "value": Number(optional=True)}, ("what",))
CORRELATED = {"correct": "correctness", "length": "the length of the response"}
# Column of a table of doses: its heading and decimals.
DOSE = {
    "ratio": ("Mask ratio", 2),
    "from_whole": ("JSD to the\nwhole teacher", 4),
    "argmax_changed": ("Argmax\nchanged, %", 1),
    "entropy": ("Entropy", 3),
    "to_student": ("JSD to the\nstudent", 4),
    "loss": ("Loss", 3),
}


def why_page(profile: Profile, run: Path, imitation: Path, study: Study) -> str:
    """Return the page's body; what no file holds is left out.

    Args:
        profile: the reader's.
        run: folder of the reader's run, with ``rewards.csv`` of notebook 4.
        imitation: folder of the imitation study's tables.
    """
    runs = len(study.runs) > 0
    return fill(
        "why.md",
        profile=profile,
        dose=_dose(imitation),
        weight=_weight(study) if runs else None,
        sight=_sight(study) if runs else None,
        rewards=_rewards(run / "rewards.csv"),
    )


def _dose(imitation: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"small": [], "table": None, "pretrained": None}
    mini = tables(imitation).read("mini.csv")
    if len(mini):
        means = mini.drop(columns="replicate").groupby(["model", "ratio"], sort=False).mean().reset_index()
        whole = means[means["ratio"] == 0].set_index("model")["to_student"]
        at = means[means["ratio"] == R_MAX]
        found["small"] = at.assign(before=at["model"].map(whole)).to_dict("records")
        found["table"] = _doses(means)
    teachers = tables(imitation).read("teachers.csv")
    frame = teachers[teachers["way"].isin(["whole", "magnitude"]) & (teachers["kind"] == "all")]
    if len(frame):
        frame = frame.rename(columns={"value": "ratio", "dose": "from_whole"}).assign(model=TEACHER)
        found["pretrained"] = frame.set_index("ratio").to_dict()
        found["pretrained_table"] = _doses(frame)
    return found


def _doses(frame: pd.DataFrame) -> Table:
    frame = frame.assign(argmax_changed=100 * frame["argmax_changed"])
    columns = {name: shown for name, shown in DOSE.items() if name in frame}
    rows = [
        [title_of(str(row["model"])), *(f"{row[name]:.{digits}f}" for name, (_, digits) in columns.items())]
        for row in frame.to_dict("records")
    ]
    return ["Model", *(words for words, _ in columns.values())], rows


def _weight(study: Study) -> dict[str, Any]:
    settings = settings_of_study(study)
    names = ("naive_multi", "masked", "masters", "accuracy_only", "distillation_only")
    wide = 100 * study.runs.pivot(index="replicate", columns="arm", values="accuracy").astype(float)

    def along(*varied: str, beside: str, rate: float | None = None) -> list[tuple[str, float]]:
        """Return the accuracy of an arm, then that of Masters over settings in the names of its arms.

        Args:
            rate: at this learning rate only.
        """
        named = {name: split(name) for name in map(str, wide)}
        at = {
            name: float(values[varied[-1]])
            for name, (base, values) in named.items()
            if base == "masters"
            and set(values) == set(varied)
            and rate in (None, float(values["learning_rate"]))
        }
        if varied[-1] == "policy_weight" and at:  # at the paper's weight its name has the rate alone
            same = named[next(iter(at))][1]["learning_rate"]
            at[f"masters+learning_rate={same}"] = 1.0
        asked = [beside, *sorted(at, key=at.__getitem__)]
        if beside not in wide:
            return []
        means = wide[[name for name in asked if name in wide]].dropna().mean()
        return [(f"{at[name]:g}" if name in at else title_of(name), means[name]) for name in means.index]

    chosen = study.settings().get("masked", "masked")
    return {
        "arms": [[name, settings[name]] for name in names if name in settings],
        "rates": along("learning_rate", beside="base"),
        "weights": along(
            "learning_rate", "policy_weight", beside="masked", rate=arm(chosen, study.profile).learning_rate
        ),
        "kl": study.runs[study.runs["arm"].isin(["masters", "masked"])].groupby("arm")["kl"].mean().to_dict(),
    }


def _sight(study: Study) -> dict[str, float] | None:
    blind, means = blind_accuracies(study), study.runs.groupby("arm")["accuracy"].mean()
    if "all" not in blind or "base" not in means:
        return None
    return {
        "blind": 100 * blind["all"],
        **{name: 100 * means[name] for name in ("base", "large") if name in means},
    }


def _rewards(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    facts = read_table(path, REWARDS).set_index("what")["value"]
    advantages = facts[facts.index.str.startswith("advantage_")]
    correlations = {words: facts[f"correlation_{name}"] for name, words in CORRELATED.items()}
    return {
        **facts,
        "correlations": [(words, value) for words, value in correlations.items() if pd.notna(value)],
        "advantages": [(str(name).removeprefix("advantage_"), value) for name, value in advantages.items()],
    }
