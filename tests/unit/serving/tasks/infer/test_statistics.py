"""Triton's statistics, from the metrics that are really written."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from serving.domain import Surface
from serving.service import Card
from serving.tasks.infer.statistics import statistics
from serving.telemetry import events
from serving.telemetry.metrics import record
from tests.support.fake_service import make_card, make_chat_card
from tests.support.fake_videos import make_video_card


def call(model: str, outcome: str, seconds: float, surface: Surface = Surface.HTTP_OIP) -> events.CallFinished:
    return events.CallFinished(surface=surface, model=model, tenant="t", outcome=outcome, seconds=seconds)


async def of(card: Card) -> Any:
    (found,) = await statistics([card])
    assert (found["name"], found["version"], found["batch_stats"]) == (card.id, "1", [])
    return found


def ms(count: int, milliseconds: int) -> dict[str, int]:
    return {"count": count, "ns": milliseconds * 1_000_000}


async def test_rows_are_counted_from_requests_samples_and_batches() -> None:
    card = make_card("statistics-rows")
    before_ms = time.time() * 1e3
    for event in (
        call(card.id, "ok", 0.25),
        call(card.id, "partial", 0.25, Surface.GRPC_OIP),
        call(card.id, "queue_full", 0.125),
        call("statistics-other", "ok", 9.0),
        *[events.BatchRan(card.id, stage, 3, 0.1, 0.1) for stage in (0, 1, 2, 0)],
        *[events.SampleAnswered(card.id, 0, False, 0.002, 0.004) for _ in range(3)],
    ):
        record(event)
    found = await of(card)
    assert (found["inference_count"], found["execution_count"]) == (3, 2)
    assert before_ms - 1 <= found["last_inference"] <= time.time() * 1e3 + 1
    assert found["inference_stats"] == {
        "success": ms(2, 500), "fail": ms(1, 125), "queue": ms(3, 6), "compute_input": ms(0, 0),
        "compute_infer": ms(3, 12), "compute_output": ms(0, 0),
    }  # fmt: skip


async def test_choices_of_a_chat_are_inferences_whose_steps_nobody_counts() -> None:
    card = make_chat_card("statistics-chat")
    record(call(card.id, "ok", 1.0, Surface.HTTP_CHAT))
    for _ in range(2):
        record(events.FirstToken(card.id, 0.5, 0.25))
        record(events.ChoiceFinished(card.id, 7, 0.5))
    found = await of(card)
    assert (found["inference_count"], found["execution_count"]) == (2, 0)
    assert (found["inference_stats"]["queue"], found["inference_stats"]["compute_infer"]) == (ms(2, 500), ms(0, 0))


async def test_clips_are_inferences_of_as_many_steps_as_were_run() -> None:
    card = replace(make_video_card(), id="statistics-clips")
    record(events.JobClaimed(card.id, 0.5, 1))
    for _ in range(4):
        record(events.JobsStepped(card.id, 1, 0.1))
    stages_s = {"text": 0.25, "denoise": 0.5, "search": 0.25, "decode": 0.125, "encode": 0.125}
    record(events.JobCompleted(model=card.id, tenant="t", stages_s=stages_s, sparsity=0.0))
    record(events.JobFailed(card.id, "engine_failed"))
    found = await of(card)
    assert (found["inference_count"], found["execution_count"]) == (1, 4)
    assert (found["inference_stats"]["queue"], found["inference_stats"]["compute_infer"]) == (ms(1, 500), ms(1, 1000))


async def test_model_that_was_never_asked_has_zeros() -> None:
    found = await of(make_card("statistics-none"))
    assert (found["last_inference"], found["inference_count"]) == (0, 0)
    assert set(map(str, found["inference_stats"].values())) == {str(ms(0, 0))}
