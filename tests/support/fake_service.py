"""A stand-in for everything behind the front door.

It decodes for real, classifies by mean brightness, and chats by rote; ``tests.support.fake_videos`` has its video jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from models.io import ChatIO, ImageIO, PictureIO
from serving.delivery.job.base import JobPlan
from serving.delivery.job.experts import ExpertReport
from serving.delivery.stream.wire import ChatDelta, FinishReason, TokenLogprob
from serving.delivery.unary.wire import RowsAsked
from serving.domain import (
    ImageInput,
    ImagePart,
    Pixels,
    Priority,
    Report,
    UnaryAnswer,
    UnaryReply,
    UnaryRequest,
)
from serving.errors import ServingError, UnknownModel, UnknownPath
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.service import Accounts, Card, NoAccounts, Service, StoredImage
from serving.tasks.chat.domain import ChatEnd, ChatEvent, ChatRequest, Usage
from tests.support.fake_videos import FakeVideos

MODEL = "fake-nano"
CHAT_MODEL = "texthawk2-nano"
WORDS = ("Two ", "squares ", "and ", 'a "circle".\n', "方块")
"""What every chat answers, one token each."""


CHAT_IO = ChatIO(
    tile_size=224, max_tiles=12, max_tiles_side=6, tokens_per_tile=16, max_model_len=2048, kv_values_per_token=4096
)


def make_chat_card(model: str = CHAT_MODEL, family: str = "texthawk2") -> Card:
    return Card(
        id=model,
        made_of=model,
        family=family,
        shape="stream",
        tasks=("chat",),
        licence="MIT",
        created_s=1_700_000_001,
        io=CHAT_IO,
        limits={"max_model_len": 2048, "max_output_tokens": 512},
        checkpoint_sha256="cd" * 32,
    )


def make_card(model: str = MODEL, num_classes: int = 10, num_exits: int = 4) -> Card:
    return Card(
        id=model,
        made_of=model,
        family="fake",
        shape="staged",
        tasks=("classify", "infer"),
        licence="MIT",
        created_s=1_700_000_000,
        io=PictureIO(
            input_size=32,
            resize_size=32,
            num_classes=num_classes,
            num_exits=num_exits,
            labels=tuple(f"class {index}" for index in range(num_classes)),
        ),
        checkpoint_sha256="ab" * 32,
        operating_points=("full", "fast"),
        prepare_version="1",
    )


def make_image_card(model: str, io: ImageIO) -> Card:
    return replace(make_card(model), tasks=("images", "infer"), io=io)


class FakeFiles:
    """Pictures that are fetched by a URL, numbered."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    async def put(self, tenant: str, data: bytes, format: str) -> StoredImage:
        name = f"{len(self.kept)}.{format}"
        self.kept[tenant, name] = data
        return StoredImage(name, 2_000_000_000)

    async def read(self, tenant: str, name: str) -> tuple[bytes, str]:
        if (tenant, name) not in self.kept:
            raise UnknownPath("there is no such image", param="name")
        return self.kept[tenant, name], f"image/{name.rpartition('.')[2]}"


class FakeService(FakeVideos):
    """Records what it is asked.

    ``error`` is raised for the requests that ``fails_on`` picks; ``gate``, if given, is waited for before each answer.

    Chat: before token i, ``chat_gates[i]`` is waited for, if it is there; ``chat_errors[i]`` is raised, if it is there.
    Without a gate a token follows the last one without a turn of the event loop.
    """

    def __init__(
        self,
        cards: Sequence[Card] = (make_card(),),
        *,
        error: BaseException | None = None,
        fails_on: Callable[[Any], bool] = lambda request: True,
        gate: asyncio.Event | None = None,
        ready: bool = True,
        chat_cards: Sequence[Card] = (make_chat_card(),),
        words: Sequence[str] = WORDS,
        chat_gates: Mapping[int, asyncio.Event] | None = None,
        chat_errors: Mapping[int, BaseException] | None = None,
        video_cards: Sequence[Card] = (),
        is_fast: bool = False,
    ) -> None:
        super().__init__(video_cards, is_fast)
        self.cards = tuple(cards)
        self.files = FakeFiles()
        self.error = error
        self.fails_on = fails_on
        self.gate = gate
        self.ready = ready
        self.sick: set[str] = set()
        self.media_limits = MediaLimits()
        self.requests: list[Any] = []
        self.entered = asyncio.Event()
        self.in_flight = 0
        self.max_in_flight = 0
        self.num_cancelled = 0
        self.chat_cards = tuple(chat_cards)
        self.words = tuple(words)
        self.chat_gates = dict(chat_gates or {})
        self.chat_errors = dict(chat_errors or {})
        self.chats: list[ChatRequest] = []
        self.chats_open = 0
        self.image_jobs = FakeVideos(is_fast=is_fast)
        self.expert_reports: Sequence[ExpertReport] = ()
        self.accounts: Accounts = NoAccounts()
        self.report = make_report()
        self.predicted_s = 0.1
        """Of every call for pictures."""
        self.chats_cut = 0
        """Generators that were closed or cancelled before their end."""

    def models(self) -> tuple[Card, ...]:
        return self.cards

    def is_ready(self) -> bool:
        return self.ready

    def is_model_ready(self, model: str) -> bool:
        return self.ready and model not in self.sick

    async def answer(self, request: UnaryRequest) -> UnaryReply:
        self.requests.append(request)
        self.entered.set()
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def plan_job(self, request: UnaryRequest, from_s: float) -> JobPlan | None:
        if self.predicted_s < from_s:
            return None
        return JobPlan(
            request=RowsAsked(count=request.num_items),
            point={},
            seed=next(iter(request.seeds), 0),
            num_steps=1,
            name="fast",
            predicted_s=self.predicted_s,
            predicted_j=1.0,
        )

    async def _answer(self, request: UnaryRequest) -> UnaryReply:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None and self.fails_on(request):
            raise self.error
        card = next((card for card in self.cards if card.id == request.model), None)
        if card is None:
            raise UnknownModel(f"model {request.model} is not served here", param="model")
        return UnaryReply(
            model=card.id,
            items=tuple(self._items(request, card)),
            report=self.report,
        )

    def chat_models(self) -> tuple[Card, ...]:
        return self.chat_cards

    async def chat(self, request: ChatRequest, say: Callable[[ChatEvent], None]) -> None:
        self.chats.append(request)
        self.entered.set()
        self.chats_open += 1
        try:
            async with aclosing(self._chat(request)) as events:
                async for event in events:
                    say(event)
        except asyncio.CancelledError:
            self.chats_cut += 1
            raise
        finally:
            self.chats_open -= 1

    async def _chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        sampling, num_prompt_tokens = request.sampling, make_usage(request, 0).prompt_tokens
        wanted = len(self.words) if sampling.max_tokens is None else min(sampling.max_tokens, len(self.words))
        for position, word in enumerate(self.words[:wanted]):
            await self._pass(position)
            logprobs = () if sampling.logprobs is None else (make_logprob(word, sampling.logprobs),)
            for index in range(sampling.n):
                yield ChatDelta(index, word, 1, None, logprobs, num_prompt_tokens)
        await self._pass(wanted)
        reason = FinishReason.STOP if wanted == len(self.words) else FinishReason.LENGTH
        for index in range(sampling.n):
            yield ChatDelta(index, "", 0, reason, (), num_prompt_tokens)
        yield ChatEnd(usage=make_usage(request, wanted * sampling.n), report=self.report)

    async def _pass(self, position: int) -> None:
        if position in self.chat_gates:
            await self.chat_gates[position].wait()
        if position in self.chat_errors:
            raise self.chat_errors[position]

    def _items(self, request: UnaryRequest, card: Card) -> Iterator[UnaryAnswer | ServingError]:
        if not isinstance(card.io, ImageIO):
            yield from (self._item(image, card) for image in request.images)
            return
        for index in range(request.num_items):
            if request.images and request.images[index].error is not None:
                yield request.images[index].error  # type: ignore[misc]
                continue
            if request.images:
                made = 255 - self._pixels(request.images[index])
            else:
                width, height = card.io.size or (1, 1)
                made = np.full((height, width, 3), request.seeds[index] % 256, np.uint8)
            yield UnaryAnswer(outputs={"image": made}, exit=1)

    def _item(self, image: ImageInput, card: Card) -> UnaryAnswer | ServingError:
        if image.error is not None:
            return image.error
        try:
            return answer_pixels(self._pixels(image), card)
        except ServingError as error:
            return error

    def _pixels(self, image: ImageInput) -> Pixels:
        if image.pixels is not None:
            self.media_limits.check_size(image.pixels.shape[1], image.pixels.shape[0])
            return image.pixels
        assert image.encoded is not None
        return decode(image.encoded, self.media_limits).rgb


def joined(fake: FakeService, max_priorities: Mapping[str, Priority] | None = None) -> Service:
    """The fake as what is behind a front door: it is each of the tasks' services."""

    async def experts(model: str) -> Sequence[ExpertReport]:
        return fake.expert_reports

    return Service(
        fake,
        fake,
        fake,
        fake.image_jobs,
        fake.files,
        is_live=fake.is_model_ready,
        max_priorities=max_priorities or {},
        experts=experts,
        accounts=fake.accounts,
    )


def answer_pixels(rgb: Pixels, card: Card) -> UnaryAnswer:
    """Brightness picks the class; the runners-up follow it in order."""
    assert isinstance(card.io, PictureIO)
    count = card.io.num_classes
    best = min(int(np.mean(rgb) / 256 * count), count - 1)
    weights = np.array([0.5 ** ((index - best) % count) for index in range(count)])
    return UnaryAnswer(outputs={"probabilities": weights / weights.sum()}, exit=1 + best % card.io.num_exits)


def make_usage(request: ChatRequest, completion_tokens: int) -> Usage:
    """Ten tokens for each message, sixteen for each image."""
    images = sum(isinstance(part, ImagePart) for message in request.messages for part in message.parts)
    return Usage(
        prompt_tokens=10 * len(request.messages) + 16 * images,
        completion_tokens=completion_tokens,
        image_tokens=16 * images,
        cached_tokens=4,
    )


def make_logprob(word: str, num_top: int) -> TokenLogprob:
    return TokenLogprob(word, -0.5, tuple((f"{word}{rank}", -0.5 - rank) for rank in range(num_top)))


def make_report() -> Report:
    return Report(
        operating_point="fast",
        energy_j=0.25,
        energy_source="estimate",
        queue_ms=1.5,
        compute_ms=2.5,
        cache="miss",
        degraded=("exit_threshold",),
        guard={"score": 0.0, "action": "normal", "reasons": []},
    )
