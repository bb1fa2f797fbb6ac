"""Token ids of a conversation: between our messages and a model family's own prompt builder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Protocol

from models.families.texthawk2.prompt import IMAGE_PART, PromptBuilder
from models.families.texthawk2.prompt import Message as PromptMessage
from models.families.texthawk2.tiling import image_tokens
from serving.tasks.chat.domain import Message, TextPart

_MAX_INLINE_CHARS = 4096
"""Longer texts are encoded on a thread: a long one takes tens of milliseconds, in which every stream would stand."""


class Prompts(Protocol):
    """What the chat service asks about prompts."""

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids with exactly one image token per image."""
        ...

    def num_expanded(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> int:
        """Tokens that the model reads, images included."""
        ...

    def image_tokens(self, grid: tuple[int, int]) -> int:
        """Tokens of one image."""
        ...


class TextHawkPrompts:
    """``Prompts`` of the TextHawk2 family."""

    def __init__(self, builder: PromptBuilder, tokens_per_tile: int) -> None:
        self._builder = builder
        self._tokens_per_tile = tokens_per_tile

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """See ``Prompts``."""
        plain = [_plain(message) for message in messages]
        num_chars = sum(len(part) for _, parts in plain for part in parts if isinstance(part, str))
        if num_chars <= _MAX_INLINE_CHARS:
            return self._build(plain)
        return await asyncio.to_thread(self._build, plain)

    def _build(self, messages: Iterable[PromptMessage]) -> list[int]:
        return self._builder.build(messages)

    def num_expanded(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> int:
        """See ``Prompts``."""
        return self._builder.num_expanded(token_ids, grids)

    def image_tokens(self, grid: tuple[int, int]) -> int:
        """See ``Prompts``."""
        return image_tokens(grid, self._tokens_per_tile)


def _plain(message: Message) -> PromptMessage:
    return message.role.value, [part.text if isinstance(part, TextPart) else IMAGE_PART for part in message.parts]


class BytePrompts:
    """``Prompts`` of the fake engine: every byte is a token."""

    IMAGE_ID = 256

    def __init__(self, tokens_per_tile: int) -> None:
        self._tokens_per_tile = tokens_per_tile

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        """See ``Prompts``."""
        parts = [part for message in messages for part in message.parts]
        texts = [list(part.text.encode()) if isinstance(part, TextPart) else [self.IMAGE_ID] for part in parts]
        return [token for text in texts for token in text]

    def num_expanded(self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]]) -> int:
        """See ``Prompts``."""
        return len(token_ids) + sum(self.image_tokens(grid) + 1 for grid in grids)

    def image_tokens(self, grid: tuple[int, int]) -> int:
        """See ``Prompts``."""
        return image_tokens(grid, self._tokens_per_tile)
