"""Jobs of rows as a worker drives them, around a real driver and a network that adds its seed to a picture."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from models.inputs import row_of
from serving.delivery.unary.wire import RowsAsked
from serving.errors import EngineFailed
from serving.replica.job.base import StepDone
from serving.replica.job.outputs import encode_picture
from tests.support.painter import UNPAINTABLE, Painter, PainterEngine, painting, wanted, words
from tests.support.waiting import until


def asked(value: int = 10, count: int = 1) -> RowsAsked:
    picture = np.full((6, 8, 3), value, np.uint8)
    return RowsAsked(prompt="a ball", picture=encode_picture(picture).data, count=count)


async def test_rows_of_jobs_and_calls_share_a_batch_and_are_answered_alike() -> None:
    painter = Painter()
    engine = PainterEngine(painter)
    engine.gate.clear()
    async with painting(engine) as (driver, jobs):
        for job_id, seed in (("a", 7), ("b", 20)):
            admitted = await jobs.admit(job_id, wanted(asked(count=2), seed))
            assert (admitted.step, admitted.held_bytes > 2 * 144) == (0, True)
        row = row_of(np.full((6, 8, 3), 10, np.uint8), words("a ball"), 8)
        calls = [asyncio.create_task(driver.submit(row, deadline_s=math.inf, thresholds=(0.0,)))]
        await until(lambda: driver.overdue_s() > 0)  # the others wait for it, together
        calls.append(asyncio.create_task(driver.submit(row, deadline_s=math.inf, thresholds=(0.0,))))
        step = asyncio.create_task(jobs.run_step(["a", "b"]))
        await until(lambda: driver.num_samples == 6)
        engine.gate.set()
        outcomes, image = await step, (await calls[1]).outputs["image"]
        assert [type(outcome) for outcome in outcomes] == [StepDone] * 2
        assert sorted(painter.batches[-1]) == [7, 8, 8, 20, 21]
        first, second = [(await jobs.decode(job_id))["image"] for job_id in "ab"]
        assert first.shape == (2, 6, 8, 3)
        assert np.array_equal(first[1], image)
        assert (second[0] == 30).all()
        for job_id in "ab":
            jobs.release(job_id)
        assert jobs.held_bytes() == 0


async def test_job_that_fails_leaves_its_neighbour_alone() -> None:
    async with painting(PainterEngine(Painter())) as (_, jobs):
        await jobs.admit("bad", wanted(asked(UNPAINTABLE)))
        await jobs.admit("good", wanted(asked()))
        failed, done = await jobs.run_step(["bad", "good"])
        assert isinstance(failed, EngineFailed)
        assert isinstance(done, StepDone)
        with pytest.raises(EngineFailed):
            await jobs.decode("bad")


async def test_job_that_nobody_wants_leaves_the_queue_while_others_stay() -> None:
    painter = Painter()
    engine = PainterEngine(painter)
    engine.gate.clear()
    async with painting(engine) as (driver, jobs):
        for number, job_id in enumerate("abc"):
            await jobs.admit(job_id, wanted(asked(), number))
        first = asyncio.create_task(jobs.run_step(["a"]))
        await until(lambda: driver.overdue_s() > 0)
        left, stays = asyncio.create_task(jobs.run_step(["b"])), asyncio.create_task(jobs.run_step(["c"]))
        await until(lambda: driver.num_samples == 3)
        jobs.leave("b")
        (outcome,) = await left
        assert outcome == StepDone(job_id="b", step=1, compute_s=0.0, joules=0.0)
        engine.gate.set()
        assert all(isinstance(one, StepDone) and one.compute_s > 0 for one in (*await first, *await stays))
        assert painter.batches == [[0], [2]]


async def test_full_queue_is_waited_for() -> None:
    painter = Painter()
    engine = PainterEngine(painter, max_rows=1)
    async with painting(engine) as (_, jobs):
        await jobs.admit("a", wanted(asked(count=2)))
        (done,) = await jobs.run_step(["a"])
        assert isinstance(done, StepDone)
        assert painter.batches == [[7], [8]]
