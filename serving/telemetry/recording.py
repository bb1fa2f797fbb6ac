"""The sink that turns events into metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prometheus_client.metrics import MetricWrapperBase

from serving.telemetry import events, metrics

_BREAKER_STATES = {"closed": 0, "half_open": 1, "open": 2}
_STORE = "redis"
_Metric = TypeVar("_Metric", bound=MetricWrapperBase)
_children: dict[tuple[MetricWrapperBase, tuple[str, ...]], Any] = {}


def record(event: events.Event) -> None:
    """A ``Sink`` that counts."""
    recorder = RECORDERS.get(type(event))
    if recorder is not None:
        recorder(event)


def _of(metric: _Metric, *labels: str) -> _Metric:
    """The series of those labels, without the lock that ``labels`` takes."""
    child: _Metric | None = _children.get((metric, labels))
    if child is None:
        child = _children[metric, labels] = metric.labels(*labels)
    return child


# -- front door ------------------------------------------------------------------------------------------------------


def _call_started(event: events.CallStarted) -> None:
    _of(metrics.IN_FLIGHT, event.surface.value).inc()


def _call_finished(event: events.CallFinished) -> None:
    surface = event.surface.value
    _of(metrics.IN_FLIGHT, surface).dec()
    _of(metrics.REQUESTS, surface, event.model, event.tenant, event.outcome).inc()
    _of(metrics.REQUEST_SECONDS, surface, event.model).observe(event.seconds)
    if event.outcome not in (events.OK, events.PARTIAL):
        _of(metrics.REJECTIONS, event.outcome).inc()


# -- images ----------------------------------------------------------------------------------------------------------


def _image_fetched(event: events.ImageFetched) -> None:
    _of(metrics.IMAGE_FETCHES, event.outcome).inc()
    metrics.IMAGE_FETCH_BYTES.inc(event.num_bytes)
    metrics.IMAGE_FETCH_SECONDS.observe(event.seconds)


def _image_decoded(event: events.ImageDecoded) -> None:
    _of(metrics.DECODE_SECONDS, event.tenant).inc(event.seconds)


def _image_looked_up(event: events.ImageLookedUp) -> None:
    _of(metrics.PROCESSED_IMAGE_LOOKUPS, event.model, "hit" if event.is_hit else "miss").inc()


def _images_held(event: events.ImagesHeld) -> None:
    metrics.PROCESSED_IMAGE_BYTES.set(event.num_bytes)


# -- stores ----------------------------------------------------------------------------------------------------------


def _breaker_changed(event: events.BreakerChanged) -> None:
    _of(metrics.BREAKER_STATE, _STORE).set(_BREAKER_STATES[event.state.value])


def _results_looked_up(event: events.ResultsLookedUp) -> None:
    _of(metrics.CACHE_LOOKUPS, "hit").inc(event.num_hits)
    _of(metrics.CACHE_LOOKUPS, "miss").inc(event.num_misses)


def _store_called(event: events.StoreCalled) -> None:
    _of(metrics.STORE_SECONDS, event.operation).observe(event.seconds)
    if event.outcome != "ok":
        _of(metrics.STORE_ERRORS, _STORE, event.outcome).inc()


def _store_fell_back(_event: events.StoreFellBack) -> None:
    _of(metrics.CACHE_LOOKUPS, "unavailable").inc()


def _settlements_waiting(event: events.SettlementsWaiting) -> None:
    metrics.UNSETTLED.set(event.num_waiting)


def _result_rejected(_event: events.ResultRejected) -> None:
    _of(metrics.CACHE_LOOKUPS, "corrupt").inc()


# -- deliveries ------------------------------------------------------------------------------------------------------


def _samples_sent(event: events.SamplesSent) -> None:
    _of(metrics.REPLICA_CALLS, event.model).observe(event.num_samples)


def _call_retried(event: events.CallRetried) -> None:
    _of(metrics.RETRIES, event.model).inc()


def _result_shared(event: events.ResultShared) -> None:
    _of(metrics.SHARED_RESULTS, event.model).inc()


def _classify_answered(event: events.ClassifyAnswered) -> None:
    """Count an answer once for each part of its budget that cost it quality."""
    _of(metrics.ENERGY_JOULES, event.model, event.tenant, event.report.energy_source).inc(event.report.energy_j)
    for reason in event.budget_degraded:
        _of(metrics.DEGRADED, event.model, reason).inc()


def _chat_answered(event: events.ChatAnswered) -> None:
    model, tenant, report, usage = event.model, event.tenant, event.report, event.usage
    _of(metrics.CHAT_ANSWERS, model, report.cache).inc()
    _of(metrics.ENERGY_JOULES, model, tenant, report.energy_source).inc(report.energy_j)
    for reason in report.degraded:
        _of(metrics.DEGRADED, model, reason).inc()
    _of(metrics.CHAT_USAGE, model, tenant, "prompt").inc(usage.prompt_tokens)
    _of(metrics.CHAT_USAGE, model, tenant, "image").inc(usage.image_tokens)
    _of(metrics.CHAT_USAGE, model, tenant, "cached").inc(usage.cached_tokens)
    _of(metrics.CHAT_USAGE, model, tenant, "completion").inc(usage.completion_tokens)


def _chat_retried(event: events.ChatRetried) -> None:
    _of(metrics.CHAT_RETRIES, event.model).inc()


def _job_admitted(event: events.JobAdmitted) -> None:
    _of(metrics.VIDEO_ADMITTED, event.model, event.tenant, event.point).inc()
    _of(metrics.VIDEO_PREDICTED_SECONDS, event.model).observe(event.predicted_s)


# -- replicas --------------------------------------------------------------------------------------------------------


def _batch_ran(event: events.BatchRan) -> None:
    _of(metrics.STAGE_BATCH_SIZE, event.model, str(event.stage + 1)).observe(event.size)
    if event.predicted_s > 0:
        _of(metrics.COST_RATIO, event.model).observe(event.seconds / event.predicted_s)


def _sample_answered(event: events.SampleAnswered) -> None:
    _of(metrics.QUEUE_SECONDS, event.model).observe(event.queue_s)
    _of(metrics.COMPUTE_SECONDS, event.model).observe(event.compute_s)
    _of(metrics.EXITS, event.model, str(event.exit_index + 1)).inc()
    if event.degraded:
        _of(metrics.DEGRADED, event.model, "deadline").inc()


def _first_token(event: events.FirstToken) -> None:
    _of(metrics.CHAT_FIRST_TOKEN_SECONDS, event.model).observe(event.seconds)
    _of(metrics.CHAT_QUEUE_SECONDS, event.model).observe(event.queue_s)


def _choice_finished(event: events.ChoiceFinished) -> None:
    _of(metrics.CHAT_ANSWER_TOKENS, event.model).observe(event.num_tokens)
    if event.num_tokens > 1:
        _of(metrics.CHAT_INTER_TOKEN_SECONDS, event.model).observe(event.answer_s / (event.num_tokens - 1))


def _choice_ended_early(event: events.ChoiceEndedEarly) -> None:
    _of(metrics.CHAT_ENDED_EARLY, event.model, event.reason).inc()


def _chat_engine_counted(event: events.ChatEngineCounted) -> None:
    """Counters only grow; those of an engine that starts anew begin at 0 again."""
    model, now, before = event.model, event.now, event.before
    _of(metrics.CHAT_TOKENS, model, "prefill").inc(max(0, now.prefill_tokens - before.prefill_tokens))
    _of(metrics.CHAT_TOKENS, model, "decode").inc(max(0, now.decode_tokens - before.decode_tokens))
    _of(metrics.CHAT_TOKENS, model, "image").inc(max(0, now.image_tokens - before.image_tokens))
    _of(metrics.CHAT_ENCODER_SECONDS, model).inc(max(0.0, now.encoder_seconds - before.encoder_seconds))
    _of(metrics.CHAT_ENCODER_IMAGES, model).inc(max(0, now.encoder_images - before.encoder_images))
    _of(metrics.CHAT_IMAGE_LOOKUPS, model, "hit").inc(max(0, now.image_cache_hits - before.image_cache_hits))
    _of(metrics.CHAT_IMAGE_LOOKUPS, model, "miss").inc(max(0, now.image_cache_misses - before.image_cache_misses))
    _of(metrics.CHAT_PREEMPTIONS, model).inc(max(0, now.preemptions - before.preemptions))
    _of(metrics.CHAT_ABORTS, model).inc(max(0, now.aborts - before.aborts))
    _of(metrics.CHAT_KV_BLOCKS, model, "used").set(now.kv_blocks_used)
    _of(metrics.CHAT_KV_BLOCKS, model, "total").set(now.kv_blocks_total)
    _of(metrics.CHAT_REQUESTS, model, "running").set(now.running)
    _of(metrics.CHAT_REQUESTS, model, "waiting").set(now.waiting)


def _job_claimed(event: events.JobClaimed) -> None:
    _of(metrics.VIDEO_QUEUE_SECONDS, event.model).observe(event.queue_s)
    _of(metrics.VIDEO_CLAIMS, event.model, "first" if event.attempts <= 1 else "again").inc()


def _jobs_stepped(event: events.JobsStepped) -> None:
    _of(metrics.VIDEO_STEPS, event.model).inc(event.num_jobs)
    _of(metrics.VIDEO_STEP_SECONDS, event.model).observe(event.seconds)
    _of(metrics.VIDEO_BATCH_SIZE, event.model).observe(event.num_jobs)


def _job_preempted(event: events.JobPreempted) -> None:
    _of(metrics.VIDEO_PREEMPTIONS, event.model).inc()


def _lease_lost(event: events.LeaseLost) -> None:
    _of(metrics.VIDEO_LEASES_LOST, event.model).inc()


def _job_completed(event: events.JobCompleted) -> None:
    for stage, seconds in event.stages_s.items():
        _of(metrics.VIDEO_STAGE_SECONDS, event.model, stage).observe(seconds)
    _of(metrics.VIDEO_SPARSITY, event.model).observe(event.sparsity)
    _of(metrics.VIDEO_ENDED, event.model, "completed").inc()
    _of(metrics.ENERGY_JOULES, event.model, event.tenant, "estimate").inc(event.joules)


def _job_failed(event: events.JobFailed) -> None:
    _of(metrics.VIDEO_ENDED, event.model, event.code).inc()


def _jobs_counted(event: events.JobsCounted) -> None:
    _of(metrics.VIDEO_JOBS, event.model, "held").set(event.num_held)
    _of(metrics.VIDEO_JOBS, event.model, "queued").set(event.num_queued)
    _of(metrics.VIDEO_HELD_BYTES, event.model).set(event.held_bytes)


RECORDERS: dict[type[events.Event], Callable[[Any], None]] = {
    events.CallStarted: _call_started,
    events.CallFinished: _call_finished,
    events.ImageFetched: _image_fetched,
    events.ImageDecoded: _image_decoded,
    events.ImageLookedUp: _image_looked_up,
    events.ImagesHeld: _images_held,
    events.BreakerChanged: _breaker_changed,
    events.ResultsLookedUp: _results_looked_up,
    events.StoreCalled: _store_called,
    events.StoreFellBack: _store_fell_back,
    events.ResultRejected: _result_rejected,
    events.SettlementsWaiting: _settlements_waiting,
    events.ResultShared: _result_shared,
    events.SamplesSent: _samples_sent,
    events.CallRetried: _call_retried,
    events.ClassifyAnswered: _classify_answered,
    events.ChatAnswered: _chat_answered,
    events.ChatRetried: _chat_retried,
    events.JobAdmitted: _job_admitted,
    events.BatchRan: _batch_ran,
    events.SampleAnswered: _sample_answered,
    events.FirstToken: _first_token,
    events.ChoiceFinished: _choice_finished,
    events.ChoiceEndedEarly: _choice_ended_early,
    events.ChatEngineCounted: _chat_engine_counted,
    events.JobClaimed: _job_claimed,
    events.JobsStepped: _jobs_stepped,
    events.JobPreempted: _job_preempted,
    events.LeaseLost: _lease_lost,
    events.JobCompleted: _job_completed,
    events.JobFailed: _job_failed,
    events.JobsCounted: _jobs_counted,
}
