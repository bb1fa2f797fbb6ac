"""Bounds on a JSON text that hold while it arrives: depth, values, digits, and how long it is besides long strings.

The text is cut at its quotes; what is between strings is counted with array operations, what is inside them is not
looked at. A string of an image is put aside as it comes: a parser would walk it character by character, with nobody
else served. The bounds make no text valid. They hold up to the first error in it, where every parser stops.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from serving.errors import InvalidRequest, PayloadTooLarge
from serving.front.http.body import PIECE_BYTES

MAX_DEPTH: Final = 32
"""Lists and objects inside each other. No field needs more than a schema's."""

MAX_NUMBER_CHARS: Final = 1_100
"""A double written out in full takes 1,077."""

LONG_BYTES: Final = 1 << 15
"""A string of more bytes, in more than one piece, is put aside. Longer than any field but images and texts."""

_STEPS: Final = np.zeros(256, np.int32)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1
_NO_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_IN_NUMBER: Final = np.isin(np.arange(256, dtype=np.uint8), np.frombuffer(b"0123456789+-.eE", np.uint8))


@dataclass(frozen=True, slots=True)
class Bounds:
    """``max_values``: values of all kinds together. ``max_plain_bytes``: the text without the strings put aside.
    ``max_string_bytes``: one string."""

    max_values: int
    max_plain_bytes: int
    max_string_bytes: int


@dataclass(slots=True)
class ScannedJson:
    """A text within its bounds. ``plain`` has a word in the place of each of the ``strings``; it cannot be guessed.

    The strings are in pieces, as they came.
    """

    plain: bytes
    num_values: int
    strings: dict[str, list[bytes]] = field(default_factory=dict)


class JsonScanner:
    """Takes a text in pieces of any size; ``what`` names it in errors. One per text.

    Raises, while fed:
        InvalidRequest: too deep, too many values, or a number or string too long.
        PayloadTooLarge: too long besides its long strings.
    """

    def __init__(self, bounds: Bounds, what: str = "body") -> None:
        self._bounds = bounds
        self._what = what
        self._nonce = ""
        self._plain: list[bytes] = []
        self._plain_bytes = 0
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._strings: dict[str, list[bytes]] = {}
        self._in_string = self._is_escaped = False
        self._depth = self._values = self._number_chars = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes; a piece of ``PIECE_BYTES`` takes up to 3 ms."""
        for start in range(0, len(data), PIECE_BYTES):
            self._take(data[start : start + PIECE_BYTES])

    def finish(self) -> ScannedJson:
        """Return the text."""
        self._plain += self._open
        return ScannedJson(b"".join(self._plain), self._values + 1, self._strings)

    def _take(self, piece: bytes) -> None:
        flat = self._without_escapes(piece)
        if self._in_string:
            end = flat.find(b'"')
            if end < 0:
                self._keep_open(piece)
                return
            self._keep_open(piece[:end])
            self._close()
            piece, flat = piece[end:], flat[end:]
        between = flat.split(b'"')[self._in_string :: 2]
        self._in_string ^= flat.count(b'"') % 2 == 1
        self._count(b'"'.join(between))
        start = flat.rfind(b'"') + 1 if self._in_string else len(piece)
        self._keep(piece[:start])
        if self._in_string:
            self._keep_open(piece[start:])

    def _without_escapes(self, piece: bytes) -> bytes:
        """The piece, as long, with every escaped backslash and quote painted over."""
        flat = b"x" + piece[1:] if self._is_escaped else piece
        if b"\\" in flat:
            flat = flat.replace(b"\\\\", b"xx").replace(b'\\"', b"xx")
        self._is_escaped = flat.endswith(b"\\")
        return flat

    def _count(self, text: bytes) -> None:
        """Count what is between strings; a quote stands for each string."""
        self._values += text.count(b",") + text.count(b"[") + text.count(b"{")
        if self._values >= self._bounds.max_values:
            raise InvalidRequest(
                f"{self._what} has more than {self._bounds.max_values} JSON values, the limit; send fewer",
                param=self._what,
            )
        brackets = np.frombuffer(text.translate(None, _NO_BRACKETS), np.uint8)
        if len(brackets):
            depths = np.cumsum(_STEPS[brackets])
            if self._depth + int(depths.max()) > MAX_DEPTH:
                raise InvalidRequest(
                    f"{self._what} is nested deeper than {MAX_DEPTH} levels, the limit; no field needs as many",
                    param=self._what,
                )
            self._depth += int(depths[-1])
        self._count_digits(text)

    def _count_digits(self, text: bytes) -> None:
        if not text:
            return
        others = np.flatnonzero(~_IN_NUMBER[np.frombuffer(text, np.uint8)])
        if len(others):
            longest = max(self._number_chars + int(others[0]), int(np.diff(others).max(initial=1)) - 1)
            self._number_chars = len(text) - 1 - int(others[-1])
        else:
            longest = self._number_chars = self._number_chars + len(text)
        if max(longest, self._number_chars) > MAX_NUMBER_CHARS:
            raise InvalidRequest(
                f"{self._what} holds a number of more than {MAX_NUMBER_CHARS} characters, the limit; shorten it",
                param=self._what,
            )

    def _keep(self, piece: bytes) -> None:
        self._plain.append(piece)
        self._plain_bytes += len(piece)
        if self._plain_bytes > self._bounds.max_plain_bytes:
            raise PayloadTooLarge(
                f"{self._what} has more than {self._bounds.max_plain_bytes} bytes besides its long strings, the limit; "
                "send less",
                param=self._what,
            )

    def _keep_open(self, piece: bytes) -> None:
        self._open.append(piece)
        self._open_bytes += len(piece)
        if self._open_bytes > self._bounds.max_string_bytes:
            raise PayloadTooLarge(
                f"{self._what} holds a string of more than {self._bounds.max_string_bytes} bytes, the limit; send a "
                "smaller image or a shorter text",
                param=self._what,
            )

    def _close(self) -> None:
        """The string that began in an earlier piece is over."""
        pieces, num_bytes, self._open, self._open_bytes = self._open, self._open_bytes, [], 0
        self._in_string = True
        if num_bytes <= LONG_BYTES:
            for piece in pieces:
                self._keep(piece)
        else:
            self._nonce = self._nonce or secrets.token_hex(8)
            word = f"{self._nonce}-{len(self._strings)}"
            self._strings[word] = pieces
            self._keep(word.encode())
