"""The ``Range`` header (RFC 9110, section 14) for one range of bytes."""

from __future__ import annotations

import re
from typing import Final

from serving.errors import RangeNotSatisfiable
from serving.front.front import shown

_RANGE: Final = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*")


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
