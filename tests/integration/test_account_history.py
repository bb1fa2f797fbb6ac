"""A random history of one account: requests that reserve, take what they take and are settled, or never are, while
Redis goes away, comes back and loses answers. The account never gives more than it got."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TypeAlias

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

from schedulers.admission import BucketLimits, Cost, Factors
from serving.stores import keys, outbox
from serving.stores.buckets import Hold
from serving.stores.connection import RedisConfig
from serving.stores.redis_store import RedisStore
from tests.support.redis_line import Line
from tests.support.redis_server import embedded_redis

RATE = 1e-3
"""Joules and seconds per second: next to nothing while a test runs. Time passes by ``wait`` alone, so that a history
can be played again."""
_SLACK = 0.1
Pair: TypeAlias = tuple[float, float]


def pair_of(*costs: Cost) -> Pair:
    return sum(cost.joules for cost in costs), sum(cost.seconds for cost in costs)


def added(one: Pair, other: Pair) -> Pair:
    return one[0] + other[0], one[1] + other[1]


class Account(RuleBasedStateMachine):
    """Joules and seconds, in this order. ``spent``: settled. ``error``: the most that one request took over what was
    reserved for it."""

    url = ""
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.holds: list[tuple[Hold, Pair]] = []
        self.spent = self.error = (0.0, 0.0)
        self.now_s = 0.0
        Account.number += 1
        self.tenant = f"history-{Account.number}"

    @initialize()
    def open_account(self) -> None:
        self.limits = BucketLimits(joules_per_s=RATE, joules_burst=100.0, seconds_per_s=RATE, seconds_burst=10.0)
        self.store = RedisStore(RedisConfig(url=self.url, timeout_s=5.0), clock=lambda: self.now_s)

        async def start() -> None:
            await self.store.start()
            self.line = Line(self.store)
            self.store._outbox._clock = lambda: 0.0  # what waits for Redis does not grow too old

        self.runner.run(start())

    @rule(
        joules=st.floats(0.5, 60.0),
        seconds=st.floats(0.05, 6.0),
        overrun=st.sampled_from([Factors(), Factors(1.5, 8.0), Factors(50.0, 1.0), Factors(1.0, 50.0)]),
        most=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    )
    def reserve(self, joules: float, seconds: float, overrun: Factors, most: Pair) -> None:
        """It will take some part of ``overrun`` times its prediction, of each kind its own: that is what an overrun
        promises."""
        cost = Cost(joules, seconds)
        asking = self.store.lookup_and_reserve(self.tenant, [None], [cost], self.limits, overrun)
        hold = self.runner.run(asking).hold
        if hold is not None:
            took = (most[0] * overrun.joules * joules, most[1] * overrun.seconds * seconds)
            self.holds.append((hold, took))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        hold, took = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        self.spent = added(self.spent, took)
        reserved = (hold.cost.joules, hold.cost.seconds)
        over = [one - other for one, other in zip(took, reserved, strict=True)]
        self.error = (max(self.error[0], over[0]), max(self.error[1], over[1]))
        self.runner.run(self.store.settle(hold, Cost(*took)))

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
        self.spent, self.holds = added(self.spent, self.reserved()), []
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
        self.runner.run(self.store._outbox._flush())

    @invariant()
    def gives_no_more_than_it_got(self) -> None:
        if not hasattr(self, "line"):
            return
        bursts = (self.limits.joules_burst, self.limits.seconds_burst)
        taken = added(self.spent, self.reserved())
        for burst, one_taken, error in zip(bursts, taken, self.error, strict=True):
            assert one_taken <= burst + RATE * self.now_s + _SLACK + error

    def reserved(self) -> Pair:
        return pair_of(*(hold.cost for hold, _ in self.holds))

    def teardown(self) -> None:
        if hasattr(self, "line"):
            self.line.state = "up"
            self.runner.run(self._check_books())
            self.runner.run(self.store.stop())
        self.runner.close()

    async def _check_books(self) -> None:
        """Once all is told, Redis knows what was taken to the last joule."""
        await self.store._outbox._flush()
        assert not self.store.num_unsettled
        client = aioredis.Redis.from_url(self.url)
        stored = await client.hmget(keys.bucket(self.tenant), ["taken_j", "taken_s"])
        await client.aclose()
        taken = [float(value or 0.0) for value in stored]
        assert taken == pytest.approx(list(added(self.spent, self.reserved())), abs=1e-6)


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
