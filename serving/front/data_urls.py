"""``data:`` URLs (RFC 2397), on every surface by this parser.

Scheme and ``base64`` in any case, parameters of any kind, with or without base64. Whatever the media type says is
passed over: what the bytes are is decided by the bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from serving.errors import InvalidImage
from serving.front.front import shown

MAX_HEAD_CHARS: Final = 256
MAX_ESCAPES: Final = 1 << 16
"""Percent signs in one URL: unescaping them takes about 10 ms."""


class DataUrl(NamedTuple):
    """A URL, and where its data begin: copies of large ones hold others up."""

    text: str
    start: int
    is_base64: bool

    @property
    def most_bytes(self) -> int:
        """About how long the data are: never less than 2 bytes below."""
        num_chars = len(self.text) - self.start
        return num_chars // 4 * 3 if self.is_base64 else num_chars

    @property
    def is_escaped(self) -> bool:
        """Whether the data have percent signs."""
        return self.text.find("%", self.start) >= 0

    def unescaped(self) -> bytes:
        """Return the data without percent-encoding. Raises: InvalidImage: too much of it to be worth while."""
        if self.text.count("%", self.start) > MAX_ESCAPES:
            raise InvalidImage(f"data: URL has more than {MAX_ESCAPES} percent-encoded bytes, the limit; send base64")
        return unquote_to_bytes(self.text[self.start :].encode("utf-8", "surrogatepass"))


def is_data_url(text: str) -> bool:
    """Whether it has this scheme."""
    return text[:5].lower() == "data:"


def parse_data_url(url: str) -> DataUrl:
    """Split a URL that ``is_data_url``.

    Raises: InvalidImage: there is no comma, or too late.
    """
    comma = url.find(",", 5, MAX_HEAD_CHARS)
    if comma < 0:
        raise InvalidImage(
            f"image is {shown(url, 40)}; a data: URL has a comma within {MAX_HEAD_CHARS} characters, as in "
            "'data:image/png;base64,...'"
        )
    last = url[5:comma].rpartition(";")[2]
    return DataUrl(url, comma + 1, ";" in url[5:comma] and last.strip().lower() == "base64")
