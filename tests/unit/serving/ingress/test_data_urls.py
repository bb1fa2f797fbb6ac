"""Taking data URLs out of a body means the same as parsing all of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.chat.domain import ImagePart, TextPart
from serving.domain import Budget
from serving.errors import InvalidRequest
from serving.ingress.chat_json import ChatCall, call_from_json
from serving.ingress.chat_reply import clean
from serving.ingress.data_urls import MAX_LOOKS, MIN_BYTES, lift, load_lifted
from serving.ingress.json_body import load_object
from serving.limits import IngressLimits
from tests.unit.serving.ingress.chat_clients import data_url, image_part

LARGE = bytes(range(256)) * 40
URL = data_url(LARGE)
OTHER = data_url(LARGE[::-1], "webp")


def body_of(*parts: Any, **more: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": list(parts)}], **more}).encode()


async def parse(body: bytes) -> ChatCall:
    return await call_from_json(
        body, request_id="r", tenant="t", fallback=Budget(), limits=IngressLimits(), may_use_logprobs=False
    )


async def parts_of(body: bytes) -> list[Any]:
    return list((await parse(body)).request.messages[0].parts)


def restored(value: Any, urls: dict[str, memoryview]) -> Any:
    if isinstance(value, dict):
        return {name: restored(inner, urls) for name, inner in value.items()}
    if isinstance(value, list):
        return [restored(inner, urls) for inner in value]
    return bytes(urls[value]).decode() if isinstance(value, str) and value in urls else value


BODIES: dict[str, tuple[bytes, int]] = {
    "one": (body_of(image_part(URL)), 1),
    "two": (body_of(image_part(URL), {"type": "text", "text": "x"}, image_part(OTHER)), 2),
    "spaces": (body_of(image_part(URL)).replace(b'"url": ', b'"url"\r\n\t : '), 1),
    "far": (body_of(image_part(URL)).replace(b'"url": ', b'"url": ' + b" " * 100), 0),
    "slashes": (body_of(image_part(URL)).replace(b"/", b"\\/"), 1),
    "plus": (body_of(image_part(URL)).replace(b"+", b"\\u002B"), 0),
    "escaped_key": (body_of(image_part(URL)).replace(b'"url"', b'"\\u0075rl"'), 0),
    "escaped_quote": (body_of({"type": "text", "text": '"url":"' + URL}), 0),
    "backslash_quote": (body_of({"type": "text", "text": '\\"url\\":"' + URL}), 0),
    "text": (body_of({"type": "text", "text": URL}), 0),
    "list": (body_of(image_part(URL), stop=[URL]), 1),
    "small": (body_of(image_part(data_url(b"x"))), 0),
    "no_data": (b'{"model": "m"}', 0),
    "other_url": (body_of({"type": "text", "text": "x"}, url=URL), 1),
}


@pytest.mark.parametrize("name", BODIES)
def test_lifted_body_is_the_whole_body(name: str) -> None:
    body, num_lifted = BODIES[name]
    rest, urls = lift(body)
    assert len(urls) == num_lifted
    assert restored(json.loads(rest), urls) == json.loads(body)
    if num_lifted:
        assert len(rest) < len(body) - MIN_BYTES * num_lifted


@pytest.mark.parametrize("name", ["one", "two", "spaces", "slashes", "plus", "escaped_key", "far"])
async def test_images_are_the_same_however_they_are_found(name: str) -> None:
    first = next(part for part in await parts_of(BODIES[name][0]) if isinstance(part, ImagePart))
    assert first.encoded == LARGE
    assert first.param == "messages[0].content[0]"


@pytest.mark.parametrize("text", [URL, '"url":"' + URL, '{"url": "' + URL + '"}', '\\"url\\":"' + URL])
async def test_data_url_in_a_text_stays_text(text: str) -> None:
    assert await parts_of(body_of({"type": "text", "text": text}, image_part(URL))) == [
        TextPart(text),
        ImagePart(encoded=LARGE, param="messages[0].content[1]"),
    ]


async def test_data_url_under_url_elsewhere_keeps_its_meaning() -> None:
    schema = {"properties": {"a": {"default": {"url": URL}}}}
    format_ = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    call = await parse(body_of(image_part(OTHER), response_format=format_))
    assert json.loads(call.request.sampling.json_schema or "") == schema


BROKEN: dict[str, bytes] = {
    "cut": body_of(image_part(URL))[:-3],
    "cut_in_url": body_of(image_part(URL))[:-5000],
    "twice": body_of(image_part(URL)).replace(b'"url": ', b'"url": 1, "url": '),
    "after_string": body_of(image_part(URL)).replace(b'"url": ', b'"x""url": '),
    "letters": body_of(image_part(URL)) + b"x",
    "list": b"[" + body_of(image_part(URL)) + b"]",
    "nan": body_of(image_part(URL), temperature=float("nan")).replace(b"NaN", b"nan"),
    "not_utf8": body_of(image_part(URL), user="x").replace(b'"x"', b'"\xff"'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_body_has_the_error_of_the_whole_body(name: str) -> None:
    with pytest.raises(InvalidRequest) as plain:
        load_object(BROKEN[name], 1000)
    with pytest.raises(InvalidRequest) as lifted:
        load_lifted(BROKEN[name], 1000)
    assert (lifted.value.message, lifted.value.param) == (plain.value.message, plain.value.param)


def test_body_made_of_beginnings_is_left_alone_after_some_looks() -> None:
    member = b'{"url":"data:' + b"A" * MIN_BYTES + b'"}'
    body = b"[" + b",".join([member] * (MAX_LOOKS + 2)) + b"]"
    rest, urls = lift(body)
    assert len(urls) == MAX_LOOKS
    assert restored(json.loads(rest), urls) == json.loads(body)
    assert lift(b'"data:' * MAX_LOOKS + body) == (b'"data:' * MAX_LOOKS + body, {})


def test_clean_text_is_kept() -> None:
    assert clean("plain") == "plain"
    assert clean("方块 🟥") == "方块 🟥"
