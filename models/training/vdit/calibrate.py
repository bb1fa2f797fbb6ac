"""From a folder's evaluation.json to the table of operating points beside it.

Quality of a point is the share of held-out prompts whose clips are right; times are those of the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from models.contract import Family, Value, Variant
from models.io import ClipRequest
from models.operating_points import TABLE_FILE, Hardware, Point, Quality, Seconds, round_off, share_quality
from models.training import calibration
from models.training.calibration import Ledger
from models.training.sweep import calibrate_job

_NOT_RECORDED = Hardware(cpu="not recorded", device="cpu", threads=1)


def calibrate(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    watts: float = 6.0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    **options: Any,
) -> Path:
    """Write the table. Returns its path. Of a folder that was not evaluated, see
    ``calibrate_job``.

    Raises: ValueError: an evaluation that cannot be used.
    """
    assert variant.weights is not None
    if not (variant.weights / "evaluation.json").is_file():
        return calibrate_job(family, variant, ledger=ledger, watts=watts, on_progress=on_progress, **options)
    try:
        report = msgspec.json.decode((variant.weights / "evaluation.json").read_bytes())
        hardware = msgspec.convert(report["hardware"], Hardware) if "hardware" in report else _NOT_RECORDED
        points = _points(family, variant, report["settings"])
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ValueError(
            f"no usable evaluation.json in {variant.weights} ({error}): "
            f"run `python -m models.training.vdit.evaluate {variant.weights}` again"
        ) from None
    calibration.write(
        variant,
        points,
        hardware=hardware,
        watts=watts,
        metric="share of clips of one object that show what the prompt says",
        data={"source": "held-out prompts, judged by the classifier in judge/", "seed": report.get("seed")},
    )
    on_progress("reading the evaluation", 1, 1)
    return variant.weights / TABLE_FILE


def _points(family: Family, variant: Variant, measured: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """One for each setting: what was measured of its lengths gives the costs, and the worst of them is its quality."""
    by_settings: dict[tuple[tuple[str, Value], ...], list[Mapping[str, Any]]] = {}
    for one in measured.values():
        settings: dict[str, Value] = {
            "sampler": one["sampler"],
            "num_inference_steps": one["num_steps"],
            "guidance_scale": float(one["guidance"]),
            "attention": one["attention"],
        }
        by_settings.setdefault(tuple(sorted(settings.items())), []).append(one)
    return [
        Point(
            settings=dict(settings),
            seconds_per_unit={
                unit: {1: price} for unit, price in _prices(family, variant, dict(settings), ones).items()
            },
            quality=min(map(_quality, ones), key=lambda quality: quality.low),
        )
        for settings, ones in by_settings.items()
    ]


def _quality(one: Mapping[str, Any]) -> Quality:
    return share_quality(round_off(one["one_object"]["right"]), one["one_object"]["count"])


def _prices(
    family: Family, variant: Variant, settings: Mapping[str, Value], ones: list[Mapping[str, Any]]
) -> dict[str, Seconds]:
    """Steps by their multiplications and, where two lengths were measured, a constant; the rest by its pixels."""
    assert family.work is not None
    count, steps, rest = family.work.load(), [], []
    for one in ones:
        units = count(variant, ClipRequest(prompt="", num_frames=one["frames"]), settings).units
        steps.append((units, one["num_steps"] * one["step_s"]))
        rest.append((units, one["fixed_s"]))
    return calibration.fit(steps, ("macs", "slices")) | calibration.fit(rest, ("pixels",))
