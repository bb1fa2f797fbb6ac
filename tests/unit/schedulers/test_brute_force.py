"""Ours against the best schedule there is, found by trying all of them, on small traces.

The optimum knows the future: arrivals, exits and costs. It may leave the engine idle, and chooses any stage and any
subset of the samples there. Costs are whole milliseconds, so that schedules which meet in a state share its value.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from random import Random

import pytest

from schedulers.cost import measured_stages
from schedulers.lab.simulator import ExitWorld, exit_unit, simulate
from schedulers.policies.exits import ExitConfig, early_exits

NUM_STAGES = 3
GONE = NUM_STAGES
#: Milliseconds of stage k on n samples: (fixed, per sample).
COSTS_MS = {"fixed": ((8, 1), (6, 1), (4, 1)), "mixed": ((3, 3), (2, 2), (2, 2)), "linear": ((0, 6), (0, 4), (0, 4))}


def batch_ms(shape: str, stage: int, num_samples: int) -> int:
    fixed, each = COSTS_MS[shape][stage]
    return fixed + each * num_samples


def small_trace(seed: int, num_samples: int) -> tuple[tuple[int, int, int], ...]:
    """(arrival ms, deadline ms, stage of its exit) per sample: overloaded on purpose."""
    rng = Random(seed)
    arrivals = sorted(rng.randrange(0, 30) for _ in range(num_samples))
    return tuple((at, at + rng.choice((12, 20, 35, 60)), rng.randrange(NUM_STAGES)) for at in arrivals)


def optimum(shape: str, trace: tuple[tuple[int, int, int], ...], max_batch: int) -> int:
    """Most samples that any schedule answers by their deadline at their own exit."""

    @cache
    def best(now_ms: int, stages: tuple[int, ...]) -> int:
        alive = [i for i, stage in enumerate(stages) if stage != GONE and now_ms < trace[i][1]]
        here = [i for i in alive if trace[i][0] <= now_ms]
        later = [trace[i][0] for i in alive if trace[i][0] > now_ms]
        value = best(min(later), stages) if later else 0
        for stage in range(NUM_STAGES):
            at_stage = [i for i in here if stages[i] == stage]
            for size in range(1, min(len(at_stage), max_batch) + 1):
                end_ms = now_ms + batch_ms(shape, stage, size)
                for chosen in combinations(at_stage, size):
                    value = max(value, after(end_ms, stages, stage, chosen))
        return value

    def after(end_ms: int, stages: tuple[int, ...], stage: int, chosen: tuple[int, ...]) -> int:
        moved, num_good = list(stages), 0
        for i in chosen:
            leaves = trace[i][2] == stage
            moved[i] = GONE if leaves else stage + 1
            num_good += leaves and end_ms <= trace[i][1]
        return num_good + best(end_ms, tuple(moved))

    return best(0, (0,) * len(trace))


def ours(shape: str, trace: tuple[tuple[int, int, int], ...], max_batch: int) -> int:
    sizes = tuple(range(1, max_batch + 1))
    table = [[batch_ms(shape, stage, n) / 1e3 for n in sizes] for stage in range(NUM_STAGES)]
    samples = [
        exit_unit(
            arrived_s=at / 1e3,
            deadline_s=deadline / 1e3 + 1e-9,  # a sum of milliseconds in floating point may end a hair later
            thresholds=(0.5,) * NUM_STAGES,
            confidences=tuple(float(stage >= leaves_at) for stage in range(NUM_STAGES)),
        )
        for at, deadline, leaves_at in trace
    ]
    scheduler = early_exits(measured_stages(sizes, table), ExitConfig(max_batch=max_batch))
    result = simulate(scheduler, samples, ExitWorld(measured_stages(sizes, table).batch_s), check_each_step=True)
    return sum(record.is_good for record in result.records)


@pytest.mark.parametrize("shape", COSTS_MS)
@pytest.mark.parametrize(("num_samples", "num_traces"), [(3, 200), (4, 150), (5, 60)])
def test_close_to_the_clairvoyant_optimum_on_small_traces(shape: str, num_samples: int, num_traces: int) -> None:
    total_ours = total_best = 0
    for seed in range(num_traces):
        trace = small_trace(seed, num_samples)
        mine, best = ours(shape, trace, max_batch=4), optimum(shape, trace, max_batch=4)
        assert mine <= best, "an answer counted that no schedule can give: the simulator or the optimum is wrong"
        assert mine >= best - 2, trace
        total_ours, total_best = total_ours + mine, total_best + best
    print(shape, num_samples, f"{total_ours}/{total_best} = {total_ours / total_best:.3f}")
    assert total_ours >= 0.80 * total_best


@pytest.mark.parametrize("shape", COSTS_MS)
def test_reaches_the_optimum_when_there_is_time_for_everyone(shape: str) -> None:
    for seed in range(40):
        trace = tuple((at, at + 400, leaves_at) for at, _, leaves_at in small_trace(seed, 5))
        assert ours(shape, trace, max_batch=4) == 5
