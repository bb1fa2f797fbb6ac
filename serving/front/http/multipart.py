"""``multipart/form-data``, parsed while it is read and kept in memory within the body's limit. Nothing goes to disk."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import InvalidRequest, TooManyImages, UnknownField, UnsupportedField, UnsupportedMediaType
from serving.front.front import shown
from serving.limits import IngressLimits

TEXT_FIELDS: Final = ("model", "top_k", "vireo")
MAX_TEXT_BYTES = 4096
MAX_PART_HEADERS = 8
_SILENT: Final = logging.Logger("multipart", level=logging.CRITICAL + 1)
"""The parser logs a line for every malformed body; that would let a caller fill the log."""

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FormRules:
    """Parts that a form may have. ``longer``: text fields that may have more bytes than ``max_text_bytes``, and how
    many. ``refused``: names that are known and not taken, and why."""

    text_fields: tuple[str, ...] = TEXT_FIELDS
    file_fields: tuple[str, ...] = ("file",)
    max_text_bytes: int = MAX_TEXT_BYTES
    longer: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names that are taken."""
        return (*self.file_fields, *self.text_fields)


@dataclass(frozen=True, slots=True)
class Form:
    """Text fields by name, and the contents of every file, in order."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[bytes] = field(default_factory=list)


class FormReader:
    """Takes the body in chunks of any size, then gives the form. One per request.

    Raises, while fed:
        InvalidRequest: broken framing, or a text field that is too long, repeated or not UTF-8.
        UnknownField, UnsupportedField: a part of another name.
        TooManyImages: one file too many.
        UnsupportedMediaType: no boundary, or a part with a transfer encoding.
    """

    def __init__(self, content_type: str, limits: IngressLimits, rules: FormRules | None = None) -> None:
        self._limits = limits
        self._rules = rules or FormRules()
        self._form = Form()
        self._name: str | None = None
        self._chunks: list[bytes] = []
        self._num_bytes = 0
        self._header = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._finished = False
        self._started = False
        self._parser = MultipartParser(
            _boundary(content_type),
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
            max_header_count=MAX_PART_HEADERS,
        )
        self._parser.logger = _SILENT

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._started = True
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise InvalidRequest(
                "body is no well-formed multipart/form-data; let an HTTP library make it", param="body"
            ) from None

    def finish(self) -> Form:
        """Return the form once the body is over.

        Raises: InvalidRequest: it ended before its closing boundary.
        """
        if not self._started:
            raise InvalidRequest(
                f"body is empty; send {' and '.join(self._rules.names[:2])} as multipart/form-data", param="body"
            )
        if not self._finished:
            raise InvalidRequest("body ends before its closing boundary; send all of it", param="body")
        return self._form

    def _on_part_begin(self) -> None:
        self._name, self._num_bytes = None, 0
        self._chunks, self._headers = [], {}

    def _on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header[0].clear()
        self._header[1].clear()
        self._headers[name.lower()] = value

    def _on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise InvalidRequest("a part has no 'content-disposition: form-data; name=...'; add it", param="body")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise UnsupportedMediaType(
                "a part has a content-transfer-encoding; send its bytes as they are", param="body"
            )
        self._name = self._checked_name(options[b"name"].decode("utf-8", "replace"))

    def _checked_name(self, name: str) -> str:
        rules = self._rules
        if name in rules.refused:
            raise UnsupportedField(f"{name} is not offered: {rules.refused[name]}. Remove it", param=name)
        if name in rules.file_fields:
            if len(self._form.files) == self._limits.max_images:
                raise TooManyImages(
                    f"request has more than {self._limits.max_images} images, the limit. Split it into several",
                    param=name,
                )
        elif name not in rules.text_fields:
            raise UnknownField(f"form field {shown(name)} is unknown; known: {', '.join(rules.names)}", param=name[:64])
        elif name in self._form.fields:
            raise InvalidRequest(f"form field {name} is there twice; send it once", param=name)
        return name

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._num_bytes += end - start
        limit = self._rules.longer.get(self._name or "", self._rules.max_text_bytes)
        if self._name not in self._rules.file_fields and self._num_bytes > limit:
            raise InvalidRequest(
                f"form field {self._name} has more than {limit} bytes, the limit; shorten it", param=self._name
            )
        self._chunks.append(data[start:end])

    def _on_part_end(self) -> None:
        content = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = []
        if self._name in self._rules.file_fields:
            self._form.files.append(content)
            return
        assert self._name is not None
        try:
            self._form.fields[self._name] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(f"form field {self._name} is not UTF-8; encode it", param=self._name) from None

    def _on_end(self) -> None:
        self._finished = True


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise UnsupportedMediaType(
            "multipart/form-data has no usable boundary parameter; let an HTTP library set the content type",
            param="content-type",
        )
    return boundary
