"""Builds a classifier replica's driver: model, engine, cost model, scheduler, metrics. Imports torch."""

from __future__ import annotations

import numpy as np
import torch

from models.families.dyn_perceiver.load import load_model
from models.families.dyn_perceiver.staged import StagedDynPerceiver
from models.registry import ModelSpec, get_spec
from schedulers.cost import TableCostModel
from schedulers.early_exit import EarlyExitConfig, EarlyExitScheduler
from serving.config import ResolvedModel, UnaryOptions
from serving.operating_points import load_table
from serving.replica.driver import Driver
from serving.replica.staged.early_exit_engine import EarlyExitEngine
from serving.telemetry.events import Sink


def spec_of(model: ResolvedModel[UnaryOptions]) -> ModelSpec:
    """Registry entry of a served model, with its checkpoint folder."""
    spec = get_spec(model.id)
    return spec.with_checkpoint(model.checkpoint_dir) if model.checkpoint_dir else spec


def build_driver(model: ResolvedModel[UnaryOptions], tell: Sink) -> Driver:
    """Load the model, warm it up, and put scheduler and engine around it."""
    torch.set_num_threads(model.threads)
    torch.set_grad_enabled(False)
    spec = spec_of(model)
    staged = StagedDynPerceiver(load_model(spec, device=model.device), spec)
    bytes_per_sample = warm_up(staged, spec, model.options.max_batch)
    table = load_table(spec.id, spec.checkpoint_dir)
    cost = TableCostModel(table.batch_sizes, table.stage_seconds)
    scheduler = EarlyExitScheduler(
        cost, EarlyExitConfig(max_batch=model.options.max_batch, max_waiting=model.options.max_queue)
    )

    def predict(stage: int, num_stages: int, size: int) -> float:
        return sum(cost.batch_s(stage + step, size) for step in range(num_stages))

    return Driver(
        scheduler=scheduler,
        engine=EarlyExitEngine(staged, bytes_per_sample=bytes_per_sample, max_bytes=model.options.max_held_bytes),
        predict=predict,
        model=spec.id,
        tell=tell,
    )


def warm_up(staged: StagedDynPerceiver, spec: ModelSpec, max_batch: int) -> int:
    """Run every stage once at the smallest and the largest batch. Returns the peak bytes of one sample."""
    peak_bytes = spec.input_size * spec.input_size * 3
    for size in (1, max_batch):
        states = staged.begin(np.zeros((size, spec.input_size, spec.input_size, 3), dtype=np.uint8))
        peak_bytes = max(peak_bytes, states[0].nbytes)
        for _ in range(spec.num_exits):
            states, _logits = staged.advance(states)
            peak_bytes = max(peak_bytes, states[0].nbytes)
    return peak_bytes + spec.num_exits * spec.num_classes * 4
