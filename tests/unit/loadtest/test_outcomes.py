from typing import Any

import pytest

from loadtest.clients.outcomes import (
    ErrorBody,
    WrongAnswer,
    outcome_of_grpc,
    outcome_of_http,
    outcome_of_items,
    read_classify_json,
    read_error_json,
)
from loadtest.records import Outcome


@pytest.mark.parametrize(
    ("status", "error_type", "outcome"),
    [
        (200, None, Outcome.OK),
        (302, None, Outcome.PROTOCOL_ERROR),
        (400, None, Outcome.CLIENT_ERROR),
        (401, None, Outcome.CLIENT_ERROR),
        (408, None, Outcome.DEADLINE_EXCEEDED),
        (413, None, Outcome.CLIENT_ERROR),
        (429, "rate_limit_error", Outcome.REJECTED),
        (500, "server_error", Outcome.SERVER_ERROR),
        (502, None, Outcome.UNAVAILABLE),
        (503, "rate_limit_error", Outcome.REJECTED),
        (503, "server_error", Outcome.UNAVAILABLE),
        (503, None, Outcome.UNAVAILABLE),
        (504, None, Outcome.DEADLINE_EXCEEDED),
    ],
)
def test_http_statuses_mean_what_they_say(status: int, error_type: str | None, outcome: Outcome) -> None:
    assert outcome_of_http(status, error_type) is outcome


@pytest.mark.parametrize(
    ("status", "error_type", "outcome"),
    [
        ("OK", None, Outcome.OK),
        ("INVALID_ARGUMENT", None, Outcome.CLIENT_ERROR),
        ("RESOURCE_EXHAUSTED", None, Outcome.REJECTED),
        ("UNAVAILABLE", None, Outcome.UNAVAILABLE),
        ("UNAVAILABLE", "rate_limit_error", Outcome.REJECTED),
        ("DEADLINE_EXCEEDED", None, Outcome.DEADLINE_EXCEEDED),
        ("INTERNAL", None, Outcome.SERVER_ERROR),
        ("UNKNOWN", None, Outcome.SERVER_ERROR),
    ],
)
def test_grpc_statuses_mean_the_same(status: str, error_type: str | None, outcome: Outcome) -> None:
    assert outcome_of_grpc(status, error_type) is outcome


@pytest.mark.parametrize(
    ("types", "outcome"),
    [
        ([None, None], Outcome.OK),
        ([None, "invalid_request_error"], Outcome.PARTIAL),
        (["invalid_request_error"], Outcome.CLIENT_ERROR),
        (["timeout_error", "timeout_error"], Outcome.DEADLINE_EXCEEDED),
        (["invalid_request_error", "server_error"], Outcome.SERVER_ERROR),
        (["server_error", "rate_limit_error"], Outcome.SERVER_ERROR),
        (["a type of tomorrow"], Outcome.CLIENT_ERROR),
    ],
)
def test_an_answer_is_as_good_as_its_items(types: list[str | None], outcome: Outcome) -> None:
    assert outcome_of_items(types) is outcome


def answer(**fields: Any) -> dict[str, Any]:
    results = [
        {"index": 0, "label": "7", "score": 0.9, "exit": 2, "top_k": []},
        {"index": 1, "error": {"code": "invalid_image", "message": "broken", "type": "invalid_request_error"}},
    ]
    return {"object": "list", "model": "m", "results": results, "vireo": {"operating_point": "fast"}, **fields}


def test_a_classify_answer_is_read_with_its_errors() -> None:
    read = read_classify_json(answer(vireo={"energy_j": 2, "degraded": ["exit"]}), 2)
    assert (read.outcome, read.labels, read.exits) == (Outcome.PARTIAL, ("7", None), (2,))
    assert (read.error_code, read.error_message) == ("invalid_image", "broken")
    assert read.server is not None
    assert (read.server.energy_j, read.server.queue_ms, read.server.degraded) == (2.0, None, ("exit",))


@pytest.mark.parametrize(
    "body",
    [
        [],
        None,
        {},
        answer(results=[]),
        answer(results="ab"),
        answer(results=[{"index": 0}, {"index": 1}]),
        answer(vireo=None),
        answer(vireo={"energy_j": "much"}),
    ],
)
def test_a_success_that_does_not_follow_the_api_is_a_wrong_answer(body: Any) -> None:
    with pytest.raises(WrongAnswer):
        read_classify_json(body, 2)


def test_a_missing_vireo_block_is_a_wrong_answer() -> None:
    body = answer()
    del body["vireo"]
    with pytest.raises(WrongAnswer, match="vireo"):
        read_classify_json(body, 2)


def test_error_bodies_of_both_apis_are_read_and_long_messages_are_cut() -> None:
    error = {"code": "queue_full", "message": "m" * 1000, "type": "rate_limit_error", "param": None}
    assert read_error_json({"error": error}) == ErrorBody(code="queue_full", message="m" * 300, type="rate_limit_error")
    assert read_error_json({"error": "plain text"}) == ErrorBody(message="plain text")
    below_v2 = {"error": "m", "code": "queue_full", "type": "rate_limit_error"}
    assert read_error_json(below_v2) == ErrorBody(code="queue_full", message="m", type="rate_limit_error")
    for other in ([], None, {}, {"error": None}, {"error": []}):
        assert read_error_json(other) == ErrorBody()
