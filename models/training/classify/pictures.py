"""Labelled pictures, and what a classifier says about them exit by exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.contract import Point, Prepare, Staged, Unary, Variant

MAX_PICTURES = 5000


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 (N, S, S, 3), as ``Family.prepare`` makes them; ``labels`` int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Sets:
    """Pictures to search on, and pictures to judge on by name, always with "mixed", of which ``num_independent`` are no
    copies of others."""

    search: Pictures
    judge: Mapping[str, Pictures]
    num_independent: int
    description: dict[str, Any]


@dataclass(frozen=True)
class ExitOutputs:
    """Per exit E, sample N: ``probabilities`` float32 (E, N, K), ``confidences`` float32 (E, N), ``correct`` bool."""

    probabilities: NDArray[np.float32]
    confidences: NDArray[np.float32]
    correct: NDArray[np.bool_]

    @property
    def accuracy(self) -> list[float]:
        """Share of correct answers of each exit."""
        return [float(row.mean()) for row in self.correct]


def exit_outputs(
    runner: Staged | Unary, pictures: Pictures, point: Point | None = None, batch_size: int = 64
) -> ExitOutputs:
    """Run every exit on every picture."""
    chunks = [pictures.images[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    probabilities = torch.cat([_all_exits(runner, chunk, point or {}) for chunk in chunks], 1).numpy()
    return ExitOutputs(
        probabilities=probabilities,
        confidences=probabilities.max(-1),
        correct=probabilities.argmax(-1) == pictures.labels[None],
    )


@torch.inference_mode()
def _all_exits(runner: Staged | Unary, images: NDArray[np.uint8], point: Point) -> Tensor:
    """Probabilities (E, B, K)."""
    outputs = run_exits(runner, torch.from_numpy(images), point)
    return torch.stack([output["probabilities"].cpu() for output in outputs])


def run_exits(runner: Staged | Unary, batch: Tensor, point: Point) -> Sequence[Mapping[str, Tensor]]:
    """Outputs of every exit; a unary family has one."""
    points = [point] * len(batch)
    if isinstance(runner, Staged):
        return runner.run(runner.begin(batch, points), 0, runner.num_stages)[1]
    return [runner.forward(batch, points)]


def folder_sets(directory: Path, variant: Variant, prepare: Prepare, seed: int = 0) -> Sets:
    """Read ``directory/<class>/<picture>``, classes in sorted order, and split it in two halves by seed.

    At most 5,000 pictures are taken, drawn by seed.

    Raises:
        ValueError: not one folder per class, too few pictures, or one that cannot be read.
    """
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    if len(folders) != variant.io.num_classes:
        raise ValueError(f"{directory} has {len(folders)} class folders; {variant.id} needs {variant.io.num_classes}")
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.iterdir())]
    order = np.random.default_rng(seed).permutation(len(files))[:MAX_PICTURES]
    if len(order) < 2:
        raise ValueError(f"{directory} has {len(files)} pictures; at least 2 are needed to calibrate and to judge")
    images = np.stack([prepare(_read(files[i][0])) for i in order])
    labels = np.array([files[i][1] for i in order], np.int64)
    half = len(order) // 2
    search, judge = Pictures(images[:half], labels[:half]), Pictures(images[half:], labels[half:])
    sizes = {"calibration": len(search), "test": len(judge)}
    return Sets(
        search, {"mixed": judge}, len(judge), {"source": f"labelled folder, split in halves by seed {seed}", **sizes}
    )


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}; remove it") from error
