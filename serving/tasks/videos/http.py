"""``/v1/videos`` on bare ASGI: jobs, their progress as events, their files in ranges, clips while the caller waits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final

from serving.domain import Surface
from serving.errors import Cancelled, RangeNotSatisfiable, UnknownVideo
from serving.front.front import shown
from serving.front.http.body import read_into
from serving.front.http.call import (
    EVENT_HEADERS,
    KEEP_ALIVE,
    Answer,
    Call,
    Handler,
    HeaderList,
    Route,
    error_answer,
    json_answer,
)
from serving.front.http.multipart import FormReader
from serving.front.http.openapi import (
    BINARY,
    BUDGET_HEADERS,
    event_content,
    json_content,
    operation,
    parameter,
    path_parameter,
)
from serving.front.status import error_body
from serving.tasks.chat.stream import EventQueue, pumped
from serving.tasks.videos.body import (
    document_from_form,
    form_rules,
    json_bounds,
    page_from_query,
    query_values,
    request_from_document,
)
from serving.tasks.videos.domain import Artefact, JobStatus, VideoJob, VideoRequest, VideoUpdate, error_of
from serving.tasks.videos.reply import content_url, event_of, file_name, page_to_json, video_to_json
from serving.tasks.videos.rules import (
    MAX_KEY_CHARS,
    MAX_PAGE,
    artefact_of,
    cancel_for_good,
    default_model,
    is_video_id,
    with_settings,
)
from serving.tasks.videos.schemas import VideoAnswer, VideoBody, VideoDeletedAnswer, VideoEventAnswer, VideoListAnswer
from serving.telemetry.events import OK

PIECE_BYTES = 1 << 18
VARIANTS: Final = ("video", "thumbnail")
"""Files of a video."""

_RANGE: Final = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*")


async def create(call: Call) -> Answer:
    """``POST /v1/videos``."""
    request = await _request(call)
    job = await call.front.service.videos.create_video(request)
    call.visit.outcome = OK
    return json_answer(_json(call, job))


async def create_and_wait(call: Call) -> None:
    """``POST /v1/videos/sync``: the answer is the file. A caller that leaves takes its job with it."""
    request = await _request(call)
    service = call.front.service.videos
    job = await service.create_video(request)
    try:
        done = await _wait(call, job)
    except BaseException:
        await cancel_for_good(call.front.service.videos, job)
        raise
    if done.status is JobStatus.FAILED:
        raise error_of(done)
    artefact = artefact_of(done, "video")
    await _send_file(call, done, artefact, 0, artefact.num_bytes)
    call.visit.outcome = OK


async def list_videos(call: Call) -> Answer:
    """``GET /v1/videos``."""
    after, limit, newest_first = page_from_query(call.scope["query_string"])
    page = await call.front.service.videos.list_videos(call.tenant, after=after, limit=limit, newest_first=newest_first)
    return json_answer(page_to_json(page, [_url(call, job) for job in page.jobs]))


async def show(call: Call) -> Answer:
    """``GET /v1/videos/{id}``."""
    return json_answer(_json(call, await _job(call)))


async def delete(call: Call) -> Answer:
    """``DELETE /v1/videos/{id}``."""
    job = await call.front.service.videos.delete_video(call.tenant, _id(call))
    answer: VideoDeletedAnswer = {"id": job.id, "object": "video.deleted", "deleted": True}
    return json_answer(answer)


async def content(call: Call) -> Answer | None:
    """``GET /v1/videos/{id}/content``."""
    variant = query_values(call.scope["query_string"], ("variant",)).get("variant", "video")
    if variant not in VARIANTS:
        raise UnknownVideo(f"variant is {shown(variant)}; there are {', '.join(VARIANTS)}", param="variant")
    job = await _job(call)
    artefact = artefact_of(job, variant)
    etag = _etag(artefact)
    if etag in _etags(call.header(b"if-none-match")):
        return Answer(b"", 304, artefact.media_type.encode(), ((b"etag", etag.encode()),))
    wanted = call.header(b"range")
    if call.header(b"if-range") not in (None, etag):
        wanted = None
    try:
        part = parse_range(wanted, artefact.num_bytes)
    except RangeNotSatisfiable as error:
        answer = error_answer(call.known(error))
        size = f"bytes */{artefact.num_bytes}".encode()
        return replace(answer, headers=(*answer.headers, (b"content-range", size)))
    start, end = part or (0, artefact.num_bytes)
    await _send_file(call, job, artefact, start, end, is_part=part is not None)
    return None


async def events(call: Call) -> None:
    """``GET /v1/videos/{id}/events``. A watcher that leaves does nothing to the job."""
    updates = call.front.service.videos.watch_video(call.tenant, _id(call))
    silence_s = call.front.limits.keep_alive_s
    async with EventQueue(pumped(updates), receive=call.receive, silence_s=silence_s) as queue:
        taken = await queue.take()
        await call.start(EVENT_HEADERS)
        try:
            while not await _send_update(call, taken):
                taken = await queue.take()
        except Cancelled as error:
            call.known(error)
        except Exception as error:
            await call.send_piece(b"event: error\ndata: %s\n\n" % error_body(call.known(error)), is_last=True)


async def _send_update(call: Call, taken: list[VideoUpdate]) -> bool:
    """Send the newest of what has gathered, or a sign of life. Returns whether it was the last."""
    if not taken:
        await call.send_piece(KEEP_ALIVE)
        return False
    newest = taken[-1]
    if newest.preview is None:
        newest = replace(newest, preview=next((one.preview for one in reversed(taken) if one.preview), None))
    is_last = newest.job.status.is_final
    await call.send_piece(event_of(newest, _url(call, newest.job)), is_last=is_last)
    return is_last


async def _wait(call: Call, job: VideoJob) -> VideoJob:
    """Return the job once it is over. Raises: Cancelled: the caller is gone."""
    updates = call.front.service.videos.watch_video(job.owner, job.id)
    async with EventQueue(pumped(updates), receive=call.receive) as queue:
        while True:
            last = (await queue.take())[-1].job
            if last.status.is_final:
                return last


async def _request(call: Call) -> VideoRequest:
    """Read and parse the body. Raises: ClientError."""
    limits, cards = call.front.limits, call.front.service.videos.video_models()
    if call.media_type("application/json", "multipart/form-data") == "application/json":
        document = await call.read_json(json_bounds(limits))
    else:
        reader = FormReader(call.content_type, limits, form_rules(limits))
        await read_into(call.receive, call.headers, limits, reader.feed)
        document = document_from_form(reader.finish())
    request = request_from_document(
        document,
        surface=call.surface,
        request_id=call.request_id,
        tenant=call.tenant,
        fallback=call.budget(),
        default_model=default_model(cards),
        idempotency_key=call.header(b"idempotency-key") or "",
        limits=limits,
    )
    return with_settings(call.front.admit(request, cards, call.visit))


async def _job(call: Call) -> VideoJob:
    return await call.front.service.videos.get_video(call.tenant, _id(call))


async def _send_file(
    call: Call, job: VideoJob, artefact: Artefact, start: int, end: int, *, is_part: bool = False
) -> None:
    """Send bytes of a file, a piece at a time. What goes wrong after the first breaks the connection off."""
    read = call.front.service.videos.read_artefact
    is_head = call.scope["method"] == "HEAD"
    piece = b"" if is_head else await read(artefact, start, min(end, start + PIECE_BYTES))
    headers = _file_headers(job, artefact, end - start)
    if is_part:
        headers.append((b"content-range", f"bytes {start}-{end - 1}/{artefact.num_bytes}".encode()))
    await call.start(headers, 206 if is_part else 200)
    while not is_head and (start := start + len(piece)) < end:
        await call.send_piece(piece)
        try:
            piece = await read(artefact, start, min(end, start + PIECE_BYTES))
        except Exception as error:
            call.known(error)
            return
        if not piece:
            return
    await call.send_piece(piece, is_last=True)


def _url(call: Call, job: VideoJob) -> str:
    return content_url(call.headers, call.scope.get("scheme", "http"), job.id)


def _json(call: Call, job: VideoJob) -> VideoAnswer:
    return video_to_json(job, _url(call, job))


def _id(call: Call) -> str:
    """Raises: UnknownVideo: no job can have that id."""
    video_id = call.path_params["id"]
    if not is_video_id(video_id):
        raise UnknownVideo(f"no video has the id {shown(video_id)}", param="id")
    return video_id


def _file_headers(job: VideoJob, artefact: Artefact, num_bytes: int) -> HeaderList:
    name = file_name(job.id, artefact.media_type)
    return [
        (b"content-type", artefact.media_type.encode()),
        (b"content-length", str(num_bytes).encode()),
        (b"accept-ranges", b"bytes"),
        (b"etag", _etag(artefact).encode()),
        (b"cache-control", b"private, no-cache"),
        (b"content-disposition", f'inline; filename="{name}"'.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"x-vireo-video-id", job.id.encode()),
    ]


def _etag(artefact: Artefact) -> str:
    return f'"{artefact.sha256}"'


def _etags(value: str | None) -> list[str]:
    """Those of an If-None-Match; ``*`` is not one: whoever has nothing yet may not be told that nothing changed."""
    return [] if value is None else [one.strip().removeprefix("W/") for one in value.split(",")]


def parse_range(value: str | None, num_bytes: int) -> tuple[int, int] | None:
    """Return (start, end), ``end`` not included; None: the whole file is to be sent.

    What is no range of bytes, and several ranges at once, are ignored, as the RFC allows.

    Raises: RangeNotSatisfiable: nothing of it is within the file.
    """
    match = None if value is None else _RANGE.fullmatch(value.strip().lower())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, num_bytes - int(match[2])), num_bytes
    else:
        start, end = int(match[1]), min(num_bytes, int(match[2]) + 1) if match[2] else num_bytes
        if match[2] and int(match[2]) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(
            f"range {shown(value)} is not within the {num_bytes} bytes of the file; ask for a part of them",
            param="range",
        )
    return start, end


# -- routes ----------------------------------------------------------------------------------------------------------

_ID: Final = path_parameter("id")
_FILES: Final = ("video/mp4", "image/gif", "image/jpeg")
_CREATE: Final = (
    parameter(
        "header",
        "Idempotency-Key",
        {"type": "string", "maxLength": MAX_KEY_CHARS},
        "Requests with the same key are one job.",
    ),
    *BUDGET_HEADERS,
)
_BODY: Final = {**json_content(VideoBody), "multipart/form-data": {"schema": VideoBody}}


def _route(
    method: str, path: str, handler: Handler, described: dict[str, Any], surface: Surface | None = None
) -> Route:
    return Route(method=method, path=f"/v1/videos{path}", handler=handler, operation=described, surface=surface)


ROUTES: Final = (
    _route("POST", "", create, operation("Make a video", VideoAnswer, *_CREATE, body=_BODY), Surface.HTTP_VIDEO),
    _route(
        "POST",
        "/sync",
        create_and_wait,
        operation("Make a video and wait for it", dict.fromkeys(_FILES[:2], BINARY), *_CREATE, body=_BODY),
        Surface.HTTP_VIDEO_SYNC,
    ),
    _route(
        "GET",
        "",
        list_videos,
        operation(
            "List video jobs",
            VideoListAnswer,
            parameter("query", "after", {"type": "string"}, "Id of the video after which the page begins."),
            parameter(
                "query", "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}, "Most videos of a page."
            ),
            parameter("query", "order", {"enum": ["asc", "desc"]}, "By time of creation; newest first when absent."),
        ),
    ),
    _route("GET", "/{id}", show, operation("Show a video job", VideoAnswer, _ID)),
    _route(
        "DELETE",
        "/{id}",
        delete,
        operation("Cancel a video job, or remove one that is over", VideoDeletedAnswer, _ID),
    ),
    _route(
        "GET",
        "/{id}/content",
        content,
        operation(
            "Fetch a file of a video",
            dict.fromkeys(_FILES, BINARY),
            _ID,
            parameter("query", "variant", {"enum": list(VARIANTS)}, "Which file of the video."),
            parameter("header", "Range", {"type": "string"}, "One range of bytes."),
            also={
                "206": {"description": "The range asked for", "content": dict.fromkeys(_FILES, BINARY)},
                "304": {"description": "The caller has it already (If-None-Match)"},
            },
        ),
    ),
    _route(
        "GET",
        "/{id}/events",
        events,
        operation(
            "Watch a video job",
            event_content(VideoEventAnswer),
            _ID,
            text="An event for each change, named progress; the last is named completed or failed.",
        ),
    ),
)
