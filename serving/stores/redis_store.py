"""Results and quotas in Redis, failing open: no method here raises because of Redis.

Without Redis a look-up is a miss, a write is dropped, and quotas are kept by this process alone (``LocalBuckets``).
What was used meanwhile is charged when it is back, and what it may have granted in a call whose answer was lost is
given back (``Outbox``).
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis.asyncio as aioredis
from redis.exceptions import NoScriptError

from schedulers.admission import AS_PREDICTED, BucketLimits, BucketState, Cost, Factors, OverBudget
from schedulers.spending import Spending, turned
from serving.errors import StoreFull, StoreUnavailable
from serving.stores import keys
from serving.stores.account import Account, read_account
from serving.stores.breaker import BreakerState
from serving.stores.buckets import Hold, LocalBuckets
from serving.stores.connection import RedisConfig, RedisConnection
from serving.stores.outbox import Outbox, Owed
from serving.stores.replies import Levels, ReserveReply, Values, parse_reserve, parse_settle, parse_values
from serving.stores.scripts import CHARGE, LOOKUP_AND_RESERVE, SETTLE, SETTLE_JOB, Script
from serving.telemetry.events import BucketRepaired, ResultsLookedUp, Sink, ignore

MAX_VALUE_BYTES = 1 << 20
FRESH_S = 1.0
"""What Redis said longer ago decides nothing: other gateways, and jobs that end, give back what they had set aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupReply:
    """Values in the order of the digests, None for a miss, and what became of the cost of the misses.

    ``hold`` is None when nothing had to be reserved or ``over_budget`` says that it was not: of the buckets, with no
    time to wait where they hold it and a cap does not. ``spending``: what Redis said of that. ``is_local``: this
    process decided, not Redis.
    """

    values: Values
    hold: Hold | None = None
    over_budget: OverBudget | None = None
    spending: Spending | None = None
    is_local: bool = False


class _News(NamedTuple):
    """What Redis said of an account, and when, on the clock of this process."""

    spending: Spending
    heard_at_s: float


class RedisStore:
    """Exact results and tenant quotas. Use from one event loop; ``stop`` when done.

    ``local_share``: see ``LocalBuckets``.
    """

    def __init__(
        self,
        config: RedisConfig,
        *,
        tell: Sink = ignore,
        local_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._clock = clock
        self._connection = RedisConnection(config, tell, clock)
        self._local = LocalBuckets(local_share)
        self._news: dict[str, _News] = {}
        self._outbox = Outbox(lambda: self.is_up, self._charge, tell=tell, clock=clock)

    @property
    def breaker_state(self) -> BreakerState:
        """Where the breaker of the connection stands."""
        return self._connection.breaker_state

    @property
    def num_unsettled(self) -> int:
        """Settlements that wait for Redis to come back."""
        return len(self._outbox)

    async def start(self) -> bool:
        """Connect ahead of the first request. Returns whether Redis answered; if not, everything works without it."""
        return await self._connection.warm_up([LOOKUP_AND_RESERVE.source, SETTLE.source, CHARGE.source])

    async def stop(self) -> None:
        """Settle what can be, and close the connections."""
        await self._outbox.stop()
        await self._connection.stop()

    # -- results -----------------------------------------------------------------------------------------------------

    async def lookup(self, tenant: str, digests: Sequence[str]) -> Values:
        """Read results of ``tenant``; None for each miss."""
        names = [keys.result(tenant, digest) for digest in digests]
        if not names:
            return ()

        async def send(client: aioredis.Redis) -> Values:
            return parse_values(await client.mget(names), len(names))

        try:
            return self._observed(await self._connection.call("lookup", send, tenant))
        except StoreUnavailable:
            return (None,) * len(names)

    async def put(self, tenant: str, values: Mapping[str, bytes], ttl_s: int = keys.RESULT_TTL_S) -> None:
        """Write results by digest. Best effort; values over ``MAX_VALUE_BYTES`` are left out."""
        small = {digest: value for digest, value in values.items() if len(value) <= MAX_VALUE_BYTES}
        if not small:
            return

        async def send(client: aioredis.Redis) -> None:
            pipeline = client.pipeline(transaction=False)
            for digest, value in small.items():
                pipeline.set(keys.result(tenant, digest), value, ex=ttl_s)
            await pipeline.execute()

        try:
            await self._connection.call("put", send, tenant)
        except StoreUnavailable:
            return

    # -- results and quotas in one round trip ------------------------------------------------------------------------

    async def lookup_and_reserve(
        self,
        tenant: str,
        digests: Sequence[str | None],
        costs: Sequence[Cost],
        limits: BucketLimits | None,
        overrun: Factors = AS_PREDICTED,
    ) -> LookupReply:
        """Read results, and reserve the cost of those that are missing: all of it, or nothing.

        ``digests``: None for an item that must not be looked up. ``costs``: predicted, one per digest. ``limits``: None
        for a tenant without a quota. ``overrun``: how many times its cost it may take, see ``schedulers.admission``.
        A reservation must be settled once; unsettled ones stay charged.

        Raises:
            ValueError: not one cost per digest, or none at all.
        """
        if not digests or len(digests) != len(costs):
            raise ValueError(
                f"{len(digests)} digests and {len(costs)} costs; give one cost per digest, and at least one"
            )
        if limits is None:
            return LookupReply(values=await self.lookup(tenant, [digest or "" for digest in digests]))
        if self.is_up:
            await self._outbox.flush(tenant)
        was_up, reservation_id = self.is_up, uuid.uuid4().hex
        try:
            return await self._lookup_and_reserve(tenant, reservation_id, digests, costs, limits, overrun)
        except StoreFull:
            values = await self.lookup(tenant, [digest or "" for digest in digests])
        except StoreUnavailable as error:
            values = (None,) * len(digests)
            if was_up and error.was_sent:  # it may have been granted, and only the answer lost
                lost = Hold(reservation_id, tenant, Cost(0.0, 0.0), limits, is_local=False)
                self._outbox.add(tenant, lambda: self._settle(lost, Cost(0.0, 0.0)), keys.RESERVATION_TTL_S)
        return self._reserve_locally(tenant, values, costs, limits, overrun)

    async def _lookup_and_reserve(
        self,
        tenant: str,
        reservation_id: str,  # chosen by the caller, so that a retry cannot reserve twice
        digests: Sequence[str | None],
        costs: Sequence[Cost],
        limits: BucketLimits,
        overrun: Factors,
    ) -> LookupReply:
        names = [keys.result(tenant, digest or "") for digest in digests]
        names += [keys.bucket(tenant), keys.reservation(tenant, reservation_id), keys.open_reservations(tenant)]
        arguments: list[float | str] = [len(digests), keys.RESERVATION_TTL_S, *_numbers(limits)]
        arguments += [limits.max_joules_per_day, limits.max_joules_per_month]
        arguments += [overrun.joules, overrun.seconds, reservation_id]
        for cost in costs:
            arguments += [cost.joules, cost.seconds]

        async def send(client: aioredis.Redis) -> tuple[Values, ReserveReply | None]:
            return parse_reserve(await _run(client, LOOKUP_AND_RESERVE, names, arguments), len(digests))

        values, reply = await self._connection.call("lookup_and_reserve", send, tenant)
        self._observed(values)
        if reply is None:
            return LookupReply(values=values)
        self._observe(tenant, limits, reply.levels)
        if not reply.is_granted:
            return LookupReply(values=values, over_budget=OverBudget(reply.wait_s), spending=reply.levels.spending)
        hold = Hold(reservation_id, tenant, Cost(reply.joules, reply.seconds), limits, is_local=False)
        return LookupReply(values=values, hold=hold)

    def _reserve_locally(
        self, tenant: str, values: Values, costs: Sequence[Cost], limits: BucketLimits, overrun: Factors
    ) -> LookupReply:
        missing = [cost for value, cost in zip(values, costs, strict=True) if value is None]
        if not missing:
            return LookupReply(values=values)
        total = Cost(math.fsum(c.joules for c in missing), math.fsum(c.seconds for c in missing))
        outcome = self._local.reserve(tenant, limits, total, self._clock(), overrun)
        if isinstance(outcome, OverBudget):
            return LookupReply(values=values, over_budget=outcome, is_local=True)
        self._outbox.owe(tenant, limits, Owed(outcome.cost.joules, outcome.cost.seconds))  # also while it runs
        return LookupReply(values=values, hold=outcome, is_local=True)

    async def settle(self, hold: Hold, actual: Cost) -> bool:
        """Give back what was reserved and charge what was used, once. While Redis is away: as soon as it is back.

        Returns: whether it was settled now.
        """
        if hold.is_local:
            is_settled = self._local.settle(hold, actual, self._clock())
            if is_settled:
                more = Owed(actual.joules - hold.cost.joules, actual.seconds - hold.cost.seconds)
                self._outbox.owe(hold.tenant, hold.limits, more)
            return is_settled
        try:
            return await self._settle(hold, actual)
        except StoreUnavailable:
            self._outbox.add(hold.tenant, lambda: self._settle(hold, actual), keys.RESERVATION_TTL_S)
            return False

    async def _settle(self, hold: Hold, actual: Cost) -> bool:
        names = [
            keys.bucket(hold.tenant),
            keys.reservation(hold.tenant, hold.id),
            keys.open_reservations(hold.tenant),
        ]
        arguments = [actual.joules, actual.seconds, *_numbers(hold.limits), hold.id]

        async def send(client: aioredis.Redis) -> Levels | None:
            return parse_settle(await _run(client, SETTLE, names, arguments))

        levels = await self._connection.call("settle", send, hold.tenant)
        if levels is None:  # it was before, or is too late: the estimate stands
            return False
        self._observe(hold.tenant, hold.limits, levels)
        return True

    async def charge(self, tenant: str, limits: BucketLimits, actual: Cost) -> None:
        """Charge for what was never reserved. While Redis is away this process keeps the account, and tells it then."""
        if not self.is_up:
            self._local.charge(tenant, limits, actual, self._clock())
            self._outbox.owe(tenant, limits, Owed(actual.joules, actual.seconds))
            return
        mark, owed = uuid.uuid4().hex, Owed(actual.joules, actual.seconds)
        try:
            await self._charge(tenant, limits, owed, mark)
        except StoreUnavailable:
            self._local.charge(tenant, limits, actual, self._clock())
            self._outbox.add(tenant, lambda: self._charge(tenant, limits, owed, mark), keys.CHARGE_MARK_TTL_S)

    async def _charge(self, tenant: str, limits: BucketLimits, owed: Owed, mark: str) -> None:
        names = [keys.bucket(tenant), keys.charge_mark(tenant, mark), keys.open_reservations(tenant)]
        arguments: list[float | str] = [*owed, *_numbers(limits), keys.CHARGE_MARK_TTL_S]

        async def send(client: aioredis.Redis) -> Levels | None:
            return parse_settle(await _run(client, CHARGE, names, arguments))

        levels = await self._connection.call("charge", send, tenant)
        if levels is not None:
            self._observe(tenant, limits, levels)

    def levels(self, tenant: str, limits: BucketLimits, max_age_s: float = FRESH_S) -> BucketState:
        """What the tenant has left at most: by what Redis said in the last ``max_age_s``, or while it is away, by this
        process' account. Asks nobody."""
        return self._local.levels(tenant, limits, self._clock(), max_age_s if self.is_up else math.inf)

    def spending(self, tenant: str, max_age_s: float = FRESH_S) -> Spending | None:
        """What the tenant has spent of late, by what Redis said in the last ``max_age_s``; None: it said nothing. Asks
        nobody."""
        news = self._news.get(tenant)
        if news is None or (age_s := self._clock() - news.heard_at_s) > max_age_s:
            return None
        return turned(news.spending, news.spending.at_s + age_s)

    async def account(self, tenant: str, limits: BucketLimits) -> Account:
        """What Redis says of it, with all that is known here and Redis can be told. Raises: StoreUnavailable."""
        await self._outbox.flush(tenant)

        async def send(client: aioredis.Redis) -> Account:
            return await read_account(client, tenant, limits)

        account = await self._connection.call("account", send, tenant)
        levels = Levels(account.level.joules, account.level.seconds, account.spending, is_repaired=False)
        self._observe(tenant, limits, levels)
        return account

    async def settle_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> bool:
        """Correct what a durable job was charged when it was taken in: once for each job, whoever asks first. While
        Redis is away: as soon as it is back.

        Returns: whether it was corrected now. False also if it was before, or the tenant has no bucket.
        """
        try:
            return await self.correct_job(tenant, job_id, charged, actual)
        except StoreUnavailable:
            self._outbox.add(tenant, lambda: self.correct_job(tenant, job_id, charged, actual), keys.JOB_MARK_TTL_S)
            return False

    async def correct_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> bool:
        """``settle_job`` for who asks again later. Raises: StoreUnavailable."""
        names = [keys.bucket(tenant), keys.job_mark(tenant, job_id), keys.open_reservations(tenant)]
        arguments = [charged.joules - actual.joules, charged.seconds - actual.seconds, keys.JOB_MARK_TTL_S]

        async def send(client: aioredis.Redis) -> bool:
            return bool(await _run(client, SETTLE_JOB, names, arguments) == 1)

        return await self._connection.call("settle_job", send, tenant)

    def _observe(self, tenant: str, limits: BucketLimits, levels: Levels) -> None:
        now_s = self._clock()
        self._local.observe(tenant, limits, levels.joules, levels.seconds, now_s)
        self._news[tenant] = _News(levels.spending, now_s)
        if levels.is_repaired:
            self._tell(BucketRepaired(tenant))

    @property
    def is_up(self) -> bool:
        """Whether it is worth asking Redis."""
        return self._connection.breaker_state is BreakerState.CLOSED

    def _observed(self, values: Values) -> Values:
        num_hits = sum(value is not None for value in values)
        self._tell(ResultsLookedUp(num_hits, len(values) - num_hits))
        return values


def _numbers(limits: BucketLimits) -> list[float | str]:
    return [limits.joules_per_s, limits.joules_burst, limits.seconds_per_s, limits.seconds_burst]


async def _run(client: aioredis.Redis, script: Script, names: list[str], arguments: Sequence[float | str]) -> Any:
    texts = [argument if isinstance(argument, str) else repr(argument) for argument in arguments]
    try:
        return await client.evalsha(script.sha1, len(names), *names, *texts)
    except NoScriptError:  # first use, or the server lost it
        return await client.eval(script.source, len(names), *names, *texts)
