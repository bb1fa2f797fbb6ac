"""A simulated model with more to do than it can, with and without quality that gives way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random

import pytest

from schedulers.lab.cluster import OURS, System, simulate_system
from schedulers.lab.outcomes import Outcome
from schedulers.lab.served import PointNumbers, Seconds, ServedModel
from schedulers.lab.traces import Request
from schedulers.types import Priority

SECONDS = 200.0
STEP_S = Seconds({1: 0.05})
MODEL = ServedModel(
    id="steps",
    tasks=("images",),
    shape="steps",
    points=tuple(
        PointNumbers(name=name, quality=quality, step_s=STEP_S, num_steps=steps)
        for name, steps, quality in (("full", 4, 0.98), ("good", 2, 0.95), ("fair", 1, 0.90))
    ),
    watts=10.0,
    max_batch=1,
)
SYSTEM = System(models=(MODEL,), replicas={"steps": 2}, bend_after_s={"steps": 0.5}, room=128)
CAPACITY_PER_S = 10.0
"""At the best point."""


def trace(load: float, seed: int) -> list[Request]:
    """Half of the requests want their answer within 2 s, the others give up after 10 s."""
    random, now_s, requests = Random(seed), 0.0, []
    while (now_s := now_s + random.expovariate(load * CAPACITY_PER_S)) < SECONDS:
        (tenant,) = random.choices(("greedy", "steady", "modest"), (0.6, 0.3, 0.1))
        (priority,) = random.choices(tuple(Priority), (0.2, 0.6, 0.2))
        latency_s = 2.0 if random.random() < 0.5 else None
        requests.append(
            Request(
                arrived_s=now_s,
                task="images",
                tenant=tenant,
                priority=priority,
                latency_s=latency_s,
                patience_s=10.0,
            )
        )
    return requests


@cache
def outcomes(load: float, seed: int = 0) -> tuple[list[Outcome], list[Outcome]]:
    """Without bending, and with it."""
    requests = trace(load, seed)
    rigid, bending = (simulate_system(replace(SYSTEM, bends=bends), requests, OURS) for bends in (False, True))
    return rigid, bending


def good(played: list[Outcome]) -> int:
    return sum(one.is_good for one in played)


def gave_way(played: list[Outcome], whose: str) -> float:
    of = [one for one in played if whose in (one.request.priority.name.lower(), one.request.tenant)]
    return sum(one.gave_way for one in of) / len(of)


def test_without_overload_all_are_answered_at_their_best() -> None:
    rigid, bending = outcomes(0.4)
    assert good(rigid) == good(bending) == len(rigid)
    assert sum(one.gave_way for one in bending) < 0.02 * len(bending)
    assert not any(one.gave_way or one.level for one in rigid)


@pytest.mark.parametrize("seed", range(2))
def test_quality_gives_way_before_anything_is_refused(seed: int) -> None:
    rigid, bending = outcomes(2.0, seed)
    assert good(rigid) < 0.9 * len(rigid)
    assert good(bending) > 0.99 * len(bending)
    assert sum(abs(after.level - before.level) for before, after in pairwise(bending)) < SECONDS / 10.0


def test_goodput_at_three_times_the_capacity_is_that_of_its_peak() -> None:
    goodput = {load: outcomes(load) for load in (0.8, 1.5, 3.0)}
    assert good(goodput[3.0][1]) >= 0.9 * max(good(bending) for _, bending in goodput.values())
    assert all(good(bending) >= 0.99 * good(rigid) for rigid, bending in goodput.values())  # one more may be late


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_low_priority_and_the_greedy_give_way_most(load: float) -> None:
    _, bending = outcomes(load)
    assert gave_way(bending, "low") >= gave_way(bending, "normal") >= gave_way(bending, "high")
    assert gave_way(bending, "greedy") > gave_way(bending, "steady") > gave_way(bending, "modest")


def test_no_more_than_there_is_room_for_are_taken_in() -> None:
    crowd = [Request(arrived_s=0.001 * number, task="images") for number in range(200)]
    played = simulate_system(replace(SYSTEM, bends=False), crowd, OURS)
    refused = [one for one in played if one.state == "rejected"]
    assert {one.reason for one in refused} == {"full"}
    assert 200 - 128 - 8 <= len(refused) <= 200 - 128


def test_who_is_patient_is_given_up_when_that_is_over() -> None:
    crowd = [Request(arrived_s=0.0, task="images", patience_s=1.0) for _ in range(100)]
    played = simulate_system(replace(SYSTEM, bends=False), crowd, OURS)
    made = [one for one in played if one.state == "answered"]
    assert len(made) <= 10 + 4, "as many as there is time for, and what was begun by then"
    assert {one.state for one in played if one not in made} == {"expired"}
    assert all(one.done_s <= 1.0 for one in played if one.is_good)
