"""The picture of a model's operating points: quality against joules and against seconds. No pyplot, no display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving.operating_points import PricedPoint

_SIZE_INCHES, _DPI = (11.0, 4.6), 110
_BLUE, _GREY = "#2b6cb0", "#a0aec0"
_LINE_INCHES = 0.17


def draw_points(model: str, metric: str, points: Sequence[PricedPoint], path: Path) -> None:
    """Write a PNG. Points have their intervals; those that are never picked are grey and named as dropped.

    Raises: ValueError: no point has both a quality and a cost.
    """
    known = [one for one in points if _is_drawn(one)]
    if not known:
        raise ValueError(f"{model} has no operating point with a quality and a cost, so there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _SIZE_INCHES
    figure: Any = Figure((width, height + _LINE_INCHES * len(known)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    plots, names = figure.subfigures(2, 1, height_ratios=(height, _LINE_INCHES * (len(known) + 1)))
    figure.suptitle(model)
    left, right = plots.subplots(1, 2, sharey=True)
    _draw(left, known, [one.energy_j for one in known], "joules of the usual request")
    _draw(right, known, [one.latency_s for one in known], "seconds of it alone")
    left.set_ylabel(metric, wrap=True)
    names.text(0.01, 0.98, "\n".join(lines_of(points)), va="top", ha="left", fontsize=7, family="monospace")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def lines_of(points: Sequence[PricedPoint]) -> list[str]:
    """Numbers and names of those that are drawn; of one that is dropped, the number of the one that is picked in its
    place."""
    numbers = {one.name: one.number for one in points}
    return [
        f"{one.number:>2}  {one.name}"
        + ("" if one.dominated_by is None else f"  (dropped: {numbers[one.dominated_by]} is no worse in anything)")
        for one in points
        if _is_drawn(one)
    ]


def _is_drawn(point: PricedPoint) -> bool:
    return point.quality is not None and point.energy_j > 0.0


def _draw(axes: Any, points: Sequence[PricedPoint], costs: Sequence[float], label: str) -> None:
    for one, cost in zip(points, costs, strict=True):
        assert one.quality is not None
        colour, order = (_BLUE, 3) if one.dominated_by is None else (_GREY, 2)
        value, low, high = one.quality.value, one.quality.low, one.quality.high
        axes.errorbar(
            cost, value, [[value - low], [high - value]], color=colour, marker="o", capsize=3, lw=1, zorder=order
        )
        axes.annotate(str(one.number), (cost, value), (4, 4), textcoords="offset points", fontsize=8, color=colour)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.grid(alpha=0.3)
