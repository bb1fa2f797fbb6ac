"""Networks with early exits: units wait at stage boundaries, and survivors of different arrivals share slices.

New units wait in one fair queue for all tenants, survivors per stage (``exit_order``). Whenever an executor is idle,
``choose_stage`` says which of them to serve. A network without exits is one of a single stage. Reasons and
measurements: docs/scheduler.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from schedulers.cost import CostModel
from schedulers.fair_queue import Weights
from schedulers.kernel import Kernel
from schedulers.policies.exit_order import ExitOrder
from schedulers.policies.reserve import EntryReserve
from schedulers.policies.stage_choice import choose_stage, fit_batch
from schedulers.policy import After, Limits, Pick, Policy, Slice, Unit

#: Thresholds from here on mean "never leave at this exit" (calibration writes 1e8 for an exit that it does not use).
NEVER_THRESHOLD = 1e8
#: Weight of the newest slice in the learned share of units that leave at each exit.
_EXIT_RATE_WEIGHT = 0.05
#: A stage at which units are given up, and which nothing runs for so long, is expected to have become faster.
_RELAX_S = 0.05
#: Weight of the newest unit in the mean size.
_SIZE_WEIGHT = 0.05
#: Times the cost of a unit in a full slice.
_HARDLY = 1.1
_INF = math.inf
_MAX_PATHS = 256


@dataclass(frozen=True, slots=True)
class ExitWork:
    """What one unit asks for: it leaves at exit k when its confidence there is >= ``thresholds[k]``.

    The last exit always answers, whatever its threshold says. ``math.inf`` means "never leave here". The report of a
    slice is the confidence at the exit of its last stage; None means that this exit was not evaluated: the unit goes on
    and cannot be answered from it (the last stage answers all the same). One that is not finite ends in ``Fail``.
    ``size``: its work beside that of a usual unit.

    Raises:
        ValueError: a threshold is not a number, or there are none; or ``size`` is out of range.
    """

    thresholds: tuple[float, ...]
    size: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.size < math.inf:
            raise ValueError(f"size is {self.size}; need a finite number > 0")
        if not self.thresholds or any(map(math.isnan, self.thresholds)):
            raise ValueError(f"thresholds are {self.thresholds}; need one number per exit")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitConfig:
    """Bounds of one replica.

    ``max_batch``: units in one slice. ``max_waiting``: units waiting at all stages together. ``num_executors``: slices
    that may run at the same time. ``max_age_s``: a survivor that waited this long at one stage is in the next slice,
    whatever the rules say; a new unit goes first in its tenant. ``weights``: of tenants.

    Raises:
        ValueError: one is out of range.
    """

    max_batch: int = 32
    max_waiting: int = 1024
    num_executors: int = 1
    max_age_s: float = 10.0
    weights: Weights = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_waiting", "num_executors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")
        if not 0.0 < self.max_age_s < math.inf:
            raise ValueError(f"max_age_s is {self.max_age_s}; need a finite number > 0")

    @property
    def limits(self) -> Limits:
        """As the kernel checks them."""
        return Limits(max_waiting=self.max_waiting, max_running=self.max_batch * self.num_executors)


def early_exits(table: CostModel, config: ExitConfig | None = None) -> Kernel:
    """Maximises units answered by their deadline at their own threshold, then lowers mean latency."""
    config = config or ExitConfig()
    order = ExitOrder(table.num_priced, config.weights)
    cost = ExitCost(table, order.stage_counts, config)
    reserve = EntryReserve(lambda: len(order.fresh) > config.max_batch)
    batch = ExitBatch(order, cost, reserve, config)
    progress = ExitProgress(cost, reserve, lambda tenant, joules: order.fresh.correct(tenant, joules))
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=progress, limits=config.limits))


class ExitCost:
    """Prices of stages, and the learned share of the units run at a stage that leave there."""

    def __init__(self, table: CostModel, stage_counts: Callable[[], Iterable[int]], config: ExitConfig) -> None:
        self.table = table
        self._stage_counts = stage_counts
        self._max_batch = config.max_batch
        self._num_executors = config.num_executors
        self.num_stages = table.num_priced
        #: Of the units that came lately.
        self.mean_size = 1.0
        self.exit_rates = [1.0 / (self.num_stages - k) for k in range(self.num_stages)]
        self._now_s = -math.inf
        #: Thresholds -> what ``_expected_s`` makes of them.
        self._path_s: dict[tuple[float, ...], float] = {}
        #: Stages at which units were given up and that nothing has run since -> since when.
        self._given_up_since: dict[int, float] = {}

    def joules(self, unit: Unit) -> float:
        """Expected joules of a new unit in full slices. Priority orders the units of one tenant; between two it is
        worth nothing, or everybody would ask for the highest."""
        thresholds = unit.work.thresholds
        path_s = self._path_s.get(thresholds) or self._expected_s(thresholds)
        return path_s * unit.size * self.table.watts / self._max_batch

    def _expected_s(self, thresholds: tuple[float, ...]) -> float:
        """Of a full slice on its way through the network; remembered until something is learnt."""
        total_s, share, max_batch = 0.0, 1.0, self._max_batch
        batch_s, rates = self.table.batch_s, self.exit_rates
        for stage, threshold in enumerate(thresholds):
            total_s += share * batch_s(stage, max_batch)
            if threshold < NEVER_THRESHOLD:
                share *= 1.0 - rates[stage]
        if len(self._path_s) > _MAX_PATHS:
            self._path_s.clear()
        self._path_s[thresholds] = total_s
        return total_s

    def lead_s(self, stage: int) -> float:
        """The next stage, alone, of a usual unit."""
        return self.table.batch_s(stage, 1)

    def remaining_s(self, unit: Unit) -> float:
        """All stages that it may still need, alone."""
        return unit.size * sum(self.table.batch_s(stage, 1) for stage in range(unit.stage, self.num_stages))

    def batch_s(self, stage: int, units: list[Unit]) -> float:
        """Predicted seconds of a slice of one stage, by the work of each unit."""
        return self.table.batch_s(stage, len(units), sum([unit.size for unit in units]))

    def slice_s(self, stage: int, num_stages: int, num_units: int) -> float:
        """Predicted seconds of one slice."""
        if num_stages == 1:
            return self.table.batch_s(stage, num_units)
        return sum(self.table.batch_s(s, num_units) for s in range(stage, stage + num_stages))

    def queued_s(self, now_s: float, running: Collection[Slice]) -> float:
        """O(number of stages): what runs, what waits, and what is expected to go on from each stage."""
        total_s = 0.0
        onward = [0.0] * (self.num_stages + 1)
        for one in running:
            total_s += max(0.0, one.started_s + one.predicted_s - now_s)
            end = one.stage + one.num_stages
            onward[end] += len(one.units) * (1.0 - self.exit_rates[end - 1])
        return (total_s + self.mean_size * self._waiting_s(onward)) / self._num_executors

    def _waiting_s(self, onward: list[float]) -> float:
        total_s, flow, max_batch = 0.0, 0.0, self._max_batch
        for stage, waiting in enumerate(self._stage_counts()):
            flow += waiting + onward[stage]
            if flow > 0.0:
                size = min(max_batch, math.ceil(flow))
                total_s += max(flow / size, 1.0) * self.table.batch_s(stage, size)
            flow *= 1.0 - self.exit_rates[stage]
        return total_s

    def give_up_at(self, stage: int) -> None:
        """A unit was given up there.

        If that is because the stage seems slow, and so nothing runs there, it would seem slow for ever: one slow second
        would have everything refused from then on, on an engine with nothing to do.
        """
        self._given_up_since.setdefault(stage, self._now_s)

    def pass_time(self, now_s: float) -> None:
        """Relax stages at which units are given up and none run."""
        self._now_s = now_s
        for stage, since_s in self._given_up_since.items():
            if now_s - since_s >= _RELAX_S:
                self.table.relax(stage)
                self._path_s.clear()
                self._given_up_since[stage] = now_s

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """Correct the table: of a slice of several stages, each is charged in proportion to its prediction."""
        first, num_stages, num_units = ended.stage, ended.num_stages, len(ended.units)
        work = _work_of(ended)
        shares = [1.0]
        if num_stages > 1:
            whole_s = self.slice_s(first, num_stages, num_units)
            shares = [self.table.batch_s(first + k, num_units) / whole_s for k in range(num_stages)]
        for stage, share in enumerate(shares, first):
            self._given_up_since.pop(stage, None)
            self.table.observe(stage, num_units, elapsed_s * share, work)
        self._path_s.clear()

    def observe_exits(self, exit_index: int, num_left: int, num_units: int) -> None:
        """So many of the units that reached an exit left there."""
        self._path_s.clear()
        self.exit_rates[exit_index] += _EXIT_RATE_WEIGHT * (num_left / num_units - self.exit_rates[exit_index])


def _work_of(one: Slice) -> float:
    one.work = one.work or sum([unit.size for unit in one.units.values()])
    return one.work


class ExitProgress:
    """Who leaves at an exit, and who goes on."""

    hands_over = False

    def __init__(
        self, cost: ExitCost, reserve: EntryReserve, correct: Callable[[str, float], None] = lambda *_: None
    ) -> None:
        """``correct``: a tenant's charges were too low by so many joules."""
        self._correct = correct
        self._cost = cost
        self._reserve = reserve
        self._num_stages = cost.num_stages

    def admit(self, unit: Unit) -> None:
        """Raises ValueError: not one threshold per exit."""
        thresholds = unit.work.thresholds
        if len(thresholds) != self._num_stages:
            raise ValueError(f"unit has {len(thresholds)} thresholds; the network has {self._num_stages} exits")
        unit.size = unit.work.size
        self._cost.mean_size += _SIZE_WEIGHT * (unit.size - self._cost.mean_size)

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        """Compare confidences with thresholds, and put right what was charged for those that leave."""
        usual_j = ended.elapsed_s * self._cost.table.watts / _work_of(ended)
        exit_index = ended.stage + ended.num_stages - 1
        is_last = exit_index == self._num_stages - 1
        done: list[Unit] = []
        failed: list[Unit] = []
        onward: list[Unit] = []
        next_stage = exit_index + 1
        for unit, confidence in zip(units, reports, strict=True):
            unit.joules -= usual_j * unit.size  # what is left of its charge
            if confidence is None:  # the last stage answers all the same
                if is_last:
                    done.append(unit)
                    continue
            elif not -_INF < confidence < _INF:
                failed.append(unit)
                continue
            elif is_last or confidence >= unit.work.thresholds[exit_index]:
                done.append(unit)
                continue
            else:
                unit.answer_stage = exit_index
            unit.stage = next_stage
            onward.append(unit)
        if len(failed) < len(reports):
            self._cost.observe_exits(exit_index, len(done), len(done) + len(onward))
        self._reserve.lower_for(len(reports) - len(onward))
        self._settle(done + failed)
        return After(done, failed, onward)

    def _settle(self, ended: list[Unit]) -> None:
        left_j: dict[str, float] = {}
        for unit in ended:
            left_j[unit.tenant] = left_j.get(unit.tenant, 0.0) + unit.joules
        for tenant, joules in left_j.items():
            self._correct(tenant, -joules)

    def dropped(self, ended: Slice, unit: Unit, report: Any) -> None:
        """It is charged for what it took."""
        unit.joules -= ended.elapsed_s * self._cost.table.watts / _work_of(ended) * unit.size
        self._settle([unit])

    def overtaken(self, unit: Unit) -> int | None:
        """The deepest exit that was evaluated."""
        self._cost.give_up_at(unit.stage)
        if unit.stage:  # else it was not charged, or that was put right
            self._settle([unit])
        if unit.answer_stage is not None:
            self._reserve.raise_for_late()
        return unit.answer_stage

    def nears_end(self, unit: Unit) -> bool:
        """Every unit is finished here."""
        return True


class ExitBatch:
    """Which stage runs next, and on which of the units that wait there."""

    def __init__(self, order: ExitOrder, cost: ExitCost, reserve: EntryReserve, config: ExitConfig) -> None:
        self._order = order
        self._cost = cost
        self._reserve = reserve
        self._config = config

    def wakeup_s(self, now_s: float, running: Collection[Slice]) -> float | None:
        """Never: an executor that is idle is given whatever waits."""
        return None

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """Fill an idle executor."""
        if len(running) >= self._config.num_executors:
            return None
        order, cost = self._order, self._cost
        before_s = now_s - self._config.max_age_s
        overdue = order.overdue(before_s)
        if overdue is not None:
            stage = overdue.stage
        elif views := order.views():
            stage = choose_stage(views, now_s, cost.table, cost.exit_rates, self._config.max_batch)
        else:
            return None
        if not stage:  # who floods has old units: they have their turns, and must not keep survivors from running
            overdue = order.overdue_new(before_s)
        late: list[Unit] = []
        units = self._select(now_s, stage, overdue, late)
        if units:
            batch_s = cost.batch_s(stage, units)
            if min([unit.deadline_s for unit in units]) < now_s + batch_s:
                units = self._fit(now_s, stage, units, overdue, late)
                batch_s = cost.batch_s(stage, units) if units else 0.0
            return Pick(units, stage, 1, batch_s, late)
        return Pick(units, stage, 1, 0.0, late)

    def _select(self, now_s: float, stage: int, overdue: Unit | None, late: list[Unit]) -> list[Unit]:
        """Take the units to run out of the stage's queue: an ``overdue`` survivor among them, an ``overdue`` new one
        if its tenant has a turn."""
        order, max_units = self._order, self._config.max_batch
        if stage:
            return order.take(stage, max_units, overdue)
        if overdue is not None:
            order.put_first(overdue)
        if order.num_new() <= max_units:
            return order.take_new(max_units)[0]
        # Under a backlog: pass over new units that would not get through all stages, and fill their places. Tenants
        # with few units have not made the backlog: theirs need no reserve.
        table, factor = self._cost.table, self._reserve.factor
        max_units = self._shared_units(max_units)
        needed_s = first_s = table.batch_s(0, max_units)
        if factor:
            needed_s += factor * sum(table.batch_s(s, max_units) for s in range(1, self._cost.num_stages))
        size = self._cost.mean_size
        units, passed_over = order.take_new(max_units, now_s + needed_s * size, now_s + first_s * size)
        self._hurry(units, now_s)
        if passed_over and len(units) < max_units:
            fill, passed_over = self._not_hopeless(passed_over, units, now_s + first_s * size, max_units)
            units += fill
        late += passed_over
        return units

    def _shared_units(self, max_units: int) -> int:
        """Whoever comes to a backlog of several tenants waits for the slice that runs: it is shorter by a quarter where
        a unit costs hardly more in it."""
        fewer, batch_s = max_units - max_units // 4, self._cost.table.batch_s
        if self._order.fresh.num_tenants < 2 or batch_s(0, fewer) * max_units > _HARDLY * fewer * batch_s(0, max_units):
            return max_units
        return fewer

    def _hurry(self, units: list[Unit], now_s: float) -> None:
        """Under a backlog, who has no more left than an even part of a slice has not made it: such units are due at
        once, so that they do not wait for full slices of later stages."""
        fresh, is_light = self._order.fresh, dict[str, bool]()
        few = self._config.max_batch // max(2, fresh.num_tenants)
        for unit in units:
            tenant = unit.tenant
            if tenant not in is_light:
                is_light[tenant] = fresh.num_of(tenant) <= few
            if is_light[tenant]:
                unit.due_s = min(unit.deadline_s, now_s)

    def _not_hopeless(
        self, passed_over: list[Unit], units: list[Unit], first_s: float, max_units: int
    ) -> tuple[list[Unit], list[Unit]]:
        """Where nobody fills a place, one that was passed over gets it: it may leave at the first exit, in time. Such,
        of the batch key of ``units``, in turns of their tenants; and the others."""
        key = (units or passed_over)[-1].batch_key
        could = [unit for unit in passed_over if unit.deadline_s >= first_s and unit.batch_key == key]
        room = max_units if key is not None else 1
        chosen = set(map(id, self._order.fresh.take_late(could, room - len(units))))
        return (
            [unit for unit in passed_over if id(unit) in chosen],
            [unit for unit in passed_over if id(unit) not in chosen],
        )

    def _fit(self, now_s: float, stage: int, units: list[Unit], overdue: Unit | None, late: list[Unit]) -> list[Unit]:
        """Some would be late in this slice: run the part that answers most in time."""
        table = self._cost.table
        alone_s = table.batch_s(stage, 1)
        hopeless = [unit for unit in units if unit.deadline_s < now_s + alone_s * unit.size]
        self._drop(stage, hopeless, late)
        feasible = [unit for unit in units if unit.deadline_s >= now_s + alone_s * unit.size]
        if not feasible:
            return []
        feasible.sort(key=lambda unit: (unit.deadline_s, unit.number))
        deadlines_s, largest = [unit.deadline_s for unit in feasible], max([unit.size for unit in feasible])
        num_late, count = fit_batch(
            deadlines_s, now_s, lambda n: table.batch_s(stage, n) * largest, len(self._order) > 0
        )
        chosen, rest = feasible[num_late : num_late + count], feasible[num_late + count :]
        if overdue in rest:  # it must run now: this is what bounds its wait
            rest[rest.index(overdue)], chosen[-1] = chosen[-1], overdue
        self._drop(stage, feasible[:num_late], late)
        if rest:
            self._order.put_back(rest)
        return chosen

    def _drop(self, stage: int, units: list[Unit], late: list[Unit]) -> None:
        """Give units up. New ones were charged when they were taken, and nothing has run; of others, see
        ``ExitProgress.overtaken``."""
        if not stage:
            for unit in units:
                self._order.refund(unit)
        late += units
