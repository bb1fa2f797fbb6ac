"""What a tenant's account in Redis holds, for whoever asks: a look that changes nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as aioredis
from redis.exceptions import InvalidResponse

from schedulers.admission import BucketLimits, BucketState, Cost, full, refill
from serving.stores import keys

_MAX_OPEN = 10_000
"""Open reservations that are added up."""


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
    """Look at it. Raises: InvalidResponse: what is there is no account."""
    clock = await client.time()
    now_s = float(clock[0]) + float(clock[1]) / 1e6
    async with client.pipeline(transaction=True) as both:
        both.hmget(keys.bucket(tenant), ["joules", "seconds", "at", "taken_j", "taken_s"])
        both.zrangebyscore(keys.open_reservations(tenant), now_s, math.inf, start=0, num=_MAX_OPEN)
        stored, ids = await both.execute()
    reserved = await _reserved(client, tenant, [bytes(one).decode() for one in ids])
    joules, seconds, at_s, taken_j, taken_s = (_number(value) for value in stored)
    level = full(limits, now_s)
    if joules is not None and seconds is not None and at_s is not None:
        level = refill(BucketState(joules, seconds, min(at_s, now_s)), limits, now_s)
    spent = Cost(max(0.0, (taken_j or 0.0) - reserved.joules), max(0.0, (taken_s or 0.0) - reserved.seconds))
    return Account(limits=limits, level=level, reserved=reserved, spent=spent, num_open=len(ids))


async def _reserved(client: aioredis.Redis, tenant: str, ids: Sequence[str]) -> Cost:
    async with client.pipeline(transaction=False) as many:
        for one in ids:
            many.hmget(keys.reservation(tenant, one), ["joules", "seconds"])
        costs = await many.execute() if ids else []
    return Cost(
        math.fsum(max(0.0, _number(joules) or 0.0) for joules, _ in costs),
        math.fsum(max(0.0, _number(seconds) or 0.0) for _, seconds in costs),
    )


def _number(value: Any) -> float | None:
    """None where nothing is stored, or nothing that an account can hold: what spends next repairs that."""
    if not isinstance(value, bytes | None):
        raise InvalidResponse("expected the fields of an account")
    try:
        number = float(value or b"nan")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
