"""The second look at a suspect: the same question about a secretly purified copy of its pictures, on the same engine.

It waits for a slot like a choice of its tenant, before those of that tenant that wait, and holds keys and values like
one. Its busy seconds are the choice's, so there is one at most, and one glance at the embedding: no choice takes more
than its prompt twice, one more pass of the vision tower, its own tokens and those of its cap. It ends with the choice
at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import structlog

from schedulers.guard.watch import Watch
from schedulers.shared_time import SharedTime
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason
from serving.errors import ServingError
from serving.guard.purify import purified, squeezed
from serving.replica.chat.base import ChatEngine, EngineDelta

_log = structlog.get_logger(__name__)
RETRY_S = 1.0
"""How long after one for which there was no room another is tried."""


class Used:
    """``used_s``: of a slot, until it is given back."""

    def __init__(self) -> None:
        self.used_s = 0.0


Room: TypeAlias = Callable[[Used, EngineRequest], AbstractAsyncContextManager[None]]
"""Waits for a slot, and holds it; the seconds of what used it are read at its end."""


class SecondLook:
    """Of one choice; use from its event loop. ``request``: what is asked, with the pictures as they came. ``room``:
    see ``Room``; raises ServingError or TimeoutError where there is none. ``stop`` when the choice has ended."""

    def __init__(
        self,
        engine: ChatEngine,
        request: EngineRequest,
        watch: Watch,
        room: Room,
        shared: SharedTime,
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._request = request
        self._watch = watch
        self._room = room
        self._shared = shared
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._used = Used()
        self._before_s = 0.0
        """Of a glance before this look."""
        self._entered_at: float | None = None
        self._num_tokens = 0
        self._has_looked = self._is_answered = False
        self._next_s = float("-inf")

    def used_until(self, reading: float) -> float:
        """Busy seconds so far."""
        running_s = 0.0 if self._entered_at is None else reading - self._entered_at
        return self._before_s + self._used.used_s + running_s

    def begin(self) -> asyncio.Task[None] | None:
        """Look, unless that was done, is being done, or found no room just now. The task of a new look."""
        if self._task is not None or self._has_looked or self._clock() < self._next_s:
            return None
        self._before_s, self._used = self._before_s + self._used.used_s, Used()
        task = self._task = asyncio.get_running_loop().create_task(self._run())
        return task

    def stop(self) -> None:
        """What is on the engine is freed as that of any choice that is cancelled; nothing more is charged."""
        self._leave()
        if self._task is not None:
            self._task.cancel()

    def _leave(self) -> None:
        if self._entered_at is not None:
            self._used.used_s = self._shared.leave(self._clock()) - self._entered_at
            self._entered_at = None
            if not self._is_answered:
                self._watch.gave_up(self._num_tokens)

    async def _run(self) -> None:
        try:
            async with self._room(self._used, self._request):
                self._entered_at = self._shared.enter(self._clock())
                try:
                    await self._look()
                finally:
                    self._leave()
        except (ServingError, TimeoutError) as error:
            _log.debug("no second look", why=str(error))
            self._next_s = self._clock() + RETRY_S
        except Exception:
            _log.exception("a second look failed")
            self._has_looked = True
        self._task = None

    async def _look(self) -> None:
        """The embedding first, which tells whether the rest is worth it."""
        original = self._request.images
        if self._watch.wants_squeeze:
            found: list[float | None] = []
            try:
                found = [await self._distance(image) for image in original]
            finally:
                self._watch.squeezed([distance for distance in found if distance is not None])
        if not self._watch.is_suspect:
            return
        self._has_looked = True
        copies = [await asyncio.to_thread(purified, image) for image in original]
        await self._engine.run(self._request._replace(images=tuple(copies)), self._hear)

    async def _distance(self, image: EngineImage) -> float | None:
        return await self._engine.image_distance(image, await asyncio.to_thread(squeezed, image))

    def _hear(self, delta: EngineDelta) -> None:
        self._num_tokens += len(delta.token_ids)
        if delta.finish_reason is not None:
            self._is_answered = True
            self._watch.looked(delta.finish_reason is FinishReason.STOP, self._num_tokens)
