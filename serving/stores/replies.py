"""Redis' answers as data: parsed and checked, because a server may be broken or not be a Redis at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import InvalidResponse

from schedulers.spending import Spending

Values: TypeAlias = tuple[bytes | None, ...]
_MOST_AT_S = 1e11
"""Unix time of the year 5138: no server says so that has a clock."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What an account holds and has spent. ``is_repaired``: what was stored could not be obeyed."""

    joules: float
    seconds: float
    spending: Spending
    is_repaired: bool


@dataclass(frozen=True, slots=True)
class ReserveReply:
    """Answer of ``scripts.LOOKUP_AND_RESERVE`` when something was missing. ``wait_s``: until the buckets hold it, which
    may be never."""

    is_granted: bool
    joules: float
    seconds: float
    wait_s: float
    levels: Levels


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
    if not isinstance(answer, list) or len(answer) not in (1, 12):
        raise InvalidResponse("expected the answer of the script")
    values = parse_values(answer[0], count)
    if len(answer) == 1:
        return values, None
    joules, seconds, wait_s = _finite(answer[2]), _finite(answer[3]), _number(answer[4])
    return values, ReserveReply(answer[1] == 1, joules, seconds, wait_s, _levels(answer[5:]))


def parse_settle(answer: Any) -> Levels | None:
    """Read the answer of ``scripts.SETTLE`` or ``CHARGE``; None: nothing to settle.

    Raises:
        InvalidResponse: it is none.
    """
    if answer == []:
        return None
    if not isinstance(answer, list) or len(answer) != 7:
        raise InvalidResponse("expected the answer of the script")
    return _levels(answer)


def _levels(tail: Sequence[Any]) -> Levels:
    *numbers, is_repaired = tail
    joules, seconds, day_j, month_j, open_j, at_s = map(_finite, numbers)
    if not 0.0 <= at_s <= _MOST_AT_S:
        raise InvalidResponse("expected a time")
    return Levels(joules, seconds, Spending(at_s=at_s, day_j=day_j, month_j=month_j, open_j=open_j), is_repaired == 1)


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
