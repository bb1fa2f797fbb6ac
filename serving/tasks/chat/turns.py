"""The messages of a chat as a model reads them, and as the guard does: without their pictures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from models.contract import Prompts, Turn
from serving.errors import InvalidRequest
from serving.guard.gateway import Asking
from serving.tasks.chat.asked import asked_of
from serving.tasks.chat.domain import ChatRequest, Message, Part, TextPart

_MAX_INLINE_CHARS = 4096
"""Longer texts are encoded on a thread: a long one takes tens of milliseconds, in which every stream would stand."""


async def token_ids(prompts: Prompts, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation with exactly one image token per image.

    Raises: InvalidRequest: the model takes no such conversation.
    """
    turns: list[Turn] = [(message.role.value, [_plain(part) for part in message.parts]) for message in messages]
    num_chars = sum(len(part) for _, parts in turns for part in parts if part is not None)
    try:
        if num_chars <= _MAX_INLINE_CHARS:
            return prompts.build(turns)
        return await asyncio.to_thread(prompts.build, turns)
    except ValueError as error:
        raise InvalidRequest(str(error), param="messages") from None


def _plain(part: Part) -> str | None:
    return part.text if isinstance(part, TextPart) else None


def asking(request: ChatRequest, max_tokens: int) -> Asking:
    """A chat as the guard sees it. ``max_tokens``: of each answer, as planned."""
    sampling = request.sampling
    return Asking(
        request_id=request.request_id,
        tenant=request.tenant,
        model=request.model,
        asked=asked_of(request.messages, is_structured=sampling.json_schema is not None),
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens,
        ignores_eos=sampling.ignore_eos,
        is_sampled=not sampling.is_deterministic,
    )
