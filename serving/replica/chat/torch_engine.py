"""Plain torch as a chat engine: the reference twin of vLLM, and the fallback where vLLM is not installed.

Every request has its own KV cache and takes its steps on one thread, in turn with the others; nothing is batched. The
memory for KV is bounded by whoever admits requests (``held_bytes``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.contract import ChatNetwork, Prompts
from serving.delivery.stream.wire import EngineImage, EngineRequest
from serving.errors import EngineFailed, InvalidRequest, ServingError
from serving.fair_slots import FairSlots, SlotTurn
from serving.replica.chat.base import EngineDelta, EngineStats, Say
from serving.replica.chat.checks import EngineSetup, RequestChecks
from serving.replica.chat.schemas import SchemaCompiler, SchemaGate, SchemaMatcher
from serving.replica.chat.torch_sequence import Model, TorchSequence

_LOG = logging.getLogger(__name__)
_BLOCK_TOKENS = 16


class TorchEngine:
    """See the module's docstring. ``build`` makes the network, with its weights, on the device of the setup."""

    def __init__(self, setup: EngineSetup, prompts: Prompts, build: Callable[[], ChatNetwork]) -> None:
        self._setup = setup
        self._prompts = prompts
        self._build = build
        self._slots = FairSlots(setup.options.max_num_seqs)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vireo-chat-torch")
        self._loaded: _Loaded | None = None
        self._gate: SchemaGate | None = None
        self._held: dict[str, TorchSequence] = {}
        blocks = setup.options.max_num_seqs * -(-setup.max_model_len // _BLOCK_TOKENS)
        self._stats = EngineStats(kv_blocks_total=blocks)

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._setup.max_model_len

    @property
    def kv_bytes(self) -> int:
        """As configured."""
        return self._setup.options.kv_cache_mb << 20

    def held_bytes(self, request: EngineRequest) -> int:
        """Prompt and longest answer."""
        if self._loaded is None:
            raise EngineFailed("the model is not loaded; retry")
        self._loaded.checks.check(request)
        return self._loaded.checks.num_tokens(request) * self._loaded.token_bytes

    async def start(self) -> None:
        """Load the model on the engine's thread."""
        parts = (self._setup, self._prompts, self._build, self._stats)
        loaded = await asyncio.get_running_loop().run_in_executor(self._thread, _Loaded, *parts)
        self._gate = SchemaGate(self._setup.folder, loaded.checks.vocab_size)
        self._loaded = loaded

    async def stop(self) -> None:
        """End the thread after its current step."""
        self._loaded = None
        if self._gate is not None:
            self._gate.close()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    async def check_health(self) -> None:
        """Raises: EngineFailed: not started, or stopped."""
        if self._loaded is None:
            raise EngineFailed("the model is not loaded; retry")

    async def run(self, request: EngineRequest, say: Say) -> None:
        """Generate one choice."""
        await self.check_health()
        loaded = self._loaded
        assert loaded is not None, "check_health has seen it"
        loaded.checks.check(request)
        matcher = await self._matcher(loaded, request)
        finished = False
        try:
            turn = SlotTurn()
            await self._slots.acquire(turn)
            try:
                sequence = self._held[request.request_id] = loaded.sequence(request, matcher)
                self._stats.image_tokens += loaded.checks.image_tokens(request)
                while not finished:
                    delta = await self._step(sequence)
                    if delta is None:
                        continue
                    finished = delta.finish_reason is not None
                    self._stats.prefill_tokens += delta.num_prompt_tokens if sequence.is_first else 0
                    self._stats.decode_tokens += len(delta.token_ids)
                    finished = bool(say(delta)) or finished
            finally:
                self._held.pop(request.request_id, None)
                self._slots.release(turn, 0.0)
        finally:
            self._stats.aborts += not finished

    @property
    def sees_apart(self) -> bool:
        """Yes: the tower is here."""
        return True

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """On the engine's thread, between the steps of others. ``other`` is not kept."""
        await self.check_health()
        assert self._loaded is not None, "check_health has seen it"
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._loaded.image_distance, one, other)

    def stats(self) -> EngineStats:
        """Counters."""
        held = sum(-(-sequence.num_held_tokens // _BLOCK_TOKENS) for sequence in self._held.values())
        now = {"running": self._slots.running, "waiting": self._slots.waiting, "kv_blocks_used": held}
        return replace(self._stats, **now)

    async def _matcher(self, loaded: _Loaded, request: EngineRequest) -> SchemaMatcher | None:
        if request.json_schema is None:
            return None
        if loaded.schemas is None or self._gate is None:
            raise InvalidRequest(
                "this server has no library for JSON schemas (llguidance); leave response_format out",
                param="response_format",
            )
        await self._gate.check(request.json_schema)
        return await asyncio.to_thread(loaded.schemas.matcher, request.json_schema)

    async def _step(self, sequence: TorchSequence) -> EngineDelta | None:
        """A step that waits for its turn is dropped when the caller is cancelled; one that runs is not waited for."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, sequence.step)
        except ServingError:
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._loaded is None and task is not None and not task.cancelling():
                raise EngineFailed("the model was stopped; retry") from None
            raise
        except RuntimeError as error:  # torch's, out of memory included; the thread's, when it was stopped
            _LOG.exception("a step failed")
            raise EngineFailed("the model failed on this request; retry, or send another one") from error


class _Loaded:
    """The model in memory, and what goes with it."""

    def __init__(
        self, setup: EngineSetup, prompts: Prompts, build: Callable[[], ChatNetwork], stats: EngineStats
    ) -> None:
        network = build()
        self._prompts = prompts
        vocab_size = int(network.language_model.config.vocab_size)
        self.checks = RequestChecks(setup, prompts, vocab_size)
        self.token_bytes = _token_bytes(network.language_model)
        self.schemas = SchemaCompiler.of_model(setup.folder, vocab_size)
        self._encoder = _Encoder(network, setup.options.image_cache_mb << 20, stats)
        self._model = Model(
            language=network.language_model,
            encode=self._encoder.encode,
            tokenizer=Tokenizer.from_file(str(setup.folder / "tokenizer.json")),
            image_token_id=prompts.image_id,
            end_token_id=prompts.end_of_turn_id,
            device=torch.device(setup.device),
        )

    @torch.inference_mode()
    def image_distance(self, one: EngineImage, other: EngineImage) -> float:
        """See ``ChatEngine``."""
        first, second = self._encoder.encode(one).float(), self._encoder.look(other).float()
        return float(1.0 - torch.cosine_similarity(first, second, dim=-1).mean())

    def sequence(self, request: EngineRequest, matcher: SchemaMatcher | None) -> TorchSequence:
        prompt = self._prompts.expand(request.prompt_token_ids, [image.grid for image in request.images])
        return TorchSequence(self._model, request, prompt, matcher)


def _token_bytes(language_model: Any) -> int:
    """Of keys and values."""
    config = language_model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    num_values = config.num_hidden_layers * num_heads * head_dim
    return int(2 * num_values * language_model.dtype.itemsize)


class _Encoder:
    """The vision tower, with the embeddings of the last images. Used on the engine's thread only."""

    def __init__(self, network: ChatNetwork, max_bytes: int, stats: EngineStats) -> None:
        self._network = network
        self._stats = stats
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def encode(self, image: EngineImage) -> Tensor:
        """(tokens, width) of one image."""
        if (kept := self._kept.get(image.key)) is not None:
            self._kept.move_to_end(image.key)
            self._stats.image_cache_hits += 1
            return kept
        self._stats.image_cache_misses += 1
        embeddings = self.look(image)
        self._keep(image.key, embeddings)
        return embeddings

    def look(self, image: EngineImage) -> Tensor:
        """(tokens, width) of one image that nobody will ask for again."""
        started = time.perf_counter()
        tiles = torch.tensor(image.tiles)  # a copy: shared memory may be read-only
        embeddings: Tensor = self._network.encode_images(tiles, [image.grid])[0]
        self._stats.encoder_images += 1
        self._stats.encoder_seconds += time.perf_counter() - started
        return embeddings

    def _keep(self, key: str, embeddings: Tensor) -> None:
        self._kept[key] = embeddings
        self._bytes += embeddings.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
