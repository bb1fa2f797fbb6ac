"""Labelled pictures from a folder, for calibrating published variants on a user's own validation data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.contract import Variant
from models.pictures import SquarePicture
from models.training.dyn_perceiver.evaluation import Pictures

MAX_PICTURES = 5000


def folder_sets(directory: Path, variant: Variant, seed: int = 0) -> tuple[Pictures, Pictures]:
    """Read ``directory/<class>/<picture>``, classes in sorted order, and split it in two halves by seed.

    At most 5,000 pictures are taken (drawn by seed), as the official calibration takes about 100 batches.

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
    prepare = SquarePicture(variant)
    images = np.stack([prepare(_read(files[i][0])) for i in order])
    labels = np.array([files[i][1] for i in order], np.int64)
    half = len(order) // 2
    return Pictures(images[:half], labels[:half]), Pictures(images[half:], labels[half:])


def _read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}; remove it") from error
