"""What HTTP and gRPC share behind the parsing: the service, the rules of a whole call, and one record per call."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass

from serving.domain import ClassifyReply, ClassifyRequest, Surface
from serving.errors import ServingError, UnknownModel
from serving.front.auth import Authenticator
from serving.limits import IngressLimits
from serving.service import ChatModelCard, ModelCard, Service, VideoModelCard
from serving.telemetry.events import OK, PARTIAL, UNKNOWN, CallFinished, CallStarted, Sink

MODEL_VERSION = "1"
"""The only version of every model that OIP clients see; the checkpoint's hash says more."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")


def all_failed(reply: ClassifyReply) -> ServingError | None:
    """Return the first item's error if no item has an answer: then the call as a whole fails with it."""
    first: ServingError | None = None
    for item in reply.items:
        if not isinstance(item, ServingError):
            return None
        first = first or item
    return first


def request_id(proposed: str | None) -> str:
    """Return the caller's request id if it is safe to echo and log, and a fresh one otherwise."""
    if proposed is not None and _REQUEST_ID.fullmatch(proposed):
        return proposed
    return uuid.uuid4().hex


def shown(value: object, max_chars: int = 60) -> str:
    """Return a caller's value as it may stand in a message: printable, short."""
    if isinstance(value, str | bytes):
        text = repr(value[:max_chars])
        return text if len(value) <= max_chars else f"{text}... ({len(value)} long)"
    if isinstance(value, list | tuple | dict):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= max_chars else text[:max_chars] + "..."


@dataclass(slots=True)
class Visit:
    """One inference call, as metrics see it."""

    surface: Surface
    started_s: float
    model: str = UNKNOWN
    tenant: str = UNKNOWN
    outcome: str = "cancelled"
    """What is recorded if nothing else is said: a task that is cancelled says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Collaborators of the front door."""

    service: Service
    authenticator: Authenticator
    limits: IngressLimits
    tell: Sink

    def begin(self, surface: Surface) -> Visit:
        """Open the record of a call."""
        self.tell(CallStarted(surface))
        return Visit(surface, time.perf_counter())

    def end(self, visit: Visit) -> None:
        """Close the record of a call."""
        self.tell(
            CallFinished(
                surface=visit.surface,
                model=visit.model if self._is_served(visit.model) else UNKNOWN,
                tenant=visit.tenant,
                outcome=visit.outcome,
                seconds=time.perf_counter() - visit.started_s,
            )
        )

    def _is_served(self, model: str) -> bool:
        service = self.service
        ids = [card.id for card in service.models()]
        ids += [card.id for card in service.chat_models()]
        return model in ids or any(card.id == model for card in service.video_models())

    async def classify(self, request: ClassifyRequest, visit: Visit) -> ClassifyReply:
        """Have a request answered.

        Raises: ServingError: the call failed, or every image of it did.
        """
        visit.model = request.model
        reply = await self.service.classify(request)
        failed = all_failed(reply)
        if failed is not None:
            raise failed
        visit.outcome = PARTIAL if any(isinstance(item, ServingError) for item in reply.items) else OK
        return reply

    def chat_card(self, model: str) -> ChatModelCard:
        """Look a chat model up.

        Raises: UnknownModel: no such model, or it is no chat model.
        """
        cards = self.service.chat_models()
        for card in cards:
            if card.id == model:
                return card
        known = ", ".join(card.id for card in cards) or "none"
        raise UnknownModel(f"chat model {shown(model)} is not served here; served: {known}", param="model")

    def video_card(self, model: str) -> VideoModelCard:
        """Look a video model up.

        Raises: UnknownModel: no such model, or it makes no clips.
        """
        cards = self.service.video_models()
        for card in cards:
            if card.id == model:
                return card
        known = ", ".join(card.id for card in cards) or "none"
        raise UnknownModel(f"video model {shown(model)} is not served here; served: {known}", param="model")

    def served(self, model: str, version: str = "") -> str:
        """Look a model of whatever kind up; return its id.

        Raises: UnknownModel: no such model or version.
        """
        if self._is_served(model) and version in ("", MODEL_VERSION):
            return model
        return self.card(model, version).id

    def default_video_model(self) -> str | None:
        """The only video model, if there is but one."""
        cards = self.service.video_models()
        return cards[0].id if len(cards) == 1 else None

    def card(self, model: str, version: str = "") -> ModelCard:
        """Look a model up.

        Raises: UnknownModel: no such model or version.
        """
        for card in self.service.models():
            if card.id == model and version in ("", MODEL_VERSION):
                return card
        name = shown(model) if not version else f"{shown(model)} version {shown(version)}"
        known = ", ".join(card.id for card in self.service.models())
        raise UnknownModel(f"model {name} is not served here; served: {known}", param="model")
