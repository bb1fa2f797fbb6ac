"""Intervals of what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from loadtest.stats import INTERVAL_CONFIDENCE, share_interval

_RESAMPLES = 2000


def ratio_of_means(after: ArrayLike, before: ArrayLike, *, seed: int = 0) -> dict[str, float]:
    """Mean of ``after`` over mean of ``before``, of the same pictures, with a 95% bootstrap interval over pictures.

    Raises: ValueError: not the same number of both, or none.
    """
    top, bottom = np.asarray(after, np.float64), np.asarray(before, np.float64)
    if top.shape != bottom.shape or not top.size:
        raise ValueError(f"{top.size} values after and {bottom.size} before; give one of each for every picture")
    chosen = np.random.default_rng(seed).integers(0, top.size, (_RESAMPLES, top.size))
    ratios = top[chosen].mean(1) / bottom[chosen].mean(1)
    tail = (1.0 - INTERVAL_CONFIDENCE) / 2.0
    low, high = np.quantile(ratios, [tail, 1.0 - tail])
    return {"value": float(top.mean() / bottom.mean()), "low": float(low), "high": float(high)}


def share(hits: Sequence[bool]) -> dict[str, float]:
    """Of pictures, with its Clopper-Pearson interval."""
    interval = share_interval(sum(hits), len(hits))
    assert interval is not None, "a share of nothing"
    return {"value": interval.value, "low": interval.low, "high": interval.high}
