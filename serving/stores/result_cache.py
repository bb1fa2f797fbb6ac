"""What an exact result is stored under and how: keyed digests, sealed values.

Redis is shared and not trusted: a value is accepted only if it was sealed (``serving.stores.sealed``) under its key, so
that whoever can write to Redis can neither forge a result nor move one from another key or tenant. No pickle: payloads
are MessagePack.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import astuple, dataclass
from typing import Any

import msgspec

from serving.stores.sealed import Sealer
from serving.telemetry.events import ResultRejected, Sink, ignore

PAYLOAD_VERSION = b"\x01"
"""Changes with any change of what a payload holds. Payloads do not depend on ``top_k``: they hold every class."""
MIN_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultKey:
    """Everything that an exact result depends on, and whose it is.

    ``operating_point`` must identify the thresholds, not only name them; ``processor_version`` the preprocessing;
    ``content_sha256`` the canonical pixels, hashed by this server.
    """

    tenant: str
    model: str
    checkpoint_sha256: str
    operating_point: str
    processor_version: str
    content_sha256: bytes


class ResultCache:
    """Turns keys and payloads into what is stored. Holds the secret, no connection.

    Raises:
        ValueError: the secret has fewer than ``MIN_SECRET_BYTES`` bytes.
    """

    def __init__(self, secret: bytes, tell: Sink = ignore) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(f"cache secret has {len(secret)} bytes; give at least {MIN_SECRET_BYTES} random ones")
        self._key_secret = hmac.digest(secret, b"vireo result key", "sha256")
        self._sealer = Sealer(secret, "result value")
        self._tell = tell

    def digest(self, key: ResultKey) -> str:
        """Name of a result: 64 hex digits that say nothing about the image without the secret."""
        mac = hmac.new(self._key_secret, PAYLOAD_VERSION, hashlib.sha256)
        for field in astuple(key):
            raw = field if isinstance(field, bytes) else field.encode()
            mac.update(len(raw).to_bytes(8, "big") + raw)
        return mac.hexdigest()

    def seal(self, digest: str, payload: dict[str, Any]) -> bytes:
        """Encode a payload for storage under ``digest``."""
        return self._sealer.seal(digest, msgspec.msgpack.encode(payload))

    def open(self, digest: str, value: bytes | None) -> dict[str, Any] | None:
        """Decode what was found under ``digest``; None, and a count, if it is not what we stored there."""
        if value is None:
            return None
        raw = self._sealer.open(digest, value)
        if raw is None:
            self._tell(ResultRejected())
            return None
        return msgspec.msgpack.decode(raw, type=dict[str, Any])
