"""Exact results and quotas as deliveries use them: names and tenants in, Redis and its failures hidden.

Writing and settling happen after the answer, in the background: no caller waits for them.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

from schedulers.admission import AS_PREDICTED, NOTHING, BucketLimits, BucketState, Cost, Factors, lacks_for_s
from schedulers.spending import SpentOut, spent, spent_out
from serving.config import ResolvedConfig, TenantSettings
from serving.errors import AccountUnavailable, QuotaExceeded, QuotaTooSmall, SpendCapReached, StoreUnavailable
from serving.stores.account import Account
from serving.stores.breaker import BreakerConfig, BreakerState
from serving.stores.buckets import Hold
from serving.stores.connection import RedisConfig
from serving.stores.redis_store import LookupReply, RedisStore
from serving.stores.sealed import ResultCache, ResultKey
from serving.telemetry import tracing
from serving.telemetry.events import Sink, ignore
from serving.tenants import LiveTenants

T = TypeVar("T")
_MAX_BACKGROUND = 1_000
_FAILS_CLOSED = "it may spend nothing without (fail_closed, or a cap on what it spends)"
_SETTLED_S = 1.0
"""Whoever is refused because of what others have set aside, and may give back, asks again so much later."""
_FLUSH_S = 0.1
"""Decoding is charged in Redis so often at most; until then this gateway remembers it."""


class ResultName(NamedTuple):
    """What one result is stored under."""

    tenant: str
    digest: str


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """How one kind of result is stored: as a payload of plain values. ``encode`` gives None for what is not kept,
    ``decode`` for what it does not know."""

    encode: Callable[[T], dict[str, Any] | None]
    decode: Callable[[dict[str, Any]], T | None]


class Reservation:
    """Joules and seconds set aside for a request that runs, until it is settled: once, however it ends."""

    __slots__ = ("_charge", "cost")

    def __init__(self, charge: Callable[[Cost], None] | None = None, cost: Cost | None = None) -> None:
        self._charge = charge
        self.cost = cost
        """What was set aside; None where nothing had to be."""

    def settle(self, joules: float, seconds: float) -> None:
        """Charge what was really used instead. The first call counts."""
        charge, self._charge = self._charge, None
        if charge is not None:
            charge(Cost(joules, seconds))


@dataclass(frozen=True, slots=True)
class Lookup(Generic[T]):
    """One entry per name, None for a miss, and what was reserved for the misses."""

    found: tuple[T | None, ...]
    reservation: Reservation


class ResultStore:
    """The gateway's view of Redis. Use from one event loop."""

    def __init__(self, config: ResolvedConfig, tell: Sink = ignore, tenants: LiveTenants | None = None) -> None:
        settings = config.settings
        self._is_caching = settings.redis.cache
        self._ttl_s = max(1, round(settings.redis.cache_ttl_s))
        tenants = tenants or LiveTenants(settings.tenants)
        self._limits = tenants.view(_bucket_limits)
        self._fails_closed = tenants.view(_fails_closed)
        self._cache = ResultCache(config.secret.encode(), tell)
        self._store = RedisStore(
            RedisConfig(url=config.store_url, timeout_s=settings.redis.timeout_s, breaker=BreakerConfig()),
            tell=tell,
            local_share=1 / settings.gateway.replicas,
        )
        self._background: set[asyncio.Task[Any]] = set()
        self._looks: dict[str, asyncio.Task[None]] = {}
        """Under way, by tenant: whoever wants to know the same waits for one."""
        self._decode_watts = settings.media.watts
        self._held_s: defaultdict[str, float] = defaultdict(float)
        """Predicted seconds of the decodes that wait or run, by tenant."""
        self._owed_s: defaultdict[str, float] = defaultdict(float)
        """Seconds of decodes that are over and not charged in Redis yet."""
        self._flush_timer: asyncio.TimerHandle | None = None

    @property
    def breaker_state(self) -> BreakerState:
        """Where the breaker of the connection stands."""
        return self._store.breaker_state

    async def start(self) -> bool:
        """Connect ahead of the first request. Returns whether Redis answered."""
        return await self._store.start()

    async def stop(self) -> None:
        """Finish what runs in the background (each is bounded by the timeouts), then close."""
        self._flush()
        if self._background:
            await asyncio.wait(self._background)
        await self._store.stop()

    def name(self, key: ResultKey | None) -> ResultName | None:
        """Name an exact result; None for what has no key, and where nothing is kept."""
        return ResultName(key.tenant, self._cache.digest(key)) if key is not None and self._is_caching else None

    async def look_up(
        self,
        names: Sequence[ResultName | None],
        codec: Codec[T],
        tenant: str,
        costs: Sequence[Cost],
        overrun: Factors = AS_PREDICTED,
    ) -> Lookup[T]:
        """Look for results and reserve its cost for each one that is missing, in one round trip. What has no name is
        missing. ``overrun``: how many times that they may take, see ``schedulers.overrun``.

        Raises:
            QuotaExceeded: the tenant's buckets do not hold that much now; nothing was reserved. SpendCapReached: its
                joules of this day or month are spent.
            QuotaTooSmall: it never fits. AccountUnavailable: Redis is away, and the tenant is not served without its
                account, or this gateway's share of it never holds that much.
        """
        limits = self._limits.get(tenant)
        digests = [None if name is None else name.digest for name in names]
        if limits is None and not any(digests):
            return Lookup((None,) * len(names), Reservation())
        reply = await self._reserve(tenant, digests, costs, limits, overrun)
        found = tuple(self._opened(codec, *each) for each in zip(digests, reply.values, strict=True))
        return Lookup(found, self._reservation(reply.hold))

    async def reserve(self, tenant: str, cost: Cost, overrun: Factors = AS_PREDICTED) -> Reservation:
        """Only reserve. Raises: as ``look_up``."""
        limits = self._limits.get(tenant)
        if limits is None:
            return Reservation()
        return self._reservation((await self._reserve(tenant, [None], [cost], limits, overrun)).hold)

    def _reservation(self, hold: Hold | None) -> Reservation:
        if hold is None:
            return Reservation()
        parent = tracing.current()
        return Reservation(lambda actual: self._later(self._settle(hold, actual, parent), must_run=True), hold.cost)

    async def _settle(self, hold: Hold, actual: Cost, parent: tracing.Parent) -> None:
        """By the limits of now: those of then would cut an account down that has grown meanwhile."""
        limits = self._limits.get(hold.tenant, hold.limits)
        with tracing.span("settle", parent):
            await self._store.settle(replace(hold, limits=limits), actual)

    async def _reserve(
        self,
        tenant: str,
        digests: Sequence[str | None],
        costs: Sequence[Cost],
        limits: BucketLimits | None,
        overrun: Factors,
    ) -> LookupReply:
        """Look up and reserve what is missing. A caller that leaves meanwhile has it given back."""
        asking = asyncio.ensure_future(self._store.lookup_and_reserve(tenant, digests, costs, limits, overrun))
        try:
            with tracing.span("store"):
                reply = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._later(self._give_back(asking), must_run=True)
            raise
        if reply.is_local and self._fails_closed.get(tenant):
            if reply.hold is not None:
                await self._store.settle(reply.hold, NOTHING)
            raise _unreadable(tenant, _FAILS_CLOSED)
        if reply.over_budget is not None:
            assert limits is not None
            raise _refused(tenant, limits, reply, costs)
        return reply

    async def _give_back(self, asking: asyncio.Future[LookupReply]) -> None:
        reply = await asking
        if reply.hold is not None:
            await self._store.settle(reply.hold, Cost(0.0, 0.0))

    # -- accounts, and decoding ----------------------------------------------------------------------------------------

    async def admit(self, tenant: str, least: Cost = NOTHING, count: int = 1) -> None:
        """``check_account``, with one look at Redis for all who ask meanwhile where that is worth it: nothing is known
        of the account, or it had too little when it was last heard of, and may have been given some since."""
        limits = self._limits.get(tenant)
        if limits is not None and self._is_worth_a_look(tenant, limits, least):
            await self._look(tenant, limits)
        self.check_account(tenant, least, count)

    def _is_worth_a_look(self, tenant: str, limits: BucketLimits, least: Cost) -> bool:
        if not self._store.is_up or self._store.spending(tenant) is not None:
            return False
        spending = self._store.spending(tenant, math.inf)
        if spending is None or spent_out(spending, limits, least.joules) is not None:
            return True
        known = self._store.levels(tenant, limits, math.inf)
        return lacks_for_s(known, limits, least, known.at_s) > 0.0

    async def _look(self, tenant: str, limits: BucketLimits) -> None:
        look = self._looks.get(tenant)
        if look is None:
            look = self._looks[tenant] = asyncio.get_running_loop().create_task(self._looked(tenant, limits))
            self._background.add(look)
            look.add_done_callback(self._background.discard)
            look.add_done_callback(lambda _: self._looks.pop(tenant))
        await asyncio.shield(look)

    async def _looked(self, tenant: str, limits: BucketLimits) -> None:
        with suppress(StoreUnavailable):  # then it is reserved where nobody looked
            await self._store.account(tenant, limits)

    def check_account(self, tenant: str, least: Cost = NOTHING, count: int = 1) -> None:
        """Turn a tenant away whose account holds less than ``least``, or nothing, by what is known here: costs no look
        at Redis. ``count``: as many times ``least`` are asked for, unless something is found.

        Raises:
            QuotaExceeded: it did a moment ago, or does once this gateway's decodes are paid for. SpendCapReached: its
                joules of this day or month are spent.
            QuotaTooSmall: it never holds as much. AccountUnavailable: it may spend nothing while Redis is away.
        """
        limits = self._limits.get(tenant)
        if limits is None:
            return
        if not _may_fit(least, limits):
            raise _too_small(tenant, least, limits)
        if not self._store.is_up and self._fails_closed.get(tenant):
            raise _unreadable(tenant, _FAILS_CLOSED)
        decoding_s = self._held_s[tenant] + self._owed_s[tenant]
        decoding_j = decoding_s * self._decode_watts
        spending = self._store.spending(tenant)
        if spending is not None and (cap := spent_out(spent(spending, decoding_j), limits, least.joules)) is not None:
            raise _cap_reached(tenant, limits, cap)
        known = self._store.levels(tenant, limits)
        left = BucketState(known.joules - decoding_j, known.seconds - decoding_s, known.at_s)
        wait_s = lacks_for_s(left, limits, least, known.at_s)
        if wait_s > 0.0:
            whole = Cost(count * least.joules, count * least.seconds)
            raise _account_empty(tenant, wait_s, lacks_for_s(left, limits, whole, known.at_s))

    @property
    def tenants(self) -> tuple[str, ...]:
        """Names of those that have a quota."""
        return tuple(self._limits)

    async def account(self, tenant: str) -> Account | None:
        """The tenant's account; None: it has no quota. Raises: StoreUnavailable: Redis cannot be asked."""
        limits = self._limits.get(tenant)
        if limits is None:
            return None
        try:
            return await self._store.account(tenant, limits)
        except StoreUnavailable:
            raise StoreUnavailable(
                "accounts cannot be read now; requests are answered all the same. Retry in 1 s", retry_after_s=1.0
            ) from None

    def hold_decode(self, tenant: str, predicted_s: float) -> None:
        """See ``serving.media.pool.DecodeAccount``."""
        if tenant in self._limits:
            self.check_account(tenant)
            self._held_s[tenant] += predicted_s

    def charge_decode(self, tenant: str, predicted_s: float, used_s: float) -> None:
        """See ``serving.media.pool.DecodeAccount``. Charged in Redis a little later, with what comes meanwhile."""
        if tenant in self._held_s:  # also if it was removed meanwhile: it may come back
            self._held_s[tenant] = max(0.0, self._held_s[tenant] - predicted_s)
        if tenant not in self._limits:
            return
        self._owed_s[tenant] += used_s
        if used_s > 0.0 and self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        owed_s, self._owed_s = self._owed_s, defaultdict(float)
        for tenant, seconds in owed_s.items():
            # It stays set aside until Redis has it, so that nobody slips through in between.
            self._held_s[tenant] += seconds
            self._later(self._charge(tenant, seconds), must_run=True)

    async def _charge(self, tenant: str, seconds: float) -> None:
        try:
            if (limits := self._limits.get(tenant)) is not None:  # it may have been removed meanwhile
                await self._store.charge(tenant, limits, Cost(seconds * self._decode_watts, seconds))
        finally:
            self._held_s[tenant] = max(0.0, self._held_s[tenant] - seconds)

    def settle_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        """Correct what a durable job was charged, now that it is over. Any number of times; the first one counts."""
        if tenant in self._limits:
            self._later(self._store.settle_job(tenant, job_id, charged, actual), must_run=True)

    async def correct_job(self, tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
        """``settle_job`` for who asks again later. Raises: StoreUnavailable."""
        if tenant in self._limits:
            await self._store.correct_job(tenant, job_id, charged, actual)

    def put(self, name: ResultName | None, codec: Codec[T], value: T) -> None:
        """Keep a result, if it has a name."""
        if name is not None and (payload := codec.encode(value)) is not None:
            sealed = self._cache.seal(name.digest, payload)
            self._later(self._store.put(name.tenant, {name.digest: sealed}, self._ttl_s), must_run=False)

    def _opened(self, codec: Codec[T], digest: str | None, value: bytes | None) -> T | None:
        payload = None if digest is None else self._cache.open(digest, value)
        return None if payload is None else codec.decode(payload)

    def _later(self, work: Coroutine[Any, Any, Any], *, must_run: bool) -> None:
        if not must_run and len(self._background) >= _MAX_BACKGROUND:
            work.close()  # Redis is slow: a result that is not cached is computed again
            return
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _bucket_limits(tenant: TenantSettings) -> BucketLimits:
    return BucketLimits(
        joules_per_s=tenant.joules_per_s,
        joules_burst=tenant.burst_j,
        seconds_per_s=tenant.seconds_per_s,
        seconds_burst=tenant.burst_s,
        max_joules_per_day=tenant.max_joules_per_day or math.inf,
        max_joules_per_month=tenant.max_joules_per_month or math.inf,
    )


def _fails_closed(tenant: TenantSettings) -> bool:
    """Whether it may spend nothing unseen: what gateways let pass by themselves would not be bounded by a cap."""
    return tenant.fail_closed or bool(tenant.max_joules_per_day or tenant.max_joules_per_month)


def _account_empty(tenant: str, wait_s: float, whole_s: float) -> QuotaExceeded | QuotaTooSmall:
    """``whole_s``: until all fits, which it may never do together."""
    if math.isinf(wait_s):
        return QuotaTooSmall(f"the account of tenant {tenant!r} is empty and not refilled; ask its administrator")
    wait_s = wait_s if math.isinf(whole_s) else whole_s
    message = f"the account of tenant {tenant!r} is empty, or holds too little for this request"
    return QuotaExceeded(f"{message}; retry in {wait_s:.2f} s", retry_after_s=wait_s)


def _unreadable(tenant: str, why: str) -> AccountUnavailable:
    return AccountUnavailable(
        f"the account of tenant {tenant!r} cannot be read now, and {why}; retry in 1 s", retry_after_s=1.0
    )


def _cap_reached(tenant: str, limits: BucketLimits, cap: SpentOut, wait_s: float = 0.0) -> SpendCapReached:
    """``wait_s``: until the buckets hold it."""
    name = f"max_joules_per_{cap.period}"
    wait_s = max(wait_s, cap.retry_after_s)
    return SpendCapReached(
        f"tenant {tenant!r} has spent its joules of this {cap.period}, or leaves too little of them for this request; "
        f"limit is {getattr(limits, name):g} J ({name}); retry in {wait_s:.2f} s, when the next {cap.period} has begun "
        "in UTC",
        retry_after_s=wait_s,
    )


def _refused(
    tenant: str, limits: BucketLimits, reply: LookupReply, costs: Sequence[Cost]
) -> QuotaExceeded | QuotaTooSmall | SpendCapReached | AccountUnavailable:
    assert reply.over_budget is not None
    missing = [cost for cost, value in zip(costs, reply.values, strict=True) if value is None]
    total = Cost(math.fsum(cost.joules for cost in missing), math.fsum(cost.seconds for cost in missing))
    wait_s = reply.over_budget.retry_after_s
    if not _may_fit(total, limits):
        return _too_small(tenant, total, limits)
    if math.isinf(wait_s):
        if reply.is_local:
            return _unreadable(tenant, "this request takes more than one gateway's share of its budget")
        return _too_small(tenant, total, limits)
    if reply.spending is not None and (cap := spent_out(reply.spending, limits, total.joules)) is not None:
        return _cap_reached(tenant, limits, cap, wait_s)
    if wait_s == 0.0:
        return QuotaExceeded(
            f"what tenant {tenant!r} may spend is set aside for requests that run; retry in {_SETTLED_S:.2f} s",
            retry_after_s=_SETTLED_S,
        )
    return QuotaExceeded(
        f"the energy or time budget of tenant {tenant!r} is spent; retry in {wait_s:.2f} s", retry_after_s=wait_s
    )


def _may_fit(cost: Cost, limits: BucketLimits) -> bool:
    """Whether a full account holds it, of which nothing was spent in this day and month."""
    return cost.joules <= limits.most_j and cost.seconds <= limits.seconds_burst


def _too_small(tenant: str, cost: Cost, limits: BucketLimits) -> QuotaTooSmall:
    return QuotaTooSmall(
        f"this request alone is over the budget of tenant {tenant!r}: it may take {cost.joules:.3g} J and "
        f"{cost.seconds:.3g} s, and the budget never holds more than {limits.most_j:.3g} J and "
        f"{limits.seconds_burst:.3g} s; send fewer images, or ask for less"
    )
