"""An engine of jobs whose steps run on several ranks: the first in this process, the others in actors.

    facade    admit, run_step ──► the clip's ranks     decode, preview, snapshot ──► the first rank only
                  │
                  └── a rank dies, differs or does not answer: the whole engine is broken

A broken engine fails every call and its health check, so that the replica is replaced and its jobs go on elsewhere from
their checkpoints. For the same reason a step that raises breaks it: ranks that do not fail alike cannot be told from
ranks that wait for each other. What is not a number still fails its own request only.

Each clip has its own degree of parallelism (``RankRecipe.degrees_of``), from one rank to all; it runs on the first
ones, and the others rest.

Experts that are dealt out over the ranks follow the load as ``schedulers.experts.replacement`` decides: every rank
fetches what it will lack from those that have it, while steps go on; once all have, all put it in place between the
same two steps. Requests notice nothing: an expert gives the same on any rank. If a fetch fails the old placement stays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Hashable, Sequence
from typing import Any, TypeVar

import structlog

from models.contract import Work
from models.parallel.launch import RankConfig
from schedulers.experts.placement import Placement
from schedulers.experts.replacement import Boundary, Decision, Fetch, Fetched, FetchFailed, RankLost
from serving.delivery.job.experts import PlacedFacts
from serving.errors import EngineFailed, ServingError
from serving.replica.job.base import Admitted, Frames, JobInput, Outputs, StepDone, StepOutcome, tokens_of
from serving.replica.job.placing import Placing
from serving.replica.job.ranks import RankActors, RankRecipe, leave_world

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class RankedEngine:
    """See the module. ``actors`` starts the ranks from 1 on; this process is rank 0. ``placing``: of experts, which
    get a new target every ``replace_every_s``; half of that later it is judged."""

    def __init__(
        self,
        recipe: RankRecipe,
        actors: RankActors,
        placing: Placing | None = None,
        replace_every_s: float = 60.0,
    ) -> None:
        self._recipe = recipe
        self._actors = actors
        self._world = actors.world()
        self._first = recipe.engine(self._world)
        self._placing = placing
        self._replace_every_s = replace_every_s
        self._ranks: Sequence[Any] = ()
        self._turn = asyncio.Lock()
        self._gone: list[str] = []
        self._degrees: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: str | None = None

    @property
    def world(self) -> RankConfig:
        """As the first rank sees it."""
        return self._world

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start every rank, and wait until they have met. Raises: EngineFailed."""
        self._ranks = self._actors.start(self._recipe, self._world)
        try:
            await self._everywhere(self._first.start(), [rank.start.remote() for rank in self._ranks])
        except EngineFailed:
            await self.stop()
            raise
        for rank in self._ranks:
            self._spawn(self._watch(rank))
        if self._placing is not None:
            self._spawn(self._follow_load(self._placing))

    async def stop(self) -> None:
        """End every rank."""
        self._broken = self._broken or "the model was stopped"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._actors.stop(self._ranks)
        await self._first.stop()
        leave_world()

    def check_health(self) -> None:
        """Raises: EngineFailed: some rank is dead or stuck, or they have come apart."""
        self._check_whole()
        self._first.check_health()

    async def _watch(self, rank: Any) -> None:
        try:
            await rank.outlive.remote()
        except Exception as error:
            self._break("a rank of the model died", error)

    # -- what a clip's ranks do -------------------------------------------------------------------------------------

    async def admit(self, job_id: str, wanted: JobInput, snapshot: bytes | None = None) -> Admitted:
        """Take a request on the ranks that it is to have. Raises: ClientError, EngineFailed."""
        self._check_whole()
        work = self._first.work(wanted)  # refuses what no rank can do
        await self._forget()
        degree = self._recipe.degrees_of(tokens_of(work, wanted)).total
        self._degrees[job_id] = degree
        calls = [rank.admit.remote(job_id, wanted, snapshot) for rank in self._ranks[: degree - 1]]
        # A failure that every rank has met, such as an unreadable snapshot, leaves them alike.
        answers = await asyncio.gather(
            self._first.admit(job_id, wanted, snapshot), *map(_settled, calls), return_exceptions=True
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        if not failed:
            assert isinstance(answers[0], Admitted)
            return answers[0]
        self.release(job_id)
        if len(failed) == len(answers) and isinstance(failed[0], ServingError):
            raise failed[0]
        raise self._break("the ranks of the model came apart", failed[0])

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """One step for each, on their ranks in the same order; those of a batch are of one phase, and so of one degree.

        Raises: EngineFailed: the engine is broken.
        """
        async with self._turn:
            self._check_whole()
            await self._send_gone()
            present = [job_id for job_id in job_ids if self._first.holds(job_id)]
            degree = max((self._degrees[job_id] for job_id in present), default=1)
            calls = [rank.run_step.remote(present) for rank in self._ranks[: degree - 1]]
            mine, *others = await self._everywhere(self._first.run_step(present), calls)
            if any(_shape(other) != _shape(mine) for other in others):
                raise self._break("the ranks of the model came apart", None)
            if self._placing is not None:
                self._placing.add(one.loads for one in mine if isinstance(one, StepDone))
            known = dict(zip(present, mine, strict=True))
            return [known.get(job_id) or EngineFailed("the model does not hold this request") for job_id in job_ids]

    def leave(self, job_id: str) -> None:
        """The request ends at its next step boundary, which is near."""

    def release(self, job_id: str) -> None:
        """Free it here now, and on the other ranks between two steps."""
        self._first.release(job_id)
        self._degrees.pop(job_id, None)
        self._gone.append(job_id)
        if self._broken is None:
            self._spawn(self._forget())

    async def _forget(self) -> None:
        async with self._turn:
            if self._broken is None:
                await self._send_gone()

    async def _send_gone(self) -> None:
        gone, self._gone = self._gone, []
        if gone:
            await self._everywhere(_nothing(), [rank.release.remote(gone) for rank in self._ranks])

    async def _everywhere(self, here: Awaitable[T], calls: Sequence[Any]) -> list[T]:
        """What the first rank and the others answer. The first failure breaks the engine: who waits for a dead rank is
        not waited for."""
        tasks = [asyncio.ensure_future(here), *(asyncio.ensure_future(_settled(call)) for call in calls)]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [error for task in done if (error := task.exception()) is not None]
        if not failed:
            return [task.result() for task in tasks]
        for task in waiting:
            task.cancel()
            task.add_done_callback(_heard)
        raise self._break("a rank of the model failed", failed[0])

    # -- where experts are -------------------------------------------------------------------------------------------

    async def _follow_load(self, placing: Placing) -> None:
        look_s = time.monotonic()
        while self._broken is None:
            try:
                if time.monotonic() >= look_s:
                    look_s = time.monotonic() + self._replace_every_s / 2
                    await self.replace_experts()
                else:
                    await self._carry_out(placing, placing.handle(time.monotonic()))
            except Exception:
                _log.exception("experts were not moved")  # where they are, they are right
                await asyncio.sleep(self._replace_every_s)
            wake_s = placing.next_wakeup_s()
            await asyncio.sleep(max(0.0, (look_s if wake_s is None else min(look_s, wake_s)) - time.monotonic()))

    async def replace_experts(self) -> bool:
        """Look at the load of late: make a target, or bring experts to the last one if that is worth it. Returns
        whether they moved. Raises: EngineFailed: the engine is broken."""
        placing = self._placing
        return placing is not None and await self._carry_out(placing, placing.look(time.monotonic()))

    async def _carry_out(self, placing: Placing, decisions: Sequence[Decision]) -> bool:
        """A fetch and what follows from it. Nothing is to be done to free a placement, which the next one has been
        written over, nor to discard one, which the next fetch does."""
        have_moved = False
        while fetch := next((one for one in decisions if isinstance(one, Fetch)), None):
            version = fetch.placement.version
            if not await self._have_fetched(fetch):
                decisions = placing.handle(time.monotonic(), FetchFailed(version))
                continue
            async with self._turn:
                self._check_whole()
                decisions = placing.handle(time.monotonic(), Fetched(version), Boundary())
                await self._everywhere(self._first.switch(), [rank.switch.remote() for rank in self._ranks])
            have_moved = True
            _log.info("experts have moved", version=version, moves=len(fetch.moves))
        return have_moved

    async def _have_fetched(self, fetch: Fetch) -> bool:
        """Whether all ranks have what they will lack. Raises: EngineFailed: the engine is broken."""
        placement, plain = fetch.placement, [(one.layer, one.expert, one.source, one.slot) for one in fetch.moves]
        calls = [rank.fetch.remote(placement.slots, plain) for rank in self._ranks]
        answers = await asyncio.gather(
            self._first.fetch(placement.slots, plain), *map(_settled, calls), return_exceptions=True
        )
        self._check_whole()
        if failed := [answer for answer in answers if isinstance(answer, BaseException)]:
            _log.warning("experts stay where they are", exc_info=failed[0])
        return not failed

    @property
    def placement(self) -> Placement | None:
        """Which ranks have which experts now. None: all are on every rank."""
        return None if self._placing is None else self._placing.placement

    def placed(self) -> PlacedFacts | None:
        """Where experts are. None: all are on every rank."""
        return None if self._placing is None else self._placing.facts()

    # -- what the first rank does ------------------------------------------------------------------------------------

    def work(self, wanted: JobInput) -> Work:
        """Of one rank that had all heads: ranks hold less of keys and values."""
        return self._first.work(wanted)

    def phase(self, job_id: str) -> Hashable:
        """As one rank."""
        return self._first.phase(job_id)

    async def decode(self, job_id: str) -> Outputs:
        """On the first rank. Raises: EngineFailed."""
        self._check_whole()
        return await self._first.decode(job_id)

    async def preview(self, job_id: str) -> Frames:
        """On the first rank."""
        self._check_whole()
        return await self._first.preview(job_id)

    async def snapshot(self, job_id: str) -> bytes:
        """Of the first rank: latents are the same on all."""
        self._check_whole()
        return await self._first.snapshot(job_id)

    def held_bytes(self) -> int:
        """Of the first rank."""
        return self._first.held_bytes()

    # -- broken ------------------------------------------------------------------------------------------------------

    def _check_whole(self) -> None:
        if self._broken is not None:
            raise EngineFailed(f"{self._broken}; retry")

    def _break(self, reason: str, error: BaseException | None) -> EngineFailed:
        if self._broken is None:
            self._broken = reason
            if self._placing is not None:
                self._placing.handle(time.monotonic(), RankLost())
            _log.error("the engine is broken", reason=reason, exc_info=error)
        return EngineFailed(f"{self._broken}; retry")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_heard)


async def _settled(call: Any) -> Any:
    """An actor's answer, as a coroutine."""
    return await call


async def _nothing() -> None:
    """The first rank has done it."""


def _heard(task: asyncio.Future[Any]) -> None:
    """Its failure was reported elsewhere."""
    if not task.cancelled():
        task.exception()


def _shape(outcomes: Sequence[StepOutcome]) -> list[tuple[str, int]]:
    """What must be alike on all ranks."""
    return [(o.job_id, o.step) if isinstance(o, StepDone) else (o.code, -1) for o in outcomes]
