"""Denoising where other experts must be woken now and then: units that wake the same ones go on together.

A step wakes a set of experts: one of two networks where the expert changes once on the way (Wan2.2), those that the
gates take at a timestep (Switch-DiT). One set is awake at a time, and to wake another costs seconds: a *swap*. What a
swap costs is learnt: by how much longer a step took that began with one.

**Together.** Of units that may share a step, those of the leader's experts join first.

**Held back.** If the unit whose turn it is needs a swap, units of the experts that are awake may go on before it, and
it waits for company: what else will need its experts by then shares the swap. It waits only
 - while no deadline is lost by it: with one more step, the swap, and all who are held back taking their turns, nobody
   ends late who would have been in time now;
 - for ``PATIENCE`` swaps at most, all its turns since the last swap taken together. So, but for deadlines, a swap is
   followed by so many times its own seconds of work if there is as much, and swaps take 1 / (1 + PATIENCE) of the time;
   a swap that costs nothing holds nobody back;
 - while what is lost by steps that are less full than its own would be comes to less than a swap;
 - while its tenant falls behind by no more than as much: the bound of ``FairQueue`` ("held back"), with that slack.

Otherwise everything is as in ``schedulers.policies.denoising``, and with one set of experts it is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from schedulers.cost import CostModel
from schedulers.experts.skew import LoadSkew
from schedulers.kernel import Kernel
from schedulers.policies.denoising import (
    DECODE,
    DENOISE,
    DenoisingBatch,
    DenoisingConfig,
    DenoisingCost,
    DenoisingOrder,
    DenoisingProgress,
    Routed,
)
from schedulers.policies.reserve import EntryReserve
from schedulers.policy import After, Pick, Policy, Slice, Unit

PATIENCE: Final = 32.0
"""How many swaps long a unit waits for company."""
_WEIGHT = 0.3
"""Of the newest swap."""
_MAX_UNLEARNT = 8
"""Steps that began with a swap, before one without is given up waiting for."""


class Wakes(NamedTuple):
    """A batch key with the experts that the next step wakes: in an arrival, and in the report of a step."""

    batch_key: Hashable
    experts: Hashable


@dataclass(slots=True)
class Residency:
    """Which experts are awake. ``swap_s``: of one swap, as learnt; None before there was one. ``num_swaps``: those
    after the first waking. ``held_s``, ``lost_s``: since then, of steps for which somebody was held back, and how much
    longer these took than as many units would have taken among those that were held back."""

    awake: Hashable = None
    swap_s: float | None = None
    num_swaps: int = 0
    is_swapping: bool = False
    held_s: float = 0.0
    lost_s: float = 0.0
    _num_learnt: int = 0

    def wake(self, experts: Hashable) -> float:
        """A step that needs these begins. Returns how long it takes to wake them."""
        self.is_swapping = experts != self.awake
        if not self.is_swapping:
            return 0.0
        self.num_swaps += self.awake is not None
        self.awake, self.held_s, self.lost_s = experts, 0.0, 0.0
        return self.swap_s or 0.0

    def learn(self, seconds: float) -> None:
        """The swap of a step took that long; noise may make it negative."""
        self._num_learnt += 1
        known_s = self.swap_s or 0.0
        self.swap_s = max(0.0, known_s + max(_WEIGHT, 1.0 / self._num_learnt) * (seconds - known_s))

    def hold(self, step_s: float, lost_s: float) -> float:
        """Whether somebody may be held back for one more step: for how many seconds altogether, or 0. Once where a swap
        has yet to be learnt, which takes a step without one."""
        if self.swap_s is None:
            return step_s
        patience_s = PATIENCE * self.swap_s
        if self.held_s + step_s > patience_s or self.lost_s + lost_s > self.swap_s:
            return 0.0
        self.held_s += step_s
        self.lost_s += max(0.0, lost_s)
        return patience_s


def denoising_with_experts(
    config: DenoisingConfig | None = None, model: CostModel | None = None, skew: LoadSkew | None = None
) -> Kernel:
    """``denoising`` whose arrivals and reports may say by ``Wakes`` which experts they need."""
    config = config or DenoisingConfig()
    order, residency = DenoisingOrder(config.weights), Residency()
    cost = ExpertCost(model or CostModel(), order, skew or LoadSkew(), residency)
    reserve = EntryReserve(lambda: len(order.steps) > config.max_batch)
    batch = ExpertBatch(order, cost, reserve, config, residency)
    progress = ExpertProgress(order, cost, reserve)
    return Kernel(Policy(order=order, batch=batch, cost=cost, progress=progress, limits=config.limits))


class ExpertCost(DenoisingCost):
    """Steps without their swaps, and swaps."""

    def __init__(self, model: CostModel, order: DenoisingOrder, skew: LoadSkew, residency: Residency) -> None:
        super().__init__(model, order, skew)
        self.residency = residency
        #: Steps that began with a swap, of which nothing was learnt yet.
        self._with_swap: list[tuple[float, list[Unit]]] = []

    @property
    def watts(self) -> float:
        """Of the engine."""
        return self._model.watts

    def observe(self, ended: Slice, elapsed_s: float) -> None:
        """What a step with a swap took longer than predicted is the swap, and says nothing about the step; unless all
        steps begin with one: then the two are told apart once one does not."""
        has_swapped = ended.stage != DECODE and self.residency.is_swapping
        if has_swapped and len(self._with_swap) < _MAX_UNLEARNT:
            self._with_swap.append((elapsed_s, list(ended.units.values())))
        else:
            super().observe(ended, elapsed_s)
        if self._model.knows(DENOISE):  # else the first waking has to wait for a step without one
            for seconds, units in self._with_swap:
                self.residency.learn(seconds - self.step_s(units))
            self._with_swap.clear()


class ExpertProgress(DenoisingProgress):
    """Reads ``Wakes``."""

    def admit(self, unit: Unit) -> None:
        """See ``DenoisingProgress``."""
        super().admit(unit)
        unit.batch_key, unit.state.experts = _read(unit.batch_key)

    def after(self, ended: Slice, units: list[Unit], reports: list[Any]) -> After:
        """See ``DenoisingProgress``."""
        read = [_read(report.phase if isinstance(report, Routed) else report) for report in reports]
        if ended.stage != DECODE:
            for unit, wakes in zip(units, read, strict=True):
                unit.state.experts = wakes.experts
        keys: list[Any] = [
            report._replace(phase=wakes.batch_key) if isinstance(report, Routed) else wakes.batch_key
            for report, wakes in zip(reports, read, strict=True)
        ]
        return super().after(ended, units, keys)


def _read(key: Hashable) -> Wakes:
    return key if isinstance(key, Wakes) else Wakes(key, None)


class ExpertBatch(DenoisingBatch):
    """The next step by experts; decodes as ever."""

    def __init__(
        self,
        order: DenoisingOrder,
        cost: ExpertCost,
        reserve: EntryReserve,
        config: DenoisingConfig,
        residency: Residency,
    ) -> None:
        super().__init__(order, cost, reserve, config)
        self._watts = cost.watts
        self.residency = residency

    def next(self, now_s: float, running: Collection[Slice]) -> Pick | None:
        """See ``DenoisingBatch``. A step that begins with a swap takes so much longer."""
        pick = super().next(now_s, running)
        if pick is None or pick.stage == DECODE:
            return pick
        return pick._replace(predicted_s=pick.predicted_s + self.residency.wake(pick.units[0].state.experts))

    def _take(self, now_s: float) -> list[Unit]:
        first = self._order.steps.first()
        if first.state.experts != self.residency.awake and (patience_s := self._patience_s(now_s)):
            units = self._take_for(self.residency.awake, now_s, slack=patience_s * self._watts)
            if units:
                return units
        units = self._take_for(first.state.experts, now_s)
        places = self._config.max_batch - len(units)
        if places and units[0].batch_key is not None:
            units += self._order.steps.take_alike(
                places,
                key=units[0].batch_key,
                fits=lambda unit, more: self._fits(unit, [*units, *more], now_s),
            )[0]
        return units

    def _take_for(self, experts: Hashable, now_s: float, slack: float = 0.0) -> list[Unit]:
        """Units that wake these."""
        units, _ = self._order.steps.take_alike(
            self._config.max_batch,
            fits=lambda unit, units: unit.state.experts == experts and self._fits(unit, units, now_s),
            slack=slack,
            look=len(self._order.steps),
        )
        return units

    def _patience_s(self, now_s: float) -> float:
        """How long those that need other experts may be held back, if they are for one more step; 0: they are not."""
        awake, size = self.residency.awake, self._config.max_batch
        waiting = sorted(self._order.steps, key=lambda unit: (unit.rank, unit.number))
        ready = [unit for unit in waiting if unit.state.experts == awake][:size]
        if not ready:
            return 0.0
        step_s = self._cost.step_s(ready)
        if self._delay_hurts(step_s, waiting, now_s):
            return 0.0
        others = [unit for unit in waiting if unit.state.experts != awake][:size]
        return self.residency.hold(step_s, step_s - len(ready) * self._cost.step_s(others) / len(others))

    def _delay_hurts(self, delay_s: float, waiting: list[Unit], now_s: float) -> bool:
        """Whether somebody who needs other experts would be in time now, and not so much later: if all took their turns
        in order, in full steps."""
        together = waiting[: self._config.max_batch]
        step_s, swap_s = self._cost.step_s(together), self.residency.swap_s or 0.0
        turn_s = now_s + swap_s
        for unit in waiting:
            own_s = unit.state.steps_left * step_s
            if unit.state.experts != self.residency.awake:
                end_s = turn_s + own_s + self._cost.decode_s + swap_s  # experts may change once more on the way
                if end_s <= unit.deadline_s < end_s + delay_s:
                    return True
            turn_s += own_s / len(together)
        return False
