"""Chat requests of the end-to-end tests, as the ``openai`` client, plain sockets and gRPC send them, and pictures."""

from __future__ import annotations

import base64
import itertools
import json
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
from vireo_pb.vireo.v1 import vireo_pb2

from tests.e2e.surfaces import Door
from tests.support.chat_system import CHAT_MODEL
from tests.support.media_files import encode
from tests.support.system import ROOT, System

_COUNT = itertools.count(secrets.randbelow(9 * 10**8) + 10**8)


def fresh_question() -> str:
    """Words that were never sent before, so that no cache knows their answer."""
    return f"Describe the image. Number {next(_COUNT)}."


def fresh_png(height: int = 224, width: int = 224) -> bytes:
    """A picture that was never sent before: blocks of random colours."""
    rng = np.random.default_rng(next(_COUNT))
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    return encode(np.kron(blocks, np.ones((16, 16, 1), np.uint8))[:height, :width])


def example(name: str) -> Path:
    """A committed example."""
    return ROOT / "examples" / name


# -- OpenAI's form -----------------------------------------------------------------------------------------------------


def image_part(data: bytes) -> dict[str, Any]:
    """An image as a data URL."""
    return url_part(f"data:image/png;base64,{base64.b64encode(data).decode()}")


def url_part(url: str) -> dict[str, Any]:
    """An image by its URL."""
    return {"type": "image_url", "image_url": {"url": url}}


def turn(text: str, *images: bytes) -> list[Any]:
    """Messages with one turn of a user: the images, then the text."""
    return [{"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}]


def body_of(messages: Sequence[Any], **fields: Any) -> dict[str, Any]:
    """A body; the likeliest tokens unless told otherwise."""
    return {"model": CHAT_MODEL, "messages": list(messages), "temperature": 0, "max_tokens": 24, **fields}


# -- plain sockets -----------------------------------------------------------------------------------------------------


class RawChat:
    """A request on a connection of its own that can be cut at any moment. Use as a context."""

    def __init__(self, system: System, key: str, body: Mapping[str, Any], timeout_s: float = 150.0) -> None:
        self._connection = HTTPConnection("127.0.0.1", system.port, timeout=timeout_s)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self._socket: socket.socket = self._connection.sock
        self._response: HTTPResponse | None = None

    def __enter__(self) -> RawChat:
        return self

    def __exit__(self, *_error: object) -> None:
        self.leave()

    def response(self) -> HTTPResponse:
        """Wait for the head of the answer."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    def events(self) -> Iterator[Any]:
        """Wait for server-sent events: objects, and at last ``"[DONE]"`` if it comes; ends with the connection."""
        for line in self.response():
            if line.startswith(b"data: "):
                data = line.removeprefix(b"data: ").strip()
                yield "[DONE]" if data == b"[DONE]" else json.loads(data)

    def leave(self) -> None:
        """Cut the connection, whatever is on its way."""
        if self._response is not None:
            self._response.close()
        self._connection.close()
        self._socket.close()


def has_text(event: Any) -> bool:
    """Whether an event holds a piece of an answer."""
    return isinstance(event, dict) and any(choice["delta"].get("content") for choice in event.get("choices", []))


# -- gRPC --------------------------------------------------------------------------------------------------------------


@dataclass
class GrpcAnswer:
    """The events of a whole call, joined."""

    text: str = ""
    num_tokens: int = 0
    end: vireo_pb2.ChatEnd = field(default_factory=vireo_pb2.ChatEnd)


def grpc_request(text: str, *images: bytes, **sampling: Any) -> vireo_pb2.ChatRequest:
    """One turn of a user: the images, then the text."""
    parts = [*(vireo_pb2.ChatPart(image=image) for image in images), vireo_pb2.ChatPart(text=text)]
    options = {"temperature": 0, "max_tokens": 24, **sampling}
    return vireo_pb2.ChatRequest(
        model=CHAT_MODEL,
        messages=[vireo_pb2.ChatMessage(role=vireo_pb2.CHAT_ROLE_USER, parts=parts)],
        sampling=vireo_pb2.Sampling(**options),
    )


def grpc_call(door: Door, request: vireo_pb2.ChatRequest, timeout_s: float = 120.0) -> Any:
    """A call on its way: iterate over it, cancel it."""
    return door.vireo.Chat(request, timeout=timeout_s, metadata=tuple(door.metadata))


def grpc_answer(responses: Any) -> GrpcAnswer:
    """Read a call to its end, which must be there, and last."""
    answer, is_over = GrpcAnswer(), False
    for response in responses:
        assert not is_over, "something follows the end"
        if response.HasField("end"):
            answer.end, is_over = response.end, True
        else:
            answer.text += response.delta.text
            answer.num_tokens += response.delta.num_tokens
    assert is_over, "the stream stopped without an end"
    return answer
