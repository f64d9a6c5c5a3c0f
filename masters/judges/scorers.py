"""Scores of the usual benchmarks, and functions of your own, as judges.

* ``relaxed``: ChartQA's relaxed accuracy (arXiv 2203.10244): numbers within 5 %, other answers equal.
* ``anls``: DocVQA's average normalized Levenshtein similarity (arXiv 2007.00398), 0 below 0.5.
* ``vqa``: VQA v2's consensus accuracy (arXiv 1505.00468): a response is right if three of ten people gave it.
* ``exact``: equal up to case, spaces and a final period.
* ``choice``: the letter of an option, alone or with its text, or the text alone.
* ``FILE.py:FUNCTION``: a function of question, accepted answers and response.

All but the last score the final answer of a response: what stands behind ``</think>``, and there in an
``<answer>`` tag, in ``\\boxed{}`` or behind "answer is" or "answer:"; otherwise the whole response. A label
is cut in the same way. The best of several accepted answers counts; without any, they give None.

Unlike the official code, ``vqa`` drops apostrophes instead of looking contractions up in a table. Fewer than
four answers are taken for alternatives, one of which is enough.
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from masters.data.labels import accepted
from masters.judges import Judge
from masters.judges.rule import RuleJudge

Score = Callable[[str, tuple[str, ...], str], float | None]
TOLERANCE = 0.05
VERSION = 3


class Scorer:
    """A judge that scores responses one by one, from 0 to 1.

    Args:
        name: see :class:`masters.judges.Judge`.
        score: returns the score of a response to a question with accepted answers.
    """

    def __init__(self, name: str, score: Score) -> None:
        self.name, self._score = name, score

    def score_many(self, questions: list[str], labels: list[str], responses: list[str]) -> list[Any]:
        """See :class:`masters.judges.Judge`; labels are those of :func:`masters.data.labels.accepted`.

        Raises:
            ValueError: a function of one's own fails or returns something else than a score.
        """
        rows = zip(questions, map(accepted, labels), responses, strict=True)
        return [self._score(*row) for row in rows]


def scorer_of(spec: str, base: Path) -> Judge:
    """Return a judge by name.

    Args:
        spec: rule, relaxed, anls, vqa, exact, choice or FILE.py:FUNCTION.
        base: folder that the file's path starts from.

    Raises:
        ValueError: there is no such scorer, file or function.
    """
    if spec == "rule":
        return RuleJudge()
    if spec in SCORES:
        return Scorer(f"{spec}-{VERSION}", partial(_final, SCORES[spec]))
    file, colon, function = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ValueError(
            f"there is no scorer {spec!r}; there are rule, {', '.join(SCORES)} and FILE.py:FUNCTION"
        )
    path = base / os.path.expanduser(file)
    name = f"{path.stem}-{function}-{_digest(path)}"
    return Scorer(name, _checked(spec, _function(path, function)))


def _final(
    score: Callable[[str, Sequence[str], str], float], question: str, answers: tuple[str, ...], response: str
) -> float | None:
    """Return the score of the final answers of a response and of the label, which may announce it too."""
    return score(question, tuple(map(final_answer, answers)), final_answer(response)) if answers else None


def final_answer(response: str) -> str:
    """Return the answer that a response announces last, or all of it; without reasoning in ``<think>``."""
    text = response.rpartition("</think>")[2].strip()
    if tag := re.findall(r"<answer>(.*?)</answer>", text, re.S):
        text = tag[-1].strip()
    if boxed := re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        text = boxed[-1].strip()
        text = re.sub(r"^\\text\{(.*)\}$", r"\1", text)
    announced = re.findall(
        r"\banswer\**(?: is:?| ?:)[ \t]*\**[ \t]*([^\n]+?)[ \t*]*(?:\.?[ \t]*$)", text, re.I | re.M
    )
    return (announced[-1] if announced else text).strip()


# --- benchmarks ---------------------------------------------------------------------------------------------


def relaxed(question: str, answers: Sequence[str], response: str) -> float:
    """Score numbers within 5 % of an accepted one, and equal texts, as ChartQA does."""
    return float(any(_close(_bare(response), answer.strip()) for answer in answers))


def _close(response: str, answer: str) -> bool:
    given, right = _number(response), _number(answer)
    if given is not None and right:
        return abs(given - right) <= TOLERANCE * abs(right)
    return response.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(question: str, answers: Sequence[str], response: str) -> float:
    """Return the similarity to the nearest accepted answer, 0 below 0.5."""
    said = " ".join(response.lower().split())
    texts = [" ".join(answer.lower().split()) for answer in answers]
    return max(Levenshtein.normalized_similarity(said, text, score_cutoff=0.5) for text in texts)


def vqa(question: str, answers: Sequence[str], response: str) -> float:
    """Return the mean over the people left out of ``min(1, others who agree / 3)``."""
    said, texts = _vqa_words(response), [_vqa_words(answer) for answer in answers]
    same = texts.count(said)
    if len(texts) < 4:
        return float(same > 0)
    others = [same - (text == said) for text in texts]
    return sum(min(1.0, count / 3) for count in others) / len(texts)


_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


def _vqa_words(text: str) -> str:
    """Return an answer without case, punctuation, articles and apostrophes, its number words as digits."""
    text = " ".join(text.split())
    cleaned = text
    for mark in _PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        cleaned = cleaned.replace(mark, "" if apart else " ")
    cleaned = re.sub(r"\.(?!\d)", "", cleaned).replace("'", "").lower()
    return " ".join(_DIGITS.get(word, word) for word in cleaned.split() if word not in ("a", "an", "the"))


def exact(question: str, answers: Sequence[str], response: str) -> float:
    """Return 1 for an accepted answer, up to case, spaces and a final period."""
    return float(_bare(response).casefold() in {_bare(answer).casefold() for answer in answers})


def choice(question: str, answers: Sequence[str], response: str) -> float:
    """Return 1 for the right option, by letter, by text or by both."""
    listed = re.findall(r"(?m)^\s*\(?([A-Z])[.):]\s*(.+?)\s*$", question)
    letter_of = {_bare(text).casefold(): letter for letter, text in listed}
    right = {letter for answer in answers if (letter := _letter(answer, letter_of))}
    said = _letter(response, letter_of)
    return exact(question, answers, response) if said is None or not right else float(said in right)


def _letter(text: str, letter_of: dict[str, str]) -> str | None:
    """Return the letter of the option that a text names, or None if it names none or several."""
    words = _bare(text)
    if re.fullmatch(r"\(?[A-Z]\)?", words) and words.strip("()") in letter_of.values():
        return words.strip("()")
    if words.casefold() in letter_of:
        return letter_of[words.casefold()]
    found = re.fullmatch(r"(?:option )?\(?([A-Z])\)?(?:[.:)]|$)\s*(.*)", words, re.I)
    if found is None or re.search(r"(?:^|\s)\(?[A-Z][.:)]", found[2]):  # options are listed
        return None
    letter = found[1].upper()
    return letter if letter_of.get(_bare(found[2]).casefold(), letter) == letter else None


def _bare(text: str) -> str:
    return " ".join(text.split()).strip("*").removesuffix(".").strip()


SCORES: dict[str, Callable[[str, Sequence[str], str], float]] = {
    "relaxed": relaxed,
    "anls": anls,
    "vqa": vqa,
    "exact": exact,
    "choice": choice,
}


# --- functions of one's own ---------------------------------------------------------------------------------


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the scorer {path}: {getattr(error, 'strerror', error)}") from None


def _function(path: Path, name: str) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(f"masters_scorer_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the scorer {path} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"the scorer {path} has no function {name!r}")
    return function


def _checked(spec: str, function: Callable[..., Any]) -> Score:
    """Return a function whose failures are one line that names the file and the question."""

    def score(question: str, answers: tuple[str, ...], response: str) -> float | None:
        try:
            made = function(question, answers, response)
            valid = made is None or 0 <= float(made) <= 1
        except (Exception, SystemExit) as error:
            raise ValueError(f"{spec} fails at {question!r:.200}: {type(error).__name__}: {error}") from error
        if not valid:
            raise ValueError(f"{spec} returns {made!r:.80} for {question!r:.200}; return 0 to 1, or None")
        return None if made is None else float(made)

    return score
