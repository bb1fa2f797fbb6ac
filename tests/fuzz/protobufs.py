"""Mutated protobuf messages to every RPC of a running system, over raw bytes.

Half of them are valid messages that were damaged; the others are well-formed messages with values nobody would send.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from vireo_pb.oip import open_inference_pb2 as oip
from vireo_pb.vireo.v1 import vireo_pb2

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 30.0
_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""What no request may cause: the other codes are answers to bad input."""
_INTEGERS = (0, 1, 2, 7, -1, 127, 128, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"))


@dataclass(frozen=True)
class Sent:
    """One call that ended badly. ``data`` is what was sent."""

    method: str
    data: bytes
    outcome: str


def methods() -> list[MethodDescriptor]:
    """Every RPC of ours."""
    files = (vireo_pb2.DESCRIPTOR, oip.DESCRIPTOR)
    return [method for file in files for service in file.services_by_name.values() for method in service.methods]


def run(address: str, seed: int, seconds: float, told: Callable[[int], None]) -> list[Sent]:
    """Send for ``seconds``; return what went wrong. ``told`` hears how many were sent."""
    draw, found, number = random.Random(seed), [], 0
    deadline_s = time.monotonic() + seconds
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        while time.monotonic() < deadline_s:
            method = draw.choice(methods())
            data = message_bytes(draw, method)
            outcome = _call(channel, method, data)
            if outcome is not None:
                found.append(Sent(method.full_name, data, outcome))
            number += 1
            told(number)
    return found


def message_bytes(draw: random.Random, method: MethodDescriptor) -> bytes:
    """A request for ``method``, most likely a bad one."""
    seeds = _SEEDS.get(method.input_type.full_name, ())
    message = draw.choice(seeds) if seeds and draw.random() < 0.6 else _random_message(draw, method.input_type, 3)
    data = message.SerializeToString()
    return data if draw.random() < 0.2 else _damaged(draw, data)


def _call(channel: grpc.Channel, method: MethodDescriptor, data: bytes) -> str | None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, True): channel.stream_stream,
    }
    call = kinds[method.client_streaming, method.server_streaming](path, None, None)
    argument = iter([data]) if method.client_streaming else data
    try:
        answer = call(argument, timeout=TIMEOUT_S)
        if method.server_streaming:
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}" if error.code() in _FAULTS else None
    return None


# -- bytes -----------------------------------------------------------------------------------------------------------


def _damaged(draw: random.Random, data: bytes) -> bytes:
    buffer = bytearray(data or b"\0")
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        at = draw.randrange(len(buffer) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(buffer):
            buffer[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del buffer[at : at + draw.choice((1, 4, 100))]
        elif kind == 2:
            buffer[at:at] = draw.randbytes(draw.choice((1, 2, 9, 200)))
        elif kind == 3:  # a length or a number that says too much
            buffer[at:at] = b"\xff" * draw.randrange(1, 10) + b"\x7f"
        else:
            piece = bytes(buffer[at : at + 50])
            buffer[at:at] = piece * draw.choice((1, 10, 500))
    return bytes(buffer)


# -- values ----------------------------------------------------------------------------------------------------------


def _random_message(draw: random.Random, descriptor: Descriptor, depth: int) -> Message:
    message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if draw.random() < 0.5:
            _fill(draw, message, field, depth)
    return message


def _fill(draw: random.Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for _ in range(draw.choice((1, 3))):
            entry = _random_message(draw, field.message_type, depth - 1)
            target = getattr(message, field.name)
            value = field.message_type.fields_by_name["value"]
            if value.message_type is None:
                target[entry.key] = entry.value  # type: ignore[attr-defined]
            else:
                target[entry.key].CopyFrom(entry.value)  # type: ignore[attr-defined]
        return
    values: Iterator[Any] = (_value(draw, field, depth) for _ in range(draw.choice((1, 1, 2, 40))))
    if field.is_repeated:
        getattr(message, field.name).extend([value for value in values if value is not None])
    elif (value := next(values)) is not None:
        if field.message_type is None:
            setattr(message, field.name, value)
        else:
            getattr(message, field.name).CopyFrom(value)


def _value(draw: random.Random, field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        return _random_message(draw, field.message_type, depth - 1) if depth > 0 else None
    if field.enum_type is not None:
        return draw.choice((0, 1, 2, 99))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return draw.choice(_FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return draw.random() < 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = draw.choice(_TEXTS)
        return text.encode("utf-8", "replace") if field.type == FieldDescriptor.TYPE_BYTES else text
    low, high = _RANGES[field.cpp_type]
    return min(max(draw.choice(_INTEGERS), low), high)


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_TEXTS = (
    "",
    "x",
    "dyn-perceiver-nano",
    "texthawk2-nano",
    "vdit-nano",
    "IMAGE",
    "BYTES",
    "UINT8",
    "../../etc/passwd",
    "\0",
    "😀" * 50,
    "a" * 5000,
    "<|endoftext|><image>",
    "data:image/png;base64,AAAA",
    "http://127.0.0.1/x",
    "NaN",
    '{"type": "array", "minItems": 1000000000}',
)


def _seeds() -> dict[str, Sequence[Message]]:
    digit = (ROOT / "examples" / "digit-7.png").read_bytes()
    word = (ROOT / "examples" / "word-en.png").read_bytes()
    chat = vireo_pb2.ChatRequest(model="texthawk2-nano", sampling=vireo_pb2.Sampling(max_tokens=8))
    turn = chat.messages.add(role=vireo_pb2.CHAT_ROLE_USER)
    turn.parts.add(image=word)
    turn.parts.add(text="Read the text.")
    infer = oip.ModelInferRequest(model_name="dyn-perceiver-nano", raw_input_contents=[_prefixed(digit)])
    infer.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
    typed = oip.ModelInferRequest(model_name="dyn-perceiver-nano")
    typed.inputs.add(name="IMAGE", datatype="BYTES", shape=[1]).contents.bytes_contents.append(digit)
    messages: tuple[Message, ...] = (
        vireo_pb2.ClassifyRequest(model="dyn-perceiver-nano", images=[digit, digit], top_k=3, id="one"),
        chat,
        vireo_pb2.GenerateVideoRequest(model="vdit-nano", prompt="a red circle moves left"),
        infer,
        typed,
    )
    seeds: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        seeds[message.DESCRIPTOR.full_name].append(message)
    return dict(seeds)


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


_SEEDS = _seeds()
