"""What a classifier replica tells of samples whose callers have left, around a real driver and a fake engine."""

from __future__ import annotations

import asyncio

from serving.delivery.unary.wire import SampleAnswer, SampleCall, SampleFailure
from serving.errors import Cancelled
from serving.replica.driver import Driver
from serving.replica.staged.deployment import Classifier
from tests.support.engines import NEVER, WAIT_S, GatedEngine, early_exit_scheduler, pixels, running_driver
from tests.support.waiting import until


class Bare(Classifier):
    """Without the model that the constructor loads."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._calls = driver, {}

    def __del__(self) -> None:  # type: ignore[override]  # its driver is ended by the test
        pass


def call(number: int, exit_index: int) -> SampleCall:
    thresholds = tuple(0.0 if stage == exit_index else NEVER for stage in range(4))
    return SampleCall(pixels(number), 60.0, thresholds, 1, "acme")


async def test_call_comes_back_with_what_those_who_left_have_taken() -> None:
    engine = GatedEngine()
    async with running_driver(engine, early_exit_scheduler(max_batch=4)) as driver:
        reached, loop, classifier = asyncio.Event(), asyncio.get_running_loop(), Bare(driver)

        def stop_in_the_second_stage() -> None:
            if engine.calls[-1][0] == 1:
                engine.gate.clear()
                loop.call_soon_threadsafe(reached.set)
                assert engine.gate.wait(WAIT_S)

        engine.on_run = stop_in_the_second_stage
        running = asyncio.create_task(classifier.run([call(0, 0), call(1, 3), call(2, 3)], "c-1"))
        await asyncio.wait_for(reached.wait(), WAIT_S)
        assert await classifier.leave({"c-1": [1], "c-unknown": [0]}) == ["c-1"]
        engine.on_run = lambda: None
        engine.gate.set()
        answered, left, finished = await asyncio.wait_for(running, WAIT_S)
        assert isinstance(answered, SampleAnswer)
        assert isinstance(left, SampleFailure)
        assert isinstance(left.error, Cancelled)
        assert isinstance(finished, SampleAnswer)
        assert 0.0 < answered.compute_s < left.compute_s < finished.compute_s
        await until(lambda: driver.num_samples == 0)
        assert await classifier.leave({"c-1": [2]}) == []
