"""Settings of a family: what they take, how they are checked, and how one complete setting is spelt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from models.contract.lazy import LazyRef

Scope: TypeAlias = Literal["request", "deployment"]
Value: TypeAlias = bool | int | float | str
Point: TypeAlias = Mapping[str, Value]
"""One setting of a family's knobs, complete."""


class SettingError(ValueError):
    """A setting or a field of a request that cannot be done: its ``name``, and words fit for the caller."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One setting of a family. Written once: validation, JSON schema, ``/v1/models``, command line, cache keys and the
    axes of a calibration are read from it.

    Either ``values``, from the cheapest to the best, or a range from ``low`` to ``high``, or texts of a form: ``parse``
    reads one and raises ValueError with words fit for the caller. Of the last two ``grid`` is what a calibration
    measures. ``trades``: what is given up towards the cheap end, in a few words; "" where nothing is and the knob is no
    axis of operating points. ``is_lossless``: every value gives the same answer, only at another price.

    Raises: ValueError: not exactly one of values, range and form, or a default outside of them (a form's is read when
    it is used).
    """

    name: str
    default: Value
    summary: str
    values: tuple[Value, ...] = ()
    low: float | None = None
    high: float | None = None
    parse: LazyRef | None = None
    grid: tuple[Value, ...] = ()
    is_integer: bool = False
    trades: str = ""
    is_lossless: bool = False
    scope: Scope = "request"

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"knob {self.name!r} must be named like a variable")
        has_range = self.low is not None and self.high is not None
        kinds = (bool(self.values), has_range, self.parse is not None)
        if sum(kinds) != 1 or (self.low is None) != (self.high is None):
            raise ValueError(f"knob {self.name} needs either values, a range from low to high, or a form")
        for value in () if self.parse else (self.default, *self.grid):
            self.check(value)

    @property
    def is_axis(self) -> bool:
        """Whether a calibration measures along it."""
        return bool(self.trades) and self.scope == "request"

    @property
    def points(self) -> tuple[Value, ...]:
        """What a calibration measures, from the cheapest to the best."""
        return self.values or self.grid or (self.default,)

    def check(self, value: object) -> Value:
        """Pass a value, a whole number as an integer where the knob takes integers.

        Raises: SettingError: not one of its values, outside its range or not of its form.
        """
        if self.values:
            if any(value == known and type(value) is type(known) for known in self.values):
                return value  # type: ignore[return-value]
            raise self._refusal(value, f"choose one of {', '.join(map(_short, self.values))}")
        return self._parsed(value) if self.parse is not None else self._ranged(value)

    def _parsed(self, value: object) -> str:
        assert self.parse is not None
        if not isinstance(value, str):
            raise self._refusal(value, f"give a text such as {self.default!r}")
        try:
            self.parse.load()(value)
        except ValueError as error:
            raise SettingError(self.name, str(error)) from None
        return value

    def _ranged(self, value: object) -> int | float:
        assert self.low is not None
        assert self.high is not None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not self.low <= value <= self.high:  # type: ignore[operator]
            raise self._refusal(value, f"give a number from {self.low:g} to {self.high:g}")
        if self.is_integer:
            if value != int(value):  # type: ignore[call-overload]
                raise self._refusal(value, "give a whole number")
            return int(value)  # type: ignore[call-overload, no-any-return]
        return float(value)  # type: ignore[arg-type]

    def _refusal(self, value: object, remedy: str) -> SettingError:
        return SettingError(self.name, f"{self.name} is {_short(value)}; {remedy}")

    def json_schema(self) -> dict[str, Any]:
        """Its JSON schema, with what it is for and what it trades."""
        text = f"{self.summary} Trades {self.trades}." if self.trades else self.summary
        if self.values:
            return {"enum": list(self.values), "default": self.default, "description": text}
        if self.parse is not None:
            return {"type": "string", "default": self.default, "examples": list(self.points), "description": text}
        kind = "integer" if self.is_integer else "number"
        bounds = {"minimum": self.low, "maximum": self.high}
        return {"type": kind, **bounds, "default": self.default, "description": text}


def find_knob(name: str, knobs: Sequence[Knob], owner: str) -> Knob:
    """The knob of that name. Raises: SettingError: ``owner`` has none; the message names those that it has."""
    for knob in knobs:
        if knob.name == name:
            return knob
    known = ", ".join(knob.name for knob in knobs) or "none"
    raise SettingError(name, f"{owner} has no setting {_short(name)}; settings are: {known}")


def check_settings(
    settings: Mapping[str, object], knobs: Sequence[Knob], owner: str, scope: Scope = "request"
) -> dict[str, Value]:
    """Pass what is set, each as its knob takes it.

    Raises: SettingError: an unknown setting, or a value that it does not take.
    """
    checked: dict[str, Value] = {}
    for name, value in settings.items():
        knob = find_knob(name, knobs, owner)
        if knob.scope != scope:
            raise SettingError(name, f"{name} is set for a whole {knob.scope}, not for a {scope}")
        checked[name] = knob.check(value)
    return checked


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def point_key(point: Point) -> str:
    """One spelling for one point: ``name=value`` in the order of names. For keys of tables and caches."""
    return ",".join(f"{name}={_spelt(point[name])}" for name in sorted(point))


def _spelt(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return format(value, ".12g") if isinstance(value, float) else str(value)
