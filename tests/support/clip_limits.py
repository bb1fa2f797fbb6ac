"""Limits and points of video checkpoints that do not exist: vdit's knobs, other sizes and lengths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.contract import Value, Variant
from models.io import ClipIO, SamplerRange
from models.operating_points import point_name
from models.registry import find
from schedulers.plan import Cost, Point
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


def clip_point(
    steps: int,
    quality: float | None,
    *,
    step_s: float = 0.1,
    fixed_s: float = 1.0,
    sampler: str = "ddim",
    attention: str = "dense",
    guidance_scale: float = 4.0,
) -> Point:
    """Of a clip of 29 frames of 64x64: so many seconds a step, and so many besides; at 6 W."""
    settings: dict[str, Value] = {
        "attention": attention, "guidance_scale": guidance_scale, "num_inference_steps": steps, "sampler": sampler
    }  # fmt: skip
    prices = {"slices": step_s, "pixels": fixed_s / (64 * 64 * 29)}
    cost = Cost(latency_s=prices, busy_s=prices, watts=6.0)
    return Point(name=point_name(settings), settings=settings, cost=cost, quality=quality)
