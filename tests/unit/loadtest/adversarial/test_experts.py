"""Requests that pile up on few experts."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.adversarial.experts import Request, busiest_rank, hottest, observe, prompts_of, skew, sum_loads
from models.registry import find

EVEN = np.full((2, 4), 10)
PILED = np.array([[40, 0, 0, 0], [10, 10, 10, 10]])


def test_skew_and_ranks_are_means_over_layers() -> None:
    assert skew(EVEN) == busiest_rank(EVEN, 2) == 1.0
    assert skew(PILED) == pytest.approx((4 + 1) / 2)
    assert busiest_rank(PILED, 2) == pytest.approx((2 + 1) / 2)
    with pytest.raises(ValueError, match="do not lie equally"):
        busiest_rank(EVEN, 3)


def test_a_crowd_agrees_on_one_rank() -> None:
    """Alone, the second is as hot as the first; together they even each other out."""
    left = [Request("l", i, np.array([[30, 5, 3, 2]])) for i in range(2)]
    right = [Request("r", 0, np.array([[0, 0, 39, 1]]))]
    chosen = hottest([*left, *right], 2, 2)
    assert [one.prompt for one in chosen] == ["l", "l"]
    assert busiest_rank(sum_loads(chosen), 2) == pytest.approx(70 / 40)


def test_loads_are_those_of_the_runner() -> None:
    family, variant = find("dit-moe-nano")
    point = family.of(variant).check_point({"num_inference_steps": 2})
    prompts = prompts_of(variant)
    assert len(prompts) == 90
    asked = [(prompts[0], 0), (prompts[40], 0), (prompts[0], 1)]
    found = list(observe(family, variant, asked, point, batch=2))
    assert [(one.prompt, one.seed) for one in found] == asked
    totals = {int(one.loads.sum()) for one in found}
    assert len(totals) == 1, "every request has as many tokens"
    assert all((one.loads.sum(-1) == one.loads[0].sum()).all() for one in found)
    assert not np.array_equal(found[0].loads, found[1].loads)
