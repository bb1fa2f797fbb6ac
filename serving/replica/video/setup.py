"""Builds what a video replica owns, and starts and stops it in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from schedulers.video import VideoPolicyConfig, VideoScheduler
from serving.config import JobOptions, ResolvedConfig, ResolvedModel
from serving.replica.video.base import VideoEngine
from serving.replica.video.checkpoints import Checkpoints
from serving.replica.video.delivery import Delivery
from serving.replica.video.engine import EngineOptions, JobEngine, Load, load_runner
from serving.replica.video.worker import VideoWorker, WorkerConfig
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.redis_jobs import RedisJobs
from serving.stores.jobs.setup import build_index
from serving.stores.results import ResultStore
from serving.tasks.videos.models import limits_of
from serving.telemetry.events import Sink


@dataclass(frozen=True, kw_only=True)
class VideoParts:
    """What one replica owns."""

    engine: VideoEngine
    index: RedisJobs
    store: ArtefactStore
    worker: VideoWorker
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


def build_parts(model: ResolvedModel[JobOptions], config: ResolvedConfig, name: str, tell: Sink) -> VideoParts:
    """Put one replica together. ``name`` is the worker's in leases.

    Raises: ConfigError: unknown model, no weights, or a store that cannot be used.
    """
    engine = build_engine(model)
    index, store = build_index(config), ArtefactStore(config.artefact_url)
    quotas = ResultStore(config)
    policy = VideoPolicyConfig(
        max_batch=model.options.max_batch, max_jobs=model.options.max_jobs, max_held_bytes=model.options.max_held_bytes
    )
    worker = VideoWorker(
        model=model.id,
        name=name,
        engine=engine,
        scheduler=VideoScheduler(policy),
        index=index,
        checkpoints=Checkpoints(store, config.secret.encode()),
        delivery=Delivery(store),
        config=WorkerConfig(
            lease_s=model.options.lease_s,
            checkpoint_every=model.options.checkpoint_every,
            checkpoint_share=model.options.checkpoint_share,
            store_patience_s=config.settings.jobs.store_patience_s,
            max_attempts=model.options.max_attempts,
            ttl_s=config.settings.jobs.ttl_s,
            watts=model.watts,
        ),
        tell=tell,
        settle=quotas.settle_job,
    )
    return VideoParts(engine=engine, index=index, store=store, worker=worker, quotas=quotas)


def build_engine(model: ResolvedModel[JobOptions]) -> VideoEngine:
    """The engine of the settings, not started: fake, in this process, or spread over ranks.

    Raises: ConfigError: no weights.
    """
    options = EngineOptions(limits=limits_of(model), stuck_after_s=model.options.stuck_after_s)
    if model.options.engine == "fake":
        from serving.replica.video.fake import FakePace, FakeRunner

        return JobEngine(options, lambda: FakeRunner(options.limits.io, FakePace(step_s=0.02)))
    import torch

    torch.set_num_threads(model.threads)
    load = partial(load_runner, model.id, model.checkpoint_dir, model.device, model.options.dtype)
    if model.options.ranks == 1:
        return JobEngine(options, load)
    return _ranked(model, options, load)


def _ranked(model: ResolvedModel[JobOptions], options: EngineOptions, load: Load) -> VideoEngine:
    """This process is the first rank; the others are actors in the replica's placement group (``serving.app``)."""
    from ray.util import get_current_placement_group

    from models.parallel.degrees import ParallelDegrees
    from serving.replica.video.rank import RankRecipe
    from serving.replica.video.rank_actors import RankActors
    from serving.replica.video.ranked_engine import RankedVideoEngine

    recipe = RankRecipe(
        options=options,
        load=load,
        degrees=ParallelDegrees(ulysses=model.options.ranks),
        min_tokens_per_rank=model.options.min_tokens_per_rank,
        num_threads=model.threads,
    )
    actors = RankActors(
        num_ranks=model.options.ranks,
        cpus=model.cpus,
        gpus=model.gpus,
        backend="nccl" if model.gpus else "gloo",
        placement_group=get_current_placement_group(),
    )
    return RankedVideoEngine(recipe, actors)
