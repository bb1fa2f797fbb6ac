"""Counts what a protobuf message holds, in its bytes, before the parser makes an object of each piece.

Two bytes on the wire are an empty element of a repeated field, for which the parser makes some sixty: half a megabyte
after compression became gigabytes, and the seconds it took belonged to everybody. A walk goes from field to field and
over their contents, so that what it costs is bounded by the number of fields that it admits and not by the size of
the message. Source of the format: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from serving.errors import InvalidRequest, UnknownField
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits

_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5
_MAX_VARINT_BYTES, _MAX_TAG_BYTES = 10, 5
_HIGH_BYTES: Final = bytes(range(0x80, 0x100))
_FIXED: Final = {
    FieldDescriptor.TYPE_FIXED64: _I64,
    FieldDescriptor.TYPE_SFIXED64: _I64,
    FieldDescriptor.TYPE_DOUBLE: _I64,
    FieldDescriptor.TYPE_FIXED32: _I32,
    FieldDescriptor.TYPE_SFIXED32: _I32,
    FieldDescriptor.TYPE_FLOAT: _I32,
}


class _Content(Enum):
    """What a field holds that is no message."""

    NUMBER = auto()
    BYTES = auto()
    TEXT = auto()
    PACKED_VARINTS = auto()
    PACKED_4 = auto()
    PACKED_8 = auto()


_PACKED: Final = {_VARINT: _Content.PACKED_VARINTS, _I32: _Content.PACKED_4, _I64: _Content.PACKED_8}


@dataclass(frozen=True, slots=True)
class _Step:
    """What follows a tag."""

    name: str
    content: _Content
    inner: Plan | None = None
    is_id: bool = False
    """Whether it is the caller's own name of the request, which an error in a stream must bear."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The fields of a message, by their tags on the wire. Any other tag is unknown to this server."""

    name: str
    steps: Mapping[int, _Step] = field(repr=False)


def plan_of(message: Descriptor, is_outermost: bool = True) -> Plan:
    """Return how to walk a message. No message of ours contains itself."""
    steps: dict[int, _Step] = {}
    for one in message.fields:
        wire_type = _wire_type(one)
        content, inner = _Content.NUMBER, None
        if one.message_type is not None:
            inner = plan_of(one.message_type, is_outermost=False)
        elif wire_type == _LENGTH:
            content = _Content.TEXT if one.type == FieldDescriptor.TYPE_STRING else _Content.BYTES
        elif one.is_repeated:  # parsers take both forms, whatever the schema says
            steps[one.number << 3 | _LENGTH] = _Step(one.name, _PACKED[wire_type])
        is_id = is_outermost and one.name == "id" and content is _Content.TEXT
        steps[one.number << 3 | wire_type] = _Step(one.name, content, inner, is_id)
    return Plan(message.name, steps)


def _wire_type(one: FieldDescriptor) -> int:
    if one.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return _LENGTH
    return _FIXED.get(one.type, _VARINT)


def check(data: bytes, plan: Plan, limits: IngressLimits) -> None:
    """Walk a message.

    Raises:
        UnknownField: it has one. A field of a newer version of the protocol is refused rather than ignored: it may be a
            budget.
        InvalidRequest: it has more fields or elements, or longer texts, than any valid request, or is no such message.
    """
    _Walk(data, limits).message(0, len(data), plan)


def id_of(data: bytes, plan: Plan, limits: IngressLimits) -> str:
    """Return the field ``id`` of a message that is refused, as far as a walk comes; empty if it does not get there."""
    walk = _Walk(data, limits)
    with suppress(InvalidRequest):
        walk.message(0, len(data), plan)
    return walk.id.decode("utf-8", "replace")


class _Walk:
    """One walk over one message."""

    def __init__(self, data: bytes, limits: IngressLimits) -> None:
        self.id = b""
        self._data = data
        self._limits = limits
        self._fields_left = limits.max_message_fields
        self._elements_left = MAX_TYPED_ELEMENTS
        self._max_text_bytes = 4 * limits.max_text_chars

    def message(self, position: int, end: int, plan: Plan) -> None:
        """Walk from ``position`` to ``end``."""
        data, steps = self._data, plan.steps
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise InvalidRequest(
                    f"the message has more than {self._limits.max_message_fields} fields, the limit, elements of "
                    "repeated ones counted; send fewer"
                )
            tag, position = _varint(data, position, end, _MAX_TAG_BYTES)
            step = steps.get(tag)
            if step is None:
                raise _unknown(plan, tag)
            wire_type = tag & 7
            if wire_type == _LENGTH:
                length, position = _varint(data, position, end, _MAX_VARINT_BYTES)
                if length > end - position:
                    raise _malformed(plan)
                self._contents(step, position, position + length, plan)
                position += length
            elif wire_type == _VARINT:
                _, position = _varint(data, position, end, _MAX_VARINT_BYTES)
            else:
                position += 8 if wire_type == _I64 else 4
        if position != end:
            raise _malformed(plan)

    def _contents(self, step: _Step, start: int, end: int, plan: Plan) -> None:
        if step.inner is not None:
            self.message(start, end, step.inner)
        elif step.content is _Content.TEXT:
            if end - start > self._max_text_bytes:
                raise InvalidRequest(
                    f"{plan.name}.{step.name} has {end - start} bytes of text; the limit is {self._max_text_bytes}. "
                    "Shorten it",
                    param=step.name,
                )
            if step.is_id:
                self.id = self._data[start:end]
        elif step.content is not _Content.BYTES:
            self._elements(step, start, end)

    def _elements(self, step: _Step, start: int, end: int) -> None:
        num_bytes = end - start
        if step.content is _Content.PACKED_VARINTS:
            fewest = num_bytes // _MAX_VARINT_BYTES
            # Each element ends with its only byte below 0x80. Counted only where the length leaves it open.
            num_elements = (
                fewest if fewest > self._elements_left else len(self._data[start:end].translate(None, _HIGH_BYTES))
            )
        else:
            num_elements = num_bytes // (4 if step.content is _Content.PACKED_4 else 8)
        self._elements_left -= num_elements
        if self._elements_left < 0:
            raise InvalidRequest(
                f"{step.name} has more typed elements than {MAX_TYPED_ELEMENTS}, the limit of a message. "
                "Send raw bytes",
                param=step.name,
            )


def _varint(data: bytes, position: int, end: int, max_bytes: int) -> tuple[int, int]:
    """Return (value, position after it)."""
    if position < end and (first := data[position]) < 0x80:
        return first, position + 1
    value = shift = 0
    for index in range(position, min(end, position + max_bytes)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise InvalidRequest("the message is no valid protobuf; encode it with the published .proto files")


def _malformed(plan: Plan) -> InvalidRequest:
    return InvalidRequest(f"the message is no valid {plan.name}; encode it with the published .proto files")


def _unknown(plan: Plan, tag: int) -> UnknownField:
    name = f"{plan.name} field {tag >> 3}"
    return UnknownField(f"{name} is unknown to this server; remove it", param=name)
