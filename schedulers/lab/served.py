"""Served models as plain numbers: what the planner reads of them, and the engines that the simulator runs for them.

Three shapes. *rows*: stages of a network, after which rows may leave. *steps*: denoising steps, then a decode. *slots*:
answers of a chat, which take turns by the token; how long one takes is fixed when it begins, by how many run then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from schedulers.cost import CostModel, Price, measured_stages
from schedulers.fair_queue import Weights
from schedulers.kernel import Kernel
from schedulers.lab.in_order import By, WholeWork, in_order
from schedulers.lab.simulator import TraceUnit, World
from schedulers.lab.traces import Request
from schedulers.plan import Cost, Plan, Point, Settings
from schedulers.policies.chat import ChatConfig, ChatWork, chat
from schedulers.policies.denoising import DECODE, DenoisingConfig, DenoisingWork, denoising
from schedulers.policies.exits import NEVER_THRESHOLD, ExitConfig, ExitWork, early_exits

Shape: TypeAlias = Literal["rows", "steps", "slots"]
_TOKENS = 64
"""Of a usual step: the denoising policy learns by them."""
IMAGE, PROMPT, OUTPUT, LOOKS = "image_tokens", "prompt_tokens", "output_tokens", "token_steps"
"""Units of an answer. ``LOOKS``: each token that is written looks at all before it (``models.io.chat_work``)."""


class Seconds:
    """By rows that run together, seconds of all of them; interpolated as ``schedulers.cost.Price`` does.

    Raises: ValueError: no numbers, rows that do not ascend from 1, or seconds that are negative or not finite.
    """

    def __init__(self, by_rows: Mapping[int, float]) -> None:
        rows = list(by_rows)
        if not rows or rows[0] < 1 or any(a >= b for a, b in pairwise(rows)):
            raise ValueError(f"seconds are by {rows} rows; need ascending whole numbers from 1")
        if not all(0.0 <= one < math.inf for one in by_rows.values()):
            raise ValueError(f"seconds are {list(by_rows.values())}; need finite numbers >= 0")
        self.by_rows = dict(by_rows)
        self._known = dict(by_rows)
        self._price = Price(seconds={"row": {n: max(one, 1e-15) / n for n, one in by_rows.items()}}, row={"row": 1.0})

    def of(self, rows: int) -> float:
        """Of so many."""
        known = self._known.get(rows)
        if known is None:
            known = self._known[rows] = self._price.of_rows(rows)
        return known


NOTHING = Seconds({1: 0.0})


@dataclass(frozen=True, kw_only=True)
class PointNumbers:
    """An operating point: what a usual request takes.

    ``quality``: the lower confidence bound. ``exit_shares`` (rows): of the rows that leave after each stage; all stay
    to the end by default. ``step_s``, ``num_steps``, ``decode_s``, ``phase`` (steps): requests of one phase may share
    steps. ``token_s`` (slots): by unit, seconds in which each of the answers that run together gets one token;
    ``caps``: the most tokens of a unit.
    """

    name: str
    quality: float | None = None
    exit_shares: tuple[float, ...] = ()
    step_s: Seconds = NOTHING
    num_steps: int = 1
    decode_s: float = 0.0
    phase: Hashable = ""
    token_s: Mapping[str, Seconds] = field(default_factory=dict)
    caps: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model, and what each of its replicas is.

    ``stage_s`` (rows): of each stage by itself. ``usual_tokens`` (slots): of a usual request, whose prompt has one
    picture and text. ``max_batch``: rows of a slice, or slots.

    Raises: ValueError: numbers that do not make a model of its shape.
    """

    id: str
    tasks: tuple[str, ...]
    shape: Shape
    points: tuple[PointNumbers, ...]
    watts: float
    max_batch: int
    stage_s: tuple[Seconds, ...] = ()
    usual_tokens: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def check(is_fine: bool, what: str) -> None:
            if not is_fine:
                raise ValueError(f"model {self.id}: {what}")

        check(bool(self.points), "it has no operating point")
        check(len({point.name for point in self.points}) == len(self.points), "two points have one name")
        check(0.0 < self.watts < math.inf and self.max_batch >= 1, "watts and max_batch must be positive")
        for point in self.points:
            check(point.num_steps >= 1 and 0.0 <= point.decode_s < math.inf, f"{point.name}: steps or decode_s")
            check(len(point.exit_shares) in (0, len(self.stage_s)), f"{point.name}: need an exit share for each stage")
            check(not point.exit_shares or abs(sum(point.exit_shares) - 1.0) < 1e-3, f"{point.name}: shares add to 1")
            check(self.alone_s(point) > 0.0, f"{point.name}: a request takes no time at all")

    # -- for the planner ---------------------------------------------------------------------------------------------

    @cached_property
    def _planned(self) -> dict[int, tuple[Point, ...]]:
        return {}

    def planned(self, running: int = 1) -> tuple[Point, ...]:
        """For ``schedulers.plan``; the work of a request is in usual requests of the point. ``running``: answers that
        run together, which is how long anybody waits for one."""
        known = self._planned.get(running)
        if known is None:
            known = self._planned[running] = tuple(
                Point(
                    name=point.name,
                    settings={"point": number},
                    cost=Cost(
                        latency_s={"usual": self._together_s(point, running)},
                        busy_s={"usual": self._share_s(point)},
                        watts=self.watts,
                    ),
                    quality=point.quality,
                )
                for number, point in enumerate(self.points)
            )
        return known

    def work(self, request: Request) -> Callable[[Settings], Mapping[str, float]]:
        """Of one request, at a point."""
        return lambda settings: {"usual": self.size(self.points[int(settings["point"])], request)}

    def point_of(self, plan: Plan) -> PointNumbers:
        """Which one a plan picked."""
        return self.points[int(plan.point.settings["point"])]

    def alone_s(self, point: PointNumbers) -> float:
        """A usual request, alone, from its first slice to its last."""
        return self._together_s(point, 1)

    @property
    def slot_s(self) -> float:
        """(slots) Of a usual answer at the best point while all slots are taken; 0 for other shapes."""
        return self._together_s(self.points[0], self.max_batch) if self.shape == "slots" else 0.0

    def _share_s(self, point: PointNumbers) -> float:
        """Of the busy time, in full batches."""
        return self._together_s(point, self.max_batch) / self.max_batch

    def _together_s(self, point: PointNumbers, rows: int) -> float:
        if self.shape == "steps":
            return point.num_steps * point.step_s.of(rows) + rows * point.decode_s
        if self.shape == "slots":
            return self.answer_s(point, _USUAL, rows)
        stay, seconds = 1.0, 0.0
        for stage, stage_s in enumerate(self.stage_s):
            seconds += stay * stage_s.of(rows)
            stay -= point.exit_shares[stage] if point.exit_shares else 0.0
        return seconds

    def answer_s(self, point: PointNumbers, request: Request, running: int, *, is_known: bool = False) -> float:
        """(slots) From the beginning of an answer to its end, while so many run. ``is_known``: how much there is to
        say; else it is as much as usual."""
        usual, asked = self.usual_tokens, request.tokens
        image, text = request.size * usual.get(IMAGE, 0.0), request.size * usual.get(PROMPT, 0.0)
        output = request.size * usual.get(OUTPUT, 0.0)
        if asked is not None:
            image, text = asked.images * usual.get(IMAGE, 0.0), float(asked.prompt)
            output = float(asked.output) if is_known else usual.get(OUTPUT, 0.0)
            image = min(image, asked.images * point.caps.get(IMAGE, math.inf)) if asked.images else 0.0
        else:
            image = min(image, point.caps.get(IMAGE, math.inf))
        prompt, output = image + text, min(output, point.caps.get(OUTPUT, math.inf))
        counts = {IMAGE: image, PROMPT: prompt, OUTPUT: output, LOOKS: output * (prompt + output / 2)}
        return math.fsum(counts.get(unit, 0.0) * seconds.of(running) for unit, seconds in point.token_s.items())

    def size(self, point: PointNumbers, request: Request) -> float:
        """How many usual requests it is predicted to be at this point."""
        if self.shape != "slots" or (request.tokens is None and request.size == 1.0):
            return request.size
        return max(1e-9, self.answer_s(point, request, 1) / self.alone_s(point))


_USUAL = Request(arrived_s=0.0)


@dataclass(slots=True)
class Truth:
    """What is true of one request. ``luck``: from 0 to 1, how hard its input is; ``busy_s`` is filled in by slots."""

    model: ServedModel
    point: PointNumbers
    request: Request
    luck: float
    busy_s: float | None = None

    @property
    def leaves_after(self) -> int:
        """(rows) The stage after which the row leaves."""
        passed = 0.0
        for stage, share in enumerate(self.point.exit_shares):
            passed += share
            if self.luck < passed:
                return stage
        return len(self.model.stage_s) - 1


# -- engines: how the policies that are served run a model -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One replica. ``unit``: (truth, when it comes) -> what its kernel is given."""

    kernel: Kernel
    world: World
    num_executors: int
    unit: Callable[[Truth, float], TraceUnit]


def _unit(truth: Truth, now_s: float, work: Any, batch_key: Hashable) -> TraceUnit:
    request = truth.request
    return TraceUnit(
        arrived_s=now_s,
        work=work,
        truth=truth,
        deadline_s=request.deadline_s,
        tenant=request.tenant,
        priority=request.priority,
        batch_key=batch_key,
    )


def served_engine(model: ServedModel, weights: Weights) -> Engine:
    """A replica with the policy of ``schedulers.policies`` that serves such models."""
    return {"rows": _rows, "steps": _steps, "slots": _slots}[model.shape](model, weights)


@dataclass(frozen=True)
class _RowWorld:
    stages: CostModel

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        size = math.fsum(unit.truth.request.size for unit in units) / len(units)
        return size * sum(self.stages.batch_s(s, len(units)) for s in range(stage, stage + num_stages))

    def report(self, unit: TraceUnit, stage: int) -> float:
        return 1.0 if stage >= unit.truth.leaves_after else 0.0


def _rows(model: ServedModel, weights: Weights) -> Engine:
    def stages() -> CostModel:
        sizes = list(model.stage_s[0].by_rows)
        times = [[stage_s.of(size) for size in sizes] for stage_s in model.stage_s]
        return measured_stages(sizes, times, watts=model.watts)

    def unit(truth: Truth, now_s: float) -> TraceUnit:
        shares = truth.point.exit_shares or (0.0,) * len(model.stage_s)
        thresholds = tuple(0.5 if share > 0.0 else NEVER_THRESHOLD for share in shares[:-1])
        return _unit(truth, now_s, ExitWork((*thresholds, 0.0), truth.request.size), ())

    config = ExitConfig(max_batch=model.max_batch, weights=weights)
    return Engine(kernel=early_exits(stages(), config), world=_RowWorld(stages()), num_executors=1, unit=unit)


@dataclass(frozen=True)
class _StepWorld:
    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        if stage == DECODE:
            return math.fsum(unit.truth.request.size * unit.truth.point.decode_s for unit in units)
        size = math.fsum(unit.truth.request.size for unit in units) / len(units)
        return float(size * units[0].truth.point.step_s.of(len(units)))

    def report(self, unit: TraceUnit, stage: int) -> Hashable:
        return unit.batch_key


def _steps(model: ServedModel, weights: Weights) -> Engine:
    usual = model.points[0].step_s
    shares = {rows: one / rows / usual.of(1) for rows, one in usual.by_rows.items()}
    prices = CostModel(other=Price(seconds={"seconds": shares}, row={"seconds": 1.0}), watts=model.watts)

    def unit(truth: Truth, now_s: float) -> TraceUnit:
        point, size = truth.point, truth.request.size
        work = DenoisingWork(
            steps_left=point.num_steps,
            seconds_per_step=size * point.step_s.of(1),
            tokens=max(1, round(_TOKENS * size)),
        )
        return _unit(truth, now_s, work, (point.phase, size))

    config = DenoisingConfig(max_batch=model.max_batch, max_units=2 * model.max_batch, weights=weights)
    return Engine(kernel=denoising(config, prices), world=_StepWorld(), num_executors=2, unit=unit)


class _SlotWorld:
    """Answers that run together slow each other down."""

    def __init__(self) -> None:
        self.kernel: Kernel | None = None
        self.share = 1
        """Of executors, that make one replica of a pool."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        assert self.kernel is not None
        running = max(1, math.ceil(self.kernel.counts().running / self.share))
        (unit,) = units
        truth = unit.truth
        seconds = truth.model.answer_s(truth.point, truth.request, running, is_known=True)
        truth.busy_s = seconds / running
        return float(seconds)

    def report(self, unit: TraceUnit, stage: int) -> float:
        """In the words of ``ChatWork.predicted_s``: seconds of a slot while all are taken."""
        truth = unit.truth
        return float(truth.busy_s * truth.model.max_batch)


def _slots(model: ServedModel, weights: Weights) -> Engine:
    def unit(truth: Truth, now_s: float) -> TraceUnit:
        full_s = model.answer_s(truth.point, truth.request, model.max_batch)
        return _unit(truth, now_s, ChatWork(full_s), ())

    world = _SlotWorld()
    kernel = chat(ChatConfig(max_running=model.max_batch, weights=weights), CostModel(watts=model.watts))
    world.kernel = kernel
    return Engine(kernel=kernel, world=world, num_executors=model.max_batch, unit=unit)


# -- engines that run requests whole, in one order -------------------------------------------------------------------


class _WholeWorld:
    """A batch from its first slice to its last; rows that leave early shrink it, and wait for the others."""

    def slice_s(self, stage: int, num_stages: int, units: Sequence[TraceUnit]) -> float:
        truths = [unit.truth for unit in units]
        model, point = truths[0].model, truths[0].point
        size = math.fsum(truth.request.size for truth in truths) / len(truths)
        if model.shape == "steps":
            return float(size * (point.num_steps * point.step_s.of(len(truths)) + len(truths) * point.decode_s))
        left = [truth.leaves_after for truth in truths]
        rows = [sum(stage <= last for last in left) for stage in range(len(model.stage_s))]
        return float(size * sum(s.of(n) for s, n in zip(model.stage_s, rows, strict=True) if n))

    def report(self, unit: TraceUnit, stage: int) -> None:
        return None


def whole_engine(model: ServedModel, by: By, num_replicas: int = 1) -> Engine:
    """Replicas of a model that share one queue, in order of arrival or of deadlines."""

    def unit(truth: Truth, now_s: float) -> TraceUnit:
        alone_s = model.size(truth.point, truth.request) * model.alone_s(truth.point)
        key = (truth.point.name, truth.request.size) if model.shape == "steps" else ()
        return _unit(truth, now_s, WholeWork(alone_s), key)

    def predicted_s(works: Sequence[WholeWork]) -> float:
        return max(work.alone_s for work in works)

    slots = model.max_batch if model.shape == "slots" else 1
    kernel = in_order(by, predicted_s, max_batch=model.max_batch // slots, num_executors=slots * num_replicas)
    world: World = _WholeWorld()
    if model.shape == "slots":
        world = _SlotWorld()
        world.kernel, world.share = kernel, num_replicas
    return Engine(kernel=kernel, world=world, num_executors=slots * num_replicas, unit=unit)
