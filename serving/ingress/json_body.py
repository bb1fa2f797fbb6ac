"""Strict JSON. Refused, each with a typed error: duplicate keys, deep nesting, more values than any valid body has.

``NaN`` and ``Infinity`` literals and huge integers are read as numbers and then refused by the schema, which can name
the field. The standard parser is used because the faster ones silently keep the last of two equal keys.
"""

from __future__ import annotations

import json
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from serving.errors import InvalidRequest, UnknownField
from serving.ingress.front import shown

Model = TypeVar("Model", bound=BaseModel)


def load_object(body: bytes, max_values: int, what: str = "body") -> dict[str, Any]:
    """Parse a JSON object of at most about ``max_values`` values.

    Raises: InvalidRequest: anything else.
    """
    if not body or body.isspace():
        raise InvalidRequest(f"{what} is empty; send a JSON object", param=what)
    if _has_more_than(body, b",", max_values):
        raise InvalidRequest(f"{what} has more than {max_values} JSON values, the limit; send fewer", param=what)
    try:
        document = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} is not UTF-8 at byte {error.start}; encode it as UTF-8", param=what) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {error.msg} at character {error.pos}", param=what) from None
    except RecursionError:
        raise InvalidRequest(f"{what} is nested too deeply; no field needs more than four levels", param=what) from None
    except InvalidRequest:
        raise
    except ValueError:  # int() refuses more than 4,300 digits
        raise InvalidRequest(
            f"{what} holds an integer of thousands of digits; send a smaller one", param=what
        ) from None
    if not isinstance(document, dict):
        raise InvalidRequest(f"{what} is {shown(document)}; send a JSON object", param=what)
    return document


def _has_more_than(body: bytes, char: bytes, limit: int) -> bool:
    """Whether ``char`` is there more than ``limit`` times; quick on large bodies when the limit is small."""
    if limit > 4096:
        return body.count(char) > limit
    position = -1
    for _ in range(limit + 1):
        position = body.find(char, position + 1)
        if position < 0:
            return False
    return True


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidRequest(f"field {shown(twice)} is there twice; send it once", param=twice[:64])
    return members


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=float)


def validate(model: type[Model], document: dict[str, Any]) -> Model:
    """Check a parsed body against its schema.

    Raises: UnknownField, InvalidRequest: naming the first field at fault.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _to_request_error(error.errors(include_url=False, include_context=False)[0]) from None


def _to_request_error(detail: ErrorDetails) -> InvalidRequest:
    param = ".".join(str(part)[:64] for part in detail["loc"]) or "body"
    if detail["type"] == "extra_forbidden":
        return UnknownField(f"field {shown(param)} is unknown; remove it, or check its spelling", param=param)
    if detail["type"] == "missing":
        return InvalidRequest(f"{param} is missing; send it", param=param)
    rule = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return InvalidRequest(f"{param} is {shown(detail['input'])}; it {rule}", param=param)
