"""The cost of a run with offline responses, against the cost of a run that generates online (section 5).

Offline responses are paid for once and serve every run that reads them; online, each run generates its own.
With the costs of generation G, judging J, scoring by teacher and reference S, and training T, a run that
shares its responses with R - 1 others costs ``(G + J + S) / R + T`` offline and ``G + J + S + T`` online. The
paper's claim is about the ratio of the two.

Measured here: seconds of one process with one thread. The store has the seconds of generation, the
teacher's log-probabilities have the seconds of their scoring, and a run has the seconds of its training;
judging is timed again. Both sides leave out evaluation and image processing: offline runs share images that
were processed once; TRL processes the images of every response in every step, and that time is known and
subtracted. Only the online run leaves out imports and start-up, which favors it. Its reference counts as
training. Times measured on a busy machine compare only with others measured in the same way.

On paper: operations, 2 N per token that a model of N weights reads or generates and 6 N per token that it
learns from. With Q questions, prompts of P tokens, responses of L tokens, n_S from the student and n_T from
each of M masked teachers (n = n_S + n_T in training), V = P + n L and K passes over the questions::

    offline   generation  2 Q (N_S (P + n_S L) + M N_T (P + n_T L))    once
    online    generation  2 Q (N_S (P + n_S L) +   N_T (P + n_T L)) K  in each run
    both      scoring     2 Q (N_S + N_T) V K
              training    6 Q N_S V K

The model that generated a response also judges it, and reads and generates some tokens for that. As in the
paper, the teacher runs during training, so scores are not shared. Generation is limited by memory bandwidth,
not arithmetic, so a generated token may take longer than its operations suggest; two slowdowns account for
that.

Departures from the paper: it gives two numbers of days, of which the one for online generation is an
estimate, and no breakdown. :class:`PaperSizes` names every assumption that replaces what it does not give.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from pydantic import Field

from masters.experiments.arms import arm
from masters.experiments.curriculum import WantedResponses
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan
from masters.experiments.results import Results
from masters.masking.schedule import MaskSchedule
from masters.responses.manifest import read
from masters.responses.teacher_logprobs import SECONDS
from masters.runtime.parameters import Strict
from masters.settings import Count, Positive
from masters.training.online import MEASURED, TIMED
from masters_book.results.paper import paper_table

# The arm that TRL trains, and the arm whose rates it gets in :func:`with_equal_rates`.
ONLINE, OFFLINE = "online", "own_accuracy"


@dataclass(frozen=True)
class Cost:
    """The cost of a run by step of the method, in one unit: seconds, or operations.

    ``shared`` names the steps that runs on the same responses pay for once.
    """

    generation: float
    judging: float
    scoring: float
    training: float
    shared: tuple[str, ...] = ()

    def total(self, runs: float = 1) -> float:
        """Return the cost per run when ``runs`` share what can be shared; ``math.inf`` leaves it out."""
        return sum(value / (runs if name in self.shared else 1) for name, value in self.parts().items())

    def parts(self) -> dict[str, float]:
        """Return the four values by name."""
        parts = asdict(self)
        del parts["shared"]
        return parts


def cost_ratio(online: Cost, offline: Cost, runs: float = 1) -> float:
    """Return an online run's cost over that of each of ``runs`` offline runs on the same responses."""
    return online.total() / offline.total(runs)


@dataclass(frozen=True)
class Measured:
    """A run as measured here.

    Attributes:
        cost: in seconds of one thread.
        steps: training steps.
        responses: responses generated for the run.
        tokens: tokens of these responses.
        scored: responses that a teacher or the reference read, counted per model and mask ratio.
        accuracy: greedy, after training, in [0, 1].
    """

    cost: Cost
    steps: int
    responses: int
    tokens: int
    scored: int
    accuracy: float

    def at(self, steps: int) -> "Measured":
        """Return an online run of another length at the same cost per step; its accuracy is NaN."""
        factor = steps / self.steps
        longer: dict[str, Any] = {name: factor * value for name, value in self.cost.parts().items()}
        responses, tokens, scored = (round(factor * n) for n in (self.responses, self.tokens, self.scored))
        accuracy = self.accuracy if steps == self.steps else math.nan
        return Measured(replace(self.cost, **longer), steps, responses, tokens, scored, accuracy)


def measured(lab: Lab, name: str, results: Results, seed: int = 0) -> Measured:
    """Return the cost of an arm's run, its responses included.

    An offline run is charged for all responses and scores of its plan, even for those that it did not read.

    Args:
        lab: the lab that made the run.
        name: an online arm, or one that learns from responses.
        results: results that contain the run.
        seed: the run's seed.

    Raises:
        ValueError: there is no such run, or a store has no generation times.
    """
    runs = results.runs.query("arm == @name and seed == @seed")
    if runs.empty:
        raise ValueError(
            f"there is no run of arm {name!r} with seed {seed}: run it before measuring its cost"
        )
    run, spec = runs.iloc[0], arm(name, lab.profile)
    accuracy = float(run["accuracy"])
    if spec.learn_from == "online":
        log = results.log.query("arm == @name and seed == @seed")
        spent = {column: float(log[column].sum()) for column in MEASURED}
        training = spent["seconds"] - sum(spent[column] for column in TIMED)
        cost = Cost(spent["generation_seconds"], spent["judging_seconds"], 0.0, training)
        responses = int(spent["responses"])
        return Measured(cost, spec.steps, responses, int(spent["response_tokens"]), responses, accuracy)
    plan = ResponsePlan.of_arm(lab, name)
    generation, judging, responses, tokens = 0.0, 0.0, 0, 0
    for wanted in plan.responses:
        frame = lab.responses(wanted)
        generation += len(frame) * _seconds_per_response(lab, wanted)
        start = time.perf_counter()
        lab.judge.score_many(list(frame["asked"]), list(frame["label"]), list(frame["text"]))
        judging += time.perf_counter() - start
        responses, tokens = responses + len(frame), tokens + int(frame["tokens"].map(len).sum())
    scoring, scored = 0.0, 0
    if lab.profile.distillation.cache_teacher:  # otherwise scoring is part of the training time
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # scores that were deleted are computed and timed here
        try:
            for reading, _ in plan.logprobs:
                scoring += float((lab.logprobs(reading).folder / SECONDS).read_text())
                scored += reading.responses.n * len(lab.pool)
        finally:
            torch.set_num_threads(threads)
    cost = Cost(generation, judging, scoring, float(run["seconds"]), ("generation", "judging", "scoring"))
    return Measured(cost, spec.steps, responses, tokens, scored, accuracy)


def at_rates_of(online: Measured, offline: Measured) -> Cost:
    """Return the cost of an online run at the rates of an offline run, as if one engine had made both.

    The online run's responses cost the offline run's seconds per response, the reference reads each at its
    seconds per scored response, and steps cost its seconds per step. Generation rates of large batches, such
    as the store's, favor the online run, which answers one batch at a time. The scoring rate does not favor
    it if a teacher larger than the reference contributes.
    """
    cost = offline.cost
    return Cost(
        generation=online.responses * cost.generation / offline.responses,
        judging=online.responses * cost.judging / offline.responses,
        scoring=online.responses * cost.scoring / max(offline.scored, 1),
        training=online.steps * cost.training / offline.steps,
    )


def with_equal_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of costs with ``total_equal``: the total of each run if one engine had made all.

    Args:
        table: one row per run: seed, arm, and the columns of ``costs.csv``
            (:mod:`masters_book.study.tables`).

    Returns:
        The table with the column; for runs of :data:`ONLINE` NaN unless the seed has a run of
        :data:`OFFLINE`.
    """
    rows = {(row["arm"], row["seed"]): row for row in table.to_dict("records")}

    def total(row: dict[Any, Any]) -> float:
        if row["arm"] != ONLINE:
            return float(row["total"])
        offline = rows.get((OFFLINE, row["seed"]))
        return at_rates_of(_measured(row), _measured(offline)).total() if offline else math.nan

    return table.assign(total_equal=[total(row) for row in rows.values()])


def _measured(row: dict[Any, Any]) -> Measured:
    cost = Cost(*(row[name] for name in ("generation", "judging", "scoring", "training")))
    return Measured(cost, *(row[name] for name in ("steps", "responses", "tokens", "scored", "accuracy")))


def _seconds_per_response(lab: Lab, wanted: WantedResponses) -> float:
    """Return the mean over all timed responses of a store, which may include those of other runs."""
    store = lab.store(wanted.model, wanted.ratio, wanted.choice)
    timed = [line for line in read(store.manifest).values() if line.seconds]
    if not timed:
        raise ValueError(f"the responses in {store.folder} have no generation times; delete it and run again")
    return sum(line.seconds for line in timed) / sum(line.rows for line in timed)


def _days(responses: str) -> float:
    table = paper_table("section5_days").set_index("responses")
    return float(table["days"][responses])


class PaperSizes(Strict):
    """The inputs of the calculation on paper, with sources; "assumed" marks what the paper does not give."""

    student: Positive = Field(8e9, description="weights of the student; paper: InternVL3.5-8B")
    teacher: Positive = Field(38e9, description="weights of the teacher; paper: InternVL3.5-38B")
    questions: Positive = Field(1.5e6, description="paper: 1.5 million")
    masked_teachers: Count = Field(
        len(MaskSchedule(0.2, 0.05).ratios), description="paper: r_max 0.2 in steps of 0.05 (Eq. 3)"
    )
    student_responses: Count = Field(4, description="per question; paper: 4")
    teacher_responses: Count = Field(4, description="per question and masked teacher; paper: 4")
    prompt_tokens: Positive = Field(1000, description="per question, image included; assumed")
    response_tokens: Positive = Field(200, description="per response without think-answer format; assumed")
    judge_reads: Positive = Field(
        500, description="tokens per response; paper: the generating model judges twice; number assumed"
    )
    judge_writes: Positive = Field(100, description="tokens per response, explanation and verdict; assumed")
    passes: Positive = Field(1, description="over the questions in training; assumed")
    offline_slowdown: Positive = Field(
        1, description="time per operation of generation over that of training; 1 counts operations alone"
    )
    online_slowdown: Positive = Field(1, description="the same where generation interrupts training")
    offline_days: Positive = Field(default_factory=partial(_days, "offline"), description="paper, section 5")
    online_days: Positive = Field(
        default_factory=partial(_days, "online"),
        description="paper, section 5: its estimate, as a lower bound",
    )

    @property
    def claimed(self) -> float:
        """The paper's ratio of days online to days offline."""
        return self.online_days / self.offline_days


def on_paper(sizes: PaperSizes) -> tuple[Cost, Cost]:
    """Return the operations of one run of the paper's method, offline and online (see the top of the module).

    Generation and judging are multiplied by their slowdowns.
    """
    s = sizes
    read_all = s.prompt_tokens + (s.student_responses + s.teacher_responses) * s.response_tokens
    scoring = 2 * s.questions * (s.student + s.teacher) * read_all * s.passes
    training = 6 * s.questions * s.student * read_all * s.passes

    def cost(student_sets: float, teacher_sets: float, slowdown: float, shared: tuple[str, ...]) -> Cost:
        generation = judging = 0.0
        for weights, responses, sets in (
            (s.student, s.student_responses, student_sets),
            (s.teacher, s.teacher_responses, teacher_sets),
        ):
            operations = 2 * weights * s.questions * sets * slowdown
            generation += operations * (s.prompt_tokens + responses * s.response_tokens)
            judging += operations * responses * (s.judge_reads + s.judge_writes)
        return Cost(generation, judging, scoring, training, shared)

    offline = cost(1, s.masked_teachers, s.offline_slowdown, ("generation", "judging"))
    return offline, cost(s.passes, s.passes, s.online_slowdown, ())


def slowdown_for(ratio: float, sizes: PaperSizes, runs: float = 1) -> float:
    """Return the slowdown of online generation that gives this ratio on paper; negative if none does."""
    offline, online = on_paper(sizes.model_copy(update={"online_slowdown": 1.0}))
    fixed = online.scoring + online.training
    return (ratio * offline.total(runs) - fixed) / (online.generation + online.judging)


def assumptions(sizes: PaperSizes) -> pd.DataFrame:
    """Return every input with its value and source, indexed by ``input``."""
    values = sizes.model_dump()
    rows = [
        {"input": name, "value": values[name], "source": field.description}
        for name, field in PaperSizes.model_fields.items()
    ]
    return pd.DataFrame(rows).set_index("input")
