"""The page that explains the null results, from files of the reader's run and of the study."""

from pathlib import Path
from typing import Any

import pandas as pd

from masters.figures.names import title_of
from masters.imitation.plan import TEACHER
from masters.imitation.tables import tables
from masters.pages.rendering import fill
from masters.pages.study import settings_of_study
from masters.pages.study_tables import Table, blind_accuracies
from masters.runtime.tables import FRACTION, NUMBER, TEXT, Number, Schema, read_table
from masters.study.study import Study

DOSES = Schema(
    {"model": TEXT, "ratio": FRACTION, "from_whole": NUMBER, "argmax_changed": FRACTION, "entropy": NUMBER}
    | {"to_student": Number(optional=True)},
    ("model", "ratio"),
)
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


def why_page(profile: str, run: Path, pretrained: Path, study: Study | None) -> str:
    """Return the page's body; what no file holds is left out.

    Args:
        profile: name of the reader's profile.
        run: folder of the reader's run, with ``dose.csv`` and ``rewards.csv`` of its notebooks.
        pretrained: folder of the imitation study's tables, with the same doses for a pretrained model.
        study: the study that the first page shows.
    """
    runs = study is not None and len(study.runs) > 0
    return fill(
        "why.md",
        profile=profile,
        dose=_dose(run / "dose.csv", pretrained),
        weight=_weight(study) if study and runs else None,
        sight=_sight(study) if study and runs else None,
        rewards=_rewards(run / "rewards.csv"),
    )


def _dose(own: Path, pretrained: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"own": [], "table": None, "pretrained": None}
    if own.is_file():
        frame = read_table(own, DOSES)
        whole = frame[frame["ratio"] == 0].set_index("model")["to_student"]
        near = frame[(frame["ratio"] - 0.2).abs() < 1e-9]
        found["own"] = near.assign(before=near["model"].map(whole)).to_dict("records")
        found["table"] = _doses(frame.drop(columns="loss", errors="ignore"))
    teachers = tables(pretrained).read("teachers.csv")
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
    swept = study.runs[study.runs["arm"].str.fullmatch(r"masters\+learning_rate=.+")]
    means = swept.groupby("arm", sort=False)["accuracy"].mean()
    return {
        "arms": [[name, settings[name]] for name in names if name in settings],
        "rates": [(str(name).split("=")[1], 100 * accuracy) for name, accuracy in means.items()],
        "base": _base(study),
    }


def _sight(study: Study) -> dict[str, float] | None:
    blind = 100 * blind_accuracies(study)
    return {"blind": blind["all"], "base": _base(study)} if "all" in blind else None


def _base(study: Study) -> float:
    """Return the accuracy of the student before training, in percent."""
    return float(100 * study.runs.loc[study.runs["arm"] == "base", "accuracy"].mean())


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
