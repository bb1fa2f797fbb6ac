from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.fair_queue import FairQueue
from schedulers.types import Priority


@dataclass(eq=False)
class Item:
    tenant: str
    deadline_s: float
    number: int
    priority: Priority = Priority.NORMAL


def filled(*tenants: str, charge_s: float = 1.0) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for number, tenant in enumerate(tenants):
        queue.add(Item(tenant, 10.0 - number, number), charge_s)
    return queue


def tenants(items: list[Item]) -> str:
    return "".join(item.tenant for item in items)


def test_a_long_queue_does_not_delay_a_short_one() -> None:
    queue = filled(*"aaaaaaaa", "b")
    assert sorted(tenants(queue.take(2)[0])) == ["a", "b"]


def test_inside_a_tenant_the_earliest_deadline_goes_first() -> None:
    queue = filled(*"aaa")
    assert [item.deadline_s for item in queue.take(3)[0]] == [8.0, 9.0, 10.0]


def test_inside_a_tenant_priority_goes_before_deadline() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.add(Item("a", 1.0, 0, Priority.LOW), 1.0)
    queue.add(Item("a", 9.0, 1, Priority.HIGH), 1.0)
    assert queue.first().priority is Priority.HIGH


def test_dear_samples_buy_fewer_turns() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(40):
        queue.add(Item("dear", 1.0, number), 3.0)
        queue.add(Item("cheap", 1.0, 100 + number), 1.0)
    taken = [item.tenant for item in queue.take(20)[0]]
    assert taken.count("cheap") == 3 * taken.count("dear")


def test_idle_tenant_saves_nothing_up() -> None:
    queue = filled(*"aaaaaaaaaa")
    queue.take(8)
    for number in range(100, 110):
        queue.add(Item("b", 1.0, number), 1.0)
    assert tenants(queue.take(4)[0]).count("b") == 2


def test_late_samples_do_not_use_up_turns() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(10):
        queue.add(Item("a", 1.0 if number < 7 else 5.0, number), 1.0)
        queue.add(Item("b", 5.0, 100 + number), 1.0)
    samples, late = queue.take(6, earliest_deadline_s=2.0)
    assert tenants(samples).count("a") == tenants(samples).count("b") == 3
    assert len(late) == 7
    assert len(queue) == 20 - 6 - 7


def test_cancelled_sample_gives_back_its_tenants_last_turn() -> None:
    queue = filled(*"aaab")
    items = list(queue)
    queue.remove(items[0])
    queue.add(Item("a", 1.0, 50), 1.0)
    assert queue.next_tag("a", 1.0) == 4.0  # three waiting, not four
    with pytest.raises(KeyError):
        queue.remove(items[0])


def test_put_back_goes_before_everything_that_waits() -> None:
    queue = filled(*"abab")
    (item, other), _ = queue.take(2)
    queue.put_back(item)
    queue.put_back(other)
    assert set(queue.take(2)[0]) == {item, other}


def test_least_urgent_belongs_to_the_tenant_furthest_over_its_share() -> None:
    queue = filled(*"bbaaaaa")
    victim = queue.least_urgent()
    assert victim.tenant == "a"
    assert victim.deadline_s == max(item.deadline_s for item in queue if item.tenant == "a")


STEP = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.floats(0.1, 3.0)),
    st.tuples(st.just("take"), st.integers(0, 5), st.sampled_from([-math.inf, 3.0, 6.0])),
    st.tuples(st.just("remove"), st.integers(0, 100), st.none()),
    st.tuples(st.just("put_back"), st.integers(1, 3), st.none()),
)


@settings(max_examples=200)
@given(steps=st.lists(STEP, max_size=80))
def test_loses_and_invents_nothing_and_keeps_one_turn_per_sample(steps: list[tuple]) -> None:
    queue: FairQueue[Item] = FairQueue()
    waiting: set[Item] = set()
    for number, (kind, value, extra) in enumerate(steps):
        if kind == "add":
            item = Item(value, float(number % 10), number)
            queue.add(item, extra)
            waiting.add(item)
        elif kind == "take":
            samples, late = queue.take(value, extra)
            assert len(samples) <= value
            assert all(item.deadline_s >= extra for item in samples)
            assert all(item.deadline_s < extra for item in late)
            assert len({*samples, *late}) == len(samples) + len(late)
            waiting -= {*samples, *late}
        elif kind == "remove" and waiting:
            item = sorted(waiting, key=lambda i: i.number)[value % len(waiting)]
            queue.remove(item)
            waiting.remove(item)
        elif kind == "put_back":
            for item in queue.take(value)[0]:
                queue.put_back(item)
        assert set(queue) == waiting
        assert len(queue) == len(waiting) == sum(len(flow.turns) for flow in queue._flows.values())
        assert queue._flows.keys() == {item.tenant for item in waiting}
        assert all(list(flow.turns) == sorted(flow.turns, key=lambda t: t[:2]) for flow in queue._flows.values())
