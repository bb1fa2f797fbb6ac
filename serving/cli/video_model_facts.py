"""What a user may want to know of a video model before serving it, from the registry and its folder. Free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from models.contract import Variant
from serving.errors import ConfigError
from serving.tasks.videos.points import VideoPointTable, load_table


def weights_of(variant: Variant) -> str:
    """Whether there are any."""
    folder = variant.weights
    return "included" if folder is not None and (folder / "vae").is_dir() else "yours to bring"


def lines_of(variant: Variant) -> list[str]:
    """For a terminal."""
    io = variant.io
    samplers = ", ".join(
        f"{name} ({made.weights}, {made.min_steps} to {made.max_steps} steps)" for name, made in io.samplers.items()
    )
    tokens = ", ".join(f"{frames} frames: {io.num_tokens(frames):,} tokens" for frames in io.frame_counts)
    lines = [
        f"weights: {weights_of(variant)}" + (f" ({variant.weights})" if variant.weights else ""),
        f"clips: {io.width}x{io.height} at {io.fps} frames a second; {tokens}",
        f"samplers: {samplers}",
        f"guidance: {io.default_guidance:g}, at most {io.max_guidance:g}; prompts of {io.max_text_tokens} tokens",
    ]
    table = _table(variant)
    for point in table.points if table else ():
        cost = point.costs[0]
        lines.append(
            f"  {point.name:<24} quality {point.quality:.3f}  "
            f"{point.seconds(cost.width, cost.height, cost.num_frames):7.2f} s  {point.attention}"
        )
    return lines


def as_json(variant: Variant) -> str:
    """For a program."""
    io = variant.io
    facts: dict[str, Any] = {
        "id": variant.id,
        "summary": variant.summary,
        "width": io.width,
        "height": io.height,
        "fps": io.fps,
        "frame_counts": io.frame_counts,
        "samplers": {name: asdict(made) for name, made in io.samplers.items()},
        "weights": weights_of(variant),
        "checkpoint_dir": str(variant.weights) if variant.weights else None,
    }
    return json.dumps(facts, indent=1)


def _table(variant: Variant) -> VideoPointTable | None:
    """None where there are no points, or none that can be used; serving says why."""
    if variant.weights is None:
        return None
    try:
        return load_table(variant.id, variant.weights)
    except ConfigError:
        return None
