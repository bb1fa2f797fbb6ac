"""Fields of JSON bodies: tables of those that other servers take, of what happens to each, and readers of values.

A field that another server takes is used, or passes because no value of it asks for anything here, or passes at the
values that ask for nothing, of which null is always one, and is ``unsupported_field`` at any other. A field that is not
in the table is ``unknown_field``, whatever its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serving.errors import InvalidRequest, UnknownField, UnsupportedField
from serving.front.front import check_integer, check_number, check_unicode, shown

MAX_USER_CHARS = 512
"""Of a text that is accepted and not used."""


class Fate(StrEnum):
    """What happens to a field."""

    USED = "used"
    CHECKED = "accepted within its limits, not used"
    PASSES = "accepted with any value"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Field:
    """``who``: a letter each for OpenAI, vLLM (present and past releases) and SGLang; none: our own.

    ``why``: it is not used. ``harmless``: values beside null that ask for nothing.
    """

    name: str
    who: str
    fate: Fate = Fate.USED
    why: str = ""
    harmless: tuple[Any, ...] = ()

    def lets_pass(self, value: Any) -> bool:
        """Whether a value asks for nothing, or the field is used or passes whatever it says."""
        return (
            self.fate is not Fate.REFUSED
            or value is None
            or any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in self.harmless)
        )


Row = Iterator[Field] | Field
Fields = Mapping[str, Field]
"""Of one object, by their names."""


def table(*rows: Row) -> Fields:
    """Put a table together; a later row replaces an earlier one of the same name."""
    return {field.name: field for row in rows for field in ([row] if isinstance(row, Field) else row)}


def used(who: str, *names: str) -> Iterator[Field]:
    """Fields that are read."""
    return (Field(name, who) for name in names)


def passes(who: str, why: str, *names: str) -> Iterator[Field]:
    """Fields of which no value asks for anything here."""
    return (Field(name, who, Fate.PASSES, why) for name in names)


def refused(who: str, why: str, names: str, *harmless: Any) -> Iterator[Field]:
    """Fields that are not offered, and the values that ask for nothing."""
    return (Field(name, who, Fate.REFUSED, why, harmless) for name in names.split())


def known(document: dict[str, Any], fields: Fields, where: str) -> dict[str, Any]:
    """Return the members that are used and not null. ``where``: the object, as messages of errors call it.

    Raises: UnknownField, UnsupportedField.
    """
    given: dict[str, Any] = {}
    for name, value in document.items():
        field = fields.get(name)
        if field is None:
            param = f"{where}{name[:64]}"
            raise UnknownField(f"field {shown(param)} is unknown; remove it, or check its spelling", param=param)
        if not field.lets_pass(value):
            param = f"{where}{name}"
            raise UnsupportedField(f"{param} is not offered: {field.why}. Remove it", param=param)
        if value is not None and field.fate in (Fate.USED, Fate.CHECKED):
            given[name] = value
    return given


def check_not_others(value: Any, others: Fields, param: str) -> None:
    """Raises: UnsupportedField: a value that other servers take; ``others`` has those by their name."""
    other = others.get(value) if isinstance(value, str) else None
    if other is not None:
        raise UnsupportedField(f"{param} {value} is not offered: {other.why}", param=param)


def documented(fields: Fields) -> Callable[[dict[str, Any]], None]:
    """What adds to the JSON schema of an object the fields that it has no member for."""

    def add(schema: dict[str, Any]) -> None:
        for name, field in fields.items():
            if field.fate is Fate.PASSES:
                schema["properties"][name] = {"description": f"Not used: {field.why}."}
            elif field.fate is Fate.REFUSED:
                kinds = [_only(value) for value in (None, *field.harmless)]
                schema["properties"][name] = {"anyOf": kinds, "description": f"Not offered: {field.why}."}

    return add


def _only(value: Any) -> dict[str, Any]:
    """A schema of one value, in words that generators of clients understand: ``const`` is of plain values to them."""
    match value:
        case None:
            return {"type": "null"}
        case bool():
            return {"type": "boolean", "const": value}
        case int() | float():
            return {"type": "number", "const": value}
        case str():
            return {"type": "string", "const": value}
        case list():
            items = {"anyOf": [_only(one) for one in value]} if value else {}
            return {"type": "array", "items": items, "minItems": len(value), "maxItems": len(value)}
        case _:
            members = {name: _only(one) for name, one in value.items()}
            return {"type": "object", "properties": members, "required": [*members], "additionalProperties": False}


# -- values ----------------------------------------------------------------------------------------------------------


def of(kind: type | tuple[type, ...], what: str, value: Any, param: str) -> Any:
    """Return the value. Raises: InvalidRequest: it is of another type; a boolean is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{param} is {shown(value)}; send {what}", param=param)
    return value


def one_of(given: dict[str, Any], name: str, choices: tuple[str, ...], where: str) -> str | None:
    """Return a member that is one of a few words, if it is there. Raises: InvalidRequest: another one."""
    value = given.get(name)
    if value is not None and value not in choices:
        raise InvalidRequest(
            f"{where}{name} is {shown(value)}; it must be one of {', '.join(choices)}", param=f"{where}{name}"
        )
    return value


def number(
    given: dict[str, Any], name: str, default: float, low: float, high: float, *, is_open_low: bool = False
) -> float:
    """Return a number. Raises: InvalidRequest: anything else, or out of range."""
    value = of((int, float), "a number", given.get(name, default), name)
    return check_number(value, low, high, name, is_open_low=is_open_low)


def integer(given: dict[str, Any], name: str, default: int | None, low: int, high: int) -> int | None:
    """Return an integer. Raises: InvalidRequest: anything else, or out of range."""
    if name not in given:
        return default
    return check_integer(of(int, "an integer", given[name], name), low, high, name)


def short_text(given: dict[str, Any], name: str, where: str) -> None:
    """Check a text that is at most repeated. Raises: InvalidRequest: too long, or no text."""
    value = given.get(name, "")
    param = f"{where}{name[:64]}"
    if len(of(str, "a string", value, param)) > MAX_USER_CHARS:
        raise InvalidRequest(f"{param} has {len(value)} characters; the limit is {MAX_USER_CHARS}", param=param)
    check_unicode(value, param)
