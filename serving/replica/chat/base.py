"""What a chat replica needs from any engine that generates text.

One ``run`` call is one choice of one request: ``n`` choices are ``n`` calls with their own ids. Everything a request
holds (KV blocks, encoder outputs) is freed when its call is cancelled, within one engine step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason, TokenLogprob


class EngineDelta(NamedTuple):
    """What one step, or several that were ready together, added."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...]
    num_cached_tokens: int
    """Prompt tokens that were not computed anew; the same in every delta of a request."""
    num_prompt_tokens: int
    """Prompt tokens with images expanded; the same in every delta of a request."""
    log_p_ends: tuple[float, ...] | None = None
    """Log-probability of the end where each of the tokens was drawn, as the model has it, before bias and temperature;
    None where it was not asked for (``EngineRequest.tells_ends``) or is not known."""
    held_text: str = ""
    """What has been held back for stop strings until now: the rest of the text if the listener has had enough."""


Say: TypeAlias = Callable[[EngineDelta], bool | None]
"""Where an engine hands on what it has made: a plain call, so that no task need be woken for a token. True: that was
enough. The choice then ends as if by itself: ``run`` frees what it holds, returns, and counts no abort."""


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """Counters and gauges of an engine, which keeps one of these. Counters only grow."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    image_tokens: int = 0
    encoder_seconds: float = 0.0
    encoder_images: int = 0
    """Images that went through the vision tower; a repeated image that was held does not."""
    image_cache_hits: int = 0
    image_cache_misses: int = 0
    preemptions: int = 0
    aborts: int = 0


class ChatEngine(Protocol):
    """Generates text for many requests at a time."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    @property
    def kv_bytes(self) -> int:
        """Of keys and values that all requests together may hold. Known once the engine has started."""
        ...

    def held_bytes(self, request: EngineRequest) -> int:
        """Most bytes of keys and values that the request will hold, nothing of it shared.

        Raises: ServingError: as ``run`` would.
        """
        ...

    async def start(self) -> None:
        """Load the model; afterwards ``run`` works."""
        ...

    async def run(self, request: EngineRequest, say: Say) -> None:
        """Generate one choice. Each delta is said as it is made; the last one has a finish reason, unless the listener
        had enough before.

        Raises: ServingError: the request cannot be run, or the engine died (``EngineFailed``).
        """
        ...

    @property
    def sees_apart(self) -> bool:
        """Whether ``image_distance`` ever says anything."""
        ...

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """How far the vision tower sees two images of the same grid apart: 1 - cosine of their embeddings, the mean of
        all tokens, 0 to 2. None: this engine does not give its embeddings away."""
        ...

    def stats(self) -> EngineStats:
        """A copy of what it has counted, cheap enough to be made ten times a second."""
        ...

    async def check_health(self) -> None:
        """Raises: EngineFailed: the engine process is dead or stuck; the replica must be replaced."""
        ...

    async def stop(self) -> None:
        """Free everything, end child processes. Idempotent."""
        ...


class StopStrings:
    """Where a text ends, for engines that do not know: watches it as it grows. The stop string is never given out.

    As many characters as the longest stop string less one are held back until the text ends, as vLLM does. A stop
    string counts if its end is in text that is watched.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = max((len(text) for text in stop), default=1) - 1
        self._pending = ""
        self._num_unwatched = 0

    def push(self, text: str, *, is_watched: bool = True) -> tuple[str, bool]:
        """Add text. Returns what may be given out now, and whether a stop string was met."""
        self._pending += text
        if not is_watched:
            self._num_unwatched = len(self._pending)
        found = [
            place
            for word in self._stop
            if (place := self._pending.find(word, max(0, self._num_unwatched + 1 - len(word)))) >= 0
        ]
        if found:
            given, self._pending = self._pending[: min(found)], ""
            return given, True
        cut = max(0, len(self._pending) - self._held)
        given, self._pending = self._pending[:cut], self._pending[cut:]
        self._num_unwatched = max(0, self._num_unwatched - cut)
        return given, False

    @property
    def pending(self) -> str:
        """What is held back."""
        return self._pending

    def flush(self) -> str:
        """The text ended without a stop string: the rest."""
        rest, self._pending = self._pending, ""
        return rest
