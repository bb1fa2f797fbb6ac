"""Values that lie where others may write, and exact results among them: each carries a MAC, made over its name too.

Whoever can write there, and does not know the deployment's secret, can neither forge a value nor move one to another
name. An older value of the same name can be put back: a MAC has no clock.

    value = version (1 byte) | HMAC-SHA256(key of the purpose, version | length of name | name | payload) | payload
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import astuple, dataclass
from typing import Any, Final

import msgspec

from serving.telemetry.events import ResultRejected, Sink, ignore

_VERSION: Final = b"\x01"
_MAC_BYTES: Final = 32
_HEADER_BYTES: Final = 1 + _MAC_BYTES


class Sealer:
    """Seals and opens values of one purpose; those of another one are not opened."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._key = hmac.digest(secret, f"vireo {purpose}".encode(), "sha256")

    def seal(self, name: str, payload: bytes) -> bytes:
        """The payload as it may be stored under ``name``."""
        return _VERSION + self._mac(name, payload) + payload

    def open(self, name: str, value: bytes) -> bytes | None:
        """The payload; None if this is not what was sealed under ``name``."""
        payload = memoryview(value)[_HEADER_BYTES:]
        mac = value[1:_HEADER_BYTES]
        if value[:1] != _VERSION or not hmac.compare_digest(mac, self._mac(name, payload)):
            return None
        return bytes(payload)

    def _mac(self, name: str, payload: bytes | memoryview) -> bytes:
        raw = name.encode()
        mac = hmac.new(self._key, _VERSION + len(raw).to_bytes(8, "big") + raw, hashlib.sha256)
        mac.update(payload)
        return mac.digest()


PAYLOAD_VERSION = b"\x02"
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
