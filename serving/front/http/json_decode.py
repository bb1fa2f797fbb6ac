"""Strict JSON from a scanned text: here if it is small, otherwise in a process where nobody waits for it.

Refused besides what the scanner refuses: duplicate keys, and anything that is not one object. ``NaN`` and ``Infinity``
literals and huge integers are read as numbers and then refused by the schema, which can name the field. The standard
parser is used because the faster ones silently keep the last of two equal keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.front.front import shown

MAX_VALUES_HERE: Final = 4_096
MAX_BYTES_HERE: Final = 1 << 20
"""Of a text that is parsed in the event loop: 5 ms at worst."""

MIN_NUMBERS: Final = 256
"""Numbers of a list that comes out of the process as one array."""

MAX_OTHER_VALUES: Final = 1 << 15
"""Values besides those: what comes back is read in the event loop."""

_INTEGERS, _FLOATS = 1, 2
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Numbers:
    """A long list of numbers, flat. ``levels``: how many lists stood inside each other. Int64 where all are integers,
    those beyond it at its ends; float64 otherwise."""

    levels: int
    array: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.array)


def is_small(num_bytes: int, num_values: int) -> bool:
    """Whether parsing holds nobody up."""
    return num_values <= MAX_VALUES_HERE and num_bytes <= MAX_BYTES_HERE


def decode_object(plain: bytes | bytearray, what: str) -> dict[str, Any]:
    """Parse a scanned text.

    Raises: InvalidRequest: no JSON object, or one with duplicate keys.
    """
    if not plain or plain.isspace():
        raise InvalidRequest(f"{what} is empty; send a JSON object", param=what)
    try:
        document = _DECODER.decode(plain.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not UTF-8 at byte {error.start}; encode it as UTF-8", param=what) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error.msg} at character {error.pos}", param=what) from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{what} is {shown(document)}; send a JSON object", param=what)
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"field {shown(twice)} is there twice; send it once", param=twice[:64])
    return members


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=float)

# -- in the process --------------------------------------------------------------------------------------------------


class _Refusal(msgspec.Struct):
    message: str
    param: str | None


def make_decoder(what: str) -> Callable[[bytearray], bytes]:
    """Return what the process does with each text; ``read_answer`` reads its answers."""

    def decode(plain: bytearray) -> bytes:
        try:
            packer = _Packer(what)
            return b"D" + msgspec.msgpack.encode(packer.packable(decode_object(plain, what)))
        except InvalidRequest as error:
            return b"E" + msgspec.msgpack.encode(_Refusal(error.message, error.param))
        except UnicodeEncodeError:
            message = f"{what} holds half of a surrogate pair; send whole characters"
            return b"E" + msgspec.msgpack.encode(_Refusal(message, what))

    return decode


def read_answer(answer: bytearray) -> dict[str, Any]:
    """Return the document of an answer. Raises: InvalidRequest: what the process found."""
    body = memoryview(answer)[1:]
    if answer[:1] == b"E":
        refusal = msgspec.msgpack.decode(body, type=_Refusal)
        raise InvalidRequest(refusal.message, param=refusal.param)
    document: dict[str, Any] = _READER.decode(body)
    return document


class _Packer:
    def __init__(self, what: str) -> None:
        self._what = what
        self._num_values = 0

    def packable(self, value: Any) -> Any:
        """Put arrays in the place of long lists of numbers, and keep integers to what msgpack can carry."""
        self._num_values += 1
        if self._num_values > MAX_OTHER_VALUES:
            raise InvalidRequest(
                f"{self._what} has more than {MAX_OTHER_VALUES} JSON values besides long lists of numbers, the limit; "
                "send fewer",
                param=self._what,
            )
        if isinstance(value, dict):
            return {name: self.packable(inner) for name, inner in value.items()}
        if isinstance(value, list):
            numbers = _numbers(value)
            return numbers if numbers is not None else [self.packable(inner) for inner in value]
        return min(max(value, _LOWEST), _HIGHEST) if type(value) is int else value


def _numbers(values: list[Any]) -> msgspec.msgpack.Ext | None:
    flat, levels = values, 1
    while flat and all(type(inner) is list for inner in flat):
        flat, levels = list(chain.from_iterable(flat)), levels + 1
    kinds = set(map(type, flat))
    if len(flat) < MIN_NUMBERS or not kinds <= {int, float}:
        return None
    array = number_array(flat)
    return msgspec.msgpack.Ext(_INTEGERS if kinds == {int} else _FLOATS, bytes([levels]) + array.tobytes())


def number_array(values: list[Any]) -> npt.NDArray[Any]:
    """Integers as int64, those beyond it at its ends; integers and floats as float64."""
    if all(type(value) is int for value in values):
        try:
            return np.array(values, "<i8")
        except OverflowError:
            return np.array([min(max(value, _LOWEST), _HIGHEST) for value in values], "<i8")
    try:
        return np.array(values, "<f8")
    except OverflowError:
        return np.array([_finite(value) for value in values], "<f8")


def _finite(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _array(code: int, data: memoryview) -> Numbers:
    return Numbers(data[0], np.frombuffer(data[1:], "<i8" if code == _INTEGERS else "<f8"))


_READER: Final = msgspec.msgpack.Decoder(ext_hook=_array)
