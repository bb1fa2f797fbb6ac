"""Joules of a day and of a month, against a real Redis whose clock the test moves: no more of them are spent, whoever
asks at once, and they are there again when the next day or month of UTC begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis

from schedulers.admission import Cost, Factors
from serving.config import from_mapping, resolve
from serving.config.sections import TenantSettings
from serving.errors import AccountUnavailable, QuotaExceeded, QuotaTooSmall, ServingError, SpendCapReached
from serving.front.status import retry_after_s
from serving.stores import keys
from serving.stores.results import ResultStore
from serving.tasks.budgets import shown_budget
from serving.tenants import LiveTenants, TenantRecords, overlay
from tests.support.redis_clock import RedisClock, redis_clock
from tests.support.store_observer import RecordingObserver
from tests.support.waiting import until

DAY_J, MONTH_J = 100.0, 150.0
CAPPED = TenantSettings(name="acme", max_joules_per_day=DAY_J, max_joules_per_month=MONTH_J)


def at(*fields: int) -> float:
    return datetime(*fields, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


EVENING = at(2026, 3, 30, 23)


@pytest.fixture
def clock(url: str, admin: aioredis.Redis) -> Iterator[RedisClock]:
    with redis_clock(url, EVENING) as clock:
        yield clock


def make_results(
    url: str, clock: Callable[[], float], tell: RecordingObserver | None = None, tenants: LiveTenants | None = None
) -> ResultStore:
    config = resolve(from_mapping({"redis": {"url": url, "timeout_s": 5.0, "secret": "s" * 32}}))
    results = ResultStore(config, tell or RecordingObserver(), tenants or LiveTenants([CAPPED]))
    results._store._clock = clock
    return results


@pytest.fixture
async def results(url: str, clock: RedisClock, observer: RecordingObserver) -> AsyncIterator[ResultStore]:
    results = make_results(url, clock, observer)
    assert await results.start()
    yield results
    await results.stop()


async def spend(results: ResultStore, joules: float, used_j: float | None = None) -> None:
    (await results.reserve("acme", Cost(joules, 0.1))).settle(joules if used_j is None else used_j, 0.1)
    await settled(results)


async def settled(results: ResultStore) -> None:
    await until(lambda: not results._background)


async def day_and_month_j(results: ResultStore) -> tuple[float, float]:
    account = await results.account("acme")
    assert account is not None
    return account.spending.day_j, account.spending.month_j


async def refusal(results: ResultStore, joules: float) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await results.reserve("acme", Cost(joules, 0.1))
    return caught.value


# -- days and months ---------------------------------------------------------------------------------------------------


async def test_what_is_spent_is_there_again_when_the_next_day_or_month_begins(
    results: ResultStore, clock: RedisClock
) -> None:
    await spend(results, 90.0)
    error = await refusal(results, 20.0)
    assert (type(error), error.retry_after_s) == (SpendCapReached, pytest.approx(3600.0))
    assert "limit is 100 J (max_joules_per_day)" in error.message
    await spend(results, 10.0)
    clock.move_to(at(2026, 3, 31))
    await spend(results, 50.0)
    error = await refusal(results, 1.0)
    assert (type(error), error.retry_after_s) == (SpendCapReached, pytest.approx(24 * 3600.0))
    assert "limit is 150 J (max_joules_per_month)" in error.message
    clock.move_to(at(2026, 4, 1))
    await spend(results, 100.0)
    assert await day_and_month_j(results) == (100.0, 100.0)


async def test_what_is_more_than_a_whole_day_never_fits(results: ResultStore) -> None:
    error = await refusal(results, 101.0)
    assert (type(error), retry_after_s(error)) == (QuotaTooSmall, None)
    with pytest.raises(QuotaTooSmall):
        results.check_account("acme", Cost(101.0, 0.0))


async def test_what_was_not_used_is_given_back_at_once_and_what_was_used_beyond_counts(results: ResultStore) -> None:
    await spend(results, 90.0, 10.0)
    await spend(results, 90.0, 95.0)
    assert await day_and_month_j(results) == (105.0, 105.0)
    assert isinstance(await refusal(results, 0.1), SpendCapReached)


async def test_what_is_set_aside_is_not_spent_yet(results: ResultStore) -> None:
    running = await results.reserve("acme", Cost(10.0, 0.1), Factors(joules=6.0))
    assert running.cost == Cost(60.0, 0.1)
    error = await refusal(results, 50.0)
    assert (type(error), error.retry_after_s) == (QuotaExceeded, 1.0)
    assert "set aside for requests that run" in error.message
    running.settle(10.0, 0.1)
    await settled(results)
    await spend(results, 50.0)


async def test_one_at_a_time_may_run_on_what_is_left(results: ResultStore) -> None:
    await spend(results, 95.0)
    last = await results.reserve("acme", Cost(3.0, 0.1), Factors(joules=100.0))
    assert last.cost == Cost(5.0, 0.1)
    last.settle(3.0, 0.1)
    await settled(results)
    assert await day_and_month_j(results) == (98.0, 98.0)


async def test_what_runs_over_midnight_belongs_to_the_new_day(results: ResultStore, clock: RedisClock) -> None:
    clock.move_to(at(2026, 3, 30, 23, 50))
    await spend(results, 30.0)
    running = await results.reserve("acme", Cost(60.0, 0.1))
    clock.move_to(at(2026, 3, 31))
    assert await day_and_month_j(results) == (60.0, 90.0)
    running.settle(20.0, 0.1)
    await settled(results)
    assert await day_and_month_j(results) == (20.0, 50.0)


async def test_gateway_that_died_costs_the_day_what_was_predicted_and_not_all_that_was_set_aside(
    results: ResultStore, clock: RedisClock
) -> None:
    """No refill would ever give it back: one crash would close an account for the rest of the month."""
    clock.move_to(at(2026, 3, 30, 12))
    lost = await results.reserve("acme", Cost(5.0, 0.1), Factors(joules=100.0))
    assert lost.cost == Cost(100.0, 0.1)
    clock.move_to(clock() + keys.RESERVATION_TTL_S)
    assert await day_and_month_j(results) == (5.0, 5.0)
    await spend(results, 90.0)
    assert await day_and_month_j(results) == (95.0, 95.0)
    lost.settle(20.0, 0.1)  # just before Redis forgets it
    await settled(results)
    assert await day_and_month_j(results) == (110.0, 110.0)


async def test_what_expired_the_day_before_is_not_of_the_new_day(results: ResultStore, clock: RedisClock) -> None:
    await results.reserve("acme", Cost(5.0, 0.1), Factors(joules=100.0))
    clock.move_to(at(2026, 3, 31, 9))
    await results._store.charge("acme", results._limits["acme"], Cost(1.0, 0.0))
    assert await day_and_month_j(results) == (1.0, 6.0)


async def test_job_that_took_less_gives_back_where_it_ends(results: ResultStore, clock: RedisClock) -> None:
    await spend(results, 80.0)  # what a job is charged when it is taken in
    await results.correct_job("acme", "first", Cost(80.0, 0.1), Cost(30.0, 0.1))
    assert await day_and_month_j(results) == (30.0, 30.0)
    clock.move_to(at(2026, 3, 31))
    await spend(results, 20.0)
    await results.correct_job("acme", "second", Cost(40.0, 0.1), Cost(10.0, 0.1))
    assert await day_and_month_j(results) == (0.0, 20.0)
    await results.correct_job("acme", "third", Cost(10.0, 0.1), Cost(25.0, 0.1))
    assert await day_and_month_j(results) == (15.0, 35.0)


async def test_requests_of_several_gateways_at_once_spend_no_more_than_the_day(
    url: str, clock: RedisClock, results: ResultStore
) -> None:
    gateways = [results, make_results(url, clock), make_results(url, clock)]
    asking = [gateway.reserve("acme", Cost(3.0, 0.0)) for gateway in gateways * 20]
    ends = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(not isinstance(end, BaseException) for end in ends) == 33
    assert all(isinstance(end, QuotaExceeded) for end in ends if isinstance(end, BaseException))
    for gateway in gateways[1:]:
        await gateway.stop()


async def test_cap_that_is_set_counts_what_was_spent_before(url: str, clock: RedisClock) -> None:
    live = LiveTenants([TenantSettings(name="acme")])
    results = make_results(url, clock, tenants=live)
    await spend(results, 120.0)
    live.replace(overlay([CAPPED], TenantRecords(version=1)))
    assert isinstance(await refusal(results, 1.0), SpendCapReached)
    await results.stop()


# -- before anything is decoded ----------------------------------------------------------------------------------------


async def test_who_has_spent_the_day_decodes_nothing_until_the_next_begins(
    results: ResultStore, clock: RedisClock, observer: RecordingObserver
) -> None:
    await spend(results, 100.0)
    for turn_away in (lambda: results.check_account("acme"), lambda: results.hold_decode("acme", 0.01)):
        with pytest.raises(SpendCapReached) as caught:
            turn_away()
        assert caught.value.retry_after_s == pytest.approx(3600.0)
    for second in range(1, 30):
        clock.move_to(EVENING + second)
        with pytest.raises(SpendCapReached):
            await results.admit("acme", Cost(1.0, 0.0))
    assert observer.calls["lookup_and_reserve", "ok"] == 1, "nothing was reserved, and nothing decoded"
    clock.move_to(at(2026, 3, 31, 0, 0, 1))
    await results.admit("acme", Cost(1.0, 0.0))
    await spend(results, 50.0)


async def test_decodes_that_run_count_against_the_day(results: ResultStore) -> None:
    await spend(results, 90.0)
    results.hold_decode("acme", 1.0)  # at 6 W
    results.check_account("acme", Cost(4.0, 0.0))
    with pytest.raises(SpendCapReached):
        results.check_account("acme", Cost(5.0, 0.0))
    results.charge_decode("acme", 1.0, 1.0)
    await results.stop()
    assert await day_and_month_j(results) == (96.0, 96.0)


# -- faults ------------------------------------------------------------------------------------------------------------


async def test_who_has_a_cap_spends_nothing_while_redis_is_away() -> None:
    results = make_results("unix:///nonexistent/redis.sock", lambda: EVENING)
    with pytest.raises(AccountUnavailable) as caught:
        await results.reserve("acme", Cost(1.0, 0.1))
    assert retry_after_s(caught.value) == 1.0
    await results.stop()


@pytest.mark.parametrize(
    "damage",
    [{"day_j": "nan"}, {"month_j": "1e308"}, {"day_j": "-50"}, {"spent_at": "soon"}, {"month_j": "", "day_j": "x"}],
)
async def test_broken_counts_are_those_of_an_account_never_seen_and_counted(
    results: ResultStore, admin: aioredis.Redis, observer: RecordingObserver, damage: dict[str, str]
) -> None:
    await spend(results, 60.0)
    await results.reserve("acme", Cost(30.0, 0.1))
    await admin.hset(keys.bucket("acme"), mapping=damage)
    assert await day_and_month_j(results) == (30.0, 30.0), "what is open is known"
    assert isinstance(await refusal(results, 80.0), QuotaExceeded)
    assert observer.repaired == ["acme"]
    await spend(results, 70.0)
    assert await day_and_month_j(results) == (100.0, 100.0)
    assert observer.repaired == ["acme"]


@pytest.mark.parametrize("ahead_s", [3600.0 + 60.0, 40 * 86400.0])
async def test_counts_of_a_time_to_come_stay_and_are_of_now(
    results: ResultStore, admin: aioredis.Redis, clock: RedisClock, observer: RecordingObserver, ahead_s: float
) -> None:
    await spend(results, 60.0)
    await admin.hset(keys.bucket("acme"), "spent_at", EVENING + ahead_s)
    assert await day_and_month_j(results) == (60.0, 60.0)
    assert isinstance(await refusal(results, 50.0), SpendCapReached)
    assert observer.repaired == ["acme"]
    clock.move_to(at(2026, 3, 31))
    assert await day_and_month_j(results) == (0.0, 60.0)


async def test_account_of_an_earlier_release_begins_with_what_is_open(
    results: ResultStore, admin: aioredis.Redis, observer: RecordingObserver
) -> None:
    running = await results.reserve("acme", Cost(30.0, 0.1))
    await admin.hdel(keys.bucket("acme"), "day_j", "month_j", "spent_at")
    running.settle(20.0, 0.1)
    await settled(results)
    assert await day_and_month_j(results) == (20.0, 20.0)
    assert observer.repaired == []


# -- what is shown -----------------------------------------------------------------------------------------------------


async def test_budget_shows_both_periods_and_when_they_end(results: ResultStore, url: str, clock: RedisClock) -> None:
    await spend(results, 40.0)
    await results.reserve("acme", Cost(10.0, 0.1))
    shown: dict[str, Any] = dict(shown_budget("acme", await results.account("acme")))
    assert shown["day"] == {"spent_j": 50.0, "cap_j": DAY_J, "resets_in_s": pytest.approx(3600.0)}
    assert shown["month"] == {"spent_j": 50.0, "cap_j": MONTH_J, "resets_in_s": pytest.approx(25 * 3600.0)}
    free = make_results(url, clock, tenants=LiveTenants([TenantSettings(name="acme")]))
    assert dict(shown_budget("acme", await free.account("acme")))["day"] == {**shown["day"], "cap_j": None}  # type: ignore[dict-item]
    await free.stop()
