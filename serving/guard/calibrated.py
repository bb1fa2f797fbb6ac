"""Reads what benign answers of a checkpoint are like: ``guard.json`` in its folder."""

from __future__ import annotations

import json
from pathlib import Path

from models.identity import checkpoint_sha256
from schedulers.guard.calibration import FILE_NAME, GuardCalibration
from serving.errors import ConfigError


def read_calibration(folder: Path, sha256: str | None = None) -> GuardCalibration | None:
    """None where nobody has calibrated it: such a model is guarded by its budget alone. ``sha256``: of the weights,
    where it is known; else they are read for it, which takes seconds.

    Raises: ConfigError: not a calibration, or one of other weights.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        calibration = GuardCalibration.from_plain(json.loads(text))
        digest = sha256 or checkpoint_sha256(folder)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None
    if calibration.checkpoint_sha256 != digest:
        raise ConfigError(f"{path} is of other weights than those beside it; calibrate again, or remove it")
    return calibration
