"""The scheduler of denoising steps: events in, decisions out."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.types import Drain, Priority, Tick
from schedulers.video import VideoPolicyConfig, VideoScheduler
from schedulers.video_cost import StepCost
from schedulers.video_types import (
    Decode,
    Decoded,
    Fail,
    Finish,
    GiveBack,
    JobArrived,
    JobCancelled,
    Preempted,
    Release,
    RunStep,
    StepFinished,
    StepResult,
    VideoDecision,
    VideoEvent,
)
from schedulers.video_urgency import CLASS_S, HORIZON_S


def job(
    job_id: str,
    steps: int = 2,
    *,
    phase: Hashable = "p",
    priority: Priority = Priority.NORMAL,
    deadline_s: float = math.inf,
    held_bytes: int = 1,
    step_s: float = 1.0,
) -> JobArrived:
    return JobArrived(
        job_id=job_id,
        steps_left=steps,
        seconds_per_step=step_s,
        tokens=128,
        held_bytes=held_bytes,
        phase=phase,
        priority=priority,
        deadline_s=deadline_s,
    )


def done(batch: RunStep, *, phase: Hashable = "p", failed: Iterable[str] = (), elapsed_s: float = 1.0) -> StepFinished:
    bad = set(failed)
    results = tuple(StepResult(job_id=name, phase=phase, failed=name in bad) for name in batch.job_ids)
    return StepFinished(batch_id=batch.batch_id, results=results, elapsed_s=elapsed_s)


def decoded(job_id: str, *, failed: bool = False) -> Decoded:
    return Decoded(job_id=job_id, elapsed_s=0.5, failed=failed)


def scheduler(**bounds: int) -> VideoScheduler:
    return VideoScheduler(VideoPolicyConfig(**{"max_batch": 1, **bounds}))


def step_of(decisions: list[VideoDecision]) -> RunStep:
    (step,) = [decision for decision in decisions if isinstance(decision, RunStep)]
    return step


# -- life of a job ---------------------------------------------------------------------------------------------------


def test_job_takes_its_steps_then_its_decode_then_ends() -> None:
    machine = scheduler()
    first = step_of(machine.handle(0.0, job("a", 2)))
    second = step_of(machine.handle(1.0, done(first)))
    assert machine.handle(2.0, done(second)) == [Decode(job_id="a")]
    assert machine.handle(3.0, decoded("a")) == [Finish(job_id="a")]
    assert machine.counts().finished == machine.counts().arrived == 1
    assert machine.remaining_s("a") == 0.0


def test_resumed_job_without_steps_left_is_only_decoded() -> None:
    assert scheduler().handle(0.0, job("a", 0)) == [Decode(job_id="a")]


def test_denoising_goes_on_beside_the_one_decode() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1), job("b", 1), job("c", 1)))
    decisions = machine.handle(1.0, done(step))
    assert decisions[0] == Decode(job_id="a")
    assert step_of(decisions).job_ids == ("b",)
    decisions = machine.handle(2.0, done(step_of(decisions)))
    assert decisions == [RunStep(batch_id=2, job_ids=("c",))]  # b waits for a's decode
    assert machine.handle(3.0, decoded("a")) == [Finish(job_id="a"), Decode(job_id="b")]


def test_failed_job_ends_alone() -> None:
    machine = scheduler(max_batch=2)
    step = step_of(machine.handle(0.0, job("a"), job("b")))
    decisions = machine.handle(1.0, done(step, failed=["a"]))
    assert decisions == [Fail(job_id="a"), RunStep(batch_id=1, job_ids=("b",))]


def test_failed_decode_ends_the_job() -> None:
    machine = scheduler()
    machine.handle(0.0, job("a", 0))
    assert machine.handle(1.0, decoded("a", failed=True)) == [Fail(job_id="a")]


def test_cancel_takes_effect_at_once_or_at_the_next_boundary() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("run", 2), job("wait"), job("decode", 0), job("denoised", 0)))
    assert machine.handle(0.5, JobCancelled(job_id="wait")) == [Release(job_id="wait")]
    assert machine.handle(0.5, JobCancelled(job_id="denoised")) == [Release(job_id="denoised")]
    assert machine.handle(0.5, JobCancelled(job_id="run"), JobCancelled(job_id="decode")) == []
    assert machine.handle(0.5, JobCancelled(job_id="run"), JobCancelled(job_id="never")) == []
    assert machine.handle(1.0, done(step)) == [Release(job_id="run")]
    assert machine.handle(1.0, decoded("decode")) == [Release(job_id="decode")]
    assert machine.handle(1.0, JobCancelled(job_id="run")) == []


def test_drain_gives_back_what_waits_and_what_runs_at_its_boundary_and_ends_decodes() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("run", 3), job("wait"), job("decode", 0), job("denoised", 0)))
    assert machine.handle(0.5, Drain()) == [GiveBack(job_id="wait")]
    assert machine.room() == 0
    assert machine.handle(0.5, job("late")) == [GiveBack(job_id="late")]
    assert machine.handle(1.0, done(step)) == [GiveBack(job_id="run")]
    assert not machine.is_drained
    assert machine.handle(1.0, decoded("decode")) == [Finish(job_id="decode"), Decode(job_id="denoised")]
    assert machine.handle(2.0, decoded("denoised")) == [Finish(job_id="denoised")]
    assert machine.is_drained


def test_last_step_that_ends_in_a_drain_is_not_wasted() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1)))
    machine.handle(0.5, Drain())
    assert machine.handle(1.0, done(step)) == [Decode(job_id="a")]


# -- who goes first --------------------------------------------------------------------------------------------------


def test_nearer_deadline_preempts_at_the_step_boundary_and_the_other_goes_on_later() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("slow", 3)))
    assert machine.handle(0.5, job("soon", 1, deadline_s=5.0)) == []  # not within the step
    decisions = machine.handle(1.0, done(step))
    assert decisions == [Preempted(job_id="slow"), RunStep(batch_id=1, job_ids=("soon",))]
    decisions = machine.handle(2.0, done(step_of(decisions)))
    assert decisions == [Decode(job_id="soon"), RunStep(batch_id=2, job_ids=("slow",))]


def test_waiting_longer_is_no_second_preemption() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("slow", 3)))
    decisions = machine.handle(1.0, done(step), job("soon", 3, deadline_s=9.0))
    for now_s in (2.0, 3.0):
        decisions = machine.handle(now_s, done(step_of(decisions)))
        assert [type(decision) for decision in decisions] == [RunStep]


def test_class_of_priority_goes_first() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, *(job(priority.name, priority=priority) for priority in Priority)))
    assert step.job_ids == ("HIGH",)


def test_jobs_that_are_equally_urgent_do_not_take_turns() -> None:
    """One finishes, and only then the other begins: taking turns would make both late."""
    machine = scheduler()
    order: list[str] = []
    decisions = machine.handle(0.0, job("a", 4, deadline_s=50.0), job("b", 4, deadline_s=50.0))
    for now_s in range(1, 9):
        step = step_of(decisions)
        order += step.job_ids
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
        if "old" in step.job_ids:
            break
        now_s = float(number)
        assert now_s <= bound_s
        events: list[VideoEvent] = [done(step)]
        if number % 10 == 0:
            events.append(job(f"u{number}", 10, deadline_s=now_s + 10.0, priority=Priority.HIGH))
        decoding = [decision.job_id for decision in decisions if isinstance(decision, Decode)]
        decisions = machine.handle(now_s, *events, *(decoded(name) for name in decoding))


def test_preempted_job_keeps_its_age() -> None:
    """Interrupted again and again, it still goes before what came after it."""
    machine = scheduler()
    decisions = machine.handle(0.0, job("old", 50))
    for number in range(3):
        now_s = 2.0 * number + 1.0
        urgent = job(f"u{number}", 1, deadline_s=now_s + 2)
        decisions = machine.handle(now_s, done(step_of(decisions)), urgent, job(f"young{number}", 50))
        decisions = machine.handle(now_s + 1, done(step_of(decisions)))
        assert step_of(decisions).job_ids == ("old",)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_jobs_of_one_phase_share_a_step_up_to_the_bound() -> None:
    machine = scheduler(max_batch=3)
    machine_step = step_of(machine.handle(0.0, job("a"), job("x", phase="q"), job("b"), job("c"), job("d")))
    assert machine_step.job_ids == ("a", "b", "c")


def test_phase_of_its_own_runs_alone() -> None:
    machine = scheduler(max_batch=4)
    step = step_of(machine.handle(0.0, job("a", phase=None), job("b", phase=None)))
    assert step.job_ids == ("a",)


def test_batch_follows_the_phases_that_its_jobs_change_to() -> None:
    machine = scheduler(max_batch=2)
    step = step_of(machine.handle(0.0, job("a", 9), job("b", 9)))
    results = (StepResult(job_id="a", phase="p"), StepResult(job_id="b", phase="q"))
    decisions = machine.handle(1.0, StepFinished(batch_id=step.batch_id, results=results, elapsed_s=1.0))
    assert decisions == [Preempted(job_id="b"), RunStep(batch_id=1, job_ids=("a",))]
    assert step_of(machine.handle(2.0, done(step_of(decisions), phase="q"))).job_ids == ("a", "b")


def test_batch_is_bounded_by_bytes_and_a_large_job_still_runs() -> None:
    machine = scheduler(max_batch=4, max_held_bytes=10)
    step = step_of(machine.handle(0.0, job("a", held_bytes=6), job("b", held_bytes=5), job("c", held_bytes=4)))
    assert step.job_ids == ("a", "c")
    machine = scheduler(max_batch=4, max_held_bytes=10)
    assert step_of(machine.handle(0.0, job("huge", held_bytes=99))).job_ids == ("huge",)


def test_companions_may_not_make_the_leader_late() -> None:
    """A step of two takes twice as long here: alone the leader is done at 4, in a batch at 8."""
    for deadline_s, expected in ((5.0, ("a",)), (8.5, ("a", "b")), (3.0, ("a", "b"))):  # at 3 it is late either way
        machine = VideoScheduler(VideoPolicyConfig(max_batch=2), StepCost(first_share=1.0))
        step = step_of(machine.handle(0.0, job("a", 4, deadline_s=deadline_s), job("b", 4)))
        assert step.job_ids == expected, deadline_s


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_room_is_what_numbers_and_bytes_leave() -> None:
    machine = scheduler(max_jobs=3, max_held_bytes=10)
    assert machine.room() == 3
    machine.handle(0.0, job("a", held_bytes=4))
    assert machine.room() == 1  # 6 bytes left hold one more of 4
    machine.handle(0.0, job("b", held_bytes=4))
    assert machine.room() == 0
    machine = scheduler(max_jobs=2)
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


# -- a caller that errs ----------------------------------------------------------------------------------------------


def test_contract_is_kept() -> None:
    machine = scheduler()
    step = step_of(machine.handle(1.0, job("a")))
    wrong = [
        job("a"),
        StepFinished(batch_id=7, results=(), elapsed_s=1.0),
        StepFinished(batch_id=step.batch_id, results=(), elapsed_s=1.0),
        StepFinished(batch_id=step.batch_id, results=(StepResult(job_id="a", phase="p"),) * 2, elapsed_s=1.0),
        decoded("a"),
        decoded("never"),
    ]
    before = machine.counts()
    for event in wrong:
        with pytest.raises(ValueError, match=r"here already|batch|decoded"):
            machine.handle(1.0, event)
        assert machine.counts() == before
        machine.check_invariants()
    for now_s in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="time must"):
            machine.handle(now_s, Tick())


def test_decisions_before_an_error_are_not_lost() -> None:
    machine = scheduler()
    step = step_of(machine.handle(0.0, job("a", 1), job("b", 1)))
    with pytest.raises(ValueError, match="here already"):
        machine.handle(1.0, done(step, failed=["a"]), job("b"))
    assert machine.handle(1.0) == [Fail(job_id="a"), RunStep(batch_id=1, job_ids=("b",))]


def test_bounds_are_checked() -> None:
    for name in ("max_batch", "max_jobs", "max_held_bytes"):
        with pytest.raises(ValueError, match=name):
            VideoPolicyConfig(**{name: 0})


# -- whatever happens ------------------------------------------------------------------------------------------------


@dataclass
class Driver:
    """An engine that answers when told to; checks what it is asked."""

    machine: VideoScheduler
    now_s: float = 0.0
    step: RunStep | None = None
    decoding: str | None = None
    alive: set[str] = field(default_factory=set)
    ended: dict[str, VideoDecision] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    def feed(self, *events: VideoEvent) -> None:
        self.alive |= {event.job_id for event in events if isinstance(event, JobArrived)}
        for decision in self.machine.handle(self.now_s, *events):
            self._take(decision)
        self.machine.check_invariants()
        assert self.machine.next_wakeup_s() is None
        assert self.machine.queued_s(self.now_s) >= 0.0
        if self.alive and not self.decoding:
            assert self.step is not None  # work is never left lying

    def _take(self, decision: VideoDecision) -> None:
        match decision:
            case RunStep():
                assert self.step is None
                assert set(decision.job_ids) <= self.alive - {self.decoding}
                self.step = decision
            case Decode(job_id=name):
                assert self.decoding is None
                assert name in self.alive
                assert self.steps[name] == 0
                self.decoding = name
            case Preempted(job_id=name):
                assert name in self.alive
            case _:
                assert decision.job_id in self.alive
                self.alive.remove(decision.job_id)
                assert decision.job_id not in self.ended
                self.ended[decision.job_id] = decision


@settings(max_examples=60)
@given(st.data())
def test_every_job_ends_exactly_once_whatever_happens(data: st.DataObject) -> None:
    machine = VideoScheduler(VideoPolicyConfig(max_batch=3, max_jobs=6, max_held_bytes=12))
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
        held_bytes = draw(st.integers(0, 14))
        driver.feed(job(name, steps, phase=phase, priority=priority, deadline_s=deadline_s, held_bytes=held_bytes))
    elif kind == "answer":
        _answer(driver, draw)
    elif kind == "cancel":
        driver.feed(JobCancelled(job_id=draw(st.sampled_from(sorted(driver.alive) or ["never"]))))
    elif kind == "tick":
        driver.feed(Tick())
    elif draw(st.integers(0, 9)) == 0:
        driver.feed(Drain())


def _answer(driver: Driver, draw: st.DrawFn) -> None:
    if driver.step and (not driver.decoding or draw(st.booleans())):
        step, driver.step = driver.step, None
        failed = [name for name in step.job_ids if draw(st.integers(0, 9)) == 0]
        for name in step.job_ids:
            driver.steps[name] -= 1
        driver.feed(done(step, phase=draw(st.sampled_from(("p", "q"))), failed=failed, elapsed_s=draw(st.floats(0, 5))))
    elif driver.decoding:
        name, driver.decoding = driver.decoding, None
        driver.feed(decoded(name, failed=draw(st.integers(0, 9)) == 0))


# -- against every possible order ------------------------------------------------------------------------------------

Trace = tuple[int, int, int]
"""Arrival, steps and deadline of a job, in whole steps."""


def _all_in_time(trace: tuple[Trace, ...]) -> bool:
    """Whether ours meets every deadline. A step takes one second."""
    machine, step, left = scheduler(), None, [steps for _, steps, _ in trace]
    for now in range(max(arrival for arrival, _, _ in trace) + sum(left) + 1):
        events: list[VideoEvent] = [] if step is None else [done(step)]
        for i in [] if step is None else map(int, step.job_ids):
            left[i] -= 1
            if left[i] == 0 and now > trace[i][2]:
                return False
        events += [job(f"{i}", one[1], deadline_s=float(one[2])) for i, one in enumerate(trace) if one[0] == now]
        decisions = machine.handle(float(now), *events)
        step = next((decision for decision in decisions if isinstance(decision, RunStep)), None)
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
