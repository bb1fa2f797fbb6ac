"""Composition root: turns a configuration into the Ray Serve graph. The only place that picks implementations.

HAProxy -> Gateway (ingress, HTTP and gRPC) -> one inner deployment per served model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from models.contract import Shape
from serving.config import ResolvedConfig, ResolvedModel, StreamOptions, load, resolve
from serving.delivery.router import STATS_PERIOD_S, AffinityRouter, LeastWorkRouter, PlainRouter
from serving.gateway.node import Gateway
from serving.replica.chat.deployment import Vlm
from serving.replica.chat.setup import engine_environment
from serving.replica.job.deployment import JobReplica
from serving.replica.staged.deployment import Classifier

GATEWAY = "Gateway"
GRPC_SERVICERS = (
    "serving.front.grpc.registration.add_vireo_to_server",
    "serving.front.grpc.registration.add_inference_to_server",
    "serving.front.grpc.registration.add_health_to_server",
    "serving.front.grpc.registration.add_reflection_to_server",
    "serving.front.grpc.registration.add_reflection_v1_to_server",
)
"""What `serve` needs to know to open the gRPC port; deploy/serve-config.yaml repeats them."""

_GATEWAY_STREAMS = 64
"""Gateways that may have a stream to one replica open, or ping it."""


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How the replicas of one shape are run."""

    node: type
    router: type
    max_ongoing: Callable[[Any], int]
    """Of its options: calls that Ray lets into one replica."""
    stop_s: Callable[[ResolvedConfig], float]
    """What a replica that is asked to stop has left for what it holds."""
    health_timeout_s: float = 10.0
    reports_work: bool = True


def _drain_s(config: ResolvedConfig) -> float:
    return config.settings.drain_s + config.settings.gateway.default_deadline_s


_CALLED = _Kind(
    node=Classifier,
    router=LeastWorkRouter,
    max_ongoing=lambda options: options.max_ongoing_calls,
    # A replica that hangs is found after three checks and killed after this long: what it held is then sent to
    # another, and both together must fit into a request's default deadline.
    stop_s=lambda _config: 8.0,
    health_timeout_s=4.0,
)
_KINDS: Mapping[Shape, _Kind] = {
    "unary": _CALLED,
    "staged": _CALLED,
    "stream": _Kind(
        node=Vlm,
        router=AffinityRouter,
        # The replica bounds itself and answers with a typed error; every gateway has a stream here besides.
        max_ongoing=lambda options: 2 * (options.max_num_seqs + options.max_queue) + _GATEWAY_STREAMS,
        stop_s=_drain_s,
    ),
    "job": _Kind(
        node=JobReplica,
        router=PlainRouter,
        max_ongoing=lambda _options: _GATEWAY_STREAMS,  # work is pulled, not sent: all calls are pings
        stop_s=lambda config: max(config.settings.drain_s, 20.0),  # jobs go back into the queue at their next step
        reports_work=False,
    ),
}


def build_app(args: Mapping[str, Any]) -> Application:
    """Entry point of ``serve deploy``: ``args`` are settings as in a configuration file, laid over VIREO_CONFIG and
    VIREO_SET, which hold what a Serve config must not (secrets) and what only the pod knows.

    Raises: ConfigError: see ``serving.config``.
    """
    return build_graph(resolve(load(args=args)))


def build_graph(config: ResolvedConfig) -> Application:
    """The graph of a resolved configuration."""
    handles = {model.id: _inner(model, config) for model in config.models}
    gateway = config.settings.gateway
    deployment = serve.deployment(
        name=GATEWAY,
        num_replicas=gateway.replicas,
        # The gateway bounds itself and answers 429 with a typed body; Ray's own bound must lie above.
        max_ongoing_requests=4 * gateway.max_in_flight,
        graceful_shutdown_timeout_s=_drain_s(config),
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        ray_actor_options={"num_cpus": gateway.cpus, "runtime_env": {"env_vars": _environment(config, 1)}},
    )(Gateway)
    return deployment.bind(config, handles)


def _inner(model: ResolvedModel[Any], config: ResolvedConfig) -> Application:
    kind = _KINDS[model.shape]
    env = _environment(config, model.threads)
    if isinstance(model.options, StreamOptions) and model.options.engine == "vllm":
        env |= engine_environment(config.run_dir, model.device)
    resources: dict[str, Any] = {"num_cpus": model.cpus}
    bundle = {"CPU": model.cpus}
    if model.gpus:
        resources["num_gpus"] = bundle["GPU"] = model.gpus
    reports = {"request_routing_stats_period_s": STATS_PERIOD_S, "request_routing_stats_timeout_s": 5.0}
    routing = {"request_router_class": kind.router, **(reports if kind.reports_work else {})}
    deployment = serve.deployment(
        name=model.id,
        num_replicas=model.replicas,
        max_ongoing_requests=kind.max_ongoing(model.options),
        graceful_shutdown_timeout_s=kind.stop_s(config),
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=1.0,
        health_check_timeout_s=kind.health_timeout_s,
        ray_actor_options={**resources, "runtime_env": {"env_vars": env}},
        request_router_config=RequestRouterConfig(**cast(Any, routing)),
        # A call carries work of several requests; the requests themselves are in the gateway's access log.
        logging_config={"enable_access_log": False},
    )(kind.node)
    if model.num_ranks > 1:
        # One replica is one placement group: itself in the first bundle, an actor for each further rank.
        bundles = [bundle] * model.num_ranks
        deployment = deployment.options(placement_group_bundles=bundles, placement_group_strategy="PACK")
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
