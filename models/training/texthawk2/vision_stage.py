"""First stage: the vision tower learns to name the character under each patch.

Dense labels teach a tower of two million weights to read in tens of thousands of tiles; through the language model's
loss alone, one short answer per image, it would need far more. The classifier on top is thrown away afterwards.

    python -m models.training.texthawk2.vision_stage --out .cache/texthawk2-nano/vision --steps 4000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import SiglipVisionConfig, SiglipVisionModel

from models.families.texthawk2.vision import normalise, read_levels
from models.training.log import LOG_FILE, TrainingLog
from models.training.optimizer import Optimizers
from models.training.products import fast_products
from models.training.texthawk2.nano import VISION
from models.training.texthawk2.synth.charset import CHAR_CLASSES, CHINESE, CLASS_OF
from models.training.texthawk2.synth.dense import COLUMNS, DENSE_CLASSES, dense_tile
from models.training.texthawk2.synth.fonts import Split

BACKGROUND_WEIGHT = 0.2
"""Most patches show no character."""
KEPT_TILES = 2000
"""0.3 GB."""


class DenseTiles(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of tiles (B, 224, 224, 3) uint8 and labels (B, 16 * 16 * COLUMNS), without end.

    ``shows``: how often a tile is shown, in batches far apart. Drawing one takes a sixth of the time of learning from
    it, on a core that has better things to do.
    """

    def __init__(self, split: Split, batch: int, seed: int, shows: int = 1) -> None:
        self._split, self._batch, self._seed, self._shows = split, batch, seed, shows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        tiles = shown_again(lambda: dense_tile(rng, self._split), self._shows, rng)
        while True:
            pixels, labels = zip(*(next(tiles) for _ in range(self._batch)), strict=True)
            yield torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels)).flatten(1).long()


T = TypeVar("T")


def shown_again(make: Callable[[], T], shows: int, rng: np.random.Generator, kept: int = KEPT_TILES) -> Iterator[T]:
    """What ``make`` gives, each ``shows`` times and far apart: in a random order of the ``kept`` latest."""
    waiting: list[tuple[T, int]] = []
    while True:
        if len(waiting) < (kept if shows > 1 else 1):
            waiting.append((make(), shows))
        place = int(rng.integers(len(waiting)))
        item, left = waiting[place]
        waiting[place] = (item, left - 1) if left > 1 else waiting[-1]
        if left == 1:
            waiting.pop()
        yield item


class CharacterTower(nn.Module):
    """The nano tower and a linear classifier of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(SiglipVisionConfig(**VISION))
        self.head = nn.Linear(VISION["hidden_size"], COLUMNS * len(DENSE_CLASSES))

    def forward(self, tiles: Tensor) -> Tensor:
        """uint8 (B, S, S, 3) to logits (B, patches * COLUMNS, classes)."""
        features = read_levels(self.tower, normalise(tiles), [VISION["num_hidden_layers"]])[0]
        return name_patches(self.head, features)


def name_patches(head: nn.Module, features: Tensor) -> Tensor:
    """Features (B, patches, width) of the last layer to logits (B, patches * COLUMNS, classes)."""
    logits: Tensor = head(nn.functional.layer_norm(features, features.shape[-1:]))
    return logits.view(len(logits), -1, logits.shape[-1] // COLUMNS)


def character_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in which background counts little. ``logits`` (B, places, classes), ``labels`` (B, places)."""
    weights = torch.ones(logits.shape[-1], device=logits.device)
    weights[0] = BACKGROUND_WEIGHT
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight=weights)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the log")
    parser.add_argument("--steps", type=int, default=2500, help="optimiser steps")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long, decaying by time")
    parser.add_argument("--batch", type=int, default=32, help="tiles per step")
    parser.add_argument("--shows", type=int, default=3, help="times that each tile is shown")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw tiles")
    parser.add_argument("--seed", type=int, default=1)
    train(parser.parse_args())


def train(args: argparse.Namespace) -> None:
    """Train and save ``vision.safetensors``."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    model = CharacterTower().to(args.device)
    optimizers = Optimizers([model], muon_lr=3e-3, adam_lr=2e-3)
    drawn = DenseTiles("train", args.batch, args.seed, args.shows)
    loader = iter(DataLoader(drawn, batch_size=None, num_workers=args.workers))
    held_out = [part.to(args.device) for part in next(iter(DenseTiles("test", 64, 99)))]
    log, started_s = TrainingLog(args.out / LOG_FILE), time.monotonic()
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - started_s) / 60 / args.minutes)
        if progress >= 1:
            break
        tiles, labels = (part.to(args.device) for part in next(loader))
        with fast_products(tiles.device.type):
            logits = model(tiles)
        loss = character_loss(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(progress, step)
        if step % 50 == 0:
            log.write(step=step, progress=progress, loss=float(loss.detach()), **accuracy(model, *held_out))
        if step % 200 == 199:
            save(model, args.out)
    save(model, args.out)


@torch.no_grad()
def accuracy(model: CharacterTower, tiles: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of the places that are named right among those of Latin letters, of Chinese ones, and of shapes."""
    with fast_products(tiles.device.type):
        right = model(tiles).argmax(-1) == labels
    return shares_by_kind(right, labels)


def shares_by_kind(right: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean of ``right`` where ``labels`` (the same shape) show a Latin character, a Chinese one, a shape."""
    first_shape, first_chinese = len(CHAR_CLASSES), CLASS_OF[CHINESE[0]]
    kinds = {
        "latin": (labels > 0) & (labels < first_chinese),
        "chinese": (labels >= first_chinese) & (labels < first_shape),
        "shapes": labels >= first_shape,
    }
    return {name: float(right[kind].float().mean()) for name, kind in kinds.items()}


def save(model: CharacterTower, folder: Path) -> None:
    """The tower in transformers' names, and the classifier beside it for a continued run."""
    save_file(model.tower.state_dict(), folder / "vision.safetensors")
    save_file(model.head.state_dict(), folder / "head.safetensors")


if __name__ == "__main__":
    main()
