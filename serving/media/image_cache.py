"""Processed images of earlier requests, so that one that is sent again is neither decoded nor cut again.

The key is a hash of the encoded bytes that this server computes, with the model and the tenant: no tenant can learn by
timing what another one has sent. Each tenant has its own order of use, and room is made at the cost of the tenant that
holds most, so that one who floods the cache drives out its own images first.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

from serving.media.prepare import PreparedImage
from serving.telemetry.events import ImageLookedUp, ImagesHeld, Sink, ignore

_ENTRY_BYTES = 1024
"""What an entry costs beside its pixels, about."""
_HASHED_IN_PLACE = 256 << 10
"""Bytes hashed on the event loop, in 0.2 ms; more are hashed in a thread."""


class ImageKey(NamedTuple):
    """What a processed image depends on, and whose it is. Limits and processors do not change while a process runs."""

    tenant: str
    model_id: str
    max_tiles: int | None
    encoded_sha256: bytes


async def image_key(tenant: str, model_id: str, max_tiles: int | None, encoded: bytes) -> ImageKey:
    """Hash an encoded image. Never takes a hash from a client."""
    if len(encoded) <= _HASHED_IN_PLACE:
        digest = hashlib.sha256(encoded).digest()
    else:
        digest = (await asyncio.to_thread(hashlib.sha256, encoded)).digest()
    return ImageKey(tenant, model_id, max_tiles, digest)


class ProcessedImages:
    """Holds at most ``max_bytes`` of processed images; 0 holds none. Use from one event loop.

    Raises:
        ValueError: ``max_bytes`` is negative.
    """

    def __init__(self, max_bytes: int, tell: Sink = ignore) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes is {max_bytes}; it must be 0 or more")
        self._max_bytes = max_bytes
        self._tell = tell
        self._images: dict[str, OrderedDict[ImageKey, PreparedImage]] = {}
        self._held: dict[str, int] = {}
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held for all tenants together."""
        return self._num_bytes

    def get(self, key: ImageKey) -> PreparedImage | None:
        """Look an image up; its ``decode_ms`` is 0."""
        mine = self._images.get(key.tenant)
        image = mine.get(key) if mine is not None else None
        if mine is not None and image is not None:
            mine.move_to_end(key)
        self._tell(ImageLookedUp(key.model_id, image is not None))
        return image

    def put(self, key: ImageKey, image: PreparedImage) -> None:
        """Keep an image. One that is larger than the whole cache is not kept; one that is there already stays."""
        size = _size(image)
        if size > self._max_bytes or key in self._images.get(key.tenant, ()):
            return
        self._images.setdefault(key.tenant, OrderedDict())[key] = replace(image, decode_ms=0.0)
        self._count(key.tenant, size)
        while self._num_bytes > self._max_bytes:
            self._drop_one()
        self._tell(ImagesHeld(self._num_bytes))

    def _drop_one(self) -> None:
        """Drop what the tenant with most bytes has not used for longest."""
        tenant = max(self._held, key=self._held.__getitem__)
        _, image = self._images[tenant].popitem(last=False)
        self._count(tenant, -_size(image))
        if not self._images[tenant]:
            del self._images[tenant], self._held[tenant]

    def _count(self, tenant: str, num_bytes: int) -> None:
        self._held[tenant] = self._held.get(tenant, 0) + num_bytes
        self._num_bytes += num_bytes


def _size(image: PreparedImage) -> int:
    return image.pixels.nbytes + _ENTRY_BYTES
