"""The figure of what sharing responses saves; see :mod:`masters_book.analysis.costs`."""

from collections.abc import Mapping, Sequence

from matplotlib.ticker import ScalarFormatter

from masters_book.analysis.costs import Cost, cost_ratio
from masters_book.figures.style import COLORS, INK, MARKERS, QUIET, Drawing, ends, panels


def sharing(
    online: Cost, offline: Mapping[str, Cost], runs: Sequence[int], claimed: float | None = None
) -> Drawing:
    """Draw the cost of an online run over that of an offline run vs. the number of runs that share responses.

    Args:
        online: cost of the online run.
        offline: costs of offline runs of as many steps, by title; dotted lines show their limits.
        runs: numbers of runs that share responses, increasing.
        claimed: the paper's ratio.
    """
    figure, (axis,) = panels()
    lines = []
    for place, (name, cost) in enumerate(offline.items()):
        color, marker = COLORS[place], MARKERS[place]
        ratios = [cost_ratio(online, cost, number) for number in runs]
        axis.plot(runs, ratios, f"-{marker}", color=color, label=name)
        lines.append(ends(name, runs, ratios))
        axis.axhline(cost_ratio(online, cost, float("inf")), color=color, ls=":")
    if claimed is not None:
        axis.axhline(claimed, color=INK, ls="--", label="paper's estimate")
    axis.axhline(1, color=QUIET, lw=1)
    axis.set(xscale="log", xlabel="runs that share the responses", ylabel="cost online / offline")
    axis.set_xticks(list(runs), minor=False)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.minorticks_off()
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.caption = (
        "Cost of the online run over that of an offline run, by the number of runs that share the offline "
        "run's responses; dotted: responses that cost nothing."
    )
    figure.alt = f"Cost online / offline by number of runs that share responses. {'; '.join(lines)}."
    return figure
