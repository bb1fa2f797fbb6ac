"""Rules of clips that hold on every surface and need no model, of requests and of what can be sent of a job. What
depends on the model is the service's."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

from serving.errors import InvalidRequest, ServingError, UnknownVideo, UnsupportedField, VideoFailed, VideoNotReady
from serving.front.front import check_model, shown
from serving.limits import IngressLimits
from serving.service import VideoModelCard, VideoService
from serving.tasks.chat.rules import check_integer, check_number, check_unicode
from serving.tasks.videos.domain import Artefact, JobStatus, VideoJob, VideoRequest

MAX_SIDE = MAX_FRAMES = 65_536
MAX_STEPS = 10_000
MAX_FPS = 1_000
MAX_GUIDANCE = 1_000.0
MAX_SEED = (1 << 63) - 1
MAX_SECONDS = 86_400.0
MAX_LABEL_CHARS = 512
MAX_NAME_CHARS = 64
MAX_KEY_CHARS = 255
DEFAULT_PAGE, MAX_PAGE = 20, 100

_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})")
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_SETTINGS: Final = frozenset({"num_inference_steps", "guidance_scale", "sampler", "attention"})
_VIDEO_ID: Final = re.compile(r"[A-Za-z0-9_\-]{1,128}")


def is_video_id(text: str) -> bool:
    """Whether a job may have that id: nothing else is looked up."""
    return _VIDEO_ID.fullmatch(text) is not None


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
    check_model(request.model)
    if not request.prompt.strip():
        raise InvalidRequest("prompt is empty; say what the clip shows", param="prompt")
    _check_text(request.prompt, limits.max_text_chars, "prompt")
    _check_text(request.negative_prompt, limits.max_text_chars, "negative_prompt")
    _check_text(request.user, MAX_LABEL_CHARS, "user")
    for name in ("sampler", "attention"):
        _check_text(getattr(request, name) or "", MAX_NAME_CHARS, name)
    _check_key(request.idempotency_key)
    for name, high in (
        ("width", MAX_SIDE),
        ("height", MAX_SIDE),
        ("num_frames", MAX_FRAMES),
        ("fps", MAX_FPS),
        ("num_inference_steps", MAX_STEPS),
    ):
        if (value := getattr(request, name)) is not None:
            check_integer(value, 1, high, name)
    if request.seed is not None:
        check_integer(request.seed, 0, MAX_SEED, "seed")
    if request.guidance_scale is not None:
        check_number(request.guidance_scale, 0.0, MAX_GUIDANCE, "guidance_scale")
    if request.seconds is not None:
        assert math.isfinite(request.seconds)
    return request


def with_settings(request: VideoRequest) -> VideoRequest:
    """Return the request with its settings as the fields of the same names: there are two ways to say it.

    Raises: InvalidRequest: both, and they differ. UnsupportedField: clips are not asked for by such a setting.
    """
    settings = request.budget.settings
    for name, value in settings.items():
        if name not in _SETTINGS:
            raise UnsupportedField(f"{name} is not set for one clip; remove it", param=f"vireo.settings.{name}")
        if getattr(request, name) not in (None, value):
            said = shown(getattr(request, name))
            raise InvalidRequest(f"{name} is {said} and vireo.settings.{name} is {value}; send one", param=name)
    return replace(request, budget=replace(request.budget, settings={}), **settings) if settings else request  # type: ignore[arg-type]


def _check_text(text: str, limit: int, param: str) -> None:
    if len(text) > limit:
        raise InvalidRequest(f"{param} has {len(text)} characters; the limit is {limit}; shorten it", param=param)
    check_unicode(text, param)
    if "\0" in text:
        raise InvalidRequest(f"{param} holds the character NUL at {text.index(chr(0))}; remove it", param=param)


def _check_key(key: str) -> None:
    if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"idempotency-key is {shown(key)}; send at most {MAX_KEY_CHARS} printable ASCII characters",
            param="idempotency-key",
        )


# -- jobs ------------------------------------------------------------------------------------------------------------


def default_model(cards: Sequence[VideoModelCard]) -> str | None:
    """Return what is meant by a request that names no model: the only one, if there is but one."""
    return cards[0].id if len(cards) == 1 else None


def artefact_of(job: VideoJob, variant: str) -> Artefact:
    """Raises: VideoNotReady, VideoFailed, UnknownVideo: there is none."""
    if job.status is JobStatus.FAILED:
        why = "unknown" if job.error is None else job.error.code
        raise VideoFailed(f"video {job.id} has no content: it failed ({why}). Create it again", param="id")
    if job.status is not JobStatus.COMPLETED:
        raise VideoNotReady(f"video {job.id} is {job.status}, {job.progress} %; wait until it is completed", param="id")
    artefact = job.artefacts.get(variant)
    if artefact is None:
        raise UnknownVideo(f"video {job.id} has no {variant}", param="variant")
    return artefact


async def cancel_for_good(videos: VideoService, job: VideoJob) -> None:
    """Cancel a job that nobody waits for any more, even while this task is being cancelled."""

    async def cancel() -> None:
        with suppress(ServingError):
            await videos.cancel_video(job.owner, job.id)

    await asyncio.shield(asyncio.ensure_future(cancel()))
