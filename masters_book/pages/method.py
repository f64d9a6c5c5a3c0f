"""The worked example of the method page: each equation with the numbers of one question of the run."""

from pathlib import Path

import numpy as np

from masters.masking.schedule import MaskSchedule
from masters_book.analysis.example import Worked
from masters_book.claims.table import signed
from masters_book.figures.method import method_figure
from masters_book.figures.names import title_of
from masters_book.figures.style import write_svg
from masters_book.pages.rendering import fill

PARTS = ("figure", "mask", "schedule", "responses", "divergence", "rewards", "objective")


def method_parts(example: Worked | None, image: Path) -> dict[str, str]:
    """Return the parts of the example by the section they belong to; empty without a run's example.

    Args:
        example: result of :func:`masters_book.analysis.example.read_worked`.
        image: file of the wide figure; the narrow one is written beside it.
    """
    if example is None:
        return dict.fromkeys(PARTS, "")
    narrow, figure = image.with_stem(f"{image.stem}-narrow"), method_figure(example)
    write_svg(figure, image)
    write_svg(method_figure(example, narrow=True), narrow)
    picture = {"image": image.name, "narrow": narrow.name, "alt": figure.alt}
    values = _numbers(example)
    return {part: fill("method.md", part=part, figure=picture, it=example, **values) for part in PARTS}


def _numbers(example: Worked) -> dict[str, object]:
    """Return the numbers of each equation, rounded as they are shown."""
    schedule, answer = MaskSchedule(example.r_max, example.r_step), example.answers[example.best]
    late = example.steps // 2
    divergences = [each.divergence for each in example.answers]
    rewards = np.array([each.reward for each in example.answers])
    return {
        "teacher": title_of(example.teacher),
        "weights": [
            (f"{before:.4f}", f"{after:.4f}" if after else "0")
            for before, after in zip(example.mask.before, example.mask.after, strict=True)
        ],
        "stages": schedule.stages,
        "ratios": ", ".join(f"{ratio:g}" for ratio in schedule.ratios),
        "late": late,
        "stage": schedule.stage_at(late, example.steps),
        "ratio": schedule.ratio_at(late, example.steps),
        "answer": answer,
        "tokens": list(zip(answer.words, answer.divergences, strict=True)),
        "least": min(divergences),
        "most": max(divergences),
        "mean": float(rewards.mean()),
        "deviation": float(rewards.std()),
        "table": [
            [
                "teacher" if each.source == example.teacher else "student",
                each.text or "(empty)",
                f"{each.correct:g}",
                f"{each.divergence:.4f}",
                f"{each.reward_distillation:.3f}",
                f"{each.reward:.3f}",
                signed(each.advantage),
            ]
            for each in example.answers
        ],
        "policy": 0.0 if abs(example.policy) < 5e-5 else example.policy,
        "kl": 0.0 if abs(example.kl) < 5e-5 else example.kl,
    }
