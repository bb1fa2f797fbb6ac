"""A stand-in for everything behind the front door. It decodes for real and classifies by mean brightness."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from serving.domain import Classification, ClassifyReply, ClassifyRequest, ImageInput, LabelScore, Pixels, Report
from serving.errors import ServingError, UnknownModel
from serving.media.decode import decode
from serving.media.limits import MediaLimits
from serving.service import ModelCard

MODEL = "fake-nano"


def make_card(model: str = MODEL, num_classes: int = 10) -> ModelCard:
    return ModelCard(
        id=model,
        family="fake",
        created_s=1_700_000_000,
        input_size=32,
        num_classes=num_classes,
        num_exits=4,
        labels=tuple(f"class {index}" for index in range(num_classes)),
        checkpoint_sha256="ab" * 32,
        operating_points=("full", "fast"),
    )


class FakeService:
    """Records what it is asked.

    ``error`` is raised for the requests that ``fails_on`` picks; ``gate``, if given, is waited for before each answer.
    """

    def __init__(
        self,
        cards: Sequence[ModelCard] = (make_card(),),
        *,
        error: BaseException | None = None,
        fails_on: Callable[[ClassifyRequest], bool] = lambda request: True,
        gate: asyncio.Event | None = None,
        ready: bool = True,
    ) -> None:
        self.cards = tuple(cards)
        self.error = error
        self.fails_on = fails_on
        self.gate = gate
        self.ready = ready
        self.media_limits = MediaLimits()
        self.requests: list[ClassifyRequest] = []
        self.entered = asyncio.Event()
        self.in_flight = 0
        self.max_in_flight = 0
        self.num_cancelled = 0

    def models(self) -> tuple[ModelCard, ...]:
        return self.cards

    def is_ready(self) -> bool:
        return self.ready

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        self.requests.append(request)
        self.entered.set()
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._classify(request)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.in_flight -= 1

    async def _classify(self, request: ClassifyRequest) -> ClassifyReply:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None and self.fails_on(request):
            raise self.error
        card = next((card for card in self.cards if card.id == request.model), None)
        if card is None:
            raise UnknownModel(f"model {request.model} is not served here", param="model")
        return ClassifyReply(
            model=card.id,
            items=tuple(self._item(image, card, request.top_k) for image in request.images),
            report=make_report(),
        )

    def _item(self, image: ImageInput, card: ModelCard, top_k: int) -> Classification | ServingError:
        if image.error is not None:
            return image.error
        try:
            return classify_pixels(self._pixels(image), card, top_k)
        except ServingError as error:
            return error

    def _pixels(self, image: ImageInput) -> Pixels:
        if image.pixels is not None:
            self.media_limits.check_size(image.pixels.shape[1], image.pixels.shape[0])
            return image.pixels
        assert image.encoded is not None
        return decode(image.encoded, self.media_limits).rgb


def classify_pixels(rgb: Pixels, card: ModelCard, top_k: int) -> Classification:
    """Brightness picks the class; the runners-up follow it in order."""
    best = min(int(np.mean(rgb) / 256 * card.num_classes), card.num_classes - 1)
    weights = [0.5**rank for rank in range(card.num_classes)]
    top = tuple(
        LabelScore(card.labels[(best + rank) % card.num_classes], weights[rank] / sum(weights))
        for rank in range(min(top_k, card.num_classes))
    )
    return Classification(exit=1 + best % card.num_exits, top_k=top)


def make_report() -> Report:
    return Report(
        operating_point="fast",
        energy_j=0.25,
        energy_source="estimate",
        queue_ms=1.5,
        compute_ms=2.5,
        cache="miss",
        degraded=("exit_threshold",),
        guard={"score": 0.0, "action": "none"},
    )
