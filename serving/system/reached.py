"""Whether the start of the inner deployments is over: until then a gateway is not ready.

Serve starts all deployments of a graph at the same time, and a chat model takes longest. Requests that came meanwhile
would wait for it, and most of them past their deadline. A model that cannot start, or is down while this gateway
starts, must not hold the others up: what Serve does not wait for is not waited for here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

_log = structlog.get_logger(__name__)
_PAUSE_S = 0.5
_LOOK_S = 2.0

Ping = Callable[[], Awaitable[object]]


class Reached:
    """Asks each deployment, by name, until it answers once.

    ``is_deploying`` tells whether Serve is still bringing the deployments up.
    """

    def __init__(self, pings: Mapping[str, Ping], is_deploying: Callable[[], Awaitable[bool]]) -> None:
        self._pings = dict(pings)
        self._missing = set(self._pings)
        self._is_deploying = is_deploying
        self._is_given_up = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_over(self) -> bool:
        """Whether each has answered, or Serve does not wait for those that have not."""
        return not self._missing or self._is_given_up

    async def start(self) -> None:
        """Begin to ask; returns at once."""
        self._tasks = [asyncio.create_task(self._ask(name, ping)) for name, ping in self._pings.items()]
        self._tasks.append(asyncio.create_task(self._look()))

    async def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, name: str, ping: Ping) -> None:
        while name in self._missing:
            try:
                await ping()
                self._missing.discard(name)
            except Exception as error:
                _log.warning("a deployment does not answer yet", model=name, error=type(error).__name__)
                await asyncio.sleep(_PAUSE_S)

    async def _look(self) -> None:
        while self._missing and not self._is_given_up:
            await asyncio.sleep(_LOOK_S)
            try:
                self._is_given_up = not await self._is_deploying()
            except Exception as error:  # the controller is being replaced
                _log.warning("Serve does not say whether it is still deploying", error=type(error).__name__)
        if self._missing:
            _log.warning("ready without some models", models=sorted(self._missing))
