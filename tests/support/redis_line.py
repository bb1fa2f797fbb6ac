"""A gateway's connection to Redis that a test can cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import redis.asyncio as aioredis

from serving.errors import StoreUnavailable
from serving.stores.breaker import BreakerState
from serving.stores.connection import RedisConnection
from serving.stores.redis_store import RedisStore


class Line:
    """``state``: up, away (nothing arrives) or deaf (what arrives is done, and no answer comes back)."""

    def __init__(self, store: RedisStore) -> None:
        self.inner: RedisConnection = store._connection
        self.state = "up"
        store._connection = cast(Any, self)

    @property
    def breaker_state(self) -> BreakerState:
        return BreakerState.CLOSED

    async def call(self, name: str, send: Callable[[aioredis.Redis], Awaitable[Any]], tenant: str = "") -> Any:
        if self.state == "away":
            raise StoreUnavailable("away")
        answer = await self.inner.call(name, send, tenant)
        if self.state == "deaf":
            raise StoreUnavailable("no answer came")
        return answer

    async def stop(self) -> None:
        await self.inner.stop()
