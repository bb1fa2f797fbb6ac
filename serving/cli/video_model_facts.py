"""What a user may want to know of a video model before serving it, from the registry and its folder. Free of torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from models.families.vdit.spec import VideoModelSpec
from serving.errors import ConfigError
from serving.tasks.videos.points import VideoPointTable, load_table


def weights_of(spec: VideoModelSpec) -> str:
    """Whether there are any."""
    folder = spec.checkpoint_dir
    return "included" if folder is not None and (folder / "vae").is_dir() else "yours to bring"


def lines_of(spec: VideoModelSpec) -> list[str]:
    """For a terminal."""
    samplers = ", ".join(
        f"{name} ({made.variant}, {made.min_steps} to {made.max_steps} steps)" for name, made in spec.samplers.items()
    )
    tokens = ", ".join(f"{frames} frames: {spec.num_tokens(frames):,} tokens" for frames in spec.frame_counts)
    lines = [
        f"weights: {weights_of(spec)}" + (f" ({spec.checkpoint_dir})" if spec.checkpoint_dir else ""),
        f"clips: {spec.width}x{spec.height} at {spec.fps} frames a second; {tokens}",
        f"samplers: {samplers}",
        f"guidance: {spec.default_guidance:g}, at most {spec.max_guidance:g}; prompts of {spec.max_text_tokens} tokens",
    ]
    table = _table(spec)
    for point in table.points if table else ():
        cost = point.costs[0]
        lines.append(
            f"  {point.name:<24} quality {point.quality:.3f}  "
            f"{point.seconds(cost.width, cost.height, cost.num_frames):7.2f} s  {point.attention}"
        )
    return lines


def as_json(spec: VideoModelSpec) -> str:
    """For a program."""
    facts: dict[str, Any] = {
        "id": spec.id,
        "summary": spec.summary,
        "width": spec.width,
        "height": spec.height,
        "fps": spec.fps,
        "frame_counts": spec.frame_counts,
        "samplers": {name: asdict(made) for name, made in spec.samplers.items()},
        "weights": weights_of(spec),
        "checkpoint_dir": str(spec.checkpoint_dir) if spec.checkpoint_dir else None,
    }
    return json.dumps(facts, indent=1)


def _table(spec: VideoModelSpec) -> VideoPointTable | None:
    """None where there are no points, or none that can be used; serving says why."""
    if spec.checkpoint_dir is None:
        return None
    try:
        return load_table(spec.id, spec.checkpoint_dir)
    except ConfigError:
        return None
