"""Admission to slots: tenants, deadlines, ranks, bounds, and a plain twin that grants in the same order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.kernel import Kernel
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.types import (
    Decision,
    Drain,
    Finish,
    Reject,
    RejectReason,
    Release,
    RunSlice,
    SliceFinished,
    SliceResult,
    Tick,
    UnitArrived,
    UnitCancelled,
)


def choice(
    name: object,
    tenant: str = "",
    *,
    predicted_s: float = 1.0,
    rank: int = 0,
    deadline_s: float = math.inf,
    held: int = 0,
) -> UnitArrived:
    work = ChatWork(predicted_s, rank)
    return UnitArrived(unit_id=name, work=work, tenant=tenant, deadline_s=deadline_s, held_bytes=held)  # type: ignore[arg-type]


def over(run: RunSlice, used_s: float = 1.0) -> SliceFinished:
    results = (SliceResult(unit_id=run.unit_ids[0], report=used_s),)
    return SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=used_s)


def granted(decisions: list[Decision]) -> list[object]:
    return [one.unit_ids[0] for one in decisions if isinstance(one, RunSlice)]


def serve(kernel: Kernel, decisions: list[Decision], used_s: dict[str, float] | None = None) -> list[object]:
    """With one slot: finish what runs until nothing is left; in the order granted."""
    order = []
    while runs := [one for one in decisions if isinstance(one, RunSlice)]:
        (run,) = runs
        order.append(run.unit_ids[0])
        tenant = kernel._live[run.unit_ids[0]].tenant
        decisions = kernel.handle(kernel._now_s + 1.0, over(run, (used_s or {}).get(tenant, 1.0)))
        kernel.check_invariants()
    return order


def test_as_many_run_as_there_are_slots() -> None:
    kernel = chat(ChatConfig(max_running=2))
    decisions = kernel.handle(0.0, *(choice(number) for number in range(4)))
    assert granted(decisions) == [0, 1]
    run = decisions[0]
    assert isinstance(run, RunSlice)
    assert kernel.handle(1.0, over(run))[0] == Finish(unit_id=0, stage=0)
    assert (kernel.counts().running, kernel.counts().waiting) == (2, 1)


def test_rank_then_deadline_orders_one_tenant() -> None:
    kernel = chat(ChatConfig(max_running=1))
    runs = kernel.handle(0.0, choice("runs"))
    kernel.handle(0.0, choice("late", deadline_s=99.0), choice("soon", deadline_s=50.0), choice("first", rank=-1))
    assert serve(kernel, runs) == ["runs", "first", "soon", "late"]


def test_rank_is_worth_nothing_against_another_tenant() -> None:
    kernel = chat(ChatConfig(max_running=1))
    urgent = [choice(f"u{number}", "urgent", rank=0) for number in range(5)]
    order = serve(kernel, kernel.handle(0.0, *urgent, choice("p", "patient", rank=2)))
    assert order.index("p") == 1


def test_who_takes_longer_than_predicted_pays_for_it() -> None:
    kernel = chat(ChatConfig(max_running=1))
    lies = [choice(f"l{number}", "liar", predicted_s=0.01) for number in range(4)]
    honest = [choice(f"h{number}", "honest", predicted_s=0.5) for number in range(30)]
    order = [str(name)[0] for name in serve(kernel, kernel.handle(0.0, *lies, *honest), {"liar": 5.0, "honest": 0.5})]
    first, second = [index for index, tenant in enumerate(order) if tenant == "l"][:2]
    assert second - first >= 10


def test_held_bytes_bound_who_runs_and_nobody_overtakes() -> None:
    kernel = chat(ChatConfig(max_running=4, max_held_bytes=10))
    decisions = kernel.handle(0.0, choice("a", held=6), choice("big", held=6), choice("small", held=1))
    assert granted(decisions) == ["a"]
    (run,) = decisions
    assert isinstance(run, RunSlice)
    assert granted(kernel.handle(1.0, over(run))) == ["big", "small"]
    kernel = chat(ChatConfig(max_running=4, max_held_bytes=10))
    assert granted(kernel.handle(0.0, choice("huge", held=99))) == ["huge"]


def test_deadline_that_passes_while_waiting_is_refused() -> None:
    kernel = chat(ChatConfig(max_running=1))
    kernel.handle(0.0, choice("runs"))
    kernel.handle(0.0, choice("waits", deadline_s=5.0))
    assert kernel.next_wakeup_s() == 5.0
    (end,) = kernel.handle(5.0, Tick())
    assert isinstance(end, Reject)
    assert end.reason is RejectReason.DEADLINE_PASSED


def test_full_queue_refuses_who_fills_it_and_keeps_what_is_urgent_to_its_tenant() -> None:
    kernel = chat(ChatConfig(max_running=1, max_waiting=2))
    kernel.handle(0.0, choice("runs", "a"))
    kernel.handle(0.0, choice("a1", "a", rank=1), choice("a2", "a", rank=2))
    ends = [kernel.handle(0.0, event) for event in (choice("a3", "a", rank=2), choice("b", "b"), choice("a4", "a"))]
    refused = [end.unit_id for decisions in ends for end in decisions if isinstance(end, Reject)]
    assert refused == ["a3", "a2", "a1"]


def test_drain_finishes_what_is_here_and_refuses_what_comes() -> None:
    kernel = chat(ChatConfig(max_running=1))
    decisions = kernel.handle(0.0, choice("a"), choice("b"), Drain(), choice("c"))
    reasons = [one.reason for one in decisions if isinstance(one, Reject)]
    assert reasons == [RejectReason.DRAINING]
    assert serve(kernel, [one for one in decisions if isinstance(one, RunSlice)]) == ["a", "b"]
    assert kernel.is_drained


@pytest.mark.parametrize("predicted_s", [-1.0, math.inf, math.nan])
def test_impossible_prediction_is_refused(predicted_s: float) -> None:
    with pytest.raises(ValueError, match="predicted_s"):
        ChatWork(predicted_s)


# -- a plain twin ------------------------------------------------------------------------------------------------------


@dataclass
class Twin:
    """The same rules written down without queues: looks at everything, every time."""

    slots: int
    virtual: float = 0.0
    tags: dict[str, float] = field(default_factory=dict)
    joined: dict[str, int] = field(default_factory=dict)
    learnt: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    waiting: list[UnitArrived] = field(default_factory=list)
    charges: dict[object, float] = field(default_factory=dict)
    running: dict[object, UnitArrived] = field(default_factory=dict)

    def arrive(self, unit: UnitArrived) -> None:
        if not any(other.tenant == unit.tenant for other in self.waiting):
            self.tags[unit.tenant] = max(self.tags.get(unit.tenant, self.virtual), self.virtual)
            self.joined.setdefault(unit.tenant, len(self.joined))
        self.charges[unit.unit_id] = max(1e-6, unit.work.predicted_s * max(1.0, self.ratio(unit.tenant)))
        self.waiting.append(unit)

    def finish(self, name: object, used_s: float) -> None:
        unit = self.running.pop(name)
        if used_s > 0.0 and unit.work.predicted_s > 0.0:
            self.learnt.setdefault(unit.tenant, []).append((unit.work.predicted_s, used_s))
        self.tags[unit.tenant] += used_s - self.charges[name]

    def ratio(self, tenant: str) -> float:
        """Seconds used to seconds predicted, the newest ones counting for most."""
        turns = [(0.9**age, *turn) for age, turn in enumerate(reversed(self.learnt.get(tenant, [])))]
        predicted_s = sum(weight * predicted_s for weight, predicted_s, _ in turns)
        return sum(weight * used_s for weight, _, used_s in turns) / predicted_s if turns else 1.0

    def grant(self) -> list[object]:
        names = []
        while self.waiting and len(self.running) < self.slots:
            tenant = min({unit.tenant for unit in self.waiting}, key=lambda name: (self.tags[name], self.joined[name]))
            order = enumerate(self.waiting)
            mine = [(unit.work.rank, unit.deadline_s, i) for i, unit in order if unit.tenant == tenant]
            unit = self.waiting.pop(min(mine)[2])
            self.virtual = max(self.virtual, self.tags[tenant])
            self.tags[tenant] += self.charges[unit.unit_id]
            self.running[unit.unit_id] = unit
            names.append(unit.unit_id)
        if not self.waiting and not self.running:
            self.virtual = 0.0
            self.tags.clear()
            self.joined.clear()
        return names


STEP = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 2)),
    st.tuples(st.just("arrive"), st.sampled_from("abc"), st.sampled_from([0.0, 0.5, 2.0]), st.integers(0, 2)),
    st.tuples(st.just("finish"), st.integers(0, 9), st.sampled_from([0.0, 0.25, 3.0]), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0.0), st.just(0)),
)


@settings(max_examples=200)
@given(steps=st.lists(STEP, max_size=60), slots=st.integers(1, 3))
def test_grants_as_its_twin_does_and_ends_everything_once(steps: list[tuple], slots: int) -> None:
    kernel, twin = chat(ChatConfig(max_running=slots)), Twin(slots)
    runs: dict[object, RunSlice] = {}
    ended: list[object] = []

    def feed(*events: object) -> None:
        decisions = kernel.handle(0.0, *events)  # type: ignore[arg-type]
        kernel.check_invariants()
        runs.update({one.unit_ids[0]: one for one in decisions if isinstance(one, RunSlice)})
        ended.extend(one.unit_id for one in decisions if isinstance(one, Finish | Release))
        assert granted(decisions) == twin.grant()

    def finish(name: object, used_s: float) -> None:
        twin.finish(name, used_s)
        feed(over(runs.pop(name), used_s))

    for number, (kind, value, seconds, rank) in enumerate(steps):
        if kind == "arrive":
            unit = choice(number, value, predicted_s=seconds, rank=rank, deadline_s=float(100 + number % 7))
            twin.arrive(unit)
            feed(unit)
        elif kind == "finish" and runs:
            finish(sorted(runs, key=str)[value % len(runs)], seconds)
        elif kind == "cancel" and twin.waiting:
            unit = twin.waiting.pop(value % len(twin.waiting))
            feed(UnitCancelled(unit_id=unit.unit_id))
    while runs:
        finish(next(iter(runs)), 1.0)
    assert sorted(ended, key=str) == sorted((n for n, step in enumerate(steps) if step[0] == "arrive"), key=str)
