"""Sequence-parallel ranks as Ray actors: the same clip as one rank, and a dead rank is heard of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial

import pytest
import ray
import torch
from safetensors.torch import load

from models.contract import Job
from models.methods.ras.config import RasConfig
from models.parallel.degrees import ParallelDegrees
from serving.errors import EngineFailed, InvalidRequest
from serving.replica.job.base import StepDone
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.ranked_engine import RankedEngine
from serving.replica.job.ranks import RankActors, RankRecipe
from tests.support.video_engines import BAD_PROMPT, LIMITS, tiny_runner
from tests.support.video_models import clip_input
from tests.support.waiting import turns, until

OPTIONS = EngineOptions(family=LIMITS.family, variant=LIMITS.variant, stop_grace_s=2.0)
RUNNER = partial(tiny_runner, RasConfig(num_warmup_steps=1, resets=()))
RECIPE = RankRecipe(options=OPTIONS, load=RUNNER, degrees=ParallelDegrees(ulysses=2), timeout_s=20.0)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
async def engine(local_ray: None) -> AsyncIterator[RankedEngine]:
    made = RankedEngine(RECIPE, RankActors(num_ranks=2, cpus=0.5, timeout_s=60.0))
    await made.start()
    yield made
    await made.stop()


async def run_steps(engine: RankedEngine, count: int) -> None:
    for _ in range(count):
        await engine.run_step(["job"])


async def check_until_unhealthy(engine: RankedEngine) -> None:
    await until(lambda: engine.check_health())


async def test_two_ranks_make_the_clip_of_one(engine: RankedEngine) -> None:
    """Every kind of attention, guided, two requests in a batch. 1e-5 of the largest: another order of sums."""
    one = JobEngine(OPTIONS, RUNNER)
    await one.start()
    for attention in ("dense", "tile:1:2", "adaspa:0.5", "ras:0.5"):
        jobs = [f"{attention}-{seed}" for seed in (1, 2)]
        for seed, job_id in enumerate(jobs):
            for each in (engine, one):
                await each.admit(job_id, clip_input(attention=attention, seed=seed))
        for _ in range(4):
            outcomes = await engine.run_step(jobs)
            assert all(isinstance(outcome, StepDone) for outcome in outcomes)
            await one.run_step(jobs)
        for job_id in jobs:
            ours = load(await engine.snapshot(job_id))["latents"]
            alone = load(await one.snapshot(job_id))["latents"]
            assert torch.isfinite(ours).all()
            assert (ours - alone).abs().max() <= 1e-5 * alone.abs().max()
            assert (await engine.decode(job_id))["frames"].shape == (9, 32, 48, 3)
    await one.stop()


async def test_short_clips_run_on_the_first_rank_alone_and_long_ones_on_both(local_ray: None) -> None:
    engine = RankedEngine(replace(RECIPE, min_tokens_per_rank=9), RankActors(num_ranks=2, cpus=0.5))
    await engine.start()
    one = JobEngine(OPTIONS, RUNNER)
    await one.start()
    held = []
    for job_id, num_frames in (("short", 5), ("long", 9)):  # 12 and 18 tokens
        for each in (engine, one):
            await each.admit(job_id, clip_input(num_frames=num_frames))
            for _ in range(2):
                (outcome,) = await each.run_step([job_id])
                assert isinstance(outcome, StepDone)
        held.append(await engine._ranks[0].held_bytes.remote())
        ours, alone = [load(await each.snapshot(job_id))["latents"] for each in (engine, one)]
        assert (ours - alone).abs().max() <= 1e-5 * alone.abs().max()
    assert held[0] == 0 < held[1]
    await engine.stop()
    await one.stop()


async def test_requests_fail_apart_and_are_freed_on_every_rank(engine: RankedEngine) -> None:
    await engine.admit("good", clip_input())
    await engine.admit("bad", clip_input(prompt=BAD_PROMPT))
    with pytest.raises(InvalidRequest):
        await engine.admit("refused", clip_input(attention="sage"))
    with pytest.raises(EngineFailed):
        await engine.admit("torn", clip_input(), b"no snapshot")
    outcomes = await engine.run_step(["good", "gone", "bad"])
    assert [type(outcome) for outcome in outcomes] == [StepDone, EngineFailed, EngineFailed]
    engine.check_health()
    for job_id in ("good", "bad"):
        engine.release(job_id)
    await engine.admit("next", clip_input())
    (elsewhere,) = await asyncio.gather(*(rank.held_bytes.remote() for rank in engine._ranks))
    assert elsewhere == engine.held_bytes() > 0


async def test_rank_that_dies_breaks_the_engine_at_once_and_for_good(engine: RankedEngine) -> None:
    await engine.admit("job", clip_input(num_steps=100))
    await engine.run_step(["job"])
    steps = asyncio.create_task(run_steps(engine, 99))
    await turns()
    ray.kill(engine._ranks[0])
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(steps, 15)
    with pytest.raises(EngineFailed, match="rank"):
        engine.check_health()
    for call in (engine.run_step(["job"]), engine.decode("job"), engine.snapshot("job"), engine.preview("job")):
        with pytest.raises(EngineFailed):
            await call
    with pytest.raises(EngineFailed):
        await engine.admit("other", clip_input())


async def test_idle_engine_hears_of_a_dead_rank(engine: RankedEngine) -> None:
    ray.kill(engine._ranks[0])
    with pytest.raises(EngineFailed, match="rank"):
        await asyncio.wait_for(check_until_unhealthy(engine), 15)


async def test_weights_that_cannot_be_loaded_end_every_rank(local_ray: None) -> None:
    def load_nothing() -> Job:
        raise FileNotFoundError("no such folder")

    engine = RankedEngine(replace(RECIPE, load=load_nothing), RankActors(num_ranks=2, cpus=0.5))
    with pytest.raises(EngineFailed):
        await engine.start()
    with pytest.raises(ray.exceptions.RayActorError):
        await engine._ranks[0].held_bytes.remote()


def test_guidance_over_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="cfg degree"):
        RankRecipe(options=OPTIONS, load=RUNNER, degrees=ParallelDegrees(cfg=2))
