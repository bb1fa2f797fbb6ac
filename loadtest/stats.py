"""The mathematics of the report: percentiles that are refused when the sample is too small, and confidence intervals.

Percentile. Nearest rank: of n sorted values the q-quantile is value number ceil(q*n). A request that failed has no
latency; it counts as infinitely slow, so that a server cannot improve its percentiles by failing.

Floor. The q-quantile is printed only from n >= ``required_samples(q)``: the smallest n for which a run with at most one
value beyond the true quantile would have a probability of at most 1 - 0.99,

    q^n + n (1 - q) q^(n-1) <= 0.01,

which is the floor of MLPerf's early stopping with its default confidence (662 for p99, 64 for p90).

Intervals. Of a share: Clopper-Pearson. Of a quantile: order statistics (both ends are observed values; no assumption
on the distribution). Of a mean: circular block bootstrap, seeded. The first two assume independent requests; queueing
makes neighbours alike, so near saturation they are too narrow, and several runs say more than one interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOOR_CONFIDENCE = 0.99
INTERVAL_CONFIDENCE = 0.95
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_BOOTSTRAP_RESAMPLES = 1000
_BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantile:
    """A quantile of latencies in seconds, or why there is none."""

    q: float
    value_s: float | None
    low_s: float | None
    """Lower end of the 95% interval; ``None`` if the sample does not bound it."""
    high_s: float | None
    num_samples: int
    num_required: int
    refusal: str | None = None
    """Why ``value_s`` is ``None``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95% confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Latencies of a set of requests, in seconds. Mean, minimum and maximum are over those that have a value."""

    num_values: int
    num_failed: int
    """Requests without a value, counted as infinitely slow by the quantiles."""
    mean_s: Interval | None
    min_s: float | None
    max_s: float | None
    quantiles: tuple[Quantile, ...]

    def quantile(self, q: float) -> Quantile:
        """The entry for ``q``. Raises: KeyError: if it is not among ``QUANTILES``."""
        for entry in self.quantiles:
            if entry.q == q:
                return entry
        raise KeyError(q)


def describe(values_s: Sequence[float], *, num_failed: int = 0, seed: int = 0) -> Distribution:
    """Mean and quantiles of ``values_s``, in the order in which the requests were made."""
    finite = sorted(values_s)
    return Distribution(
        num_values=len(finite),
        num_failed=num_failed,
        mean_s=mean_interval(values_s, seed=seed) if finite else None,
        min_s=finite[0] if finite else None,
        max_s=finite[-1] if finite else None,
        quantiles=tuple(quantile(finite, q, num_failed=num_failed) for q in QUANTILES),
    )


def quantile(sorted_s: Sequence[float], q: float, *, num_failed: int = 0) -> Quantile:
    """The q-quantile of sorted values and ``num_failed`` infinite ones, if the sample is large enough for it."""
    num_samples, required = len(sorted_s) + num_failed, required_samples(q)
    value = low = high = refusal = None
    if num_samples < required:
        refusal = f"{num_samples} samples; p{100 * q:g} needs {required}"
    else:
        value = _value_at(sorted_s, _rank(q, num_samples))
        low_rank, high_rank = quantile_ranks(q, num_samples)
        low, high = _value_at(sorted_s, low_rank), _value_at(sorted_s, high_rank)
        if value is None:
            refusal = f"{num_failed} of {num_samples} failed, so p{100 * q:g} is a failure"
    return Quantile(
        q=q,
        value_s=value,
        low_s=low,
        high_s=high,
        num_samples=num_samples,
        num_required=required,
        refusal=refusal,
    )


def required_samples(q: float, *, confidence: float = FLOOR_CONFIDENCE) -> int:
    """Fewest samples from which the q-quantile may be printed (module docstring). Symmetric in q and 1 - q.

    Raises: ValueError: unless 0 < q < 1 and 0 < confidence < 1.
    """
    if not 0.0 < q < 1.0 or not 0.0 < confidence < 1.0:
        raise ValueError(f"q is {q} and confidence is {confidence}; both must lie between 0 and 1, exclusive")
    q = max(q, 1.0 - q)
    return _smallest(lambda n: q**n + n * (1.0 - q) * q ** (n - 1) <= 1.0 - confidence)


def quantile_ranks(q: float, num_samples: int, *, confidence: float = INTERVAL_CONFIDENCE) -> tuple[int, int]:
    """Ranks (from 1) of the order statistics that enclose the q-quantile with at least ``confidence``.

    With B ~ Binomial(n, q): the largest l with P(B < l) <= a/2 and the smallest u with P(B >= u) <= a/2, a = 1 -
    confidence. Rank 0 or n + 1 means that the sample does not bound that side.
    """
    tail = (1.0 - confidence) / 2.0
    low = _smallest(lambda rank: binomial_cdf(rank, num_samples, q) > tail, start=0)
    high = _smallest(lambda rank: binomial_cdf(rank - 1, num_samples, q) >= 1.0 - tail, start=0)
    return low, high


def share_interval(num_hits: int, num_samples: int, *, confidence: float = INTERVAL_CONFIDENCE) -> Interval | None:
    """Clopper-Pearson interval of a share; ``None`` of nothing."""
    if num_samples == 0:
        return None
    tail = (1.0 - confidence) / 2.0
    misses = num_samples - num_hits
    low = 0.0 if num_hits == 0 else _inverse_beta(tail, num_hits, misses + 1)
    high = 1.0 if misses == 0 else _inverse_beta(1.0 - tail, num_hits + 1, misses)
    return Interval(value=num_hits / num_samples, low=low, high=high)


def mean_interval(values: Sequence[float], *, seed: int = 0, confidence: float = INTERVAL_CONFIDENCE) -> Interval:
    """Mean with a circular block bootstrap interval; blocks of about n^(1/3) neighbours keep their likeness.

    Raises: ValueError: on an empty sequence.
    """
    if not values:
        raise ValueError("there is no mean of 0 values")
    data = np.asarray(values, dtype=np.float64)
    block = max(1, round(len(data) ** (1.0 / 3.0)))
    num_blocks = math.ceil(len(data) / block)
    prefix = np.concatenate(([0.0], np.cumsum(np.concatenate((data, data[: block - 1])))))
    block_sums = prefix[block:] - prefix[:-block]
    rng = np.random.default_rng(seed)
    means = [
        float(block_sums[rng.integers(0, len(data), num_blocks)].sum()) / (num_blocks * block)
        for _ in range(_BOOTSTRAP_RESAMPLES)
    ]
    low, high = np.quantile(means, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(value=float(data.mean()), low=float(low), high=float(high))


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(B <= k) for B ~ Binomial(n, p), by the incomplete beta function."""
    if k < 0:
        return 0.0
    return 1.0 if k >= n else regularised_beta(1.0 - p, n - k, k + 1)


def regularised_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), by its continued fraction (DLMF 8.17.22) evaluated with the modified Lentz method."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # the fraction converges fast on the other side only
        return 1.0 - regularised_beta(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) with the coefficients of DLMF 8.17.23."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 10_000):
        m, is_odd = divmod(step, 2)
        if is_odd:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + term * d or tiny)
        c = 1.0 + term / c or tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _inverse_beta(target: float, a: float, b: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if regularised_beta(middle, a, b) < target else (low, middle)
    return (low + high) / 2.0


def _smallest(is_enough: Callable[[int], bool], *, start: int = 1) -> int:
    """The smallest integer from ``start`` for which a monotone condition holds."""
    step = 1
    while not is_enough(start + step - 1):
        step *= 2
    low, high = start + step // 2, start + step - 1
    low = start if step == 1 else low
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def _rank(q: float, num_samples: int) -> int:
    return max(1, math.ceil(q * num_samples - 1e-9))


def _value_at(sorted_s: Sequence[float], rank: int) -> float | None:
    return sorted_s[rank - 1] if 1 <= rank <= len(sorted_s) else None
