"""What the runner asks of a client, and the shapes that pass between them.

``prepare`` does all work that does not depend on the moment of sending, before the run; ``send`` should do nothing but
write bytes and read the answer. Times in a ``Reply`` are absolute, on ``time.monotonic`` (or the clock that the client
was given), because the runner subtracts its own start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from loadtest.records import Generated, Outcome, ServerReport

DEFAULT_MODEL = "dyn-perceiver-nano"
DEFAULT_CHAT_MODEL = "texthawk2-nano"
DEFAULT_PAINTER = "dit-moe-nano"
DEFAULT_FILMER = "vdit-nano"
MAX_ERROR_CHARS = 300
"""Longest error message that is kept in a record."""


class TargetError(Exception):
    """The target cannot be tested at all: not reachable at the start, or not what the scenario says."""


class NobodyThere(TargetError):
    """No server answers at the target's address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a request is willing to spend, as on the wire. ``None`` sends nothing."""

    latency_ms: float | None = None
    energy_j: float | None = None
    priority: str | None = None
    quality_floor: float | None = None

    def to_json(self) -> dict[str, float | str]:
        """The fields that are set."""
        values = {
            "latency_ms": self.latency_ms,
            "energy_j": self.energy_j,
            "priority": self.priority,
            "quality_floor": self.quality_floor,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a chat call asks, besides its images: one turn of a user, the images first."""

    text: str
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a call for pictures asks. Its seed makes it differ from every other, so that no cache answers it."""

    prompt: str
    n: int
    seed: int
    size: str | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filming:
    """What a call for a clip asks, besides the picture that it begins with, if any. ``num_frames``: None leaves the
    length to the server."""

    prompt: str
    seed: int
    size: str | None = None
    num_frames: int | None = None
    settings: Mapping[str, bool | int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Payload:
    """One call to be made, the same for every surface. Compared by identity: a repeat *is* the same object."""

    images: tuple[bytes, ...]
    """Encoded images (PNG, JPEG, WebP), or deliberately broken bytes."""
    model: str = DEFAULT_MODEL
    surface: str = "http_classify"
    tenant: str = "default"
    top_k: int = 1
    budget: Budget | None = None
    kind: str = "image"
    expects_error: bool = False
    expected_labels: tuple[str, ...] | None = None
    """True label of each image, or ``None`` if unknown."""
    question: Question | None = None
    """Of a chat call only."""
    drawing: Drawing | None = None
    """Of a call for pictures only."""
    filming: Filming | None = None
    """Of a call for a clip only."""

    @property
    def num_images(self) -> int:
        """Pictures that are sent or, in a call for pictures, asked for."""
        return len(self.images) if self.drawing is None else self.drawing.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A payload in the form in which its client sends it."""

    payload: Payload
    wire: Any
    """Private to the client that made it."""
    request_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a request ended. ``done_at_s`` is when its last byte arrived, before any parsing."""

    outcome: Outcome
    done_at_s: float
    first_chunk_at_s: float | None = None
    status: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    retry_after_s: float | None = None
    response_bytes: int | None = None
    labels: tuple[str | None, ...] = ()
    exits: tuple[int, ...] = ()
    server: ServerReport | None = None
    generated: Generated | None = None


class Client(Protocol):
    """One way to call the server. Every method but ``prepare`` runs on the event loop that sends."""

    async def start(self) -> None:
        """Make ready. Raises: TargetError: if the target cannot be tested."""
        ...

    def prepare(self, payload: Payload) -> Prepared:
        """The bytes to send. Called after ``start`` and before the run."""
        ...

    async def send(self, prepared: Prepared) -> Reply:
        """Make the call and wait for its end.

        Every failure of the target is a ``Reply``; an exception is a fault of the generator. The runner bounds the wait
        and cancels it; a cancelled call leaves nothing behind that a later one could read.
        """
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


def bearer(api_keys: Mapping[str, str], tenant: str) -> str | None:
    """The value of the Authorization header for a tenant, or ``None`` if it has no key."""
    key = api_keys.get(tenant)
    return None if key is None else f"Bearer {key}"
