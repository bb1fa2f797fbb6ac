from __future__ import annotations

import math

import pytest

from schedulers.admission import BucketLimits, Cost, Factors, OverBudget
from serving.stores import buckets
from serving.stores.buckets import Hold, LocalBuckets

LIMITS = BucketLimits(joules_per_s=10.0, joules_burst=100.0, seconds_per_s=1.0, seconds_burst=10.0)


def granted(outcome: Hold | OverBudget) -> Hold:
    assert isinstance(outcome, Hold)
    return outcome


def refused(outcome: Hold | OverBudget) -> OverBudget:
    assert isinstance(outcome, OverBudget)
    return outcome


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, math.nan])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        LocalBuckets(share)


def test_full_at_first_then_empty_then_refilled() -> None:
    local = LocalBuckets()
    granted(local.reserve("a", LIMITS, Cost(100.0, 1.0), 0.0))
    assert refused(local.reserve("a", LIMITS, Cost(20.0, 1.0), 0.0)).retry_after_s == 2.0
    granted(local.reserve("a", LIMITS, Cost(20.0, 1.0), 2.0))


def test_tenants_do_not_share() -> None:
    local = LocalBuckets()
    granted(local.reserve("a", LIMITS, Cost(100.0, 10.0), 0.0))
    granted(local.reserve("b", LIMITS, Cost(100.0, 10.0), 0.0))


def test_share_divides_burst_and_rate() -> None:
    local = LocalBuckets(0.25)
    assert refused(local.reserve("a", LIMITS, Cost(26.0, 0.0), 0.0)).retry_after_s == math.inf
    granted(local.reserve("a", LIMITS, Cost(25.0, 0.0), 0.0))
    assert refused(local.reserve("a", LIMITS, Cost(5.0, 0.0), 0.0)).retry_after_s == 2.0


def test_settled_once_and_the_difference_returned() -> None:
    local = LocalBuckets()
    hold = granted(local.reserve("a", LIMITS, Cost(100.0, 1.0), 0.0))
    assert local.settle(hold, Cost(40.0, 1.0), 0.0)
    assert not local.settle(hold, Cost(0.0, 0.0), 0.0)
    granted(local.reserve("a", LIMITS, Cost(60.0, 1.0), 0.0))
    refused(local.reserve("a", LIMITS, Cost(1.0, 1.0), 0.0))


def test_goes_on_from_the_levels_that_redis_reported() -> None:
    local = LocalBuckets(0.5)
    local.observe("a", LIMITS, joules=30.0, seconds=10.0, now_s=5.0)
    assert refused(local.reserve("a", LIMITS, Cost(16.0, 0.0), 5.0)).retry_after_s == pytest.approx(0.2)
    granted(local.reserve("a", LIMITS, Cost(15.0, 0.0), 5.0))


def test_reservations_that_nobody_settles_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MAX_OPEN_HOLDS", 3)
    local = LocalBuckets()
    first, *rest = [granted(local.reserve("a", LIMITS, Cost(1.0, 0.0), 0.0)) for _ in range(4)]
    assert not local.settle(first, Cost(0.0, 0.0), 0.0)
    assert all(local.settle(hold, Cost(0.0, 0.0), 0.0) for hold in rest)


def test_joules_and_seconds_are_widened_apart() -> None:
    local, overrun = LocalBuckets(), Factors(joules=50.0, seconds=2.0)
    assert granted(local.reserve("a", LIMITS, Cost(1.0, 1.0), 0.0, overrun)).cost == Cost(50.0, 2.0)
    assert granted(local.reserve("a", LIMITS, Cost(1.0, 1.0), 0.0, overrun)).cost == Cost(50.0, 2.0)
    refused(local.reserve("a", LIMITS, Cost(1.0, 1.0), 0.0, overrun))
