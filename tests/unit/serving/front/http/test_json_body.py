"""Where a body is parsed, and that it means the same wherever that is."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving.errors import InvalidRequest, PayloadTooLarge
from serving.front.http.body import PIECE_BYTES
from serving.front.http.json_body import JsonReader
from serving.front.http.json_decode import MAX_OTHER_VALUES, MAX_VALUES_HERE, MIN_NUMBERS, Numbers
from serving.front.http.json_scan import Bounds, JsonScanner
from serving.limits import IngressLimits
from tests.support.clients import FrontDoor, asgi

BOUNDS = Bounds(max_values=1 << 18, max_plain_bytes=16 << 20, max_string_bytes=16 << 20)
MANY = list(range(MAX_VALUES_HERE))


@pytest.fixture
def reader() -> Iterator[JsonReader]:
    made = JsonReader(num_processes=1)
    yield made
    made.close()


async def parse(reader: JsonReader, text: bytes, step: int = PIECE_BYTES) -> dict[str, Any]:
    scanner = JsonScanner(BOUNDS)
    for start in range(0, len(text), step):
        scanner.feed(text[start : start + step])
    return await reader.parse(scanner.finish())


async def test_small_body_is_parsed_here(reader: JsonReader) -> None:
    assert await parse(reader, b'{"a": [1, 2.5, null, NaN]}', 5) == {
        "a": [1, 2.5, None, pytest.approx(math.nan, nan_ok=True)]
    }
    assert reader.process_pids == []


async def test_body_of_many_values_is_parsed_in_a_process(reader: JsonReader) -> None:
    document = {"a": {f"k{i}": [i, "é\ud83d\ude00", True, None, -1.5] for i in range(2000)}}
    assert await parse(reader, json.dumps(document).encode()) == json.loads(json.dumps(document))
    assert len(reader.process_pids) == 1


async def test_body_of_many_bytes_is_parsed_in_a_process(reader: JsonReader) -> None:
    assert await parse(reader, b'{"a": 1' + b" " * (3 << 20) + b"}") == {"a": 1}
    assert len(reader.process_pids) == 1


async def test_long_lists_of_numbers_come_as_arrays(reader: JsonReader) -> None:
    halves = [value / 2 for value in MANY]
    document = {"whole": MANY, "mixed": [0, *halves], "nested": [[MANY, MANY]], "short": [1, 2], "other": [*MANY, True]}
    parsed = await parse(reader, json.dumps(document).encode())
    whole, mixed, nested = parsed["whole"], parsed["mixed"], parsed["nested"]
    assert isinstance(whole, Numbers)
    assert (whole.levels, mixed.levels, nested.levels) == (1, 1, 3)
    assert (whole.array.dtype, mixed.array.dtype) == (np.int64, np.float64)
    assert whole.array.tolist() == MANY
    assert mixed.array.tolist() == [0.0, *halves]
    assert nested.array.tolist() == MANY + MANY
    assert parsed["short"] == [1, 2]
    assert parsed["other"] == [*MANY, True]


async def test_numbers_beyond_the_machine_s_stay_beyond_every_limit(reader: JsonReader) -> None:
    huge = [10**400, -(10**400), *[0] * MIN_NUMBERS]
    text = json.dumps({"a": huge, "b": [0.5, *huge], "c": 10**400, "d": MANY}).encode()
    parsed = await parse(reader, text)
    assert parsed["a"].array[:2].tolist() == [2**63 - 1, -(2**63)]
    assert parsed["b"].array[:3].tolist() == [0.5, math.inf, -math.inf]
    assert parsed["c"] == 2**63 - 1


@pytest.mark.parametrize("filler", ["", f', "z": {MANY}'], ids=["here", "in_a_process"])
@pytest.mark.parametrize(
    ("text", "message", "param"),
    [
        ('{"a": 1, "a": 2%s}', "'a' is there twice", "a"),
        ('{"a": {"b": 1, "\\u0062": 2}%s}', "'b' is there twice", "b"),
        ('{"a": [1, }%s}', "not valid JSON", "body"),
        ('[{"a": 1%s}]', "a list of 1", "body"),
        ('{"a": "\x01"%s}', "not valid JSON", "body"),
    ],
)
async def test_refusals_are_the_same_wherever_it_is_parsed(
    reader: JsonReader, text: str, message: str, param: str, filler: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        await parse(reader, (text % filler).encode())
    assert caught.value.param == param
    assert bool(reader.process_pids) == bool(filler)


async def test_other_values_are_bounded(reader: JsonReader) -> None:
    with pytest.raises(InvalidRequest, match=f"more than {MAX_OTHER_VALUES} JSON values besides"):
        await parse(reader, b'{"a": [' + b"true," * MAX_OTHER_VALUES + b"1]}")


async def test_half_a_surrogate_pair_is_refused_in_a_process(reader: JsonReader) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        await parse(reader, json.dumps({"a": "\ud83d", "z": MANY}).encode())


async def test_body_that_needs_too_much_memory_fails_alone() -> None:
    reader = JsonReader(num_processes=1, memory_bytes=8 << 20)
    try:
        with pytest.raises(InvalidRequest, match="more memory to parse"):
            await parse(reader, b'{"a": [' + b"1.5," * 200_000 + b"1]}")
        assert (await parse(reader, json.dumps({"z": MANY}).encode()))["z"].array.tolist() == MANY
    finally:
        reader.close()


@pytest.mark.parametrize("filler", [[], MANY], ids=["here", "in_a_process"])
async def test_long_strings_are_put_back(reader: JsonReader, filler: list[int]) -> None:
    image = base64.b64encode(bytes(range(256)) * 2000).decode()
    text = 'é"\\\n' * 50_000
    document = {"a": [image, {"b": text}], "c": image[::-1], "z": filler}
    parsed = await parse(reader, json.dumps(document).encode().replace(b"/", b"\\/"))
    assert parsed["a"] == [image, {"b": text}]
    assert parsed["c"] == image[::-1]


@pytest.mark.parametrize("string", [b"\x01" * PIECE_BYTES, b"\xff" * PIECE_BYTES, b"\\x" * PIECE_BYTES])
async def test_long_string_that_is_no_json_is_refused(reader: JsonReader, string: bytes) -> None:
    with pytest.raises(InvalidRequest, match="neither base64 nor valid JSON"):
        await parse(reader, b'{"a": "' + string + b'"}')


@pytest.mark.parametrize("offset", range(3))
async def test_slashes_of_a_very_long_string_are_read_wherever_a_piece_ends(reader: JsonReader, offset: int) -> None:
    image = "A" * offset + "/+ab" * 900_000
    body = json.dumps({"a": image}).encode().replace(b"/", b"\\/")
    assert len(body) > 4 << 20
    assert (await parse(reader, body))["a"] == image


async def test_no_other_escape_of_a_very_long_string_is_read(reader: JsonReader) -> None:
    with pytest.raises(InvalidRequest, match="neither base64 nor valid JSON"):
        await parse(reader, b'{"a": "' + b'\\"' * (2 << 20) + b'"}')


async def test_long_name_is_refused(reader: JsonReader) -> None:
    with pytest.raises(InvalidRequest, match="name of a field is far too long"):
        await parse(reader, b'{"' + b"a" * (2 * PIECE_BYTES) + b'": 1}')


# -- doors -----------------------------------------------------------------------------------------------------------

PATHS = ["/v1/classify", "/v1/chat/completions", "/v2/models/fake-nano/infer", "/v1/videos"]
BOMBS = {
    "brackets": (b"[", InvalidRequest.code),
    "lists": (b"[],", InvalidRequest.code),
    "objects": (b'{"a":', InvalidRequest.code),
    "numbers": (b"1,", InvalidRequest.code),
    "digits": (b"1", InvalidRequest.code),
    "strings": (b'"",', InvalidRequest.code),
    "spaces": (b" ", PayloadTooLarge.code),
}


class Endless:
    """A client that sends the same bytes for as long as it is listened to."""

    def __init__(self, start: bytes, part: bytes) -> None:
        self._next = start
        self._piece = part * (PIECE_BYTES // len(part))
        self.num_bytes = 0

    async def __call__(self) -> dict[str, Any]:
        piece, self._next = self._next, self._piece
        self.num_bytes += len(piece)
        return {"type": "http.request", "body": piece, "more_body": True}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BOMBS)
async def test_reading_stops_at_the_bound_on_every_path(name: str, path: str) -> None:
    part, code = BOMBS[name]
    door, client = FrontDoor(limits=IngressLimits(max_body_bytes=1 << 40)), Endless(b'{"model": "m", "a": [', part)
    headers = {"content-type": "application/json", "content-length": ""}
    reply = await asgi(door.app, "POST", path, headers=headers, receive=client)
    assert reply.error["code"] == code
    assert client.num_bytes < 24 << 20
    assert not door.service.requests


async def test_form_fields_have_the_same_bounds() -> None:
    door = FrontDoor()
    for part in (b"[", b"1", b"[],"):
        fields = b'--x\r\ncontent-disposition: form-data; name="vireo"\r\n\r\n{"a": ' + part * 1000
        body = b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n' + fields + b"\r\n--x--\r\n"
        body = body.replace(b"--x--", b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nx\r\n--x--')
        reply = await asgi(door.app, "POST", "/v1/classify", body, {"content-type": "multipart/form-data; boundary=x"})
        assert reply.error["param"] == "vireo"
        assert "limit" in reply.error["message"]


@pytest.mark.parametrize("nested", [False, True])
async def test_large_json_tensor_is_served(nested: bool) -> None:
    door = FrontDoor()
    array = np.random.default_rng(0).integers(0, 256, (2, 60, 50, 3))
    data = array.tolist() if nested else array.ravel().tolist()
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": array.shape, "data": data}
    assert (await door.post_json({"inputs": [tensor]}, "/v2/models/fake-nano/infer")).status == 200
    for image, expected in zip(door.service.requests[0].images, array, strict=True):
        assert image.pixels is not None
        np.testing.assert_array_equal(image.pixels, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [1, 60, 50, 1]}, "shape"),
        ({"shape": [1, 60, 51, 3]}, "9000 elements"),
        ({"data": [0.5] * 9000}, "elements of type float"),
        ({"data": [256] * 9000}, "between 256 and 256"),
        ({"data": [10**400] * 9000}, "UINT8 goes from 0 to 255"),
        ({"data": [[[[[0] * 9000]]]]}, "elements of type list"),
        ({"name": "IMAGE", "datatype": "BYTES", "shape": [1]}, "elements of type int"),
    ],
)
async def test_large_json_tensor_that_is_wrong_is_refused(changes: dict[str, Any], message: str) -> None:
    door = FrontDoor()
    tensor = {"name": "PIXELS", "datatype": "UINT8", "shape": [1, 60, 50, 3], "data": [0] * 9000} | changes
    reply = await door.post_json({"inputs": [tensor]}, "/v2/models/fake-nano/infer")
    assert reply.status == 400
    assert message in reply.error["message"]
