"""The three sides of bench_early_exit, and what they share: weights, pictures, cost table, operating point."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import Variant
from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.runner import DynPerceiverRunner
from models.operating_points import Point as Calibrated
from models.operating_points import read_table
from models.registry import find
from models.training.classify.measure import stage_costs
from models.training.dyn_perceiver.evaluation import held_out_sets
from schedulers.cost import CostModel, measured_stages
from schedulers.lab.baselines import DynamicBatchingConfig, full_network, no_rebatching
from schedulers.policies.exits import ExitConfig, early_exits
from schedulers.types import Scheduler
from serving.operating_points import parted
from serving.replica.driver import Driver
from serving.replica.staged.base import Done, Outcome, StagedEngine
from serving.replica.staged.engine import Loaded, RowEngine, warm_up
from serving.replica.staged.process import EngineProcess
from serving.telemetry.events import BatchRan, Event, SampleAnswered

QUALITY_MARGIN = 0.005
MAX_WAITING = 1 << 20
MAX_BYTES = 8 << 30
#: For a model without operating points; the table of one that has them says its own.
WATTS_OF_A_CORE = 6.0
#: Exit shares that confidences are drawn from when the weights are random and say nothing (``--random-weights``); the
#: same as in bench_scheduler's simulated traces.
DRAWN_SHARES = (0.50, 0.25, 0.15, 0.10)
NEVER, ALWAYS = 1e8, -1e8


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a side asks for: thresholds and the share expected at each exit."""

    name: str
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that is the same for all sides. ``exits`` is the drawn exit of each picture, or None."""

    variant: Variant
    runner: DynPerceiverRunner
    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int64] | None
    drawn_exits: NDArray[np.int64] | None
    full: Point
    early: Point
    batch_sizes: tuple[int, ...]
    stage_seconds: tuple[tuple[float, ...], ...]
    watts: float
    bytes_per_sample: int
    process: EngineProcess | None
    """That every side uses in turn; None: each has an engine on a thread."""

    def cost_model(self) -> CostModel:
        """A fresh one: each learns from its own side only."""
        return measured_stages(self.batch_sizes, self.stage_seconds)

    def seconds_per_sample(self, point: Point, max_batch: int) -> float:
        """Engine seconds of one sample if every batch of every stage were full."""
        cost, share, total_s = self.cost_model(), 1.0, 0.0
        for stage, leaving in enumerate(point.shares):
            total_s += share * cost.batch_s(stage, max_batch) / max_batch
            share -= leaving
        return total_s


@dataclass(frozen=True, kw_only=True)
class Side:
    """A policy with its batch size and the point that its samples ask for."""

    name: str
    title: str
    point: Point
    max_batch: int
    make: Callable[[CostModel, int], Scheduler]


def make_sides(work: Workload, max_batch: dict[str, int]) -> list[Side]:
    """Full network, early exit without re-batching, ours."""

    def fifo(max_batch: int) -> DynamicBatchingConfig:
        return DynamicBatchingConfig(max_batch=max_batch, max_waiting=MAX_WAITING)

    def ours(cost: CostModel, max_batch: int) -> Scheduler:
        return early_exits(cost, ExitConfig(max_batch=max_batch, max_waiting=MAX_WAITING))

    return [
        Side(
            name="full",
            title="full network, dynamic batches",
            point=work.full,
            max_batch=max_batch["full"],
            make=lambda cost, size: full_network(cost, fifo(size)),
        ),
        Side(
            name="no-rebatching",
            title="early exit, no re-batching",
            point=work.early,
            max_batch=max_batch["no-rebatching"],
            make=lambda cost, size: no_rebatching(cost, fifo(size)),
        ),
        Side(name="ours", title="early exit, ours", point=work.early, max_batch=max_batch["ours"], make=ours),
    ]


class WatchedEngine:
    """Passes everything on, and adds up the seconds spent inside ``run``.

    With ``drawn_exits`` the model runs as always, and its confidences are replaced: 0 before a sample's exit, 1 there.
    """

    def __init__(self, engine: StagedEngine, drawn_exits: NDArray[np.int64] | None) -> None:
        self._engine = engine
        self._drawn_exits = drawn_exits
        self.busy_s = 0.0
        self.batches: dict[int, list[int]] = {}
        self.admit, self.result, self.release = engine.admit, engine.result, engine.release
        #: Sample id -> picture number; ids count from 0 in the order of submission.
        self.pictures: Sequence[int] = ()

    @property
    def num_stages(self) -> int:
        return self._engine.num_stages

    @property
    def held_bytes(self) -> int:
        return self._engine.held_bytes

    def run(self, stage: int, num_stages: int, sample_ids: Sequence[int]) -> list[Outcome]:
        started_s = time.perf_counter()
        outcomes = self._engine.run(stage, num_stages, sample_ids)
        self._watch(stage, len(sample_ids), time.perf_counter() - started_s)
        return self._as_drawn(stage + num_stages - 1, sample_ids, outcomes)

    def _watch(self, stage: int, size: int, ran_s: float) -> None:
        self.busy_s += ran_s
        self.batches.setdefault(stage, []).append(size)

    def _as_drawn(self, exit_index: int, sample_ids: Sequence[int], outcomes: list[Outcome]) -> list[Outcome]:
        if self._drawn_exits is None:
            return outcomes
        return [self._drawn(exit_index, i, o) for i, o in zip(sample_ids, outcomes, strict=True)]

    def _drawn(self, exit_index: int, sample_id: int, outcome: Outcome) -> Outcome:
        assert self._drawn_exits is not None
        is_out = exit_index >= self._drawn_exits[self.pictures[sample_id]]
        return float(is_out) if isinstance(outcome, float) else outcome


class WatchedProcess(WatchedEngine):
    """The same of one in a process of its own, which counts the seconds itself."""

    def __init__(self, engine: EngineProcess, drawn_exits: NDArray[np.int64] | None) -> None:
        super().__init__(engine, drawn_exits)
        self._process = engine

    def start(self, stage: int, num_stages: int, sample_ids: Sequence[int], done: Done) -> None:
        def heard(outcomes: list[Outcome] | Exception) -> None:
            self._watch(stage, len(sample_ids), self._process.last_run_s)
            if not isinstance(outcomes, Exception):
                outcomes = self._as_drawn(stage + num_stages - 1, sample_ids, outcomes)
            done(outcomes)

        self._process.start(stage, num_stages, sample_ids, heard)


@dataclass(slots=True)
class Totals:
    """Hears the driver: seconds that batches took as the event loop saw them, hand-overs included."""

    elapsed_s: float = 0.0
    num_batches: int = 0
    answered: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, BatchRan):
            self.elapsed_s += event.seconds
            self.num_batches += 1
        self.answered += isinstance(event, SampleAnswered)


def make_driver(work: Workload, side: Side) -> tuple[Driver, WatchedEngine, Totals]:
    """A driver as a classifier replica has it, around a fresh scheduler."""
    watched: WatchedEngine
    if work.process is not None:
        watched = WatchedProcess(work.process, work.drawn_exits)
    else:
        engine = RowEngine(work.runner, bytes_per_sample=work.bytes_per_sample, max_bytes=MAX_BYTES)
        watched = WatchedEngine(engine, work.drawn_exits)
    totals = Totals()
    driver = Driver(scheduler=side.make(work.cost_model(), side.max_batch), engine=watched, tell=totals)
    return driver, watched, totals


def load_workload(
    model: str,
    device: str,
    batch_sizes: Sequence[int],
    repeats: int,
    *,
    random_weights: bool = False,
    operating_point: str | None = None,
    in_process: bool = False,
) -> Workload:
    """Load the model, measure its stages here and now, and pick the operating point."""
    variant = find(model)[1]
    runner = DynPerceiverRunner(load_model(variant, device, random_weights=random_weights), variant)
    side = variant.io.input_size
    peak_bytes = warm_up(runner, np.zeros((side, side, 3), np.uint8), max(batch_sizes), {}).bytes_per_sample
    costs = stage_costs(runner, side, runner.device, batch_sizes=batch_sizes, repeats=repeats)
    if random_weights:
        images, labels, drawn = _random_pictures(variant)
        full, early, watts = *_drawn_points(), WATTS_OF_A_CORE
    else:
        images, labels, drawn = *_held_out(), None
        full, early, watts = _calibrated_points(variant, operating_point)
    return Workload(
        variant=variant,
        runner=runner,
        images=images,
        labels=labels,
        drawn_exits=drawn,
        full=full,
        early=early,
        batch_sizes=tuple(batch_sizes),
        stage_seconds=tuple(tuple(ms / 1e3 for ms in row) for row in costs["stages"]),
        watts=watts,
        bytes_per_sample=peak_bytes,
        process=None if in_process else EngineProcess(f"{__name__}:load", (model, device, random_weights, peak_bytes)),
    )


def load(argument: tuple[str, str, bool, int]) -> Loaded:
    """In the engine's process."""
    model, device, random_weights, bytes_per_sample = argument
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    variant = find(model)[1]
    runner = DynPerceiverRunner(load_model(variant, device, random_weights=random_weights), variant)
    return Loaded(RowEngine(runner, bytes_per_sample=bytes_per_sample, max_bytes=MAX_BYTES))


def _held_out() -> tuple[list[NDArray[np.uint8]], NDArray[np.int64]]:
    mixed = held_out_sets("test")["mixed"]
    return list(mixed.images), mixed.labels


def _random_pictures(variant: Variant) -> tuple[list[NDArray[np.uint8]], None, NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, variant.io.input_size, variant.io.input_size, 3), dtype=np.uint8)
    return list(images), None, rng.choice(len(DRAWN_SHARES), len(images), p=DRAWN_SHARES)


def _drawn_points() -> tuple[Point, Point]:
    count = len(DRAWN_SHARES)
    full = Point(name="full", thresholds=(NEVER,) * (count - 1) + (ALWAYS,), shares=(0.0,) * (count - 1) + (1.0,))
    return full, Point(name="drawn", thresholds=(0.5,) * count, shares=DRAWN_SHARES)


def _calibrated_points(variant: Variant, name: str | None) -> tuple[Point, Point, float]:
    """The full network; the point called ``name`` or, without a name, the one of fewest expected FLOPs whose accuracy
    on the *calibration* split is at most ``QUALITY_MARGIN`` below the full network's; assumed watts.

    The test split, on which the benchmark runs, has no say in the choice.
    """
    assert variant.weights is not None, f"{variant.id} has no checkpoint; use --random-weights"
    table = read_table(variant)
    full = max(table.points, key=lambda key: table.points[key].figures["macs_fraction"])
    floor = table.points[full].figures["accuracy_search"] - QUALITY_MARGIN
    allowed = [
        key for key, p in table.points.items() if (key == name if name else p.figures["accuracy_search"] >= floor)
    ]
    early = min(allowed, key=lambda key: table.points[key].figures["expected_macs"])
    return _point(full, table.points[full]), _point(early, table.points[early]), table.energy.watts


def _point(name: str, point: Calibrated) -> Point:
    shares = tuple(point.figures["exit_shares"])
    return Point(name=name, thresholds=parted(point.settings, len(shares))[0], shares=shares)
