"""Measured milliseconds of each stage by batch size, on the machine and device at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Point, Staged, Unary
from models.training.held_out import Predicted

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

BETWEEN = (3, 6, 12, 24, 48)
"""Sizes that no price is fitted to."""
_MEDIAN_ERROR = 1.2533
"""Standard error of a median, in standard errors of the mean."""


class StageCost(TypedDict):
    """``stages[k][i]``: milliseconds to carry ``batch_sizes[i]`` samples through stage k alone; ``errors``: theirs."""

    batch_sizes: list[int]
    stages: list[list[float]]
    errors: list[list[float]]


class Pass(NamedTuple):
    """Milliseconds of one batch of so many samples, by stage."""

    size: int
    stages: tuple[float, ...]


def stage_costs(
    runner: Staged | Unary,
    side: int,
    device: torch.device,
    *,
    point: Point | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 30,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> StageCost:
    """Time every stage at every batch size; medians of ``repeats`` rounds that alternate between the sizes.

    Stage 0 includes ``begin``; a unary family has no other. Later stages include the gather of survivors (rows are
    taken in reverse, so that no batch is passed on as it is). Devices that work asynchronously are waited for.
    """
    times: dict[tuple[int, int], list[float]] = {}
    images = _images(max(batch_sizes), side)
    for round_number in range(-2, repeats):
        for size in batch_sizes:
            for stage, elapsed_ms in enumerate(_one_pass(runner, images[:size], point or {}, device)):
                if round_number >= 0:
                    times.setdefault((stage, size), []).append(elapsed_ms)
        on_progress(round_number + 3, repeats + 2)
    num_stages = runner.num_stages if isinstance(runner, Staged) else 1
    rows = [[times[stage, size] for size in batch_sizes] for stage in range(num_stages)]
    return {
        "batch_sizes": list(batch_sizes),
        "stages": [[round(statistics.median(row), 4) for row in stage] for stage in rows],
        "errors": [[round(_median_error(row), 4) for row in stage] for stage in rows],
    }


def held_out_passes(
    runner: Staged | Unary, side: int, device: torch.device, *, point: Point | None = None, rounds: int = 1
) -> list[Pass]:
    """Batches that no price is fitted to: of each measured size, and of those between them."""
    images = _images(BATCH_SIZES[-1], side)
    return [
        Pass(size, tuple(_one_pass(runner, images[:size], point or {}, device)))
        for _ in range(rounds)
        for size in sorted((*BATCH_SIZES, *BETWEEN))
    ]


def held_out_of(costs: StageCost, passes: Sequence[Pass]) -> tuple[Predicted, ...]:
    """What the table says of them, stage by stage: what a scheduler asks for."""
    return tuple(
        Predicted(interpolate(costs, stage, one.size) / 1e3, elapsed_ms / 1e3)
        for one in passes
        for stage, elapsed_ms in enumerate(one.stages)
    )


def _images(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _median_error(times: Sequence[float]) -> float:
    return _MEDIAN_ERROR * statistics.stdev(times) / len(times) ** 0.5 if len(times) > 1 else 0.0


def interpolate(costs: StageCost, stage: int, samples: float) -> float:
    """Milliseconds of a stage for a batch of ``samples``, linear between measured sizes.

    Below one sample: that share of a batch of one. Above the largest size: proportional to it.
    """
    sizes, ms = costs["batch_sizes"], costs["stages"][stage]
    if samples < sizes[0]:
        return ms[0] * samples / sizes[0]
    if samples > sizes[-1]:
        return ms[-1] * samples / sizes[-1]
    return float(np.interp(samples, sizes, ms))


def expected_batch_ms(costs: StageCost, exit_shares: Sequence[float], batch_size: int) -> float:
    """Expected busy milliseconds of a batch that starts together and shrinks at every exit."""
    remaining = 1.0
    total = 0.0
    for stage, share in enumerate(exit_shares):
        total += interpolate(costs, stage, batch_size * remaining)
        remaining = max(0.0, remaining - share)
    return total


@torch.inference_mode()
def _one_pass(runner: Staged | Unary, images: NDArray[np.uint8], point: Point, device: torch.device) -> list[float]:
    batch, points = torch.tensor(images), [point] * len(images)
    backwards = torch.arange(len(images) - 1, -1, -1, device=device)
    elapsed = []
    _wait(device)
    started_s = time.perf_counter()
    if not isinstance(runner, Staged):
        runner.forward(batch, points)
        _wait(device)
        return [(time.perf_counter() - started_s) * 1e3]
    state = runner.begin(batch, points)
    for stage in range(runner.num_stages):
        if stage > 0:
            state = tuple(tensor.index_select(0, backwards) for tensor in state)
        state, _, _ = runner.run(state, stage, 1)
        _wait(device)
        now_s = time.perf_counter()
        elapsed.append((now_s - started_s) * 1e3)
        started_s = now_s
    return elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
