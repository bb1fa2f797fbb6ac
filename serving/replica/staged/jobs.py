"""Durable jobs of a model of rows: the rows of a job wait and run beside those of calls, in one queue.

A job has one step, in which all of its rows are answered, and nothing to resume from: where its replica dies, another
begins it anew.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from models.contract import Work
from models.inputs import Array, Inputs, nbytes_of, row_of
from models.io import ImageIO
from models.registry import family_for
from schedulers.cost import CostModel
from schedulers.policies.denoising import DenoisingConfig
from serving.config import ResolvedConfig, ResolvedModel, UnaryOptions
from serving.delivery.unary.wire import RowsAsked, most_held
from serving.energy.spent import total
from serving.errors import Cancelled, EngineFailed, QueueFull
from serving.operating_points import parted
from serving.replica.driver import Answer, Driver, Stay
from serving.replica.job.base import Admitted, Frames, JobInput, Outputs, StepDone, StepOutcome
from serving.replica.job.held import known_error
from serving.replica.job.setup import JobParts, build_worker
from serving.telemetry.events import Sink
from serving.tenants import LiveTenants

_SHORTEST_RETRY_S, _LONGEST_RETRY_S = 0.05, 1.0


def build_row_jobs(
    model: ResolvedModel[UnaryOptions],
    config: ResolvedConfig,
    tenants: LiveTenants,
    name: str,
    tell: Sink,
    driver: Driver,
) -> JobParts:
    """A worker beside the driver of a model that makes pictures."""
    io, words = model.variant.io, None
    if io.takes_prompt:
        words = family_for(model.family, model.variant).part("words")(model.variant)
    bounds = DenoisingConfig(weights=tenants.weights)
    return build_worker(
        RowJobs(io, words, driver),
        model,
        config,
        tenants,
        name,
        tell,
        request=RowsAsked,
        bounds=bounds,
        cost=CostModel(watts=model.watts),
        energy=driver.energy,
    )


@dataclass(eq=False, slots=True)
class _Held:
    rows: list[Inputs]
    wanted: JobInput
    stays: list[Stay]
    outputs: Outputs | None = None


class RowJobs:
    """``serving.replica.job.base.Engine`` over a driver, which somebody else starts and stops."""

    def __init__(self, io: ImageIO, words: Callable[[str], Array] | None, driver: Driver) -> None:
        self._io = io
        self._words = words
        self._driver = driver
        self._held: dict[str, _Held] = {}

    async def start(self) -> None:
        """Nothing to do."""

    async def stop(self) -> None:
        """Nothing to do."""

    def check_health(self) -> None:
        """The driver's is looked at by itself."""

    def work(self, wanted: JobInput) -> Work:
        """Only what they hold: the driver counts what its rows take."""
        return Work({}, most_held(self._io, wanted.request.count))

    def phase(self, job_id: str) -> Hashable:
        """All may run together: the driver's scheduler makes the batches."""
        return ()

    async def admit(self, job_id: str, wanted: JobInput, snapshot: bytes | None = None) -> Admitted:
        """Make rows of the request."""
        rows = await asyncio.to_thread(self._rows, wanted)
        self._held[job_id] = held = _Held(rows, wanted, [Stay() for _ in rows])
        return Admitted(step=0, held_bytes=_nbytes(held), text_s=0.0)

    def _rows(self, wanted: JobInput) -> list[Inputs]:
        asked: RowsAsked = wanted.request
        picture = np.asarray(Image.open(BytesIO(asked.picture))) if self._io.takes_picture else None
        words = self._words(asked.prompt) if self._words is not None else None
        seeds = range(wanted.seed, wanted.seed + asked.count) if self._io.is_seeded else [None] * asked.count
        return [row_of(picture, words, seed) for seed in seeds]

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """Answer the rows of each."""
        return await asyncio.gather(*map(self._run, job_ids))

    async def _run(self, job_id: str) -> StepOutcome:
        held = self._find(job_id)
        rows = zip(held.rows, held.stays, strict=True)
        answers = await asyncio.gather(*(self._answer(held.wanted, *row) for row in rows), return_exceptions=True)
        took = total(map(self._driver.spent, held.stays))
        done = StepDone(job_id=job_id, step=1, compute_s=took.seconds, joules=took.joules)
        for answer in answers:
            if isinstance(answer, Cancelled):  # it has ended, and is charged for what it took
                return done
            if isinstance(answer, Exception):
                return known_error(answer)
        outputs = [answer.outputs for answer in answers if isinstance(answer, Answer)]
        held.outputs = {name: np.stack([each[name] for each in outputs]) for name in outputs[0]}
        return done

    async def _answer(self, wanted: JobInput, row: Inputs, stay: Stay) -> Answer:
        """A full queue is waited for: the job has been taken in."""
        thresholds, settings = parted(wanted.point, self._io.num_exits)
        while True:
            try:
                return await self._driver.submit(
                    row,
                    deadline_s=math.inf,
                    thresholds=thresholds,
                    settings=settings,
                    priority=wanted.priority,
                    tenant=wanted.tenant,
                    stay=stay,
                )
            except QueueFull as error:
                await asyncio.sleep(min(max(error.retry_after_s or 0.0, _SHORTEST_RETRY_S), _LONGEST_RETRY_S))

    async def decode(self, job_id: str) -> Outputs:
        """What the step gave."""
        outputs = self._find(job_id).outputs
        if outputs is None:
            raise EngineFailed("the model has not answered this request")
        return outputs

    async def preview(self, job_id: str) -> Frames:
        """Raises: EngineFailed."""
        raise EngineFailed("this model shows no previews")

    async def snapshot(self, job_id: str) -> bytes:
        """Raises: EngineFailed."""
        raise EngineFailed("there is nothing to go on from: this model answers at once")

    def leave(self, job_id: str) -> None:
        """Take its rows out of the queue, or out of the batch at its next stage."""
        if job_id in self._held:
            for stay in self._held[job_id].stays:
                stay.leave()

    def release(self, job_id: str) -> None:
        """Forget it."""
        self._held.pop(job_id, None)

    @property
    def placement(self) -> None:
        """Nothing is spread."""

    def placed(self) -> None:
        """Nothing is spread."""

    def held_bytes(self) -> int:
        """Of rows and outputs."""
        return sum(map(_nbytes, self._held.values()))

    def _find(self, job_id: str) -> _Held:
        if job_id not in self._held:
            raise EngineFailed("the model does not hold this request")
        return self._held[job_id]


def _nbytes(held: _Held) -> int:
    return sum(map(nbytes_of, held.rows)) + (0 if held.outputs is None else nbytes_of(held.outputs))
