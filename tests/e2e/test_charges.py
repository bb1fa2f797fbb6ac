"""What a tenant pays for, and what it may ask for, in a running system: on every surface alike."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis
from vireo_pb.vireo.v1 import vireo_pb2

from serving.stores import keys
from tests.e2e.conftest import BILLED_CHAT, BURST_S, Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door, opened
from tests.support import media_files as files
from tests.support.clients import Ask, multipart, vireo_message
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def rich(billed: System) -> Iterator[Door]:
    with opened(billed, {"x-api-key": "rich"}) as door:
        yield door


@pytest.fixture(scope="module")
def poor(billed: System) -> Iterator[Door]:
    with opened(billed, {"x-api-key": "poor"}) as door:
        yield door


def decoded_s(system: System, tenant: str) -> float:
    return system.metrics().total("vireo_decode_seconds_total", tenant=tenant)


def charged_s(system: System, tenant: str) -> float:
    """What is gone from the bucket, once nothing is reserved any more."""
    client = redis.Redis(unix_socket_path=str(system.run_dir / "redis" / "redis.sock"))
    wait_until(lambda: not list(client.scan_iter("*reservation*")), "everything is settled")
    return BURST_S[tenant] - float(client.hget(keys.bucket(tenant), "seconds") or BURST_S[tenant])


def test_empty_account_gets_no_decoding_on_any_surface(billed: System, poor: Door, digits: list[Picture]) -> None:
    def is_turned_away() -> bool:
        big = files.encode(files.noise(600, 600))
        return SURFACES["http_json"](poor, Ask([big], model=MODEL)).error == "quota_exceeded"

    wait_until(is_turned_away, "what it had is spent")
    charged_s(billed, "poor")
    big = files.encode(files.noise(600, 600))
    before_s = decoded_s(billed, "poor")
    assert before_s > 0.0
    for name, ask in SURFACES.items():
        for image in (big, digits[0][0]):
            assert ask(poor, Ask([image], model=MODEL)).error == "quota_exceeded", name
    assert decoded_s(billed, "poor") == before_s


def test_callers_that_leave_are_charged_for_what_ran(
    billed: System, rich: Door, new_picture: Callable[[], Picture]
) -> None:
    body, content_type = multipart({"model": MODEL}, [new_picture()[0] for _ in range(48)])

    def leave(after_s: float) -> None:
        with contextlib.suppress(httpx.TimeoutException):
            rich.http.post("/v1/classify", content=body, headers={"content-type": content_type}, timeout=after_s)

    def stages() -> float:
        return billed.metrics().total("vireo_stage_batch_size_sum", model=MODEL)

    leave(60.0)
    before, begun_s, decoding_s = stages(), charged_s(billed, "rich"), decoded_s(billed, "rich")
    for after_ms in range(5, 200, 5):
        leave(after_ms / 1e3)
    wait_until(lambda: billed.in_flight() == 0, "nothing is in flight")
    assert stages() > before

    def engine_is_charged() -> bool:
        """Beside the decoding, which is charged a moment later, all at once."""
        return charged_s(billed, "rich") - begun_s > decoded_s(billed, "rich") - decoding_s

    wait_until(engine_is_charged, "what ran is charged")


@pytest.mark.parametrize("surface", ["json", "multipart", "oip", "grpc"])
def test_priority_above_what_a_tenant_is_allowed_is_lowered_and_said(
    rich: Door, surface: str, new_picture: Callable[[], Picture]
) -> None:
    picture, _ = new_picture()
    if surface == "grpc":
        message = vireo_message(Ask([picture], model=MODEL))
        message.vireo.priority = vireo_pb2.PRIORITY_HIGH
        assert list(rich.vireo.Classify(message, metadata=rich.metadata).vireo.degraded) == ["priority"]
        return
    answer = _http(rich, surface, picture)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    degraded = document["parameters"]["vireo_degraded"] if surface == "oip" else document["vireo"]["degraded"]
    assert degraded in ("priority", ["priority"])


def _http(door: Door, surface: str, picture: bytes) -> httpx.Response:
    if surface == "multipart":
        body, content_type = multipart({"model": MODEL, "vireo": json.dumps({"priority": "high"})}, [picture])
        return door.http.post("/v1/classify", content=body, headers={"content-type": content_type})
    encoded = base64.b64encode(picture).decode()
    if surface == "json":
        document = {"model": MODEL, "image": encoded, "vireo": {"priority": "high"}}
        return door.http.post("/v1/classify", json=document)
    tensor = {"name": "IMAGE", "shape": [1], "datatype": "BYTES", "data": [encoded]}
    request = {"inputs": [tensor], "parameters": {"vireo_priority": "high"}}
    return door.http.post(f"/v2/models/{MODEL}/infer", json=request)


def test_joules_of_answers_are_those_of_tenants_and_add_up_to_what_was_metered(
    billed: System, rich: Door, new_picture: Callable[[], Picture]
) -> None:
    def said(**labels: str) -> float:
        return billed.metrics().total("vireo_energy_joules_total", source="estimate", **labels)

    wait_until(lambda: billed.in_flight() == 0, "nothing is in flight")
    before = {model: said(model=model, tenant="rich") for model in (MODEL, BILLED_CHAT)}
    reports = [ask(rich, Ask([new_picture()[0]], model=MODEL)).report for ask in UNARY.values()]
    chat = {"model": BILLED_CHAT, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
    reports += [rich.http.post("/v1/chat/completions", json=chat).json()["vireo"]]
    told = {MODEL: sum(float(report["energy_j"]) for report in reports[:-1]), BILLED_CHAT: reports[-1]["energy_j"]}
    assert {report["energy_source"] for report in reports} == {"estimate"}
    for model, joules in told.items():
        assert joules > 0.0
        grown = said(model=model, tenant="rich") - before[model]
        assert grown == pytest.approx(joules, rel=1e-3)

    def adds_up(model: str) -> bool:
        """At rest, once the window is over in which something ran."""
        metrics = billed.metrics()
        parts = ("idle_joules_total", "elsewhere_joules_total", "joules_total", "carried_joules")
        metered, *parted = (
            metrics.total(f"vireo_energy_{part}", model=model) for part in ("metered_joules_total", *parts)
        )
        return metered > 0.0 and abs(metered - sum(parted)) <= 1e-3 * metered

    for model in told:
        wait_until(lambda model=model: adds_up(model), f"the joules of {model} add up")


def test_budget_is_the_callers_own_over_both_protocols(rich: Door, poor: Door) -> None:
    for name, door in (("rich", rich), ("poor", poor)):
        over_http = door.http.get("/v1/budget").raise_for_status().json()
        over_grpc = door.vireo.GetBudget(vireo_pb2.GetBudgetRequest(), metadata=door.metadata)
        assert (over_http["tenant"], over_grpc.tenant) == (name, name)
        assert over_http["seconds"]["burst"] == over_grpc.seconds.burst == BURST_S[name]
    assert rich.http.get("/v1/budgets").status_code == 403
