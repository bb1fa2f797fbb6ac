"""``/v1/videos`` on bare ASGI: jobs, their progress as events, their files in ranges, clips while the caller waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from serving.domain import Budget, Surface
from serving.errors import (
    Cancelled,
    RangeNotSatisfiable,
    UnknownVideo,
    UnsupportedMediaType,
)
from serving.front.front import Front, shown
from serving.front.http.body import header, read_into
from serving.front.http.byte_range import parse_range
from serving.front.http.call import Answer, Call, Handler, HeaderList, error_answer, json_answer
from serving.front.http.json_body import JsonReader
from serving.front.http.multipart import FormReader
from serving.front.http.openapi import VARIANTS
from serving.replica.video.failures import error_of
from serving.tasks.chat.http import STREAM_HEADERS
from serving.tasks.chat.reply import KEEP_ALIVE
from serving.tasks.chat.stream import EventQueue
from serving.tasks.videos.body import (
    document_from_form,
    form_rules,
    json_bounds,
    page_from_query,
    query_values,
    request_from_document,
)
from serving.tasks.videos.content import artefact_of, cancel_for_good
from serving.tasks.videos.domain import Artefact, JobStatus, VideoJob, VideoRequest, VideoUpdate
from serving.tasks.videos.reply import content_url, event_of, file_name, page_to_json, video_to_json
from serving.tasks.videos.rules import is_video_id
from serving.telemetry.events import OK

PIECE_BYTES = 1 << 18

Row = tuple[str, str, Handler, Surface | None, bool]


class VideoPaths:
    """What each path does with a call whose caller is known. ``budget_of`` reads the headers' budget."""

    def __init__(self, front: Front, budget_of: Callable[[Call], Budget], reader: JsonReader) -> None:
        self._front = front
        self._reader = reader
        self._budget_of = budget_of

    def table(self) -> list[Row]:
        """Rows of the application's table: method, path, handler, surface, needs a key."""
        return [
            ("POST", "/v1/videos", self.create, Surface.HTTP_VIDEO, True),
            ("POST", "/v1/videos/sync", self.create_and_wait, Surface.HTTP_VIDEO_SYNC, True),
            ("GET", "/v1/videos", self.list_videos, None, True),
            ("GET", "/v1/videos/{id}", self.show, None, True),
            ("DELETE", "/v1/videos/{id}", self.delete, None, True),
            ("GET", "/v1/videos/{id}/content", self.content, None, True),
            ("GET", "/v1/videos/{id}/events", self.events, None, True),
        ]

    async def create(self, call: Call) -> Answer:
        """``POST /v1/videos``."""
        request = await self._request(call)
        job = await self._front.service.create_video(request)
        assert call.visit is not None
        call.visit.outcome = OK
        return json_answer(self._json(call, job))

    async def create_and_wait(self, call: Call) -> None:
        """``POST /v1/videos/sync``: the answer is the file. A caller that leaves takes its job with it."""
        request = await self._request(call)
        service = self._front.service
        job = await service.create_video(request)
        try:
            done = await self._wait(call, job)
        except BaseException:
            await cancel_for_good(self._front, job)
            raise
        if done.status is JobStatus.FAILED:
            raise error_of(done)
        artefact = artefact_of(done, "video")
        await self._send_file(call, done, artefact, 0, artefact.num_bytes)
        assert call.visit is not None
        call.visit.outcome = OK

    async def list_videos(self, call: Call) -> Answer:
        """``GET /v1/videos``."""
        after, limit, newest_first = page_from_query(call.scope["query_string"])
        page = await self._front.service.list_videos(call.tenant, after=after, limit=limit, newest_first=newest_first)
        return json_answer(page_to_json(page, [self._url(call, job) for job in page.jobs]))

    async def show(self, call: Call) -> Answer:
        """``GET /v1/videos/{id}``."""
        return json_answer(self._json(call, await self._job(call)))

    async def delete(self, call: Call) -> Answer:
        """``DELETE /v1/videos/{id}``."""
        job = await self._front.service.delete_video(call.tenant, _id(call))
        return json_answer({"id": job.id, "object": "video.deleted", "deleted": True})

    async def content(self, call: Call) -> Answer | None:
        """``GET /v1/videos/{id}/content``."""
        variant = query_values(call.scope["query_string"], ("variant",)).get("variant", "video")
        if variant not in VARIANTS:
            raise UnknownVideo(f"variant is {shown(variant)}; there are {', '.join(VARIANTS)}", param="variant")
        job = await self._job(call)
        artefact = artefact_of(job, variant)
        limits, etag = self._front.limits, _etag(artefact)
        if etag in _etags(header(call.headers, b"if-none-match", limits)):
            return Answer(b"", 304, artefact.media_type.encode(), ((b"etag", etag.encode()),))
        wanted = header(call.headers, b"range", limits)
        if header(call.headers, b"if-range", limits) not in (None, etag):
            wanted = None
        try:
            part = parse_range(wanted, artefact.num_bytes)
        except RangeNotSatisfiable as error:
            answer = error_answer(call.known(error))
            size = f"bytes */{artefact.num_bytes}".encode()
            return replace(answer, headers=(*answer.headers, (b"content-range", size)))
        start, end = part or (0, artefact.num_bytes)
        await self._send_file(call, job, artefact, start, end, is_part=part is not None)
        return None

    async def events(self, call: Call) -> None:
        """``GET /v1/videos/{id}/events``. A watcher that leaves does nothing to the job."""
        updates = self._front.service.watch_video(call.tenant, _id(call))
        silence_s = self._front.limits.keep_alive_s
        async with EventQueue(updates, receive=call.receive, silence_s=silence_s) as queue:
            taken = await queue.take()
            await call.start(STREAM_HEADERS)
            try:
                while not await self._send_update(call, taken):
                    taken = await queue.take()
            except Cancelled as error:
                call.known(error)
            except Exception as error:
                body = error_answer(call.known(error)).body
                await call.send_piece(b"event: error\ndata: %s\n\n" % body, is_last=True)

    # -- parts -------------------------------------------------------------------------------------------------------

    async def _send_update(self, call: Call, taken: list[VideoUpdate]) -> bool:
        """Send the newest of what has gathered, or a sign of life. Returns whether it was the last."""
        if not taken:
            await call.send_piece(KEEP_ALIVE)
            return False
        newest = taken[-1]
        if newest.preview is None:
            newest = replace(newest, preview=next((one.preview for one in reversed(taken) if one.preview), None))
        is_last = newest.job.status.is_final
        await call.send_piece(event_of(newest, self._url(call, newest.job)), is_last=is_last)
        return is_last

    async def _wait(self, call: Call, job: VideoJob) -> VideoJob:
        """Return the job once it is over. Raises: Cancelled: the caller is gone."""
        updates = self._front.service.watch_video(job.owner, job.id)
        async with EventQueue(updates, receive=call.receive) as queue:
            while True:
                last = (await queue.take())[-1].job
                if last.status.is_final:
                    return last

    async def _request(self, call: Call) -> VideoRequest:
        """Read and parse the body. Raises: ClientError."""
        assert call.visit is not None
        front, limits = self._front, self._front.limits
        content_type = call.headers.get(b"content-type", b"").decode("latin-1")
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "application/json":
            document = await self._reader.read(call.receive, call.headers, limits, json_bounds(limits))
        elif kind == "multipart/form-data":
            reader = FormReader(content_type, limits, form_rules(limits))
            await read_into(call.receive, call.headers, limits, reader.feed)
            document = document_from_form(reader.finish())
        else:
            sent = shown(content_type) if content_type else "missing"
            raise UnsupportedMediaType(
                f"content-type is {sent}; send application/json or multipart/form-data", param="content-type"
            )
        request = request_from_document(
            document,
            surface=call.visit.surface,
            request_id=call.request_id,
            tenant=call.tenant,
            fallback=self._budget_of(call),
            default_model=front.default_video_model(),
            idempotency_key=header(call.headers, b"idempotency-key", limits) or "",
            limits=limits,
        )
        call.visit.model = front.video_card(request.model).id
        return request

    async def _job(self, call: Call) -> VideoJob:
        return await self._front.service.get_video(call.tenant, _id(call))

    async def _send_file(
        self, call: Call, job: VideoJob, artefact: Artefact, start: int, end: int, *, is_part: bool = False
    ) -> None:
        """Send bytes of a file, a piece at a time. What goes wrong after the first breaks the connection off."""
        read = self._front.service.read_artefact
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

    def _url(self, call: Call, job: VideoJob) -> str:
        return content_url(call.headers, call.scope.get("scheme", "http"), job.id)

    def _json(self, call: Call, job: VideoJob) -> dict[str, Any]:
        return video_to_json(job, self._url(call, job))


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
