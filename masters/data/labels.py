"""Training labels: an answer in several registers (wordings), as in instruction data from many sources.

Evaluation scores only the core of a label, the answer itself. The registers let the responses of a group
differ in more than correctness. Except in the bare register, the core follows "answer is" and ends the label.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

import datasets

CAPTION_PROMPT = "describe the picture ."
# Labels have at most 26 words, cores at most 5 and questions at most 12.
_FORMS = {
    "bare": ("{answer} .",),
    "sentence": ("the answer is {answer} .",),
    "wordy": (
        "let me look at the picture with care before i reply : i am sure the answer is {answer} .",
        "thank you for the question , after looking at every part of the picture the answer is {answer} .",
        "this can be seen in the picture when we look closely , so i think the answer is {answer} .",
        "you asked : {question} i looked closely and the answer is {answer} .",
    ),
    "rationale": ("{facts} so the answer is {answer} .",),
}
REGISTERS = tuple(_FORMS)
VARIANTS = len(_FORMS["wordy"])


def label_text(question: str, answer: str, facts: str, register: str, variant: int = 0) -> str:
    """Return a training label of at most 26 words that ends in the core and a period.

    Args:
        answer: the core, such as "7" or "red , blue".
        facts: first statement of a rationale.
        register: one of ``REGISTERS``.
        variant: wording of the wordy register, modulo their number; the other registers have one.
    """
    forms = _FORMS[register]
    return forms[variant % len(forms)].format(question=question, answer=answer, facts=facts)


def encode_accepted(answers: Sequence[str]) -> str:
    """Return the accepted answers of a question as one label, see :func:`accepted`.

    Returns:
        The answer itself if there is one, otherwise a JSON array; "" if there is none.
    """
    if not answers:
        return ""
    only = answers[0] if len(answers) == 1 else None
    if only is not None and accepted(only) == (only,):
        return only
    return json.dumps(list(answers), ensure_ascii=False)


def accepted(label: str) -> tuple[str, ...]:
    """Return the accepted answers that a label holds, in order and as often as they were given.

    A JSON array of texts holds several; any other label is one answer, and an empty one is none.
    """
    if label.startswith("["):
        try:
            answers = json.loads(label)
        except (ValueError, RecursionError):
            return (label,)
        if isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers):
            return tuple(answers)
    return (label,) if label else ()


def _number(*parts: object) -> int:
    """Return a pseudo-random number below 2 ** 64 that depends on ``parts`` only."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def with_labels(
    dataset: datasets.Dataset, registers: tuple[str, ...] = REGISTERS, wrong_share: float = 0.0, seed: int = 0
) -> datasets.Dataset:
    """Add the columns ``label``, ``register`` and ``core``, the answer that the label gives.

    Register, wording and whether a label is wrong depend on the seed and the question's id only. So they are
    the same whichever questions are loaded together, and labels wrong at 20 % stay wrong at 40 %. A wrong
    label gives another answer that occurs among these questions for the same set and skill (none if there is
    a single answer); its facts stay true.

    Args:
        dataset: one or more concatenated results of ``load_task``.
        registers: drawn uniformly.
        wrong_share: probability of a wrong label, in [0, 1].

    Raises:
        ValueError: ``registers`` is empty or unknown, or ``wrong_share`` is outside [0, 1].
    """
    if not registers or set(registers) - set(REGISTERS):
        raise ValueError(f"registers {list(registers)} must be one or more of: {', '.join(REGISTERS)}")
    if not 0.0 <= wrong_share <= 1.0:
        raise ValueError(f"wrong_share is {wrong_share}; it must lie in [0, 1]")
    texts = dataset.select_columns(["id", "question", "answer", "skill", "facts"]).to_list()
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in texts:
        answers[row["id"].split("/")[0], row["skill"]].add(row["answer"])
    choices = {key: sorted(values) for key, values in answers.items()}
    labels, drawn, cores = [], [], []
    for row in texts:
        register = registers[_number(seed, "register", row["id"]) % len(registers)]
        answer = row["answer"]
        if _number(seed, "wrong", row["id"]) < wrong_share * 2**64:
            others = [other for other in choices[row["id"].split("/")[0], row["skill"]] if other != answer]
            if others:
                answer = others[_number(seed, "which", row["id"]) % len(others)]
        variant = _number(seed, "variant", row["id"])
        labels.append(label_text(row["question"], answer, row["facts"], register, variant))
        drawn.append(register)
        cores.append(answer)
    return dataset.add_column("label", labels).add_column("register", drawn).add_column("core", cores)


def vocabulary_of(dataset: datasets.Dataset) -> set[str]:
    """Return every word of a data set's texts and of its labels in all registers and wordings."""
    texts = {text for column in ("question", "answer", "facts", "caption") for text in dataset.unique(column)}
    texts.add(CAPTION_PROMPT)
    texts |= {label_text("", "", "", name, variant) for name in REGISTERS for variant in range(VARIANTS)}
    return {word for text in texts for word in text.split()}
