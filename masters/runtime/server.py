"""A client for OpenAI-compatible servers: vLLM, SGLang, ``transformers serve`` or a hosted one.

A request to a busy, failing or unreachable server is retried with exponential backoff; a refused one is not.
Requests and tokens are counted, because hosted servers charge for them.
"""

import json
import re
import threading
import time
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from masters.runtime.errors import one_line

_LONGEST_WAIT = 60.0  # seconds
_LARGEST = 32 << 20  # bytes of a reply
_BUSY = {408, 429}  # HTTP status codes


def check_server(address: str, api_key: str | None = None) -> None:
    """Raise ``ValueError`` if the address is not an HTTP address, or the key cannot be in an HTTP header."""
    try:
        url = urlsplit(address)
        good = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        good = False
    if not good or not address.isascii() or re.search(r"\s", address):
        raise ValueError(
            f"server address {re.sub('//.*@', '//***@', address)[:200]!r} is not an HTTP address such as "
            "http://localhost:8000/v1"
        )
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the API key in OPENAI_API_KEY is not printable ASCII; set it again")


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
        title: name and address for messages; the API key and a password in the address never show.

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
        check_server(address, api_key)
        self.model, self.retries, self.backoff, self.timeout = model, retries, backoff, timeout
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._lock = threading.Lock()
        self._base = re.sub(r"(/v1)?/*$", "", address) + "/v1"
        login = urlsplit(address).netloc.rpartition("@")[0]
        password = urlsplit(address).password or ""
        secrets = {api_key or "", login, unquote(login), password, unquote(password)} - {""}
        self._secrets = sorted(secrets, key=len, reverse=True)
        self.title = self._redacted(f"{called} {self._base}")
        headers = {"Accept-Encoding": "identity"}  # a small compressed reply could unfold to any size
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._client = httpx.Client(
            timeout=timeout, headers=headers, limits=httpx.Limits(max_connections=None)
        )

    def models(self) -> list[str]:
        """Return the names of the server's models."""
        try:
            return [str(entry["id"]) for entry in self._send("GET", "/models", None)["data"]]
        except (LookupError, TypeError):
            raise self._foreign("data[].id") from None

    def complete(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """Return the first choice of a chat completion: ``message``, ``finish_reason`` and requested fields.

        With ``return_token_ids`` it has ``prompt_token_ids`` too, if the server tells how it read the prompt.

        Args:
            options: of the request, such as temperature and max_tokens.
        """
        body = self._send("POST", "/chat/completions", {"model": self.model, "messages": messages, **options})
        try:
            choice: dict[str, Any] = body["choices"][0]
            # A lone surrogate is valid JSON, but no text that can be stored.
            text = str(choice["message"]["content"] or "").encode("utf-8", "replace").decode()
            choice["message"]["content"] = text
            choice["prompt_token_ids"] = body.get("prompt_token_ids")
            usage = body.get("usage") or {}
            counts = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise self._foreign("choices[0].message.content") from None
        with self._lock:
            self.prompt_tokens += counts[0]
            self.completion_tokens += counts[1]
        return choice

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        trouble = ""
        for attempt in range(self.retries + 1):
            wait = self.backoff * 2**attempt
            with self._lock:
                self.calls += 1
            try:
                status, headers, text = self._request(method, path, body)
            except httpx.TransportError as error:
                trouble = f"{type(error).__name__}: {error}".strip(": ")
            else:
                if status < 400:
                    try:
                        return json.loads(text)
                    except (ValueError, RecursionError):
                        raise self._foreign("JSON") from None
                trouble = f"status {status}"
                if status not in _BUSY and status < 500:
                    raise Refused(
                        f"{self.title} refused the request ({trouble}: {one_line(text)}); "
                        f"check the address, the model name {self.model[:100]!r} and the API key"
                    )
                asked = headers.get("retry-after", "")
                wait = max(wait, float(asked)) if re.fullmatch(r"[0-9]{1,9}", asked) else wait
            if attempt < self.retries:
                time.sleep(min(wait, _LONGEST_WAIT))
        raise ConnectionError(
            f"{self.title} gave no answer in {self.retries + 1} tries "
            f"({one_line(self._redacted(trouble))}); check that it runs and is reachable, then start again"
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, httpx.Headers, str]:
        """Return status, headers and text of one reply, bounded in size and time, without our secrets."""
        start, raw = time.monotonic(), bytearray()
        with self._client.stream(method, self._base + path, json=body) as answer:
            for block in answer.iter_bytes():
                raw += block
                if len(raw) > _LARGEST:
                    raise self._foreign(f"an end within {_LARGEST >> 20} MiB")
                if time.monotonic() - start > self.timeout:
                    raise httpx.ReadTimeout(f"the reply took more than {self.timeout:g} s")
        # A short key such as EMPTY may be a word of a response; an error shows none.
        shortest = 12 if answer.status_code < 400 else 1
        return answer.status_code, answer.headers, self._redacted(raw.decode("utf-8", "replace"), shortest)

    def _redacted(self, text: str, shortest: int = 1) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***") if len(secret) >= shortest else text
        return text

    def _foreign(self, lacks: str) -> ValueError:
        return ValueError(
            f"{self.title} answered without {lacks}; give the address of an OpenAI-compatible server"
        )
