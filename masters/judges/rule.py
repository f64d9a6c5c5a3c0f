"""The rule judge: finds the one answer that a response commits to and compares it with the label.

It is fast, exact and strict: in doubt a response is wrong.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import lru_cache, partial

_UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["eleven", "twelve", *(f"{n}teen" for n in ["thir", "four", "fif", "six", "seven", "eigh", "nine"])]
_TENS = ["ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBER_WORDS = (
    {"zero": 0, "none": 0, "dozen": 12}
    | {word: n for n, word in enumerate(_UNITS, 1)}
    | {word: n for n, word in enumerate(_TEENS, 11)}
    | {word: 10 * n for n, word in enumerate(_TENS, 1)}
)
_SAME_WORD = {"yeah": "yes", "yep": "yes", "nope": "no", "grey": "gray"}

_NUMBER_WORD = re.compile(
    rf"\b(?:({'|'.join(_TENS[1:])})[\s-]+({'|'.join(_UNITS)})|({'|'.join(_NUMBER_WORDS)}))\b"
)
_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=\w)")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
# "1 hundred and 20", "2 thousand", "hundred"; smaller scales apply first.
_SCALED = {
    word: re.compile(
        rf"(?:(?<![\d.,-])(\d{{1,6}}(?:\.\d{{1,6}})?) )?\b{word}\b(?: (?:and )?(\d{{1,6}})\b(?![.,]\d))?"
    )
    for word in _SCALES
}
_MINUS_WORD = re.compile(r"\b(?:minus|negative)\s+(?=\.?\d)")
_NUMBER = re.compile(r"(?:(?<!\w)-\s?)?(?:\d{1,3}(?:,\d{3}){1,9}(?![\d,])(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)")
# Keep signs that join alternatives: "3/4" is not "3 4".
_TOKEN = re.compile(rf"{_NUMBER.pattern}|[^\W\d_]+|[/|+=<>]")

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_DASH = re.compile("[\u2010-\u2015\u2212]")
_PERCENT = re.compile(r"\bper ?cent\b")
_APOSTROPHE = re.compile(r"(?<=[^\W\d_])[’'](?=[^\W\d_])")
_SPLIT_DECIMAL = re.compile(r"(?<=\d) \. (?=\d)")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_LINE_END = re.compile(r"(?<![:\s])\s*\n\s*")
_MARKUP = re.compile(r"[*_`$]+")
_LETTER_DOT = re.compile(r"(?:^|(?<=\bis )|(?<=: )|(?<=\boption ))([a-h])\s?\.\s+(?=\w)")

# Every repetition below is bounded, so no pattern takes quadratic time on a model's text.
_ANNOUNCED = re.compile(
    r"(?:\b(?:so|and|or|but|then|thus|hence|therefore)\b[ ,]{0,3}){0,3}"
    r"(?:\b(?:the|my|your|final|correct|right|true|best|only) ){0,3}"
    r"\banswers? ?(?:(?:is|are|was|would be|should be|must be)\b(?! ?n?[’']t) ?:?|[:=>]) ?"
)
# A conclusion announces the answer, too, if the text has no explicit announcement.
_CONCLUDED = re.compile(
    r"\b(?:so|thus|hence|therefore) ?,? ?(?:it|this|that|there)(?: (?:is|are)|[’']s)\b ?"
    r"|\b(?:total|result) ?: ?"
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|(?<!\bno )(?<!\bwithout )doubt|doubtful|false|wrong|untrue|unsure|unlikely|unclear)"
    r"|n[’']t) "
    r"(?:(?:to|think|believe|say|claim|mean|true|sure|certain|correct|right|case|the|that|if|whether) ){0,6}$"
)
_SENTENCE_END = re.compile(r" ?(?:[.!?](?=[ .!?]|$)|[;<]) ?")
_TRAILING_DOTS = re.compile(r"(?:[^\w\s] ?){4}$")
_REASON = re.compile(r"\b(?:because|since)\b.*$")
_CONTRAST = re.compile(
    r" ?, ?(?:and )?(?:not|nothing) (?!(?:sure|certain|really|quite|exactly|entirely|that|it|or|but)\b)"
    r"(?:an? |the )?(\w+)$"
)
_SAME_AGAIN = re.compile(r"([^()]+) \( ?([^()]+?) ?\)$")
_STARTS_YES_NO = re.compile(r"(yes|no)\b ?[.,!;]")
_YES_NO = re.compile(
    r"(yes|yeah|yep|no|nope)\b ?,? ?(?:there|it|they|this|that|these|those|the|an?|i|we|you|both|all)\b(.+)$"
)
_SAYS_IS = re.compile(r"(?:\b(?:is|are|was|were)\b|(?<=\w)[’']s\b) ?")
_SUM = re.compile(r"[\d .,+\-*/x×÷()]+= ?(-? ?[\d.,]+)$")
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|sorry|rather|instead|or|maybe|perhaps|alternatively|possibly|could|might|may)\b"
)
_TO_THE_JUDGE = re.compile(
    r"\b(?:scor\w*|verdict|grad(?:e|er|ing)|judge\w*|ignore|instructions?|reward\w*|mark\w*)\b"
)
# Words that address the judge, unless the question or the label has them, too.
_PLEA = re.compile(r"\b(?:scores?|verdicts?|graders?|judges?|rewards?|rubrics?|responses?|instructions?)\b")

_OPTION = re.compile(r"(?:^|(?<=[ (\[,;]))[(\[]? ?([a-h]) ?[)\].:] ?")
_CHOSEN = re.compile(
    r"(?:i (?:choose|pick|select) )?(?:(?:option|choice|letter|answer) )?"
    r"[(\[]? ?([a-h])\b(?!['’]) ?[)\].:]* ?(.*)$"
)
_TEXT_FIRST = re.compile(r"(.+?) ?[,(] ?(?:option )?([a-h]) ?\)?$")
_LONE_LETTER = re.compile(r"(?:option|choice|letter) ([a-h])$")

# Words around a number that name what was counted and are no second answer. The question's words count as
# such, too, except those that join, deny or compare.
_AROUND_A_NUMBER = frozenset(
    {"i", "we", "count", "can", "see", "there", "are", "is", "it", "that", "be", "in", "of", "them", "here"}
    | {"picture", "image", "chart", "total", "altogether", "exactly", "shown", "visible"}
    | {"you", "he", "she", "they", "has", "have", "look", "looks", "like", "seems", "appears", "to", "find"}
)
_VERBS = frozenset({"is", "are", "was", "were", "has", "have", "see", "look", "looks", "seems", "appears"})
_NOT_A_UNIT = frozenset(
    {"or", "nor", "not", "no", "yes", "never", "neither", "either", "than", "least", "most", "half"}
    | {"isnt", "arent", "wasnt", "dont", "doesnt", "didnt", "cant"}
    | set("/|+=<>")
)
_ALTERNATIVES = re.compile(r"\b(?:or|and|nor)\b|[,/|&:;(]")
_SHORT_WORDS = 12  # a longer text without an announcement commits to no answer
_EXPLAINED_WORDS = 36  # the limit for a text that opens with yes or no
_ITEM_WORDS = 3  # "red circle , red circle , red circle" is a list; longer repeated phrases are a loop


class RuleJudge:
    """Exact match of the one answer a response commits to, after normalization.

    Case, punctuation and articles are ignored. Number words equal digits, ``1,000`` equals ``1000`` and
    ``7.0`` equals ``7``. If the question lists options, an option's letter equals its text. A number may name
    what was counted, and a clause may state the answer in the words of the question. A list must match
    completely and in order. A response that addresses its judge is wrong, whatever it answers. In doubt the
    verdict is 0, because a reward that can be talked into 1 is worse than a strict one.
    """

    name = "rule-2"

    def score(self, question: str, label: str, response: str) -> int:
        """Return 1 if the response commits to the label and to nothing else, otherwise 0.

        Args:
            question: gives the options and the things to count.
            label: the answer alone, such as ``7``, ``red , blue`` or ``yes``.
            response: without special tokens.

        Raises:
            ValueError: the label has no word, number or sign.
        """
        wanted = _canonical(_fold(label))
        if not wanted:
            raise ValueError(
                f"the label {label!r} of {question!r} has no word or number; fix or drop this question"
            )
        pleas = _PLEA.findall(_fold(response))
        if not set(map(_stem, pleas)) <= set(map(_stem, _PLEA.findall(_fold(f"{question} {label}")))):
            return 0
        whole, answer = _read(response)
        if _canonical(whole) == wanted:
            return 1
        return int(answer != "" and (_matches(question, label, answer) or _states(question, label, whole)))

    def score_many(
        self, questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
    ) -> list[int]:
        """Return the ``score`` of each triple, in order.

        Raises:
            ValueError: as ``score``, or the three lengths differ.
        """
        return [self.score(*triple) for triple in triples(questions, labels, responses)]

    def forget(self) -> None:
        """Clear the caches of parsed texts, for timing."""
        for remembers in (_read, _fold, _canonical, _options):
            remembers.cache_clear()


@lru_cache(maxsize=1 << 16)
def _read(response: str) -> tuple[str, str]:
    """Return the text after a single announcement, or the whole response, and the answer it commits to.

    The answer is the rest of the sentence after the last "answer is", "answer :" or the content of a box.
    Without an announcement it is the first sentence of a short response, or what follows its "is". It is ""
    if the response announces two answers, takes its answer back, loops, or is long without an announcement.
    """
    text = _fold(response)
    if _TRAILING_DOTS.search(text):
        return "", ""
    announcements = list(_ANNOUNCED.finditer(text)) or list(_CONCLUDED.finditer(text))
    if not announcements:
        return text, _unannounced(text)
    starts = [found.start() for found in announcements]
    if (
        len(starts) > 2
        or _loops(text[: starts[0]])
        or any(_DENIED.search(text[max(0, n - 80) : n]) for n in starts)
    ):
        return "", ""
    tails = [text[f.end() : end] for f, end in zip(announcements, [*starts[1:], len(text)], strict=True)]
    whole = tails[0] if len(tails) == 1 else ""
    said = [(answer, rest) for answer, rest in map(_first_sentence, tails) if answer]
    if len({_canonical(answer) for answer, _ in said}) != 1 or any(_goes_back(rest) for _, rest in said):
        return whole, ""
    answer = _reduce(said[-1][0])
    first = _STARTS_YES_NO.match(text)
    return ("", "") if first and answer in {"yes", "no"} - {first[1]} else (whole, answer)


def _unannounced(text: str) -> str:
    most = _EXPLAINED_WORDS if _STARTS_YES_NO.match(text) else _SHORT_WORDS
    if len(re.findall(r"\w+", text)) > most or _loops(text):
        return ""
    answer, rest = _first_sentence(text)
    if not answer or _goes_back(rest):
        return ""
    verbs = list(_SAYS_IS.finditer(answer))
    if len(verbs) == 1 and not re.match(r"there\b|yes\b|no\b", answer) and not _TO_THE_JUDGE.search(text):
        subject, said = answer[: verbs[0].start()], answer[verbs[0].end() :]
        if subject and said:
            return "" if _loops(subject) else _reduce(said)
    return _reduce(answer)


def _first_sentence(text: str) -> tuple[str, str]:
    """Return the first sentence without its reason ("" if it has no word), and the rest."""
    end = _SENTENCE_END.search(text)
    sentence, rest = (text[: end.start()], text[end.end() :]) if end else (text, "")
    sentence = _REASON.sub("", sentence)
    if (other := _CONTRAST.search(sentence)) and other[1] not in sentence[: other.start()]:
        sentence = sentence[: other.start()]
    sentence = sentence.strip(" ,:\"'“”‘’")
    return (sentence if re.search(r"\w", sentence) else ""), rest


def _goes_back(rest: str) -> bool:
    """Return whether the text after an answer gives another one, takes it back or loops."""
    for sentence in _SENTENCE_END.split(rest):
        words = len(re.findall(r"\w+", sentence))
        if 0 < words <= _ITEM_WORDS or _SECOND_THOUGHT.search(sentence):
            return True
    return _loops(rest)


def _reduce(answer: str) -> str:
    """Reduce a sum to its result, a yes or no with its reason to yes or no, and "9 (nine)" to "9"."""
    if (twice := _SAME_AGAIN.match(answer)) and _canonical(twice[1]) == _canonical(twice[2]):
        return twice[1]
    if total := _SUM.match(answer):
        return total[1]
    if said := _YES_NO.match(answer):
        other = "no" if said[1].startswith("y") else "yes"
        return answer if re.search(rf"\b{other}\b", said[2]) else said[1]
    return answer


def _loops(text: str) -> bool:
    """Return whether a phrase of up to eight tokens repeats three times in a row; short list items may."""
    tokens = re.findall(r"\w+|[^\w\s]", text)
    if len(tokens) < 3 or max(Counter(tokens).values()) < 3:
        return False
    for length in range(1, 9):
        run = 0
        for at in range(length, len(tokens)):
            run = run + 1 if tokens[at] == tokens[at - length] else 0
            if run < 2 * length:
                continue
            phrase = tokens[at - length + 1 : at + 1]
            words = sum(token[0].isalnum() for token in phrase)
            listed = words <= _ITEM_WORDS and not {",", "+", "&", "and", "plus"}.isdisjoint(phrase)
            if words and not listed:
                return True
    return False


def _matches(question: str, label: str, answer: str) -> bool:
    options = _options(question)
    if options and (right := _choice(_fold(label), options)):
        return _choice(answer, options) == right
    lone = _LONE_LETTER.match(answer)
    for scale in _SCALES:  # "8 million" answers "how many million ?" as 8 does
        if re.search(rf"\b{scale}s?\b", _fold(question)) and scale not in _fold(label):
            answer = answer.replace(f" {scale}", "", 1)
    wanted, given = _canonical(_fold(label)), _canonical(lone[1] if lone else answer)
    if given == wanted:
        return True
    if len(wanted) == 1 and _NUMBER.fullmatch(wanted[0]):
        others = {token for token in given if not _NUMBER.fullmatch(token)}
        numbers = [token for token in given if token not in others]
        return numbers == list(wanted) and _known(others, question)
    return False


def _known(words: Iterable[str], question: str) -> bool:
    """Return whether the words only repeat the question or are fillers."""
    known = _AROUND_A_NUMBER.union(_canonical(_fold(question)))
    stems = {_stem(word) for word in known - _NOT_A_UNIT}
    return all(_stem(word) in stems and word not in _NOT_A_UNIT for word in words)


def _stem(word: str) -> str:
    return re.sub(r"(?<=\w\w)(?:ed|s)$", "", word)


def _states(question: str, label: str, text: str) -> bool:
    """Return whether a text is a clause with a verb that puts the label into the question's words."""
    sentence = _first_sentence(text)[0]
    if _ALTERNATIVES.search(sentence) or _ALTERNATIVES.search(_fold(question)):
        return False
    wanted, given = _canonical(_fold(label)), _canonical(sentence)
    opens, ends = given[: len(wanted)] == wanted, given[-len(wanted) :] == wanted
    rest = given[len(wanted) :] if opens else given[: -len(wanted)]
    # "red is blue" is ambiguous; "red is the color of it" is not.
    placed = len(rest) > 2 if opens else ends
    a_clause = not _VERBS.isdisjoint(rest) and not any(map(_NUMBER.fullmatch, rest))
    return placed and a_clause and _known(rest, question)


@lru_cache(maxsize=1 << 14)
def _fold(text: str) -> str:
    """Return one line in lower case without markup, with plain characters and line ends as sentence ends."""
    if not text.isascii():
        text = _INVISIBLE.sub("", "".join(map(_plain, text)))
        text = _DASH.sub("-", unicodedata.normalize("NFKC", text)).replace("⁄", "/")
    text = _PERCENT.sub("%", text.casefold()).strip()
    text = _LINE_END.sub(" . ", _BOXED.sub(r" . answer : \1 . ", text))
    text = " ".join(_MARKUP.sub(" ", text).split())
    return _LETTER_DOT.sub(r"\1 ) ", _SPLIT_DECIMAL.sub(".", text))


@lru_cache(maxsize=1 << 16)
def _canonical(text: str) -> tuple[str, ...]:
    """Return the tokens that decide equality: words, numbers in one spelling, signs of alternatives."""
    text = _NUMBER_WORD.sub(_digits, _ARTICLE.sub("", _APOSTROPHE.sub("", text)))
    for word, scaled in _SCALED.items():
        if word in text:
            text = scaled.sub(partial(_scale, _SCALES[word]), text)
    text = _MINUS_WORD.sub("-", text)
    tokens = (_SAME_WORD.get(token, token) for token in _TOKEN.findall(text) if token != "and")
    return tuple(_one_spelling(token) if _NUMBER.fullmatch(token) else token for token in tokens)


def _digits(words: re.Match[str]) -> str:
    ten, unit, word = words.groups()
    return str(_NUMBER_WORDS[word] if word else _NUMBER_WORDS[ten] + _NUMBER_WORDS[unit])


def _scale(scale: int, words: re.Match[str]) -> str:
    """Turn "2 hundred and 5" into 205; an added number not below the scale stays separate."""
    many, more = words.groups()
    value = Decimal(many or 1) * scale
    if more and int(more) >= scale:
        return f"{value:f} {more}"
    return f"{value + int(more or 0):f}"


def _plain(character: str) -> str:
    """Convert digits of any script to 0 to 9; put a space before superscripts, subscripts and fractions."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    apart = unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>"))
    return f" {character}" if apart else character


def _one_spelling(number: str) -> str:
    """Drop thousands separators, leading zeros, trailing zeros after the point and the sign of zero."""
    whole, _, part = number.replace(",", "").lstrip("- ").partition(".")
    value = (whole.lstrip("0") or "0") + (f".{part}" if (part := part.rstrip("0")) else "")
    return f"-{value}" if number[0] == "-" and value != "0" else value


@lru_cache(maxsize=1 << 14)
def _options(question: str) -> dict[str, str]:
    """Return the question's options by letter, from a on and at least two; otherwise an empty dict."""
    text = _fold(question)
    marks: list[re.Match[str]] = []
    for found in _OPTION.finditer(text):
        if found[1] == "abcdefgh"[len(marks) : len(marks) + 1]:
            marks.append(found)
    if len(marks) < 2:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return {m[1]: text[m.end() : end].strip(" ,;.?(") for m, end in zip(marks, ends, strict=True)}


def _choice(text: str, options: dict[str, str]) -> str:
    """Return the letter of the option that a text names by letter, text, or both if they agree, or ""."""
    if chosen := _CHOSEN.match(text):
        letter, named = chosen[1], _canonical(chosen[2])
        if letter in options and (not named or named == _canonical(options[letter])):
            return letter
    if (last := _TEXT_FIRST.match(text)) and last[2] in options:
        return last[2] if _canonical(last[1]) == _canonical(options[last[2]]) else ""
    same = [letter for letter, option in options.items() if _canonical(option) == _canonical(text)]
    return same[0] if len(same) == 1 else ""


def triples(
    questions: Sequence[str], labels: Sequence[str], responses: Sequence[str]
) -> list[tuple[str, str, str]]:
    """Zip questions, labels and responses; raise ``ValueError`` if their numbers differ."""
    if not len(questions) == len(labels) == len(responses):
        raise ValueError(
            f"{len(questions)} questions, {len(labels)} labels and {len(responses)} responses to judge; "
            "give one of each per verdict"
        )
    return list(zip(questions, labels, responses, strict=True))
