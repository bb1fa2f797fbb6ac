from __future__ import annotations

from random import Random

import pytest

from schedulers.fair_queue import FairQueue
from schedulers.fair_wait import FairWait, turn_s
from schedulers.policy import Unit
from schedulers.types import UnitArrived


def test_a_flood_is_waited_for_by_whoever_sends_it() -> None:
    waiting = FairWait()
    for _ in range(100):
        waiting.add("flood", 1.0)
    waiting.add("lab", 2.0)
    assert waiting.total_s == pytest.approx(102.0)
    assert waiting.wait_s("flood", 1.0) == pytest.approx(102.0)
    assert waiting.wait_s("lab", 1.0) == pytest.approx(2.0 + 3.0)  # its own, and as much of the flood
    assert waiting.wait_s("new", 1.0) == pytest.approx(1.0 + 1.0)


def test_weights_count() -> None:
    waiting = FairWait({"flood": 1.0, "lab": 4.0})
    waiting.add("flood", 100.0)
    assert waiting.wait_s("lab", 2.0) == pytest.approx(0.5)


def test_what_is_gone_is_not_waited_for_and_rounding_does_not_add_up() -> None:
    waiting = FairWait()
    for _ in range(3):
        waiting.add("a", 0.1)
    for _ in range(3):
        waiting.remove("a", 0.1)
    assert waiting.total_s == 0.0
    assert waiting.wait_s("b", 1.0) == 0.0
    with pytest.raises(KeyError):
        waiting.remove("a", 0.1)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_a_fair_queue_makes_a_tenant_wait_but_for_one_unit_of_each(seed: int) -> None:
    rng, queue, waiting = Random(seed), FairQueue[Unit](), FairWait()
    for number in range(60):
        tenant, seconds = rng.choice(("a", "b", "c", "c", "c")), rng.uniform(0.1, 1.0)
        unit = Unit(UnitArrived(unit_id=number, work=None, tenant=tenant), 0.0, number)
        unit.joules = seconds
        queue.add(unit)
        waiting.add(tenant, seconds)
    last = Unit(UnitArrived(unit_id="last", work=None, tenant="a"), 0.0, 1000)
    last.joules = 0.5
    expected_s = waiting.wait_s("a", 0.5)
    queue.add(last)
    waited_s = 0.0
    while (unit := queue.take(1)[0][0]) is not last:
        waited_s += unit.joules
    assert waited_s == pytest.approx(expected_s, abs=2 * 1.0)  # one unit of each of two others


@pytest.mark.parametrize("seed", range(5))
def test_what_is_looked_up_is_waited_for_as_what_is_kept(seed: int) -> None:
    rng, weights = Random(seed), {"a": 3.0, "b": 0.5}
    waiting_s = {tenant: rng.uniform(0.1, 9.0) for tenant in rng.sample(("a", "b", "c", "d"), 3)}
    kept = FairWait(weights)
    for tenant, seconds in waiting_s.items():
        kept.add(tenant, seconds)
    for tenant in ("a", "b", "c", "new"):
        assert turn_s(waiting_s, tenant, 1.5, weights) == pytest.approx(kept.wait_s(tenant, 1.5))
