"""Durable jobs over HTTP, whatever they make: create, wait, show, list, delete; progress as events, files in ranges.

A task provides a ``JobHttp`` and gets these routes, the first two only with a ``CreatedJobHttp``:

    POST PATH, POST PATH/sync, GET PATH, GET and DELETE PATH/{id}, GET PATH/{id}/content, GET PATH/{id}/events
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_type_hints
from urllib.parse import parse_qsl

import orjson
from typing_extensions import TypedDict

from serving.delivery.job.base import JobRequest, JobService, JobTask, JobUpdate, cancel_for_good
from serving.domain import Surface
from serving.errors import Cancelled, InvalidRequest, RangeNotSatisfiable, UnknownField
from serving.front.events import EventQueue, pumped
from serving.front.front import Front, shown
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
from serving.front.http.json_body import limit
from serving.front.http.openapi import (
    BINARY,
    BUDGET_HEADERS,
    event_content,
    operation,
    parameter,
    path_parameter,
)
from serving.front.status import ErrorObject, error_body, error_object
from serving.stores.jobs.base import Artefact, JobRecord, JobStatus
from serving.telemetry.events import OK

PIECE_BYTES = 1 << 18
MAX_KEY_CHARS: Final = 255
CACHING: Final = (b"cache-control", b"private, no-cache")
KEY_HEADER: Final = parameter(
    "header",
    "Idempotency-Key",
    {"type": "string", "maxLength": MAX_KEY_CHARS, "pattern": "^[ -~]*$"},
    "Requests with the same key are one job.",
)
DEFAULT_PAGE, MAX_PAGE = 20, 100
SUFFIXES: Final = {
    "video/mp4": ".mp4",
    "image/gif": ".gif",
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
}

_RANGE: Final = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*")
MAX_ID_CHARS: Final = 128
_ID_PATTERN: Final = rf"[A-Za-z0-9_\-]{{1,{MAX_ID_CHARS}}}"
_ID: Final = re.compile(_ID_PATTERN)
_LIMIT: Final = re.compile(r"[+-]?[0-9]{1,20}")


@dataclass(frozen=True, kw_only=True)
class JobHttp:
    """A task's jobs over HTTP.

    ``id``: of a job, in the ids of operations. ``service``: its jobs. ``show``: (job, URL of its main file, when it is
    expected) -> the job as clients see it. ``files``: names of its files; ``media_types``: their media types.
    ``answer``: the class of what ``show`` returns; those of an event, a page and a deletion follow from it.
    """

    path: str
    id: str
    task: JobTask
    service: Callable[[Front], JobService]
    show: Callable[[JobRecord, str, float | None], Mapping[str, Any]]
    files: tuple[str, ...]
    media_types: tuple[str, ...]
    answer: type

    def begun(self, call: Call, job: JobRecord, status: int = 200) -> Answer:
        """The answer to what has begun a job."""
        call.visit.outcome = OK
        return replace(json_answer(self._shown(call, job)), status=status)

    async def list_jobs(self, call: Call) -> Answer:
        """``GET PATH``."""
        after, limit, newest_first = page_from_query(call.scope["query_string"], self.task.noun)
        service = self.service(call.front)
        page = await service.page(call.tenant, after=after, limit=limit, newest_first=newest_first)
        ids = [job.id for job in page.jobs]
        return json_answer(
            {
                "object": "list",
                "data": [self._shown(call, job) for job in page.jobs],
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
                "has_more": page.has_more,
            }
        )

    async def get(self, call: Call) -> Answer:
        """``GET PATH/{id}``."""
        return json_answer(self._shown(call, await self._job(call)))

    async def delete(self, call: Call) -> Answer:
        """``DELETE PATH/{id}``."""
        job = await self.service(call.front).delete(call.tenant, self._id(call))
        return json_answer({"id": job.id, "object": f"{self.task.noun}.deleted", "deleted": True})

    async def content(self, call: Call) -> Answer | None:
        """``GET PATH/{id}/content``."""
        variant = query_values(call.scope["query_string"], ("variant",)).get("variant", self.task.main)
        if variant not in self.files:
            known = ", ".join(self.files)
            raise self.task.unknown(f"variant is {shown(variant)}; there are {known}", param="variant")
        job = await self._job(call)
        artefact = self.task.artefact(job, variant)
        etag = _etag(artefact)
        if etag in _etags(call.header(b"if-none-match")):
            return Answer(b"", 304, headers=((b"etag", etag.encode()), CACHING))
        wanted = call.header(b"range")
        if call.is_head or call.header(b"if-range") not in (None, etag):  # a range is a matter of GET alone
            wanted = None
        try:
            part = parse_range(wanted, artefact.num_bytes)
        except RangeNotSatisfiable as error:
            answer = error_answer(call.known(error), call.scope["path"])
            size = f"bytes */{artefact.num_bytes}".encode()
            return replace(answer, headers=(*answer.headers, (b"content-range", size)))
        start, end = part or (0, artefact.num_bytes)
        await self._send_file(call, job, artefact, start, end, is_part=part is not None)
        return None

    async def events(self, call: Call) -> None:
        """``GET PATH/{id}/events``. A watcher that leaves does not affect the job."""
        updates = self.service(call.front).watch(call.tenant, self._id(call))
        silence_s = call.front.limits.keep_alive_s
        async with EventQueue(pumped(updates), receive=call.receive, silence_s=silence_s) as queue:
            taken = await queue.take()
            await call.start(EVENT_HEADERS)
            if call.is_head:
                await call.send_piece(b"", is_last=True)
                return
            try:
                while not await self._send_update(call, taken):
                    taken = await queue.take()
            except Cancelled as error:
                call.known(error)
            except Exception as error:
                await call.send_piece(b"event: error\ndata: %s\n\n" % error_body(call.known(error)), is_last=True)

    async def _send_update(self, call: Call, taken: list[JobUpdate]) -> bool:
        """Send the newest of the updates that have gathered, or a keep-alive. Returns whether it was the last."""
        if not taken:
            await call.send_piece(KEEP_ALIVE)
            return False
        newest = taken[-1]
        if newest.preview is None:
            newest = replace(newest, preview=next((one.preview for one in reversed(taken) if one.preview), None))
        is_last = newest.job.status.is_final
        await call.send_piece(self._event(call, newest), is_last=is_last)
        return is_last

    async def _send_file(
        self, call: Call, job: JobRecord, artefact: Artefact, start: int, end: int, *, is_part: bool = False
    ) -> None:
        """Send bytes of a file, a piece at a time. An error after the first piece breaks the connection."""
        read = self.service(call.front).read
        piece = b"" if call.is_head else await read(artefact, start, min(end, start + PIECE_BYTES))
        headers = self._headers(job, artefact, end - start)
        if is_part:
            headers.append((b"content-range", f"bytes {start}-{end - 1}/{artefact.num_bytes}".encode()))
        await call.start(headers, 206 if is_part else 200)
        while not call.is_head and (start := start + len(piece)) < end:
            await call.send_piece(piece)
            try:
                piece = await read(artefact, start, min(end, start + PIECE_BYTES))
            except Exception as error:
                call.known(error)
                return
            if not piece:
                return
        await call.send_piece(piece, is_last=True)

    def _event(self, call: Call, update: JobUpdate) -> bytes:
        """An event: named ``progress``, or by the status of a job that is over."""
        job, preview = update.job, update.preview
        name = job.status.value if job.status.is_final else "progress"
        picture = None if preview is None else f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
        document = {**self.show(job, self._url(call, job), update.finish_at_s), "preview": picture}
        return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(document))

    def _shown(self, call: Call, job: JobRecord) -> Mapping[str, Any]:
        return self.show(job, self._url(call, job), None)

    def _url(self, call: Call, job: JobRecord) -> str:
        return call.url_of(f"{self.path}/{job.id}/content")

    async def _job(self, call: Call) -> JobRecord:
        return await self.service(call.front).get(call.tenant, self._id(call))

    def _id(self, call: Call) -> str:
        """Raises: the task's ``unknown``: no job can have that id."""
        job_id = call.path_params["id"]
        if not _ID.fullmatch(job_id):
            raise self.task.unknown(f"no {self.task.noun} has the id {shown(job_id)}", param="id")
        return job_id

    def _headers(self, job: JobRecord, artefact: Artefact, num_bytes: int) -> HeaderList:
        return [
            (b"content-type", artefact.media_type.encode()),
            (b"content-length", str(num_bytes).encode()),
            (b"accept-ranges", b"bytes"),
            (b"etag", _etag(artefact).encode()),
            CACHING,
            (b"content-disposition", f'inline; filename="{file_name(job.id, artefact.media_type)}"'.encode()),
            (b"x-content-type-options", b"nosniff"),
            (f"x-vireo-{self.task.noun}-id".encode(), job.id.encode()),
        ]

    # -- routes ------------------------------------------------------------------------------------------------------

    def routes(self) -> tuple[Route, ...]:
        """All routes, with their OpenAPI."""
        noun = self.task.noun
        limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}
        pages = (
            parameter(
                "query",
                "after",
                {"type": "string", "pattern": f"^{_ID_PATTERN}$"},
                f"Id of the {noun} after which the page begins.",
            ),
            parameter("query", "limit", limit, f"Most {noun}s of a page."),
            parameter("query", "order", {"enum": ["asc", "desc"]}, "By time of creation; newest first when absent."),
        )
        return (
            self._route(
                "GET",
                "",
                self.list_jobs,
                operation(
                    f"List {noun} jobs",
                    self._page_class(),
                    *pages,
                    id=f"list_{self.id}s",
                    links=self.links("/first_id"),
                ),
            ),
            *self._routes_of_one(path_parameter("id", MAX_ID_CHARS)),
        )

    def links(self, pointer: str) -> dict[str, Any]:
        """What can be asked of a job whose id is in an answer, at that JSON pointer."""
        names = (f"get_{self.id}", f"get_{self.id}_content", f"watch_{self.id}", f"delete_{self.id}")
        return {name: {"operationId": name, "parameters": {"id": f"$response.body#{pointer}"}} for name in names}

    def _routes_of_one(self, job_id: dict[str, Any]) -> tuple[Route, ...]:
        noun, files = self.task.noun, dict.fromkeys(self.media_types, BINARY)
        content = operation(
            f"Fetch a file of {_a(noun)}",
            files,
            job_id,
            parameter("query", "variant", {"enum": list(self.files)}, f"Which file of the {noun}."),
            parameter(
                "header",
                "Range",
                {"type": "string", "maxLength": limit("max_header_value_bytes")},
                "One range of bytes.",
            ),
            id=f"get_{self.id}_content",
            also={
                "206": {"description": "The range asked for", "content": files},
                "304": {"description": "The caller has it already (If-None-Match)"},
            },
        )
        events = operation(
            f"Watch {_a(noun)} job",
            event_content(self._event_class()),
            job_id,
            id=f"watch_{self.id}",
            text="An event for each change, named progress; the last is named completed or failed.",
        )
        deleted = operation(
            f"Cancel {_a(noun)} job, or remove one that is over", self._deleted_class(), job_id, id=f"delete_{self.id}"
        )
        shown = operation(f"Show {_a(noun)} job", self.answer, job_id, id=f"get_{self.id}")
        return (
            self._route("GET", "/{id}", self.get, shown),
            self._route("DELETE", "/{id}", self.delete, deleted),
            self._route("GET", "/{id}/content", self.content, content),
            self._route("GET", "/{id}/events", self.events, events),
        )

    def _event_class(self) -> type:
        return self._class("Event", {**get_type_hints(self.answer, include_extras=True), "preview": str | None})

    def _page_class(self) -> type:
        ends = {"first_id": str | None, "last_id": str | None, "has_more": bool}
        return self._class("List", {"object": Literal["list"], "data": list[self.answer], **ends})  # type: ignore[name-defined]

    def _deleted_class(self) -> type:
        said = Literal[f"{self.task.noun}.deleted"]  # type: ignore[valid-type]
        return self._class("Deleted", {"id": str, "object": said, "deleted": bool})

    def _class(self, what: str, fields: dict[str, Any]) -> type:
        """One beside that of ``answer``: ``VideoListAnswer`` beside ``VideoAnswer``."""
        made: type = TypedDict(self.answer.__name__.replace("Answer", f"{what}Answer"), fields)  # type: ignore[misc]
        return made

    def _route(
        self, method: str, path: str, handler: Handler, described: dict[str, Any], surface: Surface | None = None
    ) -> Route:
        return Route(method=method, path=self.path + path, handler=handler, operation=described, surface=surface)


@dataclass(frozen=True, kw_only=True)
class CreatedJobHttp(JobHttp):
    """Jobs that are begun at ``PATH`` itself.

    ``read``: parses and admits the body of a call; ``body``: the schema of the body, by media type. ``main_types``: the
    media types of the main file.
    """

    read: Callable[[Call], Awaitable[JobRequest[Any]]]
    main_types: tuple[str, ...]
    surface: Surface
    sync_surface: Surface
    body: Mapping[str, Any]

    async def create(self, call: Call) -> Answer:
        """``POST PATH``."""
        return self.begun(call, await self.service(call.front).create(await self.read(call)))

    async def create_and_wait(self, call: Call) -> None:
        """``POST PATH/sync``: the answer is the file. If the caller leaves, its job is cancelled."""
        request = await self.read(call)
        done = await self.wait(call, await self.service(call.front).create(request))
        artefact = self.task.artefact(done, self.task.main)
        await self._send_file(call, done, artefact, 0, artefact.num_bytes)
        call.visit.outcome = OK

    async def wait(self, call: Call, job: JobRecord) -> JobRecord:
        """The job once it is completed. If the caller leaves, the job is cancelled.

        Raises: Cancelled: the caller is gone; or the error that the job failed with.
        """
        service = self.service(call.front)
        try:
            updates = service.watch(job.owner, job.id)
            async with EventQueue(pumped(updates), receive=call.receive) as queue:
                while not job.status.is_final:
                    job = (await queue.take())[-1].job
        except BaseException:
            await cancel_for_good(service, job)
            raise
        if job.status is JobStatus.FAILED:
            raise job.failure
        return job

    def routes(self) -> tuple[Route, ...]:
        """These and all others."""
        noun = self.task.noun
        asked, files = (KEY_HEADER, *BUDGET_HEADERS), dict.fromkeys(self.main_types, BINARY)
        made = operation(
            f"Make {_a(noun)}", self.answer, *asked, id=f"create_{self.id}", body=self.body, links=self.links("/id")
        )
        waited = operation(
            f"Make {_a(noun)} and wait for it", files, *asked, id=f"create_{self.id}_and_wait", body=self.body
        )
        return (
            self._route("POST", "", self.create, made, self.surface),
            self._route("POST", "/sync", self.create_and_wait, waited, self.sync_surface),
            *super().routes(),
        )


def check_key(key: str) -> str:
    """Return an idempotency key. Raises: InvalidRequest."""
    if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"idempotency-key is {shown(key)}; send at most {MAX_KEY_CHARS} printable ASCII characters",
            param="idempotency-key",
        )
    return key


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def file_name(job_id: str, media_type: str) -> str:
    """The file name that clients are offered."""
    return job_id + SUFFIXES.get(media_type, "")


def _etag(artefact: Artefact) -> str:
    return f'"{artefact.sha256}"'


def _etags(value: str | None) -> list[str]:
    """The etags of an If-None-Match. ``*`` matches nothing: a client without the file must not get a 304."""
    return [] if value is None else [one.strip().removeprefix("W/") for one in value.split(",")]


def parse_range(value: str | None, num_bytes: int) -> tuple[int, int] | None:
    """Return (start, end), ``end`` not included; None: send the whole file.

    Anything but one range of bytes is ignored, as the RFC allows.

    Raises: RangeNotSatisfiable: no part of the range is within the file.
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


def error_of(job: JobRecord) -> ErrorObject | None:
    """Why a job failed, as every other error is spelt: ``cancelled`` if somebody wanted it to."""
    return None if job.error is None else {**error_object(job.failure), "code": job.error.code}


def page_from_query(query: bytes, noun: str) -> tuple[str | None, int, bool]:
    """Return (after, limit, newest first) of ``GET PATH``.

    Raises: InvalidRequest, UnknownField.
    """
    values = query_values(query, ("after", "limit", "order"))
    after, limit, order = values.get("after"), values.get("limit", str(DEFAULT_PAGE)), values.get("order", "desc")
    if after is not None and not _ID.fullmatch(after):
        raise InvalidRequest(f"after is {shown(after)}; send the id of {_a(noun)}", param="after")
    if not _LIMIT.fullmatch(limit) or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f"limit is {shown(limit)}; it must be at least 1 and at most {MAX_PAGE}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order is {shown(order)}; it must be asc or desc", param="order")
    return after, int(limit), order == "desc"


def query_values(query: bytes, names: tuple[str, ...]) -> dict[str, str]:
    """Return the parameters of a query string. Raises: UnknownField; InvalidRequest: too many, or one of them twice."""
    values: dict[str, str] = {}
    try:
        pairs = parse_qsl(query.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise InvalidRequest("the query has more than 16 parameters; send fewer", param="query") from None
    for name, value in pairs:
        if name not in names:
            raise UnknownField(f"query parameter {shown(name)} is unknown; known: {', '.join(names)}", param=name[:64])
        if name in values:
            raise InvalidRequest(f"query parameter {name} is there twice; send it once", param=name)
        values[name] = value
    return values
