"""Run a tiny Qwen3-VL and a tiny InternVL through the full pipeline: respond, judge, train, evaluate."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import families
import numpy as np
import pandas as pd
import pytest
import small
import torch
from PIL import Image
from stored import responses
from transformers import PreTrainedModel

from masters.data import questions
from masters.data.questions import Questions, load_questions
from masters.experiments.evaluation import evaluate
from masters.judges.rule import RuleJudge
from masters.models.loading import banned_tokens, load
from masters.models.packing import pack, response_logits
from masters.models.source import Source
from masters.objective.options import LossOptions
from masters.runtime.keys import hash_of
from masters.settings import Sampling
from masters.training.examples import Example, Examples
from masters.training.train import Budget, train
from masters.training.trainer import Objective

SIZES = [(64, 64), (96, 64), (64, 130), (100, 100)]  # (width, height) of the images, px
SAMPLING = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, max_new_tokens=6)


def squares() -> datasets.Dataset:
    """Return two questions on each of four single-color images of different sizes."""
    features = {
        name: datasets.Image() if name == "image" else datasets.Value("string")
        for name in ("id", "image", "image_id", "question", "answer", "skill", "facts", "caption")
    }
    rows = []
    for asked in ("what colour is this ?", "what colour is this square ?"):
        for (colour, rgb), size in zip(small.COLOURS.items(), SIZES, strict=True):
            file = io.BytesIO()
            Image.new("RGB", size, rgb).save(file, "png")
            rows.append(
                {
                    "id": f"{colour}-{len(asked)}",
                    "image": {"bytes": file.getvalue(), "path": None},
                    "image_id": colour,
                    "question": asked,
                    "answer": colour,
                    "skill": "colour",
                    "facts": "",
                    "caption": "",
                }
            )
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@dataclass
class Setting:
    model: PreTrainedModel
    processor: Any
    questions: Questions
    folder: Path

    def ask(self, n: int, seed: int | None, source: Source | None = None) -> pd.DataFrame:
        asked = range(len(self.questions))
        source = source or Source("large", self.folder)
        return responses(source, self.processor, self.questions, asked, n, SAMPLING, seed)  # type: ignore[arg-type]

    def accuracy(self, model: PreTrainedModel) -> float:
        answers = evaluate(model, self.processor, self.questions, RuleJudge(), 4, None)
        return float(answers["correct"].mean())


@pytest.fixture(scope="module", params=["qwen3_vl", "internvl"])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """Train a teacher to name colors from labels and save it."""
    torch.set_num_threads(1)
    data = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", str(data))
        patch.setattr(questions, "load_task", lambda name, split, limit=None: squares())
        patch.setattr(questions, "task_hash", lambda name, split, limit=None: hash_of("squares"))
        folder = data / "teacher"
        getattr(families, request.param)(folder, small.WORDS)
        model, processor = load(folder)
        asked = load_questions(["squares"], "train", None, processor)
        ids = processor.tokenizer
        labels = [
            np.array([*ids(f"{answer} .")["input_ids"], ids.eos_token_id]) for answer in asked.table["answer"]
        ]
        budget = Budget(steps=30, batch=4, learning_rate=1e-2, log_every=10)
        examples = Examples(120, lambda position: Example(position % 8, [labels[position % 8]]))
        train(model, asked, examples, Objective(), budget, data / "run", "teacher")
        model.save_pretrained(folder)
        yield Setting(model, processor, asked, folder)


def test_the_pictures_differ_in_size_and_keep_their_own_features(setting: Setting) -> None:
    asked = setting.questions
    image = setting.model.config.image_token_id
    assert len({int((asked.prompt(i) == image).sum()) for i in range(4)}) > 1
    image_word = setting.processor.tokenizer.convert_ids_to_tokens(image)
    for i in range(4):
        picture = Image.open(io.BytesIO(asked.images(i)[0]))
        alone = setting.processor(text=[image_word], images=[[picture]], return_tensors="pt")
        features = asked.image_features([i])
        assert features.keys() == alone.keys() - questions.OF_TEXT
        assert all(torch.equal(features[name], alone[name]) for name in features)


def test_greedy_answers_are_those_of_the_models_own_generate(setting: Setting) -> None:
    frame = setting.ask(1, None)
    banned = banned_tokens(setting.processor, setting.model.get_output_embeddings().weight.shape[0])
    for index, tokens in enumerate(frame["tokens"]):
        ids = torch.from_numpy(setting.questions.prompt(index).astype(np.int64))[None]
        kinds = (ids == setting.model.config.image_token_id).int()
        extra = {"mm_token_type_ids": kinds} if hasattr(setting.model.model, "get_rope_index") else {}
        out = setting.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **extra,
            **setting.questions.image_features([index]),
            do_sample=False,
            max_new_tokens=SAMPLING.max_new_tokens,
            suppress_tokens=banned,
        )
        assert out[0, ids.shape[1] :].tolist() == tokens.tolist()


def test_log_probabilities_of_sampling_are_those_of_packed_rows(setting: Setting) -> None:
    frame = setting.ask(4, 0)
    groups = [
        [np.asarray(tokens) for tokens in group["tokens"]]
        for _, group in frame.groupby("question", sort=False)
    ]
    everything = range(len(setting.questions))
    batch = pack(
        [setting.questions.prompt(i) for i in everything],
        groups,
        [setting.questions.image_features([i]) for i in everything],
    )
    with torch.no_grad():
        logprobs = response_logits(setting.model, batch).log_softmax(-1)
    found = logprobs.gather(-1, batch.tokens[..., None])[..., 0][batch.mask]
    np.testing.assert_allclose(found.numpy(), np.concatenate(frame["logprobs"]), atol=1e-4)


def test_a_student_learns_from_judged_responses_of_a_masked_teacher(setting: Setting, tmp_path: Path) -> None:
    assert setting.accuracy(setting.model) == 1
    student, reference = (families.build(setting.model.config, seed=5) for _ in range(2))
    before = setting.accuracy(student)
    student.save_pretrained(tmp_path / "student")
    setting.processor.save_pretrained(tmp_path / "student")
    sources = [Source("large", setting.folder, 0.1), Source("large", tmp_path / "student")]
    frame = pd.concat([setting.ask(2, 0, source) for source in sources])
    assert 0.3 < frame["correct"].mean() < 0.7, "the teacher is right and the student is not"
    groups = [group for _, group in frame.groupby("question", sort=False)]

    def make(position: int) -> Example:
        index = position % len(groups)
        tokens = [np.asarray(tokens) for tokens in groups[index]["tokens"]]
        return Example(index, tokens, (0, 0.1), accuracy=groups[index]["correct"].to_numpy(dtype=float))

    budget = Budget(steps=60, batch=4, learning_rate=5e-3, schedule="constant", log_every=10)
    vocabulary = len(setting.processor.tokenizer)
    objective = Objective(LossOptions(), [setting.model], reference, vocabulary)
    log = train(
        student, setting.questions, Examples(240, make), objective, budget, tmp_path / "run", "student"
    )
    assert log["divergence"].iloc[-1] < 0.75 * log["divergence"].iloc[0]
    assert setting.accuracy(student) >= before + 0.5
