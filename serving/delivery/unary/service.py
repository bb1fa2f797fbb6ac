"""One unary request behind the front door, whatever its task, in the order of docs/architecture.md.

prepare the rows -> pick an operating point -> fetch (serving.delivery.pipeline): look up and reserve, dispatch the
misses, settle
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

from models.inputs import Array
from models.io import ImageIO, ImageRequest
from schedulers.admission import NOTHING, Cost
from schedulers.charge import Charge
from schedulers.cost import Units
from schedulers.overrun import Overruns
from schedulers.plan import Load, Plan, Point, Settings
from serving.bending import degradation_of
from serving.delivery.job.base import JobPlan
from serving.delivery.pipeline import PRIORITIES, Fetch, Pipeline, served
from serving.delivery.unary.answers import CODEC, StoredAnswer, kept, key_of, reply_of
from serving.delivery.unary.deep import CURBED, DeepRows
from serving.delivery.unary.dispatch import Dispatcher
from serving.delivery.unary.rows import Row, check_items, read_rows
from serving.delivery.unary.wire import RowsAsked, SampleAnswer, SampleCall, SampleOutcome, most_held
from serving.domain import RANKS, Budget, UnaryReply, UnaryRequest
from serving.energy.spent import total
from serving.errors import ServingError
from serving.media.pool import MediaPool
from serving.operating_points import Points, RowWork, alone_s, choose, parted
from serving.service import Card
from serving.stores.results import Reservation
from serving.telemetry.events import RowsAnswered
from serving.telemetry.tracing import span, traceparent

_DEADLINE_GRACE_S = 0.25
"""A replica refuses by the deadline; this much later the gateway stops waiting to hear why."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model and the way to it.

    ``words``: what its network takes of a prompt. ``overruns`` and ``charge``: learnt from what its rows took.
    """

    card: Card
    points: Points
    dispatcher: Dispatcher
    words: Callable[[str], Array] | None = None
    overruns: Overruns = field(default_factory=Overruns)
    charge: Charge = field(default_factory=Charge)

    def alone_s(self, point: Point, request: ImageRequest | None, exit_index: int | None = None) -> float:
        """See ``serving.operating_points.alone_s``."""
        return alone_s(self.points, point, self.card.io.num_exits, request, exit_index)


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
        check_items(model.card, request, self._max_images)
        deadline_s = self._pipeline.deadline_s(request.budget, request.deadline_s)
        async with self._admitted(model, request, deadline_s, _least(model, request)):
            answer = self._answer(model, request, deadline_s)
            reply = await self._pipeline.in_time(deadline_s + _DEADLINE_GRACE_S, answer, "an answer existed")
            self._pipeline.check_in_time(deadline_s, "an answer existed")
            return reply

    async def plan_job(self, request: UnaryRequest, from_s: float) -> JobPlan | None:
        """See ``UnaryService.plan_job``."""
        model = served(self._models, request.model, "is not called")
        check_items(model.card, request, self._max_images)
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
        rows: list[Row] = []
        for row in await read_rows(self._media, model.card.io, model.words, request):
            if isinstance(row, ServingError):
                raise row
            rows.append(row)
        choice = self._choose(model, request, rows, self._pipeline.clock() + (request.budget.latency_ms or 0) / 1e3)
        if max(choice.latency_s, (len(rows) - 1) * choice.busy_s) < from_s:
            return None
        picture = await asyncio.to_thread(rows[0].png) if request.images else b""
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

    async def _answer(self, model: ServedModel, request: UnaryRequest, deadline_s: float) -> UnaryReply:
        # Nobody is refused for a guess; and of a latency budget, the plan knows whether waiting would help.
        if model.points.is_calibrated and request.budget.latency_ms is None:
            turn_s = model.dispatcher.predicted_turn_s(request.tenant, request.num_items)
            self._pipeline.check_queue(deadline_s, turn_s)
        with span("media"):
            prepared = await read_rows(self._media, model.card.io, model.words, request)
        good = [row for row in prepared if isinstance(row, Row)]
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
        reply = reply_of(request, choice, degradation, prepared, outcomes)
        curbed = tuple(each for each in request.budget.degraded if each == CURBED)
        self._pipeline.tell(RowsAnswered(model.card.id, request.tenant, reply.report, choice.degraded + curbed))
        return reply

    # -- operating point -------------------------------------------------------------------------------------------

    def _choose(self, model: ServedModel, request: UnaryRequest, rows: Sequence[Row], deadline_s: float) -> Plan:
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
        rows: list[Row],
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
            names=[name(key_of(model.card, request, choice, row)) for row in rows],
            codec=CODEC,
            costs=[Cost(seconds * watts, seconds) for seconds in most_s],
            overrun=model.overruns.factors,
            urgency=(RANKS[request.budget.priority], deadline_s),
            run=run,
            kept=kept,
        )

    def _sample(
        self, model: ServedModel, row: Row, request: UnaryRequest, choice: Plan, deadline_s: float
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
            alone_s = model.alone_s(point, request, outcome.exit_index)
            model.overruns.observe(Cost(alone_s * watts, alone_s), Cost(taken.joules or 0.0, taken.seconds))
            share_s = point.cost.busy(model.points.work(point.settings, request))
            model.charge.observe(share_s, (taken.joules or 0.0) / watts)


def _mean_work(work: RowWork, requests: Sequence[ImageRequest | None], settings: Settings) -> Units:
    """Of a row, on average: pictures of one request may differ in size."""
    total: dict[str, float] = {}
    for request, count in Counter(requests).items():
        for unit, amount in work(settings, request).items():
            total[unit] = total.get(unit, 0.0) + amount * count / len(requests)
    return total
