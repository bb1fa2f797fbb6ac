"""Builds what a replica of jobs owns, and starts and stops it in order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from schedulers.cost import CostModel
from schedulers.experts.activation import choose
from schedulers.policies.denoising import DenoisingConfig
from schedulers.policies.experts import denoising_with_experts
from serving.config import JobOptions, ResolvedConfig, ResolvedModel
from serving.delivery.job.base import found_variant
from serving.energy.choose import replica_energy
from serving.energy.replica import ReplicaEnergy
from serving.errors import StoreUnavailable
from serving.operating_points import step_cost
from serving.replica.job.base import Engine
from serving.replica.job.checkpoints import Checkpoints
from serving.replica.job.engine import EngineOptions, JobEngine, Load, load_runner
from serving.replica.job.held import Bench, WorkerConfig
from serving.replica.job.outputs import OutputFiles
from serving.replica.job.placing import Placing
from serving.replica.job.worker import Worker
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.redis_jobs import RedisJobs, build_index
from serving.stores.results import ResultStore
from serving.telemetry.events import JobsCounted, Sink
from serving.tenants import LiveTenants

_METRICS_PERIOD_S = 1.0
_TOKENS_PER_READ: Mapping[str, float] = {"cpu": 16.0, "cuda": 200.0}
"""Tokens that an expert multiplies while its weights are read, by device: of the order of what data sheets say."""


@dataclass(frozen=True, kw_only=True)
class JobParts:
    """What one replica owns."""

    engine: Engine
    index: RedisJobs
    store: ArtefactStore
    worker: Worker
    quotas: ResultStore

    async def start(self) -> None:
        """Load the weights, then begin to claim. A dead Redis is no reason not to start."""
        await self.engine.start()
        await self.index.start()
        await self.worker.start()

    async def stop(self) -> None:
        """Take down in reverse order."""
        await self.worker.stop()
        await self.index.stop()
        await self.quotas.stop()
        self.store.close()
        await self.engine.stop()

    async def report(self, tell: Sink) -> None:
        """Say again and again what waits and what is here. Until cancelled."""
        while True:
            await asyncio.sleep(_METRICS_PERIOD_S)
            self.worker.bench.experts.roll(self.engine.placed())
            model = self.worker.bench.model
            try:
                queued = await self.index.num_queued(model)
            except StoreUnavailable:
                continue
            held_bytes = self.engine.held_bytes()
            tell(JobsCounted(model=model, num_held=self.worker.num_held, num_queued=queued, held_bytes=held_bytes))


def build_parts(
    model: ResolvedModel[JobOptions], config: ResolvedConfig, tenants: LiveTenants, name: str, tell: Sink
) -> JobParts:
    """Put one replica together. ``name`` is the worker's in leases.

    Raises: ConfigError: unknown model, no weights, or a store that cannot be used.
    """
    options = model.options
    is_fake = options.engine == "fake"
    cost = CostModel(watts=model.watts) if is_fake else step_cost(*found_variant(model), model.watts)
    bounds = DenoisingConfig(
        max_batch=options.max_batch,
        max_units=options.max_jobs,
        max_held_bytes=options.max_held_bytes,
        weights=tenants.weights,
    )
    return build_worker(
        build_engine(model),
        model,
        config,
        tenants,
        name,
        tell,
        request=model.variant.io.request,
        bounds=bounds,
        cost=cost,
        lease_s=options.lease_s,
        checkpoint_every=options.checkpoint_every,
        checkpoint_share=options.checkpoint_share,
        max_attempts=options.max_attempts,
    )


def build_worker(
    engine: Engine,
    model: ResolvedModel[Any],
    config: ResolvedConfig,
    tenants: LiveTenants,
    name: str,
    tell: Sink,
    *,
    request: type[Any],
    bounds: DenoisingConfig,
    cost: CostModel,
    energy: ReplicaEnergy | None = None,
    **options: Any,
) -> JobParts:
    """Put a worker around an engine. ``request``: class of its payloads. ``energy``: of an engine that asks it itself
    what its steps took. ``options``: of ``WorkerConfig``.

    Raises: ConfigError: a store that cannot be used.
    """
    index, store = build_index(config, tenants), ArtefactStore(config.artefact_url)
    quotas = ResultStore(config, tenants=tenants)
    bench = Bench(
        model=model.id,
        name=name,
        engine=engine,
        index=index,
        checkpoints=Checkpoints(store, config.secret.encode()),
        files=OutputFiles(store),
        config=WorkerConfig(
            store_patience_s=config.settings.jobs.store_patience_s,
            ttl_s=config.settings.jobs.ttl_s,
            watts=model.watts,
            **options,
        ),
        tell=tell,
        settle=quotas.settle_job,
        energy=energy or replica_energy(model, config.settings.energy.meter, tell, model.watts),
        engine_tells=energy is not None,
        cost=cost,
    )
    worker = Worker(bench, denoising_with_experts(bounds, cost, bench.skew), request)
    return JobParts(engine=engine, index=index, store=store, worker=worker, quotas=quotas)


def build_engine(model: ResolvedModel[JobOptions]) -> Engine:
    """The engine of the settings, not started: fake, in this process, or spread over ranks.

    Raises: ConfigError: no weights.
    """
    family, variant = found_variant(model)
    options = EngineOptions(family=family, variant=variant, stuck_after_s=model.options.stuck_after_s)
    if model.options.engine == "fake":
        from serving.replica.job.fake import FakePace, FakeRunner

        return JobEngine(options, lambda: FakeRunner(variant.io, FakePace(step_s=0.02)))
    import torch

    torch.set_num_threads(model.threads)
    is_alone = model.options.ranks == 1
    load = partial(load_runner, model.family, model.variant, model.device, model.options.dtype, is_alone=is_alone)
    if is_alone:
        return JobEngine(options, load)
    return _ranked(model, options, load)


def _ranked(model: ResolvedModel[JobOptions], options: EngineOptions, load: Load) -> Engine:
    """This process is the first rank; the others are actors in the replica's placement group (``serving.app``)."""
    from ray.util import get_current_placement_group

    from models.parallel.degrees import ParallelDegrees
    from serving.replica.job.ranked_engine import RankedEngine
    from serving.replica.job.ranks import RankActors, RankRecipe

    ranks, placing = model.options.ranks, None
    degrees = ParallelDegrees(ulysses=ranks)
    if "experts" in options.family.parts:
        facts = options.family.part("experts")(options.variant)
        degrees = ParallelDegrees(expert=ranks)
        placing = Placing.over(
            ranks,
            layers=facts.layers,
            experts=facts.experts,
            spare=model.options.spare_experts,
            expert_bytes=facts.expert_parameters * (2 if model.options.dtype == "bfloat16" else 4),
        )
    recipe = RankRecipe(
        options=options,
        load=load,
        degrees=degrees,
        slots=placing.placement.slots if placing else (),
        choose=partial(choose, tokens_per_read=_TOKENS_PER_READ[model.device]),
        min_tokens_per_rank=model.options.min_tokens_per_rank,
        num_threads=model.threads,
    )
    actors = RankActors(
        num_ranks=ranks,
        cpus=model.cpus,
        gpus=model.gpus,
        backend="nccl" if model.gpus else "gloo",
        placement_group=get_current_placement_group(),
    )
    return RankedEngine(recipe, actors, placing, model.options.replace_every_s)
