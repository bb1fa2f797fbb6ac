"""docs/api.md says what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
from grpc_health.v1 import health_pb2
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.front.grpc.health import MAX_WATCHES, SERVICES
from serving.front.status import TABLE
from serving.gateway.http import document as openapi_document
from serving.limits import MAX_SMALL_BYTES, MAX_TYPED_ELEMENTS, IngressLimits
from serving.media.limits import MediaLimits
from serving.tasks.images.jobs import JOB_FROM_S, MAX_JOB_IMAGES
from serving.tasks.infer.tensors import outputs_of
from tests.support.fake_service import make_card

PAGE = Path(__file__).parents[4] / "docs" / "api.md"
TEXT = PAGE.read_text()


NEVER_SENT = {"overloaded"}
"""The parent of the retryable errors is not raised itself."""


def error_table() -> str:
    rows = ["| code | type | HTTP | gRPC | retry | meaning |", "|---|---|---|---|---|---|"]
    seen = set(NEVER_SENT)
    for cls, status in sorted(TABLE.items(), key=lambda item: (item[1].http, item[0].code, len(item[0].__mro__))):
        if cls.code in seen:
            continue
        seen.add(cls.code)
        meaning = (cls.__doc__ or "").split("\n")[0]
        if cls.code == "internal_error":
            meaning = "A failure that is not the caller's."
        elif cls.code == "invalid_request":
            meaning = "Malformed body, field or tensor."
        retry = "yes" if status.retryable else ""
        rows.append(f"| `{cls.code}` | `{cls.type}` | {status.http} | `{status.grpc.name}` | {retry} | {meaning} |")
    return "\n".join(rows)


def limits_table() -> str:
    rows = ["| limit | default |", "|---|---|"]
    hidden = {"tiny_pixels", "tiny_bytes"}  # not limits: they choose where an image is decoded
    values = {
        field.name: getattr(limits, field.name)
        for limits in (MediaLimits(), IngressLimits())
        for field in fields(limits)
    }
    rows += [f"| `{name}` | {value:,} |" for name, value in values.items() if name not in hidden]
    return "\n".join(rows)


@pytest.mark.parametrize(("name", "table"), [("errors", error_table()), ("limits", limits_table())])
def test_table_is_the_one_in_the_code(name: str, table: str) -> None:
    match = re.search(rf"<!-- {name}: [^>]*-->\n(.*?)<!-- /{name} -->", TEXT, re.DOTALL)
    assert match is not None
    assert match[1].strip() == table, f"put this table into docs/api.md:\n{table}"


def test_every_error_code_is_documented() -> None:
    assert {cls.code for cls in TABLE if f"`{cls.code}`" not in TEXT} == NEVER_SENT


@pytest.mark.parametrize("path", openapi_document()["paths"])
def test_every_path_is_documented(path: str) -> None:
    for method in openapi_document()["paths"][path]:
        assert f"{method.upper()} {path}`" in TEXT or f"`{path}`" in TEXT


def test_every_rpc_is_documented() -> None:
    services = [
        vireo_pb2.DESCRIPTOR.services_by_name["Vireo"],
        oip.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    ]
    methods = {method.name for service in services for method in service.methods} - {"List"}
    assert {name for name in methods if f"`{name}`" not in TEXT} == set()


def test_numbers_and_names_in_the_text_are_those_of_the_code() -> None:
    assert f"at most {MAX_TYPED_ELEMENTS:,} elements" in TEXT
    assert f"At most {MAX_WATCHES} at a time" in TEXT
    assert f"take {JOB_FROM_S:g} s or more" in TEXT
    assert f"at most {MAX_JOB_IMAGES} pictures" in TEXT
    assert f"at most {IngressLimits().max_message_fields:,}\nfields" in TEXT
    assert f"everything else of {MAX_SMALL_BYTES >> 10} KiB" in TEXT
    assert f"`GenerateVideo` of {IngressLimits().max_prompt_bytes >> 20} MiB" in TEXT
    assert all(f"`{name}`" in TEXT for name in (*(name for name, _, _ in outputs_of(make_card())), *SERVICES[1:]))


EXAMPLES = re.findall(r"```json (\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_there_are_examples() -> None:
    assert {name for name, _ in EXAMPLES} >= {
        "ClassifyBody",
        "ClassifyAnswer",
        "ErrorAnswer",
        "InferBody",
        "InferAnswer",
    }


@pytest.mark.parametrize(("schema", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example_fits_its_schema(schema: str, example: str) -> None:
    components = openapi_document()["components"]
    validator = jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": components})
    assert not list(validator.iter_errors(json.loads(example)))
