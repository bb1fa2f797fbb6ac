"""The engine in a process of its own: the same answers, nothing left behind, and an end that is noticed."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.inputs import Inputs
from serving.errors import EngineFailed, QueueFull
from serving.replica.staged.base import Measured
from serving.replica.staged.process import EngineProcess
from tests.support.engines import NEVER, early_exit_scheduler, running_driver
from tests.support.models import nano_runner, nano_variant
from tests.support.remote_engines import MAX_ROWS, nano_engine
from tests.support.waiting import until

SIDE = nano_variant().io.input_size
ROW: Inputs = {"picture": np.ones((2, 2), np.float32), "seed": np.array(0, np.int64)}
PICTURES = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def nano() -> Iterator[EngineProcess]:
    engine = EngineProcess("tests.support.remote_engines:nano", None)
    yield engine
    engine.close()
    assert not engine.is_alive


@pytest.fixture(scope="module")
def scale() -> Iterator[EngineProcess]:
    engine = EngineProcess("tests.support.remote_engines:scale", 3.0)
    yield engine
    engine.close()


def test_answers_are_those_of_an_engine_here(nano: EngineProcess) -> None:
    here = nano_engine(nano_runner())
    assert nano.num_stages == here.num_stages
    for number, picture in enumerate(PICTURES):
        for engine in (nano, here):
            engine.admit(number, picture)
    for stage, num_stages, ids in ((0, 1, (0, 1, 2)), (0, 1, (5, 3)), (1, 2, (2, 5)), (1, 1, (0, 3))):
        assert nano.run(stage, num_stages, ids) == here.run(stage, num_stages, ids)
        for number in ids:
            for exit_index in range(stage + num_stages):
                there = nano.result(number, exit_index)["probabilities"]
                np.testing.assert_array_equal(there, here.result(number, exit_index)["probabilities"])
    with pytest.raises(KeyError):
        nano.result(1, 1)
    for number in range(len(PICTURES)):
        nano.release(number)
    assert nano.held_bytes == 0


def test_rows_of_other_shapes_and_settings(scale: EngineProcess) -> None:
    assert scale.measured == Measured((1,), ((0.5,),))
    rows = {number: np.full((size, 2), number, np.float32) for number, size in enumerate((3, 5, 3))}
    for number, row in rows.items():
        scale.admit(
            number, {"picture": row, "seed": np.array(number, np.int64)}, {"factor": 2.0} if number == 2 else {}
        )
    scale.run(0, 1, (2, 0))
    scale.run(0, 1, (1,))
    for number, row in rows.items():
        np.testing.assert_array_equal(scale.result(number, 0)["image"], row * (2.0 if number == 2 else 3.0) + number)
        scale.release(number)


def test_one_that_fails_leaves_its_neighbours_alone(scale: EngineProcess) -> None:
    for number, value in enumerate((1.0, math.nan, 2.0)):
        scale.admit(number, {"picture": np.full((2, 2), value, np.float32), "seed": np.array(0, np.int64)})
    good, bad, other = scale.run(0, 1, (0, 1, 2))
    assert isinstance(bad, EngineFailed)
    assert isinstance(good, float)
    assert isinstance(other, float)
    assert scale.result(2, 0)["image"][0, 0] == 6.0
    for number in range(3):
        scale.release(number)


async def test_what_is_released_is_released_there(scale: EngineProcess) -> None:
    """More samples than it has room for, a few at a time: were one kept there, its engine would have none left."""
    async with running_driver(scale, early_exit_scheduler(1)) as driver:
        for _ in range(5):
            await asyncio.gather(
                *(driver.submit(ROW, deadline_s=math.inf, thresholds=(NEVER,)) for _ in range(MAX_ROWS))
            )
    assert scale.held_bytes == 0


async def test_one_that_idles_holds_nothing(tmp_path: Path) -> None:
    """What is released while it works is told when that is over, whoever comes next."""
    told = tmp_path / "released"
    told.touch()
    engine = EngineProcess("tests.support.remote_engines:telling", str(told))
    async with running_driver(engine, early_exit_scheduler(1, max_batch=1)) as driver:
        await asyncio.gather(*(driver.submit(ROW, deadline_s=math.inf, thresholds=(NEVER,)) for _ in range(2)))
        await until(lambda: sorted(told.read_text().split()) == ["0", "1"])
    engine.close()


def test_no_more_than_there_is_room_for(scale: EngineProcess) -> None:
    for number in range(MAX_ROWS):
        scale.admit(number, ROW)
    with pytest.raises(QueueFull):
        scale.admit(MAX_ROWS, ROW)
    for number in range(MAX_ROWS):
        scale.release(number)


def test_end_of_the_process_is_told() -> None:
    lost: list[bool] = []
    engine = EngineProcess("tests.support.remote_engines:scale", 1.0, lambda: lost.append(True))
    engine.admit(0, ROW)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises((OSError, EOFError)):
        engine.run(0, 1, (0,))
    assert lost == [True]
    engine.close()


def test_end_is_told_also_where_it_is_noticed_while_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[bool] = []
    engine = EngineProcess("tests.support.remote_engines:scale", 1.0, lambda: lost.append(True))

    def send(message: object) -> None:
        raise BrokenPipeError

    engine.admit(0, ROW)
    monkeypatch.setattr(engine._link, "send", send)
    with pytest.raises(BrokenPipeError):
        engine.run(0, 1, (0,))
    assert lost == [True]
    engine.close()


@pytest.mark.parametrize("said", [None, ([], [], 0.0), ("outcomes", [], 0.0)])
async def test_process_that_talks_nonsense_is_lost_and_its_batch_fails(
    said: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[bool] = []
    engine = EngineProcess("tests.support.remote_engines:scale", 1.0, lambda: lost.append(True))
    monkeypatch.setattr(engine._link, "receive", lambda: said)
    told: list[object] = []
    engine.admit(0, ROW)
    engine.start(0, 1, (0,), told.append)
    await until(lambda: told)
    assert isinstance(told[0], Exception)
    assert lost == [True]
    engine.close()


def test_what_goes_wrong_while_loading_is_raised_here() -> None:
    with pytest.raises(ValueError, match="no such model"):
        EngineProcess("tests.support.remote_engines:broken", None)
