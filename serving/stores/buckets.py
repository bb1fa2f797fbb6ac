"""Token buckets in joules and in seconds: the types, and the same arithmetic as the Redis scripts on plain state.

A tenant's bucket holds ``burst`` at most and refills at ``rate``. A request reserves its predicted cost in both kinds
or in none; what it really used is settled afterwards, and may leave a debt that the refill pays off first.

    refill   level <- min(burst, level + rate * elapsed)
    reserve  granted if joules <= level_j and seconds <= level_s; then level <- level - cost
    settle   refill, then level <- min(burst, level + reserved - actual)
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace

MAX_OPEN_RESERVATIONS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketLimits:
    """A tenant's allowance: joules and compute seconds, per second of wall time, and how much may be saved up.

    Raises:
        ValueError: a rate is negative, a burst not positive, or a number not finite.
    """

    joules_per_s: float
    joules_burst: float
    seconds_per_s: float
    seconds_burst: float

    def __post_init__(self) -> None:
        rates, bursts = (self.joules_per_s, self.seconds_per_s), (self.joules_burst, self.seconds_burst)
        if not all(map(math.isfinite, rates + bursts)) or min(rates) < 0 or min(bursts) <= 0:
            raise ValueError(f"{self} is impossible; rates must be finite and >= 0, bursts finite and > 0")

    def scaled(self, share: float) -> BucketLimits:
        """Return ``share`` of everything."""
        return BucketLimits(
            joules_per_s=self.joules_per_s * share,
            joules_burst=self.joules_burst * share,
            seconds_per_s=self.seconds_per_s * share,
            seconds_burst=self.seconds_burst * share,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What one item is predicted to take, or took.

    Raises:
        ValueError: negative or not finite.
    """

    joules: float
    seconds: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.joules) and math.isfinite(self.seconds)) or min(self.joules, self.seconds) < 0:
            raise ValueError(f"cost of {self.joules} J and {self.seconds} s; both must be finite and >= 0")


@dataclass(frozen=True, slots=True)
class BucketState:
    """Levels at time ``at_s``. A negative level is a debt."""

    joules: float
    seconds: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Reservation:
    """Taken out of a tenant's buckets until it is settled. ``is_local``: from this process' fallback, not Redis."""

    id: str
    tenant: str
    cost: Cost
    limits: BucketLimits
    is_local: bool


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Nothing was taken. ``retry_after_s`` is when the same cost would fit; infinite if it never does."""

    retry_after_s: float


def full(limits: BucketLimits, now_s: float) -> BucketState:
    """The buckets of a tenant not seen before."""
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
    """Take ``cost`` out, or say when it will fit."""
    state = refill(state, limits, now_s)
    if cost.joules <= state.joules and cost.seconds <= state.seconds:
        return replace(state, joules=state.joules - cost.joules, seconds=state.seconds - cost.seconds), None
    return state, OverBudget(
        max(
            _wait_s(cost.joules, state.joules, limits.joules_per_s, limits.joules_burst),
            _wait_s(cost.seconds, state.seconds, limits.seconds_per_s, limits.seconds_burst),
        )
    )


def _wait_s(amount: float, level: float, rate: float, burst: float) -> float:
    if amount <= level:
        return 0.0
    return (amount - level) / rate if amount <= burst and rate > 0 else math.inf


def settle(state: BucketState, limits: BucketLimits, reserved: Cost, actual: Cost, now_s: float) -> BucketState:
    """Give back what was reserved and charge what was used."""
    state = refill(state, limits, now_s)
    return replace(
        state,
        joules=min(limits.joules_burst, state.joules + reserved.joules - actual.joules),
        seconds=min(limits.seconds_burst, state.seconds + reserved.seconds - actual.seconds),
    )


class LocalBuckets:
    """The buckets of this process, used while Redis is away.

    ``share`` is this process' part of every tenant's allowance, 1 / number of gateways: with it an outage cannot
    multiply what a tenant may spend. Grows with the number of tenants only.
    """

    def __init__(self, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be over 0 and at most 1")
        self._share = share
        self._states: dict[str, BucketState] = {}
        self._open: dict[str, Reservation] = {}

    def observe(self, tenant: str, limits: BucketLimits, joules: float, seconds: float, now_s: float) -> None:
        """Remember the levels that Redis reported, to go on from them when it is away."""
        mine = limits.scaled(self._share)
        levels = BucketState(joules * self._share, seconds * self._share, now_s)
        self._states[tenant] = refill(levels, mine, now_s)

    def reserve(self, tenant: str, limits: BucketLimits, cost: Cost, now_s: float) -> Reservation | OverBudget:
        """As the function of that name."""
        mine = limits.scaled(self._share)
        state = self._states.get(tenant) or full(mine, now_s)
        self._states[tenant], over = reserve(state, mine, cost, now_s)
        if over is not None:
            return over
        reservation = Reservation(uuid.uuid4().hex, tenant, cost, limits, is_local=True)
        self._open[reservation.id] = reservation
        if len(self._open) > MAX_OPEN_RESERVATIONS:  # never settled; their estimates stand
            del self._open[next(iter(self._open))]
        return reservation

    def settle(self, reservation: Reservation, actual: Cost, now_s: float) -> bool:
        """As the function of that name. False if it was settled before."""
        if self._open.pop(reservation.id, None) is None:
            return False
        mine = reservation.limits.scaled(self._share)
        state = self._states[reservation.tenant]
        self._states[reservation.tenant] = settle(state, mine, reservation.cost, actual, now_s)
        return True
