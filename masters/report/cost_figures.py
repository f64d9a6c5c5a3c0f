"""The picture of what sharing responses saves, drawn from costs alone; see :mod:`masters.analysis.costs`."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from masters.analysis.costs import Cost, cost_ratio
from masters.report.figures import MARKERS
from masters.report.style import COLOURS, INK, QUIET, panels


def sharing(
    online: Cost, offline: Mapping[str, Cost], runs: Sequence[int], claimed: float | None = None
) -> Figure:
    """How many times more an online run costs, against the number of offline runs that share responses.

    Args:
        online: of the online run.
        offline: of offline runs of the same number of steps, by title; a dotted line shows where each ends.
        runs: how many share, increasing.
        claimed: the ratio of the paper.
    """
    figure, (axis,) = panels()
    for place, (name, cost) in enumerate(offline.items()):
        colour, marker = COLOURS[place], MARKERS[place]
        ratios = [cost_ratio(online, cost, number) for number in runs]
        axis.plot(runs, ratios, f"-{marker}", color=colour, label=name)
        axis.axhline(cost_ratio(online, cost, float("inf")), color=colour, ls=":")
    if claimed is not None:
        axis.axhline(claimed, color=INK, ls="--", label="paper's estimate")
    axis.axhline(1, color=QUIET, lw=1)
    axis.set(xscale="log", xlabel="runs that share the responses", ylabel="cost online / offline")
    axis.set_xticks(list(runs), minor=False)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.minorticks_off()
    axis.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure
