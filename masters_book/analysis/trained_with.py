"""What an arm was trained with, in words for the tables."""

from collections.abc import Iterable

from masters.experiments.arms import RunSpec, arm
from masters.masking.schedule import MaskSchedule
from masters.settings import Profile

PAPERS_STEP = 0.05  # s of Eq. 3


def setting(spec: RunSpec) -> str:
    """Return an arm's policy weight, beta, learning rate and mask stages in words, for the tables.

    Arms of the same name may differ in these between the study and a profile, so tables show them.
    """
    if spec.learn_from == "nothing":
        return "not trained"
    words = []
    if spec.rewards:
        words += [f"weight {spec.policy_weight:g}", f"beta {spec.beta:g}"]
    words.append(f"lr {spec.learning_rate:g} {spec.lr_schedule}")
    if spec.teachers and spec.r_max:
        ratios = MaskSchedule(spec.r_max, spec.r_step).ratios
        words.append(f"{len(ratios)} mask stages from r {ratios[0]:g}")
    elif spec.teachers:
        words.append("no mask")
    return ", ".join([*words, *(["the paper's form"] if is_papers_form(spec) else [])])


def settings_of(profile: Profile, arms: Iterable[str]) -> dict[str, str]:
    """Return the :func:`setting` of each arm that the profile can run."""
    found = {}
    for name in arms:
        try:
            found[name] = setting(arm(name, profile))
        except ValueError:
            continue
    return found


def is_papers_form(spec: RunSpec) -> bool:
    """Return whether a run has the paper's objective and schedule as Eq. 3 and 8 to 11 have them.

    Policy weight 1, beta 0.1, every stage of Eq. 3 in steps of 0.05, a constant learning rate, 4 + 4
    responses, and none of this project's departures. The learning rate's value may differ: the paper's is for
    models of billions of weights.
    """
    paper = RunSpec(
        r_max=spec.r_max,
        r_step=PAPERS_STEP,
        **spec.model_dump(
            include={"student", "teachers", "judge", "questions", "steps", "batch", "learning_rate"}
        ),
    )
    return spec == paper and spec.r_max > 0
