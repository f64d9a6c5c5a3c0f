"""Names as readers see them: titles of arms, and words with units for the columns of result tables."""

from typing import Any

import pandas as pd

from masters.experiments.arms import title

# Columns and rows of the tables that notebooks show. Accuracies are in percent there.
COLUMNS = {
    "arm": "arm",
    "accuracy": "greedy accuracy, %",
    "sampled_accuracy": "sampled accuracy, %",
    "tokens": "tokens per answer",
    "kl": "KL to the base student, nats per token",
    "correct": "correct (1) or wrong (0)",
    "divergence": "JSD to the student, nats per token",
    "reward_distillation": "distillation reward",
    "length": "tokens per response",
    "flat_groups": "flat groups (share)",
    "advantage_std": "spread of advantages",
    "advantage_positive": "positive advantages (share)",
    "log_ratio": "log-ratio to the models that answered, nats per token",
    "effective_samples": "effective samples (share of tokens)",
    "learning_rate": "learning rate",
    "student_responses": "student responses",
    "teacher_responses": "teacher responses",
    "r_max": "first mask ratio",
    "ratio": "mask ratio",
    "training_steps": "training steps",
    "seconds": "training, s",
    "vision_layers": "vision layers",
    "caption_steps": "captioning steps",
    "caption_share": "share of captions",
    "label_share": "share of labels",
    # Rows and columns of the paper's tables.
    "mid_teacher": "mid teacher",
    "multi_response": "several responses",
    "reward_feedback": "rewards",
    "acc": "accuracy reward, language model",
    "acc_rule_based": "accuracy reward, rule",
    "distill": "distillation reward",
    "acc+distill": "both rewards",
    "acc+distill_unnormalised": "both rewards, not normalized",
    "teacher_InternVL3.5-38B": "the teacher, InternVL3.5-38B",
}


def title_of(name: str) -> str:
    """Return an arm's title; any other name, such as a title or an arm of another version, as it is."""
    try:
        return title(name)
    except ValueError:
        return name


def display_name(name: Any) -> Any:
    """Return the words for a column, an arm, or a variant of the paper; other values as they are."""
    if not isinstance(name, str):
        return name
    if name.startswith(("+", "-")):
        return f"{name[0]} {name[1:].replace('_', ' ')}"
    return COLUMNS.get(name) or title_of(name)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table with display names for its columns, rows and their headings."""
    shown = table.rename(columns=display_name, index=display_name)
    return shown.rename_axis(index=display_name, columns=display_name)
