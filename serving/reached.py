"""Whether every inner deployment has answered once: until then this gateway is not ready.

Serve starts all deployments of a graph at the same time, and a chat model takes longest. Requests that came meanwhile
would wait for it, and most of them past their deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

_log = structlog.get_logger(__name__)
_PAUSE_S = 0.5

Ping = Callable[[], Awaitable[object]]


class Reached:
    """Asks each deployment, by name, until it answers. What has answered once stays reached: Serve replaces replicas
    that are lost, and calls wait for the new one."""

    def __init__(self, pings: Mapping[str, Ping]) -> None:
        self._pings = dict(pings)
        self._missing = set(self._pings)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_complete(self) -> bool:
        """Whether each has answered."""
        return not self._missing

    async def start(self) -> None:
        """Begin to ask; returns at once."""
        self._tasks = [asyncio.create_task(self._ask(name, ping)) for name, ping in self._pings.items()]

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
