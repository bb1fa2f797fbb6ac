"""A day of faults, on a clock that the test moves: two gateways serve requests and jobs of two tenants while they
crash, Redis is killed and restarted, and calls or their answers are lost. What Redis says in the end is, to the joule,
what the requests took that were settled, and what was reserved for those whose gateway was gone."""

from __future__ import annotations

import heapq
import itertools
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import pytest

from schedulers.admission import BucketLimits, Cost, Factors
from serving.stores import keys, outbox
from serving.stores.breaker import BreakerConfig, BreakerState
from serving.stores.buckets import Hold
from serving.stores.connection import RedisConfig
from serving.stores.redis_server import EmbeddedRedis
from serving.stores.redis_store import RedisStore
from tests.support.redis_clock import RedisClock, redis_clock
from tests.support.redis_line import Line
from tests.support.redis_server import embedded_redis
from tests.support.waiting import until

MIDNIGHT = datetime(2026, 3, 30, tzinfo=UTC).timestamp()
LAST_ARRIVAL_S = 23.25 * 3600.0
"""What came is over by midnight, so that all of it is of one day."""
NUM_GATEWAYS = 2
LIMITS = {
    "rich": BucketLimits(joules_per_s=1e-9, joules_burst=1e6, seconds_per_s=1e-9, seconds_burst=1e6),
    "poor": BucketLimits(joules_per_s=0.05, joules_burst=60.0, seconds_per_s=1.0, seconds_burst=60.0),
}
"""The rich one's account never fills up: what is gone from it was taken."""
OVERRUN = Factors(joules=3.0, seconds=3.0)
FAULTS = {"refused", "local", "job", "away", "deaf", "crashed", "crashed away", "abandoned", "killed", "stopped"}


class Ended(NamedTuple):
    """A request that is over, of which Redis may not know yet."""

    hold: Hold
    took: Cost


class Correction(NamedTuple):
    """A job that is over, and was charged something else when it was taken in."""

    tenant: str
    job_id: str
    charged: Cost
    took: Cost


class Gateway:
    """A process: what it has open, and what it could not tell. ``known``: ids of its own grants that Redis has been
    told of. ``was_clean``: when its line was cut, nothing waited."""

    def __init__(self, server: EmbeddedRedis, clock: RedisClock) -> None:
        breaker = BreakerConfig(open_s=0.005, max_open_s=0.05)
        config = RedisConfig(url=server.url, timeout_s=10.0, breaker=breaker)
        self.store = RedisStore(config, local_share=1 / NUM_GATEWAYS)
        self.store._clock = clock
        self.line = Line(self.store)
        self.open: dict[int, Hold] = {}
        self.untold: list[Ended] = []
        self.corrections: list[Correction] = []
        self.decoded: list[tuple[str, float]] = []
        self.known: set[str] = set()
        self.was_clean = True


class Day:
    """``told_j``, by tenant: taken by requests that Redis has settled. ``stands_j``: reserved for those that it never
    will; ``above_j``: by how much that is above their predictions. What a gateway granted while Redis was away
    is lost with it if it crashes before it could tell."""

    def __init__(self, server: EmbeddedRedis, clock: RedisClock, seed: int) -> None:
        self.server = server
        self.clock = clock
        self.random = random.Random(seed)
        self.numbers = itertools.count()
        self.events: list[tuple[float, int, Callable[[], Awaitable[None]]]] = []
        self.gateways: list[Gateway] = []
        self.told_j: defaultdict[str, float] = defaultdict(float)
        self.stands_j: defaultdict[str, float] = defaultdict(float)
        self.above_j: defaultdict[str, float] = defaultdict(float)
        self.predicted_j: dict[str, float] = {}
        self.happened: Counter[str] = Counter()

    def plan(self, in_s: float, event: Callable[[], Awaitable[None]]) -> None:
        heapq.heappush(self.events, (self.clock() + in_s, next(self.numbers), event))

    async def live(self) -> None:
        """Until nothing is left to happen."""
        for _ in range(NUM_GATEWAYS):
            await self.open_gateway()
        self.each(30.0, self.arrive)
        self.each(1500.0, self.cut)
        self.each(6000.0, self.crash)
        self.each(9000.0, self.restart)
        while self.events:
            at_s, _, event = heapq.heappop(self.events)
            self.clock.move_to(at_s)
            await event()
            for gateway in self.gateways:
                await self.tell(gateway)

    def each(self, every_s: float, event: Callable[[], Awaitable[None]]) -> None:
        """At random, so often on average, while requests come."""
        in_s = self.random.expovariate(1 / every_s)
        if self.clock() + in_s - MIDNIGHT > LAST_ARRIVAL_S:
            return

        async def again() -> None:
            self.each(every_s, event)
            await event()

        self.plan(in_s, again)

    async def open_gateway(self) -> Gateway:
        gateway = Gateway(self.server, self.clock)
        self.gateways.append(gateway)
        for tenant, limits in LIMITS.items():  # else it would give its share of a full one while Redis is away
            await gateway.store.charge(tenant, limits, Cost(0.0, 0.0))
        return gateway

    # -- requests ------------------------------------------------------------------------------------------------------

    async def arrive(self) -> None:
        gateway, tenant = self.random.choice(self.gateways), self.random.choice(list(LIMITS))
        predicted = Cost(self.random.uniform(0.5, 6.0), self.random.uniform(0.05, 0.6))
        took = Cost(
            predicted.joules * self.random.uniform(0.2, OVERRUN.joules),
            predicted.seconds * self.random.uniform(0.2, OVERRUN.seconds),
        )
        await self.decode(gateway, tenant)
        hold = (await gateway.store.lookup_and_reserve(tenant, [None], [predicted], LIMITS[tenant], OVERRUN)).hold
        if hold is None:
            self.happened["refused"] += 1
            return
        self.predicted_j[hold.id] = predicted.joules
        if self.random.random() < 0.1:
            await self.queue_job(gateway, hold, took)
        else:
            self.begin(gateway, hold, took)

    async def decode(self, gateway: Gateway, tenant: str) -> None:
        """Charged, and never reserved."""
        joules = self.random.uniform(0.0, 0.2)
        gateway.decoded.append((tenant, joules))
        await gateway.store.charge(tenant, LIMITS[tenant], Cost(joules, 0.001))

    def begin(self, gateway: Gateway, hold: Hold, took: Cost) -> None:
        number = next(self.numbers)
        gateway.open[number] = hold

        async def end() -> None:
            if gateway.open.pop(number, None) is not None:  # else its gateway is gone
                await self.settle(gateway, hold, took)

        self.happened["local" if hold.is_local else "reserved"] += 1
        self.plan(min(300.0, self.random.expovariate(1 / 90.0)), end)

    async def settle(self, gateway: Gateway, hold: Hold, took: Cost) -> None:
        is_settled = await gateway.store.settle(hold, took)
        if is_settled and not hold.is_local:
            self.told_j[hold.tenant] += took.joules
        else:
            gateway.untold.append(Ended(hold, took))

    async def queue_job(self, gateway: Gateway, hold: Hold, took: Cost) -> None:
        """Charged what is reserved, and corrected when it is over, by whichever gateway is there then."""
        await self.settle(gateway, hold, hold.cost)
        correction = Correction(hold.tenant, f"job-{next(self.numbers)}", hold.cost, took)

        async def end() -> None:
            self.happened["job"] += 1
            await self.correct(correction)

        self.plan(self.random.uniform(60.0, 900.0), end)

    async def correct(self, correction: Correction) -> None:
        gateway = self.random.choice(self.gateways)
        gateway.corrections.append(correction)
        await gateway.store.settle_job(*correction)

    async def tell(self, gateway: Gateway) -> None:
        """As an outbox does four times a second."""
        if not (gateway.store.num_unsettled or gateway.untold or gateway.corrections or gateway.decoded):
            return
        await gateway.store._outbox._flush()
        if gateway.store.num_unsettled:
            return
        for ended in gateway.untold:
            self.told_j[ended.hold.tenant] += ended.took.joules
        for one in gateway.corrections:
            self.told_j[one.tenant] += one.took.joules - one.charged.joules
        for tenant, joules in gateway.decoded:
            self.told_j[tenant] += joules
        gateway.untold, gateway.corrections, gateway.decoded = [], [], []
        gateway.known = {hold.id for hold in gateway.open.values() if hold.is_local}

    # -- faults --------------------------------------------------------------------------------------------------------

    async def cut(self) -> None:
        gateway = self.random.choice(self.gateways)
        if gateway.line.state != "up":
            return
        gateway.was_clean = not gateway.store.num_unsettled
        gateway.line.state = self.random.choice(["away", "deaf"])
        self.happened[gateway.line.state] += 1

        self.plan(self.random.uniform(20.0, 300.0), partial(self.mend, gateway))

    async def restart(self) -> None:
        """Killed at once, or stopped for minutes in which nobody reaches it."""
        if self.server.pid is None or any(gateway.line.state == "deaf" for gateway in self.gateways):
            return
        if self.happened["killed"] <= self.happened["stopped"]:
            self.happened["killed"] += 1
            os.kill(self.server.pid, signal.SIGKILL)
            await self.answers()
            return
        self.happened["stopped"] += 1
        self.server.stop()

        async def start() -> None:
            self.server.start()
            await self.answers()

        self.plan(self.random.uniform(20.0, 300.0), start)

    async def answers(self) -> None:
        await until(self.clock.tell)
        for gateway in self.gateways:
            await until(lambda gateway=gateway: gateway.line.inner.breaker_state is BreakerState.CLOSED)

    async def crash(self) -> None:
        """At once, or some time after Redis is out of its reach."""
        gateway = self.random.choice(self.gateways)
        if gateway.line.state == "up" and not gateway.store.num_unsettled and self.random.random() < 0.5:
            gateway.was_clean, gateway.line.state = True, "away"
            self.plan(self.random.uniform(30.0, 200.0), partial(self.end, gateway))
            self.plan(300.0, partial(self.mend, gateway))
        else:
            await self.end(gateway)

    async def mend(self, gateway: Gateway) -> None:
        gateway.line.state = "up"

    async def end(self, gateway: Gateway) -> None:
        """What Redis has not been told by then it never is. Not while answers are lost: nobody could say what arrived.
        Somebody else corrects what jobs were charged."""
        if gateway not in self.gateways:
            return
        is_clean = not gateway.store.num_unsettled and gateway.line.state == "up"
        if not (is_clean or (gateway.line.state == "away" and gateway.was_clean)) or self.server.pid is None:
            return
        self.happened["crashed" if is_clean else "crashed away"] += 1
        self.happened["abandoned"] += len(gateway.open)
        gone = [*(ended.hold for ended in gateway.untold), *gateway.open.values()]
        for hold in gone:
            if not hold.is_local or hold.id in gateway.known:
                self.stands_j[hold.tenant] += hold.cost.joules
            if not hold.is_local:
                self.above_j[hold.tenant] += hold.cost.joules - self.predicted_j[hold.id]
        gateway.open = {}
        self.gateways.remove(gateway)
        await gateway.line.inner.stop()
        if gateway.store._outbox._sender is not None:
            gateway.store._outbox._sender.cancel()
        await self.open_gateway()
        for correction in gateway.corrections:
            await self.correct(correction)


@pytest.fixture
def server() -> Iterator[EmbeddedRedis]:
    with embedded_redis(is_persistent=True) as server:
        yield server


@pytest.fixture
def clock(server: EmbeddedRedis) -> Iterator[RedisClock]:
    with pytest.MonkeyPatch.context() as patch, redis_clock(server.url, MIDNIGHT) as clock:
        patch.setattr(outbox, "PERIOD_S", 1e6)
        yield clock


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_account_adds_up_after_a_day_of_faults(server: EmbeddedRedis, clock: RedisClock, seed: int) -> None:
    day = Day(server, clock, seed)
    try:
        await day.live()
        clock.move_to(clock() + keys.RESERVATION_TTL_S)
        store = day.gateways[0].store
        accounts = {tenant: await store.account(tenant, limits) for tenant, limits in LIMITS.items()}
    finally:
        for gateway in day.gateways:
            await gateway.store.stop()
    assert 23.25 * 3600.0 < clock() - MIDNIGHT < 24.0 * 3600.0
    assert not any(gateway.store.num_unsettled or gateway.untold for gateway in day.gateways)
    assert day.happened.keys() >= FAULTS, FAULTS - day.happened.keys()
    assert day.happened["reserved"] > 1000
    for tenant, account in accounts.items():
        assert (account.num_open, account.reserved) == (0, Cost(0.0, 0.0))
        expected_j = day.told_j[tenant] + day.stands_j[tenant]
        assert account.spent.joules == pytest.approx(expected_j, abs=1e-6)
        late_j = expected_j - day.above_j[tenant]
        assert account.spending.day_j == account.spending.month_j == pytest.approx(late_j, abs=1e-6)
    gone_j = LIMITS["rich"].joules_burst - accounts["rich"].level.joules
    assert gone_j == pytest.approx(day.told_j["rich"] + day.stands_j["rich"], abs=1e-3)
