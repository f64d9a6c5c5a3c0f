"""Rows of every form: what is asked, what is accepted, where the pictures are, and what is refused."""

import json
import re
from typing import Any

import pytest

from masters.own_data.rows import Row, RowError, parse_row
from masters.runtime.files import ROOT
from masters.settings import Columns

IMAGE = {"type": "image"}


def parse(row: dict[str, Any], system: str | None = None, **columns: str) -> Row:
    return parse_row(row, Columns(**columns), system)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


# --- question and answer ---


def test_a_question_with_a_picture() -> None:
    row = parse({"image": "a.png", "question": "How many?", "answer": 3})
    assert row.messages == [user(IMAGE, text("How many?"))]
    assert (row.question, row.answers, row.skill, row.pictures) == ("How many?", ("3",), "open", ["a.png"])


def test_named_columns_and_the_system_prompt() -> None:
    row = parse(
        {"bild": "a.png", "frage": "Wo?", "soll": "da"},
        "Be brief.",
        images="bild",
        question="frage",
        answer="soll",
    )
    assert row.messages[0] == {"role": "system", "content": [text("Be brief.")]}
    assert row.pictures == ["a.png"] and row.answers == ("da",)
    with pytest.raises(RowError, match=r"no column 'x' \(data.columns.answer\); there are question"):
        parse({"question": "a"}, answer="x")


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (["a", " b "], ("a", "b")),
        ('["a", "b"]', ("a", "b")),
        ("[0, 1]", ("[0, 1]",)),
        ([{"answer": "no", "answer_confidence": "yes"}, {"answer": "no"}], ("no", "no")),
        (2.0, ("2",)),
        (2.5, ("2.5",)),
        (None, ()),
        (float("nan"), ()),
        ("", ()),
        ([], ()),
        (["", "a"], ("a",)),
    ],
)
def test_accepted_answers(answer: Any, accepted: tuple[str, ...]) -> None:
    row = parse({"question": "?", "answer": answer})
    assert row.answers == accepted and row.skill == ("open" if accepted else "unanswered")


@pytest.mark.parametrize("answer", ["B", "(B)", "b.", "dog", "Dog", 1])
def test_an_option_may_be_its_letter_text_or_index(answer: Any) -> None:
    row = parse({"question": "Which?", "options": ["cat", "dog"], "answer": answer})
    assert row.question == "Which?\nA. cat\nB. dog"
    assert (row.answers, row.skill) == (("B", "dog"), "choice")


@pytest.mark.parametrize("options", ["['cat', 'dog']", '["cat", "dog"]', {"A": "cat", "B": "dog"}])
def test_options_of_a_table_and_of_an_object(options: Any) -> None:
    assert parse({"question": "Which?", "choices": options, "answer": "A"}).answers == ("A", "cat")


@pytest.mark.parametrize("asked", ["Which?\nA. cat\nB. dog", "Which? (A) cat (B) dog", "A: cat B: dog"])
def test_options_that_the_question_lists_are_not_listed_again(asked: str) -> None:
    assert parse({"question": asked, "options": ["cat", "dog"], "answer": "A"}).question == asked


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        (["1", "2", "3"], 1, "could mean several"),
        (["B", "A"], "A", "could mean several"),
        (["cat", "dog"], "cow", "is none"),
        (["cat", "dog"], "C", "is none"),
        (["cat", "dog"], 2, "is none"),
        (["x"] * 27, "A", "27 options"),
        (["cat", True], "A", "an answer or option is True"),
    ],
)
def test_refused_options(options: list[Any], answer: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse({"question": "Which?", "options": options, "answer": answer})


def test_places_in_a_question() -> None:
    row = parse({"question": "Is <image> like <image>?", "images": ["a", "b"], "answer": "no"})
    assert row.messages == [user(text("Is "), IMAGE, text(" like "), IMAGE, text("?"))]
    assert row.pictures == ["a", "b"] and row.question == "Is like ?"


def test_pictures_of_a_table_cell() -> None:
    assert parse({"question": "?", "images": '["a.png", "b.png"]'}).pictures == ["a.png", "b.png"]


# --- conversations ---

TRL = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ],
    "images": ["a.png"],
}
SWIFT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>\nWhat?"},
        {"role": "assistant", "content": "A cat."},
    ],
    "images": ["a.png"],
}
LLAMA_FACTORY = {
    "system": "Be brief.",
    "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}],
    "images": ["a.png"],
}
PROMPT = {
    "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
    "completion": [{"role": "assistant", "content": "A cat."}],
    "images": ["a.png"],
}
INSIDE = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A cat."},
    ]
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "text", "text": "What?"},
            ],
        },
        {"role": "assistant", "content": "A cat."},
    ]
}
CELL = {"messages": json.dumps(SWIFT["messages"]), "images": "a.png"}
FORMS = {
    "TRL": TRL,
    "ms-swift": SWIFT,
    "LLaMA-Factory": LLAMA_FACTORY,
    "prompt": PROMPT,
    "inside": INSIDE,
    "OpenAI": OPENAI,
    "cell": CELL,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_as_it_is_written_for(form: str) -> None:
    row = parse(FORMS[form])
    assert row.messages == [{"role": "system", "content": [text("Be brief.")]}, user(IMAGE, text("What?"))]
    assert row.pictures == ["a.png"] and row.question == "What?"
    assert row.answers == ("A cat.",) and row.skill == "open"


def test_several_turns_and_pictures() -> None:
    row = parse(
        {
            "messages": [
                {"role": "user", "content": "<image> What?"},
                {"role": "assistant", "content": "A cat."},
                {"role": "user", "content": "And <image>?"},
                {"role": "assistant", "content": "A dog."},
            ],
            "images": ["a", "b"],
        },
        system="Be brief.",
    )
    assert [message["role"] for message in row.messages] == ["system", "user", "assistant", "user"]
    assert row.question == "And ?" and row.answers == ("A dog.",) and row.pictures == ["a", "b"]


def test_a_conversation_without_a_picture_or_an_answer() -> None:
    row = parse({"messages": [{"role": "user", "content": "What?"}]})
    assert row.messages == [user(text("What?"))] and row.answers == () and row.skill == "unanswered"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "a"}, "there is no question; columns are answer"),
        ({"question": " "}, "there is no question"),
        ({"question": "<image>", "images": ["a"]}, "the question is empty"),
        ({"question": "a", "videos": ["b.mp4"]}, "videos or audio"),
        ({"question": "<image> a"}, r"places of 1 pictures \(<image>\), and it has 0"),
        ({"question": "<image> a", "images": ["a", "b"]}, r"places of 1 pictures \(<image>\), and it has 2"),
        ({**INSIDE, "images": ["a"]}, "places of 0 pictures"),
        ({"messages": "what"}, "text that is not JSON"),
        ({"messages": {"role": "user"}}, "not a list of messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "has the role 'tool'"),
        ({"messages": [{"role": "user", "content": None}]}, "has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "has the type 'video'"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "no turn of the user"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [IMAGE]}]},
            "picture",
        ),
        ({"question": "a", "answer": True}, "an answer or option is True"),
    ],
)
def test_refused_rows(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse(row)


def test_the_rows_of_the_book_are_read() -> None:
    page = (ROOT / "book" / "your_data.md").read_text()
    blocks = re.findall(r"```json\n(.*?)```", page, re.S)
    read = [parse(json.loads(line)) for block in blocks for line in block.splitlines()]
    assert [row.answers for row in read] == [
        ("3",),
        ("yes", "Yes, it is."),
        ("B", "blue"),
        (),
        *[("A cat.",)] * 3,
    ]


@pytest.mark.parametrize(
    ("options", "answer", "right"),
    [
        ({"B": "blue", "A": "red"}, "A", ("A", "red")),
        ({"1": "red", "2": "blue"}, 1, ("A", "red")),
        ({str(n): f"x{n}" for n in range(1, 12)}, "10", ("J", "x10")),
        (["red", "blue", ""], "B", ("B", "blue")),
        (["red", "blue"], "1", ("B", "blue")),
        (["red", "blue"], 1.0, ("B", "blue")),
        (["3", "0"], "0", ("B", "0")),
    ],
)
def test_the_right_option_by_key_letter_text_or_index(
    options: Any, answer: Any, right: tuple[str, str]
) -> None:
    assert parse({"question": "Which?", "options": options, "answer": answer}).answers == right


def test_an_empty_option_between_others_is_refused() -> None:
    with pytest.raises(RowError, match="option 1 is empty"):
        parse({"question": "Which?", "options": ["", "red"], "answer": 1})


def test_a_conversation_without_an_answer_takes_that_of_its_column() -> None:
    turns = [{"role": "user", "content": "Which?\nA. red\nB. blue"}]
    row = parse({"messages": turns, "solution": "B", "options": ["red", "blue"]})
    assert row.answers == ("B", "blue") and row.skill == "choice"
    assert parse({"prompt": turns, "answer": "blue"}).answers == ("blue",)


@pytest.mark.parametrize("name", ["video", "audio"])
def test_what_is_no_picture_is_refused(name: str) -> None:
    with pytest.raises(RowError, match="only pictures"):
        parse({"question": "What?", name: "a.mp4"})


def test_an_empty_list_hides_no_other_column() -> None:
    row = parse({"images": [], "image": "a.png", "question": "What?", "answer": [], "answers": ["x"]})
    assert row.pictures == ["a.png"] and row.answers == ("x",)
