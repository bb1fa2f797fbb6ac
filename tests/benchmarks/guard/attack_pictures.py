"""Pictures that attackers left (``python -m loadtest.adversarial images``), what they added, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from loadtest.adversarial.pictures import Case, cases
from tests.benchmarks.guard.screen_pictures import LIMITS, any_of, changed, jpeg

Pixels = npt.NDArray[np.uint8]
_MAX_CASES = 64
"""Pictures of a task among which the one is looked for that an attack began with."""


@dataclass(frozen=True, slots=True, eq=False)
class Attacked:
    """A picture and its record's facts. ``seed``: of its batch. ``amplification``: of the answer's tokens."""

    model: str
    attack: str
    task: str
    seed: int
    largest_change: int
    amplification: float
    pixels: Pixels

    def added(self, seed: int) -> npt.NDArray[np.int16] | None:
        """What the attack added; None if the picture that it began with is not among those of ``seed``, the run's."""
        change = self.pixels.astype(np.int16) - _nearest(self.pixels, _held_out(self.task, seed))
        return change if int(np.abs(change).max()) == self.largest_change else None


def attacked(folders: Sequence[Path]) -> list[Attacked]:
    """All below the folders, in the order of their paths."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("[0-9][0-9].json")):
        plain = json.loads(path.read_text())
        if not path.with_suffix(".png").is_file():
            continue
        names = ("model", "attack", "task", "seed", "largest_change")
        grown = (plain["tokens"] + 1) / (plain["clean_tokens"] + 1)
        pixels = np.asarray(Image.open(path.with_suffix(".png")).convert("RGB"), np.uint8)
        found.append(Attacked(**{name: plain[name] for name in names}, amplification=grown, pixels=pixels))
    return found


def transplanted(rng: np.random.Generator, added: Sequence[npt.NDArray[np.int16]], count: int) -> Iterator[Pixels]:
    """Other pictures with 60% to 100% of what an attack added to one: drawn, photographed, JPEG; several tiles too."""
    for place in range(count):
        picture = any_of(rng, "training")
        if rng.random() < 0.4:
            picture = jpeg(picture, int(rng.integers(30, 96)))
        change = added[place % len(added)]
        rows, cols = (-(-size // side) for size, side in zip(picture.shape, change.shape[:2], strict=False))
        whole = np.tile(change, (rows, cols, 1))[: picture.shape[0], : picture.shape[1]]
        yield changed(picture, whole * rng.uniform(0.6, 1.0))


@lru_cache(maxsize=32)
def _held_out(task: str, seed: int) -> list[Case]:
    return cases(task, _MAX_CASES, seed=seed, limits=LIMITS)


def _nearest(pixels: Pixels, among: Sequence[Case]) -> Pixels:
    signed = pixels.astype(np.int16)
    return min((case.picture for case in among), key=lambda clean: int(np.abs(signed - clean).sum()))
