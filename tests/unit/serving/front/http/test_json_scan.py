"""The scanner's bounds: counted outside strings, the same however the text is cut, and held while it arrives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import ClientError, InvalidRequest, PayloadTooLarge
from serving.front.http.body import PIECE_BYTES
from serving.front.http.json_scan import LONG_BYTES, MAX_DEPTH, MAX_NUMBER_CHARS, Bounds, JsonScanner, ScannedJson

BOUNDS = Bounds(max_values=1000, max_plain_bytes=1 << 20, max_string_bytes=1 << 22)


def scan(text: bytes, step: int = 1 << 30, bounds: Bounds = BOUNDS) -> ScannedJson:
    scanner = JsonScanner(bounds)
    for start in range(0, len(text), step):
        scanner.feed(text[start : start + step])
    return scanner.finish()


def restored(scanned: ScannedJson) -> bytes:
    text = scanned.plain
    for word, string in scanned.strings.items():
        assert text.count(word.encode()) == 1
        text = text.replace(word.encode(), b"".join(string))
    return text


def nested(depth: int) -> bytes:
    return b'{"a":' * (depth // 2) + b"[" * (depth - depth // 2) + b"]" * (depth - depth // 2) + b"}" * (depth // 2)


STEPS = pytest.mark.parametrize("step", [1, 7, 1 << 30])


@STEPS
def test_depth_is_bounded(step: int) -> None:
    assert scan(nested(MAX_DEPTH), step).plain == nested(MAX_DEPTH)
    with pytest.raises(InvalidRequest, match="32 levels"):
        scan(nested(MAX_DEPTH + 1), step)
    assert scan(b"[" + b"[],{}," * 100 + b"1]", step)


@STEPS
@pytest.mark.parametrize("part", [b"1,", b"[],", b'"",', b'{"a":1},', b"[[]],", b"{},"])
def test_values_are_bounded_whatever_they_are(part: bytes, step: int) -> None:
    with pytest.raises(InvalidRequest, match="1000 JSON values"):
        scan(b"[" + part * 1000 + b"1]", step)


@STEPS
def test_number_of_values_is_never_less_than_a_parser_finds(step: int) -> None:
    document = {"a": [1, [2, {"b": [], "c": {}}], "x,y[z"], "d": None}
    assert scan(json.dumps(document).encode(), step).num_values >= 9


@STEPS
@pytest.mark.parametrize("number", [b"%b", b"-0.%b", b"1e%b"])
def test_digits_are_bounded(number: bytes, step: int) -> None:
    with pytest.raises(InvalidRequest, match="1100 characters"):
        scan(b"[" + number % (b"1" * (MAX_NUMBER_CHARS + 1)) + b"]", step)
    assert scan(b"[" + b"1" * MAX_NUMBER_CHARS + b"," + b"1" * MAX_NUMBER_CHARS + b"]", step)


@STEPS
@pytest.mark.parametrize(
    "inside", [b"[" * 100_000, b"," * 100_000, b"1" * 100_000, b'\\"[' * 40_000, b'\\\\\\"[' * 20_000, b"\\\\" * 9]
)
def test_what_is_inside_strings_does_not_count(inside: bytes, step: int) -> None:
    text = b'{"a":"' + inside + b'","b":1}'
    assert restored(scan(text, max(step, 97))) == text


def test_reading_is_over_as_soon_as_a_bound_is_passed() -> None:
    scanner = JsonScanner(BOUNDS)
    with pytest.raises(InvalidRequest):
        scanner.feed(b"[" * 1000)
    scanner = JsonScanner(BOUNDS)
    scanner.feed(b"[" + b"1," * 500)
    with pytest.raises(InvalidRequest):
        scanner.feed(b"1," * 500)


def test_text_besides_long_strings_is_bounded() -> None:
    bounds = Bounds(max_values=1000, max_plain_bytes=100_000, max_string_bytes=1 << 22)
    with pytest.raises(PayloadTooLarge, match="100000 bytes besides"):
        scan(b" " * 200_000, PIECE_BYTES, bounds)
    assert scan(b'["' + b"A" * 1_000_000 + b'"]', PIECE_BYTES, bounds).strings
    with pytest.raises(PayloadTooLarge, match="a string of more than 4194304"):
        scan(b'["' + b"A" * 5_000_000, PIECE_BYTES, bounds)


@pytest.mark.parametrize("step", [1000, LONG_BYTES, PIECE_BYTES])
def test_long_strings_are_put_aside_as_they_are(step: int) -> None:
    first, second = b"A" * (2 * PIECE_BYTES), b'\\"\\\\\xc3\xa9' * PIECE_BYTES
    text = b'{"a": "' + first + b'", "b": ["short", "' + second + b'"]}'
    scanned = scan(text, step)
    assert [b"".join(pieces) for pieces in scanned.strings.values()] == [first, second]
    assert len(scanned.plain) < 200
    assert restored(scanned) == text


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(alphabet='a"\\[]{},é1', max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(alphabet='a"\\,', max_size=3), inner, max_size=5)
    ),
    max_leaves=30,
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@settings(max_examples=300)
@given(JSON, st.integers(1, 30))
def test_any_document_is_counted_as_a_parser_would_and_kept_whole(document: Any, step: int) -> None:
    text = json.dumps(document).encode()
    try:
        scanned = scan(text, step)
    except ClientError:
        assert depth(document) > MAX_DEPTH
        return
    assert depth(document) <= MAX_DEPTH
    assert restored(scanned) == text
    assert count(document) <= scanned.num_values <= 2 * count(document)
