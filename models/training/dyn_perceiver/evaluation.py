"""Held-out pictures of digits: for calibration, model cards and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.training.classify.pictures import Pictures, Sets
from models.training.dyn_perceiver import augment
from models.training.dyn_perceiver.digits import HELD_OUT_FONTS, Glyphs, drawn, handwritten

SPLIT_SEED = 0
HARD_COPIES = 4
HARD_STRENGTH = (0.7, 1.0)


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


def calibration_sets() -> Sets:
    """What the shipped checkpoint is calibrated on."""
    search, tests = held_out_sets("calibration")["mixed"], held_out_sets("test")
    description = {
        "source": "scikit-learn digits, held out from training",
        "seed": SPLIT_SEED,
        "hard_copies": HARD_COPIES,
        "hard_strength": list(HARD_STRENGTH),
        "calibration": len(search),
        "test": {name: len(pictures) for name, pictures in tests.items()},
    }
    return Sets(search, tests, len(tests["clean"]), description)


def _disturbed(glyphs: Glyphs, strength: tuple[float, float], generator: torch.Generator) -> Pictures:
    ink, labels = glyphs.ink.repeat(HARD_COPIES, 1, 1), glyphs.labels.repeat(HARD_COPIES)
    low, high = strength
    amounts = low + (high - low) * torch.rand(len(ink), generator=generator)
    return _pictures(augment.render(ink, amounts, generator), labels)


def _pictures(images: Tensor, labels: Tensor) -> Pictures:
    return Pictures(images.numpy(), labels.numpy())


def _joined(*parts: Pictures) -> Pictures:
    return Pictures(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
