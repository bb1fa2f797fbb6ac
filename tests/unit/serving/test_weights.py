"""A tenant's weight, from the configuration to the queues that its work waits in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.registry import default_variants
from schedulers.policies.denoising import DenoisingWork
from schedulers.policies.exits import ExitWork
from schedulers.types import RunSlice, Scheduler, SliceFinished, SliceResult, UnitArrived
from serving.config import JobOptions, ResolvedConfig, UnaryOptions, from_mapping, resolve
from serving.errors import ConfigError
from serving.fair_slots import FairSlots, SlotTurn
from serving.replica.job.setup import build_parts
from serving.replica.staged.setup import build_driver
from serving.telemetry.events import ignore
from serving.tenants import LiveTenants
from tests.support.fake_engine import FakeEngine

NANO, _, VIDEO, _ = (variant.id for _, variant in default_variants())


def config_of(run_dir: Path, weight: float = 3.0) -> ResolvedConfig:
    tenants = [
        {"name": "large", "api_key_sha256": ["ab" * 32], "weight": weight},
        {"name": "small", "api_key_sha256": ["cd" * 32]},
    ]
    models = [
        {"id": NANO, "options": {"max_batch": 1}},
        {"id": VIDEO, "options": {"engine": "fake", "max_batch": 1}},
    ]
    return resolve(from_mapping({"tenants": tenants, "models": models, "run_dir": str(run_dir)}))


def live(config: ResolvedConfig) -> LiveTenants:
    return LiveTenants(config.settings.tenants)


def rows(config: ResolvedConfig) -> tuple[Scheduler, Any]:
    (model,) = config.models_with(UnaryOptions)
    scheduler = build_driver(model, FakeEngine(), None, ignore, live(config).weights).scheduler
    return scheduler, ExitWork((0.0,) * model.variant.io.num_exits)


def clips(config: ResolvedConfig) -> tuple[Scheduler, Any]:
    (model,) = config.models_with(JobOptions)
    work = DenoisingWork(steps_left=99, seconds_per_step=1.0, tokens=8)
    return build_parts(model, config, live(config), "worker", ignore).worker.scheduler, work


@pytest.mark.parametrize("make", [rows, clips], ids=lambda make: make.__name__)
def test_weight_in_the_configuration_is_the_share_on_a_replica(
    make: Callable[[ResolvedConfig], tuple[Scheduler, Any]], tmp_path: Path
) -> None:
    scheduler, work = make(config_of(tmp_path))
    names = [(tenant, number) for number in range(40) for tenant in ("large", "small")]
    decisions = scheduler.handle(0.0, *(UnitArrived(unit_id=one, work=work, tenant=one[0]) for one in names))
    order: list[str] = []
    for now_s in range(1, 41):
        (run,) = (one for one in decisions if isinstance(one, RunSlice))
        order += [tenant for tenant, _ in run.unit_ids]
        results = tuple(SliceResult(unit_id=one, report="phase" if make is clips else 1.0) for one in run.unit_ids)
        decisions = scheduler.handle(float(now_s), SliceFinished(slice_id=run.slice_id, results=results, elapsed_s=1.0))
    assert order.count("large") == 3 * order.count("small")


async def test_slots_are_shared_by_weight(tmp_path: Path) -> None:
    slots = FairSlots(1, weights=live(config_of(tmp_path)).weights)
    running = SlotTurn("large", predicted_s=1.0)
    assert await slots.acquire(running)
    turns = [SlotTurn(tenant, predicted_s=1.0) for tenant in ("large", "small") * 20]
    waits = [slots.acquire(turn) for turn in turns]
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.sleep(0)
    order = [running]
    while len(order) < 20:
        slots.release(order[-1], 1.0)
        order += [turn for turn in turns if turn.granted.done() and turn not in order]
    for task in tasks:
        task.cancel()
    assert [turn.arrival.tenant for turn in order].count("large") == 15


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e-9, 1e9, float("nan"), float("inf")])
def test_weight_out_of_range_is_refused_by_name(weight: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight"):
        config_of(tmp_path, weight)
