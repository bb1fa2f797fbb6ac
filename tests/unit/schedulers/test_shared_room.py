from __future__ import annotations

import itertools
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.fair_queue import Weights
from schedulers.shared_room import Place, SharedRoom
from schedulers.types import Priority


def filled(places: int, tenant: str = "greedy", weights: Weights | None = None) -> tuple[SharedRoom, list[Place]]:
    room = SharedRoom(places, weights or {})
    inside = [Place(tenant) for _ in range(places)]
    assert [room.ask(place) for place in inside] == [True] * places
    return room, inside


def test_one_tenant_alone_may_fill_the_room_and_is_refused_at_once_beyond() -> None:
    room, inside = filled(4)
    assert room.ask(Place("greedy")) is False
    room.leave(inside[0])
    assert room.ask(Place("greedy")) is True


def test_newcomer_has_the_next_place_that_comes_free_whoever_else_asks() -> None:
    room, inside = filled(4)
    newcomer = Place("new")
    assert room.ask(newcomer) is None
    assert room.ask(Place("greedy")) is False
    assert room.leave(inside[0]) is newcomer
    assert room.is_full


def test_who_waits_has_its_share_and_no_more() -> None:
    room, _ = filled(4)
    assert [room.ask(Place("new")) for _ in range(3)] == [None, None, False]


def test_a_share_is_by_weight_and_one_place_at_least() -> None:
    room, _ = filled(8, weights={"greedy": 3.0, "small": 0.01})
    assert [room.ask(Place("new")) for _ in range(3)] == [None, None, False]
    assert [room.ask(Place("small")) for _ in range(2)] == [None, False]
    assert room.share("greedy") == pytest.approx(8 * 3 / 4.01)


def test_a_tenant_has_places_for_its_share_or_for_all_that_others_leave() -> None:
    room, inside = filled(4)
    assert (room.places_for("greedy", 4), room.places_for("new", 4)) == (4, 2)
    assert room.ask(Place("new")) is None
    assert (room.places_for("greedy", 4), room.places_for("new", 4)) == (3, 2)
    assert (room.places_for("greedy", 2), room.places_for("new", 2)) == (2, 2), "a few in any case"
    assert [room.ask(Place(name)) for name in ("b", "c", "d")] == [None] * 3
    assert room.places_for("greedy", 4) == 1, "one at least"
    for place in inside:
        room.leave(place)
    assert [room.places_for(name, 4) for name in ("greedy", "new", "e")] == [1, 1, 1]
    assert SharedRoom(4).places_for("a", 4) == 4


def test_a_tenant_has_a_few_places_however_few_there_are() -> None:
    room = SharedRoom(512)
    for place in [Place("greedy") for _ in range(32)]:
        room.ask(place)
    assert (room.places_for("greedy", 32), room.places_for("new", 32)) == (32, 16)
    for number in range(100):
        room.ask(Place(f"t{number}"))
    assert room.places_for("new", 32) == 5, "its share of the whole room"


def test_who_gives_up_leaves_its_turn_to_the_next() -> None:
    room, inside = filled(2)
    first, second = Place("a"), Place("b")
    assert [room.ask(first), room.ask(second)] == [None, None]
    room.give_up(first)
    assert room.leave(inside[0]) is second
    assert room.leave(inside[1]) is None
    assert (room.num_in, room.num_waiting) == (1, 0)


def test_inside_a_tenant_priority_counts_and_then_the_deadline() -> None:
    room, inside = filled(8)
    late, soon = Place("a", deadline_s=9.0), Place("a", deadline_s=3.0)
    high = Place("a", deadline_s=90.0, priority=Priority.HIGH)
    assert [room.ask(place) for place in (late, soon, high)] == [None] * 3
    assert [room.leave(one) for one in inside[:3]] == [high, soon, late]


def test_what_another_model_served_decides_whose_turn_it_is() -> None:
    room = SharedRoom(4)
    outside = [Place("x", "video"), Place("y", "chat"), Place("z", "chat"), Place("z", "chat")]
    assert [room.ask(place) for place in outside] == [True] * 4
    room.settle("x", "video", 500.0)
    room.settle("y", "chat", 2.0)
    x, y = Place("x", "chat"), Place("y", "chat")
    room.leave(outside[0])
    assert room.ask(Place("z", "chat")) is True
    assert [room.ask(x), room.ask(y)] == [None, False], "y, z and x have a place each, and z more"
    room.leave(outside[1])
    assert room.ask(y) is None
    assert room.leave(outside[2]) is y


def test_a_room_has_places() -> None:
    with pytest.raises(ValueError, match="places is 0"):
        SharedRoom(0)


# -- the bound -------------------------------------------------------------------------------------------------------

TENANTS = ("a", "b", "c")
MODELS = {"classify": 0.25, "chat": 2.0, "images": 4.0}


class Gateway:
    """A room on a virtual clock. Its requests leave in the order of their ends; each is settled when it leaves, before
    or after. Watches what tenants were charged, corrections included, while they waited all the time."""

    def __init__(self, places: int, weights: dict[str, float]) -> None:
        self.room, self.weights = SharedRoom(places, weights), weights
        self.now_s, self.numbers = 0.0, itertools.count()
        self.ends: list[tuple[float, int, Place, float]] = []
        self.waiting: dict[Place, tuple[float, float]] = {}
        self.inside: dict[Place, float] = {}
        self.largest, self.rising, self.most_added, self.most_credit, self.used = (
            dict.fromkeys(weights, 0.0) for _ in range(5)
        )
        self.intervals: list[dict[str, float]] = []

    def ask(self, tenant: str, model: str, joules: float, seconds: float) -> None:
        place = Place(tenant, model, now_s=self.now_s, deadline_s=self.now_s + 60.0)
        match self.room.ask(place):
            case True:
                self._enter(place, joules, seconds)
            case None:
                self.waiting[place] = joules, seconds
                self._forget()

    def _enter(self, place: Place, joules: float, seconds: float) -> None:
        tenant = place.tenant
        self.intervals.append({one.tenant: 0.0 for one in self.waiting})
        self.inside[place] = place.joules
        self.largest[tenant] = max(self.largest[tenant], place.joules)
        self.rising[tenant] = 0.0
        credit = sum(charge for one, charge in self.inside.items() if one.tenant == tenant)
        self.most_credit[tenant] = max(self.most_credit[tenant], credit)
        self._charge(tenant, place.joules)
        heappush(self.ends, (self.now_s + seconds, next(self.numbers), place, joules))

    def end(self, *, settles_first: bool) -> None:
        if not self.ends:
            return
        self.now_s, _, place, joules = heappop(self.ends)
        if settles_first:
            self.settle(place, joules)
        charge = self.inside.pop(place)
        self._charge(place.tenant, -charge)
        if (following := self.room.leave(place)) is not None:
            what = self.waiting[following]
            self._enter(following, *what)
            del self.waiting[following]
            self._forget()
        if not settles_first:
            self.settle(place, joules)

    def settle(self, place: Place, joules: float) -> None:
        tenant = place.tenant
        self.used[tenant] += joules
        self.room.settle(tenant, place.model, joules)
        self.rising[tenant] += joules
        self.most_added[tenant] = max(self.most_added[tenant], self.rising[tenant])
        self._charge(tenant, joules)

    def give_up(self, number: int) -> None:
        if self.waiting:
            place = list(self.waiting)[number % len(self.waiting)]
            self.room.give_up(place)
            del self.waiting[place]
            self._forget()

    def _charge(self, tenant: str, joules: float) -> None:
        for charged in self.intervals:
            if tenant in charged:
                charged[tenant] += joules
        self._check()

    def _forget(self) -> None:
        waiting = {place.tenant for place in self.waiting}
        for charged in self.intervals:
            for tenant in charged.keys() - waiting:
                del charged[tenant]

    def _check(self) -> None:
        limit = {
            tenant: (self.largest[tenant] + self.most_added[tenant] + self.most_credit[tenant]) / weight
            for tenant, weight in self.weights.items()
        }
        for charged in self.intervals:
            for one, other in itertools.combinations(charged, 2):
                gap = abs(charged[one] / self.weights[one] - charged[other] / self.weights[other])
                assert gap <= limit[one] + limit[other] + 1e-9, (one, other, gap)


STEP = st.one_of(
    st.tuples(
        st.just("ask"), st.sampled_from(TENANTS), st.sampled_from([*MODELS]), st.sampled_from([0.5, 1.0, 1.0, 3.0])
    ),
    st.tuples(st.just("end"), st.booleans(), st.none(), st.none()),
    st.tuples(st.just("give_up"), st.integers(0, 20), st.none(), st.none()),
)


@settings(max_examples=200)
@given(
    steps=st.lists(STEP, max_size=80),
    weights=st.tuples(*[st.sampled_from([0.5, 1.0, 3.0])] * 3),
    places=st.integers(1, 5),
)
def test_bound_holds_for_any_two_tenants_that_wait_whatever_models_they_ask(
    steps: list[tuple], weights: tuple[float, ...], places: int
) -> None:
    gateway = Gateway(places, dict(zip(TENANTS, weights, strict=True)))
    for kind, one, model, factor in steps:
        if kind == "ask":
            gateway.ask(one, model, MODELS[model] * factor, MODELS[model])
        elif kind == "end":
            gateway.end(settles_first=one)
        else:
            gateway.give_up(one)
        room = gateway.room
        assert (room.num_in, room.num_waiting) == (len(gateway.inside), len(gateway.waiting))
        assert room.num_in == places or not room.num_waiting
        assert room.num_waiting <= places + len(TENANTS)


def test_tenants_that_always_ask_are_served_joules_by_weight_whatever_they_ask_for() -> None:
    gateway = Gateway(24, {"a": 1.0, "b": 1.0, "c": 2.0})
    asked = {"a": "classify", "b": "images", "c": "chat"}
    for _ in range(2000):
        for tenant, model in asked.items():
            for _ in range(4):
                gateway.ask(tenant, model, MODELS[model], MODELS[model])
        gateway.intervals = gateway.intervals[-10:]
        gateway.end(settles_first=True)
    shares = {tenant: joules / gateway.weights[tenant] for tenant, joules in gateway.used.items()}
    assert max(shares.values()) - min(shares.values()) <= 24 * MODELS["images"]
    assert min(shares.values()) >= 300.0
