"""A language model as judge that answers by a rule, behind an OpenAI-compatible server on this machine."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from chat_server import listening, send

from masters.judges.rule import core

Reply = tuple[int, Any]


def said(text: str | None, finish: str = "stop") -> Reply:
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def nonce_of(prompt: str) -> str:
    found = re.search(r"<(?:question|explanation)-([0-9a-f]+)>", prompt)
    assert found
    return found[1]


def block(prompt: str, name: str) -> str:
    found = re.search(rf"<{name}-{nonce_of(prompt)}>\n(.*)\n</{name}-{nonce_of(prompt)}>", prompt, re.DOTALL)
    assert found
    return found[1]


def explains(prompt: str) -> bool:
    return "<explanation-" not in prompt


def verdict(prompt: str, digit: int | str) -> str:
    return f"<verdict-{nonce_of(prompt)}>{digit}</verdict-{nonce_of(prompt)}>"


def honest(prompt: str) -> Reply:
    """A judge that compares the core of the response with the label."""
    if explains(prompt):
        right = core(block(prompt, "response")) == block(prompt, "reference")
        return said(f"The response says {block(prompt, 'response')}. Score: {int(right)}")
    return said(verdict(prompt, block(prompt, "explanation")[-1]))


class Server:
    """An OpenAI-compatible server with one model; ``reply`` maps the prompt to status and body."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.reply: Callable[[str], Reply] = honest
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def serving() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.requests.append(body)
            state.headers.append({key.lower(): value for key, value in self.headers.items()})
            status, answer = 404, {"error": "no such path"}
            if self.path == "/v1/chat/completions":
                status, answer = state.reply(body["messages"][-1]["content"])
            send(self, status, answer)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as address:
        state = Server(address)
        yield state
