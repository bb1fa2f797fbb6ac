"""What must hold for every policy, whatever happens: random arrivals, cancels, failures, drains and time."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.kernel import Kernel
from schedulers.lab import baselines
from schedulers.lab.baselines import DynamicBatchingConfig
from schedulers.policies.exits import ExitConfig, early_exits
from schedulers.types import Decision, Drain, Fail, Priority, Reject, Release, SliceFinished, Tick, UnitCancelled
from tests.unit.schedulers.build import Caller, arrived, finished, linear_cost

MAX_BATCH, MAX_WAITING = 4, 12


def ours(num_executors: int = 1) -> Kernel:
    config = ExitConfig(max_batch=MAX_BATCH, max_waiting=MAX_WAITING, max_age_s=0.2, num_executors=num_executors)
    return early_exits(linear_cost(), config)


def full_network(num_executors: int = 1) -> Kernel:
    config = DynamicBatchingConfig(
        max_batch=MAX_BATCH, max_waiting=MAX_WAITING, max_delay_s=0.005, num_executors=num_executors
    )
    return baselines.full_network(linear_cost(), config)


def no_rebatching(num_executors: int = 1) -> Kernel:
    config = DynamicBatchingConfig(
        max_batch=MAX_BATCH, max_waiting=MAX_WAITING, max_delay_s=0.005, num_executors=num_executors
    )
    return baselines.no_rebatching(linear_cost(), config)


POLICIES = [ours, full_network, no_rebatching]
every_policy = pytest.mark.parametrize("make", POLICIES, ids=lambda make: make.__name__)

THRESHOLD = st.sampled_from([0.0, 0.3, 0.7, 1e8, math.inf, -1e8])
ARRIVE = st.tuples(
    st.just("arrive"),
    st.sampled_from([-0.01, 0.005, 0.02, 0.04, 0.08, 0.3, math.inf]),
    st.tuples(THRESHOLD, THRESHOLD, THRESHOLD),
    st.sampled_from(list(Priority)),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["small", "small", "large", None]),
)
FINISH = st.tuples(st.just("finish"), st.integers(0, 2**32))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 60))
WAIT = st.tuples(st.just("wait"), st.sampled_from([0.0, 0.001, 0.01, 0.05]))
STEPS = st.lists(st.one_of(ARRIVE, ARRIVE, FINISH, FINISH, CANCEL, WAIT), max_size=60)


def finish_one(caller: Caller, seed: int) -> None:
    """End one running batch with random results: some fail, some are NaN, some were not evaluated."""
    rng = Random(seed)
    if not caller.running:
        return
    batch = caller.running[rng.choice(sorted(caller.running))]
    values = [0.1, 0.5, 0.9, None, math.nan, math.inf]
    confidences = {s: rng.choices(values, [3, 3, 3, 1, 0.3, 0.3])[0] for s in batch.unit_ids}
    failed = [s for s in batch.unit_ids if rng.random() < 0.1]
    caller.send(finished(batch, confidences, elapsed_s=rng.choice([0.0, 0.01, 0.2]), failed=failed))


def play(caller: Caller, steps: list[tuple]) -> None:
    for kind, *rest in steps:
        if kind == "arrive":
            slack_s, thresholds, priority, tenant, key = rest
            caller.send(arrived(len(caller.arrivals), caller.now_s + slack_s, thresholds, priority, tenant, key))
        elif kind == "finish":
            finish_one(caller, rest[0])
        elif kind == "cancel":
            caller.send(UnitCancelled(unit_id=rest[0]))
        else:
            wakeup_s = caller.scheduler.next_wakeup_s()
            later_s = caller.now_s + rest[0]
            caller.send(Tick(), now_s=max(caller.now_s, min(later_s, wakeup_s or later_s)))


def finish_all(caller: Caller) -> None:
    for seed in range(10_000):
        if not caller.running and caller.scheduler.next_wakeup_s() is None:
            return
        if caller.running:
            finish_one(caller, seed)
        else:
            caller.send(Tick(), now_s=caller.scheduler.next_wakeup_s())
    raise AssertionError("the scheduler never comes to rest")


@every_policy
@settings(max_examples=150)
@given(steps=STEPS, num_executors=st.integers(1, 2), drains=st.booleans())
def test_every_sample_ends_exactly_once(
    make: Callable[[int], Kernel], steps: list[tuple], num_executors: int, drains: bool
) -> None:
    scheduler = make(num_executors)
    caller = Caller(scheduler, MAX_BATCH, num_executors)
    play(caller, steps)
    if drains:
        caller.send(Drain())
    finish_all(caller)
    assert caller.ends.keys() == caller.arrivals.keys()
    assert scheduler.is_drained == drains
    counts = scheduler.counts()
    assert (counts.waiting, counts.running) == (0, 0)
    assert counts.rejected == sum(isinstance(end, Reject) for end in caller.ends.values())
    assert counts.cancelled == sum(isinstance(end, Release) for end in caller.ends.values())
    assert scheduler.queued_s(caller.now_s) == 0.0


@every_policy
@settings(max_examples=40)
@given(steps=STEPS)
def test_the_same_events_give_the_same_decisions(make: Callable[[int], Kernel], steps: list[tuple]) -> None:
    def replay() -> list[Decision]:
        scheduler = make(1)
        decisions: list[Decision] = []
        handle = scheduler.handle
        scheduler.handle = lambda *a: decisions.extend(new := handle(*a)) or new  # type: ignore[method-assign]
        caller = Caller(scheduler, MAX_BATCH)
        play(caller, steps)
        finish_all(caller)
        return decisions

    assert replay() == replay()


@every_policy
def test_arrival_while_draining_is_rejected_and_the_rest_finishes(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    caller.send(arrived(0), now_s=0.0)
    caller.send(Drain(), arrived(1))
    finish_all(caller)
    assert caller.ends[1].reason.value == "draining"  # type: ignore[union-attr]
    assert 0 in caller.ends
    assert caller.scheduler.is_drained  # type: ignore[attr-defined]


@every_policy
def test_deadline_passed_on_arrival_is_rejected_not_run(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    (end,) = caller.send(arrived(0, deadline_s=1.0), now_s=1.0)
    assert isinstance(end, Reject)
    assert end.reason.value == "deadline_passed"


@every_policy
def test_deadline_that_passes_while_waiting_is_rejected_not_run(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    caller.send(*(arrived(i) for i in range(MAX_BATCH)), now_s=0.0)  # fills the executor
    caller.send(arrived(9, deadline_s=0.5))
    wakeup_s = caller.scheduler.next_wakeup_s()
    assert wakeup_s is not None
    assert wakeup_s < 0.5
    caller.send(Tick(), now_s=wakeup_s)
    assert isinstance(caller.ends[9], Reject)
    assert caller.now_s <= 0.5


@every_policy
def test_failed_sample_fails_alone(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    caller.send(*(arrived(i) for i in range(3)), now_s=0.0)
    caller.send(Tick(), now_s=0.01)
    (batch,) = caller.running.values()
    caller.send(finished(batch, dict.fromkeys(range(3), 0.9), failed=[1]))
    assert isinstance(caller.ends[1], Fail)
    assert [type(caller.ends[i]).__name__ for i in (0, 2)] == ["Finish", "Finish"]


@every_policy
def test_cancelled_while_running_is_released_when_its_batch_ends(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    caller.send(arrived(0), now_s=0.0)
    caller.send(Tick(), now_s=0.01)
    (batch,) = caller.running.values()
    assert caller.send(UnitCancelled(unit_id=0)) == []
    assert caller.send(finished(batch, {0: 0.9})) == [Release(unit_id=0)]
    assert caller.send(UnitCancelled(unit_id=0)) == []


@every_policy
@pytest.mark.parametrize("now_s", [0.5, math.nan, math.inf])
def test_time_that_runs_backwards_or_is_no_number_is_refused(make: Callable[[int], Kernel], now_s: float) -> None:
    scheduler = make(1)
    scheduler.handle(1.0, Tick())
    with pytest.raises(ValueError, match="now_s"):
        scheduler.handle(now_s, Tick())


@every_policy
def test_broken_contract_changes_nothing_and_loses_no_decision(make: Callable[[int], Kernel]) -> None:
    scheduler = make(1)
    with pytest.raises(ValueError, match="arrived twice"):
        scheduler.handle(0.0, arrived(0, deadline_s=-1.0), arrived(1), arrived(1))
    decisions = scheduler.handle(0.01, Tick())
    assert [d.unit_id for d in decisions if isinstance(d, Reject)] == [0]
    with pytest.raises(ValueError, match="not running"):
        scheduler.handle(0.01, SliceFinished(slice_id=77, results=(), elapsed_s=0.0))
    with pytest.raises(ValueError, match="got other ones"):
        scheduler.handle(0.01, SliceFinished(slice_id=0, results=(), elapsed_s=0.0))
    with pytest.raises(ValueError, match="thresholds"):
        scheduler.handle(0.01, arrived(5, thresholds=(0.5,)))
    scheduler.check_invariants()
    assert scheduler.counts().arrived == 2


@every_policy
def test_what_is_no_event_is_refused_and_what_came_before_it_counts(make: Callable[[int], Kernel]) -> None:
    scheduler = make(1)
    with pytest.raises(TypeError, match="no event"):
        scheduler.handle(0.0, arrived(0), "arrived")  # type: ignore[arg-type]
    assert scheduler.counts().arrived == 1
    scheduler.check_invariants()


@every_policy
def test_lost_sample_is_reported_with_the_numbers(make: Callable[[int], Kernel]) -> None:
    scheduler = make(1)
    scheduler.handle(0.0, *(arrived(i) for i in range(7)))
    sample = next(iter(scheduler.policy.order))
    scheduler.policy.order.remove(sample)
    sample.is_waiting = False
    with pytest.raises(AssertionError, match="arrived=7"):
        scheduler.check_invariants()


@every_policy
def test_queue_is_bounded(make: Callable[[int], Kernel]) -> None:
    caller = Caller(make(1), MAX_BATCH)
    caller.send(*(arrived(i) for i in range(100)), now_s=0.0)
    assert caller.scheduler.counts().waiting <= MAX_WAITING  # type: ignore[attr-defined]
    reasons = {end.reason.value for end in caller.ends.values() if isinstance(end, Reject)}
    assert reasons == {"queue_full"}
