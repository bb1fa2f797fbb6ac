"""From a checkpoint's evaluation.json to the table of operating points beside it.

Quality of a point is the share of held-out prompts that its clips got right; costs are those measured by the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from models.contract import Family, Variant
from models.io import ClipIO
from schedulers.video_points import ClipCost, VideoPoint
from serving.errors import ConfigError
from serving.tasks.videos.points import VideoPointTable, weights_digest, write_table


def calibrate(family: Family, variant: Variant, watts: float) -> Path:
    """Write operating_points.json. Returns its path.

    Raises: ConfigError: no folder, or none that was evaluated.
    """
    evaluate = family.parts["evaluate"].target.partition(":")[0]
    remedy = f"run `python -m {evaluate}` on the folder of {variant.id} first"
    if variant.weights is None:
        raise ConfigError(f"{variant.id} has no checkpoint folder; give one with --checkpoint")
    try:
        report = msgspec.json.decode((variant.weights / "evaluation.json").read_bytes())
        points = _merged([_point(name, one, variant.io, watts) for name, one in report["settings"].items()])
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ConfigError(f"no usable evaluation.json in {variant.weights} ({error}): {remedy}") from None
    table = VideoPointTable(
        model=variant.id,
        weights_sha256=weights_digest(variant.weights),
        energy_source="estimate",
        device="cpu, 1 thread",
        points=points,
    )
    return write_table(variant.weights, table)


def _point(name: str, one: Mapping[str, Any], io: ClipIO, watts: float) -> VideoPoint:
    size = ClipCost(
        width=io.width, height=io.height, num_frames=one["frames"], step_s=one["step_s"], fixed_s=one["fixed_s"]
    )
    return VideoPoint(
        name="-".join(name.replace(",", "").replace(":", "-").split()),
        variant=one["variant"],
        sampler=one["sampler"],
        num_steps=one["num_steps"],
        attention=one["attention"],
        guidance_scale=one["guidance"],
        quality=one["one_object"]["right"],
        watts=watts,
        costs=(size,),
    )


def _merged(points: Sequence[VideoPoint]) -> tuple[VideoPoint, ...]:
    """One point for each setting: its lengths are costs of it, and the worst of them is its quality."""
    found: dict[tuple[object, ...], VideoPoint] = {}
    for point in points:
        key = (point.variant, point.sampler, point.num_steps, point.attention, point.guidance_scale)
        first = found.get(key)
        found[key] = (
            point
            if first is None
            else replace(first, quality=min(first.quality, point.quality), costs=(*first.costs, *point.costs))
        )
    return tuple(found.values())
