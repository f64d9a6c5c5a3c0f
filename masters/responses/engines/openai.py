"""The engine on any OpenAI-compatible server: vLLM, SGLang, ``transformers serve`` or a hosted one.

Each request generates one response with its own seed: some servers ignore ``n``, and with one seed per group
a response would depend on the others in its request. Servers with prefix caching, such as vLLM and SGLang,
still compute a prompt and its image once.

Top-k, the repetition penalty and token ids are not part of the protocol, and servers accept them in different
fields. The first form that the server accepts is kept; no form drops a setting that changes the samples. If
the server refuses a setting, one line says so. Text without token ids is tokenized here. Without
log-probabilities, ``logprobs`` is None, and the variants of the objective that need them raise an error.
"""

import base64
import io
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from PIL import Image
from transformers import AutoConfig

from masters.data.questions import Questions
from masters.models.loading import banned_tokens
from masters.models.source import Source
from masters.responses.engines import Response, Writer
from masters.responses.sampling import response_seed
from masters.runtime.server import Refused, Server
from masters.settings import Sampling

WINDOW = 8  # queued requests per request in flight
ROUNDING = 1e-3  # largest log-probability, in nats, that is 0 up to rounding
# The reply of ``transformers serve`` to unknown fields.
STRICT = "Unexpected fields in the request"


class OpenAIEngine:
    """A running server that already serves the models.

    Args:
        address: such as ``http://localhost:8000/v1``.
        served_as: the server's name for a model at a mask ratio, with ``{model}`` and ``{ratio}``.
        concurrency: requests in flight.
        options: arguments of :class:`masters.runtime.server.Server`, such as timeout and retries.
    """

    name = "openai"
    determinism = (
        "the seed of each request depends on seed, question and index only; whether the same seed gives the "
        "same response is up to the server"
    )

    def __init__(
        self,
        address: str,
        served_as: str = "{model}-{ratio}",
        concurrency: int = 16,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        self.address, self.served_as, self.concurrency = address, served_as, concurrency
        self.options = {"api_key": api_key, "timeout": 600.0} | options

    @contextmanager
    def writer(
        self, source: Source, processor: Any, questions: Questions, sampling: Sampling, seed: int | None
    ) -> Iterator[Writer]:
        """See :class:`masters.responses.engines.Engine`.

        Raises:
            ValueError: the server lacks the model or refused a request, or the source's mask is not the
                paper's and so cannot be named on the server.
            ConnectionError: the server is unreachable, too slow or busy after all retries.
        """
        if source.choice.key():
            raise ValueError(
                f"{source.title} at mask {source.ratio:g}: on a server only the ratio identifies a masked "
                "model, so its mask may differ; generate with engine transformers or vllm"
            )
        served = self.served_as.format(model=source.name, ratio=source.ratio)
        server = Server(self.address, served, **self.options, called="generation server")
        if served not in (there := server.models()) and not self._knows(served):
            raise ValueError(
                f"{server.title} has no model {served!r}; it has "
                f"{', '.join(sorted(there)) or 'none'}; save the model with `masters export` and serve it "
                "under this name, or set served_as"
            )
        # Rows of the output head, including rows without a token.
        rows = AutoConfig.from_pretrained(source.folder).get_text_config().vocab_size
        asker = _Asker(server, processor, questions, sampling, seed, rows)
        with ThreadPoolExecutor(self.concurrency) as pool:

            def write(wanted: Sequence[int], indices: Sequence[int]) -> Iterator[list[Response]]:
                size = max(1, WINDOW * self.concurrency // len(indices))
                for start in range(0, len(wanted), size):
                    pairs = [(index, j) for index in wanted[start : start + size] for j in indices]
                    waiting = [pool.submit(asker.ask, *pair) for pair in pairs]
                    try:
                        yield [future.result() for future in waiting]
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise

            yield write

    def _knows(self, served: str) -> bool:
        """Return whether the server has an unlisted model: ``transformers serve`` omits models in folders.

        A server that accepts any name, as SGLang does, does not count.
        """
        return self._answers(served) and not self._answers(f"{served}-absent")

    def _answers(self, served: str) -> bool:
        server = Server(self.address, served, **self.options | {"retries": 0})
        messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        try:
            server.complete(messages, max_tokens=1, temperature=0)
        except (Refused, ConnectionError):
            return False
        return True


class _Asker:
    """Turn a question into a request, and the reply into a response."""

    def __init__(
        self,
        server: Server,
        processor: Any,
        questions: Questions,
        sampling: Sampling,
        seed: int | None,
        rows: int,
    ) -> None:
        self.server, self.questions, self.seed, self.rows = server, questions, seed, rows
        self.tokenizer = processor.tokenizer
        self.banned = set(banned_tokens(processor, rows))
        self.options: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "logprobs": True}
        if self.banned:  # ``transformers serve`` fails on an empty bias and on integer values
            self.options["logit_bias"] = {str(token): -100.0 for token in sorted(self.banned)}
        greedy = seed is None
        top_k, penalty = (0, 1.0) if greedy else (sampling.top_k, sampling.repetition_penalty)
        self.options["temperature"] = 0 if greedy else sampling.temperature
        if not greedy:
            self.options["top_p"] = sampling.top_p
        self.beyond: dict[str, Any] = {"top_k": top_k} if top_k else {}
        if penalty != 1:
            self.beyond["repetition_penalty"] = penalty
        # ``transformers serve`` fills gaps in this field from the model's generation config. If that does not
        # sample, the server silently returns the greedy response n times.
        config = {"do_sample": not greedy, "top_k": top_k, "repetition_penalty": penalty}
        theirs = {"generation_config": json.dumps(config)}
        # vLLM also fills gaps from the model's generation config, so disabled settings are sent, too.
        said = {"return_token_ids": True, "top_k": top_k or -1, "repetition_penalty": penalty}
        self.ways = [said, theirs | self.beyond, theirs, self.beyond]

    def ask(self, index: int, j: int) -> Response:
        """Generate one response."""
        row = self.questions.table.iloc[index]
        files = iter(self.questions.images(index))
        messages = self.questions.conversation(index)
        for message in messages:
            parts = message["content"]
            message["content"] = [_image(next(files)) if p["type"] == "image" else p for p in parts]
        own = {} if self.seed is None else {"seed": response_seed(self.seed, row["id"], j)}
        return self._response(
            row["id"], j, self._complete(messages, own), self.questions.prompt(index).tolist()
        )

    def _complete(self, messages: list[dict[str, Any]], own: dict[str, Any]) -> dict[str, Any]:
        ways, refusal = self.ways, None
        for way in ways:
            # Other servers may ignore this field, and with it top-k.
            if refusal and way.keys() == {"generation_config"} and STRICT not in str(refusal):
                continue
            try:
                choice = self.server.complete(messages, **self.options, **way, **own)
            except Refused as error:
                refusal = error
            else:
                self.ways = [way]
                return choice
        assert refusal is not None
        if len(ways) > 1 and self.beyond:
            self._explain(messages)
        raise refusal

    def _explain(self, messages: list[dict[str, Any]]) -> None:
        """Raise a clear error if the server refuses only the sampling settings."""
        try:
            self.server.complete(messages, **self.options)
        except Refused:
            return
        off = {"top_k": 0, "repetition_penalty": 1}
        raise ValueError(
            f"the generation server refuses {' and '.join(self.beyond)} but answers without; set "
            f"{', '.join(f'{name}: {off[name]}' for name in self.beyond)}, "
            "or generate with engine transformers or vllm"
        )

    def _response(self, name: str, j: int, choice: dict[str, Any], prompt: list[int]) -> Response:
        """Return the response in a server's choice.

        Args:
            prompt: token ids of the question's prompt.

        Raises:
            ValueError: the choice is not what was requested; the message names the question.
        """

        def refuse(found: str, do: str = "use another server or its newer version") -> ValueError:
            return ValueError(f"response {j} to question {name}: the server returned {found}; {do}")

        read = choice.get("prompt_token_ids")  # vLLM tells
        if isinstance(read, list) and read != prompt:
            found = f"the response to a prompt of {len(read)} tokens, which is not ours of {len(prompt)}"
            raise refuse(found, "serve the model with its own chat template and size of pictures")
        finish = choice.get("finish_reason")
        if finish not in ("stop", "length"):
            off = "drop this question or turn the server's filter off"
            raise refuse(f"finish_reason {str(finish)[:50]!r}", off)
        text, most = choice["message"]["content"].strip(), self.options["max_tokens"]
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = tokens if finish == "length" else [*tokens, self.tokenizer.eos_token_id]
            most = 2 * most  # the server may have cut the text into fewer tokens
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise refuse(f"token ids that are not a list of numbers ({str(tokens)[:50]})")
        if not 0 < len(tokens) <= most:
            raise refuse(f"{len(tokens)} tokens where 1 to {most} were requested")
        if wrong := [token for token in tokens if not 0 <= token < self.rows or token in self.banned]:
            raise refuse(f"token id {wrong[0]}, which is outside the vocabulary of this model or was banned")
        logprobs = _logprobs(choice.get("logprobs"))
        if logprobs is not None and len(logprobs) != len(tokens):
            raise refuse(
                f"{len(logprobs)} log-probabilities for {len(tokens)} tokens",
                "use a server that returns token ids (return_token_ids), such as vLLM",
            )
        for value in logprobs or ():
            if type(value) not in (int, float) or not -math.inf < value <= ROUNDING:
                raise refuse(f"log-probability {str(value)[:50]}")
        if logprobs is not None:
            logprobs = [min(float(value), 0.0) for value in logprobs]
        return Response(name, j, tokens, text, logprobs, finish)


def _logprobs(said: Any) -> list[Any] | None:
    """Return the entries of a choice's log-probabilities, not yet checked; None if it has none."""
    entries = said.get("content") if isinstance(said, dict) else said
    if not isinstance(entries, list):
        return None if entries is None else [entries]
    return [entry.get("logprob") if isinstance(entry, dict) else entry for entry in entries]


def _image(picture: bytes) -> dict[str, Any]:
    kind = Image.open(io.BytesIO(picture)).get_format_mimetype()
    url = f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
