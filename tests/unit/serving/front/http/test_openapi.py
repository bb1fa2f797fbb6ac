"""Every path answers what ``/openapi.json`` says of it, to the letter: real answers, whole, streamed and refused."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from models.contract import ExpertFacts
from models.io import ImageIO
from serving.delivery.job.experts import ExpertReport, PlacedFacts
from serving.front.auth import LOCAL_TENANT, Authenticator
from serving.gateway.http import ROUTES, document
from tests.support.chat_clients import CHAT_PATH, RESPONSES_PATH
from tests.support.clients import GOOD_PNG, FrontDoor, HttpReply, asgi, length_prefixed
from tests.support.fake_service import CHAT_MODEL, MODEL, FakeService, make_card, make_chat_card, make_image_card
from tests.support.fake_videos import VIDEO_MODEL, make_video_card
from tests.support.video_clients import Presence
from tests.unit.serving.front.test_settings import KNOBS

IMAGE = base64.b64encode(GOOD_PNG).decode()
JSON = {"content-type": "application/json"}
CHAT = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 2}
RESPONSE = {
    "input": [{"role": "user", "content": "hi"}],
    "instructions": "Be brief.",
    "max_output_tokens": 2,
    "include": ["message.output_text.logprobs"],
    "top_logprobs": 1,
    "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
}
TENSOR = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [IMAGE]}
VIDEO_ID, IMAGE_ID = "video_0001", "image_0001"
PAINTER, MENDER, TENSORS = "painter", "mender", "tensors"
IMAGE_JOB = {"model": MENDER, "image": IMAGE, "vireo": {"background": True}}
IMAGE_CARDS = (
    make_image_card(PAINTER, ImageIO(takes_prompt=True, is_seeded=True, size=(12, 8))),
    make_image_card(MENDER, ImageIO(takes_picture=True, max_side=256)),
)
EXPERTS = ExpertFacts(layers=2, experts=2, chosen=1, parameters=9, active_parameters=5)
MODEL_PATHS = ("", "/versions/1")
KINDS = ("system", "cuda")

Case = tuple[str, str, str, Any, dict[str, str]]
CASES: list[Case] = [
    ("POST", "/v1/classify", "/v1/classify", {"model": MODEL, "images": [IMAGE, "!"], "top_k": 2}, JSON),
    ("POST", CHAT_PATH, CHAT_PATH, CHAT, JSON),
    ("POST", CHAT_PATH, CHAT_PATH, CHAT | {"stream": True}, JSON),
    (
        "POST",
        CHAT_PATH,
        CHAT_PATH,
        CHAT | {"stream": True, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 1},
        JSON,
    ),
    ("POST", CHAT_PATH, CHAT_PATH, CHAT | {"logprobs": True, "top_logprobs": 2}, JSON),
    ("POST", RESPONSES_PATH, RESPONSES_PATH, RESPONSE, JSON),
    ("POST", RESPONSES_PATH, RESPONSES_PATH, RESPONSE | {"stream": True}, JSON),
    ("POST", "/v1/videos", "/v1/videos", {"prompt": "a ball", "user": "u"}, JSON),
    ("POST", "/v1/videos/sync", "/v1/videos/sync", {"prompt": "a ball"}, JSON),
    ("GET", "/v1/videos", "/v1/videos", None, {}),
    ("GET", "/v1/videos/{id}", f"/v1/videos/{VIDEO_ID}", None, {}),
    ("GET", "/v1/videos/{id}/content", f"/v1/videos/{VIDEO_ID}/content", None, {}),
    ("GET", "/v1/videos/{id}/content", f"/v1/videos/{VIDEO_ID}/content", None, {"range": "bytes=0-3"}),
    ("GET", "/v1/videos/{id}/events", f"/v1/videos/{VIDEO_ID}/events", None, {}),
    ("DELETE", "/v1/videos/{id}", f"/v1/videos/{VIDEO_ID}", None, {}),
    ("POST", "/v1/images/generations", "/v1/images/generations", {"model": PAINTER, "prompt": "a ball", "n": 2}, JSON),
    ("POST", "/v1/images/edits", "/v1/images/edits", {"model": MENDER, "image": IMAGE, "output_format": "webp"}, JSON),
    ("POST", "/v1/images/edits", "/v1/images/edits", {"model": MENDER, "image": IMAGE, "response_format": "url"}, JSON),
    ("POST", "/v1/images/edits", "/v1/images/edits", IMAGE_JOB, JSON),
    ("GET", "/v1/images/jobs", "/v1/images/jobs", None, {}),
    ("GET", "/v1/images/jobs/{id}", f"/v1/images/jobs/{IMAGE_ID}", None, {}),
    ("GET", "/v1/images/jobs/{id}/content", f"/v1/images/jobs/{IMAGE_ID}/content", None, {}),
    ("GET", "/v1/images/jobs/{id}/events", f"/v1/images/jobs/{IMAGE_ID}/events", None, {}),
    ("DELETE", "/v1/images/jobs/{id}", f"/v1/images/jobs/{IMAGE_ID}", None, {}),
    ("GET", "/v1/images/files/{name}", "/v1/images/files/0.png", None, {}),
    ("GET", "/v1/models", "/v1/models", None, {}),
    *[
        ("GET", "/v1/models/{model}", f"/v1/models/{model}", None, {})
        for model in (MODEL, CHAT_MODEL, VIDEO_MODEL, PAINTER, TENSORS)
    ],
    ("GET", "/v1/models/{model}/experts", f"/v1/models/{TENSORS}/experts", None, {}),
    ("GET", "/v1/budget", "/v1/budget", None, {}),
    ("GET", "/v1/budgets", "/v1/budgets", None, {}),
    ("GET", "/", "/", None, {}),
    ("GET", "/", "/", None, {"accept": "text/html"}),
    ("GET", "/docs", "/docs", None, {}),
    *[("GET", "/page/{name}", f"/page/{name}", None, {}) for name in ("app.js", "page.css", "icon.svg", "digit.png")],
    ("GET", "/v2", "/v2", None, {}),
    ("GET", "/v2/models/stats", "/v2/models/stats", None, {}),
    ("POST", "/v2/repository/index", "/v2/repository/index", {"ready": True}, JSON),
    *[("GET", f"/v2/{kind}sharedmemory/status", f"/v2/{kind}sharedmemory/status", None, {}) for kind in KINDS],
    *[
        ("GET", f"/v2/{kind}sharedmemory/region/{{region}}/status", f"/v2/{kind}sharedmemory/region/x/status", None, {})
        for kind in KINDS
    ],
    *[
        ("GET", path, path, None, {})
        for path in ("/v2/health/live", "/v2/health/ready", "/healthz", "/health", "/metrics", "/openapi.json")
    ],
]
for version, pattern in zip(MODEL_PATHS, ("", "/versions/{version}"), strict=True):
    template, real = f"/v2/models/{{model}}{pattern}", f"/v2/models/{MODEL}{version}"
    CASES += [
        ("GET", template, real, None, {}),
        ("GET", f"{template}/config", f"{real}/config", None, {}),
        ("GET", f"{template}/ready", f"{real}/ready", None, {}),
        ("GET", f"{template}/stats", f"{real}/stats", None, {}),
        ("POST", f"{template}/infer", f"{real}/infer", {"id": "x", "inputs": [TENSOR]}, JSON),
    ]
REFUSED: list[Case] = [
    (method, template, path, {"unknown": 1}, JSON) for method, template, path, body, _ in CASES if body
]
REFUSED += [
    ("GET", "/v1/videos/{id}/content", f"/v1/videos/{VIDEO_ID}/content", None, {"range": "bytes=99999999-"}),
    ("GET", "/v1/videos/{id}", "/v1/videos/none", None, {}),
    ("GET", "/v1/models/{model}/experts", f"/v1/models/{MODEL}/experts", None, {}),
    ("POST", "/v2/models/{model}/infer", "/v2/models/none/infer", {"inputs": [TENSOR]}, JSON),
]


@pytest.fixture
async def door() -> FrontDoor:

    service = FakeService(
        (make_card(), *IMAGE_CARDS, replace(make_card(TENSORS), tasks=("infer",), experts=EXPERTS, ranks=2)),
        chat_cards=(make_chat_card(),),
        video_cards=(make_video_card(),),
        is_fast=True,
    )
    loads = np.array([[3, 1], [2, 2]])
    placed = PlacedFacts(version=1, num_ranks=2, num_slots=2, moves=0, failed=0, rank_loads=(0.6, 0.4))
    counted = ExpertReport(slices=1, distinct=2.0, phases={"early": loads}, tenants={"ada": loads}, placed=placed)
    service.expert_reports = (counted,)
    made = FrontDoor(service, authenticator=Authenticator({}, True, [LOCAL_TENANT]))
    await made.post_json({"prompt": "a ball"}, "/v1/videos")
    await made.post_json({"model": MENDER, "image": IMAGE, "response_format": "url"}, "/v1/images/edits")
    await made.post_json(IMAGE_JOB, "/v1/images/edits")
    return made


def validate(schema: Any, value: Any) -> None:
    jsonschema.Draft202012Validator({**schema, "components": document()["components"]}).validate(value)


def check(reply: HttpReply, method: str, template: str) -> None:
    """Validate an answer against what is documented for its status and type."""
    described = document()["paths"][template][method.lower()]["responses"][str(reply.status)]["content"]
    kind = reply.headers["content-type"].partition(";")[0]
    assert kind in described, f"{kind} is not documented"
    if kind == "application/json":
        validate(described[kind]["schema"], reply.json)
    elif kind == "text/event-stream":
        item = described[kind]["schema"]["properties"]["data"]["contentSchema"]
        lines = [line.removeprefix("data: ") for line in reply.body.decode().split("\n") if line.startswith("data: ")]
        assert lines
        for line in lines:
            if line != "[DONE]":
                validate(item, json.loads(line))


async def sent(door: FrontDoor, case: Case) -> HttpReply:
    method, _, path, document, headers = case
    client = Presence(b"" if document is None else json.dumps(document).encode())
    return await asgi(door.app, method, path, headers=headers | {"content-length": ""}, receive=client.receive)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {case[2]} {str(case[3])[:40]} {case[4]}")
async def test_answer_is_the_documented_one(case: Case, door: FrontDoor) -> None:
    reply = await sent(door, case)
    assert reply.status in (200, 202, 206)
    check(reply, case[0], case[1])


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[0]} {case[2]} {case[4]}")
async def test_refusal_is_the_documented_one(case: Case, door: FrontDoor) -> None:
    reply = await sent(door, case)
    assert reply.status in (400, 404, 416)
    check(reply, case[0], case[1])


async def test_binary_tensors_are_the_documented_ones(door: FrontDoor) -> None:
    raw = length_prefixed([GOOD_PNG])
    tensor = {**TENSOR, "parameters": {"binary_data_size": len(raw)}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    path = f"/v2/models/{MODEL}/infer"
    reply = await asgi(door.app, "POST", path, head + raw, {"inference-header-content-length": str(len(head))})
    check(reply, "POST", "/v2/models/{model}/infer")
    length = int(reply.headers["inference-header-content-length"])
    validate({"$ref": "#/components/schemas/InferAnswer"}, json.loads(reply.body[:length]))


async def test_settings_of_a_model_are_documented() -> None:
    door = FrontDoor(FakeService((replace(make_card(), knobs=KNOBS),)))
    check(await asgi(door.app, "GET", f"/v1/models/{MODEL}"), "GET", "/v1/models/{model}")


def test_every_route_is_tried() -> None:
    tried = {(method, template) for method, template, *_ in CASES}
    assert {(route.method, route.path) for route in ROUTES} | {("GET", "/metrics")} == tried


def test_objects_are_closed() -> None:
    """What is not documented fails the tests above. Which settings a clip has, its model says."""
    schemas = document()["components"]["schemas"]
    open_ones = {
        name for name, schema in schemas.items() if "properties" in schema and schema.get("additionalProperties", True)
    }
    assert open_ones == {"VideoSettingsAnswer"}


# -- for generators of clients ---------------------------------------------------------------------------------------


def operations() -> dict[str, dict[str, Any]]:
    """Each by its method and path."""
    return {
        f"{method.upper()} {path}": operation
        for path, item in document()["paths"].items()
        for method, operation in item.items()
    }


def test_document_is_openapi() -> None:
    assert document()["openapi"] == "3.1.0"
    OPENAPI_31_VALIDATOR.validate(document())


def test_every_operation_has_a_name_of_its_own_and_one_tag() -> None:
    names = [operation["operationId"] for operation in operations().values()]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    tags = {tag["name"]: tag["description"] for tag in document()["tags"]}
    assert all(tags.values())
    used = [operation["tags"] for operation in operations().values()]
    assert {len(each) for each in used} == {1}
    assert {tag for (tag,) in used} == tags.keys()
    assert all(operation["summary"] for operation in operations().values())


def test_links_lead_to_operations_that_take_what_they_give() -> None:
    by_name = {operation["operationId"]: operation for operation in operations().values()}
    links = [
        link
        for operation in by_name.values()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert len(links) >= 12
    for link in links:
        taken = {parameter["name"] for parameter in by_name[link["operationId"]]["parameters"]}
        assert link["parameters"].keys() <= taken


def test_whatever_looks_at_keys_says_so() -> None:
    open_ones = {name for name, operation in operations().items() if not operation["security"]}
    assert open_ones == {f"{route.method} {route.path}" for route in ROUTES if not route.needs_key}
    schemes = document()["components"]["securitySchemes"].keys()
    assert {name for operation in operations().values() for way in operation["security"] for name in way} == schemes


# -- bounds ----------------------------------------------------------------------------------------------------------

_BOUNDS = {
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "string": {"maxLength"},
    "array": {"maxItems"},
}
_AS_GOOD = {
    "minimum": {"exclusiveMinimum"},
    "maximum": {"exclusiveMaximum"},
    "maxLength": {"pattern", "enum", "const", "contentMediaType"},
}


def unbounded(schema: Any, where: str, seen: tuple[str, ...] = ()) -> Iterator[str]:
    """Names of the places that a caller fills and that say no bound."""
    if not isinstance(schema, dict):
        return
    if name := schema.get("$ref", "").rpartition("/")[2]:
        if name not in seen:
            yield from unbounded(document()["components"]["schemas"][name], where, (*seen, name))
        return
    kinds = schema.get("type", ())
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        for bound in _BOUNDS.get(kind, ()):
            if not schema.keys() & ({bound, "enum", "const"} | _AS_GOOD.get(bound, set())):
                yield f"{where}: {kind} without {bound}"
    for word in ("anyOf", "oneOf", "allOf"):
        for inner in schema.get(word, ()):
            yield from unbounded(inner, where, seen)
    yield from unbounded(schema.get("items"), f"{where}[]", seen)
    yield from unbounded(schema.get("additionalProperties"), f"{where}.*", seen)
    for name, inner in {**schema.get("properties", {}), **schema.get("patternProperties", {})}.items():
        yield from unbounded(inner, f"{where}.{name}", seen)


@pytest.mark.parametrize("name", sorted(operations()))
def test_everything_that_a_caller_fills_has_its_bounds(name: str) -> None:
    operation = operations()[name]
    found = [each for taken in operation["parameters"] for each in unbounded(taken["schema"], taken["name"])]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        found += unbounded(content["schema"], media_type)
    assert found == []


Path = tuple[str | int, ...]
"""To a place in a document."""
EXAMPLES: dict[str, dict[str, Any]] = {
    name: next(body for method, path, _, body, _ in CASES if (method, path) == (name.split()[0], name.split()[1]))
    for name, operation in operations().items()
    if "application/json" in operation.get("requestBody", {}).get("content", {})
}
_PARTS = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": f"data:;base64,{IMAGE}"}}]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
EXAMPLES["POST /v1/chat/completions"] = CHAT | {
    "messages": [{"role": "user", "content": _PARTS}],
    "response_format": _FORMAT,
    "metadata": {"a": "b"},
}
FEW_CHARS = 1 << 20
"""Longer texts are not sent here: images have bounds of their own, which have tests of their own."""


def leaves(schema: Any, where: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Each place of a body, and a schema of it without a choice; of lists and of parts of a message the first."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        yield from leaves(document()["components"]["schemas"][name], where)
        return
    for inner in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from leaves(inner, where)
    if "type" in schema:
        yield where, schema
    if schema.get("type") == "array":
        yield from leaves(schema["items"], (*where, 0))
    for name, inner in schema.get("properties", {}).items():
        yield from leaves(inner, (*where, name))


def beyond(schema: dict[str, Any], there: Any) -> Iterator[Any]:
    """Values that are just outside the bounds. ``there``: a good one, or None."""
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "exclusiveMinimum" in schema:
        yield schema["exclusiveMinimum"]
    if schema.get("maxLength", FEW_CHARS) < FEW_CHARS:
        yield "a" * (schema["maxLength"] + 1)
    if schema.get("minLength"):
        yield ""
    if "pattern" in schema:
        yield "?"
    if "enum" in schema:
        yield "no such"
    if "maxItems" in schema:
        item = there[0] if isinstance(there, list) else "a"
        yield [item] * (schema["maxItems"] + 1)
    if schema.get("minItems"):
        yield []
    if "maxProperties" in schema:
        value = next(iter(there.values())) if there else 0
        yield {str(index): value for index in range(schema["maxProperties"] + 1)}


def at(document: Any, where: Path) -> Any:
    """What is there, or None."""
    for step in where:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def put(document: Any, where: Path, value: Any) -> Any:
    """A copy of a document with a value at a place."""
    if not where:
        return value
    step, *rest = where
    if isinstance(step, int):
        items = list(document) if isinstance(document, list) else []
        return [put(items[0] if items else None, tuple(rest), value), *items[1:]]
    members = document if isinstance(document, dict) else {}
    return {**members, step: put(members.get(step), tuple(rest), value)}


UNBOUNDED = {"POST /v2/repository/index"}
"""A boolean is all that it takes."""


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - UNBOUNDED))
async def test_bounds_are_those_that_are_enforced(name: str, door: FrontDoor) -> None:
    """What is just beyond one is refused, and says where; a number that is just within it is not for that reason."""
    method, template = name.split()
    schema = operations()[name]["requestBody"]["content"]["application/json"]["schema"]
    path = template.format(model=MODEL, version="1")
    headers = JSON
    num_tried = 0
    for where, leaf in leaves(schema):
        example = EXAMPLES[name]
        for value in beyond(leaf, at(example, where)):
            reply = await sent(door, (method, template, path, put(example, where, value), headers))
            what = f"{where}: {str(value)[:40]}"
            assert reply.status in (400, 413, 415), what
            said = json.dumps(reply.json)
            assert any(str(step) in said for step in where), f"{what}: {said}"
            num_tried += 1
        for bound in ("minimum", "maximum"):
            if bound in leaf:
                reply = await sent(door, (method, template, path, put(example, where, leaf[bound]), headers))
                assert reply.status == 200 or "must be" not in reply.body.decode(), f"{where}: {reply.body[:300]!r}"
    assert num_tried >= 10
