"""easy-VQA: the published questions about one coloured shape a picture, from the package ``easy-vqa``.

The published training pictures are split into train and validation; the published test pictures stay the test
split. Texts are normalised as in every set: lower case, punctuation as its own word.
"""

import re
from collections import defaultdict
from importlib.util import find_spec
from json import loads
from pathlib import Path

import numpy as np
from PIL import Image

from masters.data.scenes import Question, Row, Scene, rows_of

SEED = 10
VALIDATION_PICTURES = 400
COLOR_WORDS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPE_WORDS = ("circle", "rectangle", "triangle")


def normalise(text: str) -> str:
    """Lower case, single spaces, punctuation as its own word: "Is it RED?" becomes "is it red ?"."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def skill_of(question: str) -> str:
    """What a question asks for: shape, color, or existence (all that are answered with yes or no).

    Negated questions ("is there not ...") are no skill of their own: most are answered yes as most others are
    answered no, so apart neither would be balanced, together they are.
    """
    words = question.split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "existence"


def negated(question: str) -> bool:
    """Whether a question asks if something is *not* there."""
    return bool({"no", "not"} & set(question.split()))


def _known(pairs: list[tuple[str, str]], words: tuple[str, ...]) -> str | None:
    """The colour (or shape) of a picture, so far as its questions tell it.

    A question answered with the word tells it; so does a word asked for and confirmed, and a word named in a
    "what" question, which the data set asks only of what is there.
    """
    for question, answer in pairs:
        if answer in words:
            return answer
        named = [word for word in question.split() if word in words]
        there = skill_of(question) != "existence" or (answer == "yes") != negated(question)
        if named and there:
            return named[0]
    return None


def _facts(question: str, answer: str, color: str | None, shape: str | None) -> str:
    """What the picture shows, if its questions tell it; else what this question's own answer tells."""
    asks_color = skill_of(question) == "color" or any(word in COLOR_WORDS for word in question.split())
    asks_shape = skill_of(question) == "shape" or any(word in SHAPE_WORDS for word in question.split())
    if (color or not asks_color) and (shape or not asks_shape):
        return f"the picture shows a {color + ' ' if color else ''}{shape or 'shape'}"
    named = next(word for word in question.split() if word in COLOR_WORDS + SHAPE_WORDS)
    return f"nothing in the picture is {'a ' if named in SHAPE_WORDS else ''}{named}"


def _published(part: str) -> dict[int, Scene]:
    """The published pictures of a part ("train" or "test") by number, with their questions."""
    spec = find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise ValueError("the package easy-vqa is not installed: run pip install easy-vqa")
    folder = Path(spec.origin).parent / "data" / part
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in loads((folder / "questions.json").read_text()):
        asked[number].append((normalise(question), normalise(answer)))
    scenes = {}
    for number, pairs in sorted(asked.items()):
        color, shape = _known(pairs, COLOR_WORDS), _known(pairs, SHAPE_WORDS)
        questions = [Question(q, a, skill_of(q), _facts(q, a, color, shape)) for q, a in pairs]
        with Image.open(folder / "images" / f"{number}.png") as image:
            scenes[number] = Scene(
                image.convert("RGB"),
                f"easy-VQA {part}/images/{number}.png",
                f"a {color + ' ' if color else ''}{shape or 'shape'}",
                questions,
            )
    return scenes


def build() -> dict[str, list[Row]]:
    """The rows of every split."""
    published = _published("train")
    order = np.random.default_rng(SEED).permutation(sorted(published)).tolist()
    held_out = set(order[:VALIDATION_PICTURES])
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for number, scene in published.items():
        split = "validation" if number in held_out else "train"
        splits[split] += rows_of("easy-vqa", split, number, scene)
    for number, scene in _published("test").items():
        splits["test"] += rows_of("easy-vqa", "test", number, scene)
    return splits
