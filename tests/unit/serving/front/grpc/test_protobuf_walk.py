"""The walk over a message's bytes: agrees with the parser, and does no more work than it admits fields."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

from serving.errors import InvalidRequest, UnknownField
from serving.front.grpc.protobuf_walk import check, id_of, plan_of
from serving.front.grpc.registration import SERVICES, methods_of
from serving.limits import MAX_TYPED_ELEMENTS, IngressLimits

LIMITS = IngressLimits()
KINDS = sorted(
    {method.input_type.full_name: method.input_type for service in SERVICES for method in methods_of(service)}.items()
)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, (1 << 32) - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, (1 << 64) - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(0, 3),
    FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_STRING: st.text(max_size=20),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=300),
}


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor) -> Message:
    """Any message of a kind."""
    message = GetMessageClass(descriptor)()
    fields = list(descriptor.fields)
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda field: field.name)) if fields else ():
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            key, entry = field.message_type.fields
            for name in draw(st.lists(SCALARS[key.type], max_size=3)):
                if entry.message_type:
                    value[name].CopyFrom(draw(messages(entry.message_type)))
                else:
                    value[name] = draw(SCALARS[entry.type])
        elif field.is_repeated and field.message_type:
            value.extend(draw(st.lists(messages(field.message_type), max_size=3)))
        elif field.is_repeated:
            value.extend(draw(st.lists(SCALARS[field.type], max_size=5)))
        elif field.message_type:
            value.CopyFrom(draw(messages(field.message_type)))
        else:
            setattr(message, field.name, draw(SCALARS[field.type]))
    return message


any_message = st.sampled_from([kind for _name, kind in KINDS]).flatmap(messages)


def num_fields(message: Message) -> int:
    """Fields on the wire of what protobuf itself writes: a packed field is one, a map entry is one and its two."""
    total = 0
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            total += 3 * len(value)
            if field.message_type.fields[1].message_type:
                total += sum(num_fields(entry) for entry in value.values())
        elif field.message_type:
            values = value if field.is_repeated else [value]
            total += len(values) + sum(map(num_fields, values))
        elif field.is_repeated and field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
            total += len(value)
        else:
            total += 1
    return total


def limits_of(max_message_fields: int, max_text_chars: int = 1000) -> IngressLimits:
    return cast(IngressLimits, SimpleNamespace(max_message_fields=max_message_fields, max_text_chars=max_text_chars))


@given(any_message)
def test_walk_admits_what_protobuf_writes_and_counts_its_fields(message: Message) -> None:
    data, plan, count = message.SerializeToString(), plan_of(cast(Descriptor, message.DESCRIPTOR)), num_fields(message)
    check(data, plan, limits_of(count))
    if count:
        with pytest.raises(InvalidRequest, match="fields, the limit"):
            check(data, plan, limits_of(count - 1))


def has_unknown(message: Message) -> bool:
    """Whether a message has a field that its schema does not know, at any depth."""
    if len(UnknownFieldSet(message)):
        return True
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            values = list(value.values()) if field.message_type.fields[1].message_type else []
        elif field.message_type:
            values = list(value) if field.is_repeated else [value]
        else:
            continue
        if any(map(has_unknown, values)):
            return True
    return False


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Descriptor, bytes]:
    """Bytes near those of a message: some changed, some cut off, some added, or any at all."""
    message = draw(any_message)
    data = bytearray(message.SerializeToString())
    for position, byte in draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4)):
        if data:
            data[position % len(data)] = byte
    cut = draw(st.integers(0, len(data)))
    tail = draw(st.binary(max_size=12))
    return cast(Descriptor, message.DESCRIPTOR), bytes(data[:cut]) + tail


@given(damaged())
def test_walk_and_parser_agree_on_what_a_message_is(case: tuple[Descriptor, bytes]) -> None:
    descriptor, data = case
    kind = GetMessageClass(descriptor)
    try:
        check(data, plan_of(descriptor), LIMITS)
    except InvalidRequest:
        try:
            parsed = kind.FromString(data)
        except DecodeError:
            return
        # Of a map the parser keeps the last of equal keys, and with it what else an entry had.
        assert has_unknown(parsed) or _has_map(descriptor)
    else:
        with suppress(DecodeError):  # of a text that is not UTF-8, which the walk does not read
            assert not has_unknown(kind.FromString(data))


def _has_map(descriptor: Descriptor) -> bool:
    return any(
        field.message_type and (field.message_type.GetOptions().map_entry or _has_map(field.message_type))
        for field in descriptor.fields
    )


class Counted:
    """Endless-looking bytes that are not there, and how many of them were read."""

    def __init__(self, pattern: bytes, num_bytes: int) -> None:
        self.pattern, self.num_bytes, self.num_read = pattern, num_bytes, 0

    def __len__(self) -> int:
        return self.num_bytes

    def __getitem__(self, index: int) -> int:
        self.num_read += 1
        return self.pattern[index % len(self.pattern)]


BOMBS = {
    "empty images": (vireo_pb2.ClassifyRequest, b"\x12\x00"),
    "empty turns": (vireo_pb2.ChatRequest, b"\x12\x00"),
    "the same field": (vireo_pb2.GenerateVideoRequest, b"\x20\x01"),
    "empty inputs": (oip.ModelInferRequest, b"\x2a\x00"),
    "empty contents": (oip.ModelInferRequest, b"\x2a\x02\x2a\x00"),
    "elements one by one": (oip.ModelInferRequest, b"\x2a\x04\x2a\x02\x20\x01"),
    "empty parameters": (oip.ModelInferRequest, b"\x22\x00"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_work_is_bounded_by_the_fields_admitted_and_not_by_the_bytes(name: str) -> None:
    kind, pattern = BOMBS[name]
    data = Counted(pattern, 60 << 20)
    with pytest.raises(InvalidRequest, match="fields, the limit"):
        check(cast(bytes, data), plan_of(cast(Descriptor, kind.DESCRIPTOR)), LIMITS)
    assert data.num_read <= 4 * LIMITS.max_message_fields


INFER = plan_of(cast(Descriptor, oip.ModelInferRequest.DESCRIPTOR))
CONTENTS: dict[str, Any] = {
    "bool_contents": True, "int_contents": -1, "int64_contents": 1 << 40, "uint_contents": 200,
    "uint64_contents": 1, "fp32_contents": 0.5, "fp64_contents": 0.5,
}  # fmt: skip


def typed(name: str, num_elements: int) -> bytes:
    contents = oip.InferTensorContents(**{name: [CONTENTS[name]] * num_elements})
    tensor = oip.ModelInferRequest.InferInputTensor(contents=contents)
    return oip.ModelInferRequest(inputs=[tensor]).SerializeToString()


@pytest.mark.parametrize("name", CONTENTS)
def test_packed_elements_are_counted(name: str) -> None:
    check(typed(name, MAX_TYPED_ELEMENTS), INFER, LIMITS)
    with pytest.raises(InvalidRequest, match="typed elements"):
        check(typed(name, MAX_TYPED_ELEMENTS + 1), INFER, LIMITS)


def test_elements_of_all_tensors_count_together() -> None:
    half = MAX_TYPED_ELEMENTS // 2 + 1
    with pytest.raises(InvalidRequest, match="typed elements"):
        check(typed("fp32_contents", half) + typed("uint_contents", half), INFER, LIMITS)


def test_text_is_bounded_and_bytes_are_not() -> None:
    long = "x" * (4 * LIMITS.max_text_chars + 1)
    with pytest.raises(InvalidRequest, match="bytes of text") as caught:
        check(oip.ModelInferRequest(model_name=long).SerializeToString(), INFER, LIMITS)
    assert caught.value.param == "model_name"
    check(oip.ModelInferRequest(raw_input_contents=[long.encode()]).SerializeToString(), INFER, LIMITS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xfa\x01\x02hi", "ModelInferRequest field 31"),
        (b"\x2a\x03\x98\x01\x01", "InferInputTensor field 19"),
        (b"\x2a\x04\x2a\x02\x48\x01", "InferTensorContents field 9"),
        (b"\x08\x01", "ModelInferRequest field 1"),  # a number where the schema has a text
        (b"\x0b\x0c", "ModelInferRequest field 1"),  # a group
    ],
)
def test_field_of_another_schema_is_named_at_any_depth(data: bytes, name: str) -> None:
    with pytest.raises(UnknownField) as caught:
        check(data, INFER, LIMITS)
    assert caught.value.param == name


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05abc", b"\x0a" + b"\xff" * 11, b"\xff" * 6, b"\x2a\x02\x0a\x05ab", b"\x2a\x02\x19\x00"]
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check(data, INFER, LIMITS)


def test_id_is_found_before_what_is_refused_and_nothing_else_is_taken_for_it() -> None:
    plan = plan_of(cast(Descriptor, vireo_pb2.ClassifyRequest.DESCRIPTOR))
    message = vireo_pb2.ClassifyRequest(model="m", id="mine").SerializeToString()
    assert id_of(message + b"\xfa\x01\x02hi", plan, LIMITS) == "mine"
    assert id_of(b"\x12\x00" * 100_000 + message, plan, LIMITS) == ""
    assert id_of(b"\x2a\x02\xff\xfe", plan, LIMITS) == "��"
