"""Rendezvous hashing bounded by load."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schedulers.affinity import BOUND, SLACK, load_limit_s, rank_by_affinity
from schedulers.routing import ReplicaLoad

KEYS = [f"image-{number}" for number in range(400)]


def loads(**queued_s: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(replica_id=name, queued_s=seconds) for name, seconds in queued_s.items()]


def first(replicas: list[ReplicaLoad], key: str, added_s: float = 0.0, holders: tuple[str, ...] = ()) -> str:
    return rank_by_affinity(replicas, key, added_s, holders)[0].replica_id


IDLE = st.lists(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@given(IDLE, st.text(max_size=8))
def test_every_replica_is_ranked_once_and_the_order_of_asking_does_not_matter(names: list[str], key: str) -> None:
    replicas = [ReplicaLoad(replica_id=name, queued_s=0.0) for name in names]
    ranked = rank_by_affinity(replicas, key, 0.0)
    assert sorted(replica.replica_id for replica in ranked) == sorted(names)
    assert ranked == rank_by_affinity(replicas[::-1], key, 0.0)


@given(IDLE.filter(lambda names: len(names) > 1), st.data())
def test_a_replica_that_goes_moves_its_own_keys_only(names: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(names))
    before = [ReplicaLoad(replica_id=name, queued_s=0.0) for name in names]
    after = [replica for replica in before if replica.replica_id != gone]
    for key in KEYS[:50]:
        if (choice := first(before, key)) != gone:
            assert first(after, key) == choice


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=8),
    st.floats(0, 1e3),
    st.floats(1.0, 4.0),
    st.text(max_size=4),
)
def test_no_choice_is_over_the_bound(queued_s: list[float], added_s: float, bound: float, key: str) -> None:
    replicas = [ReplicaLoad(replica_id=str(number), queued_s=load) for number, load in enumerate(queued_s)]
    chosen = rank_by_affinity(replicas, key, added_s, bound=bound)[0]
    mean_s = (sum(queued_s) + added_s) / len(queued_s)
    allowed_s = max(bound * mean_s, min(queued_s) + (1 + SLACK) * added_s)
    assert chosen.queued_s + added_s <= allowed_s * (1 + 1e-9)


def test_keys_spread_evenly() -> None:
    counts = Counter(first(loads(a=0.0, b=0.0, c=0.0, d=0.0), key) for key in KEYS)
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_the_replica_that_holds_the_image_goes_first_while_it_has_room() -> None:
    for key in KEYS[:20]:
        assert first(loads(a=1.0, b=1.0, c=1.0), key, holders=("b",)) == "b"
        assert first(loads(a=1.0, b=9.0, c=1.0), key, holders=("b",)) != "b"


def test_those_over_the_bound_go_last_by_load() -> None:
    ranked = rank_by_affinity(loads(a=10.0, b=0.0, c=8.0), "key", 0.0)
    assert [replica.replica_id for replica in ranked] == ["b", "c", "a"]


def test_a_hot_image_spreads_once_its_replica_is_full() -> None:
    queued_s = dict.fromkeys("abcd", 0.0)
    for _ in range(100):
        queued_s[first(loads(**queued_s), "the same image", 1.0)] += 1.0
    assert max(queued_s.values()) <= max(BOUND * 25, min(queued_s.values()) + SLACK) + 1
    assert min(queued_s.values()) > 0


def test_a_few_requests_are_no_reason_to_leave() -> None:
    key = next(key for key in KEYS if first(loads(a=0.0, b=0.0), key) == "a")
    assert first(loads(a=3.0, b=0.0), key, added_s=1.0) == "a"
    assert first(loads(a=9.0, b=0.0), key, added_s=1.0) == "b"


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bound is 0\.5"):
        rank_by_affinity(loads(a=0.0), "key", 0.0, bound=0.5)
    with pytest.raises(ValueError, match="numbers >= 0"):
        load_limit_s([float("nan")], 0.0, 1.25)
    assert rank_by_affinity([], "key", 0.0) == []
