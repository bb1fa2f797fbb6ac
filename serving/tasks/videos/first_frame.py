"""The picture that a clip begins with: from what was sent to a PNG of exactly the size of the clip.

It goes the way of a chat's pictures: the same fetcher, decode workers, limits and account.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import math
import time
from dataclasses import dataclass, replace

from PIL import Image, ImageOps

from models.contract import SettingError
from models.io import ClipIO
from serving.domain import RANKS, ImagePart, Pixels
from serving.errors import ClientError, ImageTooLarge, ImageUrlRefused
from serving.front.front import check_unicode, shown
from serving.front.images import decode_base64, decode_url, is_data_url, parse_data_url
from serving.limits import IngressLimits
from serving.media.pool import Caller
from serving.media.request_images import RequestImages
from serving.refusals import FIRST_FRAME, refused
from serving.tasks.videos.rules import VideoRequest

_PNG_LEVEL = 1
"""Pictures are stored for as long as their job, on our own side: time counts for more than bytes."""


async def with_first_frame(
    request: VideoRequest, limits: IngressLimits, *, file: bytes | None = None, text: str | None = None
) -> VideoRequest:
    """Return the request with a picture that came as a file or as text: a data: URL, an https URL or base64.

    Raises: InvalidImage, ImageTooLarge, ImageUrlRefused.
    """
    if file is None and text is None:
        return request
    try:
        part = ImagePart(encoded=file, param=FIRST_FRAME) if file is not None else await _part(text or "", limits)
        if part.encoded is not None:
            _check_bytes(len(part.encoded), limits)
    except ClientError as error:
        error.param = FIRST_FRAME
        raise
    said = part.url
    if part.encoded is not None and request.idempotency_key:
        said = (await asyncio.to_thread(hashlib.sha256, part.encoded)).hexdigest()
    return replace(request, first_frame=part, asked=request.asked.model_copy(update={FIRST_FRAME: said}))


async def _part(text: str, limits: IngressLimits) -> ImagePart:
    if is_data_url(text):
        url = parse_data_url(text)
        _check_bytes(url.most_bytes - 2, limits)
        return ImagePart(encoded=await decode_url(url), param=FIRST_FRAME)
    if text[:8].lower() == "https://":
        if len(text) > limits.max_url_chars:
            raise ImageUrlRefused(f"URL of the image has {len(text)} characters; the limit is {limits.max_url_chars}")
        check_unicode(text, FIRST_FRAME)
        return ImagePart(url=text, param=FIRST_FRAME)
    if "://" in text[:16]:
        raise ImageUrlRefused(f"image is {shown(text)}; send an https:// URL, a data: URL or base64")
    _check_bytes(len(text) // 4 * 3 - 2, limits)
    return ImagePart(encoded=await decode_base64(text), param=FIRST_FRAME)


def _check_bytes(num_bytes: int, limits: IngressLimits) -> None:
    if num_bytes > limits.max_bytes_per_image:
        raise ImageTooLarge(
            f"image has {num_bytes} bytes; the limit is {limits.max_bytes_per_image}. Send a smaller one"
        )


@dataclass(frozen=True, slots=True)
class FirstFrames:
    """``JobModel.prepare`` of a model whose clips begin with a picture."""

    images: RequestImages
    io: ClipIO

    async def __call__(self, request: VideoRequest) -> VideoRequest:
        """Return the request with its picture as the clip needs it, and the size of the clip.

        Raises: ServingError: the picture cannot be had, or the size is not one of the model.
        """
        if request.first_frame is None:
            return request
        asked, latency_ms = request.asked, request.budget.latency_ms
        if asked.width and asked.height:
            with refused(self.io):
                self.io.check_size(asked.width, asked.height)
        caller = Caller(request.tenant, RANKS[request.budget.priority])
        deadline_s = math.inf if latency_ms is None else time.monotonic() + latency_ms / 1e3
        fetched = await self.images.fetch([request.first_frame], caller, deadline_s)
        (image,) = await self.images.prepare(fetched, request.model, caller)
        height, width, _ = image.pixels.shape
        size = (asked.width, asked.height) if asked.width and asked.height else size_like(self.io, width, height)
        return replace(request, size=size, picture=await asyncio.to_thread(fitted, image.pixels, size))


def size_like(io: ClipIO, width: int, height: int) -> tuple[int, int]:
    """The size of the model that is most like a picture in its proportions; of equals, the more usual. Where sides are
    free, one of those proportions that has about as many pixels as the usual size."""
    aspect = width / height
    sizes = [(io.width, io.height), *io.sizes]
    if io.max_side:
        area = io.width * io.height
        free = (_side(io, math.sqrt(area * aspect)), _side(io, math.sqrt(area / aspect)))
        if _is_possible(io, free):
            sizes.append(free)
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] / aspect)))


def _side(io: ClipIO, pixels: float) -> int:
    low, high = -(-io.min_side // io.multiple), io.max_side // io.multiple
    return io.multiple * min(high, max(low, round(pixels / io.multiple)))


def _is_possible(io: ClipIO, size: tuple[int, int]) -> bool:
    try:
        io.check_size(*size)
    except SettingError:
        return False
    return True


def fitted(pixels: Pixels, size: tuple[int, int]) -> bytes:
    """Scale a picture until it covers a size, cut out the middle, and return it as PNG."""
    file = io.BytesIO()
    picture = ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS)
    picture.save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
