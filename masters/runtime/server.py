"""A client for OpenAI-compatible servers: vLLM, SGLang, ``transformers serve`` or a hosted one.

A request to a busy, failing or unreachable server is retried with exponential backoff; a refused one is not.
Requests and tokens are counted, because hosted servers charge for them.
"""

import re
import threading
import time
from typing import Any

import httpx

_LONGEST_WAIT = 60.0  # seconds
_BUSY = {408, 429}  # HTTP status codes


class Refused(ValueError):
    """Raised when the server refuses a request; a retry would not help."""


class Server:
    """One model on an OpenAI-compatible server; thread-safe.

    Args:
        address: such as ``http://localhost:8000`` or ``http://localhost:8000/v1``.
        model: the model's name on that server.
        timeout: seconds per reply.
        retries: of a request to a busy or unreachable server.
        backoff: seconds before the first retry; doubles with each retry, up to a minute.
        called: name of the server in messages.

    Attributes:
        calls: requests so far, including retries.
        prompt_tokens, completion_tokens: totals so far; 0 if the server does not report them.

    Raises:
        ValueError: the address is not an HTTP address, or the server is not OpenAI-compatible.
        Refused: the server refused a request.
        ConnectionError: the server is unreachable, too slow or busy after all retries.
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
                f"{called} address {address!r} is not an HTTP address such as http://localhost:8000/v1"
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
        """Return the names of the server's models."""
        answer = self._send("GET", "/models", None)
        try:
            return [str(entry["id"]) for entry in answer.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise self._foreign(answer, "data[].id") from None

    def complete(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Return the first choice of a chat completion: ``message``, ``finish_reason`` and requested fields.

        Args:
            options: of the request, such as temperature and max_tokens.
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
                        f"{self._called} refused the request ({trouble}: {_one_line(answer.text)}); "
                        f"check the address, the model name {self.model!r} and the API key"
                    )
                asked = answer.headers.get("retry-after", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
            if attempt < self.retries:
                time.sleep(min(wait, _LONGEST_WAIT))
        raise ConnectionError(
            f"{self._called} gave no answer in {self.retries + 1} tries ({_one_line(trouble)}); "
            "check that it runs and is reachable, then start again"
        )

    def _foreign(self, answer: httpx.Response, lacks: str) -> ValueError:
        return ValueError(
            f"{self._called} answered {answer.status_code} without {lacks}; "
            "give the address of an OpenAI-compatible server"
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
