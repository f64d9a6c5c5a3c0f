"""The arms of every comparison, by name: what differs from the paper's method, and nothing else.

An arm becomes a :class:`RunSpec`, the full description of a training run, when it meets a profile. A new
variant is one line in ``CHANGES``; every table and figure takes it from there.
"""

import re
from typing import Any, Literal, get_args

from pydantic import Field

from masters.divergence import Kind
from masters.settings import Count, Positive, Profile, Ratio, Strict


class RunSpec(Strict):
    """A distillation run as data; with a seed it determines the result."""

    student: str = "student"
    teachers: tuple[str, ...] = Field(
        ("large",), description="one after the other, equal shares of the steps"
    )
    r_max: Ratio = 0.0
    r_step: Positive = 0.1
    learn_from: Literal["nothing", "labels", "responses", "online"] = "responses"
    cross_entropy: bool = Field(False, description="on the labels, without a teacher")
    teacher_responses: int = Field(4, ge=0)
    student_responses: int = Field(4, ge=0)
    rewards: tuple[Literal["accuracy", "distillation"], ...] = ()
    normalise: bool = True
    beta: float = Field(0.1, ge=0)
    ratio: Literal["one", "clipped"] = "one"
    advantages: Literal["all", "positive"] = "all"
    flat: Literal["keep", "skip"] = "keep"
    divergence: Kind = "jsd"
    mix: float = 0.5
    questions: Count = 1
    steps: Count = 1
    batch: Count = 1
    learning_rate: Positive = 1e-4

    def objective(self) -> dict[str, Any] | None:
        """Arguments of :func:`masters.objective.masters_loss`; None means cross-entropy."""
        if self.cross_entropy:
            return None
        names = ("rewards", "normalise", "beta", "ratio", "advantages", "flat", "divergence", "mix")
        return {name: getattr(self, name) for name in names}


BOTH = ("accuracy", "distillation")
UNMASKED = {"r_max": 0.0}
PLAIN: dict[str, Any] = {"rewards": ()}
ALONE = {"teacher_responses": 0, "student_responses": 8}

# Name: (title, what differs from the paper's method at the profile's settings).
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": (
        "base student",
        {"student": "student", "learn_from": "nothing", "teachers": (), **PLAIN, **UNMASKED},
    ),
    "mid": ("mid teacher", {"student": "mid", "learn_from": "nothing", "teachers": (), **PLAIN, **UNMASKED}),
    "large": (
        "large teacher",
        {"student": "large", "learn_from": "nothing", "teachers": (), **PLAIN, **UNMASKED},
    ),
    "sft": (
        "supervised on labels",
        {"learn_from": "labels", "cross_entropy": True, "teachers": (), **PLAIN, **UNMASKED},
    ),
    "naive": ("naive distillation, one label", {"learn_from": "labels", **PLAIN, **UNMASKED}),
    "naive_multi": ("naive distillation, responses", {**PLAIN, **UNMASKED}),
    "naive_rewards": ("rewards without masking", UNMASKED),
    "masked": ("mask-progressive", PLAIN),
    "masters": ("Masters (paper's form)", {}),
    "accuracy_only": ("accuracy reward only", {"rewards": ("accuracy",)}),
    "distillation_only": ("distillation reward only", {"rewards": ("distillation",)}),
    "unnormalised": ("distillation reward not normalised", {"normalise": False}),
    "mid_only": ("mid teacher only", {"teachers": ("mid",)}),
    "mid_then_large": ("mid, then large teacher", {"teachers": ("mid", "large")}),
    "clipped": ("clipped ratio", {"ratio": "clipped"}),
    "positive": ("positive advantages only", {"advantages": "positive"}),
    "skip_flat": ("groups without spread skipped", {"flat": "skip"}),
    "own_accuracy": (
        "own responses, accuracy reward",
        {"rewards": ("accuracy",), **ALONE},
    ),
    "online": (
        "online GRPO, accuracy reward",
        {"learn_from": "online", "teachers": (), "rewards": ("accuracy",), **ALONE, **UNMASKED},
    ),
}


# The share of the teacher in the mixture of a divergence, as its paper has it; half where it does not say.
MIX: dict[Kind, float] = {"skewed_kl": 0.1}
KINDS = "|".join(get_args(Kind))


def arm(name: str, profile: Profile) -> RunSpec:
    """The run that an arm stands for in a profile.

    Args:
        name: of ``CHANGES``, ``r_max=0.4``, ``responses=2`` (half of each model), ``source=6:2``
            (student to teacher responses), ``learning_rate=1e-4``, ``alone=skewed_kl`` (a divergence without
            masks and rewards), ``masters=skewed_kl`` (Masters with it in the place of the JSD) or
            ``online=60`` (``online`` for that many steps).
        profile: its distillation settings are the paper's method where the arm says nothing.

    Raises:
        ValueError: no such arm, or an odd number of responses.
    """
    settings = profile.distillation
    how = {"cache_teacher", "top_k_logprobs", "fit", "watch"}  # not what, is run
    method = settings.model_dump(exclude=how) | {"rewards": BOTH}
    return RunSpec(**(method | _changes(name)))


def title(name: str) -> str:
    """The arm's name for people."""
    if name in CHANGES:
        return CHANGES[name][0]
    _changes(name)
    family, _, value = name.partition("=")
    if family == "online":
        return f"{CHANGES[family][0]}, {value} steps"
    words = {"source": "student:teacher", "learning_rate": "learning rate"}
    if family in ("alone", "masters"):
        kind = value.replace("_", " ").replace("kl", "KL").replace("jsd", "JSD")
        return f"{kind} alone" if family == "alone" else f"Masters with {kind}"
    return f"{words.get(family, family)} {value}"


def _changes(name: str) -> dict[str, Any]:
    if name in CHANGES:
        return CHANGES[name][1]
    if match := re.fullmatch(r"r_max=(0(?:\.\d+)?)", name):
        return {"r_max": float(match[1])}
    if (match := re.fullmatch(r"responses=(\d+)", name)) and int(match[1]) >= 2 and int(match[1]) % 2 == 0:
        return {"teacher_responses": int(match[1]) // 2, "student_responses": int(match[1]) // 2}
    if (match := re.fullmatch(r"source=(\d+):(\d+)", name)) and int(match[1]) + int(match[2]) >= 1:
        return {"student_responses": int(match[1]), "teacher_responses": int(match[2])}
    if match := re.fullmatch(r"learning_rate=(\d+(?:\.\d+)?(?:e-\d+)?)", name):
        return {"learning_rate": float(match[1])}
    if match := re.fullmatch(r"online=([1-9]\d*)", name):
        return CHANGES["online"][1] | {"steps": int(match[1])}
    if match := re.fullmatch(rf"(alone|masters)=({KINDS})", name):
        kind: Any = match[2]
        plugged = {"divergence": kind, "mix": MIX.get(kind, 0.5)}
        return plugged if match[1] == "masters" else PLAIN | UNMASKED | plugged
    known = ", ".join(CHANGES)
    raise ValueError(
        f"there is no arm {name!r}; there are: {known}, r_max=0.4, "
        "responses=2 (even), source=6:2, learning_rate=1e-4, alone=skewed_kl, masters=skewed_kl, online=60"
    )
