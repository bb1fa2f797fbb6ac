"""Takes large data URLs out of a JSON body before it is parsed.

A JSON parser turns every image into a string, character by character, and nobody else is served meanwhile; finding the
quote at its end is several times faster, and its base64 is then decoded from where it lies. Only members named ``url``
are looked at. Where this is not sure to mean the same as parsing the whole body, the whole body is parsed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.errors import InvalidRequest
from serving.ingress.json_body import load_object

MIN_BYTES = 4096
"""Shorter ones cost the parser next to nothing."""

MAX_LOOKS = 1024
"""More than any valid body has; a body made of nothing but beginnings must not hold up others."""

_OPENING = b'"data:'
_BEFORE = re.compile(rb'"url"[ \t\r\n]*:[ \t\r\n]*\Z')
_BEFORE_BYTES = 64


@dataclass(slots=True)
class LiftedUrls:
    """Data URLs that were taken out of a body, by the word that stands in their place. The words cannot be guessed."""

    urls: Mapping[str, memoryview] = field(default_factory=dict)
    num_taken: int = 0

    def take(self, text: str) -> str | memoryview:
        """Return the URL that ``text`` stands for, or ``text`` itself."""
        url = self.urls.get(text)
        if url is None:
            return text
        self.num_taken += 1
        return url

    @property
    def is_all_taken(self) -> bool:
        """Whether every URL that was taken out has been asked for: then none stood elsewhere."""
        return self.num_taken == len(self.urls)


def load_lifted(body: bytes, max_values: int) -> tuple[dict[str, Any], LiftedUrls]:
    """Parse a body, its large data URLs taken out.

    Raises: InvalidRequest: as ``load_object``.
    """
    rest, urls = lift(body)
    if not urls:
        return load_object(body, max_values), LiftedUrls()
    try:
        return load_object(rest, max_values), LiftedUrls(urls)
    except InvalidRequest:
        return load_object(body, max_values), LiftedUrls()  # raises the same, with the positions of the whole body


def lift(body: bytes) -> tuple[bytes, dict[str, memoryview]]:
    """Return the body with a word in the place of each large data URL, and the URLs.

    An unescaped quote followed by ``data:`` begins a string: after a string, no JSON goes on with a letter.
    """
    if len(body) < MIN_BYTES:
        return body, {}
    nonce, view = secrets.token_hex(8), memoryview(body)
    pieces: list[bytes | memoryview] = []
    urls: dict[str, memoryview] = {}
    done = num_looks = 0
    at = body.find(_OPENING)
    while at >= 0 and num_looks < MAX_LOOKS:
        num_looks += 1
        start = at + 1
        end = body.find(b'"', start)
        if end - start >= MIN_BYTES and _BEFORE.search(body, max(0, at - _BEFORE_BYTES), at):
            url = _unescaped(body, view, start, end)
            if url is not None:
                word = f"{nonce}-{len(urls)}"
                urls[word] = url
                pieces += (view[done:start], word.encode())
                done = end
        at = body.find(_OPENING, end) if end >= 0 else -1
    pieces.append(view[done:])
    return (b"".join(pieces) if urls else body), urls


def _unescaped(body: bytes, view: memoryview, start: int, end: int) -> memoryview | None:
    """The URL without the escaped slashes that some clients write; None if anything else in it is escaped."""
    if body.find(b"\\", start, end) < 0:
        return view[start:end]
    plain = body[start:end].replace(b"\\/", b"/")
    return None if b"\\" in plain else memoryview(plain)
