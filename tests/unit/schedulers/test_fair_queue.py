from __future__ import annotations

import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schedulers.fair_queue import TURNS_BEHIND, FairQueue


@dataclass(eq=False)
class Item:
    tenant: str
    deadline_s: float
    number: int
    joules: float = 1.0
    rank: tuple[float, float] = field(default=(0.0, 0.0))
    batch_key: Hashable = ()
    elsewhere_j: float = 0.0

    def __post_init__(self) -> None:
        self.rank = (self.rank[0], self.deadline_s)


def filled(*tenants: str) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for number, tenant in enumerate(tenants):
        queue.add(Item(tenant, 10.0 - number, number))
    return queue


def tenants(items: list[Item]) -> str:
    return "".join(item.tenant for item in items)


def test_a_long_queue_does_not_delay_a_short_one() -> None:
    queue = filled(*"aaaaaaaa", "b")
    assert sorted(tenants(queue.take(2)[0])) == ["a", "b"]


def test_inside_a_tenant_the_earliest_deadline_goes_first() -> None:
    queue = filled(*"aaa")
    assert [item.deadline_s for item in queue.take(3)[0]] == [8.0, 9.0, 10.0]


def test_inside_a_tenant_rank_goes_before_all() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.add(Item("a", 1.0, 0))
    queue.add(Item("a", 9.0, 1, rank=(-1.0, 9.0)))
    assert queue.first().number == 1


def test_dear_units_get_fewer_turns() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(40):
        queue.add(Item("dear", 1.0, number, joules=3.0))
        queue.add(Item("cheap", 1.0, 100 + number))
    taken = [item.tenant for item in queue.take(20)[0]]
    assert taken.count("cheap") == 3 * taken.count("dear")


def test_tenants_share_by_weight() -> None:
    queue: FairQueue[Item] = FairQueue({"heavy": 3.0})
    for number in range(40):
        queue.add(Item("heavy", 1.0, number))
        queue.add(Item("light", 1.0, 100 + number))
    taken = [item.tenant for item in queue.take(20)[0]]
    assert taken.count("heavy") == 3 * taken.count("light")


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_weight_that_shares_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of tenant 'a'"):
        FairQueue({"a": weight})


def test_idle_tenant_saves_nothing_up() -> None:
    queue = filled(*"aaaaaaaaaa")
    queue.take(8)
    for number in range(100, 110):
        queue.add(Item("b", 1.0, number))
    assert tenants(queue.take(3)[0]).count("b") == 2


def test_tenant_that_comes_one_by_one_is_not_served_twice_as_often() -> None:
    """Its queue is empty between two of its units; its last charge must not be forgotten for that."""
    queue = filled(*"aaaaaaaaaaaaaaaaaaaa")
    queue.add(Item("b", 1.0, 100))
    order = ""
    for number in range(101, 112):
        (item,), _ = queue.take(1)
        order += item.tenant
        if item.tenant == "b":
            queue.add(Item("b", 1.0, number))
    assert abs(order.count("a") - order.count("b")) <= 1


def test_late_units_are_not_charged() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(10):
        queue.add(Item("a", 1.0 if number < 7 else 5.0, number))
        queue.add(Item("b", 5.0, 100 + number))
    units, late = queue.take(6, earliest_deadline_s=2.0)
    assert tenants(units).count("a") == tenants(units).count("b") == 3
    assert len(late) == 7
    assert len(queue) == 20 - 6 - 7


def test_late_units_that_run_after_all_do_so_by_turns_and_are_charged() -> None:
    queue = filled(*"aaaaaa", "b", "b")
    _, late = queue.take(8, earliest_deadline_s=math.inf)
    assert [(item.tenant, item.deadline_s) for item in queue.take_late(late, 3)] == [
        ("a", 10.0),
        ("b", 4.0),
        ("a", 9.0),
    ]
    for number, tenant in enumerate("aab"):
        queue.add(Item(tenant, 1.0, 10 + number))
    assert tenants(queue.take(3)[0]) == "baa"


def test_who_comes_later_has_not_saved_up_what_late_units_were_given() -> None:
    queue = filled(*"aaaaaaaa")
    queue.take_late(queue.take(8, earliest_deadline_s=math.inf)[1], 8)
    for number in range(8):
        queue.add(Item("a", 1.0, 10 + number))
        queue.add(Item("new", 1.0, 20 + number))
    assert [item.tenant for item in queue.take(6)[0]].count("new") == 3


def test_cancelled_unit_is_not_charged() -> None:
    queue = filled(*"aab")
    first = queue.first()
    queue.remove(first)
    assert sorted(tenants(queue.take(2)[0])) == ["a", "b"]
    with pytest.raises(KeyError):
        queue.remove(first)


def test_promoted_unit_goes_first_in_its_tenant_and_not_before_others() -> None:
    queue = filled(*"aabb")
    old = next(item for item in queue if item.deadline_s == 10.0)
    queue.promote(old)
    queue.promote(old)
    taken = queue.take(2)[0]
    assert taken[0] is old
    assert sorted(tenants(taken)) == ["a", "b"]


def test_victim_belongs_to_the_tenant_that_reaches_furthest() -> None:
    queue = filled(*"bbaaaaa")
    victim = queue.victim(Item("b", 1.0, 100))
    assert victim is not None
    assert victim.tenant == "a"
    assert victim.deadline_s == max(item.deadline_s for item in queue if item.tenant == "a")
    assert queue.victim(Item("a", 1.0, 101)) is None
    assert queue.victim(Item("new", 1.0, 102, joules=9.0)) is None


def test_what_cost_more_than_its_charge_is_made_up_for() -> None:
    queue = filled(*"aaaabbbb")
    (first,), _ = queue.take(1)
    queue.correct(first.tenant, 2.0)
    other = "b" if first.tenant == "a" else "a"
    assert tenants(queue.take(3)[0]) == 3 * other


def test_after_a_rest_everybody_starts_anew() -> None:
    queue = filled("a")
    queue.take(1)
    queue.rest()
    queue.correct("a", 5.0)
    for number, tenant in enumerate("aabb"):
        queue.add(Item(tenant, 1.0, number))
    assert sorted(tenants(queue.take(2)[0])) == ["a", "b"]


# -- the bound -------------------------------------------------------------------------------------------------------

TENANTS = "abc"
CHARGES = st.sampled_from([0.25, 1.0, 1.5, 4.0])
STEP = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(TENANTS), CHARGES),
    st.tuples(st.just("add"), st.sampled_from(TENANTS), CHARGES),
    st.tuples(st.just("take"), st.integers(1, 5), st.sampled_from([-math.inf, 3.0])),
    st.tuples(st.just("remove"), st.integers(0, 100), st.none()),
    st.tuples(st.just("promote"), st.integers(0, 100), st.none()),
    st.tuples(st.just("correct"), st.integers(0, 100), st.sampled_from([-1.0, -0.5, 0.5, 3.0])),
)


class Watch:
    """What each tenant was charged after each choice, and which of them had something waiting all the time since."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.queue: FairQueue[Item] = FairQueue(weights)
        self.weights = weights
        self.waiting: set[Item] = set()
        self.largest = dict.fromkeys(weights, 0.0)
        self.in_flight: list[Item] = []
        self.is_corrected = False
        #: What corrections have added since the tenant's last turn; the most of that, and of what may come back of
        #: units in flight.
        self.rising, self.most_added, self.most_credit = (dict.fromkeys(weights, 0.0) for _ in range(3))
        #: For each start of an interval: what was charged since, as long as the tenant has been waiting since.
        self.intervals: list[dict[str, float]] = []

    def add(self, item: Item) -> None:
        self.queue.add(item)
        self.waiting.add(item)
        self.largest[item.tenant] = max(self.largest[item.tenant], item.joules)

    def take(self, count: int, earliest_deadline_s: float) -> None:
        for _ in range(count):  # one choice after the other, as the queue itself chooses
            backlogged = {item.tenant for item in self.waiting}
            self.intervals.append(dict.fromkeys(backlogged, 0.0))
            units, late = self.queue.take(1, earliest_deadline_s)
            self._expire(late)
            self.waiting -= {*units}
            self.in_flight = [*self.in_flight, *units][-3:]
            for item in units:
                self.rising[item.tenant] = 0.0
                credit = sum(one.joules for one in self.in_flight if one.tenant == item.tenant)
                self.most_credit[item.tenant] = max(self.most_credit[item.tenant], credit)
                for charged in self.intervals:
                    if item.tenant in charged:
                        charged[item.tenant] += item.joules
            self.check()
            self.forget()

    def take_alike(self, count: int, earliest_deadline_s: float) -> None:
        """One call, in which a tenant may be charged for several units."""
        self.intervals.append(dict.fromkeys({item.tenant for item in self.waiting}, 0.0))
        units, late = self.queue.take_alike(count, earliest_deadline_s)
        assert len({item.batch_key for item in units}) <= 1
        assert len(units) <= (1 if None in {item.batch_key for item in units} else count)
        assert units or late or not self.waiting
        self._expire(late)
        self.waiting -= {*units}
        for tenant in {item.tenant for item in units}:
            joules = sum(item.joules for item in units if item.tenant == tenant)
            self.largest[tenant] = max(self.largest[tenant], joules)
            for charged in self.intervals:
                if tenant in charged:
                    charged[tenant] += joules
        self.forget()  # who ran out in this call had no more to be served
        self.check()

    def _expire(self, late: list[Item]) -> None:
        """These went before the choice: whose last ones they were was not waiting when it was made."""
        self.waiting -= {*late}
        self.forget()

    def correct(self, item: Item, factor: float) -> None:
        joules, tenant, self.is_corrected = item.joules * factor, item.tenant, True
        self.in_flight.remove(item)
        self.queue.correct(tenant, joules)
        self.rising[tenant] += max(0.0, joules)
        self.most_added[tenant] = max(self.most_added[tenant], self.rising[tenant])
        for charged in self.intervals:
            if tenant in charged:
                charged[tenant] += joules
        self.check()

    def check(self) -> None:
        limit = {
            tenant: (self.largest[tenant] + self.most_added[tenant] + self.most_credit[tenant] * self.is_corrected)
            / weight
            for tenant, weight in self.weights.items()
        }
        for charged in self.intervals:
            for one, other in itertools.combinations(charged, 2):
                distance = abs(charged[one] / self.weights[one] - charged[other] / self.weights[other])
                assert distance <= limit[one] + limit[other] + 1e-9, (one, other, charged)

    def forget(self) -> None:
        """Tenants without anything waiting are out of every interval that has begun."""
        backlogged = {item.tenant for item in self.waiting}
        for charged in self.intervals:
            for tenant in charged.keys() - backlogged:
                del charged[tenant]


ALL_LATE = [*(("add", tenant, 0.25) for tenant in "caa"), *[("add", "c", 1.0)] * 2, ("take", 2, 3.0)]
"""One tenant has only units that are late, and is out of the interval before another is chosen."""


@settings(max_examples=300)
@example(steps=ALL_LATE, weights=(0.5, 0.5, 0.5))
@given(steps=st.lists(STEP, max_size=80), weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_bound_holds_for_any_two_tenants_in_every_interval(steps: list[tuple], weights: tuple[float, ...]) -> None:
    watch = Watch(dict(zip(TENANTS, weights, strict=True)))
    for number, (kind, value, extra) in enumerate(steps):
        ordered = sorted(watch.waiting, key=lambda item: item.number)
        if kind == "add":
            watch.add(Item(value, float(number % 10), number, joules=extra))
        elif kind == "take":
            watch.take(value, extra)
        elif kind == "correct" and watch.in_flight:
            watch.correct(watch.in_flight[value % len(watch.in_flight)], extra)
        elif kind == "remove" and ordered:
            watch.queue.remove(ordered[value % len(ordered)])
            watch.waiting.remove(ordered[value % len(ordered)])
            watch.forget()
        elif kind == "promote" and ordered:
            watch.queue.promote(ordered[value % len(ordered)])
        assert set(watch.queue) == watch.waiting
        assert len(watch.queue) == len(watch.waiting)


def test_bound_holds_over_thousands_of_choices_and_the_service_is_shared() -> None:
    rng = Random(0)
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    charges = {"a": (0.1, 5.0), "b": (1.0, 1.0), "c": (0.01, 0.2)}
    watch = Watch(weights)
    numbers = itertools.count()

    def refill() -> None:
        for tenant, (low, high) in charges.items():
            while sum(item.tenant == tenant for item in watch.waiting) < 3:
                joules = rng.uniform(low, high)
                watch.add(Item(tenant, rng.random(), next(numbers), joules=joules))

    refill()
    for _ in range(300):
        watch.take(1, -math.inf)
        refill()
    whole = watch.intervals[0]
    assert whole.keys() == weights.keys()
    assert min(whole[tenant] / weights[tenant] for tenant in weights) > 10.0


KEYED_STEP = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(TENANTS), CHARGES, st.sampled_from(["x", "x", "y", None])),
    st.tuples(st.just("add"), st.sampled_from(TENANTS), CHARGES, st.sampled_from(["x", "y", "z"])),
    st.tuples(st.just("take"), st.integers(1, 5), st.sampled_from([-math.inf, 3.0]), st.none()),
    st.tuples(st.just("remove"), st.integers(0, 100), st.none(), st.none()),
)


@settings(max_examples=300)
@given(steps=st.lists(KEYED_STEP, max_size=80), weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3))
def test_bound_holds_where_only_units_of_one_key_are_taken_together(
    steps: list[tuple], weights: tuple[float, ...]
) -> None:
    """With l the largest charge of a tenant in one call."""
    watch = Watch(dict(zip(TENANTS, weights, strict=True)))
    for number, (kind, value, extra, key) in enumerate(steps):
        ordered = sorted(watch.waiting, key=lambda item: item.number)
        if kind == "add":
            item = Item(value, float(number % 10), number, extra, batch_key=key)
            watch.add(item)
            watch.largest[value] = max(watch.largest[value], extra)
        elif kind == "take":
            watch.take_alike(value, extra)
        elif ordered:
            watch.queue.remove(ordered[value % len(ordered)])
            watch.waiting.remove(ordered[value % len(ordered)])
            watch.forget()
        assert set(watch.queue) == watch.waiting
        assert sum(watch.queue._num_of_key.values()) == len(watch.queue) == len(watch.waiting)


@given(
    tenants=st.lists(st.tuples(st.sampled_from(TENANTS), CHARGES, st.integers(0, 9)), max_size=40),
    counts=st.lists(st.integers(1, 6), max_size=8),
)
def test_search_by_key_takes_what_the_short_way_takes_when_all_are_alike(tenants: list[tuple], counts: list) -> None:
    """``fits`` has everything looked at one by one."""
    short: FairQueue[Item] = FairQueue()
    searched: FairQueue[Item] = FairQueue()
    for number, (tenant, joules, deadline_s) in enumerate(tenants):
        item = Item(tenant, float(deadline_s), number, joules)
        short.add(item)
        searched.add(item)
    for count in counts:
        assert searched.take_alike(count, fits=lambda item, taken: True) == short.take(count)


def test_other_sizes_of_a_tenant_do_not_keep_its_turn_from_it() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(8):
        queue.add(Item("a", 1.0, number, batch_key="small"))
        queue.add(Item("b", 1.0, 100 + number, batch_key="large"))
    slices = [queue.take_alike(4)[0] for _ in range(4)]
    assert [(tenants(units), units[0].batch_key) for units in slices] == [
        ("aaaa", "small"),
        ("bbbb", "large"),
        ("aaaa", "small"),
        ("bbbb", "large"),
    ]


def test_nobody_comes_in_over_a_tenant_that_has_nothing_alike() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.add(Item("c", 1.0, 0, joules=2.0, batch_key="small"))
    queue.take_alike(1)
    for number, (tenant, key) in enumerate((("a", "small"), ("b", "large"), ("c", "small"), ("a", "small")), start=1):
        queue.add(Item(tenant, 1.0, number, batch_key=key))
    assert tenants(queue.take_alike(4)[0]) == "aa"  # c had its turn before; b, which waits for its own, has not
    assert tenants(queue.take_alike(4)[0]) == "b"


def test_charge_outlasts_an_empty_queue() -> None:
    """What a tenant has running counts when both have something waiting again."""
    queue = filled("a")
    queue.take(1)
    for number, tenant in enumerate("aaabbb", start=1):
        queue.add(Item(tenant, 1.0, number))
    assert tenants(queue.take(2)[0])[0] == "b"


def test_tenants_that_come_once_are_not_remembered_for_ever() -> None:
    queue = filled("a")
    for number in range(10_000):
        queue.add(Item(f"once {number}", 1.0, number + 1))
        queue.take(1)
    assert len(queue._flows) <= 4096


def test_heap_does_not_grow_with_those_who_come_and_go() -> None:
    queue = filled("a", "b")
    for number in range(2, 2000):
        item = Item("c", 1.0, number)
        queue.add(item)
        queue.remove(item)
    assert len(queue._heap) <= 4


@pytest.mark.parametrize("keys", ["x", "xy"])
def test_tenant_with_few_waiting_has_a_deadline_of_its_own(keys: str) -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(20):
        queue.add(Item("flood", 5.0, number, batch_key="x"))
    for number in range(20, 24):
        queue.add(Item("few", 5.0, number, batch_key="x"))
    queue.add(Item("few", 2.0, 24, batch_key="x"))
    queue.add(Item("other", 5.0, 25, batch_key=keys[-1]))
    units, late = queue.take_alike(8, 9.0, few_deadline_s=3.0)
    assert tenants(units).count("few") == 4
    assert {(item.tenant, item.deadline_s) for item in late} >= {("few", 2.0)}
    assert "flood" not in tenants(units)


# -- elsewhere -------------------------------------------------------------------------------------------------------


def test_who_was_served_elsewhere_goes_behind_until_others_were_served_as_much() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(8):
        queue.add(Item("b", 1.0, number))
    for number in range(8, 16):
        queue.add(Item("a", 1.0, number, elsewhere_j=4.0 if number == 8 else 0.0))
    assert tenants(queue.take(12)[0]) == "bbbbbabababa"


def test_nobody_owes_for_what_nobody_else_wanted() -> None:
    queue: FairQueue[Item] = FairQueue()
    queue.add(Item("a", 1.0, 0, elsewhere_j=100.0))
    queue.add(Item("a", 1.0, 1))
    for number in range(2, 4):
        queue.add(Item("b", 1.0, number))
    assert tenants(queue.take(4)[0]) == "abab"


def test_what_others_were_served_meanwhile_makes_up_for_it() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(20):
        queue.add(Item("b", 1.0, number))
    queue.take(10)
    queue.add(Item("a", 1.0, 20, elsewhere_j=8.0))
    assert "a" in tenants(queue.take(2)[0])


def test_nobody_is_held_back_for_good() -> None:
    queue: FairQueue[Item] = FairQueue()
    for number in range(100):
        queue.add(Item("b", 1.0, number))
    queue.add(Item("a", 1.0, 100, elsewhere_j=1e9))
    queue.add(Item("a", 1.0, 101, elsewhere_j=1e9))
    assert tenants(queue.take(100)[0]).index("a") == int(TURNS_BEHIND) + 1


class ElsewhereWatch:
    """Two counts of each tenant since an interval began in which it always waited: here, and what of elsewhere moved
    its tag."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.queue: FairQueue[Item] = FairQueue(weights)
        self.weights = weights
        self.most = dict.fromkeys(weights, 0.0)
        self.intervals: list[dict[str, float]] = []

    def add(self, item: Item) -> None:
        waits = any(other.tenant == item.tenant for other in self.queue)
        self.most[item.tenant] = max(self.most[item.tenant], item.joules)
        if item.elsewhere_j:
            self.most[item.tenant] = max(self.most[item.tenant], TURNS_BEHIND * item.joules)
        before = self.queue._flows[item.tenant].tag if waits else 0.0
        self.queue.add(item)
        if waits:
            self._charge(item.tenant, (self.queue._flows[item.tenant].tag - before) * self.weights[item.tenant])

    def take(self) -> None:
        self.intervals.append(dict.fromkeys({item.tenant for item in self.queue}, 0.0))
        for item in self.queue.take(1)[0]:
            self._charge(item.tenant, item.joules)
        waiting = {item.tenant for item in self.queue}
        for charged in self.intervals:
            for tenant in charged.keys() - waiting:
                del charged[tenant]

    def _charge(self, tenant: str, joules: float) -> None:
        for charged in self.intervals:
            if tenant in charged:
                charged[tenant] += joules
            for one, other in itertools.combinations(charged, 2):
                gap = abs(charged[one] / self.weights[one] - charged[other] / self.weights[other])
                allowed = self.most[one] / self.weights[one] + self.most[other] / self.weights[other]
                assert gap <= allowed + 1e-9, (one, other, charged)


@settings(max_examples=300)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(TENANTS), st.sampled_from([0.25, 1.0, 2.0]), st.sampled_from([0.0, 0.0, 1.0, 9.0, 99.0])
            ),
            st.none(),
        ),
        max_size=100,
    ),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
)
def test_bound_holds_with_what_was_served_elsewhere(
    steps: list[tuple[str, float, float] | None], weights: tuple[float, ...]
) -> None:
    watch = ElsewhereWatch(dict(zip(TENANTS, weights, strict=True)))
    for number, step in enumerate(steps):
        if step is None:
            watch.take()
        else:
            watch.add(Item(step[0], 1.0, number, joules=step[1], elsewhere_j=step[2]))
