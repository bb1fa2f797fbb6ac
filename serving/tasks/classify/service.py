"""One classify request behind the front door, in the order of docs/architecture.md.

decode -> pick an operating point -> look up and reserve (one Redis round trip) -> dispatch the misses -> settle
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from schedulers.operating_points import Budget as PointBudget
from schedulers.operating_points import Choice, OperatingPointTable, choose
from schedulers.types import Priority as SchedulerPriority
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
    DeadlineExceeded,
    DeadlineUnreachable,
    InvalidRequest,
    QueueFull,
    ServingError,
    TooManyImages,
    UnknownModel,
)
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.service import ModelCard
from serving.stores.results import ResultStore, StoredResult
from serving.telemetry.events import ClassifyAnswered, Sink, ignore

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
    table: OperatingPointTable
    dispatcher: Dispatcher


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds of one gateway replica."""

    max_images: int
    max_in_flight: int
    default_deadline_s: float


class ClassifyService:
    """Implements ``serving.service.ClassifierService``."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        media: MediaPool,
        results: ResultStore,
        limits: ServiceLimits,
        clock: Callable[[], float] = time.monotonic,
        tell: Sink = ignore,
    ) -> None:
        self._models = models
        self._media = media
        self._results = results
        self._limits = limits
        self._clock = clock
        self._tell = tell
        self._in_flight = 0

    def models(self) -> tuple[ModelCard, ...]:
        """The models served here."""
        return tuple(model.card for model in self._models.values())

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        return self._in_flight < self._limits.max_in_flight

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """See ``Service.classify``. When every image fails, the call fails with the first one's error."""
        model = self._check(request)
        self._results.check_account(request.tenant)
        if self._in_flight >= self._limits.max_in_flight:
            wait_s = max(0.05, model.dispatcher.predicted_wait_s())
            raise QueueFull(
                f"this gateway serves {self._in_flight} requests; limit is {self._limits.max_in_flight}; "
                f"retry in {wait_s:.2f} s",
                retry_after_s=wait_s,
            )
        self._in_flight += 1
        try:
            return await self._within_deadline(model, request)
        finally:
            self._in_flight -= 1

    def _check(self, request: ClassifyRequest) -> ServedModel:
        model = self._models.get(request.model)
        if model is None:
            known = ", ".join(self._models)
            raise UnknownModel(
                f"model {request.model[:100]!r} is not served here; choose one of: {known}", param="model"
            )
        if not request.images:
            raise InvalidRequest("the request has no image; send at least one", param="images")
        if len(request.images) > self._limits.max_images:
            raise TooManyImages(
                f"the request has {len(request.images)} images; limit is {self._limits.max_images}; split it",
                param="images",
            )
        if request.top_k > model.card.num_classes:
            raise InvalidRequest(
                f"top_k is {request.top_k}; {request.model} has {model.card.num_classes} classes; ask for fewer",
                param="top_k",
            )
        return model

    async def _within_deadline(self, model: ServedModel, request: ClassifyRequest) -> ClassifyReply:
        deadline_s = self._deadline_s(request)
        try:
            async with asyncio.timeout(max(0.0, deadline_s + _DEADLINE_GRACE_S - self._clock())):
                return await self._answer(model, request, deadline_s)
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed before an answer existed; allow more latency_ms, or retry later"
            ) from None

    def _deadline_s(self, request: ClassifyRequest) -> float:
        now_s = self._clock()
        allowed_s = self._limits.default_deadline_s
        if request.budget.latency_ms is not None:
            allowed_s = min(allowed_s, request.budget.latency_ms / 1e3)
        return min(now_s + allowed_s, request.deadline_s or float("inf"))

    async def _answer(self, model: ServedModel, request: ClassifyRequest, deadline_s: float) -> ClassifyReply:
        prepared = await self._prepare(request)
        good = [image for image in prepared if isinstance(image, PreparedImage)]
        if not good:
            raise next(error for error in prepared if isinstance(error, ServingError))
        choice = self._choose(model, request.budget, len(good), deadline_s)
        outcomes = await self._run(model, request, choice, good, deadline_s)
        reply = _reply(model, request, choice, prepared, outcomes)
        self._tell(ClassifyAnswered(model.card.id, request.tenant, reply.report, choice.degraded))
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

    def _choose(self, model: ServedModel, budget: Budget, num_images: int, deadline_s: float) -> Choice:
        wanted = PointBudget(
            latency_s=None if budget.latency_ms is None else max(0.0, deadline_s - self._clock()),
            energy_j=None if budget.energy_j is None else budget.energy_j / num_images,
            quality_floor=budget.quality_floor,
        )
        choice = choose(model.table, wanted, model.dispatcher.predicted_wait_s())
        if isinstance(choice, Choice):
            return choice
        if choice.retry_after_s is not None:  # it is the queue, not the request, that is too long
            raise DeadlineUnreachable(
                f"{choice.message}, or retry in {choice.retry_after_s:.2f} s",
                param="vireo",
                retry_after_s=choice.retry_after_s,
            )
        raise BudgetInfeasible(choice.message, param="vireo")

    # -- results ---------------------------------------------------------------------------------------------------

    async def _run(
        self,
        model: ServedModel,
        request: ClassifyRequest,
        choice: Choice,
        images: list[PreparedImage],
        deadline_s: float,
    ) -> list[StoredResult | SampleOutcome]:
        # Name and thresholds: the same name means something else after the next calibration.
        point = f"{choice.point.name}{choice.point.thresholds}"
        keys = [self._results.key(request.tenant, model.card, point, image.content_sha256) for image in images]
        lookup = await self._results.look_up(keys, request.tenant, choice.predicted_j, choice.predicted_work_s)
        misses = [index for index, found in enumerate(lookup.found) if found is None]
        outcomes: list[StoredResult | SampleOutcome | None] = list(lookup.found)
        fresh: list[SampleOutcome] = []
        if misses:
            samples = [self._sample(images[index], request, choice, deadline_s) for index in misses]
            settle = partial(self._results.settle, lookup, model.table.watts)
            fresh = await model.dispatcher.run(samples, choice.predicted_work_s * len(samples), settle)
        for index, outcome in zip(misses, fresh, strict=True):
            outcomes[index] = outcome
            if isinstance(outcome, SampleAnswer) and not outcome.degraded:
                self._results.put(keys[index], outcome)
        return [outcome for outcome in outcomes if outcome is not None]

    def _sample(self, image: PreparedImage, request: ClassifyRequest, choice: Choice, deadline_s: float) -> SampleCall:
        return SampleCall(
            pixels=image.pixels,
            remaining_s=deadline_s - self._clock(),
            thresholds=choice.point.thresholds,
            priority=_PRIORITIES[request.budget.priority],
            tenant=request.tenant,
        )


def _reply(
    model: ServedModel,
    request: ClassifyRequest,
    choice: Choice,
    prepared: Sequence[PreparedImage | ServingError],
    outcomes: list[StoredResult | SampleOutcome],
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
    model: ServedModel, request: ClassifyRequest, choice: Choice, outcomes: list[StoredResult | SampleOutcome]
) -> Report:
    fresh = [outcome for outcome in outcomes if isinstance(outcome, SampleAnswer)]
    hits = sum(isinstance(outcome, StoredResult) for outcome in outcomes)
    compute_s = sum(answer.compute_s for answer in fresh)
    degraded = (
        request.budget.degraded + choice.degraded + (("exit",) if any(answer.degraded for answer in fresh) else ())
    )
    return Report(
        operating_point=choice.point.name,
        energy_j=compute_s * model.table.watts,
        energy_source="estimate",
        queue_ms=max((answer.queue_s for answer in fresh), default=0.0) * 1e3,
        compute_ms=compute_s * 1e3,
        cache="hit" if hits == len(outcomes) else "partial" if hits else "miss",
        degraded=degraded,
    )
