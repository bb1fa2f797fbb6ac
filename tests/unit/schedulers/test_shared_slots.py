"""Slots shared by tenants: fair by seconds, whatever was predicted, and a flood hurts its own tenant."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.shared_slots import SharedSlots, Turn


class Work(Turn):
    def __init__(self, tenant: str, predicted_s: float = 1.0, rank: int = 1, actual_s: float | None = None) -> None:
        super().__init__(tenant, rank, predicted_s)
        self.actual_s = predicted_s if actual_s is None else actual_s


def filled(*works: Work, max_waiting: int = 1000) -> SharedSlots[Work]:
    slots: SharedSlots[Work] = SharedSlots(max_waiting)
    for work in works:
        assert slots.add(work) is None
    return slots


def drained(slots: SharedSlots[Work]) -> str:
    """One slot: tenants in the order served."""
    served = ""
    while (work := slots.take()) is not None:
        served += work.tenant
        slots.finish(work, work.actual_s)
    return served


def test_a_flood_does_not_delay_another_tenant() -> None:
    assert drained(filled(*(Work("a") for _ in range(8)), Work("b"))).index("b") <= 1


def test_newcomer_goes_next_after_a_tenant_that_was_served_for_long() -> None:
    slots = filled(*(Work("a", 5.0) for _ in range(8)))
    for _ in range(4):
        work = slots.take()
        assert work is not None
        slots.finish(work, 5.0)
    running = slots.take()
    slots.add(Work("b", 0.01))
    following = slots.take()
    assert running is not None
    assert following is not None
    assert (running.tenant, following.tenant) == ("a", "b")


def test_dear_work_buys_fewer_turns() -> None:
    works = itertools.chain.from_iterable((Work("d", 3.0), Work("c", 1.0)) for _ in range(40))
    served = drained(filled(*works))[:40]
    assert served.count("c") == 3 * served.count("d")


def test_work_that_takes_longer_than_predicted_is_paid_for_afterwards() -> None:
    liar = [Work("l", 0.01, actual_s=5.0) for _ in range(4)]
    honest = [Work("h", 0.5) for _ in range(30)]
    served = drained(filled(*liar, *honest))
    first, second = [index for index, tenant in enumerate(served) if tenant == "l"][:2]
    assert second - first >= 10


def test_tenant_whose_predictions_were_too_low_is_expected_to_take_longer() -> None:
    slots = filled(Work("l", 0.01, actual_s=5.0))
    work = slots.take()
    assert work is not None
    slots.finish(work, work.actual_s)
    slots.add(Work("l", 0.01))
    assert slots.take(longest_s=0.1) is None
    slots.add(Work("h", 0.01))
    short = slots.take(longest_s=0.1)
    assert short is not None
    assert short.tenant == "h"


def test_what_is_long_is_passed_over_and_keeps_its_place() -> None:
    slots = filled(Work("a", 5.0), Work("a", 0.05), Work("b", 5.0))
    short = slots.take(longest_s=0.1)
    assert short is not None
    assert (short.tenant, short.predicted_s) == ("a", 0.05)
    assert slots.take(longest_s=0.1) is None
    assert len(slots) == 2


def test_rank_orders_inside_a_tenant_and_not_between_two() -> None:
    slots = filled(Work("a", rank=2), Work("a", rank=0), Work("b", rank=2), Work("a", rank=0))
    taken = [slots.take() for _ in range(4)]
    assert [work.rank for work in taken if work is not None and work.tenant == "a"] == [0, 0, 2]
    assert [work.tenant for work in taken if work is not None].index("b") <= 1


def test_idle_tenant_saves_nothing_up() -> None:
    slots = filled(*(Work("a") for _ in range(50)), *(Work("b") for _ in range(2)))
    for _ in range(30):
        work = slots.take()
        assert work is not None
        slots.finish(work, work.actual_s)
    for _ in range(20):
        slots.add(Work("b"))
    assert abs(drained(slots)[:10].count("a") - 5) <= 1


def test_full_queue_refuses_the_tenant_that_fills_it() -> None:
    slots = filled(*(Work("a") for _ in range(4)), max_waiting=4)
    refused = slots.add(Work("b"))
    assert refused is not None
    assert refused.tenant == "a"
    own = Work("a")
    assert slots.add(own) is own
    assert len(slots) == 4


def test_full_queue_keeps_what_is_urgent_to_its_tenant() -> None:
    slots = filled(Work("a", rank=1), Work("a", rank=2), max_waiting=2)
    urgent = Work("a", rank=0)
    refused = slots.add(urgent)
    assert refused is not None
    assert refused.rank == 2
    assert slots.take() is urgent


def test_removed_turn_is_gone_and_one_that_was_taken_is_not_removed() -> None:
    stays, goes = Work("a"), Work("a")
    slots = filled(stays, goes)
    assert slots.remove(goes)
    assert not slots.remove(goes)
    assert slots.take() is stays
    assert not slots.remove(stays)


@pytest.mark.parametrize("predicted_s", [-1.0, float("inf"), float("nan")])
def test_prediction_must_be_a_duration(predicted_s: float) -> None:
    with pytest.raises(ValueError, match="predicted_s"):
        Work("a", predicted_s)


def test_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match="max_waiting"):
        SharedSlots(-1)


DURATIONS = st.floats(0.01, 5.0)


@given(
    num_slots=st.integers(1, 4),
    lengths=st.lists(st.tuples(DURATIONS, DURATIONS, DURATIONS, DURATIONS), min_size=5, max_size=40),
)
def test_two_tenants_that_always_wait_get_the_same_service_whatever_is_predicted(
    num_slots: int, lengths: list[tuple[float, float, float, float]]
) -> None:
    """The bound of the paper for one slot, from start to any end of a turn: the two longest turns. Each further slot
    holds one more turn whose length is not known yet."""
    slots = filled(
        *(Work("a", predicted, actual_s=actual) for predicted, actual, _, _ in lengths),
        *(Work("b", predicted, actual_s=actual) for _, _, predicted, actual in lengths),
    )
    served, num_left = {"a": 0.0, "b": 0.0}, {"a": len(lengths), "b": len(lengths)}
    now_s, running = 0.0, list[tuple[float, Work]]()
    # Predictions that were too low count for so much more afterwards: what a turn may be booked with.
    ratio = max(max(a / p, d / c) for p, a, c, d in lengths)
    longest = max(max(p * max(1.0, ratio), a, c * max(1.0, ratio), d) for p, a, c, d in lengths)
    while True:
        while len(running) < num_slots and (work := slots.take()) is not None:
            running.append((now_s + work.actual_s, work))
            num_left[work.tenant] -= 1
        if not all(num_left.values()):
            return
        running.sort(key=lambda entry: entry[0])
        now_s, work = running.pop(0)
        served[work.tenant] += work.actual_s
        slots.finish(work, work.actual_s)
        assert abs(served["a"] - served["b"]) <= (num_slots + 1) * longest


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 2), DURATIONS, st.sampled_from(["add", "take", "drop"])),
        max_size=60,
    ),
    st.integers(0, 8),
)
def test_nothing_is_lost_or_doubled(steps: list[tuple[str, int, float, str]], max_waiting: int) -> None:
    slots: SharedSlots[Work] = SharedSlots(max_waiting)
    waiting: set[Work] = set()
    for tenant, rank, predicted_s, step in steps:
        if step == "add":
            work = Work(tenant, predicted_s, rank)
            refused = slots.add(work)
            waiting = (waiting | {work}) - {refused}  # type: ignore[arg-type]
        elif step == "take" and (taken := slots.take()) is not None:
            assert taken in waiting
            waiting.remove(taken)
            slots.finish(taken, predicted_s)
        elif step == "drop" and waiting:
            assert slots.remove(dropped := waiting.pop())
            assert not slots.remove(dropped)
        assert set(slots) == waiting
        assert len(slots) == len(waiting) <= max_waiting
