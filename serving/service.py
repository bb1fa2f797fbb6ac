"""What the front needs from the rest of the system: a protocol for each task, spoken in domain types.

``serving.delivery.unary.service`` and ``serving.tasks.*.service`` implement them; ``tests/support`` has a fake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from models.contract import ExpertFacts, Family, Knob, Shape, Variant
from models.io import knobs_of
from serving.domain import Priority, UnaryReply, UnaryRequest

if TYPE_CHECKING:
    from serving.delivery.job.base import JobPlan, JobService
    from serving.delivery.job.experts import ExpertReport
    from serving.stores.account import Account
    from serving.tasks.chat.domain import ChatEvent, ChatRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What clients may know of a served model, whatever it is for."""

    id: str
    made_of: str
    """Id of the variant, where it is served under another name."""
    family: str
    shape: Shape
    tasks: tuple[str, ...]
    """What it can be asked for, the usual first."""
    licence: str
    """Of its weights, as SPDX writes it; "none" where nothing is granted."""
    created_s: int
    """Unix time at which the checkpoint was made."""
    checkpoint_sha256: str
    io: Any
    """What goes in and comes out, one of ``models.io``."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Bounds on a request that this model has besides those of the server."""
    operating_points: tuple[str, ...] = ()
    is_calibrated: bool = False
    """Whether the points were measured: time, joules and quality of a model that was not are not known."""
    knobs: tuple[Knob, ...] = ()
    """What a request may set (``vireo.settings``), and what the operator has set for all."""
    prepare_version: str = "1"
    """Part of every cache key: raised whenever the same picture gives other inputs."""
    experts: ExpertFacts | None = None
    """Of a mixture of experts."""
    ranks: int = 1
    """Of a replica, over which its experts are spread where there are several."""


def card_of(
    family: Family, variant: Variant, *, served_as: str, created_s: int, checkpoint_sha256: str, **found: Any
) -> Card:
    """Return the card of a variant. ``found``: what was read or decided beside it."""
    return Card(
        id=served_as,
        made_of=variant.id,
        family=family.name,
        shape=family.shape,
        tasks=family.tasks,
        licence=variant.source.licence,
        created_s=created_s,
        checkpoint_sha256=checkpoint_sha256,
        io=variant.io,
        knobs=knobs_of(family, variant),
        prepare_version=family.prepare_version,
        experts=family.part("experts")(variant) if "experts" in family.parts else None,
        **found,
    )


class StoredImage(NamedTuple):
    """Name of a file, and when it goes (Unix time)."""

    name: str
    expires_at: int


class UnaryService(Protocol):
    """Answers requests of rows: pictures, words or both in, tensors out."""

    def models(self) -> tuple[Card, ...]:
        """The models served here."""
        ...

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered."""
        ...

    async def answer(self, request: UnaryRequest) -> UnaryReply:
        """Answer every item of the request, each with outputs or its own error.

        Raises: ServingError: the request as a whole cannot be answered. Cancelling the call frees what it holds.
        """
        ...

    async def plan_job(self, request: UnaryRequest, from_s: float) -> JobPlan | None:
        """What a durable job would be that answers the request, whose items differ in nothing but their seeds; None
        where it is predicted to take less than ``from_s``.

        Raises: ServingError: it cannot be answered.
        """
        ...


class ImageFiles(Protocol):
    """Keeps pictures that are fetched by a URL: ``serving.tasks.images.files``."""

    async def put(self, tenant: str, data: bytes, format: str) -> StoredImage:
        """Keep a file. Raises: StoreUnavailable."""
        ...

    async def read(self, tenant: str, name: str) -> tuple[bytes, str]:
        """A file and its media type. Raises: UnknownPath: not there, expired, or another tenant's; StoreUnavailable."""
        ...


class ChatService(Protocol):
    """Answers chat requests."""

    def chat_models(self) -> tuple[Card, ...]:
        """The chat models served here."""
        ...

    async def chat(self, request: ChatRequest, say: Callable[[ChatEvent], None]) -> None:
        """Generate the answer. ``say`` gets deltas as they come, then one ``ChatEnd``; it must not wait.

        Raises: ServingError: before the first event or between two. Cancelling the call frees everything that the
        request holds.
        """
        ...


class Accounts(Protocol):
    """What tenants may spend: ``serving.stores.results.ResultStore``."""

    @property
    def tenants(self) -> Sequence[str]:
        """Names of those that have a quota."""
        ...

    async def account(self, tenant: str) -> Account | None:
        """The tenant's account; None: it has no quota. Raises: StoreUnavailable."""
        ...


class NoAccounts:
    """Where nobody has a quota."""

    tenants: Sequence[str] = ()

    async def account(self, tenant: str) -> Account | None:
        """None."""
        return None


async def _no_experts(model: str) -> Sequence[ExpertReport]:
    return ()


@dataclass(frozen=True, slots=True)
class Service:
    """Everything behind the front door: what each task calls, and what is common to all models."""

    unary: UnaryService
    chats: ChatService
    videos: JobService
    image_jobs: JobService
    image_files: ImageFiles
    is_started: Callable[[], bool] = lambda: True
    """Whether the start of the models is over, for better or worse."""
    is_live: Callable[[str], bool] = lambda model: True
    """Whether a model has a replica that lives."""
    bending_level: Callable[[str], int | None] = lambda model: None
    """How far quality of a model gives way to the load that this gateway sees, 0 (not) to 4; None where it may not."""
    max_priorities: Mapping[str, Priority] = field(default_factory=dict)
    """By tenant; one that is not here may ask for any."""
    experts: Callable[[str], Awaitable[Sequence[ExpertReport]]] = _no_experts
    """What the experts of a model were sent lately, of each replica that answers."""
    accounts: Accounts = field(default_factory=NoAccounts)
    places: Callable[[str], int | None] = lambda tenant: None
    """Requests of a tenant that this gateway takes at a time, as things are; None where nobody counts them."""

    def rows_for(self, task: str) -> tuple[Card, ...]:
        """The models of rows that are for a task."""
        return tuple(card for card in self.unary.models() if task in card.tasks)

    def video_cards(self) -> tuple[Card, ...]:
        """The video models."""
        return tuple(model.card for model in self.videos.job_models.values())

    def cards_for(self, task: str) -> tuple[Card, ...]:
        """The models that are for a task, however they run."""
        return tuple(card for card in self.cards() if task in card.tasks)

    def cards(self) -> tuple[Card, ...]:
        """All models that are served."""
        drawn = (model.card for model in self.image_jobs.job_models.values() if model.card.shape == "job")
        return (*self.unary.models(), *self.chats.chat_models(), *self.video_cards(), *drawn)

    def is_ready(self) -> bool:
        """Whether a request sent now can be answered: by one model at least, lest a sick one take the others along."""
        if not (self.unary.is_ready() and self.is_started()):
            return False
        return any(self.is_live(card.id) for card in self.cards())

    def is_model_ready(self, model: str) -> bool:
        """Whether a replica of this model is there to answer. False for a model that is not served."""
        return self.is_live(model) and any(card.id == model for card in self.cards())
