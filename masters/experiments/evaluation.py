"""Evaluate a model: its greedy and sampled answers to a set of questions, judged."""

import time
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.judges import Judge, score_labelled
from masters.responses.engines.local import generate
from masters.settings import Sampling


def evaluate(
    model: PreTrainedModel,
    processor: Any,
    questions: Questions,
    judge: Judge,
    max_new_tokens: int,
    seed: int | None,
    greedy: bool = True,
) -> pd.DataFrame:
    """Return a model's answers, one row per question and mode.

    Args:
        model: a model in evaluation mode.
        processor: the model's.
        questions: all of them are answered.
        judge: scores each answer against the label.
        max_new_tokens: longest answer, tokens.
        seed: seed of the sampled answers (temperature 1, full distribution); None skips them.
        greedy: whether to generate the greedy answers.

    Returns:
        Columns question, task, skill, mode (``greedy`` or ``sampled``), correct, tokens, register.
    """
    sampling = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_new_tokens=max_new_tokens)
    modes: list[tuple[str, int | None]] = [("greedy", None)] if greedy else []
    if seed is not None:
        modes.append(("sampled", seed))
    asked = questions.table.set_index("id")
    frames = []
    for mode, chosen in modes:
        batches = generate(model, processor, questions, range(len(questions)), range(1), sampling, chosen)
        answers = {answer.question: answer for batch in batches for answer in batch}
        answered = [answers[name] for name in asked.index]
        texts = [answer.text for answer in answered]
        verdicts = score_labelled(judge, asked["question"], asked["answer"], texts)
        frames.append(
            pd.DataFrame(
                {
                    "question": asked.index,
                    "task": asked["task"].to_numpy(),
                    "skill": asked["skill"].to_numpy(),
                    "mode": mode,
                    "correct": [verdict == 1 for verdict in verdicts],
                    "tokens": [len(answer.tokens) for answer in answered],
                    "register": [register(text) for text in texts],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def check_labels(judge: Judge, questions: pd.DataFrame) -> None:
    """Check that a judge can use every label, before the work whose result it judges.

    Args:
        judge: that will use them.
        questions: columns id, question and answer; a question without an answer has no label.

    Raises:
        ValueError: the judge refuses a label; the message names the question.
    """
    labelled = questions[questions["answer"] != ""]
    for name, asked, label in labelled[["id", "question", "answer"]].itertuples(index=False):
        try:
            judge.score_many([asked], [label], [label])
        except ValueError as error:
            raise ValueError(f"question {name!r}: {error}") from None


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


def latency(
    model: PreTrainedModel, processor: Any, questions: Questions, count: int, max_new_tokens: int
) -> pd.Series:
    """Return ``seconds_per_question`` and ``tokens`` per answer, greedy, one question at a time."""
    sampling = Sampling(max_new_tokens=max_new_tokens)
    wanted = range(min(count, len(questions)))
    list(
        generate(model, processor, questions, wanted[:1], range(1), sampling, None)
    )  # the first call warms up
    start = time.perf_counter()
    lengths = [
        len(answer.tokens)
        for index in wanted
        for batch in generate(model, processor, questions, [index], range(1), sampling, None)
        for answer in batch
    ]
    seconds = (time.perf_counter() - start) / len(wanted)
    return pd.Series({"seconds_per_question": seconds, "tokens": sum(lengths) / len(lengths)})
