"""Runs that no price was fitted to, and how well the prices predict them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.operating_points import Prediction, Seconds, round_off


class Predicted(NamedTuple):
    """Seconds of one run, as the prices have them and as it took."""

    predicted_s: float
    actual_s: float


def rounds(repeats: int) -> list[bool]:
    """Whether each round of a measurement is held out: one of three, and at least one; ``repeats`` are not."""
    return [number % 3 == 1 for number in range(repeats + max(1, repeats // 2))]


def prediction(runs: Sequence[Predicted]) -> Prediction | None:
    """Relative errors of all runs; None without any. Of few, the percentile is the larger neighbour."""
    if not runs:
        return None
    errors = [abs(run.predicted_s - run.actual_s) / run.actual_s for run in runs]
    return Prediction(
        runs=len(runs),
        median_error=round_off(float(np.median(errors)), 4),
        p95_error=round_off(float(np.quantile(errors, 0.95, method="higher")), 4),
    )


def batch_s(prices: Mapping[str, Mapping[int, Seconds]], units: Mapping[str, float], rows: int) -> float:
    """Seconds of a batch of rows that have this work each, by the prices of a table: as a planner reads them, its time
    is on the line between the measured sizes next to its own."""
    total_s = 0.0
    for unit, times in prices.items():
        sizes = sorted(times)
        total_s += units.get(unit, 0.0) * float(np.interp(rows, sizes, [size * times[size].seconds for size in sizes]))
    return total_s
