"""A tenant whose tokens all go to the same few experts, among tenants whose tokens spread: what the others see.

As in RepetitionCurse, one input is repeated until the fullest rank decides how long every slice takes. Experts lie in
order over ranks, a step takes ``STEP_S`` for one unit and half as long again for each that joins it, and the part of it
that experts take goes with the fullest rank. Popularity of experts differs between honest tenants, a little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeAlias

from schedulers.experts.placement import Placement, in_order
from schedulers.experts.skew import Loads, LoadSkew
from schedulers.lab.simulator import Simulation, TraceUnit, lognormal_noise, percentile, simulate
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, Routed, denoising
from schedulers.types import Finish

Inputs: TypeAlias = Literal["spread", "piled"]
"""Of the attacker: like those of anybody else, or all on few experts."""
ATTACKER = "attacker"
HONEST = ("one", "two", "three", "four")
LAYERS, EXPERTS, RANKS, CHOSEN, TOKENS = 4, 128, 8, 8, 256
STEP_S, _COMPANION, _DECODE_S, _STEPS, _BATCH = 0.1, 0.5, 0.02, 10, 4
EXPERT_PART = 0.6
"""Of an even step, what experts take."""
_NOISE, _PREFERENCE = 0.05, 0.3


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The truth of a unit is where its tokens go, in every step."""

    placement: Placement

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        if stage == DECODE:
            return _DECODE_S
        even_s = STEP_S * (1.0 + _COMPANION * (len(units) - 1))
        over = 0.0
        for layer in range(LAYERS):
            counts = [sum(column) for column in zip(*(unit.truth[layer] for unit in units), strict=True)]
            loads = self.placement.rank_loads(layer, counts)
            over += max(loads) * len(loads) / sum(loads) - 1.0
        return even_s * (1.0 + EXPERT_PART * over / LAYERS)

    def report(self, unit: TraceUnit, stage: int) -> Any:
        return Routed(unit.batch_key, unit.truth)


def _loads(rng: Random, inputs: Inputs) -> Loads:
    """Of one unit: a token takes ``CHOSEN`` experts by weight; piled ones all take those of the first rank."""
    if inputs == "piled":
        return [[TOKENS if expert < CHOSEN else 0 for expert in range(EXPERTS)] for _ in range(LAYERS)]
    layers = []
    for _ in range(LAYERS):
        counts = [0] * EXPERTS
        weights = [rng.lognormvariate(0.0, _PREFERENCE) for _ in range(EXPERTS)]
        for expert in rng.choices(range(EXPERTS), weights, k=TOKENS * CHOSEN):
            counts[expert] += 1
        layers.append(counts)
    return layers


def trace(inputs: Inputs, *, honest: float, flood: float, num_units: int, seed: int = 0) -> list[TraceUnit]:
    """Poisson arrivals, the same whatever the inputs. ``honest`` and ``flood``: what honest tenants together and the
    attacker ask for, in parts of the units that full, even slices make."""
    rng, shapes = Random(seed), Random(f"{seed} shapes")
    per_s = _BATCH / (STEP_S * (1.0 + _COMPANION * (_BATCH - 1)) * _STEPS)
    patterns = {tenant: [_loads(shapes, "spread") for _ in range(8)] for tenant in HONEST}
    patterns[ATTACKER] = [_loads(shapes, inputs) for _ in range(8)]
    now_s, units = 0.0, []
    for _ in range(num_units):
        now_s += rng.expovariate(per_s * (honest + flood))
        tenant = ATTACKER if rng.random() < flood / (honest + flood) else rng.choice(HONEST)
        units.append(
            TraceUnit(
                arrived_s=now_s,
                work=DenoisingWork(steps_left=_STEPS, seconds_per_step=STEP_S, tokens=TOKENS),
                truth=rng.choice(patterns[tenant]),
                tenant=tenant,
                batch_key="grid",
            )
        )
    return units


def replay(units: Sequence[TraceUnit], *, is_guarded: bool) -> Simulation:
    """One replica. Without the guard nobody looks at where tokens go."""
    placement = in_order(LAYERS, EXPERTS, RANKS)
    config = DenoisingConfig(max_batch=_BATCH, max_units=1 << 20)
    kernel = denoising(config, skew=LoadSkew(lambda: placement if is_guarded else None))
    noise = lognormal_noise(Random(1), _NOISE)
    return simulate(kernel, units, _Ranks(placement), noise=noise, num_executors=2)


def p99_s(simulation: Simulation, *, of_attacker: bool = False) -> float:
    """Latency of the units of honest tenants, or of the attacker."""
    found = sorted(
        record.latency_s
        for record in simulation.records
        if isinstance(record.decision, Finish) and (record.tenant == ATTACKER) == of_attacker
    )
    return percentile(found, 0.99) or 0.0
