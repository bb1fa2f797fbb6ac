"""Which jobs of a video replica take the next denoising step: one machine for one engine, pure and without a clock.

At every step boundary the job that is due first leads (``schedulers.video_urgency``), and jobs of equal phase join it,
most urgent first, as long as that does not make the leader late. A job that had run and does not go on was preempted:
it keeps its state and waits. Decodes run beside the steps, one at a time. Urgency counts from arrival and never
changes, so jobs do not take turns and nothing waits for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from schedulers.types import Drain, Tick
from schedulers.video_cost import StepCost, StepPart
from schedulers.video_types import (
    Decode,
    Decoded,
    Fail,
    Finish,
    GiveBack,
    JobArrived,
    JobCancelled,
    Preempted,
    Release,
    RunStep,
    StepFinished,
    VideoDecision,
    VideoEvent,
)
from schedulers.video_urgency import queue_key


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPolicyConfig:
    """Bounds of one replica.

    ``max_batch``: jobs in one step. ``max_jobs``: jobs here, those being decoded included. ``max_held_bytes``: of the
    jobs here together, and so of a batch; a job alone may be larger.

    Raises: ValueError: one is below 1.
    """

    max_batch: int = 4
    max_jobs: int = 8
    max_held_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_jobs", "max_held_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; need at least 1")


class Place(Enum):
    """Where a job is. Every live job is in one place."""

    WAITING = "waiting"
    RUNNING = "running"
    DENOISED = "denoised"
    """Waits for its decode."""
    DECODING = "decoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCounts:
    """Where the jobs are: ``arrived`` equals the sum of the others, always."""

    arrived: int
    waiting: int
    running: int
    denoised: int
    decoding: int
    finished: int
    failed: int
    released: int
    given_back: int


class _Job:
    """One live job. Mutated by its scheduler only."""

    __slots__ = ("arrival", "has_run", "is_cancelled", "order", "phase", "place", "steps_left")

    def __init__(self, arrival: JobArrived) -> None:
        self.arrival = arrival
        self.phase = arrival.phase
        self.steps_left = arrival.steps_left
        self.place = Place.WAITING
        self.is_cancelled = False
        #: Was in the batch that ended last.
        self.has_run = False
        #: Smallest first; unique.
        self.order = (0.0, 0)

    @property
    def part(self) -> StepPart:
        """For the cost of a step."""
        return StepPart(tokens=self.arrival.tokens, seconds=self.arrival.seconds_per_step)


class VideoScheduler:
    """The state machine of one replica; see ``schedulers.video_types``."""

    def __init__(self, config: VideoPolicyConfig, cost: StepCost | None = None) -> None:
        self._config = config
        self._cost = cost or StepCost()
        self._now_s = -math.inf
        self._is_draining = False
        self._jobs: dict[str, _Job] = {}
        self._batch: RunStep | None = None
        self._batch_ends_s = 0.0
        self._decode_ends_s = 0.0
        self._next_batch_id = 0
        #: Decisions of the current call; kept over an exception, so that none is lost.
        self._out: list[VideoDecision] = []
        self._num_arrived = 0
        self._num_ended: dict[type, int] = {Finish: 0, Fail: 0, Release: 0, GiveBack: 0}

    # -- public ------------------------------------------------------------------------------------------------------

    def handle(self, now_s: float, *events: VideoEvent) -> list[VideoDecision]:
        """Take what happened up to ``now_s`` and say what to do, in order.

        Raises:
            ValueError: the caller broke the contract. Events before the offending one took effect, and their decisions
                come with the next call; the offending event and those after it did not.
        """
        if not self._now_s <= now_s < math.inf:
            raise ValueError(f"now_s is {now_s} after {self._now_s}; time must be finite and not run backwards")
        self._now_s = now_s
        for event in events:
            self._take(event)
        self._start_decode()
        self._start_step()
        decisions, self._out = self._out, []
        return decisions

    def room(self) -> int:
        """How many jobs more may be claimed: by number, and by the bytes that the largest job here holds."""
        if self._is_draining:
            return 0
        room = self._config.max_jobs - len(self._jobs)
        held = [job.arrival.held_bytes for job in self._jobs.values()]
        if held and max(held) > 0:
            room = min(room, (self._config.max_held_bytes - sum(held)) // max(held))
        return max(0, room)

    def remaining_s(self, job_id: str) -> float:
        """Engine seconds that a job needs still, alone, its decode included; 0 for one that is over or unknown."""
        job = self._jobs.get(job_id)
        return self._work_s(job) if job is not None else 0.0

    def queued_s(self, now_s: float) -> float:
        """Predicted seconds until everything here is done."""
        running = [job.part for job in self._in(Place.RUNNING)]
        step_s = self._cost.seconds(running)
        share = step_s / alone_s if (alone_s := self._alone_s(running)) > 0.0 else 1.0
        steps = (job for job in self._jobs.values() if job.place in (Place.WAITING, Place.RUNNING))
        total_s = math.fsum(self._denoise_s(job) * (share if job.place is Place.RUNNING else 1.0) for job in steps)
        if self._batch is not None:  # a part of this step is over
            total_s -= min(step_s, max(0.0, step_s - (self._batch_ends_s - now_s)))
        decodes = sum(job.place is Place.DENOISED for job in self._jobs.values())
        decoding_s = max(0.0, self._decode_ends_s - now_s) if self._in(Place.DECODING) else 0.0
        last_s = self._cost.decode_s if total_s > 0.0 else 0.0
        return max(max(0.0, total_s) + last_s, decoding_s + decodes * self._cost.decode_s)

    def next_wakeup_s(self) -> float | None:
        """When a ``Tick`` would change something: never, since nothing but events changes what is next."""
        return None

    @property
    def is_drained(self) -> bool:
        """True once a ``Drain`` was seen and no job is left."""
        return self._is_draining and not self._jobs

    def counts(self) -> VideoCounts:
        """Where all jobs so far are."""
        place = dict.fromkeys(Place, 0)
        for job in self._jobs.values():
            place[job.place] += 1
        return VideoCounts(
            arrived=self._num_arrived,
            waiting=place[Place.WAITING],
            running=place[Place.RUNNING],
            denoised=place[Place.DENOISED],
            decoding=place[Place.DECODING],
            finished=self._num_ended[Finish],
            failed=self._num_ended[Fail],
            released=self._num_ended[Release],
            given_back=self._num_ended[GiveBack],
        )

    def check_invariants(self) -> None:
        """Raise AssertionError, with the numbers, if a job was lost or doubled, or a bound is broken."""
        counts = self.counts()
        here = counts.waiting + counts.running + counts.denoised + counts.decoding
        ended = counts.finished + counts.failed + counts.released + counts.given_back
        if counts.arrived != here + ended or here != len(self._jobs):
            raise AssertionError(f"arrived != here + ended, with {len(self._jobs)} live jobs: {counts}")
        running = {job.arrival.job_id for job in self._in(Place.RUNNING)}
        batch = self._batch.job_ids if self._batch is not None else ()
        if len(set(batch)) != len(batch) or set(batch) != running or len(batch) > self._config.max_batch:
            raise AssertionError(f"batch is {batch}, running are {sorted(running)}: {counts}")
        if counts.decoding > 1:
            raise AssertionError(f"more than one decode at a time: {counts}")
        if len(batch) > 1 and sum(self._jobs[i].arrival.held_bytes for i in batch) > self._config.max_held_bytes:
            raise AssertionError(f"batch {batch} holds more than {self._config.max_held_bytes} bytes")

    # -- events ------------------------------------------------------------------------------------------------------

    def _take(self, event: VideoEvent) -> None:
        match event:
            case JobArrived():
                self._arrive(event)
            case StepFinished():
                self._finish_step(event)
            case Decoded():
                self._finish_decode(event)
            case JobCancelled(job_id=job_id):
                self._cancel(job_id)
            case Drain():
                self._drain()
            case Tick():
                pass

    def _arrive(self, event: JobArrived) -> None:
        if event.job_id in self._jobs:
            raise ValueError(f"job {event.job_id} is here already; give each job an id of its own")
        self._num_arrived += 1
        job = self._jobs[event.job_id] = _Job(event)
        key = queue_key(event.priority, self._now_s, event.deadline_s, self._work_s(job))
        job.order = (key, self._num_arrived)
        if self._is_draining:
            self._end(job, GiveBack(job_id=event.job_id))
        else:
            self._place_next(job)

    def _finish_step(self, event: StepFinished) -> None:
        batch = self._batch
        if batch is None or batch.batch_id != event.batch_id:
            raise ValueError(f"batch {event.batch_id} is not running; that is {batch}")
        results = {result.job_id: result for result in event.results}
        if results.keys() != set(batch.job_ids) or len(results) != len(event.results):
            raise ValueError(f"results are of {sorted(results)}; batch {batch.batch_id} is {batch.job_ids}")
        jobs = [self._jobs[job_id] for job_id in batch.job_ids]
        if not any(result.failed for result in event.results):
            self._cost.observe([job.part for job in jobs], event.elapsed_s)
        self._batch = None
        for job in jobs:
            result = results[job.arrival.job_id]
            job.phase, job.has_run = result.phase, True
            if result.failed:
                self._end(job, Fail(job_id=result.job_id))
                continue
            job.steps_left -= 1
            self._place_next(job)

    def _place_next(self, job: _Job) -> None:
        """After arrival, and at a step boundary."""
        job_id = job.arrival.job_id
        if job.is_cancelled:
            self._end(job, Release(job_id=job_id))
        elif job.steps_left == 0:
            job.place = Place.DENOISED
        elif self._is_draining:
            self._end(job, GiveBack(job_id=job_id))
        else:
            job.place = Place.WAITING

    def _finish_decode(self, event: Decoded) -> None:
        job = self._jobs.get(event.job_id)
        if job is None or job.place is not Place.DECODING:
            raise ValueError(f"job {event.job_id} is not being decoded")
        if job.is_cancelled:
            self._end(job, Release(job_id=event.job_id))
        elif event.failed:
            self._end(job, Fail(job_id=event.job_id))
        else:
            self._cost.observe_decode(event.elapsed_s)
            self._end(job, Finish(job_id=event.job_id))

    def _cancel(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return  # it has its terminal decision
        job.is_cancelled = True
        if job.place in (Place.WAITING, Place.DENOISED):
            self._end(job, Release(job_id=job_id))

    def _drain(self) -> None:
        self._is_draining = True
        for job in list(self._in(Place.WAITING)):
            self._end(job, GiveBack(job_id=job.arrival.job_id))

    def _end(self, job: _Job, decision: Finish | Fail | Release | GiveBack) -> None:
        """The one place where a job ends."""
        del self._jobs[job.arrival.job_id]
        self._num_ended[type(decision)] += 1
        self._out.append(decision)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _start_decode(self) -> None:
        denoised = self._in(Place.DENOISED)
        if not denoised or self._in(Place.DECODING):
            return
        job = min(denoised, key=lambda job: job.order)
        job.place = Place.DECODING
        self._decode_ends_s = self._now_s + self._cost.decode_s
        self._out.append(Decode(job_id=job.arrival.job_id))

    def _start_step(self) -> None:
        waiting = self._in(Place.WAITING)
        if self._batch is not None or not waiting:
            return
        batch = self._choose(sorted(waiting, key=lambda job: job.order))
        for job in waiting:
            if job.has_run and job not in batch:
                self._out.append(Preempted(job_id=job.arrival.job_id))
            job.has_run = False
        for job in batch:
            job.place = Place.RUNNING
        self._batch = RunStep(batch_id=self._next_batch_id, job_ids=tuple(job.arrival.job_id for job in batch))
        self._batch_ends_s = self._now_s + self._cost.seconds([job.part for job in batch])
        self._next_batch_id += 1
        self._out.append(self._batch)

    def _choose(self, ordered: list[_Job]) -> list[_Job]:
        """The most urgent job, and those that may join it."""
        leader, *others = ordered
        batch, held_bytes = [leader], leader.arrival.held_bytes
        if leader.phase is None:
            return batch
        for job in others:
            if len(batch) == self._config.max_batch:
                break
            fits = held_bytes + job.arrival.held_bytes <= self._config.max_held_bytes
            if fits and job.phase == leader.phase and not self._makes_late(leader, [*batch, job]):
                batch.append(job)
                held_bytes += job.arrival.held_bytes
        return batch

    def _makes_late(self, leader: _Job, batch: list[_Job]) -> bool:
        """Whether the leader would keep its deadline alone and not in this batch."""
        deadline_s = leader.arrival.deadline_s
        alone_ends_s = self._now_s + self._work_s(leader)
        if not alone_ends_s <= deadline_s < math.inf:
            return False
        step_s = self._cost.seconds([job.part for job in batch])
        return self._now_s + leader.steps_left * step_s + self._cost.decode_s > deadline_s

    # -- small things ------------------------------------------------------------------------------------------------

    def _denoise_s(self, job: _Job) -> float:
        return job.steps_left * self._cost.seconds([job.part])

    def _work_s(self, job: _Job) -> float:
        return self._denoise_s(job) + self._cost.decode_s

    def _alone_s(self, parts: Iterable[StepPart]) -> float:
        return math.fsum(self._cost.seconds([part]) for part in parts)

    def _in(self, place: Place) -> list[_Job]:
        return [job for job in self._jobs.values() if job.place is place]
