"""Token buckets per tenant, in joules and in engine seconds, as pure functions on plain state.

A bucket holds ``burst`` at most and refills at its rate. A request reserves its predicted cost in both kinds or in
none; what it really used is settled afterwards and may leave a debt, which the refill pays off first.

    refill   level <- min(burst, level + rate * elapsed)
    widen    cost <- min(burst, cost * overrun), but while nothing else is open no more than the level
    reserve  granted if joules <= level_j and seconds <= level_s, then level <- level - cost
    settle   refill, then level <- min(burst, level + reserved - actual)

A prediction may be too low, and how much too low is known late: so requests that are open together each reserve
``overrun`` times its joules and its seconds (``schedulers.overrun``), and only one that is alone may run on the
prediction itself. What is settled and reserved is then over what was refilled by no more than that one request is over
its prediction.

Work that nothing was reserved for (decoding) is settled against a reservation of nothing.

The shared store runs the same arithmetic in one atomic script; this is the twin that it is tested against.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLimits:
    """A tenant's allowance: joules and engine seconds per second, and how much may be saved up; and the most joules of
    a day and of a month of UTC (``schedulers.spending``).

    Raises:
        ValueError: a rate is negative, a burst or a cap not positive, or a rate or a burst not finite.
    """

    joules_per_s: float
    joules_burst: float
    seconds_per_s: float
    seconds_burst: float
    max_joules_per_day: float = math.inf
    max_joules_per_month: float = math.inf

    def __post_init__(self) -> None:
        for name in ("joules_per_s", "seconds_per_s"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; need a finite number >= 0")
        for name in ("joules_burst", "seconds_burst"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; need a finite number > 0")
        for name in ("max_joules_per_day", "max_joules_per_month"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} is {getattr(self, name)}; need a number > 0")

    @property
    def most_j(self) -> float:
        """Joules that one request may take."""
        return min(self.joules_burst, self.max_joules_per_day, self.max_joules_per_month)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request is predicted to take, or took.

    Raises:
        ValueError: negative or not finite.
    """

    joules: float
    seconds: float

    def __post_init__(self) -> None:
        for name in ("joules", "seconds"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; need a finite number >= 0")


@dataclass(frozen=True, slots=True)
class Factors:
    """How many times its predicted joules and its predicted seconds a request may take; 1 or more."""

    joules: float = 1.0
    seconds: float = 1.0


AS_PREDICTED = Factors()


@dataclass(frozen=True, slots=True)
class BucketState:
    """Levels at ``at_s``; a negative level is a debt."""

    joules: float
    seconds: float
    at_s: float


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Nothing was taken. ``retry_after_s`` is when the same cost would fit, ``math.inf`` if it never does."""

    retry_after_s: float


def full(limits: BucketLimits, now_s: float) -> BucketState:
    """The buckets of a tenant that was not seen before."""
    return BucketState(limits.joules_burst, limits.seconds_burst, now_s)


def refill(state: BucketState, limits: BucketLimits, now_s: float) -> BucketState:
    """Let time pass. A clock that runs backwards adds nothing and is not followed."""
    elapsed_s = max(0.0, now_s - state.at_s)
    return BucketState(
        min(limits.joules_burst, state.joules + limits.joules_per_s * elapsed_s),
        min(limits.seconds_burst, state.seconds + limits.seconds_per_s * elapsed_s),
        max(state.at_s, now_s),
    )


def reserve(
    state: BucketState, limits: BucketLimits, cost: Cost, now_s: float
) -> tuple[BucketState, OverBudget | None]:
    """Take ``cost`` out of both kinds, or of none and say when it will fit."""
    state = refill(state, limits, now_s)
    wait_s = max(
        _wait_s(cost.joules, state.joules, limits.joules_per_s, limits.joules_burst),
        _wait_s(cost.seconds, state.seconds, limits.seconds_per_s, limits.seconds_burst),
    )
    if wait_s > 0.0:
        return state, OverBudget(wait_s)
    return replace(state, joules=state.joules - cost.joules, seconds=state.seconds - cost.seconds), None


def widened(
    state: BucketState,
    limits: BucketLimits,
    cost: Cost,
    overrun: Factors,
    *,
    is_alone: bool,
    room_j: float = math.inf,
) -> Cost:
    """What to reserve for a request of this cost, in a bucket that was refilled up to now. ``is_alone``: nothing else
    that the tenant has reserved is open. ``room_j``: what its caps leave. A request that fits the burst and the caps
    fits them widened."""
    return Cost(
        _widened(cost.joules, overrun.joules, min(state.joules, room_j) if is_alone else limits.most_j),
        _widened(cost.seconds, overrun.seconds, state.seconds if is_alone else limits.seconds_burst),
    )


def _widened(amount: float, overrun: float, most: float) -> float:
    return max(amount, min(amount * overrun, most))


def settle(state: BucketState, limits: BucketLimits, reserved: Cost, actual: Cost, now_s: float) -> BucketState:
    """Give back what was reserved and charge what was used."""
    state = refill(state, limits, now_s)
    return replace(
        state,
        joules=min(limits.joules_burst, state.joules + reserved.joules - actual.joules),
        seconds=min(limits.seconds_burst, state.seconds + reserved.seconds - actual.seconds),
    )


NOTHING = Cost(0.0, 0.0)


def lacks_for_s(state: BucketState, limits: BucketLimits, least: Cost, now_s: float) -> float:
    """Seconds until ``least`` is there, and something in both kinds; 0 if it is, ``math.inf`` if it never will be."""
    state = refill(state, limits, now_s)
    return max(
        _lacks_for_s(least.joules, state.joules, limits.joules_per_s, limits.joules_burst),
        _lacks_for_s(least.seconds, state.seconds, limits.seconds_per_s, limits.seconds_burst),
    )


def _lacks_for_s(amount: float, level: float, rate: float, burst: float) -> float:
    if level <= 0.0 == amount:
        return max(-level / rate, math.ulp(0.0)) if rate > 0.0 else math.inf
    return _wait_s(amount, level, rate, burst)


def _wait_s(amount: float, level: float, rate: float, burst: float) -> float:
    """Seconds until ``amount`` is there; 0 if it is."""
    if amount <= level:
        return 0.0
    if amount > burst or rate <= 0.0:
        return math.inf
    # A gap too small to be seen at this rate must not read as "there is room now".
    return max((amount - level) / rate, math.ulp(0.0))
