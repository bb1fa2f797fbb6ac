"""Turns what happens to images on their way to a model into metrics."""

from __future__ import annotations

from serving.telemetry import metrics


class MediaMetrics:
    """A ``MediaObserver`` that counts."""

    def image_fetched(self, outcome: str, num_bytes: int, elapsed_s: float) -> None:
        """Count by outcome, and time every fetch."""
        metrics.IMAGE_FETCHES.labels(outcome).inc()
        metrics.IMAGE_FETCH_BYTES.inc(num_bytes)
        metrics.IMAGE_FETCH_SECONDS.observe(elapsed_s)

    def image_decoded(self, tenant: str, seconds: float) -> None:
        """Add the seconds up."""
        metrics.DECODE_SECONDS.labels(tenant).inc(seconds)

    def image_looked_up(self, model: str, is_hit: bool) -> None:
        """Count hits and misses."""
        metrics.PROCESSED_IMAGE_LOOKUPS.labels(model, "hit" if is_hit else "miss").inc()

    def images_held(self, num_bytes: int) -> None:
        """Show how full the cache is."""
        metrics.PROCESSED_IMAGE_BYTES.set(num_bytes)
