"""One kind of work of each shape, small enough to simulate at any load: for tests and benchmarks of what holds for all.

Costs are made up. Times that slices really take scatter around them, as do the joules of the units of a chat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from schedulers.cost import measured_stages
from schedulers.fair_queue import FairQueue, Weights
from schedulers.kernel import Kernel
from schedulers.lab.fairness import Gap, Gaps
from schedulers.lab.simulator import ExitWorld, Simulation, TraceUnit, World, lognormal_noise, simulate
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.exits import ExitConfig, ExitWork, early_exits
from schedulers.policy import Unit

TENANTS = {"flood": 0.7, "usual": 0.2, "rare": 0.1}
"""Shares of the arrivals."""
KEYS = ("small", "large")
_BATCH = (1, 2, 4, 8, 16, 32)
_NOISE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """``capacity_per_s``: units, in full batches. ``unit``: one that arrives at a time, with its deadline."""

    name: str
    capacity_per_s: float
    num_executors: int
    kernel: Callable[[Weights], Kernel]
    queue: Callable[[Kernel], FairQueue[Unit]]
    world: Callable[[], World]
    unit: Callable[[Random, float], TraceUnit]

    def trace(self, load: float, num_units: int, seed: int = 0) -> list[TraceUnit]:
        """Poisson arrivals of all tenants at ``load`` times the capacity."""
        rng, now_s, units = Random(seed), 0.0, []
        for _ in range(num_units):
            now_s += rng.expovariate(load * self.capacity_per_s)
            units.append(self.unit(rng, now_s))
        return units

    def run(self, trace: Sequence[TraceUnit]) -> Simulation:
        """Replay a trace; all tenants have one weight."""
        return self._replay(self.kernel({}), trace)

    def _replay(self, kernel: Kernel, trace: Sequence[TraceUnit]) -> Simulation:
        return simulate(
            kernel,
            trace,
            self.world(),
            noise=lognormal_noise(Random(1), _NOISE),
            num_executors=self.num_executors,
        )

    def worst_gap(self, load: float, num_units: int, weights: dict[str, float]) -> Gap:
        """How far apart tenants of such weights got while both had something waiting."""
        kernel = self.kernel(weights)
        gaps = Gaps(self.queue(kernel), weights, calls=self.num_executors)
        self._replay(kernel, self.trace(load, num_units))
        return gaps.worst()

    def goodput_per_s(self, load: float, num_units: int, seed: int = 0) -> float:
        """Units answered as they asked to be and in time, per second of arrivals."""
        trace = self.trace(load, num_units, seed)
        return sum(record.is_good for record in self.run(trace).records) / trace[-1].arrived_s


def _tenant(rng: Random) -> str:
    return rng.choices(list(TENANTS), list(TENANTS.values()))[0]


# -- networks --------------------------------------------------------------------------------------------------------

_EXIT_MS = ((1.5, 0.25), (1.0, 0.20), (1.0, 0.20), (0.8, 0.15))
_EXIT_SHARES = (0.50, 0.25, 0.15, 0.10)


def _network(
    name: str, stages_ms: Sequence[tuple[float, float]], shares: Sequence[float], keys: Sequence[Any]
) -> Shape:
    table = [[(fixed + each * n) / 1e3 for n in _BATCH] for fixed, each in stages_ms]
    size, share, seconds = _BATCH[-1], 1.0, 0.0
    for times_s, leaving in zip(table, shares, strict=True):
        seconds += share * times_s[-1] / size
        share -= leaving

    def unit(rng: Random, now_s: float) -> TraceUnit:
        leaves_at = rng.choices(range(len(shares)), shares)[0]
        return TraceUnit(
            arrived_s=now_s,
            deadline_s=now_s + 0.05,
            work=ExitWork((0.5,) * len(shares)),
            truth=tuple(float(stage >= leaves_at) for stage in range(len(shares))),
            tenant=_tenant(rng),
            batch_key=rng.choice(keys),
        )

    return Shape(
        name=name,
        capacity_per_s=1.0 / seconds,
        num_executors=1,
        kernel=lambda weights: early_exits(measured_stages(_BATCH, table), ExitConfig(weights=weights)),
        queue=lambda kernel: kernel.policy.order.fresh,  # type: ignore[attr-defined]
        world=lambda: ExitWorld(measured_stages(_BATCH, table).batch_s),
        unit=unit,
    )


# -- denoising -------------------------------------------------------------------------------------------------------

_STEP_S, _COMPANION, _DECODE_S, _MAX_STEPS, _MAX_STEP_BATCH = 0.1, 0.5, 0.05, 12, 4


@dataclass(frozen=True, slots=True)
class _Steps:
    """A companion makes a step half as long again."""

    step_s: float

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        return _DECODE_S if stage == DECODE else self.step_s * (1.0 + _COMPANION * (len(units) - 1))

    def report(self, unit: TraceUnit, stage: int) -> Any:
        return unit.batch_key


def _clips(name: str = "denoising", step_s: float = _STEP_S, patience_s: float = 10.0, max_units: int = 999) -> Shape:
    full_s = step_s * (1.0 + _COMPANION * (_MAX_STEP_BATCH - 1)) / _MAX_STEP_BATCH

    def unit(rng: Random, now_s: float) -> TraceUnit:
        num_steps = rng.randint(4, _MAX_STEPS)
        return TraceUnit(
            arrived_s=now_s,
            deadline_s=now_s + patience_s,
            work=DenoisingWork(steps_left=num_steps, seconds_per_step=step_s, tokens=64),
            tenant=_tenant(rng),
            batch_key=rng.choice(KEYS),
        )

    return Shape(
        name=name,
        capacity_per_s=1.0 / (full_s * (4 + _MAX_STEPS) / 2),
        num_executors=2,
        kernel=lambda weights: denoising(
            DenoisingConfig(max_batch=_MAX_STEP_BATCH, max_units=max_units, weights=weights)
        ),
        queue=lambda kernel: kernel.policy.order.steps,  # type: ignore[attr-defined]
        world=lambda: _Steps(step_s),
        unit=unit,
    )


# -- chat ------------------------------------------------------------------------------------------------------------

_SLOTS = 4


@dataclass(frozen=True, slots=True)
class _Slots:
    """A choice takes the seconds that are true of it."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        return float(units[0].truth)

    def report(self, unit: TraceUnit, stage: int) -> float:
        return float(unit.truth)


def _choices() -> Shape:
    def unit(rng: Random, now_s: float) -> TraceUnit:
        predicted_s = rng.uniform(0.2, 1.8)
        return TraceUnit(
            arrived_s=now_s,
            deadline_s=now_s + 5.0,
            work=ChatWork(predicted_s),
            truth=predicted_s * rng.lognormvariate(0.0, 0.2),
            tenant=_tenant(rng),
        )

    return Shape(
        name="chat",
        capacity_per_s=_SLOTS / 1.0,
        num_executors=_SLOTS,
        kernel=lambda weights: chat(ChatConfig(max_running=_SLOTS, weights=weights)),
        queue=lambda kernel: kernel.policy.order.queue,  # type: ignore[attr-defined]
        world=_Slots,
        unit=unit,
    )


SHAPES = {
    shape.name: shape
    for shape in (
        _network("exits", _EXIT_MS, _EXIT_SHARES, [()]),
        _network("plain", ((3.0, 0.5),), (1.0,), [()]),
        _network("plain, two sizes", ((3.0, 0.5),), (1.0,), KEYS),
        _clips(),
        _choices(),
    )
}

TASKS = {
    "classify": SHAPES["exits"],
    "infer": SHAPES["plain, two sizes"],
    "chat": SHAPES["chat"],
    "images": _clips("images", 0.02, 3.0, 4 * _MAX_STEP_BATCH),
    "videos": _clips("videos", 0.1, 20.0, 4 * _MAX_STEP_BATCH),
}
"""A model of each task. A replica of the last two holds as many jobs as `max_jobs` says by default."""
