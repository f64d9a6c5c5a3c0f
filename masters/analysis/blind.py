"""The blind baseline: what a lookup from the question's text to an answer scores without seeing the picture.

Question sets have answers that are likelier than others. An accuracy means something only above what the text
alone gives, so this baseline stands beside every accuracy. The lookup answers with the most common training
answer to the same text, and where the text is new, with the most common training answer of the question set.
"""

import pandas as pd

from masters.data.tasks import load_task
from masters.settings import Profile


def blind_answers(train: pd.DataFrame, asked: pd.DataFrame) -> pd.Series:
    """Return the lookup's answer to each question.

    Args:
        train: ``question`` and ``answer`` of one question set's training questions.
        asked: ``question`` of the questions to be answered.

    Returns:
        Answers with the index of ``asked``. Among equally common answers the first in alphabetical order.
    """
    counts = train.groupby(["question", "answer"]).size().rename("count").reset_index()
    best = counts.sort_values(["count", "answer"], ascending=[False, True]).drop_duplicates("question")
    known = best.set_index("question")["answer"]
    return asked["question"].map(known).fillna(train["answer"].mode()[0])


def blind_accuracy(profile: Profile, split: str = "test") -> pd.DataFrame:
    """Return the blind baseline on a split, per question: task, skill, correct.

    Args:
        profile: tasks and numbers of questions; the lookup has the ladder's training questions.
        split: ``validation`` or ``test``.
    """
    limit = {"validation": profile.validation_questions, "test": profile.test_questions}[split]
    frames = []
    for task in profile.tasks:
        train = _texts(task, "train", profile.train_questions)
        asked = _texts(task, split, limit)
        correct = blind_answers(train, asked) == asked["answer"]
        frames.append(pd.DataFrame({"task": task, "skill": asked["skill"], "correct": correct}))
    return pd.concat(frames, ignore_index=True)


def blind_table(profile: Profile, split: str = "test") -> pd.DataFrame:
    """Return the blind baseline of each question set and of ``all`` questions: task, accuracy, questions."""
    frame = blind_accuracy(profile, split)
    groups = [*frame.groupby("task", sort=False)["correct"], ("all", frame["correct"])]
    rows = [{"task": task, "accuracy": found.mean(), "questions": len(found)} for task, found in groups]
    return pd.DataFrame(rows)


def _texts(task: str, split: str, limit: int) -> pd.DataFrame:
    columns = ["question", "answer", "skill"]
    frame = load_task(task, split, limit).select_columns(columns).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    return frame
