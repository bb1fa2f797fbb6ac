"""Turns what a video worker does into metrics."""

from __future__ import annotations

from serving.replica.video.worker import HeldJob
from serving.telemetry import metrics


class VideoMetrics:
    """A ``WorkerObserver`` that counts."""

    def __init__(self, model: str, watts: float) -> None:
        self._model = model
        self._watts = watts

    def claimed(self, queue_s: float, attempts: int) -> None:
        """A job was taken from the queue."""
        metrics.VIDEO_QUEUE_SECONDS.labels(self._model).observe(queue_s)
        metrics.VIDEO_CLAIMS.labels(self._model, "first" if attempts <= 1 else "again").inc()

    def stepped(self, num_jobs: int, elapsed_s: float) -> None:
        """One step of a batch came back."""
        metrics.VIDEO_STEPS.labels(self._model).inc(num_jobs)
        metrics.VIDEO_STEP_SECONDS.labels(self._model).observe(elapsed_s)
        metrics.VIDEO_BATCH_SIZE.labels(self._model).observe(num_jobs)

    def preempted(self) -> None:
        """A job had to wait for a more urgent one."""
        metrics.VIDEO_PREEMPTIONS.labels(self._model).inc()

    def lease_lost(self) -> None:
        """Somebody else may work on it."""
        metrics.VIDEO_LEASES_LOST.labels(self._model).inc()

    def completed(self, held: HeldJob) -> None:
        """The clip is in the index."""
        seconds = {
            "text": held.text_s,
            "denoise": held.denoise_s,
            "decode": held.decode_s,
            "encode": held.encode_s,
            "search": held.search_s,
        }
        for stage, value in seconds.items():
            metrics.VIDEO_STAGE_SECONDS.labels(self._model, stage).observe(value)
        metrics.VIDEO_SPARSITY.labels(self._model).observe(held.sparsity)
        metrics.VIDEO_ENDED.labels(self._model, "completed").inc()
        joules = held.compute_s * self._watts
        metrics.ENERGY_JOULES.labels(self._model, held.job.owner, "estimate").inc(joules)

    def failed(self, code: str) -> None:
        """A job ended without a clip."""
        metrics.VIDEO_ENDED.labels(self._model, code).inc()

    def show(self, held_jobs: int, queued_jobs: int, held_bytes: int) -> None:
        """Bring the gauges up to date."""
        metrics.VIDEO_JOBS.labels(self._model, "held").set(held_jobs)
        metrics.VIDEO_JOBS.labels(self._model, "queued").set(queued_jobs)
        metrics.VIDEO_HELD_BYTES.labels(self._model).set(held_bytes)


class AdmissionMetrics:
    """A ``VideoObserver`` that counts jobs as gateways admit them."""

    def admitted(self, model: str, tenant: str, point: str, predicted_s: float) -> None:
        """A job is in the index."""
        metrics.VIDEO_ADMITTED.labels(model, tenant, point).inc()
        metrics.VIDEO_PREDICTED_SECONDS.labels(model).observe(predicted_s)
