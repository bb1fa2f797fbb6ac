"""Rules of clips that hold on every surface and need no model. What depends on the model is ``resolve``'s."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Final

from serving.delivery.job.base import JobRequest, JobTask
from serving.delivery.job.http import check_key
from serving.domain import ImagePart
from serving.errors import InvalidRequest, UnknownVideo, UnsupportedField, VideoFailed, VideoNotReady
from serving.front.front import BaseCall, check_integer, check_number, check_unicode, shown
from serving.limits import IngressLimits
from serving.refusals import FIRST_FRAME
from serving.service import Card
from serving.tasks.videos.schemas import (
    KNOBS,
    MAX_FPS,
    MAX_FRAMES,
    MAX_GUIDANCE,
    MAX_LABEL_CHARS,
    MAX_NAME_CHARS,
    MAX_SECONDS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    SECONDS,
    SIZE,
    VideoBody,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoRequest(JobRequest[VideoBody]):
    """A call for a clip. ``first_frame``: the picture as it was sent; ``asked`` has its digest, or its URL.
    ``picture``: the same as PNG of ``size``, which is that of the clip."""

    first_frame: ImagePart | None = None
    size: tuple[int, int] | None = None
    picture: bytes = b""


VIDEOS = JobTask(
    name="videos",
    noun="video",
    does_not="makes no clips",
    main="video",
    unknown=UnknownVideo,
    not_ready=VideoNotReady,
    failed=VideoFailed,
)

_SIZE: Final = re.compile(SIZE)
_SECONDS: Final = re.compile(SECONDS)


def parse_size(text: str) -> tuple[int, int]:
    """Return (width, height). Raises: InvalidRequest."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"size is {shown(text)}; send WIDTHxHEIGHT in pixels, as in 64x64", param="size")
    return int(match[1]), int(match[2])


def join_sizes(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    """Return (width, height), however they were sent.

    Raises: InvalidRequest: one without the other, or two that differ.
    """
    if (width is None) != (height is None):
        absent = "width" if width is None else "height"
        raise InvalidRequest(f"{absent} is missing; send width and height, or size", param=absent)
    if size is None:
        return width, height
    sides = parse_size(size)
    if width is not None and (width, height) != sides:
        raise InvalidRequest(f"size is {size} and width x height is {width}x{height}; send one of them", param="size")
    return sides


def parse_seconds(value: str | float | None) -> float | None:
    """Return the length in seconds. Raises: InvalidRequest."""
    if value is None:
        return None
    if isinstance(value, str):
        if not _SECONDS.fullmatch(value):
            raise InvalidRequest(f"seconds is {shown(value)}; send a number, as in 4 or '4'", param="seconds")
        value = float(value)
    return check_number(value, 0.0, MAX_SECONDS, "seconds", is_open_low=True)


def check_video(request: VideoRequest, limits: IngressLimits) -> VideoRequest:
    """Return the request. Raises: InvalidRequest."""
    asked = request.asked
    _check_text(asked.prompt, limits.max_text_chars, "prompt")
    _check_text(asked.negative_prompt or "", limits.max_text_chars, "negative_prompt")
    _check_text(asked.user or "", MAX_LABEL_CHARS, "user")
    for name in ("sampler", "attention"):
        _check_text(getattr(asked, name) or "", MAX_NAME_CHARS, name)
    check_key(request.idempotency_key)
    for name, high in (
        ("width", MAX_SIDE),
        ("height", MAX_SIDE),
        ("num_frames", MAX_FRAMES),
        ("fps", MAX_FPS),
        ("num_inference_steps", MAX_STEPS),
    ):
        if (value := getattr(asked, name)) is not None:
            check_integer(value, 1, high, name)
    if asked.seed is not None:
        check_integer(asked.seed, 0, MAX_SEED, "seed")
    if asked.guidance_scale is not None:
        check_number(asked.guidance_scale, 0.0, MAX_GUIDANCE, "guidance_scale")
    return request


def admitted(call: BaseCall, request: VideoRequest) -> VideoRequest:
    """Return the request, admitted to its model, and each of its settings said in one way: as the field of its name,
    where there is one. Raises: ClientError.
    """
    front, cards = call.front, call.front.service.video_cards()
    request = front.admit(request, cards, call.visit)
    card = front.card(request.model, cards)
    _check_inputs(request, card)
    own = [knob.name for knob in card.knobs if knob.scope == "request"]
    settings, said = dict(request.budget.settings), dict[str, Any]()
    for name in KNOBS:
        asked = getattr(request.asked, name)
        if name not in own and asked is not None:
            raise UnsupportedField(
                f"{name} is not offered: {card.id} has no such setting; it has {', '.join(own) or 'none'}. Remove it",
                param=name,
            )
        if name in settings:
            said[name] = value = settings.pop(name)
            if asked not in (None, value):
                raise InvalidRequest(
                    f"{name} is {shown(asked)} and vireo.settings.{name} is {value}; send one of them", param=name
                )
    if not said:
        return request
    return replace(
        request, asked=request.asked.model_copy(update=said), budget=replace(request.budget, settings=settings)
    )


def _check_inputs(request: VideoRequest, card: Card) -> None:
    """Raises: InvalidRequest, UnsupportedField: the model needs what is not there, or has no use for what is."""
    asked, io = request.asked, card.io
    if io.takes_prompt and not asked.prompt.strip():
        raise InvalidRequest("prompt is empty; say what the clip shows", param="prompt")
    for name in ("prompt", "negative_prompt"):
        if not io.takes_prompt and getattr(asked, name):
            raise UnsupportedField(f"{name} is not offered: {card.id} takes no words. Leave it empty", param=name)
    if io.needs_picture and request.first_frame is None:
        raise InvalidRequest(
            f"{FIRST_FRAME} is missing: {card.id} makes clips that begin with a picture; send one", param=FIRST_FRAME
        )
    if request.first_frame is not None and not io.takes_picture:
        raise UnsupportedField(
            f"{FIRST_FRAME} is not offered: {card.id} makes clips of words alone. Remove it", param=FIRST_FRAME
        )


def _check_text(text: str, limit: int, param: str) -> None:
    if len(text) > limit:
        raise InvalidRequest(f"{param} has {len(text)} characters; the limit is {limit}; shorten it", param=param)
    check_unicode(text, param)
    if "\0" in text:
        raise InvalidRequest(f"{param} holds the character NUL at {text.index(chr(0))}; remove it", param=param)
