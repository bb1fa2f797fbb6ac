"""The pictures of a request before any model sees them: how strange they look, and whether they are known.

The arrays are those that the cache key is made of and that the engine gets; nothing is decoded for the guard.

Several pictures are known by themselves, the first ``MAX_LOOKS`` of them, and all together. What is caught is kept as
what was sent: one picture, or this set. A picture that merely travelled with a crafted one is not kept by itself; else
one could have somebody's popular picture capped by sending it along.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog

from schedulers.guard.detectors import Layer
from schedulers.policies.guard import combined
from serving.domain import Pixels
from serving.guard.fingerprints import FINGERPRINT_BYTES, Fingerprints
from serving.guard.store import Seen
from serving.media.prepare import PreparedImage
from serving.telemetry.events import GuardFailed, GuardScreened, Sink, ignore

_log = structlog.get_logger(__name__)
MAX_LOOKS = 8
_MAX_HELD = 1024
"""Pictures whose score and fingerprint a gateway remembers: those of a conversation come back with every turn."""


class Screen(Protocol):
    """``serving.guard.screen.ImageScreen``."""

    def p_value(self, tiles: Pixels) -> float:
        """How often a benign picture looks as strange, in (0, 1]. ``tiles``: uint8 (S, S, 3) or (T, S, S, 3)."""
        ...


class Known(Protocol):
    """``serving.guard.store.Quarantine``."""

    async def look(self, tenant: str, digest: bytes, fingerprint: bytes, checkpoint: str) -> Seen:
        """What is known of a picture that a tenant sends to these weights. Never raises."""
        ...

    async def put(
        self,
        tenant: str,
        digest: bytes,
        fingerprint: bytes,
        *,
        model: str,
        checkpoint: str,
        score: float,
        reasons: Sequence[str],
        num_tokens: int,
        request_id: str = "",
    ) -> bool:
        """Keep a picture that was confirmed. Never raises."""
        ...

    async def stop(self) -> None:
        """Close the connection."""
        ...


class Mark(NamedTuple):
    """A picture, or a set of them. ``digest``: of its pixels, 32 bytes; ``fingerprint``: of what it looks like."""

    digest: bytes
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class Looked:
    """What there is to say of a request's pictures. ``p``: of the strangest, for how many there are; None where nobody
    looked. ``subject``: all of them as one, by which they would be caught; None where none is known again."""

    p: float | None = None
    is_replay: bool = False
    is_stream: bool = False
    subject: Mark | None = None


class _Facts(NamedTuple):
    p: float | None
    mark: Mark | None
    failed: tuple[Layer, ...]


class Pictures:
    """Looks at them. Use from one event loop. ``screen`` None, ``known`` None: that part is off.

    Whatever fails here is told and logged, and the request goes on as if it were switched off (fail open).
    """

    def __init__(
        self,
        screen: Screen | None,
        known: Known | None,
        fingerprints: Fingerprints,
        tell: Sink = ignore,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._screen = screen
        self._known = known
        self._fingerprints = fingerprints
        self._tell = tell
        self._clock = clock
        self._held: OrderedDict[tuple[str, bytes], _Facts] = OrderedDict()

    async def stop(self) -> None:
        """Close the connection, if there is one."""
        if self._known is not None:
            await self._known.stop()

    async def look(self, model: str, checkpoint: str, tenant: str, images: Sequence[PreparedImage]) -> Looked:
        """See ``Looked``. ``checkpoint``: digest of the model's weights."""
        facts = [await self._facts(model, image) for image in {image.identity: image for image in images}.values()]
        p_values = {str(number): one.p for number, one in enumerate(facts) if one.p is not None}
        marks = [one.mark for one in facts if one.mark is not None]
        subject = _together(marks) if marks and len(marks) == len(facts) else None
        looked = Looked(combined(p_values) if p_values else None, subject=subject)
        return await self._look_up(looked, tenant, checkpoint, marks)

    async def _facts(self, model: str, image: PreparedImage) -> _Facts:
        key = (model, image.identity)
        if (held := self._held.get(key)) is not None:
            self._held.move_to_end(key)
            return held
        began_s = self._clock()
        facts = await asyncio.to_thread(self._look_at, image)
        self._tell(GuardScreened(model, self._clock() - began_s))
        for layer in facts.failed:
            self._tell(GuardFailed(str(layer)))
        if facts.failed:
            return facts
        self._held[key] = facts
        while len(self._held) > _MAX_HELD:
            self._held.popitem(last=False)
        return facts

    def _look_at(self, image: PreparedImage) -> _Facts:
        """On a thread: a few milliseconds of NumPy."""
        p, mark, failed = None, None, []
        if self._screen is not None:
            try:
                p = self._screen.p_value(image.pixels)
            except Exception:
                failed.append(_failed(Layer.SCREEN))
        if self._known is not None:
            try:
                mark = Mark(image.content_sha256, self._fingerprints.of(image.pixels))
            except Exception:
                failed.append(_failed(Layer.REPLAY))
        return _Facts(p, mark, tuple(failed))

    async def _look_up(self, looked: Looked, tenant: str, checkpoint: str, marks: Sequence[Mark]) -> Looked:
        if self._known is None or not marks:
            return looked
        all_of_them = [looked.subject] if looked.subject is not None and len(marks) > 1 else []
        wanted = [*marks[:MAX_LOOKS], *all_of_them]
        try:
            seen = await asyncio.gather(*(self._known.look(tenant, *mark, checkpoint) for mark in wanted))
        except Exception:
            self._tell(GuardFailed(str(_failed(Layer.REPLAY))))
            return looked
        is_replay, is_stream = any(one.is_replay for one in seen), any(one.is_stream for one in seen)
        return Looked(looked.p, is_replay, is_stream, looked.subject)

    async def keep(
        self,
        subject: Mark,
        tenant: str,
        *,
        model: str,
        checkpoint: str,
        is_sampled: bool,
        score: float,
        reasons: Sequence[str],
        num_tokens: int,
        request_id: str,
    ) -> bool:
        """Keep what was caught. Returns whether it was.

        ``is_sampled``: the answer was drawn, so that whoever asks often enough finds one that is long by chance; then
        the same pixels count for this tenant alone.
        """
        if self._known is None:
            return False
        digest = hashlib.sha256(tenant.encode() + b"\0" + subject.digest).digest() if is_sampled else subject.digest
        try:
            return await self._known.put(
                tenant, digest, subject.fingerprint, model=model, checkpoint=checkpoint, score=score,
                reasons=reasons, num_tokens=num_tokens, request_id=request_id,
            )  # fmt: skip
        except Exception:
            self._tell(GuardFailed(str(_failed(Layer.REPLAY))))
            return False


def _failed(layer: Layer) -> Layer:
    _log.exception("a layer of the guard failed; the request goes on without it", layer=str(layer))
    return layer


def _together(marks: Sequence[Mark]) -> Mark:
    """All as one; their order does not count. A set looks like no other set, and like none of its pictures."""
    if len(marks) == 1:
        return marks[0]
    digest = hashlib.sha256(b"".join(sorted(mark.digest for mark in marks))).digest()
    return Mark(digest, hashlib.sha512(digest).digest()[:FINGERPRINT_BYTES])
