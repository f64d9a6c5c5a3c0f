"""Scores of benchmarks against values worked out by hand, and functions of one's own."""

from pathlib import Path

import pytest

from masters.data.labels import accepted, encode_accepted
from masters.judges.scorers import final_answer, scorer_of


def score(kind: str, label: str | list[str], response: str, question: str = "?") -> float | None:
    text = label if isinstance(label, str) else encode_accepted(label)
    (value,) = scorer_of(kind, Path()).score_many([question], [text], [response])
    return value


@pytest.mark.parametrize(
    "answers", [[], ["a"], ["a", "b"], ["a", "a"], ["[1, 2]"], ['["a"]'], ['["a", "b"]'], ["é", ""], ["[x"]]
)
def test_accepted_answers_survive_as_one_label(answers: list[str]) -> None:
    assert accepted(encode_accepted(answers)) == tuple(answers)


def test_one_answer_is_its_own_label() -> None:
    assert encode_accepted(["red , blue"]) == "red , blue" and encode_accepted([]) == ""


@pytest.mark.parametrize(
    ("label", "response", "expected"),
    [
        ("100", "104.9", 1),
        ("100", "105", 1),
        ("100", "105.1", 0),
        ("-2", "-1.95", 1),
        ("0", "0", 1),
        ("0", "0.01", 0),
        ("12%", "0.121", 1),
        ("12%", "12", 0),
        ("2010", "2009", 1),
        ("Red", "red.", 1),
        ("Red", "dark red", 0),
        (["Red", "7"], "7.1", 1),
        ("7", "The answer is 7.", 1),
    ],
)
def test_relaxed(label: str | list[str], response: str, expected: float) -> None:
    assert score("relaxed", label, response) == expected


@pytest.mark.parametrize(
    ("label", "response", "expected"),
    [
        ("hello", "Hello", 1.0),
        ("hello", "hallo", 0.8),
        ("abcd", "abxy", 0.5),
        ("abcd", "axyz", 0.0),
        (["hello world", "hello"], "helo", 0.8),
        ("a  b", " a b ", 1.0),
        ("hello", "", 0.0),
    ],
)
def test_anls(label: str | list[str], response: str, expected: float) -> None:
    assert score("anls", label, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("labels", "response", "expected"),
    [
        (["red"] * 10, "red", 1.0),
        (["red"] * 3 + ["blue"] * 7, "Red", (3 * 2 / 3 + 7 * 1) / 10),
        (["red"] * 2 + ["blue"] * 8, "red", (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (["red"] * 1 + ["blue"] * 9, "red", 0.3),
        (["red"] * 10, "green", 0.0),
        (["2"] * 10, "two", 1.0),
        (["the dog"] * 10, "a dog.", 1.0),
        (["dont know"] * 10, "don't know", 1.0),
        (["1000"] * 10, "1,000", 1.0),
        (["yes", "sure"], "sure", 1.0),
        (["t-shirt"] * 10, "t shirt", 1.0),
    ],
)
def test_vqa(labels: list[str], response: str, expected: float) -> None:
    assert score("vqa", labels, response) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("label", "response", "expected"),
    [("STOP", "stop.", 1), ("stop", "The sign says stop", 0), (["a", "b"], " B ", 1), ("0.5", "0.5", 1)],
)
def test_exact(label: str | list[str], response: str, expected: float) -> None:
    assert score("exact", label, response) == expected


LISTED = "Which?\nA. cat\nB. dog\nC. a cow"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B. dog", 1),
        ("**B**", 1),
        ("dog", 1),
        ("Option B", 1),
        ("The answer is B.", 1),
        ("The answer is (B) dog.", 1),
        ("The answer is B. Note that A is a common distractor.", 1),
        ("\\boxed{\\text{B}}", 1),
        ("A or B?</think>\n\nAnswer: B", 1),
        ("<answer>B</answer>", 1),
        ("A", 0),
        ("A. cat", 0),
        ("cat", 0),
        ("B. cat", 0),
        ("A. cat B. dog", 0),
        ("A. cat\nB. dog\nC. a cow", 0),
        ("Both", 0),
        ("", 0),
        ("A dog", 0),
    ],
)
def test_choice(response: str, expected: float) -> None:
    assert score("choice", ["B", "dog"], response, LISTED) == expected
    assert score("choice", "B", response, LISTED) == expected
    assert score("choice", "dog", response, LISTED) == expected


def test_letters_that_the_question_does_not_list() -> None:
    assert score("choice", "B", "B") == 1 and score("choice", "B", "B. a dog") == 1
    assert score("choice", ["K", "kiwi"], "kiwi") == 1 and score("choice", "B", "bee") == 0


@pytest.mark.parametrize("kind", ["relaxed", "anls", "vqa", "exact", "choice"])
def test_without_an_accepted_answer_there_is_no_score(kind: str) -> None:
    assert score(kind, [], "red") is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("red", "red"),
        ("<think>is the answer: blue</think>red", "red"),
        ("First, the answer is 3. No:\nthe answer is 4.", "4"),
        ("Final answer: **7**", "7"),
        ("so \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
    ],
)
def test_the_final_answer(response: str, answer: str) -> None:
    assert final_answer(response) == answer


# --- several right answers for a judge of one ---


def test_rules_accept_any_of_several_answers() -> None:
    both = ["grey", "gray"]
    assert score("rule", both, "It is gray.") == 1 and score("rule", both, "red") == 0
    assert score("rule", "gray", "gray") == 1


# --- functions of one's own ---


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "def score(question, answers, response):\n"
        "    if response == 'none':\n        return None\n"
        "    if response == 'two':\n        return 2\n"
        "    return 1 / len(response) if response in answers else False\n"
    )
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    return tmp_path


def test_a_function_of_ones_own_scores(rewards: Path) -> None:
    judge = scorer_of("mine.py:score", rewards)
    label = encode_accepted(["ab", "cd"])
    scores = judge.score_many(["?"] * 4, [label, label, label, ""], ["ab", "none", "x", "ab"])
    assert scores == [0.5, None, 0.0, 0.0]


def test_its_name_changes_with_the_file(rewards: Path) -> None:
    before = scorer_of("mine.py:score", rewards).name
    (rewards / "mine.py").write_text("def score(question, answers, response):\n    return 1\n")
    after = scorer_of("mine.py:score", rewards).name
    assert before != after and before.startswith("mine-score-")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            "best",
            "there is no scorer 'best'; there are rule, relaxed, anls, vqa, exact, choice and FILE.py:FUNC",
        ),
        ("mine.py:other", "has no function 'other'"),
        ("gone.py:score", "cannot read the scorer .*gone.py: No such file"),
        ("broken.py:score", "broken.py cannot be imported: ModuleNotFoundError: No module named"),
    ],
)
def test_refused_scorers(spec: str, reason: str, rewards: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        scorer_of(spec, rewards)


def test_failures_name_file_and_question(rewards: Path) -> None:
    judge = scorer_of("mine.py:score", rewards)
    with pytest.raises(ValueError, match=r"mine.py:score returns 2 for 'How many\?'; return 0 to 1"):
        judge.score_many(["How many?"], ["a"], ["two"])
    with pytest.raises(
        ValueError, match=r"mine.py:score fails at 'How\?': ZeroDivisionError: division by zero"
    ):
        judge.score_many(["How?"], [encode_accepted(["", "a"])], [""])


@pytest.mark.parametrize(
    "response", ["The answer is: B", "**Answer**: B", "Answer : B", "answer: **B**", "The answer is B."]
)
def test_an_announced_answer_in_its_usual_forms(response: str) -> None:
    assert final_answer(response) == "B"


def test_a_letter_alone_is_that_option_even_if_another_has_it_as_its_text(tmp_path: Path) -> None:
    question = "Which point?\nA. B\nB. C\nC. A"
    labels = ['["A", "B"]'] * 2
    assert scorer_of("choice", tmp_path).score_many([question] * 2, labels, ["A", "C"]) == [1, 0]
