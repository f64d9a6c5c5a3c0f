"""Engines that generate responses: one interface, three implementations.

============== ==============================================================================================
transformers   in this process; the default, and the reference for the tests of the others
vllm           vLLM in this process, for models of billions of weights
openai         any running OpenAI-compatible server, local or remote
============== ==============================================================================================

Engine transformers computes a prompt once for all its responses
(:mod:`~masters.responses.engines.shared_prompt`), or, for families whose caches responses cannot share, once
per response by the model's own ``generate`` (:mod:`~masters.responses.engines.native`). Which way fits is
found on two questions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from masters.data.questions import Questions
from masters.models.source import Source
from masters.settings import Sampling


@dataclass(frozen=True)
class Response:
    """One response of a model to a question.

    Attributes:
        question: id of the question.
        index: position among the question's responses, from 0.
        tokens: token ids; they end with the end token unless the response was cut.
        text: decoded tokens.
        logprobs: log-probability of each token over the whole vocabulary at temperature 1, in nats; None if
            the server returns none.
        finish: ``stop`` if the model ended the response, ``length`` if it was cut.
    """

    question: str
    index: int
    tokens: list[int]
    text: str
    logprobs: list[float] | None
    finish: str


# Takes question indices and response indices; yields all responses of one batch of questions at a time.
Writer = Callable[[Sequence[int], Sequence[int]], Iterator[list[Response]]]


class Engine(Protocol):
    """Generates responses.

    Attributes:
        name: part of the key under which responses are stored.
        determinism: what the engine guarantees about equal seeds; stored beside the responses.
    """

    name: str
    determinism: str

    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> AbstractContextManager[Writer]:
        """Load a source and return the function that generates its responses; free the model on exit.

        Args:
            sampling: greedy decoding uses ``max_new_tokens`` only.
            seed: None decodes greedily.
        """
