"""The scheduler of denoising steps: events in, decisions out."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.kernel import Kernel
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.types import (
    Decision,
    Drain,
    Event,
    Fail,
    Finish,
    GiveBack,
    Preempted,
    Priority,
    Release,
    RunSlice,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)
from schedulers.urgency import CLASS_S, HORIZON_S


def job(
    name: str,
    steps: int = 2,
    *,
    phase: Hashable = "p",
    priority: Priority = Priority.NORMAL,
    deadline_s: float = math.inf,
    held_bytes: int = 1,
    step_s: float = 1.0,
    tenant: str = "",
) -> UnitArrived:
    return UnitArrived(
        unit_id=name,
        work=DenoisingWork(steps_left=steps, seconds_per_step=step_s, tokens=128),
        batch_key=phase,
        held_bytes=held_bytes,
        priority=priority,
        deadline_s=deadline_s,
        tenant=tenant,
    )


def done(step: RunSlice, *, phase: Hashable = "p", failed: Iterable[str] = (), elapsed_s: float = 1.0) -> SliceFinished:
    bad = set(failed)
    results = tuple(SliceResult(unit_id=name, report=phase, failed=name in bad) for name in step.unit_ids)
    return SliceFinished(slice_id=step.slice_id, results=results, elapsed_s=elapsed_s)


def decoded(machine: Kernel, name: str, *, failed: bool = False) -> SliceFinished:
    """The decode of ``name``, which runs now, is over."""
    slice_id = next(number for number, one in machine._running.items() if one.stage == DECODE and name in one.units)
    results = (SliceResult(unit_id=name, failed=failed),)
    return SliceFinished(slice_id=slice_id, results=results, elapsed_s=0.5)


def scheduler(**bounds: int) -> Kernel:
    return denoising(DenoisingConfig(**{"max_batch": 1, **bounds}))


def step_of(decisions: list[Decision]) -> RunSlice:
    (step,) = [one for one in decisions if isinstance(one, RunSlice) and one.stage != DECODE]
    return step


def plain(decisions: list[Decision]) -> list[object]:
    """Slices without their numbers: ``("step", "a", "b")``, ``("decode", "a")``; other decisions as they are."""
    return [
        ("decode" if one.stage == DECODE else "step", *one.unit_ids) if isinstance(one, RunSlice) else one
        for one in decisions
    ]


def finish(name: str) -> Finish:
    return Finish(unit_id=name, stage=DECODE)


# -- life of a job ---------------------------------------------------------------------------------------------------


def test_job_takes_its_steps_then_its_decode_then_ends() -> None:
    machine = scheduler()
    first = step_of(machine.handle(0.0, job("a", 2)))
    second = step_of(machine.handle(1.0, done(first)))
    assert plain(machine.handle(2.0, done(second))) == [("decode", "a")]
    assert plain(machine.handle(3.0, decoded(machine, "a"))) == [finish("a")]
    assert machine.counts().finished == machine.counts().arrived == 1
    assert machine.remaining_s("a") == 0.0


def test_resumed_job_without_steps_left_is_only_decoded() -> None:
    assert plain(scheduler().handle(0.0, job("a", 0))) == [("decode", "a")]


def test_denoising_goes_on_beside_the_one_decode() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1), job("b", 1), job("c", 1)))
    decisions = machine.handle(1.0, done(step))
    assert plain(decisions)[0] == ("decode", "a")
    assert step_of(decisions).unit_ids == ("b",)
    decisions = machine.handle(2.0, done(step_of(decisions)))
    assert plain(decisions) == [("step", "c")]  # b waits for a's decode
    assert plain(machine.handle(3.0, decoded(machine, "a"))) == [finish("a"), ("decode", "b")]


def test_failed_job_ends_alone() -> None:
    machine = scheduler(max_batch=2)
    step = step_of(machine.handle(0.0, job("a"), job("b")))
    decisions = machine.handle(1.0, done(step, failed=["a"]))
    assert plain(decisions) == [Fail(unit_id="a"), ("step", "b")]


def test_failed_decode_ends_the_job() -> None:
    machine = scheduler()
    machine.handle(0.0, job("a", 0))
    assert plain(machine.handle(1.0, decoded(machine, "a", failed=True))) == [Fail(unit_id="a")]


def test_cancel_takes_effect_at_once_or_at_the_next_boundary() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("run", 2), job("wait"), job("decode", 0), job("denoised", 0)))
    assert plain(machine.handle(0.5, UnitCancelled(unit_id="wait"))) == [Release(unit_id="wait")]
    assert plain(machine.handle(0.5, UnitCancelled(unit_id="denoised"))) == [Release(unit_id="denoised")]
    assert plain(machine.handle(0.5, UnitCancelled(unit_id="run"), UnitCancelled(unit_id="decode"))) == []
    assert plain(machine.handle(0.5, UnitCancelled(unit_id="run"), UnitCancelled(unit_id="never"))) == []
    assert plain(machine.handle(1.0, done(step))) == [Release(unit_id="run")]
    assert plain(machine.handle(1.0, decoded(machine, "decode"))) == [Release(unit_id="decode")]
    assert plain(machine.handle(1.0, UnitCancelled(unit_id="run"))) == []


def test_drain_gives_back_what_waits_and_what_runs_at_its_boundary_and_ends_decodes() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("run", 3), job("wait"), job("decode", 0), job("denoised", 0)))
    assert plain(machine.handle(0.5, Drain())) == [GiveBack(unit_id="wait")]
    assert machine.room() == 0
    assert plain(machine.handle(0.5, job("late"))) == [GiveBack(unit_id="late")]
    assert plain(machine.handle(1.0, done(step))) == [GiveBack(unit_id="run")]
    assert not machine.is_drained
    assert plain(machine.handle(1.0, decoded(machine, "decode"))) == [finish("decode"), ("decode", "denoised")]
    assert plain(machine.handle(2.0, decoded(machine, "denoised"))) == [finish("denoised")]
    assert machine.is_drained


def test_last_step_that_ends_in_a_drain_is_not_wasted() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1)))
    machine.handle(0.5, Drain())
    assert plain(machine.handle(1.0, done(step))) == [("decode", "a")]


# -- who goes first --------------------------------------------------------------------------------------------------


def test_nearer_deadline_preempts_at_the_step_boundary_and_the_other_goes_on_later() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("slow", 3)))
    assert plain(machine.handle(0.5, job("soon", 1, deadline_s=5.0))) == []  # not within the step
    decisions = machine.handle(1.0, done(step))
    assert plain(decisions) == [Preempted(unit_id="slow"), ("step", "soon")]
    decisions = machine.handle(2.0, done(step_of(decisions)))
    assert plain(decisions) == [("decode", "soon"), ("step", "slow")]


def test_waiting_longer_is_no_second_preemption() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("slow", 3)))
    decisions = machine.handle(1.0, done(step), job("soon", 3, deadline_s=9.0))
    for now_s in (2.0, 3.0):
        decisions = machine.handle(now_s, done(step_of(decisions)))
        assert [type(decision) for decision in decisions] == [RunSlice]


def test_class_of_priority_goes_first() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, *(job(priority.name, priority=priority) for priority in Priority)))
    assert step.unit_ids == ("HIGH",)


def test_jobs_that_are_equally_urgent_do_not_take_turns() -> None:
    """One finishes, and only then the other begins: taking turns would make both late."""
    machine = scheduler()
    order: list[str] = []
    decisions = machine.handle(0.0, job("a", 4, deadline_s=50.0), job("b", 4, deadline_s=50.0))
    for now_s in range(1, 9):
        step = step_of(decisions)
        order += step.unit_ids
        decisions = machine.handle(float(now_s), done(step))
        assert not any(isinstance(decision, Preempted) for decision in decisions)
    assert order == ["a"] * 4 + ["b"] * 4


def test_nothing_starves_behind_a_stream_of_urgent_jobs() -> None:
    """Each comes with a deadline that it can just meet; the old job without one gets its turn all the same."""
    machine = scheduler()
    urgent = job("u0", 10, deadline_s=10.0, priority=Priority.HIGH)
    decisions = machine.handle(0.0, job("old", 1, priority=Priority.LOW), urgent)
    bound_s = HORIZON_S + 2 * CLASS_S + 20.0
    for number in itertools.count(1):
        step = step_of(decisions)
        if "old" in step.unit_ids:
            break
        now_s = float(number)
        assert now_s <= bound_s
        events: list[Event] = [done(step)]
        if number % 10 == 0:
            events.append(job(f"u{number}", 10, deadline_s=now_s + 10.0, priority=Priority.HIGH))
        decoding = [one.unit_ids[0] for one in decisions if isinstance(one, RunSlice) and one.stage == DECODE]
        decisions = machine.handle(now_s, *events, *(decoded(machine, name) for name in decoding))


def test_preempted_job_keeps_its_age() -> None:
    """Interrupted again and again, it still goes before what came after it."""
    machine = scheduler()
    decisions = machine.handle(0.0, job("old", 50))
    for number in range(3):
        now_s = 2.0 * number + 1.0
        urgent = job(f"u{number}", 1, deadline_s=now_s + 2)
        decisions = machine.handle(now_s, done(step_of(decisions)), urgent, job(f"young{number}", 50))
        decisions = machine.handle(now_s + 1, done(step_of(decisions)))
        assert step_of(decisions).unit_ids == ("old",)


# -- tenants ---------------------------------------------------------------------------------------------------------


def test_tenants_take_turns_and_that_is_no_preemption() -> None:
    machine = scheduler()
    decisions = machine.handle(0.0, job("a", 4, tenant="one"), job("b", 4, tenant="two"))
    order: list[str] = []
    for now_s in range(1, 9):
        assert not any(isinstance(decision, Preempted) for decision in decisions)
        order += step_of(decisions).unit_ids
        decisions = machine.handle(float(now_s), done(step_of(decisions)))
    assert order == ["a", "b"] * 4


def test_newcomer_of_a_tenant_that_was_not_served_has_the_next_step_whatever_the_others_are_due() -> None:
    machine = scheduler()
    flood = [job(f"f{number}", 20, deadline_s=25.0, tenant="flood") for number in range(7)]
    decisions = machine.handle(0.0, *flood)
    decisions = machine.handle(1.0, done(step_of(decisions)), job("new", 2, deadline_s=9.0, tenant="new"))
    steps = []
    for now_s in range(2, 6):
        steps.append("new" in step_of(decisions).unit_ids)
        decisions = machine.handle(float(now_s), done(step_of(decisions)))
    assert steps[0]
    assert sum(steps) == 2, "it is denoised within four steps"


def test_deadline_of_one_tenant_does_not_hold_up_another() -> None:
    machine = scheduler()
    urgent = [job(f"u{number}", 9, deadline_s=10.0, tenant="pushes") for number in range(5)]
    decisions = machine.handle(0.0, *urgent, job("other", 3, tenant="waits"))
    order: list[str] = []
    for now_s in range(1, 7):
        order += step_of(decisions).unit_ids
        decisions = machine.handle(float(now_s), done(step_of(decisions)))
    assert order.count("other") == 3


def test_companions_join_in_fair_order_and_places_left_go_to_those_who_are_in() -> None:
    machine = scheduler(max_batch=4)
    jobs = [job("a1", tenant="a"), job("a2", tenant="a"), job("b1", tenant="b"), job("c1", phase="q", tenant="c")]
    step = step_of(machine.handle(0.0, *jobs))
    assert step.unit_ids == ("a1", "b1", "a2")
    step = step_of(machine.handle(1.0, done(step)))
    assert step.unit_ids == ("c1",)


def test_bound_on_fairness_holds_with_shared_steps_of_every_phase() -> None:
    """W_i - W_j within l_i + e_i + l_j + e_j: l the largest charge of a tenant in one step, its decode included; e the
    most that corrections add between two of its turns, and what a step's credits can come to, which is l at most."""
    rng = random.Random(0)
    machine = denoising(DenoisingConfig(max_batch=3, max_units=99))
    costs = {"a": 0.1, "b": 1.0, "c": 2.5}
    numbers, step, intervals = itertools.count(), None, []
    largest, rising, most = (dict.fromkeys(costs, 0.0) for _ in range(3))
    queue = machine.policy.order.steps
    correct = queue.correct

    def watched(tenant: str, joules: float) -> None:
        rising[tenant] += max(0.0, joules)
        most[tenant] = max(most[tenant], rising[tenant])
        correct(tenant, joules)

    queue.correct = watched
    for now_s in range(400):
        events: list[Event] = []
        if step is not None:
            true_s = sum(costs[name[0]] for name in step.unit_ids) * rng.uniform(0.7, 1.4)
            events.append(done(step, phase=rng.choice("pqr"), elapsed_s=true_s))
        live = list(machine._live.values())  # at most 3 run: 5 leave some waiting
        for tenant, step_s in costs.items():
            for _ in range(5 - sum(unit.tenant == tenant for unit in live)):
                name = f"{tenant}{next(numbers)}"
                events.append(job(name, rng.randint(1, 6), phase=rng.choice("pqr"), step_s=step_s, tenant=tenant))
        decisions = machine.handle(float(now_s), *events)
        step = step_of(decisions)
        intervals.append({tenant: queue._flows[tenant].tag for tenant in costs})
        while decoding := [one for one in decisions if isinstance(one, RunSlice) and one.stage == DECODE]:
            decisions = machine.handle(float(now_s), decoded(machine, decoding[0].unit_ids[0]))
        charges = dict.fromkeys(costs, 0.0)
        for name in step.unit_ids:
            charges[machine._live[name].tenant] += machine._live[name].joules
        for tenant, charge in charges.items():
            largest[tenant] = max(largest[tenant], charge)
            rising[tenant] = 0.0 if charge else rising[tenant]
        for start in intervals:
            moved = {tenant: queue._flows[tenant].tag - tag for tenant, tag in start.items()}
            for one, other in itertools.combinations(costs, 2):
                assert abs(moved[one] - moved[other]) <= sum(2 * largest[t] + most[t] for t in (one, other)) + 1e-9
    assert min(queue._flows[tenant].tag - intervals[0][tenant] for tenant in costs) > 20.0
    assert min(most.values()) > 0.0


# -- batches ---------------------------------------------------------------------------------------------------------


def test_jobs_of_one_phase_share_a_step_up_to_the_bound() -> None:
    machine = scheduler(max_batch=3)
    machine_step = step_of(machine.handle(0.0, job("a"), job("x", phase="q"), job("b"), job("c"), job("d")))
    assert machine_step.unit_ids == ("a", "b", "c")


def test_phase_of_its_own_runs_alone() -> None:
    machine = scheduler(max_batch=4)
    step = step_of(machine.handle(0.0, job("a", phase=None), job("b", phase=None)))
    assert step.unit_ids == ("a",)


def test_batch_follows_the_phases_that_its_jobs_change_to() -> None:
    machine = scheduler(max_batch=2)
    step = step_of(machine.handle(0.0, job("a", 9), job("b", 9)))
    results = (SliceResult(unit_id="a", report="p"), SliceResult(unit_id="b", report="q"))
    decisions = machine.handle(1.0, SliceFinished(slice_id=step.slice_id, results=results, elapsed_s=1.0))
    assert plain(decisions) == [Preempted(unit_id="b"), ("step", "a")]
    assert step_of(machine.handle(2.0, done(step_of(decisions), phase="q"))).unit_ids == ("a", "b")


def test_batch_is_bounded_by_bytes_and_a_large_job_still_runs() -> None:
    machine = scheduler(max_batch=4, max_held_bytes=10)
    step = step_of(machine.handle(0.0, job("a", held_bytes=6), job("b", held_bytes=5), job("c", held_bytes=4)))
    assert step.unit_ids == ("a", "c")
    machine = scheduler(max_batch=4, max_held_bytes=10)
    assert step_of(machine.handle(0.0, job("huge", held_bytes=99))).unit_ids == ("huge",)


def test_companions_may_not_make_the_leader_late() -> None:
    """A step of two takes twice as long here: alone the leader is done at 4, in a batch at 8."""
    for deadline_s, expected in ((5.0, ("a",)), (8.5, ("a", "b")), (3.0, ("a", "b"))):  # at 3 it is late either way
        machine = denoising(DenoisingConfig(max_batch=2))
        step = step_of(machine.handle(0.0, job("a", 4, deadline_s=deadline_s), job("b", 4)))
        assert step.unit_ids == expected, deadline_s


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_room_is_what_numbers_and_bytes_leave() -> None:
    machine = scheduler(max_units=3, max_held_bytes=10)
    assert machine.room() == 3
    machine.handle(0.0, job("a", held_bytes=4))
    assert machine.room() == 1  # 6 bytes left hold one more of 4
    machine.handle(0.0, job("b", held_bytes=4))
    assert machine.room() == 0
    machine = scheduler(max_units=2)
    machine.handle(0.0, job("a", 0), job("b"))  # a job that is decoded takes room as well
    assert machine.room() == 0


def test_work_left_shrinks_with_steps_and_with_time() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 3), job("b", 2)))
    assert (machine.remaining_s("a"), machine.remaining_s("b"), machine.remaining_s("never")) == (3.0, 2.0, 0.0)
    assert machine.queued_s(0.0) == pytest.approx(5.0)
    assert machine.queued_s(0.5) == pytest.approx(4.5)
    assert machine.queued_s(9.0) == pytest.approx(4.0)  # the step is overdue, not more than over
    machine.handle(1.0, done(step))
    assert machine.remaining_s("a") == 2.0


def test_what_steps_really_took_changes_what_is_expected() -> None:
    machine = scheduler()
    decisions = machine.handle(0.0, job("a", 30))
    for number in range(1, 21):
        decisions = machine.handle(3.0 * number, done(step_of(decisions), elapsed_s=3.0))
    assert machine.remaining_s("a") == pytest.approx(30.0, rel=0.02)


def test_size_never_seen_is_expected_to_differ_from_its_prediction_as_others_did() -> None:
    machine = scheduler()
    decisions = machine.handle(0.0, job("a", 9, step_s=0.1))
    for number in range(1, 9):
        decisions = machine.handle(0.5 * number, done(step_of(decisions), elapsed_s=0.5))
    large = DenoisingWork(steps_left=1, seconds_per_step=1.0, tokens=4096)
    machine.handle(5.0, UnitArrived(unit_id="b", work=large))
    assert machine.remaining_s("b") == pytest.approx(5.0)


def test_units_of_different_lengths_in_one_step_are_priced_and_charged_by_their_work() -> None:
    """A clip of a third of the other's work, packed with it: the step takes half of what was predicted."""
    machine = scheduler(max_batch=2)
    short, long = (
        UnitArrived(
            unit_id=name,
            work=DenoisingWork(steps_left=3, seconds_per_step=step_s, tokens=tokens),
            batch_key="p",
            tenant=name,
        )
        for name, step_s, tokens in (("short", 1.0, 128), ("long", 3.0, 384))
    )
    step = step_of(machine.handle(0.0, short, long))
    assert set(step.unit_ids) == {"short", "long"}
    running, cost = machine._running[step.slice_id], machine.policy.cost
    assert running.predicted_s == 4.0
    running.elapsed_s = 2.0
    assert [cost.excess_j(running, running.units[name]) for name in ("short", "long")] == [-0.5, -1.5]
    machine.handle(2.0, done(step, elapsed_s=2.0))
    assert (machine.remaining_s("short"), machine.remaining_s("long")) == (1.0, 3.0)


def test_decodes_are_learnt_from_the_first() -> None:
    machine = scheduler()
    machine.handle(0.0, job("a", 0), job("b"))
    assert machine.remaining_s("b") == 2.0
    machine.handle(1.0, decoded(machine, "a"))
    assert machine.remaining_s("b") == 2.5


# -- a caller that errs ----------------------------------------------------------------------------------------------


def test_contract_is_kept() -> None:
    machine = scheduler()
    step = step_of(machine.handle(1.0, job("a")))
    wrong = [
        job("a"),
        SliceFinished(slice_id=7, results=(), elapsed_s=1.0),
        SliceFinished(slice_id=step.slice_id, results=(), elapsed_s=1.0),
        SliceFinished(slice_id=step.slice_id, results=(SliceResult(unit_id="a", report="p"),) * 2, elapsed_s=1.0),
    ]
    before = machine.counts()
    for event in wrong:
        with pytest.raises(ValueError, match=r"arrived twice|slice"):
            machine.handle(1.0, event)
        assert machine.counts() == before
        machine.check_invariants()
    for now_s in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="time must"):
            machine.handle(now_s, Tick())


def test_decisions_before_an_error_are_not_lost() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1), job("b", 1)))
    with pytest.raises(ValueError, match="arrived twice"):
        machine.handle(1.0, done(step, failed=["a"]), job("b"))
    assert plain(machine.handle(1.0)) == [Fail(unit_id="a"), ("step", "b")]


def test_bounds_are_checked() -> None:
    for name in ("max_batch", "max_units", "max_held_bytes"):
        with pytest.raises(ValueError, match=name):
            DenoisingConfig(**{name: 0})


# -- whatever happens ------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """An engine that answers when told to; checks what it is asked."""

    machine: Kernel
    now_s: float = 0.0
    step: RunSlice | None = None
    decoding: str | None = None
    alive: set[str] = field(default_factory=set)
    ended: dict[str, Decision] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    held_bytes: dict[str, int] = field(default_factory=dict)

    def feed(self, *events: Event) -> None:
        self.alive |= {str(event.unit_id) for event in events if isinstance(event, UnitArrived)}
        for decision in self.machine.handle(self.now_s, *events):
            self._take(decision)
        self.machine.check_invariants()
        assert self.machine.next_wakeup_s() is None
        assert self.machine.queued_s(self.now_s) >= 0.0
        if self.alive and not self.decoding:
            assert self.step is not None  # work is never left lying

    def _take(self, decision: Decision) -> None:
        match decision:
            case RunSlice(stage=0):
                assert self.step is None
                assert set(decision.unit_ids) <= self.alive - {self.decoding}
                held = [self.held_bytes[name] for name in decision.unit_ids]
                assert len(held) == 1 or sum(held) <= self.machine.policy.limits.max_held_bytes
                self.step = decision
            case RunSlice(unit_ids=(name,)):
                assert self.decoding is None
                assert name in self.alive
                assert self.steps[name] == 0
                self.decoding = name
            case Preempted(unit_id=name):
                assert name in self.alive
            case _:
                assert decision.unit_id in self.alive
                self.alive.remove(decision.unit_id)
                assert decision.unit_id not in self.ended
                self.ended[decision.unit_id] = decision


@settings(max_examples=60)
@given(st.data())
def test_every_job_ends_exactly_once_whatever_happens(data: st.DataObject) -> None:
    machine = denoising(DenoisingConfig(max_batch=3, max_units=6, max_held_bytes=12))
    driver = Driver(machine)
    names = itertools.count()
    draw = data.draw
    for _ in range(draw(st.integers(5, 60))):
        driver.now_s += draw(st.sampled_from((0.0, 0.1, 7.0)))
        _one_event(driver, draw, names)
    driver.feed(Drain())
    while driver.step or driver.decoding:
        _answer(driver, draw)
    assert machine.is_drained
    assert driver.alive == set()
    counts = machine.counts()
    assert counts.arrived == len(driver.ended)
    assert counts.finished == sum(isinstance(end, Finish) for end in driver.ended.values())


def _one_event(driver: Driver, draw: st.DrawFn, names: Iterable[int]) -> None:
    kind = draw(st.sampled_from(("arrive", "arrive", "answer", "answer", "answer", "cancel", "tick", "drain")))
    if kind == "arrive":
        name, steps = f"j{next(iter(names))}", draw(st.integers(0, 4))
        driver.steps[name] = steps
        deadline_s = draw(st.sampled_from((math.inf, driver.now_s - 1, driver.now_s + 3, driver.now_s + 30)))
        phase, priority = draw(st.sampled_from(("p", "q", None))), draw(st.sampled_from(Priority))
        held_bytes = driver.held_bytes[name] = draw(st.integers(0, 14))
        tenant, bounds = draw(st.sampled_from("ab")), {"deadline_s": deadline_s, "held_bytes": held_bytes}
        driver.feed(job(name, steps, phase=phase, priority=priority, tenant=tenant, **bounds))
    elif kind == "answer":
        _answer(driver, draw)
    elif kind == "cancel":
        driver.feed(UnitCancelled(unit_id=draw(st.sampled_from(sorted(driver.alive) or ["never"]))))
    elif kind == "tick":
        driver.feed(Tick())
    elif draw(st.integers(0, 9)) == 0:
        driver.feed(Drain())


def _answer(driver: Driver, draw: st.DrawFn) -> None:
    if driver.step and (not driver.decoding or draw(st.booleans())):
        step, driver.step = driver.step, None
        failed = [name for name in step.unit_ids if draw(st.integers(0, 9)) == 0]
        for name in step.unit_ids:
            driver.steps[name] -= 1
        driver.feed(done(step, phase=draw(st.sampled_from(("p", "q"))), failed=failed, elapsed_s=draw(st.floats(0, 5))))
    elif driver.decoding:
        name, driver.decoding = driver.decoding, None
        driver.feed(decoded(driver.machine, name, failed=draw(st.integers(0, 9)) == 0))


# -- against every possible order ------------------------------------------------------------------------------------

Trace = tuple[int, int, int]
"""Arrival, steps and deadline of a job, in whole steps."""


def _all_in_time(trace: tuple[Trace, ...]) -> bool:
    """Whether ours meets every deadline. A step takes one second."""
    machine, step, left = scheduler(), None, [steps for _, steps, _ in trace]
    for now in range(max(arrival for arrival, _, _ in trace) + sum(left) + 1):
        events: list[Event] = [] if step is None else [done(step)]
        for i in [] if step is None else map(int, step.unit_ids):
            left[i] -= 1
            if left[i] == 0 and now > trace[i][2]:
                return False
        events += [job(f"{i}", one[1], deadline_s=float(one[2])) for i, one in enumerate(trace) if one[0] == now]
        decisions = machine.handle(float(now), *events)
        step = next(
            (decision for decision in decisions if isinstance(decision, RunSlice) and decision.stage != DECODE), None
        )
    assert left == [0] * len(trace)
    return True


def _can_be_in_time(trace: tuple[Trace, ...]) -> bool:
    """Whether any order at all does, by trying all of them."""

    @functools.cache
    def search(now: int, left: tuple[int, ...]) -> bool:
        if not any(left):
            return True
        if any(n and now + n > due for n, (_, _, due) in zip(left, trace, strict=True)):
            return False
        ready = [i for i, n in enumerate(left) if n and trace[i][0] <= now]
        if not ready:
            return search(now + 1, left)
        return any(search(now + 1, tuple(n - (i == j) for j, n in enumerate(left))) for i in ready)

    return search(0, tuple(steps for _, steps, _ in trace))


def _traces() -> st.SearchStrategy[tuple[Trace, ...]]:
    one = st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(0, 7))
    jobs = st.lists(one, min_size=1, max_size=5)
    return jobs.map(lambda jobs: tuple((at, steps, at + steps + slack) for at, steps, slack in jobs))


@settings(max_examples=200)
@given(_traces())
def test_every_deadline_is_met_that_any_order_could_meet(trace: tuple[Trace, ...]) -> None:
    assert _all_in_time(trace) == _can_be_in_time(trace)
