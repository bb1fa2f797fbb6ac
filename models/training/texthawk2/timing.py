"""What the answers of a checkpoint take: pictures, prompt and answer of chosen lengths, so that each has its price.

Time does not depend on what is seen: pictures are grey, and an answer goes on to its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from models.contract import Family, OnProgress, Variant
from models.families.texthawk2.image_processor import cut_tiles
from models.families.texthawk2.tiling import TilingLimits, image_tokens
from models.io import ChatTokens
from models.operating_points import Seconds
from models.training import calibration
from models.training.held_out import Predicted, batch_s, rounds
from models.training.texthawk2.evaluation import generate, prompt_of

ALONE, TOGETHER = 1, 16
BETWEEN = 4
"""Rows that prices are not fitted to, but have to predict."""
UNITS = ("output_tokens", "image_tokens", "prompt_tokens", "token_steps")
_WORD = " one"


class Question(NamedTuple):
    """A picture that is cut into so many tiles at most, words of the prompt beside it, and tokens of the answer."""

    tiles: int
    words: int
    answer: int


QUESTIONS = tuple(
    Question(*sizes) for sizes in ((1, 8, 2), (12, 8, 2), (1, 128, 2), (1, 8, 64), (12, 8, 24), (1, 128, 24))
)
HELD_OUT = tuple(Question(*sizes) for sizes in ((4, 8, 12), (6, 48, 32)))
"""Sizes that no price is fitted to."""


class Run(NamedTuple):
    """Equal questions that were asked together: work of one, and seconds of all."""

    rows: int
    units: dict[str, float]
    seconds: float
    is_held_out: bool


def time_answers(
    family: Family,
    variant: Variant,
    network: Any,
    tokenizer: Any,
    *,
    repeats: int = 2,
    sizes: Sequence[int] | None = None,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[Run]:
    """Each question so many times for the fit, alone and together; in further rounds also others, held out."""
    sizes = sizes or (ALONE, TOGETHER)
    fitted = [(rows, one, False) for rows in sizes for one in QUESTIONS]
    spare = [(rows, one, True) for rows in sizes for one in (*QUESTIONS, *HELD_OUT)]
    spare += [(BETWEEN, one, True) for one in (QUESTIONS[0], HELD_OUT[-1]) if sizes[-1] > BETWEEN]
    asked = [one for is_spare in rounds(repeats) for one in (spare if is_spare else fitted)]
    _ask(family, variant, network, tokenizer, ALONE, QUESTIONS[0])  # to warm up
    runs = []
    for done, (rows, one, is_held_out) in enumerate(asked, 1):
        units, seconds = _ask(family, variant, network, tokenizer, rows, one)
        runs.append(Run(rows, units, seconds, is_held_out))
        on_progress("timing answers", done, len(asked))
    return runs


def fit_answers(runs: Sequence[Run]) -> dict[str, dict[int, Seconds]]:
    """Seconds per unit by rows. What explains nothing at some number of rows is free there."""
    sizes = sorted({run.rows for run in runs if not run.is_held_out})
    prices = {
        rows: calibration.fit(
            [(run.units, run.seconds / rows) for run in runs if run.rows == rows and not run.is_held_out], UNITS
        )
        for rows in sizes
    }
    free = Seconds(seconds=0.0)
    units = [unit for unit in UNITS if any(unit in fitted for fitted in prices.values())]
    return {unit: {rows: prices[rows].get(unit, free) for rows in sizes} for unit in units}


def held_out_of(runs: Sequence[Run], prices: Mapping[str, Mapping[int, Seconds]]) -> tuple[Predicted, ...]:
    """What the prices say of the runs that they were not fitted to."""
    return tuple(Predicted(batch_s(prices, run.units, run.rows), run.seconds) for run in runs if run.is_held_out)


@torch.no_grad()
def _ask(
    family: Family, variant: Variant, network: Any, tokenizer: Any, rows: int, one: Question
) -> tuple[dict[str, float], float]:
    assert family.work is not None
    count: Callable[..., Any] = family.work.load()
    config = network.config
    limits = TilingLimits(
        tile_size=config.tile_size, max_area=min(one.tiles, config.max_tiles), max_side=config.max_tiles_side
    )
    side = config.tile_size
    height, width = (side, side) if one.tiles == 1 else (side * 3, side * max(1, one.tiles // 3))
    picture = np.full((height, width, 3), 127, np.uint8)
    started_s = time.perf_counter()
    cut = [[cut_tiles(picture, limits)] for _ in range(rows)]
    grid = cut[0][0][1]
    prompt = prompt_of(tokenizer, _WORD * one.words, [grid])
    generate(network, [prompt] * rows, cut, min_new_tokens=one.answer, max_new_tokens=one.answer)
    seconds = time.perf_counter() - started_s
    shown = image_tokens(grid)
    return dict(count(variant, ChatTokens(len(prompt) - shown, shown, one.answer), {}).units), seconds
