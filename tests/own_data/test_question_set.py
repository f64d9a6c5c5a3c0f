"""Whole sets from files, folders and lists of these: splits, skipped rows, the cache and the encoding."""

import csv
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
import torch
from PIL import Image

from masters.data.labels import accepted
from masters.models.small import build_processor
from masters.own_data.question_set import OwnQuestions, encode_own, load_own_data, refused_rows
from masters.settings import OwnData

COUNT = 12


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, and a cache beside it."""
    monkeypatch.setenv("MASTERS_DATA", str(tmp_path / "data"))
    folder = tmp_path / "mine"
    (folder / "pictures").mkdir(parents=True)
    for number in range(COUNT):
        picture(number).save(folder / "pictures" / f"{number}.png")
    return folder


def picture(number: int) -> Image.Image:
    values = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    return Image.fromarray(values)


def rows(count: int = COUNT, first: int = 0) -> list[dict[str, Any]]:
    return [
        {"image": f"pictures/{number}.png", "question": f"what is {number} ?", "answer": str(number)}
        for number in range(first, count)
    ]


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(base: Path, **settings: Any) -> OwnQuestions:
    return load_own_data(OwnData.model_validate({"train": "train.jsonl"} | settings), base)


def asked(own: OwnQuestions, split: str = "train") -> list[tuple[str, str]]:
    return sorted(zip(own.splits[split]["question"], own.splits[split]["answer"], strict=True))


# --- sources ---


def save(base: Path, form: str) -> str | list[str]:
    """Write the same rows in some form and return what the settings say."""
    frame = pd.DataFrame(rows())
    files = [{"bytes": (base / name).read_bytes(), "path": None} for name in frame["image"]]
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    pictures = datasets.Dataset.from_dict(frame.to_dict("list") | {"image": files}, features=features)
    if form == "jsonl":
        write(base / "train.jsonl", rows())
    elif form == "json":
        (base / "train.json").write_text(json.dumps(rows()))
    elif form == "json with data":
        (base / "train.json").write_text(json.dumps({"data": rows()}))
    elif form == "json of lines":
        write(base / "train.json", rows())
    elif form in ("csv", "tsv"):
        frame.to_csv(base / f"train.{form}", index=False, sep="\t" if form == "tsv" else ",")
    elif form == "parquet":
        frame.assign(image=files).to_parquet(base / "train.parquet")
    elif form == "parquet of datasets":
        pictures.to_parquet(base / "train.parquet")
    elif form == "glob":
        frame[:5].to_parquet(base / "part-0.parquet")
        frame[5:].to_parquet(base / "part-1.parquet")
        return "part-*.parquet"
    elif form == "list":
        write(base / "one.jsonl", rows(5))
        frame[5:].to_csv(base / "two.csv", index=False)
        return ["one.jsonl", "two.csv"]
    elif form == "datasets folder":
        pictures.save_to_disk(str(base / "saved"))
        return "saved"
    elif form == "datasets folder with splits":
        datasets.DatasetDict({"train": pictures, "test": pictures.select([0])}).save_to_disk(
            str(base / "saved")
        )
        return "saved"
    elif form == "semicolons.csv":
        pd.DataFrame(rows()).to_csv(base / form, sep=";", index=False)
        return form
    elif form == "image folder":
        lines = [row | {"file_name": row["image"].split("/")[1]} for row in rows()]
        write(
            base / "pictures" / "metadata.jsonl",
            [{k: v for k, v in r.items() if k != "image"} for r in lines],
        )
        return "pictures"
    return f"train.{form.split()[0]}"


FORMS = (
    "jsonl",
    "json",
    "json with data",
    "json of lines",
    "csv",
    "tsv",
    "semicolons.csv",
    "parquet",
    "parquet of datasets",
    "glob",
    "list",
    "datasets folder",
    "datasets folder with splits",
    "image folder",
)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_the_same_in_every_form(form: str, base: Path) -> None:
    own = load(base, train=save(base, form))
    assert asked(own) == sorted((row["question"], row["answer"]) for row in rows())
    assert own.skipped.empty and own.problems == []
    write(base / "plain.jsonl", rows())
    assert own.splits["train"]["pixels"] == load(base, train="plain.jsonl").splits["train"]["pixels"]
    assert own.splits["train"]["sizes"][3] == [[30, 23]]


def test_a_map_of_options_is_read_and_other_columns_are_named(base: Path) -> None:
    kind = pa.map_(pa.string(), pa.string())
    options = pa.array([[("A", "red"), ("B", "blue")]], kind)
    table = {"question": ["which ?"], "answer": ["B"], "options": options, "picture": ["0.png"], "n": [1]}
    pq.write_table(pa.table(table), base / "maps.parquet")
    own = load(base, train="maps.parquet")
    assert asked(own) == [("which ?\nA. red\nB. blue", '["B", "blue"]')]
    assert own.problems[0] == "columns that are not read: n, picture"


def test_class_labels_are_their_names(base: Path) -> None:
    features = {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["cat", "dog"])}
    made = datasets.Dataset.from_dict(
        {"question": ["a", "b"], "answer": [1, 0]}, features=datasets.Features(features)
    )
    made.to_parquet(base / "train.parquet")
    made.save_to_disk(str(base / "saved"))
    for entry in ("train.parquet", "saved"):
        assert asked(load(base, train=entry)) == [("a", "dog"), ("b", "cat")]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"train": "gone.jsonl"}, "data.train: there is no file or folder 'gone.jsonl'"),
        ({"train": "gone-*.jsonl"}, r"data.train: no file matches 'gone-\*.jsonl'"),
        ({"train": []}, "data.train is an empty list"),
        ({"train": "rows.txt"}, "rows.txt has none of the endings .jsonl"),
        ({"train": "pictures"}, "pictures is a folder of pictures without metadata.jsonl"),
        ({"train": "empty"}, "empty is neither a datasets folder"),
        ({"train": "bad.json"}, "bad.json cannot be read as json: Expecting"),
        ({"train": "bad.parquet"}, "bad.parquet cannot be read as parquet"),
        ({"train": "latin.csv"}, "latin.csv cannot be read as csv: 'utf-8' codec.*; save it as UTF-8"),
        ({"train": "one.json"}, "one.json must hold a list of rows but holds one dict"),
        ({"train": "none.jsonl"}, "data.train has no usable row$"),
        ({"train": "wrong.jsonl"}, "data.train has no usable row; wrong.jsonl row 1: there is no question"),
        ({"train": "one.jsonl", "eval": "gone.csv"}, "data.eval: there is no file"),
        (
            {"train": "owner/name"},
            "'owner/name' is neither a file nor a folder, and loading it from the hub fails",
        ),
        ({"train": "one.jsonl", "eval": {"split_from_train": 1}}, "but train has 1 usable rows"),
    ],
)
def test_refused_sources(settings: dict[str, Any], reason: str, base: Path) -> None:
    (base / "empty").mkdir()
    (base / "rows.txt").write_text("a")
    (base / "bad.json").write_text("a")
    (base / "bad.parquet").write_text("a")
    (base / "latin.csv").write_bytes("question\nä\n".encode("latin-1"))
    (base / "one.json").write_text('{"question": "a"}')
    (base / "none.jsonl").write_text("\n")
    write(base / "wrong.jsonl", [{"a": 1}])
    write(base / "one.jsonl", [{"question": "a"}])
    with pytest.raises(ValueError, match=reason):
        load(base, **settings)


# --- bad rows ---


def test_bad_rows_are_skipped_and_listed(base: Path) -> None:
    (base / "broken.png").write_bytes(b"no picture")
    extra = [
        {"image": "broken.png", "question": "a"},
        {"image": "gone.png", "question": "a"},
        {"question": ""},
        rows()[0] | {"answer": "other"},
        ["no object"],
    ]
    write(base / "train.jsonl", [*rows(), *extra])
    with open(base / "train.jsonl", "a") as file:
        file.write("{broken\n")
    own = load(base)
    assert len(own.splits["train"]) == COUNT
    assert own.skipped["row"].tolist() == list(range(COUNT + 1, COUNT + 7))
    assert set(own.skipped["source"]) == {"train.jsonl"}
    reasons = own.skipped["reason"].tolist()
    for reason, expected in zip(
        reasons,
        (
            "broken.png cannot be read: not a picture",
            "gone.png does not exist",
            "there is no question",
            "same question and pictures as train.jsonl row 1",
            "not an object with named columns",
            "the line is not JSON",
        ),
        strict=True,
    ):
        assert expected in reason
    assert own.problems == [f"6 of 18 rows are skipped; the first is train.jsonl row 13: {reasons[0]}"]
    with pytest.raises(
        ValueError, match=r"train.jsonl row 13: .*; fix the row, or set data.on_bad_row: skip"
    ):
        load(base, on_bad_row="stop")


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": [{"role": "user", "content": "q"}], "completion": 3},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        {"question": "q", "answer": "a", "system": 5},
        {"question": "q", "answer": "a", "options": "[{1, [2]}]"},
        {"question": "q", "answer": "[" * 100_000},
        {"messages": "[" * 100_000},
        {"question": "q", "image": "data:image/png;base64,\u00e9"},
        {"question": "q", "image": "\u00e9" * 2_000},
    ],
    ids=lambda values: "+".join(values),
)
def test_a_malformed_row_stops_no_other(values: dict[str, Any], base: Path) -> None:
    write(base / "train.jsonl", [*rows(2), values])
    own = load(base)
    assert len(own.splits["train"]) + len(own.skipped) == 3 and own.skipped["row"].tolist() in ([], [3])
    assert all(own.skipped["reason"].str.len() < 400)


def test_a_folder_may_have_the_signs_of_a_pattern_in_its_name(base: Path) -> None:
    inside = base / "runs [1]*"
    (inside / "a").mkdir(parents=True)
    write(inside / "a" / "x.jsonl", [{"question": "q", "answer": "a"}])
    assert list(load(inside, train="*/x.jsonl").splits["train"]["id"]) == ["own/a/x.jsonl:1"]


def test_a_file_that_is_listed_twice_is_used_once(base: Path) -> None:
    write(base / "train.jsonl", rows(2))
    own = load(base, train=["train.jsonl", "train.jsonl"])
    assert len(own.splits["train"]) == 2
    assert own.skipped["reason"][1] == "same question and pictures as train.jsonl row 2"


def test_files_of_one_name_in_two_folders_are_told_apart(base: Path) -> None:
    for number, name in enumerate("ab"):
        (base / name).mkdir()
        write(base / name / "x.jsonl", [{"question": name, "answer": str(number)}])
    own = load(base, train="**/x.jsonl")
    assert list(own.splits["train"]["id"]) == ["own/a/x.jsonl:1", "own/b/x.jsonl:1"]


def test_half_a_character_is_no_text(base: Path) -> None:
    (base / "train.jsonl").write_text('{"question": "a"}\n{"question": "\\ud800"}\n')
    assert load(base).skipped["reason"].tolist() == ["its text is not valid Unicode"]


def test_csv_rows_with_too_many_cells_are_listed(base: Path) -> None:
    (base / "train.csv").write_text("question,answer\na,b\nc,d,e\n\nNA,None\n")
    own = load(base, train="train.csv")
    assert asked(own) == [("NA", "None"), ("a", "b")]
    assert own.skipped["reason"].tolist() == ["it has more cells than the header"]


def test_a_quote_that_never_closes_stops_the_reading(base: Path) -> None:
    (base / "train.csv").write_text('question,answer\na,b\n"c,d\ne,f\n')
    with pytest.raises(ValueError, match=r"train.csv cannot be read as csv"):
        load(base, train="train.csv")


def test_a_class_label_that_is_none_is_no_answer(base: Path) -> None:
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"question": ["a", "b"], "answer": [1, -1]}, features=features)
    rows.to_parquet(base / "labels.parquet")
    assert [row["answer"] for row in load(base, train="labels.parquet").splits["train"]] == ["yes", ""]


def test_rows_without_pictures_and_questions_of_train_are_said(base: Path) -> None:
    for name in ("one", "two"):
        (base / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    problems = " ".join(load(base, train="one.jsonl", eval="two.jsonl").problems)
    assert "1 of 1 rows of train have no picture (column images or image)" in problems
    assert "1 of 1 rows of eval have a picture that train has, too; or, without a picture" in problems


def test_quoted_cells_and_lists_in_a_table(base: Path) -> None:
    with open(base / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["question", "answer", "options"], ['two\n"lines", a', '["b", "c"]', ""]])
    (pair,) = asked(load(base, train="train.csv"))
    assert pair[0] == 'two\n"lines", a' and accepted(pair[1]) == ("b", "c")


def test_missing_answers_are_said(base: Path) -> None:
    write(base / "train.jsonl", [{"question": "a"}, {"question": "b", "answer": "c"}])
    assert load(base).problems[0] == "1 of 2 rows of train have no answer, so they get no accuracy reward"


# --- splits ---


def test_no_picture_is_in_train_and_eval(base: Path) -> None:
    several = [row | {"question": f"{row['question']} {turn}"} for row in rows() for turn in range(3)]
    both = {"images": ["pictures/0.png", "pictures/1.png"], "question": "which ?", "answer": "a"}
    picture(2).save(base / "copy.bmp")  # the same pixels in another file
    copy = {"image": "copy.bmp", "question": "copied ?", "answer": "b"}
    write(base / "train.jsonl", [*several, both, copy])
    own = load(base, eval={"split_from_train": 9})
    seen = [{p for of_row in own.splits[split]["pixels"] for p in of_row} for split in ("train", "eval")]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == COUNT
    assert 0 < len(own.splits["eval"]) <= 9
    assert len(own.splits["train"]) == len(several) + 2 - len(own.splits["eval"])
    write(base / "turned.jsonl", [copy, both, *several[::-1]])
    assert asked(load(base, train="turned.jsonl", eval={"split_from_train": 9}), "eval") == asked(own, "eval")


def test_rows_without_pictures_are_held_out_by_their_question(base: Path) -> None:
    several = [{"question": f"what is {number} ?", "answer": "a"} for number in range(20)]
    write(base / "train.jsonl", [*several, several[3]])
    own = load(base, eval={"split_from_train": 6})
    write(base / "turned.jsonl", [several[3], *several[::-1]])
    assert asked(load(base, train="turned.jsonl", eval={"split_from_train": 6}), "eval") == asked(own, "eval")
    assert not set(asked(own, "train")) & set(asked(own, "eval")), "equal questions stay together"


def test_a_split_that_cannot_be_cut_exactly_is_smaller(base: Path) -> None:
    write(base / "train.jsonl", [row | {"question": f"{t}"} for row in rows() for t in range(3)])
    own = load(base, eval={"split_from_train": 8})
    assert len(own.splits["eval"]) == 6
    assert own.problems == ["eval has 6 rows instead of 8: rows with a common picture stay together"]
    with pytest.raises(ValueError, match="split_from_train is 2, but at least 3 rows are linked by common"):
        load(base, eval={"split_from_train": 2})


def test_files_for_eval_and_test(base: Path) -> None:
    write(base / "train.jsonl", rows(8))
    write(base / "eval.jsonl", rows(10, first=7))
    write(base / "test.jsonl", rows(12, first=10))
    own = load(base, eval="eval.jsonl", test=["test.jsonl"])
    assert [len(own.splits[split]) for split in ("train", "eval", "test")] == [8, 3, 2]
    (shared,) = own.problems
    assert shared.startswith("1 of 3 rows of eval have a picture that train has, too;")


# --- the cache ---


def test_a_second_start_reads_no_row(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(base / "train.jsonl", rows())
    first = load(base)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a picture is opened again")

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", refuse)
        again = load(base)
    assert again.hashes == first.hashes and asked(again) == asked(first)


def test_only_the_first_process_looks_at_every_picture_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(base / "train.jsonl", rows())
    first = load(base)
    picture(30).save(base / "pictures" / "0.png")
    with monkeypatch.context() as patched:
        patched.setenv("RANK", "1")
        assert load(base).hashes == first.hashes
    assert load(base).hashes != first.hashes


@pytest.mark.parametrize("change", ["row", "answer", "picture", "settings"])
def test_a_change_is_seen(change: str, base: Path) -> None:
    write(base / "train.jsonl", rows())
    first = load(base)
    if change == "picture":
        picture(99).save(base / "pictures" / "3.png")
    elif change != "settings":
        lines = rows(11) if change == "row" else [*rows(11), rows()[11] | {"answer": "new"}]
        write(base / "train.jsonl", lines)
    assert load(base, **({"system": "Be brief."} if change == "settings" else {})).hashes != first.hashes


def test_a_picture_that_comes_later_is_seen(base: Path) -> None:
    write(base / "train.jsonl", [*rows(2), {"image": "late.png", "question": "a", "answer": "b"}])
    assert len(load(base).skipped) == 1
    picture(50).save(base / "late.png")
    assert load(base).skipped.empty


def test_copied_files_have_the_same_hash(base: Path, tmp_path: Path) -> None:
    import shutil

    write(base / "train.jsonl", rows())
    shutil.copytree(base, tmp_path / "copy")
    assert load(tmp_path / "copy").hashes == load(base).hashes


# --- encoding ---


@pytest.fixture(scope="module")
def processor() -> Any:
    return build_processor(small.WORDS)


def mixed() -> list[dict[str, Any]]:
    turns = [
        {"role": "system", "content": "so"},
        {"role": "user", "content": "what <image> is <image> ?"},
        {"role": "assistant", "content": "a square"},
        {"role": "user", "content": "no ?"},
        {"role": "assistant", "content": "yes"},
    ]
    return [
        *rows(3),
        {"messages": turns, "images": ["pictures/4.png", "pictures/3.png"]},
        {"question": "is it red ?", "answer": ["yes", "no"]},
    ]


def test_encoded_rows_are_questions_like_any_other(base: Path, processor: Any) -> None:
    write(base / "train.jsonl", mixed())
    own = load(base)
    questions = encode_own(own, "train", processor)
    assert questions.table.columns.tolist() == [
        *("id", "task", "skill", "question", "answer", "facts", "caption", "picture", "content")
    ]
    assert questions.table["id"].tolist() == [f"own/train.jsonl:{line}" for line in range(1, 6)]
    images = [int((questions.prompt(index) == processor.image_token_id).sum()) // 16 for index in range(5)]
    assert images == [1, 1, 1, 2, 0]
    several = [Image.open(io.BytesIO(file)) for file in questions.images(3)]
    assert [image.size for image in several] == [(30, 24), (30, 23)]
    expected = processor.image_processor(several, return_tensors="pt")["pixel_values"]
    assert torch.equal(questions.image_features([3])["pixel_values"], expected)
    assert questions.image_features([4]) == {}
    assert questions.image_features([0, 4, 3])["pixel_values"].shape[0] == 3
    assert [turn["role"] for turn in questions.conversation(3)] == ["system", "user", "assistant", "user"]
    kind, examples = questions.kinds()
    assert kind.tolist() == [0, 0, 0, 1, 2] and examples == [0, 3, 4]
    copied = pickle.loads(pickle.dumps(questions))
    assert torch.equal(copied.image_features([3])["pixel_values"], expected)
    assert questions.table["content"].is_unique and accepted(questions.table["answer"][4]) == ("yes", "no")


def test_content_and_hash_follow_what_the_model_reads(base: Path, processor: Any) -> None:
    write(base / "train.jsonl", rows(2))
    first = encode_own(load(base), "train", processor)
    write(base / "train.jsonl", [rows()[0] | {"answer": "new"}, rows()[1]])
    corrected = encode_own(load(base), "train", processor)
    assert corrected.table["content"].tolist() == first.table["content"].tolist()
    assert corrected.hash != first.hash and corrected.table["answer"].tolist() == ["new", "1"]
    smaller = encode_own(load(base, max_pixels=800), "train", processor)
    assert smaller.table["content"].tolist() != first.table["content"].tolist()
    (file,) = smaller.images(1)
    assert np.prod(Image.open(io.BytesIO(file)).size) <= 800 or picture(1).size[0] * picture(1).size[1] <= 800


def test_rows_that_the_processor_refuses_are_left_out(base: Path, processor: Any) -> None:
    write(base / "train.jsonl", [rows()[0], {"question": "<IMAGE> a"}, *rows()[1:3]])
    with pytest.warns(UserWarning, match=r"1 of 4 rows of train are left out: .*train.jsonl row 2"):
        questions = encode_own(load(base), "train", processor)
    assert questions.table["answer"].tolist() == ["0", "1", "2"] and len(questions) == 3
    ((source, number, reason),) = refused_rows(load(base), "train", processor).itertuples(index=False)
    assert source.endswith("train.jsonl") and number == 2 and "the processor refuses" in reason
    (file,) = questions.images(2)
    assert Image.open(io.BytesIO(file)).size == picture(2).size and questions.kinds()[1] == [0]
    with pytest.raises(ValueError, match=r"train.jsonl row 2"):
        encode_own(load(base, on_bad_row="stop"), "train", processor)
    with pytest.raises(ValueError, match="data has no split 'eval'; it has train"):
        encode_own(load(base), "eval", processor)


def test_a_picture_that_is_gone_is_named(base: Path, processor: Any) -> None:
    write(base / "train.jsonl", rows(2))
    questions = encode_own(load(base), "train", processor)
    os.remove(base / "pictures" / "1.png")
    with pytest.raises(ValueError, match=r"train.jsonl row 2: .*1.png does not exist"):
        questions.image_features([1])
