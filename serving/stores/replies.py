"""Redis' answers as data: parsed and checked, because a server may be broken or not be a Redis at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import InvalidResponse

Values: TypeAlias = tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """Answer of ``scripts.LOOKUP_AND_RESERVE`` when something was missing. ``wait_s`` may be infinite."""

    is_granted: bool
    joules: float
    seconds: float
    level_j: float
    level_s: float
    wait_s: float
    is_repaired: bool


@dataclass(frozen=True, slots=True)
class Levels:
    """What a bucket holds. ``is_repaired``: what was stored could not be obeyed."""

    joules: float
    seconds: float
    is_repaired: bool


def parse_values(answer: Any, count: int) -> Values:
    """Read the answer of MGET.

    Raises:
        InvalidResponse: it is none.
    """
    if not isinstance(answer, list) or len(answer) != count:
        raise InvalidResponse(f"expected {count} values")
    if not all(value is None or isinstance(value, bytes) for value in answer):
        raise InvalidResponse("expected values of bytes")
    return tuple(answer)


def parse_reserve(answer: Any, count: int) -> tuple[Values, ReserveReply | None]:
    """Read the answer of ``scripts.LOOKUP_AND_RESERVE``; None when nothing was missing.

    Raises:
        InvalidResponse: it is none.
    """
    if not isinstance(answer, list) or len(answer) not in (1, 9):
        raise InvalidResponse("expected the answer of the script")
    values = parse_values(answer[0], count)
    if len(answer) == 1:
        return values, None
    joules, seconds, level_j, level_s = (_finite(text) for text in answer[2:6])
    return values, ReserveReply(answer[1] == 1, joules, seconds, level_j, level_s, _number(answer[6]), answer[8] == 1)


def parse_settle(answer: Any) -> Levels | None:
    """Read the answer of ``scripts.SETTLE`` or ``CHARGE``; None: nothing to settle.

    Raises:
        InvalidResponse: it is none.
    """
    if answer == []:
        return None
    if not isinstance(answer, list) or len(answer) != 4:
        raise InvalidResponse("expected the answer of the script")
    return Levels(_finite(answer[0]), _finite(answer[1]), answer[3] == 1)


def _number(text: Any) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise InvalidResponse("expected a number") from None
    if math.isnan(number):
        raise InvalidResponse("expected a number")
    return number


def _finite(text: Any) -> float:
    number = _number(text)
    if math.isinf(number):
        raise InvalidResponse("expected a finite number")
    return number
