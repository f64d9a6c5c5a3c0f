"""The cost of a run: the arithmetic against counting, and measured costs against the files on disk."""

import matplotlib

matplotlib.use("Agg")

import math
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from drawn import readable, xy
from labs import profile

from masters.experiments.arms import arm
from masters.experiments.curriculum import WantedLogprobs, all_stages, wanted_responses
from masters.experiments.lab import Lab
from masters.experiments.response_plan import ResponsePlan, prepare
from masters.experiments.results import Results, run_arms
from masters.experiments.run import run, run_folder
from masters.runtime.files import cache_dir
from masters_book.analysis.costs import (
    Cost,
    Measured,
    PaperSizes,
    assumptions,
    at_rates_of,
    cost_ratio,
    measured,
    on_paper,
    slowdown_for,
    with_equal_rates,
)
from masters_book.figures.costs import sharing

OFFLINE = Cost(8, 2, 20, 5, ("generation", "judging", "scoring"))
ONLINE = Cost(60, 3, 0, 12)
SMALL = PaperSizes(
    student=3, teacher=7, questions=2, masked_teachers=3, student_responses=2, teacher_responses=1,
    prompt_tokens=5, response_tokens=4, judge_reads=6, judge_writes=1, passes=2,
)  # fmt: skip


# --- arithmetic ---


def test_what_is_shared_is_paid_for_once() -> None:
    assert OFFLINE.total() == 35 and OFFLINE.total(10) == 8 and OFFLINE.total(math.inf) == 5
    assert 10 * OFFLINE.total(10) == (8 + 2 + 20) + 10 * 5
    assert ONLINE.total() == ONLINE.total(10) == 75
    assert cost_ratio(ONLINE, OFFLINE) == 75 / 35 and cost_ratio(ONLINE, OFFLINE, math.inf) == 15
    run = Measured(OFFLINE, steps=10, responses=40, tokens=200, scored=80, accuracy=0.5)
    assert run.at(30).cost.total(2) == pytest.approx(3 * OFFLINE.total(2))


def test_equal_rates_are_those_of_the_offline_run() -> None:
    """The online run has twice the responses and half the steps."""
    offline = Measured(OFFLINE, steps=10, responses=40, tokens=200, scored=80, accuracy=0.5)
    online = Measured(ONLINE, steps=5, responses=80, tokens=400, scored=80, accuracy=0.5)
    equal = at_rates_of(online, offline)
    assert equal == Cost(generation=2 * 8, judging=2 * 2, scoring=80 * 20 / 80, training=5 / 2)
    alone = at_rates_of(online, Measured(OFFLINE, 10, 40, 200, 0, 0.5))
    assert alone.scoring > 0 and alone.generation == 16
    rows = [
        {"arm": name, "seed": seed, **run.cost.parts(), "total": run.cost.total()}
        | {field: getattr(run, field) for field in ("steps", "responses", "tokens", "scored", "accuracy")}
        for name, run, seeds in (("online", online, (0, 1)), ("own_accuracy", offline, (0,)))
        for seed in seeds
    ]
    table = with_equal_rates(pd.DataFrame(rows)).set_index(["arm", "seed"])["total_equal"]
    assert table["online", 0] == equal.total() and table["own_accuracy", 0] == OFFLINE.total()
    assert math.isnan(table["online", 1]), "no offline run of that seed"


def test_operations_on_paper_are_those_of_counting_every_token() -> None:
    s = SMALL
    counted = {"offline": dict.fromkeys(OFFLINE.parts(), 0.0), "online": dict.fromkeys(OFFLINE.parts(), 0.0)}

    def answer(where: str, weights: float, responses: int) -> None:
        parts = counted[where]
        parts["generation"] += sum(2 * weights for _ in range(int(s.prompt_tokens)))
        for _ in range(responses):
            parts["generation"] += sum(2 * weights for _ in range(int(s.response_tokens)))
            parts["judging"] += sum(2 * weights for _ in range(int(s.judge_reads + s.judge_writes)))

    for _ in range(int(s.questions)):
        answer("offline", s.student, s.student_responses)
        for _ in range(s.masked_teachers):
            answer("offline", s.teacher, s.teacher_responses)
        for _ in range(int(s.passes)):
            answer("online", s.student, s.student_responses)
            answer("online", s.teacher, s.teacher_responses)
            read = int(s.prompt_tokens + (s.student_responses + s.teacher_responses) * s.response_tokens)
            for parts in counted.values():
                for _ in range(read):
                    parts["scoring"] += 2 * s.teacher + 2 * s.student
                    parts["training"] += 6 * s.student
    offline, online = on_paper(s)
    assert offline.parts() == pytest.approx(counted["offline"])
    assert online.parts() == pytest.approx(counted["online"])
    assert offline.shared == ("generation", "judging") and online.shared == ()


def test_slowdowns_lengthen_generation_and_judging_alone() -> None:
    plain, slow = on_paper(SMALL), on_paper(SMALL.model_copy(update={"offline_slowdown": 2.0}))
    assert slow[1] == plain[1]
    assert slow[0].generation == 2 * plain[0].generation and slow[0].judging == 2 * plain[0].judging
    assert slow[0].scoring == plain[0].scoring and slow[0].training == plain[0].training


@pytest.mark.parametrize("runs", [1, 10, math.inf])
@pytest.mark.parametrize("sizes", [SMALL, PaperSizes(), PaperSizes(online_slowdown=7)])
def test_the_slowdown_for_a_ratio_gives_that_ratio(sizes: PaperSizes, runs: float) -> None:
    needed = slowdown_for(15, sizes, runs)
    offline, online = on_paper(sizes.model_copy(update={"online_slowdown": needed}))
    assert cost_ratio(online, offline, runs) == pytest.approx(15)


def test_every_input_has_a_source_and_the_papers_ratio_is_computed() -> None:
    table = assumptions(PaperSizes())
    assert set(table.index) == set(PaperSizes.model_fields)
    assert table["source"].str.contains("paper|assumed|counts operations|interrupts training").all()
    assert table["value"]["masked_teachers"] == 5
    assert PaperSizes(offline_days=4, online_days=10).claimed == 2.5


# --- measured ---


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTERS_DATA", str(tmp_path_factory.mktemp("costs")))
        yield Lab(profile())
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(lab: Lab) -> Results:
    return run_arms(lab, ["online+steps=2", "own_accuracy", "masters"])


def test_an_online_run_stores_no_responses(lab: Lab, results: Results) -> None:
    def stores() -> list[Path]:
        return sorted(
            path for kind in ("responses", "distributions") for path in (cache_dir() / kind).iterdir()
        )

    before = stores()
    prepare(lab, ResponsePlan.of([arm("online", lab.profile), arm("base", lab.profile)], lab.pool))
    run(lab, arm("online+steps=1", lab.profile), 0)
    assert stores() == before


def test_an_online_run_has_the_results_of_any_run(results: Results, lab: Lab) -> None:
    row = results.runs.set_index("arm").loc["online+steps=2"]
    assert 0 <= row["accuracy"] <= 1 and row["tokens"] >= 1 and row["seconds"] > 0 and row["kl"] >= 0
    assert (row["teachers"], row["rewards"], row["steps"]) == ("", "accuracy", 2)
    of_arm = results.predictions[results.predictions["arm"] == "online+steps=2"]
    assert len(of_arm) == 2 * len(lab.questions("test"))
    assert (run_folder(lab, arm("online+steps=2", lab.profile), 0) / "model").is_dir()


def test_an_online_run_costs_what_its_log_says(lab: Lab, results: Results) -> None:
    run = measured(lab, "online+steps=2", results)
    log = results.log[results.log["arm"] == "online+steps=2"]
    counted = log["seconds"].sum() - log["picture_seconds"].sum()
    assert run.cost.total() == pytest.approx(counted) and run.cost.scoring == 0
    assert min(run.cost.generation, run.cost.judging, run.cost.training) > 0 and run.cost.shared == ()
    assert run.cost.total() <= results.runs.set_index("arm").loc["online+steps=2", "seconds"]
    assert (run.steps, run.responses) == (2, 2 * 2 * 8)
    longer = run.at(6)
    assert longer.cost.total() == pytest.approx(3 * run.cost.total()) and math.isnan(longer.accuracy)
    assert (longer.steps, longer.responses, longer.tokens) == (6, 3 * run.responses, 3 * run.tokens)
    assert run.scored == run.responses, "by the reference"


@pytest.mark.parametrize("name", ["own_accuracy", "masters"])
def test_an_offline_run_costs_what_its_stores_say(name: str, lab: Lab, results: Results) -> None:
    run, spec = measured(lab, name, results), arm(name, lab.profile)
    generation, scoring, responses, tokens, scored, readings = 0.0, 0.0, 0, 0, set(), set()
    read = {wanted for stage in all_stages(spec) for wanted in wanted_responses(spec, stage)}
    for wanted in read:
        status = lab.store(wanted.model, wanted.ratio).status(["0" * 16], 1)  # one more response would take
        assert status.missing_seconds is not None
        frame = lab.responses(wanted)
        responses, tokens = responses + len(frame), tokens + sum(map(len, frame["tokens"]))
        generation += status.missing_seconds * len(frame)
    for stage in all_stages(spec):
        for wanted in wanted_responses(spec, stage):
            for scorer, ratio in ((spec.teachers[0], stage[1]), ("student", 0.0)):
                reading = WantedLogprobs(scorer, wanted, ratio)
                scored.add(lab.logprobs(reading).folder)
                readings.add(reading)
    for folder in scored:
        scoring += float((folder / "seconds.txt").read_text())
    assert run.cost.generation == pytest.approx(generation) and run.cost.scoring == pytest.approx(scoring)
    assert (run.responses, run.tokens, run.steps) == (responses, tokens, 6)
    assert run.scored == sum(reading.responses.n for reading in readings) * len(lab.pool)
    assert run.cost.training == results.runs.set_index("arm").loc[name, "seconds"]
    assert 0 < run.cost.judging < 5 and run.cost.shared == ("generation", "judging", "scoring")


def test_scores_of_a_running_teacher_cost_nothing_extra(results: Results, lab: Lab) -> None:
    along = Lab(profile(cache_teacher=False))
    assert measured(along, "masters", results).cost.scoring == 0


def test_missing_runs_and_times_are_reported(lab: Lab, results: Results) -> None:
    with pytest.raises(ValueError, match="no run of arm 'masked' with seed 0"):
        measured(lab, "masked", results)
    with pytest.raises(ValueError, match="no run of arm 'masters' with seed 7"):
        measured(lab, "masters", results, seed=7)
    manifest = lab.store("student", 0.0).manifest  # shards without a manifest are listed again, without times
    timed = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(ValueError, match="have no generation times; delete it and run again"):
        measured(lab, "masters", results)
    manifest.write_bytes(timed)


# --- figure ---


def test_the_figure_shows_the_ratio_for_every_number_of_runs() -> None:
    drawn = sharing(ONLINE, {"offline": OFFLINE, "free": ONLINE}, [1, 2, 10], claimed=15)
    (axis,) = drawn.axes
    x, y = xy(axis, 0)
    assert list(x) == [1, 2, 10] and list(y) == [75 / 35, 75 / 20, 75 / 8]
    heights = [float(line.get_ydata()[0]) for line in axis.lines]  # type: ignore[index]
    assert heights == pytest.approx([75 / 35, 15, 1, 1, 15, 1])
    readable(drawn)
    assert plt.get_fignums() == []
