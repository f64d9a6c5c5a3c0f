"""The pictures: what is drawn is what the tables say, in units, and large enough to read."""

import re

import matplotlib

matplotlib.use("Agg")

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from drawn import readable, xy
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy import stats

from masters.masking.schedule import MaskSchedule
from masters_book.claims.claims import CLAIMS, all_pairs
from masters_book.claims.comparisons import COLUMNS, measure
from masters_book.claims.verdicts import judge_claims
from masters_book.figures import claims, plots
from masters_book.figures.style import BAND, COLORS, INK, QUIET, WIDTH, in_dark, svg, svg_in_dark
from masters_book.results.paper import paper_table


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    assert plt.get_fignums() == []


def runs() -> pd.DataFrame:
    values = {"base": 0.5, "mid": 0.7, "large": 0.9, "masters": 0.6, "masked": 0.55}
    rows = [
        {"arm": arm, "seed": seed, "accuracy": value + 0.01 * seed, "r_max": 0.1 * index, "tokens": 4.0}
        for index, (arm, value) in enumerate(values.items())
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


LADDER = pd.DataFrame({"model": ["student", "mid", "large"], "parameters": [50_000, 200_000, 800_000]})


def test_summary_is_mean_and_t_interval() -> None:
    row = plots.summary(runs(), order=["masters"]).iloc[0]
    half = stats.t.ppf(0.975, 2) * stats.sem([60.0, 61.0, 62.0])
    assert row["estimate"] == pytest.approx(61.0)
    assert (row["low"], row["high"]) == pytest.approx((61.0 - half, 61.0 + half))
    single = plots.summary(runs().query("seed == 0"), order=["mid"]).iloc[0]
    assert single["estimate"] == pytest.approx(70.0) and np.isnan(single["low"])
    with pytest.raises(ValueError, match="no run with arm 'sft'"):
        plots.summary(runs(), order=["sft"])


def test_samples_show_pictures_questions_and_answers() -> None:
    rows = [
        {
            "image": np.full((64, 64, 3), 40 * n, dtype=np.uint8),
            "question": "what is it ? " * 4,
            "answer": f"a{n}",
        }
        for n in range(5)
    ]
    figure = plots.samples(rows)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [f"a{n}" for n in range(5)]
    assert " ".join(shown[0].get_xlabel().split()) == ("what is it ? " * 4).strip()
    assert int(np.asarray(shown[2].images[0].get_array()).max()) == 80
    readable(figure)


def test_ladder_and_size() -> None:
    figure = plots.size_accuracy(LADDER, runs(), blind=20.0)
    x, y = xy(figure.axes[0])
    assert x.tolist() == [50_000, 200_000, 800_000] and y == pytest.approx([51, 71, 91])
    words = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert sorted(words) == ["blind: the question's text alone", "models of the ladder"]
    assert "95 % interval over seeds" in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_xscale() == "log"
    readable(figure)
    figure = plots.size_accuracy(LADDER, runs(), ["masters", "masked"])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]  # type: ignore[union-attr]
    assert texts == ["models of the ladder", "Masters", "mask-progressive"]
    points = [xy(figure.axes[0], index) for index in range(len(figure.axes[0].lines))]
    assert any(px.tolist() == [50_000] and py == pytest.approx([61]) for px, py in points)
    readable(figure)


def test_training_curves_average_the_seeds() -> None:
    log = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "step": step, "loss": step + seed, "kl": np.nan if step == 1 else 0.1}
            for arm in ("masters", "masked")
            for seed in (0, 2)
            for step in (0, 1, 2)
        ]
    )
    axis = plots.training_curves(log).axes[0]
    assert len(axis.lines) == 2 and xy(axis)[1].tolist() == [1, 2, 3]
    assert len(axis.collections) == 2 and axis.get_ylabel() == "loss (nats per token)"
    figure = plots.training_curves(log, y="kl")
    assert xy(figure.axes[0])[0].tolist() == [0, 2]
    readable(figure)
    ladder_log = pd.DataFrame({"model": "student", "step": [0, 5], "loss": [2.0, 1.0]})
    assert xy(plots.training_curves(ladder_log, hue="model").axes[0])[1].tolist() == [2, 1]


def test_masked_accuracy_weighs_tasks_by_questions() -> None:
    rows = [("large", 0.0, "a", 1.0, 100), ("large", 0.0, "b", 0.5, 300), ("large", 0.4, "a", 0.0, 400)]
    frame = pd.DataFrame(rows, columns=["model", "ratio", "task", "accuracy", "questions"])
    figure = plots.masked_accuracy(frame)
    x, y = xy(figure.axes[0])
    assert x.tolist() == [0.0, 0.4] and y == pytest.approx([62.5, 0.0])
    readable(figure)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("questions", [11, 22, 27, 100, 500, 4000])
def test_a_share_of_nothing_or_all_has_an_interval(share: float, questions: int) -> None:
    """Rounding may put its bound on the other side of the share."""
    frame = pd.DataFrame([("large", 0.0, "a", share, questions)])
    frame.columns = ["model", "ratio", "task", "accuracy", "questions"]
    assert plots.masked_accuracy(frame).alt


def test_schedule_is_the_staircase_that_trains() -> None:
    figure = plots.schedule(0.2, 0.05, 50)
    x, y = xy(figure.axes[0])
    assert y[:-1].tolist() == [MaskSchedule(0.2, 0.05).ratio_at(i, 50) for i in range(50)]
    assert x[-1] == 50 and y[0] == 0.2 and y[-1] == 0.0
    readable(figure)


def test_effects_put_the_paper_beside() -> None:
    frame = plots.summary(runs(), order=["base", "masked", "masters"])
    figure = plots.effects(frame)
    assert len(figure.axes) == 1
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["base student", "mask-progressive", "Masters"]
    figure = plots.effects(frame.assign(paper=[75.4, np.nan, 80.0]))
    ours, paper = figure.axes
    assert [xy(ours, index)[0][0] for index in (1, 3, 5)] == pytest.approx([51, 56, 61])
    assert xy(ours, 0)[0] == pytest.approx(frame.loc[0, ["low", "high"]].to_numpy(dtype=float))
    assert np.array_equal(xy(paper)[0], [75.4, np.nan, 80.0], equal_nan=True)
    readable(figure)


def test_grid_has_a_panel_for_the_paper() -> None:
    table = paper_table("table5a_rmax")
    figure = plots.grid(runs(), "r_max", table)
    ours, paper = figure.axes
    assert xy(ours)[1] == pytest.approx([51, 71, 91, 61, 56])
    assert len(paper.lines) == 4 and xy(paper)[1].tolist() == table["Qwen2.5-VL-72B"].tolist()
    readable(figure)
    assert len(plots.grid(runs(), "r_max").axes) == 1


def test_reward_distribution_has_both_rewards_by_source() -> None:
    frame = pd.DataFrame(
        {
            "correct": [1, 0, 1, 0, 0],
            "reward_distillation": [1.0, 0.5, 0.0, 0.02, 0.04],
            "source": ["teacher", "teacher", "student", "student", "student"],
        }
    )
    figure = plots.reward_distribution(frame)
    bars = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    assert [bar.get_height() for bar in bars] == pytest.approx([50.0, 100 / 3])
    teacher, student = (np.asarray(patch.get_path().vertices) for patch in figure.axes[1].patches)
    assert teacher[:, 1].max() == pytest.approx(50) and student[:, 1].max() == pytest.approx(100)
    assert student[student[:, 1] > 0, 0].max() == pytest.approx(0.1)
    readable(figure)


@pytest.mark.parametrize("narrow", [False, True])
def test_claims_have_ours_and_the_papers(narrow: bool) -> None:
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "task": "t",
            "question": q,
            "mode": "greedy",
            "correct": q < n,
            "tokens": 3.8 + 0.2 * (arm == "base"),
        }
        for arm, n in (("masters", 30), ("masked", 20), ("base", 10))
        for seed in range(2)
        for q in range(40)
    ]
    seconds = [("online", 0, 60), ("online", 1, 64), ("own_accuracy", 0, 10), ("own_accuracy", 1, 10)]
    costs = pd.DataFrame(seconds, columns=["arm", "seed", "total"]).assign(total_equal=lambda t: t["total"])
    frame = judge_claims(measure(pd.DataFrame(rows), all_pairs(), 50, costs=costs))
    figure = claims.claims_figure(frame, narrow)
    points, times, percent = figure.axes
    words = [text.get_text() for text in points.texts]
    assert len([word for word in words if word.startswith("C")]) == 13
    third = words.index("C3  supported")
    assert words[third + 1].startswith("+25.0 (") and words[third + 1].endswith(")  paper +2.0")
    assert words[third + 2].replace("\n", " ") == frame.loc[2, "statement"]
    eighth = words.index("C8  not tested")
    assert words[eighth + 1] == "paper +7.3"
    assert percent.texts[0].get_text() == "C15  supported" and percent.get_xlabel() == "effect (percent)"
    assert times.texts[0].get_text().startswith("C14") and times.get_xlim()[0] == 0
    assert marked(times, "o", 6.2) and marked(times, "D", 15.0)
    # The effect of C3 and the paper's, one above the other, in the colour of the verdict.
    (here,) = marked(points, "o", 25.0)
    assert here.get_color() == claims.VERDICT_COLORS["supported"]
    (there,) = marked(points, "D", frame.loc[2, "paper_effect"])
    assert here.get_ydata() == there.get_ydata()
    readable(figure, claims.NARROW if narrow else WIDTH)
    apart(figure)


@pytest.mark.parametrize("narrow", [False, True])
def test_overview_has_a_line_per_claim_in_multiples_of_its_margin(narrow: bool) -> None:
    effects = [
        ["C3", "masters", "masked", "accuracy", -0.5, -1.0, 0.0, 9.0, 10, -0.1, -0.2, 0.0, 30.0],
        ["C14", "online", "own_accuracy", "cost", 2.0, 1.5, 2.5, 4.0, 5, *[np.nan] * 4],
    ]
    frame = judge_claims(pd.DataFrame(effects, columns=COLUMNS))
    figure = claims.overview(frame, narrow)
    (axis,) = figure.axes
    words = [text.get_text() for text in axis.texts]
    for row, claim in zip(frame.to_dict("records"), CLAIMS, strict=True):
        at = words.index(row["id"])
        assert words[at : at + 3] == [row["id"], claim.name, row["verdict"]]
    assert words[words.index("C3") + 3] == "-0.5 pt" and words[words.index("C14") + 3] == "2.00 x"
    assert marked(axis, "o", -0.5 / frame.loc[2, "margin"])
    assert marked(axis, "o", 0.5), "half way from no effect, a ratio of 1, to the margin of 3"
    assert "C14 not supported: 2.00 times" in figure.alt
    readable(figure, claims.NARROW if narrow else claims.FLAT)
    apart(figure)


def test_a_large_effect_is_an_arrow_and_the_others_stay_apart() -> None:
    frame = judge_claims(pd.DataFrame(columns=COLUMNS)).head(12)
    small = {
        "effect": 0.2,
        "effect_low": -0.3,
        "effect_high": 0.7,
        "paper_effect": 0.4,
        "verdict": "undecided",
    }
    large = {"effect": -40.0, "effect_low": -44.0, "effect_high": -36.0, "verdict": "reversed"}
    frame = frame.assign(**small)
    frame.loc[3, list(large)] = list(large.values())
    figure = claims.claims_figure(frame)
    (axis,) = figure.axes
    assert axis.get_xlim()[1] < 3
    assert len(marked(axis, "<", axis.get_xlim()[0])) == 2, "both ends of its interval"
    assert [text.get_text() for text in figure.legends[0].texts][-1] == "beyond the axis"
    readable(figure)


def apart(figure: Figure) -> None:
    """What is written on the axes stays in the picture, and no text lies on another."""
    boxes = [text.get_window_extent() for axis in figure.axes for text in axis.texts if text.get_text()]
    assert boxes
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:index])


def marked(axis: Axes, marker: str, x: float) -> list[Line2D]:
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return [line for line in lines if np.asarray(line.get_xdata()).tolist() == pytest.approx([x])]


def test_latency_in_milliseconds() -> None:
    frame = pd.DataFrame(
        {"arm": ["base", "large"], "seconds_per_question": [0.01, 0.05], "tokens": [4.0, 5.5]}
    )
    figure = plots.latency(frame)
    assert [patch.get_width() for patch in figure.axes[0].patches] == pytest.approx([10, 50])  # type: ignore[attr-defined]
    assert [text.get_text() for text in figure.axes[0].texts] == ["4.0 tokens", "5.5 tokens"]
    readable(figure)


def test_growth_shows_each_axis_and_the_power_of_each_way() -> None:
    rows = [
        {"axis": axis, "value": value, "way": way, "seconds": 0.01 * value**power}
        for axis in ("prompt tokens", "responses")
        for way, power in (("packed", 0.5), ("rows", 1.0))
        for value in (1, 2, 4)
    ]
    table = pd.DataFrame(rows)
    figure = plots.growth(table.assign(smallest=table["seconds"] * 0.9, largest=table["seconds"] * 1.2))
    assert [axis.get_xlabel() for axis in figure.axes] == ["prompt tokens", "responses"]
    for axis in figure.axes:
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [
            "packed: power 0.50",
            "rows: power 1.00",
        ]
        assert axis.get_xscale() == axis.get_yscale() == "log"
        assert axis.get_lines()[0].get_ydata()[-1] == pytest.approx(10 * 4**0.5)


def test_a_notebook_stores_the_alternative_text_beside_the_image() -> None:
    frame = plots.summary(runs(), order=["base", "masters"])
    figure = plots.effects(frame.assign(paper=[np.nan, 80.0]))
    assert figure.alt == "Arms by accuracy (%). base student 51.0, Masters 61.0. Paper: Masters 80.0."
    data, metadata = figure._repr_mimebundle_()
    assert data == {} and metadata["image/png"]["alt"] == figure.alt
    assert metadata["image/png"]["caption"] == (
        "Left: means over seeds; lines: 95 % interval over seeds. Right: the paper's single runs."
    )
    assert metadata["image/png"]["svg"].endswith("</svg>\n") and COLORS[0] in metadata["image/png"]["svg"]
    assert plots.size_accuracy(LADDER, runs(), ["masters"], 20.0).alt == (
        "Accuracy in percent by model size. base student 51.0, mid teacher 71.0, large teacher 91.0, "
        "Masters 61.0. Blind: 20.0."
    )
    log = pd.DataFrame({"arm": "masters", "step": [0, 5], "kl": [np.nan, 0.25]})
    assert plots.training_curves(log, "kl").alt == (
        "KL to the base student (nats per token) by training step. Masters: 0.25 at 5."
    )


def test_dollar_signs_of_questions_are_text() -> None:
    row = {"image": np.zeros((8, 8, 3), dtype=np.uint8), "question": r"$\frac{", "answer": "$5 or $6"}
    figure = plots.samples([row])
    figure.draw_without_rendering()
    assert r"$\frac{ $5 or $6." in figure.alt


def test_marks_stand_out_on_light_and_dark_pages() -> None:
    def luminance(color: str) -> float:
        values = np.array(to_rgb(color))
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for color in (*COLORS, *claims.VERDICT_COLORS.values(), INK, QUIET):
        for background in ("#ffffff", BAND):
            contrast = (luminance(background) + 0.05) / (luminance(color) + 0.05)
            assert contrast >= 3, f"{color} on {background}"
            dark = (luminance(in_dark(color)) + 0.05) / (luminance(in_dark(background)) + 0.05)
            assert dark >= 3, f"{in_dark(color)} on {in_dark(background)}"
    for text in (INK, QUIET):
        assert (luminance(in_dark(text)) + 0.05) / (luminance(in_dark("#ffffff")) + 0.05) >= 4.5


def test_a_dark_figure_differs_in_its_colors_alone() -> None:
    assert (in_dark("#ffffff"), in_dark("#000000")) == ("#121212", "#ffffff")
    figure = plots.samples([{"image": np.full((8, 8, 3), 200, np.uint8), "question": "q", "answer": "a"}])
    light = svg(figure, "x")
    dark = svg_in_dark(light)
    assert svg(figure, "x") == light != dark and "#ffffff" in light and "#121212" in dark
    colorless = [
        re.sub(r'(?<!href=")#[0-9a-f]{6}\b|<svg fill="#ffffff"|<svg', "", text) for text in (light, dark)
    ]
    assert colorless[0] == colorless[1] and "data:image/png;base64" in dark
