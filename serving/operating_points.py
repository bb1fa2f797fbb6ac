"""Operating points of a served model, for the planner: those beside its checkpoint, or what can be said of one that
nobody measured."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

from models.contract import STEP_UNITS, Family, Variant
from models.identity import checkpoint_sha256
from models.inputs import Inputs
from models.io import (
    MAX_TILES,
    MAX_TOKENS,
    ChatIO,
    ChatTokens,
    ClipIO,
    ImageIO,
    ImageRequest,
    RowIO,
)
from models.operating_points import TABLE_FILE, Quality, Seconds, Table, point_name, read_table
from models.registry import family_for
from schedulers.answer_cost import AnswerCost
from schedulers.charge import USUAL_ROWS
from schedulers.cost import CostModel, Price, Units
from schedulers.plan import Budget as PointBudget
from schedulers.plan import Cost, Load, Plan, Point, Settings, Value, Work, dominated, plan, with_settings
from schedulers.policies.exits import NEVER_THRESHOLD
from serving.config import ResolvedModel, StreamOptions, UnaryOptions
from serving.domain import Budget
from serving.errors import BudgetInfeasible, ConfigError, DeadlineUnreachable

_IDLE = Load()
_USUAL_TEXT_TOKENS, _USUAL_ANSWER_TOKENS = 32, 64
_FIRST_MACS_PER_S, _CORES_OF_A_GPU, _MACS_PER_TOKEN_STEP = 2e10, 5000, 1e8
"""Of one processor core, and so on: guesses for what is reserved for a model that was never measured. What it really
takes is charged; its replicas measure what they plan with."""

_FIRST_ANSWER_S: Units = {"image_tokens": 2e-4, "prompt_tokens": 2e-4, "output_tokens": 2e-3, "token_steps": 2e-7}
"""A guess, for the reservations of a chat model's first requests only: nobody is refused for it."""


class RowWork(Protocol):
    """``schedulers.plan.Work`` of the dearest row, or of the one that is asked for."""

    def __call__(self, settings: Settings, request: ImageRequest | None = None) -> Units:
        """Work at a point."""
        ...


@dataclass(frozen=True, kw_only=True)
class Points:
    """``cost_model``: of the slices of a row, where they were measured."""

    points: tuple[Point, ...]
    work: RowWork
    watts: float
    checkpoint_sha256: str
    is_calibrated: bool = True
    """Otherwise its costs are guesses, on which nobody is refused, and its qualities are not known."""
    cost_model: CostModel | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All points, the best first."""
        ranked = sorted(self.points, key=lambda point: -(point.quality or 0.0))
        return tuple(point.name for point in ranked)


def load_table(variant: Variant) -> Table:
    """The table beside a checkpoint. Raises: ConfigError: as ``models.operating_points.read_table``."""
    try:
        return read_table(variant)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def planned_points(table: Table) -> tuple[Point, ...]:
    """What the planner reads of a table: a row alone is what somebody waits for, its share of a batch is charged."""
    return tuple(
        Point(
            name=name,
            settings=point.settings,
            cost=Cost(
                latency_s={unit: _of_a_row(times, 1) for unit, times in point.seconds_per_unit.items()},
                busy_s={unit: _of_a_row(times, USUAL_ROWS) for unit, times in point.seconds_per_unit.items()},
                watts=table.energy.watts,
            ),
            quality=None if point.quality is None else point.quality.low,
        )
        for name, point in table.points.items()
    )


def _of_a_row(times: Mapping[int, Seconds], batch: int) -> float:
    """At the largest measured size that is not above ``batch``, or the smallest of all."""
    return times[max((size for size in times if size <= batch), default=min(times))].seconds


def points_of(model: ResolvedModel[Any]) -> Points:
    """Points of a model of rows, or of one whose jobs make pictures. Unless it is staged, it may do without a table: it
    then has one, of all defaults.

    Raises: ConfigError: no weights, or a table that cannot be used.
    """
    family, variant = family_for(model.family, model.variant), model.variant
    is_random = isinstance(model.options, UnaryOptions) and model.options.random_weights
    work = row_work(family, variant)
    if family.shape == "staged" or (not is_random and variant.weights and (variant.weights / TABLE_FILE).is_file()):
        table = load_table(variant)
        return Points(
            points=planned_points(table),
            work=work,
            watts=table.energy.watts,
            checkpoint_sha256=table.checkpoint_sha256,
            cost_model=_cost_model(table),
        )
    if is_random:
        identity = hashlib.sha256(f"random weights of {variant}".encode()).hexdigest()
    elif variant.weights is not None:
        identity = checkpoint_sha256(variant.weights)
    else:
        raise ConfigError(
            f"model {model.id} has no weights here: name their folder (--model {model.id}=FOLDER, or checkpoint_dir), "
            "or set its option random_weights to measure its speed alone"
        )
    price_s = 1.0 / (_FIRST_MACS_PER_S * (_CORES_OF_A_GPU if model.device == "cuda" else model.threads))
    # Nobody waits for a guess: a replica refuses what it cannot answer in time.
    cost = Cost(
        latency_s={}, busy_s={"macs": price_s, "token_steps": _MACS_PER_TOKEN_STEP * price_s}, watts=model.watts
    )
    return Points(
        points=(Point(name=point_name(variant.defaults), settings=variant.defaults, cost=cost),),
        work=work,
        watts=model.watts,
        checkpoint_sha256=identity,
        is_calibrated=False,
    )


def points_of_answers(model: ResolvedModel[StreamOptions]) -> tuple[Point, ...]:
    """What was measured of a chat model's answers; nothing where nobody did.

    Raises: ConfigError: a table that cannot be used.
    """
    variant = model.variant
    if model.options.engine == "fake" or variant.weights is None or not (variant.weights / TABLE_FILE).is_file():
        return ()
    return planned_points(load_table(variant))


def answer_cost(points: Sequence[Point], watts: float) -> AnswerCost:
    """What the answers of a chat model cost, to begin with: as measured at its best point, or a guess."""
    for point in points:
        busy_s, latency_s = point.cost.busy_s, point.cost.latency_s
        if busy_s.get("prompt_tokens") and busy_s.get("output_tokens"):
            waiting = latency_s["output_tokens"] / busy_s["output_tokens"]
            return AnswerCost(busy_s, watts=watts, waiting=waiting)
    return AnswerCost(_FIRST_ANSWER_S, watts=watts, waiting=2.5)


def answer_work(family: Family, variant: Variant) -> Callable[[ChatTokens], Units]:
    """Of one answer of a chat model. Its tiles are in the tokens."""
    assert family.work is not None
    count, point = family.work.load(), family.check_point({})

    def work(tokens: ChatTokens) -> Units:
        made: Units = count(variant, tokens, point).units
        return made

    return work


def usual_request(io: Any) -> Any:
    """What is asked for as a rule: a clip or a picture of the usual size, a chat about the largest picture."""
    if isinstance(io, ChatIO):
        return ChatTokens(_USUAL_TEXT_TOKENS, io.max_image_tokens, _USUAL_ANSWER_TOKENS)
    return io.usual if isinstance(io, ClipIO | ImageIO) else io.largest


@dataclass(frozen=True)
class PricedPoint:
    """What a measured point gives and takes for the usual request. ``number``: from 1, in table and picture.
    ``dominated_by``: the point that is picked in its place whatever the budget is; of requests of another size that may
    be another one, or none."""

    number: int
    name: str
    quality: Quality | None
    latency_s: float
    busy_s: float
    energy_j: float
    dominated_by: str | None = None


def priced_points(family: Family, variant: Variant, table: Table) -> tuple[PricedPoint, ...]:
    """All points of a table, the best first."""
    work, points = usual_work(family, variant), planned_points(table)
    priced = [point for point in points if point.cost.busy_s]
    worse = dominated(priced, work)
    made = []
    for number, point in enumerate(points, 1):
        units = work(point.settings) if point.cost.busy_s else {}
        busy_s = point.cost.busy(units)
        made.append(
            PricedPoint(
                number=number,
                name=point.name,
                quality=table.points[point.name].quality,
                latency_s=point.cost.latency(units),
                busy_s=busy_s,
                energy_j=busy_s * point.cost.watts,
                dominated_by=worse.get(point.name),
            )
        )
    return tuple(made)


def usual_work(family: Family, variant: Variant) -> Work:
    """Of what is asked for as a rule."""
    io = variant.io
    if isinstance(io, ChatIO):
        return partial(_chat_work, family, variant)
    if not isinstance(io, ClipIO):
        return row_work(family, variant)
    assert family.work is not None
    count, request = family.work.load(), usual_request(io)

    def work(settings: Settings) -> Units:
        made: Units = count(variant, request, family.check_point(settings)).units
        return made

    return work


def usual_seconds(model: ResolvedModel[Any]) -> float:
    """What is charged for what is asked for as a rule, at the dearest point that is ever picked; 0 where nobody
    measured.

    Raises: ConfigError: a table that cannot be used.
    """
    variant = model.variant
    if getattr(model.options, "engine", "") == "fake" or getattr(model.options, "random_weights", False):
        return 0.0
    if variant.weights is None or not (variant.weights / TABLE_FILE).is_file():
        return 0.0
    work: Work = usual_work(family_for(model.family, variant), variant)
    if isinstance(variant.io, ImageIO):
        work = partial(row_work(family_for(model.family, variant), variant), request=variant.io.usual)
    return dearest_seconds(planned_points(load_table(variant)), work)


def dearest_seconds(points: Sequence[Point], work: Work) -> float:
    """The most that is charged for some work, whatever its budget is."""
    never = dominated([point for point in points if point.cost.busy_s], work)
    return max(point.cost.busy(work(point.settings)) for point in points if point.name not in never)


def _chat_work(family: Family, variant: Variant, settings: Settings) -> Units:
    assert family.work is not None
    tiles = int(settings.get(MAX_TILES, variant.io.max_tiles))
    image_tokens = (tiles + (tiles > 1)) * variant.io.tokens_per_tile
    asked = ChatTokens(_USUAL_TEXT_TOKENS, image_tokens, int(settings.get(MAX_TOKENS, _USUAL_ANSWER_TOKENS)))
    made: Units = family.work.load()(variant, asked, {}).units
    return made


def row_work(family: Family, variant: Variant) -> RowWork:
    """Of one row. Remembered: there are few points and few sizes, and many requests."""
    assert family.work is not None
    count = family.work.load()

    @lru_cache(maxsize=1024)
    def units(settings: frozenset[tuple[str, Value]], request: ImageRequest | None) -> Units:
        made: Units = count(variant, request, family.check_point(dict(settings))).units
        return made

    def work(settings: Settings, request: ImageRequest | None = None) -> Units:
        return units(frozenset(settings.items()), request or variant.io.largest)

    return work


def step_cost(family: Family, variant: Variant, watts: float) -> CostModel:
    """Of a job's steps. The job was charged for all its work, as its share of a usual batch: what part of that a step
    is, alone or with others, is in the table, if one is there, at the best point."""
    if variant.weights is None or not (variant.weights / TABLE_FILE).is_file():
        return CostModel(watts=watts)
    best = next(iter(load_table(variant).points.values()))
    units, prices = usual_work(family, variant)(best.settings), best.seconds_per_unit
    charged_s = sum(units.get(unit, 0.0) * _of_a_row(times, USUAL_ROWS) for unit, times in prices.items())
    steps = {unit: times for unit, times in prices.items() if unit in STEP_UNITS}
    shares = {
        rows: sum(units.get(unit, 0.0) * times[rows].seconds for unit, times in steps.items()) / charged_s
        for rows in sorted(set.intersection(*map(set, steps.values())) if steps and charged_s else ())
    }
    if not shares.get(1):
        return CostModel(watts=watts)
    return CostModel(other=Price(seconds={"seconds": shares}, row={"seconds": 1.0}), watts=watts)


def sizes_of_rows(family: Family, io: RowIO, work: RowWork, cost: CostModel) -> Callable[[Inputs, Settings], float]:
    """(inputs, settings) -> the work of a row beside that of the row that was measured. Those of a classifier are all
    alike; where they leave is the scheduler's."""
    if not isinstance(io, ImageIO):
        return lambda inputs, settings: 1.0
    point = family.check_point({})
    return lambda inputs, settings: cost.in_rows(0, work({**point, **settings}, request=io.request_of(inputs)))


def _cost_model(table: Table) -> CostModel | None:
    """Of the slices of a row. A slice is priced by the work of a row up to there."""
    prices: dict[Hashable, Price] = {}
    for stage, part in enumerate(table.slices):
        unit, amount = next(iter(part.units.items()))
        shares = {rows: time.seconds / (rows * amount) for rows, time in part.seconds.items()}
        prices[stage] = Price(seconds={unit: shares}, row=part.units)
    return CostModel(prices, watts=table.energy.watts) if prices else None


def choose(
    model: str, served: Points, budget: Budget, work: Work, *, latency_s: float | None, load: Load = _IDLE
) -> Plan:
    """The point of a request that has ``latency_s`` left, and whose rows, each of this ``work``, share its joules.

    Raises: BudgetInfeasible; DeadlineUnreachable: later, it might fit.
    """
    points = served.points
    if budget.settings:
        points = with_settings(points, budget.settings, work, point_name)
    energy_j = None if budget.energy_j is None else budget.energy_j / load.rows
    wanted = PointBudget(latency_s=latency_s, energy_j=energy_j, quality_floor=budget.quality_floor)
    made = plan(points, work, wanted, load)
    if isinstance(made, Plan):
        return made
    if made.retry_after_s is not None:  # it is the queue, not the request, that is too long
        raise DeadlineUnreachable(
            f"{made.message}, or retry in {made.retry_after_s:.2f} s", param="vireo", retry_after_s=made.retry_after_s
        )
    unknown = "" if served.is_calibrated else f"; {model} is not calibrated, so its accuracy is not known"
    raise BudgetInfeasible(f"{made.message}{unknown}", param="vireo")


def alone_s(
    served: Points, point: Point, num_exits: int, request: ImageRequest | None, exit_index: int | None = None
) -> float:
    """Seconds of a row that shares its batch with nobody, up to an exit, from 0; by default the last that it may reach:
    as many as it is charged at most, where the machine is as fast as the one that was measured."""
    units = served.work(point.settings, request=request)
    if num_exits == 1 or served.cost_model is None:
        return max(point.cost.latency(units), point.cost.busy(units))
    if exit_index is None:
        thresholds, _ = parted(point.settings, num_exits)
        exit_index = next(index for index, threshold in enumerate(thresholds) if threshold <= 0.0)
    return sum(served.cost_model.batch_s(stage, 1) for stage in range(exit_index + 1))


def parted(settings: Settings, num_exits: int) -> tuple[tuple[float, ...], dict[str, Value]]:
    """Thresholds of the exits, which are the scheduler's (nobody is as sure as above 1, and at the last exit all
    leave), and the settings that are the network's."""
    names = [f"exit_{number}" for number in range(1, num_exits)]
    asked = [float(settings[name]) if name in settings else NEVER_THRESHOLD for name in names]
    thresholds = (*(NEVER_THRESHOLD if threshold > 1.0 else threshold for threshold in asked), 0.0)
    return thresholds, {name: value for name, value in settings.items() if name not in names}
