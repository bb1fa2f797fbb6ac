"""The early-exit policy: merging, degraded answers, fairness, priorities, starvation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

import pytest

from schedulers.cost import CostModel, measured_stages
from schedulers.kernel import Kernel
from schedulers.lab.baselines import full_network
from schedulers.lab.simulator import ExitWorld, TraceUnit, exit_unit, lognormal_noise, simulate
from schedulers.policies.exit_order import ExitOrder
from schedulers.policies.exits import ExitConfig, ExitWork, early_exits
from schedulers.types import (
    Finish,
    Priority,
    Reject,
    Release,
    RunSlice,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)
from tests.unit.schedulers.build import Caller, arrived, finished, linear_cost

NEVER = (math.inf, math.inf, math.inf)


def caller_of(max_batch: int = 4, fixed_s: float = 0.010, each_s: float = 0.001, **config: object) -> Caller:
    scheduler = early_exits(
        linear_cost(fixed_s=fixed_s, each_s=each_s),
        ExitConfig(max_batch=max_batch, **config),  # type: ignore[arg-type]
    )
    return Caller(scheduler, max_batch)


def only_batch(decisions: list) -> RunSlice:
    (batch,) = [d for d in decisions if isinstance(d, RunSlice)]
    return batch


def test_arrival_on_an_idle_engine_runs_at_once() -> None:
    caller = caller_of()
    assert caller.send(arrived(5), now_s=1.0) == [RunSlice(slice_id=0, stage=0, unit_ids=(5,))]


def test_survivors_of_different_arrivals_share_a_batch() -> None:
    caller = caller_of(max_batch=4)
    first = only_batch(caller.send(arrived(0), now_s=0.0))
    caller.send(arrived(1), arrived(2), arrived(3), arrived(4))
    second = only_batch(caller.send(finished(first, {0: 0.1}), now_s=0.01))
    assert second.unit_ids == (1, 2, 3, 4)  # a full batch of new ones beats one lonely survivor
    third = only_batch(caller.send(finished(second, {}), now_s=0.02))
    assert third.stage == 1
    assert 0 in third.unit_ids
    assert len(third.unit_ids) == 4


@pytest.mark.parametrize(("tenant", "stage"), [("light", 1), ("flood", 0)])
def test_survivors_of_a_tenant_that_has_not_made_the_backlog_do_not_wait_for_full_slices(
    tenant: str, stage: int
) -> None:
    caller = caller_of(max_batch=4)
    flood = [arrived(number, tenant="flood") for number in range(2, 22)]
    first = only_batch(caller.send(arrived(0, tenant=tenant), arrived(1, tenant=tenant), *flood, now_s=0.0))
    assert {0, 1} < set(first.unit_ids)
    stay = {0: 0.1, 1: 0.1}
    left = {number: 0.9 for number in first.unit_ids if number not in stay}
    second = only_batch(caller.send(finished(first, stay | left), now_s=0.014))
    assert second.stage == stage
    assert set(second.unit_ids) == set(stay) or stage == 0


def test_one_lonely_survivor_wastes_no_slice_of_a_backlog() -> None:
    caller = caller_of(max_batch=8, fixed_s=0.1)
    flood = [arrived(number, tenant="flood") for number in range(1, 22)]
    first = only_batch(caller.send(arrived(0, tenant="light"), *flood, now_s=0.0))
    left = dict.fromkeys(first.unit_ids, 0.9) | {0: 0.1}
    assert only_batch(caller.send(finished(first, left), now_s=0.108)).stage == 0


def test_light_load_is_served_deepest_first_when_that_answers_sooner() -> None:
    caller = caller_of(max_batch=8)
    first = only_batch(caller.send(arrived(0), arrived(1), now_s=0.0))
    caller.send(arrived(2))
    assert only_batch(caller.send(finished(first, {}), now_s=0.01)).stage == 1


def test_sample_leaves_at_the_exit_whose_threshold_it_meets() -> None:
    caller = caller_of()
    batch = only_batch(caller.send(arrived(0, thresholds=(0.5, 0.5, 0.5)), now_s=0.0))
    assert Finish(unit_id=0, stage=0, degraded=False) in caller.send(finished(batch, {0: 0.5}))


@pytest.mark.parametrize("last", [math.inf, 1e8, 0.5])
def test_threshold_never_runs_the_whole_network_and_the_last_exit_always_answers(last: float) -> None:
    caller = caller_of()
    batch = only_batch(caller.send(arrived(0, thresholds=(math.inf, math.inf, last)), now_s=0.0))
    for _ in range(2):
        batch = only_batch(caller.send(finished(batch, {0: 0.4})))
    assert caller.send(finished(batch, {0: 0.4})) == [Finish(unit_id=0, stage=2, degraded=False)]


def test_sample_that_cannot_go_on_in_time_is_answered_from_the_exit_it_passed() -> None:
    caller = caller_of()  # a stage alone takes 11 ms
    batch = only_batch(caller.send(arrived(0, deadline_s=0.020, thresholds=NEVER), now_s=0.0))
    decisions = caller.send(finished(batch, {0: 0.1}), now_s=0.011)
    assert decisions == [Finish(unit_id=0, stage=0, degraded=True)]


def test_waiting_survivor_is_answered_before_its_deadline_passes() -> None:
    caller = caller_of(max_batch=2)
    batch = only_batch(caller.send(arrived(0, deadline_s=0.035, thresholds=NEVER), now_s=0.0))
    caller.send(arrived(1), arrived(2))
    busy = only_batch(caller.send(finished(batch, {0: 0.1}), now_s=0.011))
    if 0 not in busy.unit_ids:
        wakeup_s = caller.scheduler.next_wakeup_s()
        assert wakeup_s == pytest.approx(0.035 - 0.011, rel=0.2)
        caller.send(Tick(), now_s=wakeup_s)
        assert caller.ends[0] == Finish(unit_id=0, stage=0, degraded=True)
    else:
        assert busy.stage == 1


def test_survivor_of_an_exit_without_logits_is_rejected_not_answered() -> None:
    caller = caller_of()
    batch = only_batch(caller.send(arrived(0, deadline_s=0.020), now_s=0.0))
    (end,) = caller.send(finished(batch, {0: None}), now_s=0.011)
    assert isinstance(end, Reject)
    assert end.reason.value == "deadline_unreachable"


def test_degraded_answer_comes_from_the_deepest_exit_that_was_evaluated() -> None:
    caller = caller_of()
    batch = only_batch(caller.send(arrived(0, deadline_s=0.030), now_s=0.0))
    batch = only_batch(caller.send(finished(batch, {0: 0.1}), now_s=0.011))
    (end,) = caller.send(finished(batch, {0: None}), now_s=0.022)
    assert end == Finish(unit_id=0, stage=0, degraded=True)


def test_deadline_that_no_batch_can_meet_is_rejected_on_arrival() -> None:
    caller = caller_of()
    (end,) = caller.send(arrived(0, deadline_s=0.010), now_s=0.0)
    assert isinstance(end, Reject)
    assert end.reason.value == "deadline_unreachable"


@pytest.mark.parametrize("num_others", [0, 4])
def test_who_may_not_get_through_all_stages_starts_only_where_nobody_else_would(num_others: int) -> None:
    caller = caller_of(max_batch=4)
    first = only_batch(caller.send(arrived(0), now_s=0.0))
    caller.scheduler.policy.batch._reserve.factor = 3.0  # 98 ms from a unit's start to its end
    others = range(7, 7 + num_others)
    caller.send(*(arrived(i, deadline_s=0.07 + i / 1e3) for i in range(1, 7)), *map(arrived, others))
    started = only_batch(caller.send(finished(first, {0: 0.9}), now_s=0.01))
    assert started.unit_ids == (tuple(others) or (3, 4, 5, 6))
    assert caller.ends.keys() == {0, 1, 2, 3, 4, 5, 6} - set(started.unit_ids)


def test_places_that_nobody_fills_are_shared_by_what_tenants_have_had() -> None:
    """Two tenants whose units are all passed over: the one that floods does not keep the other out."""
    caller = caller_of(max_batch=4)
    batch = only_batch(caller.send(arrived(0, tenant="flood"), now_s=0.0))
    caller.scheduler.policy.batch._reserve.factor = 3.0
    floods = [arrived(i, deadline_s=0.07, tenant="flood") for i in range(1, 9)]
    caller.send(*floods, *(arrived(i, deadline_s=0.07, tenant="light") for i in (20, 21)))
    started = only_batch(caller.send(finished(batch, {0: 0.9}), now_s=0.01))
    assert sorted(started.unit_ids) == [7, 8, 20, 21]


def test_batch_is_split_when_that_meets_every_deadline() -> None:
    caller = caller_of(max_batch=8, fixed_s=0.010, each_s=0.010)  # 8 samples take 90 ms, one 20 ms
    blocker = only_batch(caller.send(arrived(99), now_s=0.0))
    caller.send(arrived(0, deadline_s=0.045), *(arrived(i, deadline_s=1.0) for i in range(1, 8)))
    batch = only_batch(caller.send(finished(blocker, {99: 0.9}, elapsed_s=0.020), now_s=0.020))
    assert batch.unit_ids == (0,)
    assert not any(isinstance(end, Reject) for end in caller.ends.values())


def test_cancelled_while_waiting_is_released_at_once() -> None:
    caller = caller_of(max_batch=1)
    caller.send(arrived(0), arrived(1), now_s=0.0)
    assert caller.send(UnitCancelled(unit_id=1)) == [Release(unit_id=1)]


def test_higher_priority_of_the_same_tenant_goes_first() -> None:
    caller = caller_of(max_batch=1)
    first = only_batch(caller.send(arrived(0), now_s=0.0))
    caller.send(arrived(1, priority=Priority.LOW), arrived(2), arrived(3, priority=Priority.HIGH))
    order = []
    for _ in range(3):
        first = only_batch(caller.send(finished(first, {0: 0.9, 1: 0.9, 2: 0.9, 3: 0.9})))
        order += first.unit_ids
    assert order == [3, 2, 1]


def test_higher_priority_is_worth_nothing_against_another_tenant() -> None:
    caller = caller_of(max_batch=1)
    first = only_batch(caller.send(arrived(0, tenant="other"), now_s=0.0))
    urgent = [arrived(i, tenant="urgent", priority=Priority.HIGH) for i in range(1, 5)]
    caller.send(*urgent, *(arrived(i, tenant="patient", priority=Priority.LOW) for i in range(5, 9)))
    order = []
    for _ in range(8):
        first = only_batch(caller.send(finished(first, dict.fromkeys(first.unit_ids, 0.9))))
        order += first.unit_ids
    assert sum(number >= 5 for number in order[:4]) == 2


def test_full_queue_gives_up_a_sample_of_the_flooding_tenant_for_a_quiet_one() -> None:
    caller = caller_of(max_batch=1, max_waiting=4)
    caller.send(arrived(0, tenant="flood"), now_s=0.0)  # runs
    caller.send(*(arrived(i, tenant="flood") for i in range(1, 5)))
    (end,) = caller.send(arrived(10, tenant="quiet"))
    assert isinstance(end, Reject)
    assert end.unit_id == 4
    assert end.reason.value == "queue_full"
    (end,) = caller.send(arrived(5, tenant="flood"))
    assert end.unit_id == 5


def flood_trace(flood_per_s: float, quiet_per_s: float, seconds: float, deadline_s: float) -> list[TraceUnit]:
    rng = Random(3)
    samples = []
    for tenant, rate in (("flood", flood_per_s), ("quiet", quiet_per_s)):
        now_s = 0.0
        while (now_s := now_s + rng.expovariate(rate)) < seconds:
            leaves_at = rng.choice((0, 0, 1, 2))
            samples.append(
                exit_unit(
                    arrived_s=now_s,
                    deadline_s=now_s + deadline_s,
                    thresholds=(0.5, 0.5, 0.5),
                    confidences=tuple(float(k >= leaves_at) for k in range(3)),
                    tenant=tenant,
                )
            )
    return sorted(samples, key=lambda s: s.arrived_s)


def good_share(trace: list[TraceUnit], tenant: str) -> float:
    cost = linear_cost(fixed_s=0.004, each_s=0.001)
    scheduler = early_exits(linear_cost(fixed_s=0.004, each_s=0.001), ExitConfig(max_batch=8))
    records = simulate(scheduler, trace, ExitWorld(cost.batch_s), noise=lognormal_noise(Random(0), 0.1)).records
    mine = [record.is_good for record in records if record.tenant == tenant]
    return sum(mine) / len(mine)


def test_flood_of_one_tenant_does_not_starve_another() -> None:
    trace = flood_trace(flood_per_s=5000.0, quiet_per_s=60.0, seconds=3.0, deadline_s=0.15)
    assert good_share(trace, "flood") < 0.2  # it asks for about ten times the engine
    assert good_share(trace, "quiet") > 0.9


def test_two_flooding_tenants_share_the_engine_evenly() -> None:
    trace = flood_trace(flood_per_s=3000.0, quiet_per_s=1000.0, seconds=3.0, deadline_s=0.15)
    num_good = {t: good_share(trace, t) * sum(s.tenant == t for s in trace) for t in ("flood", "quiet")}
    assert num_good["quiet"] / num_good["flood"] == pytest.approx(1.0, abs=0.25)


def test_no_new_sample_starves_under_endless_more_urgent_work() -> None:
    """Bound at each stage: max_age_s, and one batch for each older sample.

    The victim has no deadline and the lowest priority; the adversary keeps the queue full of urgent HIGH samples of
    the same tenant, so that without aging the victim would never run.
    """
    max_age_s, batch_s, num_older = 0.5, 0.011, 8
    caller = caller_of(max_batch=1, max_waiting=8, max_age_s=max_age_s)
    caller.send(arrived(0), now_s=0.0)
    caller.send(arrived(1, thresholds=NEVER, priority=Priority.LOW))
    bound_s = 3 * (max_age_s + (num_older + 2) * batch_s)
    while 1 not in caller.ends:
        for _ in range(3):
            caller.send(arrived(len(caller.arrivals), deadline_s=caller.now_s + 0.2, priority=Priority.HIGH))
        finish(caller, batch_s, doubtful={1})
        assert caller.now_s <= bound_s
    assert caller.ends[1] == Finish(unit_id=1, stage=2, degraded=False)
    assert caller.now_s > max_age_s  # so it was the aging rule that let it through


def test_no_survivor_starves_under_endless_full_batches_of_new_work() -> None:
    """Same bound; alone at its stage, the victim's batch is always the least efficient one."""
    max_age_s, batch_s = 0.5, 0.014
    caller = caller_of(max_batch=4, max_waiting=12, max_age_s=max_age_s)
    caller.send(arrived(0, thresholds=NEVER), now_s=0.0)
    while 0 not in caller.ends:
        for _ in range(6):
            caller.send(arrived(len(caller.arrivals)))
        finish(caller, batch_s, doubtful={0})
        assert caller.now_s <= 3 * (max_age_s + (12 + 2) * batch_s)
    assert caller.ends[0] == Finish(unit_id=0, stage=2, degraded=False)
    assert caller.now_s > 2 * max_age_s  # it waited that long at both later stages


def finish(caller: Caller, batch_s: float, doubtful: set[int]) -> None:
    """The running batch ends after ``batch_s``; all but ``doubtful`` are sure at once."""
    (batch,) = caller.running.values()
    confident = {s: 0.9 for s in batch.unit_ids if s not in doubtful}
    caller.send(finished(batch, confident, elapsed_s=batch_s), now_s=caller.now_s + batch_s)


def test_old_samples_of_a_flood_do_not_keep_the_survivors_of_another_tenant_from_running() -> None:
    """Those of the flood have no deadline, so that some have always waited for longer than ``max_age_s``."""
    max_age_s, batch_s = 0.1, 0.014
    caller = caller_of(max_batch=4, max_waiting=64, max_age_s=max_age_s)
    caller.send(*(arrived(number, tenant="flood") for number in range(60)), now_s=0.0)
    quiet: set[int] = set()
    while caller.now_s < 1.0:
        for _ in range(4):
            caller.send(arrived(len(caller.arrivals), tenant="flood"))
        if len(quiet) <= 10 * caller.now_s:
            quiet.add(len(caller.arrivals))
            late_s = caller.now_s + 0.5
            caller.send(arrived(len(caller.arrivals), late_s, thresholds=NEVER, tenant="quiet"))
        finish(caller, batch_s, doubtful=quiet)
    ends = [caller.ends[number] for number in quiet if caller.arrivals[number].deadline_s < caller.now_s]
    assert len(ends) > 3
    assert all(isinstance(end, Finish) and not end.degraded for end in ends)


def test_overdue_sample_runs_even_when_its_batch_has_to_be_split() -> None:
    caller = caller_of(max_batch=8, fixed_s=0.010, each_s=0.010, max_age_s=0.01)
    blocker = only_batch(caller.send(arrived(99), now_s=0.0))
    caller.send(arrived(0))  # no deadline: sorts behind everything
    caller.send(*(arrived(i, deadline_s=0.065) for i in range(1, 6)), now_s=0.015)
    batch = only_batch(caller.send(finished(blocker, {99: 0.9}, elapsed_s=0.020), now_s=0.020))
    assert 0 in batch.unit_ids
    assert len(batch.unit_ids) < 6


def test_queued_s_grows_with_work_and_falls_while_a_batch_runs() -> None:
    caller = caller_of(max_batch=4)
    assert caller.scheduler.queued_s(0.0) == 0.0
    caller.send(arrived(0), now_s=0.0)
    one_s = caller.scheduler.queued_s(0.0)
    assert one_s >= 0.011
    assert caller.scheduler.queued_s(0.005) == pytest.approx(one_s - 0.005)
    caller.send(*(arrived(i) for i in range(1, 9)))
    assert caller.scheduler.queued_s(0.0) > one_s


def test_wakeup_is_none_without_deadlines() -> None:
    caller = caller_of()
    caller.send(arrived(0), arrived(1), now_s=0.0)
    assert caller.scheduler.next_wakeup_s() is None


def test_timers_of_gone_samples_do_not_pile_up() -> None:
    caller = caller_of(max_batch=8)
    for i in range(6000):
        caller.send(arrived(i, deadline_s=1e6 + i))
        while caller.running:
            (batch,) = caller.running.values()
            caller.send(finished(batch, dict.fromkeys(batch.unit_ids, 0.9)))
    assert len(caller.scheduler._timers) <= 4096 + 2 * 8  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "config",
    [
        {"max_batch": 0},
        {"max_waiting": 0},
        {"num_executors": 0},
        {"max_age_s": 0.0},
        {"max_age_s": math.inf},
        {"max_age_s": math.nan},
    ],
    ids=str,
)
def test_impossible_config_is_refused_by_name(config: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        ExitConfig(**config)


@pytest.mark.parametrize(("make", "fixed_s"), [(early_exits, 0.0245), (full_network, 0.0135)], ids=["ours", "full"])
def test_slow_moment_does_not_have_everything_refused_for_ever(
    make: Callable[[CostModel], Kernel], fixed_s: float
) -> None:
    """Everything is eight times slower for a moment, so that no deadline seems to be in reach any more. The engine has
    nothing to do then, and nothing but running something can show that the moment is over."""

    class Slow(ExitWorld):
        """Slices between 0.5 and 1.5 s."""

        def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
            return super().slice_s(stage, num_stages, units) * (8.0 if 0.5 < units[0].arrived_s < 1.5 else 1.0)

    trace = flood_trace(flood_per_s=200.0, quiet_per_s=20.0, seconds=4.0, deadline_s=0.05)
    cost = linear_cost(fixed_s=fixed_s, each_s=0.0005)
    world, slow = ExitWorld(cost.batch_s), Slow(cost.batch_s)
    good = []
    for true in (world, slow):
        records = simulate(make(linear_cost(fixed_s=fixed_s, each_s=0.0005)), trace, true).records
        good.append(sum(record.is_good for record in records if record.arrived_s > 2.0))
    assert good[1] >= 0.9 * good[0] > 0


# -- units of different sizes ------------------------------------------------------------------------------------------


def sized(unit_id: int, size: float, deadline_s: float = math.inf, key: str = "") -> UnitArrived:
    return UnitArrived(unit_id=unit_id, work=ExitWork((0.5,), size), deadline_s=deadline_s, batch_key=key or str(size))


def test_small_picture_is_answered_within_a_deadline_that_a_usual_one_could_not_keep() -> None:
    """Of a network of one stage, 100 ms a usual picture: small ones take 10 ms."""
    scheduler = early_exits(measured_stages((1, 8), [[0.1, 0.8]]), ExitConfig(max_batch=8))
    decisions = scheduler.handle(0.0, sized(0, 0.1, deadline_s=0.021), sized(1, 0.1, 0.021), sized(2, 1.0, 0.05))
    reject, run = sorted(decisions, key=lambda one: isinstance(one, RunSlice))
    assert isinstance(reject, Reject)
    assert reject.unit_id == 2
    assert isinstance(run, RunSlice)
    assert (run.unit_ids, run.predicted_s) == ((0, 1), pytest.approx(0.02))
    assert scheduler.remaining_s(0) == pytest.approx(0.01)


def test_slice_that_would_end_late_by_the_work_of_its_units_is_split() -> None:
    scheduler = early_exits(measured_stages((1, 8), [[0.1, 0.8]]), ExitConfig(max_batch=8))
    units = [sized(n, 2.0, deadline_s=0.5) for n in range(4)]
    (run,) = [one for one in scheduler.handle(0.0, *units) if isinstance(one, RunSlice)]
    assert len(run.unit_ids) == 2


def test_charge_and_correction_go_by_the_work_of_each_unit() -> None:
    cost = measured_stages((1, 8), [[0.1, 0.8]], watts=5.0)
    scheduler = early_exits(cost, ExitConfig(max_batch=8))
    (run,) = scheduler.handle(0.0, sized(0, 0.5, key="same"), sized(1, 2.5, key="same"))
    assert isinstance(run, RunSlice)
    units = list(scheduler._live.values())
    assert [unit.joules for unit in units] == pytest.approx([0.25, 1.25])
    assert run.predicted_s == pytest.approx(0.3)
    results = tuple(SliceResult(unit_id=n, report=1.0) for n in range(2))
    scheduler.handle(0.6, SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=0.6))
    assert cost.correction(0) == pytest.approx(1.1)
    assert [unit.joules for unit in units] == pytest.approx([0.25 - 0.5, 1.25 - 2.5])  # left of the charges


def test_samples_given_up_before_they_ran_are_not_charged() -> None:
    """Of eight that would be late together, some are given up, others wait on, and of those one is cancelled."""
    scheduler = early_exits(linear_cost(fixed_s=0.010, each_s=0.010), ExitConfig(max_batch=8))
    order = scheduler.policy.order
    assert isinstance(order, ExitOrder)
    (run,) = scheduler.handle(0.0, arrived(99))
    assert isinstance(run, RunSlice)
    soon = [arrived(n, 0.042, tenant="hasty") for n in range(2)]
    later = [arrived(n, 0.075, tenant="hasty") for n in range(2, 8)]
    scheduler.handle(0.0, *soon, *later)
    charges_j = {unit.unit_id: unit.joules for unit in order}
    decisions = scheduler.handle(0.020, finished(run, {99: 0.9}, elapsed_s=0.020))
    (run,) = [one for one in decisions if isinstance(one, RunSlice)]
    gone = {one.unit_id for one in decisions if isinstance(one, Reject)}
    held = {unit.unit_id for unit in order}
    assert gone
    assert held
    scheduler.handle(0.021, *(UnitCancelled(unit_id=unit_id) for unit_id in held))
    charged_j = sum(charges_j[unit_id] for unit_id in run.unit_ids)
    assert order.fresh._flows["hasty"].tag == pytest.approx(charged_j)


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(ValueError, match="size is"):
        ExitWork((0.5,), size)
