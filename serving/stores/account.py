"""What a tenant's account in Redis holds, for whoever asks: a look that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import InvalidResponse

from schedulers.admission import NOTHING, BucketLimits, BucketState, Cost, full, refill
from serving.stores import keys
from serving.stores.scripts import MOST_EXPIRED


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``level``: what is there now; below 0 in debt. ``reserved``: set aside for ``num_open`` requests that run.
    ``spent``: all that was charged since the account exists; jobs that run are in it as they were charged when they
    were taken in."""

    limits: BucketLimits
    level: BucketState
    reserved: Cost
    spent: Cost
    num_open: int


async def read_account(client: aioredis.Redis, tenant: str, limits: BucketLimits) -> Account:
    """Look at it: as much work however many requests are open. Raises: InvalidResponse: what is there is no account."""
    clock = await client.time()
    now_s = float(clock[0]) + float(clock[1]) / 1e6
    opened = keys.open_reservations(tenant)
    async with client.pipeline(transaction=True) as look:
        look.hmget(keys.bucket(tenant), ["joules", "seconds", "at", "taken_j", "taken_s", "open_j", "open_s"])
        look.zcount(opened, f"({now_s!r}", math.inf)
        look.zrangebyscore(opened, -math.inf, now_s, start=0, num=MOST_EXPIRED)
        stored, num_open, expired = await look.execute()
    joules, seconds, at_s, *sums = (_number(value) for value in stored)
    taken_j, taken_s, open_j, open_s = (value or 0.0 for value in sums)
    reserved = _reserved(open_j, open_s, expired) if num_open else NOTHING
    level = full(limits, now_s)
    if joules is not None and seconds is not None and at_s is not None:
        level = refill(BucketState(joules, seconds, min(at_s, now_s)), limits, now_s)
    spent = Cost(max(0.0, taken_j - reserved.joules), max(0.0, taken_s - reserved.seconds))
    return Account(limits=limits, level=level, reserved=reserved, spent=spent, num_open=num_open)


def _reserved(open_j: float, open_s: float, expired: Sequence[bytes]) -> Cost:
    """``expired``: members that are in the sums until somebody reserves again."""
    costs = [one.split(b" ")[-2:] for one in expired if one.count(b" ") == 2]
    gone_j = math.fsum(_number(joules) or 0.0 for joules, _ in costs)
    gone_s = math.fsum(_number(seconds) or 0.0 for _, seconds in costs)
    return Cost(max(0.0, open_j - gone_j), max(0.0, open_s - gone_s))


def _number(value: Any) -> float | None:
    """None where nothing is stored, or nothing that an account can hold: what spends next repairs that."""
    if not isinstance(value, bytes | None):
        raise InvalidResponse("expected the fields of an account")
    try:
        number = float(value or b"nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
