"""The table of fields: what each does to a call, that no other program's field is missing, and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
from openai.types import chat
from openai.types.chat import completion_create_params
from openai.types.shared_params import ResponseFormatJSONSchema, ResponseFormatText

from serving.front.http.fields import Fate, Field, Fields
from serving.gateway.http import document as openapi_document
from serving.tasks.chat.fields import (
    BODY,
    FIELDS,
    FORMAT,
    IMAGE,
    IMAGE_URL,
    MESSAGE,
    OTHER_FORMATS,
    OTHER_PARTS,
    OTHER_ROLES,
    SCHEMA,
    STREAM_OPTIONS,
    TEXT,
)
from serving.tasks.chat.schemas import (
    ChatBody,
    ImagePartBody,
    ImageUrlBody,
    JsonSchemaBody,
    MessageBody,
    ResponseFormatBody,
    StreamOptionsBody,
    TextPartBody,
)
from tests.support.chat_clients import Chat, data_url, document_of, image_part, post_chat
from tests.support.clients import GOOD_PNG, FrontDoor

BASE = document_of(Chat())
ROWS = [(scope, field) for scope, fields in FIELDS.items() for field in fields.values()]
OTHERS = {
    "messages[].role": OTHER_ROLES,
    "messages[].content[].type": OTHER_PARTS,
    "response_format.type": OTHER_FORMATS,
}
VALUES = [(path, value) for path, values in OTHERS.items() for value in values.values()]
ASKING = {"a": ["b"]}
"""No field that is not offered has this among its values that ask for nothing."""
DOCUMENTED = {
    BODY: ChatBody,
    STREAM_OPTIONS: StreamOptionsBody,
    FORMAT: ResponseFormatBody,
    SCHEMA: JsonSchemaBody,
    MESSAGE: MessageBody,
    TEXT: TextPartBody,
    IMAGE: ImagePartBody,
    IMAGE_URL: ImageUrlBody,
}
PARAMS = {
    TEXT: "messages[0].content[0].",
    IMAGE: "messages[0].content[0].",
    IMAGE_URL: "messages[0].content[0].image_url.",
    MESSAGE: "messages[0].",
}
NAMES = {"O": "OpenAI", "V": "vLLM", "S": "SGLang"}


def body_with(scope: str, name: str, value: Any) -> dict[str, Any]:
    """A body with one field more in one of its objects."""
    more = {name: value}
    text = {"type": "text", "text": "x"}
    image = image_part(data_url(GOOD_PNG))
    schema = {"name": "s", "schema": {}}
    changes: dict[str, dict[str, Any]] = {
        BODY: more,
        STREAM_OPTIONS: {"stream": True, "stream_options": more},
        FORMAT: {"response_format": {"type": "json_object"} | more},
        SCHEMA: {"response_format": {"type": "json_schema", "json_schema": schema | more}},
        MESSAGE: {"messages": [{"role": "user", "content": "x"} | more]},
        TEXT: {"messages": [{"role": "user", "content": [text | more]}]},
        IMAGE: {"messages": [{"role": "user", "content": [image | more]}]},
        IMAGE_URL: {"messages": [{"role": "user", "content": [{**image, "image_url": image["image_url"] | more}]}]},
    }
    return BASE | changes[scope]


def id_of(value: Any) -> str | None:
    return value.name if isinstance(value, Field) else value.rstrip(".") if isinstance(value, str) else None


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].fate is Fate.REFUSED], ids=id_of)
async def test_field_that_is_not_offered_passes_where_it_asks_for_nothing(scope: str, field: Field) -> None:
    reply = await post_chat(FrontDoor(), body_with(scope, field.name, ASKING))
    assert (reply.status, reply.error["code"]) == (400, "unsupported_field")
    assert reply.error["param"] == PARAMS.get(scope, scope) + field.name
    assert field.why in reply.error["message"]
    for harmless in (None, *field.harmless):
        assert (await post_chat(FrontDoor(), body_with(scope, field.name, harmless))).status == 200


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].fate is Fate.PASSES], ids=id_of)
async def test_field_that_asks_for_nothing_here_passes_whatever_it_says(scope: str, field: Field) -> None:
    for value in (None, ASKING, 0, "x", [True]):
        assert (await post_chat(FrontDoor(), body_with(scope, field.name, value))).status == 200


@pytest.mark.parametrize("scope", FIELDS, ids=id_of)
async def test_field_that_nobody_has_is_unknown(scope: str) -> None:
    for value in (None, ASKING):
        reply = await post_chat(FrontDoor(), body_with(scope, "temprature", value))
        param = PARAMS.get(scope, scope) + "temprature"
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unknown_field", param)


@pytest.mark.parametrize("name", sorted({name for name, field in FIELDS[BODY].items() if field.fate is Fate.USED}))
async def test_used_field_may_be_null_where_it_may_be_absent(name: str) -> None:
    assert (await post_chat(FrontDoor(), BASE | {name: None})).status == (400 if name == "messages" else 200)


@pytest.mark.parametrize(
    ("name", "value"),
    [("presence_penalty", 0.1), ("presence_penalty", False), ("store", True), ("store", 0), ("service_tier", "flex"),
     ("modalities", ["text", "audio"]), ("tool_choice", "required"), ("tools", [{}]), ("top_k", 40), ("priority", 1),
     ("chat_template_kwargs", {"enable_thinking": True}), ("use_beam_search", 0)],
)  # fmt: skip
async def test_value_that_asks_for_something_is_refused(name: str, value: Any) -> None:
    assert (await post_chat(FrontDoor(), BASE | {name: value})).error["code"] == "unsupported_field"


@pytest.mark.parametrize(("name", "value"), [("top_k", -1.0), ("presence_penalty", 0.0), ("repetition_penalty", 1.0)])
async def test_number_that_asks_for_nothing_may_be_written_either_way(name: str, value: float) -> None:
    assert (await post_chat(FrontDoor(), BASE | {name: value})).status == 200


@pytest.mark.parametrize(("path", "value"), VALUES, ids=id_of)
async def test_value_that_other_servers_take_is_not_offered(path: str, value: Field) -> None:
    scope = {"messages[].role": MESSAGE, "messages[].content[].type": TEXT, "response_format.type": FORMAT}[path]
    param = (PARAMS.get(scope, scope)) + path.rpartition(".")[2]
    for name, code in ((value.name, "unsupported_field"), ("nobody's", "invalid_request")):
        reply = await post_chat(FrontDoor(), body_with(scope, path.rpartition(".")[2], name))
        assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param)


# -- nothing is missing ----------------------------------------------------------------------------------------------


def of(fields: Fields, letter: str) -> set[str]:
    return {name for name, field in fields.items() if letter in field.who}


def named(scope: str, letter: str) -> set[str]:
    return of(FIELDS[scope], letter)


def test_every_field_of_the_installed_vllm_is_in_the_table() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    base = pytest.importorskip("vllm.entrypoints.generate.base.protocol")
    renderer = pytest.importorskip("vllm.renderers.chat_utils")
    assert set(protocol.ChatCompletionRequest.model_fields) <= named(BODY, "V")
    assert set(base.StreamOptions.model_fields) <= named(STREAM_OPTIONS, "V")
    formats = (base.ResponseFormat, base.StructuralTagResponseFormat, base.LegacyStructuralTagResponseFormat)
    assert {name for kind in formats for name in kind.model_fields} <= named(FORMAT, "V")
    schema = {field.alias or name for name, field in base.JsonSchemaResponseFormat.model_fields.items()}
    assert schema <= named(SCHEMA, "V")
    assert set(get_type_hints(renderer.CustomChatCompletionMessageParam)) <= named(MESSAGE, "V")
    assert set(renderer.MM_PARSER_MAP) <= of(OTHER_PARTS, "V") | {"text", "image_url"}


def test_every_field_of_the_official_client_is_in_the_table() -> None:
    streaming = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    assert len(streaming) > 30
    assert set(streaming) <= named(BODY, "O")
    assert set(get_type_hints(chat.ChatCompletionStreamOptionsParam)) <= named(STREAM_OPTIONS, "O")
    formats = {**get_type_hints(ResponseFormatText), **get_type_hints(ResponseFormatJSONSchema)}
    assert set(formats) <= named(FORMAT, "O")
    assert set(get_type_hints(formats["json_schema"])) <= named(SCHEMA, "O")
    messages = get_args(chat.ChatCompletionMessageParam)
    assert {name for kind in messages for name in get_type_hints(kind)} <= named(MESSAGE, "O")
    assert set(get_type_hints(chat.ChatCompletionContentPartTextParam)) <= named(TEXT, "O")
    roles = {get_args(get_type_hints(kind)["role"])[0] for kind in messages}
    assert roles <= of(OTHER_ROLES, "O") | {"system", "developer", "user", "assistant"}
    parts = (*get_args(chat.ChatCompletionContentPartParam), chat.ChatCompletionContentPartRefusalParam)
    types = {get_args(get_type_hints(kind)["type"])[0] for kind in parts}
    assert types <= of(OTHER_PARTS, "O") | {"text", "image_url"}
    image = get_type_hints(chat.ChatCompletionContentPartImageParam)
    assert set(image) <= named(IMAGE, "O")
    assert set(get_type_hints(image["image_url"])) <= named(IMAGE_URL, "O")


# -- the OpenAPI document and the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", FIELDS, ids=id_of)
def test_documented_members_are_those_that_are_read(scope: str) -> None:
    read = {name for name, field in FIELDS[scope].items() if field.fate in (Fate.USED, Fate.CHECKED)}
    assert {field.alias or name for name, field in DOCUMENTED[scope].model_fields.items()} == read


def is_valid(document: Any) -> bool:
    components = openapi_document()["components"]
    schema = {"$ref": "#/components/schemas/ChatBody", "components": components}
    return bool(jsonschema.Draft202012Validator(schema).is_valid(document))


@pytest.mark.parametrize(("scope", "field"), [row for row in ROWS if row[1].why], ids=id_of)
def test_openapi_document_takes_what_is_taken(scope: str, field: Field) -> None:
    for value in (None, *field.harmless):
        assert is_valid(body_with(scope, field.name, value))
    assert is_valid(body_with(scope, field.name, ASKING)) is (field.fate is Fate.PASSES)


def _row(scope: str, field: Field) -> str:
    has = " | ".join("yes" if letter in field.who else "" for letter in NAMES)
    what: str = field.fate
    if field.fate is Fate.PASSES:
        what += f": {field.why}"
    elif field.fate is Fate.REFUSED:
        values = ", ".join(f"`{json.dumps(value)}`" for value in (None, *field.harmless))
        what = f"only {values}: {field.why}"
    return f"| `{scope}{field.name}` | {has} | {what} |"


def field_table() -> str:
    head = f"| field | {' | '.join(NAMES.values())} | what happens |\n|---|---|---|---|---|"
    return "\n".join([head, *(_row(scope, field) for scope, field in ROWS)])


def value_table() -> str:
    rows = [f"| value | {' | '.join(NAMES.values())} | refused, because |", "|---|---|---|---|---|"]
    for path, value in VALUES:
        has = " | ".join("yes" if letter in value.who else "" for letter in NAMES)
        rows.append(f'| `{path}` `"{value.name}"` | {has} | {value.why} |')
    return "\n".join(rows)


@pytest.mark.parametrize(("name", "table"), [("fields", field_table()), ("values", value_table())])
def test_page_has_the_table(name: str, table: str) -> None:
    text = (Path(__file__).parents[5] / "docs" / "chat-fields.md").read_text()
    match = re.search(rf"<!-- {name}: [^>]*-->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert match is not None
    assert match[1].strip() == table, f"put this table into docs/chat-fields.md:\n{table}"
