"""Results are kept in Redis, and a Redis that dies or hangs costs no request."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from tests.e2e.conftest import Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door, Load, enough_j
from tests.support.clients import Ask
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

LOADED = [UNARY[name] for name in ("http_json", "grpc_vireo", "http_oip", "grpc_oip")]


def redis_of(system: System) -> psutil.Process:
    (process,) = system.named("redis-server")
    return process


def breaker(system: System) -> float:
    return system.metrics().total("vireo_breaker_state", store="redis")


def is_cached(door: Door, ask: Ask) -> bool:
    return SURFACES["http_json"](door, ask).report["cache"] == "hit"


@pytest.mark.parametrize("name", sorted(UNARY))
def test_second_time_is_a_hit_with_the_same_answer(name: str, door: Door, new_picture: Callable[[], Picture]) -> None:
    ask = Ask([new_picture()[0]], model=MODEL, top_k=3)
    first = UNARY[name](door, ask)
    assert first.report["cache"] == "miss"
    again = wait_until(lambda: (a := UNARY[name](door, ask)).report["cache"] == "hit" and a, "a cache hit")
    assert again.items == first.items
    assert again.report["operating_point"] == first.report["operating_point"]
    assert again.report["energy_j"] == again.report["compute_ms"] == again.report["queue_ms"] == 0


def test_hit_counts_as_a_hit_and_reaches_no_engine(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    ask = Ask([new_picture()[0]], model=MODEL)
    wait_until(lambda: is_cached(door, ask), "a cache hit")
    before = system.metrics()
    assert is_cached(door, ask)
    after = system.metrics()
    hits = [m.total("vireo_cache_lookups_total", outcome="hit") for m in (before, after)]
    exits = [m.total("vireo_exits_total") for m in (before, after)]
    assert (hits[1] - hits[0], exits[1] - exits[0]) == (1, 0)


def test_known_and_new_images_of_one_request_are_told_apart(door: Door, new_picture: Callable[[], Picture]) -> None:
    (old, old_label), (new, new_label) = new_picture(), new_picture()
    wait_until(lambda: is_cached(door, Ask([old], model=MODEL)), "a cache hit")
    answer = SURFACES["grpc_oip"](door, Ask([new, old], model=MODEL))
    assert answer.report["cache"] == "partial"
    assert answer.codes == (new_label, old_label)


def test_another_operating_point_is_another_result(door: Door, new_picture: Callable[[], Picture]) -> None:
    data, _ = new_picture()
    wait_until(lambda: is_cached(door, Ask([data], model=MODEL)), "a cache hit")
    surface, ask = SURFACES["http_json"], Ask([data], model=MODEL)
    frugal = surface(door, replace(ask, energy_j=enough_j(surface, door, ask)))
    assert frugal.report["cache"] == "miss"
    assert frugal.report["degraded"] == ["energy"]


def test_killed_redis_costs_no_request_and_comes_back(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    old = redis_of(system)
    with Load(door, LOADED, new_picture) as load:
        load.wait_for(30)
        old.kill()
        wait_until(lambda: [p for p in system.named("redis-server") if p.pid != old.pid], "a new one")
        load.wait_for(60)
    assert load.failures == []
    wait_until(lambda: breaker(system) == 0, "the breaker is closed")
    ask = Ask([new_picture()[0]], model=MODEL)
    wait_until(lambda: is_cached(door, ask), "results are cached again")


def test_hanging_redis_costs_no_request_and_the_breaker_opens_and_closes(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    process = redis_of(system)
    before = system.metrics().total("vireo_cache_lookups_total", outcome="unavailable")
    with Load(door, LOADED, new_picture) as load:
        load.wait_for(30)
        process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: breaker(system) > 0, "the breaker opens")
            load.wait_for(100)
            assert breaker(system) > 0
        finally:
            process.send_signal(signal.SIGCONT)
        wait_until(lambda: breaker(system) == 0, "the breaker closes")
        load.wait_for(30)
    assert load.failures == []
    assert system.metrics().total("vireo_cache_lookups_total", outcome="unavailable") > before
    ask = Ask([new_picture()[0]], model=MODEL)
    wait_until(lambda: is_cached(door, ask), "results are cached again")
