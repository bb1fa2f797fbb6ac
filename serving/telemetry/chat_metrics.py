"""Turns what chat replicas, their engines and the chat service do into metrics."""

from __future__ import annotations

from serving.domain import Report
from serving.replica.chat.base import EngineStats
from serving.tasks.chat.domain import Usage
from serving.telemetry import metrics


class HubMetrics:
    """A ``HubObserver`` that counts."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._first = metrics.CHAT_FIRST_TOKEN_SECONDS.labels(model)
        self._queue = metrics.CHAT_QUEUE_SECONDS.labels(model)
        self._between = metrics.CHAT_INTER_TOKEN_SECONDS.labels(model)
        self._tokens = metrics.CHAT_ANSWER_TOKENS.labels(model)

    def first_token(self, seconds: float, queue_s: float) -> None:
        """A choice has its first token."""
        self._first.observe(seconds)
        self._queue.observe(queue_s)

    def finished(self, num_tokens: int, answer_s: float) -> None:
        """A choice is complete."""
        self._tokens.observe(num_tokens)
        if num_tokens > 1:
            self._between.observe(answer_s / (num_tokens - 1))

    def ended_early(self, reason: str) -> None:
        """A choice has no answer."""
        metrics.CHAT_ENDED_EARLY.labels(self._model, reason).inc()


class EngineMetrics:
    """Shows an engine's counters, which only grow, and its gauges."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._last = EngineStats()

    def show(self, stats: EngineStats) -> None:
        """Bring the metrics up to ``stats``."""
        last, self._last = self._last, stats
        model = self._model
        metrics.CHAT_TOKENS.labels(model, "prefill").inc(max(0, stats.prefill_tokens - last.prefill_tokens))
        metrics.CHAT_TOKENS.labels(model, "decode").inc(max(0, stats.decode_tokens - last.decode_tokens))
        metrics.CHAT_TOKENS.labels(model, "image").inc(max(0, stats.image_tokens - last.image_tokens))
        metrics.CHAT_ENCODER_SECONDS.labels(model).inc(max(0.0, stats.encoder_seconds - last.encoder_seconds))
        metrics.CHAT_ENCODER_IMAGES.labels(model).inc(max(0, stats.encoder_images - last.encoder_images))
        metrics.CHAT_IMAGE_LOOKUPS.labels(model, "hit").inc(max(0, stats.image_cache_hits - last.image_cache_hits))
        metrics.CHAT_IMAGE_LOOKUPS.labels(model, "miss").inc(max(0, stats.image_cache_misses - last.image_cache_misses))
        metrics.CHAT_PREEMPTIONS.labels(model).inc(max(0, stats.preemptions - last.preemptions))
        metrics.CHAT_ABORTS.labels(model).inc(max(0, stats.aborts - last.aborts))
        metrics.CHAT_KV_BLOCKS.labels(model, "used").set(stats.kv_blocks_used)
        metrics.CHAT_KV_BLOCKS.labels(model, "total").set(stats.kv_blocks_total)
        metrics.CHAT_REQUESTS.labels(model, "running").set(stats.running)
        metrics.CHAT_REQUESTS.labels(model, "waiting").set(stats.waiting)


class ChatMetrics:
    """A ``ChatObserver`` that counts."""

    def answered(self, model: str, tenant: str, report: Report, usage: Usage) -> None:
        """Charge the joules, count the tokens."""
        metrics.CHAT_ANSWERS.labels(model, report.cache).inc()
        metrics.ENERGY_JOULES.labels(model, tenant, report.energy_source).inc(report.energy_j)
        for reason in report.degraded:
            metrics.DEGRADED.labels(model, reason).inc()
        metrics.CHAT_USAGE.labels(model, tenant, "prompt").inc(usage.prompt_tokens)
        metrics.CHAT_USAGE.labels(model, tenant, "image").inc(usage.image_tokens)
        metrics.CHAT_USAGE.labels(model, tenant, "cached").inc(usage.cached_tokens)
        metrics.CHAT_USAGE.labels(model, tenant, "completion").inc(usage.completion_tokens)

    def retried(self, model: str) -> None:
        """A request is sent again."""
        metrics.CHAT_RETRIES.labels(model).inc()
