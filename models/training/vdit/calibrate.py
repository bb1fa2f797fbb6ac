"""The table of a folder that was evaluated: qualities from its evaluation.json, times measured now.

Quality of a point is the share of held-out prompts whose clips are right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

from models.contract import Family, Value, Variant
from models.operating_points import TABLE_FILE, Quality, round_off, share_quality
from models.training import calibration
from models.training.calibration import Ledger, Measured
from models.training.requests import USUAL, Asked, example_requests
from models.training.sweep import BATCH_SIZES, calibrate_job, job_host


def calibrate(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    device: str = "cpu",
    num_threads: int = 1,
    watts: float = 6.0,
    repeats: int = 2,
    asked: Asked = USUAL,
    max_batch: int = BATCH_SIZES[-1],
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    data_dir: Path | None = None,
) -> Path:
    """Write the table. Returns its path. Of a folder that was not evaluated, see ``calibrate_job``, as for the options.

    Raises: ValueError: an evaluation that cannot be used.
    """
    assert variant.weights is not None
    options: dict[str, Any] = {"device": device, "repeats": repeats, "max_batch": max_batch}
    if not (variant.weights / "evaluation.json").is_file():
        return calibrate_job(
            family,
            variant,
            ledger=ledger,
            num_threads=num_threads,
            watts=watts,
            asked=asked,
            data_dir=data_dir,
            on_progress=on_progress,
            **options,
        )
    seed, qualities = _evaluated(variant.weights)
    hardware = calibration.hardware(torch.device(device), num_threads)
    found: list[Measured] = []
    with calibration.threads(num_threads):
        host = job_host(family, variant, example_requests(family, variant, asked), **options)
        replace(host, sizes=(1,), repeats=1).runs(dict(next(iter(qualities))))  # to warm up
        for done, (settings, quality) in enumerate(qualities.items(), 1):
            measure = ledger.keeping(partial(host.priced, quality=quality))
            found.append(measure(dict(settings)))
            on_progress("timing what was evaluated", done, len(qualities))
    calibration.write(
        variant,
        [one.point for one in found],
        hardware=hardware,
        watts=watts,
        metric="share of clips of one object that show what the prompt says",
        data={"source": "held-out prompts, judged by the classifier in judge/", "seed": seed},
        held_out=[run for one in found for run in one.held_out],
    )
    return variant.weights / TABLE_FILE


def _evaluated(folder: Path) -> tuple[Any, dict[tuple[tuple[str, Value], ...], Quality]]:
    """The seed, and the quality of each setting: that of the worst of its lengths. Raises: ValueError."""
    try:
        report = msgspec.json.decode((folder / "evaluation.json").read_bytes())
        found: dict[tuple[tuple[str, Value], ...], Quality] = {}
        for one in report["settings"].values():
            settings, quality = _settings(one), _quality(one)
            found[settings] = min(found.get(settings, quality), quality, key=lambda quality: quality.low)
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise ValueError(
            f"no usable evaluation.json in {folder} ({error}): "
            f"run `python -m models.training.vdit.evaluate {folder}` again"
        ) from None
    return report.get("seed"), found


def _settings(one: Mapping[str, Any]) -> tuple[tuple[str, Value], ...]:
    made = {
        "attention": one["attention"],
        "guidance_scale": float(one["guidance"]),
        "num_inference_steps": one["num_steps"],
        "sampler": one["sampler"],
    }
    return tuple(made.items())


def _quality(one: Mapping[str, Any]) -> Quality:
    return share_quality(round_off(one["one_object"]["right"]), one["one_object"]["count"])
