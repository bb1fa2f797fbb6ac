"""Experts over ranks as Ray actors: the same as one process, also while they move, and a dead rank is heard of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
import ray

from models.parallel.degrees import ParallelDegrees
from serving.errors import EngineFailed
from serving.replica.job.base import JobInput, StepDone
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.placing import Placing
from serving.replica.job.ranked_engine import RankedEngine
from serving.replica.job.ranks import RankActors, RankRecipe
from tests.support.expert_jobs import CONFIG, FAMILY, tiny_moe
from tests.support.waiting import turns

OPTIONS = EngineOptions(family=FAMILY, variant=FAMILY.variants[0], stop_grace_s=2.0)
NUM_STEPS = 12
NEVER_S = 3600.0


def placing() -> Placing:
    return Placing.over(2, layers=CONFIG.depth, experts=CONFIG.num_experts, spare=4)


def wanted(seed: int, num_steps: int = NUM_STEPS) -> JobInput:
    return JobInput(request=seed % 5, point={"num_inference_steps": num_steps}, seed=seed, num_steps=num_steps)


def recipe() -> RankRecipe:
    slots = placing().placement.slots
    return RankRecipe(
        options=OPTIONS, load=tiny_moe, degrees=ParallelDegrees(expert=2), slots=slots, min_tokens_per_rank=512
    )


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
async def engine(local_ray: None) -> AsyncIterator[RankedEngine]:
    made = RankedEngine(recipe(), RankActors(num_ranks=2, cpus=0.5), placing(), NEVER_S)
    await made.start()
    yield made
    await made.stop()


async def alone(seeds: list[int]) -> list[np.ndarray]:
    """What one process makes of them."""
    one = JobEngine(OPTIONS, tiny_moe)
    await one.start()
    for seed in seeds:
        await one.admit(str(seed), wanted(seed))
        for _ in range(NUM_STEPS):
            await one.run_step([str(seed)])
    made = [(await one.decode(str(seed)))["latents"] for seed in seeds]
    await one.stop()
    return made


async def run_steps(engine: RankedEngine, seeds: list[int], count: int) -> None:
    for _ in range(count):
        outcomes = await engine.run_step([str(seed) for seed in seeds])
        assert all(isinstance(outcome, StepDone) for outcome in outcomes)


async def test_experts_move_under_load_and_every_request_is_as_on_one_process(engine: RankedEngine) -> None:
    """Requests of one row and of several, before, during and after two moves."""
    seeds = [1, 2, 3]
    for seed in seeds:
        await engine.admit(str(seed), wanted(seed))
    await run_steps(engine, seeds, 4)
    before = engine.placed()
    assert before is not None
    assert (before.version, before.num_ranks, before.num_slots, before.moves) == (1, 2, 12, 0)
    moved, _ = await asyncio.gather(engine.replace_experts(), run_steps(engine, seeds, 4))
    assert moved
    after = engine.placed()
    assert after is not None
    assert (after.version, after.failed) == (2, 0)
    assert after.moves > 0
    assert max(after.rank_loads) < max(before.rank_loads)
    assert not await engine.replace_experts(), "the load is as it was"
    await run_steps(engine, seeds, 4)
    for seed, one in zip(seeds, await alone(seeds), strict=True):
        ours = (await engine.decode(str(seed)))["latents"]
        assert np.abs(ours - one).max() <= 1e-5
    await engine.admit("1", wanted(1))
    await run_steps(engine, [1], 1)  # fewer rows than ranks


async def test_placement_that_cannot_be_fetched_changes_nothing(
    engine: RankedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.admit("1", wanted(1))
    await run_steps(engine, [1], 6)
    held = engine._placing
    assert held is not None
    better = held.wanted()
    assert better is not None
    monkeypatch.setattr(Placing, "wanted", lambda self: (better[0], better[1][:-1]))
    assert not await engine.replace_experts()
    facts = engine.placed()
    assert facts is not None
    assert (facts.version, facts.failed, facts.moves) == (1, 1, 0)
    monkeypatch.undo()
    assert await engine.replace_experts()
    await run_steps(engine, [1], 6)
    (one,) = await alone([1])
    assert np.abs((await engine.decode("1"))["latents"] - one).max() <= 1e-5


async def test_rank_that_dies_during_a_move_breaks_the_engine_and_the_request_goes_on_elsewhere(
    engine: RankedEngine,
) -> None:
    await engine.admit("1", wanted(1))
    await run_steps(engine, [1], 5)
    snapshot = await engine.snapshot("1")
    ray.kill(engine._ranks[0])
    moving = asyncio.create_task(engine.replace_experts())
    await turns()
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(moving, 30)
    with pytest.raises(EngineFailed):
        engine.check_health()
    other = RankedEngine(recipe(), RankActors(num_ranks=2, cpus=0.5), placing(), NEVER_S)
    await engine.stop()
    await other.start()
    assert (await other.admit("1", wanted(1), snapshot)).step == 5
    await run_steps(other, [1], NUM_STEPS - 5)
    (one,) = await alone([1])
    assert np.abs((await other.decode("1"))["latents"] - one).max() <= 1e-5
    await other.stop()


async def test_experts_follow_the_load_by_themselves(local_ray: None) -> None:
    engine = RankedEngine(recipe(), RankActors(num_ranks=2, cpus=0.5), placing(), 0.05)
    await engine.start()
    await engine.admit("1", wanted(1, num_steps=1000))
    version = 1
    for _ in range(900):
        await run_steps(engine, [1], 1)
        facts = engine.placed()
        assert facts is not None
        version = facts.version
        if version > 1:
            break
    assert version > 1
    await engine.stop()


def test_slots_come_out_even() -> None:
    assert Placing.over(3, layers=1, experts=8, spare=0).placement.num_slots == 9
    assert Placing.over(2, layers=1, experts=8, spare=3).placement.num_slots == 12
