"""Builders and a hand-driven caller for scheduler tests: events in, decisions out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from schedulers.cost import CostModel, measured_stages
from schedulers.policies.exits import ExitWork
from schedulers.types import (
    Decision,
    Event,
    Finish,
    Priority,
    Reject,
    RunSlice,
    Scheduler,
    SliceFinished,
    SliceResult,
    UnitArrived,
)


def linear_cost(num_stages: int = 3, fixed_s: float = 0.010, each_s: float = 0.001) -> CostModel:
    """``fixed_s + each_s * n`` for every stage."""
    return measured_stages((1, 64), [[fixed_s + each_s, fixed_s + 64 * each_s]] * num_stages)


def arrived(
    sample_id: int,
    deadline_s: float = float("inf"),
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5),
    priority: Priority = Priority.NORMAL,
    tenant: str = "",
    batch_key: Hashable = (),
) -> UnitArrived:
    return UnitArrived(
        unit_id=sample_id,
        deadline_s=deadline_s,
        work=ExitWork(thresholds),
        priority=priority,
        tenant=tenant,
        batch_key=batch_key,
    )


def finished(
    batch: RunSlice, confidences: dict[int, float | None], elapsed_s: float = 0.01, failed: Iterable[int] = ()
) -> SliceFinished:
    """``batch`` done; samples not named in ``confidences`` have confidence 0."""
    bad = set(failed)
    return SliceFinished(
        slice_id=batch.slice_id,
        elapsed_s=elapsed_s,
        results=tuple(SliceResult(unit_id=s, report=confidences.get(s, 0.0), failed=s in bad) for s in batch.unit_ids),
    )


class Caller:
    """Feeds a scheduler, checks what must hold for every policy after each call, and remembers all decisions."""

    def __init__(self, scheduler: Scheduler, max_batch: int, num_executors: int = 1) -> None:
        self.scheduler, self.max_batch, self.num_executors = scheduler, max_batch, num_executors
        self.now_s = 0.0
        self.running: dict[int, RunSlice] = {}
        self.ends: dict[int, Decision] = {}
        self.arrivals: dict[int, UnitArrived] = {}
        #: Sample -> next stage that it may run.
        self.next_stage: dict[int, int] = {}
        #: Sample -> exit -> confidence that the engine reported.
        self.confidences: dict[int, dict[int, float | None]] = {}

    def send(self, *events: Event, now_s: float | None = None) -> list[Decision]:
        self.now_s = self.now_s if now_s is None else now_s
        for event in events:
            self._note(event)
        decisions = self.scheduler.handle(self.now_s, *events)
        for decision in decisions:
            self._check(decision)
        self.scheduler.check_invariants()
        assert len(self.running) <= self.num_executors
        return decisions

    def _note(self, event: Event) -> None:
        if isinstance(event, UnitArrived):
            self.arrivals[event.unit_id] = event
            self.next_stage[event.unit_id] = 0
            self.confidences[event.unit_id] = {}
        if isinstance(event, SliceFinished):
            batch = self.running.pop(event.slice_id)
            last = batch.stage + batch.num_stages - 1
            for result in event.results:
                self.next_stage[result.unit_id] = last + 1
                self.confidences[result.unit_id][last] = result.report

    def _check(self, decision: Decision) -> None:
        if isinstance(decision, RunSlice):
            self._check_batch(decision)
            return
        assert decision.unit_id not in self.ends, "second terminal decision"
        assert all(decision.unit_id not in batch.unit_ids for batch in self.running.values()), "ended while running"
        self.ends[decision.unit_id] = decision
        if isinstance(decision, Finish):
            self._check_reply(decision)
        if isinstance(decision, Reject):
            assert 0.0 <= decision.retry_after_s < float("inf")

    def _check_batch(self, batch: RunSlice) -> None:
        assert 0 < len(batch.unit_ids) <= self.max_batch, "batch limit"
        assert len(set(batch.unit_ids)) == len(batch.unit_ids), "duplicate in a batch"
        for other in self.running.values():
            assert not set(other.unit_ids) & set(batch.unit_ids), "sample in two batches"
        keys = {self.arrivals[sample_id].batch_key for sample_id in batch.unit_ids}
        assert len(keys) == 1, "batch mixes keys"
        assert keys != {None} or len(batch.unit_ids) == 1, "shares a batch although it runs alone"
        for sample_id in batch.unit_ids:
            assert sample_id not in self.ends, "ran after its end"
            assert self.next_stage[sample_id] == batch.stage, "batch mixes stages, or skips or repeats one"
        self.running[batch.slice_id] = batch

    def _check_reply(self, reply: Finish) -> None:
        confidences = self.confidences[reply.unit_id]
        thresholds = self.arrivals[reply.unit_id].work.thresholds
        confidence = confidences[reply.stage]
        is_last = reply.stage == len(thresholds) - 1
        earned = is_last or (confidence is not None and confidence >= thresholds[reply.stage])
        assert reply.degraded != earned, "degraded means exactly: the threshold did not choose this exit"
        for exit_index in range(reply.stage):
            earlier = confidences.get(exit_index)
            assert earlier is None or earlier < thresholds[exit_index], "ran on after its threshold was met"
