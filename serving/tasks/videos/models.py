"""What a gateway and a replica read of a video model before they serve it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from models.io import ClipRequest
from schedulers.video_points import ClipCost, VideoPoint
from serving.config import JobOptions, ResolvedModel
from serving.delivery.job.base import JobModel, found_variant
from serving.errors import ConfigError
from serving.service import Card, card_of
from serving.tasks.videos.limits import ClipLimits
from serving.tasks.videos.points import (
    FILE_NAME,
    VideoPoints,
    VideoPointTable,
    load_table,
    weights_digest,
    youngest_s,
)
from serving.tasks.videos.resolve import ClipPlanner

_NO_WEIGHTS = "0" * 64
_OPERATIONS_PER_S = {"cpu": 5e10, "cuda": 1.5e14}
"""Assumed of what runs an unmeasured model: one core, or one large GPU at half precision."""


def _card(points: VideoPoints, created_s: int, *, is_calibrated: bool) -> Card:
    """What clients may know."""
    limits, table = points.limits, points.table
    return card_of(
        limits.family,
        limits.variant,
        created_s=created_s,
        checkpoint_sha256=table.weights_sha256,
        operating_points=points.names,
        is_calibrated=is_calibrated,
    )


def read_served(model: ResolvedModel[JobOptions]) -> JobModel:
    """Everything that a gateway needs of one model.

    Raises: ConfigError: unknown id, no weights, or operating points of other weights.
    """
    family, variant = found_variant(model)
    limits = ClipLimits(family=family, variant=variant)
    folder = None if model.options.engine == "fake" else limits.variant.weights
    created_s = 0 if folder is None else _created_s(folder)
    is_calibrated = folder is not None and (folder / FILE_NAME).is_file()
    if folder is not None and is_calibrated:
        table = load_table(limits.variant.id, folder)
    else:
        table = _assumed_table(limits, model, _NO_WEIGHTS if folder is None else weights_digest(folder))
    points = VideoPoints(table=table, limits=limits)
    card = _card(points, created_s, is_calibrated=is_calibrated)
    return JobModel(card=card, plan=ClipPlanner(card=card, limits=limits, points=points), replicas=model.replicas)


def _created_s(folder: Path) -> int:
    """When the weights were made. Raises: ConfigError: there are none."""
    try:
        return youngest_s(folder)
    except ValueError as error:
        raise ConfigError(f"a video model cannot be served: {error}") from None


def _assumed_table(limits: ClipLimits, model: ResolvedModel[JobOptions], weights_sha256: str) -> VideoPointTable:
    """Points of a checkpoint that nobody has measured: each sampler as published, at a cost reckoned from its size.

    Quality is then only an order (guided weights before students), and predictions are rough: calibrate to be exact.
    """
    io, operations_per_s = limits.io, _OPERATIONS_PER_S[model.device]
    points = tuple(
        VideoPoint(
            name=f"{name}-{made.default_steps}",
            variant=made.weights,
            sampler=name,
            num_steps=made.default_steps,
            attention="dense",
            guidance_scale=io.default_guidance if made.is_guided else 1.0,
            quality=1.0 if made.is_guided else 0.9,
            watts=model.watts,
            costs=tuple(_reckoned(limits, frames, operations_per_s) for frames in io.frame_counts),
        )
        for name, made in limits.samplers.items()
    )
    return VideoPointTable(
        model=limits.variant.id,
        weights_sha256=weights_sha256,
        energy_source="estimate",
        device=f"{model.device}, reckoned",
        points=points,
    )


def _reckoned(limits: ClipLimits, frames: int, operations_per_s: float) -> ClipCost:
    """From the multiply-accumulates of one guided step, two operations each."""
    io, clip = limits.io, ClipRequest(prompt="", num_frames=frames)
    point = limits.family.check_point({"num_inference_steps": 1, "guidance_scale": max(2.0, io.default_guidance)})
    step_s = max(1e-3, 2 * limits.work(clip, point).units["macs"] / operations_per_s)
    return ClipCost(width=io.width, height=io.height, num_frames=frames, step_s=step_s, fixed_s=10 * step_s)
