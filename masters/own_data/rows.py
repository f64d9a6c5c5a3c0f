"""Question, answers and pictures of a row, in any of the usual forms.

Two forms are told apart by their columns: ``question`` with ``answer`` and ``options``, or a conversation in
``messages`` (TRL, ms-swift), ``conversations`` (LLaMA-Factory, LLaVA) or ``prompt`` and ``completion`` (TRL).
Pictures are in ``images``, or inside the messages. ``<image>`` in a text marks a picture's place; without
such places, the pictures stand before the first question. The last turn of the assistant is the answer; where
a conversation ends with the user, the columns of answer and options are read.
"""

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from masters.data.labels import accepted
from masters.settings import Columns

PLACE = "<image>"
NAMES = {
    "images": ("images", "image"),
    "question": ("question", "query", "prompt"),
    "answer": ("answer", "answers", "response", "solution", "completion"),
    "options": ("options", "choices"),
}
CONVERSATIONS = ("messages", "conversations", "conversation")
# Columns that are read without being named in the settings.
READ = {name for names in NAMES.values() for name in names} | {*CONVERSATIONS, "system"}
ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class RowError(ValueError):
    """A row cannot be used; the text is the reason."""


class Row(NamedTuple):
    """A row as a conversation to be answered.

    Attributes:
        messages: system prompt and turns up to the answer; ``content`` is a list of text and image parts.
        pictures: as they are in the source, in the order of their places.
        question: text of the last question, without places.
        answers: accepted answers, as often as given; empty if there are none.
        skill: ``choice`` with options, ``open`` with an answer, otherwise ``unanswered``.
    """

    messages: list[dict[str, Any]]
    pictures: list[Any]
    question: str
    answers: tuple[str, ...]
    skill: str


def parse_row(values: dict[str, Any], columns: Columns, system: str | None = None) -> Row:
    """Return question, answers and pictures of a row.

    Args:
        values: by column.
        columns: names of the columns that have other than the usual names.
        system: system prompt if the row has none.

    Raises:
        RowError: the row cannot be used; the text says why.
    """
    if any(values.get(name) for name in ("videos", "video", "audios", "audio")):
        raise RowError("it has videos or audio; only pictures can be used")
    pictures = _list(_column(values, columns, "images"))
    turns = None if columns.question else _turns(values)
    if turns is None:
        question, answers, skill = _asked(values, columns)
        turns = [{"role": "user", "content": question}]
    elif turns[-1]["role"] == "assistant":
        answer, _ = _parts(turns.pop()["content"])
        if any(part["type"] == "image" for part in answer):
            raise RowError("the answer, the last turn of the assistant, holds a picture")
        answers = tuple(filter(None, [_text(answer)]))
        skill = "open" if answers else "unanswered"
    else:
        options, keys = _options(values, columns)
        answers = _accepted(values, columns, options, keys)
        skill = ("choice" if options else "open") if answers else "unanswered"
    if not turns or turns[-1]["role"] != "user":
        raise RowError("no turn of the user comes before the answer")
    given = values.get("system") or system
    if given and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": given})
    messages, placed = _placed(turns, pictures)
    question = _text(messages[-1]["content"])
    if not question:
        raise RowError("the question is empty")
    return Row(messages, placed, question, answers, skill)


def _column(values: dict[str, Any], columns: Columns, kind: str) -> Any:
    name = getattr(columns, kind)
    if name is not None:
        if name not in values:
            raise RowError(f"no column {name!r} (data.columns.{kind}); there are {', '.join(values)}")
        return values[name]
    return next((values[name] for name in NAMES[kind] if not _empty(values.get(name))), None)


def _empty(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return not value
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _list(value: Any) -> list[Any]:
    """Return one or several values as a list, without empty ones."""
    return [item for item in _several(value) if not _empty(item)]


def _several(value: Any) -> list[Any]:
    """Return one or several values as a list; a cell of a table may hold a JSON or Python list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    if isinstance(value, list | tuple):
        return list(value)
    return [] if _empty(value) else [value]


# --- question, answer, options ------------------------------------------------------------------------------


def _asked(values: dict[str, Any], columns: Columns) -> tuple[str, tuple[str, ...], str]:
    """Return question with its options, answers and skill of a row without a conversation."""
    question = _column(values, columns, "question")
    if not isinstance(question, str) or not question.strip():
        raise RowError(f"there is no question; columns are {', '.join(map(str, values))}")
    options, keys = _options(values, columns)
    answers = _accepted(values, columns, options, keys)
    if not options:
        return question.strip(), answers, "open" if answers else "unanswered"
    return _with_options(question.strip(), options), answers, "choice" if answers else "unanswered"


def _options(values: dict[str, Any], columns: Columns) -> tuple[list[str], list[str]]:
    """Return the texts of the options, and their keys if they are named, such as ``{"A": "red"}``."""
    given = _column(values, columns, "options")
    if isinstance(given, dict):
        named = sorted(((str(key), value) for key, value in given.items() if not _empty(value)), key=_rank)
        keys, options = [key for key, _ in named], [_word(value) for _, value in named]
    else:
        keys, options = [], [_word(option) for option in _several(given)]
        while options and not options[-1]:  # columns of unequal length
            options.pop()
    if "" in options:
        raise RowError(f"option {options.index('') + 1} is empty")
    if len(options) > len(LETTERS):
        raise RowError(f"it has {len(options)} options; at most {len(LETTERS)} have a letter")
    return options, keys


def _rank(option: tuple[str, Any]) -> tuple[int, str]:
    return len(option[0]), option[0]  # 2 before 10


def _accepted(
    values: dict[str, Any], columns: Columns, options: Sequence[str], keys: Sequence[str]
) -> tuple[str, ...]:
    value = _column(values, columns, "answer")
    if not options:
        return _answers(value)
    return tuple(dict.fromkeys(word for one in _list(value) for word in _chosen(one, options, keys)))


def _answers(value: Any) -> tuple[str, ...]:
    several = accepted(value) if isinstance(value, str) else value
    words = (_word(item) for item in (several if isinstance(several, list | tuple) else _list(several)))
    return tuple(word for word in words if word)


def _word(value: Any) -> str:
    """Return an answer or option as text; VQA v2 has answers as ``{answer: ..., answer_confidence: ...}``."""
    if isinstance(value, dict) and "answer" in value:
        value = value["answer"]
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise RowError(f"an answer or option is {value!r:.60}; write it as text")
    if _empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _chosen(value: Any, options: Sequence[str], keys: Sequence[str]) -> tuple[str, ...]:
    """Return letter and text of the right option, from its key, its letter, its text or its index from 0."""
    word = _word(value)
    if not word:
        return ()
    if word in keys:
        place = keys.index(word)
        return LETTERS[place], options[place]
    found = {place for place, option in enumerate(options) if option.casefold() == word.casefold()}
    letter = re.fullmatch(r"\(?([A-Z])\)?[.:)]?", word.upper())
    if letter and LETTERS.index(letter[1]) < len(options):
        found.add(LETTERS.index(letter[1]))
    if re.fullmatch(r"\d{1,2}", word) and int(word) < len(options) and (isinstance(value, int) or not found):
        found.add(int(word))
    if len(found) != 1:
        reason = "could mean several" if found else "is none"
        raise RowError(f"answer {word!r:.60} {reason} of the options {', '.join(options)!r:.120}")
    place = found.pop()
    return LETTERS[place], options[place]


def _with_options(question: str, options: Sequence[str]) -> str:
    """Add the lines "A. ...", unless the question lists the options already."""
    pairs = list(zip(LETTERS, options, strict=False))
    listed = all(
        re.search(rf"(?:^|[\s(]){letter}[.):]\s*{re.escape(option)}", question) for letter, option in pairs
    )
    return question if listed else "\n".join([question, *(f"{letter}. {option}" for letter, option in pairs)])


# --- conversations ------------------------------------------------------------------------------------------


def _turns(values: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the turns of a conversation as role and content; None if the row holds none."""
    column = next((name for name in CONVERSATIONS if not _empty(values.get(name))), None)
    if column is not None:
        turns = values[column]
    elif isinstance(values.get("prompt"), list):
        completion = values.get("completion") or []
        if isinstance(completion, str):
            completion = [{"role": "assistant", "content": completion}]
        column, turns = "prompt", [*values["prompt"], *completion]
    else:
        return None
    if isinstance(turns, str):  # a cell of a table
        try:
            turns = json.loads(turns)
        except ValueError:
            raise RowError(f"{column} is text that is not JSON") from None
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{column} is not a list of messages with role and content")
    return [_turn(turn, column) for turn in turns]


def _turn(turn: dict[str, Any], column: str) -> dict[str, Any]:
    said = turn.get("role") or turn.get("from")
    role = ROLES.get(str(said), said)
    if role not in ("system", "user", "assistant"):
        raise RowError(f"a message in {column} has the role {said!r}; use system, user or assistant")
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    if not isinstance(content, str | list):
        raise RowError(f"a message in {column} has no content")
    return {"role": role, "content": content}


def _parts(content: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return a message's text and image parts, and for each image part its picture; None for a place."""
    parts: list[dict[str, Any]] = []
    pictures: list[Any] = []
    for item in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        item = {"type": "text", "text": item} if isinstance(item, str) else item
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "text":
            for number, piece in enumerate((item.get("text") or "").split(PLACE)):
                if number:
                    parts.append({"type": "image"})
                    pictures.append(None)
                if piece.strip():
                    parts.append({"type": "text", "text": piece})
        elif kind in ("image", "image_url"):
            given = next(
                (item[name] for name in ("image", "image_url", "path", "url") if item.get(name)), None
            )
            if isinstance(given, dict) and "url" in given:
                given = given["url"]
            parts.append({"type": "image"})
            pictures.append(given)
        else:
            raise RowError(f"a part of a message has the type {kind!r}; use text or image")
    # Templates put their own line breaks around pictures.
    for part in parts:
        if part["type"] == "text":
            part["text"] = part["text"].strip("\n") if len(parts) > 1 else part["text"].strip()
    return parts, pictures


def _placed(turns: Sequence[dict[str, Any]], given: Sequence[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages of parts, and the pictures in the order of their places."""
    messages, pictures = [], []
    for turn in turns:
        parts, of_turn = _parts(turn["content"])
        messages.append({"role": turn["role"], "content": parts})
        pictures += of_turn
    places = sum(picture is None for picture in pictures)
    if given and not pictures:
        first = next(message for message in messages if message["role"] == "user")
        first["content"][:0] = [{"type": "image"} for _ in given]
        return messages, list(given)
    if places != len(given):
        raise RowError(f"its text marks the places of {places} pictures ({PLACE}), and it has {len(given)}")
    rest = iter(given)
    return messages, [next(rest) if picture is None else picture for picture in pictures]


def _text(parts: Sequence[dict[str, Any]]) -> str:
    return " ".join(part["text"].strip() for part in parts if part["type"] == "text").strip()
