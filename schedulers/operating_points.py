"""Operating points: the settings a model was calibrated at, their cost and quality, and which one fits a budget.

The table is a JSON file beside the checkpoint, written by ``vireo calibrate``; nobody types it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from schedulers.cost import TableCostModel

FORMAT = 1
#: The parts of a budget, spelled as in the ``degraded`` list of an answer.
BudgetKind: TypeAlias = Literal["latency", "energy", "quality"]
Settings: TypeAlias = Mapping[str, bool | int | float | str]
"""Of a model's knobs. ``exit_1``, ``exit_2``, ... are the thresholds of its exits; the last exit has none."""
_SHARE_TOLERANCE = 1e-3
_NEVER, _ALWAYS = 1e8, -1e8
"""Thresholds of an exit that nobody takes (no confidence is above 1), and that all take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPoint:
    """One calibrated choice of thresholds and settings. ``ms_by_batch`` maps a batch size to the expected milliseconds
    of that batch. ``settings`` are those that are not the defaults, thresholds aside."""

    name: str
    thresholds: tuple[float, ...]
    exit_shares: tuple[float, ...]
    expected_flops: float
    flops_fraction: float
    ms_by_batch: Mapping[int, float]
    joules_per_sample: float
    accuracy: float
    settings: Settings = field(default_factory=dict)

    @property
    def key(self) -> str:
        """For caches: the same name means something else after the next calibration."""
        return f"{self.name}{self.thresholds}{sorted(self.settings.items())}"

    @property
    def service_s(self) -> float:
        """Expected seconds of one sample that runs in the smallest measured batch."""
        return self.ms_by_batch[min(self.ms_by_batch)] / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingPointTable:
    """All points of one checkpoint. ``stage_seconds[stage][i]`` is incremental, at ``batch_sizes[i]``."""

    model: str
    checkpoint_sha256: str
    exit_flops: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    stage_seconds: tuple[tuple[float, ...], ...]
    energy_source: str
    watts: float
    points: tuple[OperatingPoint, ...]
    is_calibrated: bool = True
    """Otherwise its numbers are guesses, on which nobody is refused, and its accuracies are not known."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OperatingPointTable:
        """Read the parsed JSON; keys that this version does not know are left alone.

        Raises:
            ValueError: naming the field that is missing or wrong.
        """
        _expect(isinstance(data, Mapping), "table", "a JSON object", data)
        _expect(data.get("format") == FORMAT, "format", f"{FORMAT}", data.get("format"))
        exit_flops = _numbers(data, "exit_flops")
        _expect(all(a < b for a, b in pairwise(exit_flops)), "exit_flops", "cumulative, ascending", exit_flops)
        batch_sizes, stage_seconds = _stage_costs(data, len(exit_flops))
        energy = _mapping(data, "energy")
        points = data.get("points")
        _expect(isinstance(points, list) and bool(points), "points", "a list that is not empty", points)
        table = cls(
            model=_text(data, "model"),
            checkpoint_sha256=_text(data, "checkpoint_sha256"),
            exit_flops=exit_flops,
            batch_sizes=batch_sizes,
            stage_seconds=stage_seconds,
            energy_source=_text(energy, "source", "energy."),
            watts=_number(energy, "watts", "energy."),
            points=tuple(_point(p, f"points[{i}]", len(exit_flops)) for i, p in enumerate(points or ())),
        )
        names = [point.name for point in table.points]
        _expect(len(set(names)) == len(names), "points", "points of different names", names)
        return table

    @property
    def num_exits(self) -> int:
        """Exits of the network, one per stage."""
        return len(self.exit_flops)

    def point(self, name: str) -> OperatingPoint:
        """The point of that name. Raises KeyError with the known names."""
        for point in self.points:
            if point.name == name:
                return point
        raise KeyError(f"no operating point {name!r}; known: {[p.name for p in self.points]}")

    def cost_model(self) -> TableCostModel:
        """A fresh cost model over this table, not corrected by anything yet."""
        return TableCostModel(self.batch_sizes, self.stage_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a request may cost and must be worth; None means no limit. ``energy_j`` is per sample.

    Raises:
        ValueError: if a number is NaN or negative.
    """

    latency_s: float | None = None
    energy_j: float | None = None
    quality_floor: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency_s", "energy_j", "quality_floor"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise ValueError(f"{name} is {value}; need a number >= 0, or None for no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The point to run. ``degraded`` names the budgets that ruled out the best point.

    ``predicted_service_s`` is the latency of one sample without queueing; ``predicted_work_s`` the engine time that is
    charged for it, which batching makes smaller; ``predicted_j`` its energy.
    """

    point: OperatingPoint
    predicted_service_s: float
    predicted_work_s: float
    predicted_j: float
    degraded: tuple[BudgetKind, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Infeasible:
    """No point fits. ``nearest`` misses by the smallest factor; ``breaks`` names the budgets that it breaks.

    ``retry_after_s`` is when the queue will have shrunk enough for it, None if waiting does not help.
    """

    nearest: OperatingPoint
    breaks: tuple[BudgetKind, ...]
    message: str
    retry_after_s: float | None


def with_settings(table: OperatingPointTable, settings: Settings) -> OperatingPointTable:
    """The table of a request that sets some knobs itself: each point with these, the others as calibrated.

    What was not calibrated is bounded by what was: the cost is that of the cheapest point that is set nowhere lower (of
    the dearest, where there is none), and the accuracy the lowest of all.
    """
    return replace(table, points=tuple(_overridden(table, point, settings) for point in table.points))


def _overridden(table: OperatingPointTable, point: OperatingPoint, settings: Settings) -> OperatingPoint:
    thresholds, others = list(point.thresholds), dict(point.settings)
    for name, value in settings.items():
        exit_number = name.removeprefix("exit_")
        if name.startswith("exit_") and exit_number.isdecimal() and int(exit_number) < len(thresholds):
            thresholds[int(exit_number) - 1] = _threshold(float(value))
        else:
            others[name] = value
    if tuple(thresholds) == point.thresholds and others == point.settings:
        return point
    made = replace(point, thresholds=tuple(thresholds), settings=others)
    nowhere_lower = [known for known in table.points if _is_nowhere_lower(known, made)]
    cost = (
        min(nowhere_lower, key=lambda p: p.joules_per_sample)
        if nowhere_lower
        else max(table.points, key=lambda p: p.joules_per_sample)
    )
    return replace(
        made,
        name=f"{point.name}+{','.join(f'{name}={value}' for name, value in sorted(settings.items()))}",
        ms_by_batch=cost.ms_by_batch,
        joules_per_sample=cost.joules_per_sample,
        accuracy=min(known.accuracy for known in table.points),
    )


def _threshold(confidence: float) -> float:
    return _ALWAYS if confidence <= 0.0 else _NEVER if confidence > 1.0 else confidence


def _is_nowhere_lower(known: OperatingPoint, made: OperatingPoint) -> bool:
    reached = next((place for place, value in enumerate(made.thresholds) if value <= 0.0), len(made.thresholds))
    pairs = list(zip(known.thresholds[:reached], made.thresholds[:reached], strict=True))
    pairs += [(known.settings.get(name), value) for name, value in made.settings.items()]  # type: ignore[misc]
    return all(mine == asked or (_is_number(mine) and _is_number(asked) and mine >= asked) for mine, asked in pairs)


def choose(table: OperatingPointTable, budget: Budget, predicted_queue_s: float) -> Choice | Infeasible:
    """The most accurate point that fits the budget after ``predicted_queue_s`` of waiting; of equals the cheapest.

    Raises:
        ValueError: if ``predicted_queue_s`` is negative or not finite.
    """
    if not 0.0 <= predicted_queue_s < math.inf:
        raise ValueError(f"predicted_queue_s is {predicted_queue_s}; need a finite number >= 0")
    ranked = sorted(table.points, key=lambda p: (-p.accuracy, p.joules_per_sample, p.service_s, p.name))
    for point in ranked:
        if not _excesses(point, budget, predicted_queue_s):
            return Choice(
                point=point,
                predicted_service_s=point.service_s,
                predicted_work_s=point.joules_per_sample / table.watts if table.watts > 0.0 else point.service_s,
                predicted_j=point.joules_per_sample,
                degraded=tuple(_excesses(ranked[0], budget, predicted_queue_s)),
            )
    nearest = min(ranked, key=lambda p: max(_excesses(p, budget, predicted_queue_s).values()))
    return _infeasible(nearest, budget, predicted_queue_s)


def _excesses(point: OperatingPoint, budget: Budget, queue_s: float) -> dict[BudgetKind, float]:
    """Budgets that the point breaks, and by which factor (> 1)."""
    excesses: dict[BudgetKind, float] = {}
    if budget.latency_s is not None and queue_s + point.service_s > budget.latency_s:
        excesses["latency"] = _ratio(queue_s + point.service_s, budget.latency_s)
    if budget.energy_j is not None and point.joules_per_sample > budget.energy_j:
        excesses["energy"] = _ratio(point.joules_per_sample, budget.energy_j)
    if budget.quality_floor is not None and point.accuracy < budget.quality_floor:
        excesses["quality"] = _ratio(budget.quality_floor, point.accuracy)
    return excesses


def _ratio(value: float, limit: float) -> float:
    return value / limit if limit > 0.0 else math.inf


def _infeasible(nearest: OperatingPoint, budget: Budget, queue_s: float) -> Infeasible:
    breaks = tuple(_excesses(nearest, budget, queue_s))
    parts = {
        "latency": f"latency {1e3 * (queue_s + nearest.service_s):.1f} ms of {1e3 * (budget.latency_s or 0.0):.1f} ms",
        "energy": f"energy {nearest.joules_per_sample:.4g} J of {budget.energy_j or 0.0:.4g} J",
        "quality": f"quality {nearest.accuracy:.4f} under {budget.quality_floor or 0.0:.4f}",
    }
    spare_s = math.inf if budget.latency_s is None else budget.latency_s - nearest.service_s
    return Infeasible(
        nearest=nearest,
        breaks=breaks,
        message=f"no operating point fits the budget; the nearest, {nearest.name}, breaks "
        + ", ".join(parts[kind] for kind in breaks)
        + "; loosen that part of the budget",
        retry_after_s=queue_s - spare_s if breaks == ("latency",) and spare_s >= 0.0 else None,
    )


# -- reading ---------------------------------------------------------------------------------------------------------


def _expect(is_right: bool, field: str, needed: str, value: object) -> None:
    if not is_right:
        raise ValueError(f"{field} is {str(value)[:200]}; need {needed}")


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    _expect(isinstance(value, Mapping), key, "a JSON object", value)
    return data[key]  # type: ignore[no-any-return]


def _text(data: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = data.get(key)
    _expect(isinstance(value, str) and bool(value), prefix + key, "text", value)
    return str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(data: Mapping[str, Any], key: str, prefix: str = "", low: float = 0.0, high: float = math.inf) -> float:
    value = data.get(key)
    is_right = _is_number(value) and low <= float(value or 0.0) <= high
    _expect(is_right, prefix + key, f"a finite number from {low} to {high}", value)
    return float(data[key])


def _numbers(data: Mapping[str, Any], key: str, prefix: str = "", length: int | None = None) -> tuple[float, ...]:
    value = data.get(key)
    is_list = isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
    is_right = is_list and all(map(_is_number, value or ())) and length in (None, len(value or ()))
    _expect(is_right, prefix + key, f"a list of {length or 'some'} finite numbers", value)
    return tuple(float(number) for number in data[key])


def _stage_costs(data: Mapping[str, Any], num_exits: int) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    costs = _mapping(data, "stage_cost_ms")
    sizes = _numbers(costs, "batch_sizes", "stage_cost_ms.")
    _expect(all(size == int(size) for size in sizes), "stage_cost_ms.batch_sizes", "whole numbers", sizes)
    stages = costs.get("stages")
    is_right = isinstance(stages, list) and len(stages) == num_exits
    _expect(is_right, "stage_cost_ms.stages", f"one row for each of {num_exits} exits", stages)
    rows = [
        _numbers({"row": row}, "row", f"stage_cost_ms.stages[{i}].", len(sizes)) for i, row in enumerate(stages or ())
    ]
    batch_sizes = tuple(int(size) for size in sizes)
    stage_seconds = tuple(tuple(ms / 1e3 for ms in row) for row in rows)
    try:
        TableCostModel(batch_sizes, stage_seconds)
    except ValueError as error:
        raise ValueError(f"stage_cost_ms: {error}") from None
    return batch_sizes, stage_seconds


def _point(data: object, field: str, num_exits: int) -> OperatingPoint:
    _expect(isinstance(data, Mapping), field, "a JSON object", data)
    point: Mapping[str, Any] = data if isinstance(data, Mapping) else {}
    prefix = f"{field}."
    shares = _numbers(point, "exit_shares", prefix, num_exits)
    sums_to_one = abs(sum(shares) - 1.0) <= _SHARE_TOLERANCE and min(shares) >= 0.0
    _expect(sums_to_one, f"{prefix}exit_shares", "shares >= 0 that sum to 1", shares)
    return OperatingPoint(
        name=_text(point, "name", prefix),
        thresholds=_numbers(point, "thresholds", prefix, num_exits),
        exit_shares=shares,
        expected_flops=_number(point, "expected_flops", prefix),
        flops_fraction=_number(point, "flops_fraction", prefix),
        ms_by_batch=_ms_by_batch(point, prefix),
        joules_per_sample=_number(point, "joules_per_sample", prefix),
        accuracy=_number(point, "accuracy", prefix, high=1.0),
        settings=dict(_mapping(point, "settings")) if "settings" in point else {},
    )


def _ms_by_batch(point: Mapping[str, Any], prefix: str) -> dict[int, float]:
    field, value = f"{prefix}ms_by_batch", point.get("ms_by_batch")
    _expect(isinstance(value, Mapping) and bool(value), field, "an object of batch size: milliseconds", value)
    sizes: Mapping[str, Any] = point["ms_by_batch"]
    _expect(all(str(size).isdecimal() and int(size) > 0 for size in sizes), field, "batch sizes >= 1 as keys", value)
    return {int(size): _number(sizes, size, f"{field}.") for size in sizes}
