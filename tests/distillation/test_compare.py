"""``masters compare``: students on the same questions, each answer beside the other's."""

from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import ttest_rel
from typer.testing import CliRunner

from masters.cli.main import app
from masters.distillation.compare import compare

RIGHT = [1.0, 0, 1, 1, 0, 1, 0, 1]


def run(folder: Path, scores: list[float], reward: str = "rule", label: str = "yes", first: int = 0) -> Path:
    """The files of a finished run that are compared."""
    (folder / "eval").mkdir(parents=True)
    ids = [f"q{number}" for number in range(first, first + len(scores))]
    frame = pd.DataFrame({"content": ids, "label": label, "answer": "x", "score": scores, "judge": reward})
    frame.to_parquet(folder / "eval" / "after.parquet")
    return folder


def test_each_student_has_its_score_and_its_difference_from_the_first(tmp_path: Path) -> None:
    better = [1.0, 1, 1, 1, 0, 1, 1, 1]
    folders = [run(tmp_path / "a", RIGHT), run(tmp_path / "b", better), run(tmp_path / "c", RIGHT)]
    lines = compare(folders)
    assert lines[0].startswith(f"{folders[0]}: 62.5 % (95 % interval ") and "8 questions" in lines[0]
    apart = ttest_rel(better, RIGHT).confidence_interval(0.95)
    assert lines[3] == (
        f"{folders[1]} minus {folders[0]}: +25.0 points (95 % interval {100 * apart.low:+.1f} to "
        f"{100 * apart.high:+.1f})"
    )
    assert lines[4] == f"{folders[2]} minus {folders[0]}: +0.0 points (95 % interval +0.0 to +0.0)"
    told = CliRunner().invoke(app, ["compare", *map(str, folders)])
    assert told.exit_code == 0 and told.output.replace("\n", "") == "".join(lines)


def test_questions_without_an_answer_do_not_count(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, RIGHT) for name in "ab"]
    for folder in folders:
        path = folder / "eval" / "after.parquet"
        frame = pd.read_parquet(path)
        frame.loc[0, "label"] = ""
        frame.to_parquet(path)
    assert "7 questions" in compare(folders)[0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"first": 1}, "a and .*b were evaluated on different questions: give both run files"),
        ({"label": "no"}, "different questions"),
        ({"reward": "anls"}, "a was judged by rule and .*b by anls"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, changes: dict[str, str], problem: str) -> None:
    folders = [run(tmp_path / "a", RIGHT), run(tmp_path / "b", RIGHT, **changes)]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=problem):
        compare(folders)


def test_missing_or_damaged_answers_are_named(tmp_path: Path) -> None:
    whole = run(tmp_path / "a", RIGHT)
    with pytest.raises(ValueError, match="at least two"):
        compare([whole])
    with pytest.raises(ValueError, match=r"b/eval/after\.parquet is missing: name the output_dir"):
        compare([whole, tmp_path / "b"])
    path = run(tmp_path / "b", RIGHT) / "eval" / "after.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged: delete it"):
        compare([whole, tmp_path / "b"])
    unlabeled = [run(tmp_path / name, RIGHT, label="") for name in "cd"]
    with pytest.raises(ValueError, match=r"no question that .* has an answer"):
        compare(unlabeled)
