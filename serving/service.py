"""What the ingress needs from the rest of the system: one protocol, spoken in domain types.

``JoinedService`` makes it of its two halves: ``serving.classify.ClassifyService``, and whatever serves chat.
``tests/support`` has a fake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from serving.chat.domain import ChatEvent, ChatRequest
from serving.domain import ClassifyReply, ClassifyRequest
from serving.errors import UnknownModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What clients may know of a served model."""

    id: str
    family: str
    created_s: int
    """Unix time at which the checkpoint was made."""
    input_size: int
    """Side of the square pixel input."""
    num_classes: int
    num_exits: int
    labels: tuple[str, ...]
    checkpoint_sha256: str
    operating_points: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatModelCard:
    """What clients may know of a served chat model."""

    id: str
    created_s: int
    """Unix time at which the checkpoint was made."""
    max_model_len: int
    """Most tokens of prompt and answer together."""
    max_output_tokens: int
    """Most tokens of one answer, whatever a request asks for."""
    checkpoint_sha256: str
    modalities: tuple[str, ...] = ("text", "image")
    """What a user message may hold."""


class ClassifierService(Protocol):
    """Answers classify requests."""

    def models(self) -> tuple[ModelCard, ...]:
        """The classifiers served here."""
        ...

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        ...

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Answer every image of the request, each with a classification or its own error.

        Raises: ServingError: the request as a whole cannot be answered. Cancelling the call frees what it holds.
        """
        ...


class ChatService(Protocol):
    """Answers chat requests."""

    def chat_models(self) -> tuple[ChatModelCard, ...]:
        """The chat models served here."""
        ...

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate the answer: deltas as they come, then one ``ChatEnd``.

        Raises: ServingError: before the first event or between two. Closing the generator, or cancelling the task that
        waits for it, frees everything that the request holds.
        """
        ...


class Service(ClassifierService, ChatService, Protocol):
    """Everything behind the front door."""


class NoChat:
    """Stands where no chat model is served."""

    def chat_models(self) -> tuple[ChatModelCard, ...]:
        """None."""
        return ()

    async def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Raises: UnknownModel."""
        raise UnknownModel("no chat model is served here; see /v1/models for what is", param="model")
        yield  # makes this a generator, as the protocol has it


@dataclass(frozen=True, slots=True)
class JoinedService:
    """Classifiers and chat models behind one front door."""

    classifiers: ClassifierService
    chats: ChatService
    is_reached: Callable[[], bool] = lambda: True
    """Whether what the services call is there."""

    def models(self) -> tuple[ModelCard, ...]:
        """The classifiers served here."""
        return self.classifiers.models()

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        return self.classifiers.is_ready() and self.is_reached()

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """See ``ClassifierService.classify``."""
        return await self.classifiers.classify(request)

    def chat_models(self) -> tuple[ChatModelCard, ...]:
        """The chat models served here."""
        return self.chats.chat_models()

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """See ``ChatService.chat``."""
        return self.chats.chat(request)
