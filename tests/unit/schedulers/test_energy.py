"""The energy account, against a device whose power is known."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.energy import EnergyAccount, Window, WorkClock
from tests.support.metered_device import Ask, Device, account_for


def mix(seed: int, until_s: float, *, load: float = 0.5, watts: tuple[float, ...] = (200.0,)) -> list[Ask]:
    """Requests of 20 to 400 ms that keep a device busy for ``load`` of the time, after five quiet seconds."""
    chance, asks, at_s = random.Random(seed), [], 5.0
    while at_s < until_s - 5.0:
        asks.append(Ask(at_s, chance.uniform(0.02, 0.4), chance.choice(watts)))
        at_s += chance.expovariate(load / 0.21)
    return asks


@pytest.mark.parametrize("load", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("update_s", [0.01, 0.1, 0.5])
def test_attributed_and_idle_are_what_the_counter_grew(load: float, update_s: float) -> None:
    device = Device(mix(1, 120.0, load=load, watts=(100.0, 300.0)), update_s=update_s)
    done = account_for(device, 120.0)
    sums = done.total_said_j + done.idle_j + done.elsewhere_j + done.carried_j
    assert sums == pytest.approx(done.metered_j, rel=1e-9)
    assert done.total_said_j + done.idle_j == pytest.approx(done.metered_j, rel=0.02)
    assert done.metered_j == pytest.approx(sum(device.truth_j.values()) + device.idle_j, rel=0.02)


def test_idle_is_measured_and_not_what_is_left() -> None:
    device = Device(mix(2, 120.0))
    done = account_for(device, 120.0)
    assert done.idle_j == pytest.approx(device.idle_j, rel=0.02)
    assert done.total_said_j == pytest.approx(sum(device.truth_j.values()), rel=0.04)


def test_a_request_among_others_costs_what_it_costs_alone() -> None:
    """Of one kind of work: watts of a busy second are the same in every mix."""
    others = mix(3, 120.0, load=0.6)
    alone = Device([Ask(10.0 + 5 * i, 0.3) for i in range(20)])
    among = Device([*others, *(Ask(10.0 + 5 * i, 0.3) for i in range(20))])
    solo = [joules for joules in account_for(alone, 120.0).said_j.values() if joules is not None]
    said = account_for(among, 140.0).said_j
    shared = [said[number] for number in range(len(others), len(others) + 20) if said.get(number)]
    assert len(solo) >= 19
    assert len(shared) == 20
    assert statistics.mean(shared) == pytest.approx(statistics.mean(solo), rel=0.1)
    assert statistics.mean(solo) == pytest.approx(0.3 * 200.0, rel=0.1)


def test_a_fixed_mix_costs_the_same_every_time() -> None:
    """Ten runs, other noise in each: what the same requests are told in all."""
    asks = mix(4, 120.0, load=0.6, watts=(150.0, 250.0))
    totals = [account_for(Device(asks, seed=seed), 120.0).total_said_j for seed in range(10)]
    assert statistics.stdev(totals) / statistics.mean(totals) < 0.05


def test_one_request_again_and_again_is_told_nearly_the_same() -> None:
    asks = [Ask(5.0 + 0.5 * i, 0.25) for i in range(200)]
    said = [joules for joules in account_for(Device(asks), 110.0).said_j.values() if joules is not None]
    assert statistics.stdev(said[10:]) / statistics.mean(said[10:]) < 0.05


@given(st.permutations([0.5, 0.02, 0.1, 0.25, 0.01]), st.floats(0.1, 1e3))
def test_joules_do_not_depend_on_who_came_first(works: list[float], joules: float) -> None:
    account = EnergyAccount()
    account.close(Window(seconds=1.0, joules=joules, work_s=0.5))
    said = {work_s: account.take(work_s) for work_s in works}
    assert said == {work_s: account.rate * work_s for work_s in sorted(works)}  # type: ignore[operator]


def test_readings_that_are_missing_lose_nothing() -> None:
    asks = mix(5, 120.0)
    whole, holed = Device(asks), Device(asks)
    expected = account_for(whole, 120.0)
    done = account_for(holed, 120.0, missing=[*range(40, 47), 80])
    assert done.metered_j == pytest.approx(expected.metered_j, rel=1e-3)
    assert done.total_said_j + done.idle_j == pytest.approx(done.metered_j, rel=0.02)


def test_long_work_is_not_owed_while_it_runs() -> None:
    """A slice of ten seconds tells nothing until it ends; nobody else must be told its joules meanwhile."""
    account, clock = EnergyAccount(), WorkClock()
    for _ in range(3):
        account.close(Window(seconds=1.0, joules=60.0, work_s=0.0, is_idle=True))
    account.close(Window(seconds=1.0, joules=160.0, work_s=1.0))
    account.take(1.0)
    number, last_s = clock.enter(0.0), 0.0
    for now_s in range(1, 11):
        account.close(Window(seconds=1.0, joules=160.0, work_s=clock.read(now_s) - last_s))
        last_s = clock.read(now_s)
        assert account.rate == pytest.approx(100.0, rel=0.02)
    clock.leave(number, 10.0)
    assert account.take(10.0) == pytest.approx(1000.0, rel=0.02)
    assert not clock.is_running


def test_nothing_is_said_before_something_was_measured_unless_it_is_declared() -> None:
    assert EnergyAccount().take(1.0) is None
    assert EnergyAccount(declared_watts=6.0).take(0.5) == 3.0


@pytest.mark.parametrize("noise_j", [-0.023, 0.0, 0.05])
def test_a_few_milliseconds_of_work_are_told_about_what_was_declared(noise_j: float) -> None:
    """What a process does while it is idle varies by more than such a request takes."""
    account, work_s, idle_j = EnergyAccount(declared_watts=6.0), 0.0039, 0.05
    for _ in range(10):
        account.close(Window(seconds=1.0, joules=idle_j, work_s=0.0, is_idle=True))
    account.take(work_s)
    account.close(Window(seconds=1.0, joules=idle_j + 6.0 * work_s + noise_j, work_s=work_s))
    told_j = account.take(work_s)
    assert told_j is not None
    assert 0.5 <= told_j / (6.0 * work_s) <= 2.0


def test_what_was_declared_gives_way_to_what_is_measured() -> None:
    account = EnergyAccount(declared_watts=6.0)
    for _ in range(20):
        account.take(0.5)
        account.close(Window(seconds=1.0, joules=10.0, work_s=0.5))
    assert account.carried_j == pytest.approx(0.0, abs=0.5)
    assert account.take(1.0) == pytest.approx(10.0, rel=0.05), "half of each window is idle at the same power"


def test_work_that_was_told_nothing_is_not_put_on_others() -> None:
    account = EnergyAccount()
    for _ in range(5):
        account.close(Window(seconds=1.0, joules=60.0, work_s=0.0, is_idle=True))
    assert account.take(0.5) is None
    split = account.close(Window(seconds=1.0, joules=160.0, work_s=1.0))
    assert (split.idle_j, split.elsewhere_j, split.active_j) == pytest.approx((60.0, 50.0, 50.0))
    assert account.rate == pytest.approx(100.0, rel=0.01)


def test_a_counter_that_begins_anew_changes_no_rate() -> None:
    account = EnergyAccount()
    account.close(Window(seconds=1.0, joules=100.0, work_s=1.0))
    account.take(1.0)
    account.lose(1.0)
    account.take(1.0)
    account.close(Window(seconds=1.0, joules=100.0, work_s=1.0))
    assert account.take(1.0) == pytest.approx(100.0)


def test_a_counter_that_falls_silent_is_not_believed() -> None:
    account = EnergyAccount()
    account.close(Window(seconds=1.0, joules=100.0, work_s=1.0))
    account.lapse()
    assert account.take(1.0) is None


def test_seconds_that_nobody_is_told_are_everybodys() -> None:
    account = EnergyAccount()
    account.close(Window(seconds=1.0, joules=100.0, work_s=1.0))
    told = 0.0
    for _ in range(60):
        told += account.take(0.75) or 0.0
        account.forgo(0.25)
        account.close(Window(seconds=1.0, joules=100.0, work_s=1.0))
    assert told == pytest.approx(60 * 100.0, rel=0.05)


def test_before_idle_was_measured_a_short_request_is_not_told_the_whole_window() -> None:
    account = EnergyAccount()
    split = account.close(Window(seconds=1.0, joules=60.0, work_s=0.01))
    assert (split.idle_j, split.active_j, account.rate) == pytest.approx((59.4, 0.6, 60.0))
    assert account.idle_watts is None


def test_a_shared_counter_has_joules_of_others() -> None:
    account = EnergyAccount()
    account.close(Window(seconds=1.0, joules=60.0, work_s=0.0, is_idle=True, own_active=0.3, own_idle=0.25))
    busy = Window(seconds=1.0, joules=160.0, work_s=1.0, own_active=0.5, own_idle=0.25)
    split = account.close(busy)
    assert (split.idle_j, split.active_j, split.elsewhere_j) == pytest.approx((15.0, 50.0, 95.0))
    theirs = account.close(Window(seconds=1.0, joules=160.0, work_s=0.0, own_active=0.0, own_idle=0.25))
    assert (theirs.idle_j, theirs.active_j, theirs.elsewhere_j) == pytest.approx((15.0, 0.0, 145.0))
    assert account.idle_watts == pytest.approx(60.0)


amounts = st.floats(0.0, 1e4)


works = st.just(0.0) | st.floats(1e-4, 30.0)


@given(st.lists(st.tuples(st.floats(1.0, 30.0), amounts, works, works, st.floats(0, 1), st.floats(0, 1))))
def test_every_joule_is_somewhere(rows: list[tuple[float, float, float, float, float, float]]) -> None:
    account, metered, parts, said = EnergyAccount(), 0.0, 0.0, 0.0
    for seconds, joules, work_s, told_s, own_active, own_idle in rows:
        split = account.close(
            Window(
                seconds=seconds,
                joules=joules,
                work_s=work_s,
                is_idle=not work_s,
                own_active=own_active,
                own_idle=own_idle,
            )
        )
        said += account.take(told_s) or 0.0
        assert min(split.idle_j, split.elsewhere_j, split.active_j) >= 0.0
        metered, parts = metered + split.metered_j, parts + split.idle_j + split.elsewhere_j
    assert parts + said + account.carried_j == pytest.approx(metered, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("field", ["seconds", "joules", "work_s", "own_active", "own_idle"])
def test_numbers_that_mean_nothing_are_refused(field: str, bad: float) -> None:
    numbers = {"seconds": 1.0, "joules": 1.0, "work_s": 1.0, field: bad}
    with pytest.raises(ValueError, match=field):
        Window(**numbers)
    with pytest.raises(ValueError, match="length"):
        Window(seconds=0.0, joules=1.0, work_s=1.0)


def test_work_clock_counts_what_is_told_and_what_runs() -> None:
    clock = WorkClock()
    one, other = clock.enter(0.0), clock.enter(1.0)
    assert clock.read(2.0) == 3.0
    clock.leave(one, 1.5)
    assert clock.read(2.0) == 3.0  # it does not go back
    clock.leave(other, 2.5)
    assert clock.read(9.0) == 4.0
