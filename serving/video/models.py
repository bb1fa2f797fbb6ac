"""What a gateway and a replica read of a video model before they serve it. Free of torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from models.vdit.spec import VideoModelSpec, get_video_spec
from schedulers.video_points import ClipCost, VideoPoint
from serving.config import VideoModelSettings
from serving.engines.video.limits import VideoLimits
from serving.errors import ConfigError
from serving.service import VideoModelCard
from serving.video.domain import AttentionKind
from serving.video.points import FILE_NAME, VideoPoints, VideoPointTable, load_table
from serving.video.resolve import ServedVideo

_WEIGHTS = "diffusion_pytorch_model"
_NO_WEIGHTS = ("0" * 64, 0)
_OPERATIONS_PER_S = {"cpu": 5e10, "cuda": 1.5e14}
"""Assumed of what runs an unmeasured model: one core, or one large GPU at half precision."""
_WATTS = {"cpu": 6.0, "cuda": 500.0}


def spec_of(model: VideoModelSettings) -> VideoModelSpec:
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
            f"video model {spec.id} has no weights here: set video_models[].checkpoint_dir to a folder with "
            "transformer (or teacher), vae and text_encoder, or serve without it (--set video_models=[])"
        )
    return folder


def read_card(model: VideoModelSettings, limits: VideoLimits, operating_points: tuple[str, ...]) -> VideoModelCard:
    """What clients may know.

    Raises: ConfigError: unknown id, or no weights.
    """
    spec = spec_of(model)
    sha256, created_s = _NO_WEIGHTS if model.engine == "fake" else weights_identity(checkpoint_of(spec))
    return VideoModelCard(
        id=spec.id,
        created_s=created_s,
        sizes=((spec.width, spec.height),),
        num_frames=spec.frame_counts,
        fps=spec.fps,
        max_steps=max(steps.max_steps for steps in limits.samplers.values()),
        samplers=tuple(limits.samplers),
        attention=tuple(kind.value for kind in AttentionKind),
        checkpoint_sha256=sha256,
        operating_points=operating_points,
    )


def read_served(model: VideoModelSettings) -> ServedVideo:
    """Everything that a gateway needs of one model.

    Raises: ConfigError: unknown id, no weights, or operating points of other weights.
    """
    spec = spec_of(model)
    limits = VideoLimits.of_model(spec)
    if model.engine == "fake":
        points = VideoPoints(table=_assumed_table(spec, "cpu"), limits=limits)
    else:
        folder = checkpoint_of(spec)
        samplers = {name: made for name, made in limits.samplers.items() if _is_there(folder, made.variant)}
        limits = replace(limits, samplers=samplers)
        is_measured = (folder / FILE_NAME).is_file()
        table = load_table(spec.id, folder) if is_measured else _assumed_table(spec, model.device)
        points = VideoPoints(table=table, limits=limits)
    return ServedVideo(
        card=read_card(model, limits, points.names), limits=limits, points=points, replicas=model.replicas
    )


def _assumed_table(spec: VideoModelSpec, device: str) -> VideoPointTable:
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
            watts=_WATTS[device],
            costs=tuple(_reckoned(spec, frames, _OPERATIONS_PER_S[device]) for frames in spec.frame_counts),
        )
        for name, made in spec.samplers.items()
    )
    return VideoPointTable(
        model=spec.id, weights_sha256="0" * 64, energy_source="estimate", device=f"{device}, reckoned", points=points
    )


def _reckoned(spec: VideoModelSpec, frames: int, operations_per_s: float) -> ClipCost:
    """From the multiplications of a step: projections and feed-forward (40 W^2 a token), attention (4 L W a token)."""
    tokens, width = spec.num_tokens(frames), spec.num_heads * spec.head_dim
    operations = 2 * spec.num_layers * tokens * (40 * width**2 + 4 * tokens * width)  # both branches of guidance
    step_s = max(1e-3, operations / operations_per_s)
    return ClipCost(width=spec.width, height=spec.height, num_frames=frames, step_s=step_s, fixed_s=10 * step_s)


def _is_there(folder: Path, variant: str) -> bool:
    """The teacher is always; its absence is an error of its own."""
    return variant == "teacher" or (folder / variant).is_dir()


def weights_identity(folder: Path) -> tuple[str, int]:
    """SHA-256 over all weights files of a checkpoint, in order of their paths, and when the youngest was made.

    Raises: ConfigError: there are none.
    """
    files = sorted(folder.glob(f"*/{_WEIGHTS}*")) + sorted(folder.glob("text_encoder/model*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} holds no {_WEIGHTS}.safetensors in any of its folders")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest(), int(max(path.stat().st_mtime for path in files))
