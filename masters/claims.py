"""The paper's fifteen claims as data: which arms test each, by what measure, and what counts as a difference.

One idea: which arms are compared and the smallest difference that counts are fixed here, before a run; the
rule that makes a verdict of them is in :mod:`masters.verdicts`. The paper's own effect is computed from its
tables (:mod:`masters.evidence`); no result is typed in this module.

Departures from the paper: the margins are ours, as it has none.
"""

from dataclasses import dataclass
from typing import Literal

from masters.comparisons import Comparison
from masters.evidence import Evidence, components, rewards, source, variants

Kind = Literal["gain", "no worse", "at most", "at least"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tested here.

    Attributes:
        id: C1 to C15.
        statement: the claim, as far as it is tested here.
        comparisons: all must hold, but those for ``where_run``; the first one has the paper's effect.
        where: the notebook that shows it.
        limits: what this scale or this comparison cannot show.
        kind: which form of the rule applies.
        margin: the smallest difference that counts, in ``unit``.
        unit: points of accuracy, percent of the control, or how many times the control.
    """

    id: str
    statement: str
    comparisons: tuple[Comparison, ...]
    where: str
    limits: str
    kind: Kind = "gain"
    margin: float = 0.5
    unit: Literal["points", "percent", "times"] = "points"


_STUDENTS = ("Qwen2.5-VL-7B-Masters", "Qwen3-VL-8B-Masters", "InternVL3-8B-Masters", "InternVL3.5-8B-Masters")
_TEACHERS = ("Qwen2.5-VL-72B", "Qwen3-VL-32B", "InternVL3-78B", "InternVL3.5-38B")
_TINY = "Teacher and student differ by far less here than models of 8 and 38 billion weights do."

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Distilling from the large teacher on one label a question improves the base student.",
        (Comparison("naive", "base", variants("+large_teacher", "base")),),
        "5_offline_rl",
        f"{_TINY} In a profile's own run the base student is one checkpoint, so that the distilled runs "
        "alone vary by seed; in the studies each seed has one of its own.",
    ),
    Claim(
        "C2",
        "Masking the teacher progressively beats the unmasked teacher.",
        (Comparison("masked", "naive_multi", components(("mask_progressive", "yes"), ("naive", "yes"))),),
        "5_offline_rl",
        "Both arms learn from the same number of responses and differ in the mask alone, as in table 5d. The "
        "larger gains of tables 1 and 2 are over naive distillation on one label.",
    ),
    Claim(
        "C3",
        "Reward feedback adds to progressive masking.",
        (Comparison("masters", "masked", variants("+reward_feedback", "+mask_progressive")),),
        "5_offline_rl",
        "The rewards come from a rule, not from a language model as judge; answers are one to four words.",
    ),
    Claim(
        "C4",
        "A mid-size teacher before the large one beats the large one alone.",
        (
            Comparison(
                "mid_then_large",
                "masters",
                Evidence(
                    "table2_teacher_scaling", {"variant": "+reward_feedback"}, {"variant": "-mid_teacher"}
                ),
            ),
            Comparison(
                "teachers=small,mid,large",
                "mid_then_large",
                Evidence(
                    "table5b_teacher_combinations", {"teachers": "14B+38B+78B"}, {"teachers": "38B+78B"}
                ),
                where_run=True,
            ),
        ),
        "5_offline_rl",
        "Several teachers share the steps of one. Three of them are run in the study only.",
    ),
    Claim(
        "C5",
        "A moderate first mask ratio beats an unmasked teacher when both rewards are on.",
        (Comparison("masters", "naive_rewards", Evidence("table5a_rmax", {"r_max": 0.2}, {"r_max": 0.0})),),
        "2_masking_ablations",
        "Tested at this profile's r_max, fixed beforehand, not at the best of a grid. The collapse the paper "
        "reports at 0.5 is shown in notebook 2 and not part of the verdict.",
    ),
    Claim(
        "C6",
        "Both rewards together beat either alone.",
        (
            Comparison("masters", "accuracy_only", rewards("acc+distill", "acc")),
            Comparison("masters", "distillation_only", rewards("acc+distill", "distill")),
        ),
        "4_reward_design",
        "Whether the accuracy reward is what lets a student pass its teacher is not tested.",
    ),
    Claim(
        "C7",
        "Normalising the distillation reward within a question's responses matters.",
        (Comparison("masters", "unnormalised", rewards("acc+distill", "acc+distill_unnormalised")),),
        "4_reward_design",
        "Advantages are standardised within the group in both arms, which leaves little for this step to do.",
    ),
    Claim(
        "C8",
        "A language model as judge gives a better accuracy reward than a rule.",
        (Comparison("accuracy_only+judge=llm", "accuracy_only", rewards("acc", "acc_rule_based")),),
        "4_reward_design",
        "Needs a server with a language model as judge. With answers of one to four words a rule makes few "
        "errors.",
    ),
    Claim(
        "C9",
        "An equal mix of student and teacher responses beats those of one model alone.",
        (
            Comparison("masters", "source=0:8", source(0, 8)),
            Comparison("masters", "source=8:0", source(8, 0)),
        ),
        "3_response_caching",
        "Uneven mixes are shown in notebook 3 and not part of the verdict.",
    ),
    Claim(
        "C10",
        "Eight responses a question beat two.",
        (Comparison("masters", "responses=2"),),
        "3_response_caching",
        "The paper plots this and gives no numbers. Saturation beyond eight is not tested.",
    ),
    Claim(
        "C11",
        "Several responses a question beat one label.",
        (Comparison("naive_multi", "naive", components(("naive", "yes"), ("naive", "no"))),),
        "5_offline_rl",
        "The labels come in several registers, so one label is already more varied than a single style.",
    ),
    Claim(
        "C12",
        "Masters improves other distillation objectives that it is plugged into.",
        (
            Comparison(
                "masters=skewed_kl",
                "alone=skewed_kl",
                Evidence("table5f_other_methods", {"masters": "yes"}, {"masters": "no"}),
            ),
            Comparison("masters=forward_kl", "alone=forward_kl", where_run=True),
            Comparison("masters=reverse_kl", "alone=reverse_kl", where_run=True),
        ),
        "5_offline_rl",
        "The skewed KL of DistiLLM without its schedule, and in the study two plain divergences; the other "
        "three methods of the paper are not run.",
    ),
    Claim(
        "C13",
        "The distilled student matches or beats a larger model.",
        (
            Comparison(
                "masters",
                "mid",
                Evidence(
                    "table3_masters_students",
                    {"model": _STUDENTS},
                    {"model": _TEACHERS},
                    "table4_large_models",
                ),
            ),
            Comparison("masters+student=mid", "large", where_run=True),
            Comparison("masters", "large", where_run=True),
        ),
        "6_benchmark_evaluation",
        "At mini the mid model has 3 times the student's weights, the large one 6 times them and twice those "
        "of mid, which is the student of one more comparison in the studies. The paper's figure is students "
        "of 7 and 8 billion weights against models of 32 to 78 billion. Matching means not worse by more "
        "than the margin.",
        kind="no worse",
    ),
    Claim(
        "C14",
        "Offline training costs a small part, at most a third, of what online reinforcement learning costs.",
        (
            Comparison(
                "online",
                "own_accuracy",
                Evidence("section5_days", {"responses": "online"}, {"responses": "offline"}, ratio=True),
                metric="cost",
            ),
        ),
        "3_response_caching",
        "Needs two replicates of the study. Seconds of one process; the same student, questions, responses a "
        "question, reward and number of steps, and responses made beforehand serve this one run alone. The "
        "online run is TRL's, which reads the prompt once for each response: part of the ratio is the "
        "engine. The paper's figure is an estimate, for many GPUs.",
        kind="at least",
        margin=3.0,
        unit="times",
    ),
    Claim(
        "C15",
        "Answers do not get longer, so inference takes as long as for the base student.",
        (Comparison("masters", "base", metric="tokens"),),
        "6_benchmark_evaluation",
        "Measured as response length; the times of notebook 6 depend on the machine.",
        kind="at most",
        margin=10.0,
        unit="percent",
    ),
)
