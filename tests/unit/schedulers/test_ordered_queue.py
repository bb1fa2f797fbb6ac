from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schedulers.ordered_queue import OrderedQueue

STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 50)),
    st.tuples(st.just("remove"), st.integers(0, 1000)),
    st.tuples(st.just("take"), st.integers(0, 9)),
    st.tuples(st.just("take_first"), st.just(0)),
    st.tuples(st.just("add_all"), st.integers(0, 6)),
)


@settings(max_examples=200)
@given(steps=st.lists(STEP, max_size=120), chunk=st.sampled_from([1, 2, 3, 512]))
def test_behaves_like_a_sorted_list(steps: list[tuple[str, int]], chunk: int) -> None:
    queue: OrderedQueue[tuple[int, int]] = OrderedQueue(chunk_entries=chunk)
    plain: list[tuple[int, int]] = []
    for number, (kind, value) in enumerate(steps):
        if kind == "add":
            queue.add((value, number))
            plain = sorted([*plain, (value, number)])
        elif kind == "add_all":
            entries = [(7 * number % (n + 2), 1000 * (n + 1) + number) for n in range(value)]
            queue.add_all(entries)
            plain = sorted(plain + entries)
        elif kind == "remove" and plain:
            entry = plain.pop(value % len(plain))
            queue.remove(entry)
        elif kind == "take":
            assert queue.take(value) == plain[:value]
            plain = plain[value:]
        elif kind == "take_first" and plain:
            assert queue.take_first() == plain.pop(0)
        assert list(queue) == plain
        assert len(queue) == len(plain)
        if plain:
            assert (queue.first(), queue.last()) == (plain[0], plain[-1])


def test_keeps_order_over_many_chunks() -> None:
    queue: OrderedQueue[tuple[float, int]] = OrderedQueue()
    entries = [(Random(i).random(), i) for i in range(5000)]
    for entry in entries:
        queue.add(entry)
    assert queue.take(5000) == sorted(entries)
    assert len(queue) == 0


@pytest.mark.parametrize("missing", [(0, 0), (2, 0), (9, 9)])
def test_removing_what_is_not_there_is_refused(missing: tuple[int, int]) -> None:
    queue: OrderedQueue[tuple[int, int]] = OrderedQueue()
    queue.add((1, 0))
    queue.add((3, 0))
    with pytest.raises(KeyError):
        queue.remove(missing)
    assert len(queue) == 2


def test_empty_queue_has_no_ends() -> None:
    queue: OrderedQueue[tuple[int, int]] = OrderedQueue()
    assert queue.take(3) == []
    for look in (queue.first, queue.last, queue.take_first):
        with pytest.raises(IndexError):
            look()
