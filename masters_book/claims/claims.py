"""The paper's fifteen claims as data: the arms that test each claim, the metric, and the margin.

Arms, metrics and margins are fixed here, not read off results; ``book/history.md`` lists the changes made
after results were known. :mod:`masters_book.claims.verdicts` has the rule that turns effects into verdicts.
The paper's effects are computed from its tables (:mod:`masters_book.claims.evidence`), so this module
contains no result.

The margin of an accuracy comparison is half of the paper's matched effect, and at least
:data:`SMALLEST_MARGIN` points, which also holds where the paper gives no number. So half of the paper's
effect is enough, except where that half is below the smallest margin.

Departures from the paper: it has no margins; these are ours.
"""

from dataclasses import dataclass
from typing import Literal

from masters_book.claims.comparisons import UNITS, Comparison
from masters_book.claims.evidence import PAIRS, Evidence, components, rewards, source, variants

Kind = Literal["gain", "no worse", "at most", "at least"]
SMALLEST_MARGIN = 0.25  # points


@dataclass(frozen=True)
class Claim:
    """A claim of the paper and how it is tested here.

    Attributes:
        id: C1 to C15.
        statement: the claim, as far as it is tested here.
        name: the same in a few words, for figures.
        comparisons: :attr:`Comparison.role` says which decide and which are only shown.
        where: the notebook that shows the runs.
        limits: what this scale or this design cannot show.
        kind: the form of the rule in :mod:`masters_book.claims.verdicts`.
        margin: the smallest difference that counts, in :attr:`unit`; None: from the paper's effect.
    """

    id: str
    statement: str
    name: str
    comparisons: tuple[Comparison, ...]
    where: str
    limits: str
    kind: Kind = "gain"
    margin: float | None = None

    @property
    def unit(self) -> str:
        """Unit of the claim's effect: ``points``, ``percent`` or ``times``."""
        return UNITS[self.comparisons[0].metric]

    def margin_of(self, comparison: Comparison) -> float:
        """Return the smallest difference that counts in one comparison of this claim, in its unit."""
        if self.margin is not None:
            return self.margin
        return max(SMALLEST_MARGIN, abs(comparison.paper.effect()) / 2 if comparison.paper else 0.0)


_SMALL = "Teacher and student differ only in size and training, and the question sets are small."
_STEPS = "Both arms take the same number of steps, so more responses also mean more computation."
_RATES = (
    "In the study each tuned arm has its own learning rate, chosen from one grid; the settings are listed "
    "beside the arms."
)

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "Distilling from the large teacher on one label per question improves the base student.",
        "One label of the teacher",
        (Comparison("naive", "base", variants("+large_teacher", "base")),),
        "5_offline_rl",
        f"{_SMALL} In a profile's own run the base student is one checkpoint, so only the distilled runs "
        "vary with the seed; in the study each seed has its own base student.",
    ),
    Claim(
        "C2",
        "Masking the teacher progressively beats the unmasked teacher.",
        "Mask",
        (
            Comparison(
                "masked",
                "naive_multi",
                components(
                    {"masking": "mask_progressive", "multi_response": "yes"},
                    {"masking": "naive", "multi_response": "yes"},
                ),
            ),
            Comparison(
                "naive_multi+teacher_temperature=2",
                "naive_multi",
                role="shown",
                note="a softer whole teacher, no mask",
            ),
        ),
        "5_offline_rl",
        "Both arms learn from the same number of responses and differ only in the mask, as in table 5d. The "
        "larger gains of tables 1 and 2 are over distillation on one label. Notebook 2 shows how much a mask "
        "changes the teacher; where it changes little, it can have little effect.",
    ),
    Claim(
        "C3",
        "Reward feedback adds to progressive masking.",
        "Rewards on top of the mask",
        (
            Comparison("masters", "masked", variants("+reward_feedback", "+mask_progressive")),
            Comparison("clipped", "masked", role="shown", note="the ratio clipped"),
            *(
                Comparison(
                    f"masters+learning_rate=3e-04{weight}",
                    "masked",
                    role="shown",
                    note=f"policy weight {weight.partition('=')[2] or 1}, learning rate 3e-4",
                )
                for weight in ("", *(f"+policy_weight={value:g}" for value in (0.3, 0.1, 0.03, 0.01)))
            ),
        ),
        "5_offline_rl",
        "The accuracy reward comes from a rule, not from a language model as judge; responses are a short "
        "sentence that ends in the answer. " + _RATES,
    ),
    Claim(
        "C4",
        "A mid-size teacher before the large one beats the large one alone.",
        "Mid teacher first",
        (
            Comparison(
                "mid_then_large",
                "masters",
                Evidence(
                    "table 2: +reward_feedback minus -mid_teacher",
                    "table2_teacher_scaling",
                    {"variant": "+reward_feedback"},
                    {"variant": "-mid_teacher"},
                ),
            ),
        ),
        "5_offline_rl",
        "Several teachers share the steps of one run; in the paper each has its own run.",
    ),
    Claim(
        "C5",
        "A moderate first mask ratio beats an unmasked teacher when both rewards are on.",
        "Mask under rewards",
        (
            Comparison(
                "masters",
                "naive_rewards",
                components(
                    {"masking": "mask_progressive", "multi_response": "yes", "reward_feedback": "yes"},
                    {"masking": "naive", "multi_response": "yes", "reward_feedback": "yes"},
                ),
            ),
            Comparison(
                "mid_then_large",
                "mid_then_large+r_max=0.0",
                components(
                    {
                        "masking": "mask_progressive",
                        "mid_teacher": "yes",
                        "multi_response": "yes",
                        "reward_feedback": "yes",
                    },
                    {
                        "masking": "naive",
                        "mid_teacher": "yes",
                        "multi_response": "yes",
                        "reward_feedback": "yes",
                    },
                ),
                role="where run",
            ),
        ),
        "2_masking_ablations",
        "Tested at this profile's r_max, fixed in advance, not at the best of a grid. Table 5a seems to show "
        "a larger effect, but its row r_max 0 is the row of table 5d without the mid teacher, and its row "
        "0.2 the row with it. The study also runs the mask with both teachers, where the paper's effect is "
        "largest. The collapse of some students that table 5a reports at 0.5 is not part of the verdict.",
    ),
    Claim(
        "C6",
        "Both rewards together beat either alone.",
        "Both rewards, not one",
        (
            Comparison("masters", "accuracy_only", rewards("acc+distill", "acc")),
            Comparison("masters", "distillation_only", rewards("acc+distill", "distill")),
        ),
        "4_reward_design",
        "The paper's rows also use a mid teacher. Whether a student needs the accuracy reward to surpass its "
        "teacher is not part of the verdict; C13 shows a student taught by a teacher with wrong labels.",
    ),
    Claim(
        "C7",
        "Normalizing the distillation reward within a question's responses matters.",
        "Normalized reward",
        (Comparison("masters", "unnormalised", rewards("acc+distill", "acc+distill_unnormalised")),),
        "4_reward_design",
        "Advantages are standardized within the group in both arms, so this step can change little.",
    ),
    Claim(
        "C8",
        "A language model as judge gives a better accuracy reward than a rule.",
        "Language model as judge",
        (
            Comparison("accuracy_only+judge=llm", "accuracy_only", rewards("acc", "acc_rule_based")),
            Comparison(
                "accuracy_only+judge=embedding", "accuracy_only", role="shown", note="embedding as judge"
            ),
            *(
                Comparison(
                    f"accuracy_only+label_noise={share}",
                    "accuracy_only",
                    role="shown",
                    note=f"the rule with {100 * share:g} % wrong labels",
                )
                for share in (0.05, 0.1, 0.2, 0.4)
            ),
        ),
        "4_reward_design",
        "Needs a server with a language model as judge. The rule that rewards one of the arms also scores "
        "the answers of both, so this design favors the rule and cannot support the claim where the two "
        "judges disagree. The study shows beside it what worse judges cost.",
    ),
    Claim(
        "C9",
        "An equal mix of student and teacher responses beats those of one model alone.",
        "Equal mix of responses",
        (
            Comparison("masters", "source=0:8", source(0, 8)),
            Comparison("masters", "source=8:0", source(8, 0)),
        ),
        "3_response_caching",
        "Uneven mixes are shown in notebook 3 and are not part of the verdict.",
    ),
    Claim(
        "C10",
        "Eight responses per question beat two.",
        "Eight responses, not two",
        (
            Comparison("masters", "responses=2", note="equal steps, not equal computation"),
            Comparison(
                "masters", "responses=2+steps=800", role="shown", note="twice the steps for two responses"
            ),
        ),
        "3_response_caching",
        f"The paper plots this and gives no numbers. {_STEPS} The study also compares with twice the "
        "steps for two responses.",
    ),
    Claim(
        "C11",
        "Several responses per question beat one label.",
        "Responses, not one label",
        (
            Comparison(
                "naive_multi",
                "naive",
                components({"masking": "naive", "multi_response": "yes"}, {"masking": "naive"}),
                note="equal steps, not equal computation",
            ),
            Comparison(
                "naive_multi", "naive+steps=1080", role="shown", note="2.7 times the steps for one label"
            ),
        ),
        "5_offline_rl",
        f"{_STEPS} The study also compares with 2.7 times the steps for one label.",
    ),
    Claim(
        "C12",
        "Masters improves other distillation objectives that it is plugged into.",
        "Other objectives",
        (
            Comparison(
                "masters=skewed_kl",
                "alone=skewed_kl",
                Evidence(
                    "table 5f: DistiLLM with minus without Masters",
                    "table5f_other_methods",
                    {"method": "DistiLLM-7B", "masters": "yes"},
                    {"method": "DistiLLM-7B", "masters": "no"},
                ),
            ),
        ),
        "5_offline_rl",
        "Tested with the skewed KL of DistiLLM, without its schedule; the paper's other three methods are "
        f"not run. {_RATES}",
    ),
    Claim(
        "C13",
        "The distilled student matches or beats a larger model.",
        "Matches a larger model",
        (
            Comparison(
                "masters",
                "large",
                Evidence(
                    "tables 3 and 4: four 7B and 8B students after Masters minus their large teachers",
                    "table3_masters_students",
                    {"model": tuple(f"{name}-Masters" for name in PAIRS)},
                    {"model": tuple(PAIRS.values())},
                    "table4_large_models",
                ),
            ),
            Comparison("masters", "mid"),
            Comparison("masters+student=mid", "large", role="where run"),
            Comparison("teachers=mid", "mid", role="shown", note="taught by the mid teacher alone"),
            Comparison(
                "teachers=teacher1",
                "base+student=teacher1",
                role="shown",
                note="taught by a teacher with a fifth of wrong labels",
            ),
        ),
        "6_benchmark_evaluation",
        "Matching means not worse by more than the margin, which is a tolerance here and does not grow with "
        "the paper's effect.",
        kind="no worse",
        margin=SMALLEST_MARGIN,
    ),
    Claim(
        "C14",
        "Offline training costs a small part, at most a third, of what online reinforcement learning costs.",
        "Offline costs a third at most",
        (
            Comparison(
                "online",
                "own_accuracy",
                Evidence(
                    "section 5: days online over days offline",
                    "section5_days",
                    {"responses": "online"},
                    {"responses": "offline"},
                    ratio=True,
                ),
                metric="cost",
                note="both at this project's rates",
            ),
            Comparison(
                "online",
                "own_accuracy",
                metric="cost as run",
                role="shown",
                note="two programs: TRL trains the online run, one row per response",
            ),
        ),
        "3_response_caching",
        "Needs two replicates of a study. Costs are seconds of one process with one thread; the offline run "
        "is charged for all its responses. The verdict compares equal engines: it charges the online run's "
        "responses, scores and steps at the rates measured in the offline run, because no online loop of "
        "this engine is run. As run, the online side is TRL's trainer, which reads the prompt once per "
        "response; that ratio is shown beside it. The paper's figure is an estimate for many GPUs. The "
        "offline run uses the accuracy reward alone; Masters itself also needs responses and scores of every "
        "masked teacher and costs more (notebook 3).",
        kind="at least",
        margin=3.0,
    ),
    Claim(
        "C15",
        "Answers do not get longer, so inference takes as long as for the base student.",
        "Answers stay short",
        (Comparison("masters", "base", metric="tokens"),),
        "6_benchmark_evaluation",
        "Measured as response length; the times of notebook 6 depend on the machine.",
        kind="at most",
        margin=10.0,
    ),
)

# Whether the method helps at all. The paper has no single table for it; the first page shows these.
HELPS = (
    Comparison("masters", "base"),
    Comparison("naive_multi", "base"),
    Comparison("masters", "naive_multi"),
)


def all_pairs() -> list[tuple[str, Comparison]]:
    """Return the comparisons of all claims with the claim's id, and those of :data:`HELPS` with ``helps``."""
    pairs = [(claim.id, each) for claim in CLAIMS for each in claim.comparisons]
    return [*pairs, *(("helps", each) for each in HELPS)]
