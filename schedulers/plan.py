"""Which operating point a request gets: the best of those whose time, energy and quality fit its budget under the load.

One planner for every family. A family counts the work of a request at a point, in units that it names. A point has a
price for each unit, and the lower confidence bound of its quality. Points are ranked by that bound, so a lucky sample
does not win. Settings that a request fixes itself are bounded by the points around them (``with_settings``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from schedulers.charge import Charge
from schedulers.cost import Units

#: The parts of a budget, spelled as in the ``degraded`` list of an answer.
BudgetKind: TypeAlias = Literal["latency", "energy", "quality"]
#: Why a request did not get its best point: parts of its budget, or the load.
Cause: TypeAlias = Literal["latency", "energy", "quality", "load"]
Value: TypeAlias = bool | int | float | str
Settings: TypeAlias = Mapping[str, Value]
Work: TypeAlias = Callable[[Settings], Units]
"""The work of one request with these settings."""
_ROUNDING = 1e-9
"""What was worked out to fit exactly must still fit when it is computed again."""
_FAR = 0.75
"""Numbers more than four times apart say little about each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds per unit of work; a unit that is not named costs nothing. ``latency_s``: for whoever waits for it.
    ``busy_s``: what is charged, which is less where rows share a batch. ``watts``: power while busy.

    Raises: ValueError: a number is negative or not finite.
    """

    latency_s: Units
    busy_s: Units
    watts: float

    def __post_init__(self) -> None:
        for number in (*self.latency_s.values(), *self.busy_s.values(), self.watts):
            if not 0.0 <= number < math.inf:
                raise ValueError(f"a cost has {number}; need finite numbers >= 0")

    def latency(self, units: Units) -> float:
        """Seconds until this work is done."""
        return _product(self.latency_s, units)

    def busy(self, units: Units) -> float:
        """Seconds that are charged for this work."""
        return _product(self.busy_s, units)


def _product(prices: Units, units: Units) -> float:
    total = 0.0
    for name, price in prices.items():
        total += price * units.get(name, 0.0)
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Settings that can be run. ``quality``: the lower confidence bound; None where it was not measured."""

    name: str
    settings: Settings
    cost: Cost
    quality: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a request may cost, and how good its answer must be; None means no limit.

    Raises: ValueError: a number is NaN or negative.
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
class Load:
    """What a request meets: ``queued_s``, the seconds of work before it; ``rows``, those that come with it, itself
    included, and take their share of its batch; ``bend``, how far its quality gives way to load, from 0 (not at all) to
    1 (``schedulers.bending.depth``); and ``charge``, what rows are charged now (None: as in the table).

    Raises: ValueError: ``queued_s`` is negative or not finite, there is no row, or ``bend`` is not from 0 to 1.
    """

    queued_s: float = 0.0
    rows: int = 1
    bend: float = 0.0
    charge: Charge | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.queued_s < math.inf:
            raise ValueError(f"queued_s is {self.queued_s}; need a finite number >= 0")
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; need at least 1")
        if not 0.0 <= self.bend <= 1.0:
            raise ValueError(f"bend is {self.bend}; need 0 to 1")


_IDLE = Load()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A point and what it is predicted to take: seconds once it has begun, until all its rows are done; a row's share
    of a usual batch; and joules that a row is charged under the load of now.

    ``degraded``: what ruled out the best point, which is then ``best``.
    """

    point: Point
    latency_s: float
    busy_s: float
    energy_j: float
    degraded: tuple[Cause, ...] = ()
    best: Plan | None = None

    @property
    def quality(self) -> float:
        """The quality that is promised."""
        return self.point.quality or 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Nothing fits. ``nearest`` misses by the smallest factor, ``breaks`` names the limits that it misses, and
    ``feasible`` is the budget loosened just enough for it; both are None where there is no point at all.
    ``retry_after_s``: when the queue will have shrunk enough; None if waiting does not help."""

    nearest: Plan | None
    breaks: tuple[BudgetKind, ...]
    feasible: Budget | None
    message: str
    retry_after_s: float | None = None


def plan(points: Sequence[Point], work: Work, budget: Budget, load: Load) -> Plan | Refusal:
    """The best point that fits under ``load``. ``work`` and the joules of ``budget`` are those of one row. Of equals,
    the one that takes fewer joules, then the faster, then the first. Points of unknown quality come last, in order.
    """
    wait_s = load.queued_s
    plans = [_planned(point, work(point.settings), load) for point in points]
    if not plans:
        message = "no operating point can do this combination of settings"
        return Refusal(nearest=None, breaks=(), feasible=None, message=message)
    plans.sort(key=_rank)
    best = plans[0]
    fitting = [one for one in plans if not _excesses(one, budget, wait_s)]
    if fitting:
        bent = _bent(plans, fitting, budget, load.bend)
        causes: tuple[Cause, ...] = tuple(_excesses(best, budget, wait_s))
        if bent is not fitting[0]:
            causes = (*causes, "load")
        return bent if bent is best else replace(bent, degraded=causes, best=best)
    nearest = min(plans, key=lambda one: max(_excesses(one, budget, wait_s).values()))
    unqueued = [one.latency_s for one in plans if not _excesses(one, budget, 0.0)]
    retry_after_s = wait_s + min(unqueued) - (budget.latency_s or 0.0) if unqueued else None
    return _refusal(nearest, budget, wait_s, retry_after_s)


def dominated(points: Sequence[Point], work: Work) -> dict[str, str]:
    """Points that ``plan`` never picks for this work, whatever budget and load are, each with one that is picked in its
    place: as good by its lower bound, as fast and as cheap, and better in one of these. A point that takes more joules
    but less time than all others as good is none of them, nor is one of unknown quality.

    They still bound the points between which a request's own settings lie (``with_settings``).
    """
    plans = sorted((_planned(point, work(point.settings)) for point in points if point.quality is not None), key=_rank)
    found = {}
    for place, one in enumerate(plans):
        better = next((other for other in plans[:place] if _dominates(other, one)), None)
        if better is not None:
            found[one.point.name] = better.point.name
    return found


def _dominates(one: Plan, other: Plan) -> bool:
    """``one`` is ranked before ``other``, or equal."""
    return one.latency_s <= other.latency_s and one.energy_j <= other.energy_j and _rank(one) < _rank(other)


def most(cost: Cost, work: Callable[[int], Units], limit: int, budget: Budget) -> int:
    """The largest number up to ``limit`` whose work fits latency and energy, 0 if none does. More is more work."""

    def fits(number: int) -> bool:
        one = _planned(Point(name="", settings={}, cost=cost), work(number))
        return not _excesses(one, Budget(latency_s=budget.latency_s, energy_j=budget.energy_j), 0.0)

    if fits(limit):
        return limit
    low, high = 0, limit  # low fits, or is none; high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _bent(plans: Sequence[Plan], fitting: Sequence[Plan], budget: Budget, bend: float) -> Plan:
    """The best of those that fit, under a cap on what it may take: that of the point of the front (no other is as good
    and takes less) which stands nearest to ``bend``, on the way from the dearest to the cheapest in ratios. ``fitting``
    is not empty, and ranked. Nothing is refused for the load: where all that fit take more, it is the cheapest of them.
    """
    if bend == 0.0 or fitting[0].point.quality is None:
        return fitting[0]
    front: list[Plan] = []
    for one in plans:
        is_good_enough = one.point.quality is not None and one.quality >= (budget.quality_floor or 0.0)
        if is_good_enough and one.busy_s > 0.0 and (not front or one.busy_s < front[-1].busy_s):
            front.append(one)
    if len(front) < 2:
        return fitting[0]
    dearest_s, cheapest_s = front[0].busy_s, front[-1].busy_s
    target = (1.0 - bend) * math.log(dearest_s) + bend * math.log(cheapest_s)
    cap_s = min(reversed(front), key=lambda one: abs(math.log(one.busy_s) - target)).busy_s
    known = [one for one in fitting if one.point.quality is not None]
    within = (one for one in known if one.busy_s <= cap_s)
    return next(within, None) or min(known, key=lambda one: one.busy_s)


def _rank(one: Plan) -> tuple[float, ...]:
    if one.point.quality is None:
        return (math.inf, 0.0, 0.0)
    return (-one.point.quality, one.energy_j, one.latency_s)


def _planned(point: Point, units: Units, load: Load = _IDLE) -> Plan:
    busy_s, latency_s = point.cost.busy(units), point.cost.latency(units)
    charged_s = busy_s if load.charge is None else load.charge.expected_s(busy_s, latency_s, load.rows)
    if point.cost.latency_s:  # nobody waits for a guess
        latency_s += (load.rows - 1) * busy_s
    return Plan(point=point, latency_s=latency_s, busy_s=busy_s, energy_j=charged_s * point.cost.watts)


def _excesses(one: Plan, budget: Budget, wait_s: float) -> dict[BudgetKind, float]:
    """The parts of the budget that a plan breaks, and by what factor (> 1)."""
    excesses: dict[BudgetKind, float] = {}
    ends_s = wait_s + one.latency_s
    if budget.latency_s is not None and ends_s > budget.latency_s:
        excesses["latency"] = _ratio(ends_s, budget.latency_s)
    if budget.energy_j is not None and one.energy_j > budget.energy_j:
        excesses["energy"] = _ratio(one.energy_j, budget.energy_j)
    if budget.quality_floor is not None and one.quality < budget.quality_floor:
        excesses["quality"] = _ratio(budget.quality_floor, one.quality)
    return excesses


def _ratio(value: float, limit: float) -> float:
    return value / limit if limit > 0.0 else math.inf


def _refusal(nearest: Plan, budget: Budget, wait_s: float, retry_after_s: float | None) -> Refusal:
    breaks = tuple(_excesses(nearest, budget, wait_s))
    ends_s = wait_s + nearest.latency_s
    feasible = Budget(
        latency_s=ends_s if "latency" in breaks else budget.latency_s,
        energy_j=nearest.energy_j if "energy" in breaks else budget.energy_j,
        quality_floor=nearest.quality if "quality" in breaks else budget.quality_floor,
    )
    was_measured = nearest.point.quality is not None
    quality = f"quality {nearest.quality:.4f}" if was_measured else "quality, which was not measured,"
    parts = {
        "latency": f"latency {_ms(ends_s)} ms of {_ms(budget.latency_s or 0.0)} ms",
        "energy": f"energy {nearest.energy_j:.4g} J of {budget.energy_j or 0.0:.4g} J",
        "quality": f"{quality} under {budget.quality_floor or 0.0:.4f}",
    }
    remedy = "loosen that part of the budget" if was_measured else "fix fewer settings, or loosen the budget"
    return Refusal(
        nearest=nearest,
        breaks=breaks,
        feasible=feasible,
        message=f"no operating point fits the budget; the nearest, {nearest.point.name}, breaks "
        + ", ".join(parts[kind] for kind in breaks)
        + f"; {remedy}",
        retry_after_s=retry_after_s,
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.4g}"


# -- settings of the request's own -----------------------------------------------------------------------------------


def with_settings(
    points: Sequence[Point],
    fixed: Settings,
    work: Work,
    name: Callable[[Settings], str],
    is_possible: Callable[[Settings, Settings], bool] = lambda base, made: True,
) -> tuple[Point, ...]:
    """The points of a request that fixes some settings itself: each has these settings, and the others as calibrated.

    These are the points that were measured like that, and those that lie between measured ones. If there are none, they
    are the points nearest to a measured one, of unknown quality. ``is_possible``: (settings of a point, the settings
    made of them) -> whether those can be run at all.
    """
    if not fixed:
        return tuple(point for point in points if is_possible(point.settings, point.settings))
    pairs = [(point, {**point.settings, **fixed}) for point in points]
    pairs = [(base, settings) for base, settings in pairs if is_possible(base.settings, settings)]
    measured = [base for base, settings in pairs if settings == base.settings]
    made = [
        (_distance(base.settings, settings), _bounded(name(settings), settings, points, work))
        for base, settings in pairs
        if all(settings != point.settings for point in measured)
    ]
    known = [*measured, *(point for _, point in made if point.quality is not None)]
    nearest = min((distance for distance, _ in made), default=None)
    return _distinct(known or [point for distance, point in made if distance == nearest])


def _distinct(points: Sequence[Point]) -> tuple[Point, ...]:
    return tuple({point.name: point for point in points}.values())


def _bounded(name: str, settings: Settings, points: Sequence[Point], work: Work) -> Point:
    """Between points, the dearer cost and the lower quality count; beyond them, the dearest price for each unit."""
    units = work(settings)
    distances = [_distance(point.settings, settings)[0] for point in points]
    alike = [point for point, number in zip(points, distances, strict=True) if number == min(distances)]
    prices = {
        kind: {
            unit: max(getattr(point.cost, kind).get(unit, 0.0) for point in alike)
            for unit in {unit for point in alike for unit in getattr(point.cost, kind)}
        }
        for kind in ("latency_s", "busy_s")
    }
    cost = Cost(**prices, watts=max(point.cost.watts for point in alike))
    dearer = [_planned(point, work(point.settings)) for point in points if _covers(point.settings, settings)]
    if not dearer:
        return Point(name=name, settings=settings, cost=cost)
    cheapest = min(dearer, key=lambda one: one.energy_j)
    lower = [point.quality for point in points if _covers(settings, point.settings) and point.quality is not None]
    between = min(max(lower), cheapest.quality) if lower and cheapest.point.quality is not None else None
    return Point(
        name=name,
        settings=settings,
        cost=Cost(
            latency_s=_at_most(cost.latency_s, units, cheapest.latency_s),
            busy_s=_at_most(cost.busy_s, units, cheapest.busy_s),
            watts=cost.watts,
        ),
        quality=between,
    )


def _at_most(prices: Units, units: Units, limit_s: float) -> Units:
    seconds = _product(prices, units)
    return prices if seconds <= limit_s else {unit: price * limit_s / seconds for unit, price in prices.items()}


def _covers(high: Settings, low: Settings) -> bool:
    """Whether no number of ``high`` is below that of ``low`` and all else is equal: at least as dear, and as good."""
    return high.keys() == low.keys() and all(
        value == low[name] or (_is_number(value) and _is_number(low[name]) and value >= low[name])  # type: ignore[operator]
        for name, value in high.items()
    )


def _distance(base: Settings, made: Settings) -> tuple[int, float]:
    """How many settings are unlike, and how far apart the numbers are. Numbers that are far apart count twice: weights
    made for a few steps are not those for many."""
    num_unlike, far = 0, 0.0
    for name, value in made.items():
        before = base.get(name)
        if value == before:
            continue
        if _is_number(value) and _is_number(before):
            apart = _apart(value, before)
            num_unlike += 2 * (apart > _FAR)
            far += apart
        else:
            num_unlike += 1
    return num_unlike, far


def _apart(one: Value, other: Value | None) -> float:
    """0 for equal numbers, 1 where one of them is 0."""
    a, b = abs(float(one)), abs(float(other or 0.0))
    return abs(a - b) / max(a, b)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
