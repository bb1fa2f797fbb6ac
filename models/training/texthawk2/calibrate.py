"""Points of a TextHawk2 checkpoint: tiles of a picture and cap on the answer, judged on pictures that it never saw.

An answer is greedy, so a shorter cap cuts it off and changes nothing before that: each picture is asked about once for
each way to cut it, and every cap is judged on these answers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from transformers import AutoTokenizer

from models.contract import Family, Knob, OnProgress, Variant
from models.families.texthawk2.auto import register
from models.families.texthawk2.tiling import TilingLimits, best_grid
from models.io import MAX_TILES, MAX_TOKENS, knobs_of, with_max_tiles
from models.operating_points import TABLE_FILE, Point, Seconds, round_off, share_quality
from models.training import calibration
from models.training.calibration import Ledger, Measured, Settings
from models.training.sweep import sweep
from models.training.texthawk2.evaluation import SEED, answer, held_out
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import MEASURED

CAPS = (8, 16, 32, 64, 128, 320)
"""The longest is that of the evaluation: a page of text."""
_UNITS = ("prompt_tokens", "output_tokens", "image_tokens")
_ALONE, _BATCH = 1, 16


class Answer(NamedTuple):
    """What came of one question."""

    task: str
    image_tokens: int
    prompt_tokens: int
    output_tokens: int
    is_right: bool


class Asked(NamedTuple):
    """Questions that were asked together, by their places, with pictures of so many tiles, and how long that took."""

    max_tiles: int
    places: tuple[int, ...]
    answers: tuple[Answer, ...]
    seconds: float


def calibrate(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    num_threads: int = 1,
    watts: float = 6.0,
    count: int = 120,
    on_progress: OnProgress = lambda what, done, total: None,
    **_ignored: object,
) -> Path:
    """Measure and write the table. Returns its path. ``count``: pictures of a task; of pages a quarter.

    Raises: ValueError: the fonts that pictures are rendered with are not here.
    """
    assert variant.weights is not None
    hardware, tasks = calibration.hardware(torch.device("cpu"), num_threads), _tasks(variant.weights)
    examples = [one for task in tasks for one in held_out(task, count // 4 if task == "page" else count)]
    (tiles,) = (knob for knob in knobs_of(family, variant) if knob.name == MAX_TILES)
    choices = [int(value) for value in tiles.points]
    with calibration.threads(num_threads):
        asked = list(_ask(family, variant, choices, examples, ledger, on_progress))
    prices: dict[str, dict[int, Seconds]] = {}
    for size in (_ALONE, _BATCH):
        for unit, price in _prices(one for one in asked if len(one.places) == size).items():
            prices.setdefault(unit, {})[size] = price
    answers = _by_tiles(choices, asked)
    # What cuts no picture otherwise than the next choice is no point of its own: nothing is known of the difference.
    used = {one.max_tiles for one in asked}
    points = [one for one, finer in zip(choices, [*choices[1:], choices[0]], strict=True) if finer in used]
    cap = Knob(name=MAX_TOKENS, default=CAPS[-1], values=CAPS, summary="", trades="whole answers for time")
    base = {MAX_TILES: choices[-1], MAX_TOKENS: CAPS[-1]}
    measure = lambda settings: _judged(settings, answers[int(settings[MAX_TILES])], prices)  # noqa: E731
    calibration.write(
        variant,
        [one.point for one in sweep((replace(tiles, grid=tuple(points)), cap), base, measure, lambda settings: True)],
        hardware=hardware,
        watts=watts,
        metric="share of questions that are answered right",
        data={"source": "held-out pictures of each task", "seed": SEED, "tasks": tasks},
    )
    return variant.weights / TABLE_FILE


def _tasks(folder: Path) -> list[str]:
    """Those that the checkpoint was evaluated on, or else all."""
    try:
        return sorted(msgspec.json.decode((folder / "evaluation.json").read_bytes())["tasks"])
    except (OSError, KeyError, TypeError, msgspec.MsgspecError):
        return list(MEASURED)


def _ask(
    family: Family,
    variant: Variant,
    choices: Sequence[int],
    examples: Sequence[Example],
    ledger: Ledger,
    on_progress: OnProgress,
) -> Iterator[Asked]:
    """About every picture once for each way that it is cut, in batches of one task; and, for the time that it takes,
    about the first of each task alone."""
    register()
    assert family.build is not None
    network, tokenizer = family.build.load()(variant), AutoTokenizer.from_pretrained(variant.weights)
    seen: list[object] = [None] * len(examples)
    for most in choices:
        limits = TilingLimits.of(with_max_tiles(variant, most).io)
        grids = [[best_grid(image.height, image.width, limits) for image in one.images] for one in examples]
        places = [place for place, cut in enumerate(grids) if cut != seen[place]]
        seen = list(grids)
        firsts = {examples[place].task: (place,) for place in reversed(places)}
        batches = [
            *firsts.values(),
            *(tuple(places[start : start + _BATCH]) for start in range(0, len(places), _BATCH)),
        ]
        for done, batch in enumerate(batches, 1):
            ask = partial(_ask_together, network, tokenizer, examples, batch, most)
            yield ledger.keep(f"{most} tiles, pictures {batch[0]} to {batch[-1]}", Asked, ask)
            on_progress(f"pictures of at most {most} tiles", done, len(batches))


def _ask_together(network: Any, tokenizer: Any, examples: Sequence[Example], places: Sequence[int], most: int) -> Asked:
    started_s = time.perf_counter()
    told = list(answer(network, tokenizer, [examples[place] for place in places], max_tiles=most))
    seconds = time.perf_counter() - started_s
    return Asked(
        most,
        tuple(places),
        tuple(Answer(one.task, one.image_tokens, one.prompt_tokens, one.output_tokens, one.is_right) for one in told),
        seconds,
    )


def _by_tiles(choices: Iterable[int], asked: Sequence[Asked]) -> dict[int, list[Answer]]:
    """All answers for each choice. A picture that is cut as at the choice before it is answered the same."""
    found: dict[int, list[Answer]] = {}
    answers: dict[int, Answer] = {}
    for most in choices:
        for one in asked:
            if one.max_tiles == most:
                answers.update(zip(one.places, one.answers, strict=True))
        found[most] = [answers[place] for place in sorted(answers)]
    return found


def _prices(asked: Iterable[Asked]) -> dict[str, Seconds]:
    """Seconds per unit of a row. A batch takes as many steps as its longest answer has tokens."""
    samples = []
    for one in asked:
        steps = max(answer.output_tokens for answer in one.answers)
        samples.append((_units(one.answers, lambda _, steps=steps: steps), one.seconds / len(one.answers)))  # type: ignore[misc]
    return calibration.fit(samples, _UNITS)


def _units(answers: Sequence[Answer], length: Callable[[Answer], int]) -> dict[str, float]:
    """Work of the usual question."""
    return {
        "image_tokens": float(np.mean([one.image_tokens for one in answers])),
        "prompt_tokens": float(np.mean([one.prompt_tokens for one in answers])),
        "output_tokens": float(np.mean([length(one) for one in answers])),
    }


def _judged(settings: Settings, answers: Sequence[Answer], prices: Mapping[str, Mapping[int, Seconds]]) -> Measured:
    """Answers cut off at the cap are wrong, those that ended before it are what they were. What a token costs is the
    same at each point."""
    cap = int(settings[MAX_TOKENS])
    right = [one.is_right and one.output_tokens <= cap for one in answers]
    by_task: dict[str, list[bool]] = defaultdict(list)
    for one, is_right in zip(answers, right, strict=True):
        by_task[one.task].append(is_right)
    units = _units(answers, lambda one: min(cap, one.output_tokens))
    point = Point(
        settings=dict(settings),
        seconds_per_unit={unit: dict(times) for unit, times in prices.items()},
        quality=share_quality(round_off(float(np.mean(right))), len(right)),
        figures={
            **{unit: round_off(amount) for unit, amount in units.items()},
            "right_by_task": {task: round_off(float(np.mean(ones))) for task, ones in by_task.items()},
        },
    )
    return Measured(
        point, sum(units[unit] * times[_ALONE].seconds for unit, times in prices.items() if _ALONE in times)
    )
