"""Operating points of a video model: settings that were measured, what they cost, and which of them fits a budget.

What a caller fixes goes before what a point says. Where points were measured with just that, one of them is taken. Else
the points nearest to it are run with the caller's settings; what that gives is then not known, so no quality floor is
met by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias

#: The parts of a budget, spelled as in the ``degraded`` list of an answer.
VideoBudgetKind: TypeAlias = Literal["latency", "energy", "quality"]
_FEW_TIMES = 4.0
"""Numbers of steps that differ by more belong to weights made for something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipCost:
    """Measured at one size: ``step_s`` for a denoising step with all branches of guidance, ``fixed_s`` for the rest.

    Raises: ValueError: a number is not positive (``fixed_s``: negative).
    """

    width: int
    height: int
    num_frames: int
    step_s: float
    fixed_s: float

    def __post_init__(self) -> None:
        if min(self.width, self.height, self.num_frames) < 1:
            raise ValueError(f"size {self.width}x{self.height}x{self.num_frames}: need positive numbers")
        if not 0.0 < self.step_s < math.inf or not 0.0 <= self.fixed_s < math.inf:
            raise ValueError(f"step_s {self.step_s} must be > 0 and fixed_s {self.fixed_s} >= 0, both finite")

    @property
    def volume(self) -> int:
        """Pixels of the whole clip."""
        return self.width * self.height * self.num_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPoint:
    """One measured setting of a model. ``quality`` is in [0, 1]; ``watts`` is the power that it was measured at.

    Raises: ValueError: a number is out of range, or there are no costs.
    """

    name: str
    variant: str
    sampler: str
    num_steps: int
    attention: str
    guidance_scale: float
    quality: float
    watts: float
    costs: tuple[ClipCost, ...]

    def __post_init__(self) -> None:
        if not self.name or self.num_steps < 1 or not self.costs:
            raise ValueError(f"point {self.name!r}: needs a name, num_steps >= 1 and costs")
        if not 0.0 <= self.quality <= 1.0 or not 0.0 < self.watts < math.inf:
            raise ValueError(f"point {self.name}: quality {self.quality} must be in [0, 1], watts {self.watts} > 0")
        if not 0.0 <= self.guidance_scale < math.inf:
            raise ValueError(f"point {self.name}: guidance_scale {self.guidance_scale} must be >= 0 and finite")

    @property
    def branches(self) -> int:
        """Passes of the model in one step."""
        return 2 if self.guidance_scale > 1.0 else 1

    def seconds(self, width: int, height: int, num_frames: int) -> float:
        """Expected engine seconds of a clip, from the measured sizes on either side of it.

        Beyond them it is in proportion for smaller clips, and with the square for larger ones, as attention is.
        """
        costs = sorted(self.costs, key=lambda cost: cost.volume)
        volume = width * height * num_frames
        step_s, fixed_s = _between(costs, volume)
        return self.num_steps * step_s + fixed_s

    def joules(self, width: int, height: int, num_frames: int) -> float:
        """Expected energy of a clip."""
        return self.watts * self.seconds(width, height, num_frames)


def _between(costs: Sequence[ClipCost], volume: int) -> tuple[float, float]:
    """Seconds of a step and of the rest; ``costs`` ascend in volume."""
    first, last = costs[0], costs[-1]
    if volume <= first.volume:
        share = volume / first.volume
        return share * first.step_s, share * first.fixed_s
    if volume > last.volume:
        ratio = volume / last.volume
        return ratio**2 * last.step_s, ratio * last.fixed_s
    low, high = next((a, b) for a, b in pairwise(costs) if a.volume < volume <= b.volume)
    part = (volume - low.volume) / (high.volume - low.volume)
    return low.step_s + part * (high.step_s - low.step_s), low.fixed_s + part * (high.fixed_s - low.fixed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What is wanted: the size, and what the caller has fixed (None: the point's)."""

    width: int
    height: int
    num_frames: int
    num_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    attention: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoBudget:
    """What a clip may cost and must be worth; None: no limit. Raises: ValueError: a number is NaN or negative."""

    latency_s: float | None = None
    energy_j: float | None = None
    quality_floor: float | None = None

    def __post_init__(self) -> None:
        for name in ("latency_s", "energy_j", "quality_floor"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise ValueError(f"{name} is {value}; need a number >= 0, or None for no limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class PointChoice:
    """``point`` has the caller's settings in it. ``degraded``: budgets that ruled out the best one."""

    point: VideoPoint
    is_measured: bool
    predicted_s: float
    predicted_j: float
    degraded: tuple[VideoBudgetKind, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestMiss:
    """Nothing fits. ``nearest`` misses by the smallest factor; None where no point can do what the caller fixed."""

    nearest: PointChoice | None
    breaks: tuple[VideoBudgetKind, ...]
    message: str


def choose(
    points: Sequence[VideoPoint],
    clip: Clip,
    budget: VideoBudget,
    *,
    wait_s: float = 0.0,
    is_possible: Callable[[VideoPoint], bool] = lambda point: True,
) -> PointChoice | NearestMiss:
    """The best point that fits after ``wait_s`` of waiting; of equals the one that takes less.

    Raises: ValueError: ``wait_s`` is negative or not finite.
    """
    if not 0.0 <= wait_s < math.inf:
        raise ValueError(f"wait_s is {wait_s}; need a finite number >= 0")
    ranked = sorted(_candidates(points, clip, is_possible), key=lambda c: (-c.point.quality, c.predicted_s))
    if not ranked:
        return NearestMiss(nearest=None, breaks=(), message="no operating point can do this combination of settings")
    for candidate in ranked:
        if not _excesses(candidate, budget, wait_s):
            return replace(candidate, degraded=tuple(_excesses(ranked[0], budget, wait_s)))
    nearest = min(ranked, key=lambda candidate: max(_excesses(candidate, budget, wait_s).values()))
    return _miss(nearest, budget, wait_s)


def _candidates(
    points: Sequence[VideoPoint], clip: Clip, is_possible: Callable[[VideoPoint], bool]
) -> list[PointChoice]:
    pairs = [(point, _with(point, clip)) for point in points]
    pairs = [(point, changed) for point, changed in pairs if is_possible(changed)]
    measured = [point for point, changed in pairs if changed == point]
    if measured:
        return [_costed(point, clip, is_measured=True) for point in measured]
    distances = [_distance(point, changed) for point, changed in pairs]
    nearest = min(distances, default=())
    return [
        _costed(changed, clip, is_measured=False)
        for (_, changed), distance in zip(pairs, distances, strict=True)
        if distance == nearest
    ]


def _distance(point: VideoPoint, changed: VideoPoint) -> tuple[float, ...]:
    """How far the caller's settings are from what was measured; the first difference counts most."""
    steps = abs(math.log(changed.num_steps / point.num_steps))
    return (
        changed.sampler != point.sampler,
        steps > math.log(_FEW_TIMES),
        changed.attention != point.attention,
        steps,
    )


def _with(point: VideoPoint, clip: Clip) -> VideoPoint:
    """The point with what the caller has fixed; a second branch of guidance costs another pass."""
    guidance_scale = point.guidance_scale if clip.guidance_scale is None else clip.guidance_scale
    changed = replace(
        point,
        num_steps=clip.num_steps or point.num_steps,
        guidance_scale=guidance_scale,
        sampler=clip.sampler or point.sampler,
        attention=clip.attention or point.attention,
    )
    factor = changed.branches / point.branches
    if factor == 1.0:
        return changed
    return replace(changed, costs=tuple(replace(cost, step_s=factor * cost.step_s) for cost in changed.costs))


def _costed(point: VideoPoint, clip: Clip, *, is_measured: bool) -> PointChoice:
    size = (clip.width, clip.height, clip.num_frames)
    return PointChoice(
        point=point,
        is_measured=is_measured,
        predicted_s=point.seconds(*size),
        predicted_j=point.joules(*size),
    )


def _excesses(choice: PointChoice, budget: VideoBudget, wait_s: float) -> dict[VideoBudgetKind, float]:
    """Budgets that are broken, and by which factor (> 1)."""
    excesses: dict[VideoBudgetKind, float] = {}
    ends_s = wait_s + choice.predicted_s
    if budget.latency_s is not None and ends_s > budget.latency_s:
        excesses["latency"] = _ratio(ends_s, budget.latency_s)
    if budget.energy_j is not None and choice.predicted_j > budget.energy_j:
        excesses["energy"] = _ratio(choice.predicted_j, budget.energy_j)
    if budget.quality_floor is not None:
        quality = choice.point.quality if choice.is_measured else 0.0
        if quality < budget.quality_floor:
            excesses["quality"] = _ratio(budget.quality_floor, quality)
    return excesses


def _ratio(value: float, limit: float) -> float:
    return value / limit if limit > 0.0 else math.inf


def _miss(nearest: PointChoice, budget: VideoBudget, wait_s: float) -> NearestMiss:
    breaks = tuple(_excesses(nearest, budget, wait_s))
    quality = f"quality {nearest.point.quality:.3f}" if nearest.is_measured else "quality, which was not measured,"
    parts = {
        "latency": f"latency {1e3 * (wait_s + nearest.predicted_s):.0f} ms of {1e3 * (budget.latency_s or 0.0):.0f} ms",
        "energy": f"energy {nearest.predicted_j:.4g} J of {budget.energy_j or 0.0:.4g} J",
        "quality": f"{quality} under {budget.quality_floor or 0.0:.3f}",
    }
    remedy = "loosen that part of the budget" if nearest.is_measured else "fix fewer settings, or loosen the budget"
    message = f"no operating point fits the budget; the nearest, {nearest.point.name}, breaks "
    message += ", ".join(parts[kind] for kind in breaks) + f"; {remedy}"
    return NearestMiss(nearest=nearest, breaks=breaks, message=message)
