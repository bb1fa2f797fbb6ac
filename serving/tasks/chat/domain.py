"""The types in which the OpenAI surface, gRPC and the chat service meet.

Text is a Python string, images are what the client sent; nothing here knows a tokenizer or an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from serving.delivery.stream.wire import ChatDelta
from serving.domain import Budget, ImagePart, Report, Surface


class Role(StrEnum):
    """Who speaks. ``system`` may only come first."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words. Special tokens typed in them are plain text to the model."""

    text: str


Part: TypeAlias = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens. All numbers are finite and in range: the ingress has checked them.

    ``temperature`` 0 is greedy. ``max_tokens`` None means the server's cap. ``min_tokens``: before so many, neither the
    model nor a stop sequence ends an answer; with ``ignore_eos`` the model never does. ``json_schema`` is the schema as
    compact JSON text; ``{"type": "object"}`` stands for ``response_format: json_object``.
    ``logprobs``: number of alternatives per token, 0 for the chosen token only, None for none.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    json_schema: str | None = None
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def is_deterministic(self) -> bool:
        """Whether the same request always has the same answer, which makes it fit for the result cache."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A whole chat call, parsed and authenticated."""

    request_id: str
    surface: Surface
    tenant: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    budget: Budget = field(default_factory=Budget)
    is_streamed: bool = True
    """Whether the client gets text as it comes. If not, the service gives each choice in one delta at its end: it is
    cheaper, and the request can be run again when its replica dies half-way."""
    deadline_s: float | None = None
    """Absolute time on this process's monotonic clock, from the transport; the budget's latency bounds it further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens. ``image_tokens`` and ``cached_tokens`` are parts of ``prompt_tokens``."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEnd:
    """Always the last event of a stream that did not fail."""

    usage: Usage
    report: Report


ChatEvent: TypeAlias = ChatDelta | ChatEnd


def joined(events: list[ChatEvent]) -> list[ChatEvent]:
    """Join the deltas of each choice: one token each when they come one by one, all at once when they have waited.

    The order within a choice stays; no delta moves past an event of another kind.
    """
    if len(events) == 1:
        return events
    result: list[ChatEvent] = []
    runs: dict[int, list[ChatDelta]] = {}
    for event in events:
        if isinstance(event, ChatDelta):
            runs.setdefault(event.index, []).append(event)
        else:
            result += [_join(run) for run in runs.values()]
            result.append(event)
            runs = {}
    return result + [_join(run) for run in runs.values()]


def _join(run: list[ChatDelta]) -> ChatDelta:
    if len(run) == 1:
        return run[0]
    return ChatDelta(
        run[0].index,
        "".join([delta.text for delta in run]),
        sum([delta.num_tokens for delta in run]),
        run[-1].finish_reason,
        tuple([logprob for delta in run for logprob in delta.logprobs]),
        run[-1].num_prompt_tokens,
    )
