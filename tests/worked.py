"""One question with made-up numbers that fit together, for the method's figure and page."""

from typing import Any

import torch

from masters.objective.rewards import distillation_reward, group_advantages
from masters_book.analysis.example import Answer, MaskedLayer, Worked

DIVERGENCES = ((0.1, 0.3), (0.25,), (0.2, 0.2, 0.2), (0.3,))


def worked(**changes: Any) -> Worked:
    """Return four responses, of which the second is right."""
    divergence = torch.tensor([[sum(each) / len(each) for each in DIVERGENCES]])
    correct = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    easy = distillation_reward(divergence)
    advantages = group_advantages(correct + easy).values
    answers = tuple(
        Answer(
            source="large" if at < 2 else "student",
            text=f"answer {at}",
            words=("word",) * len(tokens),
            divergences=tokens,
            correct=float(correct[0, at]),
            divergence=float(divergence[0, at]),
            reward_distillation=float(easy[0, at]),
            reward=float(correct[0, at] + easy[0, at]),
            advantage=float(advantages[0, at]),
        )
        for at, tokens in enumerate(DIVERGENCES)
    )
    mask = MaskedLayer(
        name="layer.weight", ratio=0.2, weights=10, removed=2, threshold=0.3, largest=1.0,
        histogram=(2, 3, 5), before=(0.1, 0.9), after=(0.0, 0.9),
    )  # fmt: skip
    values: dict[str, Any] = {
        "profile": "tiny", "task": "shapes", "question": "how many?", "label": "two", "picture": "",
        "teacher": "large", "mask": mask, "r_max": 0.2, "r_step": 0.1, "steps": 300, "answers": answers,
        "normalize": True, "policy_weight": 1.0, "beta": 0.1, "divergence": 0.2375, "policy": 1e-9,
        "kl": 1e-9, "loss": 0.2375,
    }  # fmt: skip
    return Worked(**(values | changes))
