"""Experts over ranks as Ray actors: the same as one process, also while they move, and a dead rank is heard of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial

import numpy as np
import pytest
import ray
from safetensors.torch import load

from models.parallel.degrees import ParallelDegrees
from schedulers.experts.activation import choose
from schedulers.experts.replacement import Decision, Fetch
from serving.errors import EngineFailed
from serving.replica.job.base import StepDone
from serving.replica.job.engine import JobEngine
from serving.replica.job.placing import Placing
from serving.replica.job.ranked_engine import RankedEngine
from serving.replica.job.ranks import RankActors, RankRecipe
from tests.support.expert_jobs import FACTS, OPTIONS, tiny_runner, wanted
from tests.support.waiting import turns

NUM_STEPS = 12
NEVER_S = 3600.0
REQUESTS = {
    1: wanted(1, NUM_STEPS),
    2: wanted(2, NUM_STEPS, count=2, guidance=3.0),
    3: wanted(3, NUM_STEPS, guidance=2.0),
}


def placing() -> Placing:
    return Placing.over(
        2, layers=FACTS.layers, experts=FACTS.experts, spare=2, expert_bytes=4 * FACTS.expert_parameters, retry_s=0.0
    )


def recipe() -> RankRecipe:
    slots = placing().placement.slots
    return RankRecipe(
        options=OPTIONS,
        load=tiny_runner,
        degrees=ParallelDegrees(expert=2),
        slots=slots,
        choose=partial(choose, tokens_per_read=16.0),
        min_tokens_per_rank=512,
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


async def assert_as_alone(engine: RankedEngine, *seeds: int) -> None:
    """What one process makes of them, but for another order of sums: no pixel differs by more than one."""
    one = JobEngine(OPTIONS, tiny_runner)
    await one.start()
    for seed in seeds:
        await one.admit(str(seed), REQUESTS[seed])
        for _ in range(NUM_STEPS):
            await one.run_step([str(seed)])
        ours, theirs = [load(await each.snapshot(str(seed)))["latents"] for each in (engine, one)]
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        images = [(await each.decode(str(seed)))["image"].astype(int) for each in (engine, one)]
        assert np.abs(images[0] - images[1]).max() <= 1
    await one.stop()


async def run_steps(engine: RankedEngine, seeds: list[int], count: int) -> None:
    for _ in range(count):
        outcomes = await engine.run_step([str(seed) for seed in seeds])
        assert all(isinstance(outcome, StepDone) for outcome in outcomes)


async def test_experts_move_under_load_and_every_request_is_as_on_one_process(engine: RankedEngine) -> None:
    """Of one row, fewer than ranks, and of several; before, during and after a move."""
    for seed, request in REQUESTS.items():
        await engine.admit(str(seed), request)
    await run_steps(engine, [1], 4)
    assert not await engine.replace_experts(), "the target is judged by what comes"
    await run_steps(engine, [2, 3], 4)
    before = engine.placed()
    assert before is not None
    assert (before.version, before.num_ranks, before.num_slots, before.moves) == (1, 2, 6, 0)
    moved, _ = await asyncio.gather(engine.replace_experts(), run_steps(engine, [2, 3], 4))
    assert moved
    after = engine.placed()
    assert after is not None
    assert (after.version, after.failed) == (2, 0)
    assert after.moves > 0
    await run_steps(engine, [1], 8)
    await run_steps(engine, [2, 3], 4)
    await assert_as_alone(engine, *REQUESTS)


async def test_placement_that_cannot_be_fetched_changes_nothing_and_is_tried_again(
    engine: RankedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.admit("1", REQUESTS[1])
    await run_steps(engine, [1], 3)
    assert not await engine.replace_experts()
    await run_steps(engine, [1], 3)
    look = Placing.look

    def short(self: Placing, now_s: float) -> list[Decision]:
        return [one._replace(moves=one.moves[:-1]) if isinstance(one, Fetch) else one for one in look(self, now_s)]

    monkeypatch.setattr(Placing, "look", short)
    assert await engine.replace_experts(), "the second try is whole"
    facts = engine.placed()
    assert facts is not None
    assert (facts.version, facts.failed) == (3, 1)
    await run_steps(engine, [1], 6)
    await assert_as_alone(engine, 1)


async def test_rank_that_dies_during_a_move_breaks_the_engine_and_the_request_goes_on_elsewhere(
    engine: RankedEngine,
) -> None:
    await engine.admit("1", REQUESTS[1])
    await run_steps(engine, [1], 3)
    assert not await engine.replace_experts()
    await run_steps(engine, [1], 2)
    snapshot = await engine.snapshot("1")
    ray.kill(engine._ranks[0])
    moving = asyncio.create_task(engine.replace_experts())
    await turns()
    with pytest.raises(EngineFailed):
        await asyncio.wait_for(moving, 30)
    with pytest.raises(EngineFailed):
        engine.check_health()
    await engine.stop()
    other = RankedEngine(recipe(), RankActors(num_ranks=2, cpus=0.5), placing(), NEVER_S)
    await other.start()
    assert (await other.admit("1", REQUESTS[1], snapshot)).step == 5
    await run_steps(other, [1], NUM_STEPS - 5)
    await assert_as_alone(other, 1)
    await other.stop()


async def test_experts_follow_the_load_by_themselves(local_ray: None) -> None:
    engine = RankedEngine(recipe(), RankActors(num_ranks=2, cpus=0.5), placing(), 0.05)
    await engine.start()
    await engine.admit("long", wanted(1, num_steps=250))
    version = 1
    for _ in range(250):
        await engine.run_step(["long"])
        facts = engine.placed()
        assert facts is not None
        version = facts.version
        if version > 1:
            break
    assert version > 1
    await engine.stop()
