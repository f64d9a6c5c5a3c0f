"""Text for the rule judge: one line without markup, then words, signs and numbers to compare."""

import re
import unicodedata
from fractions import Fraction

Tokens = tuple[str | Fraction, ...]

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


def folded(text: str) -> str:
    """Return one line in lower case without thoughts, markup and LaTeX; a line's end becomes a sentence's."""
    text = text.rpartition("</think>")[2].partition("<think>")[0]
    text = re.sub("(?=[\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2150-\u215e])", " ", text)  # not 12: 1²
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2044", "/").strip()
    for pattern, plain in _REWRITES:
        text = pattern.sub(plain, text)
    return text.strip()


def tokens_of(text: str) -> Tokens:
    """Return words, signs, and numbers as fractions; articles and "and" are dropped."""
    text = re.sub(r"\b(?:an?|the) (?=\w)", "", re.sub(r"(?<=ty)-(?=[a-z])", " ", text))
    text = _NUMBER_WORD.sub(lambda word: str(_WORDS[word[0]]), text)
    return tuple(
        Fraction(sign + top.replace(",", "")) / int(bottom or 1) if top else _SAME.get(other, other)
        for sign, top, bottom, other in _TOKEN.findall(re.sub(r"\b(?:minus|negative) (?=\.?\d)", "-", text))
        if other != "and"
    )
