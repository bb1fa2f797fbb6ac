"""Pictures that are fetched by URL: files in the artefact store, under names that expire and belong to one tenant.

A name carries its own proof (a MAC over tenant, id, expiry and format), so nothing else has to be stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable

from serving.errors import UnknownPath
from serving.service import StoredImage
from serving.stores.artefacts import ArtefactStore
from serving.stores.periodic import IMAGES, IMAGES_KEPT_S

_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,12})-([0-9a-f]{32})\.(png|jpeg|webp)")


class ImageFiles:
    """One per gateway; implements ``serving.service.ImageFiles``. ``kept_s``: how long a file can be fetched."""

    def __init__(
        self,
        store: ArtefactStore,
        secret: bytes,
        *,
        kept_s: float = IMAGES_KEPT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._secret = hmac.digest(secret, b"vireo image name", "sha256")
        self._kept_s = kept_s
        self._clock = clock

    async def put(self, tenant: str, data: bytes, format: str) -> StoredImage:
        """Store a file. Raises: StoreUnavailable."""
        image_id, expires_at = secrets.token_hex(16), int(self._clock() + self._kept_s)
        await self._store.put(_key(image_id, format), data, f"image/{format}")
        proof = self._proof(tenant, image_id, str(expires_at), format)
        return StoredImage(f"{image_id}-{expires_at}-{proof}.{format}", expires_at)

    async def read(self, tenant: str, name: str) -> tuple[bytes, str]:
        """A file and its media type. Raises: UnknownPath: not there, expired, or another tenant's; StoreUnavailable."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise _gone()
        image_id, expires_at, proof, format = found.groups()
        is_theirs = hmac.compare_digest(proof, self._proof(tenant, image_id, expires_at, format))
        if not is_theirs or self._clock() >= int(expires_at):
            raise _gone()
        try:
            return await self._store.read(_key(image_id, format)), f"image/{format}"
        except FileNotFoundError:
            raise _gone() from None

    def _proof(self, tenant: str, *parts: str) -> str:
        text = "\0".join((*parts, tenant)).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:32]


def _key(image_id: str, format: str) -> str:
    return f"{IMAGES}/{image_id}/image.{format}"


def _gone() -> UnknownPath:
    return UnknownPath("there is no such image, or no longer; ask for it again", param="name")
