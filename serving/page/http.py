"""``/``, ``/docs`` and their files: static, without a key, as they hold nothing. What they show they fetch with the
key that is typed in.

Scripts, styles and requests are allowed to this server alone, and no text can become markup (trusted types).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple

from typing_extensions import TypedDict

from serving.errors import UnknownPath
from serving.front.front import shown
from serving.front.http.call import Answer, Call, Route, json_answer
from serving.front.http.openapi import operation, parameter, vireo_version

_FOLDER: Final = Path(__file__).parent / "files"
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS: Final = (
    (b"cache-control", b"no-cache"),
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class _File(NamedTuple):
    body: bytes
    content_type: bytes
    etag: bytes


class RootAnswer(TypedDict):
    """Answer of ``GET /`` to who does not ask for HTML: where to go on."""

    name: Literal["vireo"]
    version: str
    models: str
    openapi: str
    docs: str


@cache
def _files() -> Mapping[str, _File]:
    found = {path.name: path.read_bytes() for path in _FOLDER.iterdir()}
    return {
        name: _File(body, _TYPES[Path(name).suffix].encode(), b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode())
        for name, body in found.items()
    }


def _answer(call: Call, name: str, *headers: tuple[bytes, bytes]) -> Answer:
    file = _files()[name]
    all_headers = (*_HEADERS, (b"etag", file.etag), *headers)
    known = (call.header(b"if-none-match") or "").replace("W/", "").split(",")
    if file.etag.decode() in map(str.strip, known):
        return Answer(b"", 304, file.content_type, all_headers)
    return Answer(file.body, 200, file.content_type, all_headers)


async def _root(call: Call) -> Answer:
    vary = (b"vary", b"accept")
    if "text/html" in (call.header(b"accept") or ""):
        return _answer(call, "index.html", vary)
    document: RootAnswer = {
        "name": "vireo",
        "version": vireo_version(),
        "models": call.url_of("/v1/models"),
        "openapi": call.url_of("/openapi.json"),
        "docs": call.url_of("/docs"),
    }
    return replace(json_answer(document), headers=(vary,))


async def _docs(call: Call) -> Answer:
    return _answer(call, "docs.html")


async def _file(call: Call) -> Answer:
    name = call.path_params["name"]
    if name not in _files():
        raise UnknownPath(f"the page has no file {shown(name)}", param="name")
    return _answer(call, name)


_HTML: Final = {"text/html": {"schema": {"type": "string"}}}
_NAMES: Final = parameter("path", "name", {"enum": sorted(_files())})

ROUTES: Final = (
    Route(
        method="GET",
        path="/",
        handler=_root,
        operation=operation(
            "The page, for who asks for HTML; else where to go on",
            {**_HTML, "application/json": {"schema": RootAnswer}},
            id="get_root",
        ),
        needs_key=False,
    ),
    Route(
        method="GET",
        path="/docs",
        handler=_docs,
        operation=operation("The API to read", _HTML, id="get_docs"),
        needs_key=False,
    ),
    Route(
        method="GET",
        path="/page/{name}",
        handler=_file,
        operation=operation(
            "A file of the page",
            {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in _TYPES.values()},
            _NAMES,
            id="get_page_file",
        ),
        needs_key=False,
    ),
)
