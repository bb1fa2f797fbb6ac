"""Token ids of a conversation: between our messages and a model family's own prompt builder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from models.contract import Grid, Prompts, Turn
from serving.tasks.chat.domain import Message, Part, TextPart

_MAX_INLINE_CHARS = 4096
"""Longer texts are encoded on a thread: a long one takes tens of milliseconds, in which every stream would stand."""


async def token_ids(prompts: Prompts, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation with exactly one image token per image."""
    turns: list[Turn] = [(message.role.value, [_plain(part) for part in message.parts]) for message in messages]
    num_chars = sum(len(part) for _, parts in turns for part in parts if part is not None)
    if num_chars <= _MAX_INLINE_CHARS:
        return prompts.build(turns)
    return await asyncio.to_thread(prompts.build, turns)


def _plain(part: Part) -> str | None:
    return part.text if isinstance(part, TextPart) else None


class BytePrompts:
    """``Prompts`` of the fake engine: every byte is a token."""

    image_id = 256
    end_of_turn_id = 257

    def __init__(self, tokens_per_tile: int) -> None:
        self._tokens_per_tile = tokens_per_tile

    def build(self, messages: Iterable[Turn]) -> list[int]:
        """See ``Prompts``."""
        texts = [[self.image_id] if part is None else list(part.encode()) for _, parts in messages for part in parts]
        return [token for text in texts for token in text]

    def image_tokens(self, grid: Grid) -> int:
        """See ``Prompts``; a grid of several tiles has a thumbnail besides."""
        area = grid[0] * grid[1]
        return (area + (area > 1)) * self._tokens_per_tile

    def expand(self, ids: Sequence[int], grids: Sequence[Grid]) -> list[int]:
        """See ``Prompts``."""
        sizes = iter(grids)
        repeats = [self.image_tokens(next(sizes)) + 2 if token == self.image_id else 1 for token in ids]
        return [token for token, times in zip(ids, repeats, strict=True) for _ in range(times)]

    def num_expanded(self, ids: Sequence[int], grids: Sequence[Grid]) -> int:
        """See ``Prompts``."""
        return len(ids) + sum(self.image_tokens(grid) + 1 for grid in grids)
