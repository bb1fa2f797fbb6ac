from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from schedulers.experts.eplb import eplb
from schedulers.experts.placement import Move, Placement, in_order
from schedulers.experts.replacement import (
    Boundary,
    Decision,
    Discard,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Free,
    Proposed,
    RankLost,
    Replacement,
    ReplacementConfig,
    RequestEnded,
    RequestStarted,
    Switch,
    worth_it,
)

CONFIG = ReplacementConfig(expert_bytes=10, bytes_per_s=10.0, max_staged_bytes=20, min_gain=0.0, copy_slowdown=0.0)
OLD = Placement(1, 3, 2, ((0, 1, 2, 2),) * 3)
"""Three layers of three experts on two ranks."""
TARGET = Placement(9, 3, 2, ((0, 2, 1, 2),) * 3)
COUNTS = ((60, 60, 0), (30, 30, 0), (90, 90, 0))
"""Of which TARGET gives each rank half, and OLD all to one."""


def machine(**changes: Any) -> Replacement:
    return Replacement(OLD, replace(CONFIG, **changes))


def test_goes_from_one_placement_to_the_other_in_as_many_parts_as_room_asks_for() -> None:
    replacing = machine()
    (fetch,) = replacing.handle(0.0, Proposed(TARGET, COUNTS))
    moves = [Move(0, 2, 2, 1), Move(0, 1, 1, 2), Move(2, 2, 2, 1), Move(2, 1, 1, 2)]
    both = (TARGET.slots[0], OLD.slots[1], TARGET.slots[2])  # the layers that save most
    assert fetch == Fetch(Placement(2, 3, 2, both), tuple(moves))
    assert replacing.handle(0.5, Boundary()) == []
    assert replacing.handle(0.5, Fetched(2)) == []
    assert replacing.placement is OLD
    assert replacing.handle(0.6, Boundary()) == [Switch(fetch.placement), Free(1)]
    assert replacing.next_wakeup_s() == 2.0  # two experts to and from each rank, 10 bytes at 10 a second
    (second,) = replacing.handle(2.0)
    assert second.placement.slots == TARGET.slots
    assert replacing.handle(2.5, Fetched(3), Boundary()) == [Switch(second.placement), Free(2)]
    assert replacing.placement.version == 3
    assert replacing.handle(3.0) == []
    assert replacing.next_wakeup_s() is None


def test_requests_under_way_finish_on_the_placement_that_they_began_with() -> None:
    replacing = machine(max_staged_bytes=30)
    (fetch,) = replacing.handle(0.0, RequestStarted("a"), Proposed(TARGET, COUNTS))
    assert replacing.handle(1.0, RequestStarted("b"), Fetched(2), Boundary()) == [Switch(fetch.placement)]
    replacing.handle(1.0, RequestStarted("c"))
    assert [replacing.version_of(request) for request in "abc"] == [1, 1, 2]
    assert replacing.handle(2.0, RequestEnded("a"), Proposed(OLD, COUNTS)) == []
    assert replacing.handle(3.0, RequestEnded("b")) == [Free(1)]
    assert replacing.handle(3.0, RequestEnded("c")) == []


def test_a_lost_rank_ends_replacement() -> None:
    replacing = machine()
    replacing.handle(0.0, Proposed(TARGET, COUNTS))
    assert replacing.handle(0.1, RankLost()) == [Discard(2)]
    assert replacing.handle(9.0, Fetched(2), Boundary(), Proposed(TARGET, COUNTS)) == []
    assert replacing.placement is OLD
    assert replacing.next_wakeup_s() is None


def test_a_fetch_that_failed_is_tried_again_under_another_version() -> None:
    replacing = machine()
    replacing.handle(0.0, Proposed(TARGET, COUNTS))
    assert replacing.handle(1.0, FetchFailed(2)) == [Discard(2)]
    assert replacing.next_wakeup_s() == 6.0
    (fetch,) = replacing.handle(6.0, Fetched(2))  # too late: that version was discarded
    assert fetch.placement.version == 3


def test_follows_no_target_that_does_not_pay() -> None:
    for counts, changes in (
        (((10, 10, 20),) * 3, {"min_gain": 0.01}),  # even already
        (COUNTS, {"min_gain": 1.1}),  # from 2 to 1 times the mean
        (COUNTS, {"copy_slowdown": 1.0, "horizon_s": 1.0}),  # 0.5 s of experts, of which half saved, and 1 s to copy
        (((0, 0, 0),) * 3, {}),
    ):
        assert machine(**changes).handle(0.0, Proposed(TARGET, counts)) == []
    uneven = ((60, 60, 0), (10, 10, 20), (0, 0, 0))
    assert list(worth_it(OLD, TARGET, uneven, CONFIG)) == [0]


def test_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="max_staged_bytes is 19"):
        machine(max_staged_bytes=19)
    with pytest.raises(ValueError, match="must be positive"):
        machine(bytes_per_s=0.0)
    with pytest.raises(ValueError, match=">= 0"):
        machine(min_gain=float("nan"))
    replacing = machine()
    replacing.handle(1.0, RequestStarted("a"))
    for event, message in (
        (RequestStarted("a"), "started twice"),
        (RequestEnded("b"), "without having started"),
        (Proposed(in_order(1, 3, 2, 4), COUNTS), "placements of layers"),
        (Proposed(TARGET, COUNTS[:1]), "counts are not"),
    ):
        with pytest.raises(ValueError, match=message):
            replacing.handle(1.0, event)
    with pytest.raises(ValueError, match="backwards"):
        replacing.handle(0.5)


# -- any order of events ---------------------------------------------------------------------------------------------

LAYER = st.permutations([0, 1, 2, 0, 1, 2, 0, 1]).map(tuple)
TARGETS = st.lists(LAYER, min_size=3, max_size=3).map(lambda layers: Placement(1, 3, 4, tuple(layers)))
ROWS = st.lists(st.lists(st.sampled_from((1, 10, 100)), min_size=3, max_size=3), min_size=3, max_size=3)


class Replacing(RuleBasedStateMachine):
    """An engine that holds weights: of the placement in use, of the one before while needed, of what it fetched."""

    @initialize(first=TARGETS, slots_of_room=st.integers(2, 6))
    def begin(self, first: Placement, slots_of_room: int) -> None:
        config = ReplacementConfig(
            expert_bytes=10, bytes_per_s=10.0, max_staged_bytes=10 * slots_of_room, copy_slowdown=0.01, min_gain=0.0
        )
        self.replacing = Replacement(first, config)
        self.held = {first.version: first}
        self.staged: Fetch | None = None
        self.began: dict[int, int] = {}
        self.num_requests = 0
        self.now_s = 0.0
        self.is_lost = False
        self.used = {first.version}

    def tell(self, *events: Event) -> None:
        for decision in self.replacing.handle(self.now_s, *events):
            self.obey(decision)

    def obey(self, decision: Decision) -> None:
        match decision:
            case Fetch(placement, moves):
                assert not self.is_lost
                assert self.staged is None
                assert len(self.held) == 1  # room for one more alone
                current = self.replacing.placement
                assert list(moves) == sorted(moves, key=lambda move: (move.layer, move.slot))
                assert {(m.layer, m.slot, m.expert) for m in moves} == {
                    (m.layer, m.slot, m.expert) for m in current.moves_to(placement)
                }
                assert placement.version not in self.used
                self.used.add(placement.version)
                self.staged = decision
            case Switch(placement):
                assert self.staged is not None
                assert placement == self.staged.placement
                self.held[placement.version] = placement
                self.staged = None
            case Free(version):
                assert version != self.replacing.placement.version
                assert version not in self.began.values()
                del self.held[version]
            case Discard(version):
                assert self.staged is not None
                assert version == self.staged.placement.version
                self.staged = None

    @rule(counts=ROWS)
    def propose_what_suits(self, counts: list[list[int]]) -> None:
        self.tell(Proposed(eplb(counts, 8, 4, current=self.replacing.placement), counts))

    @rule(wanted=TARGETS, counts=ROWS)
    def propose_anything(self, wanted: Placement, counts: list[list[int]]) -> None:
        self.tell(Proposed(wanted, counts))

    @rule()
    def start_request(self) -> None:
        self.num_requests += 1
        self.began[self.num_requests] = self.replacing.placement.version
        self.tell(RequestStarted(self.num_requests))

    @precondition(lambda self: self.began)
    @rule(data=st.data())
    def end_request(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(sorted(self.began)))
        assert self.replacing.version_of(request) == self.began.pop(request)
        self.tell(RequestEnded(request))

    @precondition(lambda self: self.staged is not None)
    @rule()
    def end_fetch(self) -> None:
        assert self.staged is not None
        self.tell(Fetched(self.staged.placement.version))

    @precondition(lambda self: self.staged is not None)
    @rule()
    def fail_fetch(self) -> None:
        assert self.staged is not None
        self.tell(FetchFailed(self.staged.placement.version))

    @rule(version=st.integers(0, 3), is_good=st.booleans())
    def hear_of_another_fetch(self, version: int, is_good: bool) -> None:
        if self.staged is None or version != self.staged.placement.version:
            self.tell(Fetched(version) if is_good else FetchFailed(version))

    @precondition(lambda self: self.replacing.state == "fetched")
    @rule()
    def reach_boundary_with_all_there(self) -> None:
        self.tell(Boundary())

    @rule()
    def reach_boundary(self) -> None:
        self.tell(Boundary())

    @rule(seconds=st.sampled_from((0.1, 1.0, 10.0)))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.tell()

    @precondition(lambda self: self.num_requests > 5)
    @rule()
    def lose_a_rank(self) -> None:
        self.is_lost = True
        self.tell(RankLost())
        assert self.staged is None

    @invariant()
    def whoever_runs_has_weights(self) -> None:
        self.replacing.check_invariants()
        assert set(self.began.values()) | {self.replacing.placement.version} == set(self.held)
        assert self.held[self.replacing.placement.version] == self.replacing.placement


TestReplacing = Replacing.TestCase
TestReplacing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
