"""Reads traces of requests: our own CSV, and two public layouts, told apart by their first line.

    vireo     CSV: ``timestamp_s``, ``task`` or ``model``, and any of the other columns of ``COLUMNS``
    azure     CSV of the Azure LMM trace (ModServe, SoCC 2025): TIMESTAMP, NumImages, ContextTokens, GeneratedTokens
    mooncake  JSON lines: timestamp (ms), input_length, output_length, hash_ids

The public ones are chats of one tenant without budgets. Strict: whatever is wrong is refused with the number of its
line, and times must not run backwards.
"""

from __future__ import annotations

import csv
import json
import math
import re
from calendar import monthrange, timegm
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from schedulers.types import Priority

COLUMNS = (
    "timestamp_s",
    "tenant",
    "task",
    "model",
    "priority",
    "latency_ms",
    "energy_j",
    "quality_floor",
    "size",
    "images",
    "prompt_tokens",
    "output_tokens",
)
AZURE_COLUMNS = ("TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens")
_MOONCAKE_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
_MAX_TOKENS = 10_000_000


class TraceError(ValueError):
    """A trace that cannot be read; the message names the line."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of a chat: pictures, text of the prompt, and what would be written if nothing cut it short."""

    images: int
    prompt: int
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Times are seconds from the start of the trace; None means no limit.

    ``model``: "" for the one that is served for its task. ``size``: its work beside that of a usual request.
    ``tokens``: what it is instead, where the trace says so. ``patience_s``: after which one without a budget is given
    up.
    """

    arrived_s: float
    task: str = ""
    model: str = ""
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    latency_s: float | None = None
    energy_j: float | None = None
    quality_floor: float | None = None
    size: float = 1.0
    tokens: Tokens | None = None
    patience_s: float = math.inf

    @property
    def deadline_s(self) -> float:
        """On the trace's clock."""
        return self.arrived_s + (self.patience_s if self.latency_s is None else self.latency_s)


def read_trace(lines: Iterable[str]) -> list[Request]:
    """The requests of a trace. ``lines``: of the file, as an open one gives them.

    Raises: TraceError: a line that is none of such a trace, or no request at all.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    number, head = next(numbered, (0, ""))
    if not head:
        raise TraceError("the trace is empty; need a header or a line of JSON")
    if head.lstrip().startswith("{"):
        rows = _mooncake([(number, head), *numbered])
    else:
        names = next(csv.reader([head.removeprefix("\ufeff")]))
        rows = _table([name.strip() for name in names], numbered)
    requests = list(_in_order(rows))
    if not requests:
        raise TraceError("the trace has a header and no request")
    return requests


def scaled(
    requests: Sequence[Request], *, rate_per_s: float | None = None, duration_s: float | None = None
) -> list[Request]:
    """The trace played at a mean rate, then cut: bursts stay bursts, only faster.

    Raises: ValueError: a number that is not positive, or nothing is left.
    """
    for name, number in (("rate", rate_per_s), ("duration", duration_s)):
        if number is not None and not 0.0 < number < math.inf:
            raise ValueError(f"the {name} is {number}; need a finite number > 0")
    first_s = requests[0].arrived_s
    span_s = requests[-1].arrived_s - first_s
    factor = 1.0
    if rate_per_s is not None and span_s > 0.0:
        factor = (len(requests) - 1) / span_s / rate_per_s
    moved = [replace(request, arrived_s=(request.arrived_s - first_s) * factor) for request in requests]
    return [request for request in moved if duration_s is None or request.arrived_s < duration_s]


def _in_order(rows: Iterable[tuple[int, Request]]) -> Iterator[Request]:
    last_s = -math.inf
    for number, request in rows:
        if request.arrived_s < last_s:
            raise TraceError(
                f"line {number}: its time, {request.arrived_s:g} s, is before that of the line before, {last_s:g} s"
            )
        last_s = request.arrived_s
        yield request


def _table(names: Sequence[str], lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Request]]:
    make: Callable[[Mapping[str, str]], Request]
    if set(names) == set(AZURE_COLUMNS):
        make = _Azure()
    elif "timestamp_s" in names and ("task" in names or "model" in names):
        make = _ours
        if unknown := [name for name in names if name not in COLUMNS]:
            raise TraceError(f"line 1: unknown columns {', '.join(unknown)}; known ones are {', '.join(COLUMNS)}")
    else:
        raise TraceError(
            f"line 1: {','.join(names)!r} is no header of a trace; need timestamp_s and task or model, or "
            f"{','.join(AZURE_COLUMNS)}, or lines of JSON with {', '.join(_MOONCAKE_FIELDS)}"
        )
    if len(set(names)) != len(names):
        raise TraceError("line 1: a column is there twice")
    for number, line in lines:
        with _Line(number):
            cells = next(csv.reader([line], strict=True))
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells for {len(names)} columns")
            yield number, make(dict(zip(names, map(str.strip, cells), strict=True)))


class _Line:
    """Names the line of whatever is wrong inside."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError | csv.Error) and not isinstance(error, TraceError):
            raise TraceError(f"line {self._number}: {error}") from None


def _ours(cells: Mapping[str, str]) -> Request:
    def number(name: str, *, zero: bool = True) -> float | None:
        return _number(name, cells[name], zero=zero) if cells.get(name) else None

    latency_ms, arrived_s = number("latency_ms", zero=False), number("timestamp_s")
    if arrived_s is None:
        raise ValueError("timestamp_s is empty")
    if not cells.get("task") and not cells.get("model"):
        raise ValueError("neither task nor model is given")
    tokens = None
    if cells.get("prompt_tokens") or cells.get("output_tokens"):
        tokens = Tokens(
            images=_count("images", cells.get("images") or "0"),
            prompt=_count("prompt_tokens", cells.get("prompt_tokens") or "0"),
            output=_count("output_tokens", cells.get("output_tokens") or "0"),
        )
    elif cells.get("images"):
        raise ValueError("images needs prompt_tokens or output_tokens beside it")
    quality_floor = number("quality_floor")
    if quality_floor is not None and quality_floor > 1.0:
        raise ValueError(f"quality_floor is {quality_floor:g}; need a number from 0 to 1")
    return Request(
        arrived_s=arrived_s,
        task=cells.get("task", ""),
        model=cells.get("model", ""),
        tenant=cells.get("tenant", ""),
        priority=_priority(cells.get("priority") or "normal"),
        latency_s=None if latency_ms is None else latency_ms / 1e3,
        energy_j=number("energy_j", zero=False),
        quality_floor=quality_floor,
        size=number("size", zero=False) or 1.0,
        tokens=tokens,
    )


class _Azure:
    """Times are dates there."""

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._has_zone = False

    def __call__(self, cells: Mapping[str, str]) -> Request:
        at_s, has_zone = _instant(cells["TIMESTAMP"])
        if self._first_s is None:
            self._first_s, self._has_zone = at_s, has_zone
        if has_zone != self._has_zone:
            raise ValueError("TIMESTAMP has a time zone in some lines only")
        images, prompt, output = (_count(name, cells[name]) for name in AZURE_COLUMNS[1:])
        return Request(arrived_s=round(at_s - self._first_s, 6), task="chat", tokens=Tokens(images, prompt, output))


_INSTANT = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", re.ASCII)


def _instant(text: str) -> tuple[float, bool]:
    """Seconds since 1970 of a date and time, and whether it names its zone."""
    match = _INSTANT.fullmatch(text)
    if match is None:
        raise ValueError(f"TIMESTAMP is {text!r}; need YYYY-MM-DD HH:MM:SS, with a fraction and a zone or without")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    is_date = 1 <= month <= 12 and year >= 1970 and 1 <= day <= monthrange(year, month)[1]
    if not is_date or hour > 23 or minute > 59 or second > 59:
        raise ValueError(f"TIMESTAMP is {text!r}, and there is no such time")
    fraction, zone = float(match[7] or 0.0), match[8]
    ahead_s = 0
    if zone and zone != "Z":
        ahead_s = (60 * int(zone[1:3]) + int(zone[4:6])) * (60 if zone[0] == "+" else -60)
    return timegm((year, month, day, hour, minute, second)) - ahead_s + fraction, zone is not None


def _mooncake(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, Request]]:
    for number, line in lines:
        with _Line(number):
            row: Any = json.loads(line)
            if not isinstance(row, dict) or set(row) != set(_MOONCAKE_FIELDS):
                raise ValueError(f"need an object with just {', '.join(_MOONCAKE_FIELDS)}")
            hashes = row["hash_ids"]
            if not isinstance(hashes, list) or not all(type(one) is int for one in hashes):
                raise ValueError("hash_ids is no list of whole numbers")
            at_ms = row["timestamp"]
            if type(at_ms) not in (int, float):
                raise ValueError(f"timestamp is {at_ms!r}; need a number")
            counts = []
            for name in ("input_length", "output_length"):
                if type(row[name]) is not int:
                    raise ValueError(f"{name} is {row[name]!r}; need a whole number")
                counts.append(_count(name, str(row[name])))
            request = Request(
                arrived_s=_number("timestamp", str(at_ms)) / 1e3, task="chat", tokens=Tokens(0, counts[0], counts[1])
            )
        yield number, request


def _number(name: str, text: str, *, zero: bool = True) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; need a number") from None
    if not (number >= 0.0 if zero else number > 0.0) or number == math.inf:
        raise ValueError(f"{name} is {text}; need a finite number {'>=' if zero else '>'} 0")
    return number


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= _MAX_TOKENS):
        raise ValueError(f"{name} is {text!r}; need a whole number from 0 to {_MAX_TOKENS:,}")
    return int(text)


def _priority(text: str) -> Priority:
    try:
        return Priority[text.upper()]
    except KeyError:
        names = ", ".join(one.name.lower() for one in Priority)
        raise ValueError(f"priority is {text!r}; need one of {names}") from None
