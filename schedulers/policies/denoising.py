"""Clips and pictures made step by step: units share denoising steps, and more urgent ones preempt at a slice.

At every step boundary the tenant whose turn it is (``schedulers.fair_queue``, charged by the step) leads with the unit
that is due first (``schedulers.urgency``); units of equal phase join it as long as that does not make it late.
Nobody overtakes a tenant that waits: those who may join are the tenants that stand no further on, and more units of the
tenants that are in already. A unit that had run and does not go on keeps its state and waits. Decodes run beside the
steps, one at a time. Urgency counts from arrival and never changes, so the units of one tenant do not take turns, and
nothing waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from schedulers.fair_queue import FairQueue, Weights
from schedulers.kernel import After, Kernel, Limits, Pick, Policy, Slice, Unit
from schedulers.urgency import queue_key
from schedulers.video_cost import StepCost, StepPart

DENOISE, DECODE = 0, 1
"""Stages: a unit runs the first as often as it has steps, then the second once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingWork:
    """What one unit needs. Units of equal ``phase`` may share a step; None runs alone.

    ``tokens``: of one step, both branches of guidance. ``seconds_per_step``: predicted, alone in its slice. The report
    of a step is the phase of the next one.

    Raises:
        ValueError: a number out of range.
    """

    steps_left: int
    seconds_per_step: float
    tokens: int
    phase: Hashable

    def __post_init__(self) -> None:
        if self.steps_left < 0 or self.tokens < 1:
            raise ValueError(f"steps_left or tokens out of range: {self}")
        if not 0 <= self.seconds_per_step < math.inf:
            raise ValueError(f"seconds_per_step is {self.seconds_per_step}; need a finite number")


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingConfig:
    """Bounds of one replica.

    ``max_batch``: units in one step. ``max_units``: units here, those being decoded included. ``max_held_bytes``: of
    the units here together, and so of a step; a unit alone may be larger. ``watts``: turns seconds into joules.
    ``weights``: of tenants.

    Raises:
        ValueError: one is below 1, or ``watts`` not positive.
    """

    max_batch: int = 4
    max_units: int = 8
    max_held_bytes: int = 1 << 30
    watts: float = 1.0
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_units", "max_held_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")
        if not 0.0 < self.watts < math.inf:
            raise ValueError(f"watts is {self.watts}; need a finite number > 0")


def denoising(config: DenoisingConfig | None = None, step_cost: StepCost | None = None) -> Kernel:
    """Meets every deadline of a tenant that any order of its share could meet."""
    config = config or DenoisingConfig()
    order = DenoisingOrder(config.weights)
    cost = DenoisingCost(step_cost or StepCost(), order, config.watts)
    batch = DenoisingBatch(order, cost, config)
    limits = Limits(
        max_waiting=1 << 30,
        max_running=config.max_batch + 1,
        max_units=config.max_units,
        max_held_bytes=config.max_held_bytes,
    )
    progress = DenoisingProgress(cost)
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=progress, limits=limits))


class _Steps:
    """How far one unit is: ``Unit.state``. ``has_run``: it was in the step that ended last."""

    __slots__ = ("has_run", "part", "phase", "steps_left")

    def __init__(self, work: DenoisingWork) -> None:
        self.phase = work.phase
        self.steps_left = work.steps_left
        self.part = StepPart(tokens=work.tokens, seconds=work.seconds_per_step)
        self.has_run = False


def _parts(units: Collection[Unit]) -> list[StepPart]:
    return [unit.state.part for unit in units]


class DenoisingOrder:
    """Units that need a step, fair between tenants, and units that wait to be decoded."""

    def __init__(self, weights: Weights) -> None:
        self.steps: FairQueue[Unit] = FairQueue(weights)
        self.denoised: list[Unit] = []

    def __len__(self) -> int:
        return len(self.steps) + len(self.denoised)

    def __iter__(self) -> Iterator[Unit]:
        return chain(self.steps, self.denoised)

    def add(self, unit: Unit) -> None:
        """A unit waits, for a step or for its decode."""
        if unit.stage == DECODE:
            self.denoised.append(unit)
        else:
            self.steps.add(unit)

    def add_again(self, units: list[Unit]) -> None:
        """Units wait once more."""
        for unit in units:
            self.add(unit)

    def remove(self, unit: Unit) -> None:
        """Take one out."""
        if unit.stage == DECODE:
            self.denoised.remove(unit)
        else:
            self.steps.remove(unit)

    def rest(self) -> None:
        """No unit is left."""
        self.steps.rest()

    def victim(self, newcomer: Unit) -> Unit | None:
        """Room is made where units are claimed (``Kernel.room``)."""
        return None


class DenoisingCost:
    """Learnt seconds of steps and decodes."""

    def __init__(self, steps: StepCost, order: DenoisingOrder, watts: float) -> None:
        self._steps = steps
        self._order = order
        self._watts = watts

    @property
    def decode_s(self) -> float:
        """Of one unit."""
        return self._steps.decode_s

    def step_s(self, units: Collection[Unit]) -> float:
        """Of one step of these units together."""
        return self._steps.seconds(_parts(units))

    def joules(self, unit: Unit) -> float:
        """Of one step, alone."""
        return self.step_s([unit]) * self._watts

    def lead_s(self, stage: int) -> float:
        """A unit that is late is made all the same."""
        return -math.inf

    def remaining_s(self, unit: Unit) -> float:
        """Its steps and its decode."""
        return self._denoise_s(unit) + self.decode_s

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        """Steps one after the other, a slice together; decodes beside them."""
        total_s = math.fsum(self._denoise_s(unit) for unit in self._order.steps)
        decoding_s = len(self._order.denoised) * self.decode_s
        for one in running:
            left_s = max(0.0, one.started_s + one.predicted_s - now_s)
            if one.stage == DECODE:
                decoding_s += left_s
                continue
            units = list(one.units.values())
            alone_s = math.fsum(self.step_s([unit]) for unit in units)
            share = self.step_s(units) / alone_s if alone_s > 0.0 else 1.0
            total_s += share * math.fsum(self._denoise_s(unit) for unit in units)
            total_s -= max(0.0, one.predicted_s - left_s)  # a part of this step is over
        last_s = self.decode_s if total_s > 0.0 else 0.0
        return max(max(0.0, total_s) + last_s, decoding_s)

    def pass_time(self, now_s: float) -> None:
        """Nothing changes with time."""

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """A step or a decode took that long."""
        if ended.stage == DECODE:
            self._steps.observe_decode(elapsed_s)
        else:
            self._steps.observe(_parts(ended.units.values()), elapsed_s)

    def _denoise_s(self, unit: Unit) -> float:
        return float(unit.state.steps_left * self.step_s([unit]))


class DenoisingProgress:
    """Steps, then the decode."""

    hands_over = True

    def __init__(self, cost: DenoisingCost) -> None:
        self._cost = cost

    def admit(self, unit: Unit) -> None:
        """One whose steps were all done elsewhere is only decoded."""
        unit.state = _Steps(unit.work)
        unit.stage = DECODE if unit.state.steps_left == 0 else DENOISE
        due_s = queue_key(unit.priority, unit.arrived_s, unit.deadline_s, self._cost.remaining_s(unit))
        unit.rank = (due_s, 0.0)

    def after(self, ended: Slice, reports: list[tuple[Unit, Any]]) -> After:
        """Count the step, and follow the phase."""
        units = [unit for unit, _ in reports]
        if ended.stage == DECODE:
            return After(units, [], [])
        for unit, phase in reports:
            steps = unit.state
            steps.phase, steps.has_run = phase, True
            steps.steps_left -= 1
            if steps.steps_left == 0:
                unit.stage = DECODE
        return After([], [], units)

    def overtaken(self, unit: Unit) -> int | None:
        """Nothing can be answered before the decode."""
        return None

    def nears_end(self, unit: Unit) -> bool:
        """What is denoised is decoded here."""
        return unit.stage == DECODE


class DenoisingBatch:
    """The next step, and the next decode beside it."""

    def __init__(self, order: DenoisingOrder, cost: DenoisingCost, config: DenoisingConfig) -> None:
        self._order = order
        self._cost = cost
        self._config = config

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """Never: nothing but events changes what is next."""
        return None

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """A decode if there is one to start, else a step."""
        order, stages = self._order, [one.stage for one in running]
        if order.denoised and DECODE not in stages:
            unit = min(order.denoised, key=lambda unit: (unit.rank, unit.number))
            order.denoised.remove(unit)
            return Pick([unit], DECODE, 1, self._cost.decode_s)
        if not order.steps or DENOISE in stages:
            return None
        units: list[Unit] = []
        order.steps.take_fitting(self._config.max_batch, lambda unit: self._fits(unit, units, now_s), units)
        tenants = {unit.tenant for unit in units}
        preempted = [unit for unit in order.steps if unit.state.has_run and unit.tenant in tenants]
        for unit in chain(units, order.steps):
            unit.state.has_run = False
        return Pick(units, DENOISE, 1, self._cost.step_s(units), preempted=preempted)

    def _fits(self, unit: Unit, units: list[Unit], now_s: float) -> bool:
        """Whether it may share the step of ``units``, the first of which leads."""
        if not units:
            return True
        leader = units[0]
        if leader.state.phase is None or unit.state.phase != leader.state.phase:
            return False
        if sum(one.held_bytes for one in units) + unit.held_bytes > self._config.max_held_bytes:
            return False
        return not self._makes_late(leader, [*units, unit], now_s)

    def _makes_late(self, leader: Unit, units: list[Unit], now_s: float) -> bool:
        """Whether the leader would keep its deadline alone and not in this step."""
        if not now_s + self._cost.remaining_s(leader) <= leader.deadline_s < math.inf:
            return False
        ends_s = now_s + leader.state.steps_left * self._cost.step_s(units) + self._cost.decode_s
        return bool(ends_s > leader.deadline_s)
