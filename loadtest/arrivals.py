"""When to send: seeded, pure generators of send times in seconds from the start of the run.

A generator never looks at the server: that is what makes a load *open*. The closed form of load, where a caller waits
for its answer before it asks again, has no send times at all; it is a mode of the runner (``runner.run_closed_loop``),
and it cannot see a stall, because it stops asking while the server stalls.

All generators are endless except ``trace``; ``bounded`` cuts them. The same arguments give the same times, always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, takewhile

import numpy as np

_CHUNK = 1024
"""Gaps drawn at a time; part of the definition of a seeded stream only through speed, never through its values."""


def uniform(rate_per_s: float) -> Iterator[float]:
    """Evenly spaced times 0, 1/rate, 2/rate, ...; no drift, because each is computed from its index.

    Raises: ValueError: if the rate is not a positive, finite number.
    """
    _check_positive("rate_per_s", rate_per_s)
    return (index / rate_per_s for index in count())


def poisson(rate_per_s: float, *, seed: int) -> Iterator[float]:
    """Poisson process: independent exponential gaps of mean 1/rate. The traffic of many independent callers.

    Raises: ValueError: if the rate is not a positive, finite number.
    """
    return gamma(rate_per_s, cv=1.0, seed=seed)


def gamma(rate_per_s: float, *, cv: float, seed: int) -> Iterator[float]:
    """Gamma-distributed gaps of mean 1/rate and coefficient of variation ``cv`` (standard deviation over mean).

    ``cv`` 1 is Poisson, above 1 is bursty, towards 0 becomes ``uniform``. Shape is 1/cv^2, scale is cv^2/rate.

    Raises: ValueError: if ``rate_per_s`` or ``cv`` is not a positive, finite number.
    """
    _check_positive("rate_per_s", rate_per_s)
    _check_positive("cv", cv)
    return _running_sum(_gamma_gaps(rate_per_s, cv, seed))


def trace(times_s: Sequence[float], *, speed: float = 1.0) -> Iterator[float]:
    """Recorded send times, replayed ``speed`` times as fast.

    Raises: ValueError: if a time is negative or not finite, if times go backwards, or if ``speed`` is not positive.
    """
    _check_positive("speed", speed)
    previous = 0.0
    for index, time_s in enumerate(times_s):
        if not math.isfinite(time_s) or time_s < previous:
            raise ValueError(
                f"times_s[{index}] is {time_s}; it must be finite and at least {previous}, the time before it"
            )
        previous = time_s
    return (time_s / speed for time_s in times_s)


def bounded(
    arrivals: Iterable[float], *, duration_s: float | None = None, num_requests: int | None = None
) -> list[float]:
    """The arrivals before ``duration_s``, at most ``num_requests`` of them.

    Raises: ValueError: if neither bound is given and ``arrivals`` has no length of its own.
    """
    if duration_s is None and num_requests is None and not isinstance(arrivals, Sequence):
        raise ValueError("these arrivals may be endless; give duration_s or num_requests")
    times: Iterable[float] = arrivals
    if duration_s is not None:
        end_s = duration_s
        times = takewhile(lambda time_s: time_s < end_s, times)
    return list(islice(times, num_requests))


def _gamma_gaps(rate_per_s: float, cv: float, seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    shape, scale = 1.0 / cv**2, cv**2 / rate_per_s
    while True:
        yield from rng.gamma(shape, scale, _CHUNK).tolist()


def _running_sum(gaps: Iterator[float]) -> Iterator[float]:
    total = 0.0
    for gap in gaps:
        total += gap
        yield total


def _check_positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0.0:
        raise ValueError(f"{name} is {value}; it must be a finite number greater than 0")
