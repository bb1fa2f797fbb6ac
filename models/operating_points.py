"""The operating-point table beside a checkpoint: its shape, reading it, checking it. Free of torch.

Written by ``vireo calibrate``, never by hand. Strict JSON: no NaN, no infinity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from models.contract import Value, Variant
from models.identity import checkpoint_sha256

FORMAT = 1
TABLE_FILE = "operating_points.json"


class Hardware(TypedDict):
    """What the times were measured on."""

    cpu: str
    threads: int
    torch: str
    device: str


class StageCost(TypedDict):
    """``stages[k][i]``: milliseconds to carry ``batch_sizes[i]`` samples through stage k alone."""

    batch_sizes: list[int]
    stages: list[list[float]]


class Energy(TypedDict):
    """How joules were arrived at."""

    source: str
    watts: float
    note: str


class OperatingPoint(TypedDict):
    """One setting of thresholds and knobs. Shares, FLOPs and accuracies are of held-out test pictures.

    ``settings``: of the family's knobs, where they are not the defaults; the exits' are in ``thresholds``.
    ``ms_by_batch``: expected busy milliseconds of a whole batch whose samples start together, by batch size.
    """

    name: str
    settings: NotRequired[Mapping[str, Value]]
    thresholds: list[float]
    exit_shares: list[float]
    expected_flops: float
    flops_fraction: float
    ms_by_batch: dict[str, float]
    joules_per_sample: float
    accuracy: float
    accuracy_clean: float
    accuracy_hard: float
    accuracy_calibration: float
    flops_fraction_clean: float


class Table(TypedDict):
    """The whole file. ``exit_flops``: multiply-accumulates of one sample up to each exit."""

    format: int
    model: str
    checkpoint_sha256: str
    hardware: Hardware
    created: str
    split: dict[str, object]
    exit_flops: list[int]
    stage_cost_ms: StageCost
    energy: Energy
    points: list[OperatingPoint]


def read_table(variant: Variant) -> Table:
    """Read the table of a model's checkpoint.

    Raises:
        ValueError: no checkpoint, no table, or a table of other weights; the message names the command that makes one.
    """
    if variant.weights is None:
        raise ValueError(
            f"{variant.id} ships without weights; run 'vireo convert' and then 'vireo calibrate {variant.id}'"
        )
    path = variant.weights / TABLE_FILE
    if not path.is_file():
        raise ValueError(f"{variant.id} has no operating points at {path}; run 'vireo calibrate {variant.id}'")
    table = json.loads(path.read_text())
    if table.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {table.get('format')!r}, need {FORMAT}; run 'vireo calibrate {variant.id}'"
        )
    if table["checkpoint_sha256"] != checkpoint_sha256(variant.weights):
        raise ValueError(f"{path} belongs to other weights than those beside it; run 'vireo calibrate {variant.id}'")
    return cast(Table, table)


def write_table(table: Table, directory: Path) -> Path:
    """Write the table; returns its path.

    Raises:
        ValueError: a number is not finite.
    """
    path = directory / TABLE_FILE
    path.write_text(json.dumps(table, indent=1, allow_nan=False) + "\n")
    return path
