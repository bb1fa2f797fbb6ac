"""What every calibration shares: the fit of seconds per unit of work, and the file that comes of it."""

from __future__ import annotations

import datetime
import itertools
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.contract import Family, LazyRef, Variant
from models.identity import checkpoint_sha256
from models.operating_points import (
    Energy,
    Hardware,
    Point,
    Seconds,
    Slice,
    Table,
    point_name,
    round_off,
    source_commit,
    write_table,
)

_BY_SHAPE = {
    "unary": LazyRef("models.training.classify.calibrate:calibrate_classifier"),
    "staged": LazyRef("models.training.classify.calibrate:calibrate_classifier"),
    "job": LazyRef("models.training.sweep:calibrate_job"),
}
_MUCH = 1e-9
"""Of a residual: a unit that explains less is left out."""


def calibrate(family: Family, variant: Variant, **options: Any) -> Path:
    """Measure a model as its family says (part ``calibrate``), or else as its shape is measured. Returns the table's
    path.

    Raises: ValueError: no weights, nothing to judge on, or nothing to measure.
    """
    measure = family.parts.get("calibrate") or _BY_SHAPE.get(family.shape)
    if measure is None:
        raise ValueError(f"{variant.id} has no operating points to calibrate")
    path: Path = measure.load()(family, variant, **options)
    return path


def fit(samples: Sequence[tuple[Mapping[str, float], float]], units: Sequence[str]) -> dict[str, Seconds]:
    """Seconds per unit, none negative, by least squares of relative errors: so much work took so many seconds.

    There are few units, so every subset of them is tried, the first ones first: of two that explain the same the fewer
    units win. Errors are standard errors, None where there are no more samples than units.
    """
    amounts = np.array([[work.get(unit, 0.0) / seconds for unit in units] for work, seconds in samples])
    best: tuple[float, tuple[int, ...], Any] | None = None
    for size in range(1, len(units) + 1):
        for subset in itertools.combinations(range(len(units)), size):
            columns = amounts[:, subset]
            if not columns.any(0).all() or np.linalg.matrix_rank(columns) < size:
                continue
            prices = np.linalg.lstsq(columns, np.ones(len(samples)), rcond=None)[0]
            residual = float(np.square(columns @ prices - 1.0).sum())
            if (prices >= 0.0).all() and (best is None or residual < best[0] - _MUCH):
                best = residual, subset, prices
    if best is None:
        return {}
    residual, subset, prices = best
    spare = len(samples) - len(subset)
    columns = amounts[:, subset]
    errors = np.sqrt(np.diag(np.linalg.inv(columns.T @ columns)) * residual / spare) if spare else [None] * len(subset)
    return {
        units[place]: Seconds(seconds=round_off(float(price)), error=None if error is None else round_off(float(error)))
        for place, price, error in zip(subset, prices, errors, strict=True)
        if price > 0.0
    }


def write(
    variant: Variant,
    points: Iterable[Point],
    *,
    hardware: Hardware,
    watts: float,
    metric: str,
    data: Mapping[str, Any],
    slices: tuple[Slice, ...] = (),
    commit: str | None = None,
    note: str = "",
) -> Table:
    """Put the file beside the weights, the best point first. Returns what it holds."""
    assert variant.weights is not None
    ranked = sorted(points, key=lambda point: -point.quality.low if point.quality else 0.0)
    table = Table(
        model=variant.id,
        checkpoint_sha256=checkpoint_sha256(variant.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=commit or source_commit(),
        hardware=hardware,
        energy=Energy(
            source="estimate",
            watts=watts,
            note=note or "busy seconds times an assumed power of one busy core or device; not metered",
        ),
        metric=metric,
        data=dict(data),
        points={point_name(point.settings): point for point in ranked},
        slices=slices,
    )
    write_table(table, variant.weights)
    return table


def hardware(device: torch.device) -> Hardware:
    """What the measurement ran on, as far as the system tells."""
    return Hardware(
        cpu=_cpu_name(),
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()} x{len(names) or 1}"
