"""What a served model's work was predicted to take and took, from the metrics of the system on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

_PREDICTED, _ACTUAL = "vireo_predicted_seconds_total", "vireo_actual_seconds_total"
_CORRECTION = "vireo_cost_correction_ratio"


class LiveCost(NamedTuple):
    """Of one kind of work, since the system began. ``correction``: what its price is multiplied by now; None where
    nothing is learnt."""

    kind: str
    predicted_s: float
    actual_s: float
    correction: float | None


def live_costs(models: Collection[str], metrics_dir: Path) -> list[LiveCost]:
    """Of a model, by any of its names; empty while it has done nothing."""
    from serving.telemetry.exposition import node_registry

    found: dict[str, dict[str, float]] = defaultdict(dict)
    for metric in node_registry(metrics_dir).collect():
        for sample in metric.samples:
            if sample.name in (_PREDICTED, _ACTUAL, _CORRECTION) and sample.labels.get("model") in models:
                found[sample.labels["kind"]][sample.name] = sample.value
    return [
        LiveCost(kind, values.get(_PREDICTED, 0.0), values.get(_ACTUAL, 0.0), values.get(_CORRECTION))
        for kind, values in sorted(found.items())
    ]


def lines_of(models: Collection[str]) -> list[str]:
    """For a terminal: what the systems on this machine say, or why nothing is said."""
    from serving.cli.run_state import started

    served = [state for state in started() if state.is_running() and set(models) & set(state.models)]
    if not served:
        return ["not served on this machine now: what work is predicted to take and takes is told while it is"]
    lines = []
    for state in served:
        costs = live_costs(models, Path(state.run_dir) / "metrics")
        lines.append(f"at {state.http_url}: " + ("" if costs else "nothing was predicted yet"))
        lines += [f"  {_in_words(one)}" for one in costs]
    return lines


def _in_words(one: LiveCost) -> str:
    ratio = f" ({one.actual_s / one.predicted_s:.2f} times that)" if one.predicted_s > 0.0 else ""
    learnt = "" if one.correction is None else f"; its price is multiplied by {one.correction:.2f} now"
    return f"{one.kind}: {one.predicted_s:.3g} s predicted, {one.actual_s:.3g} s taken{ratio}{learnt}"
