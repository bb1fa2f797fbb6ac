"""The one thread: order, time of the present call, and its end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from serving.errors import EngineFailed
from serving.replica.job.engine_thread import EngineThread
from tests.support.waiting import until


async def test_calls_run_in_order_one_at_a_time() -> None:
    thread, seen = EngineThread("t"), []

    def note(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    assert await asyncio.gather(*(thread.call(note, number) for number in range(5))) == [0, 1, 2, 3, 4]
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4]
    assert len({ident for _, ident in seen}) == 1
    await thread.stop(1.0)


async def test_busy_only_while_a_call_runs_even_one_that_raises() -> None:
    thread, entered, freed = EngineThread("t"), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        freed.wait(10)
        raise ValueError("no")

    call = asyncio.ensure_future(thread.call(wait))
    assert await asyncio.to_thread(entered.wait, 10)
    await until(lambda: thread.busy_s > 0)
    freed.set()
    with pytest.raises(ValueError, match="no"):
        await call
    assert thread.busy_s == 0
    await thread.stop(1.0)


async def test_stop_waits_for_the_present_call_but_not_for_ever() -> None:
    thread, entered, freed = EngineThread("t"), threading.Event(), threading.Event()

    def wait() -> str:
        entered.set()
        freed.wait(10)
        return "done"

    running = asyncio.ensure_future(thread.call(wait))
    waiting = asyncio.ensure_future(thread.call(wait))
    assert await asyncio.to_thread(entered.wait, 10)
    await thread.stop(0.05)
    with pytest.raises(EngineFailed, match="stopped"):
        await waiting
    with pytest.raises(EngineFailed, match="stopped"):
        await thread.call(wait)
    freed.set()
    assert await running == "done"


async def test_caller_that_is_cancelled_is_told_so_and_not_of_a_stop() -> None:
    thread, entered, freed = EngineThread("t"), threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        freed.wait(10)

    running = asyncio.ensure_future(thread.call(wait))
    assert await asyncio.to_thread(entered.wait, 10)
    waiting = asyncio.ensure_future(thread.call(wait))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    freed.set()
    await running
    await thread.stop(1.0)
