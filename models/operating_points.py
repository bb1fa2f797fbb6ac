"""The table of operating points beside a checkpoint: its shape, reading it, writing it. Free of torch.

One format and one reader for every family. Written by ``vireo calibrate``, never by hand; ``docs/calibration.md`` says
what each field means. Strict: a field that is not known, a number out of range or not finite, and a point whose key is
not that of its settings are refused by name.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from models.contract import UNITS, Value, Variant, point_key
from models.identity import checkpoint_sha256

TABLE_FILE = "operating_points.json"
CONFIDENCE = 0.95
"""Of the intervals that qualities have."""
_Z = 1.959964
_Text: TypeAlias = Annotated[str, msgspec.Meta(min_length=1)]
_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
_NotNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
_Share: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Batch: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing but what is declared."""


class Hardware(_Strict, frozen=True, kw_only=True):
    """What the times were measured on. ``load``: cores that other work kept busy just before. (In older tables it is
    the load average, which counts a calibration that has just ended.) It and ``torch`` are None where they were not
    written down."""

    cpu: _Text
    device: _Text
    threads: Annotated[int, msgspec.Meta(ge=1)]
    torch: str | None = None
    load: _NotNegative | None = None


class Energy(_Strict, frozen=True, kw_only=True):
    """How joules follow from busy seconds."""

    source: _Text
    watts: _Positive
    note: str = ""


class Seconds(_Strict, frozen=True, kw_only=True):
    """A measured time and its standard error; None where it is not known."""

    seconds: _NotNegative
    error: _NotNegative | None = None


class Quality(_Strict, frozen=True, kw_only=True):
    """An estimate from ``n`` independent samples, and its confidence interval.

    Raises: ValueError: the interval does not hold the value.
    """

    value: _Share
    low: _Share
    high: _Share
    n: Annotated[int, msgspec.Meta(ge=1)]

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"quality {self.value} lies outside of its interval {self.low} to {self.high}")


def share_quality(value: float, n: int) -> Quality:
    """A share of ``n`` independent samples, with Wilson's interval."""
    middle = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(value * (1 - value) / n + _Z**2 / (4 * n * n))
    low, high = max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half))
    return Quality(value=value, low=round_off(low), high=round_off(high), n=n)


def mean_quality(scores: Sequence[float]) -> Quality:
    """The mean of independent scores from 0 to 1, with the normal approximation of its interval; one says nothing."""
    n, value = len(scores), round_off(statistics.fmean(scores))
    half = _Z * statistics.stdev(scores) / math.sqrt(n) if n > 1 else 1.0
    return Quality(value=value, low=round_off(max(0.0, value - half)), high=round_off(min(1.0, value + half)), n=n)


def round_off(number: float, digits: int = 6) -> float:
    """So many significant digits: what a measurement is worth."""
    return float(f"{number:.{digits}g}")


def source_commit() -> str | None:
    """The commit that this runs at, None where the source is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class Point(_Strict, frozen=True, kw_only=True):
    """One setting of a family's knobs.

    ``seconds_per_unit``: by the family's units of work and the rows that run together, what a unit takes of a batch's
    time; nothing where a unit costs nothing. ``quality``: None where the family has no evaluation. ``figures``: what a
    model card shows besides.
    """

    settings: dict[str, bool | int | float | str]
    seconds_per_unit: dict[str, Annotated[dict[_Batch, Seconds], msgspec.Meta(min_length=1)]]
    quality: Quality | None = None
    figures: dict[str, Any] = {}


class Slice(_Strict, frozen=True, kw_only=True):
    """What a row may leave after. ``units``: work of a row up to here; ``seconds``: of a whole batch of so many rows,
    this slice alone."""

    units: dict[str, _Positive]
    seconds: Annotated[dict[_Batch, Seconds], msgspec.Meta(min_length=1)]


class Prediction(_Strict, frozen=True, kw_only=True):
    """How well the prices predict runs that they were not fitted to: errors of seconds, as shares of the actual."""

    runs: Annotated[int, msgspec.Meta(ge=1)]
    median_error: _NotNegative
    p95_error: _NotNegative


class Table(_Strict, frozen=True, kw_only=True):
    """The whole file, under ``TABLE_FILE``. ``points`` by their names (``point_name``), the best first.
    ``slices``: of rows that leave early, in order.

    Raises: ValueError: a key that is not that of its settings, an unknown unit, or slices that do not belong together.
    """

    version: Literal[1] = 1
    model: _Text
    checkpoint_sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: str
    commit: str | None
    hardware: Hardware
    energy: Energy
    metric: str
    """What quality means here; "" where none was measured."""
    data: dict[str, Any]
    """What quality was measured on."""
    points: Annotated[dict[str, Point], msgspec.Meta(min_length=1)]
    slices: tuple[Slice, ...] = ()
    prediction: Prediction | None = None
    """None in tables of before it was measured, and where nothing was timed twice."""

    def __post_init__(self) -> None:
        for name, point in self.points.items():
            if name != (spelt := point_name(point.settings)):
                raise ValueError(f"the point {name!r} has the settings {spelt!r}")
            _check_units(point.seconds_per_unit)
        sizes = {tuple(one.seconds) for one in self.slices}
        if len(sizes) > 1 or any(list(known) != sorted(known) for known in sizes):
            raise ValueError(f"slices have batch sizes {sorted(sizes)}; need the same, ascending, for all")
        for one in self.slices:
            _check_units(one.units)


def _check_units(units: Mapping[str, object]) -> None:
    for unit in units:
        if unit not in UNITS:
            raise ValueError(f"work unit {unit!r} is unknown; units are {', '.join(UNITS)}")


def point_name(settings: Mapping[str, Value]) -> str:
    """How a point is called everywhere: its settings, ``name=value`` in the order of names; "default" without any."""
    return point_key(settings) or "default"


def read_table(variant: Variant) -> Table:
    """Read the table of a model's checkpoint.

    Raises:
        ValueError: no checkpoint, no table, or one that is damaged or of another model or other weights; the message
            names the command that makes one.
    """
    remedy = f"run `vireo calibrate {variant.id}`"
    if variant.weights is None:
        raise ValueError(f"{variant.id} has no weights here: convert a checkpoint (`vireo convert`), then {remedy}")
    path = variant.weights / TABLE_FILE
    try:
        table = msgspec.json.decode(path.read_bytes(), type=Table)
    except OSError:
        raise ValueError(f"{variant.id} has no operating points at {path}: {remedy}") from None
    except ValueError as error:  # msgspec's errors are that, too
        raise ValueError(f"operating points at {path} cannot be used ({error}): {remedy}") from None
    if table.model != variant.id:
        raise ValueError(f"operating points at {path} are of model {table.model}, not {variant.id}: {remedy}")
    if table.checkpoint_sha256 != checkpoint_sha256(variant.weights):
        raise ValueError(f"operating points at {path} were measured with other weights than those there: {remedy}")
    return table


def write_table(table: Table, directory: Path) -> Path:
    """Write the table, whole or not at all; returns its path.

    Raises:
        ValueError: it would not be read back.
    """
    content = msgspec.json.encode(table)
    msgspec.json.decode(content, type=Table)
    path = directory / TABLE_FILE
    draft = path.with_name(f".{TABLE_FILE}.{os.getpid()}")
    draft.write_bytes(msgspec.json.format(content, indent=1) + b"\n")
    draft.replace(path)
    return path
