"""Phase grouping: units that wake the same experts go on together, within deadlines, shares and a bound on waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.fair_queue import FairQueue
from schedulers.lab.fairness import Gaps
from schedulers.lab.phases import EARLY, LATE, ExpertWorld, job, random_jobs, replay
from schedulers.lab.simulator import TraceUnit, simulate
from schedulers.policies.denoising import DENOISE, DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.experts import PATIENCE, Residency, Wakes, denoising_with_experts
from schedulers.policy import Unit
from schedulers.types import RunSlice, SliceFinished, SliceResult, UnitArrived

LOOSE, TIGHT = (8.0, 24.0), (3.0, 8.0)


# -- one swap a group ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 4])
def test_sixteen_jobs_swap_once(max_batch: int) -> None:
    trace = [job(number) for number in range(16)]
    alone, grouped = (
        replay(trace, swap_s=5.0, is_grouped=is_grouped, max_batch=max_batch) for is_grouped in (False, True)
    )
    assert grouped.num_swaps == 1
    assert alone.num_swaps == 2 * 16 / max_batch - 1
    assert grouped.seconds < alone.seconds - 5.0 * (alone.num_swaps - 2)


def test_tenants_at_different_experts_do_not_swap_at_every_turn() -> None:
    trace = [job(number, tenant="ab"[number % 2], num_early=8 if number % 2 else 1) for number in range(16)]
    alone, grouped = (replay(trace, swap_s=5.0, is_grouped=is_grouped) for is_grouped in (False, True))
    assert alone.num_swaps > 30
    assert grouped.num_swaps <= 2
    assert grouped.seconds < 0.6 * alone.seconds


@pytest.mark.parametrize("swap_s", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("deadlines", [LOOSE, TIGHT])
def test_random_arrivals_of_three_tenants_swap_less_and_are_in_time_more_often(
    swap_s: float, deadlines: tuple[float, float]
) -> None:
    swaps, in_time, seconds = [0, 0], [0, 0], [0.0, 0.0]
    for seed in range(12):
        trace = random_jobs(Random(seed), 16, gap_s=7.0, tenants=("a", "b", "c"), patience=deadlines)
        for side, is_grouped in enumerate((False, True)):
            outcome = replay(trace, swap_s=swap_s, is_grouped=is_grouped)
            swaps[side] += outcome.num_swaps
            in_time[side] += len(outcome.in_time)
            seconds[side] += outcome.seconds
    assert swaps[1] < 0.4 * swaps[0]
    assert seconds[1] < seconds[0]
    assert in_time[1] >= in_time[0]


def test_swap_that_costs_nothing_holds_nobody_back() -> None:
    for seed in range(5):
        trace = random_jobs(Random(seed), 12, gap_s=7.0, tenants=("a", "b"), patience=LOOSE)
        alone, grouped = (replay(trace, swap_s=0.0, is_grouped=is_grouped) for is_grouped in (False, True))
        assert grouped.mean_s <= 1.03 * alone.mean_s  # for the step in which it learns what a swap costs


def test_swap_that_is_dearer_than_steps_is_learnt() -> None:
    kernel, _ = _run([job(number) for number in range(8)], swap_s=5.0)
    assert _residency(kernel).swap_s == pytest.approx(5.0)


# -- bounds ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), swap_s=st.sampled_from([0.05, 0.5, 3.0]), count=st.integers(2, 20))
def test_nobody_is_held_back_for_longer_than_the_bound(seed: int, swap_s: float, count: int) -> None:
    trace = random_jobs(Random(seed), count, gap_s=4.0, tenants=("a", "b"), patience=LOOSE)
    kernel, steps = _run(trace, swap_s=swap_s)
    assert kernel.counts().finished == count
    held_s = 0.0
    for is_held, elapsed_s, bound_s in steps:
        held_s = held_s + elapsed_s if is_held else 0.0
        assert held_s <= bound_s


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), swap_s=st.sampled_from([0.2, 1.0, 4.0]))
def test_deadlines_that_leave_room_are_all_met(seed: int, swap_s: float) -> None:
    """Everybody is here from the beginning, so nobody who comes later can spoil a plan."""
    rng = Random(seed)
    count = rng.randint(2, 12)
    # Beside them, the whole work in batches, a swap a batch, and a tenth.
    enough_s = 1.1 * sum(20 * 0.625 for _ in range(count)) + 20 * 2.5 + 2 * (count + 2) * swap_s
    trace = [job(number, deadline_s=enough_s * rng.uniform(1.0, 2.0)) for number in range(count)]
    assert len(replay(trace, swap_s=swap_s, is_grouped=True).in_time) == count


@pytest.mark.parametrize("swap_s", [0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_tenants_stay_as_close_as_is_proven(swap_s: float, seed: int) -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 0.5}
    rng = Random(seed)
    trace = [
        job(number, tenant=rng.choice(list(weights)), num_steps=rng.randint(4, 20), num_early=rng.randint(1, 4))
        for number in range(40)
    ]
    kernel = denoising_with_experts(DenoisingConfig(max_units=99, weights=weights))
    queue: FairQueue[Unit] = kernel.policy.order.steps  # type: ignore[attr-defined]
    gaps = Gaps(queue, weights, calls=2)
    simulate(kernel, trace, ExpertWorld(swap_s=swap_s), num_executors=2)
    gap, slack = gaps.worst(), PATIENCE * max(swap_s, _residency(kernel).swap_s or 0.0)
    assert gap.largest <= gap.bound + 2 * slack


def test_slack_lets_those_who_have_the_key_pass_so_far_and_no_further() -> None:
    queue: FairQueue[Any] = FairQueue()
    for number in range(12):
        queue.add(_waiting("has", number, "key"))
    queue.add(_waiting("has not", 99, "other"))
    taken = 0
    while units := queue.take_alike(1, key="key", slack=5.0)[0]:
        taken += len(units)
    assert taken == 6  # at tags 0 to 5, while the other stays at 0
    assert queue.take(1)[0][0].tenant == "has not"


# -- companions ------------------------------------------------------------------------------------------------------


def test_those_of_the_leaders_experts_join_first_and_others_fill_up() -> None:
    """Switch-DiT: units at different timesteps may share a step."""
    kernel = denoising_with_experts(DenoisingConfig(max_batch=3))
    names = {"a": 0, "b": 1, "c": 0, "d": 1}
    (step,) = kernel.handle(0.0, *(_arrival(name, experts) for name, experts in names.items()))
    assert isinstance(step, RunSlice)
    assert step.unit_ids == ("a", "c", "b")


def test_units_that_say_nothing_of_experts_are_scheduled_as_ever() -> None:
    for seed in range(5):
        trace = [
            replace(unit, batch_key="one")
            for unit in random_jobs(Random(seed), 20, gap_s=4.0, tenants=("a", "b"), patience=TIGHT)
        ]
        plain, told = (
            simulate(make(DenoisingConfig(max_units=99)), trace, _Plain(), num_executors=2)
            for make in (denoising, denoising_with_experts)
        )
        assert plain == told


def test_first_waking_is_no_swap_and_teaches_once_a_step_without_one_was_seen() -> None:
    kernel = denoising_with_experts(DenoisingConfig())
    (step,) = kernel.handle(0.0, _arrival("a", 0))
    for now_s, elapsed_s in ((6.0, 6.0), (7.0, 1.0)):
        assert isinstance(step, RunSlice)
        report = SliceResult(unit_id="a", report=Wakes((), 0))
        (step,) = kernel.handle(now_s, SliceFinished(slice_id=step.slice_id, results=(report,), elapsed_s=elapsed_s))
    assert _residency(kernel).num_swaps == 0
    assert _residency(kernel).swap_s == pytest.approx(5.0)


def test_steps_that_all_begin_with_a_swap_teach_what_both_take_together() -> None:
    """Alone, a job of few steps may wake other experts in each of them: no step shows what one without a swap takes."""
    kernel, now_s = denoising_with_experts(DenoisingConfig()), 0.0
    (step,) = kernel.handle(now_s, _arrival("a", 0, num_steps=1000))
    for number in range(100):
        assert isinstance(step, RunSlice)
        now_s += 3.0
        report = SliceResult(unit_id="a", report=Wakes((), number + 1))
        (step,) = kernel.handle(now_s, SliceFinished(slice_id=step.slice_id, results=(report,), elapsed_s=3.0))
    assert kernel.remaining_s("a") == pytest.approx(900 * 3.0)
    assert not kernel.policy.cost._with_swap


# -- helpers ---------------------------------------------------------------------------------------------------------


class _Plain:
    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        return 1.0 + 0.5 * (len(units) - 1)

    def report(self, unit: TraceUnit, stage: int) -> Any:
        return unit.batch_key


def _waiting(tenant: str, number: int, key: str) -> Any:
    arrival = UnitArrived(unit_id=number, work=None, tenant=tenant, batch_key=key)
    unit = Unit(arrival, 0.0, number)
    unit.joules = 1.0
    return unit


def _arrival(name: str, experts: int, num_steps: int = 9) -> UnitArrived:
    work = DenoisingWork(steps_left=num_steps, seconds_per_step=1.0, tokens=64)
    return UnitArrived(unit_id=name, work=work, batch_key=Wakes((), experts))


def _residency(kernel: Any) -> Residency:
    residency: Residency = kernel.policy.batch.residency
    return residency


def _run(trace: list[TraceUnit], *, swap_s: float) -> tuple[Any, list[tuple[bool, float, float]]]:
    """The kernel after a replay; and of each step, whether it went before the unit whose turn it was, its seconds, and
    for how many one after the other that may be: what is learnt of a swap moves, and it takes a step to learn."""
    kernel = denoising_with_experts(DenoisingConfig(max_units=99))
    batch: Any = kernel.policy.batch
    turns: list[tuple[bool, float]] = []
    take, largest_s = batch._take, 0.0

    def watched(now_s: float) -> list[Unit]:
        nonlocal largest_s
        first = batch._order.steps.first().state.experts
        largest_s = max(largest_s, batch.residency.swap_s or 0.0)
        units: list[Unit] = take(now_s)
        turns.append((units[0].state.experts != first, PATIENCE * largest_s + 2.5))
        return units

    batch._take = watched
    done = simulate(kernel, trace, ExpertWorld(swap_s=swap_s), num_executors=2, check_each_step=True)
    seconds = [one.elapsed_s for one in done.slices if one.stage == DENOISE]
    return kernel, [(held, elapsed_s, bound_s) for (held, bound_s), elapsed_s in zip(turns, seconds, strict=True)]


def test_world_says_which_experts_are_next() -> None:
    world, unit = ExpertWorld(swap_s=1.0), job(0, num_steps=2, num_early=1)
    assert world.report(unit, DENOISE) == Wakes(EARLY, EARLY)
    assert world.slice_s(DENOISE, 1, [unit]) == 2.0
    assert world.report(unit, DENOISE) == Wakes(LATE, LATE)
    assert world.slice_s(DENOISE, 1, [unit]) == 2.0
    assert world.num_swaps == 1
