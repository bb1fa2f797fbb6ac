"""The identity of a checkpoint. Free of torch: gateways use it in cache keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Folder of the nano checkpoints, which come with the source."""


_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")


def weight_files(directory: Path) -> list[Path]:
    """The weights in ``directory``: its one file, or those of all networks below it.

    Raises:
        ValueError: no weights there.
    """
    path = directory / WEIGHTS_FILE
    if path.is_file():
        return [path]
    files = sorted(path for path in directory.rglob("*") if path.suffix in _WEIGHT_SUFFIXES)
    if not files:
        raise ValueError(f"no weights at {path}; train them (vireo train) or convert published ones (vireo convert)")
    return files


def checkpoint_sha256(directory: Path) -> str:
    """Hex SHA-256 of the weights in ``directory``: of their one file, or of the names and digests of all.

    Raises:
        ValueError: no weights there.
    """
    files = weight_files(directory)
    if files[0].parent == directory and files[0].name == WEIGHTS_FILE:
        return _sha256(files[0])
    lines = [f"{path.relative_to(directory).as_posix()} {_sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
