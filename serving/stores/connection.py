"""One guarded way to call Redis: a single deadline per call, at most one retry, the breaker in front.

Nothing else in the project awaits the Redis client. Every failure comes out as ``StoreUnavailable``, quickly.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import redis.asyncio as aioredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from schedulers.shared_slots import SharedSlots, Turn
from serving.errors import StoreFull, StoreUnavailable
from serving.stores import keys
from serving.stores.breaker import BreakerConfig, BreakerState, CircuitBreaker
from serving.telemetry.events import BreakerChanged, Sink, StoreCalled, StoreFellBack, ignore

T = TypeVar("T")
MAX_WAITS = 20
_WARM_UP_TIMEOUT_S = 2.0
_MAX_WAITING = 1 << 20
_TURN_S = 1e-3
"""Of a call, all alike: tenants take turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where Redis is and how long to wait for it.

    ``url``: redis://, rediss:// or unix://. ``timeout_s`` bounds a whole call: connecting, the answer, and the one
    retry that follows a connection lost in between. Waiting for one of our own ``max_connections``, which tenants get
    in turn, is bounded by ``MAX_WAITS`` times that: nobody waits for Redis there, but for others' calls.

    Raises:
        ValueError: a number is not positive.
    """

    url: str = field(repr=False)  # it may hold a password
    timeout_s: float = 0.05
    max_connections: int = 32
    breaker: BreakerConfig = field(default_factory=BreakerConfig)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.max_connections < 1:
            raise ValueError(f"timeout_s {self.timeout_s} and max_connections {self.max_connections} must be positive")


class _Wait(Turn):
    """A call that wants one of our connections; ``given`` is resolved when it has one."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant, 0, _TURN_S)
        self.given = asyncio.get_running_loop().create_future()


class RedisConnection:
    """The client and its breaker. Use from one event loop; ``stop`` when done."""

    def __init__(
        self,
        config: RedisConfig,
        tell: Sink = ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._tell = tell
        self._clock = clock
        self._breaker = CircuitBreaker(config.breaker)
        self._prober: asyncio.Task[None] | None = None
        self._num_free = config.max_connections
        self._waiting: SharedSlots[_Wait] = SharedSlots(_MAX_WAITING)
        pool = aioredis.ConnectionPool.from_url(
            config.url,
            max_connections=config.max_connections + 1,  # and one for the probe
            socket_connect_timeout=config.timeout_s,
            socket_timeout=config.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._client: aioredis.Redis = aioredis.Redis.from_pool(pool)

    @property
    def breaker_state(self) -> BreakerState:
        """Where the breaker stands."""
        return self._breaker.state

    async def warm_up(self, scripts: Sequence[str]) -> bool:
        """Connect and load ``scripts`` before the first request does. It may take longer than a call.

        Returns: whether it worked. If not, requests find out for themselves.
        """
        self._tell(BreakerChanged(self._breaker.state))  # a gauge that was never set is no closed breaker
        try:
            async with asyncio.timeout(max(_WARM_UP_TIMEOUT_S, self._config.timeout_s)):
                for script in scripts:
                    await self._client.script_load(script)
        except Exception:  # as in ``call``
            return False
        return True

    async def stop(self) -> None:
        """Stop probing and close the connections."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
            self._prober = None
        await self._client.aclose()

    async def call(self, operation: str, send: Callable[[aioredis.Redis], Awaitable[T]], tenant: str = "") -> T:
        """Run one idempotent exchange with Redis. ``tenant``: for whom; "" for the house.

        Raises:
            StoreUnavailable: the breaker is open, or the call failed; the caller does without.
            StoreFull: Redis is full and does not evict.
        """
        self._check_breaker(operation)
        turn = await self._enter(tenant, operation)
        try:
            self._check_breaker(operation)  # it may have opened while we waited
            return await self._call(operation, send)
        finally:
            self._leave(turn)

    def _check_breaker(self, operation: str) -> None:
        if not self._breaker.is_closed:
            self._tell(StoreFellBack(operation))
            raise StoreUnavailable("the breaker of Redis is open")

    async def _enter(self, tenant: str, operation: str) -> _Wait | None:
        """Take one of our own connections, or wait for it. That none is free says nothing about Redis: the breaker is
        not told. Returns the turn, if it took one."""
        if self._num_free:
            self._num_free -= 1
            return None
        turn = _Wait(tenant)
        self._waiting.add(turn)
        started_s, most_s = self._clock(), MAX_WAITS * self._config.timeout_s
        try:
            async with asyncio.timeout(most_s):
                await turn.given
        except BaseException as error:
            if not self._waiting.remove(turn):  # it was given one just before the waiting ended
                self._leave(turn)
            if not isinstance(error, TimeoutError):
                raise
            self._tell(StoreCalled(operation, "busy", self._clock() - started_s))
            self._tell(StoreFellBack(operation))
            busy = StoreUnavailable(f"no connection to Redis was free within {most_s:g} s")
            busy.was_sent = False
            raise busy from None
        return turn

    def _leave(self, turn: _Wait | None) -> None:
        """Give a connection back, to whose turn it is."""
        if turn is not None:
            self._waiting.finish(turn, _TURN_S)
        following = self._waiting.take()
        if following is None:
            self._num_free += 1
        elif not following.given.done():  # else it was cancelled just now, and will leave
            following.given.set_result(None)

    async def _call(self, operation: str, send: Callable[[aioredis.Redis], Awaitable[T]]) -> T:
        started_s = self._clock()
        try:
            async with asyncio.timeout(self._config.timeout_s):
                answer = await self._send_with_retry(send)
        except Exception as error:  # whatever a client library makes of what a broken server says
            self._failed(operation, error, started_s)
            kind = StoreFull if _is_out_of_memory(error) else StoreUnavailable
            raise kind(f"Redis failed in {operation}") from error
        self._breaker.record_success()
        self._tell(StoreCalled(operation, "ok", self._clock() - started_s))
        return answer

    async def _send_with_retry(self, send: Callable[[aioredis.Redis], Awaitable[T]]) -> T:
        try:
            return await send(self._client)
        except exceptions.TimeoutError:
            raise
        except exceptions.ConnectionError as error:
            if isinstance(error, (exceptions.BusyLoadingError, exceptions.AuthenticationError)):
                raise
            return await send(self._client)  # a pooled connection of a server that was restarted fails at once

    def _failed(self, operation: str, error: Exception, started_s: float) -> None:
        outcome = _outcome(error)
        self._tell(StoreCalled(operation, outcome, self._clock() - started_s))
        self._tell(StoreFellBack(operation))
        if outcome in ("timeout", "connection"):
            self._breaker.record_failure(self._clock(), started_s)
            self._probe_if_open()
        else:  # it answered, promptly
            self._breaker.record_success()

    # -- probing -----------------------------------------------------------------------------------------------------

    def _probe_if_open(self) -> None:
        if self._breaker.is_closed or (self._prober is not None and not self._prober.done()):
            return
        self._tell(BreakerChanged(self._breaker.state))
        self._prober = asyncio.get_running_loop().create_task(self._probe_until_closed())

    async def _probe_until_closed(self) -> None:
        while not self._breaker.is_closed:
            await asyncio.sleep(max(0.0, self._breaker.probe_at_s - self._clock()))
            if self._breaker.begin_probe(self._clock()):
                self._tell(BreakerChanged(self._breaker.state))
                await self._probe()
                self._tell(BreakerChanged(self._breaker.state))

    async def _probe(self) -> None:
        """Write something: a server that loads or a read-only replica answers a PING too."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await self._client.set(keys.probe(), b"1", ex=keys.PROBE_TTL_S)
        except Exception as error:
            if not _is_out_of_memory(error):  # then it answers, and reads work
                self._breaker.record_probe_failure(self._clock())
                return
        self._breaker.record_probe_success()


def _outcome(error: Exception) -> str:
    if isinstance(error, (TimeoutError, exceptions.TimeoutError)):
        return "timeout"
    if _is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, (OSError, exceptions.ConnectionError)) or _is_read_only(error):
        return "connection"  # BusyLoadingError is a ConnectionError
    return "error"


def _is_out_of_memory(error: Exception) -> bool:
    # From inside a script, Redis before 7 wraps the original error in the text of another one.
    return isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in str(error)


def _is_read_only(error: Exception) -> bool:
    return isinstance(error, exceptions.ReadOnlyError) or "READONLY You can't write" in str(error)
