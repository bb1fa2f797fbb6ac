"""Time for the runner: reading it, and waking up at an exact moment.

asyncio sleeps with ``epoll``, which counts whole milliseconds and rounds up, so ``asyncio.sleep`` alone makes every
request up to a millisecond late. On Linux ``MonotonicClock`` waits on a timer file descriptor instead, which wakes the
same event loop within tens of microseconds (docs/loadtest.md has both measured) and burns no processor time.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import time
from typing import Protocol


class Clock(Protocol):
    """What the runner needs of time."""

    def now_s(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    async def sleep_until(self, at_s: float) -> None:
        """Return at ``at_s`` or later; at once, without yielding, if it has passed."""
        ...

    def close(self) -> None:
        """Give back what the clock holds."""
        ...


class LoopClock:
    """The running event loop's own time. Coarse on a real loop, exact on a virtual one."""

    def now_s(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    async def sleep_until(self, at_s: float) -> None:
        """Sleep with the loop's timer."""
        if (wait_s := at_s - self.now_s()) > 0.0:
            await asyncio.sleep(wait_s)

    def close(self) -> None:
        """Nothing is held."""


class MonotonicClock:
    """``time.monotonic``, with a timer file descriptor to wake up on where the system has one.

    One sleeper at a time (the runner's pacing loop). The descriptor is made at the first sleep and belongs to the loop
    of that moment.
    """

    def __init__(self) -> None:
        self._timer: _TimerFd | None = None
        self._has_timer = True

    def now_s(self) -> float:
        """``time.monotonic()``: CLOCK_MONOTONIC on Linux, the same in every process of the machine."""
        return time.monotonic()

    async def sleep_until(self, at_s: float) -> None:
        """Sleep until ``at_s``, to tens of microseconds on Linux, to a millisecond elsewhere."""
        if at_s <= self.now_s():
            return
        timer = self._get_timer()
        if timer is None:
            await asyncio.sleep(at_s - self.now_s())
        else:
            await timer.wait_until(at_s)

    def close(self) -> None:
        """Close the descriptor."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _get_timer(self) -> _TimerFd | None:
        if self._timer is None and self._has_timer:
            try:
                self._timer = _TimerFd(asyncio.get_running_loop())
            except (OSError, AttributeError):
                self._has_timer = False
        return self._timer


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class _TimerFd:
    """timerfd_create(2) through ctypes; the standard library has it from Python 3.13 on."""

    CLOCK_MONOTONIC = 1
    TFD_TIMER_ABSTIME = 1

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.timerfd_create(self.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        loop.add_reader(self._fd, self._on_readable)

    async def wait_until(self, at_s: float) -> None:
        self._waiter = self._loop.create_future()
        seconds, nanoseconds = divmod(math.ceil(at_s * 1e9), 1_000_000_000)
        spec = _Itimerspec(_Timespec(0, 0), _Timespec(seconds, nanoseconds))
        if self._libc.timerfd_settime(self._fd, self.TFD_TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")
        await self._waiter

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _on_readable(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
