"""The engine on a server, tested against a local server and against the engine on transformers."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small
import torch
from chat_server import ChatServer, serving
from stored import responses

from masters.data.questions import Questions
from masters.masking.choice import MaskChoice
from masters.masking.teacher_mask import TeacherMask
from masters.models.loading import load
from masters.models.source import Source
from masters.own_data.question_set import encode_own, load_own_data
from masters.responses.cached import engine_of, open_store
from masters.responses.engines import Writer
from masters.responses.engines.openai import OpenAIEngine
from masters.settings import Generation, LanguageJudge, OwnData, Sampling

COUNT, PADDED = 6, 3
SAMPLING = Sampling(top_p=1.0, top_k=0, repetition_penalty=1.0, max_new_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Save a model, a masked copy and questions."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    where = tmp_path_factory.mktemp("engine")
    model, processor = small.build()
    tokens = len(processor.tokenizer)
    model.resize_token_embeddings(tokens + PADDED, mean_resizing=False)  # rows without a token
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[processor.tokenizer.eos_token_id] *= 3
        weight[tokens:] = 1.5 * weight[processor.tokenizer.eos_token_id]  # would be the most probable
    for name in ("large", "masked"):
        model.save_pretrained(where / name)
        processor.save_pretrained(where / name)
        TeacherMask(model).apply(0.5)
    small.questions(where / "questions", COUNT)
    yield where
    torch.set_num_threads(threads)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ChatServer]:
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    with serving({"large-0.0": folder / "large", "large-0.5": folder / "masked"}) as running:
        yield running


def engine(server: ChatServer, **options: object) -> OpenAIEngine:
    given: dict[str, object] = {"concurrency": 3, "retries": 2, "backoff": 0.0} | options
    return OpenAIEngine(server.url, **given)  # type: ignore[arg-type]


def ask(
    folder: Path, using: OpenAIEngine | None, ratio: float = 0.0, n: int = 1, seed: int | None = None
) -> pd.DataFrame:
    _, processor = load(folder / "large")
    asked = Questions(folder / "questions")
    source = Source("large", folder / "large", ratio)
    return responses(
        source,
        processor,
        asked,
        range(COUNT),
        n,
        SAMPLING,
        seed,
        engine=using,  # type: ignore[arg-type]
    )


def writing(
    folder: Path, using: OpenAIEngine, sampling: Sampling = SAMPLING, seed: int = 0
) -> AbstractContextManager[Writer]:
    _, processor = load(folder / "large")
    source = Source("large", folder / "large")
    return using.writer(source, processor, Questions(folder / "questions"), sampling, seed)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_greedy_responses_are_those_of_transformers(server: ChatServer, folder: Path, ratio: float) -> None:
    near, far = ask(folder, None, ratio), ask(folder, engine(server), ratio)
    assert near["text"].tolist() == far["text"].tolist()
    assert near["finish"].tolist() == far["finish"].tolist()
    for one, other in zip(near["tokens"], far["tokens"], strict=True):
        assert one.tolist() == other.tolist()
    for one, other in zip(near["logprobs"], far["logprobs"], strict=True):
        assert np.allclose(one, other, atol=1e-3)
    assert 1 < server.top <= 3


def test_turns_and_pictures_of_ones_own_reach_the_server(
    server: ChatServer, folder: Path, tmp_path: Path
) -> None:
    turns = [
        {"role": "user", "content": "what <image> is this <image> ?"},
        {"role": "assistant", "content": "it is red ."},
        {"role": "user", "content": "is it ?"},
        {"role": "assistant", "content": "yes"},
    ]
    for color in ("red", "blue"):
        small.picture(color).save(tmp_path / f"{color}.jpg")
    lines = [
        {"messages": turns, "images": ["red.jpg", "blue.jpg"]},
        {"question": "is it blue ?", "answer": "no"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, processor = load(folder / "large")
    own = encode_own(load_own_data(OwnData(train="train.jsonl"), tmp_path), "train", processor)
    source = Source("large", folder / "large")
    found = [
        responses(source, processor, own, [0, 1], 1, SAMPLING, None, engine=using)  # type: ignore[arg-type]
        for using in (None, engine(server))
    ]
    assert found[0]["text"].tolist() == found[1]["text"].tolist()
    assert [len(request["messages"]) for request in server.requests] in ([3, 1], [1, 3])
    assert found[1]["correct"].isna().tolist() == [False, False]


def test_responses_are_sampled_once_and_depend_on_their_own_seed(server: ChatServer, folder: Path) -> None:
    first = ask(folder, engine(server), n=2, seed=0)
    assert len(server.requests) == 2 * COUNT
    assert len({request["seed"] for request in server.requests}) == 2 * COUNT
    more = ask(folder, engine(server), n=4, seed=0)
    assert len(server.requests) == 4 * COUNT
    assert more[more["index"] < 2]["text"].tolist() == first["text"].tolist()
    assert ask(folder, engine(server), n=2, seed=1)["text"].tolist() != first["text"].tolist()


def test_the_settings_are_sent(server: ChatServer, folder: Path) -> None:
    _, processor = load(folder / "large")
    settings = Sampling(temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.05, max_new_tokens=4)
    with writing(folder, engine(server), settings) as write:
        list(write([0], [0]))
    (request,) = server.requests
    sent = {name: request[name] for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
    assert sent == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.05}
    assert request["max_tokens"] == 4
    image = str(processor.image_token_id)
    assert request["logit_bias"][image] == -100
    assert str(processor.tokenizer.eos_token_id) not in request["logit_bias"]
    rows = {str(len(processor.tokenizer) + i) for i in range(PADDED)}
    assert rows <= set(request["logit_bias"])


@pytest.mark.parametrize("seed", [0, None])
def test_disabled_settings_are_sent_too(server: ChatServer, folder: Path, seed: int | None) -> None:
    ask(folder, engine(server), n=1, seed=seed)
    # Otherwise the server would take them from the model's generation_config.json.
    assert {(request["top_k"], request["repetition_penalty"]) for request in server.requests} == {(-1, 1.0)}


def test_a_busy_server_gets_a_retry(server: ChatServer, folder: Path) -> None:
    whole = ask(folder, engine(server), n=2, seed=5)["text"].tolist()
    server.requests.clear()
    server.trouble = lambda number: {0: 429, 1: 503, 4: 500}.get(number)
    other = engine(server, retries=3)  # one request may get all three
    with writing(folder, other, seed=5) as write:
        again = [answer.text for batch in write(range(COUNT), range(2)) for answer in batch]
    assert again == whole
    assert len(server.requests) == 2 * COUNT + 3


def test_a_failing_server_loses_only_the_current_batch(
    server: ChatServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from masters.responses import cached as package

    monkeypatch.setattr(package, "SHARD", 2)
    monkeypatch.setattr("masters.responses.engines.openai.WINDOW", 1)
    server.trouble = lambda number: 500 if number >= 6 else None
    with pytest.raises(ConnectionError, match="gave no answer in 3 tries"):
        ask(folder, engine(server, concurrency=2), n=2, seed=0)
    server.trouble = lambda number: None
    before = len(server.requests)
    counts: dict[str, int] = {}
    _, processor = load(folder / "large")
    asked = Questions(folder / "questions")
    source = Source("large", folder / "large")
    responses(source, processor, asked, range(COUNT), 2, SAMPLING, 0, counts=counts, engine=engine(server))
    assert counts["reused"] >= 4
    assert len(server.requests) - before == counts["generated"] == 2 * COUNT - counts["reused"]


def test_a_server_generates_with_the_papers_mask_only(server: ChatServer, folder: Path) -> None:
    source = Source("large", folder / "large", 0.5, MaskChoice("random"))
    _, processor = load(folder / "large")
    with pytest.raises(ValueError, match=r"large \(random\) at mask 0\.5: on a server only the ratio"):
        responses(
            source, processor, Questions(folder / "questions"), [0], 1, SAMPLING, 0, engine=engine(server)
        )
    assert not server.requests


def test_text_without_token_ids_is_tokenized(server: ChatServer, folder: Path) -> None:
    with_ids = ask(folder, engine(server), n=2, seed=0)
    server.token_ids = False
    other = engine(server)
    with writing(folder, other) as write:
        without = [answer for batch in write(range(COUNT), range(2)) for answer in batch]
    assert [answer.tokens for answer in without] == [tokens.tolist() for tokens in with_ids["tokens"]]
    refused = [request for request in server.requests[2 * COUNT :] if "return_token_ids" in request]
    assert 1 <= len(refused) <= 3  # requests already in flight at the first refusal


def test_without_log_probabilities_the_column_is_empty(server: ChatServer, folder: Path) -> None:
    server.logprobs = False
    frame = ask(folder, engine(server), seed=0)
    assert frame["logprobs"].isna().all()
    assert frame["text"].str.len().gt(0).any()


def test_transformers_serve_generates_the_greedy_responses(server: ChatServer, folder: Path) -> None:
    server.transformers = True
    near, far = ask(folder, None), ask(folder, engine(server))
    assert near["text"].tolist() == far["text"].tolist()
    assert [tokens.tolist() for tokens in near["tokens"]] == [tokens.tolist() for tokens in far["tokens"]]
    assert far["logprobs"].isna().all()


@pytest.mark.parametrize(
    "settings",
    [SAMPLING, Sampling(temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.05, max_new_tokens=8)],
)
def test_transformers_serve_gets_the_sampling_settings(
    server: ChatServer, folder: Path, settings: Sampling
) -> None:
    server.transformers = True
    with writing(folder, engine(server), settings) as write:
        texts = [answer.text for batch in write([0], range(8)) for answer in batch]
    assert len(set(texts)) > 1  # greedy decoding would repeat the response
    last = server.requests[-1]
    assert json.loads(last["generation_config"]) == {
        "do_sample": True,
        "top_k": settings.top_k,
        "repetition_penalty": settings.repetition_penalty,
    }
    assert (last["temperature"], last["top_p"]) == (settings.temperature, settings.top_p)
    # One for the model, 8 responses, and up to 3 that test each form of the settings.
    assert len(server.requests) <= 2 + 8 + 3 * 2


def test_settings_that_a_server_refuses_are_one_clear_line(server: ChatServer, folder: Path) -> None:
    server.refused = frozenset({"return_token_ids", "generation_config", "top_k", "repetition_penalty"})
    assert len(ask(folder, engine(server), n=2, seed=0)) == 2 * COUNT  # the refused settings are off
    settings = Sampling(top_k=5, repetition_penalty=1.05)
    with (
        writing(folder, engine(server), settings) as write,
        pytest.raises(ValueError, match=r"refuses top_k and repetition_penalty but answers") as error,
    ):
        list(write([0], [0]))
    assert "\n" not in str(error.value)
    assert "set top_k: 0, repetition_penalty: 1," in str(error.value)


def test_a_server_that_ignores_generation_config_gets_no_settings_in_it(
    server: ChatServer, folder: Path
) -> None:
    server.refused = frozenset({"top_k"})  # and ignores other unknown fields
    settings = Sampling(top_k=5, repetition_penalty=1.0)
    with (
        writing(folder, engine(server), settings) as write,
        pytest.raises(ValueError, match=r"refuses top_k but answers without; set top_k: 0, or"),
    ):
        list(write([0], [0]))


def test_a_refused_request_is_not_retried(server: ChatServer, folder: Path) -> None:
    server.trouble = lambda number: 413 if number == 3 else None
    with pytest.raises(ValueError, match="status 413"):
        ask(folder, engine(server, concurrency=1), seed=0)
    assert all(request["return_token_ids"] for request in server.requests)


def test_the_store_records_the_engine_and_its_guarantee(server: ChatServer, folder: Path) -> None:
    ask(folder, engine(server), seed=0)
    _, processor = load(folder / "large")
    far = open_store(Source("large", folder / "large"), processor, SAMPLING, 0, engine(server))
    near = open_store(Source("large", folder / "large"), processor, SAMPLING, 0)
    assert far.key != near.key
    about = json.loads((far.folder / "spec.json").read_text())
    assert about["engine"] == "openai" and "up to the server" in about["determinism"]
    assert far.read(["0" * 16], 1)["engine"].tolist() == ["openai"]


def test_a_model_that_the_server_lacks_is_one_clear_line(server: ChatServer, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model 'large-0.3'; it has large-0.0, large-0.5") as error:
        ask(folder, engine(server), ratio=0.3, seed=0)
    assert "\n" not in str(error.value)
    assert len(server.requests) == 1  # looks for an unlisted model


def test_a_server_that_accepts_any_name_is_refused(server: ChatServer, folder: Path) -> None:
    server.any_name = True
    with pytest.raises(ValueError, match=r"has no model 'large-0.3'"):
        ask(folder, engine(server), ratio=0.3, seed=0)
    assert [request["max_tokens"] for request in server.requests] == [1, 1]


def test_a_model_missing_on_transformers_serve_takes_one_request(server: ChatServer, folder: Path) -> None:
    server.transformers = True  # answers 500, like a busy server
    with pytest.raises(ValueError, match=r"has no model 'large-0.3'"):
        ask(folder, engine(server), ratio=0.3, seed=0)
    (request,) = server.requests
    assert request["max_tokens"] == 1


def test_the_key_of_the_server_comes_from_the_environment(
    server: ChatServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in (None, "secret"):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        if key:
            monkeypatch.setenv("OPENAI_API_KEY", key)
        using = engine_of(Generation(engine="openai", server=server.url))
        with writing(folder, using) as write:
            list(write([0], [0]))
    assert server.keys == [None, "Bearer secret"]


def test_an_engine_and_a_server_go_together() -> None:
    for wrong in ({"engine": "openai"}, {"server": "http://localhost:1"}):
        with pytest.raises(ValueError, match="go together"):
            Generation(**wrong)
    with pytest.raises(ValueError, match="served_as"):
        Generation(engine="openai", server="http://localhost:1", served_as="{unknown}")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"finish_reason": "content_filter"}, "finish_reason 'content_filter'"),
        ({"finish_reason": None}, "finish_reason 'None'"),
        ({"token_ids": {}}, "not a list of numbers"),
        ({"token_ids": [None]}, "not a list of numbers"),
        ({"token_ids": [True]}, "not a list of numbers"),
        ({"token_ids": [1.5]}, "not a list of numbers"),
        ({"token_ids": []}, "0 tokens where 1 to 8 were requested"),
        ({"token_ids": [5] * 9}, "9 tokens where 1 to 8 were requested"),
        ({"token_ids": [-1]}, "token id -1"),
        ({"token_ids": [10**9]}, "token id 1000000000"),
        ({"token_ids": "image"}, "token id"),
        ({"logprobs": {"content": [{"logprob": None}]}}, "log-probability None"),
        ({"logprobs": {"content": [{"logprob": float("nan")}]}}, "log-probability nan"),
        ({"logprobs": {"content": [{"logprob": float("-inf")}]}}, "log-probability -inf"),
        ({"logprobs": {"content": [{"logprob": 0.5}]}}, "log-probability 0.5"),
        ({"logprobs": {"content": [{"logprob": "0"}]}}, "log-probability 0"),
        ({"logprobs": {"content": [7]}}, "log-probability 7"),
        ({"logprobs": {"content": 7}}, "log-probability"),
        ({"logprobs": 7}, "log-probability"),
        ({"logprobs": {"content": []}}, "0 log-probabilities for"),
    ],
)
def test_a_reply_that_is_none_is_refused_before_anything_is_stored(
    server: ChatServer, folder: Path, changed: dict[str, Any], said: str
) -> None:
    _, processor = load(folder / "large")

    def change(choice: dict[str, Any]) -> None:
        choice |= {"token_ids": [5]} | changed
        if choice["token_ids"] == "image":
            choice["token_ids"] = [processor.image_token_id]
        tokens = choice["token_ids"]
        if "logprobs" not in changed and isinstance(tokens, list):
            choice["logprobs"] = {"content": [{"logprob": -1.0}] * len(tokens)}

    server.change = change
    with pytest.raises(ValueError, match=r"response 0 to question \S+: the server returned") as error:
        ask(folder, engine(server, concurrency=1), n=1, seed=0)
    assert said in str(error.value) and "\n" not in str(error.value)
    store = open_store(Source("large", folder / "large"), processor, SAMPLING, 0, engine(server))
    assert not store.shards()


def test_a_server_that_reads_another_prompt_is_refused(server: ChatServer, folder: Path) -> None:
    model, processor = load(folder / "large")
    processor.chat_template = "a " + processor.chat_template
    processor.save_pretrained(folder / "other")
    model.save_pretrained(folder / "other")
    told = pytest.raises(ValueError, match=r"a prompt of \d+ tokens, which is not ours of \d+; serve the")
    with serving({"large-0.0": folder / "other"}) as running, told:
        ask(folder, engine(running, concurrency=1))


def test_names_with_hyphens_stay_whole(folder: Path) -> None:
    with serving({"Qwen3-VL-2B-0.0": folder / "large", "Qwen3-VL-8B-0.0": folder / "masked"}) as running:
        _, processor = load(folder / "large")
        for name in ("Qwen3-VL-2B", "Qwen3-VL-8B"):
            source = Source(name, folder / "large")
            with engine(running).writer(
                source, processor, Questions(folder / "questions"), SAMPLING, 0
            ) as write:
                list(write([0], [0]))
        assert [request["model"] for request in running.requests] == ["Qwen3-VL-2B-0.0", "Qwen3-VL-8B-0.0"]


def test_a_key_and_a_password_never_show(server: ChatServer, folder: Path) -> None:
    address = server.url.replace("//", "//me:pass%20word@")
    for status in (401, 500):
        server.trouble = lambda number, status=status: status
        server.error = {"error": "bad key sk-secret of me:pass word at me:pass%20word"}
        using = OpenAIEngine(address, api_key="sk-secret", retries=0, backoff=0)
        with pytest.raises((ValueError, ConnectionError)) as error:
            ask(folder, using, seed=0)
        for secret in ("sk-secret", "pass word", "pass%20word"):
            assert secret not in str(error.value)


def test_a_bad_address_or_key_is_refused_with_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("localhost:8000", "http://", "http://a:x/v1", "ftp://a", "http://me:pw@ä", "http://a b"):
        with pytest.raises(ValueError, match="not an HTTP address") as error:
            Generation(engine="openai", server=address)
        assert "pw" not in str(error.value)
        with pytest.raises(ValueError, match="not an HTTP address"):
            LanguageJudge(server=address, model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(ValueError, match="not printable ASCII") as error:
        Generation(engine="openai", server="http://localhost:1")
    assert "schlüssel" not in str(error.value)
