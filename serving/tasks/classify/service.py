"""One classify request behind the front door, in the order of docs/architecture.md.

decode -> pick an operating point -> fetch (serving.delivery.pipeline): look up and reserve, dispatch the misses, settle
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from models.operating_points import point_name
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Plan, plan, with_settings
from schedulers.types import Priority as SchedulerPriority
from serving.delivery.pipeline import Fetch, Pipeline, served
from serving.delivery.unary.dispatch import Dispatcher
from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleFailure, SampleOutcome
from serving.domain import (
    RANKS,
    Budget,
    Classification,
    ClassifyReply,
    ClassifyRequest,
    ImageInput,
    LabelScore,
    Priority,
    Report,
)
from serving.errors import (
    BudgetInfeasible,
    DeadlineUnreachable,
    InvalidRequest,
    ServingError,
    TooManyImages,
)
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.operating_points import Points, parted
from serving.replica.staged.base import Probabilities
from serving.service import ModelCard
from serving.stores.results import Codec, Reservation
from serving.stores.sealed import ResultKey
from serving.telemetry.events import ClassifyAnswered
from serving.telemetry.tracing import span, traceparent

_PRIORITIES = {
    Priority.LOW: SchedulerPriority.LOW,
    Priority.NORMAL: SchedulerPriority.NORMAL,
    Priority.HIGH: SchedulerPriority.HIGH,
}
_DEADLINE_GRACE_S = 0.25
"""A replica answers or refuses by the deadline; this much later the gateway stops waiting for it."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and the way to it."""

    card: ModelCard
    label: Callable[[int], str]
    points: Points
    dispatcher: Dispatcher


class StoredResult(NamedTuple):
    """A cached answer: float32 probabilities, little-endian, one per class, and the exit (from 0) that gave them."""

    probabilities: bytes
    exit_index: int

    def as_array(self) -> Probabilities:
        """The probabilities, shape (num_classes,)."""
        return np.frombuffer(self.probabilities, dtype="<f4")


def _decode(payload: dict[str, Any]) -> StoredResult | None:
    match payload:
        case {"probabilities": bytes(probabilities), "exit_index": int(exit_index)}:
            return StoredResult(probabilities, exit_index)
    return None


CODEC: Codec[StoredResult] = Codec(StoredResult._asdict, _decode)


class ClassifyService:
    """Implements ``serving.service.ClassifierService``."""

    def __init__(
        self, models: Mapping[str, ServedModel], media: MediaPool, pipeline: Pipeline, *, max_images: int
    ) -> None:
        self._models = models
        self._media = media
        self._pipeline = pipeline
        self._max_images = max_images

    def models(self) -> tuple[ModelCard, ...]:
        """The models served here."""
        return tuple(model.card for model in self._models.values())

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        return self._pipeline.has_room

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """See ``Service.classify``. When every image fails, the call fails with the first one's error."""
        model = served(self._models, request.model, "does not classify")
        self._check(model, request)
        with self._pipeline.admitted(request.tenant, model.dispatcher.predicted_wait_s):
            deadline_s = self._pipeline.deadline_s(request.budget, request.deadline_s)
            answer = self._answer(model, request, deadline_s)
            return await self._pipeline.in_time(deadline_s + _DEADLINE_GRACE_S, answer, "an answer existed")

    def _check(self, model: ServedModel, request: ClassifyRequest) -> None:
        if not request.images:
            raise InvalidRequest("the request has no image; send at least one", param="images")
        if len(request.images) > self._max_images:
            raise TooManyImages(
                f"the request has {len(request.images)} images; limit is {self._max_images}; split it",
                param="images",
            )
        if request.top_k > model.card.num_classes:
            raise InvalidRequest(
                f"top_k is {request.top_k}; {request.model} has {model.card.num_classes} classes; ask for fewer",
                param="top_k",
            )

    async def _answer(self, model: ServedModel, request: ClassifyRequest, deadline_s: float) -> ClassifyReply:
        with span("media"):
            prepared = await self._prepare(request)
        good = [image for image in prepared if isinstance(image, PreparedImage)]
        if not good:
            raise next(error for error in prepared if isinstance(error, ServingError))
        with span("plan"):
            choice = self._choose(model, request.budget, len(good), deadline_s)
        outcomes = await self._pipeline.fetch(self._wanted(model, request, choice, good, deadline_s))
        reply = _reply(model, request, choice, prepared, outcomes)
        self._pipeline.tell(ClassifyAnswered(model.card.id, request.tenant, reply.report, choice.degraded))
        return reply

    # -- decode ----------------------------------------------------------------------------------------------------

    async def _prepare(self, request: ClassifyRequest) -> Sequence[PreparedImage | ServingError]:
        budget = MediaBudget(self._media.limits)
        caller = Caller(request.tenant, RANKS[request.budget.priority])
        if len(request.images) == 1:
            return [await self._prepare_one(request.images[0], request.model, budget, caller)]
        prepare = (self._prepare_one(image, request.model, budget, caller) for image in request.images)
        return await asyncio.gather(*prepare)

    async def _prepare_one(
        self, image: ImageInput, model: str, budget: MediaBudget, caller: Caller
    ) -> PreparedImage | ServingError:
        if image.error is not None:
            return image.error
        try:
            if image.pixels is not None:
                return await self._media.prepare_pixels(image.pixels, model, budget, caller)
            return await self._media.prepare(image.encoded or b"", model, budget, caller)
        except ServingError as error:
            return error

    # -- operating point -------------------------------------------------------------------------------------------

    def _choose(self, model: ServedModel, budget: Budget, num_images: int, deadline_s: float) -> Plan:
        wanted = PointBudget(
            latency_s=None if budget.latency_ms is None else max(0.0, deadline_s - self._pipeline.clock()),
            energy_j=None if budget.energy_j is None else budget.energy_j / num_images,
            quality_floor=budget.quality_floor,
        )
        points, work = model.points.points, model.points.work
        if budget.settings:
            points = with_settings(points, budget.settings, work, point_name)
        made = plan(points, work, wanted, model.dispatcher.predicted_wait_s())
        if isinstance(made, Plan):
            return made
        if made.retry_after_s is not None:  # it is the queue, not the request, that is too long
            raise DeadlineUnreachable(
                f"{made.message}, or retry in {made.retry_after_s:.2f} s",
                param="vireo",
                retry_after_s=made.retry_after_s,
            )
        is_known = model.points.is_calibrated
        unknown = "" if is_known else f"; {model.card.id} is not calibrated, so its accuracy is not known"
        raise BudgetInfeasible(f"{made.message}{unknown}", param="vireo")

    # -- results ---------------------------------------------------------------------------------------------------

    def _wanted(
        self,
        model: ServedModel,
        request: ClassifyRequest,
        choice: Plan,
        images: list[PreparedImage],
        deadline_s: float,
    ) -> Fetch[StoredResult, SampleOutcome]:
        async def run(places: Sequence[int], reservation: Reservation) -> list[SampleOutcome]:
            def settle(outcomes: Sequence[SampleOutcome]) -> None:
                seconds = sum(outcome.compute_s for outcome in outcomes)
                reservation.settle(seconds * model.points.watts, seconds)

            samples = [self._sample(model, images[place], request, choice, deadline_s) for place in places]
            return await model.dispatcher.run(samples, choice.busy_s * len(samples), settle)

        name = self._pipeline.results.name
        return Fetch(
            model=model.card.id,
            tenant=request.tenant,
            names=[name(_key(model, request, choice, image)) for image in images],
            codec=CODEC,
            joules=choice.energy_j,
            seconds=choice.busy_s,
            urgency=(RANKS[request.budget.priority], deadline_s),
            run=run,
            kept=_kept,
        )

    def _sample(
        self, model: ServedModel, image: PreparedImage, request: ClassifyRequest, choice: Plan, deadline_s: float
    ) -> SampleCall:
        thresholds, others = parted(choice.point.settings, model.card.num_exits)
        return SampleCall(
            pixels=image.pixels,
            remaining_s=deadline_s - self._pipeline.clock(),
            thresholds=thresholds,
            priority=_PRIORITIES[request.budget.priority],
            tenant=request.tenant,
            settings=others or None,
            traceparent=traceparent(),
        )


def _key(model: ServedModel, request: ClassifyRequest, choice: Plan, image: PreparedImage) -> ResultKey:
    return ResultKey(
        tenant=request.tenant,
        model=model.card.id,
        checkpoint_sha256=model.card.checkpoint_sha256,
        operating_point=choice.point.name,
        processor_version=model.card.prepare_version,
        content_sha256=image.content_sha256,
    )


def _kept(outcome: SampleOutcome) -> StoredResult | None:
    if isinstance(outcome, SampleFailure) or outcome.degraded:
        return None
    return StoredResult(outcome.probabilities, outcome.exit_index)


def _reply(
    model: ServedModel,
    request: ClassifyRequest,
    choice: Plan,
    prepared: Sequence[PreparedImage | ServingError],
    outcomes: Sequence[StoredResult | SampleOutcome],
) -> ClassifyReply:
    remaining = (outcome.error if isinstance(outcome, SampleFailure) else outcome for outcome in outcomes)
    per_image = [image if isinstance(image, ServingError) else next(remaining) for image in prepared]
    if all(isinstance(outcome, ServingError) for outcome in per_image):
        raise next(outcome for outcome in per_image if isinstance(outcome, ServingError))
    items = tuple(
        outcome if isinstance(outcome, ServingError) else _classification(model, outcome, request.top_k)
        for outcome in per_image
    )
    return ClassifyReply(model=request.model, items=items, report=_report(model, request, choice, outcomes))


def _classification(model: ServedModel, result: StoredResult | SampleAnswer, top_k: int) -> Classification:
    probabilities = result.as_array()
    best = np.array([probabilities.argmax()]) if top_k == 1 else np.argsort(-probabilities, kind="stable")[:top_k]
    return Classification(
        exit=result.exit_index + 1,
        top_k=tuple(LabelScore(model.label(int(index)), float(probabilities[index])) for index in best),
        degraded=isinstance(result, SampleAnswer) and result.degraded,
    )


def _report(
    model: ServedModel, request: ClassifyRequest, choice: Plan, outcomes: Sequence[StoredResult | SampleOutcome]
) -> Report:
    fresh = [outcome for outcome in outcomes if isinstance(outcome, SampleAnswer)]
    hits = sum(isinstance(outcome, StoredResult) for outcome in outcomes)
    compute_s = sum(answer.compute_s for answer in fresh)
    degraded = (
        request.budget.degraded + choice.degraded + (("exit",) if any(answer.degraded for answer in fresh) else ())
    )
    return Report.estimated(
        operating_point=choice.point.name,
        watts=model.points.watts,
        queue_s=max((answer.queue_s for answer in fresh), default=0.0),
        compute_s=compute_s,
        cache="hit" if hits == len(outcomes) else "partial" if hits else "miss",
        degraded=degraded,
    )
