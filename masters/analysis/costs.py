"""What a run costs when its responses are made beforehand, and when they are made meanwhile (section 5).

The idea: made beforehand, responses are paid for once and serve every run that reads them; made meanwhile,
each run pays for its own. With the parts generation G, judging J, scoring by teacher and reference S and
training T, a run that shares its responses with R - 1 others costs ``(G + J + S) / R + T`` offline and
``G + J + S + T`` online, and the ratio of the two is the claim.

Measured: seconds of one process with one thread. The store says how long responses took to write, the
distributions how long their scoring took, a run how long it trained; judging is timed anew. Left out on both
sides are the evaluation and the pictures: for all offline runs they are processed once, and TRL's time for
them, which processes them for every response of every step, is known and taken off. Importing and starting
are left out of the online run alone, in its favour. Its reference counts as training. Times taken while the
machine had other work compare only with times taken alike.

On paper: operations, 2 N for a token that a model of N weights reads or writes and 6 N for one that it learns
from. With Q questions, prompts of P tokens, responses of L tokens, n_S of the student and n_T of each of M
masked teachers (n = n_S + n_T in training), V = P + n L and K passes over the questions::

    offline   generation  2 Q (N_S (P + n_S L) + M N_T (P + n_T L))    made once
    online    generation  2 Q (N_S (P + n_S L) +   N_T (P + n_T L)) K  made by each run
    both      scoring     2 Q (N_S + N_T) V K
              training    6 Q N_S V K

Each response is judged by its author, who reads and writes some tokens for that. The teacher runs along, as
in the paper, so scores are not shared. A generated token may take longer than its operations say, which are
bound by memory and not by arithmetic: that is what the two slowdowns are for.

Departures from the paper: it gives two numbers of days, the one for online generation an estimate of its
authors, and no account of them. What it does not give is assumed here, each with a name
(:class:`PaperSizes`).
"""

import math
import time
from dataclasses import dataclass, fields, replace
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
from masters.responses.teacher_logprobs import seconds
from masters.runtime.files import paper_table
from masters.settings import Count, Positive, Strict
from masters.training.online import MEASURED, TIMED


@dataclass(frozen=True)
class Cost:
    """What a run takes, by part, in one unit: seconds, or operations.

    Attributes:
        generation: of the responses.
        judging: of the responses.
        scoring: by the teacher and the reference.
        training: of the student.
        shared: the parts that several runs on the same responses pay for once.
    """

    generation: float
    judging: float
    scoring: float
    training: float
    shared: tuple[str, ...] = ()

    def total(self, runs: float = 1) -> float:
        """What each of some runs costs that share what can be shared; ``math.inf`` runs get it for nothing.

        Raises:
            ValueError: fewer than one run.
        """
        if not runs >= 1:
            raise ValueError(f"responses are shared by one run or more, not by {runs}")
        return sum(self.parts()[name] / (runs if name in self.shared else 1) for name in self.parts())

    def times(self, factor: float) -> "Cost":
        """The same for that many times the steps: every part is linear in them."""
        longer: dict[str, Any] = {name: factor * value for name, value in self.parts().items()}
        return replace(self, **longer)

    def parts(self) -> dict[str, float]:
        """The four parts by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "shared"}


def cost_ratio(online: Cost, offline: Cost, runs: float = 1) -> float:
    """How many times more an online run costs than each of some offline runs on the same responses."""
    return online.total() / offline.total(runs)


@dataclass(frozen=True)
class Measured:
    """A run as it was measured here.

    Attributes:
        cost: in seconds of one thread.
        steps: of training.
        responses: that were generated for it.
        tokens: of these responses.
        scored: responses read by a teacher or the reference, once per model and mask ratio.
        accuracy: greedy, after training.
    """

    cost: Cost
    steps: int
    responses: int
    tokens: int
    scored: int
    accuracy: float

    def at(self, steps: int) -> "Measured":
        """An online run of another length, each step as dear as one of this; its accuracy is not known."""
        factor = steps / self.steps
        responses, tokens, scored = (round(factor * n) for n in (self.responses, self.tokens, self.scored))
        accuracy = self.accuracy if steps == self.steps else math.nan
        return Measured(self.cost.times(factor), steps, responses, tokens, scored, accuracy)


def measured(lab: Lab, name: str, results: Results, seed: int = 0) -> Measured:
    """What the run of an arm took, its responses included.

    Offline all that was made beforehand counts in full, whatever part of it the run happened to read.

    Args:
        lab: that made the run.
        name: of the arm: an online one, or one that learns from responses.
        results: with a run of it.
        seed: of the run.

    Raises:
        ValueError: no such run, or a store whose responses were never timed.
    """
    found = results.runs.query("arm == @name and seed == @seed")
    if found.empty:
        raise ValueError(
            f"there is no run of arm {name!r} with seed {seed}: run it before asking what it took"
        )
    row, spec = found.iloc[0], arm(name, lab.profile)
    if spec.learn_from == "online":
        log = results.log.query("arm == @name and seed == @seed")
        spent = {name: float(log[name].sum()) for name in MEASURED}
        rest = spent["seconds"] - sum(spent[name] for name in TIMED)
        cost = Cost(spent["generation_seconds"], spent["judging_seconds"], 0.0, rest)
        made, said = int(spent["responses"]), int(spent["response_tokens"])
        return Measured(cost, spec.steps, made, said, made, float(row["accuracy"]))
    generation, judging, made, said = 0.0, 0.0, 0, 0
    plan = ResponsePlan.of_arm(lab, name)
    for what in plan.responses:
        frame = lab.groups(what.model, what.ratio, what.n, choice=what.choice)
        generation += len(frame) * _seconds_a_response(lab, what)
        lab.judge.forget()
        start = time.perf_counter()
        lab.judge.score_many(list(frame["asked"]), list(frame["label"]), list(frame["text"]))
        judging += time.perf_counter() - start
        made, said = made + len(frame), said + int(frame["tokens"].map(len).sum())
    scoring, scored = 0.0, 0
    if lab.profile.distillation.cache_teacher:  # otherwise the teacher runs along, and training has its time
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # should scores have been cleared away, they are made anew, and here
        try:
            for wanted in plan.scores:
                scoring += seconds(lab.scores(wanted))
                scored += wanted.responses.n * len(lab.pool)
        finally:
            torch.set_num_threads(threads)
    cost = Cost(generation, judging, scoring, float(row["seconds"]), ("generation", "judging", "scoring"))
    return Measured(cost, spec.steps, made, said, scored, float(row["accuracy"]))


def at_rates_of(online: Measured, offline: Measured) -> Cost:
    """Return what an online run would cost with the engine of an offline run.

    The same online run with one engine for both: its responses at the offline run's seconds per response,
    one reading of each by the reference at its seconds per scored response, its steps at its seconds per
    step.
    Rates of large batches, such as the store's, favor the online run, which answers one batch at a time; the
    rate of scoring does not, where a teacher larger than the reference has a part in it.
    """
    cost = offline.cost
    return Cost(
        generation=online.responses * cost.generation / offline.responses,
        judging=online.responses * cost.judging / offline.responses,
        scoring=online.responses * cost.scoring / max(offline.scored, 1),
        training=online.steps * cost.training / offline.steps,
    )


def with_equal_rates(
    table: pd.DataFrame, online: str = "online", offline: str = "own_accuracy"
) -> pd.DataFrame:
    """Return a table of costs with ``total_equal``: the total of each run with one engine for all.

    Args:
        table: one row per run: seed, arm, and the columns of ``costs.csv`` (:mod:`masters.study.tables`).
        online: the arm whose runs another engine made.
        offline: the arm whose rates it gets, of the same seed; NaN where there is none.
    """
    rows = {(row["arm"], row["seed"]): row for row in table.to_dict("records")}

    def total(row: dict[Any, Any]) -> float:
        if row["arm"] != online:
            return float(row["total"])
        other = rows.get((offline, row["seed"]))
        return at_rates_of(_measured(row), _measured(other)).total() if other else math.nan

    return table.assign(total_equal=[total(row) for row in rows.values()])


def _measured(row: dict[Any, Any]) -> Measured:
    cost = Cost(*(row[name] for name in ("generation", "judging", "scoring", "training")))
    return Measured(cost, *(row[name] for name in ("steps", "responses", "tokens", "scored", "accuracy")))


def _seconds_a_response(lab: Lab, what: WantedResponses) -> float:
    """Over all responses of a store that were timed, since others than this run's may be among them."""
    store = lab.store(what.model, what.ratio, what.choice)
    timed = [line for line in read(store.manifest) if line.seconds]
    if not timed:
        raise ValueError(f"nobody timed the responses in {store.folder}; delete it, they are made again")
    return sum(line.seconds for line in timed) / sum(line.rows for line in timed)


def _days(responses: str) -> float:
    table = paper_table("section5_days").set_index("responses")
    return float(table["days"][responses])


class PaperSizes(Strict):
    """The inputs of the reckoning on paper with their sources; "assumed" is what the paper does not give."""

    student: Positive = Field(8e9, description="weights of the student; paper: InternVL3.5-8B")
    teacher: Positive = Field(38e9, description="weights of the teacher; paper: InternVL3.5-38B")
    questions: Positive = Field(1.5e6, description="paper: 1.5 million")
    masked_teachers: Count = Field(
        len(MaskSchedule(0.2, 0.05).ratios), description="paper: r_max 0.2 in steps of 0.05 (Eq. 3)"
    )
    student_responses: Count = Field(4, description="a question; paper: 4")
    teacher_responses: Count = Field(4, description="a question, of each masked teacher; paper: 4")
    prompt_tokens: Positive = Field(1000, description="a question with its picture; assumed")
    response_tokens: Positive = Field(200, description="a response without think-answer format; assumed")
    judge_reads: Positive = Field(
        500, description="tokens a response; paper: its author judges it, asked twice; number assumed"
    )
    judge_writes: Positive = Field(100, description="tokens a response, explanation and verdict; assumed")
    passes: Positive = Field(1, description="over the questions in training; assumed")
    offline_slowdown: Positive = Field(
        1, description="time of an operation of generation, in those of training; 1 counts operations alone"
    )
    online_slowdown: Positive = Field(1, description="the same where generation interrupts training")
    offline_days: Positive = Field(_days("offline"), description="paper, section 5")
    online_days: Positive = Field(
        _days("online"), description="paper, section 5: its estimate, as a lower bound"
    )

    @property
    def claimed(self) -> float:
        """The ratio of the paper."""
        return self.online_days / self.offline_days


def on_paper(sizes: PaperSizes) -> tuple[Cost, Cost]:
    """A run of the paper's method offline and online, in operations (see the top of the module).

    Returns:
        The offline and the online one; generation and judging are multiplied by their slowdowns.
    """
    s = sizes
    own, by_teacher = s.student_responses, s.teacher_responses
    read_all = s.prompt_tokens + (own + by_teacher) * s.response_tokens
    written = {
        "student": 2 * s.student * (s.prompt_tokens + own * s.response_tokens),
        "teacher": 2 * s.teacher * (s.prompt_tokens + by_teacher * s.response_tokens),
    }
    verdict = 2 * (s.judge_reads + s.judge_writes)
    judged = {"student": verdict * s.student * own, "teacher": verdict * s.teacher * by_teacher}
    scoring = 2 * s.questions * (s.student + s.teacher) * read_all * s.passes
    training = 6 * s.questions * s.student * read_all * s.passes

    def cost(once: float, of_teacher: float, slowdown: float, shared: tuple[str, ...]) -> Cost:
        made, marked = (
            s.questions * slowdown * (once * of["student"] + of_teacher * of["teacher"])
            for of in (written, judged)
        )
        return Cost(made, marked, scoring, training, shared)

    offline = cost(1, s.masked_teachers, s.offline_slowdown, ("generation", "judging"))
    return offline, cost(s.passes, s.passes, s.online_slowdown, ())


def slowdown_for(ratio: float, sizes: PaperSizes, runs: float = 1) -> float:
    """The slowdown of online generation at which the ratio on paper has a given value; negative for none."""
    offline, online = on_paper(sizes.model_copy(update={"online_slowdown": 1.0}))
    fixed = online.scoring + online.training
    return (ratio * offline.total(runs) - fixed) / (online.generation + online.judging)


def assumptions(sizes: PaperSizes) -> pd.DataFrame:
    """Every input with its value and source."""
    about = {name: field.description for name, field in PaperSizes.model_fields.items()}
    values = sizes.model_dump()
    rows = [{"input": name, "value": values[name], "source": source} for name, source in about.items()]
    return pd.DataFrame(rows).set_index("input")
