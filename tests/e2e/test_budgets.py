"""A request brings a budget; the running system picks the point that fits, says which, or says why none does."""

from __future__ import annotations

import base64
import signal
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest
from vireo_pb.vireo.v1 import vireo_pb2

from models.operating_points import read_table
from models.registry import find
from serving.operating_points import planned_points
from tests.e2e.conftest import CALLS_ON_THE_WAY, Picture
from tests.e2e.surfaces import SURFACES, UNARY, Door, enough_j
from tests.support.clients import Ask
from tests.support.system import MODEL, System
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def points() -> dict[str, float]:
    """Lower bound of accuracy, by name."""
    return {point.name: point.quality or 0.0 for point in planned_points(read_table(find(MODEL)[1]))}


def best(points: dict[str, float]) -> set[str]:
    """Names of the most accurate points (several may be equal)."""
    return {name for name, quality in points.items() if quality == max(points.values())}


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_without_a_budget_the_most_accurate_point_answers(
    name: str, door: Door, points: dict[str, float], new_picture: Callable[[], Picture]
) -> None:
    report = SURFACES[name](door, Ask([new_picture()[0]], model=MODEL)).report
    assert report["operating_point"] in best(points)
    assert not report["degraded"]


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_energy_budget_changes_the_operating_point(
    name: str, door: Door, points: dict[str, float], new_picture: Callable[[], Picture]
) -> None:
    ask, surface = Ask([new_picture()[0]], model=MODEL), SURFACES[name]
    report = surface(door, replace(ask, energy_j=enough_j(surface, door, ask))).report
    assert report["operating_point"] in points.keys() - best(points)
    assert "energy" in report["degraded"]


def test_a_budget_that_is_ample_changes_nothing(
    door: Door, points: dict[str, float], new_picture: Callable[[], Picture]
) -> None:
    ask, surface = Ask([new_picture()[0]], model=MODEL), SURFACES["http_json"]
    report = surface(door, replace(ask, energy_j=20 * enough_j(surface, door, ask))).report
    assert report["operating_point"] in best(points)
    assert not report["degraded"]


def test_answers_take_what_was_expected_of_them(door: Door, new_picture: Callable[[], Picture]) -> None:
    """Alone on an idle server, a row costs several times its share of a full batch. What is compared with a budget
    follows what rows were charged; this test fails where it is the share in a batch that nobody else is in."""
    surface, ask = SURFACES["http_json"], Ask([new_picture()[0]], model=MODEL)
    for _ in range(10):
        surface(door, Ask([new_picture()[0]], model=MODEL))
    allowed_j = enough_j(surface, door, ask)
    spent = [surface(door, Ask([new_picture()[0]], model=MODEL, energy_j=4 * allowed_j)).report for _ in range(9)]
    assert statistics.median(one["energy_j"] for one in spent) < 4 * allowed_j


def test_quality_floor_is_kept(door: Door, points: dict[str, float], new_picture: Callable[[], Picture]) -> None:
    floor = max(points.values()) - 1e-9
    report = SURFACES["grpc_oip"](door, Ask([new_picture()[0]], model=MODEL, quality_floor=floor)).report
    assert report["operating_point"] in best(points)


def test_ample_latency_changes_nothing(
    door: Door, points: dict[str, float], new_picture: Callable[[], Picture]
) -> None:
    answer = SURFACES["grpc_vireo"](door, Ask([new_picture()[0]], model=MODEL, latency_ms=20_000.0))
    assert answer.report["operating_point"] in best(points)


@pytest.mark.parametrize("name", sorted(SURFACES))
@pytest.mark.parametrize("kind", ["latency_ms", "energy_j", "quality_floor"])
def test_impossible_budget_is_refused_naming_the_nearest_point(
    kind: str, name: str, door: Door, points: dict[str, float], digits: list[Picture]
) -> None:
    impossible = {"latency_ms": 0.001, "energy_j": 1e-9, "quality_floor": 1.0}
    answer = SURFACES[name](door, replace(Ask([digits[0][0]], model=MODEL), **{kind: impossible[kind]}))
    assert answer.error == "budget_infeasible"
    assert answer.status in (422, grpc.StatusCode.FAILED_PRECONDITION, None)
    assert any(name in answer.message for name in points)
    assert kind.split("_")[0] in answer.message
    assert "loosen" in answer.message


@pytest.mark.parametrize("header", ["x-vireo-latency-ms", "x-vireo-energy-j"])
@pytest.mark.parametrize("name", ["http_json", "http_multipart", "http_oip"])
def test_headers_carry_the_budget(header: str, name: str, door: Door, digits: list[Picture]) -> None:
    ask = Ask([digits[0][0]], model=MODEL)
    assert SURFACES[name](door, ask, **{header: "0.0000001"}).error == "budget_infeasible"
    assert SURFACES[name](door, ask, **{header: "10000"}).error is None
    assert SURFACES[name](door, ask, **{header: "soon"}).error == "invalid_request"


def test_body_overrides_the_header(door: Door, digits: list[Picture]) -> None:
    ask = Ask([digits[0][0]], model=MODEL, energy_j=100.0)
    assert SURFACES["http_json"](door, ask, **{"x-vireo-energy-j": "0.0000001"}).error is None


@pytest.mark.parametrize("name", sorted(SURFACES))
def test_report_tells_what_was_picked_and_what_it_cost(
    name: str, door: Door, new_picture: Callable[[], Picture]
) -> None:
    report = SURFACES[name](door, Ask([new_picture()[0]], model=MODEL)).report
    assert {"operating_point", "energy_j", "energy_source", "queue_ms", "compute_ms", "cache", "degraded"} <= set(
        report
    )
    assert report["energy_source"] == "estimate"
    if report["cache"] == "miss":  # in a stream, the same picture may have been answered a moment before
        assert report["energy_j"] > 0
        assert report["compute_ms"] > 0
    assert report["queue_ms"] >= 0


def classify_with(door: Door, picture: bytes, **settings: Any) -> Any:
    body = {"model": MODEL, "image": base64.b64encode(picture).decode(), "vireo": {"settings": settings}}
    return door.http.post("/v1/classify", json=body)


def test_a_request_may_set_the_exits_itself(door: Door, new_picture: Callable[[], Picture]) -> None:
    for settings, exit_number in (
        ({"exit_1": 0}, 1),
        ({"exit_1": 2, "exit_2": 0.0}, 2),
        ({"exit_1": 2, "exit_2": 2, "exit_3": 2}, 4),
    ):
        answer = classify_with(door, new_picture()[0], **settings).json()
        assert answer["results"][0]["exit"] == exit_number
    message = vireo_pb2.ClassifyRequest(model=MODEL, images=[new_picture()[0]])
    message.vireo.settings["exit_1"].int_value = 0
    assert door.vireo.Classify(message, metadata=door.metadata).results[0].exit == 1


def test_setting_that_the_model_does_not_take_is_refused_by_name(door: Door, digits: list[Picture]) -> None:
    for settings, named in (({"exit_4": 0.5}, "exit_4"), ({"exit_1": 3}, "0 to 2"), ({"exit_1": "high"}, "exit_1")):
        answer = classify_with(door, digits[0][0], **settings)
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]


def test_models_tell_their_settings(door: Door) -> None:
    (card,) = [card for card in door.http.get("/v1/models").json()["data"] if card["id"] == MODEL]
    exits = {setting["name"]: setting for setting in card["vireo"]["settings"]}
    assert set(exits) == {"exit_1", "exit_2", "exit_3"}
    assert exits["exit_1"]["schema"]["maximum"] == 2.0
    assert exits["exit_1"]["trades"] == "accuracy for time"


def paused_classifier(system: System) -> Any:
    (process,) = system.replicas(MODEL)
    process.send_signal(signal.SIGSTOP)
    return process


def test_request_past_its_deadline_is_rejected_and_not_run_if_it_waited(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    wait_until(lambda: system.in_flight() == 0, "the system is idle")
    before = system.metrics().total("vireo_exits_total")
    process = paused_classifier(system)
    try:
        for name, surface in UNARY.items():
            answer = surface(door, Ask([new_picture()[0]], model=MODEL, latency_ms=100.0))
            assert answer.error == "deadline_exceeded", name
            assert answer.status in (504, grpc.StatusCode.DEADLINE_EXCEEDED)
        wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0 while the replica still hangs")
    finally:
        process.send_signal(signal.SIGCONT)
    assert SURFACES["http_json"](door, Ask([new_picture()[0]], model=MODEL)).error is None
    after = wait_until(
        lambda: (value := system.metrics().total("vireo_exits_total")) > before and value, "the last one's exit"
    )
    # What was on its way when the replica was held may be begun before it reads that nobody waits any more.
    assert after <= before + 1 + CALLS_ON_THE_WAY, "images past their deadline were run"


def test_grpc_deadline_of_the_caller_ends_the_call_and_frees_what_it_holds(
    system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    process = paused_classifier(system)
    try:
        request = vireo_pb2.ClassifyRequest(model=MODEL, images=[new_picture()[0]])
        with pytest.raises(grpc.RpcError) as failure:
            door.vireo.Classify(request, timeout=0.3)
        assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        wait_until(lambda: system.in_flight() == 0, "in-flight gauge back to 0 while the replica still hangs")
    finally:
        process.send_signal(signal.SIGCONT)
    assert SURFACES["grpc_vireo"](door, Ask([new_picture()[0]], model=MODEL)).error is None


# -- limits of a tenant ----------------------------------------------------------------------------------------------


@pytest.fixture
def limited(system: System, door: Door, new_picture: Callable[[], Picture]) -> Iterator[Callable[..., None]]:
    """Sets limits of whoever calls without a key, while the system runs. Afterwards there are none, and the gateway
    knows it: what it has not read yet is lost if the next test kills Redis."""

    def limit(**fields: object) -> None:
        words = [f"{name}={value}" for name, value in fields.items()]
        command = system.command("tenants", "set", "local", *words, "--port", str(system.port))
        assert command.returncode == 0, command.stderr

    def are_gone() -> bool:
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(SURFACES["http_json"], door, Ask([new_picture()[0]], model=MODEL)) for _ in range(12)]
            return all(answer.result().error is None for answer in asked)

    yield limit
    limit(max_deep_share="null", max_in_flight="null", max_joules_per_day="null")
    wait_until(are_gone, "there are no limits any more")


def test_tenant_without_a_share_of_deep_exits_gets_shallower_answers_that_say_so(
    limited: Callable[..., None], door: Door, new_picture: Callable[[], Picture]
) -> None:
    limited(max_deep_share=0)

    def is_told() -> bool:
        return "deep_share" in SURFACES["http_json"](door, Ask([new_picture()[0]], model=MODEL)).report["degraded"]

    wait_until(is_told, "the limit counts")
    for name, surface in UNARY.items():
        answer = surface(door, Ask([new_picture()[0] for _ in range(4)], model=MODEL))
        assert "deep_share" in answer.report["degraded"], name
        assert "exit_3=0" in answer.report["operating_point"], name
    answer = classify_with(door, new_picture()[0], exit_1=2.0, exit_2=2.0, exit_3=2.0)
    assert answer.json()["vireo"]["operating_point"] == "exit_1=2,exit_2=2,exit_3=0", "also if it asks for the last"
    refused = SURFACES["http_json"](door, Ask([new_picture()[0]], model=MODEL, quality_floor=1.0))
    assert refused.error == "tenant_deep_share_exceeded"


def test_joules_of_a_day_are_bounded_on_every_surface(
    limited: Callable[..., None], door: Door, new_picture: Callable[[], Picture]
) -> None:
    day = door.http.get("/v1/budget").raise_for_status().json()["day"]
    spent_j = day["spent_j"] if day else 0.0  # by the tests before
    cap_j = spent_j + 0.3
    limited(max_joules_per_day=cap_j)

    def is_spent() -> bool:
        return SURFACES["http_json"](door, Ask([new_picture()[0]], model=MODEL)).error == "spend_cap_reached"

    wait_until(is_spent, "the joules of the day are spent")
    for name, surface in UNARY.items():
        answer = surface(door, Ask([new_picture()[0]], model=MODEL))
        assert answer.error == "spend_cap_reached", name
        assert answer.status in (429, grpc.StatusCode.RESOURCE_EXHAUSTED), name
    day = door.http.get("/v1/budget").raise_for_status().json()["day"]
    assert day["cap_j"] == cap_j
    assert spent_j < day["spent_j"] < cap_j + 1.0  # beyond the cap: what a first request took over its estimate
    assert 0.0 < day["resets_in_s"] <= 86400.0
    limited(max_joules_per_day="null")
    wait_until(lambda: not is_spent(), "without a cap there is more")


def test_requests_of_a_tenant_at_a_time_are_bounded_on_every_surface(
    limited: Callable[..., None], system: System, door: Door, new_picture: Callable[[], Picture]
) -> None:
    limited(max_in_flight=1)
    wait_until(lambda: system.in_flight() == 0, "the system is idle")
    process = paused_classifier(system)
    try:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(SURFACES["http_json"], door, Ask([new_picture()[0]], model=MODEL))
            wait_until(lambda: system.in_flight() >= 1, "the first one is on its way")

            def refused(name: str) -> bool:
                answer = UNARY[name](door, Ask([new_picture()[0]], model=MODEL, latency_ms=1000.0))
                if answer.error == "tenant_in_flight_exceeded":
                    assert answer.status in (429, grpc.StatusCode.RESOURCE_EXHAUSTED)
                return answer.error == "tenant_in_flight_exceeded"

            for name in UNARY:
                wait_until(partial(refused, name), f"{name} is refused")
            process.send_signal(signal.SIGCONT)
            assert first.result().error is None
    finally:
        process.send_signal(signal.SIGCONT)
    assert system.metrics().total("vireo_rejections_total", reason="tenant_in_flight_exceeded") >= len(UNARY)
