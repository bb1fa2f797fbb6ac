"""Items of a request as rows that can run: checked against what the model takes, and their pictures decoded."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from models.inputs import Array, Inputs, row_of
from models.io import ImageIO, ImageRequest, RowIO
from serving.domain import RANKS, ImageInput, UnaryRequest
from serving.errors import InvalidRequest, ServingError, TooManyImages
from serving.media.limits import MediaBudget
from serving.media.pool import Caller, MediaPool
from serving.media.prepare import PreparedImage
from serving.service import Card

Words = Callable[[str], Array]
"""What a network takes of a prompt."""


class Row(NamedTuple):
    """An item that can run. ``content``: digest of all that went in. ``request``: what its cost depends on, if any."""

    inputs: Inputs
    content: bytes
    request: ImageRequest | None

    def png(self) -> bytes:
        """Its picture."""
        file = BytesIO()
        Image.fromarray(self.inputs["picture"] if isinstance(self.inputs, Mapping) else self.inputs).save(file, "PNG")
        return file.getvalue()


def check_items(card: Card, request: UnaryRequest, max_images: int) -> None:
    """Pass a request that has what the model takes, once for each item. Raises: TooManyImages, InvalidRequest."""
    io, count = card.io, request.num_items
    if count > max_images:
        raise TooManyImages(f"the request has {count} images; limit is {max_images}; split it", param="images")
    columns = (
        ("image", "images", request.images, io.takes_picture),
        ("prompt", "prompt", request.prompts, io.takes_prompt),
        ("seed", "seed", request.seeds, io.is_seeded),
    )
    for name, param, column, is_taken in columns:
        if column and not is_taken:
            raise InvalidRequest(f"{card.id} takes no {name}; leave it out", param=param)
        if is_taken and not column:
            raise InvalidRequest(f"the request has no {name}; send at least one", param=param)
        if column and len(column) != count:
            raise InvalidRequest(f"{len(column)} of {name} for {count} items; send one for each", param=param)
    if isinstance(io, ImageIO) and (longest := max(map(len, request.prompts), default=0)) > io.max_prompt_chars:
        raise InvalidRequest(f"prompt has {longest} characters; {card.id} takes {io.max_prompt_chars}", param="prompt")


async def read_rows(
    media: MediaPool, io: RowIO, words: Words | None, request: UnaryRequest
) -> list[Row | ServingError]:
    """A row for each item, or what is wrong with its picture."""
    pictures = await _pictures(media, request)
    if not (request.prompts or request.seeds):
        return [_row(io, each) if isinstance(each, PreparedImage) else each for each in pictures]
    read = {prompt: words(prompt) for prompt in set(request.prompts)} if words else {}
    rows: list[Row | ServingError] = []
    for index in range(request.num_items):
        picture = pictures[index] if pictures else None
        if isinstance(picture, ServingError):
            rows.append(picture)
            continue
        prompt = request.prompts[index] if request.prompts else ""
        seed = request.seeds[index] if request.seeds else None
        rows.append(_row(io, picture, read.get(prompt), seed, prompt))
    return rows


async def _pictures(media: MediaPool, request: UnaryRequest) -> Sequence[PreparedImage | ServingError]:
    budget = MediaBudget(media.limits)
    caller = Caller(request.tenant, RANKS[request.budget.priority])
    first = request.images[0] if request.images else None
    if first is not None and all(image is first for image in request.images):  # it is decoded once
        return [await _picture(media, first, request.model, budget, caller)] * len(request.images)
    return await asyncio.gather(*(_picture(media, image, request.model, budget, caller) for image in request.images))


async def _picture(
    media: MediaPool, image: ImageInput, model: str, budget: MediaBudget, caller: Caller
) -> PreparedImage | ServingError:
    if image.error is not None:
        return image.error
    try:
        if image.pixels is not None:
            return await media.prepare_pixels(image.pixels, model, budget, caller)
        return await media.prepare(image.encoded or b"", model, budget, caller)
    except ServingError as error:
        return error


def _row(
    io: RowIO,
    picture: PreparedImage | None,
    words: Array | None = None,
    seed: int | None = None,
    prompt: str = "",
) -> Row:
    content, request = picture.content_sha256 if picture is not None else b"", None
    if words is not None or seed is not None:
        content = hashlib.sha256(b"%b %d %b" % (content, -1 if seed is None else seed, prompt.encode())).digest()
    if isinstance(io, ImageIO):
        width, height = io.size or (0, 0)
        if picture is not None:
            height, width = picture.pixels.shape[:2]
        request = ImageRequest(width=width, height=height)
    return Row(row_of(None if picture is None else picture.pixels, words, seed), content, request)
