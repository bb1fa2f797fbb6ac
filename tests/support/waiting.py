"""How tests wait: for something to hold, with a deadline, and never for a time that somebody guessed.

What has an event is waited for by that; what runs on the loop's own time runs on ``virtual_loop``.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

WAIT_S = 30.0
"""Longer than anything takes on a busy machine; only a test that fails waits so long."""
_PAUSE_S = 0.002


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Let everything else run until ``condition`` gives something true, and return that. It may be a coroutine's.

    Raises: AssertionError: it does not.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline_s, f"it does not hold within {timeout_s:g} s"
        await asyncio.sleep(_PAUSE_S)


def wait_until(condition: Callable[[], Any], what: str = "it holds", timeout_s: float = WAIT_S) -> Any:
    """Likewise without a loop. ``what`` is waited for, in words."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(10 * _PAUSE_S)
    return value


async def turns(count: int = 20) -> None:
    """Let whatever is ready to run do so: after this, what has not happened on this loop waits for something."""
    for _ in range(count):
        await asyncio.sleep(0)


def let_pass(seconds: float) -> None:
    """Let real time pass, for what another process does every second and tells nobody."""
    time.sleep(seconds)


async def lapse(seconds: float) -> None:
    """Likewise on a loop: Redis counts the ends of leases; a slow peer is slow; a client leaves at some time."""
    await asyncio.sleep(seconds)
