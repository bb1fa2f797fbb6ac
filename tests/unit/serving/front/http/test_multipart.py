"""Multipart forms, whole and in any chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ClientError, InvalidRequest, UnsupportedMediaType
from serving.front.http.multipart import MAX_TEXT_BYTES, Form, FormReader
from serving.limits import IngressLimits
from tests.support.clients import BOUNDARY, GOOD_PNG, FrontDoor, asgi, multipart

LIMITS = IngressLimits(max_images=3)
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
FIELDS = {"model": "fake-nano", "top_k": "2", "vireo": '{"latency_ms": 50}'}


def read(body: bytes, sizes: Sequence[int] = (), content_type: str = TYPE) -> Form:
    reader = FormReader(content_type, LIMITS)
    position = 0
    for size in sizes:
        reader.feed(body[position : position + size])
        position += size
    if position < len(body):
        reader.feed(body[position:])
    return reader.finish()


def part(head: str, content: bytes = b"x") -> bytes:
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


TRICKY = b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\r\n\r\n--\r\n" + bytes(range(256))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_form_is_the_same_in_chunks_of_any_size(size: int) -> None:
    body, content_type = multipart(FIELDS, [GOOD_PNG, TRICKY, b""])
    form = read(body, [size] * (len(body) // size), content_type)
    assert form.fields == FIELDS
    assert form.files == [GOOD_PNG, TRICKY, b""]


@settings(max_examples=150)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=3), st.lists(st.integers(0, 90), max_size=12))
def test_any_files_survive_any_chunking(files: list[bytes], sizes: list[int]) -> None:
    files = [data for data in files if BOUNDARY.encode() not in data]
    body, content_type = multipart({"model": "m"}, files)
    assert read(body, sizes, content_type).files == files


BAD_FORMS: list[tuple[str, bytes, str, int, str]] = [
    ("empty", b"", TYPE, 400, "invalid_request"),
    ("not_multipart", b'{"model": "x"}', TYPE, 400, "invalid_request"),
    ("cut_off", multipart(FIELDS, [GOOD_PNG])[0][:-20], TYPE, 400, "invalid_request"),
    ("cut_off_in_header", f"--{BOUNDARY}\r\ncontent-dispo".encode(), TYPE, 400, "invalid_request"),
    ("wrong_boundary", multipart(FIELDS, [GOOD_PNG])[0], "multipart/form-data; boundary=other", 400, "invalid_request"),
    ("no_boundary", b"x", "multipart/form-data", 415, "unsupported_media_type"),
    ("empty_boundary", b"x", "multipart/form-data; boundary=", 415, "unsupported_media_type"),
    ("long_boundary", b"x", "multipart/form-data; boundary=" + "b" * 71, 415, "unsupported_media_type"),
    ("odd_boundary", b"x", "multipart/form-data; boundary=a\x7fb", 415, "unsupported_media_type"),
    ("no_disposition", part("content-type: image/png"), TYPE, 400, "invalid_request"),
    ("no_name", part("content-disposition: form-data"), TYPE, 400, "invalid_request"),
    ("attachment", part('content-disposition: attachment; name="file"'), TYPE, 400, "invalid_request"),
    (
        "transfer_encoding",
        part('content-disposition: form-data; name="file"\r\ncontent-transfer-encoding: base64'),
        TYPE,
        415,
        "unsupported_media_type",
    ),
    ("unknown_field", part('content-disposition: form-data; name="prompt"'), TYPE, 400, "unknown_field"),
    ("many_headers", part("\r\n".join(f"x-{i}: y" for i in range(20))), TYPE, 400, "invalid_request"),
    ("long_header", part("x: " + "y" * 10_000), TYPE, 400, "invalid_request"),
    ("empty_model", multipart({"model": ""}, [GOOD_PNG])[0], TYPE, 400, "invalid_request"),
    ("empty_model", multipart({"model": ""}, [GOOD_PNG])[0], TYPE, 400, "invalid_request"),
    ("no_file", multipart(FIELDS, [])[0], TYPE, 400, "invalid_request"),
    ("long_text", multipart({"model": "m" * (MAX_TEXT_BYTES + 1)}, [GOOD_PNG])[0], TYPE, 400, "invalid_request"),
    ("text_not_utf8", multipart({"model": b"\xff"}, [GOOD_PNG])[0], TYPE, 400, "invalid_request"),
    ("four_files", multipart(FIELDS, [GOOD_PNG] * 4)[0], TYPE, 400, "too_many_images"),
    *[
        (f"top_k_{value!r}", multipart({"model": "m", "top_k": value}, [GOOD_PNG])[0], TYPE, 400, "invalid_request")
        for value in ("", "0", "-1", "1.5", "x", "NaN", "１", "1_0", " 1", "9" * 5000, "1001")
    ],
    *[
        (f"vireo_{value}", multipart({"model": "fake-nano", "vireo": value}, [GOOD_PNG])[0], TYPE, 400, code)
        for value, code in {
            "": "invalid_request",
            "[]": "invalid_request",
            '{"latency_ms": NaN}': "invalid_request",
            '{"latency_ms": 1, "latency_ms": 2}': "invalid_request",
            '{"latency": 1}': "unknown_field",
        }.items()
    ],
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "body", "content_type", "status", "code"), BAD_FORMS, ids=[row[0] for row in BAD_FORMS]
)
async def test_bad_form_is_refused(name: str, body: bytes, content_type: str, status: int, code: str) -> None:
    door = FrontDoor(limits=LIMITS)
    reply = await asgi(door.app, "POST", "/v1/classify", body, {"content-type": content_type})
    assert (reply.status, reply.error["code"]) == (status, code)
    assert not door.service.requests


@pytest.mark.parametrize("num_missing", [1, 3, 20, 60])
def test_form_that_was_cut_off_is_never_served_in_part(num_missing: int) -> None:
    body, _ = multipart({"model": "m"}, [b"first", b"second" * 20])
    with pytest.raises(InvalidRequest, match="closing boundary"):
        read(body.removesuffix(b"\r\n")[:-num_missing])


@pytest.mark.parametrize("name", ["model", "top_k", "vireo"])
def test_repeated_text_field_is_refused(name: str) -> None:
    once = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n1\r\n'.encode()
    with pytest.raises(ClientError, match="twice"):
        read(once * 2 + f"--{BOUNDARY}--\r\n".encode())


async def test_budget_of_a_form_is_named_as_in_json() -> None:
    body, content_type = multipart({"model": "fake-nano", "vireo": '{"energy_j": -1}'}, [GOOD_PNG])
    reply = await asgi(FrontDoor().app, "POST", "/v1/classify", body, {"content-type": content_type})
    assert reply.error["param"] == "vireo.energy_j"


def test_too_many_files_are_refused_before_they_are_read() -> None:
    body, content_type = multipart({"model": "m"}, [b"a", b"b", b"c", bytes(1000)])
    reader = FormReader(content_type, LIMITS)
    with pytest.raises(ClientError, match="more than 3 images"):
        reader.feed(body[: body.index(bytes(1000))])


PIECES = st.sampled_from(
    [
        f"--{BOUNDARY}".encode(), b"--", b"\r\n", b"\r", b"\n", b":", b";", b'name="file"', b'name="model"', b'name="',
        b"content-disposition: form-data; ", b"x", b"\0", b"\xff",
    ]
)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(PIECES | st.binary(max_size=8), max_size=25), st.lists(st.integers(0, 40), max_size=8))
def test_any_bytes_give_a_form_or_a_typed_error(pieces: list[bytes], sizes: list[int]) -> None:
    try:
        form = read(b"".join(pieces), sizes)
    except ClientError:
        return
    assert set(form.fields) <= {"model", "top_k", "vireo"}


@settings(max_examples=200)
@given(st.text(max_size=60).map(lambda tail: "multipart/form-data" + tail))
def test_any_content_type_gives_a_reader_or_a_typed_error(content_type: str) -> None:
    raw = content_type.encode("utf-8", "replace").decode("latin-1")
    with contextlib.suppress(UnsupportedMediaType, InvalidRequest):
        FormReader(raw, LIMITS).feed(b"x")
        assert "boundary" in content_type.lower()
