"""A tenant that sends ten times its share of five tasks, in virtual time."""

from __future__ import annotations

from typing import Any

from schedulers.lab.greedy import Seen, played, seen
from schedulers.lab.shapes import TASKS

QUICK, SLOW = ("classify", "infer"), ("chat", "images", "videos")


def by_others(greedy: float, **options: Any) -> dict[str, Seen]:
    return seen(played(greedy, **options))


def test_greedy_tenant_hardly_costs_the_others_goodput() -> None:
    for models, seconds in ((QUICK, 4.0), (SLOW, 100.0)):
        one, ten = (by_others(greedy, seconds=seconds, places=64, models=models) for greedy in (1.0, 10.0))
        lost = {model: one[model].good - ten[model].good for model in models}
        assert max(lost.values()) <= 0.05, lost


def test_greedy_tenant_hardly_slows_the_others_down() -> None:
    one, ten = (by_others(greedy, seconds=5.0, places=512, models=QUICK) for greedy in (1.0, 10.0))
    ratios = {model: (ten[model].p99_s or 0.0) / (one[model].p99_s or 1.0) for model in QUICK}
    assert max(ratios.values()) <= 1.5, ratios  # 1.9 where survivors of the others wait for full slices


def test_gateway_that_lets_in_whoever_comes_first_does_cost_it() -> None:
    ten = by_others(10.0, is_fair=False, seconds=8.0, places=64)
    assert max(one.good for model, one in ten.items() if model in TASKS) <= 0.7


def test_same_seed_sees_the_same() -> None:
    assert by_others(1.0, seconds=2.0) == by_others(1.0, seconds=2.0)
