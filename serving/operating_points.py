"""Reads the operating-point table that lies beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from models.identity import checkpoint_sha256
from schedulers.operating_points import OperatingPointTable
from serving.errors import ConfigError

FILE_NAME = "operating_points.json"


def load_table(model_id: str, checkpoint_dir: Path | None) -> OperatingPointTable:
    """Load and check the table.

    Raises: ConfigError: there is none, it is damaged, or it belongs to another model or to other weights; the message
        names the command that writes one.
    """
    remedy = f"run `vireo calibrate {model_id}`"
    if checkpoint_dir is None:
        raise ConfigError(
            f"model {model_id} has no weights here: convert a checkpoint (`vireo convert`), then {remedy}"
        )
    path = checkpoint_dir / FILE_NAME
    try:
        table = OperatingPointTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
        weights_sha256 = checkpoint_sha256(checkpoint_dir)
    except OSError:
        raise ConfigError(f"model {model_id} has no operating points at {path}: {remedy}") from None
    except ValueError as error:
        raise ConfigError(f"operating points at {path} cannot be used ({error}): {remedy}") from None
    if table.model != model_id:
        raise ConfigError(f"operating points at {path} are of model {table.model}, not {model_id}: {remedy}")
    if table.checkpoint_sha256 != weights_sha256:
        raise ConfigError(f"operating points at {path} were measured with other weights than those there: {remedy}")
    return table
