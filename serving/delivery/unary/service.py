"""One unary request behind the front door, whatever its task, in the order of docs/architecture.md.

prepare the rows -> pick an operating point -> fetch (serving.delivery.pipeline): look up and reserve, dispatch the
misses, settle
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from types import MappingProxyType
from typing import Any, NamedTuple

from PIL import Image

from models.inputs import Array, Inputs, row_of
from models.io import ImageIO, ImageRequest, RowIO
from schedulers.admission import NOTHING, Cost
from schedulers.charge import Charge
from schedulers.cost import Units
from schedulers.overrun import Overrun
from schedulers.plan import Load, Plan, Point, Settings
from serving.bending import degradation_of
from serving.delivery.job.base import JobPlan
from serving.delivery.pipeline import PRIORITIES, Fetch, Pipeline, served
from serving.delivery.unary.deep import CURBED, DeepRows
from serving.delivery.unary.dispatch import Dispatcher
from serving.delivery.unary.wire import (
    Packed,
    RowsAsked,
    SampleAnswer,
    SampleCall,
    SampleFailure,
    SampleOutcome,
    most_held,
    unpack,
)
from serving.domain import (
    RANKS,
    Budget,
    Degradation,
    ImageInput,
    Report,
    UnaryAnswer,
    UnaryReply,
    UnaryRequest,
)
from serving.energy.spent import total
from serving.errors import (
    InvalidRequest,
    ServingError,
    TooManyImages,
)
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.operating_points import Points, RowWork, alone_s, choose, parted
from serving.service import Card
from serving.stores.results import Codec, Reservation
from serving.stores.sealed import ResultKey
from serving.telemetry.events import RowsAnswered
from serving.telemetry.tracing import span, traceparent

_MAX_STORED_BYTES = 1 << 20
"""Of one answer: what is larger, a picture of 600x600 pixels say, is not kept in Redis."""
_DEADLINE_GRACE_S = 0.25
"""A replica refuses by the deadline; this much later the gateway stops waiting to hear why."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and the way to it.

    ``words``: what its network takes of a prompt. ``overrun`` and ``charge``: learnt from what its rows took.
    """

    card: Card
    points: Points
    dispatcher: Dispatcher
    words: Callable[[str], Array] | None = None
    overrun: Overrun = field(default_factory=Overrun)
    charge: Charge = field(default_factory=Charge)

    def alone_s(self, point: Point, request: ImageRequest | None, exit_index: int | None = None) -> float:
        """See ``serving.operating_points.alone_s``."""
        return alone_s(self.points, point, self.card.io.num_exits, request, exit_index)


class StoredAnswer(NamedTuple):
    """A cached answer: the outputs, and the exit (from 0) that gave them."""

    outputs: Mapping[str, Packed]
    exit_index: int


def _decode(payload: dict[str, Any]) -> StoredAnswer | None:
    match payload:
        case {"outputs": dict(outputs), "exit_index": int(exit_index)}:
            return StoredAnswer(outputs, exit_index)
    return None


def _encode(answer: StoredAnswer) -> dict[str, Any] | None:
    num_bytes = sum(len(data) for _, _, data in answer.outputs.values())
    return answer._asdict() if num_bytes <= _MAX_STORED_BYTES else None


CODEC: Codec[StoredAnswer] = Codec(_encode, _decode)


class _Row(NamedTuple):
    """An item that can run. ``content``: digest of all that went in. ``request``: what its cost depends on, if any."""

    inputs: Inputs
    content: bytes
    request: ImageRequest | None


class UnaryRequests:
    """Implements ``serving.service.UnaryService``."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        media: MediaPool,
        pipeline: Pipeline,
        *,
        max_images: int,
        max_deep_share: Mapping[str, float | None] = MappingProxyType({}),
    ) -> None:
        self._models = models
        self._media = media
        self._pipeline = pipeline
        self._max_images = max_images
        self._deep = DeepRows(max_deep_share)

    def models(self) -> tuple[Card, ...]:
        """The models served here."""
        return tuple(model.card for model in self._models.values())

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        return self._pipeline.has_room

    async def answer(self, request: UnaryRequest) -> UnaryReply:
        """See ``UnaryService.answer``. When every item fails, the call fails with the first one's error."""
        model = served(self._models, request.model, "is not called")
        self._check(model, request)
        deadline_s = self._pipeline.deadline_s(request.budget, request.deadline_s)
        async with self._admitted(model, request, deadline_s, _least(model, request)):
            answer = self._answer(model, request, deadline_s)
            reply = await self._pipeline.in_time(deadline_s + _DEADLINE_GRACE_S, answer, "an answer existed")
            self._pipeline.check_in_time(deadline_s, "an answer existed")
            return reply

    async def plan_job(self, request: UnaryRequest, from_s: float) -> JobPlan | None:
        """See ``UnaryService.plan_job``."""
        model = served(self._models, request.model, "is not called")
        self._check(model, request)
        if self._longest_s(model) * request.num_items < from_s:
            return None
        deadline_s = self._pipeline.deadline_s(Budget(), request.deadline_s)
        async with self._admitted(model, request, deadline_s):
            return await self._pipeline.in_time(deadline_s, self._plan_job(model, request, from_s), "a plan existed")

    def _admitted(
        self, model: ServedModel, request: UnaryRequest, deadline_s: float, least: Cost = NOTHING
    ) -> AbstractAsyncContextManager[None]:
        return self._pipeline.admitted(
            request.tenant,
            model.card.id,
            model.dispatcher.predicted_wait_s,
            least,
            request.num_items,
            deadline_s=deadline_s,
            priority=request.budget.priority,
        )

    async def _plan_job(self, model: ServedModel, request: UnaryRequest, from_s: float) -> JobPlan | None:
        rows: list[_Row] = []
        for row in await self._prepare(model, request):
            if isinstance(row, ServingError):
                raise row
            rows.append(row)
        choice = self._choose(model, request, rows, self._pipeline.clock() + (request.budget.latency_ms or 0) / 1e3)
        if max(choice.latency_s, (len(rows) - 1) * choice.busy_s) < from_s:
            return None
        picture = await asyncio.to_thread(_png, rows[0].inputs) if request.images else b""
        prompt = request.prompts[0] if request.prompts else ""
        return JobPlan(
            request=RowsAsked(prompt=prompt, picture=picture, count=len(rows)),
            point=dict(choice.point.settings),
            seed=request.seeds[0] if request.seeds else 0,
            num_steps=1,
            name=choice.point.name,
            predicted_s=choice.busy_s * len(rows),
            predicted_j=model.points.watts * choice.busy_s * len(rows),  # as its seconds: beside them, not of now
            most_s=sum(model.alone_s(choice.point, row.request) for row in rows),
            held_bytes=most_held(model.card.io, len(rows)),
            degraded=choice.degraded,
            degradation=degradation_of(choice, len(rows)),
        )

    def _longest_s(self, model: ServedModel) -> float:
        """Of the largest row at the dearest point."""
        points = model.points
        return max(
            point.cost.latency(points.work(point.settings, request=model.card.io.largest)) for point in points.points
        )

    def _check(self, model: ServedModel, request: UnaryRequest) -> None:
        io, count = model.card.io, request.num_items
        if count > self._max_images:
            raise TooManyImages(
                f"the request has {count} images; limit is {self._max_images}; split it", param="images"
            )
        columns = (
            ("image", "images", request.images, io.takes_picture),
            ("prompt", "prompt", request.prompts, io.takes_prompt),
            ("seed", "seed", request.seeds, io.is_seeded),
        )
        for name, param, column, is_taken in columns:
            if column and not is_taken:
                raise InvalidRequest(f"{model.card.id} takes no {name}; leave it out", param=param)
            if is_taken and not column:
                raise InvalidRequest(f"the request has no {name}; send at least one", param=param)
            if column and len(column) != count:
                raise InvalidRequest(f"{len(column)} of {name} for {count} items; send one for each", param=param)
        if isinstance(io, ImageIO) and (longest := max(map(len, request.prompts), default=0)) > io.max_prompt_chars:
            raise InvalidRequest(
                f"prompt has {longest} characters; {model.card.id} takes {io.max_prompt_chars}", param="prompt"
            )

    async def _answer(self, model: ServedModel, request: UnaryRequest, deadline_s: float) -> UnaryReply:
        # Nobody is refused for a guess; and of a latency budget, the plan knows whether waiting would help.
        if model.points.is_calibrated and request.budget.latency_ms is None:
            turn_s = model.dispatcher.predicted_turn_s(request.tenant, request.num_items)
            self._pipeline.check_queue(deadline_s, turn_s)
        with span("media"):
            prepared = await self._prepare(model, request)
        good = [row for row in prepared if isinstance(row, _Row)]
        if not good:
            raise next(error for error in prepared if isinstance(error, ServingError))
        num_exits = model.card.io.num_exits
        with self._deep.counted(request.tenant, model.card.id, num_exits, len(good)) as depth:
            request = replace(request, budget=depth.within(request.budget))
            with span("plan"):
                choice = self._choose(model, request, good, deadline_s)
                degradation = degradation_of(choice, len(good))
                self._pipeline.bending.planned(model.card.id, request.tenant, choice.busy_s * len(good), degradation)
            outcomes = await self._pipeline.fetch(self._wanted(model, request, choice, good, deadline_s))
            depth.ran(outcomes, num_exits)
        reply = _reply(model, request, choice, degradation, prepared, outcomes)
        curbed = tuple(each for each in request.budget.degraded if each == CURBED)
        self._pipeline.tell(RowsAnswered(model.card.id, request.tenant, reply.report, choice.degraded + curbed))
        return reply

    # -- rows ------------------------------------------------------------------------------------------------------

    async def _prepare(self, model: ServedModel, request: UnaryRequest) -> list[_Row | ServingError]:
        io, pictures = model.card.io, await self._pictures(request)
        if not (request.prompts or request.seeds):
            return [_row(io, each) if isinstance(each, PreparedImage) else each for each in pictures]
        words = {prompt: model.words(prompt) for prompt in set(request.prompts)} if model.words else {}
        rows: list[_Row | ServingError] = []
        for index in range(request.num_items):
            picture = pictures[index] if pictures else None
            if isinstance(picture, ServingError):
                rows.append(picture)
                continue
            prompt = request.prompts[index] if request.prompts else ""
            seed = request.seeds[index] if request.seeds else None
            rows.append(_row(io, picture, words.get(prompt), seed, prompt))
        return rows

    async def _pictures(self, request: UnaryRequest) -> Sequence[PreparedImage | ServingError]:
        budget = MediaBudget(self._media.limits)
        caller = Caller(request.tenant, RANKS[request.budget.priority])
        first = request.images[0] if request.images else None
        if first is not None and all(image is first for image in request.images):  # it is decoded once
            return [await self._picture(first, request.model, budget, caller)] * len(request.images)
        return await asyncio.gather(*(self._picture(image, request.model, budget, caller) for image in request.images))

    async def _picture(
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

    def _choose(self, model: ServedModel, request: UnaryRequest, rows: Sequence[_Row], deadline_s: float) -> Plan:
        name, budget, way = model.card.id, request.budget, model.dispatcher
        bend = self._pipeline.bending.depth(name, request.tenant, budget.priority, way.predicted_wait_s())
        queued_s = way.predicted_turn_s(request.tenant, len(rows))
        return choose(
            name,
            model.points,
            budget,
            partial(_mean_work, model.points.work, [row.request for row in rows]),
            latency_s=None if budget.latency_ms is None else max(0.0, deadline_s - self._pipeline.clock()),
            load=Load(queued_s=queued_s, rows=len(rows), bend=bend, charge=model.charge),
        )

    # -- results ---------------------------------------------------------------------------------------------------

    def _wanted(
        self,
        model: ServedModel,
        request: UnaryRequest,
        choice: Plan,
        rows: list[_Row],
        deadline_s: float,
    ) -> Fetch[StoredAnswer, SampleOutcome]:
        async def run(places: Sequence[int], reservation: Reservation) -> list[SampleOutcome]:
            def settle(outcomes: Sequence[SampleOutcome]) -> None:
                spent = total(outcome.spent for outcome in outcomes).charged(model.points.watts)
                reservation.settle(spent.joules or 0.0, spent.seconds)
                self._pipeline.spent(model.card.id, request.tenant, choice.point.name, spent)
                _learn(model, choice.point, [rows[place].request for place in places], outcomes)

            samples = [self._sample(model, rows[place], request, choice, deadline_s) for place in places]
            if elsewhere_j := self._pipeline.elsewhere_j(request.tenant, model.card.id):
                samples[0] = samples[0]._replace(elsewhere_j=elsewhere_j)
            return await model.dispatcher.run(samples, choice.busy_s * len(samples), settle)

        name, watts = self._pipeline.results.name, model.points.watts
        most_s = [model.alone_s(choice.point, row.request) for row in rows]
        return Fetch(
            model=model.card.id,
            tenant=request.tenant,
            names=[name(_key(model, request, choice, row)) for row in rows],
            codec=CODEC,
            costs=[Cost(seconds * watts, seconds) for seconds in most_s],
            overrun=model.overrun.factor,
            urgency=(RANKS[request.budget.priority], deadline_s),
            run=run,
            kept=_kept,
        )

    def _sample(
        self, model: ServedModel, row: _Row, request: UnaryRequest, choice: Plan, deadline_s: float
    ) -> SampleCall:
        thresholds, others = parted(choice.point.settings, model.card.io.num_exits)
        return SampleCall(
            inputs=row.inputs,
            remaining_s=deadline_s - self._pipeline.clock(),
            thresholds=thresholds,
            priority=PRIORITIES[request.budget.priority],
            tenant=request.tenant,
            settings=others or None,
            traceparent=traceparent(),
        )


def _least(model: ServedModel, request: UnaryRequest) -> Cost:
    """Of one row, before it is read: at the cheapest point, where all rows have one size and nothing else is asked."""
    io = model.card.io
    if request.budget.settings or (isinstance(io, ImageIO) and io.size is None):
        return NOTHING
    seconds = min(model.alone_s(point, None) for point in model.points.points)
    return Cost(seconds * model.points.watts, seconds)


def _learn(
    model: ServedModel,
    point: Point,
    requests: Sequence[ImageRequest | None],
    outcomes: Sequence[SampleOutcome],
) -> None:
    """From rows that were answered: what they took beside what they take alone up to where they left, and beside the
    share of a batch that they were planned with."""
    for request, outcome in zip(requests, outcomes, strict=False):  # none, where it is not known what ran
        if isinstance(outcome, SampleAnswer):
            taken, watts = outcome.spent.charged(model.points.watts), model.points.watts
            model.overrun.observe(model.alone_s(point, request, outcome.exit_index), taken.dearest_s(watts))
            share_s = point.cost.busy(model.points.work(point.settings, request))
            model.charge.observe(share_s, (taken.joules or 0.0) / watts)


def _mean_work(work: RowWork, requests: Sequence[ImageRequest | None], settings: Settings) -> Units:
    """Of a row, on average: pictures of one request may differ in size."""
    total: dict[str, float] = {}
    for request, count in Counter(requests).items():
        for unit, amount in work(settings, request).items():
            total[unit] = total.get(unit, 0.0) + amount * count / len(requests)
    return total


def _png(inputs: Inputs) -> bytes:
    """The picture of a row."""
    file = BytesIO()
    Image.fromarray(inputs["picture"] if isinstance(inputs, Mapping) else inputs).save(file, "PNG")
    return file.getvalue()


def _row(
    io: RowIO,
    picture: PreparedImage | None,
    words: Array | None = None,
    seed: int | None = None,
    prompt: str = "",
) -> _Row:
    content, request = picture.content_sha256 if picture is not None else b"", None
    if words is not None or seed is not None:
        content = hashlib.sha256(b"%b %d %b" % (content, -1 if seed is None else seed, prompt.encode())).digest()
    if isinstance(io, ImageIO):
        width, height = io.size or (0, 0)
        if picture is not None:
            height, width = picture.pixels.shape[:2]
        request = ImageRequest(width=width, height=height)
    return _Row(row_of(None if picture is None else picture.pixels, words, seed), content, request)


def _key(model: ServedModel, request: UnaryRequest, choice: Plan, row: _Row) -> ResultKey | None:
    if request.is_drawn:
        return None
    return ResultKey(
        tenant=request.tenant,
        model=model.card.id,
        checkpoint_sha256=model.card.checkpoint_sha256,
        operating_point=choice.point.name,
        processor_version=model.card.prepare_version,
        content_sha256=row.content,
    )


def _kept(outcome: SampleOutcome) -> StoredAnswer | None:
    if isinstance(outcome, SampleFailure) or outcome.degraded:
        return None
    return StoredAnswer(outcome.outputs, outcome.exit_index)


def _reply(
    model: ServedModel,
    request: UnaryRequest,
    choice: Plan,
    degradation: Degradation | None,
    prepared: Sequence[_Row | ServingError],
    outcomes: Sequence[StoredAnswer | SampleOutcome],
) -> UnaryReply:
    remaining = (outcome.error if isinstance(outcome, SampleFailure) else outcome for outcome in outcomes)
    items = [each if isinstance(each, ServingError) else next(remaining) for each in prepared]
    if all(isinstance(outcome, ServingError) for outcome in items):
        raise next(outcome for outcome in items if isinstance(outcome, ServingError))
    answers = tuple(outcome if isinstance(outcome, ServingError) else _read(outcome) for outcome in items)
    return UnaryReply(model=request.model, items=answers, report=_report(model, request, choice, degradation, outcomes))


def _read(result: StoredAnswer | SampleAnswer) -> UnaryAnswer:
    is_degraded = isinstance(result, SampleAnswer) and result.degraded
    return UnaryAnswer(outputs=unpack(result.outputs), exit=result.exit_index + 1, degraded=is_degraded)


def _report(
    model: ServedModel,
    request: UnaryRequest,
    choice: Plan,
    degradation: Degradation | None,
    outcomes: Sequence[StoredAnswer | SampleOutcome],
) -> Report:
    fresh = [outcome for outcome in outcomes if isinstance(outcome, SampleAnswer)]
    hits = sum(isinstance(outcome, StoredAnswer) for outcome in outcomes)
    degraded = (
        request.budget.degraded + choice.degraded + (("exit",) if any(answer.degraded for answer in fresh) else ())
    )
    return Report.of(
        total(answer.spent for answer in fresh),
        operating_point=choice.point.name,
        queue_s=max((answer.queue_s for answer in fresh), default=0.0),
        cache="hit" if hits == len(outcomes) else "partial" if hits else "miss",
        degraded=degraded,
        degradation=degradation,
    )
