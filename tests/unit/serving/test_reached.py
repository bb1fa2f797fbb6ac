"""A gateway is ready once everything behind it has answered, or is not waited for any more."""

from __future__ import annotations

import asyncio

from serving.system.reached import Reached
from tests.support.virtual_loop import run_virtual


async def deploying() -> bool:
    return True


def test_each_must_answer_once_however_often_it_fails_before() -> None:
    async def scenario() -> None:
        is_there, calls = asyncio.Event(), []

        async def waits() -> None:
            await is_there.wait()

        async def fails() -> None:
            calls.append(None)
            if len(calls) < 4:
                raise ConnectionError

        reached = Reached({"waits": waits, "fails": fails}, deploying)
        assert not reached.is_over
        await reached.start()
        await asyncio.sleep(10)
        assert len(calls) == 4
        assert not reached.is_over
        is_there.set()
        await asyncio.sleep(0.01)
        assert reached.is_over
        await reached.stop()
        assert reached.is_over

    run_virtual(scenario())


def test_nothing_to_ask_is_over_and_stopping_ends_the_asking() -> None:
    async def scenario() -> None:
        assert Reached({}, deploying).is_over
        reached = Reached({"never": asyncio.Event().wait}, deploying)
        await reached.start()
        await asyncio.sleep(1)
        await reached.stop()
        assert not reached.is_over
        assert len(asyncio.all_tasks()) == 1

    run_virtual(scenario())


def test_what_serve_no_longer_waits_for_is_not_waited_for() -> None:
    async def scenario() -> None:
        states = iter([True, ConnectionError, True, False])

        async def state() -> bool:
            now = next(states)
            if now is ConnectionError:
                raise ConnectionError
            return bool(now)

        reached = Reached({"never": asyncio.Event().wait}, state)
        await reached.start()
        await asyncio.sleep(7)
        assert not reached.is_over
        await asyncio.sleep(2)
        assert reached.is_over
        await reached.stop()

    run_virtual(scenario())
