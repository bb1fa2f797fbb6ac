"""Pictures to begin with: held out, of one tile, with a question that the model was made for."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.adversarial.victim import Pictures
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import TilingLimits
from models.training.texthawk2.synth.describing import KINDS, scene
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import TASKS
from models.training.texthawk2.synth.fonts import FontSet, default_fonts

FONTLESS = ("ground_shape", "count")
"""Tasks that draw no text, and so need no fonts to be fetched."""
DESCRIBING = {f"verbose-{kind}": kind for kind in KINDS}
"""Tasks of texthawk2-nano-verbose: answers of three lengths about one picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """``picture``: (S, S, 3), which the preprocess leaves as it is."""

    task: str
    question: str
    expected: str
    picture: Pictures


def cases(task: str, count: int, *, seed: int, limits: TilingLimits) -> list[Case]:
    """The first ``count`` pictures of a task, from its held-out words and fonts, that fit into one tile. They are those
    of a model's evaluation only where the seed is.

    Raises: ValueError: an unknown task, or fonts are missing.
    """
    if task not in TASKS and task not in DESCRIBING:
        raise ValueError(f"task {task!r} is unknown; choose from {', '.join(sorted({*TASKS, *DESCRIBING}))}")
    rng = np.random.default_rng((seed, zlib.crc32(task.encode())))
    fonts = None if task in FONTLESS else default_fonts()
    found: list[Case] = []
    while len(found) < count:
        example = _example(task, rng, fonts)
        tiles, grid = cut_tiles(np.asarray(example.image, np.uint8), limits)
        if grid == (1, 1) and not example.others:
            found.append(Case(task, *example.turns[0], tiles[0]))
    return found


def _example(task: str, rng: np.random.Generator, fonts: FontSet | None) -> Example:
    if task in DESCRIBING:
        return scene(rng, "test", fonts).example(rng, DESCRIBING[task])
    return TASKS[task](rng, "test", fonts)


def stacked(chosen: Sequence[Case]) -> Pictures:
    """Their pictures (B, S, S, 3)."""
    return np.stack([case.picture for case in chosen])
