"""The ranks of a replica that share a step: the first is the replica itself, the others are Ray actors in its placement
group. Each has the weights, all or but its part of the experts, and the requests that it takes part in, and does the
same as the others in the same order; only self-attention, or experts, exchange anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from models.contract import Choose, Job, Move, Parallel, PlacedExperts, Slots
from models.parallel.degrees import ParallelDegrees, degrees_of_clip, narrower
from models.parallel.groups import make_groups
from models.parallel.launch import RankConfig, join, leave
from serving.errors import EngineFailed
from serving.replica.job.base import JobInput, StepOutcome
from serving.replica.job.engine import EngineOptions, JobEngine, Load


@dataclass(frozen=True, kw_only=True)
class RankRecipe:
    """What every rank is made from; it travels to the ranks, so ``load`` must be picklable.

    ``degrees``: of all ranks. A request with fewer than ``min_tokens_per_rank`` on each of them runs on fewer, the
    first ones. ``slots``, ``choose``: of ``PlacedExperts``, where experts are dealt out. ``timeout_s``: longest wait
    for the other ranks within a step; ``num_threads``: torch threads of a rank.
    """

    options: EngineOptions
    load: Load
    degrees: ParallelDegrees
    slots: Slots = ()
    choose: Choose | None = None
    min_tokens_per_rank: int = 1
    timeout_s: float = 60.0
    num_threads: int = 1

    def __post_init__(self) -> None:
        if self.degrees.cfg != 1:
            raise ValueError(f"cfg degree is {self.degrees.cfg}; both branches of guidance are one batch here: use 1")

    def degrees_of(self, num_tokens: int) -> ParallelDegrees:
        """Of a request of that size: the same on every rank."""
        return degrees_of_clip(narrower(self.degrees), num_tokens, self.min_tokens_per_rank)

    def engine(self, config: RankConfig) -> JobEngine:
        """The engine of one rank. It joins the world when it is started, on the thread that its steps run on."""
        return JobEngine(replace(self.options, retries_alone=False), lambda: self._load(config))

    def _load(self, config: RankConfig) -> Job:
        torch.set_num_threads(self.num_threads)
        runner = self.load()
        if not isinstance(runner, Parallel):
            raise ValueError("this model cannot be spread over ranks; serve it with one")
        join(config)
        groups = {one: make_groups(one, timeout_s=self.timeout_s) for one in narrower(self.degrees)}
        runner.spread(self.degrees, lambda num_tokens: groups[self.degrees_of(num_tokens)])
        if self.slots:
            assert isinstance(runner, PlacedExperts), "a family that counts experts can place them"
            runner.place(self.slots, self.choose)
        return runner


class Rank:
    """Every rank but the first, as an actor: does what the first one does."""

    def __init__(self, recipe: RankRecipe, config: RankConfig) -> None:
        self._engine = recipe.engine(config)

    async def start(self) -> None:
        """Load, and meet the others."""
        await self._engine.start()

    async def admit(self, job_id: str, wanted: JobInput, snapshot: bytes | None) -> None:
        """Take a request."""
        await self._engine.admit(job_id, wanted, snapshot)

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """Take part in a step."""
        return await self._engine.run_step(job_ids)

    async def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """Get experts, beside steps."""
        await self._engine.fetch(slots, moves)

    async def switch(self) -> None:
        """They hold from the next step on."""
        await self._engine.switch()

    async def release(self, job_ids: Sequence[str]) -> None:
        """Forget requests."""
        for job_id in job_ids:
            self._engine.release(job_id)

    async def held_bytes(self) -> int:
        """Bytes of all requests on this rank."""
        return self._engine.held_bytes()

    async def outlive(self) -> None:
        """Never comes back: whoever waits for it hears of this rank's death at once."""
        await asyncio.Event().wait()


def leave_world() -> None:
    """After the engine of a rank has stopped."""
    leave()


_PORTS = range(20_000, 25_000)
"""Where first ranks listen: below Ray's own (``serving.system.ray_env``) and those that Linux deals out for outgoing
connections, one of which could take a port between now and the moment at which it is bound."""


def _free_port(host: str) -> int:
    """Raises: EngineFailed: all are taken."""
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise EngineFailed(f"no free port from {_PORTS.start} to {_PORTS.stop - 1} for the ranks of a model")


@dataclass(frozen=True, kw_only=True)
class RankActors:
    """``num_ranks`` counts the first one, which is this process. ``placement_group`` has one bundle for each rank in
    order, the first one perhaps left out; without one, actors go wherever there is room. They end with this process."""

    num_ranks: int
    cpus: float = 1.0
    gpus: float = 0.0
    backend: str = "gloo"
    timeout_s: float = 60.0
    placement_group: PlacementGroup | None = None

    def world(self) -> RankConfig:
        """The world as the first rank sees it: it listens on a free port of this node."""
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return RankConfig(
            rank=0,
            world_size=self.num_ranks,
            init_method=f"tcp://{host}:{_free_port(host)}",
            backend=self.backend,
            timeout_s=self.timeout_s,
        )

    def start(self, recipe: RankRecipe, world: RankConfig) -> Sequence[Any]:
        """Handles of ``Rank`` for the ranks from 1 on."""
        return [self._make(recipe, replace(world, rank=rank)) for rank in range(1, self.num_ranks)]

    def _make(self, recipe: RankRecipe, config: RankConfig) -> Any:
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        if self.placement_group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self.placement_group,
                placement_group_bundle_index=config.rank - (self.num_ranks - self.placement_group.bundle_count),
            )
        return ray.remote(Rank).options(**options).remote(recipe, config)

    def stop(self, ranks: Sequence[Any]) -> None:
        """End them, whatever they do."""
        for rank in ranks:
            ray.kill(rank)
