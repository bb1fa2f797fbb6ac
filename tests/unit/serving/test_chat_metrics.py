"""What chat replicas and the chat service tell Prometheus."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from prometheus_client import REGISTRY

from serving.domain import Report
from serving.replica.chat.base import EngineStats
from serving.tasks.chat.domain import Usage
from serving.telemetry import events
from serving.telemetry.metrics import record


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"vireo_chat_{name}", labels) or 0.0


def test_an_engines_counters_are_added_up_and_its_gauges_shown() -> None:
    stats = EngineStats(
        running=3,
        waiting=2,
        kv_blocks_used=5,
        kv_blocks_total=9,
        prefill_tokens=100,
        decode_tokens=40,
        image_tokens=16,
        encoder_seconds=0.5,
        encoder_images=1,
        image_cache_hits=4,
        image_cache_misses=1,
        preemptions=1,
        aborts=2,
    )
    last = replace(stats, prefill_tokens=130, decode_tokens=41, running=0, preemptions=3)
    for before, now in pairwise((EngineStats(), stats, stats, last)):
        record(events.ChatEngineCounted("counted", now, before))
    kinds = {kind: value("tokens_total", model="counted", kind=kind) for kind in ("prefill", "decode", "image")}
    assert kinds == {"prefill": 130, "decode": 41, "image": 16}
    assert value("preemptions_total", model="counted") == 3
    assert value("aborts_total", model="counted") == 2
    assert value("encoder_seconds_total", model="counted") == 0.5
    assert value("encoder_images_total", model="counted") == 1
    assert value("image_lookups_total", model="counted", outcome="hit") == 4
    assert value("kv_blocks", model="counted", kind="used") == 5
    assert value("engine_requests", model="counted", state="running") == 0


def test_an_engine_that_starts_anew_does_not_count_backwards() -> None:
    for before, now in pairwise(EngineStats(decode_tokens=tokens) for tokens in (0, 50, 0, 20)):
        record(events.ChatEngineCounted("anew", now, before))
    assert value("tokens_total", model="anew", kind="decode") == 70


def test_times_of_a_choice_and_ends_without_an_answer() -> None:
    record(events.FirstToken("timed", 0.4, 0.1))
    record(events.ChoiceFinished("timed", 11, 0.5))
    record(events.ChoiceFinished("timed", 1, 0.0))
    record(events.ChoiceEndedEarly("timed", "cancelled"))
    assert value("first_token_seconds_sum", model="timed") == pytest.approx(0.4)
    assert value("queue_seconds_sum", model="timed") == pytest.approx(0.1)
    assert value("inter_token_seconds_sum", model="timed") == pytest.approx(0.05)
    assert value("inter_token_seconds_count", model="timed") == 1, "one token has no gap"
    assert value("answer_tokens_sum", model="timed") == 12
    assert value("ended_early_total", model="timed", reason="cancelled") == 1


def test_an_answer_is_charged_to_its_tenant() -> None:
    report = Report(
        operating_point="full",
        energy_j=0.25,
        energy_source="estimate",
        queue_ms=1.0,
        compute_ms=2.0,
        cache="hit",
        degraded=("max_tokens",),
    )
    usage = Usage(prompt_tokens=30, completion_tokens=7, image_tokens=16, cached_tokens=12)
    record(events.ChatAnswered("charged", "alpha", report, usage))
    record(events.ChatRetried("charged"))
    told = {
        kind: value("usage_tokens_total", model="charged", tenant="alpha", kind=kind)
        for kind in ("prompt", "completion")
    }
    assert told == {"prompt": 30, "completion": 7}
    assert value("answers_total", model="charged", cache="hit") == 1
    assert value("retries_total", model="charged") == 1
    assert REGISTRY.get_sample_value("vireo_degraded_total", {"model": "charged", "reason": "max_tokens"}) == 1
