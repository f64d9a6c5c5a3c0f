"""The answer with which each notebook opens: a box with its findings, in sentences made from its tables.

A sentence says that something helps or harms only if the interval of the difference excludes zero.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup

from masters_book.claims.claims import CLAIMS
from masters_book.claims.statistics import Interval
from masters_book.claims.table import signed
from masters_book.figures.names import title_of
from masters_book.pages.rendering import fill

JUDGING = "7_claims"  # the notebook of all claims
RUN = "<!-- run -->"  # where the book puts minutes and downloads
Found = Interval | None  # None: no seed has both arms
Findings = list[tuple[str, str]]  # a question or topic, and what was found


def answer_box(notebook: str, findings: Sequence[tuple[str, str]]) -> str:
    """Return the box as HTML; the book adds minutes and downloads to it.

    Args:
        notebook: its name; the box links the claims that its runs test.
        findings: pairs of a topic, which may be empty, and sentences.
    """
    claims = [claim for claim in CLAIMS if notebook in (claim.where, JUDGING)]
    return fill("answer.html", findings=findings, claims=claims, run=Markup(RUN))


def points(found: Found) -> str:
    """Return a difference in points with its interval."""
    if found is None:
        return "not measured"
    bounds = f"{signed(found.low)} to {signed(found.high)}"
    return f"{signed(found.estimate)} points (95 % interval {bounds})"


def established(effects: Mapping[str, Found]) -> str:
    """Return how many of some differences have an interval without zero."""
    found = [each for each in effects.values() if each is not None]
    if not found:
        return "No difference was measured."
    above, below = sum(each.low > 0 for each in found), sum(each.high < 0 for each in found)
    if len(found) == 1:
        where = "lies above zero" if above else "lies below zero" if below else "includes zero"
        return f"The interval {where}."
    return f"Of {len(found)} intervals {above} lie above zero and {below} below it."


def of_models(gap: Found, accuracy: Mapping[str, float], blind: float, times: float) -> Findings:
    """Return how far the large teacher is ahead of the student.

    Args:
        gap: large teacher minus student.
        accuracy: percent of ``base`` and of ``large``.
        blind: accuracy of the blind baseline, in percent.
        times: weights of the large teacher over those of the student.
    """
    ahead = gap is not None and gap.low > 0
    end = "So there is something to distill." if ahead else "So these models have no established gap."
    return [
        (
            "Yes." if ahead else "Not established.",
            f"The large teacher, with {times:.1f} times the student's weights, answers "
            f"{accuracy['large']:.1f} % of the test questions and the student {accuracy['base']:.1f} %: a "
            f"difference of {points(gap)}. {end} A lookup that sees no image answers {blind:.1f} %.",
        )
    ]


def of_masks(dose: pd.DataFrame, r_max: float, effects: Mapping[str, Found]) -> Findings:
    """Return whether the mask moves the teachers to the student, and whether it helps the student.

    Args:
        dose: result of :func:`masters_book.analysis.masked_teachers.mask_dose`.
        r_max: first mask ratio of training.
        effects: each r_max minus no mask, by title.
    """
    ratios = [ratio for ratio in dose["ratio"] if ratio]
    near = min(ratios, key=lambda ratio: abs(ratio - r_max), default=0.0)
    masked, whole = (dose[dose["ratio"] == ratio].set_index("model") for ratio in (near, 0.0))
    before = whole["to_student"].to_dict()
    change = (100 * (masked["to_student"] / whole["to_student"] - 1)).to_dict()
    moved = "; ".join(
        f"the {model} teacher moves by {nats:.2g} nats per token, and its divergence to the student, "
        f"{before[model]:.2g} nats, changes by {change[model]:+.2g} %"
        for model, nats in masked["from_whole"].items()
    )
    closer = int((masked["to_student"] < whole.loc[masked.index, "to_student"]).sum())
    return [
        (
            "Is a masked teacher closer to the student?",
            f"{closer} of {len(masked)} teachers: at mask ratio {near:g} {moved}.",
        ),
        ("Does the student gain?", f"{_differences(effects, 'no mask')} {established(effects)}"),
    ]


def of_number(effect: Found, most: int, least: int) -> str:
    """Return what more responses per question change, at equal steps."""
    return (
        f"{most} instead of {least} responses per question change the greedy accuracy by {points(effect)}, "
        "at equal steps, not at equal computation."
    )


def of_sources(effects: Mapping[str, Found]) -> str:
    """Return what other mixes of student and teacher responses change, by title."""
    if not effects:
        return "No other mix than four responses of each model was run."
    return f"{_differences(effects, 'four responses of each model')} {established(effects)}"


def of_cache(responses: int, same: bool, size: float, damaged: int) -> str:
    """Return whether stored responses are reused.

    Args:
        responses: how many are stored.
        same: whether a second request returned the same.
        size: bytes per response.
        damaged: damaged files.
    """
    again = "the same responses" if same else "different responses"
    return (
        f"{responses:,} responses are stored with {size:.0f} bytes each; a second request returned {again}, "
        f"and {damaged} files are damaged."
    )


def of_costs(at_once: float, shared: float, masters: float, claimed: float) -> str:
    """Return the costs of online over offline generation.

    Args:
        at_once: ratio, at equal rates, to an offline run with the same reward that pays for its responses
            alone.
        shared: the same if the responses exist already.
        masters: ratio to Masters, which pays for its responses alone.
        claimed: the paper's estimate.
    """
    return (
        f"An online run costs {at_once:.1f} times an offline run with the same reward that pays for its "
        f"responses alone, and {shared:.1f} times one whose responses exist; {masters:.1f} times a run of "
        f"Masters. The paper estimates {claimed:.0f}. Below 1 the offline run costs more."
    )


def of_rewards(correlation: Mapping[str, float], effects: Mapping[str, Found]) -> Findings:
    """Return what the distillation reward correlates with, and what each reward adds.

    Args:
        correlation: rank correlation of the distillation reward with ``correct`` and ``length``.
        effects: Masters minus other arms, by title.
    """
    numbers = [
        f"{correlation[name]:.2f} with {words}"
        for name, words in (("correct", "correctness"), ("length", "length"))
        if math.isfinite(correlation[name])
    ]
    favors = "a rank correlation of " + " and of ".join(numbers) if numbers else "no measured correlation"
    return [
        ("What does the distillation reward favor?", f"It has {favors}."),
        (
            "Do the rewards help?",
            f"Masters changes the greedy accuracy by {_over(effects)}. {established(effects)}",
        ),
    ]


def of_components(whole: Found, steps: Mapping[tuple[str, str], Found]) -> Findings:
    """Return what the complete method does, and what each step towards it adds.

    Args:
        whole: Masters minus the student before training.
        steps: difference of two arms, of which the second is a step closer, by their names.
    """
    effects = {f"{title_of(first)} minus {title_of(second)}": each for (first, second), each in steps.items()}
    words = "; ".join(f"{name}: {points(each)}" for name, each in effects.items())
    return [
        (
            "Does the complete method help?",
            f"Training with Masters changes the student's greedy accuracy by {points(whole)}. "
            f"{established({'': whole})}",
        ),
        ("What does each step add?", f"{words[:1].upper()}{words[1:]}. {established(effects)}"),
    ]


def of_sizes(
    accuracy: Mapping[str, float], best: str, effects: Mapping[str, Found], times: float
) -> Findings:
    """Return whether a distilled student matches larger models, and what its answers cost.

    Args:
        accuracy: percent by arm.
        best: the best distilled arm.
        effects: that arm minus ``base`` and minus each teacher, by title.
        times: time per answer of the student trained by Masters over that of the base student.
    """
    words = "; ".join(f"against the {name} {points(each)}" for name, each in effects.items())
    return [
        (
            "Does a distilled student match larger models?",
            f"The best one, {title_of(best)}, answers {accuracy[best]:.1f} % of the test questions: {words}. "
            "It was chosen on these questions, which favors it.",
        ),
        (
            "Does an answer take longer?",
            f"An answer of Masters takes {times:.2f} times as long as the base student's.",
        ),
    ]


def _over(effects: Mapping[str, Found]) -> str:
    return "; ".join(f"{points(each)} over {name}" for name, each in effects.items()) or "an unknown amount"


def _differences(effects: Mapping[str, Found], control: str) -> str:
    words = "; ".join(f"{name}: {points(each)}" for name, each in effects.items())
    return f"Greedy accuracy minus that of {control}. {words[:1].upper()}{words[1:]}."
