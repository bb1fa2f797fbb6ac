"""Builds what one gateway replica owns, and starts and stops it in order."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.serve.handle import DeploymentHandle

from models.contract import Shape
from models.identity import WEIGHTS_FILE
from models.registry import family_for
from schedulers.admission import Cost
from schedulers.bending import Limits, limits_of
from schedulers.fair_queue import EQUAL, Weights
from schedulers.retry_budget import RetryBudget
from serving.bending import Bending, bends_after_s
from serving.config import JobOptions, MediaSettings, ResolvedConfig, ResolvedModel, StreamOptions, UnaryOptions
from serving.delivery.job.base import JobModel
from serving.delivery.job.experts import ExpertReport
from serving.delivery.job.service import Jobs, JobServiceConfig
from serving.delivery.pipeline import Pipeline, PipelineLimits, is_replica_lost
from serving.delivery.stream.links import ChatLinks, HandleCalls
from serving.delivery.unary.dispatch import MAX_SAMPLES_PER_CALL, Dispatcher, PendingCall
from serving.delivery.unary.service import ServedModel, UnaryRequests
from serving.delivery.unary.wire import SampleCall
from serving.domain import Priority
from serving.guard.build import build_guard
from serving.media.fetch import FetchLimits, ImageFetcher
from serving.media.image_cache import ProcessedImages
from serving.media.limits import MediaLimits
from serving.media.pool import MediaPool
from serving.media.processors import Processors
from serving.media.request_images import GridOf, RequestImages
from serving.operating_points import Points, answer_cost, answer_work, points_of, points_of_answers, usual_seconds
from serving.refusals import prompt_check
from serving.service import Card, Service, card_of
from serving.stores.artefacts import ArtefactStore
from serving.stores.jobs.base import JobRecord, JobStatus
from serving.stores.jobs.redis_jobs import RedisJobs, build_index
from serving.stores.jobs.settler import JobSettler
from serving.stores.periodic import ArtefactCleaner
from serving.stores.results import ResultStore
from serving.stores.tenants import TenantWatch, build_watch
from serving.system.process import is_deploying, num_live, raylet_watch
from serving.system.reached import Ping, Reached
from serving.tasks.chat.models import read_grids, read_guard
from serving.tasks.chat.models import read_served as read_chat
from serving.tasks.chat.points import Measured
from serving.tasks.chat.results import TenantKeys
from serving.tasks.chat.service import ChatService, ServedChat
from serving.tasks.images.files import ImageFiles
from serving.tasks.images.jobs import IMAGES, PicturePlanner, plan_of
from serving.tasks.videos.first_frame import FirstFrames
from serving.tasks.videos.models import read_served
from serving.tasks.videos.rules import VIDEOS
from serving.telemetry.events import Sink
from serving.tenants import LiveTenants

_EXPERTS_S = 5.0
"""For all replicas to say what their experts were sent."""


@dataclass(frozen=True, kw_only=True)
class GatewayParts:
    """What one gateway replica owns."""

    tenants: LiveTenants
    watch: TenantWatch
    media: MediaPool
    results: ResultStore
    images: RequestImages
    chat: ChatService
    jobs: RedisJobs
    clips: ArtefactStore
    cleaner: ArtefactCleaner
    settler: JobSettler
    reached: Reached
    bending: Bending
    pipeline: Pipeline
    service: Service

    @property
    def model_ids(self) -> list[str]:
        """Everything that is served here."""
        return [card.id for card in self.service.cards()]

    async def start(self) -> None:
        """Bring up the decode workers and the Redis client. A dead Redis is no reason not to start."""
        await self.watch.begin()
        await self.media.start()
        await self.results.start()
        await self.jobs.start()
        self.cleaner.start()
        self.settler.start()
        await self.reached.start()
        self.pipeline.start()

    async def stop(self) -> None:
        """Take down in reverse order."""
        self.pipeline.stop()
        await self.reached.stop()
        self.bending.stop()
        await self.chat.stop()
        await self.settler.stop()
        await self.cleaner.stop()
        await self.jobs.stop()
        self.clips.close()
        await self.results.stop()
        await self.images.stop()
        await self.media.stop()
        await self.watch.stop()


def build_parts(config: ResolvedConfig, handles: dict[str, DeploymentHandle[Any]], tell: Sink) -> GatewayParts:
    """Put one gateway replica together."""
    settings, tenants = config.settings, LiveTenants(config.settings.tenants)
    results = ResultStore(config, tell, tenants)
    media = _media_pool(config, results, tenants, tell)
    bending = Bending(_bending_limits(config), tenants.weights, tell=tell, gateways=settings.gateway.replicas)
    pipeline = _pipeline(config, results, tenants, bending, tell)
    grids = {model.id: read_grids(model) for model in config.models_with(StreamOptions)}
    images = build_request_images(settings.media, media, tell, grids, tenants.weights)
    chat = _chat_service(config, images, pipeline, handles, tenants, tell)
    models = {
        model.id: _served(model, settings.gateway.calls_in_flight, handles[model.id], tell, tenants.weights)
        for model in config.models_with(UnaryOptions)
    }
    unary = _unary(config, models, media, pipeline, tenants)
    jobs, clips = build_index(config, tenants), ArtefactStore(config.artefact_url)
    makers = _job_models(config, models, images)
    job_limits = JobServiceConfig(max_queued=settings.jobs.max_queued, secret=config.secret.encode())
    videos, pictures = (Jobs(task, makers[task.name], jobs, clips, pipeline, job_limits) for task in (VIDEOS, IMAGES))
    reached = Reached(_pings(config, handles), is_deploying)
    service = Service(
        unary,
        chat,
        videos,
        pictures,
        ImageFiles(clips, config.secret.encode()),
        is_started=lambda: reached.is_over,
        is_live=_liveness(),
        bending_level=lambda model: bending.level(model) if bending.bends(model) else None,
        max_priorities=tenants.view(lambda tenant: Priority(tenant.max_priority)),
        experts=_experts(handles),
        accounts=results,
        # On a cluster HAProxy is as Ray configures it, and would pass the number on to the caller.
        **({} if config.settings.profile == "cluster" else {"places": pipeline.places}),
    )
    return GatewayParts(
        tenants=tenants,
        watch=build_watch(config, tenants, is_gateway=True),
        media=media,
        results=results,
        images=images,
        chat=chat,
        jobs=jobs,
        clips=clips,
        cleaner=ArtefactCleaner(clips, jobs),
        settler=JobSettler(jobs, results, partial(_learn, makers)),
        reached=reached,
        bending=bending,
        pipeline=pipeline,
        service=service,
    )


def _media_pool(config: ResolvedConfig, results: ResultStore, tenants: LiveTenants, tell: Sink) -> MediaPool:
    processors = Processors({model.id: (model.family, model.variant) for model in config.models})
    return MediaPool(
        _media_limits(config),
        config.media_workers,
        processors,
        tile_counter=processors.count_tiles,
        account=results,
        tell=tell,
        weights=tenants.weights,
    )


def _pipeline(
    config: ResolvedConfig, results: ResultStore, tenants: LiveTenants, bending: Bending, tell: Sink
) -> Pipeline:
    gateway = config.settings.gateway
    return Pipeline(
        results,
        PipelineLimits(max_in_flight=gateway.max_in_flight, default_deadline_s=gateway.default_deadline_s),
        tenants.view(lambda tenant: tenant.max_in_flight),
        tell=tell,
        bending=bending,
        weights=tenants.weights,
        models=[model.id for model in config.models],
    )


def _unary(
    config: ResolvedConfig,
    models: Mapping[str, ServedModel],
    media: MediaPool,
    pipeline: Pipeline,
    tenants: LiveTenants,
) -> UnaryRequests:
    return UnaryRequests(
        models,
        media,
        pipeline,
        max_images=config.settings.limits.max_images,
        max_deep_share=tenants.view(lambda tenant: tenant.max_deep_share),
    )


def _job_models(
    config: ResolvedConfig, models: Mapping[str, ServedModel], images: RequestImages
) -> dict[str, dict[str, JobModel]]:
    """What makes videos and images, by task and model. Pictures may come of any model, clips of those of jobs."""
    videos = {model.id: _film(model, images) for model in config.models_with(JobOptions) if VIDEOS.name in model.tasks}
    painters = {
        model.id: JobModel(card=models[model.id].card, plan=plan_of, replicas=model.replicas)
        for model in config.models_with(UnaryOptions)
        if IMAGES.name in model.tasks
    }
    painters |= {model.id: _painter(model) for model in config.models_with(JobOptions) if IMAGES.name in model.tasks}
    return {VIDEOS.name: videos, IMAGES.name: painters}


def _liveness() -> Callable[[str], bool]:
    """Whether a model has a replica; none has where this node has lost Ray."""
    has_raylet = raylet_watch()
    return lambda model: has_raylet() and num_live(model) > 0


def _bending_limits(config: ResolvedConfig) -> dict[str, Limits]:
    """Of the models whose quality may bend."""
    settings, gateway = config.settings.bending, config.settings.gateway
    limits = {}
    for model in config.models if settings.enabled else ():
        if not model.bend:
            continue
        shape = family_for(model.family, model.variant).shape
        after_s = bends_after_s(
            settings,
            shape,
            usual_seconds(model) / model.replicas,
            gateways=gateway.replicas,
            room=config.settings.jobs.max_queued if shape == "job" else gateway.max_in_flight,
        )
        limits[model.id] = limits_of(after_s)
    return limits


def _learn(models: Mapping[str, Mapping[str, JobModel]], job: JobRecord) -> None:
    model = models.get(job.task, {}).get(job.model)
    if model is not None and job.status is JobStatus.COMPLETED:
        watts = job.predicted_j / job.predicted_s if job.predicted_s else 0.0
        most_s = job.most_s or job.predicted_s
        model.overruns.observe(Cost(watts * most_s, most_s), job.taken)


def _pings(config: ResolvedConfig, handles: dict[str, DeploymentHandle[Any]]) -> dict[str, Ping]:
    """Calls that ask nothing of a model."""
    return {model.id: _PINGS[model.shape](handles[model.id]) for model in config.models}


_PINGS: Mapping[Shape, Callable[[DeploymentHandle[Any]], Ping]] = {
    "unary": lambda handle: partial(handle.run.remote, []),
    "staged": lambda handle: partial(handle.run.remote, []),
    "stream": lambda handle: partial(handle.cancel.remote, "", []),
    "job": lambda handle: handle.ping.remote,
}


def _chat_service(
    config: ResolvedConfig,
    images: RequestImages,
    pipeline: Pipeline,
    handles: dict[str, DeploymentHandle[Any]],
    tenants: LiveTenants,
    tell: Sink,
) -> ChatService:
    models = config.models_with(StreamOptions)
    chats = {model.id: _served_chat(model, handles[model.id]) for model in models}
    read = {model.id: read_guard(model, chats[model.id].card) for model in models}
    return ChatService(
        chats,
        images,
        pipeline,
        TenantKeys(config.secret.encode()),
        tenants.weights,
        build_guard(config, {model: one for model, one in read.items() if one is not None}, tenants, tell),
    )


def _served_chat(model: ResolvedModel[StreamOptions], handle: DeploymentHandle[Any]) -> ServedChat:
    card, prompts = read_chat(model)
    family, points = family_for(model.family, model.variant), points_of_answers(model)
    return ServedChat(
        card=card,
        prompts=prompts,
        links=ChatLinks(HandleCalls(handle), f"{model.id}-{uuid.uuid4().hex[:12]}"),
        cost=answer_cost(points, model.watts),
        work=answer_work(family, model.variant),
        retries=RetryBudget(model.options.max_num_seqs + model.options.max_queue),
        watts=model.watts,
        slots=model.options.max_num_seqs * model.replicas,
        measured=Measured(points),
    )


def build_request_images(
    settings: MediaSettings,
    pool: MediaPool,
    tell: Sink,
    grids: Mapping[str, GridOf | None],
    weights: Weights = EQUAL,
) -> RequestImages:
    """Put the image path of one gateway together, as configured."""
    limits = FetchLimits(
        max_bytes=settings.max_bytes_per_image,
        timeout_s=settings.fetch_timeout_s,
        connect_timeout_s=settings.fetch_connect_timeout_s,
        max_concurrent=settings.max_fetches,
    )
    fetcher = ImageFetcher(settings.allowed_hosts, limits, tell=tell, weights=weights)
    return RequestImages(pool, fetcher, ProcessedImages(settings.cache_bytes, tell), grids)


def _media_limits(config: ResolvedConfig) -> MediaLimits:
    media, limits = config.settings.media, config.settings.limits
    same = media.model_dump(include=set(MediaLimits.__dataclass_fields__))
    return MediaLimits(**same, max_bytes_per_request=limits.max_body_bytes, max_images=limits.max_images)


def _served(
    model: ResolvedModel[UnaryOptions],
    calls_in_flight: int,
    handle: DeploymentHandle[Any],
    tell: Sink,
    weights: Weights,
) -> ServedModel:
    family, variant = family_for(model.family, model.variant), model.variant
    points = points_of(model)
    dispatcher = Dispatcher(
        send=_sender(handle),
        leave=_leaver(handle),
        is_replica_lost=is_replica_lost,
        max_calls_in_flight=calls_in_flight * model.replicas,
        num_replicas=model.replicas,
        retries=RetryBudget(calls_in_flight * MAX_SAMPLES_PER_CALL),
        model=model.id,
        tell=tell,
        weights=weights,
        watts=model.watts,
    )
    return ServedModel(
        card=_card(model, points),
        points=points,
        dispatcher=dispatcher,
        words=family.part("words")(variant) if variant.io.takes_prompt else None,
    )


def _sender(handle: DeploymentHandle[Any]) -> Callable[[str, list[SampleCall], float], PendingCall]:
    run = handle.run

    def send(call_id: str, samples: list[SampleCall], predicted_s: float) -> PendingCall:
        pending: PendingCall = run.remote(samples, call_id, predicted_s=predicted_s)
        return pending

    return send


def _leaver(handle: DeploymentHandle[Any]) -> Callable[[Mapping[str, Sequence[int]]], Awaitable[Collection[str]]]:
    async def leave(places: Mapping[str, Sequence[int]]) -> Collection[str]:
        """Which replica has a call is known to the router alone, so all are told."""
        answers = await handle.broadcast("leave", places).results_async(return_exceptions=True)
        return {call_id for answer in answers if isinstance(answer, list) for call_id in answer}

    return leave


def _experts(handles: Mapping[str, DeploymentHandle[Any]]) -> Callable[[str], Awaitable[Sequence[ExpertReport]]]:
    async def experts(model: str) -> Sequence[ExpertReport]:
        calls = handles[model].broadcast("experts")
        try:
            answers = await calls.results_async(timeout_s=_EXPERTS_S, return_exceptions=True)
        except TimeoutError:
            return ()
        return [answer for answer in answers if isinstance(answer, ExpertReport)]

    return experts


def _painter(model: ResolvedModel[JobOptions]) -> JobModel:
    points = points_of(model)
    family = family_for(model.family, model.variant)
    planner = PicturePlanner(model=model, points=points, check_prompts=prompt_check(family, model.variant))
    card = replace(_card(model, points), ranks=model.options.ranks)
    return JobModel(card=card, plan=planner, replicas=model.replicas)


def _film(model: ResolvedModel[JobOptions], images: RequestImages) -> JobModel:
    served = read_served(model)
    return replace(served, prepare=FirstFrames(images, served.card.io))


def _card(model: ResolvedModel[Any], points: Points) -> Card:
    family, variant = family_for(model.family, model.variant), model.variant
    weights = (variant.weights or Path()) / WEIGHTS_FILE
    return card_of(
        family,
        variant,
        served_as=model.id,
        created_s=int(weights.stat().st_mtime) if weights.is_file() else 0,
        checkpoint_sha256=points.checkpoint_sha256,
        operating_points=points.names,
        is_calibrated=points.is_calibrated,
    )
