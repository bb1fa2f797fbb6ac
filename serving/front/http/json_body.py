"""JSON bodies: bounded while they are read, parsed where nobody waits for it, checked against a schema.

chunks -> JsonScanner -> plain text  --small-->  parsed here
                      |              --else--->  parsed in a process of its own
                      -> long strings (images), put back as they are
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic_core import ErrorDetails

from serving.confined import Confined, Limit, LimitReached
from serving.errors import InvalidRequest, UnknownField
from serving.front.front import shown
from serving.front.http.body import Headers, Receive, read_into
from serving.front.http.json_decode import decode_object, is_small, read_answer
from serving.front.http.json_scan import Bounds, JsonScanner, ScannedJson
from serving.limits import IngressLimits

Model = TypeVar("Model", bound=BaseModel)

BODY: Final = "body"
LIMIT: Final = "$limit"
_SUBJECT: Final = re.compile("Value error, |(Input|String|List|Dictionary) (?=should )")
"""What a message of pydantic begins with, where ours names the field."""
_PIECES_AT_A_TIME: Final = 16

_EMBEDDED_BYTES: Final = 1 << 16
"""Of a JSON text in a form field or in a message of gRPC."""

_MAX_ESCAPED_BYTES: Final = 3 << 20
"""A longer string is an image, or refused anyway: its escapes are not worth reading."""


class Strict(BaseModel):
    """No unknown fields, no silent conversions, no NaN."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Within:
    """Documents bounds that are checked elsewhere, as JSON schema names them: ``Within(maxItems=limit("max_images"))``
    is at most as many as the server is configured to take."""

    def __init__(self, **bounds: Any) -> None:
        self._bounds = bounds

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Called by pydantic."""
        return {**handler(schema), **self._bounds}


def limit(name: str) -> dict[str, str]:
    """Stands for the limit of that name (``IngressLimits``) in a schema, until the document is made."""
    return {LIMIT: name}


class JsonReader:
    """Parses the bodies of one gateway. The processes start when the first large body comes."""

    def __init__(self, *, num_processes: int = 2, memory_bytes: int = 256 << 20, timeout_s: float = 5.0) -> None:
        self._processes = Confined(
            "serving.front.http.json_decode:make_decoder",
            BODY,
            num_processes=num_processes,
            memory_bytes=memory_bytes,
            timeout_s=timeout_s,
            max_waiting=64,
        )

    @property
    def process_pids(self) -> list[int]:
        """Processes alive now."""
        return self._processes.pids

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    async def read(self, receive: Receive, headers: Headers, limits: IngressLimits, bounds: Bounds) -> dict[str, Any]:
        """Read a body that is one JSON object.

        Raises: as ``read_into``, ``JsonScanner`` and ``parse``.
        """
        scanner = JsonScanner(bounds)
        await read_into(receive, headers, limits, scanner.feed)
        return await self.parse(scanner.finish())

    async def parse(self, text: ScannedJson) -> dict[str, Any]:
        """Parse a scanned text. Long lists of numbers may come as ``Numbers``.

        Raises:
            InvalidRequest: no JSON object, or one with duplicate keys.
            QueueFull: too many large bodies wait to be parsed.
        """
        if is_small(len(text.plain), text.num_values):
            document = decode_object(text.plain, BODY)
        else:
            document = await self._parse_elsewhere(text.plain)
        return await _with_strings(document, text.strings) if text.strings else document

    async def _parse_elsewhere(self, plain: bytes) -> dict[str, Any]:
        try:
            return read_answer(await self._processes.call(plain))
        except LimitReached as error:
            what = "memory" if error.limit is Limit.MEMORY else "time"
            raise InvalidRequest(f"body takes more {what} to parse than it may; send less", param=BODY) from None


async def _with_strings(document: dict[str, Any], strings: dict[str, list[bytes]]) -> dict[str, Any]:
    """Put the long strings back where their words stand. Raises: InvalidRequest: one of them is a name."""
    texts = {}
    for word in list(strings):
        texts[word] = await _text(strings.pop(word))
        await asyncio.sleep(0)
    waiting: list[Any] = [document]
    num_found = 0
    while waiting:
        inner = waiting.pop()
        for key, value in list(inner.items() if isinstance(inner, dict) else enumerate(inner)):
            if isinstance(value, str) and value in texts:
                inner[key] = texts[value]
                num_found += 1
            elif isinstance(value, dict | list):
                waiting.append(value)
    if num_found < len(texts):
        raise InvalidRequest("the name of a field is far too long; check the body", param=BODY)
    return document


async def _text(pieces: list[bytes]) -> str:
    """Read a string's inside."""
    num_bytes = sum(map(len, pieces))
    try:
        if num_bytes <= _MAX_ESCAPED_BYTES:
            text: str = json.loads(f'"{b"".join(pieces).decode()}"')
            return text
        parts, held = [], b""
        for piece in pieces:
            whole, held = _without_half_an_escape(held + piece)
            whole = whole.replace(b"\\/", b"/")  # as some clients write slashes
            if b"\\" in whole:
                raise ValueError("no other escape is read at this length")
            parts.append(whole.decode("ascii"))
            if len(parts) % _PIECES_AT_A_TIME == 0:
                await asyncio.sleep(0)
        return "".join(parts)
    except ValueError:
        raise InvalidRequest(
            f"body holds a string of {num_bytes} bytes that is neither base64 nor valid JSON; correct it", param=BODY
        ) from None


def _without_half_an_escape(data: bytes) -> tuple[bytes, bytes]:
    """Split off a backslash at the end, whose other half is in the next piece. No string ends with one."""
    return (data[:-1], data[-1:]) if data.endswith(b"\\") else (data, b"")


def load_object(text: bytes, max_values: int, what: str, max_bytes: int = _EMBEDDED_BYTES) -> dict[str, Any]:
    """Parse a JSON object that is a part of something else.

    Raises: InvalidRequest, PayloadTooLarge: anything else, or over the bounds.
    """
    scanner = JsonScanner(Bounds(max_values=max_values, max_plain_bytes=max_bytes, max_string_bytes=max_bytes), what)
    scanner.feed(text)
    return decode_object(text, what)


def validate(model: type[Model], document: dict[str, Any]) -> Model:
    """Check a parsed body against its schema.

    Raises: UnknownField, InvalidRequest: naming the first field at fault.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _to_request_error(error.errors(include_url=False, include_context=False)[0]) from None


def _to_request_error(detail: ErrorDetails) -> InvalidRequest:
    param = ".".join(str(part)[:64] for part in detail["loc"]) or "body"
    if detail["type"] == "extra_forbidden":
        return UnknownField(f"field {shown(param)} is unknown; remove it, or check its spelling", param=param)
    if detail["type"] == "missing":
        return InvalidRequest(f"{param} is missing; send it", param=param)
    rule = _SUBJECT.sub("", detail["msg"])
    return InvalidRequest(f"{param} is {shown(detail['input'])}; it {rule}", param=param)
