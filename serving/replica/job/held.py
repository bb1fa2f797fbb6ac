"""A claimed job, what this attempt has spent on it, and what the parts of a worker have in common."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import structlog

from schedulers.admission import Cost
from schedulers.cost import CostModel
from schedulers.experts.skew import LoadSkew
from serving.energy.meter import ESTIMATE
from serving.energy.replica import ReplicaEnergy
from serving.energy.spent import Spent
from serving.errors import EngineFailed, ServingError
from serving.replica.job.base import Admitted, Engine, JobInput, Outputs, StepDone, StepOutcome
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.experts import ExpertMeter
from serving.replica.job.outputs import OutputFiles
from serving.stores.jobs.base import JobRecord, Lease, Progress
from serving.stores.jobs.redis_jobs import RedisJobs
from serving.telemetry.events import Sink, ignore

_log = structlog.get_logger(__name__)
Settle: TypeAlias = Callable[[str, str, Cost, Cost], None]
"""Tenant, job, what it was charged, what it took: ``serving.stores.results.ResultStore.settle_job``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How a worker holds its jobs.

    ``lease_s``: how long a job of a dead replica stays with it. ``poll_s``: how often an
    idle worker looks for work. ``checkpoint_every``: steps between two checkpoints of states; they are further apart
    where one would be written for more than ``checkpoint_share`` of the time. ``store_patience_s``: how long a store
    that is full or away is waited for; then the attempt is over, and the job with its ``max_attempts``-th. ``ttl_s``:
    how long finished jobs are kept.
    """

    lease_s: float = 6.0
    poll_s: float = 0.2
    checkpoint_every: int = 5
    checkpoint_share: float = 0.5
    store_patience_s: float = 900.0
    max_attempts: int = 3
    preview_every_s: float = 1.0
    ttl_s: float = 24 * 3600.0
    watts: float = 6.0

    def __post_init__(self) -> None:
        positive = (self.lease_s, self.poll_s, self.checkpoint_every, self.checkpoint_share, self.ttl_s, self.watts)
        if min(positive) <= 0 or self.store_patience_s < 0:
            raise ValueError(f"every number of {self} must be positive")


@dataclass(slots=True)
class HeldJob:
    """See the module."""

    job: JobRecord
    lease: Lease
    wanted: JobInput | None = None
    admitted: Admitted | None = None
    step: int = 0
    stage: str = "text"
    queue_s: float = 0.0
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    figures: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """What the family said of the steps, added up."""
    peak_bytes: int = 0
    steps_run: int = 0
    joules: float | None = 0.0
    """Of ``compute_s``; None: the meter gave no reading for some of it."""
    preemptions: int = 0
    claimed_s: float = 0.0
    checkpoint_step: int = 0
    checkpoint_at_s: float = -math.inf
    preview_at_s: float = 0.0
    checkpointing: asyncio.Task[None] | None = None
    outputs: Outputs | None = None
    error: ServingError | None = None
    is_lost: bool = False
    is_unwanted: asyncio.Event = field(default_factory=asyncio.Event)
    """Lost, cancelled, or its worker stops: whoever waits for something need not."""
    renewing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, done: StepDone) -> None:
        """One step more."""
        self.spend(done.joules)
        self.step = done.step
        self.steps_run += 1
        self.denoise_s += done.compute_s
        self.peak_bytes = max(self.peak_bytes, done.held_bytes)
        for name, number in done.figures.items():
            self.figures[name] += number

    def spend(self, joules: float | None) -> None:
        """So many joules more."""
        self.joules = None if joules is None or self.joules is None else self.joules + joules

    @property
    def compute_s(self) -> float:
        """Engine seconds of this attempt."""
        return self.text_s + self.denoise_s + self.decode_s

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds of each stage. Figures of a family that are seconds (``search_s``) are part of ``denoise``."""
        stages_s = {"text": self.text_s, "denoise": self.denoise_s, "decode": self.decode_s, "encode": self.encode_s}
        return stages_s | {name[:-2]: total for name, total in self.figures.items() if name.endswith("_s")}

    @property
    def means(self) -> dict[str, float]:
        """The other figures, a step on average."""
        others = {name: total for name, total in self.figures.items() if not name.endswith("_s")}
        return {name: total / self.steps_run for name, total in others.items()}

    def report(self, spent: Spent, watts: float) -> dict[str, object]:
        """The ``vireo`` block, and seconds of each stage. ``watts``: of what is charged where nothing was measured."""
        return {
            "operating_point": self.job.operating_point,
            "energy_j": spent.joules,
            "energy_source": spent.source,
            "charged_j": spent.charged(watts).joules,
            "queue_ms": 1e3 * self.queue_s,
            "compute_ms": 1e3 * self.compute_s,
            "stages_s": self.stages_s,
            "steps": self.steps_run,
            "peak_bytes": self.peak_bytes,
            "resumed_at_step": self.admitted.step if self.admitted else 0,
            **self.means,
        }

    def last_progress(self) -> Progress:
        """Of a job that goes back into the queue."""
        return Progress(
            stage="queued",
            step=self.checkpoint_step,
            checkpoint_step=self.checkpoint_step,
            preemptions=self.preemptions,
        )


def _charge_as_predicted(tenant: str, job_id: str, charged: Cost, actual: Cost) -> None:
    """Leave quotas alone."""


@dataclass(frozen=True, slots=True)
class MeteredSlice:
    """A call of the engine, as the account of energy knows it. None: nobody asks, or the engine does."""

    energy: ReplicaEnergy | None
    number: int

    def over(self, held: HeldJob, told_s: float) -> None:
        """It is over, and the job is told so many busy seconds."""
        if self.energy is not None:
            self.energy.slices.leave(self.number, told_s)
            held.spend(self.energy.take(told_s))

    def told(self, outcomes: Sequence[StepOutcome]) -> list[StepOutcome]:
        """It is over: the steps with their joules."""
        if self.energy is None:
            return list(outcomes)
        self.energy.slices.leave(self.number, sum(one.compute_s for one in outcomes if isinstance(one, StepDone)))
        take = self.energy.take
        return [replace(one, joules=take(one.compute_s)) if isinstance(one, StepDone) else one for one in outcomes]


@dataclass(slots=True, kw_only=True)
class Bench:
    """What the parts of one worker share: its collaborators, and the jobs that it holds."""

    model: str
    name: str
    engine: Engine
    index: RedisJobs
    checkpoints: Checkpoints
    files: OutputFiles
    config: WorkerConfig = field(default_factory=WorkerConfig)
    tell: Sink = ignore
    settle: Settle = _charge_as_predicted
    energy: ReplicaEnergy | None = None
    engine_tells: bool = False
    """Whether the engine itself asks ``energy`` what its steps took."""
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    cost: CostModel = field(default_factory=CostModel)
    skew: LoadSkew = field(init=False)
    experts: ExpertMeter = field(init=False)
    held: dict[str, HeldJob] = field(default_factory=dict, init=False)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set, init=False)
    is_draining: bool = field(default=False, init=False)
    num_waiting_for_store: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.skew = LoadSkew(lambda: self.engine.placement)
        self.experts = ExpertMeter(self.model, self.tell)

    def slice(self) -> MeteredSlice:
        """A call of the engine begins."""
        energy = None if self.engine_tells else self.energy
        return MeteredSlice(energy, energy.slices.enter(self.clock()) if energy is not None else 0)

    def spent(self, held: HeldJob) -> Spent:
        """What this attempt at a job took."""
        source = ESTIMATE if self.energy is None else self.energy.source
        return Spent(held.compute_s, held.joules, source)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Every piece of work is kept, and none may die unheard."""
        task = asyncio.get_running_loop().create_task(_guarded(work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: work.close())  # of one that was cancelled before it began
        return task

    async def end_tasks(self) -> None:
        """Wait until nothing is under way."""
        while self.tasks:
            await asyncio.wait(set(self.tasks))

    def forget(self, held: HeldJob) -> None:
        """The job has left this worker."""
        self.held.pop(held.job.id, None)
        self.checkpoints.forget(held.job.id)
        self.engine.release(held.job.id)
        held.outputs = None


async def _guarded(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("work on a job failed; its lease will expire")


def known_error(error: Exception) -> ServingError:
    """As callers may see it."""
    if isinstance(error, ServingError):
        return error
    _log.error("engine raised", exc_info=error)
    return EngineFailed("the model failed on this request")
