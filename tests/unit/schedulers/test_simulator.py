"""The instrument itself: its numbers are checked against timelines worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import pytest

from schedulers.kernel import Kernel
from schedulers.lab.baselines import DynamicBatchingConfig, full_network, no_rebatching
from schedulers.lab.simulator import (
    ExitWorld,
    Replica,
    Simulation,
    TraceUnit,
    exit_unit,
    lognormal_noise,
    percentile,
    simulate,
    simulate_together,
)
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.exits import ExitConfig, early_exits
from schedulers.types import Decision, Event, Finish, Release, RunSlice, Tick
from tests.unit.schedulers.build import linear_cost


def sample(at_s: float, leaves_at: int = 2, deadline_s: float = math.inf, **more: object) -> TraceUnit:
    return exit_unit(
        arrived_s=at_s,
        deadline_s=deadline_s,
        thresholds=(0.5, 0.5, 0.5),
        confidences=tuple(float(stage >= leaves_at) for stage in range(3)),
        **more,  # type: ignore[arg-type]
    )


def ours(**config: int) -> Kernel:
    return early_exits(linear_cost(), ExitConfig(**config))


def run(policy: object, *trace: TraceUnit, **more: object) -> Simulation:
    return simulate(policy, trace, ExitWorld(linear_cost().batch_s), check_each_step=True, **more)  # type: ignore[arg-type]


def test_one_sample_takes_the_stages_that_it_needs() -> None:
    result = run(ours(), sample(1.0, leaves_at=1))
    (record,) = result.records
    assert record.decision == Finish(unit_id=0, stage=1, degraded=False)
    assert record.latency_s == pytest.approx(0.022)
    assert record.cost_s == pytest.approx(0.022)
    assert record.is_good
    assert [(b.stage, b.num_units) for b in result.slices] == [(0, 1), (1, 1)]


def test_report_of_a_timeline_known_by_hand() -> None:
    # 0 runs alone for 11 ms; 1 and 2 wait for it and run together for 12 ms.
    result = run(
        ours(max_batch=2),
        sample(0.0, leaves_at=0),
        sample(0.001, leaves_at=0),
        sample(0.001, leaves_at=0, deadline_s=0.0235),  # met with half a millisecond to spare
    )
    report = result.report()
    assert report.num_units == 3
    assert report.good_share == 1.0
    assert report.mean_latency_s == pytest.approx((0.011 + 0.022 + 0.022) / 3)
    assert report.p50_latency_s == pytest.approx(0.022)
    assert report.goodput_per_s == pytest.approx(3 / 0.023)
    assert report.mean_batch_by_stage == (1.5,)
    assert report.mean_cost_s == pytest.approx((0.011 + 0.006 + 0.006) / 3)
    assert report.utilisation == pytest.approx(1.0)
    assert result.batch_sizes() == {0: {1: 1, 2: 1}}


def test_noise_makes_answers_late_and_late_is_not_good() -> None:
    result = run(ours(), sample(0.0, leaves_at=0, deadline_s=0.012), noise=lambda: 2.0)
    (record,) = result.records
    assert isinstance(record.decision, Finish)
    assert not record.is_good
    assert result.report().late_share == 1.0


def test_noise_has_mean_one_and_is_repeatable() -> None:
    draw = lognormal_noise(Random(0), 0.2)
    values = [draw() for _ in range(20_000)]
    assert sum(values) / len(values) == pytest.approx(1.0, abs=0.01)
    again = lognormal_noise(Random(0), 0.2)
    assert values[:5] == [again() for _ in range(5)]


def test_replay_is_deterministic() -> None:
    rng = Random(5)
    trace = [sample(rng.random(), rng.randrange(3), deadline_s=2.0) for _ in range(300)]
    runs = [run(ours(max_batch=8), *trace, noise=lognormal_noise(Random(1), 0.3)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_virtual_time_never_runs_backwards() -> None:
    times: list[float] = []

    class Watching(Kernel):
        def handle(self, now_s: float, *events: Event) -> list[Decision]:
            times.append(now_s)
            return super().handle(now_s, *events)

    rng = Random(6)
    trace = [sample(rng.random(), rng.randrange(3), deadline_s=rng.random() + 0.1) for _ in range(200)]
    run(Watching(ours(max_batch=4).policy), *trace)
    assert times == sorted(times)
    assert len(times) > 200


def test_cancel_failure_and_drain_reach_the_policy() -> None:
    result = run(
        ours(max_batch=1),
        sample(0.0, fails_at_stage=1),
        sample(0.001, cancelled_at_s=0.002),
        sample(0.5),
        drain_at_s=0.4,
    )
    ends = [type(record.decision).__name__ for record in result.records]
    assert ends == ["Fail", "Release", "Reject"]
    assert isinstance(result.records[1].decision, Release)


def test_full_network_runs_all_stages_in_one_call_after_its_delay() -> None:
    policy = full_network(linear_cost(), DynamicBatchingConfig(max_batch=4, max_delay_s=0.005))
    result = run(policy, sample(0.0, leaves_at=0), sample(0.001, leaves_at=0))
    (batch,) = result.slices
    assert (batch.stage, batch.num_stages, batch.num_units, batch.started_s) == (0, 3, 2, 0.005)
    assert all(r.decision == Finish(unit_id=r.unit_id, stage=2, degraded=False) for r in result.records)


def test_batch_without_rebatching_keeps_the_executor_until_its_last_sample_left() -> None:
    policy = no_rebatching(linear_cost(), DynamicBatchingConfig(max_batch=2))
    result = run(policy, sample(0.0, leaves_at=2), sample(0.0, leaves_at=0), sample(0.001, leaves_at=0))
    assert [(b.stage, b.num_units) for b in result.slices] == [(0, 2), (1, 1), (2, 1), (0, 1)]
    assert result.records[1].done_s < result.records[0].done_s


def test_executors_run_side_by_side() -> None:
    result = run(ours(max_batch=1, num_executors=2), sample(0.0), sample(0.0), num_executors=2)
    assert [b.started_s for b in result.slices[:2]] == [0.0, 0.0]


class Broken:
    """A policy with one fault."""

    def __init__(self, *decisions: Decision) -> None:
        self.decisions = list(decisions)

    def handle(self, now_s: float, *events: Event) -> list[Decision]:
        given, self.decisions = self.decisions, []
        return given

    def check_invariants(self) -> None: ...

    def queued_s(self, now_s: float) -> float:
        return 0.0

    def next_wakeup_s(self) -> float | None:
        return None


REPLY = Finish(unit_id=0, stage=0, degraded=False)


@pytest.mark.parametrize(
    ("decisions", "match"),
    [
        ((), "no terminal decision"),
        ((REPLY, REPLY), "second terminal decision"),
        (tuple(RunSlice(slice_id=i, stage=0, unit_ids=(0,)) for i in range(2)), "2 slices at once"),
    ],
)
def test_policy_that_breaks_the_contract_is_caught(decisions: tuple[Decision, ...], match: str) -> None:
    with pytest.raises(RuntimeError, match=match):
        run(Broken(*decisions), sample(0.0))


def test_policy_that_wakes_for_nothing_is_caught() -> None:
    class Sleepless(Broken):
        def next_wakeup_s(self) -> float | None:
            return 0.0

    with pytest.raises(RuntimeError, match="again and again"):
        run(Sleepless(), sample(0.0))


def test_empty_trace_gives_an_empty_report() -> None:
    report = run(ours()).report()
    assert (report.num_units, report.good_share, report.p99_latency_s) == (0, 0.0, None)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.76, 4.0), (1.0, 4.0)])
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected
    assert percentile([], share) is None


def test_tick_changes_nothing_by_itself() -> None:
    assert ours().handle(0.0, Tick()) == []


class StepWorld:
    """A step takes a second, however many share it, and a decode half of one."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        return 0.5 if stage == DECODE else 1.0

    def report(self, unit: TraceUnit, stage: int) -> str:
        return "phase"


class SlotWorld:
    """A choice takes the seconds that are true of it."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        return float(units[0].truth)

    def report(self, unit: TraceUnit, stage: int) -> float:
        return float(unit.truth)


def test_families_of_every_kind_run_on_one_clock() -> None:
    steps = DenoisingWork(steps_left=3, seconds_per_step=1.0, tokens=8)
    clips = [TraceUnit(arrived_s=0.5 * n, work=steps, tenant="ab"[n % 2], cancelled_at_s=None) for n in range(4)]
    choices = [TraceUnit(arrived_s=0.1 * n, work=ChatWork(1.0), truth=0.7, tenant="ab"[n % 2]) for n in range(6)]
    pictures = [sample(0.2 * n, leaves_at=n % 3) for n in range(20)]
    replicas = [
        Replica(scheduler=denoising(DenoisingConfig(max_batch=2)), trace=clips, world=StepWorld(), num_executors=2),
        Replica(scheduler=chat(ChatConfig(max_running=2)), trace=choices, world=SlotWorld(), num_executors=2),
        Replica(scheduler=ours(), trace=pictures, world=ExitWorld(linear_cost().batch_s)),
    ]
    together = simulate_together(replicas, check_each_step=True)
    assert [len(one.records) for one in together] == [4, 6, 20]
    assert all(record.is_good for one in together for record in one.records)
    assert together[1].duration_s == pytest.approx(2.2)
    assert max(one.num_units for one in together[0].slices) == 2
    alone = simulate(ours(), pictures, ExitWorld(linear_cost().batch_s))
    assert together[2] == alone
