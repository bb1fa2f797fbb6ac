"""Clips and pictures made step by step: units share denoising steps, and more urgent ones preempt at a slice.

At every step boundary the tenant whose turn it is (``schedulers.fair_queue``, charged by the step) leads with the unit
that is due first (``schedulers.urgency``); units of equal phase join it as long as that does not make it late.
Nobody overtakes a tenant that waits: those who may join are the tenants that stand no further on, and more units of the
tenants that are in already. A unit that had run and does not go on keeps its state and waits. Decodes run beside the
steps, one at a time, and tenants take turns at them as well. A unit's last step is charged for its decode, too, and
every slice corrects its charge when it ends. Urgency counts from arrival, so the units of one tenant do not take turns,
and nothing waits for ever. Under a backlog it changes once, for a unit that cannot be in time any more: that one goes
behind those that can, and one that has not begun needs a reserve, or all would share the steps of an overload and none
would be in time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from schedulers.cost import CostModel
from schedulers.experts.skew import Loads, LoadSkew
from schedulers.fair_queue import FairQueue, Weights
from schedulers.kernel import Kernel
from schedulers.policies.reserve import EntryReserve
from schedulers.policy import After, Limits, Pick, Policy, Slice, Unit
from schedulers.urgency import HORIZON_S, queue_key

DENOISE, DECODE = 0, 1
"""Stages: a unit runs the first as often as it has steps, then the second once."""
_MIN_J = 1e-6
"""Even work predicted to cost nothing takes a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingWork:
    """What one unit needs. Its batch key is the phase of its next step, and the report of a step that of the one after,
    or ``Routed`` where there are experts.

    ``tokens``: of one step, both branches of guidance. ``seconds_per_step``: predicted, alone in its slice.

    Raises:
        ValueError: a number out of range.
    """

    steps_left: int
    seconds_per_step: float
    tokens: int

    def __post_init__(self) -> None:
        if self.steps_left < 0 or self.tokens < 1:
            raise ValueError(f"steps_left or tokens out of range: {self}")
        if not 0 <= self.seconds_per_step < math.inf:
            raise ValueError(f"seconds_per_step is {self.seconds_per_step}; need a finite number")


class Routed(NamedTuple):
    """Report of a step: the phase of the next one, and where tokens went in this one."""

    phase: Hashable
    loads: Loads


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingConfig:
    """Bounds of one replica.

    ``max_batch``: units in one step. ``max_units``: units here, those being decoded included. ``max_held_bytes``: of
    the units here together, and so of a step; a unit alone may be larger. ``weights``: of tenants.

    Raises:
        ValueError: one is below 1.
    """

    max_batch: int = 4
    max_units: int = 8
    max_held_bytes: int = 1 << 30
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_units", "max_held_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")

    @property
    def limits(self) -> Limits:
        """For the kernel."""
        return Limits(
            max_waiting=1 << 30,
            max_running=self.max_batch + 1,
            max_units=self.max_units,
            max_held_bytes=self.max_held_bytes,
        )


def denoising(
    config: DenoisingConfig | None = None, model: CostModel | None = None, skew: LoadSkew | None = None
) -> Kernel:
    """Meets every deadline of a tenant that any order of its share could meet. ``skew``: of experts over ranks."""
    config, skew = config or DenoisingConfig(), skew or LoadSkew()
    order = DenoisingOrder(config.weights)
    cost = DenoisingCost(model or CostModel(), order, skew)
    reserve = EntryReserve(lambda: len(order.steps) > config.max_batch)
    batch = DenoisingBatch(order, cost, reserve, config)
    progress = DenoisingProgress(order, cost, reserve)
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=progress, limits=config.limits))


class _Steps:
    """How far one unit is: ``Unit.state``. ``has_run``: it was in the step that ended last. ``is_late``: it was put
    off, since it cannot be in time. ``decode_j``: what it was charged for its decode. ``experts``: which its next step
    wakes (``schedulers.policies.experts``)."""

    __slots__ = ("decode_j", "experts", "has_run", "is_late", "steps_left")

    def __init__(self, work: DenoisingWork) -> None:
        self.steps_left = work.steps_left
        self.experts: Hashable = None
        self.has_run = self.is_late = False
        self.decode_j = 0.0


class DenoisingOrder:
    """Units that need a step, and units that wait to be decoded, each fair between tenants. Charges of both are those
    of ``steps``; ``denoised`` keeps the turns at the decoder only."""

    def __init__(self, weights: Weights) -> None:
        self.steps: FairQueue[Unit] = FairQueue(weights)
        self.denoised: FairQueue[Unit] = FairQueue(weights)

    def __len__(self) -> int:
        return len(self.steps) + len(self.denoised)

    def __iter__(self) -> Iterator[Unit]:
        return chain(self.steps, self.denoised)

    def add(self, unit: Unit) -> None:
        """A unit waits, for a step or for its decode."""
        (self.denoised if unit.stage == DECODE else self.steps).add(unit)

    def add_again(self, units: list[Unit]) -> None:
        """Units wait once more."""
        for unit in units:
            self.add(unit)

    def remove(self, unit: Unit) -> None:
        """Take one out."""
        if unit.stage == DECODE:
            self.denoised.remove(unit)
            self.steps.correct(unit.tenant, -unit.state.decode_j)
        else:
            self.steps.remove(unit)

    def rest(self) -> None:
        """No unit is left."""
        self.steps.rest()
        self.denoised.rest()

    def victim(self, newcomer: Unit) -> Unit | None:
        """Room is made where units are claimed (``Kernel.room``)."""
        return None


class DenoisingCost:
    """Seconds of steps as predicted, corrected by size: for so many tokens, in so many units. What is learnt over all
    sizes stands in for a size that was never seen."""

    def __init__(self, model: CostModel, order: DenoisingOrder, skew: LoadSkew) -> None:
        self._model = model
        self.skew = skew
        self._decodes = CostModel()
        self._order = order
        self.now_s = -math.inf

    @property
    def decode_s(self) -> float:
        """Of one unit; 0 until one was observed."""
        return self._decodes.batch_s(DECODE, 1) if self._decodes.knows(DECODE) else 0.0

    def step_s(self, units: Collection[Unit]) -> float:
        """Of one step of these units together."""
        if not units:
            return 0.0
        size, alone_s = _size(units)
        even_s = self._model.batch_s(size if self._model.knows(size) else DENOISE, len(units), alone_s)
        return even_s * self.skew.slowdown(_rows(units))

    def joules(self, unit: Unit) -> float:
        """Of one step, alone, and with the last one of the decode."""
        steps, decode_j = unit.state, max(_MIN_J, self.decode_s * self._model.watts)
        if unit.stage == DECODE:
            return decode_j
        steps.decode_j = decode_j if steps.steps_left == 1 else 0.0
        return max(_MIN_J, self.step_s([unit]) * self._model.watts) + float(steps.decode_j)

    def excess_j(self, ended: Slice, unit: Unit) -> float:
        """By how much a unit's share of a slice cost more than its charge."""
        slice_j = ended.elapsed_s * self._model.watts
        if ended.stage == DECODE:
            return float(slice_j - unit.state.decode_j)
        units = list(ended.units.values())
        alone_s = math.fsum(one.work.seconds_per_step for one in units)
        parts = [one.work.seconds_per_step / alone_s if alone_s > 0.0 else 1.0 / len(units) for one in units]
        share = self.skew.shares(_rows(units), parts)[units.index(unit)]
        return float(slice_j * share - (unit.joules - unit.state.decode_j))

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
        """Remember it."""
        self.now_s = now_s

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """A step or a decode took that long."""
        if ended.stage == DECODE:
            self._decodes.observe(DECODE, 1, elapsed_s)
            return
        units = ended.units.values()
        (size, alone_s), rows = _size(units), _rows(units)
        even_s = elapsed_s / self.skew.slowdown(rows)
        if (predicted_s := self._model.batch_s(size if self._model.knows(size) else DENOISE, len(units), alone_s)) > 0:
            self.skew.observe(rows, elapsed_s / predicted_s)
        for kind in (DENOISE, size):
            self._model.observe(kind, len(units), even_s, alone_s)

    def _denoise_s(self, unit: Unit) -> float:
        return float(unit.state.steps_left * self.step_s([unit]))


def _size(units: Collection[Unit]) -> tuple[tuple[int, int], float]:
    """Tokens and number of units, and the seconds that the units were predicted to take one by one."""
    works = [unit.work for unit in units]
    return (sum(work.tokens for work in works), len(works)), math.fsum(work.seconds_per_step for work in works)


def _rows(units: Collection[Unit]) -> list[tuple[str, float]]:
    """Tenants and tokens."""
    return [(unit.tenant, float(unit.work.tokens)) for unit in units]


class DenoisingProgress:
    """Steps, then the decode."""

    hands_over = True

    def __init__(self, order: DenoisingOrder, cost: DenoisingCost, reserve: EntryReserve) -> None:
        self._order = order
        self._cost = cost
        self._reserve = reserve

    def admit(self, unit: Unit) -> None:
        """One whose steps were all done elsewhere is only decoded."""
        unit.state = _Steps(unit.work)
        unit.stage = DECODE if unit.state.steps_left == 0 else DENOISE
        due_s = queue_key(unit.priority, unit.arrived_s, unit.deadline_s, self._cost.remaining_s(unit))
        unit.rank = (due_s, 0.0)

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        """Correct what was charged, count the step, and follow the phase."""
        for unit, report in zip(units, reports, strict=True):
            if isinstance(report, Routed):
                self._cost.skew.took(unit.tenant, report.loads)
        for unit in units:
            self._order.steps.correct(unit.tenant, self._cost.excess_j(ended, unit))
        if ended.stage == DECODE:
            self._regulate(units)
            return After(units, [], [])
        for unit, report in zip(units, reports, strict=True):
            steps = unit.state
            unit.batch_key, steps.has_run = report.phase if isinstance(report, Routed) else report, True
            steps.steps_left -= 1
            if steps.steps_left == 0:
                unit.stage = DECODE
            unit.joules = self._cost.joules(unit)
        return After([], [], units)

    def _regulate(self, units: list[Unit]) -> None:
        for unit in units:
            if self._cost.now_s <= unit.deadline_s:
                self._reserve.lower_for(1)
            elif not unit.state.is_late:
                self._reserve.raise_for_late()

    def dropped(self, ended: Slice, unit: Unit, report: Any) -> None:
        """It is charged for what it took; after its last step, not for a decode."""
        decode_j = unit.state.decode_j if ended.stage == DENOISE else 0.0
        self._order.steps.correct(unit.tenant, self._cost.excess_j(ended, unit) - decode_j)

    def overtaken(self, unit: Unit) -> int | None:
        """Nothing can be answered before the decode."""
        return None

    def nears_end(self, unit: Unit) -> bool:
        """What is denoised is decoded here."""
        return unit.stage == DECODE


class DenoisingBatch:
    """The next step, and the next decode beside it."""

    def __init__(
        self, order: DenoisingOrder, cost: DenoisingCost, reserve: EntryReserve, config: DenoisingConfig
    ) -> None:
        self._order = order
        self._reserve = reserve
        self._cost = cost
        self._config = config

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """Never: nothing but events changes what is next."""
        return None

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """A decode if there is one to start, else a step."""
        order, stages = self._order, [one.stage for one in running]
        if order.denoised and DECODE not in stages:
            return Pick(order.denoised.take(1)[0], DECODE, 1, self._cost.decode_s)
        if not order.steps or DENOISE in stages:
            return None
        self._put_off_late(now_s)
        units = self._take(now_s)
        tenants = {unit.tenant for unit in units}
        preempted = [unit for unit in order.steps if unit.state.has_run and unit.tenant in tenants]
        for unit in chain(units, order.steps):
            unit.state.has_run = False
        return Pick(units, DENOISE, 1, self._cost.step_s(units), preempted=preempted)

    def _take(self, now_s: float) -> list[Unit]:
        units, _ = self._order.steps.take_alike(
            self._config.max_batch, fits=lambda unit, units: self._fits(unit, units, now_s)
        )
        return units

    def _put_off_late(self, now_s: float) -> None:
        """Let those of the tenant whose turn it is that can be in time go before those that cannot."""
        steps = self._order.steps
        while self._reserve.has_backlog() and not (unit := steps.first()).state.is_late and self._misses(unit, now_s):
            if unit.state.steps_left < unit.work.steps_left:
                self._reserve.raise_for_late()
            unit.state.is_late = True
            steps.move(unit, (unit.rank[0] + HORIZON_S, 0.0))

    def _misses(self, unit: Unit, now_s: float) -> bool:
        """Whether it cannot be in time; one that has not begun needs a reserve."""
        has_begun = unit.state.steps_left < unit.work.steps_left
        needed_s = self._cost.remaining_s(unit) * (1.0 if has_begun else 1.0 + self._reserve.factor)
        return now_s + needed_s > unit.deadline_s

    def _fits(self, unit: Unit, units: list[Unit], now_s: float) -> bool:
        """Whether it may share the step of ``units``, which have its batch key and the first of which leads."""
        if not units:
            return True
        leader = units[0]
        if self._reserve.has_backlog() and not leader.state.is_late and self._misses(unit, now_s):
            return False
        if sum(one.held_bytes for one in units) + unit.held_bytes > self._config.max_held_bytes:
            return False
        if self._cost.skew.delays(_rows(units), (unit.tenant, float(unit.work.tokens))):
            return False
        return not self._makes_late(leader, [*units, unit], now_s)

    def _makes_late(self, leader: Unit, units: list[Unit], now_s: float) -> bool:
        """Whether the leader would keep its deadline alone and not in this step."""
        if not now_s + self._cost.remaining_s(leader) <= leader.deadline_s < math.inf:
            return False
        ends_s = now_s + leader.state.steps_left * self._cost.step_s(units) + self._cost.decode_s
        return bool(ends_s > leader.deadline_s)
