from __future__ import annotations

import math
from collections import Counter

import pytest

from schedulers.routing import Ledger, ReplicaLoad, rank


def loads(**queued_s: float) -> list[ReplicaLoad]:
    return [ReplicaLoad(replica_id=name, queued_s=value) for name, value in queued_s.items()]


def names(replicas: list[ReplicaLoad]) -> list[str]:
    return [replica.replica_id for replica in replicas]


def test_least_work_goes_first() -> None:
    assert names(rank(loads(a=0.3, b=0.1, c=0.2), key="x")) == ["b", "c", "a"]


def test_order_of_the_list_does_not_matter() -> None:
    replicas = loads(a=0.0, b=0.0, c=0.0)
    assert rank(replicas, key="x") == rank(replicas[::-1], key="x")


def test_equal_loads_spread_by_key_and_a_key_keeps_its_replica() -> None:
    replicas = loads(a=0.0, b=0.0004, c=0.0)
    firsts = Counter(rank(replicas, key=f"k{i}")[0].replica_id for i in range(3000))
    assert all(abs(count - 1000) < 150 for count in firsts.values())
    assert len(firsts) == 3


def test_replica_that_goes_moves_only_its_own_keys() -> None:
    three, two = loads(a=0.0, b=0.0, c=0.0), loads(a=0.0, b=0.0)
    for i in range(300):
        before = rank(three, key=f"k{i}")[0].replica_id
        if before != "c":
            assert rank(two, key=f"k{i}")[0].replica_id == before


def test_nobody_ranks_to_nobody() -> None:
    assert rank([]) == []


@pytest.mark.parametrize("queued_s", [math.nan, -1.0])
def test_load_that_is_no_load_is_refused(queued_s: float) -> None:
    with pytest.raises(ValueError, match="queued_s of replica a"):
        rank(loads(a=queued_s))


def test_infinite_load_goes_last() -> None:
    assert names(rank(loads(a=math.inf, b=5.0))) == ["b", "a"]
    with pytest.raises(ValueError, match="tie_s"):
        rank([], tie_s=0.0)


def test_own_calls_count_until_they_come_back() -> None:
    work = Ledger()
    work.start("a", "1", 0.2, now_s=10.0)
    work.start("a", "2", 0.3, now_s=10.0)
    assert work.load("a", 10.0).queued_s == pytest.approx(0.5)
    work.finish("a", "1")
    work.finish("a", "1")
    assert work.load("a", 10.0).queued_s == pytest.approx(0.3)
    work.finish("a", "2")
    work.finish("b", "9")
    assert work.load("a", 10.0).queued_s == 0.0
    assert work.load("b", 10.0).queued_s == 0.0


def test_report_is_worked_off_as_it_ages_and_later_calls_come_on_top() -> None:
    work = Ledger()
    work.start("a", "old", 5.0, now_s=9.0)
    work.report("a", 1.0, measured_at_s=10.0)  # holds what is left of "old"
    work.start("a", "new", 0.2, now_s=10.1)
    assert work.load("a", 10.4).queued_s == pytest.approx(0.6 + 0.2)
    work.finish("a", "old")
    assert work.load("a", 11.05).queued_s == pytest.approx(0.95)  # silent since the call of 10.1
    assert work.load("a", 10.4).queued_s == pytest.approx(0.8)
    work.finish("a", "new")
    assert work.load("a", 10.4).queued_s == pytest.approx(0.6)


def test_replica_that_hangs_is_as_loaded_as_it_has_been_silent() -> None:
    work = Ledger()
    work.report("a", 0.0, measured_at_s=10.0)
    assert work.load("a", 50.0).queued_s == 0.0, "idle is not silent"
    work.start("a", "1", 0.002, now_s=50.0)
    assert work.load("a", 50.001).queued_s == pytest.approx(0.002)
    assert work.load("a", 53.0).queued_s == pytest.approx(3.0)
    work.report("a", 0.001, measured_at_s=53.0)
    assert work.load("a", 53.0).queued_s == pytest.approx(0.001)
    work.finish("a", "1")
    assert work.load("a", 90.0).queued_s == 0.0


def test_call_sent_while_a_report_was_under_way_is_counted_on_top_of_it() -> None:
    work = Ledger()
    work.start("a", "1", 0.2, now_s=10.1)
    work.report("a", 1.0, measured_at_s=10.0)
    assert work.load("a", 10.1).queued_s == pytest.approx(0.9 + 0.2)


@pytest.mark.parametrize(("queued_s", "measured_at_s"), [(9.0, 9.0), (math.nan, 11.0), (-1.0, 11.0), (1.0, math.nan)])
def test_old_or_broken_report_is_ignored(queued_s: float, measured_at_s: float) -> None:
    work = Ledger()
    work.report("a", 1.0, measured_at_s=10.0)
    work.report("a", queued_s, measured_at_s)
    assert work.load("a", 10.0).queued_s == 1.0


def test_forgotten_replica_starts_afresh() -> None:
    work = Ledger()
    work.start("a", "1", 1.0, now_s=0.0)
    work.start("b", "2", 1.0, now_s=0.0)
    work.keep_only({"b"})
    assert work.load("a", 0.0).queued_s == 0.0
    assert work.load("b", 0.0).queued_s == 1.0
    work.finish("a", "1")


@pytest.mark.parametrize("predicted_s", [-1.0, math.nan, math.inf])
def test_prediction_that_is_no_time_is_refused(predicted_s: float) -> None:
    with pytest.raises(ValueError, match="predicted_s"):
        Ledger().start("a", "1", predicted_s, now_s=0.0)


def test_where_calls_return_early_what_was_sent_counts_until_the_replica_reports() -> None:
    work = Ledger(ends_with_call=False)
    work.start("a", "1", 2.0, now_s=1.0)
    work.start("a", "2", 3.0, now_s=2.0)
    work.finish("a", "1")
    assert work.load("a", 2.5).queued_s == 5.0
    work.report("a", 4.0, 3.0)
    assert work.load("a", 3.0).queued_s == 4.0
    work.start("a", "3", 1.0, now_s=3.5)
    assert work.load("a", 4.0).queued_s == 4.0
    assert work.load("a", 60.0).queued_s == 1.0, "silence says nothing: the call may have come back"
