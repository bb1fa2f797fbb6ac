"""One chat request behind the front door, in the order of docs/architecture.md.

fetch and decode -> token ids -> plan -> look up and reserve (one Redis round trip) -> generate -> settle
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from models.contract import Prompts
from schedulers.retry_budget import RetryBudget
from schedulers.token_cost import TokenCost
from serving.delivery.stream.generation import Generation
from serving.delivery.stream.links import ChatLinks
from serving.domain import RANKS, Report
from serving.errors import DeadlineExceeded, QueueFull, UnknownModel
from serving.media.pool import Caller
from serving.media.prepare import PreparedImage
from serving.replica.chat.base import EngineImage, EngineRequest
from serving.service import ChatModelCard
from serving.stores.chat_results import ChatLookup, ChatResults, StoredChat
from serving.stores.results import ResultName
from serving.tasks.chat.domain import ChatDelta, ChatEnd, ChatEvent, ChatRequest, ImagePart, Usage
from serving.tasks.chat.plan import POINT, Plan, make_plan
from serving.tasks.chat.prompt import token_ids
from serving.tasks.chat.tenant_keys import TenantKeys
from serving.telemetry.events import ChatAnswered, ChatRetried, Sink, ignore

T = TypeVar("T")
_RETRY_S = 0.5
ENERGY_SOURCE = "estimate"


@dataclass(frozen=True, kw_only=True)
class ServedChat:
    """A chat model and the way to it. ``watts``: power of a busy replica, an assumption."""

    card: ChatModelCard
    prompts: Prompts
    links: ChatLinks
    cost: TokenCost
    retries: RetryBudget
    watts: float


@dataclass(frozen=True, kw_only=True)
class ChatLimits:
    """Bounds of one gateway replica."""

    max_in_flight: int
    default_deadline_s: float


class Images(Protocol):
    """Where images become tiles: ``serving.media.chat_images.ChatImages``."""

    async def prepare(
        self, parts: Sequence[ImagePart], model_id: str, caller: Caller, deadline_s: float
    ) -> list[PreparedImage]:
        """Prepare the images of a request, in their order. Raises: ServingError: of the first that failed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """A request that wants nothing but the engine, or not even that."""

    images: Sequence[PreparedImage]
    token_ids: Sequence[int]
    plan: Plan
    image_tokens: int
    name: ResultName | None
    lookup: ChatLookup


class ChatService:
    """Implements ``serving.service.ChatService``. Use from one event loop; ``stop`` when done."""

    def __init__(
        self,
        models: Mapping[str, ServedChat],
        images: Images,
        results: ChatResults,
        keys: TenantKeys,
        limits: ChatLimits,
        clock: Callable[[], float] = time.monotonic,
        tell: Sink = ignore,
    ) -> None:
        self._models = models
        self._images = images
        self._results = results
        self._keys = keys
        self._limits = limits
        self._clock = clock
        self._tell = tell
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._in_flight

    def chat_models(self) -> tuple[ChatModelCard, ...]:
        """The chat models served here."""
        return tuple(model.card for model in self._models.values())

    async def stop(self) -> None:
        """Break off what runs."""
        for model in self._models.values():
            await model.links.stop()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """See ``serving.service.ChatService.chat``."""
        model = self._model(request.model)
        with self._admitted():
            self._results.check_account(request.tenant)
            deadline_s = self._deadline_s(request)
            ready = await self._in_time(deadline_s, self._make_ready(model, request, deadline_s))
            if ready.lookup.found is not None:
                for event in _stored_events(ready.lookup.found, ready.image_tokens, request.budget.degraded):
                    yield self._observed(request, event)
                return
            generation: Generation | None = None
            try:
                generation = self._generation(model, request, ready, deadline_s)
                while not generation.is_over:
                    for delta in await generation.next():
                        yield delta
                if ready.name is not None and not generation.is_capped:
                    self._results.put(ready.name, generation.stored())
                end = _end(generation, model.watts, ready.image_tokens, request.budget.degraded)
                yield self._observed(request, end)
            finally:
                self._settle(model, ready, generation)

    async def _make_ready(self, model: ServedChat, request: ChatRequest, deadline_s: float) -> _Ready:
        """Everything before the engine: images, token ids, plan, look-up and reservation."""
        parts = [part for message in request.messages for part in message.parts if isinstance(part, ImagePart)]
        images: list[PreparedImage] = []
        if parts:
            caller = Caller(request.tenant, RANKS[request.budget.priority])
            images = await self._images.prepare(parts, model.card.id, caller, deadline_s)
        grids = [image.grid or (1, 1) for image in images]
        ids = await token_ids(model.prompts, request.messages)
        plan = self._plan(model, request, model.prompts.num_expanded(ids, grids), deadline_s)
        hashes = [image.content_sha256 for image in images]
        name = self._results.key(request.tenant, model.card, ids, hashes, request.sampling, plan.max_tokens)
        joules = plan.reserved_s * model.watts
        return _Ready(
            images=images,
            token_ids=ids,
            plan=plan,
            image_tokens=sum(model.prompts.image_tokens(grid) for grid in grids),
            name=name,
            lookup=await self._results.look_up(name, request.tenant, joules, plan.reserved_s),
        )

    def _generation(self, model: ServedChat, request: ChatRequest, ready: _Ready, deadline_s: float) -> Generation:
        return Generation(
            model.links,
            model.cost,
            [self._engine_request(model, request, ready, choice) for choice in range(request.sampling.n)],
            ready.plan,
            tenant=request.tenant,
            rank=RANKS[request.budget.priority],
            is_streamed=request.is_streamed,
            deadline_s=deadline_s,
            clock=self._clock,
            retries=model.retries,
            on_retry=lambda: self._tell(ChatRetried(model.card.id)),
        )

    def _settle(self, model: ServedChat, ready: _Ready, generation: Generation | None) -> None:
        """Free the engine and charge what it did: when that is known, whoever still listens."""

        def settle(seconds: float) -> None:
            self._results.settle(ready.lookup.reservation, seconds * model.watts, seconds)

        if generation is None:
            settle(0.0)
        else:
            generation.close(settle)

    # -- checks ------------------------------------------------------------------------------------------------------

    def _model(self, name: str) -> ServedChat:
        model = self._models.get(name)
        if model is None:
            known = ", ".join(self._models) or "none"
            raise UnknownModel(f"model {name[:100]!r} does not chat here; models that do: {known}", param="model")
        return model

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._in_flight >= self._limits.max_in_flight:
            raise QueueFull(
                f"this gateway serves {self._in_flight} chats; limit is {self._limits.max_in_flight}; "
                f"retry in {_RETRY_S:g} s",
                retry_after_s=_RETRY_S,
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    def _deadline_s(self, request: ChatRequest) -> float:
        allowed_s = self._limits.default_deadline_s
        if request.budget.latency_ms is not None:
            allowed_s = min(allowed_s, request.budget.latency_ms / 1e3)
        return min(self._clock() + allowed_s, float("inf") if request.deadline_s is None else request.deadline_s)

    async def _in_time(self, deadline_s: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._clock())):
                return await work
        except TimeoutError:
            raise DeadlineExceeded(
                "the deadline passed before the first token; allow more latency_ms, or retry later"
            ) from None

    def _plan(self, model: ServedChat, request: ChatRequest, prompt_tokens: int, deadline_s: float) -> Plan:
        now_s = self._clock()
        return make_plan(
            model.card,
            model.cost,
            request.sampling,
            request.budget,
            prompt_tokens,
            watts=model.watts,
            remaining_s=deadline_s - now_s,
            now_s=now_s,
        )

    def _observed(self, request: ChatRequest, event: ChatEvent) -> ChatEvent:
        if isinstance(event, ChatEnd):
            self._tell(ChatAnswered(request.model, request.tenant, event.report, event.usage))
        return event

    # -- the engine's request ------------------------------------------------------------------------------------------

    def _engine_request(self, model: ServedChat, request: ChatRequest, ready: _Ready, choice: int) -> EngineRequest:
        """``ChatLinks`` gives it its id."""
        sampling = request.sampling
        return EngineRequest(
            request_id="",
            prompt_token_ids=tuple(ready.token_ids),
            images=tuple(
                EngineImage(
                    self._keys.image_key(request.tenant, model.card.id, image.content_sha256),
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
            cache_salt=self._keys.cache_salt(request.tenant),
        )


def _stored_events(found: StoredChat, image_tokens: int, degraded: tuple[str, ...]) -> Iterator[ChatEvent]:
    """An answer that was given before, at once and for nothing."""
    for index, choice in enumerate(found.choices):
        yield ChatDelta(index, choice.text, choice.num_tokens, choice.finish_reason)
    usage = Usage(
        prompt_tokens=found.prompt_tokens,
        completion_tokens=sum(choice.num_tokens for choice in found.choices),
        image_tokens=image_tokens,
        cached_tokens=found.prompt_tokens,
    )
    yield ChatEnd(usage=usage, report=_report(0.0, 0.0, 0.0, "hit", degraded))


def _end(generation: Generation, watts: float, image_tokens: int, degraded: tuple[str, ...]) -> ChatEnd:
    used_s = generation.used_s()
    usage = Usage(
        prompt_tokens=generation.prompt_tokens,
        completion_tokens=generation.completion_tokens,
        image_tokens=image_tokens,
        cached_tokens=generation.cached_tokens,
    )
    degraded += ("max_tokens",) if generation.is_capped else ()
    return ChatEnd(usage=usage, report=_report(generation.queue_s, used_s, used_s * watts, "miss", degraded))


def _report(queue_s: float, compute_s: float, joules: float, cache: str, degraded: tuple[str, ...]) -> Report:
    return Report(
        operating_point=POINT,
        energy_j=joules,
        energy_source=ENERGY_SOURCE,
        queue_ms=queue_s * 1e3,
        compute_ms=compute_s * 1e3,
        cache=cache,
        degraded=degraded,
    )
