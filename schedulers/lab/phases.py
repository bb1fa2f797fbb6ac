"""A replica whose jobs change experts on the way, in the shape of Wan2.2: swaps and seconds, grouped and not.

Each job runs its first steps with one network and the rest with another, of which one is awake. The replica is the
policy's own kernel on the virtual clock; without grouping it is ``denoising``, which swaps whenever the turns of jobs
and tenants say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, NamedTuple

from schedulers.kernel import Kernel
from schedulers.lab.simulator import Simulation, TraceUnit, simulate
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.experts import Wakes, denoising_with_experts

EARLY, LATE = "early", "late"


class Way(NamedTuple):
    """``TraceUnit.truth``: of one job, how many steps it takes, and how many of them with the early network."""

    number: int
    num_steps: int
    num_early: int


@dataclass(slots=True)
class ExpertWorld:
    """A companion makes a step longer by ``companion`` of a step alone. ``tells``: reports say which experts are next;
    else they are only part of the batch key, as for a policy that knows nothing of them."""

    swap_s: float
    step_s: float = 1.0
    companion: float = 0.5
    decode_s: float = 0.5
    tells: bool = True
    awake: str = ""
    num_swaps: int = 0
    _done: dict[int, int] = field(default_factory=dict)

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        """See ``World``."""
        if stage == DECODE:
            return self.decode_s
        (experts,) = {self._experts(unit) for unit in units}
        seconds = self.step_s * (1.0 + self.companion * (len(units) - 1))
        if experts != self.awake:
            seconds += self.swap_s
            self.num_swaps += bool(self.awake)
            self.awake = experts
        for unit in units:
            self._done[unit.truth.number] = self._done.get(unit.truth.number, 0) + 1
        return seconds

    def report(self, unit: TraceUnit, stage: int) -> Any:
        """See ``World``."""
        experts = self._experts(unit)
        return Wakes(experts, experts) if self.tells else experts

    def _experts(self, unit: TraceUnit) -> str:
        return EARLY if self._done.get(unit.truth.number, 0) < unit.truth.num_early else LATE


def job(
    number: int,
    *,
    arrived_s: float = 0.0,
    deadline_s: float = float("inf"),
    tenant: str = "",
    num_steps: int = 20,
    num_early: int = 8,
    step_s: float = 1.0,
) -> TraceUnit:
    """One job of a trace, for a policy that is told of experts."""
    return TraceUnit(
        arrived_s=arrived_s,
        deadline_s=deadline_s,
        work=DenoisingWork(steps_left=num_steps, seconds_per_step=step_s, tokens=64),
        truth=Way(number, num_steps, num_early),
        tenant=tenant,
        batch_key=Wakes(EARLY, EARLY),
    )


def random_jobs(
    rng: Random, count: int, *, gap_s: float, tenants: Sequence[str] = ("",), patience: tuple[float, float]
) -> list[TraceUnit]:
    """Poisson arrivals, ``gap_s`` apart in the mean. ``patience``: a job's deadline is drawn between these multiples of
    its own steps, each alone."""
    now_s, jobs = 0.0, []
    for number in range(count):
        now_s += rng.expovariate(1.0 / gap_s)
        num_steps = rng.randint(8, 24)
        jobs.append(
            job(
                number,
                arrived_s=now_s,
                deadline_s=now_s + num_steps * rng.uniform(*patience),
                tenant=rng.choice(tenants),
                num_steps=num_steps,
                num_early=round(0.4 * num_steps),
            )
        )
    return jobs


class Outcome(NamedTuple):
    """Of one replay. ``mean_s``: from arrival to the end of a job."""

    num_swaps: int
    seconds: float
    in_time: frozenset[int]
    mean_s: float


def replay(
    trace: Sequence[TraceUnit], *, swap_s: float, is_grouped: bool, max_batch: int = 4, max_units: int = 16
) -> Outcome:
    """Run a trace on one replica."""
    make: Callable[[DenoisingConfig], Kernel] = denoising_with_experts if is_grouped else denoising
    world = ExpertWorld(swap_s=swap_s, tells=is_grouped)
    jobs = trace if is_grouped else [_untold(unit) for unit in trace]
    kernel = make(DenoisingConfig(max_batch=max_batch, max_units=max_units))
    done: Simulation = simulate(kernel, jobs, world, num_executors=2)
    records = done.records
    return Outcome(
        num_swaps=world.num_swaps,
        seconds=done.duration_s,
        in_time=frozenset(int(str(record.unit_id)) for record in records if record.done_s <= record.deadline_s),
        mean_s=sum(record.done_s - record.arrived_s for record in records) / len(records),
    )


def _untold(unit: TraceUnit) -> TraceUnit:
    return replace(unit, batch_key=EARLY)
