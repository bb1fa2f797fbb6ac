"""From a folder's evaluation.json to the table of operating points beside it.

One point, of which the quality is known; what tokens cost is learnt while the model serves.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from models.contract import Family, Variant
from models.operating_points import TABLE_FILE, Point, round_off, share_quality
from models.training import calibration


def calibrate(family: Family, variant: Variant, *, watts: float = 6.0, **_ignored: object) -> Path:
    """Write the table. Returns its path.

    Raises: ValueError: no folder, or none that was evaluated.
    """
    if variant.weights is None:
        raise ValueError(f"{variant.id} has no weights here; name their folder: {variant.id}=FOLDER")
    try:
        report = msgspec.json.decode((variant.weights / "evaluation.json").read_bytes())
        counts = {task: (one["count"], one["right"]) for task, one in report["tasks"].items()}
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ValueError(f"no usable evaluation.json in {variant.weights} ({error}): evaluate it first") from None
    total = sum(count for count, _ in counts.values())
    right = sum(count * share for count, share in counts.values())
    calibration.write(
        variant,
        [Point(settings={}, seconds_per_unit={}, quality=share_quality(round_off(right / total), total))],
        hardware=calibration.hardware(torch.device("cpu")),
        watts=watts,
        metric="share of questions that are answered right",
        data={"source": "held-out pictures of each task", "seed": report.get("seed"), "tasks": sorted(counts)},
        note="not measured: what a token costs is learnt while serving",
    )
    return variant.weights / TABLE_FILE
