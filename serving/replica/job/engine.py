"""A family's job runner, advanced slice by slice in whatever batches the scheduler picks. Knows the contract only.

    steps thread    run_step: denoising
    side thread     admit: what is made of the request once; snapshot, preview
    decode thread   decode, off the critical path
    weights thread  fetch: experts that this rank is to have, beside steps; ``switch`` is a call of the steps thread

All that a request holds is in its ``JobState``; there is no other state but the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

import structlog

from models.contract import (
    ExpertPhases,
    Experts,
    Family,
    Figures,
    Job,
    JobState,
    LaidOut,
    Move,
    Phase,
    PlacedExperts,
    Point,
    Previews,
    Slots,
    Variant,
    Work,
)
from models.registry import family_for
from schedulers.policies.experts import Wakes
from serving.errors import EngineFailed, ServingError
from serving.refusals import refused
from serving.replica.job.base import Admitted, Frames, JobInput, Outputs, StepDone, StepOutcome
from serving.replica.job.engine_thread import EngineThread
from serving.replica.job.snapshots import restored, take_snapshot

_log = structlog.get_logger(__name__)
_FAILED = "the model failed on this request; retry, or send another one"

T = TypeVar("T")

Load: TypeAlias = Callable[[], Job]
"""Reads the weights; called once, on the thread that steps run on."""


def load_runner(family_name: str, variant: Variant, device: str, dtype: str, *, is_alone: bool = True) -> Job:
    """The runner of a variant, by plain values, which travel to other processes: none of them asks the folder again
    what it is. ``is_alone``: no other rank has a part of it.

    Raises: ValueError, OSError: no such weights.
    """
    family = family_for(family_name, variant)
    assert family.build is not None, "a family of jobs has networks"
    assert family.runner is not None, "and something that runs them"
    runner: Job = family.runner.load()(family.build.load()(variant, device, dtype=dtype), variant)
    if is_alone and isinstance(runner, LaidOut):
        runner.lay_out()
    return runner


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What runs, and how. ``stuck_after_s``: a call that takes longer makes the engine unhealthy. ``stop_grace_s``: how
    long ``stop`` waits for a running one. ``retries_alone``: a batch that raises is run again one by one; not where
    several ranks must do the same."""

    family: Family
    variant: Variant
    stuck_after_s: float = 300.0
    stop_grace_s: float = 10.0
    retries_alone: bool = True


@dataclass(slots=True)
class EngineStats:
    """Counters since the start. ``retried``: requests of a batch that failed, run again alone."""

    steps: int = 0
    batches: int = 0
    retried: int = 0
    failed: int = 0


@dataclass(slots=True, eq=False)
class _Held:
    """``step_macs``: of one step, beside those of its neighbours."""

    job_id: str
    state: JobState
    num_steps: int
    step_macs: float


def _shares(macs: Sequence[float]) -> list[float]:
    """Of a step's time: a clip in the same batch as a longer one has not taken half of it."""
    total = sum(macs)
    return [one / total if total > 0.0 else 1.0 / len(macs) for one in macs]


class JobEngine:
    """See the module."""

    def __init__(self, options: EngineOptions, load: Load) -> None:
        self._options = options
        self._load = load
        self._steps = EngineThread("vireo-job-steps")
        self._side = EngineThread("vireo-job-side")
        self._decodes = EngineThread("vireo-job-decode")
        self._weights = EngineThread("vireo-job-weights")
        self._loaded: Job | None = None
        self._experts: Experts | None = None
        self._held: dict[str, _Held] = {}
        self.stats = EngineStats()

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the weights on the engine's thread. Raises: EngineFailed."""
        try:
            self._loaded = loaded = await self._steps.call(self._load)
        except ServingError:
            raise
        except Exception as error:
            _log.exception("the model could not be loaded")
            raise EngineFailed("the model could not be loaded") from error
        self._experts = loaded if isinstance(loaded, Experts) else None

    async def stop(self) -> None:
        """End the threads and drop everything."""
        for thread in (self._steps, self._side, self._decodes, self._weights):
            await thread.stop(self._options.stop_grace_s)
        self._held.clear()
        self._loaded = self._experts = None

    def check_health(self) -> None:
        """Raises: EngineFailed: not loaded, stopped, or stuck in one call."""
        if self._loaded is None:
            raise EngineFailed("the model is not loaded; retry")
        busy_s = max(thread.busy_s for thread in (self._steps, self._side, self._decodes))
        if busy_s > self._options.stuck_after_s:
            raise EngineFailed("the model is stuck; retry")

    # -- admission ---------------------------------------------------------------------------------------------------

    def work(self, wanted: JobInput) -> Work:
        """By the family's count. Raises: ClientError."""
        family, variant = self._options.family, self._options.variant
        assert family.work is not None, "a family of jobs counts its work"
        counted: Work = family.work.load()(variant, wanted.request, self._checked(wanted))
        return counted

    def _checked(self, wanted: JobInput) -> Point:
        """The whole point. Raises: ClientError: the variant cannot do this."""
        family = self._options.family
        with refused(self._options.variant.io):
            point = family.check_point(wanted.point)
            if family.allowed is not None:
                family.allowed.load()(self._options.variant, wanted.request, point)
        return point

    async def admit(self, job_id: str, wanted: JobInput, snapshot: bytes | None = None) -> Admitted:
        """Take the request, up to its first step. Raises: ClientError, EngineFailed."""
        point = self._checked(wanted)
        started_s = time.perf_counter()
        held = await self._guarded(self._side, self._open, job_id, wanted, point, snapshot)
        self._held[job_id] = held
        text_s = time.perf_counter() - started_s
        return Admitted(step=self._step_of(held), held_bytes=held.state.bytes_held, text_s=text_s)

    def _open(self, job_id: str, wanted: JobInput, point: Point, snapshot: bytes | None) -> _Held:
        runner = self._runner
        with refused(self._options.variant.io):
            state = runner.open(wanted.request, point, wanted.seed)
        macs = self.work(wanted).units.get("macs", 0.0)
        held = _Held(job_id, state, runner.remaining(state).get("denoise", 0), macs / max(1, wanted.num_steps))
        if snapshot is not None:
            state.kept = restored(state.kept, snapshot)
            if not 0 <= self._step_of(held) <= held.num_steps:
                raise EngineFailed("the checkpoint is of another request; start it again")
        self._run_phase(state, "condition")
        return held

    def _run_phase(self, state: JobState, phase: Phase) -> None:
        """All slices of it, for one request."""
        while phase in self._runner.remaining(state):
            if self._runner.step([state])[0] is None:
                raise EngineFailed(_FAILED)

    # -- steps -------------------------------------------------------------------------------------------------------

    def phase(self, job_id: str) -> Hashable:
        """See the protocol."""
        runner, state = self._runner, self._find(job_id).state
        key = runner.group_key(state)
        return Wakes(key, runner.expert_phase(state)) if isinstance(runner, ExpertPhases) else key

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """One denoising step for each; a request that fails does not fail its batch."""
        found = [self._held.get(job_id) for job_id in job_ids]
        ready = [held for held in found if held is not None and self._step_of(held) < held.num_steps]
        outcomes = iter(await self._steps.call(self._run, ready) if ready else [])
        return [
            EngineFailed("the model has no step left for this request") if held not in ready else next(outcomes)
            for held in found
        ]

    def _run(self, batch: Sequence[_Held]) -> list[StepOutcome]:
        """On the steps thread. A batch that fails is run again one by one: the one to blame must not take its
        neighbours along."""
        started_s = time.perf_counter()
        try:
            figures = self._runner.step([held.state for held in batch])
        except Exception:
            _log.exception("a step failed", batch_size=len(batch))
            if not self._options.retries_alone:
                raise
            if len(batch) == 1:
                self.stats.failed += 1
                return [EngineFailed(_FAILED)]
            self.stats.retried += len(batch)
            return [outcome for held in batch for outcome in self._run([held])]
        compute_s = time.perf_counter() - started_s
        self.stats.batches += 1
        loads = [None] * len(batch) if self._experts is None else self._experts.take_loads()
        told = zip(batch, figures, loads, _shares([held.step_macs for held in batch]), strict=True)
        return [self._outcome(held, one, compute_s * share, sent) for held, one, sent, share in told]

    def _outcome(self, held: _Held, figures: Figures | None, compute_s: float, loads: Any) -> StepOutcome:
        if figures is None:
            self.stats.failed += 1
            return EngineFailed(_FAILED)
        self.stats.steps += 1
        return StepDone(
            job_id=held.job_id,
            step=self._step_of(held),
            compute_s=compute_s,
            held_bytes=held.state.bytes_held,
            figures=figures,
            loads=loads,
        )

    # -- what comes of it --------------------------------------------------------------------------------------------

    async def decode(self, job_id: str) -> Outputs:
        """Turn the finished state into what was asked for. Raises: EngineFailed."""
        held = self._find(job_id)
        if self._step_of(held) < held.num_steps:
            raise EngineFailed("the model has steps left for this request")
        return await self._guarded(self._decodes, self._decode, held.state)

    def _decode(self, state: JobState) -> Outputs:
        self._run_phase(state, "decode")
        return self._runner.close(state)

    async def preview(self, job_id: str) -> Frames:
        """A rough picture of the present estimate. Raises: EngineFailed: also where the model shows none."""
        runner, state = self._runner, self._find(job_id).state
        if not isinstance(runner, Previews):
            raise EngineFailed("this model shows no previews")
        return await self._guarded(self._side, runner.preview, state)

    async def snapshot(self, job_id: str) -> bytes:
        """What the state keeps, and the steps in it; its cache is made anew after a resume."""
        return await self._guarded(self._side, self._snapshot, self._find(job_id))

    def _snapshot(self, held: _Held) -> bytes:
        state = replace(held.state)  # as it is now, whatever a step that ends meanwhile puts there
        return take_snapshot(state.kept, self._step_of(replace(held, state=state)))

    def leave(self, job_id: str) -> None:
        """The request ends at its next step boundary, which is near."""

    def release(self, job_id: str) -> None:
        """Forget the request: nothing else refers to its tensors, but for a step or decode that runs."""
        self._held.pop(job_id, None)

    def holds(self, job_id: str) -> bool:
        """Whether the request is here."""
        return job_id in self._held

    @property
    def placement(self) -> None:
        """Nothing is spread."""

    def placed(self) -> None:
        """Nothing is spread."""

    def held_bytes(self) -> int:
        """Bytes of all requests."""
        return sum(held.state.bytes_held for held in list(self._held.values()))

    # -- experts on this rank ----------------------------------------------------------------------------------------

    async def fetch(self, slots: Slots, moves: Sequence[Move]) -> None:
        """Get the experts that a placement gives to this rank, beside steps. Raises: EngineFailed: nothing changed."""
        await self._guarded(self._weights, self._placed.fetch, slots, moves)

    async def switch(self) -> None:
        """That placement holds from the next step on. Raises: EngineFailed."""
        await self._guarded(self._steps, self._placed.switch)

    @property
    def _placed(self) -> PlacedExperts:
        assert isinstance(self._runner, PlacedExperts), "its load has placed them"
        return self._runner

    # -- helpers -----------------------------------------------------------------------------------------------------

    async def _guarded(self, thread: EngineThread, function: Callable[..., T], *args: object) -> T:
        """No error of a library reaches the caller as it is."""
        try:
            return await thread.call(function, *args)
        except ServingError:
            raise
        except Exception as error:
            _log.exception("a call of the model failed")
            raise EngineFailed(_FAILED) from error

    def _step_of(self, held: _Held) -> int:
        return held.num_steps - self._runner.remaining(held.state).get("denoise", 0)

    def _find(self, job_id: str) -> _Held:
        if job_id not in self._held:
            raise EngineFailed("the model does not hold this request")
        return self._held[job_id]

    @property
    def _runner(self) -> Job:
        if self._loaded is None:
            raise EngineFailed("the model is not loaded; retry")
        return self._loaded
