"""``POST /v1/responses``: its fields, its events and its answers. What it shares with chat is tried there."""

from __future__ import annotations

import asyncio
import json
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
from openai.types import responses as openai_types
from openai.types.responses import response_create_params

from serving.domain import ImagePart
from serving.errors import ReplicaLost
from serving.front.auth import Authenticator
from serving.front.http.fields import Fate, Field, Fields
from serving.gateway.http import document as openapi_document
from serving.limits import IngressLimits
from serving.tasks.chat.domain import Message, Role, TextPart
from serving.tasks.responses import fields as tables
from serving.tasks.responses.schemas import (
    EventOptionsBody,
    ItemBody,
    ItemImageBody,
    ItemTextBody,
    ResponseBody,
    TextConfigBody,
    TextFormatBody,
)
from tests.support.chat_clients import RESPONSES_PATH, Line, data_url, post_chat, response_events_of
from tests.support.clients import GOOD_PNG, FrontDoor, HttpReply, asgi
from tests.support.fake_service import CHAT_MODEL, WORDS, FakeService
from tests.support.waiting import until

TEXT = "".join(WORDS)
BASE = {"model": CHAT_MODEL, "input": "hi"}
ASKING = {"a": ["b"]}
"""No field that is not offered has this among its values that ask for nothing."""
PART = "input[0].content[0]."
SCOPES: dict[str, tuple[Fields, type, str]] = {
    "body": (tables.BODY, ResponseBody, ""),
    "stream_options": (tables.STREAM_OPTIONS, EventOptionsBody, "stream_options."),
    "text": (tables.TEXT_CONFIG, TextConfigBody, "text."),
    "format": (tables.FORMAT, TextFormatBody, "text.format."),
    "message": (tables.MESSAGE, ItemBody, "input[0]."),
    "text part": (tables.TEXT, ItemTextBody, PART),
    "image part": (tables.IMAGE, ItemImageBody, PART),
}
ROWS = [(scope, field) for scope, (fields, _, _) in SCOPES.items() for field in fields.values()]


def item(*parts: Any, role: str = "user", **members: Any) -> dict[str, Any]:
    return {"role": role, "content": list(parts)} | members


def said(text: str, **members: Any) -> dict[str, Any]:
    return {"type": "input_text", "text": text} | members


def seen(**members: Any) -> dict[str, Any]:
    return {"type": "input_image", "image_url": data_url(GOOD_PNG)} | members


def body_with(scope: str, name: str, value: Any) -> dict[str, Any]:
    """A body with one field more in one of its objects."""
    more = {name: value}
    changes: dict[str, dict[str, Any]] = {
        "body": more,
        "stream_options": {"stream_options": more},
        "text": {"text": more},
        "format": {"text": {"format": {"type": "json_schema", "name": "s", "schema": {}} | more}},
        "message": {"input": [item(said("x"), **more)]},
        "text part": {"input": [item(said("x", **more))]},
        "image part": {"input": [item(seen(**more))]},
    }
    return BASE | changes[scope]


async def ask(document: Any, door: FrontDoor | None = None) -> HttpReply:
    return await post_chat(door or FrontDoor(), document, RESPONSES_PATH)


def id_of(value: Any) -> str | None:
    return value.name if isinstance(value, Field) else value


# -- the table of fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].fate is Fate.REFUSED], ids=id_of)
async def test_field_that_is_not_offered_passes_where_it_asks_for_nothing(scope: str, field: Field) -> None:
    reply = await ask(body_with(scope, field.name, ASKING))
    assert (reply.status, reply.error["code"]) == (400, "unsupported_field")
    assert reply.error["param"] == SCOPES[scope][2] + field.name
    assert field.why in reply.error["message"]
    for harmless in (None, *field.harmless):
        assert (await ask(body_with(scope, field.name, harmless))).status == 200


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].fate is Fate.PASSES], ids=id_of)
async def test_field_that_asks_for_nothing_here_passes_whatever_it_says(scope: str, field: Field) -> None:
    for value in (None, ASKING, True, "x"):
        assert (await ask(body_with(scope, field.name, value))).status == 200


@pytest.mark.parametrize("scope", SCOPES)
async def test_field_that_nobody_has_is_unknown(scope: str) -> None:
    reply = await ask(body_with(scope, "temprature", None))
    assert (reply.status, reply.error["code"]) == (400, "unknown_field")
    assert reply.error["param"] == SCOPES[scope][2] + "temprature"


@pytest.mark.parametrize("name", sorted(name for name, f in tables.BODY.items() if f.fate is Fate.USED))
async def test_used_field_may_be_null_where_it_may_be_absent(name: str) -> None:
    assert (await ask(BASE | {name: None})).status == (400 if name == "input" else 200)


def test_every_field_of_the_official_client_is_in_the_table() -> None:
    assert set(get_type_hints(response_create_params.ResponseCreateParamsStreaming)) <= set(SCOPES["body"][0])
    assert set(get_type_hints(response_create_params.StreamOptions)) <= set(SCOPES["stream_options"][0])
    config = get_type_hints(openai_types.ResponseTextConfigParam)
    assert set(config) <= set(SCOPES["text"][0])
    assert {name for kind in get_args(config["format"]) for name in get_type_hints(kind)} <= set(SCOPES["format"][0])
    messages = (openai_types.EasyInputMessageParam, openai_types.ResponseOutputMessageParam)
    assert {name for kind in messages for name in get_type_hints(kind)} <= set(SCOPES["message"][0])
    texts = (openai_types.ResponseInputTextParam, openai_types.ResponseOutputTextParam)
    assert {name for kind in texts for name in get_type_hints(kind)} <= set(SCOPES["text part"][0])
    assert set(get_type_hints(openai_types.ResponseInputImageParam)) <= set(SCOPES["image part"][0])


def test_every_field_of_the_installed_vllm_is_in_the_table() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.openai.responses.protocol")
    assert set(protocol.ResponsesRequest.model_fields) <= set(SCOPES["body"][0])


@pytest.mark.parametrize("scope", SCOPES)
def test_documented_members_are_those_that_are_read(scope: str) -> None:
    fields, model, _ = SCOPES[scope]
    read = {name for name, field in fields.items() if field.fate in (Fate.USED, Fate.CHECKED)}
    assert {field.alias or name for name, field in model.model_fields.items()} == read


def is_valid(document: Any) -> bool:
    components = openapi_document()["components"]
    schema = {"$ref": "#/components/schemas/ResponseBody", "components": components}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(document))


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].why], ids=id_of)
def test_openapi_document_takes_what_is_taken(scope: str, field: Field) -> None:
    assert all(is_valid(body_with(scope, field.name, value)) for value in (None, *field.harmless))
    assert is_valid(body_with(scope, field.name, ASKING)) is (field.fate is Fate.PASSES)


# -- what is read ----------------------------------------------------------------------------------------------------


async def test_text_alone_is_what_the_user_says() -> None:
    door = FrontDoor()
    await ask({"input": "Read the text."}, door)
    assert door.service.chats[0].messages == (Message(Role.USER, (TextPart("Read the text."),)),)


async def test_instructions_and_what_a_developer_says_are_one_system_message() -> None:
    door = FrontDoor()
    turns = [item(said("Answer in English."), role="developer", type="message"), item(said("hi"))]
    await ask({"instructions": "Be brief.", "input": turns}, door)
    system, user = door.service.chats[0].messages
    assert (system.role, user.role) == (Role.SYSTEM, Role.USER)
    assert (
        "".join(part.text for part in system.parts if isinstance(part, TextPart)) == "Be brief.\n\nAnswer in English."
    )


async def test_detail_low_is_one_tile() -> None:
    door = FrontDoor()
    await ask(BASE | {"input": [item(*(seen(detail=detail) for detail in ("low", "auto", "original")), seen())]}, door)
    images = [part for part in door.service.chats[0].messages[0].parts if isinstance(part, ImagePart)]
    assert [image.is_coarse for image in images] == [True, False, False, False]


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"input": []}, "invalid_request", "input"),
        ({"input": 5}, "invalid_request", "input"),
        ({"input": [5]}, "invalid_request", "input[0]"),
        ({"input": [item(said("x"), role="judge")]}, "invalid_request", "input[0].role"),
        ({"input": [item()]}, "invalid_request", "input[0].content"),
        ({"input": [item({"type": "input_file", "file_id": "f"})]}, "unsupported_field", f"{PART}type"),
        ({"input": [item({"type": "refusal", "refusal": "no"}, role="assistant")]}, "unsupported_field", f"{PART}type"),
        ({"input": [item({"type": "input_image", "file_id": "f"})]}, "unsupported_field", f"{PART}file_id"),
        ({"input": [item({"type": "input_image"})]}, "invalid_request", f"{PART}image_url"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "unsupported_field", "input[0].type"),
        ({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}, "unsupported_field", "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "unsupported_field", "input[0].type"),
        ({"instructions": ["x"]}, "invalid_request", "instructions"),
        ({"text": {"format": {}}}, "invalid_request", "text.format.type"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "invalid_request", "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "s"}}}, "invalid_request", "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "s s", "schema": {}}}}, "invalid_request",
         "text.format.name"),
        ({"include": ["everything"]}, "invalid_request", "include"),
        ({"include": [{}]}, "invalid_request", "include"),
        ({"include": ["message.output_text.logprobs"]}, "feature_not_allowed", "include"),
        ({"metadata": {"a": 1}}, "invalid_request", "metadata.a"),
        ({"max_output_tokens": 0}, "invalid_request", "max_output_tokens"),
        ({"store": True, "previous_response_id": "resp_1"}, "unsupported_field", "previous_response_id"),
        ({"input": [item(said("x"))] * 3}, "invalid_request", "input"),
    ],
)  # fmt: skip
async def test_wrong_field_is_refused_by_name(body: dict[str, Any], code: str, param: str) -> None:
    door = FrontDoor(authenticator=Authenticator({}, True), limits=IngressLimits(max_messages=2))
    reply = await ask(BASE | body, door)
    assert (reply.error["code"], reply.error["param"]) == (code, param)
    assert not door.service.chats


async def test_top_logprobs_alone_says_what_it_goes_with() -> None:
    door = FrontDoor(authenticator=Authenticator({}, True, ["local"]))
    reply = await ask(BASE | {"top_logprobs": 2}, door)
    assert "include: ['message.output_text.logprobs']" in reply.error["message"]
    included = ["reasoning.encrypted_content", "message.output_text.logprobs"]
    assert (await ask(BASE | {"top_logprobs": 2, "include": included}, door)).status == 200
    assert door.service.chats[0].sampling.logprobs == 2


async def test_body_of_a_coding_agent_passes_but_for_its_tools() -> None:
    """As Codex sends it."""
    body = {
        "model": CHAT_MODEL,
        "instructions": "You are an agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [said("<permissions>")]},
            {"type": "message", "role": "user", "content": [said("<environment>")]},
            {"type": "message", "role": "user", "content": [said("Read it."), seen(detail="high")]},
        ],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": None,
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199c7",
        "text": {"verbosity": "medium"},
    }
    door = FrontDoor()
    reply = await ask(body, door)
    assert response_events_of(reply.body)[-1]["type"] == "response.completed"
    roles = [message.role for message in door.service.chats[0].messages]
    assert roles == [Role.SYSTEM, Role.USER, Role.USER]
    refused = await ask(body | {"tools": [{"type": "function", "name": "shell"}]})
    assert "no model here calls tools" in refused.error["message"]


async def test_no_answer_can_be_fetched_later() -> None:
    reply = await asgi(FrontDoor().app, "GET", f"{RESPONSES_PATH}/resp_1")
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert "no answer is kept" in reply.error["message"]


# -- what is answered ------------------------------------------------------------------------------------------------


async def test_answer_repeats_what_was_asked_and_says_that_nothing_is_kept() -> None:
    form = {"type": "json_schema", "name": "s", "schema": {"type": "object"}, "strict": True}
    asked = {"instructions": "Be brief.", "metadata": {"a": "b"}, "store": True, "temperature": 0.5, "top_p": 0.9,
             "max_output_tokens": 9, "parallel_tool_calls": False, "text": {"format": form}}  # fmt: skip
    answer = (await ask(BASE | asked)).json
    assert {name: answer[name] for name in asked} == asked | {
        "store": False,
        "text": {"format": form, "verbosity": "medium"},
    }
    assert answer["id"].startswith("resp_")
    assert (answer["status"], answer["error"], answer["incomplete_details"]) == ("completed", None, None)
    assert (answer["output"][0]["status"], answer["output"][0]["content"][0]["text"]) == ("completed", TEXT)


async def test_schema_is_repeated_whatever_numbers_it_holds() -> None:
    schema = {"type": "integer", "maximum": 10**30, "title": "größe"}
    form = {"type": "json_schema", "name": "s", "schema": schema}
    assert json.loads((await ask(BASE | {"text": {"format": form}})).body)["text"]["format"] == form


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"metadata": {"a": "\ud800"}}, "metadata.a"),
        ({"metadata": {"\ud800": "a"}}, "metadata."),
        ({"user": "\ud800"}, "user"),
        ({"instructions": "\ud800"}, "instructions"),
        ({"text": {"format": {"type": "json_schema", "name": "s", "schema": {}, "description": "\ud800"}}},
         "text.format.description"),
    ],
)  # fmt: skip
async def test_half_a_character_is_refused_and_not_repeated(body: dict[str, Any], param: str) -> None:
    reply = await ask(BASE | body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_request")
    assert reply.error["param"].startswith(param)


async def test_answer_that_is_cut_off_is_incomplete() -> None:
    answer = (await ask(BASE | {"max_output_tokens": 2})).json
    assert (answer["status"], answer["output"][0]["status"]) == ("incomplete", "incomplete")
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


OPENED = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
DELTA = "response.output_text.delta"
CLOSED = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


@pytest.mark.parametrize(("most", "end"), [(9, "completed"), (2, "incomplete")])
async def test_events_come_in_order_and_add_up(most: int, end: str) -> None:
    body = BASE | {"stream": True, "max_output_tokens": most}
    reply = await ask(body)
    events = response_events_of(reply.body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    text = "".join(WORDS[:most])
    kinds = [event["type"] for event in events]
    num_deltas = kinds.count(DELTA)
    assert kinds == [*OPENED, *[DELTA] * num_deltas, *CLOSED, f"response.{end}"]
    assert num_deltas
    created, last = events[0]["response"], events[-1]["response"]
    assert (created["status"], created["output"], created["usage"], created["vireo"]) == ("in_progress", [], None, None)
    assert (last["id"], last["status"]) == (created["id"], end)
    assert events[2]["item"]["content"] == []
    assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}
    assert events[-4]["text"] == events[-3]["part"]["text"] == text
    assert events[-2]["item"] == last["output"][0]
    whole = (await ask(body | {"stream": False})).json
    for one in (whole, last):
        one["id"] = one["output"][0]["id"] = one["created_at"] = 0
    assert last == whole


async def test_stream_of_no_text_has_all_events_but_deltas() -> None:
    reply = await ask(BASE | {"stream": True}, FrontDoor(FakeService(words=())))
    assert [event["type"] for event in response_events_of(reply.body)] == [*OPENED, *CLOSED, "response.completed"]


async def test_stream_that_breaks_off_says_so_twice() -> None:
    door = FrontDoor(FakeService(chat_errors={2: ReplicaLost("the replica died")}))
    events = response_events_of((await ask(BASE | {"stream": True}, door)).body)
    error, failed = events[-2:]
    assert [event["type"] for event in events] == [*OPENED, DELTA, "error", "response.failed"]
    assert (error["code"], error["error"]["code"], error["message"]) == ("replica_lost",) * 2 + ("the replica died",)
    answer = failed["response"]
    assert (answer["status"], answer["error"]["code"], answer["usage"]) == ("failed", "replica_lost", None)
    assert (answer["output"][0]["status"], answer["output"][0]["content"][0]["text"]) == (
        "incomplete",
        "".join(WORDS[:2]),
    )
    assert door.calls.finished[0].outcome == "replica_lost"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_client_that_leaves_ends_the_work(is_streamed: bool) -> None:
    gate = asyncio.Event()
    door = FrontDoor(FakeService(chat_gates={2: gate}))
    line = Line(b'{"input": "hi", "stream": %s}' % (b"true" if is_streamed else b"false"), path=RESPONSES_PATH)
    running = asyncio.create_task(line.run(door.app))
    await (line.until(b"delta") if is_streamed else door.service.entered.wait())
    line.left.set()
    await running
    await until(lambda: not door.service.chats_open)
    assert door.service.chats_cut == 1


async def test_silence_is_broken_by_comments_before_the_first_event() -> None:
    gate = asyncio.Event()
    door = FrontDoor(FakeService(chat_gates={0: gate}), limits=IngressLimits(keep_alive_s=0.01))
    line = Line(b'{"input": "hi", "stream": true}', path=RESPONSES_PATH)
    running = asyncio.create_task(line.run(door.app))
    await line.until(b": keep-alive")
    gate.set()
    await running
    assert response_events_of(line.body)[0]["type"] == "response.created"
