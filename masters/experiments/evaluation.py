"""Scores of a model: its greedy and its sampled answers to a set of questions, judged by one judge."""

import time
from typing import Any

import pandas as pd
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.judges import Judge
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
    """Answers of a model, one row a question and mode.

    Args:
        model: in evaluation mode.
        processor: of the model.
        questions: all of them are asked.
        judge: scores the answer against the label.
        max_new_tokens: longest answer.
        seed: of the sampled answers, drawn at temperature 1 from the whole distribution; None skips them.
        greedy: whether to ask for the greedy answers.

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
        verdicts = judge.score_many(list(asked["question"]), list(asked["answer"]), texts)
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


def unanswered(questions: Questions) -> pd.DataFrame:
    """The rows of a model that answers nothing: all wrong, without a token."""
    table = questions.table[["id", "task", "skill"]].rename(columns={"id": "question"})
    modes = pd.DataFrame({"mode": ["greedy", "sampled"], "correct": False, "tokens": 0, "register": "none"})
    return table.merge(modes, how="cross")


def register(text: str) -> str:
    """In which of the registers of :mod:`masters.data.labels` an answer is written, by its wording."""
    if "answer is" not in text:
        return "bare"
    if text.startswith("the answer is"):
        return "sentence"
    return "rationale" if "so the answer is" in text else "wordy"


def latency(
    model: PreTrainedModel, processor: Any, questions: Questions, count: int, max_new_tokens: int
) -> pd.Series:
    """Time to answer, one question at a time, greedily.

    Returns:
        ``seconds_per_question`` and ``tokens`` (mean length of the answers).
    """
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
