"""The framing between the pool and its workers: fixed headers and raw bytes.

A worker handles hostile files, so what it sends back is parsed here as data. Nothing from a worker is ever unpickled.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np

from serving.domain import Pixels
from serving.errors import ImageTooLarge, InvalidImage, ServingError, UnsupportedMediaType
from serving.media.prepare import Grid, PreparedImage

_REQUEST = struct.Struct("<BHIIIQ")
_REPLY = struct.Struct("<BIIIIHHIId32sI")
"""Status; axes T, H, W, C of the pixels, T = 0 for no such axis; grid; original size; ms; hash; bytes that follow."""
REQUEST_BYTES = _REQUEST.size
REPLY_BYTES = _REPLY.size
MAX_OUTPUT_BYTES = 256 << 20
SHARED_FROM_BYTES = 256 << 10
"""Results of so many bytes are passed as memory: from about there on, that costs the reader less than copying them."""
_MAX_TEXT_BYTES = 1_000

Payload: TypeAlias = bytearray | memoryview
"""What belongs to a reply: received bytes, or shared memory."""


class Kind(IntEnum):
    """What the payload of a request is."""

    ENCODED = 1
    PIXELS = 2


class Status(IntEnum):
    """How a worker's job ended. After ``OK`` the pixels follow; with ``OK_SHARED`` comes a descriptor of them."""

    OK = 0
    INVALID = 1
    UNSUPPORTED = 2
    TOO_LARGE = 3
    INTERNAL = 4
    OK_SHARED = 5


_ERRORS: dict[Status, type[ServingError]] = {
    Status.INVALID: InvalidImage,
    Status.UNSUPPORTED: UnsupportedMediaType,
    Status.TOO_LARGE: ImageTooLarge,
}


class ProtocolError(Exception):
    """A worker sent something that is no reply; it must not be used again."""


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """Precedes ``model_bytes`` of model id and ``payload_bytes`` of payload; height and width for pixels only.
    ``max_tiles``: None, which is written as 0, for as many as the model takes."""

    kind: Kind
    model_bytes: int
    max_tiles: int | None
    height: int
    width: int
    payload_bytes: int

    @classmethod
    def unpack(cls, raw: bytes | bytearray) -> RequestHeader:
        """Parse ``REQUEST_BYTES`` bytes."""
        kind, model_bytes, max_tiles, height, width, payload_bytes = _REQUEST.unpack(raw)
        return cls(Kind(kind), model_bytes, max_tiles or None, height, width, payload_bytes)


def pack_request(
    kind: Kind, model_id: str, payload_bytes: int, height: int = 0, width: int = 0, max_tiles: int | None = None
) -> bytes:
    """Header and model id of a request; the payload follows."""
    model = model_id.encode()
    return _REQUEST.pack(kind, len(model), max_tiles or 0, height, width, payload_bytes) + model


def pack_reply(image: PreparedImage) -> bytes:
    """Header of a success; the pixels follow, or go with it."""
    num_tiles = 0 if image.grid is None else image.pixels.shape[0]
    return _REPLY.pack(
        Status.OK if image.pixels.nbytes < SHARED_FROM_BYTES else Status.OK_SHARED,
        num_tiles,
        *image.pixels.shape[-3:],
        *(image.grid or (0, 0)),
        *image.original_size,
        image.decode_ms,
        image.content_sha256,
        image.pixels.nbytes,
    )


def pack_error(error: ServingError) -> bytes:
    """Header and text of a refusal."""
    status = next((status for status, kind in _ERRORS.items() if type(error) is kind), Status.INVALID)
    return _pack_text(status, error.message)


def pack_internal_error() -> bytes:
    """Header of a failure that is not the image's. Carries no text: nobody outside may read it."""
    return _pack_text(Status.INTERNAL, "")


def _pack_text(status: Status, text: str) -> bytes:
    raw = text.encode()[:_MAX_TEXT_BYTES]
    return _REPLY.pack(status, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, b"", len(raw)) + raw


@dataclass(frozen=True, slots=True)
class ReplyHeader:
    """Precedes ``payload_bytes`` of pixels or error text. ``shape`` has three axes, or four if there is a ``grid``."""

    status: Status
    shape: tuple[int, ...]
    grid: Grid | None
    original_size: tuple[int, int]
    decode_ms: float
    content_sha256: bytes
    payload_bytes: int

    @classmethod
    def unpack(cls, raw: bytes | bytearray) -> ReplyHeader:
        """Parse and check ``REPLY_BYTES`` bytes.

        Raises:
            ProtocolError: impossible values.
        """
        code, num_tiles, height, width, channels, rows, cols, *original, decode_ms, digest, payload_bytes = (
            _REPLY.unpack(raw)
        )
        if code not in Status.__members__.values():
            raise ProtocolError(f"status {code}")
        if not rows * cols <= num_tiles <= rows * cols + 1 or (num_tiles == 1 and rows * cols != 1):
            raise ProtocolError(f"{num_tiles} tiles for a grid of {rows} x {cols}")
        shape = (num_tiles, height, width, channels) if num_tiles else (height, width, channels)
        is_ok = code in (Status.OK, Status.OK_SHARED)
        expected = math.prod(shape) if is_ok else min(payload_bytes, _MAX_TEXT_BYTES)
        if payload_bytes != expected or payload_bytes > MAX_OUTPUT_BYTES:
            raise ProtocolError(f"payload of {payload_bytes} bytes, expected {expected}")
        grid = (rows, cols) if num_tiles else None
        return cls(Status(code), shape, grid, (original[0], original[1]), decode_ms, digest, payload_bytes)

    @property
    def is_ok(self) -> bool:
        """Whether there are pixels."""
        return self.status in (Status.OK, Status.OK_SHARED)

    def to_image(self, payload: Payload) -> PreparedImage:
        """Build the result of a success. The array owns ``payload``."""
        pixels: Pixels = np.frombuffer(payload, dtype=np.uint8).reshape(self.shape)
        pixels.flags.writeable = False
        return PreparedImage(
            pixels=pixels,
            content_sha256=self.content_sha256,
            original_size=self.original_size,
            decode_ms=self.decode_ms,
            grid=self.grid,
        )

    def to_error(self, payload: Payload) -> ServingError | None:
        """Build the refusal, or None when the failure was internal."""
        kind = _ERRORS.get(self.status)
        return kind(bytes(payload).decode(errors="replace")) if kind else None
