"""One rank of a replica whose ranks share the tokens of a step. Each has the whole weights and the requests that it
takes part in, and does the same as the others in the same order; only self-attention exchanges anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from models.contract import Job, Parallel
from models.parallel.degrees import ParallelDegrees, degrees_of_clip, narrower
from models.parallel.groups import make_groups
from models.parallel.launch import RankConfig, join, leave
from serving.replica.job.base import JobInput, StepOutcome
from serving.replica.job.engine import EngineOptions, JobEngine, Load


@dataclass(frozen=True, kw_only=True)
class RankRecipe:
    """What every rank is made from; it travels to the ranks, so ``load`` must be picklable.

    ``degrees``: of all ranks. A request with fewer than ``min_tokens_per_rank`` on each of them runs on fewer, the
    first ones. ``timeout_s``: longest wait for the other ranks within a step; ``num_threads``: torch threads of a rank.
    """

    options: EngineOptions
    load: Load
    degrees: ParallelDegrees
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
