"""What only the engine around the staged model has: shared storage between samples, and steps that must be in order."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from models.families.dyn_perceiver.staged import SampleState, StagedDynPerceiver
from models.methods.early_exit.criteria import confidence
from serving.errors import EngineFailed
from serving.replica.staged.base import StageOutput
from serving.replica.staged.early_exit_engine import EarlyExitEngine
from tests.support.models import nano_bytes_per_sample, nano_spec, nano_staged

SIDE = nano_spec().input_size


def image(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def make_engine(max_bytes: int = 1 << 30, staged: StagedDynPerceiver | None = None) -> EarlyExitEngine:
    return EarlyExitEngine(staged or nano_staged(), bytes_per_sample=nano_bytes_per_sample(), max_bytes=max_bytes)


def really_held_bytes() -> int:
    """Bytes of all tensors that samples keep alive, counted once per storage."""
    gc.collect()
    states = [thing for thing in gc.get_objects() if type(thing) is SampleState]
    slabs = {id(state._slab): state._slab for state in states}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for s in slabs.values() for t in s.tensors}
    return sum(storage.nbytes() for storage in storages.values())


def test_engine_agrees_with_the_model() -> None:
    engine, images = make_engine(), np.stack([image(n) for n in range(3)])
    logits = nano_staged().forward_all(images)
    for number in range(3):
        engine.admit(number, images[number])
    for stage in range(4):
        outcomes = engine.run(stage, 1, (0, 1, 2))
        expected = confidence(logits[stage])
        for row, outcome in enumerate(outcomes):
            assert isinstance(outcome, StageOutput)
            assert outcome.confidence == float(expected[row])
            np.testing.assert_array_equal(engine.result(row, stage), torch.softmax(logits[stage], 1)[row].numpy())


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
    assert all(isinstance(outcome, StageOutput) for outcome in outcomes)
    # Copied samples answer as those that were never moved.
    alone = make_engine()
    alone.admit(0, image(kept[3]))
    alone.run(0, 2, (0,))
    np.testing.assert_allclose(engine.result(kept[3], 1), alone.result(0, 1), rtol=0.0, atol=2e-5)
    del alone
    for sample_id in kept:
        engine.release(sample_id)
    assert really_held_bytes() == 0


def test_nothing_is_copied_while_memory_is_plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_states: Any) -> None:
        raise AssertionError("copied")

    engine = make_engine()
    monkeypatch.setattr(nano_staged(), "compact", refuse)
    for sample_id in range(8):
        engine.admit(sample_id, image(sample_id))
    engine.run(0, 1, tuple(range(8)))
    for sample_id in range(1, 8):
        engine.release(sample_id)
    assert isinstance(engine.run(1, 1, (0,))[0], StageOutput)


@pytest.mark.parametrize("stages", [(0, 0), (1,), (0, 2), (0, 1, 1)])
def test_stage_out_of_order_fails_instead_of_answering_from_the_wrong_exit(stages: tuple[int, ...]) -> None:
    engine = make_engine()
    engine.admit(1, image(1))
    *right, wrong = stages
    for stage in right:
        assert isinstance(engine.run(stage, 1, (1,))[0], StageOutput)
    assert isinstance(engine.run(wrong, 1, (1,))[0], EngineFailed)


class FlakyStaged:
    """The model, failing at one exit for batches of more than one."""

    def __init__(self, fails_at: int) -> None:
        self._staged = nano_staged()
        self._fails_at = fails_at
        self.num_exits = self._staged.num_exits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._staged, name)

    def advance(self, states: list[SampleState]) -> Any:
        if states[0].next_exit == self._fails_at and len(states) > 1:
            raise MemoryError("secret device text")
        return self._staged.advance(states)


@pytest.mark.parametrize("fails_at", range(4))
def test_batch_that_fails_half_way_through_fused_stages_is_run_again_from_its_start(fails_at: int) -> None:
    staged: Any = FlakyStaged(fails_at)
    engine, alone = make_engine(staged=staged), make_engine()
    for each in (engine, alone):
        for sample_id in (1, 2):
            each.admit(sample_id, image(sample_id))
    assert all(isinstance(outcome, StageOutput) for outcome in engine.run(0, 4, (1, 2)))
    for sample_id in (1, 2):
        alone.run(0, 4, (sample_id,))
        for exit_index in range(4):
            np.testing.assert_array_equal(engine.result(sample_id, exit_index), alone.result(sample_id, exit_index))
        with pytest.raises(KeyError):
            engine.result(sample_id, 4)


def test_confidence_that_is_not_a_number_fails_its_sample_only(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = nano_staged()
    advance = StagedDynPerceiver.advance

    def spoil(self: StagedDynPerceiver, states: list[SampleState]) -> Any:
        states, logits = advance(self, states)
        logits = logits.clone()
        logits[1] = torch.nan
        return states, logits

    monkeypatch.setattr(StagedDynPerceiver, "advance", spoil)
    engine = make_engine(staged=staged)
    for sample_id in range(3):
        engine.admit(sample_id, image(sample_id))
    outcomes = engine.run(0, 1, (0, 1, 2))
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [False, True, False]
