"""What holds for work of every shape: goodput past saturation, and the bound on fairness, on the virtual clock."""

from __future__ import annotations

import pytest

from schedulers.lab.shapes import SHAPES, TENANTS, Shape

every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
WEIGHTS = {"flood": 1.0, "usual": 1.0, "rare": 0.5}


@every_shape
def test_goodput_at_three_times_the_capacity_is_nine_tenths_of_its_peak(shape: Shape) -> None:
    scale = 1 if shape.capacity_per_s < 50 else 3
    goodput = {load: shape.goodput_per_s(load, int(300 * scale * load)) for load in (0.8, 1.0, 1.5, 3.0)}
    assert goodput[3.0] >= 0.9 * max(goodput.values()), goodput
    assert goodput[3.0] >= 0.8 * shape.capacity_per_s


@every_shape
def test_two_tenants_that_wait_are_never_further_apart_than_the_bound(shape: Shape) -> None:
    gap = shape.worst_gap(3.0, 900, WEIGHTS)
    assert 0.0 < gap.largest <= gap.bound * (1.0 + 1e-9)


@every_shape
def test_small_tenants_get_what_they_ask_for_beside_a_flood(shape: Shape) -> None:
    """A share of 0.1 of three times the capacity is less than a third of it."""
    trace = shape.trace(3.0, 900)
    records = shape.run(trace).records
    good = {tenant: [record.is_good for record in records if record.tenant == tenant] for tenant in TENANTS}
    shares = {tenant: sum(answers) / len(answers) for tenant, answers in good.items()}
    assert shares["rare"] >= 0.7, shares
    assert shares["rare"] > 2 * shares["flood"]
