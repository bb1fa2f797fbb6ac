"""When a closing front door may be left: nothing in flight for a while, the door gone, or the time up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, repeat

from serving.cli.drain import wait_drained


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def duration_s(in_flight: Iterator[float], is_open: Callable[[Clock], bool], timeout_s: float = 30.0) -> float:
    clock = Clock()
    wait_drained(lambda: next(in_flight), lambda: is_open(clock), timeout_s, clock, clock.sleep)
    return clock.now_s


def test_ends_with_the_door() -> None:
    assert 3.0 <= duration_s(repeat(1.0), lambda clock: clock.now_s < 3.0) <= 3.1


def test_waits_for_what_is_in_flight_and_a_little_longer() -> None:
    busy = chain(repeat(2.0, 40), repeat(0.0))  # 40 looks are two seconds
    assert 2.4 <= duration_s(busy, lambda _clock: True) <= 2.7


def test_one_quiet_moment_is_not_the_end() -> None:
    pattern = chain([0.0], repeat(1.0, 20), [0.0], repeat(1.0, 20), repeat(0.0))
    assert duration_s(pattern, lambda _clock: True) >= 2.5


def test_gives_up_at_the_time_limit() -> None:
    assert 5.0 <= duration_s(repeat(1.0), lambda _clock: True, timeout_s=5.0) <= 5.1
