"""The status table: complete, consistent, and the only text that leaves is meant for callers."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest
from grpc import StatusCode

from serving import errors
from serving.errors import NotReady, ServingError, SlowBody, UnknownService
from serving.front.status import (
    MAX_MESSAGE_BYTES,
    TABLE,
    error_object,
    grpc_trailers,
    http_error,
    message_of,
    retry_after_s,
    status_of,
    to_serving_error,
)


def family(cls: type[ServingError]) -> Iterator[type[ServingError]]:
    yield cls
    for child in cls.__subclasses__():
        if child.__module__.startswith("serving."):
            yield from family(child)


def test_every_error_of_the_tree_has_its_own_entry() -> None:
    assert set(family(ServingError)) == set(TABLE)


@pytest.mark.parametrize("cls", TABLE, ids=lambda cls: cls.__name__)
def test_http_and_grpc_agree_on_whose_fault_it_is(cls: type[ServingError]) -> None:
    status = TABLE[cls]
    server_side = {StatusCode.INTERNAL, StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED}
    if status.http >= 500:
        assert status.grpc in server_side
    else:
        assert status.grpc not in server_side - {StatusCode.DEADLINE_EXCEEDED}
    assert issubclass(cls, errors.Overloaded) <= status.retryable


def test_agreed_statuses() -> None:
    expected: dict[type[ServingError], tuple[int, StatusCode]] = {
        errors.Cancelled: (499, StatusCode.CANCELLED),
        errors.DeadlineExceeded: (504, StatusCode.DEADLINE_EXCEEDED),
        errors.BudgetInfeasible: (422, StatusCode.FAILED_PRECONDITION),
        errors.QuotaTooSmall: (422, StatusCode.FAILED_PRECONDITION),
        errors.QuotaExceeded: (429, StatusCode.RESOURCE_EXHAUSTED),
        errors.SpendCapReached: (429, StatusCode.RESOURCE_EXHAUSTED),
        errors.QueueFull: (429, StatusCode.RESOURCE_EXHAUSTED),
        errors.UnknownModel: (404, StatusCode.NOT_FOUND),
        errors.Unauthenticated: (401, StatusCode.UNAUTHENTICATED),
        errors.Forbidden: (403, StatusCode.PERMISSION_DENIED),
        errors.PayloadTooLarge: (413, StatusCode.INVALID_ARGUMENT),
        errors.InvalidRequest: (400, StatusCode.INVALID_ARGUMENT),
        errors.EngineFailed: (500, StatusCode.INTERNAL),
        SlowBody: (408, StatusCode.DEADLINE_EXCEEDED),
        NotReady: (503, StatusCode.UNAVAILABLE),
        UnknownService: (404, StatusCode.NOT_FOUND),
    }
    assert {cls: (TABLE[cls].http, TABLE[cls].grpc) for cls in expected} == expected


def test_error_class_made_elsewhere_has_the_status_of_its_parent() -> None:
    class Special(errors.QueueFull):
        pass

    try:
        assert status_of(Special("full")) == TABLE[errors.QueueFull]
    finally:
        del Special


def test_foreign_exception_becomes_an_internal_error_without_its_text() -> None:
    known = to_serving_error(KeyError("/srv/secret"))
    assert (known.code, status_of(known).http) == ("internal_error", 500)
    assert "secret" not in known.message
    assert to_serving_error(known) is known


def test_retry_time_travels_in_header_and_trailer() -> None:
    error = errors.QuotaExceeded("bucket is empty", retry_after_s=2.3)
    status, headers, body = http_error(error)
    assert (status, dict(headers)[b"retry-after"]) == (429, b"3")
    assert orjson.loads(body)["error"]["code"] == "quota_exceeded"
    assert dict(grpc_trailers(error))["retry-after-ms"] == "2300"


@pytest.mark.parametrize("wait_s", [None, float("nan"), float("inf"), -1.0])
def test_retryable_error_without_a_sensible_time_says_one_second(wait_s: float | None) -> None:
    error = errors.QueueFull("full", retry_after_s=wait_s)
    assert retry_after_s(error) == 1.0
    assert dict(http_error(error)[1])[b"retry-after"] == b"1"


def test_error_that_a_retry_cannot_help_has_no_retry_time() -> None:
    error = errors.InvalidRequest("bad", retry_after_s=5.0)
    assert retry_after_s(error) is None
    assert [name for name, _ in grpc_trailers(error)] == ["vireo-error-bin"]


def test_unauthenticated_names_the_scheme() -> None:
    assert dict(http_error(errors.Unauthenticated("no key"))[1])[b"www-authenticate"].startswith(b"Bearer")


def test_long_or_broken_text_is_made_safe_to_send() -> None:
    error = errors.InvalidRequest("x" * 5000 + "\ud800", param="\udfff" * 500)
    assert len(message_of(error)) == MAX_MESSAGE_BYTES
    assert len(orjson.dumps(error_object(error))) < 1500
    assert len(message_of(errors.InvalidRequest("ü" * 600)).encode()) <= MAX_MESSAGE_BYTES
    assert message_of(errors.InvalidRequest("x" * 1024)) == "x" * 1024
    assert message_of(errors.InvalidRequest("a\ud800b")) == "a\\ud800b"
    assert message_of(errors.InvalidRequest("größer")) == "größer"
