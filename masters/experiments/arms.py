"""The arms of every comparison: a name, and how it differs from the paper's method.

:func:`arm` turns a name and a profile into a :class:`RunSpec`, the full description of a training run. To add
a variant, add one line to ``CHANGES``, or to ``FAMILIES`` if it has a value. Join names with a plus sign:
``clipped+learning_rate=1e-4`` is the clipped variant at another learning rate.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field

from masters.masking.choice import PAPERS, MaskChoice, Name, Part
from masters.objective.options import Kind, LossOptions
from masters.runtime.parameters import Strict
from masters.settings import Count, FewOrNone, Positive, Profile, Ratio

Judge = Literal["rule", "embedding", "llm"]


class RunSpec(Strict, LossOptions):
    """A training run as data; together with a seed it determines the result."""

    student: str = "student"
    teachers: tuple[str, ...] = Field(
        ("large",), description="in order; each gets an equal share of the steps"
    )
    r_max: Ratio = 0.0
    r_step: Positive = 0.1
    criterion: Name = Field("magnitude", description="how the weights to mask are chosen")
    masked: Part = Field("all", description="which part of the teacher is masked")
    learn_from: Literal["nothing", "labels", "rationales", "responses", "online"] = "responses"
    cross_entropy: bool = Field(False, description="train on the labels without a teacher")
    teacher_responses: FewOrNone = 4
    student_responses: FewOrNone = 4
    judge: Judge = Field("rule", description="judge of the accuracy reward; the paper uses a language model")
    label_noise: float = Field(0.0, ge=0, le=1, description="share of wrong training labels")
    questions: Count = 1
    steps: Count = 1
    batch: Count = 1
    learning_rate: Positive = 1e-4
    lr_schedule: Literal["constant", "linear"] = "constant"

    @property
    def models(self) -> tuple[str, ...]:
        """The rungs that the run needs: its student, then its teachers."""
        return (self.student, *self.teachers)

    def objective(self) -> LossOptions | None:
        """Return the options of the loss; None means cross-entropy."""
        return None if self.cross_entropy else self.loss_options()

    def choice(self) -> MaskChoice:
        """Return which weights of the teachers are masked."""
        return MaskChoice(self.criterion, self.masked)

    def determining(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, so that keys of results outlive a new field.

        Raise the version of ``run`` in :mod:`masters.runtime.keys` when a default changes.
        """
        return self.model_dump(mode="json", exclude_defaults=True)


LABELS = ("labels", "rationales")  # in the profile's registers, or in the one that gives a reason first

UNMASKED = {"r_max": 0.0}
PLAIN: dict[str, Any] = {"rewards": ()}
UNTRAINED = {"learn_from": "nothing", "teachers": (), **PLAIN, **UNMASKED}
SUPERVISED = {"cross_entropy": True, "teachers": (), **PLAIN, **UNMASKED}
ALONE = {"teacher_responses": 0, "student_responses": 8}

# Name: (title, what differs from the paper's method at the profile's settings).
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("base student", {"student": "student", **UNTRAINED}),
    "mid": ("mid teacher", {"student": "mid", **UNTRAINED}),
    "large": ("large teacher", {"student": "large", **UNTRAINED}),
    "sft": ("supervised on labels", {"learn_from": "labels", **SUPERVISED}),
    "reasoning": ("supervised on rationales", {"learn_from": "rationales", **SUPERVISED}),
    "naive": ("naive distillation, one label", {"learn_from": "labels", **PLAIN, **UNMASKED}),
    "naive_multi": ("naive distillation, responses", {**PLAIN, **UNMASKED}),
    "naive_rewards": ("rewards without masking", UNMASKED),
    "masked": ("mask-progressive", PLAIN),
    "masters": ("Masters", {}),
    "accuracy_only": ("accuracy reward only", {"rewards": ("accuracy",)}),
    "distillation_only": ("distillation reward only", {"rewards": ("distillation",)}),
    "unnormalised": ("distillation reward not normalized", {"normalize": False}),
    "mid_only": ("mid teacher only", {"teachers": ("mid",)}),
    "mid_then_large": ("mid, then large teacher", {"teachers": ("mid", "large")}),
    "clipped": ("clipped ratio", {"policy_ratio": "clipped"}),
    "positive": ("positive advantages only", {"advantages": "positive"}),
    "skip_flat": ("groups without spread skipped", {"flat": "skip"}),
    "summed": ("distillation reward on summed divergence", {"distillation_on": "sum"}),
    "by_token": ("averaged over tokens", {"averaging": "token"}),
    "own_accuracy": ("student responses only, accuracy reward", {"rewards": ("accuracy",), **ALONE}),
    "online": (
        "online GRPO, accuracy reward",
        {"learn_from": "online", "teachers": (), "rewards": ("accuracy",), **ALONE, **UNMASKED},
    ),
}


# Titles of other masks. Criteria and parts of a model have no name in common.
MASKS = {
    "magnitude": "masked by magnitude",
    "random": "masked at random",
    "activation": "masked by activation (Wanda)",
    "all": "all linear layers masked",
    "language": "only the language model masked",
    "vision": "only the vision encoder masked",
}

# The teacher's share in the mixture of a divergence, from its paper; 0.5 where the paper does not say.
MIX: dict[Kind, float] = {"skewed_kl": 0.1}


class Family(NamedTuple):
    """Arms that differ in one value, named ``family=value``."""

    example: str  # a value, for messages
    values: str  # regular expression of all values
    changes: Callable[[str], dict[str, Any]]
    title: Callable[[str], str]


def _sets(field: str, example: str, values: str, title: Callable[[str], str] | None = None) -> Family:
    """Return the family that sets a field of :class:`RunSpec`, which makes its text a number."""
    words = field.replace("_", " ") + " {}"
    return Family(example, values, lambda value: {field: value}, title or words.format)


def _sources(value: str) -> dict[str, Any]:
    student, teacher = map(int, value.split(":"))
    return {"student_responses": student, "teacher_responses": teacher}


def _divergence(value: str) -> dict[str, Any]:
    kind: Any = value
    return {"divergence": kind, "mix": MIX.get(kind, 0.5)}


def _one_of(values: Any) -> str:
    return "|".join(get_args(values))


def _in_words(kind: str) -> str:
    return kind.replace("_", " ").replace("kl", "KL").replace("jsd", "JSD")


NUMBER = r"\d+(\.\d+)?(e-\d+)?"
FAMILIES = {
    "r_max": _sets("r_max", "0.4", r"0(\.\d+)?", "first mask ratio {}".format),
    "responses": Family(
        "2 (even)",
        r"[1-9]\d*(?<=[02468])",
        lambda n: _sources(f"{int(n) // 2}:{int(n) // 2}"),
        "{} responses".format,
    ),
    "source": Family(
        "6:2",
        r"(?!0+:0+$)\d+:\d+",
        _sources,
        lambda value: "{} student, {} teacher responses".format(*value.split(":")),
    ),
    "teachers": Family(
        "mid,large",
        r"[a-z]+\d*(,[a-z]+\d*)*",
        lambda value: {"teachers": tuple(value.split(","))},
        lambda value: f"teachers {value.replace(',', ', then ')}",
    ),
    "student": _sets("student", "mid", r"[a-z]+\d*"),
    "judge": _sets("judge", "embedding", _one_of(Judge)),
    "learning_rate": _sets("learning_rate", "1e-4", NUMBER),
    "policy_weight": _sets("policy_weight", "0.1", NUMBER),
    "beta": _sets("beta", "0.01", NUMBER),
    "label_noise": _sets(
        "label_noise", "0.2", r"0(\.\d+)?|1", lambda value: f"{100 * float(value):g} % wrong labels"
    ),
    "teacher_temperature": _sets("teacher_temperature", "2", r"(?=.*[1-9])\d+(\.\d+)?"),
    "alone": Family(
        "skewed_kl",
        _one_of(Kind),
        lambda kind: PLAIN | UNMASKED | _divergence(kind),
        lambda kind: f"{_in_words(kind)} alone",
    ),
    "masters": Family(
        "skewed_kl", _one_of(Kind), _divergence, lambda kind: f"Masters with {_in_words(kind)}"
    ),
    "steps": _sets("steps", "60", r"[1-9]\d*", "{} steps".format),
    "criterion": _sets("criterion", "random", _one_of(Name), MASKS.__getitem__),
    "masked": _sets("masked", "vision", _one_of(Part), MASKS.__getitem__),
}


def arm(name: str, profile: Profile) -> RunSpec:
    """Return the run that an arm stands for in a profile.

    Args:
        name: one or several of these joined by ``+``, later ones overriding earlier ones: a name of
            ``CHANGES``, or one of ``FAMILIES`` with a value, such as ``r_max=0.4``, ``responses=2`` (half
            from each model), ``source=6:2`` (student to teacher responses), ``alone=skewed_kl`` (without
            masks and rewards) or ``masters=skewed_kl`` (Masters with it instead of the JSD).
        profile: gives every setting that the arm does not.

    Raises:
        ValueError: no such arm, an odd number of responses, a model that the profile's ladder lacks, or a
            change without effect in this arm.
    """
    settings = profile.distillation
    # How a run is computed, not what is run.
    how = {"cache_teacher", "top_k_logprobs", "memory_savings", "watch", "trainer"}
    spec = RunSpec.checked(settings.model_dump(exclude=how) | _changes(name), Path(f"arm {name}"))
    if lacking := [model for model in spec.models if model not in profile.ladder]:
        raise ValueError(
            f"arm {name!r} needs the model {lacking[0]}; profile {profile.name} has "
            f"{', '.join(profile.ladder)}"
        )
    if reason := _idle(spec, profile):
        raise ValueError(f"arm {name!r} {reason}")
    return spec


def _idle(spec: RunSpec, profile: Profile) -> str:
    """Return why a change has no effect, or cannot work, in this arm; empty if it can."""
    top_k = profile.distillation.top_k_logprobs
    if spec.choice() != PAPERS and not (spec.teachers and spec.r_max):
        return f"masks nothing, so {spec.choice()} has no effect: leave it out"
    if spec.learn_from == "responses" and not spec.teacher_responses + spec.student_responses:
        return "has no responses to learn from: ask teacher or student for at least one per question"
    tempered = spec.teacher_temperature != 1
    if tempered and not spec.teachers:
        return "has no teacher: leave out teacher_temperature"
    if tempered and top_k is not None:
        return (
            f"needs the teacher's full distribution, and the {top_k} largest entries are kept: leave out "
            "teacher_temperature, or keep all (top_k_logprobs or, in a run file, teacher_cache.top_k: null)"
        )
    judged = spec.learn_from == "responses" and "accuracy" in spec.rewards
    if spec.label_noise and not (judged or spec.learn_from in LABELS):
        return "learns neither from labels nor from responses judged by them: leave out label_noise"
    if spec.judge != "rule" and not judged and spec.learn_from != "online":
        return "has no accuracy reward: leave out judge"
    if spec.judge == "llm" and profile.judge is None:
        return (
            f"needs a language model, and profile {profile.name} names none: add judge: {{server: ADDRESS, "
            "model: NAME}} there"
        )
    return ""


def split(name: str) -> tuple[str, dict[str, str]]:
    """Return an arm without its values, and the values by family: ``r_max=0.4`` is Masters with one value."""
    parts = name.split("+")
    values = dict(part.split("=", 1) for part in parts if "=" in part)
    return "+".join(part for part in parts if "=" not in part) or "masters", values


def title(name: str) -> str:
    """Return the arm's title for tables and figures."""
    _changes(name)
    return ", ".join(map(_title, name.split("+")))


def _title(part: str) -> str:
    if part in CHANGES:
        return CHANGES[part][0]
    family, _, value = part.partition("=")
    return FAMILIES[family].title(value)


def _changes(name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for part in name.split("+"):
        family, _, value = part.partition("=")
        if part in CHANGES:
            merged |= CHANGES[part][1]
        elif family in FAMILIES and re.fullmatch(FAMILIES[family].values, value):
            merged |= FAMILIES[family].changes(value)
        else:
            known = ", ".join([*CHANGES, *(f"{name}={each.example}" for name, each in FAMILIES.items())])
            within = f" (in {name!r})" if part != name else ""
            raise ValueError(f"no arm {part!r}{within}; there are: {known}; join several with +")
    return merged
