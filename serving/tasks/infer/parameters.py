"""Parameters of an inference request, ours and Triton's, for HTTP and gRPC alike, and those of its answer.

Triton's ``priority`` counts down: 1 is high, 2 normal, 3 low, and 0 asks for nothing. ``timeout``, in microseconds, is
a deadline like gRPC's: a late answer is an error, and nothing is reduced for it. What asks for nothing here passes:
``triton_enable_empty_final_response``, and a sequence that is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeAlias

import orjson

from serving.domain import Budget, Priority, Report
from serving.errors import InvalidRequest, UnknownField, UnsupportedField
from serving.front.budget import check_values
from serving.front.front import check_integer, shown
from serving.limits import IngressLimits
from serving.service import Card
from serving.tasks.classification import check_top_k

Parameter: TypeAlias = str | int | float | bool

PRIORITIES: Final = {1: Priority.HIGH, 2: Priority.NORMAL, 3: Priority.LOW}
"""By Triton's number."""
MAX_TIMEOUT_US: Final = 1 << 53

_SETTING: Final = "vireo_settings."
"""Before the name of a setting."""
_REAL: Final = (int, float)
_KNOWN: Final[dict[str, Any]] = {
    "vireo_latency_ms": _REAL,
    "vireo_energy_j": _REAL,
    "vireo_priority": str,
    "vireo_quality_floor": _REAL,
    "top_k": int,
    "priority": int,
    "timeout": int,
    "binary_data_output": bool,
    "triton_enable_empty_final_response": bool,
    "sequence_id": (int, str),
    "sequence_start": bool,
    "sequence_end": bool,
}
_NAMES: Final[dict[Any, str]] = {
    _REAL: "number",
    str: "string",
    int: "whole number",
    bool: "boolean",
    (int, str): "whole number or a string",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the parameters ask for. ``deadline_s``: on the monotonic clock."""

    budget: Budget
    top_k: int = 1
    deadline_s: float | None = None


def read_parameters(
    parameters: Mapping[str, Parameter | None], fallback: Budget, card: Card, limits: IngressLimits
) -> Wishes:
    """Read the parameters of a request; one that is null is not sent.

    Raises: UnknownField, UnsupportedField, InvalidRequest.
    """
    sent = {name: value for name, value in parameters.items() if value is not None}
    settings = {name: sent.pop(name) for name in list(sent) if name.startswith(_SETTING)}
    _check_kinds(sent, card)
    _check_sequence(sent)
    top_k = int(sent.get("top_k", 1))
    check_top_k(top_k, limits)
    budget = Budget(
        latency_ms=_real(sent, "vireo_latency_ms", fallback.latency_ms),
        energy_j=_real(sent, "vireo_energy_j", fallback.energy_j),
        priority=_priority(sent, fallback.priority),
        quality_floor=_real(sent, "vireo_quality_floor", fallback.quality_floor),
        settings=check_values({name.removeprefix(_SETTING): value for name, value in settings.items()}),
    )
    return Wishes(budget=budget, top_k=top_k, deadline_s=_deadline_s(sent))


def _check_kinds(sent: Mapping[str, Parameter], card: Card) -> None:
    known = {name: kind for name, kind in _KNOWN.items() if name != "top_k" or "classify" in card.tasks}
    for name, value in sent.items():
        expected = known.get(name)
        if expected is None:
            raise UnknownField(
                f"parameter {shown(name)} is unknown; known: {', '.join(known)}, {_SETTING}*",
                param=f"parameters.{name[:64]}",
            )
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            raise InvalidRequest(
                f"parameter {name} is {shown(value)}; it must be a {_NAMES[expected]}", param=f"parameters.{name}"
            )


def _check_sequence(sent: Mapping[str, Parameter]) -> None:
    for name in ("sequence_id", "sequence_start", "sequence_end"):
        if sent.get(name):
            raise UnsupportedField(
                f"parameter {name} is {shown(sent[name])}; there are no sequences here: every request stands alone. "
                "Leave it out",
                param=f"parameters.{name}",
            )


def _priority(sent: Mapping[str, Parameter], fallback: Priority) -> Priority:
    name = sent.get("vireo_priority")
    number = check_integer(int(sent.get("priority", 0)), 0, len(PRIORITIES), "parameters.priority")
    if name is None:
        return PRIORITIES.get(number, fallback)
    if name not in ("low", "normal", "high"):
        raise InvalidRequest(
            f"parameter vireo_priority is {shown(name)}; send low, normal or high", param="parameters.vireo_priority"
        )
    if number and PRIORITIES[number].value != name:
        raise InvalidRequest(
            f"priority {number} is {PRIORITIES[number].value}, and vireo_priority is {name}; send one of them",
            param="parameters.priority",
        )
    return Priority(str(name))


def _deadline_s(sent: Mapping[str, Parameter]) -> float | None:
    timeout_us = check_integer(int(sent.get("timeout", 0)), 0, MAX_TIMEOUT_US, "parameters.timeout")
    return time.monotonic() + timeout_us / 1e6 if timeout_us else None


def _real(sent: Mapping[str, Parameter], name: str, fallback: float | None) -> float | None:
    value = sent.get(name)
    if value is None:
        return fallback
    try:
        return float(value)
    except OverflowError:
        return math.inf  # Budget refuses it by name


def report_parameters(report: Report) -> dict[str, str | float]:
    """Return the report as response parameters: ``vireo_`` and the field; lists comma-separated, objects as JSON.
    Joules that are not known are left out: a parameter cannot be null."""
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    if values.pop("degradation") is not None:
        values["degradation"] = orjson.dumps(report.degradation).decode()
    if report.energy_j is None:
        del values["energy_j"]
    values["degraded"] = ",".join(report.degraded)
    values["guard"] = orjson.dumps(report.guard).decode()
    return {f"vireo_{name}": value for name, value in values.items()}
