"""Composition root: turns a configuration into the Ray Serve graph. The only place that picks implementations.

HAProxy -> Gateway (ingress, HTTP and gRPC) -> one inner deployment per served model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serving.config import (
    ModelSettings,
    ResolvedConfig,
    VideoModelSettings,
    VlmSettings,
    load,
    resolve,
    threads_for,
)
from serving.delivery.router import STATS_PERIOD_S, AffinityRouter, LeastWorkRouter, PlainRouter
from serving.gateway import Gateway
from serving.replica.chat.deployment import Vlm
from serving.replica.chat.vllm_options import engine_environment
from serving.replica.staged.deployment import Classifier
from serving.replica.video.deployment import VideoGenerator

GATEWAY = "Gateway"
GRPC_SERVICERS = (
    "serving.front.grpc.registration.add_vireo_to_server",
    "serving.front.grpc.registration.add_inference_to_server",
    "serving.front.grpc.registration.add_health_to_server",
    "serving.front.grpc.registration.add_reflection_to_server",
)
"""What `serve` needs to know to open the gRPC port; deploy/serve-config.yaml repeats them."""

_GATEWAY_STREAMS = 64
"""Gateways that may have a stream to one chat replica open."""


def build_app(args: Mapping[str, Any]) -> Application:
    """Entry point of ``serve deploy``: ``args`` are settings as in a configuration file, laid over VIREO_CONFIG and
    VIREO_SET, which hold what a Serve config must not (secrets) and what only the pod knows.

    Raises: ConfigError: see ``serving.config``.
    """
    return build_graph(resolve(load(args=args)))


def build_graph(config: ResolvedConfig) -> Application:
    """The graph of a resolved configuration."""
    handles = {model.id: _inner(model, config) for model in config.settings.models}
    chat_handles = {model.id: _chat(model, config) for model in config.settings.chat_models}
    video_handles = {model.id: _video(model, config) for model in config.settings.video_models}
    gateway = config.settings.gateway
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=gateway.replicas,
        # The gateway bounds itself and answers 429 with a typed body; Ray's own bound must lie above.
        max_ongoing_requests=4 * gateway.max_in_flight,
        graceful_shutdown_timeout_s=config.settings.drain_s + gateway.default_deadline_s,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        ray_actor_options={"num_cpus": gateway.cpus, "runtime_env": {"env_vars": _environment(config, 1)}},
    )(Gateway)
    return deployment.bind(config, handles, chat_handles, video_handles)


def _inner(model: ModelSettings, config: ResolvedConfig) -> Application:
    options: dict[str, Any] = {
        "num_cpus": model.cpus,
        "runtime_env": {"env_vars": _environment(config, threads_for(model))},
    }
    if model.gpus:
        options["num_gpus"] = model.gpus
    routing: dict[str, Any] = {
        "request_router_class": LeastWorkRouter,
        "request_routing_stats_period_s": STATS_PERIOD_S,
        "request_routing_stats_timeout_s": 5.0,
    }
    deployment = serve.deployment(
        name=model.id,
        num_replicas=model.replicas,
        max_ongoing_requests=model.max_ongoing_calls,
        # A replica that hangs is found after three checks and killed after this long: what it held is then sent to
        # another, and both together must fit into a request's default deadline.
        graceful_shutdown_timeout_s=8.0,
        health_check_period_s=1.0,
        health_check_timeout_s=4.0,
        ray_actor_options=options,
        request_router_config=RequestRouterConfig(**routing),
        # A call carries samples of several requests; the requests themselves are in the gateway's access log.
        logging_config={"enable_access_log": False},
    )(Classifier)
    return deployment.bind(model, config.settings.log_level, config.metrics_dir)


def _chat(model: VlmSettings, config: ResolvedConfig) -> Application:
    env = _environment(config, threads_for(model))
    if model.engine == "vllm":
        env |= engine_environment(config.run_dir, cast(Any, model.device))
    options: dict[str, Any] = {"num_cpus": model.cpus, "runtime_env": {"env_vars": env}}
    if model.gpus:
        options["num_gpus"] = model.gpus
    routing: dict[str, Any] = {
        "request_router_class": AffinityRouter,
        "request_routing_stats_period_s": STATS_PERIOD_S,
        "request_routing_stats_timeout_s": 5.0,
    }
    deployment = serve.deployment(
        name=model.id,
        num_replicas=model.replicas,
        # The replica bounds itself and answers with a typed error; every gateway has a stream here besides.
        max_ongoing_requests=2 * (model.max_num_seqs + model.max_queue) + _GATEWAY_STREAMS,
        graceful_shutdown_timeout_s=config.settings.drain_s + config.settings.gateway.default_deadline_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        ray_actor_options=options,
        request_router_config=RequestRouterConfig(**routing),
        logging_config={"enable_access_log": False},
    )(Vlm)
    return deployment.bind(model, config.settings.log_level, config.metrics_dir)


def _video(model: VideoModelSettings, config: ResolvedConfig) -> Application:
    options: dict[str, Any] = {
        "num_cpus": model.cpus,
        "runtime_env": {"env_vars": _environment(config, threads_for(model))},
    }
    bundle = {"CPU": model.cpus}
    if model.gpus:
        options["num_gpus"] = bundle["GPU"] = model.gpus
    routing: dict[str, Any] = {"request_router_class": PlainRouter}
    deployment = serve.deployment(
        name=model.id,
        num_replicas=model.replicas,
        # Work is pulled, not sent: all calls are pings.
        max_ongoing_requests=_GATEWAY_STREAMS,
        # Jobs go back into the queue at their next step boundary.
        graceful_shutdown_timeout_s=max(config.settings.drain_s, 20.0),
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=1.0,
        health_check_timeout_s=10.0,
        ray_actor_options=options,
        request_router_config=RequestRouterConfig(**routing),
        logging_config={"enable_access_log": False},
    )(VideoGenerator)
    if model.ranks > 1:
        # One replica is one placement group: itself in the first bundle, an actor for each further rank.
        deployment = deployment.options(placement_group_bundles=[bundle] * model.ranks, placement_group_strategy="PACK")
    return deployment.bind(model, config)


def _environment(config: ResolvedConfig, threads: int) -> dict[str, str]:
    """Must be there before the process imports anything, hence not set by our own code in the process.

    The malloc settings keep batch-sized buffers in the heap instead of mapping them anew for each operation: the first
    stage at batch 64 took 4.6 ms with them and 5.6 ms without (docs/experiments.md).
    """
    return {
        "PROMETHEUS_MULTIPROC_DIR": str(config.metrics_dir),
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    }
