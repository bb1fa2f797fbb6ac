"""What Redis is owed and could not be told: sent again until it has it.

An entry may be sent any number of times; Redis knows what it has settled by a mark, or by a reservation that
is gone.
Bounded: of what is too old or too much to keep the estimate stands, and that is logged.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple

import structlog

from schedulers.admission import BucketLimits
from serving.errors import StoreUnavailable
from serving.stores import keys
from serving.telemetry.events import SettlementsWaiting, Sink, ignore

_log = structlog.get_logger(__name__)
MAX_ENTRIES = 10_000
PERIOD_S = 0.25


class Owed(NamedTuple):
    """What is to be charged; below 0: given back."""

    joules: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Entry:
    send: Callable[[], Awaitable[object]]
    expires_s: float


class Outbox:
    """Use from one event loop; ``stop`` when done.

    ``is_up``: whether it is worth trying. ``charge(tenant, limits, owed, mark)`` charges what was never reserved there.
    """

    def __init__(
        self,
        is_up: Callable[[], bool],
        charge: Callable[[str, BucketLimits, Owed, str], Awaitable[object]],
        *,
        tell: Sink = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._is_up = is_up
        self._charge = charge
        self._tell = tell
        self._clock = clock
        self._entries: defaultdict[str, deque[_Entry]] = defaultdict(deque)
        """Of each tenant, the oldest first."""
        self._num = 0
        self._owed: dict[str, tuple[BucketLimits, Owed]] = {}
        """By tenant: what was used or set aside while Redis was away and nobody has tried to charge yet."""
        self._sending: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sender: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return self._num + len(self._owed)

    def add(self, tenant: str, send: Callable[[], Awaitable[object]], lifetime_s: float) -> None:
        """Keep what was tried, and may or may not have arrived. ``lifetime_s``: for how long Redis knows it again."""
        self._keep(tenant, send, lifetime_s)
        self._wake()

    def has(self, tenant: str) -> bool:
        """Whether there is something of a tenant."""
        return tenant in self._owed or tenant in self._entries

    def owe(self, tenant: str, limits: BucketLimits, more: Owed) -> None:
        """Add to what a tenant is to be charged once Redis is back; one sum, however long that takes."""
        _, so_far = self._owed.get(tenant, (limits, Owed(0.0, 0.0)))
        self._owed[tenant] = (limits, Owed(so_far.joules + more.joules, so_far.seconds + more.seconds))
        self._wake()

    async def flush(self, tenant: str) -> None:
        """Tell Redis now what a tenant owes, as far as it answers: when the tenant reserves there next, Redis must not
        find what is spent already. What others owe is not waited for."""
        if self.has(tenant) and self._is_up():
            await self._send(tenant)

    async def stop(self) -> None:
        """Try once more, then forget."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        await self._flush()
        if self:
            _log.warning("settlements are lost: Redis stayed away", num_lost=len(self))

    def _keep(self, tenant: str, send: Callable[[], Awaitable[object]], lifetime_s: float) -> None:
        if self._num >= MAX_ENTRIES:
            self._drop_first(max(self._entries, key=lambda one: len(self._entries[one])))
            _log.warning("a settlement is dropped: too many wait for Redis", limit=MAX_ENTRIES)
        self._entries[tenant].append(_Entry(send, self._clock() + lifetime_s))
        self._num += 1

    def _drop_first(self, tenant: str) -> None:
        self._entries[tenant].popleft()
        self._num -= 1
        if not self._entries[tenant]:
            del self._entries[tenant]

    def _wake(self) -> None:
        self._tell(SettlementsWaiting(len(self)))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send_until_empty())

    async def _send_until_empty(self) -> None:
        while self:
            await asyncio.sleep(PERIOD_S)
            await self._flush()
            self._tell(SettlementsWaiting(len(self)))

    async def _flush(self) -> None:
        """Of each tenant, until Redis fails again."""
        for tenant in {*self._owed, *self._entries}:
            if self._is_up():
                await self._send(tenant)

    async def _send(self, tenant: str) -> None:
        async with self._sending[tenant]:
            if tenant in self._owed:
                self._post(tenant, *self._owed.pop(tenant))
            while tenant in self._entries:
                entry = self._entries[tenant][0]
                if entry.expires_s > self._clock():
                    try:
                        await entry.send()
                    except StoreUnavailable:
                        return
                else:
                    _log.warning("a settlement is dropped: Redis has been away for too long")
                if tenant in self._entries and self._entries[tenant][0] is entry:
                    self._drop_first(tenant)

    def _post(self, tenant: str, limits: BucketLimits, owed: Owed) -> None:
        mark = uuid.uuid4().hex
        self._keep(tenant, lambda: self._charge(tenant, limits, owed, mark), keys.CHARGE_MARK_TTL_S)
