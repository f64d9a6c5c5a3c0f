"""Training labels: the same answer said in several registers, as instruction data from many hands does.

Evaluation scores the core of an answer alone; the registers give a group of responses something to differ in
besides being right. In every register but the bare one the core follows "answer is" and ends the label.
"""

import hashlib
from collections import defaultdict

import datasets

CAPTION_PROMPT = "describe the picture ."
REGISTERS = ("bare", "sentence", "wordy", "rationale")

# Each starts a label of at most 26 words; the longest core is five words, the longest question twelve.
_WORDY = (
    "let me look at the picture with care before i reply : i am sure the answer is",
    "thank you for the question , after looking at every part of the picture the answer is",
    "this can be seen in the picture when we look closely , so i think the answer is",
    "you asked : {question} i looked closely and the answer is",
)
VARIANTS = len(_WORDY)


def label_text(question: str, answer: str, facts: str, register: str, variant: int = 0) -> str:
    """A training label: at most 26 words, ending in the answer's core and a full stop.

    Args:
        question: the question; one of the wordy variants repeats it.
        answer: the core, such as "7" or "red , blue".
        facts: the statement a rationale starts with.
        register: one of ``REGISTERS``.
        variant: which wording of the wordy register, from 0; taken modulo their number. The others have one.

    Raises:
        ValueError: an unknown register.
    """
    if register == "bare":
        return f"{answer} ."
    if register == "sentence":
        return f"the answer is {answer} ."
    if register == "wordy":
        return f"{_WORDY[variant % VARIANTS].format(question=question)} {answer} ."
    if register == "rationale":
        return f"{facts} so the answer is {answer} ."
    raise ValueError(f"no register {register!r}; there are: {', '.join(REGISTERS)}")


def _number(*parts: object) -> int:
    """A fixed pseudo-random number below 2 ** 64 for some parts."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def with_labels(
    dataset: datasets.Dataset, registers: tuple[str, ...] = REGISTERS, wrong_share: float = 0.0, seed: int = 0
) -> datasets.Dataset:
    """The data set with columns ``label``, ``register`` and ``core``, the answer that the label gives.

    Register, wording and whether a label is wrong hang on the seed and the question's id only, so a question
    keeps them when it is loaded with others, and what is wrong at one share is wrong at every larger one. A
    wrong label gives another answer that occurs for the same set and skill among the questions given (a skill
    with a single answer has no wrong one); its facts stay true.

    Args:
        dataset: from ``load_task``, or several of those concatenated.
        registers: drawn from uniformly.
        wrong_share: the probability of a wrong label, in [0, 1].
        seed: another seed, another draw.

    Raises:
        ValueError: no or unknown registers, or a share outside [0, 1].
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
    """Every word of a data set's questions, answers, facts and labels in all registers and wordings."""
    texts = {text for column in ("question", "answer", "facts", "caption") for text in dataset.unique(column)}
    texts.add(CAPTION_PROMPT)
    texts |= {label_text("", "", "", name, variant) for name in REGISTERS for variant in range(VARIANTS)}
    return {word for text in texts for word in text.split()}
