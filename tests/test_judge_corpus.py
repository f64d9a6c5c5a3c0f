"""How far the judge by rule agrees with verdicts by hand on a varied corpus, by kind and held out."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from masters.judges import RuleJudge

CORPUS = Path(__file__).with_name("judge_corpus.yaml")
HELD_OUT_EVERY = 5  # the fifth case, the tenth and so on: read by no one who writes a rule

# The agreement measured, in whole percent rounded down: all cases of a kind, held out or not.
FLOORS = {
    "paraphrase": 73,
    "units": 86,
    "number_words": 86,
    "options": 96,
    "negation": 76,
    "several_answers": 97,
    "empty": 100,
    "repetition": 100,
    "lookalikes": 100,
    "addresses_judge": 94,
    "reasoning": 83,
    "plain": 80,
}
ALL_FLOOR = 89
HELD_OUT_FLOOR = 86
# Kinds that a trained policy could turn into reward: here no response may be right that is wrong by hand.
CRITICAL = ["addresses_judge", "empty", "repetition", "several_answers"]


class Case(NamedTuple):
    kind: str
    question: str
    label: str
    response: str
    verdict: int


LINES: list[list[Any]] = yaml.safe_load(CORPUS.read_text(encoding="utf-8"))
CASES = [Case(*line) for line in LINES]
SAID = [RuleJudge().score(case.question, case.label, case.response) for case in CASES]
HELD_OUT = [at % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for at in range(len(CASES))]


def agreement(kind: str | None = None, held_out: bool | None = None) -> tuple[int, int]:
    """How many verdicts agree, and of how many: of one kind or all, held out, open, or both."""
    agree = [
        case.verdict == said
        for case, said, out in zip(CASES, SAID, HELD_OUT, strict=True)
        if kind in (None, case.kind) and held_out in (None, out)
    ]
    return sum(agree), len(agree)


def percent(agree: int, of: int) -> str:
    return f"{100 * agree / of:5.1f}% of {of:3}"


def test_the_corpus_is_large_varied_and_well_formed() -> None:
    assert len(CASES) >= 300
    assert {case.kind for case in CASES} == set(FLOORS)
    assert all(agreement(kind)[1] >= 20 for kind in FLOORS)
    assert all(isinstance(field, str) for case in CASES for field in case[:4])
    assert all(type(case.verdict) is int and case.verdict in (0, 1) for case in CASES)
    assert all({case.verdict for case in CASES if case.kind == kind} == {0, 1} for kind in FLOORS)


def test_no_case_comes_twice() -> None:
    asked = [(case.question, case.label, case.response) for case in CASES]
    assert sorted(asked) == sorted(set(asked))


def test_agreement_by_kind_is_shown() -> None:
    """Run with ``pytest -s`` or ``-rA`` to see the table."""
    print(f"\n{'kind':16} {'open':>13} {'held out':>13} {'all':>13}")
    for kind in [*FLOORS, None]:
        columns = (percent(*agreement(kind, held_out)) for held_out in (False, True, None))
        print(f"{kind or 'all':16}", *columns)


@pytest.mark.parametrize("kind", FLOORS)
def test_agreement_of_a_kind_keeps_its_floor(kind: str) -> None:
    agree, of = agreement(kind)
    assert 100 * agree / of >= FLOORS[kind]


def test_agreement_overall_and_held_out_keeps_its_floor() -> None:
    for held_out, floor in [(None, ALL_FLOOR), (True, HELD_OUT_FLOOR)]:
        agree, of = agreement(held_out=held_out)
        assert 100 * agree / of >= floor


@pytest.mark.parametrize("kind", CRITICAL)
def test_nothing_wrong_is_rewarded_where_reward_could_be_gamed(kind: str) -> None:
    rewarded = [
        case.response
        for case, said in zip(CASES, SAID, strict=True)
        if case.kind == kind and said > case.verdict
    ]
    assert not rewarded
