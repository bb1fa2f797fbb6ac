"""A result store in memory, under the real ``ChatResults``: what is kept, reserved and settled can be looked at."""

from __future__ import annotations

import asyncio
from typing import Any

from schedulers.admission import BucketLimits, Cost
from serving.errors import QuotaExceeded
from serving.stores.buckets import Reservation
from serving.stores.result_cache import ResultCache, ResultKey
from serving.stores.results import ResultName

_LIMITS = BucketLimits(joules_per_s=1.0, joules_burst=1.0, seconds_per_s=1.0, seconds_burst=1.0)


class MemoryResultStore:
    """The part of ``ResultStore`` that chat uses. ``burst_s``: seconds that a tenant may reserve at a time."""

    def __init__(self, burst_s: float = 1e9) -> None:
        self._cache = ResultCache(b"s" * 32)
        self._burst_s = burst_s
        self.payloads: dict[ResultName, dict[str, Any]] = {}
        self.open: dict[str, Reservation] = {}
        self.settled_s: list[float] = []
        self.num_look_ups = 0
        self._num_reserved = 0
        self.is_empty = False
        self.gate: asyncio.Event | None = None
        """Look-ups wait for it."""

    def check_account(self, tenant: str) -> None:
        if self.is_empty:
            raise QuotaExceeded("empty", retry_after_s=1.0)

    def name(self, key: ResultKey) -> ResultName:
        return ResultName(key.tenant, self._cache.digest(key))

    async def look_up_payload(
        self, name: ResultName | None, tenant: str, joules: float, seconds: float
    ) -> tuple[dict[str, Any] | None, Reservation | None]:
        self.num_look_ups += 1
        await asyncio.sleep(0.001)
        if self.gate is not None:
            await self.gate.wait()
        if name is not None and name in self.payloads:
            return self.payloads[name], None
        if sum(reservation.cost.seconds for reservation in self.open.values()) + seconds > self._burst_s:
            raise QuotaExceeded("spent", retry_after_s=1.0)
        self._num_reserved += 1
        reservation = Reservation(str(self._num_reserved), tenant, Cost(joules, seconds), _LIMITS, is_local=True)
        self.open[reservation.id] = reservation
        return None, reservation

    def settle_reservation(self, reservation: Reservation | None, joules: float, seconds: float) -> None:
        if reservation is not None:
            del self.open[reservation.id]  # twice is an error
            self.settled_s.append(seconds)

    def put_payload(self, name: ResultName, payload: dict[str, Any]) -> None:
        self.payloads[name] = payload
