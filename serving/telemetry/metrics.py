"""Every metric of Vireo, by name. docs/architecture.md lists them for operators.

Gateways and replicas are separate processes. prometheus-client's multiprocess mode lets each write its own files into
one directory per node. Any gateway of the node adds them up for ``/metrics``, and so does ``vireo metrics``, on a port
of its own (docs/decisions/0006).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
RATIOS = (0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)

REQUESTS = Counter("vireo_requests_total", "Requests answered.", ["surface", "model", "tenant", "outcome"])
REQUEST_SECONDS = Histogram(
    "vireo_request_seconds", "From the first byte parsed to the answer.", ["surface", "model"], buckets=SECONDS
)
QUEUE_SECONDS = Histogram("vireo_queue_seconds", "Seconds a sample waited in its replica.", ["model"], buckets=SECONDS)
COMPUTE_SECONDS = Histogram(
    "vireo_compute_seconds", "A sample's share of the batches it was in.", ["model"], buckets=SECONDS
)
STAGE_BATCH_SIZE = Histogram(
    "vireo_stage_batch_size", "Samples per engine call.", ["model", "stage"], buckets=BATCH_SIZES
)
EXITS = Counter("vireo_exits_total", "Exit that answered, from 1.", ["model", "exit"])
DEGRADED = Counter("vireo_degraded_total", "Answers reduced to meet a budget.", ["model", "reason"])
CACHE_LOOKUPS = Counter(
    "vireo_cache_lookups_total", "Exact-result cache: hit, miss, corrupt, unavailable.", ["outcome"]
)
COST_RATIO = Histogram("vireo_cost_ratio", "Actual over predicted seconds of a batch.", ["model"], buckets=RATIOS)
ENERGY_JOULES = Counter("vireo_energy_joules_total", "Joules attributed.", ["model", "tenant", "source"])
IN_FLIGHT = Gauge("vireo_in_flight_requests", "Requests being served.", ["surface"], multiprocess_mode="livesum")
BREAKER_STATE = Gauge(
    "vireo_breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.", ["store"], multiprocess_mode="livemax"
)
STORE_ERRORS = Counter("vireo_store_errors_total", "Failed store operations.", ["store", "reason"])
STORE_SECONDS = Histogram("vireo_store_seconds", "Seconds of a call on Redis.", ["operation"], buckets=SECONDS)
UNSETTLED = Gauge(
    "vireo_unsettled_requests", "Settlements that wait for Redis to come back.", multiprocess_mode="livesum"
)
SHARED_RESULTS = Counter(
    "vireo_shared_results_total", "Results that were given to an equal request under way, too.", ["model"]
)
REJECTIONS = Counter("vireo_rejections_total", "Requests or images turned away, by error code.", ["reason"])
RETRIES = Counter("vireo_replica_retries_total", "Calls sent again because a replica was lost.", ["model"])
REPLICA_CALLS = Histogram(
    "vireo_replica_call_images", "Images per call from a gateway to a replica.", ["model"], buckets=BATCH_SIZES
)
IMAGE_FETCHES = Counter("vireo_image_fetches_total", "Image URLs fetched (ok), or refused by error code.", ["outcome"])
IMAGE_FETCH_BYTES = Counter("vireo_image_fetch_bytes_total", "Bytes of images fetched from URLs.")
IMAGE_FETCH_SECONDS = Histogram("vireo_image_fetch_seconds", "Seconds of a fetch, waiting included.", buckets=SECONDS)
DECODE_SECONDS = Counter("vireo_decode_seconds_total", "Seconds of decoding, charged to the tenant.", ["tenant"])
PROCESSED_IMAGE_LOOKUPS = Counter(
    "vireo_processed_image_lookups_total", "Processed images in the gateway: hit, miss.", ["model", "outcome"]
)
PROCESSED_IMAGE_BYTES = Gauge(
    "vireo_processed_image_bytes", "Bytes of processed images held by gateways.", multiprocess_mode="livesum"
)

CHAT_FIRST_TOKEN_SECONDS = Histogram(
    "vireo_chat_first_token_seconds", "From a choice's arrival at its replica to its first token.", ["model"],
    buckets=SECONDS,
)  # fmt: skip
CHAT_QUEUE_SECONDS = Histogram(
    "vireo_chat_queue_seconds", "Seconds a choice waited in its replica for the engine.", ["model"], buckets=SECONDS
)
CHAT_INTER_TOKEN_SECONDS = Histogram(
    "vireo_chat_inter_token_seconds", "Mean time between two tokens of an answer, per answer.", ["model"],
    buckets=SECONDS,
)  # fmt: skip
CHAT_ANSWER_TOKENS = Histogram(
    "vireo_chat_answer_tokens", "Tokens of an answer.", ["model"], buckets=(1, 4, 16, 64, 256, 1024, 4096)
)
CHAT_ENDED_EARLY = Counter(
    "vireo_chat_ended_early_total", "Choices that ended without an answer: cancelled, or an error's code.",
    ["model", "reason"],
)  # fmt: skip
CHAT_TOKENS = Counter(
    "vireo_chat_tokens_total", "Tokens of the engine: prefill (computed), decode, image.", ["model", "kind"]
)
CHAT_ENCODER_SECONDS = Counter("vireo_chat_encoder_seconds_total", "Seconds in the vision tower.", ["model"])
CHAT_ENCODER_IMAGES = Counter("vireo_chat_encoder_images_total", "Images through the vision tower.", ["model"])
CHAT_IMAGE_LOOKUPS = Counter(
    "vireo_chat_image_lookups_total", "Images that a replica held: hit, or not: miss.", ["model", "outcome"]
)
CHAT_PREEMPTIONS = Counter("vireo_chat_preemptions_total", "Answers preempted because KV blocks ran out.", ["model"])
CHAT_ABORTS = Counter("vireo_chat_aborts_total", "Answers that the engine was told to give up.", ["model"])
CHAT_KV_BLOCKS = Gauge(
    "vireo_chat_kv_blocks", "Blocks of the KV cache: used, total.", ["model", "kind"], multiprocess_mode="livesum"
)
CHAT_REQUESTS = Gauge(
    "vireo_chat_engine_requests", "Choices in the engine: running, waiting.", ["model", "state"],
    multiprocess_mode="livesum",
)  # fmt: skip
CHAT_ANSWERS = Counter("vireo_chat_answers_total", "Whole answers, by exact-result cache.", ["model", "cache"])
CHAT_USAGE = Counter(
    "vireo_chat_usage_tokens_total", "Tokens told to clients: prompt, image, cached, completion.",
    ["model", "tenant", "kind"],
)  # fmt: skip
CHAT_RETRIES = Counter("vireo_chat_retries_total", "Requests sent again because a replica was lost.", ["model"])

LONG_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0)
VIDEO_STAGE_SECONDS = Histogram(
    "vireo_video_stage_seconds", "Seconds of a job's stages: text, denoise, decode, encode, search (part of denoise).",
    ["model", "stage"], buckets=LONG_SECONDS,
)  # fmt: skip
VIDEO_QUEUE_SECONDS = Histogram(
    "vireo_video_queue_seconds", "From a job's making to a replica's taking it.", ["model"], buckets=LONG_SECONDS
)
VIDEO_STEPS = Counter("vireo_video_steps_total", "Denoising steps, of all jobs.", ["model"])
VIDEO_STEP_SECONDS = Histogram(
    "vireo_video_step_seconds", "Seconds of one denoising step of a batch.", ["model"], buckets=SECONDS
)
VIDEO_BATCH_SIZE = Histogram("vireo_video_batch_size", "Jobs per denoising step.", ["model"], buckets=BATCH_SIZES)
VIDEO_SPARSITY = Histogram(
    "vireo_video_skipped_attention_ratio", "Mean share of attention that a finished job skipped.", ["model"],
    buckets=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)  # fmt: skip
VIDEO_HELD_BYTES = Gauge(
    "vireo_video_held_bytes", "Bytes of the jobs that replicas hold.", ["model"], multiprocess_mode="livesum"
)
VIDEO_JOBS = Gauge("vireo_video_jobs", "Jobs: held, queued.", ["model", "state"], multiprocess_mode="livemax")
VIDEO_CLAIMS = Counter(
    "vireo_video_claims_total", "Jobs taken from the queue: first, again (a later attempt).", ["model", "attempt"]
)
VIDEO_ADMITTED = Counter(
    "vireo_video_admitted_total", "Jobs admitted, by operating point.", ["model", "tenant", "point"]
)
VIDEO_PREDICTED_SECONDS = Histogram(
    "vireo_video_predicted_seconds", "Engine seconds that an admitted job was expected to take.", ["model"],
    buckets=LONG_SECONDS,
)  # fmt: skip
VIDEO_PREEMPTIONS = Counter("vireo_video_preemptions_total", "Jobs preempted by more urgent ones.", ["model"])
VIDEO_LEASES_LOST = Counter("vireo_video_leases_lost_total", "Jobs taken from a worker that was late.", ["model"])
VIDEO_ENDED = Counter(
    "vireo_video_jobs_ended_total", "Jobs that are over: completed, or an error's code.", ["model", "outcome"]
)


def exposition() -> bytes:
    """The metrics of every live process of this node, in Prometheus' text format."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return generate_latest()
    return generate_latest(node_registry(Path(folder)))


def node_registry(folder: Path) -> CollectorRegistry:
    """What adds up, at each scrape, the files of every process of a node."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(folder))
    return registry


class _NodeCollector(Collector):
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known when it is collected."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Every metric, with the gauges of dead processes gone."""
        forget_dead_processes(self._folder)
        files = MultiProcessCollector(None, path=str(self._folder))  # type: ignore[no-untyped-call]
        found: Iterable[Metric] = files.collect()  # type: ignore[no-untyped-call]
        return found


def forget_dead_processes(folder: Path) -> None:
    """Drop the gauges of processes that have gone: a killed replica must not stay in flight for ever.

    Live ones, and those of which the most recent counts (vLLM's): nobody else may have set them since.
    """
    for path in (*folder.glob("gauge_live*.db"), *folder.glob("gauge_mostrecent_*.db")):
        if not _is_alive(int(path.stem.rsplit("_", 1)[1])):
            # Another gateway of this node may be doing the same.
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    """A killed process that its parent has not waited for yet is dead, too."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
