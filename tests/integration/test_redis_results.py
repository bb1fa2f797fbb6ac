"""The result store of the gateway against a real Redis: hits, tenants, quotas, forgeries."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import redis.asyncio as aioredis

from serving.config import ResolvedConfig, from_mapping, resolve
from serving.delivery.unary.wire import SampleAnswer, SampleFailure
from serving.errors import EngineFailed, QuotaExceeded
from serving.service import ModelCard
from serving.stores import keys
from serving.stores.results import ResultName, ResultStore
from tests.support.redis_server import embedded_redis
from tests.support.store_observer import RecordingObserver

CARD = ModelCard(
    id="dyn-perceiver-nano",
    family="dyn-perceiver",
    created_s=0,
    input_size=32,
    num_classes=3,
    num_exits=4,
    labels=("a", "b", "c"),
    checkpoint_sha256="c" * 64,
    operating_points=("fast",),
    prepare_version="1",
)
TENANTS = [
    {"name": "acme", "joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0},
    {"name": "rival", "joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0},
]
ANSWER = SampleAnswer(np.array([0.1, 0.7, 0.2], "<f4").tobytes(), 2, False, 0.0, 0.5)
IMAGE = b"\x01" * 32


def make_config(url: str, **redis: Any) -> ResolvedConfig:
    settings = {"url": url, "timeout_s": 2.0, "secret": "s" * 32, **redis}
    return resolve(from_mapping({"redis": settings, "tenants": TENANTS}))


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
async def results(admin: aioredis.Redis, url: str, observer: RecordingObserver) -> AsyncIterator[ResultStore]:
    results = ResultStore(make_config(url), observer)
    assert await results.start()
    yield results
    await results.stop()


async def finish(results: ResultStore) -> None:
    """Let what runs in the background end; the store can be used on."""
    await results.stop()


def name(results: ResultStore, tenant: str = "acme", image: bytes = IMAGE, point: str = "fast") -> ResultName:
    return results.key(tenant, CARD, point, image)


async def test_answer_is_found_again_bit_for_bit(results: ResultStore) -> None:
    first = await results.look_up([name(results)], "acme", 1.0, 0.1)
    assert first.found == (None,)
    results.settle(first, 2.0, [ANSWER])
    results.put(name(results), ANSWER)
    await finish(results)
    second = await results.look_up([name(results)], "acme", 1.0, 0.1)
    (found,) = second.found
    assert found is not None
    assert (found.probabilities, found.exit_index) == (ANSWER.probabilities, 2)
    np.testing.assert_array_equal(found.as_array(), ANSWER.as_array())
    assert second.reservation is None


@pytest.mark.parametrize("change", ["tenant", "image", "point", "checkpoint"])
async def test_anything_else_is_another_result(results: ResultStore, change: str) -> None:
    results.put(name(results), ANSWER)
    await finish(results)
    other = {
        "tenant": name(results, tenant="rival"),
        "image": name(results, image=b"\x02" * 32),
        "point": name(results, point="full"),
        "checkpoint": results.key("acme", dataclasses.replace(CARD, checkpoint_sha256="d" * 64), "fast", IMAGE),
    }[change]
    assert (await results.look_up([other], other.tenant, 1.0, 0.1)).found == (None,)


async def test_value_that_somebody_wrote_or_moved_in_redis_is_a_counted_miss(
    results: ResultStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    mine, theirs = name(results), name(results, image=b"\x02" * 32)
    results.put(theirs, ANSWER)
    await finish(results)
    stolen = await admin.get(keys.result("acme", theirs.digest))
    assert isinstance(stolen, bytes)
    for forged in (b"", b"\x01junk", stolen):
        await admin.set(keys.result("acme", mine.digest), forged)
        lookup = await results.look_up([mine], "acme", 1.0, 0.1)
        assert lookup.found == (None,)
    assert observer.rejected == 3


async def test_settling_charges_engine_time_of_answers_and_of_failures(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    lookup = await results.look_up([name(results), name(results, image=b"2")], "acme", 20.0, 2.0)
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(60.0)
    results.settle(lookup, 4.0, [ANSWER, SampleFailure(EngineFailed("no"), 0.25)])
    await finish(results)
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(97.0)  # 0.75 s at 4 W
    assert float(await admin.hget(keys.bucket("acme"), "seconds") or 0) == pytest.approx(9.25)


async def test_spent_budget_is_a_typed_refusal_with_a_time_and_hurts_no_other_tenant(results: ResultStore) -> None:
    await results.look_up([name(results)], "acme", 99.0, 0.1)
    with pytest.raises(QuotaExceeded, match="budget of tenant 'acme'") as caught:
        await results.look_up([name(results)], "acme", 2.0, 0.1)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    assert (await results.look_up([name(results, "rival")], "rival", 99.0, 0.1)).reservation is not None


async def test_request_that_never_fits_is_told_so(results: ResultStore) -> None:
    with pytest.raises(QuotaExceeded, match="this request alone is over the budget") as caught:
        await results.look_up([name(results)], "acme", 101.0, 0.1)
    assert caught.value.retry_after_s == 3600.0


async def test_tenant_without_quota_is_only_looked_up(results: ResultStore, admin: aioredis.Redis) -> None:
    lookup = await results.look_up([name(results, "local")], "local", 1e9, 1e9)
    assert (lookup.found, lookup.reservation) == ((None,), None)
    results.settle(lookup, 1.0, [ANSWER])
    assert await admin.keys("*bucket*") == []


async def test_cache_switched_off_keeps_nothing_and_still_charges(admin: aioredis.Redis, url: str) -> None:
    results = ResultStore(make_config(url, cache=False))
    try:
        results.put(name(results), ANSWER)
        lookup = await results.look_up([name(results)], "acme", 10.0, 1.0)
        assert lookup.found == (None,)
        assert lookup.reservation is not None
        assert (await results.look_up([name(results)], "local", 1.0, 0.1)).found == (None,)
        assert await admin.keys("*result*") == []
    finally:
        await results.stop()


async def test_everything_works_without_any_redis() -> None:
    results = ResultStore(make_config("unix:///nonexistent/redis.sock"))
    assert not await results.start()
    for _ in range(10):
        lookup = await results.look_up([name(results)], "acme", 1.0, 0.1)
        results.put(name(results), ANSWER)
        results.settle(lookup, 1.0, [ANSWER])
        assert lookup.found == (None,)
    await results.stop()


# -- callers that leave, decoding, empty accounts ----------------------------------------------------------------------


async def level_s(admin: aioredis.Redis, tenant: str = "acme") -> float:
    return float(await admin.hget(keys.bucket(tenant), "seconds") or "nan")


async def test_caller_that_leaves_while_it_reserves_has_it_given_back(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    leaving = asyncio.create_task(results.look_up([name(results)], "acme", 20.0, 2.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    await finish(results)
    assert await level_s(admin) == pytest.approx(10.0)
    assert await admin.keys("*reservation*") == []


async def test_decoding_is_charged_to_its_tenant_with_what_came_meanwhile(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    for _ in range(4):
        results.hold_decode("acme", 0.1)
        results.charge_decode("acme", 0.1, 0.5)
    results.hold_decode("local", 1e9)
    results.charge_decode("local", 1e9, 1e9)
    await finish(results)
    assert await level_s(admin) == pytest.approx(8.0)
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(88.0)  # at 6 W
    assert await admin.hget(keys.bucket("rival"), "seconds") is None
    assert len(await admin.keys("*charged*")) == 1


async def test_account_that_is_empty_is_turned_away_without_a_look_at_redis(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    results.check_account("acme")  # nothing is known of it yet
    lookup = await results.look_up([name(results)], "acme", 1.0, 0.1)
    results.settle(lookup, 1.0, [ANSWER._replace(compute_s=20.0)])  # it took more than it had
    await finish(results)
    await admin.flushall()
    for turn_away in (lambda: results.check_account("acme"), lambda: results.hold_decode("acme", 0.01)):
        with pytest.raises(QuotaExceeded, match="account of tenant 'acme' is empty") as caught:
            turn_away()
        assert caught.value.retry_after_s == 3600.0
    results.check_account("rival")
    results.check_account("local")


async def test_decodes_that_run_or_are_not_paid_yet_count_as_spent(results: ResultStore) -> None:
    await results.look_up([name(results)], "acme", 1.0, 1.0)  # 9 s left
    results.hold_decode("acme", 5.0)
    results.hold_decode("acme", 5.0)
    with pytest.raises(QuotaExceeded):
        results.hold_decode("acme", 0.01)
    results.charge_decode("acme", 5.0, 0.0)  # its caller left before it began
    results.check_account("acme")
    results.charge_decode("acme", 5.0, 9.5)
    with pytest.raises(QuotaExceeded):
        results.check_account("acme")
    await finish(results)
    with pytest.raises(QuotaExceeded):
        results.check_account("acme")


async def test_without_redis_decoding_is_charged_here() -> None:
    results = ResultStore(make_config("unix:///nonexistent/redis.sock"))
    results.hold_decode("acme", 0.1)
    results.charge_decode("acme", 0.1, 11.0)
    await finish(results)
    with pytest.raises(QuotaExceeded):
        results.check_account("acme")
