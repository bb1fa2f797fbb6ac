"""Reads the operating-point table that lies beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from schedulers.operating_points import OperatingPointTable
from serving.errors import ConfigError

FILE_NAME = "operating_points.json"


def load_table(model_id: str, checkpoint_dir: Path | None) -> OperatingPointTable:
    """Load and check the table.

    Raises: ConfigError: there is none, or it is damaged; the message names the command that writes one.
    """
    remedy = f"run `vireo calibrate {model_id}`"
    if checkpoint_dir is None:
        raise ConfigError(
            f"model {model_id} has no weights here: convert a checkpoint (`vireo convert`), then {remedy}"
        )
    path = checkpoint_dir / FILE_NAME
    try:
        return OperatingPointTable.from_dict(json.loads(path.read_text()))
    except OSError:
        raise ConfigError(f"model {model_id} has no operating points at {path}: {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"operating points at {path} are damaged ({error}): {remedy}") from None
