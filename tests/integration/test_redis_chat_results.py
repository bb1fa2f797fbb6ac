"""Exact results and quotas of chat against a real Redis: one round trip, tenants apart, forgeries refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from serving.config import from_mapping, resolve
from serving.errors import QuotaExceeded
from serving.service import ChatModelCard
from serving.stores import keys
from serving.stores.chat_results import MAX_TEXT_CHARS, ChatResults, StoredChat, StoredChoice
from serving.stores.results import ResultName, ResultStore
from serving.tasks.chat.domain import FinishReason, Sampling
from tests.support.redis_server import embedded_redis
from tests.support.store_observer import RecordingObserver

CARD = ChatModelCard(id="c", created_s=0, max_model_len=1024, max_output_tokens=64, checkpoint_sha256="c" * 64)
QUOTA = {"joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0}
TENANTS = [{"name": "acme", **QUOTA}, {"name": "rival", **QUOTA}]
ANSWER = StoredChat((StoredChoice("你好", 2, FinishReason.STOP), StoredChoice("", 0, FinishReason.LENGTH)), 17)
GREEDY = Sampling(temperature=0.0)


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


@pytest.fixture
async def store(url: str, admin: aioredis.Redis, observer: RecordingObserver) -> AsyncIterator[ResultStore]:
    settings: dict[str, Any] = {"url": url, "timeout_s": 2.0, "secret": "s" * 32}
    results = ResultStore(resolve(from_mapping({"redis": settings, "tenants": TENANTS})), observer)
    await results.start()
    yield results
    await results.stop()


def key(results: ChatResults, tenant: str = "acme", sampling: Sampling = GREEDY) -> ResultName:
    name = results.key(tenant, CARD, [1, 2, 300], [b"\x01" * 32], sampling, 64)
    assert name is not None
    return name


async def finished(store: ResultStore) -> None:
    """Let what runs in the background end."""
    await store.stop()


async def test_an_answer_comes_back_whole_and_reserves_nothing(store: ResultStore, admin: aioredis.Redis) -> None:
    results = ChatResults(store)
    miss = await results.look_up(key(results), "acme", 5.0, 1.0)
    assert miss.found is None
    assert miss.reservation is not None
    results.settle(miss.reservation, 2.0, 0.5)
    results.put(key(results), ANSWER)
    await finished(store)
    hit = await results.look_up(key(results), "acme", 1e6, 1e6)
    assert hit.found == ANSWER
    assert hit.reservation is None
    level_s = float(await admin.hget(keys.bucket("acme"), "seconds"))  # type: ignore[arg-type]
    assert level_s == pytest.approx(9.5)


async def test_look_up_and_reservation_are_one_round_trip(store: ResultStore, observer: RecordingObserver) -> None:
    results = ChatResults(store)
    await results.look_up(key(results), "acme", 5.0, 1.0)
    assert dict(observer.calls) == {("lookup_and_reserve", "ok"): 1}


async def test_tenants_and_requests_are_apart(store: ResultStore) -> None:
    results = ChatResults(store)
    results.put(key(results), ANSWER)
    await finished(store)
    assert (await results.look_up(key(results, "rival"), "rival", 0.0, 0.0)).found is None
    other = key(results, sampling=Sampling(temperature=0.0, stop=("x",)))
    assert (await results.look_up(other, "acme", 0.0, 0.0)).found is None


async def test_what_was_tampered_with_is_a_miss(
    store: ResultStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    results = ChatResults(store)
    name = key(results)
    results.put(name, ANSWER)
    await finished(store)
    place = keys.result("acme", name.digest)
    value = await admin.get(place)
    assert isinstance(value, bytes)
    await admin.set(place, value.replace("你".encode(), "他".encode()))
    assert (await results.look_up(name, "acme", 0.0, 0.0)).found is None
    assert observer.rejected == 1


async def test_quota_holds_without_a_name_too(store: ResultStore) -> None:
    results = ChatResults(store)
    assert results.key("acme", CARD, [1], [], Sampling(temperature=1.0), 64) is None
    await results.look_up(None, "acme", 60.0, 6.0)
    with pytest.raises(QuotaExceeded):
        await results.look_up(None, "acme", 60.0, 6.0)


async def test_long_answers_are_not_kept(store: ResultStore) -> None:
    results = ChatResults(store)
    results.put(key(results), StoredChat((StoredChoice("x" * (MAX_TEXT_CHARS + 1), 9, FinishReason.STOP),), 1))
    await finished(store)
    assert (await results.look_up(key(results), "acme", 0.0, 0.0)).found is None
