"""JSON bodies of /v1/classify: strict, bounded, and every refusal names its field."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.domain import Budget, ClassifyRequest
from serving.errors import ClientError, InvalidImage, InvalidRequest
from serving.front.http.json_body import load_object
from serving.front.images import SLICE_CHARS, images_from_text
from serving.limits import IngressLimits
from serving.tasks.classify.http import json_bounds, request_from_document
from tests.support.clients import GOOD_PNG, FrontDoor
from tests.support.media_files import encode, noise

LIMITS = IngressLimits()
IMAGE = base64.b64encode(GOOD_PNG).decode()


async def parse(body: bytes, fallback: Budget | None = None) -> ClassifyRequest:
    document = load_object(body, json_bounds(LIMITS).max_values, "body")
    return await request_from_document(
        document, request_id="r", tenant="t", fallback=fallback or Budget(), limits=LIMITS
    )


def body(**changes: Any) -> bytes:
    document = {"model": "fake-nano", "image": IMAGE} | changes
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


BAD_BODIES: list[tuple[str, bytes, str, str | None]] = [
    ("empty", b"", "invalid_request", "body"),
    ("blank", b" \n ", "invalid_request", "body"),
    ("text", b"hello", "invalid_request", "body"),
    ("cut_off", body()[:-3], "invalid_request", "body"),
    ("trailing", body() + b"}", "invalid_request", "body"),
    ("list", b"[]", "invalid_request", "body"),
    ("number", b"1", "invalid_request", "body"),
    ("not_utf8", b'{"model": "\xff"}', "invalid_request", "body"),
    ("utf16", body().decode().encode("utf-16"), "invalid_request", "body"),
    ("byte_order_mark", b"\xef\xbb\xbf" + body(), "invalid_request", "body"),
    ("control_character", b'{"model": "a\x01"}', "invalid_request", "body"),
    ("deep_list", b'{"images": ' + b"[" * 100_000, "invalid_request", "body"),
    ("deep_object", b'{"vireo": ' + b'{"a":' * 100_000, "invalid_request", "body"),
    ("many_values", b'{"images": [' + b"1," * 100_000 + b"1]}", "invalid_request", "body"),
    ("duplicate_key", b'{"model": "a", "model": "b", "image": ""}', "invalid_request", "model"),
    ("duplicate_key_escaped", b'{"model": "a", "\\u006dodel": "b"}', "invalid_request", "model"),
    ("duplicate_budget", b'{"model": "a", "vireo": {"energy_j": 1, "energy_j": 2}}', "invalid_request", "energy_j"),
    ("digits", b'{"model": "a", "image": "", "top_k": ' + b"9" * 10_000 + b"}", "invalid_request", "body"),
    ("empty_model", body(model=""), "invalid_request", "model"),
    ("empty_model", body(model=""), "invalid_request", "model"),
    ("long_model", body(model="m" * 300), "invalid_request", "model"),
    ("model_number", body(model=3), "invalid_request", "model"),
    ("model_surrogate", b'{"model": "\\ud800", "image": ""}', "invalid_request", "model"),
    ("no_image", body(image=...), "invalid_request", "image"),
    ("both_images", body(images=[IMAGE]), "invalid_request", "image"),
    ("no_images", body(image=..., images=[]), "invalid_request", "images"),
    ("image_list", body(image=[IMAGE]), "invalid_request", "image"),
    ("image_object", body(image={"url": "x"}), "invalid_request", "image"),
    ("images_text", body(image=..., images=IMAGE), "invalid_request", "images"),
    ("images_null", body(image=..., images=[IMAGE, None]), "invalid_request", "images.1"),
    ("images_number", body(image=..., images=[7]), "invalid_request", "images.0"),
    ("hundred_images", body(image=..., images=["AAAA"] * 100), "too_many_images", "images"),
    ("unknown_field", body(temperature=1), "unknown_field", "temperature"),
    ("unknown_budget_field", body(vireo={"watts": 1}), "unknown_field", "vireo.watts"),
    ("budget_list", body(vireo=[]), "invalid_request", "vireo"),
    ("budget_number", body(vireo=5), "invalid_request", "vireo"),
    ("priority", body(vireo={"priority": "urgent"}), "invalid_request", "vireo.priority"),
    ("priority_number", body(vireo={"priority": 1}), "invalid_request", "vireo.priority"),
    *[
        (f"top_k_{name}", body().replace(b"}", b', "top_k": ' + value + b"}"), "invalid_request", "top_k")
        for name, value in {
            "zero": b"0", "negative": b"-1", "fraction": b"1.5", "text": b'"1"', "boolean": b"true", "nan": b"NaN",
            "infinity": b"Infinity", "overflow": b"1e999", "huge": b"9" * 400, "limit": b"1001", "list": b"[1]",
        }.items()
    ],
    *[
        (f"{field}_{name}", body().replace(b"}", b', "vireo": {"%b": %b}}' % (field.encode(), value)),
         "invalid_request", f"vireo.{field}")
        for field in ("latency_ms", "energy_j", "quality_floor")
        for name, value in {
            "nan": b"NaN", "infinity": b"Infinity", "minus_infinity": b"-Infinity", "overflow": b"1e999",
            "negative": b"-1", "huge": b"9" * 400, "text": b'"5"', "boolean": b"true", "object": b"{}",
        }.items()
    ],
]  # fmt: skip


@pytest.mark.parametrize(("name", "document", "code", "param"), BAD_BODIES, ids=[row[0] for row in BAD_BODIES])
async def test_bad_body_is_refused_naming_the_field(name: str, document: bytes, code: str, param: str | None) -> None:
    door = FrontDoor()
    reply = await door.post_json(document)
    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == (code, param)
    assert len(reply.body) < 2000, "a refusal must not echo the body"
    assert not door.service.requests
    assert (await door.post_json(body())).status == 200


async def test_null_means_absent() -> None:
    request = await parse(body(images=None, top_k=None, vireo=None))
    assert (request.top_k, request.budget) == (1, Budget())


async def test_body_overrides_the_fallback_field_by_field() -> None:
    request = await parse(body(vireo={"latency_ms": 5}), Budget(latency_ms=9.0, energy_j=3.0))
    assert (request.budget.latency_ms, request.budget.energy_j) == (5.0, 3.0)


IMAGE_TEXTS: list[tuple[str, str, type[ClientError] | None]] = [
    (IMAGE, "plain", None),
    (f"data:image/png;base64,{IMAGE}", "data URL", None),
    (f"data:image/PNG;charset=utf-8;base64,{IMAGE}", "data URL with a parameter", None),
    ("", "empty", InvalidImage),
    ("data:image/png;base64,", "empty data URL", InvalidImage),
    (f"data:;base64,{IMAGE}", "no type", None),
    (f"data:text/html;base64,{IMAGE}", "type that is no image's", None),
    (f"DATA:image/png;BASE64,{IMAGE}", "capitals", None),
    (f'data:image/png;name="a b";base64,{IMAGE}', "quoted parameter", None),
    (f"data:image/png; base64,{IMAGE}", "space before base64", None),
    (f"data:image/png;base64,{quote(IMAGE, safe='')}", "percent-encoded base64", None),
    (f"data:image/png,{quote(GOOD_PNG)}", "percent-encoded bytes", None),
    ("data:,", "nothing", InvalidImage),
    ("data:image/png;base64", "data URL without a comma", InvalidImage),
    ("data:" + "x" * 1000 + f";base64,{IMAGE}", "long head", InvalidImage),
    ("https://example.org/cat.png", "URL", InvalidImage),
    ("HTTP://example.org/cat.png", "URL", InvalidImage),
    ("file:///etc/passwd", "URL", InvalidImage),
    (IMAGE[:-1], "padding cut off", InvalidImage),
    (IMAGE[:-5] + "!" + IMAGE[-4:], "foreign character", InvalidImage),
    (IMAGE[:40] + "\n" + IMAGE[40:], "line break", InvalidImage),
    (IMAGE + "====", "too much padding", InvalidImage),
    ("AA==" + IMAGE, "padding inside", InvalidImage),
    ("not base64 at all", "text", InvalidImage),
    ("ünïcode", "not ASCII", InvalidImage),
    ("\0\0\0\0", "control characters", InvalidImage),
]


@pytest.mark.parametrize(("text", "what", "error"), IMAGE_TEXTS, ids=[row[1] for row in IMAGE_TEXTS])
async def test_text_is_an_image_or_fails_alone(text: str, what: str, error: type[ClientError] | None) -> None:
    good, image, again = await images_from_text([IMAGE, text, IMAGE], "images.{}")
    assert good.encoded == again.encoded == GOOD_PNG
    if error is None:
        assert image.encoded == GOOD_PNG
    else:
        assert type(image.error) is error
        assert image.error.param == "images.1"
        assert "passwd" not in image.error.message or len(image.error.message) < 300


async def test_broken_base64_among_good_images_fails_alone_and_alone_fails_the_call() -> None:
    door = FrontDoor()
    reply = await door.post_json({"model": "fake-nano", "images": [IMAGE, "!!!!", IMAGE]})
    assert [item.get("error", {}).get("code") for item in reply.json["results"]] == [None, "invalid_image", None]
    assert reply.json["results"][1]["error"]["param"] == "images.1"
    alone = await door.post_json({"model": "fake-nano", "image": "!!!!"})
    assert (alone.status, alone.error["param"]) == (400, "image")


@pytest.mark.parametrize("num_bytes", [SLICE_CHARS, 3 * SLICE_CHARS, 3 * SLICE_CHARS + 1, 3 * SLICE_CHARS // 4])
async def test_large_image_decodes_in_slices_to_the_same_bytes(num_bytes: int) -> None:
    data = bytes(range(256)) * (num_bytes // 256 + 1)
    (image,) = await images_from_text([base64.b64encode(data).decode()], "image")
    assert image.encoded == data


async def test_padding_between_slices_is_refused() -> None:
    text = "A" * (SLICE_CHARS - 2) + "==" + "A" * SLICE_CHARS
    (image,) = await images_from_text([text], "image")
    assert isinstance(image.error, InvalidImage)


async def test_large_image_lets_others_run_while_it_is_decoded() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await images_from_text(["A" * (8 * SLICE_CHARS)], "image")
    task.cancel()
    assert turns >= 8


JSON_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from([IMAGE, "AAAA"])
)


def nested(inner: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return inner | st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)


JSON_VALUES = nested(nested(JSON_LEAVES))
FIELDS = st.sampled_from(["model", "image", "images", "top_k", "vireo", "latency_ms", "extra"])


@settings(max_examples=300)
@given(st.dictionaries(FIELDS, JSON_VALUES, max_size=5))
def test_any_json_object_parses_or_is_refused_with_a_typed_error(document: dict[str, Any]) -> None:
    _parse_or_refuse(json.dumps(document).encode())


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:0123456789.eE+-NaInfity\\u \n', max_size=80).map(str.encode))
def test_any_bytes_parse_or_are_refused_with_a_typed_error(raw: bytes) -> None:
    _parse_or_refuse(raw)


def _parse_or_refuse(raw: bytes) -> None:
    try:
        request = asyncio.run(parse(raw))
    except ClientError:
        return
    assert request.images


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=8), JSON_VALUES.filter(lambda value: value == value), max_size=5))
def test_object_is_read_as_the_standard_parser_reads_it(document: dict[str, Any]) -> None:
    raw = json.dumps(document).encode()
    assert repr(load_object(raw, 10_000, "body")) == repr(json.loads(raw))


async def test_large_json_image_is_served() -> None:
    door = FrontDoor()
    noise_png = encode(noise(300, 300))
    document = {"model": "fake-nano", "images": [base64.b64encode(noise_png).decode(), IMAGE]}
    assert (await door.post_json(document)).status == 200
    assert [item.encoded for item in door.service.requests[0].images] == [noise_png, GOOD_PNG]


@pytest.mark.parametrize("limit", [1, 10, 4096, 4097, 10_000])
def test_number_of_values_is_bounded_before_parsing(limit: int) -> None:
    others = 2  # the object and the list
    assert len(load_object(b'{"a": [' + b"0," * limit + b"0]}", limit + others + 1, "body")["a"]) == limit + 1
    with pytest.raises(InvalidRequest, match=f"more than {limit + others}"):
        load_object(b'{"a": [' + b"0," * limit + b"0]}", limit + others, "body")
