from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.stores.breaker import BreakerConfig, BreakerState, CircuitBreaker

CONFIG = BreakerConfig(failure_threshold=3, open_s=1.0, max_open_s=3.0)


def opened(at_s: float = 10.0) -> CircuitBreaker:
    breaker = CircuitBreaker(CONFIG)
    for _ in range(3):
        breaker.record_failure(at_s, started_s=at_s)
    return breaker


@pytest.mark.parametrize("numbers", [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 2.0, 1.0)])
def test_impossible_configuration_is_refused(numbers: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        BreakerConfig(failure_threshold=numbers[0], open_s=numbers[1], max_open_s=numbers[2])


def test_opens_at_the_threshold_and_not_before() -> None:
    breaker = CircuitBreaker(CONFIG)
    for now_s in (1.0, 2.0):
        breaker.record_failure(now_s, started_s=now_s - 0.05)
        assert breaker.is_closed
    breaker.record_failure(3.0, started_s=2.95)
    assert breaker.state is BreakerState.OPEN


def test_success_in_between_starts_the_count_again() -> None:
    breaker = CircuitBreaker(CONFIG)
    for now_s in range(1, 20):
        breaker.record_failure(now_s, started_s=now_s)
        if now_s % 2 == 0:
            breaker.record_success()
    assert breaker.is_closed


def test_many_calls_caught_by_one_hiccup_count_once() -> None:
    breaker = CircuitBreaker(CONFIG)
    for i in range(100):
        breaker.record_failure(1.05 + i / 1e4, started_s=1.0)
    assert breaker.is_closed


def test_only_one_probe_and_only_when_it_is_time() -> None:
    breaker = opened(at_s=10.0)
    assert breaker.probe_at_s == 11.0
    assert not breaker.begin_probe(10.9)
    assert breaker.begin_probe(11.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.begin_probe(11.0)
    assert not breaker.is_closed


def test_probe_that_succeeds_closes_and_resets_the_waiting_time() -> None:
    breaker = opened(at_s=10.0)
    breaker.begin_probe(11.0)
    breaker.record_probe_failure(11.1)
    breaker.begin_probe(13.1)
    breaker.record_probe_success()
    assert breaker.is_closed
    for now_s in (20.0, 21.0, 22.0):
        breaker.record_failure(now_s, started_s=now_s)
    assert breaker.probe_at_s == 23.0


def test_probes_that_fail_wait_twice_as_long_up_to_the_limit() -> None:
    breaker = opened(at_s=0.0)
    waits = []
    for _ in range(4):
        now_s = breaker.probe_at_s
        assert breaker.begin_probe(now_s)
        breaker.record_probe_failure(now_s)
        waits.append(breaker.probe_at_s - now_s)
    assert waits == [2.0, 3.0, 3.0, 3.0]


def test_late_answers_of_older_calls_neither_close_nor_reopen() -> None:
    breaker = opened()
    breaker.record_success()
    breaker.record_failure(99.0, started_s=98.0)
    breaker.record_probe_success()
    assert breaker.state is BreakerState.OPEN
    assert breaker.probe_at_s == 11.0


@given(st.lists(st.sampled_from(["ok", "fail", "begin", "probe_ok", "probe_fail"]), max_size=60))
def test_any_sequence_keeps_the_rules(events: list[str]) -> None:
    breaker, now_s, since_success = CircuitBreaker(CONFIG), 0.0, 0
    for event in events:
        before, now_s = breaker.state, now_s + 0.6
        if event == "ok":
            breaker.record_success()
        elif event == "fail":
            breaker.record_failure(now_s, started_s=now_s)
        elif event == "begin":
            breaker.begin_probe(now_s)
        elif event == "probe_ok":
            breaker.record_probe_success()
        else:
            breaker.record_probe_failure(now_s)
        since_success = 0 if event == "ok" or not breaker.is_closed else since_success + (event == "fail")
        moves = {
            BreakerState.CLOSED: {"fail": BreakerState.OPEN},
            BreakerState.OPEN: {"begin": BreakerState.HALF_OPEN},
            BreakerState.HALF_OPEN: {"probe_ok": BreakerState.CLOSED, "probe_fail": BreakerState.OPEN},
        }
        assert breaker.state in (before, moves[before].get(event))
        assert since_success < 3
