"""The engine on vLLM, in this process and as a server, tested against transformers on a tiny Qwen3-VL.

`make test-vllm` creates the environment and runs these tests.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
pytest.importorskip("vllm", reason="vLLM needs its own environment: make test-vllm")

import families
from stored import responses

import masters
from masters.data.questions import Questions, load_questions
from masters.data.tasks import vocabulary
from masters.distillation.run_file import load_run_file
from masters.models.loading import banned_tokens, load
from masters.models.source import Source
from masters.own_data.question_set import encode_own, load_own_data
from masters.responses.cached import open_store
from masters.responses.engines import Engine
from masters.responses.engines.openai import OpenAIEngine
from masters.responses.engines.vllm import VllmEngine, save_masked
from masters.settings import Sampling

COUNT = 5
RATIO = 0.5
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
SAMPLING = Sampling(max_new_tokens=8)


@dataclass
class Setting:
    folder: Path
    processor: Any
    questions: Questions

    def ask(
        self, engine: Engine | None, ratio: float = 0.0, n: int = 1, seed: int | None = None
    ) -> pd.DataFrame:
        source = Source("large", self.folder, ratio)
        wanted = range(COUNT)
        return responses(
            source,
            self.processor,
            self.questions,
            wanted,
            n,
            SAMPLING,
            seed,
            engine=engine,  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    torch.set_num_threads(1)
    data = tmp_path_factory.mktemp("vllm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", str(data))
        families.qwen3_vl(data / "large", vocabulary(("shapes",)), videos=True)
        _, processor = load(data / "large")
        yield Setting(data / "large", processor, load_questions(("shapes",), "validation", COUNT, processor))


def same(near: pd.DataFrame, far: pd.DataFrame) -> None:
    assert near["text"].tolist() == far["text"].tolist()
    assert near["finish"].tolist() == far["finish"].tolist()
    assert [list(tokens) for tokens in near["tokens"]] == [list(tokens) for tokens in far["tokens"]]
    for one, other in zip(near["logprobs"], far["logprobs"], strict=True):
        assert np.allclose(one, other, atol=1e-3)
    assert near["text"].nunique() > 1


def test_transformers_answers_as_the_models_own_generate(setting: Setting) -> None:
    """Check the reference of this file: three-dimensional positions, padding and cache."""
    model, processor = load(setting.folder)
    frame = setting.ask(None)
    banned = banned_tokens(processor, model.get_output_embeddings().weight.shape[0])
    for index, tokens in enumerate(frame["tokens"]):
        ids = torch.from_numpy(setting.questions.prompt(index).astype(np.int64))[None]
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            **setting.questions.image_features([index]),
            do_sample=False,
            max_new_tokens=SAMPLING.max_new_tokens,
            suppress_tokens=banned,
        )
        assert out[0, ids.shape[1] :].tolist() == tokens.tolist()


@pytest.mark.parametrize("ratio", [0.0, RATIO])
def test_greedy_responses_are_those_of_transformers(setting: Setting, ratio: float) -> None:
    near, far = setting.ask(None, ratio), setting.ask(VllmEngine(OPTIONS), ratio)
    same(near, far)
    assert not (setting.folder.parent / "cache" / "handed-over").exists()


def test_samples_depend_on_their_own_seed_and_are_generated_once(setting: Setting) -> None:
    engine = VllmEngine(OPTIONS)
    four = setting.ask(engine, n=4, seed=0)
    store = open_store(Source("large", setting.folder), setting.processor, SAMPLING, 0, engine)
    for path in store.folder.glob("*"):
        path.unlink()
    two = setting.ask(engine, n=2, seed=0)
    assert four[four["index"] < 2]["text"].tolist() == two["text"].tolist()
    assert four.groupby("question")["text"].nunique().gt(1).any()
    banned = set(banned_tokens(setting.processor, len(setting.processor.tokenizer) + families.EXTRA_ROWS))
    assert not banned & {int(token) for tokens in four["tokens"] for token in tokens}


def test_a_prompt_that_vllm_tokenizes_differently_is_refused(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Questions.prompt
    monkeypatch.setattr(Questions, "prompt", lambda self, index: prompt(self, index)[:-1])
    with (
        VllmEngine(OPTIONS).writer(
            Source("large", setting.folder), setting.processor, setting.questions, SAMPLING, None
        ) as write,
        pytest.raises(ValueError, match="vLLM reads the prompt"),
    ):
        list(write([0], [0]))


def test_a_model_that_vllm_cannot_read_is_one_clear_line(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "config.json").write_text("{}")
    with (
        pytest.raises(ValueError, match="vLLM cannot open large") as error,
        VllmEngine(OPTIONS).writer(
            Source("large", tmp_path / "large"), setting.processor, setting.questions, SAMPLING, None
        ),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def server(setting: Setting) -> Iterator[str]:
    """Run vLLM's server with the masked model."""
    folder = setting.folder.parent / "masked"
    save_masked(setting.folder, RATIO, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--served-model-name", f"large-{RATIO}", "--port", str(port), "--dtype", "float32"]
    words += ["--enforce-eager", "--max-model-len", "256"]
    log = (setting.folder.parent / "server.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
    )
    try:
        for _ in range(600):
            assert process.poll() is None, Path(log.name).read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


def test_vllms_server_answers_as_transformers(setting: Setting, server: str) -> None:
    engine = OpenAIEngine(server, concurrency=4)
    same(setting.ask(None, RATIO), setting.ask(engine, RATIO))
    sampled = setting.ask(engine, RATIO, n=4, seed=0)
    assert sampled.groupby("question")["text"].nunique().gt(1).any()
    assert [len(row) for row in sampled["tokens"]] == [len(row) for row in sampled["logprobs"]]


def test_a_distilled_student_answers_as_in_its_evaluation(tmp_path: Path) -> None:
    """A folder with one picture and question per color, distilled as a user would, then read by vLLM."""
    words = ["what", "is", "it", "?", "red", "green", "blue", "gray"]
    for name in ("student", "teacher"):
        families.qwen3_vl(tmp_path / name, words, videos=True)
    rows = []
    for index in range(12):
        color = words[4 + index % 4]
        Image.new("RGB", (64, 64 + 32 * (index % 2)), color).save(tmp_path / f"{index}.png")
        rows.append(
            {"image": f"{index}.png", "question": f"what is it ? {words[index % 8]}", "answer": color}
        )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "student": "student",
        "teachers": "teacher",
        "output_dir": "out",
        "data": {"train": "train.jsonl", "eval": {"split_from_train": 4}},
        "responses": {"teacher": 2, "student": 2, "max_new_tokens": 8},
        "training": {"learning_rate": 1e-3, "batch": 2},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_CACHE", str(tmp_path / "responses"))
        student = masters.distill(tmp_path / "run.yaml", [].append)
        _, processor = load(student)
        run = load_run_file(tmp_path / "run.yaml")
        questions = encode_own(load_own_data(run.data, run.folder), "eval", processor)
        source, four = Source("student", student), range(len(questions))
        made = responses(source, processor, questions, four, 1, SAMPLING, None, engine=VllmEngine(OPTIONS))
    after = pd.read_parquet(tmp_path / "out" / "eval" / "after.parquet")
    assert made["text"].tolist() == after["answer"].tolist()
