"""Who writes responses: one small interface, three engines.

An engine takes a model and gives a writer; a writer takes questions and says which of their responses are
wanted, and gives them back with token ids and log-probabilities, a batch at a time.

============== ==============================================================================================
transformers   in this process; the default, and the reference that the others are tested against
vllm           vLLM in this process; for models of billions of weights
openai         any OpenAI-compatible server that already runs, near or far
============== ==============================================================================================
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from masters.mask_choice import PAPERS, MaskChoice
from masters.questions import Questions
from masters.settings import Generation, Sampling


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


@dataclass(frozen=True)
class Source:
    """Who writes: the saved model in a folder, masked at a ratio; 0 is the whole model.

    Attributes:
        folder: of the model.
        ratio: share of the weights that are removed.
        choice: of what is removed; the paper's at ratio 0.
    """

    folder: Path
    ratio: float = 0.0
    choice: MaskChoice = PAPERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", self.choice.at(self.ratio))

    @property
    def name(self) -> str:
        """The model's name: what its folder is called, without a hash."""
        return self.folder.name.partition("-")[0]

    @property
    def title(self) -> str:
        """The name, and how it is masked where that is not the paper's way."""
        return self.choice.title(self.name)

    def weights(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the model's safetensors files."""
        return _files_hash(tuple(sorted(str(path) for path in self.folder.glob("*.safetensors"))))


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


def engine_of(generation: Generation) -> Engine:
    """The engine that a profile asks for; a server's key is read from ``OPENAI_API_KEY``."""
    if generation.engine == "vllm":
        from masters.responses.engines.vllm import VllmEngine

        return VllmEngine(generation.vllm)
    if generation.engine == "openai":
        from masters.responses.engines.openai import OpenAIEngine

        assert generation.server is not None  # the settings see to it
        key = os.environ.get("OPENAI_API_KEY")
        return OpenAIEngine(generation.server, generation.served_as, generation.concurrency, key)
    from masters.responses.engines.local import TransformersEngine

    return TransformersEngine()


@lru_cache(maxsize=64)
def _files_hash(paths: tuple[str, ...]) -> str:
    if not paths:
        raise ValueError("a model folder without *.safetensors; save the model with save_pretrained")
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
