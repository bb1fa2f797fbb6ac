"""Held-out pictures of digits and what the four exits say about them: for calibration, model cards and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.contract import Staged
from models.training.dyn_perceiver import augment
from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, Glyphs, drawn, handwritten

SPLIT_SEED = 0
HARD_COPIES = 4
HARD_STRENGTH = (0.7, 1.0)


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 (N, 32, 32, 3), ready for a runner; ``labels`` int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


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


def held_out_sets(split: Literal["calibration", "test"], seed: int = SPLIT_SEED) -> Mapping[str, Pictures]:
    """The four sets of a split, always the same for the same seed.

    ``clean``: handwritten digits, light on dark, nothing else. ``hard``: each of them in four strongly disturbed copies
    (strength 0.7 to 1). ``mixed``: half clean (repeated four times), half hard. ``fonts``: digits in fonts that
    training never saw, four mildly disturbed copies each (the same glyphs in both splits, disturbed differently).
    """
    splits = handwritten(seed)
    glyphs = splits.calibration if split == "calibration" else splits.test
    generator = torch.Generator().manual_seed(1_000 * seed + (1 if split == "calibration" else 2))
    clean = _pictures(augment.clean(glyphs.ink), glyphs.labels)
    hard = _disturbed(glyphs, HARD_STRENGTH, generator)
    return {
        "clean": clean,
        "hard": hard,
        "mixed": _joined(*[clean] * HARD_COPIES, hard),
        "fonts": _disturbed(drawn(HELD_OUT_FONTS), (0.0, 0.4), generator),
    }


def exit_outputs(runner: Staged, pictures: Pictures, batch_size: int = 64) -> ExitOutputs:
    """Run every exit on every picture."""
    chunks = [pictures.images[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    probabilities = torch.cat([_all_exits(runner, chunk) for chunk in chunks], 1).numpy()
    return ExitOutputs(
        probabilities=probabilities,
        confidences=probabilities.max(-1),
        correct=probabilities.argmax(-1) == pictures.labels[None],
    )


@torch.inference_mode()
def _all_exits(runner: Staged, images: NDArray[np.uint8]) -> Tensor:
    """Probabilities (E, B, K)."""
    batch = torch.from_numpy(images)
    _, outputs, _ = runner.run(runner.begin(batch, [{}] * len(batch)), 0, runner.num_stages)
    return torch.stack([output["probabilities"].cpu() for output in outputs])


def _disturbed(glyphs: Glyphs, strength: tuple[float, float], generator: torch.Generator) -> Pictures:
    ink, labels = glyphs.ink.repeat(HARD_COPIES, 1, 1), glyphs.labels.repeat(HARD_COPIES)
    low, high = strength
    amounts = low + (high - low) * torch.rand(len(ink), generator=generator)
    return _pictures(augment.render(ink, amounts, generator), labels)


def _pictures(images: Tensor, labels: Tensor) -> Pictures:
    return Pictures(images.numpy(), labels.numpy())


def _joined(*parts: Pictures) -> Pictures:
    return Pictures(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
