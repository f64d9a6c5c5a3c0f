"""Who writes responses: one small interface, three engines.

An engine takes a model and gives a writer; a writer takes questions and says which of their responses are
wanted, and gives them back with token ids and log-probabilities, a batch at a time.

============== ==============================================================================================
transformers   in this process; the default, and the reference that the others are tested against
vllm           vLLM in this process; for models of billions of weights
openai         any OpenAI-compatible server that already runs, near or far
============== ==============================================================================================
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from masters.data.questions import Questions
from masters.responses.source import Source
from masters.settings import Sampling


@dataclass(frozen=True)
class Response:
    """One answer of a model to a question.

    Attributes:
        question: id of the question.
        index: which of the question's responses.
        tokens: token ids, the end token included unless the response was cut.
        text: what they say.
        logprobs: log-probability of each token over the whole vocabulary at temperature 1, in nats; None
            where a server does not tell.
        support_logprobs: the same over the tokens that could be sampled, after all sampling settings; None
            where an engine does not tell.
        finish: ``stop`` when the model ended it, ``length`` when it was cut.
    """

    question: str
    index: int
    tokens: list[int]
    text: str
    logprobs: list[float] | None
    support_logprobs: list[float] | None
    finish: str


# Indices of questions and indices of their responses in, all responses of a batch of questions out.
Writer = Callable[[Sequence[int], Sequence[int]], Iterator[list[Response]]]


class Engine(Protocol):
    """Generates responses; what it promises about them is kept with them.

    Attributes:
        name: part of the key of what it writes.
        promise: what a response depends on.
    """

    @property
    def name(self) -> str: ...

    @property
    def promise(self) -> str: ...

    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> AbstractContextManager[Writer]:
        """A writer for one source; leaving the context frees the model.

        Args:
            source: who writes.
            processor: of the source.
            questions: encoded by that processor.
            sampling: how tokens are drawn; only ``max_new_tokens`` counts when greedy.
            seed: None takes the most probable token each time (greedy).
        """
