"""An OpenAI-compatible server (vLLM's, SGLang's, ``transformers serve``, a hosted one), asked with patience.

A request that meets a busy, broken or absent server is sent again after pauses that double; one that the
server refuses is not. Requests and tokens are counted, because somebody pays for them.
"""

import re
import threading
import time
from typing import Any

import httpx

_LONGEST_WAIT = 60.0
_BUSY = {408, 429}


class Refused(ValueError):
    """The server understood the request and will not answer it; sending it again would not help."""


class Server:
    """One model behind an OpenAI-compatible server; safe to use from several threads.

    Args:
        address: such as ``http://localhost:8000`` or ``http://localhost:8000/v1``.
        model: the model's name on that server.
        api_key: sent as a bearer token where the server wants one.
        timeout: seconds to wait for one reply.
        retries: repetitions of a request that met a busy or absent server.
        backoff: seconds before the first repetition, doubled each time, never more than a minute.
        called: what messages call it.

    Attributes:
        calls: requests sent so far, repetitions included.
        prompt_tokens: read by the server so far, as it says; 0 where it does not say.
        completion_tokens: written by the server so far, as it says.

    Raises:
        ValueError: the address is not a http address.
    """

    def __init__(
        self,
        address: str,
        model: str,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        backoff: float = 1.0,
        called: str = "server",
    ) -> None:
        if not re.match(r"https?://[^/\s]+", address):
            raise ValueError(
                f"{called} address {address!r} is not a http address such as http://localhost:8000/v1"
            )
        self.model, self.retries, self.backoff = model, retries, backoff
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._lock = threading.Lock()
        self._base = re.sub(r"(/v1)?/*$", "", address) + "/v1"
        self._called = f"{called} {self._base}"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(
            timeout=timeout, headers=headers, limits=httpx.Limits(max_connections=None)
        )

    def models(self) -> list[str]:
        """The names of the models that the server has.

        Raises:
            ConnectionError: the server is away, too slow or busy, also after all repetitions.
            ValueError: it refused to say, or does not speak this protocol.
        """
        answer = self._send("GET", "/models", None)
        try:
            return [str(entry["id"]) for entry in answer.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise self._foreign(answer, "data[].id") from None

    def complete(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The first choice of a chat completion: ``message``, ``finish_reason`` and what else was asked for.

        Args:
            messages: of the chat.
            options: such as temperature and max_tokens.

        Raises:
            ConnectionError: the server is away, too slow or busy, also after all repetitions.
            Refused: it will not answer this request.
            ValueError: it does not speak this protocol.
        """
        answer = self._send(
            "POST", "/chat/completions", {"model": self.model, "messages": messages, **options}
        )
        try:
            body = answer.json()
            choice: dict[str, Any] = body["choices"][0]
            choice["message"]["content"] = str(choice["message"]["content"] or "")
            usage = body.get("usage") or {}
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._foreign(answer, "choices[0].message.content") from None
        with self._lock:
            self.prompt_tokens += counts[0]
            self.completion_tokens += counts[1]
        return choice

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        trouble = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            with self._lock:
                self.calls += 1
            try:
                answer = self._client.request(method, self._base + path, json=body)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}".strip(": ")
            else:
                if answer.status_code < 400:
                    return answer
                trouble = f"status {answer.status_code}"
                if answer.status_code not in _BUSY and answer.status_code < 500:
                    raise Refused(
                        f"{self._called} refused it ({trouble}: {_one_line(answer.text)}); "
                        f"check the address, the model name {self.model!r} and the API key"
                    )
                asked = answer.headers.get("retry-after", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
            if attempt < self.retries:
                time.sleep(min(wait, _LONGEST_WAIT))
        raise ConnectionError(
            f"{self._called} gave no answer in {self.retries + 1} tries ({_one_line(trouble)}); "
            "see that it runs and is reachable, then start again"
        )

    def _foreign(self, answer: httpx.Response, lacks: str) -> ValueError:
        return ValueError(
            f"{self._called} answered {answer.status_code} without {lacks}; "
            "give the address of an OpenAI-compatible server"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
