"""Agreement of the judges with human verdicts on a varied corpus, per kind and held out."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from masters.judges import corpus
from masters.judges.corpus import CORPUS, HELD_OUT_EVERY, Case
from masters.judges.embedding import EmbeddingJudge
from masters.judges.rule import RuleJudge
from masters_book.analysis import judges

# Measured agreement in %, rounded down, over all cases of a kind.
FLOORS = {
    "paraphrase": 66,
    "units": 90,
    "number_words": 66,
    "options": 90,
    "negation": 66,
    "several_answers": 85,
    "empty": 100,
    "repetition": 96,
    "lookalikes": 100,
    "addresses_judge": 97,
    "reasoning": 63,
    "plain": 80,
}
ALL_FLOOR = 84
HELD_OUT_FLOOR = 86
# The last announced answer counts, so these two count as right where a person sees a contradiction.
LAST_WINS = {"Answer: 8\nAnswer: 9", "yes . the answer is no ."}
# Kinds that a policy could exploit: the judge must not accept a response that is wrong by hand.
CRITICAL = ["addresses_judge", "empty", "repetition", "several_answers"]


LINES: list[list[Any]] = yaml.safe_load(CORPUS.read_text(encoding="utf-8"))
CASES = [Case(*line) for line in LINES]
SAID = [RuleJudge().score(case.question, case.label, case.response) for case in CASES]
HELD_OUT = [at % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for at in range(len(CASES))]


def agreement(kind: str | None = None, held_out: bool | None = None) -> tuple[int, int]:
    """Return the number of verdicts that agree and of all verdicts; None selects all kinds or both splits."""
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


def test_no_case_occurs_twice() -> None:
    asked = [(case.question, case.label, case.response) for case in CASES]
    assert sorted(asked) == sorted(set(asked))


def test_agreement_per_kind_is_printed() -> None:
    """Print the table; run with ``pytest -s`` or ``-rA`` to see it."""
    print(f"\n{'kind':16} {'open':>13} {'held out':>13} {'all':>13}")
    for kind in [*FLOORS, None]:
        columns = (percent(*agreement(kind, held_out)) for held_out in (False, True, None))
        print(f"{kind or 'all':16}", *columns)


@pytest.mark.parametrize("kind", FLOORS)
def test_agreement_per_kind_is_above_its_floor(kind: str) -> None:
    agree, of = agreement(kind)
    assert 100 * agree / of >= FLOORS[kind]


def test_agreement_overall_and_held_out_is_above_its_floor() -> None:
    for held_out, floor in [(None, ALL_FLOOR), (True, HELD_OUT_FLOOR)]:
        agree, of = agreement(held_out=held_out)
        assert 100 * agree / of >= floor


@pytest.mark.parametrize("kind", CRITICAL)
def test_no_wrong_response_is_rewarded_in_the_critical_kinds(kind: str) -> None:
    rewarded = [
        case.response
        for case, said in zip(CASES, SAID, strict=True)
        if case.kind == kind and said > case.verdict
    ]
    assert set(rewarded) <= LAST_WINS


def test_open_and_held_out_cases_partition_the_corpus() -> None:
    open_, held_out = corpus.cases()
    assert sorted(open_ + held_out) == sorted(CASES)
    assert held_out == [case for case, out in zip(CASES, HELD_OUT, strict=True) if out]


def test_the_agreement_table_matches_a_direct_count() -> None:
    open_, _ = corpus.cases()
    table = judges.agreement({"rule": RuleJudge()}, open_)
    for kind in [*FLOORS, None]:
        agree, of = agreement(kind, held_out=False)
        assert table.loc[kind or "all", "rule"] == pytest.approx(agree / of)
        assert table.loc[kind or "all", "cases"] == of
    wrong = table.loc[["called right, wrong by hand", "called wrong, right by hand"], "rule"]
    assert wrong.sum() == pytest.approx(1 - table.loc["all", "rule"])


def test_a_missing_verdict_counts_as_disagreement() -> None:
    class Silent:
        def score_many(self, *asked: list[str]) -> list[None]:
            return [None] * len(asked[0])

    table = judges.agreement({"silent": Silent()}, CASES)
    assert table.loc["all", "silent"] == 0


def test_a_broken_corpus_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.yaml"
    for content in ("- [plain, question, label]", "- [", "7"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"corpus\.yaml is not a corpus"):
            corpus.cases(path)
    with pytest.raises(ValueError, match="is not a corpus"):
        corpus.cases(tmp_path / "none.yaml")


def test_the_embedding_judge_recognizes_synonyms() -> None:
    judge = EmbeddingJudge(0.9)
    where = "where is the cat ?"
    assert judge.score_many([where] * 4, ["sofa"] * 4, ["sofa", "couch", "on the moon", "  "]) == [1, 1, 0, 0]
    assert judge.score_many([], [], []) == []


@pytest.mark.slow
def test_the_calibrated_threshold_agrees_best() -> None:
    open_, _ = corpus.cases()
    judge = EmbeddingJudge.calibrated(open_)
    best = judges.agreement({"it": judge}, open_).loc["all", "it"]
    for other in (judge.threshold - 0.02, judge.threshold + 0.02):
        assert judges.agreement({"it": EmbeddingJudge(other)}, open_).loc["all", "it"] <= best
    assert EmbeddingJudge.calibrated(open_).name == judge.name != EmbeddingJudge(0.5).name
