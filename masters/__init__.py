"""Masters, reproduced: mask the teacher, reinforce the student (arXiv 2512.22238).

The names below are loaded when they are first used, so that ``import masters`` takes no time and needs no
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masters.distillation.run import distill as distill
    from masters.experiments.lab import Lab as Lab
    from masters.masking.schedule import MaskSchedule as MaskSchedule
    from masters.masking.teacher_mask import TeacherMask as TeacherMask
    from masters.objective.divergence import jsd as jsd
    from masters.objective.loss import masters_loss as masters_loss
    from masters.objective.options import LossOptions as LossOptions
    from masters.objective.rewards import distillation_reward as distillation_reward
    from masters.objective.rewards import group_advantages as group_advantages
    from masters.settings import load_profile as load_profile

__version__ = "0.1.0"

_WHERE = {
    "Lab": "masters.experiments.lab",
    "LossOptions": "masters.objective.options",
    "MaskSchedule": "masters.masking.schedule",
    "TeacherMask": "masters.masking.teacher_mask",
    "distill": "masters.distillation.run",
    "distillation_reward": "masters.objective.rewards",
    "group_advantages": "masters.objective.rewards",
    "jsd": "masters.objective.divergence",
    "load_profile": "masters.settings",
    "masters_loss": "masters.objective.loss",
}
__all__ = [*_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'masters' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
