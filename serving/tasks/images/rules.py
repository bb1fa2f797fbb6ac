"""Calls for images, from any surface: the rules they must keep, the request to the service, and encoding of files."""

from __future__ import annotations

import asyncio
import io
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy.typing as npt
from PIL import Image

from models.io import ImageIO
from serving.domain import Budget, ImageInput, Report, UnaryAnswer, UnaryReply, UnaryRequest
from serving.errors import InvalidRequest, ServingError, TooManyImages, UnsupportedField
from serving.front.front import BaseCall, check_unicode, shown
from serving.service import Card
from serving.tasks.images.schemas import SIZE

ImageFormat: TypeAlias = Literal["png", "jpeg", "webp"]
_QUALITY: Final = 95
_SEED_BITS: Final = 32
_SIZE: Final = re.compile(SIZE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesAsked:
    """What a caller wants. ``image``: the picture to change; None to make one from the prompt."""

    model: str
    prompt: str = ""
    negative_prompt: str = ""
    image: ImageInput | None = None
    count: int = 1
    size: str = "auto"
    format: ImageFormat = "png"
    compression: int | None = None
    seed: int | None = None
    budget: Budget = field(default_factory=Budget)
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesMade:
    """What was made: files, and their seeds if the model draws noise."""

    model: str
    files: tuple[bytes, ...]
    format: ImageFormat
    width: int
    height: int
    seeds: tuple[int, ...]
    report: Report

    @property
    def media_type(self) -> str:
        """Media type of the files."""
        return f"image/{self.format}"


def rows_of(call: BaseCall, asked: ImagesAsked) -> UnaryRequest:
    """What a call asks a model for, admitted. Raises: ClientError."""
    cards = call.front.service.cards_for("images")
    return call.front.admit(_request(call, asked, call.front.asked(asked.model, cards)), cards, call.visit)


async def make_images(call: BaseCall, asked: ImagesAsked, request: UnaryRequest) -> ImagesMade:
    """Answer a call. Raises: ServingError."""
    reply = await call.front.service.unary.answer(request)
    pictures = _pictures(reply)
    call.note_outcome(reply.items)
    files = await asyncio.to_thread(_encode, pictures, asked.format, asked.compression)
    height, width = pictures[0].shape[:2]
    return ImagesMade(
        model=reply.model,
        files=files,
        format=asked.format,
        width=width,
        height=height,
        seeds=request.seeds,
        report=reply.report,
    )


def _request(call: BaseCall, asked: ImagesAsked, card: Card) -> UnaryRequest:
    form, count = card.io, asked.count
    assert isinstance(form, ImageIO)
    for name, text in (("prompt", asked.prompt), ("negative_prompt", asked.negative_prompt)):
        if (length := len(text)) > (limit := call.front.limits.max_text_chars):
            raise InvalidRequest(f"{name} has {length} characters; the limit is {limit}; shorten it", param=name)
        check_unicode(text, name)
    _check(asked, card, form)
    if count > (limit := call.front.limits.max_images):
        raise TooManyImages(f"n is {count}; the limit is {limit}", param="n")
    first = secrets.randbits(_SEED_BITS) if asked.seed is None else asked.seed
    return UnaryRequest(
        request_id=call.request_id,
        surface=call.surface,
        tenant=call.tenant,
        model=card.id,
        images=() if asked.image is None else (asked.image,) * count,
        prompts=(asked.prompt,) * count if form.takes_prompt else (),
        seeds=tuple(range(first, first + count)) if form.is_seeded else (),
        is_drawn=form.is_seeded and asked.seed is None,
        budget=asked.budget,
        deadline_s=asked.deadline_s,
    )


def _check(asked: ImagesAsked, card: Card, form: ImageIO) -> None:
    if form.takes_picture and asked.image is None:
        raise InvalidRequest(f"{card.id} changes a picture; send one to /v1/images/edits (EditImage)", param="image")
    if asked.image is not None and not form.takes_picture:
        raise InvalidRequest(f"{card.id} takes no picture; ask /v1/images/generations (GenerateImage)", param="image")
    if form.takes_prompt and not asked.prompt.strip():
        raise InvalidRequest("prompt is empty; say what the picture shall show", param="prompt")
    if asked.prompt and not form.takes_prompt:
        raise UnsupportedField(f"prompt is not offered: {card.id} takes no words. Leave it empty", param="prompt")
    if asked.negative_prompt and not (form.takes_negative_prompt and card.shape == "job"):
        raise UnsupportedField(
            f"negative_prompt is not offered: {card.id} takes none. Leave it empty", param="negative_prompt"
        )
    if asked.seed is not None and not form.is_seeded:
        raise UnsupportedField(f"seed is not offered: {card.id} draws no noise. Remove it", param="seed")
    if asked.count > 1 and not form.is_seeded:
        raise InvalidRequest(f"n is {asked.count}; {card.id} draws no noise, all would be equal: send 1", param="n")
    if asked.compression not in (None, 100) and asked.format == "png":
        raise InvalidRequest(
            f"output_compression is {asked.compression}; PNG is lossless: send 100, or another output_format",
            param="output_compression",
        )
    if form.size and form.max_side:
        size_of(asked.size, form)
        return
    made = "x".join(map(str, form.size)) if form.size else None
    if asked.size not in ("auto", made):
        told = (
            f"{card.id} makes {made}"
            if made
            else f"the picture decides it, and {card.id} makes it {form.scale} times as large"
        )
        raise InvalidRequest(f"size is {shown(asked.size)}; {told}: send auto", param="size")


def size_of(size: str, form: ImageIO) -> tuple[int, int]:
    """Width and height of what is made of words. Raises: InvalidRequest: not what the model makes."""
    assert form.size is not None
    if size == "auto":
        return form.size
    found = _SIZE.fullmatch(size)
    try:
        if found is None:
            raise ValueError(f"size is {shown(size)}; send auto, or WIDTHxHEIGHT in pixels")
        width, height = int(found[1]), int(found[2])
        form.check_size(width, height)
    except ValueError as error:
        raise InvalidRequest(str(error), param="size") from None
    return width, height


def _pictures(reply: UnaryReply) -> list[npt.NDArray[Any]]:
    """All pictures of a call. Raises: ServingError: that of the first one that is missing."""
    for item in reply.items:
        if isinstance(item, ServingError):
            raise item
    return [item.outputs["image"] for item in reply.items if isinstance(item, UnaryAnswer)]


def _encode(pictures: Sequence[npt.NDArray[Any]], format: ImageFormat, compression: int | None) -> tuple[bytes, ...]:
    files = []
    for picture in pictures:
        file = io.BytesIO()
        options = {} if format == "png" else {"quality": _QUALITY if compression is None else compression}
        Image.fromarray(picture).save(file, format, **options)
        files.append(file.getvalue())
    return tuple(files)
