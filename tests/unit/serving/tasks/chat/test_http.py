"""``POST /v1/chat/completions``: every field, the shapes of answers and streams, clients that leave."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import jsonschema
import pytest

from serving.domain import ImagePart
from serving.errors import EngineFailed, ReplicaLost
from serving.front.auth import Authenticator
from serving.front.front import clean
from serving.gateway.http import document as openapi_document
from serving.limits import IngressLimits
from serving.tasks.chat.domain import Role, TextPart
from tests.support.chat_clients import (
    Chat,
    Line,
    data_url,
    document_of,
    events_of,
    image_part,
    post_chat,
)
from tests.support.clients import GOOD_PNG, FrontDoor, HttpReply
from tests.support.fake_service import CHAT_MODEL, WORDS, FakeService
from tests.support.waiting import until

TEXT = "".join(WORDS)
BODY = document_of(Chat())
BAD, UNKNOWN, UNSUPPORTED = "invalid_request", "unknown_field", "unsupported_field"
IMAGE = image_part(data_url(GOOD_PNG))


def check(schema: str, document: Any) -> None:
    components = openapi_document()["components"]
    jsonschema.validate(document, {"$ref": f"#/components/schemas/{schema}", "components": components})


def user(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def message(**members: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x"} | members]}


async def ask(document: Any, door: FrontDoor | None = None, **headers: str) -> HttpReply:
    return await post_chat(door or FrontDoor(), document, **headers)


# -- fields ----------------------------------------------------------------------------------------------------------

FORMAT = "response_format"
SCHEMA = {"name": "s", "schema": {}}


def format_of(**members: Any) -> dict[str, Any]:
    return {FORMAT: {"type": "json_schema", "json_schema": SCHEMA | members}}


WRONG: list[tuple[str, Any, str, str]] = [
    ("unknown", {"temprature": 1}, UNKNOWN, "temprature"),
    ("unknown_null", {"temprature": None}, UNKNOWN, "temprature"),
    ("role_number", message(role=1), BAD, "messages[0].role"),
    ("role_missing", {"messages": [{"content": "x"}]}, BAD, "messages[0].role"),
    ("role_tool", message(role="tool"), UNSUPPORTED, "messages[0].role"),
    ("content_missing", {"messages": [{"role": "user"}]}, BAD, "messages[0].content"),
    ("content_null", message(content=None), BAD, "messages[0].content"),
    ("content_number", message(content=1), BAD, "messages[0].content"),
    ("content_empty_list", message(content=[]), BAD, "messages[0].content"),
    ("name_number", message(name=1), BAD, "messages[0].name"),
    ("name_long", message(name="x" * 513), BAD, "messages[0].name"),
    ("message_unknown", message(weight=1), UNKNOWN, "messages[0].weight"),
    ("message_list", {"messages": [[]]}, BAD, "messages[0]"),
    ("messages_object", {"messages": {}}, BAD, "messages"),
    ("messages_missing", {"messages": None}, BAD, "messages"),
    ("part_text", user("x"), BAD, "messages[0].content[0]"),
    ("part_unknown", user({"type": "text", "text": "x", "cache_control": 1}), UNKNOWN,
     "messages[0].content[0].cache_control"),
    ("part_audio", user({"type": "input_audio", "input_audio": {}}), UNSUPPORTED, "messages[0].content[0].type"),
    ("part_video", user({"type": "video_url", "video_url": {}}), UNSUPPORTED, "messages[0].content[0].type"),
    ("part_embeds", user({"type": "image_embeds", "image_embeds": ""}), UNSUPPORTED, "messages[0].content[0].type"),
    ("part_file", user({"type": "file", "file": {}}), UNSUPPORTED, "messages[0].content[0].type"),
    ("part_no_type", user({"text": "x"}), BAD, "messages[0].content[0].type"),
    ("part_no_text", user({"type": "text"}), BAD, "messages[0].content[0].text"),
    ("part_uuid", user(IMAGE | {"uuid": "a"}), UNSUPPORTED, "messages[0].content[0].uuid"),
    ("text_uuid", user({"type": "text", "text": "x", "uuid": "a"}), UNSUPPORTED, "messages[0].content[0].uuid"),
    ("image_uuid", user(image_part(data_url(GOOD_PNG), uuid="a")), UNSUPPORTED,
     "messages[0].content[0].image_url.uuid"),
    ("image_string", user({"type": "image_url", "image_url": data_url(GOOD_PNG)}), BAD,
     "messages[0].content[0].image_url"),
    ("image_no_url", user({"type": "image_url", "image_url": {}}), BAD, "messages[0].content[0].image_url.url"),
    ("image_detail", user(image_part(data_url(GOOD_PNG), detail="huge")), BAD,
     "messages[0].content[0].image_url.detail"),
    ("image_unknown", user(image_part(data_url(GOOD_PNG), size=1)), UNKNOWN, "messages[0].content[0].image_url.size"),
    ("data_empty", user(image_part("data:image/png;base64,")), "invalid_image", "messages[0].content[0]"),
    ("data_head", user(image_part("data:" + "x" * 300 + ",AAAA")), "invalid_image", "messages[0].content[0]"),
    ("data_comma", user(image_part("data:image/png;base64")), "invalid_image", "messages[0].content[0]"),
    ("data_space", user(image_part("data:image/png;base64, AAAA")), "invalid_image", "messages[0].content[0]"),
    ("data_url_alphabet", user(image_part("data:image/png;base64,_-AA")), "invalid_image", "messages[0].content[0]"),
    ("data_padding", user(image_part("data:image/png;base64,AAAAA")), "invalid_image", "messages[0].content[0]"),
    ("data_wide", user(image_part("data:image/png;base64,AAAé")), "invalid_image", "messages[0].content[0]"),
    ("data_large_broken", user(image_part("data:image/png;base64," + "A" * 600_000 + "!AAA")), "invalid_image",
     "messages[0].content[0]"),
    ("data_large_padded", user(image_part("data:image/png;base64," + "A" * 9_998 + "==" + "AAAA" * 99_999)),
     "invalid_image", "messages[0].content[0]"),
    ("surrogate", message(content="\ud83d"), BAD, "messages[0].content"),
    ("surrogate_stop", {"stop": ["\ud83d"]}, BAD, "stop"),
    ("stream_text", {"stream": "yes"}, BAD, "stream"),
    ("stream_number", {"stream": 1}, BAD, "stream"),
    ("options_without_stream", {"stream_options": {"include_usage": True}}, BAD, "stream_options"),
    ("options_list", {"stream": True, "stream_options": []}, BAD, "stream_options"),
    ("options_unknown", {"stream": True, "stream_options": {"chunk": 1}}, UNKNOWN, "stream_options.chunk"),
    ("options_padding", {"stream": True, "stream_options": {"include_obfuscation": True}}, UNSUPPORTED,
     "stream_options.include_obfuscation"),
    ("options_counts", {"stream": True, "stream_options": {"continuous_usage_stats": "yes"}}, BAD,
     "stream_options.continuous_usage_stats"),
    ("options_usage", {"stream": True, "stream_options": {"include_usage": 1}}, BAD, "stream_options.include_usage"),
    ("two_limits", {"max_tokens": 5, "max_completion_tokens": 6}, BAD, "max_completion_tokens"),
    ("max_completion_tokens", {"max_completion_tokens": 0}, BAD, "max_completion_tokens"),
    ("max_tokens_float", {"max_tokens": 5.0}, BAD, "max_tokens"),
    ("max_tokens_bool", {"max_tokens": True}, BAD, "max_tokens"),
    ("max_tokens_huge", {"max_tokens": 10**400}, BAD, "max_tokens"),
    ("temperature_text", {"temperature": "1"}, BAD, "temperature"),
    ("temperature_bool", {"temperature": True}, BAD, "temperature"),
    ("temperature_huge", {"temperature": 10**400}, BAD, "temperature"),
    ("temperature_nan", {"temperature": math.nan}, BAD, "temperature"),
    ("stop_number", {"stop": 1}, BAD, "stop"),
    ("stop_numbers", {"stop": [1]}, BAD, "stop"),
    ("stop_null", {"stop": [None]}, BAD, "stop"),
    ("stop_empty_text", {"stop": ""}, BAD, "stop"),
    ("seed_float", {"seed": 1.5}, BAD, "seed"),
    ("n_bool", {"n": True}, BAD, "n"),
    ("user_number", {"user": 1}, BAD, "user"),
    ("user_long", {"user": "x" * 513}, BAD, "user"),
    ("metadata_list", {"metadata": []}, BAD, "metadata"),
    ("metadata_number", {"metadata": {"a": 1}}, BAD, "metadata.a"),
    ("metadata_many", {"metadata": {str(i): "x" for i in range(17)}}, BAD, "metadata"),
    ("format_text", {FORMAT: "json"}, BAD, FORMAT),
    ("format_type", {FORMAT: {"type": "xml"}}, BAD, f"{FORMAT}.type"),
    ("format_no_type", {FORMAT: {}}, BAD, f"{FORMAT}.type"),
    ("format_grammar", {FORMAT: {"type": "text", "grammar": ""}}, UNKNOWN, f"{FORMAT}.grammar"),
    ("format_tag", {FORMAT: {"type": "structural_tag", "format": None}}, UNSUPPORTED, f"{FORMAT}.type"),
    ("format_two", {FORMAT: {"type": "json_object", "json_schema": SCHEMA}}, BAD, f"{FORMAT}.json_schema"),
    ("min_tokens", {"min_tokens": -1}, BAD, "min_tokens"),
    ("min_tokens_float", {"min_tokens": 1.0}, BAD, "min_tokens"),
    ("min_above_max", {"min_tokens": 6, "max_tokens": 5}, BAD, "min_tokens"),
    ("min_of_json", {"min_tokens": 6, FORMAT: {"type": "json_object"}}, BAD, "min_tokens"),
    ("ignore_eos", {"ignore_eos": 1}, BAD, "ignore_eos"),
    ("endless_json", format_of() | {"ignore_eos": True}, BAD, "ignore_eos"),
    ("format_no_schema", {FORMAT: {"type": "json_schema"}}, BAD, f"{FORMAT}.json_schema"),
    ("schema_no_schema", format_of(schema=None), BAD, f"{FORMAT}.json_schema.schema"),
    ("schema_bool", format_of(schema=True), BAD, f"{FORMAT}.json_schema.schema"),
    ("schema_name", format_of(name="a b"), BAD, f"{FORMAT}.json_schema.name"),
    ("schema_no_name", format_of(name=None), BAD, f"{FORMAT}.json_schema.name"),
    ("schema_strict", format_of(strict="yes"), BAD, f"{FORMAT}.json_schema.strict"),
    ("schema_unknown", format_of(lax=True), UNKNOWN, f"{FORMAT}.json_schema.lax"),
    ("logprobs_number", {"logprobs": 3}, BAD, "logprobs"),
    ("top_logprobs_alone", {"top_logprobs": 3}, "feature_not_allowed", "top_logprobs"),
    ("logprobs", {"logprobs": True}, "feature_not_allowed", "logprobs"),
    ("bias_list", {"logit_bias": []}, BAD, "logit_bias"),
    ("bias", {"logit_bias": {"1": 1}}, "feature_not_allowed", "logit_bias"),
    ("vireo_list", {"vireo": []}, BAD, "vireo"),
    ("vireo_unknown", {"vireo": {"speed": 1}}, UNKNOWN, "vireo.speed"),
    ("vireo_nan", {"vireo": {"energy_j": math.nan}}, BAD, "vireo.energy_j"),
    ("model_number", {"model": 1}, BAD, "model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "more", "code", "param"), WRONG, ids=[row[0] for row in WRONG])
async def test_wrong_field_is_refused_by_name(name: str, more: Any, code: str, param: str) -> None:
    door = FrontDoor()
    reply = await ask(BODY | more, door)
    assert (reply.error["code"], reply.error["param"]) == (code, param), reply.error
    assert reply.status == {"feature_not_allowed": 403, "unsupported_media_type": 415}.get(code, 400)
    assert not door.service.chats


TAKEN: dict[str, dict[str, Any]] = {
    "ignored": {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}},
    "formats": {FORMAT: {"type": "text"}},
    "format_null": {FORMAT: {"type": "text", "json_schema": None}},
    "detail": user(image_part(data_url(GOOD_PNG), detail="original")),
    "shortest": {"min_tokens": 5, "max_tokens": 5, "ignore_eos": True},
    "shortest_alone": {"min_tokens": 10**9, "ignore_eos": False},
    "shortest_json": {"min_tokens": 0, "ignore_eos": False, FORMAT: {"type": "json_object"}},
    "empty": {"metadata": {}, "logit_bias": {}, "stop": [], "vireo": {}, "logprobs": False, "top_logprobs": 0},
    "limits_agree": {"max_tokens": 5, "max_completion_tokens": 5},
    "options": {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
    "options_null": {"stream": False, "stream_options": None},
}


@pytest.mark.parametrize("name", TAKEN)
async def test_field_is_taken(name: str) -> None:
    check("ChatBody", {key: value for key, value in BODY.items() if value is not None})
    assert (await ask(BODY | TAKEN[name])).status == 200


async def test_fields_reach_the_service() -> None:
    door = FrontDoor()
    vireo = {"energy_j": 3, "priority": "high", "quality_floor": 0.5}
    more = {"max_completion_tokens": 9, "stop": "END", FORMAT: {"type": "json_object"}, "vireo": vireo}
    assert (await ask(BODY | more, door, **{"x-vireo-latency-ms": "70", "x-vireo-energy-j": "9"})).status == 200
    (request,) = door.service.chats
    assert (request.sampling.max_tokens, request.sampling.stop) == (9, ("END",))
    assert json.loads(request.sampling.json_schema or "") == {"type": "object"}
    assert (request.budget.latency_ms, request.budget.energy_j, request.budget.priority) == (70, 3, "high")
    assert (request.sampling.min_tokens, request.sampling.ignore_eos) == (0, False)
    assert not request.is_streamed


async def test_developer_is_system_and_content_may_be_a_string() -> None:
    door = FrontDoor()
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "", "name": "ada"}]
    assert (await ask(BODY | {"messages": messages}, door)).status == 200
    first, second = door.service.chats[0].messages
    assert (first.role, first.parts) == (Role.SYSTEM, (TextPart("Be brief."),))
    assert (second.role, second.parts) == (Role.USER, (TextPart(""),))


@pytest.mark.parametrize("kind", ["png", "jpeg", "jpg", "webp", "PNG", "gif", "png;charset=x"])
async def test_data_urls_of_all_kinds_and_sizes_are_decoded(kind: str) -> None:
    door = FrontDoor()
    large = bytes(range(256)) * 4_000
    parts = [image_part(data_url(GOOD_PNG, kind), detail="low"), image_part(data_url(large, kind), detail=None)]
    assert (await ask(BODY | user(*parts), door)).status == 200
    images = door.service.chats[0].messages[0].parts
    assert [part.encoded for part in images if isinstance(part, ImagePart)] == [GOOD_PNG, large]


@pytest.mark.parametrize(
    ("headers", "status"), [({"content-type": "text/plain"}, 415), ({"content-encoding": "gzip"}, 415)]
)
async def test_body_of_another_kind_is_refused(headers: dict[str, str], status: int) -> None:
    assert (await ask(BODY, **headers)).status == status


async def test_text_full_of_commas_is_no_list() -> None:
    assert (await ask(BODY | message(content="," * 200_000))).status == 200


# -- answers ---------------------------------------------------------------------------------------------------------


async def test_whole_answer_has_the_documented_shape() -> None:
    door = FrontDoor()
    reply = await ask(BODY | {"n": 2}, door, **{"x-request-id": "abc"})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"] == "abc"
    document = reply.json
    check("ChatAnswer", document)
    assert document["id"] == "chatcmpl-abc"
    assert document["model"] == CHAT_MODEL
    assert document["system_fingerprint"] == "vireo-cdcdcdcdcdcd"
    assert [choice["index"] for choice in document["choices"]] == [0, 1]
    assert document["choices"][1]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert document["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "image_tokens": 0}
    assert document["vireo"]["guard"] == {"score": 0.0, "action": "normal", "reasons": []}


def gates(*positions: int) -> dict[int, asyncio.Event]:
    return {position: asyncio.Event() for position in positions}


async def test_stream_has_a_role_then_text_as_it_comes_then_the_end() -> None:
    gate = gates(*range(len(WORDS) + 1))
    door = FrontDoor(FakeService(chat_gates=gate))
    line = Line(json.dumps(BODY | {"stream": True}).encode(), {"x-request-id": "abc"})
    running = asyncio.create_task(line.run(door.app))
    for position, word in enumerate(WORDS):
        assert not line.is_complete
        gate[position].set()
        await line.until(json.dumps(word, ensure_ascii=False).encode())
    gate[len(WORDS)].set()
    reply = await running
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-request-id"] == "abc"
    *chunks, done = events_of(reply.body)
    assert done == "[DONE]"
    for chunk in chunks:
        check("ChatChunk", chunk)
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-abc", chunks[0]["created"], CHAT_MODEL)
        assert "usage" not in chunk
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [choice["delta"] for choice in choices[1:-1]] == [{"content": word} for word in WORDS]
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert {choice["finish_reason"] for choice in choices[:-1]} == {None}
    assert ["vireo" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_stream_with_usage_ends_with_a_chunk_of_its_own_for_it() -> None:
    reply = await ask(BODY | {"stream": True, "stream_options": {"include_usage": True}})
    *chunks, last, done = events_of(reply.body)
    assert done == "[DONE]"
    check("ChatChunk", last)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], len(WORDS))
    assert last["vireo"]["operating_point"] == "fast"
    assert all(chunk["usage"] is None and "vireo" not in chunk for chunk in chunks)


@pytest.mark.parametrize("at_the_end", [True, False])
async def test_each_chunk_has_the_usage_so_far_where_that_is_wanted(at_the_end: bool) -> None:
    door = FrontDoor(FakeService(words=("Two ", '"usage":null ', "")))
    options = {"continuous_usage_stats": True, "include_usage": at_the_end}
    *chunks, done = events_of((await ask(BODY | {"stream": True, "n": 2, "stream_options": options}, door)).body)
    assert done == "[DONE]"
    for chunk in chunks:
        check("ChatChunk", chunk)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert (counts[0], counts[-1]) == (0, 6)
    assert counts == sorted(counts)
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {10}
    assert {chunk["usage"]["total_tokens"] - chunk["usage"]["completion_tokens"] for chunk in chunks} == {10}
    assert sum(not chunk["choices"] for chunk in chunks) == at_the_end
    texts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == 2 * 'Two "usage":null '


async def test_every_choice_of_a_stream_has_its_role_and_its_end() -> None:
    reply = await ask(BODY | {"stream": True, "n": 3})
    *chunks, _done = events_of(reply.body)
    for index in range(3):
        choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert choices[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"].get("content", "") for choice in choices) == TEXT
        assert choices[-1]["finish_reason"] == "stop"
    assert sum("vireo" in chunk for chunk in chunks) == 1


async def test_tokens_that_are_ready_together_come_in_one_chunk() -> None:
    gate = gates(3)
    door = FrontDoor(FakeService(chat_gates=gate))
    line = Line(json.dumps(BODY | {"stream": True}).encode())
    running = asyncio.create_task(line.run(door.app))
    await line.until(b"and ")
    gate[3].set()
    *chunks, _done = events_of((await running).body)
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert [text for text in texts if text] == ["".join(WORDS[:3]), "".join(WORDS[3:])]


async def test_tokens_wait_for_a_full_socket_and_then_come_together() -> None:
    gate = gates(1)
    door = FrontDoor(FakeService(chat_gates=gate))
    line = Line(json.dumps(BODY | {"stream": True}).encode())
    running = asyncio.create_task(line.run(door.app))
    await line.until(b'"Two "')
    line.can_send.clear()
    gate[1].set()
    await settled(door)  # the service is done with the request although nothing can be sent
    line.can_send.set()
    *chunks, _done = events_of((await running).body)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Two ", "".join(WORDS[1:]), None]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_probabilities_are_in_the_documented_shape(is_streamed: bool) -> None:
    door = FrontDoor(authenticator=Authenticator({}, True, logprobs_tenants=["local"]))
    reply = await ask(BODY | {"logprobs": True, "top_logprobs": 2, "stream": is_streamed}, door)
    documents = events_of(reply.body)[:-1] if is_streamed else [reply.json]
    for document in documents:
        check("ChatChunk" if is_streamed else "ChatAnswer", document)
    entries = [
        entry for document in documents for entry in (document["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["token"] for entry in entries] == list(WORDS)
    assert entries[-1]["bytes"] == list(WORDS[-1].encode())
    assert [top["logprob"] for top in entries[0]["top_logprobs"]] == [-0.5, -1.5]


# -- failures and clients that leave ---------------------------------------------------------------------------------


async def settled(door: FrontDoor) -> None:
    await until(lambda: not door.service.chats_open)


def outcome_of(door: FrontDoor) -> str:
    (call,) = door.calls.finished
    assert door.calls.in_flight == 0
    outcome: str = call.outcome
    return outcome


@pytest.mark.parametrize("position", [1, len(WORDS)])
@pytest.mark.parametrize("wants_usage", [False, True])
async def test_error_in_the_middle_is_one_last_event(position: int, wants_usage: bool) -> None:
    error = ReplicaLost("the replica died", retry_after_s=1.0)
    door = FrontDoor(FakeService(chat_errors={position: error}))
    reply = await ask(BODY | {"stream": True, "stream_options": {"include_usage": wants_usage}}, door)
    assert reply.status == 200
    *chunks, last = events_of(reply.body)
    assert last == {
        "error": {"code": "replica_lost", "message": "the replica died", "type": "server_error", "param": None}
    }
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert "".join(texts) == "".join(WORDS[:position])
    assert outcome_of(door) == "replica_lost"


async def test_internal_text_stays_out_of_the_last_event(capsys: pytest.CaptureFixture[str]) -> None:
    reply = await ask(BODY | {"stream": True}, FrontDoor(FakeService(chat_errors={2: RuntimeError("secret")})))
    assert events_of(reply.body)[-1]["error"]["code"] == "internal_error"
    assert b"secret" not in reply.body
    assert "secret" in "".join(capsys.readouterr())


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_error_in_the_middle_of_a_whole_answer_is_an_http_error(is_streamed: bool) -> None:
    door = FrontDoor(FakeService(chat_errors={2: EngineFailed("the engine has died")}))
    reply = await ask(BODY | {"stream": is_streamed}, door)
    assert reply.status == (200 if is_streamed else 500)
    assert outcome_of(door) == "engine_failed"


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("position", [0, 2])
async def test_client_that_leaves_ends_the_work_at_once(is_streamed: bool, position: int) -> None:
    door = FrontDoor(FakeService(chat_gates=gates(position)))
    line = Line(json.dumps(BODY | {"stream": is_streamed}).encode())
    running = asyncio.create_task(line.run(door.app))
    await door.service.entered.wait()
    if is_streamed and position:
        await line.until(b"squares")
    line.left.set()
    await asyncio.wait_for(running, 10)
    assert (door.service.chats_open, door.service.chats_cut) == (0, 1)
    assert outcome_of(door) == "cancelled"
    assert b"[DONE]" not in line.body
    assert b'data: {"error"' not in line.body


async def test_client_that_leaves_while_its_socket_is_full_ends_the_work_at_once() -> None:
    door = FrontDoor(FakeService(chat_gates=gates(1, 2)))
    line = Line(json.dumps(BODY | {"stream": True}).encode())
    running = asyncio.create_task(line.run(door.app))
    await line.until(b'"Two "')
    line.can_send.clear()
    door.service.chat_gates[1].set()
    await asyncio.wait_for(line.stuck.wait(), 10)
    line.left.set()
    await settled(door)
    assert door.service.chats_cut == 1
    line.can_send.set()
    await asyncio.wait_for(running, 10)
    assert outcome_of(door) == "cancelled"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_cancelled_task_ends_the_work(is_streamed: bool) -> None:
    door = FrontDoor(FakeService(chat_gates=gates(1)))
    running = asyncio.create_task(Line(json.dumps(BODY | {"stream": is_streamed}).encode()).run(door.app))
    await door.service.entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (door.service.chats_open, door.service.chats_cut) == (0, 1)
    assert outcome_of(door) == "cancelled"


@pytest.mark.parametrize("position", [0, 1])
async def test_silence_is_filled_with_comments(position: int) -> None:
    gate = gates(position)
    door = FrontDoor(FakeService(chat_gates=gate), limits=IngressLimits(keep_alive_s=0.01))
    line = Line(json.dumps(BODY | {"stream": True}).encode())
    running = asyncio.create_task(line.run(door.app))
    await line.until(b": keep-alive\n\n: keep-alive\n\n")
    gate[position].set()
    reply = await running
    assert reply.status == 200
    *chunks, done = events_of(reply.body)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == TEXT


async def test_error_after_a_comment_is_an_event() -> None:
    gate = gates(0)
    service = FakeService(chat_gates=gate, chat_errors={0: EngineFailed("the engine has died")})
    line = Line(json.dumps(BODY | {"stream": True}).encode())
    running = asyncio.create_task(line.run(FrontDoor(service, limits=IngressLimits(keep_alive_s=0.01)).app))
    await line.until(b": keep-alive")
    gate[0].set()
    (event,) = events_of((await running).body)
    assert event["error"]["code"] == "engine_failed"


def test_clean_text_is_kept() -> None:
    assert clean("plain") == "plain"
    assert clean("方块 🟥") == "方块 🟥"
