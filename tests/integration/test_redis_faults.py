"""A real Redis that is killed, frozen, full, read-only or talking nonsense: no call of the store ever fails for it.

What is asserted is what callers get and what the breaker does, not how long it took; the only clock here is generous.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from schedulers.admission import BucketLimits, Cost
from serving.stores import keys
from serving.stores.breaker import BreakerConfig, BreakerState
from serving.stores.connection import RedisConfig
from serving.stores.redis_server import EmbeddedRedis
from serving.stores.redis_store import LookupReply, RedisStore
from tests.support.redis_server import embedded_redis, stopped
from tests.support.store_observer import RecordingObserver
from tests.support.waiting import until

LIMITS = BucketLimits(joules_per_s=1e-9, joules_burst=100.0, seconds_per_s=1e-9, seconds_burst=10.0)
ONE = Cost(1.0, 0.1)
BREAKER = BreakerConfig(failure_threshold=3, open_s=0.05, max_open_s=0.2)
TIMEOUT_S = 0.25


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis() as server:
        yield server


@contextlib.asynccontextmanager
async def make_store(
    url: str, observer: RecordingObserver, share: float = 1.0, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[RedisStore]:
    store = RedisStore(RedisConfig(url=url, timeout_s=timeout_s, breaker=BREAKER), tell=observer, local_share=share)
    await store.start()
    try:
        yield store
    finally:
        await store.stop()


@pytest.fixture
async def store(server: EmbeddedRedis, observer: RecordingObserver) -> AsyncIterator[RedisStore]:
    async with make_store(server.url, observer) as store:
        await store.put("t", {"a": b"1"})
        assert await store.lookup("t", ["a"]) == (b"1",)
        yield store


@pytest.fixture
async def admin(server: EmbeddedRedis) -> AsyncIterator[aioredis.Redis]:
    client = aioredis.Redis.from_url(server.url)
    yield client
    await client.aclose()


async def use_everything(store: RedisStore, cost: Cost = ONE) -> LookupReply:
    """Every operation once; none may raise."""
    await store.lookup("t", ["a"])
    await store.put("t", {"b": b"2"})
    reply = await store.lookup_and_reserve("t", ["missing"], [cost], LIMITS)
    if reply.hold is not None:
        await store.settle(reply.hold, cost)
    return reply


async def is_back(store: RedisStore) -> bool:
    reply = await store.lookup_and_reserve("t", [None], [Cost(0.0, 0.0)], LIMITS)
    return store.breaker_state is BreakerState.CLOSED and not (reply.hold and reply.hold.is_local)


# -- gone, frozen ----------------------------------------------------------------------------------------------------


async def test_frozen_redis_opens_the_breaker_then_costs_no_call_at_all_and_is_found_again(
    server: EmbeddedRedis, store: RedisStore, observer: RecordingObserver
) -> None:
    with stopped(server):
        for _ in range(4):
            reply = await use_everything(store)
            assert reply.values == (None,)
            assert reply.hold is not None
            assert reply.hold.is_local
        # Three timeouts one after another, then nothing more is even tried: the rest is the probe's business.
        assert sum(count for (_, outcome), count in observer.calls.items() if outcome == "timeout") == 3
        assert observer.states[:2] == [BreakerState.CLOSED, BreakerState.OPEN]
        assert store.breaker_state is not BreakerState.CLOSED
    await until(lambda: is_back(store))
    assert observer.states[-1] is BreakerState.CLOSED
    assert await store.lookup("t", ["a"]) == (b"1",)


async def test_many_calls_at_once_on_a_frozen_redis_wait_for_one_timeout_not_for_each_other(
    server: EmbeddedRedis, store: RedisStore
) -> None:
    calls = [store.lookup_and_reserve("t", ["missing"], [ONE], LIMITS) for _ in range(200)]
    with stopped(server):
        async with asyncio.timeout(20 * TIMEOUT_S):  # 200 waits in a row would be 20 s
            replies = await asyncio.gather(*calls)
    assert sum(reply.hold is not None for reply in replies) == 100  # the local bucket holds 100 J
    assert sum(reply.over_budget is not None for reply in replies) == 100


async def test_killed_redis_costs_no_request_and_its_successor_is_used(
    server: EmbeddedRedis, store: RedisStore
) -> None:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for _ in range(20):
        assert (await use_everything(store)).values == (None,)
    await until(lambda: is_back(store))
    await store.put("t", {"a": b"again"})
    assert await store.lookup("t", ["a"]) == (b"again",)


async def test_redis_that_was_never_there_costs_no_request(observer: RecordingObserver, tmp_path: Path) -> None:
    async with make_store(f"unix://{tmp_path}/nowhere.sock", observer) as store:
        for _ in range(10):
            reply = await use_everything(store)
            assert reply.values == (None,)
            assert reply.hold is not None
        assert store.breaker_state is not BreakerState.CLOSED


async def test_restart_between_two_calls_is_bridged_by_the_one_retry(
    server: EmbeddedRedis, observer: RecordingObserver
) -> None:
    async with make_store(server.url, observer, timeout_s=5.0) as store:
        await store.put("t", {"a": b"1"})
        server.stop()
        server.start()
        await store.put("t", {"a": b"2"})
        assert await store.lookup("t", ["a"]) == (b"2",)
        assert not observer.fallbacks


async def test_stop_while_probing_leaves_no_task(server: EmbeddedRedis, observer: RecordingObserver) -> None:
    with stopped(server):
        async with make_store(server.url, observer) as store:
            for _ in range(3):
                await store.lookup("t", ["a"])
            assert store.breaker_state is not BreakerState.CLOSED
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- quotas while it is away -----------------------------------------------------------------------------------------


async def test_local_bucket_goes_on_where_redis_was_and_still_refuses(server: EmbeddedRedis, store: RedisStore) -> None:
    assert (await store.lookup_and_reserve("t", ["x"], [Cost(70.0, 1.0)], LIMITS)).hold is not None
    with stopped(server):
        assert (await store.lookup_and_reserve("t", ["x"], [Cost(31.0, 1.0)], LIMITS)).over_budget is not None
        assert (await store.lookup_and_reserve("t", ["x"], [Cost(30.0, 1.0)], LIMITS)).hold is not None
        assert (await store.lookup_and_reserve("t", ["x"], [Cost(1.0, 1.0)], LIMITS)).over_budget is not None


async def test_gateways_share_what_a_tenant_may_spend_during_an_outage(server: EmbeddedRedis) -> None:
    num_granted = 0
    async with contextlib.AsyncExitStack() as stack:
        gateways = [
            await stack.enter_async_context(make_store(server.url, RecordingObserver(), share=1 / 4)) for _ in range(4)
        ]
        with stopped(server):
            for gateway in gateways:
                for _ in range(50):
                    reply = await gateway.lookup_and_reserve("t", ["x"], [ONE], LIMITS)
                    num_granted += reply.hold is not None
    assert num_granted == 100


# -- what could not be settled ---------------------------------------------------------------------------------------


async def level_j(admin: aioredis.Redis) -> float:
    return float(await admin.hget(keys.bucket("t"), "joules") or "nan")


async def test_what_was_reserved_in_redis_and_ended_while_it_was_away_is_settled_once_it_is_back(
    server: EmbeddedRedis, store: RedisStore, admin: aioredis.Redis
) -> None:
    """The answer was lost, not necessarily the command: a frozen server may run it when it wakes. Never twice."""
    reply = await store.lookup_and_reserve("t", ["x"], [Cost(70.0, 1.0)], LIMITS)
    assert reply.hold is not None
    with stopped(server):
        assert not await store.settle(reply.hold, Cost(10.0, 0.5))
        assert store.num_unsettled == 1

    async def is_settled() -> bool:
        return not store.num_unsettled

    await until(is_settled)
    assert await level_j(admin) == pytest.approx(90.0)
    assert not await store.settle(reply.hold, Cost(50.0, 0.5))
    assert await level_j(admin) == pytest.approx(90.0)


async def test_what_ran_during_an_outage_is_charged_in_one_sum_once_it_is_over(
    server: EmbeddedRedis, store: RedisStore, admin: aioredis.Redis
) -> None:
    await store.charge("t", LIMITS, Cost(1.0, 0.1))
    reply = await store.lookup_and_reserve("t", ["x"], [Cost(20.0, 1.0)], LIMITS)
    assert reply.hold is not None
    assert not reply.hold.is_local
    await store.settle(reply.hold, Cost(0.0, 0.0))
    with stopped(server):
        while store.breaker_state is BreakerState.CLOSED:
            await store.lookup("t", ["x"])
        for _ in range(30):
            reply = await store.lookup_and_reserve("t", ["x"], [ONE], LIMITS)
            assert reply.hold is not None
            assert reply.hold.is_local
            await store.settle(reply.hold, Cost(0.5, 0.05))
            await store.charge("t", LIMITS, Cost(0.5, 0.05))
        assert store.num_unsettled == 1

    async def is_settled() -> bool:
        return not store.num_unsettled

    await until(is_settled)
    assert await level_j(admin) == pytest.approx(100.0 - 1.0 - 30 * 0.5 - 30 * 0.5)
    marks = await admin.keys("*charged*")
    assert len(marks) == 2


async def test_what_redis_may_have_granted_without_being_heard_is_given_back(
    server: EmbeddedRedis, store: RedisStore, admin: aioredis.Redis
) -> None:
    await store.charge("t", LIMITS, Cost(1.0, 0.1))
    with stopped(server):
        reply = await store.lookup_and_reserve("t", ["x"], [Cost(70.0, 1.0)], LIMITS)
        assert reply.hold is not None
        assert reply.hold.is_local
        await store.settle(reply.hold, Cost(9.0, 0.5))

    async def is_settled() -> bool:
        return not store.num_unsettled

    await until(is_settled)
    assert await level_j(admin) == pytest.approx(90.0)
    assert await admin.keys("*reservation*") == []


async def test_a_job_that_ended_while_redis_was_away_is_corrected_once_it_is_back(
    server: EmbeddedRedis, store: RedisStore, admin: aioredis.Redis
) -> None:
    reply = await store.lookup_and_reserve("t", [None], [Cost(70.0, 1.0)], LIMITS)
    assert reply.hold is not None
    assert await store.settle(reply.hold, Cost(70.0, 1.0))
    with stopped(server):
        assert not await store.settle_job("t", "job", Cost(70.0, 1.0), Cost(30.0, 0.5))

    async def is_settled() -> bool:
        return not store.num_unsettled

    await until(is_settled)
    assert not await store.settle_job("t", "job", Cost(70.0, 1.0), Cost(0.0, 0.0))
    assert await level_j(admin) == pytest.approx(70.0)


# -- full, read-only, loading, nonsense ------------------------------------------------------------------------------


async def test_full_redis_still_answers_hits_and_keeps_quotas_locally(observer: RecordingObserver) -> None:
    with embedded_redis(eviction_policy="noeviction") as server:
        async with make_store(server.url, observer) as store:
            await store.put("t", {"a": b"1"})
            admin = aioredis.Redis.from_url(server.url)
            await admin.config_set("maxmemory", "1")
            for _ in range(5):
                await store.put("t", {"b": b"2"})
                reply = await store.lookup_and_reserve("t", ["a", "b"], [ONE, ONE], LIMITS)
                assert reply.values == (b"1", None)
                assert reply.hold is not None
                assert reply.hold.is_local
                assert reply.hold.cost == ONE
            assert store.breaker_state is BreakerState.CLOSED  # it answers, and promptly
            assert observer.calls["put", "out_of_memory"] == 5
            await admin.config_set("maxmemory", "0")
            await admin.aclose()
            assert await is_back(store)


async def test_read_only_replica_is_done_without_until_it_is_writable_again(
    store: RedisStore, admin: aioredis.Redis
) -> None:
    await admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    for _ in range(10):
        reply = await store.lookup_and_reserve("t", ["missing"], [ONE], LIMITS)
        assert reply.hold is not None
    assert store.breaker_state is not BreakerState.CLOSED
    await admin.execute_command("REPLICAOF", "NO", "ONE")
    await until(lambda: is_back(store))


async def test_server_busy_for_longer_than_the_timeout_costs_no_request(
    store: RedisStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    busy = asyncio.create_task(admin.execute_command("DEBUG", "SLEEP", "1"))

    async def falls_back() -> bool:
        assert (await use_everything(store)).values == (None,)
        return observer.fallbacks["lookup"] > 0

    await until(falls_back)
    await busy
    await until(lambda: is_back(store))


@contextlib.asynccontextmanager
async def parrot(answer: bytes) -> AsyncIterator[str]:
    """A server that says the same to everything."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                writer.write(answer)
                await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="vireo-parrot-") as folder:
        server = await asyncio.start_unix_server(handle, f"{folder}/p.sock")
        async with server:
            yield f"unix://{folder}/p.sock"


@pytest.mark.parametrize(
    "answer",
    [
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-ERR unknown command\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$5\r\nhello\r\n",
        b":1\r\n",
        b"*-1\r\n",
        b"*1\r\n$1000000000\r\nx",
        b"\x00\xff\xfe garbage",
        b"*2\r\n$-1\r\n:7\r\n",
    ],
)
async def test_any_answer_at_all_costs_no_request(answer: bytes, observer: RecordingObserver) -> None:
    async with parrot(answer) as url, make_store(url, observer) as store:
        for _ in range(5):
            assert (await use_everything(store)).values == (None,)


async def test_cancelled_call_does_not_mix_up_the_next_answers(store: RedisStore) -> None:
    await store.put("t", {str(number): str(number).encode() for number in range(50)})
    for number in range(50):
        call = asyncio.create_task(store.lookup("t", [str(number)]))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        other = str((number + 25) % 50)
        assert await store.lookup("t", [other]) == (other.encode(),)


async def test_more_callers_than_connections_wait_in_line_and_leave_the_breaker_alone(
    server: EmbeddedRedis, observer: RecordingObserver
) -> None:
    config = RedisConfig(url=server.url, timeout_s=5.0, max_connections=2, breaker=BREAKER)
    store = RedisStore(config, tell=observer)
    try:
        await store.put("t", {"a": b"1"})
        answers = await asyncio.gather(*(store.lookup("t", ["a"]) for _ in range(300)))
        assert answers == [(b"1",)] * 300
        assert not observer.states
    finally:
        await store.stop()


async def test_tenants_take_turns_at_the_connections(server: EmbeddedRedis) -> None:
    store = RedisStore(RedisConfig(url=server.url, timeout_s=5.0, max_connections=1))
    order: list[str] = []

    async def look_up(tenant: str) -> None:
        await store.lookup(tenant, ["a"])
        order.append(tenant)

    try:
        async with asyncio.TaskGroup() as calls:
            for tenant in [*["greedy"] * 100, "modest"]:
                calls.create_task(look_up(tenant))
    finally:
        await store.stop()
    assert order.index("modest") <= 3


async def test_caller_that_leaves_the_line_takes_no_connection_along(server: EmbeddedRedis) -> None:
    store = RedisStore(RedisConfig(url=server.url, timeout_s=5.0, max_connections=1))
    try:
        for turns in range(6):
            calls = [asyncio.create_task(store.lookup("t", ["a"])) for _ in range(5)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls[1:4]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        async with asyncio.timeout(5.0):
            assert await store.lookup("t", ["a"]) == (None,)
    finally:
        await store.stop()
