"""A local OpenAI-compatible server whose language-model judge answers by rule."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from chat_server import listening, send

from masters.judges.rule import RuleJudge

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
    """Judge by rule, in the two steps of the language-model judge."""
    if explains(prompt):
        question, label, response = (block(prompt, name) for name in ("question", "reference", "response"))
        return said(f"The response says {response}. Score: {RuleJudge().score(question, label, response)}")
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
