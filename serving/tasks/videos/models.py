"""What a gateway and a replica read of a video model before they serve it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from models.families.vdit.spec import VideoModelSpec, get_video_spec
from schedulers.video_points import ClipCost, VideoPoint
from serving.config import JobOptions, ResolvedModel
from serving.errors import ConfigError
from serving.replica.video.limits import VideoLimits
from serving.service import VideoModelCard
from serving.tasks.videos.domain import AttentionKind
from serving.tasks.videos.points import (
    FILE_NAME,
    VideoPoints,
    VideoPointTable,
    load_table,
    weights_digest,
    youngest_s,
)
from serving.tasks.videos.resolve import ServedVideo

_NO_WEIGHTS = "0" * 64
_OPERATIONS_PER_S = {"cpu": 5e10, "cuda": 1.5e14}
"""Assumed of what runs an unmeasured model: one core, or one large GPU at half precision."""


def spec_of(model: ResolvedModel[JobOptions]) -> VideoModelSpec:
    """Registry entry of a served video model, with its checkpoint folder.

    Raises: ConfigError: unknown id.
    """
    try:
        spec = get_video_spec(model.id)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return spec.with_checkpoint(model.checkpoint_dir) if model.checkpoint_dir else spec


def checkpoint_of(spec: VideoModelSpec) -> Path:
    """The folder with its weights.

    Raises: ConfigError: there are none; the message says what to do.
    """
    folder = spec.checkpoint_dir
    if folder is None or not (folder / "vae").is_dir():
        raise ConfigError(
            f"video model {spec.id} has no weights here: set its checkpoint_dir to a folder with transformer "
            f"(or teacher), vae and text_encoder (--model {spec.id}=FOLDER), or leave it out of models"
        )
    return folder


def _card(spec: VideoModelSpec, points: VideoPoints, created_s: int) -> VideoModelCard:
    """What clients may know."""
    limits, table = points.limits, points.table
    return VideoModelCard(
        id=spec.id,
        created_s=created_s,
        sizes=((spec.width, spec.height),),
        num_frames=spec.frame_counts,
        fps=spec.fps,
        max_steps=max(steps.max_steps for steps in limits.samplers.values()),
        samplers=tuple(limits.samplers),
        attention=tuple(kind.value for kind in AttentionKind),
        checkpoint_sha256=table.weights_sha256,
        operating_points=points.names,
    )


def read_served(model: ResolvedModel[JobOptions]) -> ServedVideo:
    """Everything that a gateway needs of one model.

    Raises: ConfigError: unknown id, no weights, or operating points of other weights.
    """
    spec = spec_of(model)
    if model.options.engine == "fake":
        limits, created_s = VideoLimits.of_model(spec), 0
        table = _assumed_table(spec, model, limits, _NO_WEIGHTS)
    else:
        folder, limits = checkpoint_of(spec), VideoLimits.of_checkpoint(spec)
        created_s = _created_s(folder)
        table = (
            load_table(spec.id, folder)
            if (folder / FILE_NAME).is_file()
            else _assumed_table(spec, model, limits, weights_digest(folder))
        )
    points = VideoPoints(table=table, limits=limits)
    return ServedVideo(card=_card(spec, points, created_s), limits=limits, points=points, replicas=model.replicas)


def _created_s(folder: Path) -> int:
    """When the weights were made. Raises: ConfigError: there are none."""
    try:
        return youngest_s(folder)
    except ValueError as error:
        raise ConfigError(f"a video model cannot be served: {error}") from None


def _assumed_table(
    spec: VideoModelSpec, model: ResolvedModel[JobOptions], limits: VideoLimits, weights_sha256: str
) -> VideoPointTable:
    """Points of a checkpoint that nobody has measured: each sampler as published, at a cost reckoned from its size.

    Quality is then only an order (teachers before students), and predictions are rough: calibrate to be exact.
    """
    points = tuple(
        VideoPoint(
            name=f"{name}-{made.default_steps}",
            variant=made.variant,
            sampler=name,
            num_steps=made.default_steps,
            attention="dense",
            guidance_scale=spec.default_guidance if made.variant == "teacher" else 1.0,
            quality=1.0 if made.variant == "teacher" else 0.9,
            watts=model.watts,
            costs=tuple(_reckoned(spec, frames, _OPERATIONS_PER_S[model.device]) for frames in spec.frame_counts),
        )
        for name, made in limits.samplers.items()
    )
    return VideoPointTable(
        model=spec.id,
        weights_sha256=weights_sha256,
        energy_source="estimate",
        device=f"{model.device}, reckoned",
        points=points,
    )


def _reckoned(spec: VideoModelSpec, frames: int, operations_per_s: float) -> ClipCost:
    """From the multiplications of a step: projections and feed-forward (40 W^2 a token), attention (4 L W a token)."""
    tokens, width = spec.num_tokens(frames), spec.num_heads * spec.head_dim
    operations = 2 * spec.num_layers * tokens * (40 * width**2 + 4 * tokens * width)  # both branches of guidance
    step_s = max(1e-3, operations / operations_per_s)
    return ClipCost(width=spec.width, height=spec.height, num_frames=frames, step_s=step_s, fixed_s=10 * step_s)
