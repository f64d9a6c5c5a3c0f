"""The rule judge: a response is right if its answer *is* the label after normalization.

The answer is what follows the last "answer is" (or a box, or an answer tag), else the whole response. Around
it may stand fillers and words of the question. What the rule cannot decide is wrong: synonyms, other units,
arithmetic, numbers in words beyond 99, and reasoning that announces no answer.
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from masters.data.labels import accepted

Tokens = tuple[str | Fraction, ...]
Texts = Sequence[str]
_split = str.split
_ONES = _split("zero one two three four five six seven eight nine ten eleven twelve")
_ONES += [f"{start}teen" for start in _split("thir four fif six seven eigh nine")]
_TENS = {f"{start}ty": 10 * n for n, start in enumerate(_split("twen thir for fif six seven eigh nine"), 2)}
_WORDS = {word: n for n, word in enumerate(_ONES)} | _TENS | {"none": 0}
_WORDS |= {f"{ten} {_ONES[one]}": value + one for ten, value in _TENS.items() for one in range(1, 10)}
_SAME = {"yeah": "yes", "yep": "yes", "nope": "no", "grey": "gray"}
_NUMBER_WORD = re.compile(rf"\b(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})\b")
_NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,9}(?![\d,])(?:\.\d{1,60})?|\d{1,60}(?:\.\d{1,60})?|\.\d{1,60})"
# Punctuation and markup vanish; every other sign counts: C# is not C, and 3:4 is not 3-4.
_SIGN = r"[^\s\w.,;!?\"'“”‘’„«»…。、()\[\]{}*`\\&]"
_TOKEN = re.compile(rf"((?<![\w)])-)?({_NUMBER})(?:/([1-9]\d{{0,60}}))?|([^\W\d_]+|{_SIGN})")
_REWRITES = [
    (re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]|\\\\(?:left|right|[,;! ])"), ""),
    (re.compile("[\u2010-\u2015\u2212]"), "-"),
    (re.compile(r"(?<=[^\W\d_])['’](?=[^\W\d_])"), ""),  # Joe's is Joes
    (re.compile(r"\\(?:text|math[a-z]{2})\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" \1/\2 "),
    (re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}"), r" . answer : \1 . "),
    (re.compile(r"<(?:final_)?answer>([^<]*)</(?:final_)?answer>"), r" . answer : \1 . "),
    (re.compile(r"\$([^$\s](?:[^$]*[^$\s])?)\$(?!\d)"), r"\1"),  # $x$ is x, $5 is not 5
    (re.compile(r"\bper ?cent(?:age)?\b"), "%"),
    (re.compile(r"(?<![:\s])\s*\n\s*"), " . "),
    (re.compile(r"(?<=\d) \. (?=\d)"), "."),
    (re.compile(r"[*_`\s]+"), " "),
]
_VERB = r"(?:(?:is|are|was|(?:w|sh)ould be)\b|[:=])[ .:]*"
_ANNOUNCED = re.compile(rf"\b(?:answers?|correct (?:option|choice))(?: to [a-z ]{{1,20}})? ?{_VERB}")
_END = re.compile(r" ?[.!?;]+(?: |$)|\b(?:because|since)\b")
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|correction|sorry|instead|or|maybe|perhaps|might|i mean)\b")
_PLEA = re.compile(r"\b(?:score|verdict|grade|grader|judge|reward|rubric|response|instruction)s?\b")
_LOOP = re.compile(r"\b(\w++(?:\W+\w++){2,7}?)(?:\W+\1\b){2}|\b(\w++(?: \w++)?)(?: \2\b){2}|([^\w\s] ?){5}$")
_OPTION = re.compile(r"(?:^|(?<=[ (\[,;]))[(\[]? ?([a-z]) ?[)\].:] ?")
_NEGATIONS = {*_split("not no never nobody isnt arent wasnt doesnt dont didnt cant cannot")}
_DENIED = re.compile(rf"\b(?:{'|'.join(_NEGATIONS)}|doubt|wrong)\b(?!.*\b(?:so|thus|hence|but)\b)[^.,;:!?]*$")
# A question with one of these may name other answers, so its words may not stand around the answer.
_AMBIGUOUS = {*_split("or nor neither either least half but except if than left right above below next near")}
_FILLERS = {*_split("i we you it its he she they this that these those there here is are was were has see")}
_FILLERS |= {*_split("have count can in of at on to picture image total says looks like appears think : =")}


class RuleJudge:
    """Judge by rule, see the module. Numbers are compared as numbers, options by letter or text."""

    name = "rule-2"

    def score(self, question: str, label: str, response: str) -> int:
        """Return 1 if the response gives an accepted answer and nothing else, else 0.

        Raises:
            ValueError: the label has no word, number or sign.
        """
        wanted, text = _accepted(label), _fold(response)
        if not wanted or not all(wanted):
            raise ValueError(f"the label {label!r} of {question!r} has no word or number; fix or drop it")
        if (pleas := {*_PLEA.findall(text)}) and not pleas <= {*_PLEA.findall(_fold(f"{question} {label}"))}:
            return 0
        return int(any(_agree(*_parts(question), g, w) for g in _answers(text) for w in wanted))

    def score_many(self, questions: Texts, labels: Texts, responses: Texts) -> list[int]:
        """Return the ``score`` of each triple, in order; raise ``ValueError`` as it does."""
        return [self.score(*triple) for triple in zip(questions, labels, responses, strict=True)]


@lru_cache(maxsize=1 << 16)
def _accepted(label: str) -> list[Tokens]:
    return [_tokens(_fold(answer)) for answer in accepted(label)]


def _answers(text: str) -> list[Tokens]:
    """Return the sentence, and all, after the last announcement, or the response; [] if denied or a loop."""
    *before, tail = _ANNOUNCED.split(text)
    answer, rest = [*_END.split(tail, maxsplit=1), ""][:2] if before else (tail, "")
    back = _TAKEN_BACK.search(rest) or (before and _DENIED.search(before[-1][-80:]))
    return [] if back or _LOOP.search(text) else [_tokens(answer), _tokens(tail)]


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
    stem, *parts = _OPTION.split(_fold(question))
    if len(parts) < 4 or parts[::2] != list("abcdefghijklmnopqrstuvwxyz"[: len(parts) // 2]):
        stem, parts = _fold(question), []
    words = frozenset(token for token in _tokens(stem) if isinstance(token, str))
    return words, {letter: _tokens(text) for letter, text in zip(parts[::2], parts[1::2], strict=True)}


def _agree(words: frozenset[str], options: dict[str, Tokens], given: Tokens, wanted: Tokens) -> bool:
    """Return whether two answers name one option, by letter, text or both, or the first states the second."""
    given, wanted = (tokens[tokens[:1] == ("option",) :] for tokens in (given, wanted))
    named, right = (
        [x for x, text in options.items() if tokens in ((x,), text, (x, *text), (x, ":", *text))]
        for tokens in (given, wanted)
    )
    stated = _states(words, given, options[right[0]] if len(right) == 1 else wanted)
    return named == right if len(named) == len(right) == 1 else stated


def _fold(text: str) -> str:
    """Return one line in lower case without thoughts, markup and LaTeX; a line's end becomes a sentence's."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    text = re.sub("(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2150-\u215e])", " ", text)  # not 12: 1²
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2044", "/").strip()
    for pattern, plain in _REWRITES:
        text = pattern.sub(plain, text)
    return text.strip()


def _tokens(text: str) -> Tokens:
    """Return words, signs, and numbers as fractions; articles and "and" are dropped."""
    text = re.sub(r"\b(?:an?|the) (?=\w)", "", re.sub(r"(?<=ty)-(?=[a-z])", " ", text))
    text = _NUMBER_WORD.sub(lambda word: str(_WORDS[word[0]]), text)
    return tuple(
        Fraction(sign + top.replace(",", "")) / int(bottom or 1) if top else _SAME.get(other, other)
        for sign, top, bottom, other in _TOKEN.findall(re.sub(r"\b(?:minus|negative) (?=\.?\d)", "-", text))
        if other != "and"
    )
