"""The one thread through which calls of a kind pass, and how long the present one has run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from serving.errors import EngineFailed

T = TypeVar("T")


class EngineThread:
    """Calls run in order, one at a time. A caller that is cancelled does not stop a call that runs."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._calls: set[asyncio.Future[Any]] = set()
        self._started_s: float | None = None
        self._is_stopped = False

    @property
    def busy_s(self) -> float:
        """Seconds that the present call has run; 0 when there is none."""
        started_s = self._started_s
        return 0.0 if started_s is None else time.monotonic() - started_s

    async def call(self, function: Callable[..., T], *args: object) -> T:
        """Run it.

        Raises: EngineFailed: stopped, before or while the call waited; whatever the function raises.
        """
        if self._is_stopped:
            raise _stopped()
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, function, *args)
        self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_stopped and task is not None and not task.cancelling():
                raise _stopped() from None
            raise

    def _timed(self, function: Callable[..., T], *args: object) -> T:
        self._started_s = time.monotonic()
        try:
            return function(*args)
        finally:
            self._started_s = None

    async def stop(self, grace_s: float) -> None:
        """Fail what waits; wait for the present call, but not for ever."""
        self._is_stopped = True
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=grace_s)


def _stopped() -> EngineFailed:
    return EngineFailed("the model was stopped; retry")
