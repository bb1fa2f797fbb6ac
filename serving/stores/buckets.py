"""Quotas of this process alone, for while Redis is away. The arithmetic is ``schedulers.admission``'s."""

from __future__ import annotations

import math
import uuid
from collections import Counter
from dataclasses import dataclass

from schedulers.admission import (
    AS_PREDICTED,
    BucketLimits,
    BucketState,
    Cost,
    Factors,
    OverBudget,
    full,
    refill,
    reserve,
    settle,
    widened,
)

MAX_OPEN_HOLDS = 100_000


@dataclass(frozen=True, slots=True)
class Hold:
    """Taken out of a tenant's buckets until it is settled. ``is_local``: from this process' fallback, not Redis."""

    id: str
    tenant: str
    cost: Cost
    limits: BucketLimits
    is_local: bool


class LocalBuckets:
    """The buckets of this process, used while Redis is away.

    ``share`` is this process' part of every tenant's allowance, 1 / number of gateways: with it an outage cannot
    multiply what a tenant may spend. Caps on spending are Redis' alone. Grows with the number of tenants only.
    """

    def __init__(self, share: float = 1.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; it must be over 0 and at most 1")
        self._share = share
        self._states: dict[str, BucketState] = {}
        self._open: dict[str, Hold] = {}
        self._num_open: Counter[str] = Counter()
        """Of each tenant."""

    def observe(self, tenant: str, limits: BucketLimits, joules: float, seconds: float, now_s: float) -> None:
        """Remember the levels that Redis reported, to go on from them when it is away."""
        mine = self._scaled(limits)
        levels = BucketState(joules * self._share, seconds * self._share, now_s)
        self._states[tenant] = refill(levels, mine, now_s)

    def reserve(
        self, tenant: str, limits: BucketLimits, cost: Cost, now_s: float, overrun: Factors = AS_PREDICTED
    ) -> Hold | OverBudget:
        """As the function of that name, widened."""
        mine = self._scaled(limits)
        state = refill(self._states.get(tenant) or full(mine, now_s), mine, now_s)
        cost = widened(state, mine, cost, overrun, is_alone=not self._num_open[tenant])
        self._states[tenant], over = reserve(state, mine, cost, now_s)
        if over is not None:
            return over
        hold = Hold(uuid.uuid4().hex, tenant, cost, limits, is_local=True)
        self._open[hold.id] = hold
        self._num_open[tenant] += 1
        if len(self._open) > MAX_OPEN_HOLDS:  # never settled; their estimates stand
            self._closed(next(iter(self._open)))
        return hold

    def _closed(self, hold_id: str) -> bool:
        hold = self._open.pop(hold_id, None)
        if hold is not None:
            self._num_open[hold.tenant] -= 1
        return hold is not None

    def settle(self, hold: Hold, actual: Cost, now_s: float) -> bool:
        """As the function of that name. False if it was settled before."""
        if not self._closed(hold.id):
            return False
        mine = self._scaled(hold.limits)
        state = self._states[hold.tenant]
        self._states[hold.tenant] = settle(state, mine, hold.cost, actual, now_s)
        return True

    def charge(self, tenant: str, limits: BucketLimits, actual: Cost, now_s: float) -> None:
        """Charge for what was never reserved."""
        mine = self._scaled(limits)
        state = self._states.get(tenant) or full(mine, now_s)
        self._states[tenant] = settle(state, mine, Cost(0.0, 0.0), actual, now_s)

    def levels(self, tenant: str, limits: BucketLimits, now_s: float, max_age_s: float = math.inf) -> BucketState:
        """What the whole bucket holds at most: by what was learnt here in the last ``max_age_s``, as if nobody else had
        spent since; full where nothing was, because others may have given back all that is missing."""
        state = self._states.get(tenant)
        if state is None or now_s - state.at_s > max_age_s:
            return full(limits, now_s)
        state = refill(state, self._scaled(limits), now_s)
        return BucketState(state.joules / self._share, state.seconds / self._share, state.at_s)

    def _scaled(self, limits: BucketLimits) -> BucketLimits:
        return BucketLimits(
            joules_per_s=limits.joules_per_s * self._share,
            joules_burst=limits.joules_burst * self._share,
            seconds_per_s=limits.seconds_per_s * self._share,
            seconds_burst=limits.seconds_burst * self._share,
        )
