"""An engine without a model: deterministic text, settable pace and failures. For tests and for plumbing checks.

A token is up to four characters. The answer is a function of the request, so two identical requests have identical
answers; above temperature 0 the seed is part of it.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from models.contract import Grid, Turn
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason, TokenLogprob
from serving.errors import EngineFailed, PromptTooLong
from serving.fair_slots import FairSlots, SlotTurn
from serving.replica.chat.base import EngineDelta, EngineStats, Say, StopStrings

_TOKEN_CHARACTERS = 4


def describe(request: EngineRequest) -> str:
    """The default answer: says what arrived."""
    sizes = ", ".join(f"{rows}x{columns}" for rows, columns in (image.grid for image in request.images))
    seen = f" and {len(request.images)} images of {sizes} tiles" if request.images else ""
    seed = f" Seed {request.seed}." if request.temperature > 0 else ""
    return f"You sent {len(request.prompt_token_ids)} tokens{seen}.{seed}"


class FakeChatEngine:
    """See the module's docstring.

    ``step_s`` is the time of one token, ``prefill_s`` and ``encode_s`` those of a prompt and of one new image, whatever
    else runs. ``num_blocks`` blocks of ``block_size`` tokens hold prompts and answers; a request keeps what its longest
    answer needs from the first step on.
    """

    def __init__(
        self,
        *,
        answer: Callable[[EngineRequest], str] = describe,
        step_s: float = 0.0,
        prefill_s: float = 0.0,
        encode_s: float = 0.0,
        fails: Callable[[EngineRequest], bool] = lambda request: False,
        max_num_seqs: int = 16,
        max_model_len: int = 4096,
        block_size: int = 16,
        num_blocks: int = 4096,
        max_held_images: int = 64,
        tokens_per_tile: int = 16,
    ) -> None:
        self._answer = answer
        self._step_s, self._prefill_s, self._encode_s = step_s, prefill_s, encode_s
        self._fails = fails
        self._max_model_len = max_model_len
        self._block_size, self._num_blocks = block_size, num_blocks
        self._max_held_images = max_held_images
        self._tokens_per_tile = tokens_per_tile
        self._slots = FairSlots(max_num_seqs)
        self._images: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, int] = {}
        self._stats = EngineStats(kv_blocks_total=num_blocks)
        self._dead = asyncio.Event()

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._max_model_len

    @property
    def kv_bytes(self) -> int:
        """A byte a token."""
        return self._num_blocks * self._block_size

    def held_bytes(self, request: EngineRequest) -> int:
        """Prompt and longest answer, in whole blocks."""
        return self._blocks(self._check(request) + request.max_tokens) * self._block_size

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Fail what is in flight, forget the images."""
        self.die()
        self._images.clear()

    async def check_health(self) -> None:
        """Raises: EngineFailed: ``die`` was called."""
        if self._dead.is_set():
            raise _dead()

    def die(self) -> None:
        """Behave like an engine whose process was killed."""
        self._dead.set()

    async def run(self, request: EngineRequest, say: Say) -> None:
        """Generate one choice, a token at a time."""
        await self.check_health()
        num_prompt_tokens = self._check(request)
        finished = False
        try:
            turn = SlotTurn()
            await self._slots.acquire(turn)
            try:
                self._hold(request, num_prompt_tokens)
                await self._generate(request, num_prompt_tokens, say)
                finished = True
            finally:
                self._held.pop(request.request_id, None)
                self._slots.release(turn, 0.0)
        finally:
            self._stats.aborts += not finished and not self._dead.is_set()

    @property
    def sees_apart(self) -> bool:
        """No."""
        return False

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """There is no tower."""
        return None

    def stats(self) -> EngineStats:
        """Counters."""
        used, running, waiting = sum(self._held.values()), self._slots.running, self._slots.waiting
        return replace(self._stats, running=running, waiting=waiting, kv_blocks_used=used)

    def _check(self, request: EngineRequest) -> int:
        """Tokens of the prompt with images expanded."""
        num_images = sum(self._image_tokens(image.grid) + 1 for image in request.images)
        num_tokens = len(request.prompt_token_ids) + num_images
        longest = num_tokens + request.max_tokens
        if longest > self._max_model_len or self._blocks(longest) > self._num_blocks:
            most = min(self._max_model_len, self._num_blocks * self._block_size)
            raise PromptTooLong.of_chat(most, num_tokens, request.max_tokens)
        return num_tokens

    def _image_tokens(self, grid: tuple[int, int]) -> int:
        tiles = grid[0] * grid[1]
        return self._tokens_per_tile * (tiles + (tiles > 1))

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    def _hold(self, request: EngineRequest, num_prompt_tokens: int) -> None:
        needed = self._blocks(num_prompt_tokens + request.max_tokens)
        if needed + sum(self._held.values()) > self._num_blocks:
            raise EngineFailed("the model has no memory left for this request; retry")
        self._held[request.request_id] = needed

    async def _generate(self, request: EngineRequest, num_prompt_tokens: int, say: Say) -> None:
        await self._encode(request)
        await self._sleep(self._prefill_s)
        self._stats.prefill_tokens += num_prompt_tokens
        if self._fails(request):
            raise EngineFailed("the model failed on this request; retry, or send another one")
        stop = StopStrings(request.stop)
        pieces = self._pieces(request)
        for index, piece in enumerate(pieces[: request.max_tokens], start=1):
            await self._sleep(self._step_s)
            self._stats.decode_tokens += 1
            text, stopped = stop.push(piece, is_watched=index > request.min_tokens)
            reason = _reason(stopped, index, len(pieces), request.max_tokens)
            if reason is not None and not stopped:
                text += stop.flush()
            is_enough = say(
                EngineDelta(
                    text=text,
                    token_ids=(sum(map(ord, piece)),),
                    finish_reason=reason,
                    logprobs=_logprobs(piece, request.logprobs),
                    num_cached_tokens=0,
                    num_prompt_tokens=num_prompt_tokens,
                    held_text=stop.pending,
                )
            )
            if is_enough or reason is not None:
                return

    async def _encode(self, request: EngineRequest) -> None:
        for image in request.images:
            self._stats.image_tokens += self._image_tokens(image.grid)
            if image.key in self._images:
                self._images.move_to_end(image.key)
                self._stats.image_cache_hits += 1
                continue
            await self._sleep(self._encode_s)
            self._stats.encoder_seconds += self._encode_s
            self._stats.encoder_images += 1
            self._stats.image_cache_misses += 1
            self._images[image.key] = None
            while len(self._images) > self._max_held_images:
                self._images.popitem(last=False)

    async def _sleep(self, seconds: float) -> None:
        """Let time pass; death ends the wait."""
        if seconds <= 0:
            await asyncio.sleep(0)
        else:
            try:
                await asyncio.wait_for(self._dead.wait(), seconds)
            except TimeoutError:
                return
        if self._dead.is_set():
            raise _dead()

    def _pieces(self, request: EngineRequest) -> list[str]:
        """Of the answer; over and over, where it may not end yet."""
        text = self._answer(request) if request.json_schema is None else _example(request.json_schema)
        pieces = [text[i : i + _TOKEN_CHARACTERS] for i in range(0, len(text), _TOKEN_CHARACTERS)] or [""]
        least = max(len(pieces), request.max_tokens if request.ignore_eos else request.min_tokens)
        return list(islice(cycle(pieces), least))


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


def _dead() -> EngineFailed:
    return EngineFailed("the model's process ended; retry")


def _reason(stopped: bool, index: int, num_pieces: int, max_tokens: int) -> FinishReason | None:
    if stopped or index == num_pieces:
        return FinishReason.STOP
    return FinishReason.LENGTH if index == max_tokens else None


def _logprobs(piece: str, wanted: int | None) -> tuple[TokenLogprob, ...]:
    if wanted is None:
        return ()
    return (TokenLogprob(piece, 0.0, tuple((piece if i == 0 else f"~{i}", -float(i)) for i in range(wanted))),)


def _example(schema_text: str) -> str:
    return json.dumps(_example_value(json.loads(schema_text)))


def _example_value(schema: Mapping[str, Any]) -> object:
    """A value that fits a plain schema: enum, const, and the types with their required properties."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        names = schema.get("required", schema.get("properties", {}))
        return {name: _example_value(schema.get("properties", {}).get(name, {})) for name in names}
    if kind == "array":
        return [_example_value(schema.get("items", {}))] * int(schema.get("minItems", 0))
    plain: dict[str, object] = {"string": "x" * int(schema.get("minLength", 1)), "boolean": True, "null": None}
    return plain.get(kind, schema.get("minimum", 1))
