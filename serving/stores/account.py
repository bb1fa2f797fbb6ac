"""What a tenant's account in Redis holds, for whoever asks: a look that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import InvalidResponse

from schedulers.admission import NOTHING, BucketLimits, BucketState, Cost, full, refill
from schedulers.spending import Spending, spent, turned
from serving.stores import keys
from serving.stores.scripts import MOST, MOST_EXPIRED

UNSPENT = Spending(at_s=0.0, day_j=0.0, month_j=0.0, open_j=0.0)
_FIELDS = ("joules", "seconds", "at", "taken_j", "taken_s", "open_j", "open_s", "day_j", "month_j", "spent_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``level``: what is there now; below 0 in debt. ``reserved``: set aside for ``num_open`` requests that run.
    ``spent``: all that was charged since the account exists; jobs that run are in it as they were charged when they
    were taken in. ``spending``: of this day and this month, also what is set aside."""

    limits: BucketLimits
    level: BucketState
    reserved: Cost
    spent: Cost
    num_open: int
    spending: Spending = UNSPENT


async def read_account(client: aioredis.Redis, tenant: str, limits: BucketLimits) -> Account:
    """Look at it: as much work however many requests are open. Raises: InvalidResponse: what is there is no account."""
    clock = await client.time()
    now_s = float(clock[0]) + float(clock[1]) / 1e6
    opened = keys.open_reservations(tenant)
    async with client.pipeline(transaction=True) as look:
        look.hmget(keys.bucket(tenant), _FIELDS)
        look.zcount(opened, f"({now_s!r}", math.inf)
        look.zrangebyscore(opened, -math.inf, now_s, start=0, num=MOST_EXPIRED)
        stored, num_open, expired = await look.execute()
    joules, seconds, at_s, *sums = (_number(value) for value in stored)
    taken_j, taken_s, open_j, open_s = (value or 0.0 for value in sums[:4])
    day_j, month_j, spent_at_s = sums[4:]
    gone, above_j = _expired(expired)
    reserved = NOTHING
    if num_open:
        reserved = Cost(max(0.0, open_j - gone.joules), max(0.0, open_s - gone.seconds))
    level = full(limits, now_s)
    if joules is not None and seconds is not None and at_s is not None:
        level = refill(BucketState(joules, seconds, min(at_s, now_s)), limits, now_s)
    return Account(
        limits=limits,
        level=level,
        reserved=reserved,
        spent=Cost(max(0.0, taken_j - reserved.joules), max(0.0, taken_s - reserved.seconds)),
        num_open=num_open,
        spending=_spending(day_j, month_j, spent_at_s, reserved.joules, above_j, now_s),
    )


def _spending(
    day_j: float | None, month_j: float | None, at_s: float | None, open_j: float, above_j: float, now_s: float
) -> Spending:
    """As ``spent`` of ``serving.stores.scripts``."""
    if day_j is None or month_j is None or at_s is None or min(day_j, month_j, at_s) < 0.0:
        return Spending(at_s=now_s, day_j=open_j, month_j=open_j, open_j=open_j)
    its = Spending(at_s=min(at_s, now_s), day_j=day_j, month_j=month_j, open_j=open_j)
    return turned(spent(its, -above_j), now_s)


def _expired(members: Sequence[bytes]) -> tuple[Cost, float]:
    """What reservations held that have expired, which is in the sums until somebody reserves again, and the joules by
    which that is above their predictions."""
    joules, seconds, above_j = 0.0, 0.0, 0.0
    for member in members:
        _, *costs = member.split(b" ")
        its_j, its_s, predicted_j = (_number(cost) for cost in [*costs, None, None, None][:3])
        joules, seconds = joules + (its_j or 0.0), seconds + (its_s or 0.0)
        if its_j is not None and predicted_j is not None:
            above_j += max(0.0, its_j - predicted_j)
    return Cost(max(0.0, joules), max(0.0, seconds)), above_j


def _number(value: Any) -> float | None:
    """None where nothing is stored, or nothing that an account can hold: what spends next repairs that."""
    if not isinstance(value, bytes | None):
        raise InvalidResponse("expected the fields of an account")
    try:
        number = float(value or b"nan")
    except ValueError:
        return None
    return number if abs(number) <= MOST else None
