"""Targets are judged by what comes after them; what the engine is told of is what has happened."""

from __future__ import annotations

import numpy as np
import pytest

from schedulers.experts.replacement import Boundary, Discard, Fetch, Fetched, FetchFailed, Free, RankLost, Switch
from serving.replica.job.placing import Placing

SKEWED = np.array([[90, 80, 1, 1]])
OTHER_WAY = np.array([[1, 90, 1, 80]])
"""For which experts in order are fine, and what SKEWED wants is not."""


def placing(retry_s: float = 5.0) -> Placing:
    return Placing.over(2, layers=1, experts=4, spare=0, expert_bytes=4, retry_s=retry_s)


def test_slots_come_out_even() -> None:
    for ranks, spare, expected in ((3, 0, 9), (2, 3, 12)):
        made = Placing.over(ranks, layers=1, experts=8, spare=spare, expert_bytes=4)
        assert made.placement.num_slots == expected


def fetch_of(made: Placing, now_s: float) -> Fetch:
    (fetch,) = made.look(now_s)
    assert isinstance(fetch, Fetch)
    return fetch


def with_target() -> Placing:
    made = placing()
    made.add([SKEWED, None])
    assert made.look(0.0) == []
    return made


def test_target_that_holds_for_later_tokens_is_fetched_and_switched_to_and_the_old_one_free_at_once() -> None:
    made = with_target()
    assert made.look(1.0) == [], "nothing has come that it could be judged by"
    assert made.facts().rank_loads == pytest.approx((170 / 172, 2 / 172))
    made.add([SKEWED])
    fetch = fetch_of(made, 2.0)
    assert made.facts().version == 1
    switch, free = made.handle(3.0, Fetched(fetch.placement.version), Boundary())
    assert (switch, free) == (Switch(fetch.placement), Free(1))
    facts = made.facts()
    assert (facts.version, facts.moves, facts.failed) == (2, len(fetch.moves), 0)
    assert max(facts.rank_loads) < 0.55


def test_target_that_only_fitted_an_accident_is_not_followed() -> None:
    made = with_target()
    made.add([OTHER_WAY])
    assert made.look(1.0) == []
    assert made.facts().version == 1


def test_fetch_that_failed_is_counted_and_tried_again() -> None:
    made = with_target()
    made.add([SKEWED])
    fetch = fetch_of(made, 1.0)
    assert made.handle(2.0, FetchFailed(fetch.placement.version)) == [Discard(2)]
    assert (made.facts().failed, made.facts().version) == (1, 1)
    wake_s = made.next_wakeup_s()
    assert wake_s == 7.0
    (again,) = made.handle(wake_s)
    assert isinstance(again, Fetch)
    assert again.moves == fetch.moves


def test_nothing_moves_once_a_rank_is_lost() -> None:
    made = with_target()
    made.add([SKEWED])
    fetch = fetch_of(made, 1.0)
    assert made.handle(2.0, RankLost()) == [Discard(fetch.placement.version)]
    made.add([SKEWED])
    for now_s in (3.0, 4.0):
        assert made.look(now_s) == []


def test_steps_without_counts_are_none() -> None:
    made = placing()
    made.add([None])
    assert made.look(0.0) == []
    assert made.facts().rank_loads == (0.0, 0.0)
