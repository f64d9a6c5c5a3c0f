import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import small
import torch

from masters.data import questions
from masters.data.questions import (
    Questions,
    Ragged,
    concatenate,
    joined,
    load_questions,
    processor_hash,
)
from masters.models import small as models
from masters.runtime.keys import hash_of

torch.set_num_threads(1)
TASK = "squares"
FEATURES = datasets.Features(
    {
        name: datasets.Image() if name == "image" else datasets.Value("string")
        for name in ("id", "image", "image_id", "question", "answer", "skill", "facts", "caption")
    }
)


def task(colors: list[str], name: str = TASK) -> datasets.Dataset:
    """Return a task with two questions on each colored square."""
    rows: dict[str, list[Any]] = {column: [] for column in FEATURES}
    for turn, asked in enumerate(("what colour is this ?", "what colour is this square ?")):
        for number, color in enumerate(colors):
            file = io.BytesIO()
            small.picture(color).save(file, "png")
            rows["id"].append(f"{name}/{number}-{turn}")
            rows["image"].append({"bytes": file.getvalue(), "path": None})
            rows["image_id"].append(f"{name}/{number}")
            rows["question"].append(asked)
            rows["answer"].append(color)
            rows["skill"].append("color")
            rows["facts"].append(f"it is a {color} square")
            rows["caption"].append(f"a {color} square")
    return datasets.Dataset.from_dict(rows, features=FEATURES)


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, datasets.Dataset]:
    """Replace the tasks by two small ones, with a cache in a temporary folder."""
    there = {TASK: task(["red", "green", "blue"]), "more": task(["white", "red"], "more")}

    def load(name: str, split: str, limit: int | None = None) -> datasets.Dataset:
        return there[name] if limit is None else there[name].select(range(limit))

    def content(name: str, split: str, limit: int | None = None) -> str:
        rows = load(name, split, limit)
        return hash_of([rows["id"][:], rows["question"][:], rows["answer"][:]])

    monkeypatch.setenv("MASTERS_DATA", str(tmp_path))
    monkeypatch.setattr(questions, "load_task", load)
    monkeypatch.setattr(questions, "task_hash", content)
    return there


@pytest.fixture(scope="module")
def processor() -> Any:
    return models.build_processor(small.WORDS)


def test_ragged_arrays_are_read_as_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(length, 3)).astype(np.float32) for length in (4, 0, 1, 7)]
    Ragged.write(tmp_path, "values", arrays)
    ragged = Ragged(tmp_path, "values")
    assert len(ragged) == 4
    for index, array in enumerate(arrays):
        assert ragged[index].dtype == np.float32
        np.testing.assert_array_equal(ragged[index], array)


def test_arrays_that_differ_in_every_dimension_are_read_as_written(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = [(1, 5, 2), (1, 3, 2), (2, 3, 4)]
    arrays = [generator.normal(size=shape) for shape in shapes]
    Ragged.write(tmp_path, "values", arrays)
    ragged = Ragged(tmp_path, "values")
    assert len(ragged) == 3 and [ragged[index].shape for index in range(3)] == shapes
    for index, array in enumerate(arrays):
        np.testing.assert_array_equal(ragged[index], array)


def test_images_with_fewer_tiles_are_padded_with_zeros() -> None:
    few, many = (torch.randn(1, tiles, 3) for tiles in (2, 4))
    sizes = torch.tensor([[40, 90]])
    joined = concatenate([{"pixels": few, "sizes": sizes}, {"pixels": many, "sizes": sizes + 1}])
    assert torch.equal(joined["pixels"][0, :2], few[0]) and not joined["pixels"][0, 2:].any()
    assert torch.equal(joined["pixels"][1], many[0])
    assert joined["sizes"].dtype == torch.int64 and joined["sizes"].tolist() == [[40, 90], [41, 91]]
    assert concatenate([]) == {}


def test_images_of_a_kind_have_the_same_shapes_and_sizes(tmp_path: Path) -> None:
    pixels = [np.zeros((rows, 8), dtype=np.float32) for rows in (4, 4, 6, 4)]
    grids = [np.array([grid]) for grid in ([1, 2, 2], [1, 4, 1], [1, 2, 3], [1, 2, 2])]
    Ragged.write(tmp_path, "image.pixel_values", pixels)
    Ragged.write(tmp_path, "image.grid", grids)
    for name in ("prompts", "images"):
        Ragged.write(tmp_path, name, [np.zeros(1, dtype=np.uint8)] * 5)
    pd.DataFrame({"id": list("abcde"), "picture": [2, 0, 1, 3, 2]}).to_parquet(tmp_path / "table.parquet")
    kind, examples = Questions(tmp_path).kinds()
    assert len(examples) == 3 and [kind[index] for index in examples] == [0, 1, 2]
    assert kind[0] == kind[4] and kind[1] == kind[3] and len(set(kind)) == 3


@pytest.mark.usefixtures("tasks")
def test_prompts_hold_sixteen_image_tokens_and_the_question(processor: Any) -> None:
    asked = load_questions([TASK, "more"], "train", None, processor)
    assert len(asked) == 10
    tokenizer = processor.tokenizer
    for index in range(len(asked)):
        prompt = asked.prompt(index)
        assert int((prompt == processor.image_token_id).sum()) == 16
        assert tokenizer.decode(prompt[:1]) == "<user>" and tokenizer.decode(prompt[-1:]) == "<assistant>"
        assert tokenizer.decode(prompt, skip_special_tokens=True) == asked.table["question"][index]


@pytest.mark.usefixtures("tasks")
def test_each_question_gets_the_features_of_its_own_picture(processor: Any) -> None:
    asked = load_questions([TASK, "more"], "train", None, processor)
    wanted = [9, 0, 4, 0]
    features = asked.image_features(wanted)
    assert features.keys() == {"pixel_values"}
    pixels = features["pixel_values"]
    assert pixels.shape == (4, 3, 64, 64) and pixels.dtype == torch.float32
    for row, index in enumerate(wanted):
        image = small.picture(asked.table["answer"][index])
        expected = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels[row], expected)
    assert asked.table["picture"].nunique() == 5, "a picture is kept once for its two questions"
    assert list(asked.table["task"].unique()) == [TASK, "more"]


@pytest.mark.usefixtures("tasks")
def test_content_is_the_prompt_and_the_picture(processor: Any) -> None:
    table = load_questions([TASK, "more"], "train", None, processor).table
    content = table.set_index("id")["content"]
    assert content["squares/0-0"] != content["squares/1-0"], "another picture"
    assert content["squares/0-0"] != content["squares/0-1"], "another question"
    assert content["squares/0-0"] == content["more/1-0"], "the same question on the same picture"


def test_an_image_id_of_two_tasks_names_two_images(
    tasks: dict[str, datasets.Dataset], processor: Any
) -> None:
    tasks["more"] = task(["white", "red", "red"], TASK)  # the ids of the other task
    tasks["more"] = tasks["more"].map(lambda row: {"id": f"more-{row['id']}"})
    asked = load_questions([TASK, "more"], "train", None, processor)
    for index, color in enumerate(asked.table["answer"]):
        expected = processor.image_processor(small.picture(color), return_tensors="pt")["pixel_values"]
        assert torch.equal(asked.image_features([index])["pixel_values"], expected)
    content = asked.table.set_index("id")["content"]
    assert content["more-squares/1-0"] == content["squares/0-0"], "both ask of a red square"
    assert content["more-squares/0-0"] != content["squares/0-0"], "one is white"


def test_questions_on_disk_are_not_encoded_again(
    tasks: dict[str, datasets.Dataset], processor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = load_questions([TASK], "train", None, processor)

    def refuse(*_: object) -> None:
        raise AssertionError("encoded again")

    with monkeypatch.context() as patched:
        patched.setattr(questions, "_encode", refuse)
        again = load_questions([TASK], "train", None, models.build_processor(small.WORDS))
        assert again.hash == first.hash
        assert again.prompt(3).tolist() == first.prompt(3).tolist()
        for arguments in (
            ([TASK], "test", None, processor),
            ([TASK], "train", 2, processor),
            (["more"], "train", None, processor),
            ([TASK], "train", None, models.build_processor([*small.WORDS, "zebra"])),
        ):
            with pytest.raises(AssertionError, match="encoded again"):
                load_questions(*arguments)
        tasks[TASK] = task(["red", "green", "white"])
        with pytest.raises(AssertionError, match="encoded again"):
            load_questions([TASK], "train", None, processor)
    folders = [path for path in (tmp_path / "cache" / "questions").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [first.hash], "a failed encoding leaves nothing behind"


@pytest.mark.usefixtures("tasks")
def test_each_question_is_encoded_as_if_it_were_alone(processor: Any) -> None:
    """Prompts are shared by pictures of a size, and pictures by their questions."""
    found = load_questions([TASK, "more"], "train", None, processor)
    assert found.table["picture"].nunique() < len(found) > found.table["question"].nunique()
    for index, question in enumerate(found.table["question"]):
        text, (image,) = questions.prompt_text(processor, question), found.pictures(index)
        alone = processor(text=[text], images=[[image]], return_tensors="pt")
        assert found.prompt(index).tolist() == alone["input_ids"][0].tolist()
        assert torch.equal(found.image_features([index])["pixel_values"], alone["pixel_values"])


def test_the_processor_hash_covers_words_template_and_images(processor: Any) -> None:
    same, template, size = (models.build_processor(small.WORDS) for _ in range(3))
    template.chat_template = template.chat_template.replace("<image>", "<image> <image>")
    size.image_processor.size = {"shortest_edge": 32}
    words = models.build_processor(small.WORDS[::-1])
    assert processor_hash(same) == processor_hash(processor)
    assert len({processor_hash(p) for p in (processor, template, size, words)}) == 4


def test_positions_by_id(tmp_path: Path) -> None:
    asked: Questions = small.questions(tmp_path / "questions")
    assert asked.position() == {"q0": 0, "q1": 1, "q2": 2, "q3": 3}


@pytest.mark.usefixtures("tasks")
def test_joined_sets_are_the_sets_one_after_the_other(processor: Any) -> None:
    whole = load_questions([TASK, "more"], "train", None, processor)
    both = joined([load_questions([name], "train", None, processor) for name in (TASK, "more")])
    assert both.table.drop(columns="picture").equals(whole.table.drop(columns="picture"))
    assert both.table["picture"].tolist() == whole.table["picture"].tolist()
    for index in range(len(whole)):
        assert both.prompt(index).tolist() == whole.prompt(index).tolist()
        assert both.images(index) == whole.images(index)
        assert both.conversation(index) == whole.conversation(index)
    wanted = [9, 0, 6]
    features = both.image_features(wanted)["pixel_values"]
    assert torch.equal(features, whole.image_features(wanted)["pixel_values"])
    assert len(both.kinds()[0]) == len(whole)


@pytest.mark.usefixtures("tasks")
def test_samples_show_image_question_and_answer(processor: Any) -> None:
    shown = load_questions([TASK], "train", None, processor).samples([4, 0])
    assert [row["answer"] for row in shown] == ["green", "red"]
    assert shown[0]["image"].getpixel((5, 5)) == small.COLOURS["green"]
