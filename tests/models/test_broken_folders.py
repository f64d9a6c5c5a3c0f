"""A broken model folder ends in one line that names the folder and the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from small import build

from masters.models.loading import load, stored_dtype

Break = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    model, processor = build()
    model.save_pretrained(folder, max_shard_size="10KB")
    processor.save_pretrained(folder)
    return folder


def put(file: str, text: str) -> Break:
    return lambda folder: (folder / file).write_text(text)


def without(pattern: str) -> Break:
    return lambda folder: sorted(folder.glob(pattern))[-1].unlink()


def text_config(**values: Any) -> Break:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["text_config"] |= values
        path.write_text(json.dumps(config))

    return change


def dtype(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float99"}))


def renamed_weight(folder: Path) -> None:
    path = sorted(folder.glob("model-*"))[0]
    weights = load_file(path)
    save_file({f"x.{name}": weight for name, weight in weights.items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("breaks", "cause"),
    [
        (text_config(vocab_size=99), "embed_tokens.weight has shape (25, 16) in the files and (99, 16)"),
        (text_config(hidden_size=32), "has shape (25, 16) in the files and (25, 32) by config.json"),
        (text_config(hidden_size=-3), "negative dimension"),
        (text_config(num_hidden_layers=3), "`num_hidden_layers` (3) must be equal"),
        (text_config(hidden_act="nope"), "KeyError 'nope'"),
        (put("config.json", "[1]"), "config.json is damaged"),
        (put("config.json", "null"), "config.json is damaged"),
        (dtype, "float99"),
        (put("tokenizer.json", "garbage"), "tokenizer.json is damaged"),
        (put("tokenizer.json", "{}"), "KeyError"),
        (put("tokenizer_config.json", "[]"), "tokenizer_config.json is damaged"),
        (put("processor_config.json", "[]"), "processor_config.json is damaged"),
        (put("generation_config.json", "[]"), "generation_config.json is damaged"),
        (without("processor_config.json"), "image processor"),
        (put("chat_template.jinja", "{% for %}"), "its chat template fails: TemplateSyntaxError"),
        (put("chat_template.jinja", "{{ messages[9].content }}"), "its chat template fails: UndefinedError"),
        (without("model-*"), "No such file"),
        (put("model.safetensors.index.json", "[]"), "model.safetensors.index.json is damaged"),
        (renamed_weight, "the files lack"),
    ],
)
def test_a_broken_folder_is_one_line(breaks: Break, cause: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    breaks(folder)
    with pytest.raises(ValueError) as caught:
        load(folder)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 1000
    assert str(folder) in line and cause in line, line


def test_a_missing_shard_is_named_before_any_weight_is_read(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    shards = sorted(folder.glob("model-*"))
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"{folder} is damaged .*{shards[1].name}"):
        stored_dtype(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"{folder} is damaged"):
        stored_dtype(folder)
