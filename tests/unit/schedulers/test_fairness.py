"""What tenants get is in proportion to their weights, for every kind of work, on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from schedulers.cost import measured_stages
from schedulers.kernel import Kernel
from schedulers.lab.simulator import TraceUnit, simulate
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.policies.denoising import DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.exits import ExitConfig, ExitWork, early_exits
from schedulers.shared_slots import SharedSlots, Turn
from schedulers.types import Priority, RunSlice, SliceFinished, SliceResult, UnitArrived, UnitCancelled

WEIGHTS = {"large": 3.0, "small": 1.0}
STEPS = {"decodes": 1, "steps": 100}
PIECE_S = {"large": 0.7, "small": 1.1}
"""Of one piece of a tenant's work, where its size is the caller's: what is shared are joules, not pieces."""


@dataclass
class Kind:
    """A policy, its work, and a world in which every slice takes as long as predicted: the sum over its units."""

    kernel: Kernel
    work: Callable[[float], Any]
    report: Callable[[TraceUnit, int], Any]
    piece_s: dict[str, float] = field(default_factory=lambda: PIECE_S)
    last_s: float | None = None
    """Of the last stage, where it is of another kind."""
    used: list[tuple[str, float]] = field(default_factory=list)

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        seconds = [self.last_s if stage and self.last_s else self.piece_s[unit.tenant] for unit in units]
        self.used += [(unit.tenant, one) for unit, one in zip(units, seconds, strict=True)]
        return sum(seconds)

    def share(self, tenants: tuple[str, str], num_pieces: int) -> float:
        """What the first got over what the second got, by the first pieces: until then both have something waiting."""
        first, second = (math.fsum(s for who, s in self.used[:num_pieces] if who == tenant) for tenant in tenants)
        return first / second


def exits() -> Kind:
    """Two stages, and nobody leaves at the first: the charge of a new unit pays for both."""
    config = ExitConfig(max_batch=4, max_waiting=999, weights=WEIGHTS)
    kernel = early_exits(measured_stages((1, 4), [[1.0, 4.0]] * 2), config)
    return Kind(kernel, lambda _: ExitWork((1e8, 0.5)), lambda *_: 0.0, {"large": 1.0, "small": 1.0})


def plain_batches() -> Kind:
    config = ExitConfig(max_batch=4, max_waiting=999, weights=WEIGHTS)
    kernel = early_exits(measured_stages((1, 4), [[1.0, 4.0]]), config)
    return Kind(kernel, lambda _: ExitWork((0.5,)), lambda *_: 0.0, {"large": 1.0, "small": 1.0})


def steps() -> Kind:
    def work(piece_s: float) -> DenoisingWork:
        return DenoisingWork(steps_left=4, seconds_per_step=piece_s, tokens=8)

    return Kind(denoising(DenoisingConfig(max_batch=2, weights=WEIGHTS)), work, lambda *_: ())


def choices() -> Kind:
    kernel = chat(ChatConfig(max_running=3, weights=WEIGHTS))
    return Kind(kernel, ChatWork, lambda unit, _: unit.work.predicted_s)


@pytest.mark.parametrize("make", [exits, plain_batches, steps, choices], ids=lambda make: make.__name__)
def test_three_times_the_weight_gets_three_times_the_joules(make: Callable[[], Kind]) -> None:
    kind = make()
    tenants = ["large", "small"] * 150
    trace = [TraceUnit(arrived_s=0.0, work=kind.work(kind.piece_s[one]), tenant=one) for one in tenants]
    simulate(kind.kernel, trace, kind, num_executors=3)
    assert kind.share(("large", "small"), 160) == pytest.approx(3.0, rel=0.1)


# -- what was measured, and not what was predicted -------------------------------------------------------------------

ACTUAL_S = {"cheap": 0.5, "dear": 2.0}
"""Of pieces that are all predicted to take 1 s."""


def lone_steps() -> Kind:
    def work(piece_s: float) -> DenoisingWork:
        return DenoisingWork(steps_left=40, seconds_per_step=1.0, tokens=8)

    return Kind(denoising(DenoisingConfig(max_batch=1)), work, lambda *_: (), ACTUAL_S)


def lone_choices() -> Kind:
    return Kind(
        chat(ChatConfig(max_running=1)), lambda _: ChatWork(1.0), lambda unit, _: ACTUAL_S[unit.tenant], ACTUAL_S
    )


def unequal_pictures() -> Kind:
    kernel = early_exits(measured_stages((1, 4), [[1.0, 4.0]]), ExitConfig(max_batch=4, max_waiting=999))
    return Kind(kernel, lambda _: ExitWork((0.5,)), lambda *_: 0.0, ACTUAL_S)


@pytest.mark.parametrize("make", [lone_steps, lone_choices, unequal_pictures], ids=lambda make: make.__name__)
def test_joules_that_were_measured_are_what_is_shared(make: Callable[[], Kind]) -> None:
    kind = make()
    trace = [
        TraceUnit(arrived_s=0.0, work=kind.work(1.0), tenant=one, batch_key=one) for one in ["cheap", "dear"] * 200
    ]
    simulate(kind.kernel, trace, kind, num_executors=2)
    assert kind.share(("cheap", "dear"), 200) == pytest.approx(1.0, rel=0.1)


def test_decodes_are_part_of_what_a_tenant_gets() -> None:
    """Each clip of one tenant is a step of 1 s and a decode of 3 s; those of the other are nearly all steps."""
    kernel = denoising(DenoisingConfig(max_batch=1))
    kind = Kind(kernel, lambda _: None, lambda *_: (), {"decodes": 1.0, "steps": 1.0}, last_s=3.0)
    works = {tenant: DenoisingWork(steps_left=n, seconds_per_step=1.0, tokens=8) for tenant, n in STEPS.items()}
    trace = [TraceUnit(arrived_s=0.0, work=works[one], tenant=one) for one in ["decodes", "steps"] * 100]
    simulate(kernel, trace, kind, num_executors=2)
    assert kind.share(("decodes", "steps"), 300) == pytest.approx(1.0, rel=0.1)


def leaves_exits() -> tuple[Kernel, Any]:
    return early_exits(measured_stages((1, 4), [[1.0, 4.0]] * 2), ExitConfig(max_batch=1)), ExitWork((0.5, 0.5))


def leaves_steps() -> tuple[Kernel, Any]:
    return denoising(DenoisingConfig(max_batch=1)), DenoisingWork(steps_left=1, seconds_per_step=1.0, tokens=8)


def leaves_chat() -> tuple[Kernel, Any]:
    return chat(ChatConfig(max_running=1)), ChatWork(1.0)


@pytest.mark.parametrize(
    ("make", "fails"),
    [(leaves_exits, False), (leaves_exits, True), (leaves_steps, False), (leaves_steps, True), (leaves_chat, False)],
)
def test_who_leaves_in_a_slice_pays_for_what_it_took(make: Callable[[], tuple[Kernel, Any]], fails: bool) -> None:
    """Otherwise tenants whose units take more than predicted would get more by leaving before they end."""
    kernel, work = make()
    order: Any = kernel.policy.order
    queue = next(getattr(order, name) for name in ("fresh", "steps", "queue") if hasattr(order, name))
    (run,) = kernel.handle(0.0, *(UnitArrived(unit_id=one, work=work, tenant=one) for one in ("leaves", "stays")))
    assert isinstance(run, RunSlice)
    assert run.unit_ids == ("leaves",)
    if not fails:
        kernel.handle(1.0, UnitCancelled(unit_id="leaves"))
    result = SliceResult(unit_id="leaves", failed=True) if fails else SliceResult(unit_id="leaves", report=5.0)
    kernel.handle(5.0, SliceFinished(slice_id=run.slice_id, results=(result,), elapsed_s=5.0))
    assert queue._flows["leaves"].tag == pytest.approx(5.0)


def test_urgent_decodes_of_one_tenant_do_not_hold_up_another() -> None:
    kernel = denoising(DenoisingConfig(max_batch=1, max_units=99))
    done = DenoisingWork(steps_left=0, seconds_per_step=1.0, tokens=8)
    names = [("pushes", number) for number in range(6)] + [("waits", number) for number in range(2)]
    decisions = kernel.handle(
        0.0,
        *(
            UnitArrived(
                unit_id=one, work=done, tenant=one[0], priority=Priority.HIGH if one[0] == "pushes" else Priority.LOW
            )
            for one in names
        ),
    )
    order = []
    for now_s in range(1, 5):
        (run,) = (one for one in decisions if isinstance(one, RunSlice))
        order.append(run.unit_ids[0][0])
        results = (SliceResult(unit_id=run.unit_ids[0]),)
        decisions = kernel.handle(float(now_s), SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=1.0))
    assert order.count("waits") == 2


def test_decode_workers_share_by_weight() -> None:
    slots: SharedSlots[Turn] = SharedSlots(999, WEIGHTS)
    for _ in range(100):
        for tenant, seconds in PIECE_S.items():
            assert slots.add(Turn(tenant, 0, seconds)) is None
    used_s = dict.fromkeys(WEIGHTS, 0.0)
    for _ in range(80):
        turn = slots.take()
        assert turn is not None
        used_s[turn.tenant] += turn.predicted_s
        slots.finish(turn, turn.predicted_s)
    assert used_s["large"] / used_s["small"] == pytest.approx(3.0, rel=0.1)


def test_full_queue_puts_out_the_tenant_that_has_most_for_its_weight() -> None:
    slots: SharedSlots[Turn] = SharedSlots(8, WEIGHTS)
    for tenant in ("large",) * 5 + ("small",) * 3:
        assert slots.add(Turn(tenant, 0, 1.0)) is None
    refused = slots.add(Turn("large", 0, 1.0))
    assert refused is not None
    assert refused.tenant == "small"
