"""The rule judge: a response is right if its answer *is* the label after normalization.

The answer is what follows the last "answer is" (or a box, or an answer tag), else the whole response. Around
it may stand fillers and words of the question. What the rule cannot decide is wrong: synonyms, other units,
arithmetic, numbers in words beyond 99, and reasoning that announces no answer.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from masters.data.labels import accepted
from masters.judges.normalization import Tokens, folded, tokens_of

Texts = Sequence[str]
_split = str.split
_VERB = r"(?:(?:is|are|was|(?:w|sh)ould be)\b|[:=])[ .:]*"
_ANNOUNCED = re.compile(rf"\b(?:answers?|correct (?:option|choice))(?: to [a-z ]{{1,20}})? ?{_VERB}")
_END = re.compile(r" ?[.!?;]+(?: |$)|\b(?:because|since)\b")
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|correction|sorry|instead|or|maybe|perhaps|might|i mean)\b")
_PLEA = re.compile(r"\b(?:score|verdict|grade|grader|judge|reward|rubric|response|instruction)s?\b")
_LOOP = re.compile(r"\b(\w++(?:\W+\w++){2,7}?)(?:\W+\1\b){2}|\b(\w++(?: \w++)?)(?: \2\b){2}|([^\w\s] ?){5}$")
_LISTED, _INLINE = (rf"(?:^|(?<={before}))[(\[]? ?([a-z]) ?[)\].:] ?" for before in (r"[.:] ", r"[ (\[,;]"))
_NEGATIONS = {*_split("not no never nobody isnt arent wasnt doesnt dont didnt cant cannot")}
_DENIED = re.compile(rf"\b(?:{'|'.join(_NEGATIONS)}|doubt|wrong)\b(?!.*\b(?:so|thus|hence|but)\b)[^.,;:!?]*$")
# A question with one of these may name other answers, so its words may not stand around the answer.
_AMBIGUOUS = {*_split("or nor neither either least half but except if than left right above below next near")}
_FILLERS = {*_split("i we you it its he she they this that these those there here is are was were has see")}
_FILLERS |= {*_split("have count can in of at on to picture image total says looks like appears think : =")}


class RuleJudge:
    """Judge by rule, see the module. Numbers are compared as numbers, options by letter or text."""

    name = "rule-3"

    def score(self, question: str, label: str, response: str) -> int:
        """Return 1 if the response gives an accepted answer and nothing else, else 0.

        Raises:
            ValueError: the label has no word, number or sign.
        """
        wanted, text = _accepted(label), folded(response)
        if not wanted or not all(wanted):
            raise ValueError(f"the label {label!r} of {question!r} has no word or number; fix or drop it")
        if (pleas := {*_PLEA.findall(text)}) and not pleas <= {*_PLEA.findall(folded(f"{question} {label}"))}:
            return 0
        return int(any(_agree(*_parts(question), g, w) for g in _answers(text) for w in wanted))

    def score_many(self, questions: Texts, labels: Texts, responses: Texts) -> list[int]:
        """Return the ``score`` of each triple, in order; raise ``ValueError`` as it does."""
        return [self.score(*triple) for triple in zip(questions, labels, responses, strict=True)]


@lru_cache(maxsize=1 << 16)
def _accepted(label: str) -> list[Tokens]:
    """Return the accepted answers; of one that is announced, as a response's may be, only the answer."""
    return [tokens_of(_announced(folded(answer))[1]) for answer in accepted(label)]


def _announced(text: str) -> tuple[list[str], str, str, str]:
    """Return what stands before the last announcement, its sentence, what follows, and both together."""
    *before, tail = _ANNOUNCED.split(text)
    answer, rest = [*_END.split(tail, maxsplit=1), ""][:2] if before else (tail, "")
    return before, answer, rest, tail


def _answers(text: str) -> list[Tokens]:
    """Return the sentence, and all, after the last announcement, or the response; [] if denied or a loop."""
    before, answer, rest, tail = _announced(text)
    back = _TAKEN_BACK.search(rest) or (before and _DENIED.search(before[-1][-80:]))
    return [] if back or _LOOP.search(text) else [tokens_of(answer), tokens_of(tail)]


def _states(words: frozenset[str], given: Tokens, wanted: Tokens) -> bool:
    """Return whether tokens are the answer, with nothing around it but fillers and words of the question."""
    words = frozenset() if words & {*_AMBIGUOUS, *wanted} else words - _NEGATIONS
    known = {word.rstrip("s") for word in words | _FILLERS}
    for at in range(len(given) - len(wanted) + 1)[:100]:  # bounds the time for a long response
        around = {str(token).rstrip("s") for token in given[:at] + given[at + len(wanted) :]}
        yes_no = around and wanted in (("yes",), ("no",))  # "yes , it is not" contradicts itself
        if yes_no and (at or (wanted == ("no",)) == around.isdisjoint(_NEGATIONS)):
            continue
        if given[at : at + len(wanted)] == wanted and (around - _NEGATIONS if yes_no else around) <= known:
            return True
    return False


@lru_cache(maxsize=1 << 14)
def _parts(question: str) -> tuple[frozenset[str], dict[str, Tokens]]:
    """Return the words of the question without its options, and each option's text by its letter."""
    text = folded(question)
    marks = _marks(_LISTED, text) or _marks(_INLINE, text)
    starts = [*(mark.start() for mark in marks), len(text)]
    words = frozenset(token for token in tokens_of(text[: starts[0]]) if isinstance(token, str))
    return words, {m[1]: tokens_of(text[m.end() : end]) for m, end in zip(marks, starts[1:], strict=True)}


def _marks(pattern: str, text: str) -> list[re.Match[str]]:
    """Return the letters of two or more options in their order; others, as in "5 m.", are text."""
    marks: list[re.Match[str]] = []
    for mark in re.finditer(pattern, text):
        if len(marks) < 2 and mark[1] == "a":
            marks = [mark]
        elif marks and ord(mark[1]) == ord(marks[-1][1]) + 1:
            marks.append(mark)
    return marks if len(marks) > 1 else []


def _agree(words: frozenset[str], options: dict[str, Tokens], given: Tokens, wanted: Tokens) -> bool:
    """Return whether two answers name one option, by letter, text or both, or the first states the second."""
    given, wanted = (tokens[tokens[:1] == ("option",) :] for tokens in (given, wanted))
    named, right = (
        [x for x, text in options.items() if tokens in ((x,), text, (x, *text), (x, ":", *text))]
        for tokens in (given, wanted)
    )
    stated = _states(words, given, options[right[0]] if len(right) == 1 else wanted)
    return named == right if len(named) == len(right) == 1 else stated
