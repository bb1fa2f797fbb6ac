"""A chat service under guard: real transport, a fake engine, and a replica's guard that says what it is told to."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from models.io import ChatTokens
from schedulers.answer_cost import AnswerCost
from schedulers.cost import Units
from schedulers.guard.calibration import Group, GuardCalibration
from schedulers.guard.text import TextModel
from schedulers.policies.guard import Mode
from schedulers.retry_budget import RetryBudget
from serving.config import GuardSettings
from serving.delivery.pipeline import Pipeline, PipelineLimits
from serving.delivery.stream.links import ChatLinks, Route
from serving.delivery.stream.wire import ChoiceStart, Delta, EngineRequest, FinishReason, Frame, GuardSaid
from serving.domain import ImagePart, Pixels, Surface
from serving.guard.fingerprints import Fingerprints
from serving.guard.gateway import ChatGuard
from serving.guard.pictures import Pictures
from serving.guard.store import Seen
from serving.media.limits import MediaBudget, MediaLimits
from serving.media.pool import Caller
from serving.media.prepare import PreparedImage
from serving.media.request_images import FetchedImage
from serving.replica.chat.fake_engine import BytePrompts, FakeChatEngine
from serving.tasks.chat.domain import ChatEnd, ChatEvent, ChatRequest, Message, Part, Role, Sampling, TextPart
from serving.tasks.chat.results import TenantKeys
from serving.tasks.chat.service import ChatService, ServedChat
from serving.telemetry.events import Event
from tests.support.chat_replicas import WATTS, LocalCall, LocalCalls, Replica
from tests.support.fake_service import make_chat_card
from tests.support.memory_results import MemoryResults

MODEL = "fake-chat"
BENIGN_TOKENS = 10
CAP_TOKENS = 20


def calibration(num: int = 999, p95_tokens: int = CAP_TOKENS, squeeze: tuple[float, ...] = ()) -> GuardCalibration:
    """Of a model whose answers have about ten tokens, whatever it is asked."""
    residuals = tuple(math.log(2.0) * (2 * place / (num - 1) - 1) for place in range(num))
    text = TextModel(weights=(0.0,) * 8, intercept=math.log1p(BENIGN_TOKENS))
    group = Group(num=num, p95_tokens=p95_tokens, residuals=residuals, repeat=(0.5,) * num, squeeze=squeeze)
    return GuardCalibration(model=MODEL, checkpoint_sha256="0" * 64, num_benign=num, text=text, groups={"all": group})


class ScriptedScreen:
    """``p_values`` by the number that a picture is painted with; 1 for others. ``seen``: the very arrays."""

    def __init__(self, p_values: Mapping[int, float] | None = None, error: Exception | None = None) -> None:
        self.p_values = p_values or {}
        self.error = error
        self.seen: list[Pixels] = []

    def p_value(self, tiles: Pixels) -> float:
        self.seen.append(tiles)
        if self.error is not None:
            raise self.error
        return self.p_values.get(int(tiles.flat[0]), 1.0)


class ScriptedQuarantine:
    """Knows what it was given, as pixels; of ``streams``, that many were sent."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.known: set[tuple[str | None, bytes]] = set()
        self.streams: set[bytes] = set()
        self.looks: list[tuple[str, bytes]] = []

    async def look(self, tenant: str, digest: bytes, fingerprint: bytes, checkpoint: str) -> Seen:
        self.looks.append((tenant, digest))
        is_known = (None, digest) in self.known or (tenant, fingerprint) in self.known
        return Seen("entry" if is_known else None, is_known, 99 if digest in self.streams else 0)

    async def put(self, tenant: str, digest: bytes, fingerprint: bytes, **said: Any) -> bool:
        self.kept.append({"tenant": tenant, "digest": digest, **said})
        self.known |= {(None, digest), (tenant, fingerprint)}
        return True

    async def stop(self) -> None:
        pass


class Images:
    """A picture is one tile in the grey of its first byte; its content is its bytes."""

    def __init__(self) -> None:
        self.prepared: list[PreparedImage] = []

    async def fetch(self, parts: Sequence[ImagePart], caller: Caller, deadline_s: float) -> list[FetchedImage]:
        return [FetchedImage(part, part.encoded or b"", MediaBudget(MediaLimits())) for part in parts]

    def count_tiles(self, images: Sequence[FetchedImage], model_id: str, choices: Sequence[int]) -> dict[int, int]:
        return {most: len(images) for most in choices}

    async def prepare(
        self, images: Sequence[FetchedImage], model_id: str, caller: Caller, max_tiles: int | None = None
    ) -> list[PreparedImage]:
        made = [
            PreparedImage(
                pixels=picture(image.encoded[0]),
                content_sha256=hashlib.sha256(image.encoded).digest(),
                original_size=(128, 128),
                decode_ms=0.0,
                grid=(1, 1),
            )
            for image in images
        ]
        self.prepared += made
        return made


def picture(grey: int) -> Pixels:
    """Uint8 (1, 128, 128, 3), with a pattern of its own, so that no two look alike."""
    blocks = np.random.default_rng(grey).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    pattern = blocks.repeat(8, axis=1).repeat(8, axis=2)
    pattern.flat[0] = grey
    pattern.flags.writeable = False
    return pattern


class SayingCalls(LocalCalls):
    """The replica's guard says what is in ``said``, of every choice that it was ordered to watch; one that it confirms
    it has ended, if it may."""

    def __init__(self, *replicas: Replica) -> None:
        super().__init__(*replicas)
        self.said: GuardSaid | None = None
        self.starts: list[ChoiceStart] = []

    def open(self, gateway: str, session: int, starts: list[ChoiceStart], route: Route) -> LocalCall:
        self.starts += starts
        return cast(LocalCall, _Said(super().open(gateway, session, starts, route), self))


class _Said:
    def __init__(self, call: LocalCall, calls: SayingCalls) -> None:
        self._call = call
        self._calls = calls

    def cancel(self) -> None:
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        async for frame in self._call:
            yield [self._with_verdict(item) for item in frame] if isinstance(frame, list) else frame

    def _with_verdict(self, item: Any) -> Any:
        if not isinstance(item, Delta) or item.finish_reason is None:
            return item
        (start,) = [one for one in self._calls.starts if one.id == item.id]
        said = self._calls.said
        if start.guard is None or said is None:
            return item._replace(guard=None)
        is_cut = said.is_confirmed and start.guard.mode == Mode.ENFORCE
        return item._replace(guard=said, finish_reason=FinishReason.LENGTH if is_cut else item.finish_reason)


def _work(tokens: ChatTokens) -> Units:
    return {"prompt_tokens": tokens.text_tokens + tokens.image_tokens, "output_tokens": tokens.max_tokens}


class GuardedWorld:
    """One gateway's chats and what is behind them. ``settings``: of the guard. ``replica``: one whose guard is real, in
    place of one whose guard says what it is told to; with ``cost`` and ``work``, what its answers should take."""

    def __init__(
        self,
        *,
        answer: str = "ordinary",
        modes: Mapping[str, str] | None = None,
        trusted: Mapping[str, bool] | None = None,
        screen: ScriptedScreen | None = None,
        is_calibrated: bool = True,
        has_screen: bool = True,
        has_quarantine: bool = True,
        settings: Mapping[str, Any] | None = None,
        replica: Replica | None = None,
        cost: AnswerCost | None = None,
        work: Callable[[ChatTokens], Units] = _work,
    ) -> None:
        self.engine_requests: list[EngineRequest] = []

        def tell(request: EngineRequest) -> str:
            self.engine_requests.append(request)
            return answer

        scripted = Replica("r", FakeChatEngine(answer=tell, step_s=1e-4, prefill_s=1e-4))
        self.replica = replica or scripted
        self.calls = SayingCalls(self.replica)
        calls = self.calls if replica is None else LocalCalls(replica)
        self.screen, self.quarantine = screen or ScriptedScreen(), ScriptedQuarantine()
        self.store, self.events, self.images = MemoryResults(), list[Event](), Images()
        self.pictures = Pictures(
            self.screen if has_screen else None,
            self.quarantine if has_quarantine else None,
            Fingerprints(b"secret"),
            self.events.append,
        )
        self.guard = ChatGuard(
            {MODEL: calibration()} if is_calibrated else {},
            GuardSettings(**(settings or {})),
            self.pictures,
            modes={} if modes is None else modes,
            trusted=trusted or {},
            tell=self.events.append,
        )
        card = dataclasses.replace(
            make_chat_card(MODEL), limits={"max_model_len": 1024, "max_output_tokens": 256}, knobs=()
        )
        served = ServedChat(
            card=card,
            prompts=BytePrompts(tokens_per_tile=16),
            links=ChatLinks(calls, "g"),
            cost=cost or AnswerCost({"prompt_tokens": 1e-6, "output_tokens": 1e-5}, watts=WATTS),
            retries=RetryBudget(1000),
            work=work,
            watts=WATTS,
            slots=64,
        )
        limits = PipelineLimits(max_in_flight=64, default_deadline_s=30.0)
        clock = asyncio.get_running_loop().time
        self.pipeline = Pipeline(cast(Any, self.store), limits, clock=clock, tell=self.events.append, models=(MODEL,))
        self.keys = TenantKeys(b"secret" * 6)
        self.service = ChatService({MODEL: served}, self.images, self.pipeline, self.keys, guard=self.guard)

    async def stop(self) -> None:
        """Nothing runs any more."""
        await self.service.stop()
        await self.replica.hub.stop()

    async def ask(self, request: ChatRequest) -> ChatEnd:
        said: list[ChatEvent] = []
        await self.service.chat(request, said.append)
        last = said[-1]
        assert isinstance(last, ChatEnd)
        return last

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def request(text: str = "hello", *pictures: int, tenant: str = "acme", **fields: Any) -> ChatRequest:
    """``pictures``: the grey of each."""
    sampling = Sampling(**{"temperature": 0.0, **fields.pop("sampling", {})})
    parts: tuple[Part, ...] = (TextPart(text), *(ImagePart(encoded=bytes([grey])) for grey in pictures))
    given: dict[str, Any] = {"surface": Surface.HTTP_CHAT, "request_id": "id", "is_streamed": False, **fields}
    return ChatRequest(tenant=tenant, model=MODEL, messages=(Message(Role.USER, parts),), sampling=sampling, **given)
