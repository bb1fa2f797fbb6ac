"""Jobs made, looked at, watched and removed in any order, along the links of the OpenAPI document (schemathesis).

A few steps at the front door with a fake behind it; `make fuzz` does the same to a running system, for longer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ensure_resource_availability,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)

from serving.front.auth import Authenticator
from tests.support.clients import FrontDoor
from tests.support.fake_service import FakeService
from tests.support.fake_videos import make_video_card

KEY = "key-of-ada"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    use_after_free,
    ensure_resource_availability,
]


def test_jobs_keep_to_the_document_whatever_is_asked_of_them() -> None:
    service = FakeService(video_cards=(make_video_card(),), is_fast=True)
    keys = {"ada": hashlib.sha256(KEY.encode()).hexdigest()}
    door = FrontDoor(service, authenticator=Authenticator(keys, False))
    schema = schemathesis.openapi.from_asgi("/openapi.json", door.app)
    schema.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])

    @schema.hook
    def map_body(context: Any, body: Any) -> Any:
        """Ask the models that are there, and for clips of words, as theirs are; nearly every other name is none."""
        if not isinstance(body, dict):
            return body
        asked = {name: value for name, value in body.items() if name not in ("model", "input_reference")}
        return {**asked, "prompt": asked.get("prompt") or "a ball"}

    answered: Counter[str] = Counter()
    jobs = schema.include(path_regex="^/v1/videos").exclude(path="/v1/videos/sync")

    class Steps(jobs.as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"headers": {"x-api-key": KEY}}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            answered[f"{case.operation.label}: {response.status_code}"] += 1
            case.validate_response(response, checks=CHECKS, headers={"x-api-key": KEY})

    Steps.run(
        settings=settings(
            max_examples=12,
            stateful_step_count=6,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
    )
    assert answered["POST /v1/videos: 200"] >= 1, answered
    # Ids differ from run to run, and with them the steps: which of the links are followed is not known beforehand.
    assert sum(count for label, count in answered.items() if "{id}" in label and label.endswith(": 200")) >= 3, answered
