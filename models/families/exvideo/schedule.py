"""Which steps a clip takes: Karras' noise levels, of which a later start leaves out the first. Free of torch."""

from __future__ import annotations

from models.contract import Point, Variant

_RHO = 7.0
_SLACK = 1 + 1e-6
"""So that a start that is written as one of the levels begins there."""


def karras_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Noise levels from the highest down."""
    low, high = sigma_min ** (1 / _RHO), sigma_max ** (1 / _RHO)
    return [(high + step / max(1, num_steps - 1) * (low - high)) ** _RHO for step in range(num_steps)]


def levels(variant: Variant, point: Point) -> list[float]:
    """Noise levels of all steps, the first ones of a later start, too, and 0 at the end."""
    scheduler = variant.config["scheduler"]
    return [*karras_sigmas(int(point["num_inference_steps"]), scheduler["sigma_min"], scheduler["sigma_max"]), 0.0]


def first_step(variant: Variant, point: Point) -> int:
    """The first step that is taken: that of the highest level not above ``start_sigma``, or else the last."""
    sigmas, start = levels(variant, point)[:-1], float(point["start_sigma"]) * _SLACK
    return next((step for step, sigma in enumerate(sigmas) if sigma <= start), len(sigmas) - 1)


def starts_late(variant: Variant, point: Point) -> bool:
    """Whether it begins below the level that the network was trained to begin at."""
    return float(point["start_sigma"]) < float(variant.config["scheduler"]["sigma_max"])
