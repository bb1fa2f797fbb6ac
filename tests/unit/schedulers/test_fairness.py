"""What tenants get is in proportion to their weights, for every kind of work, on a virtual clock."""

from __future__ import annotations

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

WEIGHTS = {"large": 3.0, "small": 1.0}
PIECE_S = {"large": 0.7, "small": 1.1}
"""Of one piece of a tenant's work, where its size is the caller's: what is shared are joules, not pieces."""


@dataclass
class Kind:
    """A policy, its work, and a world in which every slice takes as long as predicted: the sum over its units."""

    kernel: Kernel
    work: Callable[[float], Any]
    report: Callable[[TraceUnit, int], Any]
    piece_s: dict[str, float] = field(default_factory=lambda: PIECE_S)
    used: list[tuple[str, float]] = field(default_factory=list)

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        self.used += [(unit.tenant, self.piece_s[unit.tenant]) for unit in units]
        return sum(self.piece_s[unit.tenant] for unit in units)


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
    used_s = dict.fromkeys(WEIGHTS, 0.0)
    for tenant, seconds in kind.used[:160]:  # until then both have something waiting
        used_s[tenant] += seconds
    assert used_s["large"] / used_s["small"] == pytest.approx(3.0, rel=0.1)


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
