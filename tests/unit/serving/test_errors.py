"""The error tree: stable codes, and nothing lost on the way from replica to gateway."""

from __future__ import annotations

import pickle
import re

import cloudpickle
import pytest

from serving import errors
from serving.errors import (
    BackendError,
    ClientError,
    ConfigError,
    InvalidRequest,
    Overloaded,
    ServingError,
)


def tree(root: type[ServingError] = ServingError) -> list[type[ServingError]]:
    return [root] + [found for child in root.__subclasses__() for found in tree(child)]


EVERY = [error for error in tree() if error.__module__ == errors.__name__]
CODES = {
    "ServingError": "internal_error",
    "ClientError": "invalid_request",
    "InvalidRequest": "invalid_request",
    "UnknownField": "unknown_field",
    "InvalidImage": "invalid_image",
    "UnsupportedMediaType": "unsupported_media_type",
    "ImageTooLarge": "image_too_large",
    "DecodeTimeout": "decode_timeout",
    "ImageUrlRefused": "image_url_refused",
    "ImageFetchFailed": "image_fetch_failed",
    "PayloadTooLarge": "payload_too_large",
    "TooManyImages": "too_many_images",
    "UnsupportedEncoding": "unsupported_encoding",
    "UnsupportedField": "unsupported_field",
    "UnsupportedVideo": "unsupported_video_setting",
    "IdempotencyKeyReused": "idempotency_key_reused",
    "PromptTooLong": "context_length_exceeded",
    "FeatureNotAllowed": "feature_not_allowed",
    "UnknownModel": "model_not_found",
    "UnknownVideo": "video_not_found",
    "VideoNotReady": "video_not_ready",
    "VideoFailed": "video_failed",
    "UnknownImage": "image_not_found",
    "ImageNotReady": "image_not_ready",
    "ImageFailed": "image_failed",
    "RangeNotSatisfiable": "range_not_satisfiable",
    "UnknownPath": "not_found",
    "MethodNotAllowed": "method_not_allowed",
    "Unauthenticated": "invalid_api_key",
    "Forbidden": "forbidden",
    "BudgetInfeasible": "budget_infeasible",
    "QuotaTooSmall": "quota_too_small",
    "DeadlineExceeded": "deadline_exceeded",
    "Overloaded": "overloaded",
    "QueueFull": "queue_full",
    "DeadlineUnreachable": "deadline_unreachable",
    "QuotaExceeded": "quota_exceeded",
    "SpendCapReached": "spend_cap_reached",
    "TooManyInFlight": "tenant_in_flight_exceeded",
    "TooManyJobs": "tenant_jobs_exceeded",
    "TooManyBytes": "tenant_kv_exceeded",
    "TooManyLatentBytes": "tenant_latent_exceeded",
    "DeepShareSpent": "tenant_deep_share_exceeded",
    "Draining": "draining",
    "NotReady": "not_ready",
    "UnknownService": "service_not_found",
    "SlowBody": "request_timeout",
    "Cancelled": "cancelled",
    "BackendError": "internal_error",
    "EngineFailed": "engine_failed",
    "ReplicaLost": "replica_lost",
    "RetriesSpent": "retries_spent",
    "StoreUnavailable": "store_unavailable",
    "AccountUnavailable": "account_unavailable",
    "StoreFull": "store_full",
}
"""Clients switch on these: a change here breaks somebody. Repeated on purpose, not derived."""


def test_codes_are_the_ones_that_clients_know() -> None:
    assert {error.__name__: error.code for error in EVERY} == CODES


def test_no_two_errors_share_a_code_but_an_abstract_one_with_its_plainest_form() -> None:
    shared: dict[str, set[type[ServingError]]] = {}
    for error in EVERY:
        shared.setdefault(error.code, set()).add(error)
    repeated = {frozenset(group) for group in shared.values() if len(group) > 1}
    assert repeated == {frozenset({ServingError, BackendError}), frozenset({ClientError, InvalidRequest})}


@pytest.mark.parametrize("error", EVERY)
def test_code_and_type_are_spelled_for_machines(error: type[ServingError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.type.endswith("_error")


@pytest.mark.parametrize("error", EVERY)
def test_every_error_says_what_it_means(error: type[ServingError]) -> None:
    assert error.__doc__


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("error", EVERY)
def test_error_survives_the_trip_between_processes_with_every_field(error: type[ServingError], dumps: object) -> None:
    assert callable(dumps)
    for sent in (error("value 5; limit 4; send less", param="images[3]", retry_after_s=1.25), error("plain")):
        got = pickle.loads(dumps(sent))
        assert type(got) is error
        assert (got.message, got.param, got.retry_after_s) == (sent.message, sent.param, sent.retry_after_s)
        assert str(got) == sent.message
        assert got.args == sent.args
        assert (got.code, got.type) == (error.code, error.type)


@pytest.mark.parametrize("error", [error for error in EVERY if issubclass(error, Overloaded)])
def test_back_pressure_is_told_from_other_failures_by_its_class(error: type[ServingError]) -> None:
    assert error.type == "rate_limit_error"
    assert error("x", retry_after_s=2.0).retry_after_s == 2.0


def test_config_error_never_travels_to_a_client() -> None:
    assert not issubclass(ConfigError, ServingError)
