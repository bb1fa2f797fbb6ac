"""A tenant that sends ten times its share of five tasks, in virtual time."""

from __future__ import annotations

from schedulers.lab.greedy import seen
from schedulers.lab.shapes import TASKS


def test_greedy_tenant_hardly_costs_the_others_goodput() -> None:
    one, ten = (seen(greedy, seconds=8.0, places=64) for greedy in (1.0, 10.0))
    lost = {model: one[model].good - ten[model].good for model in TASKS}
    assert max(lost["classify"], lost["infer"]) <= 0.05, lost
    assert max(lost.values()) <= 0.1, lost  # of the others there are a dozen requests: one of them is 8%


def test_gateway_that_lets_in_whoever_comes_first_does_cost_it() -> None:
    ten = seen(10.0, is_fair=False, seconds=8.0, places=64)
    assert max(one.good for one in ten.values()) <= 0.7


def test_same_seed_sees_the_same() -> None:
    assert seen(1.0, seconds=2.0) == seen(1.0, seconds=2.0)
