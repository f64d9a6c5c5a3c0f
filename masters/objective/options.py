"""The options of the loss, shared by profiles, arms and :func:`masters.objective.loss.masters_loss`.

The defaults are the paper's objective. To add an option: one field here, one branch in
:mod:`masters.objective.loss`, one test. Every arm and profile then has it.
"""

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["jsd", "forward_kl", "reverse_kl", "generalised_jsd", "skewed_kl", "total_variation"]
Averaging = Literal["response", "token"]
Reward = Literal["accuracy", "distillation"]


class LossOptions(BaseModel):
    """How Eq. 5 and 7 to 11 are combined; :mod:`masters.objective.loss` explains each departure.

    Raises:
        ValueError: an unknown option or value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rewards: tuple[Reward, ...] = Field(
        ("accuracy", "distillation"), description="rewards to sum; empty leaves the divergence alone"
    )
    normalize: bool = Field(
        True, description="normalize the distillation reward per group, Eq. 7; false as in table 5e"
    )
    beta: float = Field(0.1, ge=0, le=1e6, description="weight of the KL to the reference; paper: 0.1")
    policy_weight: float = Field(1.0, gt=0, le=1e6, description="weight of the reward term; paper: 1")
    policy_ratio: Literal["one", "clipped"] = Field(
        "one", description="clipped: importance ratio clipped as in PPO; paper: one"
    )
    clip: float = Field(0.2, ge=0, le=1e6, description="half-width of the clipped ratio's interval around 1")
    advantages: Literal["all", "positive"] = Field("all", description="which advantages count")
    flat: Literal["keep", "skip"] = Field(
        "keep", description="skip: no policy term for groups with equal accuracy rewards"
    )
    distillation_on: Literal["mean", "sum"] = Field(
        "mean", description="Eq. 7 on the mean or the sum of a response's divergence"
    )
    averaging: Averaging = Field("response", description="average over responses, or over all tokens")
    divergence: Kind = Field("jsd", description="divergence of Eq. 5 and 7; paper: jsd")
    mix: float = Field(0.5, ge=0, le=1, description="weight of the teacher where a divergence mixes both")
    teacher_temperature: float = Field(1.0, gt=0, le=1e6, description="above 1 softens the teacher; paper: 1")

    @model_validator(mode="after")
    def _mix_fits(self) -> "LossOptions":
        check_kind(self.divergence, self.mix)
        return self

    def loss_options(self) -> "LossOptions":
        """Return these options alone, without the fields of a subclass."""
        return LossOptions(**{name: getattr(self, name) for name in LossOptions.model_fields})


def check_kind(kind: str, mix: float) -> None:
    """Check a kind of divergence and its mix.

    Raises:
        ValueError: the kind is unknown, or mix is out of range.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"divergence is {kind!r}: choose from {', '.join(get_args(Kind))}")
    if kind == "generalised_jsd" and not 0 < mix < 1:
        raise ValueError(
            f"generalised_jsd needs a mix between 0 and 1, got {mix}; its limits are the two KLs"
        )
    if kind == "skewed_kl" and not 0 <= mix < 1:
        raise ValueError(f"skewed_kl needs a mix from 0 to below 1, got {mix}; at 1 it is zero")
