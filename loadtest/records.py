"""What happened to each request. One record per scheduled request, whatever became of it.

Times are seconds since the start of the run, on the monotonic clock of the generator. ``None`` means "not known" or
"did not happen"; it is never written as 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class Outcome(StrEnum):
    """How one request ended. Every request ends in exactly one of these."""

    OK = "ok"
    """Answered in full."""
    PARTIAL = "partial"
    """Answered, with an error in place of some of the images."""
    CLIENT_ERROR = "client_error"
    """The server said that the request is wrong (HTTP 4xx, INVALID_ARGUMENT and its kin), or that every image is."""
    REJECTED = "rejected"
    """The server said "not now" (HTTP 429, HTTP 503 with Retry-After, RESOURCE_EXHAUSTED)."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The server gave up because the request's own deadline had passed (HTTP 408 or 504, DEADLINE_EXCEEDED)."""
    UNAVAILABLE = "unavailable"
    """The service, or the way to it, was not there (HTTP 502 or 503, UNAVAILABLE)."""
    SERVER_ERROR = "server_error"
    """Any other failure on the server's side."""
    TIMEOUT = "timeout"
    """The generator stopped waiting (``RunLimits.timeout_s``)."""
    CONNECTION_ERROR = "connection_error"
    """The connection could not be made, or broke before the answer was whole."""
    PROTOCOL_ERROR = "protocol_error"
    """An answer came that does not follow the API."""
    CANCELLED = "cancelled"
    """In flight when the run was stopped."""
    GENERATOR_DROPPED = "generator_dropped"
    """Never sent: ``RunLimits.max_in_flight`` was reached. A limit of the instrument, not an answer of the server."""
    GENERATOR_ERROR = "generator_error"
    """The generator's own code failed on this request. A run with one of these proves nothing; report it."""


CHAT_SURFACES = frozenset({"http_chat", "http_chat_unary", "grpc_chat"})
"""Surfaces whose requests are questions to a chat model."""

PAINTING_SURFACES = frozenset({"http_images", "grpc_images"})
"""Surfaces whose requests ask for pictures."""

FILMING_SURFACES = frozenset({"http_videos", "grpc_videos"})
"""Surfaces whose requests ask for a clip."""

ANSWERED_WITH_ERROR = frozenset({Outcome.PARTIAL, Outcome.CLIENT_ERROR})
"""Typed answers that blame the request: what a deliberately bad input should get."""

GENERATOR_FAULTS = frozenset({Outcome.GENERATOR_DROPPED, Outcome.GENERATOR_ERROR})
"""Outcomes that say something about the instrument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerReport:
    """The ``vireo`` block of an answer, as the server wrote it: the server's claims, not measurements of ours."""

    operating_point: str | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    cache: str | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """What a chat answer was made of. Counts are the server's, ``None`` where it does not tell."""

    first_token_at_s: float | None = None
    """When the first text arrived. ``None`` in an answer that came whole."""
    gaps_s: tuple[float, ...] = ()
    """Seconds between one arrival of text and the next. Text that arrives together is one arrival."""
    num_tokens: int | None = None
    num_prompt_tokens: int | None = None
    num_image_tokens: int | None = None
    num_cached_tokens: int | None = None
    finish_reasons: tuple[str, ...] = ()
    text: str = ""
    """Begin of the first choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request of a run."""

    index: int
    """Position in the plan, from 0."""
    phase: str
    surface: str
    tenant: str
    kind: str
    """What was sent, for example "digit" or "truncated_png"."""
    outcome: Outcome
    scheduled_at_s: float | None
    """When it was due. ``None`` in a closed loop, which has no schedule."""
    sent_at_s: float | None
    """When it was handed to the client. ``None`` if it never was."""
    first_chunk_at_s: float | None = None
    """When the first byte of the answer's body arrived."""
    done_at_s: float | None = None
    """When the last byte arrived, or the failure was known."""
    is_warm_up: bool = False
    """Kept, and left out of every figure."""
    expects_error: bool = False
    """A deliberately bad input: an error is the right answer to it. Counted apart."""
    status: str | None = None
    """HTTP status or gRPC status name."""
    error_code: str | None = None
    error_message: str | None = None
    retry_after_s: float | None = None
    request_bytes: int = 0
    response_bytes: int | None = None
    num_images: int = 0
    num_correct: int | None = None
    """Images whose label is the expected one. ``None`` if no label was expected or no answer came."""
    labels: tuple[str | None, ...] = ()
    exits: tuple[int, ...] = ()
    server: ServerReport | None = None
    generated: Generated | None = None
    """Of a chat answer."""

    @property
    def first_token_s(self) -> float | None:
        """Seconds to the first token: from scheduled where there is a schedule, else from sent."""
        return None if self.generated is None else _difference(self.generated.first_token_at_s, self.started_at_s)

    @property
    def started_at_s(self) -> float:
        """When the request was due; in a closed loop, when it was sent."""
        started = self.scheduled_at_s if self.scheduled_at_s is not None else self.sent_at_s
        assert started is not None, "a record is scheduled or sent"
        return started

    @property
    def latency_from_scheduled_s(self) -> float | None:
        """Seconds from when it was due to its end: what a caller who asked on time has waited."""
        return _difference(self.done_at_s, self.scheduled_at_s)

    @property
    def latency_from_sent_s(self) -> float | None:
        """Seconds from when it was really sent to its end; blind to any lateness of the generator."""
        return _difference(self.done_at_s, self.sent_at_s)

    @property
    def latency_s(self) -> float | None:
        """From scheduled where there is a schedule, else from sent."""
        return self.latency_from_sent_s if self.scheduled_at_s is None else self.latency_from_scheduled_s

    @property
    def generator_lag_s(self) -> float | None:
        """How late the generator itself was."""
        return _difference(self.sent_at_s, self.scheduled_at_s)


def write_jsonl(records: Iterable[Record], path: Path) -> None:
    """One JSON object per line, fields as in ``Record``."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(asdict(record), separators=(",", ":")) + "\n")


def read_jsonl(path: Path) -> list[Record]:
    """The inverse of ``write_jsonl``. Raises: ValueError: on a line that is not a record."""
    with path.open(encoding="utf-8") as file:
        return list(_parse_lines(file))


def _parse_lines(lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        try:
            yield _from_json(json.loads(line))
        except (TypeError, KeyError) as error:
            raise ValueError(f"line {number} is not a record: {error}") from error


def _from_json(fields: dict[str, Any]) -> Record:
    server, generated = fields.pop("server"), fields.pop("generated", None)
    fields["outcome"] = Outcome(fields["outcome"])
    fields["labels"] = tuple(fields["labels"])
    fields["exits"] = tuple(fields["exits"])
    if server is not None:
        server["degraded"] = tuple(server["degraded"])
        server = ServerReport(**server)
    if generated is not None:
        for name in ("gaps_s", "finish_reasons"):
            generated[name] = tuple(generated[name])
        generated = Generated(**generated)
    return Record(server=server, generated=generated, **fields)


def _difference(later_s: float | None, earlier_s: float | None) -> float | None:
    return None if later_s is None or earlier_s is None else later_s - earlier_s
