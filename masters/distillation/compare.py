"""Students of several runs on the same questions: their scores, and the difference of each from the first.

The answers of two students to one question are compared with each other, so what is hard for both cancels.
The intervals cover the questions drawn, not other training runs.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from masters.distillation.outputs import mean_interval, score_line, score_values, scores

SAME = ["content", "label"]  # columns of the answers that have to be equal


def compare(folders: Sequence[Path]) -> list[str]:
    """Return a line per student, and one per difference from the first.

    Args:
        folders: output folders of :func:`masters.distill`, at least two.

    Raises:
        ValueError: a folder has no answers, or the students were not asked the same questions, or were judged
            by different rewards.
    """
    if len(folders) < 2:
        raise ValueError("name at least two output folders of masters distill")
    frames = [_answers(folder) for folder in folders]
    rewards = [str(frame["judge"].iloc[0]) for frame in frames]
    first, lines = frames[0], []
    for folder, frame, reward in zip(folders, frames, rewards, strict=True):
        if not frame[SAME].equals(first[SAME]):
            raise ValueError(
                f"{folders[0]} and {folder} were evaluated on different questions: give both run files the "
                "same data, with the same eval or test"
            )
        if reward != rewards[0]:
            raise ValueError(f"{folders[0]} was judged by {rewards[0]} and {folder} by {reward}")
        labeled = int((frame["label"] != "").sum())
        if not labeled:
            raise ValueError(
                f"no question that {folder} was evaluated on has an answer, so there is no score"
            )
        lines.append(score_line(str(folder), scores({"after": frame})["after"], labeled))
    for folder, frame in zip(folders[1:], frames[1:], strict=True):
        apart, low, high = mean_interval(100 * (score_values(frame) - score_values(first)))
        interval = f"95 % interval {low:+.1f} to {high:+.1f}"
        lines.append(f"{folder} minus {folders[0]}: {apart:+.1f} points ({interval})")
    return lines


def _answers(folder: Path) -> pd.DataFrame:
    path = folder / "eval" / "after.parquet"
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: name the output_dir of a finished run with data.eval or data.test"
        )
    try:
        frame = pd.read_parquet(path)
        return frame[[*SAME, "score", "judge"]].reset_index(drop=True)
    except (KeyError, OSError, ValueError):
        raise ValueError(f"{path} is damaged: delete it, and masters distill answers again") from None
