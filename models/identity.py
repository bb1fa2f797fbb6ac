"""The identity of a checkpoint. Free of torch: gateways use it in cache keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Folder of the nano checkpoints, which come with the source."""


def checkpoint_sha256(directory: Path) -> str:
    """Hex SHA-256 of the weights file in ``directory``.

    Raises:
        ValueError: no weights there.
    """
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"no weights at {path}; train them (vireo train) or convert published ones (vireo convert)")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
