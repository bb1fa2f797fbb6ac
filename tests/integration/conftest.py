"""A Redis of a module's own, empty for each of its tests, and who hears of what happens to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio as aioredis

from tests.support.redis_server import embedded_redis
from tests.support.store_observer import RecordingObserver


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with embedded_redis() as server:
        yield server.url


@pytest.fixture
async def admin(url: str) -> AsyncIterator[aioredis.Redis]:
    client = aioredis.Redis.from_url(url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()
