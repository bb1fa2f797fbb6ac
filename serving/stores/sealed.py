"""Values that lie where others may write: each carries a MAC, made over its name too.

Whoever can write there, and does not know the deployment's secret, can neither forge a value nor move one to another
name. An older value of the same name can be put back: a MAC has no clock.

    value = version (1 byte) | HMAC-SHA256(key of the purpose, version | length of name | name | payload) | payload
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

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
