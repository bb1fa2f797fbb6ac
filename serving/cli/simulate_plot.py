"""The picture of a simulation: latencies by policy, and what share of each task was answered within its budget."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from schedulers.lab.outcomes import Outcome, Summary

_COLOURS = ("#718096", "#dd8a1f", "#805ad5", "#2b6cb0")


def draw(found: Mapping[str, Sequence[Outcome]], summaries: Mapping[str, Summary]) -> bytes:
    """As PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    times, bars = figure.subplots(1, 2)
    for colour, (name, outcomes) in zip(_COLOURS, found.items(), strict=False):
        answers = sorted(1e3 * max(one.latency_s, 1e-6) for one in outcomes if one.state == "answered")
        times.step(
            answers,
            [(place + 1) / len(outcomes) for place in range(len(answers))],
            where="post",
            label=name,
            color=colour,
        )
    times.set_xscale("log")
    times.set_xlabel("latency [ms], logarithmic")
    times.set_ylabel("share of all requests answered")
    tasks = list(next(iter(summaries.values())).by_task)
    width = 0.8 / len(summaries)
    for place, (colour, (name, one)) in enumerate(zip(_COLOURS, summaries.items(), strict=False)):
        heights = [one.by_task[task].attainment for task in tasks]
        bars.bar(
            [at + (place + 0.5) * width - 0.4 for at in range(len(tasks))], heights, width, label=name, color=colour
        )
    bars.set_xticks(range(len(tasks)), tasks)
    bars.set_ylabel("answered within the budget")
    times.legend(fontsize=8, loc="upper left")
    for axes in (times, bars):
        axes.set_ylim(0.0, 1.02)
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
