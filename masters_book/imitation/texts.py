"""Texts that teacher and students read: docstrings of installed packages, and questions with rationales.

Docstrings are read with ``ast``; no package is imported. Training texts come from pandas and SciPy, held-out
ones from NumPy, those for choosing a learning rate from Matplotlib. Questions are generated; training and
held-out ones differ in their numbers and names.
"""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import files, version
from typing import Any

import torch
from torch import Tensor

from masters_book.imitation import plan

TRAINING, HELD_OUT, CHOOSING = ("pandas", "scipy"), ("numpy",), ("matplotlib",)
FIRST_PLACE = 16  # of a text; earlier tokens have too little context
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Kate", "Leo")
THINGS = ("apples", "books", "coins", "shells", "stamps", "marbles", "pencils", "cards", "stones", "tickets")


@dataclass(frozen=True)
class HeldOut:
    """Held-out sequences and their judged places.

    Attributes:
        tokens: ``(sequences, longest)``, filled up at the end; no judged place sees the filling.
        places: ``(sequences, PLACES)``, positions whose next token is judged.
        kinds: "text" or "question" per sequence.
    """

    tokens: Tensor
    places: Tensor
    kinds: tuple[str, ...]

    def at_places(self, values: Tensor) -> Tensor:
        """Return values ``(sequences, longest, ...)`` at the judged places, ``(sequences, PLACES, ...)``."""
        return values[torch.arange(len(self.tokens))[:, None], self.places]

    @property
    def next_tokens(self) -> Tensor:
        """Return the tokens that follow the judged places, ``(sequences, PLACES)``."""
        return self.tokens.gather(1, self.places + 1)


def docstrings(packages: tuple[str, ...]) -> Iterator[str]:
    """Yield the docstrings of installed packages without their tests, by path and line.

    Raises:
        ValueError: a package is not installed.
    """
    for package in packages:
        listed = sorted(path for path in files(package) or [] if path.suffix == ".py")
        if not listed:
            raise ValueError(
                f"{package} has no files here: its docstrings are texts of this study, install it"
            )
        for path in listed:
            if "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    yield ast.get_docstring(node) or ""


def sources() -> dict[str, str]:
    """Return the versions of the packages whose docstrings are read, for the keys of results."""
    return {package: version(package) for package in (*TRAINING, *HELD_OUT, *CHOOSING)}


def training_sequences(tokenizer: Any, count: int, seed: int) -> Tensor:
    """Return ``(count, LENGTH)`` token ids: docstrings and some questions, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    of_questions = round(count * plan.QUESTION_SHARE)
    texts = _stream(tokenizer, docstrings(TRAINING))
    chosen = torch.randperm(len(texts), generator=generator)[: count - of_questions]
    if len(chosen) < count - of_questions:
        raise ValueError(f"the training texts have {len(texts)} sequences, fewer than {count - of_questions}")
    needed = of_questions * plan.LENGTH // 40 + 100  # a question has more than 40 tokens
    made = (" ".join(question(random.Random(f"training {seed} {number}"))) for number in range(needed))
    mixed = torch.cat([texts[chosen], _stream(tokenizer, made)[:of_questions]])
    return mixed[torch.randperm(count, generator=generator)]


def held_out(tokenizer: Any) -> HeldOut:
    """Return the test set: texts, then questions."""
    texts = _evenly(_beginnings(tokenizer, docstrings(HELD_OUT)), plan.TEXTS)
    rows, places = list(texts), [_spread(FIRST_PLACE, plan.LENGTH - 2)] * plan.TEXTS
    for number in range(plan.QUESTIONS):
        prompt, rationale = question(random.Random(f"held out {number}"))
        asked, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {rationale}")["input_ids"]
        rows.append(torch.tensor(whole))
        places.append(_spread(len(asked) - 1, len(whole) - 2))
    return HeldOut(
        _filled(rows), torch.stack(places), ("text",) * plan.TEXTS + ("question",) * plan.QUESTIONS
    )


def validation(tokenizer: Any) -> HeldOut:
    """Return the texts on which learning rates are chosen."""
    texts = _evenly(_beginnings(tokenizer, docstrings(CHOOSING)), plan.VALIDATION)
    places = torch.stack([_spread(FIRST_PLACE, plan.LENGTH - 2)] * plan.VALIDATION)
    return HeldOut(_filled(texts), places, ("text",) * plan.VALIDATION)


def question(rng: random.Random) -> tuple[str, str]:
    """Return a question in words and its rationale, which ends with the answer."""
    one, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    a, b, c = rng.randint(30, 60), rng.randint(3, 25), rng.randint(2, 9)
    kind = rng.randrange(3)
    if kind == 0:
        asked = f"{one} has {a} {thing}. {other} gives {one} {b} more, and {one} loses {c}."
        steps = (
            f"{one} starts with {a} {thing}. After the gift there are {a} + {b} = {a + b}. After the loss "
            f"there are {a + b} - {c} = {a + b - c}. The answer is {a + b - c}."
        )
        return f"Question: {asked} How many {thing} does {one} have now? Answer:", steps
    if kind == 1:
        asked = f"{one} fills {c} boxes with {b} {thing} each and keeps {a} {thing} outside."
        steps = (
            f"The boxes hold {c} x {b} = {c * b} {thing}. With those outside there are "
            f"{c * b} + {a} = {c * b + a}. The answer is {c * b + a}."
        )
        return f"Question: {asked} How many {thing} does {one} have in all? Answer:", steps
    asked = f"{one} has {a} {thing} and {other} has {b} fewer."
    fewer = a - b
    steps = (
        f"{other} has {a} - {b} = {fewer} {thing}. Together they have {a} + {fewer} = {a + fewer}. "
        f"The answer is {a + fewer}."
    )
    return f"Question: {asked} How many {thing} do {one} and {other} have together? Answer:", steps


def _stream(tokenizer: Any, texts: Iterator[str]) -> Tensor:
    """Return all texts as one stream, cut into ``(sequences, LENGTH)``; an end token follows each text."""
    ids = tokenizer([text for text in texts if text], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for text in ids for token in (*text, tokenizer.eos_token_id)])
    return stream[: len(stream) // plan.LENGTH * plan.LENGTH].view(-1, plan.LENGTH)


def _beginnings(tokenizer: Any, texts: Iterator[str]) -> list[Tensor]:
    """Return the first LENGTH tokens of each text that is long enough, each beginning once."""
    ids = tokenizer([text for text in texts if len(text) > plan.LENGTH], add_special_tokens=False)[
        "input_ids"
    ]
    return [
        torch.tensor(text)
        for text in dict.fromkeys(tuple(t[: plan.LENGTH]) for t in ids if len(t) >= plan.LENGTH)
    ]


def _evenly(sequences: list[Tensor], count: int) -> list[Tensor]:
    step = len(sequences) // count
    return sequences[:: max(step, 1)][:count]


def _spread(first: int, last: int) -> Tensor:
    """Return PLACES positions from ``first`` to ``last``, evenly spaced."""
    return torch.linspace(first, last, plan.PLACES).round().long()


def _filled(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
