"""Builds the driver of a unary or staged replica: network, engine, cost model, scheduler, metrics. Imports torch."""

from __future__ import annotations

import torch

from models.inputs import blank_row
from models.registry import families
from schedulers.cost import measured_stages
from schedulers.fair_queue import EQUAL, Weights
from schedulers.policies.exits import ExitConfig, early_exits
from serving.config import ResolvedModel, UnaryOptions
from serving.operating_points import points_of, sizes_of_rows
from serving.replica.driver import Driver
from serving.replica.staged.engine import RowEngine, as_staged, warm_up
from serving.telemetry.events import Sink


def build_driver(model: ResolvedModel[UnaryOptions], tell: Sink, weights: Weights = EQUAL) -> Driver:
    """Load the model, warm it up, and put scheduler and engine around it. ``weights``: of tenants."""
    torch.set_num_threads(model.threads)
    family, variant = families()[model.family], model.variant
    assert family.build is not None
    assert family.runner is not None
    network = family.build.load()(variant, model.device, random_weights=model.options.random_weights, **model.knobs)
    runner = as_staged(family.runner.load()(network, variant))
    row, point = blank_row(family, variant), family.check_point({})
    sizes = sorted({1, model.options.max_batch})
    peak_bytes = max(warm_up(runner, row, size, point).bytes_per_sample for size in sizes)
    points = points_of(model)
    cost = points.cost_model
    if cost is None:  # the second time round, when everything has been allocated and compiled
        measured = [warm_up(runner, row, size, point).stage_s for size in sizes]
        cost = measured_stages(sizes, list(zip(*measured, strict=True)), row=points.work(point), watts=points.watts)
    config = ExitConfig(max_batch=model.options.max_batch, max_waiting=model.options.max_queue, weights=weights)
    scheduler = early_exits(cost, config)

    return Driver(
        scheduler=scheduler,
        engine=RowEngine(runner, bytes_per_sample=peak_bytes, max_bytes=model.options.max_held_bytes, defaults=point),
        size_of=sizes_of_rows(family, variant.io, points.work, cost),
        model=variant.id,
        tell=tell,
    )
