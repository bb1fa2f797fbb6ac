"""The result store of the gateway against a real Redis: hits, tenants, quotas, forgeries."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis.asyncio as aioredis

from schedulers.admission import NOTHING, Cost, Factors
from serving.config import ResolvedConfig, from_mapping, resolve
from serving.config.sections import TenantSettings
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.unary.answers import CODEC, StoredAnswer
from serving.errors import AccountUnavailable, QuotaExceeded, QuotaTooSmall, StoreUnavailable
from serving.front.status import retry_after_s
from serving.stores import keys
from serving.stores.breaker import BreakerState
from serving.stores.redis_store import FRESH_S
from serving.stores.results import Lookup, ResultName, ResultStore
from serving.stores.sealed import ResultKey
from serving.tasks.budgets import shown_budget
from serving.tenants import LiveTenants, TenantRecords, overlay
from tests.support.store_observer import RecordingObserver
from tests.support.waiting import until

KEY = ResultKey(
    tenant="acme",
    model="dyn-perceiver-nano",
    checkpoint_sha256="c" * 64,
    operating_point="fast",
    processor_version="1",
    content_sha256=b"\x01" * 32,
)
TENANTS = [
    {"name": "acme", "joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0},
    {"name": "rival", "joules_per_s": 1e-9, "burst_j": 100.0, "seconds_per_s": 1e-9, "burst_s": 10.0},
]
RESULT = StoredAnswer({"probabilities": ["<f4", [3], np.array([0.1, 0.7, 0.2], "<f4").tobytes()]}, 2)


def make_config(url: str, **redis: Any) -> ResolvedConfig:
    settings = {"url": url, "timeout_s": 2.0, "secret": "s" * 32, **redis}
    return resolve(from_mapping({"redis": settings, "tenants": TENANTS}))


@pytest.fixture
async def results(admin: aioredis.Redis, url: str, observer: RecordingObserver) -> AsyncIterator[ResultStore]:
    results = ResultStore(make_config(url), observer)
    assert await results.start()
    yield results
    await results.stop()


async def finish(results: ResultStore) -> None:
    """Let what runs in the background end; the store can be used on."""
    await results.stop()


def name(results: ResultStore, **fields: Any) -> ResultName:
    name = results.name(dataclasses.replace(KEY, **fields))
    assert name is not None
    return name


async def look_up(
    results: ResultStore, name: ResultName | None, joules: float, seconds: float, tenant: str = "acme"
) -> Lookup[StoredAnswer]:
    return await results.look_up([name], CODEC, tenant, [Cost(joules, seconds)])


async def test_answer_is_found_again_bit_for_bit(results: ResultStore, admin: aioredis.Redis) -> None:
    first = await look_up(results, name(results), 1.0, 0.1)
    assert first.found == (None,)
    first.reservation.settle(1.0, 0.5)
    results.put(name(results), CODEC, RESULT)
    await finish(results)
    second = await look_up(results, name(results), 1e9, 1e9)
    assert second.found == (RESULT,)
    second.reservation.settle(5.0, 5.0)  # of nothing
    await finish(results)
    assert await level_s(admin) == pytest.approx(9.5)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "rival"},
        {"content_sha256": b"\x02" * 32},
        {"operating_point": "full"},
        {"checkpoint_sha256": "d" * 64},
        {"processor_version": "2"},
    ],
    ids=str,
)
async def test_anything_else_is_another_result(results: ResultStore, change: dict[str, Any]) -> None:
    results.put(name(results), CODEC, RESULT)
    await finish(results)
    other = name(results, **change)
    assert (await look_up(results, other, 1.0, 0.1, other.tenant)).found == (None,)


async def test_value_that_somebody_wrote_or_moved_in_redis_is_a_counted_miss(
    results: ResultStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    mine, theirs = name(results), name(results, content_sha256=b"\x02" * 32)
    results.put(theirs, CODEC, RESULT)
    await finish(results)
    stolen = await admin.get(keys.result("acme", theirs.digest))
    assert isinstance(stolen, bytes)
    for forged in (b"", b"\x01junk", stolen):
        await admin.set(keys.result("acme", mine.digest), forged)
        assert (await look_up(results, mine, 1.0, 0.1)).found == (None,)
    assert observer.rejected == 3


async def test_a_reservation_is_settled_once_with_what_was_used(results: ResultStore, admin: aioredis.Redis) -> None:
    names = [name(results), name(results, content_sha256=b"2" * 32)]
    lookup = await results.look_up(names, CODEC, "acme", [Cost(20.0, 2.0)] * len(names))
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(60.0)
    for used in (3.0, 50.0):
        lookup.reservation.settle(used, used / 4)
    await finish(results)
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(97.0)
    assert await level_s(admin) == pytest.approx(9.25)


async def test_spent_budget_is_a_typed_refusal_with_a_time_and_hurts_no_other_tenant(results: ResultStore) -> None:
    await look_up(results, None, 99.0, 0.1)
    with pytest.raises(QuotaExceeded, match="budget of tenant 'acme'") as caught:
        await look_up(results, None, 2.0, 0.1)
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 0
    with pytest.raises(QuotaExceeded):
        await results.reserve("acme", Cost(2.0, 0.1))
    await look_up(results, None, 99.0, 0.1, "rival")


async def test_request_that_never_fits_is_told_so(results: ResultStore) -> None:
    with pytest.raises(
        QuotaTooSmall, match=r"may take 101 J and 0\.1 s, and the budget never holds more than 100 J"
    ) as caught:
        await look_up(results, name(results), 101.0, 0.1)
    assert retry_after_s(caught.value) is None


async def test_retry_is_when_this_request_fits_and_not_when_there_is_something(url: str) -> None:
    tenant = {"name": "slow", "joules_per_s": 0.5, "burst_j": 100.0}
    results = ResultStore(resolve(from_mapping({"redis": {"url": url, "timeout_s": 2.0}, "tenants": [tenant]})))
    (await results.reserve("slow", Cost(90.0, 0.0))).settle(110.0, 0.0)
    await finish(results)
    for least_j, count, wait_s in ((0.0, 1, 20.0), (10.0, 1, 40.0), (10.0, 4, 100.0), (60.0, 2, 140.0)):
        with pytest.raises(QuotaExceeded) as caught:
            results.check_account("slow", Cost(least_j, 0.0), count)
        assert caught.value.retry_after_s == pytest.approx(wait_s, abs=2.0)
    with pytest.raises(QuotaTooSmall):
        results.check_account("slow", Cost(101.0, 0.0))
    with pytest.raises(QuotaExceeded) as caught:
        await results.reserve("slow", Cost(40.0, 0.0))
    assert caught.value.retry_after_s == pytest.approx(100.0, abs=2.0)
    await finish(results)


async def test_tenant_without_quota_is_only_looked_up(results: ResultStore, admin: aioredis.Redis) -> None:
    lookup = await look_up(results, name(results, tenant="local"), 1e9, 1e9, "local")
    assert lookup.found == (None,)
    lookup.reservation.settle(1.0, 1.0)
    (await results.reserve("local", Cost(1e9, 1e9))).settle(1.0, 1.0)
    await finish(results)
    assert await admin.keys("*bucket*") == []


async def test_cache_switched_off_keeps_nothing_and_still_charges(admin: aioredis.Redis, url: str) -> None:
    results = ResultStore(make_config(url, cache=False))
    try:
        assert results.name(KEY) is None
        results.put(None, CODEC, RESULT)
        lookup = await look_up(results, None, 10.0, 1.0)
        assert lookup.found == (None,)
        assert await level_s(admin) == pytest.approx(9.0)
        assert (await look_up(results, None, 1.0, 0.1, "local")).found == (None,)
        assert await admin.keys("*result*") == []
    finally:
        await results.stop()


async def test_everything_works_without_any_redis() -> None:
    results = ResultStore(make_config("unix:///nonexistent/redis.sock"))
    assert not await results.start()
    for _ in range(10):
        lookup = await look_up(results, name(results), 1.0, 0.1)
        results.put(name(results), CODEC, RESULT)
        lookup.reservation.settle(1.0, 0.5)
        assert lookup.found == (None,)
    await results.stop()


# -- callers that leave, decoding, empty accounts ----------------------------------------------------------------------


async def level_s(admin: aioredis.Redis, tenant: str = "acme") -> float:
    return float(await admin.hget(keys.bucket(tenant), "seconds") or "nan")


async def test_caller_that_leaves_while_it_reserves_has_it_given_back(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    leaving = asyncio.create_task(look_up(results, name(results), 20.0, 2.0))
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


async def test_stream_begun_before_a_limit_was_raised_leaves_what_is_there_now(url: str, admin: aioredis.Redis) -> None:
    small = TenantSettings(name="acme", joules_per_s=1e-9, burst_j=100.0)
    live = LiveTenants([small])
    results = ResultStore(make_config(url), tenants=live)
    stream = await results.reserve("acme", Cost(10.0, 0.0))
    live.replace(overlay([small.model_copy(update={"burst_j": 1000.0})], TenantRecords(version=1)))
    await admin.hset(keys.bucket("acme"), "joules", 500.0)
    stream.settle(10.0, 0.0)
    await finish(results)
    assert float(await admin.hget(keys.bucket("acme"), "joules") or 0) == pytest.approx(500.0)


async def test_decode_of_a_tenant_that_was_removed_meanwhile_is_not_held_for_ever(url: str) -> None:
    tenant = TenantSettings(name="acme", burst_s=10.0)
    live = LiveTenants([tenant])
    results = ResultStore(make_config(url), tenants=live)
    results.hold_decode("acme", 10.0)
    live.replace(overlay([], TenantRecords(version=1)))
    results.charge_decode("acme", 10.0, 10.0)
    live.replace(overlay([tenant], TenantRecords(version=2)))
    results.check_account("acme")
    assert results._held_s["acme"] == 0.0
    await finish(results)


async def test_account_that_is_empty_is_turned_away_without_a_look_at_redis(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    results.check_account("acme")  # nothing is known of it yet
    lookup = await look_up(results, name(results), 1.0, 0.1)
    lookup.reservation.settle(20.0, 20.0)  # it took more than it had
    await finish(results)
    await admin.flushall()
    for turn_away in (lambda: results.check_account("acme"), lambda: results.hold_decode("acme", 0.01)):
        with pytest.raises(QuotaExceeded, match="account of tenant 'acme' is empty") as caught:
            turn_away()
        assert caught.value.retry_after_s == pytest.approx(1e10, rel=0.2)  # 10 s are owed, 1 ns comes each second
    results.check_account("rival")
    results.check_account("local")


@pytest.mark.parametrize("by_a_job", [False, True])
async def test_what_another_gives_back_is_seen_within_a_second(
    results: ResultStore, url: str, by_a_job: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ResultStore(make_config(url))
    holding = await other.reserve("acme", Cost(10.0, 1.0), overrun=Factors(10.0, 10.0))  # all there is
    with pytest.raises(QuotaExceeded):
        await results.reserve("acme", Cost(10.0, 1.0))
    if by_a_job:
        await other.correct_job("acme", "job", Cost(100.0, 10.0), Cost(10.0, 1.0))
    else:
        holding.settle(10.0, 1.0)
    await finish(other)
    with pytest.raises(QuotaExceeded):
        results.check_account("acme", Cost(10.0, 1.0))
    monkeypatch.setattr(results._store, "_clock", lambda: time.monotonic() + FRESH_S)
    await results.admit("acme", Cost(10.0, 1.0))
    assert (await results.reserve("acme", Cost(10.0, 1.0))).cost == Cost(10.0, 1.0)


async def in_debt(results: ResultStore) -> None:
    (await results.reserve("acme", Cost(1.0, 0.1))).settle(500.0, 0.1)
    await until(lambda: not results._background)


async def test_account_in_debt_lets_nobody_in_however_long_it_lasts(
    results: ResultStore, observer: RecordingObserver
) -> None:
    """Once a second, somebody was let through to decoding: what Redis had said was too old to go by, and nobody asked
    again."""
    await in_debt(results)
    pipeline = Pipeline(results, PipelineLimits(max_in_flight=100, default_deadline_s=1.0))
    begun_s, num_asked = time.monotonic(), 200
    for number in range(num_asked):
        results._store._clock = lambda now_s=begun_s + 0.1 * number: now_s  # type: ignore[misc]
        with pytest.raises(QuotaExceeded) as caught:
            async with pipeline.admitted("acme", "m", lambda: 0.0, deadline_s=time.monotonic() + 1.0):
                pytest.fail("it would be decoded now")
        assert caught.value.retry_after_s == pytest.approx(4e11, rel=0.01)  # 400 J are owed, 1 nJ comes each second
    assert 1 <= observer.calls["account", "ok"] <= 0.1 * num_asked / FRESH_S
    assert observer.calls["lookup_and_reserve", "ok"] == 1


async def test_gateway_that_has_just_come_up_lets_nobody_in_whose_account_is_empty(
    results: ResultStore, url: str
) -> None:
    await in_debt(results)
    fresh = ResultStore(make_config(url))
    with pytest.raises(QuotaExceeded):
        await fresh.admit("acme")
    await fresh.admit("rival")
    await finish(fresh)


async def test_many_who_want_to_know_the_same_ask_once(
    results: ResultStore, observer: RecordingObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_debt(results)
    monkeypatch.setattr(results._store, "_clock", lambda: time.monotonic() + 2 * FRESH_S)
    asking = [asyncio.create_task(results.admit("acme")) for _ in range(50)]
    await asyncio.sleep(0)
    asking[0].cancel()  # whoever leaves takes nothing from the others
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(ends[0], asyncio.CancelledError)
    assert all(isinstance(end, QuotaExceeded) for end in ends[1:])
    assert observer.calls["account", "ok"] == 1
    assert results._looks == {}


async def test_who_has_been_paid_back_is_let_in_as_soon_as_news_are_old(
    results: ResultStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_debt(results)
    other = ResultStore(make_config(url))
    await other.correct_job("acme", "job", Cost(450.0, 0.0), Cost(0.0, 0.0))
    await finish(other)
    monkeypatch.setattr(results._store, "_clock", lambda: time.monotonic() + 2 * FRESH_S)
    await results.admit("acme", Cost(40.0, 0.1))
    with pytest.raises(QuotaExceeded):
        await results.admit("acme", Cost(60.0, 0.1))


async def test_who_has_enough_is_let_in_without_a_look(
    results: ResultStore, observer: RecordingObserver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await results.reserve("acme", Cost(10.0, 1.0))
    monkeypatch.setattr(results._store, "_clock", lambda: time.monotonic() + 100.0)
    for _ in range(10):
        await results.admit("acme", Cost(1.0, 0.1))
    assert observer.calls["account", "ok"] == 0


async def test_look_that_redis_does_not_answer_lets_in(url: str) -> None:
    results = ResultStore(make_config("unix:///nonexistent/redis.sock"))
    await results.admit("acme", Cost(1.0, 0.1))
    assert (await results.reserve("acme", Cost(1.0, 0.1))).cost is not None
    await finish(results)


async def test_old_news_let_no_more_be_decoded_than_the_account_ever_holds(results: ResultStore) -> None:
    results.hold_decode("acme", 10.0)
    with pytest.raises(QuotaExceeded):
        results.hold_decode("acme", 0.01)


async def test_decodes_that_run_or_are_not_paid_yet_count_as_spent(results: ResultStore) -> None:
    await look_up(results, name(results), 1.0, 1.0)  # 9 s left
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


async def test_account_says_what_is_left_set_aside_and_spent(results: ResultStore) -> None:
    account = await results.account("acme")
    assert account is not None
    assert (account.level.joules, account.reserved, account.spent, account.num_open) == (100.0, NOTHING, NOTHING, 0)
    (await results.reserve("acme", Cost(10.0, 1.0))).settle(4.0, 0.5)
    await finish(results)
    running = await results.reserve("acme", Cost(20.0, 2.0), overrun=Factors(1.5, 1.5))
    account = await results.account("acme")
    assert account is not None
    assert (account.level.joules, account.level.seconds) == (pytest.approx(66.0), pytest.approx(6.5))
    assert (account.reserved, account.num_open) == (Cost(30.0, 3.0), 1)
    assert (account.spent.joules, account.spent.seconds) == (pytest.approx(4.0), pytest.approx(0.5))
    running.settle(130.0, 0.0)
    await finish(results)
    account = await results.account("acme")
    assert account is not None
    assert (account.level.joules, account.reserved, account.num_open) == (pytest.approx(-34.0), NOTHING, 0)
    assert shown_budget("acme", account)["joules"] == {
        "level": pytest.approx(-34.0),
        "per_s": 1e-9,
        "burst": 100.0,
        "reserved": 0.0,
        "spent": pytest.approx(134.0),
        "full_in_s": pytest.approx(134e9),
    }


@pytest.mark.parametrize("damage", [{"joules": "nan"}, {"taken_j": "x", "at": "inf"}])
async def test_account_that_is_broken_can_be_looked_at(
    results: ResultStore, admin: aioredis.Redis, damage: dict[str, str]
) -> None:
    await results.reserve("acme", Cost(10.0, 1.0))
    await admin.hset(keys.bucket("acme"), mapping=damage)
    account = await results.account("acme")
    assert account is not None
    assert account.level.joules == 100.0
    assert account.spent.joules == 0.0


async def test_reservation_that_nobody_settled_is_spent_once_it_expires(
    results: ResultStore, admin: aioredis.Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "RESERVATION_TTL_S", 1)
    lost = await results.reserve("acme", Cost(10.0, 1.0))
    monkeypatch.setattr(keys, "RESERVATION_TTL_S", 60)
    await results.reserve("acme", Cost(20.0, 2.0))

    async def is_one_left() -> bool:
        return len(await admin.keys("*reservation:*")) == 1

    await until(is_one_left)
    for _ in range(2):
        account = await results.account("acme")
        assert account is not None
        assert (account.reserved, account.num_open) == (Cost(20.0, 2.0), 1)
        assert account.spent.joules == pytest.approx(10.0)
        (await results.reserve("acme", Cost(5.0, 0.5))).settle(0.0, 0.0)  # which forgets what has expired
        lost.settle(0.0, 0.0)
        await finish(results)


async def test_account_costs_the_same_however_many_requests_are_open(
    results: ResultStore, admin: aioredis.Redis
) -> None:
    num_commands = []
    for _ in range(2):
        for _ in range(40):
            await results.reserve("acme", Cost(1.0, 0.1))
        before = (await admin.info("stats"))["total_commands_processed"]
        account = await results.account("acme")
        num_commands.append((await admin.info("stats"))["total_commands_processed"] - before)
    assert account is not None
    assert (account.num_open, account.reserved.joules) == (80, pytest.approx(80.0))
    assert account.reserved.seconds == pytest.approx(8.0)
    assert num_commands[0] == num_commands[1] < 10


async def test_account_cannot_be_read_without_redis() -> None:
    results = ResultStore(make_config("unix:///nonexistent/redis.sock"))
    with pytest.raises(StoreUnavailable, match="accounts cannot be read now"):
        await results.account("acme")
    assert await results.account("nobody") is None
    await finish(results)


async def test_without_redis_only_who_may_spend_nothing_unseen_is_refused() -> None:
    tenants = [{"name": "open"}, {"name": "closed", "fail_closed": True}]
    redis = {"url": "unix:///nonexistent/redis.sock", "timeout_s": 2.0}
    results = ResultStore(resolve(from_mapping({"redis": redis, "tenants": tenants})))
    assert (await results.reserve("open", Cost(1.0, 1.0))).cost is not None
    for _ in range(2):
        with pytest.raises(AccountUnavailable) as caught:
            await results.reserve("closed", Cost(1.0, 1.0))
        assert retry_after_s(caught.value) == 1.0
    await finish(results)


async def test_who_fails_closed_decodes_nothing_and_is_not_told_of_a_budget_without_redis() -> None:
    tenants = [{"name": "open"}, {"name": "closed", "fail_closed": True, "burst_j": 10.0}]
    redis = {"url": "unix:///nonexistent/redis.sock", "timeout_s": 2.0}
    results = ResultStore(resolve(from_mapping({"redis": redis, "tenants": tenants})))
    with pytest.raises(AccountUnavailable):
        await results.reserve("closed", Cost(11.0, 1.0))
    while results.breaker_state is BreakerState.CLOSED:
        await results.reserve("open", Cost(0.1, 0.1))
    for spend in (lambda: results.check_account("closed"), lambda: results.hold_decode("closed", 0.01)):
        with pytest.raises(AccountUnavailable) as caught:
            spend()
        assert retry_after_s(caught.value) == 1.0
    results.hold_decode("open", 0.01)
    await finish(results)


async def test_without_redis_only_what_never_fits_is_refused_for_good() -> None:
    tenants = [{"name": "acme", "burst_j": 100.0}]
    redis = {"url": "unix:///nonexistent/redis.sock", "timeout_s": 2.0}
    configured = from_mapping({"redis": redis, "tenants": tenants, "gateway": {"replicas": 4}})
    results = ResultStore(resolve(configured))
    with pytest.raises(AccountUnavailable, match="share of its budget") as caught:
        await results.reserve("acme", Cost(30.0, 0.0))
    assert retry_after_s(caught.value) == 1.0
    with pytest.raises(QuotaTooSmall):
        await results.reserve("acme", Cost(101.0, 0.0))
    assert (await results.reserve("acme", Cost(20.0, 0.0))).cost == Cost(20.0, 0.0)
    await finish(results)


async def test_who_fails_closed_is_served_while_its_account_can_be_read(url: str) -> None:
    tenants = [{"name": "closed", "fail_closed": True}]
    results = ResultStore(resolve(from_mapping({"redis": {"url": url, "timeout_s": 2.0}, "tenants": tenants})))
    assert (await results.reserve("closed", Cost(1.0, 1.0))).cost == Cost(1.0, 1.0)
    await finish(results)
