"""A gateway is ready once everything behind it has answered."""

from __future__ import annotations

import asyncio

from serving.reached import Reached
from tests.support.virtual_loop import run_virtual


def test_each_must_answer_once_however_often_it_fails_before() -> None:
    async def scenario() -> None:
        is_there, calls = asyncio.Event(), []

        async def waits() -> None:
            await is_there.wait()

        async def fails() -> None:
            calls.append(None)
            if len(calls) < 4:
                raise ConnectionError

        reached = Reached({"waits": waits, "fails": fails})
        assert not reached.is_complete
        await reached.start()
        await asyncio.sleep(10)
        assert len(calls) == 4
        assert not reached.is_complete
        is_there.set()
        await asyncio.sleep(0.01)
        assert reached.is_complete
        await reached.stop()
        assert reached.is_complete

    run_virtual(scenario())


def test_nothing_to_ask_is_complete_and_stopping_ends_the_asking() -> None:
    async def scenario() -> None:
        assert Reached({}).is_complete
        reached = Reached({"never": asyncio.Event().wait})
        await reached.start()
        await asyncio.sleep(1)
        await reached.stop()
        assert not reached.is_complete
        assert len(asyncio.all_tasks()) == 1

    run_virtual(scenario())
