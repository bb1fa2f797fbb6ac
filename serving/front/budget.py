"""What a caller is willing to spend, however it is spelt: the ``vireo`` object of JSON, headers, or a message."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import Field, WithJsonSchema
from vireo_pb.vireo.v1 import vireo_pb2

from serving.domain import MAX_ENERGY_J, MAX_LATENCY_MS, Budget, Priority
from serving.errors import InvalidRequest
from serving.front.front import shown
from serving.front.http.body import Headers, header
from serving.front.http.json_body import Strict, validate
from serving.limits import MAX_ID_CHARS, IngressLimits

NO_BUDGET = Budget()
MAX_SETTINGS, MAX_NAME_CHARS = 32, 64
MAX_NUMBER: Final = sys.float_info.max
Setting: TypeAlias = bool | int | float | str
_PARAM: Final = "vireo.settings"
_SETTINGS: Final = {
    "anyOf": [
        {
            "type": "object",
            "maxProperties": MAX_SETTINGS,
            "propertyNames": {"maxLength": MAX_NAME_CHARS},
            "additionalProperties": {
                "anyOf": [
                    {"type": "boolean"},
                    {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER},
                    {"type": "string", "maxLength": MAX_ID_CHARS},
                ]
            },
        },
        {"type": "null"},
    ]
}
_NUMBER = re.compile(r"[+-]?\d{1,20}(\.\d{0,20})?([eE][+-]?\d{1,3})?", re.ASCII)
_PRIORITIES = {
    vireo_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    vireo_pb2.PRIORITY_LOW: Priority.LOW,
    vireo_pb2.PRIORITY_NORMAL: Priority.NORMAL,
    vireo_pb2.PRIORITY_HIGH: Priority.HIGH,
}


class BudgetBody(Strict):
    """What the caller is willing to spend. An absent field means no limit of that kind."""

    latency_ms: Annotated[float | None, Field(gt=0, le=MAX_LATENCY_MS)] = None
    """Milliseconds from arrival to answer."""
    energy_j: Annotated[float | None, Field(gt=0, le=MAX_ENERGY_J)] = None
    """Joules for the whole request."""
    priority: Literal["low", "normal", "high"] | None = None
    """Order among competing requests."""
    quality_floor: Annotated[float | None, Field(ge=0, le=1)] = None
    """Lowest acceptable held-out accuracy of the operating point."""
    settings: Annotated[dict[str, Any] | None, WithJsonSchema(_SETTINGS)] = None
    """Settings of the model by name, as ``GET /v1/models`` lists them; the operating point chooses the others."""

    def to_budget(self, fallback: Budget) -> Budget:
        """Return the budget, with ``fallback`` where a field is absent."""
        return Budget(
            latency_ms=fallback.latency_ms if self.latency_ms is None else self.latency_ms,
            energy_j=fallback.energy_j if self.energy_j is None else self.energy_j,
            priority=fallback.priority if self.priority is None else Priority(self.priority),
            quality_floor=fallback.quality_floor if self.quality_floor is None else self.quality_floor,
            settings=check_values(self.settings or {}),
        )


def budget_from_object(document: dict[str, Any], fallback: Budget) -> Budget:
    """Read a ``vireo`` object, naming its fields as the JSON body does.

    Raises: InvalidRequest, UnknownField.
    """
    try:
        parsed = validate(BudgetBody, document)
    except InvalidRequest as error:
        error.param = f"vireo.{error.param}"
        raise
    return parsed.to_budget(fallback)


def check_values(values: Mapping[str, Any]) -> dict[str, Setting]:
    """Return settings in one order, whoever they are for: the model's knobs say what it takes.

    Raises: InvalidRequest: too many, too long, or no plain finite value.
    """
    if len(values) > MAX_SETTINGS:
        raise InvalidRequest(f"vireo.settings has {len(values)} entries; the limit is {MAX_SETTINGS}", param=_PARAM)
    for name, value in values.items():
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequest(f"vireo.settings has no setting {shown(name)}; see /v1/models", param=_PARAM)
        is_plain = isinstance(value, bool | float | str) or (isinstance(value, int) and value.bit_length() < 64)
        if not is_plain or (isinstance(value, float) and not math.isfinite(value)):
            raise _bad_setting(name, f"is {shown(value)}; send a finite number, a boolean or a string")
        if isinstance(value, str) and len(value) > MAX_ID_CHARS:
            raise _bad_setting(name, f"has {len(value)} characters; the limit is {MAX_ID_CHARS}")
    return {name: values[name] for name in sorted(values)}


def _bad_setting(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{_PARAM}.{name} {what}", param=f"{_PARAM}.{name}")


def budget_from_headers(headers: Headers, limits: IngressLimits) -> Budget:
    """Return the budget of ``x-vireo-latency-ms`` and ``x-vireo-energy-j``, which a body's own fields override.

    Raises: InvalidRequest: not a number, or out of range.
    """
    latency_ms = _number(headers, b"x-vireo-latency-ms", limits)
    energy_j = _number(headers, b"x-vireo-energy-j", limits)
    return NO_BUDGET if latency_ms is None and energy_j is None else Budget(latency_ms=latency_ms, energy_j=energy_j)


def _number(headers: Headers, name: bytes, limits: IngressLimits) -> float | None:
    text = header(headers, name, limits)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text.strip()):
        raise InvalidRequest(
            f"header {name.decode()} is {shown(text)}; send a decimal number greater than 0", param=name.decode()
        )
    return float(text)


def budget_from_message(message: vireo_pb2.Budget) -> Budget:
    """Read a message; one that is not there says nothing. Raises: InvalidRequest."""
    priority = _PRIORITIES.get(message.priority)
    if priority is None:
        raise InvalidRequest(
            f"vireo.priority is {message.priority}; it must be a value of the enumeration Priority",
            param="vireo.priority",
        )
    return Budget(
        latency_ms=message.latency_ms if message.HasField("latency_ms") else None,
        energy_j=message.energy_j if message.HasField("energy_j") else None,
        priority=priority,
        quality_floor=message.quality_floor if message.HasField("quality_floor") else None,
        settings=check_values({name: _value(name, setting) for name, setting in message.settings.items()}),
    )


def _value(name: str, setting: vireo_pb2.Setting) -> Setting:
    kind = setting.WhichOneof("value")
    if kind is None:
        raise _bad_setting(name, "has no value; set one")
    value: Setting = getattr(setting, kind)
    return value


def message_from_setting(value: Setting) -> vireo_pb2.Setting:
    """Return the value of a setting as it travels."""
    match value:
        case bool():
            return vireo_pb2.Setting(bool_value=value)
        case int():
            return vireo_pb2.Setting(int_value=value)
        case float():
            return vireo_pb2.Setting(double_value=value)
    return vireo_pb2.Setting(string_value=value)
