"""Names under which a tenant's prefixes and images are kept on replicas. Derived here and nowhere else.

They are keyed with the deployment's secret and hold the tenant: two tenants never share what a replica keeps, so that
nobody can find out by timing what somebody else has sent; and nobody outside can compute them.
"""

from __future__ import annotations

import hashlib
import hmac

_KEY_BYTES = 16


class TenantKeys:
    """Derives the names. Holds a secret."""

    def __init__(self, secret: bytes) -> None:
        self._salt_secret = hmac.digest(secret, b"vireo chat cache salt", "sha256")
        self._image_secret = hmac.digest(secret, b"vireo chat image key", "sha256")

    def cache_salt(self, tenant: str) -> str:
        """Hex; parts the prefix caches of tenants."""
        return _name(self._salt_secret, tenant.encode())

    def image_key(self, tenant: str, model: str, content_sha256: bytes) -> str:
        """Hex; the same for the same pixels, tenant and model. ``content_sha256`` is the server's own, 32 bytes."""
        return _name(self._image_secret, tenant.encode(), model.encode(), content_sha256)


def _name(secret: bytes, *fields: bytes) -> str:
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for field in fields:
        mac.update(len(field).to_bytes(8, "big") + field)
    return mac.digest()[:_KEY_BYTES].hex()
