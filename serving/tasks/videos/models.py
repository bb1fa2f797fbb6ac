"""What a gateway and a replica read of a video model before they serve it. Free of torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from models.identity import checkpoint_sha256, weight_files
from models.io import ClipRequest
from models.operating_points import TABLE_FILE, point_name
from schedulers.plan import Cost, Point
from serving.config import JobOptions, ResolvedModel
from serving.delivery.job.base import JobModel, found_variant
from serving.errors import ConfigError
from serving.operating_points import load_table, planned_points
from serving.refusals import prompt_check, uncounted
from serving.service import Card, card_of
from serving.tasks.videos.limits import ClipLimits
from serving.tasks.videos.points import VideoPoints
from serving.tasks.videos.resolve import ClipPlanner

_NO_WEIGHTS = "0" * 64
_OPERATIONS_PER_S = {"cpu": 5e10, "cuda": 1.5e14}
"""Assumed of what runs an unmeasured model: one core, or one large GPU at half precision."""
_LEAST_STEP_S, _STEPS_OF_PIXELS = 1e-3, 10


def _card(served_as: str, points: VideoPoints, created_s: int, sha256: str, *, is_calibrated: bool) -> Card:
    """What clients may know."""
    limits = points.limits
    return card_of(
        limits.family,
        limits.variant,
        served_as=served_as,
        created_s=created_s,
        checkpoint_sha256=sha256,
        operating_points=points.names,
        is_calibrated=is_calibrated,
    )


def read_served(model: ResolvedModel[JobOptions]) -> JobModel:
    """Everything that a gateway needs of one model.

    Raises: ConfigError: unknown id, no weights, or operating points of other weights.
    """
    family, variant = found_variant(model)
    limits = ClipLimits(family=family, variant=variant, ranks=model.num_ranks)
    folder = None if model.options.engine == "fake" else limits.variant.weights
    sha256, created_s = (_NO_WEIGHTS, 0) if folder is None else _weights(folder)
    is_calibrated = folder is not None and (folder / TABLE_FILE).is_file()
    points = _measured_points(limits) if is_calibrated else _assumed_points(limits, model)
    planned = VideoPoints(points=points, limits=limits)
    card = _card(model.id, planned, created_s, sha256, is_calibrated=is_calibrated)
    check = uncounted if folder is None else prompt_check(family, variant)
    planner = ClipPlanner(card=card, limits=limits, points=planned, check_prompts=check)
    return JobModel(card=card, plan=planner, replicas=model.replicas)


def _weights(folder: Path) -> tuple[str, int]:
    """Their digest, and when the last of them was made. Raises: ConfigError: there are none."""
    try:
        return checkpoint_sha256(folder), int(max(path.stat().st_mtime for path in weight_files(folder)))
    except ValueError as error:
        raise ConfigError(f"a video model cannot be served: {error}") from None


def _assumed_points(limits: ClipLimits, model: ResolvedModel[JobOptions]) -> tuple[Point, ...]:
    """Points of a checkpoint that nobody has measured: each sampler as published, the default first, at a cost reckoned
    from its size: two operations for each multiply-accumulate, and as much as ten steps for text and pixels.

    Predictions are then rough, and no quality floor is met: calibrate to be exact.
    """
    io = limits.io
    settings = [
        limits.point(
            sampler=name,
            num_inference_steps=made.default_steps,
            guidance_scale=io.default_guidance if made.is_guided else 1.0,
        )
        for name, made in limits.samplers.items()
    ]
    units = limits.work(io.settled(ClipRequest(num_frames=io.frame_counts[-1])), settings[0]).units
    mac_s = 2 / _OPERATIONS_PER_S[model.device]
    prices = {"macs": mac_s, "slices": _LEAST_STEP_S}
    if units.get("pixels"):
        steps = next(iter(limits.samplers.values())).default_steps
        prices["pixels"] = mac_s * units.get("macs", 0.0) * _STEPS_OF_PIXELS / steps / units["pixels"]
    cost = Cost(latency_s=prices, busy_s=prices, watts=model.watts)
    return tuple(Point(name=point_name(made), settings=made, cost=cost) for made in settings)


def _measured_points(limits: ClipLimits) -> tuple[Point, ...]:
    """Those of the table, each with all settings: what a calibration leaves alone is at its default."""
    points = planned_points(load_table(limits.variant))
    return tuple(replace(point, settings=limits.family.check_point(point.settings)) for point in points)
