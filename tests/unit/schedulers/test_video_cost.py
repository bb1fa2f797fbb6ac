"""What is learnt of the cost of steps, from batches of a machine whose law is known."""

from __future__ import annotations

import math
import random

import pytest

from schedulers.video_cost import StepCost, StepPart


def parts(*sizes: tuple[int, float]) -> list[StepPart]:
    return [StepPart(tokens=tokens, seconds=seconds) for tokens, seconds in sizes]


def test_prediction_holds_until_something_is_observed() -> None:
    cost = StepCost()
    assert cost.seconds(parts((128, 0.2))) == 0.2
    assert cost.seconds(parts((128, 0.2), (384, 0.5))) == pytest.approx(0.7)
    assert cost.seconds([]) == 0.0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_law_of_the_machine_is_found(share: float) -> None:
    """Twice the prediction for small jobs, three times for large ones, and ``share`` for companions."""
    chance, cost, scales = random.Random(1), StepCost(), {128: 2.0, 384: 3.0}

    def took(batch: list[StepPart]) -> float:
        alone = [scales[part.tokens] * part.seconds for part in batch]
        return max(alone) + share * (sum(alone) - max(alone))

    for _ in range(300):
        sizes = [
            (tokens, {128: 0.1, 384: 0.4}[tokens]) for tokens in chance.choices((128, 384), k=chance.choice((1, 2, 4)))
        ]
        batch = parts(*sizes)
        cost.observe(batch, took(batch))
    for batch in (parts((128, 0.1)), parts((384, 0.4)), parts((128, 0.1), (384, 0.4), (128, 0.1))):
        assert cost.seconds(batch) == pytest.approx(took(batch), rel=0.02)


def test_batches_alone_teach_what_batches_take() -> None:
    """No job ever ran by itself, and all were slower than any share explains."""
    cost, batch = StepCost(), parts((128, 0.1), (128, 0.1))
    for _ in range(60):
        cost.observe(batch, 1.0)
    assert cost.seconds(batch) == pytest.approx(1.0, rel=0.05)


def test_size_never_seen_takes_the_correction_of_the_others() -> None:
    cost = StepCost()
    for _ in range(40):
        cost.observe(parts((128, 0.1)), 0.5)
    assert cost.seconds(parts((4096, 1.0))) == pytest.approx(5.0, rel=0.01)


def test_nonsense_teaches_nothing() -> None:
    cost = StepCost()
    for elapsed_s in (math.nan, math.inf, -1.0, 0.0):
        cost.observe(parts((128, 0.1)), elapsed_s)
    cost.observe(parts((128, 0.0)), 1.0)
    cost.observe([], 1.0)
    cost.observe_decode(math.inf)
    assert cost.seconds(parts((128, 0.1))) == 0.1
    assert cost.decode_s == 0.0


def test_decodes_are_learnt_from_the_first() -> None:
    cost = StepCost()
    cost.observe_decode(2.0)
    assert cost.decode_s == 2.0
    cost.observe_decode(1.0)
    assert 1.0 < cost.decode_s < 2.0


def test_memory_of_sizes_is_bounded() -> None:
    cost = StepCost()
    for tokens in range(1, 2000):
        cost.observe(parts((tokens, 0.1)), 0.2)
    assert len(cost._scales) <= 256
    assert cost.scale(1999) == 2.0


def test_rates_out_of_range_are_refused() -> None:
    for options in ({"first_share": 1.5}, {"weight": 0.0}, {"weight": math.nan}):
        with pytest.raises(ValueError, match="must be in"):
            StepCost(**options)
