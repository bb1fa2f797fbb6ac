"""A result store in memory: what is kept, reserved and settled can be looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from schedulers.admission import AS_PREDICTED, NOTHING, Cost, Factors
from serving.errors import QuotaExceeded
from serving.stores.results import Codec, Lookup, Reservation, ResultName
from serving.stores.sealed import ResultCache, ResultKey

T = TypeVar("T")


class MemoryResults:
    """``serving.stores.results.ResultStore``, without overrun. ``burst_s``: seconds that all may reserve at a time."""

    def __init__(self, burst_s: float = 1e9) -> None:
        self._cache = ResultCache(b"s" * 32)
        self.burst_s = burst_s
        self.payloads: dict[ResultName, dict[str, Any]] = {}
        self.open: dict[int, Cost] = {}
        self.reserved: list[tuple[str, Cost]] = []
        self.settled: list[Cost] = []
        self.pairs: list[tuple[Cost, Cost]] = []
        """What was reserved, and what came of it."""
        self.settled_jobs: list[tuple[str, str, Cost, Cost]] = []
        self.num_look_ups = 0
        self.is_empty = False
        self.gate: asyncio.Event | None = None
        """Look-ups wait for it."""

    @property
    def settled_s(self) -> list[float]:
        return [cost.seconds for cost in self.settled]

    async def admit(self, tenant: str, least: Cost = NOTHING, count: int = 1) -> None:
        if self.is_empty:
            raise QuotaExceeded("empty", retry_after_s=1.0)

    def name(self, key: ResultKey | None) -> ResultName | None:
        return None if key is None else ResultName(key.tenant, self._cache.digest(key))

    async def look_up(
        self,
        names: Sequence[ResultName | None],
        codec: Codec[T],
        tenant: str,
        costs: Sequence[Cost],
        overrun: Factors = AS_PREDICTED,
    ) -> Lookup[T]:
        self.num_look_ups += 1
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        payloads = [None if name is None else self.payloads.get(name) for name in names]
        found = tuple(None if payload is None else codec.decode(payload) for payload in payloads)
        missing = [cost for cost, value in zip(costs, found, strict=True) if value is None]
        if not missing:
            return Lookup(found, Reservation())
        total = Cost(sum(cost.joules for cost in missing), sum(cost.seconds for cost in missing))
        return Lookup(found, self._reserved(tenant, total))

    async def reserve(self, tenant: str, cost: Cost, overrun: Factors = AS_PREDICTED) -> Reservation:
        return self._reserved(tenant, cost)

    def _reserved(self, tenant: str, cost: Cost) -> Reservation:
        if sum(cost.seconds for cost in self.open.values()) + cost.seconds > self.burst_s:
            raise QuotaExceeded("spent", retry_after_s=1.0)
        number = len(self.reserved)
        self.reserved.append((tenant, cost))
        self.open[number] = cost

        def charge(actual: Cost) -> None:
            self.pairs.append((self.open.pop(number), actual))  # twice is an error
            self.settled.append(actual)

        return Reservation(charge, cost)

    def put(self, name: ResultName | None, codec: Codec[T], value: T) -> None:
        if name is not None and (payload := codec.encode(value)) is not None:
            self.payloads[name] = payload

    def settle_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        self.settled_jobs.append((tenant, job_id, charged, actual))
