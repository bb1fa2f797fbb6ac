"""Every metric of Vireo: its name, and the events that it is made of. docs/architecture.md says more to operators."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Self

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from serving.telemetry import events

SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
LONG_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0)
SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
EXPERTS: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)
TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096)
COST_RATIOS: Final = (0.25, 0.5, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 8.0)
SHARES: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_CONFIRMED: Final = {True: "confirmed", False: "cleared", None: "open"}
_BREAKER_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}

_RECORDERS: defaultdict[type[events.Event], list[Callable[[Any], None]]] = defaultdict(list)


def record(event: events.Event) -> None:
    """The ``Sink`` that counts."""
    for recorder in _RECORDERS[type(event)]:
        recorder(event)


def recorded_events() -> set[type[events.Event]]:
    """Kinds of events that some metric is made of."""
    return {kind for kind, recorders in _RECORDERS.items() if recorders}


class _Series:
    """A metric, while it is told what feeds it. Its labels are fields of the events, unless a text is given for one, or
    what works it out."""

    def __init__(self, metric: MetricWrapperBase, labels: Sequence[str], act: str) -> None:
        self._metric = metric
        self._labels = labels
        self._act = act
        self._known: dict[tuple[str, ...], Callable[[float], None]] = {}

    def on(
        self,
        kind: type[events.Event],
        value: float | str | Callable[[Any], float] = 1,
        /,
        *,
        when: Callable[[Any], bool] | None = None,
        **labels: str | Callable[[Any], str],
    ) -> Self:
        """Take note of ``value``, a number, a field or worked out, with each event of a kind, or only ``when`` so."""
        read_value = attrgetter(value) if isinstance(value, str) else value
        read_labels = [labels.get(name) or attrgetter(name) for name in self._labels]

        def recorder(event: Any) -> None:
            if when is None or when(event):
                texts = tuple([read if isinstance(read, str) else read(event) for read in read_labels])
                self._of(texts)(read_value(event) if callable(read_value) else read_value)

        _RECORDERS[kind].append(recorder)
        return self

    def on_each(self, kind: type[events.Event], pairs: Callable[[Any], Iterable[tuple[str, float]]]) -> Self:
        """Of an event that says several things at once: the last label and the value of each."""
        read_labels = [attrgetter(name) for name in self._labels[:-1]]

        def recorder(event: Any) -> None:
            texts = [read(event) for read in read_labels]
            for last, value in pairs(event):
                self._of((*texts, last))(value)

        _RECORDERS[kind].append(recorder)
        return self

    def _of(self, labels: tuple[str, ...]) -> Callable[[float], None]:
        """What counts for those labels, without the lock that ``labels`` takes each time."""
        act = self._known.get(labels)
        if act is None:
            child = self._metric.labels(*labels) if labels else self._metric
            act = self._known[labels] = getattr(child, self._act)
        return act


def _counter(name: str, text: str, *labels: str) -> _Series:
    return _Series(Counter(name, text, labels), labels, "inc")


def _histogram(name: str, text: str, *labels: str, buckets: Sequence[float]) -> _Series:
    return _Series(Histogram(name, text, labels, buckets=buckets), labels, "observe")


def _gauge(name: str, text: str, *labels: str, mode: Any = "livesum", act: str = "set") -> _Series:
    return _Series(Gauge(name, text, labels, multiprocess_mode=mode), labels, act)


def _grown(name: str) -> Callable[[events.ChatEngineCounted], float]:
    """Counters of an engine only grow; those of one that starts anew begin at 0 again."""
    read = attrgetter(name)
    return lambda event: max(0, read(event.now) - read(event.before))


class _Few:
    """Of a label that callers can make up: the first of its values are told apart, all later ones are ``other``."""

    def __init__(self, name: str, most: int = 100) -> None:
        self._read = attrgetter(name)
        self._most = most
        self._seen: set[str] = set()

    def __call__(self, event: Any) -> str:
        text: str = self._read(event)
        if text not in self._seen:
            if len(self._seen) >= self._most:
                return "other"
            self._seen.add(text)
        return text


# -- front door ------------------------------------------------------------------------------------------------------

_gauge("vireo_in_flight_requests", "Requests being served.", "surface", act="inc").on(events.CallStarted).on(
    events.CallFinished, -1
)
_counter("vireo_requests_total", "Requests answered.", "surface", "model", "tenant", "outcome").on(events.CallFinished)
_histogram(
    "vireo_request_seconds", "From the first byte parsed to the answer.", "surface", "model", buckets=SECONDS
).on(events.CallFinished, "seconds")
_counter(
    "vireo_request_time_seconds_total", "Seconds of requests: answered (in part, too), failed.", "model", "result"
).on(
    events.CallFinished,
    "seconds",
    result=lambda event: "answered" if event.outcome in (events.OK, events.PARTIAL) else "failed",
)
_gauge("vireo_last_answer_timestamp_seconds", "Unix time of the last request answered.", "model", mode="max").on(
    events.CallFinished, lambda _: time.time(), when=lambda event: event.outcome in (events.OK, events.PARTIAL)
)
_counter("vireo_rejections_total", "Requests or images turned away, by error code.", "reason").on(
    events.CallFinished,
    when=lambda event: event.outcome not in (events.OK, events.PARTIAL),
    reason=attrgetter("outcome"),
)

# -- images ----------------------------------------------------------------------------------------------------------

_counter("vireo_image_fetches_total", "Image URLs fetched (ok), or refused by error code.", "outcome").on(
    events.ImageFetched
)
_counter("vireo_image_fetch_bytes_total", "Bytes of images fetched from URLs.").on(events.ImageFetched, "num_bytes")
_histogram("vireo_image_fetch_seconds", "Seconds of a fetch, waiting included.", buckets=SECONDS).on(
    events.ImageFetched, "seconds"
)
_counter("vireo_decode_seconds_total", "Seconds of decoding, charged to the tenant.", "tenant").on(
    events.ImageDecoded, "seconds"
)
_counter("vireo_processed_image_lookups_total", "Processed images in the gateway: hit, miss.", "model", "outcome").on(
    events.ImageLookedUp, outcome=lambda event: "hit" if event.is_hit else "miss"
)
_gauge("vireo_processed_image_bytes", "Bytes of processed images held by gateways.").on(events.ImagesHeld, "num_bytes")

# -- stores ----------------------------------------------------------------------------------------------------------

_gauge("vireo_breaker_state", "Circuit breaker: 0 closed, 1 half-open, 2 open.", "store", mode="livemax").on(
    events.BreakerChanged, lambda event: _BREAKER_STATES[event.state.value], store="redis"
)
_histogram("vireo_store_seconds", "Seconds of a call on Redis.", "operation", buckets=SECONDS).on(
    events.StoreCalled, "seconds"
)
_counter("vireo_store_errors_total", "Failed store operations.", "store", "reason").on(
    events.StoreCalled, when=lambda event: event.outcome != events.OK, store="redis", reason=attrgetter("outcome")
)
_cache_lookups = _counter(
    "vireo_cache_lookups_total", "Exact-result cache: hit, miss, corrupt, unavailable.", "outcome"
)
_cache_lookups.on(events.ResultsLookedUp, "num_hits", outcome="hit").on(
    events.ResultsLookedUp, "num_misses", outcome="miss"
)
_cache_lookups.on(events.ResultRejected, outcome="corrupt").on(events.StoreFellBack, outcome="unavailable")
_counter("vireo_bucket_repairs_total", "Buckets in Redis that held what no bucket can.", "tenant").on(
    events.BucketRepaired
)
_gauge("vireo_unsettled_requests", "Settlements that wait for Redis to come back.").on(
    events.SettlementsWaiting, "num_waiting"
)

# -- deliveries ------------------------------------------------------------------------------------------------------

_histogram("vireo_replica_call_images", "Images per call from a gateway to a replica.", "model", buckets=SIZES).on(
    events.SamplesSent, "num_samples"
)
_counter("vireo_replica_retries_total", "Calls sent again because a replica was lost.", "model").on(events.CallRetried)
_counter("vireo_shared_results_total", "Results that were given to an equal request under way, too.", "model").on(
    events.ResultShared
)
_counter("vireo_degraded_total", "Answers reduced to meet a budget or the load.", "model", "reason").on_each(
    events.RowsAnswered, lambda event: [(reason, 1) for reason in event.budget_degraded]
).on_each(events.ChatAnswered, lambda event: [(reason, 1) for reason in event.report.degraded]).on_each(
    events.JobCompleted, lambda event: [(reason, 1) for reason in event.degraded]
).on(events.SampleAnswered, when=lambda event: event.degraded, reason="deadline")
_gauge("vireo_bending_state", "How far quality bends under load: 0 (not) to 4.", "model", mode="livemax").on(
    events.BendingChanged, "level"
)
_counter(
    "vireo_lowered_points_total", "Requests planned below their best point: latency, energy, quality, load.", "model",
    "tenant", "reason",
).on_each(events.PointsLowered, lambda event: [(reason, 1) for reason in event.reasons])  # fmt: skip

# -- energy: metered = idle + elsewhere + requests (vireo_energy_joules_total) + carried -------------------------------

_counter(
    "vireo_energy_joules_total", "Joules attributed to requests and charged.", "model", "tenant", "point", "source"
).on(events.EnergySpent, "joules", point=_Few("point"))
_counter("vireo_energy_metered_joules_total", "Joules that the meters of replicas counted.", "model", "source").on(
    events.EnergyMetered, "metered_j"
)
_counter("vireo_energy_idle_joules_total", "Joules of replicas at rest, measured apart.", "model", "source").on(
    events.EnergyMetered, "idle_j"
)
_counter(
    "vireo_energy_elsewhere_joules_total", "Metered joules of others on a shared counter, or of nobody.", "model",
    "source",
).on(events.EnergyMetered, "elsewhere_j")  # fmt: skip
_gauge("vireo_energy_carried_joules", "Metered joules of requests that none was told yet.", "model", "source").on(
    events.EnergyMetered, "carried_j"
)

# -- guard -----------------------------------------------------------------------------------------------------------

_counter(
    "vireo_guard_verdicts_total", "Watched chats: normal, watched, deprioritised, capped.", "model", "tenant", "mode",
    "action",
).on(events.ChatGuarded)  # fmt: skip
_counter("vireo_guard_reasons_total", "What spoke against watched chats, by layer.", "model", "reason").on_each(
    events.ChatGuarded, lambda event: [(reason, 1) for reason in event.reasons]
)
_histogram(
    "vireo_guard_screen_seconds", "Seconds to look at a picture, waiting included.", "model", buckets=SECONDS
).on(events.GuardScreened, "seconds")
_counter(
    "vireo_guard_confirmations_total", "Suspects looked at twice: confirmed, cleared, open.", "model", "outcome"
).on(events.GuardConfirmed, outcome=lambda event: _CONFIRMED[event.is_confirmed])
_counter("vireo_guard_probe_tokens_total", "Tokens of answers to changed copies, charged.", "model").on(
    events.GuardConfirmed, "probe_tokens"
)
_counter("vireo_guard_caught_total", "Pictures that were caught: kept in quarantine, lost.", "model", "outcome").on(
    events.GuardKept, outcome=lambda event: "kept" if event.is_kept else "lost"
)
_counter("vireo_guard_errors_total", "Layers of the guard that failed; requests went on without.", "layer").on(
    events.GuardFailed
)
_gauge(
    "vireo_guard_level_ratio", "Benign answers that may exceed their bound, as learnt; the largest of all gateways.",
    "model", "group", mode="livemax",
).on(events.GuardLevelMoved, "level")  # fmt: skip

# -- replicas --------------------------------------------------------------------------------------------------------

_histogram("vireo_queue_seconds", "Seconds a sample waited in its replica.", "model", buckets=SECONDS).on(
    events.SampleAnswered, "queue_s"
)
_histogram("vireo_compute_seconds", "A sample's share of the batches it was in.", "model", buckets=SECONDS).on(
    events.SampleAnswered, "compute_s"
)
_counter("vireo_exits_total", "Exit that answered, from 1.", "model", "exit").on(
    events.SampleAnswered, exit=lambda event: str(event.exit_index + 1)
)
_histogram("vireo_stage_batch_size", "Samples per engine call.", "model", "stage", buckets=SIZES).on(
    events.BatchRan, "size", stage=lambda event: str(event.stage + 1)
)
_histogram("vireo_cost_ratio", "Actual over predicted seconds of a batch.", "model", buckets=COST_RATIOS).on(
    events.BatchRan, lambda event: event.seconds / event.predicted_s, when=lambda event: event.predicted_s > 0
)

_of_stage: dict[str, Any] = {"kind": lambda event: f"stage_{event.stage + 1}"}
_counter("vireo_predicted_seconds_total", "Seconds that work was predicted to take.", "model", "kind").on(
    events.BatchRan, "predicted_s", when=lambda event: event.predicted_s > 0, **_of_stage
).on(events.WorkPriced, "predicted_s")
_counter("vireo_actual_seconds_total", "Seconds that the work took which was predicted.", "model", "kind").on(
    events.BatchRan, "seconds", when=lambda event: event.predicted_s > 0, **_of_stage
).on(events.WorkPriced, "actual_s")
_gauge(
    "vireo_cost_correction_ratio", "What prices are multiplied by, as learnt; the largest of all processes.", "model",
    "kind", mode="livemax",
).on(events.BatchRan, "correction", when=lambda event: event.predicted_s > 0, **_of_stage).on(
    events.WorkPriced, "correction", when=lambda event: event.correction is not None
)  # fmt: skip

# -- chat ------------------------------------------------------------------------------------------------------------

_histogram(
    "vireo_chat_first_token_seconds", "From a choice's arrival at its replica to its first token.", "model",
    buckets=SECONDS,
).on(events.FirstToken, "seconds")  # fmt: skip
_histogram(
    "vireo_chat_queue_seconds", "Seconds a choice waited in its replica for the engine.", "model", buckets=SECONDS
).on(events.FirstToken, "queue_s")
_histogram("vireo_chat_answer_tokens", "Tokens of an answer.", "model", buckets=TOKENS).on(
    events.ChoiceFinished, "num_tokens"
)
_histogram(
    "vireo_chat_inter_token_seconds", "Mean time between two tokens of an answer, per answer.", "model",
    buckets=SECONDS,
).on(
    events.ChoiceFinished,
    lambda event: event.answer_s / (event.num_tokens - 1),
    when=lambda event: event.num_tokens > 1,
)  # fmt: skip
_counter(
    "vireo_chat_ended_early_total", "Choices that ended without an answer: cancelled, or an error's code.", "model",
    "reason",
).on(events.ChoiceEndedEarly)  # fmt: skip
_counter("vireo_chat_answers_total", "Whole answers, by exact-result cache.", "model", "cache").on(
    events.ChatAnswered, cache=attrgetter("report.cache")
)
_usage = _counter(
    "vireo_chat_usage_tokens_total", "Tokens told to clients: prompt, image, cached, completion.", "model", "tenant",
    "kind",
)  # fmt: skip
_tokens = _counter(
    "vireo_chat_tokens_total", "Tokens of the engine: prefill (computed), decode, image.", "model", "kind"
)
for _kind in ("prompt", "image", "cached", "completion"):
    _usage.on(events.ChatAnswered, f"usage.{_kind}_tokens", kind=_kind)
for _kind in ("prefill", "decode", "image"):
    _tokens.on(events.ChatEngineCounted, _grown(f"{_kind}_tokens"), kind=_kind)
_counter("vireo_chat_retries_total", "Requests sent again because a replica was lost.", "model").on(events.ChatRetried)
_counter("vireo_chat_encoder_seconds_total", "Seconds in the vision tower.", "model").on(
    events.ChatEngineCounted, _grown("encoder_seconds")
)
_counter("vireo_chat_encoder_images_total", "Images through the vision tower.", "model").on(
    events.ChatEngineCounted, _grown("encoder_images")
)
_counter("vireo_chat_image_lookups_total", "Images that a replica held: hit, or not: miss.", "model", "outcome").on(
    events.ChatEngineCounted, _grown("image_cache_hits"), outcome="hit"
).on(events.ChatEngineCounted, _grown("image_cache_misses"), outcome="miss")
_counter("vireo_chat_preemptions_total", "Answers preempted because KV blocks ran out.", "model").on(
    events.ChatEngineCounted, _grown("preemptions")
)
_counter("vireo_chat_aborts_total", "Answers that the engine was told to give up.", "model").on(
    events.ChatEngineCounted, _grown("aborts")
)
_gauge("vireo_chat_kv_blocks", "Blocks of the KV cache: used, total.", "model", "kind").on(
    events.ChatEngineCounted, "now.kv_blocks_used", kind="used"
).on(events.ChatEngineCounted, "now.kv_blocks_total", kind="total")
_gauge("vireo_chat_engine_requests", "Choices in the engine: running, waiting.", "model", "state").on(
    events.ChatEngineCounted, "now.running", state="running"
).on(events.ChatEngineCounted, "now.waiting", state="waiting")

# -- jobs ------------------------------------------------------------------------------------------------------------

_counter("vireo_video_admitted_total", "Jobs admitted, by operating point.", "model", "tenant", "point").on(
    events.JobAdmitted, point=_Few("point")
)
_histogram(
    "vireo_video_predicted_seconds", "Engine seconds that an admitted job was expected to take.", "model",
    buckets=LONG_SECONDS,
).on(events.JobAdmitted, "predicted_s")  # fmt: skip
_histogram(
    "vireo_video_queue_seconds", "From a job's making to a replica's taking it.", "model", buckets=LONG_SECONDS
).on(events.JobClaimed, "queue_s")
_counter(
    "vireo_video_claims_total", "Jobs taken from the queue: first, again (a later attempt).", "model", "attempt"
).on(events.JobClaimed, attempt=lambda event: "first" if event.attempts <= 1 else "again")
_counter("vireo_video_steps_total", "Denoising steps, of all jobs.", "model").on(events.JobsStepped, "num_jobs")
_histogram("vireo_video_step_seconds", "Seconds of one denoising step of a batch.", "model", buckets=SECONDS).on(
    events.JobsStepped, "seconds"
)
_histogram("vireo_video_batch_size", "Jobs per denoising step.", "model", buckets=SIZES).on(
    events.JobsStepped, "num_jobs"
)
_counter("vireo_video_preemptions_total", "Jobs preempted by more urgent ones.", "model").on(events.JobPreempted)
_counter("vireo_video_leases_lost_total", "Jobs taken from a worker that was late.", "model").on(events.LeaseLost)
_histogram(
    "vireo_video_stage_seconds", "Seconds of a job's stages: text, denoise, decode, encode, search (part of denoise).",
    "model", "stage", buckets=LONG_SECONDS,
).on_each(events.JobCompleted, lambda event: event.stages_s.items())  # fmt: skip
_histogram(
    "vireo_video_skipped_attention_ratio", "Mean share of attention that a finished job skipped.", "model",
    buckets=SHARES,
).on(events.JobCompleted, "sparsity")  # fmt: skip
_counter("vireo_video_jobs_ended_total", "Jobs that are over: completed, or an error's code.", "model", "outcome").on(
    events.JobCompleted, outcome="completed"
).on(events.JobFailed, outcome=attrgetter("code"))
_gauge("vireo_video_jobs", "Jobs: held, queued.", "model", "state", mode="livemax").on(
    events.JobsCounted, "num_held", state="held"
).on(events.JobsCounted, "num_queued", state="queued")
_gauge("vireo_video_held_bytes", "Bytes of the jobs that replicas hold.", "model").on(events.JobsCounted, "held_bytes")

# -- experts ---------------------------------------------------------------------------------------------------------

_histogram(
    "vireo_moe_distinct_experts", "Experts of a layer that a slice woke, the mean of layers.", "model", buckets=EXPERTS
).on(events.ExpertsRan, "distinct")
_gauge(
    "vireo_moe_balancedness", "Mean over largest load of an expert in the last minute; phase: early, late steps.",
    "model", "phase", mode="livemin",
).on_each(events.ExpertsCounted, lambda event: event.balancedness.items())  # fmt: skip
_gauge(
    "vireo_moe_expert_load_ratio", "Busiest expert over the mean in the last minute, by first, middle, last layers.",
    "model", "layers", mode="livemax",
).on_each(events.ExpertsCounted, lambda event: event.load_ratios.items())  # fmt: skip
_gauge("vireo_moe_rank_balancedness", "Mean over largest load of a rank, of late.", "model", mode="livemin").on(
    events.ExpertsPlaced, "balancedness"
)
_gauge("vireo_moe_placement_version", "Version of the placement of experts on ranks.", "model", mode="livemax").on(
    events.ExpertsPlaced, "version"
)
_counter("vireo_moe_moves_total", "Slots that were given another expert.", "model").on(
    events.ExpertsPlaced, "num_moved"
)
