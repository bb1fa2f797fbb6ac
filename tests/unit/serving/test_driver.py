"""The driver: real policy, fake engine, real event loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.contract import Point, SettingError
from models.inputs import Inputs
from schedulers.lab.baselines import DynamicBatchingConfig, full_network, no_rebatching
from schedulers.policies.exits import early_exits
from schedulers.types import (
    Decision,
    Event,
    Fail,
    Finish,
    Reject,
    RejectReason,
    Release,
    RunSlice,
    SliceFinished,
    Tick,
    UnitArrived,
    UnitCancelled,
)
from serving.energy.choose import AbsentMeter
from serving.energy.replica import ReplicaEnergy
from serving.energy.spent import Spent
from serving.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    EngineFailed,
    QueueFull,
    ServingError,
)
from serving.replica.driver import Answer, Call, Driver, Stay, rejection
from serving.replica.staged.base import Outcome, Outputs
from serving.telemetry import events
from tests.support.engines import NEVER, WAIT_S, GatedEngine, cost_table, early_exit_scheduler, pixels, running_driver
from tests.support.fake_engine import FakeEngine
from tests.support.scripted_scheduler import ScriptedScheduler
from tests.support.waiting import turns, until, wait_until

FULL = (NEVER, NEVER, NEVER, 0.0)


def submit(driver: Driver, value: int, thresholds: tuple[float, ...] = FULL, **options: Any) -> asyncio.Task[Answer]:
    options.setdefault("deadline_s", math.inf)
    return asyncio.create_task(driver.submit(pixels(value), thresholds=thresholds, **options))


class Recorder:
    def __init__(self) -> None:
        self.batches: list[events.BatchRan] = []
        self.answers: list[events.SampleAnswered] = []

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.BatchRan():
                self.batches.append(event)
            case events.SampleAnswered():
                self.answers.append(event)


# -- energy ----------------------------------------------------------------------------------------------------------


async def test_joules_of_samples_are_those_of_the_batches_whoever_left_or_failed() -> None:
    engine, told, energy = GatedEngine(), Recorder(), ReplicaEnergy(None, watts=6.0)
    stays = [Stay() for _ in range(6)]
    async with running_driver(engine, early_exit_scheduler(max_batch=4), tell=told, energy=energy) as driver:
        call = Call(stays)
        for number, stay in enumerate(stays):
            thresholds = (0.0, 0.0, 0.0, 0.0) if number % 2 else FULL
            driver.take(stay, pixels(number), deadline_s=math.inf, thresholds=thresholds)
        await until(lambda: told.batches)
        stays[0].leave()
        await asyncio.wait_for(call.wait(), WAIT_S)
        await until(lambda: not energy.slices.is_running)
        spent = [driver.spent(stay) for stay in stays]
    assert sum(one.seconds for one in spent) == pytest.approx(sum(batch.seconds for batch in told.batches))
    assert all(one.joules == pytest.approx(6.0 * one.seconds) for one in spent)
    assert {one.source for one in spent} == {"estimate"}


async def test_a_sample_of_a_silent_meter_has_no_joules() -> None:
    async with running_driver(GatedEngine(), energy=ReplicaEnergy(AbsentMeter("nvml"), watts=6.0)) as driver:
        stay = Stay()
        await submit(driver, 1, stay=stay)
        spent = driver.spent(stay)
    assert (spent.joules, spent.source) == (None, "nvml")
    assert spent.charged(6.0) == Spent(spent.seconds, 6.0 * spent.seconds, "estimate")


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exit_index", range(4))
async def test_sample_leaves_at_the_exit_whose_threshold_it_reaches(exit_index: int) -> None:
    # FakeEngine's confidence after stage k is (k + 1) / 4.
    thresholds = tuple(0.0 if k == exit_index else NEVER for k in range(4))
    async with running_driver(FakeEngine()) as driver:
        answer = await driver.submit(pixels(7), deadline_s=math.inf, thresholds=thresholds)
    assert answer.exit_index == exit_index
    assert not answer.degraded
    assert int(answer.outputs["probabilities"].argmax()) == 7 or exit_index == 0
    assert answer.outputs["probabilities"].max() == pytest.approx(
        (exit_index + 1) / 4 + (1 - (exit_index + 1) / 4) / 10
    )


@pytest.mark.parametrize("policy", ["early-exit", "full-network", "no-rebatching"])
async def test_every_caller_gets_its_own_answer_under_every_policy(policy: str) -> None:
    schedulers = {
        "early-exit": early_exit_scheduler(max_batch=8),
        "full-network": full_network(cost_table(), DynamicBatchingConfig(max_batch=8)),
        "no-rebatching": no_rebatching(cost_table(), DynamicBatchingConfig(max_batch=8)),
    }
    engine = FakeEngine()
    async with running_driver(engine, schedulers[policy]) as driver:
        answers = await asyncio.gather(*(submit(driver, value % 10) for value in range(40)))
        schedulers[policy].check_invariants()
    assert [int(answer.outputs["probabilities"].argmax()) for answer in answers] == [value % 10 for value in range(40)]
    assert {answer.exit_index for answer in answers} == {3}
    assert engine.held_bytes == 0


async def test_batches_tell_how_the_price_of_their_stage_is_corrected() -> None:
    told, cost = Recorder(), cost_table(stage_s=1.0)
    async with running_driver(FakeEngine(), early_exits(cost), tell=told, cost=cost) as driver:
        await driver.submit(pixels(7), deadline_s=math.inf, thresholds=FULL)
    (one,) = [batch for batch in told.batches if batch.stage == told.batches[-1].stage]
    assert one.predicted_s > one.seconds
    assert one.correction == cost.correction(one.stage) < 1.0


async def test_waiting_samples_share_batches() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=8)) as driver:
        engine.gate.clear()
        tasks = [submit(driver, value) for value in range(9)]
        await until(lambda: len(engine.calls) == 1)
        await until(lambda: driver.num_samples == 9)
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert max(len(ids) for _, _, ids in engine.calls) == 8


async def test_shares_of_compute_add_up_to_the_batches() -> None:
    recorder = Recorder()
    async with running_driver(FakeEngine(stage_seconds=0.002), tell=recorder) as driver:
        answers = await asyncio.gather(*(submit(driver, value) for value in range(5)))
    assert sum(answer.compute_s for answer in answers) == pytest.approx(
        sum(batch.seconds for batch in recorder.batches)
    )
    assert len(recorder.answers) == 5
    assert all(0.0 < batch.predicted_s < 1e-2 for batch in recorder.batches)
    assert all(answer.queue_s >= 0.0 for answer in answers)


# -- deadlines -------------------------------------------------------------------------------------------------------


async def test_deadline_that_has_passed_is_rejected_not_run() -> None:
    engine = GatedEngine()
    async with running_driver(engine) as driver:
        with pytest.raises(DeadlineExceeded):
            await driver.submit(pixels(1), deadline_s=driver.clock() - 1.0, thresholds=FULL)
    assert engine.calls == []
    assert engine.held_bytes == 0


async def test_deadline_that_passes_while_waiting_is_rejected_not_run() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=1)) as driver:
        engine.gate.clear()
        running = submit(driver, 1)
        await until(lambda: len(engine.calls) == 1)
        with pytest.raises((DeadlineExceeded, DeadlineUnreachable)):
            await driver.submit(pixels(2), deadline_s=driver.clock() + 0.05, thresholds=FULL)
        engine.gate.set()
        await running
    assert {ids for _, _, ids in engine.calls} == {(0,)}


async def test_deadline_too_near_for_one_stage_is_refused_at_once() -> None:
    scheduler = early_exits(cost_table(stage_s=100.0))
    async with running_driver(FakeEngine(), scheduler) as driver:
        with pytest.raises(DeadlineUnreachable) as caught:
            await driver.submit(pixels(1), deadline_s=driver.clock() + 10.0, thresholds=FULL)
    assert caught.value.retry_after_s is not None


async def test_sample_that_runs_out_of_time_answers_from_the_exit_it_passed() -> None:
    engine = GatedEngine()
    scheduler = early_exit_scheduler(max_batch=1)
    async with running_driver(engine, scheduler) as driver:
        deadline_s = driver.clock() + 0.2
        engine.on_run = lambda: _sleep_past(driver, deadline_s)
        answer = await driver.submit(pixels(3), deadline_s=deadline_s, thresholds=FULL)
    assert answer.degraded
    assert answer.exit_index == 0
    assert len(engine.calls) == 1


def _sleep_past(driver: Driver, deadline_s: float) -> None:
    wait_until(lambda: driver.clock() > deadline_s, "the deadline is over")


# -- cancellation ----------------------------------------------------------------------------------------------------


async def test_cancelled_while_waiting_never_runs() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=1)) as driver:
        engine.gate.clear()
        running = submit(driver, 1)
        await until(lambda: len(engine.calls) == 1)
        waiting = submit(driver, 2)
        await until(lambda: driver.num_samples == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert driver.num_samples == 1
        assert engine.held_bytes == pixels(1).nbytes
        engine.gate.set()
        await running
    assert all(ids == (0,) for _, _, ids in engine.calls)


async def test_who_leaves_hears_what_its_sample_took_once_its_stage_is_over() -> None:
    engine, stay = GatedEngine(), Stay()
    async with running_driver(engine, early_exit_scheduler(max_batch=1)) as driver:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_in_the_second_stage() -> None:
            if engine.calls[-1][0] == 1:
                engine.gate.clear()
                loop.call_soon_threadsafe(reached.set)
                assert engine.gate.wait(WAIT_S)

        engine.on_run = stop_in_the_second_stage
        task = submit(driver, 1, stay=stay)
        await asyncio.wait_for(reached.wait(), WAIT_S)
        first_stage_s = stay.compute_s
        assert first_stage_s > 0.0
        stay.leave()
        engine.gate.set()
        with pytest.raises(Cancelled):
            await task
    assert stay.compute_s > first_stage_s
    assert [stage for stage, _, _ in engine.calls] == [0, 1]


async def test_who_leaves_before_it_came_or_after_it_ended_costs_nothing_more() -> None:
    engine, early, late = FakeEngine(), Stay(), Stay()
    async with running_driver(engine, early_exit_scheduler()) as driver:
        early.leave()
        with pytest.raises(Cancelled):
            await submit(driver, 1, stay=early)
        answer = await submit(driver, 2, stay=late)
        late.leave()
        assert (early.compute_s, late.compute_s) == (0.0, answer.compute_s)


async def test_call_is_over_with_its_last_sample_and_tells_each_outcome() -> None:
    engine = FakeEngine(fails=lambda image: int(image.flat[0]) == 2, max_bytes=3 * pixels(0).nbytes)
    async with running_driver(engine) as driver:
        call = Call([Stay() for _ in range(4)])
        for value, stay in enumerate(call.stays):
            driver.take(stay, pixels(value), deadline_s=math.inf, thresholds=FULL)
        await asyncio.wait_for(call.wait(), WAIT_S)
        await asyncio.wait_for(Call([]).wait(), WAIT_S)
    assert [type(stay.outcome) for stay in call.stays] == [Answer, Answer, EngineFailed, QueueFull]


async def test_cancelled_call_takes_all_its_samples_out() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=1)) as driver:
        engine.gate.clear()
        call = Call([Stay() for _ in range(3)])
        for stay in call.stays:
            driver.take(stay, pixels(1), deadline_s=math.inf, thresholds=FULL)
        waiting = asyncio.create_task(call.wait())
        await until(lambda: len(engine.calls) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert driver.num_samples == 1  # the one in a batch
        engine.gate.set()
        await until(lambda: driver.num_samples == 0)
    assert all(isinstance(stay.outcome, Cancelled) for stay in call.stays)


@pytest.mark.parametrize("stage", range(4))
async def test_cancelled_while_running_is_freed_at_the_stage_boundary(stage: int) -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=4)) as driver:
        reached = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_here() -> None:
            if engine.calls[-1][0] <= stage < engine.calls[-1][0] + engine.calls[-1][1]:
                engine.gate.clear()
                loop.call_soon_threadsafe(reached.set)
                assert engine.gate.wait(WAIT_S)

        engine.on_run = stop_here
        task = submit(driver, 1)
        await asyncio.wait_for(reached.wait(), WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        num_calls = len(engine.calls)
        # Still in a batch: its memory must not be freed under the engine.
        assert engine.held_bytes == pixels(1).nbytes
        engine.on_run = lambda: None
        engine.gate.set()
        await until(lambda: driver.num_samples == 0)
        assert engine.held_bytes == 0
    assert len(engine.calls) == num_calls


async def test_cancelled_in_the_tick_in_which_its_answer_arrives_is_counted_once() -> None:
    class Canceller(Recorder):
        def __call__(self, event: events.Event) -> None:
            super().__call__(event)
            if isinstance(event, events.SampleAnswered):
                task.cancel()

    engine, scheduler, canceller = FakeEngine(), early_exit_scheduler(), Canceller()
    async with running_driver(engine, scheduler, tell=canceller) as driver:
        task = submit(driver, 1)
        await asyncio.wait([task])
        assert task.cancelled()
        assert len(canceller.answers) == 1
        scheduler.check_invariants()
        assert (scheduler.counts().finished, scheduler.counts().cancelled) == (1, 0)
    assert engine.held_bytes == 0


async def test_cancelling_one_leaves_the_neighbours_of_its_batch_unhurt() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=8)) as driver:
        engine.gate.clear()
        tasks = [submit(driver, value) for value in range(8)]
        await until(lambda: driver.num_samples == 8)
        tasks[3].cancel()
        engine.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done.pop(3), asyncio.CancelledError)
    answers = [answer for answer in done if isinstance(answer, Answer)]
    assert [int(answer.outputs["probabilities"].argmax()) for answer in answers] == [0, 1, 2, 4, 5, 6, 7]


# -- failures --------------------------------------------------------------------------------------------------------


async def test_failed_sample_leaves_the_neighbours_of_its_batch_unhurt() -> None:
    engine = GatedEngine(fails=lambda image: int(image.flat[0]) == 3)
    async with running_driver(engine) as driver:
        engine.gate.clear()
        tasks = [submit(driver, value) for value in range(6)]
        await until(lambda: driver.num_samples == 6)
        engine.gate.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[3], EngineFailed)
    assert sum(isinstance(outcome, Answer) for outcome in done) == 5
    assert engine.held_bytes == 0


class BrokenEngine(FakeEngine):
    """Breaks the contract of ``run`` in the way that the test asks for, once."""

    def __init__(self, defect: str) -> None:
        super().__init__()
        self._defect: str | None = defect

    def _has(self, defect: str) -> bool:
        if self._defect != defect:
            return False
        self._defect = None
        return True

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        outcomes = super().run(stage, num_stages, sample_ids)
        if self._has("raises"):
            raise ValueError("secret of the engine")
        if self._has("short"):
            return outcomes[:-1]
        return [math.nan for _ in outcomes] if self._has("nan") else outcomes

    def result(self, sample_id: int, exit_index: int) -> Outputs:
        if self._has("no result"):
            raise KeyError(sample_id)
        return super().result(sample_id, exit_index)


@pytest.mark.parametrize("defect", ["raises", "short", "nan", "no result"])
async def test_engine_that_breaks_its_contract_strands_nobody(defect: str) -> None:
    engine = BrokenEngine(defect)
    scheduler = early_exit_scheduler()
    async with running_driver(engine, scheduler) as driver:
        with pytest.raises(EngineFailed) as caught:
            await asyncio.wait_for(driver.submit(pixels(1), deadline_s=math.inf, thresholds=FULL), WAIT_S)
        assert "secret" not in caught.value.message
        assert engine.held_bytes == 0
        answer = await driver.submit(pixels(2), deadline_s=math.inf, thresholds=FULL)
        assert int(answer.outputs["probabilities"].argmax()) == 2
        scheduler.check_invariants()
        assert driver.overdue_s() == 0.0


async def test_call_is_overdue_from_when_it_was_predicted_to_end() -> None:
    engine, now_s = GatedEngine(), [100.0]
    engine.gate.clear()
    async with running_driver(engine, clock=lambda: now_s[0]) as driver:  # 0.1 ms predicted
        task = submit(driver, 1)
        await until(lambda: bool(engine.calls))
        assert driver.overdue_s() == 0.0
        now_s[0] += 5.0001
        assert driver.overdue_s() == pytest.approx(5.0)
        engine.gate.set()
        await task
        assert driver.overdue_s() == 0.0


async def test_full_engine_refuses_before_the_scheduler_hears_of_it() -> None:
    engine = GatedEngine(max_bytes=2 * pixels(0).nbytes)
    scheduler = early_exit_scheduler()
    async with running_driver(engine, scheduler) as driver:
        engine.gate.clear()
        tasks = [submit(driver, value) for value in range(2)]
        await until(lambda: driver.num_samples == 2)
        with pytest.raises(QueueFull) as caught:
            await driver.submit(pixels(2), deadline_s=math.inf, thresholds=FULL)
        assert caught.value.retry_after_s is not None
        assert scheduler.counts().arrived == 2
        engine.gate.set()
        await asyncio.gather(*tasks)


async def test_sample_whose_work_cannot_be_counted_leaves_nothing_behind() -> None:
    """Its settings are those of another version of the model, say."""

    def size_of(inputs: Inputs, point: Point) -> float:
        if point:
            raise SettingError("depth", "depth is not a setting of this model")
        return 1.0

    engine = FakeEngine()
    async with running_driver(engine, size_of=size_of) as driver:
        with pytest.raises(EngineFailed, match="another version"):
            await driver.submit(pixels(1), deadline_s=math.inf, thresholds=FULL, settings={"depth": 2})
        assert driver.num_samples == 0
        assert engine.held_bytes == 0
        assert (await driver.submit(pixels(5), deadline_s=math.inf, thresholds=FULL)).exit_index == 3


@pytest.mark.parametrize(
    ("deadline_s", "thresholds"), [(math.inf, (0.0,)), (math.inf, ()), (math.nan, FULL), (math.inf, (math.nan,) * 4)]
)
async def test_sample_that_the_scheduler_cannot_take_leaves_nothing_behind(
    deadline_s: float, thresholds: tuple[float, ...]
) -> None:
    engine = FakeEngine()
    async with running_driver(engine) as driver:
        with pytest.raises(EngineFailed):
            await driver.submit(pixels(1), deadline_s=deadline_s, thresholds=thresholds)
        assert driver.num_samples == 0
        assert engine.held_bytes == 0
        assert (await driver.submit(pixels(5), deadline_s=math.inf, thresholds=FULL)).exit_index == 3


# -- start and stop --------------------------------------------------------------------------------------------------


async def test_stop_finishes_what_is_here_and_refuses_what_comes() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=2)) as driver:
        engine.gate.clear()
        tasks = [submit(driver, value) for value in range(10)]
        await until(lambda: driver.num_samples == 10)
        stopping = asyncio.create_task(driver.stop())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await driver.submit(pixels(1), deadline_s=math.inf, thresholds=FULL)
        assert not stopping.done()
        engine.gate.set()
        await asyncio.wait_for(stopping, WAIT_S)
        answers = [task.result() for task in tasks]
    assert [int(answer.outputs["probabilities"].argmax()) for answer in answers] == list(range(10))
    assert engine.held_bytes == 0


async def test_stop_waits_for_a_batch_whose_callers_have_all_gone() -> None:
    engine = GatedEngine()
    async with running_driver(engine) as driver:
        engine.gate.clear()
        task = submit(driver, 1)
        await until(lambda: len(engine.calls) == 1)
        task.cancel()
        await asyncio.wait([task])
        stopping = asyncio.create_task(driver.stop())
        await turns()
        assert not stopping.done()
        engine.gate.set()
        await asyncio.wait_for(stopping, WAIT_S)
        assert engine.held_bytes == 0


async def test_submit_before_start_is_a_mistake_that_is_told() -> None:
    driver = Driver(scheduler=early_exit_scheduler(), engine=FakeEngine())
    with pytest.raises(RuntimeError, match="start"):
        await driver.submit(pixels(1), deadline_s=math.inf, thresholds=FULL)
    driver.start()
    with pytest.raises(RuntimeError, match="already"):
        driver.start()
    await driver.stop()


# -- the loop itself, with a scheduler that follows a script ---------------------------------------------------------


async def test_tick_is_fed_when_the_scheduler_asked_to_be_woken() -> None:
    def script(event: Event) -> list[Decision]:
        if isinstance(event, UnitArrived):
            scheduler.wakeup_s = driver.clock() + 0.005
        if isinstance(event, Tick):
            scheduler.wakeup_s = None
            return [Reject(unit_id=0, reason=RejectReason.DEADLINE_PASSED, retry_after_s=0.0)]
        return []

    scheduler = ScriptedScheduler(script)
    async with running_driver(FakeEngine(), scheduler) as driver:
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(driver.submit(pixels(1), deadline_s=1.0, thresholds=FULL), WAIT_S)


async def test_fused_stages_go_to_the_engine_in_one_call() -> None:
    def script(event: Event) -> list[Decision]:
        if isinstance(event, UnitArrived):
            return [RunSlice(slice_id=5, stage=0, unit_ids=(0,), num_stages=3)]
        if isinstance(event, SliceFinished):
            assert event.slice_id == 5
            assert event.results[0].report == 0.75
            return [Finish(unit_id=0, stage=2, degraded=True)]
        return []

    engine = GatedEngine()
    async with running_driver(engine, ScriptedScheduler(script)) as driver:
        answer = await driver.submit(pixels(4), deadline_s=math.inf, thresholds=FULL)
    assert engine.calls == [(0, 3, (0,))]
    assert (answer.exit_index, answer.degraded) == (2, True)


async def test_release_and_fail_decisions_free_the_engine() -> None:
    def script(event: Event) -> list[Decision]:
        if isinstance(event, UnitArrived):
            return [Fail(unit_id=0)] if event.unit_id == 0 else []
        return [Release(unit_id=1)] if isinstance(event, UnitCancelled) else []

    engine = FakeEngine()
    async with running_driver(engine, ScriptedScheduler(script)) as driver:
        with pytest.raises(EngineFailed):
            await driver.submit(pixels(1), deadline_s=math.inf, thresholds=FULL)
        task = submit(driver, 2)
        await until(lambda: driver.num_samples == 1)
        task.cancel()
        await asyncio.wait([task])
    assert engine.held_bytes == 0


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (RejectReason.QUEUE_FULL, QueueFull),
        (RejectReason.DEADLINE_PASSED, DeadlineExceeded),
        (RejectReason.DEADLINE_UNREACHABLE, DeadlineUnreachable),
        (RejectReason.DRAINING, Draining),
    ],
)
def test_each_refusal_becomes_its_error(reason: RejectReason, error: type[ServingError]) -> None:
    made = rejection(Reject(unit_id=0, reason=reason, retry_after_s=1.5))
    assert type(made) is error
    if error is not DeadlineExceeded:
        assert made.retry_after_s == 1.5
        assert "1.50 s" in made.message


def test_every_reason_has_an_error() -> None:
    for reason in RejectReason:
        assert isinstance(rejection(Reject(unit_id=0, reason=reason, retry_after_s=0.0)), ServingError)


# -- conservation ----------------------------------------------------------------------------------------------------


async def test_thousands_of_submits_end_in_one_outcome_each(rng: np.random.Generator) -> None:
    engine = FakeEngine(fails=lambda image: int(image.flat[0]) == 9)
    scheduler = early_exit_scheduler(max_batch=32, max_waiting=1500)
    async with running_driver(engine, scheduler) as driver:
        tasks = []
        for number in range(3000):
            thresholds = tuple(float(t) for t in rng.uniform(0, 1.5, 4))
            deadline_s = driver.clock() + rng.choice([1e-5, 0.02, math.inf], p=[0.05, 0.15, 0.8])
            tasks.append(submit(driver, number % 10, thresholds, deadline_s=deadline_s, tenant=str(number % 7)))
            if number % 11 == 0:
                rng.choice(np.array(tasks, dtype=object)).cancel()
            if number % 500 == 0:
                await asyncio.sleep(0)
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), WAIT_S)
        scheduler.check_invariants()
        counts = scheduler.counts()
        assert driver.num_samples == 0
    assert engine.held_bytes == 0
    assert counts.waiting == counts.running == 0
    # A task cancelled before its first step never submits; one cancelled beside its answer counts as finished.
    assert counts.arrived <= 3000
    assert counts.finished >= sum(isinstance(outcome, Answer) for outcome in done)
    assert all(isinstance(o, Answer | ServingError | asyncio.CancelledError) for o in done)
    for number, outcome in enumerate(done):
        if isinstance(outcome, Answer) and outcome.exit_index > 0:
            assert int(outcome.outputs["probabilities"].argmax()) == number % 10
    # Those that fail do so by the engine's word, and only those.
    assert {n % 10 for n, outcome in enumerate(done) if isinstance(outcome, EngineFailed)} == {9}
    assert not any(isinstance(outcome, Answer) for outcome in done[9::10])


@settings(max_examples=30)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["submit", "cancel", "yield", "sleep"]), st.integers(0, 30)), max_size=40
    )
)
def test_any_interleaving_of_submits_and_cancels_conserves(actions: list[tuple[str, int]]) -> None:
    async def play() -> None:
        engine = FakeEngine(fails=lambda image: int(image.flat[0]) == 5)
        scheduler = early_exit_scheduler(max_batch=3, max_waiting=4)
        tasks: list[asyncio.Task[Answer]] = []
        async with running_driver(engine, scheduler) as driver:
            for action, number in actions:
                if action == "submit":
                    tasks.append(submit(driver, number % 10, (number / 30, NEVER, 0.5, 0.0)))
                elif action == "cancel" and tasks:
                    tasks[number % len(tasks)].cancel()
                else:
                    await turns(1 if action == "yield" else 5)
                scheduler.check_invariants()
            if tasks:
                await asyncio.wait_for(asyncio.wait(tasks), WAIT_S)
        scheduler.check_invariants()
        assert engine.held_bytes == 0
        assert driver.num_samples == 0
        counts = scheduler.counts()
        assert counts.arrived == counts.finished + counts.rejected + counts.cancelled + counts.failed

    asyncio.run(play())
