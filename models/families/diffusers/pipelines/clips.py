"""What pipelines that make clips have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.contract import Point
from models.families.diffusers.architecture import Configs
from models.io import ClipIO, ClipRequest


def clip_inputs(request: ClipRequest, point: Point) -> Mapping[str, Any]:
    """What their blocks are given of a request."""
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "num_frames": request.num_frames,
        "height": request.height,
        "width": request.width,
        "num_inference_steps": int(point["num_inference_steps"]),
    }


def latents_of_clips(configs: Configs, io: ClipIO, request: ClipRequest) -> tuple[int, ...]:
    """Shape of one clip's latents, (C, t, h, w)."""
    t, h, w = io.vae_stride
    return io.latent_channels, (request.num_frames - 1) // t + 1, request.height // h, request.width // w
