"""One suite for every ``StagedEngine``."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise

import numpy as np
import pytest

from models.inputs import Array
from serving.errors import EngineFailed, QueueFull, ServingError
from serving.replica.staged.base import StagedEngine
from tests.support.engine_cases import EngineCase, engine_cases
from tests.support.engines import NEVER, early_exit_scheduler, running_driver


@pytest.fixture(params=engine_cases(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> EngineCase:
    made: EngineCase = request.param
    return made


@pytest.fixture
def engine(case: EngineCase) -> StagedEngine:
    return case.make(64)


def admit(engine: StagedEngine, case: EngineCase, *ids: int) -> None:
    for sample_id in ids:
        engine.admit(sample_id, case.image(sample_id))


def run_all(engine: StagedEngine, *ids: int) -> None:
    for stage in range(engine.num_stages):
        assert all(isinstance(outcome, float) for outcome in engine.run(stage, 1, ids))


def probabilities(engine: StagedEngine, sample_id: int) -> list[Array]:
    return [engine.result(sample_id, exit_index)["probabilities"] for exit_index in range(engine.num_stages)]


# -- answers ---------------------------------------------------------------------------------------------------------


def test_one_outcome_per_sample_in_the_order_asked(engine: StagedEngine, case: EngineCase) -> None:
    ids = (7, 3, 11, 5)
    admit(engine, case, *ids)
    for stage in range(engine.num_stages):
        outcomes = engine.run(stage, 1, ids)
        assert len(outcomes) == len(ids)
        for sample_id, outcome in zip(ids, outcomes, strict=True):
            assert isinstance(outcome, float)
            assert 0.0 <= outcome <= 1.0
            row = engine.result(sample_id, stage)["probabilities"]
            # FakeEngine's confidence is the bare number of stages over all; a real one's is the winner's probability.
            if case.name != "fake":
                assert outcome == float(row.max())


def test_results_are_probabilities(engine: StagedEngine, case: EngineCase) -> None:
    admit(engine, case, 1, 2)
    run_all(engine, 1, 2)
    for row in probabilities(engine, 1) + probabilities(engine, 2):
        assert row.dtype == np.float32
        assert row.ndim == 1
        assert row.min() >= 0.0
        assert float(row.sum()) == pytest.approx(1.0, abs=1e-5)  # float32 sum of ten


def test_result_exists_for_passed_exits_only(engine: StagedEngine, case: EngineCase) -> None:
    admit(engine, case, 1)
    for stage in range(engine.num_stages):
        with pytest.raises(KeyError):
            engine.result(1, stage)
        engine.run(stage, 1, (1,))
        for passed in range(stage + 1):
            assert engine.result(1, passed)["probabilities"].size > 1
    with pytest.raises(KeyError):
        engine.result(2, 0)


def test_same_sample_gives_the_same_answer_twice(engine: StagedEngine, case: EngineCase) -> None:
    for sample_id in (1, 2):
        engine.admit(sample_id, case.image(42))
        run_all(engine, sample_id)
    for first, second in zip(probabilities(engine, 1), probabilities(engine, 2), strict=True):
        np.testing.assert_array_equal(first, second)


def test_pixels_may_be_read_only(engine: StagedEngine, case: EngineCase) -> None:
    """What comes out of Ray's object store or a socket cannot be written to."""
    image = case.image(1).copy()
    image.setflags(write=False)
    engine.admit(1, image)
    run_all(engine, 1)


@pytest.mark.parametrize(("first", "count"), [(0, 2), (0, 4), (1, 3), (2, 2)])
def test_fused_stages_equal_single_ones(engine: StagedEngine, case: EngineCase, first: int, count: int) -> None:
    single, fused = (1, 2, 3), (11, 12, 13)
    for offset, ids in ((0, single), (10, fused)):
        for sample_id in ids:
            engine.admit(sample_id, case.image(sample_id - offset))
        for stage in range(first):
            engine.run(stage, 1, ids)
    for stage in range(first, first + count):
        last = engine.run(stage, 1, single)
    assert engine.run(first, count, fused) == last
    for one, other in zip(single, fused, strict=True):
        for exit_index in range(first + count):
            # The same batches go through the same kernels: exactly.
            np.testing.assert_equal(engine.result(one, exit_index), engine.result(other, exit_index))


def test_survivors_of_different_arrivals_merged_equal_running_apart(engine: StagedEngine, case: EngineCase) -> None:
    alone = case.make(64)
    ids = range(9)
    for sample_id in ids:
        admit(alone, case, sample_id)
        run_all(alone, sample_id)
    admit(engine, case, *ids)
    engine.run(0, 1, (0, 1, 2, 3))
    engine.run(0, 1, (4, 5, 6, 7, 8))
    engine.run(1, 1, (8, 2, 5))  # of two batches, not in order
    engine.run(1, 1, (0, 4, 6))
    engine.release(6)
    engine.run(2, 2, (0, 8, 4, 2))
    engine.run(1, 3, (7, 1, 3))
    engine.run(2, 1, (5,))
    engine.run(3, 1, (5,))
    for sample_id in set(ids) - {6}:
        for merged, apart in zip(probabilities(engine, sample_id), probabilities(alone, sample_id), strict=True):
            np.testing.assert_allclose(merged, apart, rtol=0.0, atol=case.tolerance)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_held_bytes_rise_on_admission_and_fall_to_zero_on_release(engine: StagedEngine, case: EngineCase) -> None:
    assert engine.held_bytes == 0
    seen = [0]
    for sample_id in range(4):
        admit(engine, case, sample_id)
        seen.append(engine.held_bytes)
    assert all(after > before for before, after in pairwise(seen))
    assert engine.held_bytes >= sum(case.image(sample_id).nbytes for sample_id in range(4))
    run_all(engine, 0)  # finished
    engine.run(0, 1, (1,))  # cancelled half way; 2 and 3 before they ran
    for sample_id in range(4):
        engine.release(sample_id)
    assert engine.held_bytes == 0


def test_running_needs_no_more_than_was_counted_at_admission(engine: StagedEngine, case: EngineCase) -> None:
    admit(engine, case, 1, 2, 3)
    counted = engine.held_bytes
    for stage in range(engine.num_stages):
        engine.run(stage, 1, (1, 2, 3))
        assert engine.held_bytes <= counted


def test_memory_bound_refuses_and_takes_again_after_a_release(case: EngineCase) -> None:
    engine = case.make(3)
    admit(engine, case, 0, 1, 2)
    with pytest.raises(QueueFull, match=r"limit is \d+") as caught:
        admit(engine, case, 3)
    assert caught.value.retry_after_s is not None
    with pytest.raises(KeyError):
        engine.result(3, 0)
    engine.release(1)
    admit(engine, case, 3)
    run_all(engine, 0, 2, 3)


def test_release_of_an_unknown_sample_is_ignored(engine: StagedEngine, case: EngineCase) -> None:
    engine.release(99)
    admit(engine, case, 1)
    engine.release(1)
    engine.release(1)
    assert engine.held_bytes == 0


# -- failures --------------------------------------------------------------------------------------------------------


def test_failing_sample_is_an_outcome_and_leaves_its_neighbours_unhurt(engine: StagedEngine, case: EngineCase) -> None:
    admit(engine, case, 0, 1, 3)
    engine.admit(2, case.poison())
    outcomes = engine.run(0, 1, (0, 1, 2, 3))
    assert [isinstance(outcome, EngineFailed) for outcome in outcomes] == [False, False, True, False]
    engine.release(2)
    for stage in range(1, engine.num_stages):
        assert all(isinstance(outcome, float) for outcome in engine.run(stage, 1, (3, 0, 1)))
    engine.run(0, 1, ())
    for sample_id in (0, 1, 3):
        engine.release(sample_id)
    assert engine.held_bytes == 0


def test_failing_batch_never_raises(engine: StagedEngine, case: EngineCase) -> None:
    for sample_id in (1, 2):
        engine.admit(sample_id, case.poison())
    for outcome in engine.run(0, engine.num_stages, (1, 2)):
        assert isinstance(outcome, EngineFailed)
        assert "Traceback" not in outcome.message
        assert "stack" not in outcome.message
    with pytest.raises(KeyError):
        engine.result(1, 0)


def test_samples_that_are_not_here_are_outcomes_too(engine: StagedEngine, case: EngineCase) -> None:
    admit(engine, case, 1)
    first, second = engine.run(0, 1, (1, 99))
    assert isinstance(first, float)
    assert isinstance(second, ServingError)


def test_empty_batch_has_no_outcomes(engine: StagedEngine) -> None:
    assert engine.run(0, 1, ()) == []


# -- behind a driver -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 3, 16])
async def test_driver_gives_each_caller_what_the_engine_gives_alone(case: EngineCase, max_batch: int) -> None:
    alone, engine, count = case.make(64), case.make(64), 12
    admit(alone, case, *range(count))
    for sample_id in range(count):
        run_all(alone, sample_id)
    thresholds = [tuple(0.0 if k >= n % 4 else NEVER for k in range(4)) for n in range(count)]
    async with running_driver(engine, early_exit_scheduler(max_batch=max_batch)) as driver:
        answers = await asyncio.gather(
            *(driver.submit(case.image(n), deadline_s=math.inf, thresholds=thresholds[n]) for n in range(count))
        )
    for number, answer in enumerate(answers):
        assert answer.exit_index == number % 4
        expected = alone.result(number, answer.exit_index)["probabilities"]
        np.testing.assert_allclose(answer.outputs["probabilities"], expected, rtol=0.0, atol=case.tolerance)
    assert engine.held_bytes == 0
