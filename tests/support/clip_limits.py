"""Limits of video checkpoints that do not exist: vdit's knobs, other sizes and lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.contract import Variant
from models.io import ClipIO, SamplerRange
from models.registry import find
from serving.tasks.videos.limits import ClipLimits

SAMPLERS = {
    "euler_ancestral": SamplerRange(weights="teacher", min_steps=1, max_steps=100, default_steps=50),
    "ddim": SamplerRange(weights="teacher", min_steps=1, max_steps=100, default_steps=20),
    "consistency": SamplerRange(weights="student", min_steps=4, max_steps=8, default_steps=4, multiple=4),
}


def clip_limits(config: dict[str, Any] | None = None, **io: Any) -> ClipLimits:
    """``config`` and ``io``: what differs from the nano model, and 64x64, 29 or 93 frames."""
    family, nano = find("vdit-nano")
    fields: dict[str, Any] = {
        "width": 64, "height": 64, "frame_counts": (29, 93), "fps": 8, "samplers": SAMPLERS, "default_guidance": 3.0,
        "max_prompt_chars": 4096, "max_text_tokens": 12, **io,
    }  # fmt: skip
    variant: Variant = replace(nano, io=ClipIO(**fields), config={**nano.config, **(config or {})}, weights=None)
    return ClipLimits(family=family, variant=variant)
