"""easy-VQA: the published questions about one colored shape per image, from the package ``easy-vqa``.

The published training images are split into train and validation; the published test images are the test
split. Texts are normalized as in every set: lower case, punctuation as separate words.
"""

import re
from collections import defaultdict
from importlib.resources import files
from json import loads
from pathlib import Path

import numpy as np
from PIL import Image

from masters.data.scenes import SPLITS, Question, Row, Scene, rows_of

SEED = 10
VALIDATION_PICTURES = 400
COLOR_WORDS = ("black", "gray", "red", "blue", "green", "yellow", "teal", "brown")
SHAPE_WORDS = ("circle", "rectangle", "triangle")


def normalize(text: str) -> str:
    """Normalize case, spaces and punctuation: "Is it RED?" becomes "is it red ?"."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def skill_of(question: str) -> str:
    """Return the skill that a question tests: shape, color, or existence (yes or no).

    Existence includes negated questions ("is there not ..."): most of them are answered yes and most others
    no, so only together are the answers balanced.
    """
    words = question.split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "existence"


def negated(question: str) -> bool:
    """Return whether a question asks if something is *not* there."""
    return bool({"no", "not"} & set(question.split()))


def _known(pairs: list[tuple[str, str]], words: tuple[str, ...]) -> str | None:
    """Infer the color (or shape) of an image from its questions; None if they do not reveal it.

    The word is an answer, is confirmed by a yes or no question, or occurs in a "what" question, which is only
    asked about what is there.
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
    """Describe the image if its color and shape are known; otherwise use the question's own answer."""
    asks_color = skill_of(question) == "color" or any(word in COLOR_WORDS for word in question.split())
    asks_shape = skill_of(question) == "shape" or any(word in SHAPE_WORDS for word in question.split())
    if (color or not asks_color) and (shape or not asks_shape):
        return f"the picture shows a {color + ' ' if color else ''}{shape or 'shape'}"
    named = next(word for word in question.split() if word in COLOR_WORDS + SHAPE_WORDS)
    return f"nothing in the picture is {'a ' if named in SHAPE_WORDS else ''}{named}"


def _published(part: str) -> dict[int, Scene]:
    """Return the published images of a part ("train" or "test") with their questions, by number."""
    folder = Path(str(files("easy_vqa"))) / "data" / part
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, number in loads((folder / "questions.json").read_text()):
        asked[number].append((normalize(question), normalize(answer)))
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
    """Return the rows of each split."""
    published = _published("train")
    order = np.random.default_rng(SEED).permutation(sorted(published)).tolist()
    held_out = set(order[:VALIDATION_PICTURES])
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for number, scene in published.items():
        split = "validation" if number in held_out else "train"
        splits[split] += rows_of("easy-vqa", split, number, scene)
    for number, scene in _published("test").items():
        splits["test"] += rows_of("easy-vqa", "test", number, scene)
    return splits
