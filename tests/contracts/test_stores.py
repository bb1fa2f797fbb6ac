"""What every Redis that the store may meet must do: the embedded one, and one that an operator runs elsewhere.

Quotas are compared step by step with the pure twin, replayed at the times that the server itself reports.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import pytest
import redis.asyncio as aioredis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schedulers import admission
from schedulers.admission import AS_PREDICTED, BucketLimits, BucketState, Cost, Factors
from schedulers.spending import Spending, room_j, spent, turned
from serving.stores import keys, scripts
from serving.stores.buckets import Hold
from serving.stores.connection import RedisConfig
from serving.stores.redis_store import MAX_VALUE_BYTES, RedisStore
from serving.stores.scripts import LOOKUP_AND_RESERVE, SETTLE
from tests.support.redis_server import REDIS_KINDS, redis_of
from tests.support.store_observer import RecordingObserver

LIMITS = BucketLimits(joules_per_s=1e-9, joules_burst=100.0, seconds_per_s=1e-9, seconds_burst=10.0)
"""Refills so slowly that the time a test takes changes nothing."""
FAST = BucketLimits(joules_per_s=1e3, joules_burst=100.0, seconds_per_s=1e3, seconds_burst=10.0)
ONE = Cost(1.0, 0.1)
SLOW_MACHINE_S = 20.0
_numbers = itertools.count()


@pytest.fixture(scope="module", params=REDIS_KINDS)
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_of(request.param) as url:
        yield url


@pytest.fixture
def observer() -> RecordingObserver:
    return RecordingObserver()


@pytest.fixture
async def store(url: str, observer: RecordingObserver) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisConfig(url=url, timeout_s=SLOW_MACHINE_S), tell=observer)
    assert await store.start()
    yield store
    await store.stop()


@pytest.fixture
async def client(url: str) -> AsyncIterator[aioredis.Redis]:
    client = aioredis.Redis.from_url(url)
    yield client
    await client.aclose()


@pytest.fixture
def tenant() -> str:
    return f"tenant-{next(_numbers)}"


def reserved(hold: Hold | None) -> Hold:
    assert hold is not None
    assert not hold.is_local
    return hold


# -- results ---------------------------------------------------------------------------------------------------------


async def test_what_was_put_is_found_in_order(store: RedisStore, observer: RecordingObserver, tenant: str) -> None:
    await store.put(tenant, {"a": b"\0\xff", "c": b""})
    assert await store.lookup(tenant, ["a", "b", "c"]) == (b"\0\xff", None, b"")
    assert (observer.hits, observer.misses) == (2, 1)
    assert await store.lookup(tenant, []) == ()


async def test_no_tenant_sees_another_ones_result(store: RedisStore, tenant: str) -> None:
    await store.put(tenant, {"a": b"secret"})
    assert await store.lookup(tenant + "x", ["a"]) == (None,)
    reply = await store.lookup_and_reserve(tenant + "x", ["a"], [ONE], LIMITS)
    assert reply.values == (None,)


async def test_results_expire_and_quotas_do_not(store: RedisStore, client: aioredis.Redis, tenant: str) -> None:
    await store.put(tenant, {"a": b"1"}, ttl_s=100)
    reply = await store.lookup_and_reserve(tenant, ["b"], [ONE], LIMITS)
    assert 90 < await client.ttl(keys.result(tenant, "a")) <= 100
    assert 0 < await client.ttl(keys.reservation(tenant, reserved(reply.hold).id)) <= keys.RESERVATION_TTL_S
    assert await client.ttl(keys.bucket(tenant)) == -1


async def test_value_that_is_too_large_is_not_stored(store: RedisStore, tenant: str) -> None:
    await store.put(tenant, {"a": b"x" * (MAX_VALUE_BYTES + 1), "b": b"x" * MAX_VALUE_BYTES})
    assert [value is None for value in await store.lookup(tenant, ["a", "b"])] == [True, False]


# -- quotas ----------------------------------------------------------------------------------------------------------


async def test_hit_reserves_nothing(store: RedisStore, client: aioredis.Redis, tenant: str) -> None:
    await store.put(tenant, {"a": b"1"})
    reply = await store.lookup_and_reserve(tenant, ["a"], [Cost(1e9, 1e9)], LIMITS)
    assert (reply.values, reply.hold, reply.over_budget) == ((b"1",), None, None)
    assert not await client.exists(keys.bucket(tenant))


async def test_only_what_is_missing_is_reserved_in_one_sum(store: RedisStore, tenant: str) -> None:
    await store.put(tenant, {"b": b"1"})
    costs = [Cost(1.0, 0.1), Cost(1e9, 1e9), Cost(2.5, 0.25)]
    reply = await store.lookup_and_reserve(tenant, ["a", "b", "c"], costs, LIMITS)
    assert reply.values == (None, b"1", None)
    assert reserved(reply.hold).cost == Cost(3.5, 0.35)


async def test_items_without_a_digest_are_never_found(store: RedisStore, tenant: str) -> None:
    reply = await store.lookup_and_reserve(tenant, [None, None], [ONE, ONE], LIMITS)
    assert reply.values == (None, None)
    assert reserved(reply.hold).cost == Cost(2.0, 0.2)


async def test_over_budget_takes_nothing_and_says_when(store: RedisStore, tenant: str) -> None:
    limits = BucketLimits(joules_per_s=1e-3, joules_burst=100.0, seconds_per_s=1e-3, seconds_burst=10.0)
    reserved((await store.lookup_and_reserve(tenant, ["a"], [Cost(90.0, 1.0)], limits)).hold)
    reply = await store.lookup_and_reserve(tenant, ["a"], [Cost(20.0, 1.0)], limits)
    assert reply.hold is None
    assert reply.over_budget is not None
    assert reply.over_budget.retry_after_s == pytest.approx(10_000, abs=60)  # 10 J at 1 mJ/s, less what the test took
    reserved((await store.lookup_and_reserve(tenant, ["a"], [Cost(10.0, 1.0)], limits)).hold)


async def test_more_than_the_bucket_holds_never_fits(store: RedisStore, tenant: str) -> None:
    for cost in (Cost(101.0, 0.0), Cost(0.0, 10.5)):
        reply = await store.lookup_and_reserve(tenant, ["a"], [cost], LIMITS)
        assert reply.over_budget is not None
        assert reply.over_budget.retry_after_s == math.inf


async def test_tenant_without_limits_is_only_looked_up(store: RedisStore, tenant: str) -> None:
    reply = await store.lookup_and_reserve(tenant, ["a"], [Cost(1e9, 1e9)], None)
    assert (reply.values, reply.hold, reply.over_budget) == ((None,), None, None)


async def test_settling_returns_the_difference_once(store: RedisStore, tenant: str) -> None:
    hold = reserved((await store.lookup_and_reserve(tenant, ["a"], [Cost(100.0, 1.0)], LIMITS)).hold)
    assert await store.settle(hold, Cost(40.0, 1.0))
    assert not await store.settle(hold, Cost(0.0, 0.0))
    reserved((await store.lookup_and_reserve(tenant, ["a"], [Cost(60.0, 1.0)], LIMITS)).hold)
    assert (await store.lookup_and_reserve(tenant, ["a"], [Cost(0.01, 0.0)], LIMITS)).over_budget is not None


async def test_using_more_than_reserved_leaves_a_debt(store: RedisStore, tenant: str) -> None:
    hold = reserved((await store.lookup_and_reserve(tenant, ["a"], [ONE], FAST)).hold)
    assert await store.settle(hold, Cost(1e6, 0.1))
    reply = await store.lookup_and_reserve(tenant, ["a"], [ONE], FAST)
    assert reply.over_budget is not None
    assert reply.over_budget.retry_after_s > 100


async def test_concurrent_settling_of_one_reservation_counts_once(store: RedisStore, tenant: str) -> None:
    hold = reserved((await store.lookup_and_reserve(tenant, ["a"], [ONE], LIMITS)).hold)
    outcomes = await asyncio.gather(*(store.settle(hold, Cost(0.5, 0.1)) for _ in range(20)))
    assert sum(outcomes) == 1


async def test_concurrent_reservations_of_several_clients_never_exceed_the_bucket(url: str, tenant: str) -> None:
    stores = [RedisStore(RedisConfig(url=url, timeout_s=SLOW_MACHINE_S)) for _ in range(3)]
    try:
        calls = [s.lookup_and_reserve(tenant, [None], [Cost(3.0, 0.0)], LIMITS) for s in stores * 30]
        replies = await asyncio.gather(*calls)
        assert sum(reply.hold is not None for reply in replies) == 33
    finally:
        for one in stores:
            await one.stop()


async def test_job_that_took_less_gives_back_the_rest_once(store: RedisStore, tenant: str) -> None:
    hold = reserved((await store.lookup_and_reserve(tenant, [None], [Cost(100.0, 10.0)], LIMITS)).hold)
    assert await store.settle(hold, Cost(100.0, 10.0))  # what a job is charged when it is taken in
    outcomes = [await store.settle_job(tenant, "job", Cost(100.0, 10.0), Cost(60.0, 2.0)) for _ in range(3)]
    assert outcomes == [True, False, False]
    assert (await store.lookup_and_reserve(tenant, [None], [Cost(40.5, 0.0)], LIMITS)).over_budget is not None
    reserved((await store.lookup_and_reserve(tenant, [None], [Cost(40.0, 8.0)], LIMITS)).hold)


async def test_job_that_took_more_leaves_a_debt(store: RedisStore, tenant: str) -> None:
    reserved((await store.lookup_and_reserve(tenant, [None], [ONE], LIMITS)).hold)
    assert await store.settle_job(tenant, "job", ONE, Cost(1e6, 1.0))
    assert (await store.lookup_and_reserve(tenant, [None], [ONE], LIMITS)).over_budget is not None


async def test_giving_back_never_fills_a_bucket_above_its_burst(store: RedisStore, tenant: str) -> None:
    reserved((await store.lookup_and_reserve(tenant, [None], [ONE], LIMITS)).hold)
    assert await store.settle_job(tenant, "job", Cost(1e6, 1e6), Cost(0.0, 0.0))
    assert (await store.lookup_and_reserve(tenant, [None], [Cost(101.0, 0.0)], LIMITS)).over_budget is not None
    reserved((await store.lookup_and_reserve(tenant, [None], [Cost(100.0, 10.0)], LIMITS)).hold)


async def test_job_of_a_tenant_without_a_bucket_settles_nothing(
    store: RedisStore, client: aioredis.Redis, tenant: str
) -> None:
    assert not await store.settle_job(tenant, "job", ONE, ONE)
    assert await client.exists(keys.bucket(tenant), keys.job_mark(tenant, "job")) == 0


@pytest.mark.parametrize("digests", [[], ["a", "b"]])
async def test_digests_and_costs_must_match(store: RedisStore, digests: list[str | None], tenant: str) -> None:
    with pytest.raises(ValueError, match="one cost per digest"):
        await store.lookup_and_reserve(tenant, digests, [ONE], LIMITS)


async def test_scripts_lost_by_the_server_are_sent_again(
    store: RedisStore, client: aioredis.Redis, observer: RecordingObserver, tenant: str
) -> None:
    await client.script_flush()
    hold = reserved((await store.lookup_and_reserve(tenant, ["a"], [ONE], LIMITS)).hold)
    await client.script_flush()
    assert await store.settle(hold, ONE)
    assert not observer.fallbacks
    assert await client.script_exists(LOOKUP_AND_RESERVE.sha1, SETTLE.sha1) == [False, True]


async def test_flushed_database_is_a_miss_and_a_full_bucket(
    store: RedisStore, client: aioredis.Redis, observer: RecordingObserver, tenant: str
) -> None:
    await store.put(tenant, {"a": b"1"})
    hold = reserved((await store.lookup_and_reserve(tenant, ["b"], [Cost(100.0, 1.0)], LIMITS)).hold)
    await client.flushall()
    assert await store.lookup(tenant, ["a"]) == (None,)
    assert not await store.settle(hold, ONE)
    reserved((await store.lookup_and_reserve(tenant, ["b"], [Cost(100.0, 1.0)], LIMITS)).hold)
    assert not observer.fallbacks


@pytest.mark.parametrize(
    "damage",
    [
        {"joules": "x"},
        {"joules": "nan"},
        {"joules": "1e308"},
        {"joules": "-1e308", "seconds": "-inf"},
        {"at": ""},
        {"at": "-1e308"},
        {"seconds": "1e999x"},
    ],
)
async def test_damaged_bucket_is_a_full_one_and_counted(
    store: RedisStore, client: aioredis.Redis, observer: RecordingObserver, tenant: str, damage: dict[str, str]
) -> None:
    reserved((await store.lookup_and_reserve(tenant, ["b"], [Cost(100.0, 1.0)], LIMITS)).hold)
    await client.hset(keys.bucket(tenant), mapping=damage)
    assert (await store.lookup_and_reserve(tenant, ["b"], [Cost(101.0, 1.0)], LIMITS)).over_budget is not None
    reserved((await store.lookup_and_reserve(tenant, ["b"], [Cost(100.0, 1.0)], LIMITS)).hold)
    assert observer.repaired == [tenant]


async def test_bucket_of_a_time_to_come_keeps_its_levels_and_is_refilled_from_now_on(
    store: RedisStore, client: aioredis.Redis, observer: RecordingObserver, tenant: str
) -> None:
    reserved((await store.lookup_and_reserve(tenant, ["b"], [Cost(100.0, 1.0)], LIMITS)).hold)
    now_s = (await client.time())[0]
    await client.hset(keys.bucket(tenant), "at", now_s + 3600)
    assert (await store.lookup_and_reserve(tenant, ["b"], [ONE], LIMITS)).over_budget is not None
    assert float(await client.hget(keys.bucket(tenant), "at")) < now_s + 3600
    assert observer.repaired == [tenant]


@pytest.mark.parametrize("damage", [{"joules": "nan"}, {"seconds": "x"}])
async def test_damaged_reservation_is_not_given_back(
    store: RedisStore, client: aioredis.Redis, tenant: str, damage: dict[str, str]
) -> None:
    hold = reserved((await store.lookup_and_reserve(tenant, ["a"], [Cost(100.0, 1.0)], LIMITS)).hold)
    await client.hset(keys.reservation(tenant, hold.id), mapping=damage)
    assert not await store.settle(hold, ONE)
    assert (await store.lookup_and_reserve(tenant, ["a"], [ONE], LIMITS)).over_budget is not None


async def test_key_of_another_type_in_the_way_is_a_miss_and_a_full_bucket(
    store: RedisStore, client: aioredis.Redis, observer: RecordingObserver, tenant: str
) -> None:
    await client.set(keys.bucket(tenant), b"I am no hash")
    await client.rpush(keys.result(tenant, "a"), b"I am no string")
    reply = await store.lookup_and_reserve(tenant, ["a"], [ONE], LIMITS)
    assert reply.values == (None,)
    assert observer.repaired == [tenant]
    assert await store.settle(reserved(reply.hold), ONE)


async def test_answer_lost_and_asked_again_reserves_once(client: aioredis.Redis, tenant: str) -> None:
    names = [keys.result(tenant, "a"), keys.bucket(tenant), keys.reservation(tenant, "same")]
    names.append(keys.open_reservations(tenant))
    arguments = ["1", "100", "1e-9", "100", "1e-9", "10", "inf", "inf", "1", "1", "same", "30", "1"]
    first, second = [await client.eval(LOOKUP_AND_RESERVE.source, 4, *names, *arguments) for _ in range(2)]
    assert first[1] == second[1] == 1
    assert (first[2], float(first[5])) == (second[2], 70.0)
    assert float(second[5]) == pytest.approx(70.0)


# -- against the pure twin -------------------------------------------------------------------------------------------

amounts = st.floats(0, 150, allow_nan=False).map(lambda x: round(x, 6))
factors = st.sampled_from([1.0, 1.25, 8.0, 100.0])
overruns = st.builds(Factors, factors, factors)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), amounts, amounts.map(lambda x: x / 10), overruns),
        st.tuples(st.just("settle"), amounts, amounts.map(lambda x: x / 10), st.just(AS_PREDICTED)),
    ),
    min_size=1,
    max_size=25,
)
all_limits = st.builds(
    BucketLimits,
    joules_per_s=st.sampled_from([0.0, 1e-3, 10.0, 1e5]),
    joules_burst=st.sampled_from([1e-3, 50.0, 100.0]),
    seconds_per_s=st.sampled_from([0.0, 1e-3, 1.0, 1e4]),
    seconds_burst=st.sampled_from([1e-3, 5.0, 10.0]),
    max_joules_per_day=st.sampled_from([math.inf, 60.0, 200.0]),
    max_joules_per_month=st.sampled_from([math.inf, 150.0]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, limits=all_limits)
def test_every_sequence_leaves_the_levels_of_the_pure_twin_to_the_last_bit(
    url: str, steps: list[tuple[str, float, float, Factors]], limits: BucketLimits
) -> None:
    asyncio.run(_replay(url, f"twin-{next(_numbers)}", steps, limits))


async def _replay(url: str, tenant: str, steps: list[tuple[str, float, float, Factors]], limits: BucketLimits) -> None:
    rates = [repr(v) for v in (limits.joules_per_s, limits.joules_burst, limits.seconds_per_s, limits.seconds_burst)]
    caps = [repr(limits.max_joules_per_day), repr(limits.max_joules_per_month)]
    client = aioredis.Redis.from_url(url)
    twin: BucketState | None = None
    its = Spending(at_s=0.0, day_j=0.0, month_j=0.0, open_j=0.0)
    held: list[tuple[str, Cost]] = []
    run: Callable[..., Any] = client.eval
    opened = keys.open_reservations(tenant)
    try:
        for number, (kind, joules, seconds, overrun) in enumerate(steps):
            if kind == "reserve":
                names = [keys.result(tenant, "x"), keys.bucket(tenant), keys.reservation(tenant, str(number)), opened]
                asked = [repr(overrun.joules), repr(overrun.seconds), str(number), repr(joules), repr(seconds)]
                answer = await run(LOOKUP_AND_RESERVE.source, 4, *names, 1, 60, *rates, *caps, *asked)
                granted, (taken_j, taken_s, wait_s, *levels, now_s, _) = answer[1], map(float, answer[2:])
                state = admission.refill(twin or admission.full(limits, now_s), limits, now_s)
                after_its = turned(its, now_s)
                room = room_j(after_its, limits)
                asked_for = Cost(joules, seconds)
                cost = admission.widened(state, limits, asked_for, overrun, is_alone=not held, room_j=room)
                assert (taken_j, taken_s) == (cost.joules, cost.seconds)
                after, over = admission.reserve(state, limits, cost, now_s)
                assert bool(granted) == (over is None and cost.joules <= room)
                assert wait_s == (0.0 if over is None else over.retry_after_s)
                if granted:  # a refusal writes nothing
                    open_j = its.open_j if held else 0.0
                    after_its = replace(spent(after_its, cost.joules), open_j=open_j + cost.joules)
                    twin, its = after, after_its
                    held.append((str(number), cost))
                else:
                    after = state
            elif held:
                name, cost = held.pop(0)
                names = [keys.bucket(tenant), keys.reservation(tenant, name), opened]
                answer = await run(SETTLE.source, 3, *names, repr(joules), repr(seconds), *rates, name)
                *levels, now_s, _ = map(float, answer)
                assert twin is not None
                twin = after = admission.settle(twin, limits, cost, Cost(joules, seconds), now_s)
                its = replace(
                    spent(turned(its, now_s), joules - cost.joules), open_j=max(0.0, its.open_j - cost.joules)
                )
                after_its = its
            else:
                continue
            assert levels[:4] == [after.joules, after.seconds, after_its.day_j, after_its.month_j]
            assert levels[4] == pytest.approx(after_its.open_j, abs=1e-9)  # sums and differences of many
    finally:
        await client.aclose()


async def test_months_are_those_of_the_calendar(client: aioredis.Redis) -> None:
    days = range(0, 60_000, 7)
    script = f"{scripts._COMMON} local all = {{}} for day = 0, 59999, 7 do all[#all + 1] = month_of(day) end return all"
    run: Callable[..., Any] = client.eval
    months = await run(script, 0)
    dates = [date.fromordinal(date(1970, 1, 1).toordinal() + day) for day in days]
    assert [month - months[0] for month in months] == [12 * (day.year - 1970) + day.month - 1 for day in dates]
