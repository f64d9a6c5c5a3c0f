"""The page that explains the null results, from files of the reader's run and of the study."""

from pathlib import Path
from typing import Any

import pandas as pd

from masters.report.rendering import fill
from masters.report.study_page import settings_of_study
from masters.report.study_tables import Table, blind_accuracies
from masters.study.study import Study

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
        pretrained: tracked file of the same doses for a pretrained language model.
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
        frame = pd.read_csv(own)
        whole = frame[frame["ratio"] == 0].set_index("model")["to_student"]
        found["table"] = _doses(frame.drop(columns="loss", errors="ignore"))
        found["own"] = [
            {
                "model": row["model"],
                "moved": f"{row['from_whole']:.4f}",
                "changed": f"{100 * row['argmax_changed']:.1f}",
                "before": f"{whole[row['model']]:.4f}",
                "after": f"{row['to_student']:.4f}",
            }
            for row in frame[(frame["ratio"] - 0.2).abs() < 1e-9].to_dict("records")
        ]
    if pretrained.is_file():
        frame = pd.read_csv(pretrained)
        at = frame.set_index("ratio")
        found["pretrained"] = {
            "moved": f"{at['from_whole'][0.2]:.3f}",
            "changed": f"{100 * at['argmax_changed'][0.2]:.0f}",
            "sharp": f"{at['entropy'][0.0]:.2f}",
            "soft": f"{at['entropy'][0.15]:.2f}",
            "loss": f"{at['loss'][0.0]:.2f}",
            "soft_loss": f"{at['loss'][0.15]:.2f}",
            "broken": f"{at['loss'][0.5]:.2f}",
            "table": _doses(frame.drop(columns="to_student")),
        }
    return found


def _doses(frame: pd.DataFrame) -> Table:
    frame = frame.assign(argmax_changed=100 * frame["argmax_changed"])
    columns = {name: shown for name, shown in DOSE.items() if name in frame}
    rows = [
        [str(row["model"]), *(f"{row[name]:.{digits}f}" for name, (_, digits) in columns.items())]
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
        "rates": [(str(name).split("=")[1], f"{100 * accuracy:.1f}") for name, accuracy in means.items()],
        "base": f"{_base(study):.1f}",
    }


def _sight(study: Study) -> dict[str, str] | None:
    blind = 100 * blind_accuracies(study.folder)
    if "all" not in blind:
        return None
    base = _base(study)
    return {"blind": f"{blind['all']:.1f}", "base": f"{base:.1f}", "more": f"{base - blind['all']:.1f}"}


def _base(study: Study) -> float:
    """Return the accuracy of the student before training, in percent."""
    return float(100 * study.runs.loc[study.runs["arm"] == "base", "accuracy"].mean())


def _rewards(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    facts = pd.read_csv(path).set_index("what")["value"]
    advantages = facts[facts.index.str.startswith("advantage_")]
    return {
        "correct": f"{facts['correlation_correct']:.2f}",
        "length": f"{facts['correlation_length']:.2f}",
        "flat": f"{100 * facts['flat_accuracy']:.0f}",
        "advantages": [
            (str(name).removeprefix("advantage_"), f"{value:+.2f}") for name, value in advantages.items()
        ],
    }
