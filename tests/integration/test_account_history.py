"""A random history of one account: requests that reserve, take what they take and are settled, or never are, while
Redis goes away, comes back and loses answers. The account never gives more than it got."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest
import redis.asyncio as aioredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from schedulers.admission import BucketLimits, Cost
from serving.errors import StoreUnavailable
from serving.stores import keys, outbox
from serving.stores.breaker import BreakerState
from serving.stores.buckets import Hold
from serving.stores.connection import RedisConfig, RedisConnection
from serving.stores.redis_store import RedisStore
from tests.support.redis_server import embedded_redis

RATE = 1e-3
"""Joules per second: next to nothing while a test runs. Time passes by ``wait`` alone, so that a history can be played
again."""
_SLACK_J = 0.1


class Line:
    """A connection that can be cut: nothing arrives (``away``), or no answer does (``deaf``)."""

    def __init__(self, inner: RedisConnection) -> None:
        self._inner = inner
        self.state = "up"

    @property
    def breaker_state(self) -> BreakerState:
        return BreakerState.CLOSED

    async def call(self, name: str, send: Callable[[aioredis.Redis], Awaitable[Any]]) -> Any:
        if self.state == "away":
            raise StoreUnavailable("away")
        answer = await self._inner.call(name, send)
        if self.state == "deaf":
            raise StoreUnavailable("no answer came")
        return answer

    async def stop(self) -> None:
        await self._inner.stop()


class Account(RuleBasedStateMachine):
    """``spent_j``: settled. ``error_j``: the most that one request took over what was reserved for it."""

    url = ""
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.holds: list[tuple[Hold, float]] = []
        self.spent_j = self.error_j = self.now_s = 0.0
        Account.number += 1
        self.tenant = f"history-{Account.number}"

    @initialize()
    def open_account(self) -> None:
        self.limits = BucketLimits(joules_per_s=RATE, joules_burst=100.0, seconds_per_s=1e3, seconds_burst=1e3)
        self.store = RedisStore(RedisConfig(url=self.url, timeout_s=5.0), clock=lambda: self.now_s)

        async def start() -> None:
            await self.store.start()
            self.line = Line(self.store._connection)
            self.store._connection = cast(Any, self.line)
            self.store._outbox._clock = lambda: 0.0  # what waits for Redis does not grow too old

        self.runner.run(start())

    @rule(joules=st.floats(0.5, 60.0), overrun=st.sampled_from([1.0, 1.5, 8.0]), most=st.floats(0.0, 1.0))
    def reserve(self, joules: float, overrun: float, most: float) -> None:
        """It will take some part of ``overrun`` times its prediction: that is what an overrun promises."""
        asking = self.store.lookup_and_reserve(self.tenant, [None], [Cost(joules, 0.01)], self.limits, overrun)
        hold = self.runner.run(asking).hold
        if hold is not None:
            self.holds.append((hold, most * overrun * joules))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        hold, took_j = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        self.spent_j += took_j
        self.error_j = max(self.error_j, took_j - hold.cost.joules)
        self.runner.run(self.store.settle(hold, Cost(took_j, 0.01)))

    @precondition(lambda self: self.holds)
    @rule()
    def abort(self) -> None:
        hold, _ = self.holds.pop()
        self.runner.run(self.store.settle(hold, Cost(0.0, 0.0)))

    @precondition(lambda self: self.line.state == "up" and not self.store.num_unsettled)
    @rule()
    def crash(self) -> None:
        """Another gateway goes on; nobody settles what this one had open, so that its reservations stand. It has heard
        of the account before Redis goes away: one that had not would give its share of a full one."""
        open_j = sum(hold.cost.joules for hold, _ in self.holds)
        self.spent_j, self.holds = self.spent_j + open_j, []
        self.runner.run(self.store.stop())
        self.open_account()
        self.runner.run(self.store.charge(self.tenant, self.limits, Cost(0.0, 0.0)))

    @rule(seconds=st.floats(1e3, 1e5))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.runner.run(self._let_pass(seconds))

    async def _let_pass(self, seconds: float) -> None:
        client = aioredis.Redis.from_url(self.url)
        if await client.hexists(keys.bucket(self.tenant), "at"):
            await client.hincrbyfloat(keys.bucket(self.tenant), "at", -seconds)
        await client.aclose()

    @rule(state=st.sampled_from(["up", "away", "deaf"]))
    def cut(self, state: str) -> None:
        self.line.state = state

    @rule()
    def reconcile(self) -> None:
        self.runner.run(self.store._outbox.flush())

    @invariant()
    def gives_no_more_than_it_got(self) -> None:
        if not hasattr(self, "line"):
            return
        got_j = self.limits.joules_burst + RATE * self.now_s + _SLACK_J
        reserved_j = sum(hold.cost.joules for hold, _ in self.holds)
        assert self.spent_j + reserved_j <= got_j + self.error_j

    def teardown(self) -> None:
        if hasattr(self, "line"):
            self.line.state = "up"
            self.runner.run(self._check_books())
            self.runner.run(self.store.stop())
        self.runner.close()

    async def _check_books(self) -> None:
        """Once all is told, Redis knows what was taken to the last joule."""
        await self.store._outbox.flush()
        assert not self.store.num_unsettled
        client = aioredis.Redis.from_url(self.url)
        taken_j = float(await client.hget(keys.bucket(self.tenant), "taken_j") or 0.0)
        await client.aclose()
        assert taken_j == pytest.approx(self.spent_j + sum(hold.cost.joules for hold, _ in self.holds), abs=1e-6)


@pytest.fixture(scope="module", autouse=True)
def url() -> Iterator[str]:
    """What waits for Redis is sent when a history says so, not when some time has passed."""
    with pytest.MonkeyPatch.context() as patch, embedded_redis() as server:
        patch.setattr(outbox, "PERIOD_S", 1e6)
        Account.url = server.url
        yield server.url


def test_account_never_gives_more_than_it_got_and_its_books_are_right() -> None:
    run_state_machine_as_test(Account, settings=settings(max_examples=100, stateful_step_count=30, deadline=None))
    assert Account.number > 1
