"""A local OpenAI-compatible server that answers chat completions with a saved model.

It generates with ``transformers`` and its own code, not with the engines under test.
"""

import base64
import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from masters.models.loading import load


@dataclass
class ChatServer:
    """Settings of the server, and the requests it received.

    Attributes:
        keys: authorization header of each chat request.
        trouble: called with the number of each request; a returned status is sent instead of an answer.
        token_ids: whether it accepts ``return_token_ids``.
        logprobs: whether it returns log-probabilities.
        refused: fields that it refuses, as a hosted server does.
        any_name: whether it accepts any model name, as SGLang does.
        change: called with each choice before it is sent.
        error: body of the answers that ``trouble`` makes.
        transformers: whether it behaves as ``transformers serve`` of transformers 5.23.
        top: largest number of concurrent requests.
    """

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    trouble: Callable[[int], int | None] = lambda number: None
    token_ids: bool = True
    logprobs: bool = True
    refused: frozenset[str] = frozenset()
    any_name: bool = False
    transformers: bool = False
    change: Callable[[dict[str, Any]], None] = lambda choice: None
    error: Any = field(default_factory=dict)
    busy: int = 0
    top: int = 0


@contextmanager
def serving(models: dict[str, Path]) -> Iterator[ChatServer]:
    """Run a server with these models on a free port."""
    loaded = {name: load(folder) for name, folder in models.items()}
    state, lock, working = ChatServer(), threading.Lock(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = [] if state.transformers else loaded  # models in folders are served, not listed
            send(self, 200, {"object": "list", "data": [{"id": name} for name in listed]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(body)
                state.keys.append(self.headers.get("authorization"))
                state.busy += 1
                state.top = max(state.top, state.busy)
            if state.any_name:
                body["model"] = next(iter(loaded))
            status, answer = 200, {}
            if (trouble := state.trouble(number)) is not None:
                status, answer = trouble, state.error
            elif "return_token_ids" in body and not state.token_ids:
                status, answer = 400, {"error": "unknown field return_token_ids"}
            elif wrong := state.refused & body.keys():
                status, answer = 400, {"error": f"unknown fields {', '.join(sorted(wrong))}"}
            elif state.transformers and (found := _transformers_refuses(body, loaded)):
                status, answer = found
            elif body["model"] not in loaded:
                status, answer = 404, {"error": f"no model {body['model']}"}
            else:
                if state.transformers and not json.loads(body.get("generation_config", "{}")).get(
                    "do_sample"
                ):
                    body = body | {"temperature": 0}  # the model's generation config wins
                with working:  # one forward pass at a time
                    tell = state.logprobs and not state.transformers
                    answer = _answer(*loaded[body["model"]], body, tell)
                    state.change(answer["choices"][0])
            with lock:
                state.busy -= 1
            send(self, status, answer)

        def log_message(self, *args: object) -> None:
            pass

    with listening(Handler) as address:
        state.url = f"{address}/v1"
        yield state


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server in a thread on a free port and yield its address."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def send(request: BaseHTTPRequestHandler, status: int, answer: Any) -> None:
    """Answer a request with JSON, or with raw bytes."""
    raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    request.send_response(status)
    request.send_header("content-length", str(len(raw)))
    request.end_headers()
    request.wfile.write(raw)


TRANSFORMERS_KNOWS = {"generation_config", "logit_bias", "logprobs", "max_tokens", "messages", "model"}
TRANSFORMERS_KNOWS |= {"seed", "temperature", "top_p"}


def _transformers_refuses(body: dict[str, Any], loaded: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    if unknown := body.keys() - TRANSFORMERS_KNOWS:
        return 422, {"detail": f"Unexpected fields in the request: {unknown}"}
    biases = body.get("logit_bias")
    breaks = biases == {} or any(not isinstance(bias, float) for bias in (biases or {}).values())
    return (500, {}) if breaks or body["model"] not in loaded else None


@torch.inference_mode()
def _answer(model: Any, processor: Any, body: dict[str, Any], tell: bool) -> dict[str, Any]:
    messages, pictures = [], []
    for message in body["messages"]:
        content = []
        for part in message["content"]:
            if part["type"] == "image_url":
                raw = re.fullmatch(r"data:image/png;base64,(.*)", part["image_url"]["url"])
                assert raw
                pictures.append(Image.open(io.BytesIO(base64.b64decode(raw[1]))).convert("RGB"))
                content.append({"type": "image"})
            else:
                content.append(part)
        messages.append({"role": message["role"], "content": content})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=pictures or None, return_tensors="pt")
    ids = inputs.pop("input_ids")
    start = ids.shape[1]
    inputs.pop("attention_mask")
    draw = torch.Generator().manual_seed(body.get("seed", 0))
    logprobs: list[float] = []
    end, finish = processor.tokenizer.eos_token_id, "length"
    for _ in range(body["max_tokens"]):
        logits = model(input_ids=ids, **inputs).logits[0, -1].float()
        whole = logits.log_softmax(-1)
        for token, bias in body.get("logit_bias", {}).items():
            logits[int(token)] += bias
        if body["temperature"] == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=draw))
        logprobs.append(float(whole[token]))
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
        if token == end:
            finish = "stop"
            break
    tokens = ids[0, start:].tolist()
    text = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = finish
    if tell and body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in logprobs]}
    if body.get("return_token_ids"):
        choice["token_ids"] = tokens
    usage = {"prompt_tokens": start, "completion_tokens": len(tokens)}
    told = {"prompt_token_ids": ids[0, :start].tolist()} if body.get("return_token_ids") else {}
    return {"choices": [choice], "usage": usage, **told}
