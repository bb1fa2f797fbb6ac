import asyncio
import time

import pytest

from loadtest.clock import Clock, LoopClock, MonotonicClock
from tests.support.virtual_loop import run_virtual


@pytest.mark.parametrize("has_timer", [True, False])
async def test_sleeping_never_ends_early(has_timer: bool) -> None:
    clock = MonotonicClock()
    clock._has_timer = has_timer
    try:
        for wait_s in (0.0001, 0.0007, 0.003, 0.0):
            at_s = time.monotonic() + wait_s
            await clock.sleep_until(at_s)
            assert time.monotonic() >= at_s - 1e-9
    finally:
        clock.close()


async def test_other_tasks_run_while_the_clock_sleeps() -> None:
    clock, ran = MonotonicClock(), []

    async def other() -> None:
        ran.append(1)

    task = asyncio.create_task(other())
    await clock.sleep_until(time.monotonic() + 0.002)
    assert ran == [1]
    await task
    clock.close()


async def test_a_moment_that_has_passed_does_not_even_yield() -> None:
    clock, ran = MonotonicClock(), []
    task = asyncio.create_task(asyncio.sleep(0, ran.append(1)))
    before = len(ran)
    await clock.sleep_until(time.monotonic() - 1.0)
    assert len(ran) == before
    await task
    clock.close()


async def test_a_sleep_that_was_cancelled_does_not_wake_the_next_one_early() -> None:
    clock = MonotonicClock()
    first = asyncio.create_task(clock.sleep_until(time.monotonic() + 0.002))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    at_s = time.monotonic() + 0.01
    await clock.sleep_until(at_s)
    assert time.monotonic() >= at_s - 1e-9
    clock.close()


def test_the_loop_clock_follows_virtual_time_exactly() -> None:
    async def work() -> tuple[float, float]:
        clock: Clock = LoopClock()
        await clock.sleep_until(5.0)
        first = clock.now_s()
        await clock.sleep_until(2.0)
        return first, clock.now_s()

    assert run_virtual(work()) == (5.0, 5.0)
