"""A runner with two experts on the host: the scheduler hears which one a step wakes, and jobs share swaps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.contract import ExpertPhases
from models.io import ImageRequest
from schedulers.kernel import Kernel
from schedulers.policies.denoising import DenoisingConfig, denoising
from schedulers.policies.experts import Wakes, denoising_with_experts
from serving.replica.job.base import JobInput
from tests.support.two_experts import EARLY, TwoExpertRunner, engine_of, make_all

JOBS = {
    f"job-{number}": JobInput(
        request=ImageRequest(width=8, height=8),
        point={"num_inference_steps": 5},
        seed=number,
        num_steps=5,
        tenant="ab"[number % 2],
    )
    for number in range(8)
}


async def made(
    policy: Callable[[DenoisingConfig], Kernel], max_batch: int = 2
) -> tuple[TwoExpertRunner, dict[str, torch.Tensor]]:
    """All jobs on a clock by which a step takes a second, and to bring an expert five."""
    runner = TwoExpertRunner()
    engine = engine_of(runner)
    await engine.start()
    kernel = policy(DenoisingConfig(max_batch=max_batch))
    came = await make_all(
        engine,
        kernel,
        JOBS,
        step_s=1.0,
        clock=lambda: runner.batches + 5.0 * (runner.residency.swaps + (runner.batches > 0)),
    )
    await engine.stop()
    assert kernel.counts().finished == len(JOBS)
    return runner, {name: outputs["tokens"] for name, outputs in came.outputs.items()}


async def test_engine_says_which_experts_a_step_wakes() -> None:
    runner = TwoExpertRunner()
    assert isinstance(runner, ExpertPhases)
    engine = engine_of(runner)
    await engine.start()
    await engine.admit("job-0", JOBS["job-0"])
    assert engine.phase("job-0") == Wakes(EARLY, EARLY)
    await engine.stop()


async def test_jobs_share_swaps_and_come_out_the_same() -> None:
    alone, apart = await made(denoising)
    grouped, together = await made(denoising_with_experts)
    assert alone.residency.swaps >= 7
    assert grouped.residency.swaps == 1
    for name, tokens in apart.items():
        assert torch.allclose(together[name], tokens, atol=1e-6), name


@pytest.mark.parametrize("max_batch", [1, 3])
async def test_one_swap_whatever_the_batch(max_batch: int) -> None:
    runner, _ = await made(denoising_with_experts, max_batch)
    assert runner.residency.swaps == 1
