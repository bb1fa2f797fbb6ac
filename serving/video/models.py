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
from serving.video.points import VideoPoints, VideoPointTable, load_table
from serving.video.resolve import ServedVideo

_WEIGHTS = "diffusion_pytorch_model"
_NO_WEIGHTS = ("0" * 64, 0)


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
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"video model {spec.id} has no weights here: set video_models[].checkpoint_dir to a folder with "
            "transformer (or teacher), vae and text_encoder, or serve without it (--set video_models=[])"
        )
    return folder


def read_card(model: VideoModelSettings, operating_points: tuple[str, ...]) -> VideoModelCard:
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
        max_steps=max(steps.max_steps for steps in spec.samplers.values()),
        samplers=tuple(spec.samplers),
        attention=tuple(kind.value for kind in AttentionKind),
        checkpoint_sha256=sha256,
        operating_points=operating_points,
    )


def read_served(model: VideoModelSettings) -> ServedVideo:
    """Everything that a gateway needs of one model.

    Raises: ConfigError: unknown id, no weights, no operating points, or points of other weights.
    """
    spec = spec_of(model)
    limits = VideoLimits.of_model(spec)
    if model.engine == "fake":
        points = VideoPoints(table=_fake_table(spec), limits=limits)
    else:
        folder = checkpoint_of(spec)
        samplers = {name: made for name, made in limits.samplers.items() if _is_there(folder, made.variant)}
        limits = replace(limits, samplers=samplers)
        points = VideoPoints(table=load_table(spec.id, folder), limits=limits)
    return ServedVideo(card=read_card(model, points.names), limits=limits, points=points, replicas=model.replicas)


def _fake_table(spec: VideoModelSpec) -> VideoPointTable:
    """What an engine without a model is said to take: every sampler with its own number of steps, undiluted."""
    points = tuple(
        VideoPoint(
            name=f"{name}-{made.default_steps}",
            variant=made.variant,
            sampler=name,
            num_steps=made.default_steps,
            attention="dense",
            guidance_scale=spec.default_guidance,
            quality=1.0 if made.variant == "teacher" else 0.9,
            watts=1.0,
            costs=tuple(
                ClipCost(width=spec.width, height=spec.height, num_frames=frames, step_s=0.02, fixed_s=0.05)
                for frames in spec.frame_counts
            ),
        )
        for name, made in spec.samplers.items()
    )
    return VideoPointTable(
        model=spec.id, weights_sha256="0" * 64, energy_source="estimate", device="fake", points=points
    )


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
