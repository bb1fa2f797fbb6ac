"""The pictures of the report, as PNG bytes. Drawn without pyplot: no global state, no display, no fonts from
outside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from loadtest.records import Outcome, Record

_SIZE_INCHES = (8.0, 3.2)
_DPI = 110
_MAX_POINTS = 20_000
_MAX_BINS = 120
_BLUE, _ORANGE, _RED, _GREY = "#2b6cb0", "#dd8a1f", "#c53030", "#718096"
_COLOURS = {
    Outcome.OK: "#2f855a",
    Outcome.PARTIAL: "#9ae6b4",
    Outcome.CLIENT_ERROR: "#d69e2e",
    Outcome.REJECTED: "#805ad5",
    Outcome.DEADLINE_EXCEEDED: "#b794f4",
    Outcome.UNAVAILABLE: "#ed8936",
    Outcome.SERVER_ERROR: "#c53030",
    Outcome.TIMEOUT: "#742a2a",
    Outcome.CONNECTION_ERROR: "#f56565",
    Outcome.PROTOCOL_ERROR: "#d53f8c",
    Outcome.CANCELLED: "#a0aec0",
    Outcome.GENERATOR_DROPPED: "#1a202c",
    Outcome.GENERATOR_ERROR: "#4a5568",
}


def draw_ecdf(records: Sequence[Record], deadline_s: float | None) -> bytes:
    """Share of offered requests answered within x, from scheduled and from sent. Failures keep it below 1."""
    figure, axes = _figure("latency [ms], logarithmic", "share of offered requests")
    offered = _offered(records)
    _step(axes, [record.latency_from_scheduled_s for record in _ok(offered)], len(offered), "from scheduled", _BLUE)
    _step(axes, [record.latency_from_sent_s for record in _ok(offered)], len(offered), "from sent", _ORANGE)
    if deadline_s is not None:
        axes.axvline(deadline_s * 1e3, color=_RED, linestyle="--", linewidth=1, label="deadline")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    _legend(axes)
    return _png(figure)


def draw_latency_over_time(records: Sequence[Record], deadline_s: float | None) -> bytes:
    """One point per answered request, at its start; failures as ticks along the top."""
    figure, axes = _figure("start of the request [s]", "latency [ms], logarithmic")
    ok = _thin([record for record in records if record.outcome is Outcome.OK and record.latency_s is not None])
    axes.scatter(
        [record.started_at_s for record in ok],
        [max(1e-3, (record.latency_s or 0.0) * 1e3) for record in ok],
        s=4,
        alpha=0.5,
        linewidths=0,
        color=_BLUE,
        label="answered",
    )
    failed = [record for record in records if record.outcome is not Outcome.OK and not record.expects_error]
    if failed:
        starts = [record.started_at_s for record in _thin(failed)]
        axes.plot(
            starts, [0.98] * len(starts), "|", color=_RED, transform=axes.get_xaxis_transform(), label="not answered"
        )
    if deadline_s is not None:
        axes.axhline(deadline_s * 1e3, color=_RED, linestyle="--", linewidth=1, label="deadline")
    axes.set_yscale("log")
    _legend(axes)
    return _png(figure)


def draw_outcomes(records: Sequence[Record]) -> bytes:
    """Requests per second by outcome, at the time when they were due. Bad inputs included."""
    figure, axes = _figure("time of the run [s]", "requests per second")
    edges = _edges(records)
    width = edges[1] - edges[0]
    base = np.zeros(len(edges) - 1)
    for outcome, colour in _COLOURS.items():
        starts = [record.started_at_s for record in records if record.outcome is outcome]
        if starts:
            heights = np.histogram(starts, edges)[0] / width
            axes.bar(edges[:-1], heights, width, bottom=base, align="edge", color=colour, label=outcome.value)
            base += heights
    _legend(axes)
    return _png(figure)


def draw_in_flight(records: Sequence[Record]) -> bytes:
    """Requests sent and not yet ended, over time: what grows without bound when the server is over its capacity."""
    figure, axes = _figure("time of the run [s]", "requests in flight")
    changes = [(record.sent_at_s, 1) for record in records if record.sent_at_s is not None]
    changes += [
        (record.done_at_s, -1) for record in records if record.sent_at_s is not None and record.done_at_s is not None
    ]
    changes.sort()
    if changes:
        levels = np.cumsum([step for _, step in changes])
        stride = max(1, len(changes) // _MAX_POINTS)
        times = [time_s for time_s, _ in changes]
        axes.step(times[::stride], levels[::stride], where="post", color=_BLUE, linewidth=1)
    axes.set_ylim(bottom=0)
    return _png(figure)


def draw_generator_lag(records: Sequence[Record]) -> bytes:
    """How late the generator itself was with each request: the error of the instrument."""
    figure, axes = _figure("scheduled time [s]", "sent - scheduled [ms], logarithmic")
    sent = _thin([record for record in records if record.generator_lag_s is not None])
    axes.scatter(
        [record.started_at_s for record in sent],
        [max(1e-3, (record.generator_lag_s or 0.0) * 1e3) for record in sent],
        s=4,
        alpha=0.5,
        linewidths=0,
        color=_GREY,
    )
    axes.axhline(1.0, color=_RED, linestyle="--", linewidth=1, label="1 ms")
    axes.set_yscale("log")
    _legend(axes)
    return _png(figure)


def _figure(x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, needed only for reports
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _step(axes: Any, values_s: Sequence[float | None], num_offered: int, label: str, colour: str) -> None:
    known = sorted(value for value in values_s if value is not None)
    if known:
        shares = np.arange(1, len(known) + 1) / num_offered
        axes.step(np.array(known) * 1e3, shares, where="post", label=label, color=colour)


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, loc="best")


def _offered(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not record.is_warm_up and not record.expects_error]


def _ok(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if record.outcome is Outcome.OK]


def _thin(records: Sequence[Record]) -> list[Record]:
    """Every n-th record, so that a long run still gives a picture of bounded size."""
    return list(records[:: max(1, len(records) // _MAX_POINTS)])


def _edges(records: Sequence[Record]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Bins of at least a tenth of a second that cover all starts."""
    starts = [record.started_at_s for record in records] or [0.0]
    low, high = min(starts), max(starts)
    num_bins = int(min(_MAX_BINS, max(1.0, (high - low) / 0.1)))
    return np.linspace(low, max(high, low + 0.1), num_bins + 1)
