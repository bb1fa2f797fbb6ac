from __future__ import annotations

import math
from random import Random

import pytest

from schedulers.least_loaded import LeastLoaded
from schedulers.routing import TIE_S, Ledger, rank


@pytest.mark.parametrize("seed", range(8))
def test_it_finds_what_ranking_all_of_them_puts_first(seed: int) -> None:
    """Random calls, ends, reports and pauses: the plain twin looks at every replica."""
    rng, names = Random(seed), [f"r{number}" for number in range(12)]
    fast, plain = LeastLoaded(names, "key"), Ledger()
    now_s, calls = 0.0, list[tuple[str, str]]()
    for number in range(1500):
        now_s += rng.choice((0.0, 0.01, 0.3))
        kind = rng.random()
        if kind < 0.45:
            name = fast.least(now_s).replica_id
            for ledger in (fast, plain):
                ledger.start(name, str(number), 0.05 + (number % 7) / 10, now_s)
            calls.append((name, str(number)))
        elif kind < 0.75 and calls:
            name, call = calls.pop(rng.randrange(len(calls)))
            for ledger in (fast, plain):
                ledger.finish(name, call)
        else:
            name, queued_s = rng.choice(names), rng.choice((0.0, 0.4, 2.0))
            for ledger in (fast, plain):
                ledger.report(name, queued_s, now_s)
        found = fast.least(now_s)
        best = rank([plain.load(name, now_s) for name in names], key="key")[0]
        assert found == plain.load(found.replica_id, now_s)
        assert found.queued_s <= best.queued_s + TIE_S


def test_equals_go_by_the_hash_of_the_key() -> None:
    names = [f"r{number}" for number in range(40)]
    for key in ("a", "b", "c"):
        expected = rank([Ledger().load(name, 0.0) for name in names], key=key)[0].replica_id
        assert LeastLoaded(names, key).least(0.0).replica_id == expected


def test_one_that_is_gone_is_not_found_and_one_that_comes_is() -> None:
    ledger = LeastLoaded(["a", "b"])
    ledger.start("a", "1", 5.0, now_s=0.0)
    ledger.keep_only(["a"])
    assert ledger.least(0.0).replica_id == "a"
    ledger.add("c")
    assert ledger.least(0.0).replica_id == "c"
    ledger.keep_only([])
    with pytest.raises(LookupError, match="no replica"):
        ledger.least(0.0)


def test_one_that_hangs_gets_nothing_more() -> None:
    ledger = LeastLoaded(["a", "b"])
    ledger.start("a", "1", 0.0, now_s=0.0)
    ledger.start("b", "2", 3.0, now_s=0.0)
    ledger.report("b", 3.0, 9.0)
    assert ledger.load("a", 10.0).queued_s == pytest.approx(10.0)
    assert ledger.least(10.0).replica_id == "b"
    assert math.isfinite(ledger.least(10.0).queued_s)
