"""Two requests with one key are the same if they ask for the same, on whichever surface and however it is spelt."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from vireo_pb.vireo.v1 import vireo_pb2

from serving.delivery.job.base import JobRequest
from serving.delivery.job.service import asked_by, check_same
from serving.domain import Budget, Surface
from serving.errors import IdempotencyKeyReused
from serving.front.http.multipart import Form
from serving.limits import IngressLimits
from serving.tasks.videos.body import document_from_form, request_from_document
from serving.tasks.videos.grpc import request_from_message
from serving.tasks.videos.schemas import VideoBody


def over_http(document: dict[str, Any], fallback: Budget | None = None) -> JobRequest[VideoBody]:
    request = request_from_document(
        document,
        surface=Surface.HTTP_VIDEO,
        request_id="r",
        tenant="t",
        fallback=fallback or Budget(),
        idempotency_key="k",
        limits=IngressLimits(),
    )
    return replace(request, model="m")


def json_body(**fields: Any) -> JobRequest[VideoBody]:
    return over_http(json.loads(json.dumps(fields)))


def form(**fields: str) -> JobRequest[VideoBody]:
    return over_http(document_from_form(Form(fields=fields)))


def message(**fields: Any) -> JobRequest[VideoBody]:
    sent = vireo_pb2.GenerateVideoRequest(idempotency_key="k", **fields)
    return replace(request_from_message(sent, request_id="r", tenant="t", limits=IngressLimits()), model="m")


def test_one_request_in_every_spelling_has_one_set_of_digests() -> None:
    budget = {"latency_ms": 60_000, "energy_j": 3.5, "priority": "high"}
    wire_budget = vireo_pb2.Budget(latency_ms=60_000.0, energy_j=3.5, priority=vireo_pb2.PRIORITY_HIGH)
    requests = [
        json_body(prompt="p", seconds="4", size="64x64", guidance_scale=4, vireo=budget),
        json_body(vireo=budget, guidance_scale=4.0, height=64, width=64, seconds=4, prompt="p", model="m"),
        json_body(prompt="p", seconds=4.0, size="64X64", guidance_scale=4, user=None, seed=None, vireo=budget),
        form(prompt="p", seconds="4.0", size="64x64", guidance_scale="4", vireo=json.dumps(budget)),
        message(prompt="p", seconds=4, width=64, height=64, guidance_scale=4, vireo=wire_budget),
        over_http(
            {"prompt": "p", "seconds": 4, "size": "64x64", "guidance_scale": 4, "vireo": {"priority": "high"}},
            Budget(latency_ms=60_000, energy_j=3.5),  # as headers
        ),
    ]
    assert all(asked_by(request) == asked_by(requests[0]) for request in requests)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seconds": 8}, "seconds"),
        ({"vireo": {"energy_j": 9}}, r"vireo\.energy_j"),
        ({"seconds": None, "num_frames": 29}, "num_frames, seconds"),
        ({"negative_prompt": "blur"}, "negative_prompt"),
        ({"seed": 2**62 + 1}, "seed"),
    ],
)
def test_message_names_what_differs(change: dict[str, Any], named: str) -> None:
    body = {"prompt": "p", "seconds": 4, "seed": 2**62}
    with pytest.raises(IdempotencyKeyReused, match=f"different: {named}. Use a new key"):
        check_same(json_body(**(body | change)), asked_by(json_body(**body)))


def test_digests_do_not_show_what_was_asked() -> None:
    assert "secret plan" not in str(asked_by(json_body(prompt="secret plan")))
