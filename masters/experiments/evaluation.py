"""Evaluate a model: its greedy and sampled answers to a set of questions, judged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel

from masters.data.labels import accepted
from masters.data.questions import Questions
from masters.judges import Judge, accuracies, score_labeled
from masters.responses.engines import Response
from masters.responses.engines.local import generate
from masters.runtime.progress import report
from masters.settings import Sampling


def answers(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    wanted: Sequence[int],
    n: int,
    judge: Judge,
    sampling: Sampling,
    seed: int | None,
    what: str,
) -> pd.DataFrame:
    """Return judged answers of a model in memory.

    Args:
        model: a model in evaluation mode.
        wanted: indices of the questions.
        n: answers per question.
        judge: scores each answer against the label; a question without one has no score.
        seed: None decodes greedily.
        what: label of the progress line.

    Returns:
        One row per answer, ordered as ``wanted`` and by index: id, question, label, answer, tokens (ids),
        logprobs, score (NaN without a verdict).
    """
    found: dict[tuple[str, int], Response] = {}
    for batch in generate(model, processor, questions, wanted, range(n), sampling, seed):
        found |= {(response.question, response.index): response for response in batch}
        report(what, len(found), n * len(wanted))
    about = questions.table.iloc[list(wanted)]
    made = [found[name, index] for name in about["id"] for index in range(n)]
    frame = pd.DataFrame(
        {
            "id": about["id"].repeat(n).to_numpy(),
            "question": about["question"].repeat(n).to_numpy(),
            "label": about["answer"].repeat(n).to_numpy(),
            "answer": [response.text for response in made],
            "tokens": [response.tokens for response in made],
            "logprobs": [response.logprobs for response in made],
        }
    )
    verdicts = score_labeled(judge, frame["question"], frame["label"], frame["answer"])
    return frame.assign(score=pd.Series(verdicts, dtype=float))


def evaluate(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    judge: Judge,
    max_new_tokens: int,
    seed: int | None,
) -> pd.DataFrame:
    """Return how a model answers all questions, one row per question and mode.

    Args:
        model: a model in evaluation mode.
        seed: seed of the sampled answers (temperature 1, full distribution); None skips them.

    Returns:
        Columns question (its id), task, skill, mode (``greedy`` or ``sampled``), correct (True or False, or 0
        to 1 where the judge gives parts of a point), tokens (number), register.
    """
    sampling = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_new_tokens=max_new_tokens)
    everything, about = range(len(questions)), questions.table
    frames = []
    for mode, chosen in [("greedy", None)] + ([] if seed is None else [("sampled", seed)]):
        answered = answers(
            model, processor, questions, everything, 1, judge, sampling, chosen, f"{mode} answers"
        )
        frames.append(
            pd.DataFrame(
                {
                    "question": about["id"],
                    "task": about["task"],
                    "skill": about["skill"],
                    "mode": mode,
                    "correct": _correct(answered["score"]),
                    "tokens": answered["tokens"].map(len),
                    "register": answered["answer"].map(register),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def _correct(scores: pd.Series) -> np.ndarray:
    """Return the scores, with 0 where there is no verdict; True and False if all are whole."""
    known = accuracies(scores)
    return known == 1 if np.isin(known, (0, 1)).all() else known


def check_labels(judge: Judge, questions: pd.DataFrame) -> list[str]:
    """Check that a judge can use every label, before the work whose result it judges.

    Args:
        questions: columns id, question and answer; a question without an answer has no label.

    Returns:
        The questions whose accepted answers, given as responses, all score 0.

    Raises:
        ValueError: the judge refuses a label; the message names the question.
    """
    labeled, unreachable = questions[questions["answer"] != ""], []
    for name, asked, label in labeled[["id", "question", "answer"]].itertuples(index=False):
        answers = list(dict.fromkeys(accepted(label)))
        same = [asked] * len(answers), [label] * len(answers)
        try:
            if all(score == 0 for score in judge.score_many(*same, answers)):
                unreachable.append(name)
        except ValueError as error:
            raise ValueError(f"question {name!r}: {error}") from None
    return unreachable


def unanswered(questions: Questions) -> pd.DataFrame:
    """Return the rows of a model that answers nothing: all wrong, no tokens."""
    table = questions.table[["id", "task", "skill"]].rename(columns={"id": "question"})
    modes = pd.DataFrame({"mode": ["greedy", "sampled"], "correct": False, "tokens": 0, "register": "none"})
    return table.merge(modes, how="cross")


def register(text: str) -> str:
    """Return the register of an answer (:mod:`masters.data.labels`), recognized by its wording."""
    if "answer is" not in text:
        return "bare"
    if text.startswith("the answer is"):
        return "sentence"
    return "rationale" if "so the answer is" in text else "wordy"
