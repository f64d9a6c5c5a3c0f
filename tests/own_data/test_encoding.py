"""Rows with several pictures, none, and several turns reach models of three families as they should."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import small
import torch
from PIL import Image
from transformers import PreTrainedModel

from masters.data.questions import Questions
from masters.models import compatibility
from masters.models.compatibility import image_tokens
from masters.models.loading import load
from masters.models.packing import pack, response_logits
from masters.own_data.question_set import encode_own, load_own_data
from masters.responses.engines.local import generate
from masters.settings import OwnData, Sampling

SIZES = [(64, 64), (96, 64), (64, 130), (100, 100)]
SAMPLING = Sampling(max_new_tokens=5)


def rows(folder: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    turns = [
        {"role": "user", "content": "what <image> is this <image> square ?"},
        {"role": "assistant", "content": "it is red ."},
        {"role": "user", "content": "is it ?"},
    ]
    return [
        {"image": "0.png", "question": "what colour is this ?", "answer": "red"},
        {"question": "is red a colour ?", "answer": "yes"},
        {"messages": turns, "images": ["1.png", "2.png"]},
        {"image": "3.png", "question": "what colour is this square ?", "answer": "blue"},
    ]


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "internvl"])
def setting(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PreTrainedModel, Any, Questions]]:
    folder = tmp_path_factory.mktemp(request.param)
    with small.scratch(folder / "data"):
        if request.param == "llava":
            model, processor = small.build()
        else:
            getattr(families, request.param)(folder / "model", small.WORDS)
            model, processor = load(folder / "model")
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(folder)))
        own = load_own_data(OwnData(train="train.jsonl"), folder)
        yield model, processor, encode_own(own, "train", processor)


def test_packed_rows_have_the_logits_of_each_alone(setting: tuple[PreTrainedModel, Any, Questions]) -> None:
    model, processor, questions = setting
    words = processor.tokenizer(["the answer is", "it red"])["input_ids"]
    answers = [[np.array(ids) for ids in words] for _ in range(4)]
    images = [questions.image_features([index]) for index in range(4)]
    batch = pack([questions.prompt(index) for index in range(4)], answers, images, together=False)
    with torch.no_grad():
        logits = response_logits(model, batch)
        for index in range(4):
            prompt = questions.prompt(index)
            ids = torch.from_numpy(np.concatenate([prompt, answers[index][0]]).astype(np.int64))[None]
            kinds = (ids == model.config.image_token_id).int()
            extra = {"mm_token_type_ids": kinds} if hasattr(model.model, "get_rope_index") else {}
            alone = model(input_ids=ids, **extra, **images[index]).logits[0, len(prompt) - 1 : -1]
            torch.testing.assert_close(logits[index, 0], alone, rtol=1e-3, atol=1e-4)


def test_answers_do_not_depend_on_the_rows_beside(setting: tuple[PreTrainedModel, Any, Questions]) -> None:
    model, processor, questions = setting
    together = {
        answer.question: answer.tokens
        for batch in generate(model, processor, questions, range(4), range(1), SAMPLING, None)
        for answer in batch
    }
    for index, name in enumerate(questions.table["id"]):
        (batch,) = generate(model, processor, questions, [index], range(1), SAMPLING, None)
        assert batch[0].tokens == together[name]


def test_image_tokens_are_those_of_the_prompts(setting: tuple[PreTrainedModel, Any, Questions]) -> None:
    model, _, questions = setting
    expected = [
        int((questions.prompt(index) == model.config.image_token_id).sum()) for index in range(len(questions))
    ]
    counted = image_tokens(model, questions)
    assert counted is not None and counted.tolist() == expected and expected[1] == 0 < expected[2]


def test_of_very_many_kinds_of_images_the_first_are_measured(
    setting: tuple[PreTrainedModel, Any, Questions], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, questions = setting
    whole = image_tokens(model, questions)
    monkeypatch.setattr(compatibility, "MEASURED", 1)
    counted = image_tokens(model, questions)
    assert whole is not None and counted is not None
    first = questions.kinds()[0] == 0
    assert (counted[first] == whole[first]).all() and (counted[~first] == -1).all() and not first.all()


def test_a_text_that_holds_the_image_token_without_a_picture_is_left_out(
    setting: tuple[PreTrainedModel, Any, Questions], tmp_path: Path
) -> None:
    processor = setting[1]
    asked = [f"what colour is {processor.image_token} ?", "is red a colour ?"]
    lines = [json.dumps({"question": question, "answer": "red"}) + "\n" for question in asked]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    own = load_own_data(OwnData(train="train.jsonl"), tmp_path)
    if len(own.splits["train"]) == 1:  # the token is the mark of a picture's place
        assert "picture" in own.skipped["reason"].iloc[0]
        return
    with pytest.warns(UserWarning, match="1 of 2 rows of train are left out: .*train.jsonl row 1"):
        kept = encode_own(own, "train", processor)
    assert kept.table["question"].tolist() == asked[1:]
