"""A Redis whose time goes on only when a test says so: days and months pass in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis
import redis.asyncio as aioredis
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.stores import redis_store
from serving.stores.scripts import Script

_KEY = "test:clock"
_SCRIPTS = ("LOOKUP_AND_RESERVE", "SETTLE", "CHARGE", "SETTLE_JOB")


class RedisClock:
    """Unix time, on the server and, when it is called, here."""

    def __init__(self, client: redis.Redis, now_s: float) -> None:
        self._client = client
        self.now_s = now_s
        self.tell()

    def __call__(self) -> float:
        return self.now_s

    def move_to(self, now_s: float) -> None:
        """It is now. A server that is down has to be told later."""
        self.now_s = now_s
        self.tell()

    def tell(self) -> bool:
        """Tell the server what time it is. Returns whether it is there."""
        seconds = int(self.now_s)
        try:
            with self._client.pipeline(transaction=True) as pipeline:
                pipeline.delete(_KEY)
                pipeline.rpush(_KEY, seconds, round(1e6 * (self.now_s - seconds)))
                pipeline.execute()
        except redis.ConnectionError:
            return False
        return True


@contextmanager
def redis_clock(url: str, now_s: float) -> Iterator[RedisClock]:
    """The scripts of the store, and whoever asks for the time, look at that clock. Lifetimes of keys pass as ever."""
    client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 1))
    with pytest.MonkeyPatch.context() as patch, client:
        for name in _SCRIPTS:
            source = getattr(redis_store, name).source
            assert source.count("redis.call('TIME')") == 1
            virtual = source.replace("redis.call('TIME')", f"redis.call('LRANGE', '{_KEY}', 0, -1)")
            patch.setattr(redis_store, name, Script(virtual))

        async def time(self: aioredis.Redis) -> tuple[int, int]:
            seconds, micros = await self.lrange(_KEY, 0, -1)
            return int(seconds), int(micros)

        patch.setattr(aioredis.Redis, "time", time)
        yield RedisClock(client, now_s)
