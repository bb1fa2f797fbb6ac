"""Durable jobs over gRPC, whatever they make."""

from __future__ import annotations

from vireo_pb.vireo.v1 import vireo_pb2

from serving.delivery.job.base import JobUpdate
from serving.front.front import clean


def message_from_update(update: JobUpdate, now_s: float) -> vireo_pb2.JobProgress:
    """Return how far the job is; ``now_s`` is Unix time."""
    job, finish_at_s = update.job, update.finish_at_s
    return vireo_pb2.JobProgress(
        stage=clean(job.stage),
        step=job.step,
        num_steps=job.num_steps,
        percent=job.progress,
        remaining_s=None if finish_at_s is None else max(0.0, finish_at_s - now_s),
        preview=update.preview or b"",
    )
