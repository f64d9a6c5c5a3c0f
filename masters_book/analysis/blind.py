"""The blind baseline: answers looked up from the question's text, without the image.

Some answers are more frequent than others, so an accuracy is meaningful only above what the text alone gives.
The lookup returns the most common training answer to the same text, and for a new text the most common
training answer of the question set. It is right if it is one of the accepted answers.
"""

import pandas as pd

from masters.data.labels import accepted
from masters.data.tasks import load_task
from masters.own_data.tasks import rows_of
from masters.settings import Profile, Task


def blind_answers(train: pd.DataFrame, questions: pd.DataFrame) -> pd.Series:
    """Return the baseline's answer to each question.

    Args:
        train: ``question`` and ``answer`` of one question set's training questions; of several accepted
            answers the first counts, and questions without any are left out.
        questions: ``question`` of the questions to answer.

    Returns:
        Answers with the index of ``questions``, empty if no training question has one. Ties go to the first
        answer in alphabetical order.
    """
    train = train.assign(answer=train["answer"].map(lambda label: next(iter(accepted(label)), "")))
    train = train[train["answer"] != ""]
    if train.empty:
        return pd.Series("", index=questions.index)
    counts = train.groupby(["question", "answer"]).size().rename("count").reset_index()
    best = counts.sort_values(["count", "answer"], ascending=[False, True]).drop_duplicates("question")
    known = best.set_index("question")["answer"]
    return questions["question"].map(known).fillna(train["answer"].mode()[0])


def blind_accuracy(profile: Profile) -> pd.DataFrame:
    """Return the blind baseline on the test split, per question: task, skill, correct.

    It looks up answers in the training questions of the profile's models.
    """
    frames = []
    for task in profile.tasks:
        train = _texts(profile, task, "train")
        questions = _texts(profile, task, "test")
        said = blind_answers(train, questions)
        correct = [word in accepted(label) for word, label in zip(said, questions["answer"], strict=True)]
        frames.append(questions[["task", "skill"]].assign(correct=correct))
    return pd.concat(frames, ignore_index=True)


def _texts(profile: Profile, task: Task, split: str) -> pd.DataFrame:
    """Return task, question, answer (a label) and skill of a split's questions."""
    limit = getattr(profile, f"{split}_questions")
    if isinstance(task, str):
        name, rows = task, load_task(task, split, limit)
    else:
        name, rows = task.name, rows_of(task, split, limit, profile.folder)[1]
    frame = rows.select_columns(["question", "answer", "skill"]).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    return frame.assign(task=name)


def blind_table(profile: Profile) -> pd.DataFrame:
    """Return the blind baseline of each question set and of ``all`` questions: task, accuracy, questions."""
    frame = blind_accuracy(profile)
    groups = [*frame.groupby("task", sort=False)["correct"], ("all", frame["correct"])]
    rows = [{"task": task, "accuracy": correct.mean(), "questions": len(correct)} for task, correct in groups]
    return pd.DataFrame(rows)
