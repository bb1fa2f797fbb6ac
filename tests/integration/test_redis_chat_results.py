"""Exact results of chat against a real Redis: one round trip, tenants apart, forgeries refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis

from schedulers.admission import Cost
from serving.config import from_mapping, resolve
from serving.delivery.stream.generation import StoredChat, StoredChoice
from serving.delivery.stream.wire import FinishReason
from serving.stores import keys
from serving.stores.results import ResultName, ResultStore
from serving.tasks.chat.domain import Sampling
from serving.tasks.chat.results import CODEC, MAX_TEXT_CHARS, result_key
from tests.support.fake_service import make_chat_card
from tests.support.store_observer import RecordingObserver

CARD = make_chat_card("c")
QUOTA = {"joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0}
TENANTS = [{"name": "acme", **QUOTA}, {"name": "rival", **QUOTA}]
ANSWER = StoredChat((StoredChoice("你好", 2, FinishReason.STOP), StoredChoice("", 0, FinishReason.LENGTH)), 17)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
async def store(url: str, admin: aioredis.Redis, observer: RecordingObserver) -> AsyncIterator[ResultStore]:
    settings: dict[str, Any] = {"url": url, "timeout_s": 2.0, "secret": "s" * 32}
    results = ResultStore(resolve(from_mapping({"redis": settings, "tenants": TENANTS})), observer)
    await results.start()
    yield results
    await results.stop()


def name(store: ResultStore, tenant: str = "acme", sampling: Sampling = GREEDY) -> ResultName:
    name = store.name(result_key(tenant, CARD, [1, 2, 300], [b"\x01" * 32], sampling, 64))
    assert name is not None
    return name


async def look_up(store: ResultStore, name: ResultName | None, tenant: str = "acme") -> StoredChat | None:
    (found,) = (await store.look_up([name], CODEC, tenant, [Cost(5.0, 1.0)])).found
    return found


async def finished(store: ResultStore) -> None:
    """Let what runs in the background end."""
    await store.stop()


async def test_an_answer_comes_back_whole(store: ResultStore) -> None:
    assert await look_up(store, name(store)) is None
    store.put(name(store), CODEC, ANSWER)
    await finished(store)
    assert await look_up(store, name(store)) == ANSWER


async def test_look_up_and_reservation_are_one_round_trip(store: ResultStore, observer: RecordingObserver) -> None:
    await look_up(store, name(store))
    assert dict(observer.calls) == {("lookup_and_reserve", "ok"): 1}


async def test_tenants_and_requests_are_apart(store: ResultStore) -> None:
    store.put(name(store), CODEC, ANSWER)
    await finished(store)
    assert await look_up(store, name(store, "rival"), "rival") is None
    assert await look_up(store, name(store, sampling=Sampling(temperature=0.0, stop=("x",)))) is None


async def test_what_may_differ_or_shows_probabilities_has_no_name() -> None:
    for sampling in (Sampling(temperature=1.0), Sampling(temperature=0.0, logprobs=1)):
        assert result_key("acme", CARD, [1], [], sampling, 64) is None


async def test_what_was_tampered_with_is_a_miss(
    store: ResultStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    store.put(name(store), CODEC, ANSWER)
    await finished(store)
    place = keys.result("acme", name(store).digest)
    value = await admin.get(place)
    assert isinstance(value, bytes)
    await admin.set(place, value.replace("你".encode(), "他".encode()))
    assert await look_up(store, name(store)) is None
    assert observer.rejected == 1


async def test_long_answers_are_not_kept(store: ResultStore) -> None:
    long = StoredChat((StoredChoice("x" * (MAX_TEXT_CHARS + 1), 9, FinishReason.STOP),), 1)
    store.put(name(store), CODEC, long)
    await finished(store)
    assert await look_up(store, name(store)) is None
