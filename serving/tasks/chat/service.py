"""One chat request behind the front door, in the order of docs/architecture.md.

token ids -> fetch -> plan by the sizes of images -> decode and cut -> plan -> look up and reserve (one Redis round
trip) -> guard -> generate -> settle
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

from models.contract import Prompts
from models.io import ChatTokens
from schedulers.admission import Cost, Factors
from schedulers.answer_cost import AnswerCost
from schedulers.cost import Units
from schedulers.fair_queue import EQUAL, Weights
from schedulers.fair_wait import FairWait
from schedulers.overrun import Overruns
from schedulers.plan import Load
from schedulers.retry_budget import RetryBudget
from serving.config import GuardSettings
from serving.delivery.pipeline import Fetch, Pipeline, served
from serving.delivery.stream.generation import Generation, Plan, StoredChat
from serving.delivery.stream.links import ChatLinks
from serving.delivery.stream.wire import ChatDelta, EngineImage, EngineRequest
from serving.domain import RANKS, GuardBlock, ImagePart, Report
from serving.energy.spent import Spent
from serving.guard.gateway import ChatGuard, MaybeWatched
from serving.media.pool import Caller
from serving.media.prepare import PreparedImage
from serving.media.request_images import FetchedImage
from serving.service import Card
from serving.stores.results import Lookup, Reservation, ResultName
from serving.tasks.chat.domain import ChatEnd, ChatEvent, ChatRequest, Usage
from serving.tasks.chat.points import MAX_AGE_S, Measured, make_plan
from serving.tasks.chat.results import CODEC, TenantKeys, result_key
from serving.tasks.chat.turns import asking, token_ids
from serving.telemetry.events import ChatAnswered, ChatRetried, WorkPriced
from serving.telemetry.tracing import span

T = TypeVar("T")
_RETRY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class ServedChat:
    """A chat model and the way to it. ``watts``: power of a busy replica, an assumption. ``measured``: how good its
    answers are. ``work``: of one answer. ``slots``: answers that are written at a time. ``overruns``: learnt from what
    answers took."""

    card: Card
    prompts: Prompts
    links: ChatLinks
    cost: AnswerCost
    work: Callable[[ChatTokens], Units]
    retries: RetryBudget
    watts: float
    slots: int
    measured: Measured = field(default_factory=Measured)
    overruns: Overruns = field(default_factory=Overruns)


class Images(Protocol):
    """Where images become tiles: ``serving.media.request_images.RequestImages``."""

    async def fetch(self, parts: Sequence[ImagePart], caller: Caller, deadline_s: float) -> list[FetchedImage]:
        """The files of a request's images, in their order. Raises: ServingError: of the first that failed."""
        ...

    def count_tiles(self, images: Sequence[FetchedImage], model_id: str, choices: Sequence[int]) -> dict[int, int]:
        """Tiles of all images, for each number of tiles that one may be cut into. Raises: InvalidImage."""
        ...

    async def prepare(
        self, images: Sequence[FetchedImage], model_id: str, caller: Caller, max_tiles: int | None = None
    ) -> list[PreparedImage]:
        """Prepare the images of a request, in their order. Raises: ServingError: of the first that failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A request that wants nothing but the engine, or not even that."""

    model: ServedChat
    request: ChatRequest
    deadline_s: float
    images: Sequence[PreparedImage]
    token_ids: Sequence[int]
    plan: Plan
    image_tokens: int
    name: ResultName | None
    look_tokens: int = 0
    """That the guard may take to look twice at an answer; 0: it will not."""

    @property
    def reserved(self) -> Cost:
        """Of the longest answer, looked at twice."""
        seconds = self.plan.reserved_s + self.plan.num_choices * self._look_s
        return Cost(seconds * self.model.watts, seconds)

    @property
    def _look_s(self) -> float:
        """Of a second look at an answer: a glance at the pictures, and the whole prompt again, up to its cap."""
        if not self.look_tokens:
            return 0.0
        glance = self.model.work(ChatTokens(0, self.image_tokens, 0))
        cost = self.model.cost
        return cost.busy_s(glance) + cost.busy_s(self.plan.work(self.look_tokens - 1))

    @property
    def overrun(self) -> Factors:
        """How many times that it may take."""
        learnt, share = self.model.overruns.factors, self.plan.share
        return Factors(max(share, learnt.joules), max(share, learnt.seconds))


class _Generated(NamedTuple):
    """A generation, and whoever watches it."""

    generation: Generation
    watch: MaybeWatched


class _Whole(NamedTuple):
    """An answer that was generated and not streamed. ``stored`` None: nobody else may be given it."""

    events: Sequence[ChatEvent]
    stored: StoredChat | None


class ChatService:
    """Implements ``serving.service.ChatService``. Use from one event loop; ``stop`` when done."""

    def __init__(
        self,
        models: Mapping[str, ServedChat],
        images: Images,
        pipeline: Pipeline,
        keys: TenantKeys,
        weights: Weights = EQUAL,
        guard: ChatGuard | None = None,
    ) -> None:
        self._models = models
        self._images = images
        self._pipeline = pipeline
        self._keys = keys
        self._guard = guard or ChatGuard({}, GuardSettings())
        self._open = {model: FairWait(weights) for model in models}
        """Answers that are waited for, by model; a unit each."""

    def chat_models(self) -> tuple[Card, ...]:
        """The chat models served here."""
        return tuple(model.card for model in self._models.values())

    async def stop(self) -> None:
        """Break off what runs."""
        for model in self._models.values():
            await model.links.stop()
        await self._guard.stop()

    async def chat(self, request: ChatRequest, say: Callable[[ChatEvent], None]) -> None:
        """See ``serving.service.ChatService.chat``."""
        model = served(self._models, request.model, "does not chat")
        least_s = model.cost.busy_s(model.work(ChatTokens(0, 0, 1)))
        deadline_s = self._pipeline.deadline_s(request.budget, request.deadline_s)
        async with self._pipeline.admitted(
            request.tenant,
            model.card.id,
            lambda: _RETRY_S,
            Cost(least_s * model.watts, least_s),
            request.sampling.n,
            deadline_s=deadline_s,
            priority=request.budget.priority,
        ):
            ready = await self._in_time(deadline_s, self._make_ready(model, request, deadline_s))
            if not request.is_streamed:
                for event in await self._whole(ready):
                    say(event)
                return
            lookup = await self._in_time(deadline_s, self._look_up(ready))
            if (found := lookup.found[0]) is not None:
                for event in self._stored_events(ready, found):
                    say(event)
                return
            async with self._generating(ready, lookup.reservation) as generated:
                await generated.generation.run(say)
                end, stored = self._ended(ready, *generated)
                if stored is not None:
                    self._pipeline.results.put(ready.name, CODEC, stored)
                say(end)

    async def _in_time(self, deadline_s: float, work: Awaitable[T]) -> T:
        return await self._pipeline.in_time(deadline_s, work, "the first token")

    async def _make_ready(self, model: ServedChat, request: ChatRequest, deadline_s: float) -> _Ready:
        """Everything before the store and the engine: images, token ids, plan."""
        parts = [part for message in request.messages for part in message.parts if isinstance(part, ImagePart)]
        load, planned = self._load(model, request), None
        self._check_load(model, request, load, deadline_s)
        ids = await token_ids(model.prompts, request.messages)
        images: list[PreparedImage] = []
        tiles: int | None = None
        is_coarser = False
        if parts:
            caller = Caller(request.tenant, RANKS[request.budget.priority])
            with span("media"):
                fetched = await self._images.fetch(parts, caller, deadline_s)
                if (planned := self._plan_tiles(model, request, fetched, ids, load, deadline_s)) is not None:
                    tiles, is_coarser = planned.max_tiles, planned.is_coarser
                images = await self._images.prepare(fetched, model.card.id, caller, tiles)
        grids = [image.grid or (1, 1) for image in images]
        with span("plan"):
            image_tokens = sum(model.prompts.image_tokens(grid) for grid in grids)
            text_tokens = model.prompts.num_expanded(ids, grids) - image_tokens
            plan = self._plan(
                model, request, {tiles: ChatTokens(text_tokens, image_tokens, 0)}, load, deadline_s, planned
            )
            plan = replace(plan, is_coarser=is_coarser)
        self._pipeline.bending.planned(model.card.id, request.tenant, plan.expected_s, plan.degradation)
        seen = [image.identity for image in images]
        key = result_key(request.tenant, model.card, ids, seen, request.sampling, plan.max_tokens)
        return _Ready(
            model=model,
            request=request,
            deadline_s=deadline_s,
            images=images,
            token_ids=ids,
            plan=plan,
            image_tokens=image_tokens,
            name=self._pipeline.results.name(key),
            look_tokens=self._guard.second_look_tokens(asking(request, plan.max_tokens)),
        )

    def _plan_tiles(
        self,
        model: ServedChat,
        request: ChatRequest,
        images: Sequence[FetchedImage],
        ids: Sequence[int],
        load: Load,
        deadline_s: float,
    ) -> Plan | None:
        """A plan by what the headers of images say, which decides into how many tiles they are cut; None for a model
        that has no say in it."""
        choices = model.measured.tiles_of(model.card.knobs, request.budget.settings)
        if not choices:
            return None
        if all(image.part.is_coarse for image in images):
            choices = (1,)
        counts = self._images.count_tiles(images, model.card.id, choices)
        marks = model.prompts.num_expanded(ids, [(1, 1)] * len(images)) - len(images) * model.prompts.image_tokens(
            (1, 1)
        )
        each = model.card.io.tokens_per_tile
        return self._plan(
            model, request, {most: ChatTokens(marks, each * counts[most], 0) for most in choices}, load, deadline_s
        )

    def _check_load(self, model: ServedChat, request: ChatRequest, load: Load, deadline_s: float) -> None:
        """Refuse before anything is read what would be late even with no prompt; and nobody for a guess. Of a latency
        budget, a plan knows whether waiting would help."""
        if not model.cost.is_known(self._pipeline.clock(), MAX_AGE_S):
            return
        if request.budget.latency_ms is None:
            self._pipeline.check_queue(deadline_s, load.queued_s)
        elif load.queued_s:
            least = replace(request, budget=replace(request.budget, energy_j=None, quality_floor=None))
            self._plan(model, least, {None: ChatTokens(0, 0, 0)}, replace(load, bend=0.0), deadline_s)

    def _load(self, model: ServedChat, request: ChatRequest) -> Load:
        opened, count = self._open[model.card.id], request.sampling.n
        slot_s = model.cost.answer_s / model.slots
        waiting_s = max(0.0, opened.total_s + count - model.slots) * slot_s
        bend = self._pipeline.bending.depth(
            model.card.id, request.tenant, request.budget.priority, waiting_s, model.cost.answer_s
        )
        # What others have open beyond this tenant's share comes after it; but a slot has to be free.
        turn_s = max(1.0, opened.wait_s(request.tenant, count) + count - model.slots) * slot_s
        return Load(queued_s=min(waiting_s, turn_s), bend=bend)

    def _plan(
        self,
        model: ServedChat,
        request: ChatRequest,
        prompts: Mapping[int | None, ChatTokens],
        load: Load,
        deadline_s: float,
        planned: Plan | None = None,
    ) -> Plan:
        now_s = self._pipeline.clock()
        return make_plan(
            model.card,
            model.cost,
            request.sampling,
            request.budget,
            prompts,
            model.work,
            load,
            measured=model.measured,
            remaining_s=deadline_s - now_s,
            now_s=now_s,
            planned=planned,
        )

    # -- answers -----------------------------------------------------------------------------------------------------

    async def _look_up(self, ready: _Ready) -> Lookup[StoredChat]:
        tenant = ready.request.tenant
        return await self._pipeline.results.look_up([ready.name], CODEC, tenant, [ready.reserved], ready.overrun)

    async def _whole(self, ready: _Ready) -> Sequence[ChatEvent]:
        """Looked up, or what an equal request under way is answered, or generated. One that is streamed neither gives
        nor takes: its client decides how fast it goes."""

        async def run(_places: Sequence[int], reservation: Reservation) -> list[_Whole]:
            deltas: list[ChatDelta] = []
            async with self._generating(ready, reservation) as generated:
                await generated.generation.run(deltas.append)
                end, stored = self._ended(ready, *generated)
                return [_Whole((*deltas, end), stored)]

        request = ready.request
        wanted: Fetch[StoredChat, _Whole] = Fetch(
            model=request.model,
            tenant=request.tenant,
            names=[ready.name],
            codec=CODEC,
            costs=[ready.reserved],
            overrun=ready.overrun,
            urgency=(RANKS[request.budget.priority], ready.deadline_s),
            run=run,
            kept=lambda whole: whole.stored,
        )
        fetch = self._pipeline.fetch(wanted)
        (answer,) = await self._pipeline.in_time(ready.deadline_s, fetch, "the answer was complete")
        return answer.events if isinstance(answer, _Whole) else list(self._stored_events(ready, answer))

    @asynccontextmanager
    async def _generating(self, ready: _Ready, reservation: Reservation) -> AsyncIterator[_Generated]:
        """Whatever ends this frees the engine, and charges what it did as soon as that is known."""
        model, count = ready.model.card.id, ready.plan.num_choices
        wanted = asking(ready.request, ready.plan.max_tokens)

        def settle(spent: Spent) -> None:
            charged = spent.charged(ready.model.watts)
            reservation.settle(charged.joules or 0.0, charged.seconds)
            tiles = ready.plan.max_tiles
            point = "default" if tiles is None else f"max_tiles={tiles}"  # a cap in tokens makes no other work
            predicted_s = generation.predicted_s()
            predicted = Cost(predicted_s * ready.model.watts, predicted_s)
            ready.model.overruns.observe(predicted, Cost(charged.joules or 0.0, charged.seconds))
            self._pipeline.spent(model, ready.request.tenant, point, charged)

        try:
            watch = await self._in_time(ready.deadline_s, self._guard.examine(wanted, ready.images))
            generation = self._generation(ready, watch)
        except BaseException:
            reservation.settle(0.0, 0.0)
            raise
        opened, tenant = self._open[model], ready.request.tenant
        opened.add(tenant, count)
        try:
            yield _Generated(generation, watch)
        finally:
            opened.remove(tenant, count)
            generation.close(settle)
            watch.leave(generation.ended)

    def _generation(self, ready: _Ready, watch: MaybeWatched) -> Generation:
        model, request = ready.model, ready.request
        return Generation(
            model.links,
            model.cost,
            [self._engine_request(ready, choice) for choice in range(request.sampling.n)],
            ready.plan,
            tenant=request.tenant,
            rank=watch.rank(RANKS[request.budget.priority]),
            is_streamed=request.is_streamed,
            deadline_s=ready.deadline_s,
            clock=self._pipeline.clock,
            retries=model.retries,
            on_retry=lambda: self._pipeline.tell(ChatRetried(model.card.id)),
            on_priced=lambda one: self._pipeline.tell(WorkPriced(model.card.id, *one)),
            elsewhere_j=self._pipeline.elsewhere_j(request.tenant, model.card.id),
            guard=watch.order,
        )

    def _stored_events(self, ready: _Ready, found: StoredChat) -> Iterator[ChatEvent]:
        """An answer that was given before, or to somebody else: at once and for nothing."""
        for index, choice in enumerate(found.choices):
            yield ChatDelta(index, choice.text, choice.num_tokens, choice.finish_reason, (), found.prompt_tokens)
        usage = Usage(
            prompt_tokens=found.prompt_tokens,
            completion_tokens=sum(choice.num_tokens for choice in found.choices),
            image_tokens=ready.image_tokens,
            cached_tokens=found.prompt_tokens,
        )
        guard = self._guard.told(ready.request.tenant, found.guard)
        yield self._answered(ready, usage, _report(ready, 0.0, Spent(), "hit", (), guard))

    def _ended(self, ready: _Ready, generation: Generation, watch: MaybeWatched) -> tuple[ChatEnd, StoredChat | None]:
        """What is said last, and what others may be given: nothing that a budget or the guard has cut."""
        verdict = watch.end(generation.ended)
        is_whole = not generation.is_capped and not watch.has_cut(generation.ended)
        stored = generation.stored(verdict) if is_whole else None
        return self._end(ready, generation, self._guard.told(ready.request.tenant, verdict)), stored

    def _end(self, ready: _Ready, generation: Generation, guard: GuardBlock) -> ChatEnd:
        usage = Usage(
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=generation.completion_tokens,
            image_tokens=ready.image_tokens,
            cached_tokens=generation.cached_tokens,
        )
        capped = ("max_tokens",) if generation.is_capped else ()
        report = _report(ready, generation.queue_s, generation.spent(), "miss", capped, guard)
        return self._answered(ready, usage, report)

    def _answered(self, ready: _Ready, usage: Usage, report: Report) -> ChatEnd:
        self._pipeline.tell(ChatAnswered(ready.request.model, ready.request.tenant, report, usage))
        return ChatEnd(usage=usage, report=report)

    # -- the engine's request ------------------------------------------------------------------------------------------

    def _engine_request(self, ready: _Ready, choice: int) -> EngineRequest:
        """``ChatLinks`` gives it its id."""
        tenant, sampling = ready.request.tenant, ready.request.sampling
        return EngineRequest(
            request_id="",
            prompt_token_ids=tuple(ready.token_ids),
            images=tuple(
                EngineImage(
                    self._keys.image_key(tenant, ready.model.card.id, image.identity),
                    image.pixels,
                    image.grid or (1, 1),
                )
                for image in ready.images
            ),
            max_tokens=ready.plan.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            # One seed for all choices would make them all the same.
            seed=None if sampling.seed is None else sampling.seed + choice,
            stop=sampling.stop,
            json_schema=sampling.json_schema,
            logprobs=sampling.logprobs,
            logit_bias=sampling.logit_bias,
            cache_salt=self._keys.cache_salt(tenant),
            min_tokens=min(sampling.min_tokens, ready.plan.max_tokens),
            ignore_eos=sampling.ignore_eos,
        )


def _report(
    ready: _Ready, queue_s: float, spent: Spent, cache: str, capped: tuple[str, ...], guard: GuardBlock
) -> Report:
    plan = ready.plan
    lowered = (*(("max_tiles",) if plan.is_coarser else ()), *capped)
    degradation = plan.degradation if lowered else None
    load = ("load",) if degradation is not None and "load" in degradation.reasons else ()
    return Report.of(
        spent,
        operating_point=plan.point,
        queue_s=queue_s,
        cache=cache,
        degraded=(*ready.request.budget.degraded, *lowered, *load),
        degradation=degradation,
        guard=guard,
    )
