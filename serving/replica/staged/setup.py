"""Builds the driver of a unary or staged replica: the engine's process, cost model, scheduler. Imports no torch."""

from __future__ import annotations

import os

import structlog

from models.registry import family_for
from schedulers.cost import measured_stages
from schedulers.fair_queue import EQUAL, Weights
from schedulers.policies.exits import ExitConfig, early_exits
from serving.config import ResolvedModel, UnaryOptions
from serving.energy.replica import ReplicaEnergy
from serving.operating_points import points_of, sizes_of_rows
from serving.replica.driver import Driver
from serving.replica.staged.base import Measured, StagedEngine
from serving.replica.staged.process import EngineProcess
from serving.telemetry.events import Sink

_log = structlog.get_logger(__name__)


def start_engine(model: ResolvedModel[UnaryOptions]) -> EngineProcess:
    """An engine in a process of its own; a replica that loses it ends as if it had run the model itself."""
    return EngineProcess("serving.replica.staged.engine:load_engine", model, _end_replica)


def _end_replica() -> None:
    _log.error("the engine's process ended while it ran a batch; this replica ends as well")
    os._exit(1)


def build_driver(
    model: ResolvedModel[UnaryOptions],
    engine: StagedEngine,
    measured: Measured | None,
    tell: Sink,
    weights: Weights = EQUAL,
    energy: ReplicaEnergy | None = None,
) -> Driver:
    """Put scheduler and driver around an engine. ``measured``: where no table says it; ``weights``: of tenants."""
    family, points = family_for(model.family, model.variant), points_of(model)
    cost = points.cost_model
    if cost is None:
        assert measured is not None
        row = points.work(family.check_point({}))
        cost = measured_stages(measured.batch_sizes, measured.stage_s, row=row, watts=points.watts)
    config = ExitConfig(max_batch=model.options.max_batch, max_waiting=model.options.max_queue, weights=weights)
    return Driver(
        scheduler=early_exits(cost, config),
        engine=engine,
        size_of=sizes_of_rows(family, model.variant.io, points.work, cost),
        model=model.id,
        tell=tell,
        energy=energy,
        cost=cost,
    )
