"""The page that explains the null results, from files of the reader's run and of the study."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from masters.report.markup import Html, code, table
from masters.report.study_page import blind_accuracies, settings_of_study

if TYPE_CHECKING:
    from masters.study.study import Study

DOSE = ("model", "ratio", "from_whole", "argmax_changed", "entropy", "to_student")
HEADER = (
    "Model",
    "Mask ratio",
    "JSD to the<br>whole teacher",
    "Argmax<br>changed, %",
    "Entropy",
    "JSD to the<br>student",
)


def why_page(profile: str, run: Path, pretrained: Path, study: "Study | None") -> str:
    """Return the page's body as MyST; what no file holds is left out.

    Args:
        profile: name of the reader's profile.
        run: folder of the reader's run, with ``dose.csv`` and ``rewards.csv`` of its notebooks.
        pretrained: the tracked file of the same doses for a pretrained language model.
        study: the study that the first page shows.
    """
    parts = _mask(profile, run / "dose.csv", pretrained)
    if study is not None and len(study.runs):
        parts += _weight(study) + _sight(study)
    parts += _rewards(profile, run / "rewards.csv")
    return "\n\n".join(parts) + "\n"


def _mask(profile: str, own: Path, pretrained: Path) -> list[str]:
    parts = ["## The mask hardly changes these teachers"]
    if own.is_file():
        frame = pd.read_csv(own)
        whole = frame[frame["ratio"] == 0].set_index("model")
        near = frame[(frame["ratio"] - 0.2).abs() < 1e-9]
        for row in near.to_dict("records"):
            before = whole.loc[row["model"], "to_student"]
            parts.append(
                f"At mask ratio 0.2 the {row['model']} teacher of profile `{profile}` moves by "
                f"{row['from_whole']:.4f} nats per token and changes {100 * row['argmax_changed']:.1f} % of "
                f"its most likely tokens. Its divergence to the student goes from {before:.4f} to "
                f"{row['to_student']:.4f}; only a fall would make it easier to imitate."
            )
        parts.append(_doses(frame))
    if pretrained.is_file():
        frame = pd.read_csv(pretrained)
        at = frame.set_index("ratio")
        parts.append(
            "The same for a pretrained language model (SmolLM2-135M-Instruct, on documentation text; "
            "`benchmarks/mask_dose.py`). There the same ratio has a dose: at 0.2 the mask moves the model by "
            f"{at['from_whole'][0.2]:.3f} nats per token and changes {100 * at['argmax_changed'][0.2]:.0f} % "
            f"of its most likely tokens. Up to 0.15 it becomes softer (entropy {at['entropy'][0.0]:.2f} to "
            f"{at['entropy'][0.15]:.2f} nats) at nearly the same loss ({at['loss'][0.0]:.2f} to "
            f"{at['loss'][0.15]:.2f}); at 0.5 it collapses (loss {at['loss'][0.5]:.2f}), as the students of "
            "table 5a do. So at the paper's mask ratios these small teachers have nothing for a mask to "
            "simplify."
        )
        parts.append(_doses(frame))
    return parts


def _doses(frame: pd.DataFrame) -> Html:
    header: list[str] = [Html(words) for words in HEADER]
    columns = [*DOSE]
    frame = frame.assign(argmax_changed=100 * frame["argmax_changed"])
    if frame["to_student"].isna().all():
        header, columns = [*header[:-1], "Loss"], [*columns[:-1], "loss"]
    digits = dict.fromkeys(columns, 4) | {"ratio": 2, "argmax_changed": 1, "entropy": 3, "loss": 3}
    rows = [
        [str(row["model"]), *(f"{row[name]:.{digits[name]}f}" for name in columns[1:])]
        for row in frame.to_dict("records")
    ]
    return table(header, rows)


def _weight(study: "Study") -> list[str]:
    settings = settings_of_study(study)
    rows = [
        [Html(code(name)), settings[name]]
        for name in ("naive_multi", "masked", "masters", "accuracy_only", "distillation_only")
        if name in settings
    ]
    swept = study.runs[study.runs["arm"].str.fullmatch(r"masters\+learning_rate=.+")]
    words = [
        f"{str(name).split('=')[1]}: {100 * accuracy:.1f} %"
        for name, accuracy in swept.groupby("arm", sort=False)["accuracy"].mean().items()
    ]
    base = study.runs.loc[study.runs["arm"] == "base", "accuracy"].mean()
    return [
        "## The weight of the rewards is not the paper's",
        "Tuning on validation questions chose these settings. With a policy weight far below 1 the rewards "
        "are a small correction to the divergence, and a comparison with and without them sees little.",
        table(["Arm", "Trained with"], rows),
        "With the paper's weight and beta, Masters answers at each learning rate (greedy, mean over "
        f"replicates; the student before training {100 * base:.1f} %): {', '.join(words)}. A ratio of 1 on "
        "responses generated before training has no bound, so a larger rate drives the student away from "
        "where it began."
        if words
        else "",
    ]


def _sight(study: "Study") -> list[str]:
    blind = blind_accuracies(study.folder)
    if "all" not in blind:
        return []
    base = 100 * study.runs.loc[study.runs["arm"] == "base", "accuracy"].mean()
    return [
        "## The student is nearly blind",
        "A lookup from the question's text to the most common training answer scores "
        f"{100 * blind['all']:.1f} %; the student before training scores {base:.1f} %, "
        f"{base - 100 * blind['all']:.1f} points more. What is above the lookup comes from looking at "
        "pictures. So little of that leaves little to distill.",
    ]


def _rewards(profile: str, path: Path) -> list[str]:
    if not path.is_file():
        return []
    facts = pd.read_csv(path).set_index("what")["value"]
    parts = [
        "## What the rewards reward",
        f"In the groups that training sees first (profile `{profile}`), the distillation reward has a rank "
        f"correlation of {facts['correlation_correct']:.2f} with correctness and of "
        f"{facts['correlation_length']:.2f} with the length of the response. It favors what is easy to "
        "predict, which is not what is right.",
    ]
    sources = [name for name in facts.index if name.startswith("advantage_")]
    means = ", ".join(
        f"{facts[name]:+.2f} for those of {str(name).removeprefix('advantage_')}" for name in sources
    )
    parts.append(
        f"The mean advantage of a response is {means}. So to a large part the policy term says *prefer the "
        "teacher's responses*, which the divergence says already. And of the groups, "
        f"{100 * facts['flat_accuracy']:.0f} % have responses that are all right or all wrong: there the "
        "accuracy reward says nothing, and the distillation reward alone gets an advantage of full size."
    )
    return parts
