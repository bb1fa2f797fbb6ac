"""What only the engine around a runner has: shared storage between samples, and steps that must be in order."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from models.contract import Point
from schedulers.cost import measured_stages
from schedulers.policies.exits import early_exits
from serving.errors import EngineFailed
from serving.replica.driver import Driver
from serving.replica.staged import engine as engine_module
from serving.replica.staged.engine import RowEngine, as_staged, warm_up
from serving.replica.staged.rows import Row
from serving.telemetry.events import BatchRan, Event
from tests.support.models import nano_bytes_per_sample, nano_runner, nano_variant

SIDE = nano_variant().io.input_size


def image(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def make_engine(max_bytes: int = 1 << 30, runner: Any = None) -> RowEngine:
    return RowEngine(runner or nano_runner(), bytes_per_sample=nano_bytes_per_sample(), max_bytes=max_bytes)


def really_held_bytes() -> int:
    """Bytes of all tensors that samples keep alive, counted once per storage."""
    gc.collect()
    batches = {id(thing.batch): thing.batch for thing in gc.get_objects() if type(thing) is Row}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for b in batches.values() for t in b.tensors}
    return sum(storage.nbytes() for storage in storages.values())


def test_engine_agrees_with_the_model() -> None:
    engine, images = make_engine(), np.stack([image(n) for n in range(3)])
    with torch.inference_mode():
        _, passed, _ = nano_runner().run(nano_runner().begin(images), 0, 4)
    for number in range(3):
        engine.admit(number, images[number])
    for stage in range(4):
        outcomes = engine.run(stage, 1, (0, 1, 2))
        expected = passed[stage]["probabilities"]
        for row, outcome in enumerate(outcomes):
            assert isinstance(outcome, float)
            assert outcome == float(expected[row].max())
            np.testing.assert_array_equal(engine.result(row, stage)["probabilities"], expected[row].numpy())


def test_survivors_do_not_keep_the_memory_of_their_whole_batches() -> None:
    """Regression: one survivor of each batch of 16 held 16 samples' storage and was charged for one."""
    batch, rounds = 16, 8
    engine = make_engine(max_bytes=2 * nano_bytes_per_sample() * (batch + rounds))
    kept: list[int] = []
    for number in range(rounds):
        ids = range(100 * number, 100 * number + batch)
        for sample_id in ids:
            engine.admit(sample_id, image(sample_id))
        engine.run(0, 1, tuple(ids))
        for sample_id in ids[1:]:
            engine.release(sample_id)
        kept.append(ids[0])
    engine.run(1, 1, kept[:1])
    assert really_held_bytes() <= engine.held_bytes
    outcomes = engine.run(1, 1, kept[1:])
    assert all(isinstance(outcome, float) for outcome in outcomes)
    # Copied samples answer as those that were never moved.
    alone = make_engine()
    alone.admit(0, image(kept[3]))
    alone.run(0, 2, (0,))
    ours, expected = engine.result(kept[3], 1)["probabilities"], alone.result(0, 1)["probabilities"]
    np.testing.assert_allclose(ours, expected, rtol=0.0, atol=2e-5)
    del alone
    for sample_id in kept:
        engine.release(sample_id)
    assert really_held_bytes() == 0


def test_nothing_is_copied_while_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_rows: Any) -> None:
        raise AssertionError("copied")

    engine = make_engine()
    monkeypatch.setattr(engine_module, "copied", refuse)
    for sample_id in range(8):
        engine.admit(sample_id, image(sample_id))
    engine.run(0, 1, tuple(range(8)))
    for sample_id in range(1, 8):
        engine.release(sample_id)
    assert isinstance(engine.run(1, 1, (0,))[0], float)


@pytest.mark.parametrize("stages", [(0, 0), (1,), (0, 2), (0, 1, 1)])
def test_stage_out_of_order_fails_instead_of_answering_from_the_wrong_exit(stages: tuple[int, ...]) -> None:
    engine = make_engine()
    engine.admit(1, image(1))
    *right, wrong = stages
    for stage in right:
        assert isinstance(engine.run(stage, 1, (1,))[0], float)
    assert isinstance(engine.run(wrong, 1, (1,))[0], EngineFailed)


class SpoiltRunner:
    """The model; ``spoil(stage, outputs, confidence)`` sees what comes of each stage."""

    def __init__(self, spoil: Any) -> None:
        self.num_stages = nano_runner().num_stages
        self.begin = nano_runner().begin
        self._spoil = spoil

    def run(self, state: Any, first_stage: int, num_stages: int) -> Any:
        passed = []
        for stage in range(first_stage, first_stage + num_stages):
            state, outputs, confidence = nano_runner().run(state, stage, 1)
            passed += outputs
            self._spoil(stage, confidence)
        return state, passed, confidence


@pytest.mark.parametrize("fails_at", range(4))
def test_batch_that_fails_half_way_through_fused_stages_is_run_again_from_its_start(fails_at: int) -> None:
    def spoil(stage: int, confidence: torch.Tensor) -> None:
        if stage == fails_at and len(confidence) > 1:
            raise MemoryError("secret device text")

    engine, alone = make_engine(runner=SpoiltRunner(spoil)), make_engine()
    for each in (engine, alone):
        for sample_id in (1, 2):
            each.admit(sample_id, image(sample_id))
    assert all(isinstance(outcome, float) for outcome in engine.run(0, 4, (1, 2)))
    for sample_id in (1, 2):
        alone.run(0, 4, (sample_id,))
        for exit_index in range(4):
            np.testing.assert_equal(engine.result(sample_id, exit_index), alone.result(sample_id, exit_index))
        with pytest.raises(KeyError):
            engine.result(sample_id, 4)


def test_confidence_that_is_not_a_number_fails_its_sample_only() -> None:
    def spoil(_stage: int, confidence: torch.Tensor) -> None:
        confidence[1] = torch.nan

    engine = make_engine(runner=SpoiltRunner(spoil))
    for sample_id in range(3):
        engine.admit(sample_id, image(sample_id))
    outcomes = engine.run(0, 1, (0, 1, 2))
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [False, True, False]


class Scale:
    """A unary family: the mean of a picture times what its point says, and the picture itself."""

    def forward(self, batch: torch.Tensor, points: list[Point]) -> dict[str, torch.Tensor]:
        means = batch.float().flatten(1).mean(1)
        factors = torch.tensor([float(point["factor"]) for point in points])
        return {"scaled": (means * factors)[:, None], "picture": batch}


def test_unary_family_is_a_network_of_one_stage_with_a_point_for_each_row() -> None:
    engine = RowEngine(as_staged(Scale()), bytes_per_sample=1, max_bytes=1 << 20, defaults={"factor": 1.0})
    assert engine.num_stages == 1
    for sample_id, settings in enumerate(({}, {"factor": 10.0}, {"factor": float("inf")})):
        engine.admit(sample_id, np.full((2, 2, 3), 1 + sample_id, np.uint8), settings)
    outcomes = engine.run(0, 1, (2, 0, 1))
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [True, False, False]
    assert engine.result(0, 0)["scaled"].tolist() == [1.0]
    assert engine.result(1, 0)["scaled"].tolist() == [20.0]
    assert engine.result(1, 0)["picture"].shape == (2, 2, 3)


def test_bytes_of_a_sample_are_its_largest_state_and_all_that_is_kept_of_it() -> None:
    assert warm_up(as_staged(Scale()), np.zeros((2, 2, 3), np.uint8), 4, {"factor": 1.0}).bytes_per_sample == 12 + (
        4 + 12
    )


class Sizes:
    """A picture and a prompt in, the area of the one plus the length of the other out; counts its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def forward(self, batch: Any, points: Sequence[Point]) -> dict[str, torch.Tensor]:
        rows, height, width, _ = batch["picture"].shape
        self.batches.append(rows)
        return {"size": batch["prompt"].sum(1) + height * width}


def of_side(side: int, length: int) -> dict[str, np.ndarray]:
    return {"picture": np.zeros((side, side, 3), np.uint8), "prompt": np.array([length, 10])}


def test_rows_of_equal_shapes_have_one_batch_key() -> None:
    engine = RowEngine(as_staged(Sizes()), bytes_per_sample=100, max_bytes=10_000)
    keys = [engine.admit(sample_id, of_side(side, sample_id)) for sample_id, side in enumerate((2, 3, 2))]
    assert keys[0] == keys[2] != keys[1]


async def test_rows_of_equal_shapes_run_together_and_others_apart() -> None:
    """Through the driver: it is the scheduler that forms batches, and knows what it forms."""
    runner = Sizes()
    engine = RowEngine(as_staged(runner), bytes_per_sample=100, max_bytes=10_000)
    told: list[Event] = []
    driver = Driver(early_exits(measured_stages((1,), [[0.001]])), engine, lambda *_: 0.001, tell=told.append)
    driver.start()
    rows = [of_side(side, number) for number, side in enumerate((2, 3, 2))]
    answers = await asyncio.gather(*(driver.submit(row, deadline_s=math.inf, thresholds=(0.5,)) for row in rows))
    await driver.stop()
    assert [int(answer.outputs["size"]) for answer in answers] == [14, 20, 16]
    assert sorted(runner.batches) == sorted(one.size for one in told if isinstance(one, BatchRan)) == [1, 2]
