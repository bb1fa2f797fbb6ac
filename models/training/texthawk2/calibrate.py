"""Points of a TextHawk2 checkpoint: tiles of a picture and cap on the answer, judged on pictures that it never saw.

An answer is greedy, so a shorter cap cuts it off and changes nothing before that: each picture is asked about once for
each way to cut it, and every cap is judged on these answers. Times are measured apart (``timing``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from models.io import MAX_TILES, MAX_TOKENS, ChatTokens, knobs_of, with_max_tiles
from models.operating_points import TABLE_FILE, Point, Seconds, round_off, share_quality
from models.training import calibration
from models.training.calibration import Ledger, Measured, Settings
from models.training.held_out import batch_s
from models.training.sweep import sweep
from models.training.texthawk2.evaluation import SEED, answer, held_out
from models.training.texthawk2.synth.example import Example
from models.training.texthawk2.synth.examples import MEASURED, TASKS
from models.training.texthawk2.timing import ALONE, Run, fit_answers, held_out_of, time_answers

CAPS = (8, 16, 32, 64, 128, 320)
"""The longest is that of the evaluation."""
_BATCH = 16


class Answer(NamedTuple):
    """What came of one question."""

    task: str
    image_tokens: int
    prompt_tokens: int
    output_tokens: int
    is_right: bool


class Asked(NamedTuple):
    """Questions that were asked together, by their places, with pictures of so many tiles."""

    max_tiles: int
    places: tuple[int, ...]
    answers: tuple[Answer, ...]


def calibrate(
    family: Family,
    variant: Variant,
    *,
    ledger: Ledger,
    num_threads: int = 1,
    watts: float = 6.0,
    count: int = 120,
    repeats: int = 4,
    on_progress: OnProgress = lambda what, done, total: None,
    **_ignored: object,
) -> Path:
    """Measure and write the table. Returns its path. ``count``: pictures of a task. ``repeats``: of what is
    timed.

    Raises: ValueError: the fonts that pictures are rendered with are not here.
    """
    assert variant.weights is not None
    hardware, tasks = calibration.hardware(torch.device("cpu"), num_threads), _tasks(variant.weights)
    examples = [one for task in tasks for one in held_out(task, count)]
    (tiles,) = (knob for knob in knobs_of(family, variant) if knob.name == MAX_TILES)
    choices = [int(value) for value in tiles.points]
    register()
    assert family.build is not None
    network, tokenizer = family.build.load()(variant), AutoTokenizer.from_pretrained(variant.weights)
    with calibration.threads(num_threads):
        time_all = partial(time_answers, family, variant, network, tokenizer, repeats=repeats, on_progress=on_progress)
        runs = ledger.keep("times", list[Run], time_all)
        asked = list(_ask(network, tokenizer, variant, choices, examples, ledger, on_progress))
    prices = fit_answers(runs)
    answers = _by_tiles(choices, asked)
    # What cuts no picture otherwise than the next choice is no point of its own: nothing is known of the difference.
    used = {one.max_tiles for one in asked}
    points = [one for one, finer in zip(choices, [*choices[1:], choices[0]], strict=True) if finer in used]
    cap = Knob(name=MAX_TOKENS, default=CAPS[-1], values=CAPS, summary="", trades="whole answers for time")
    base = {MAX_TILES: choices[-1], MAX_TOKENS: CAPS[-1]}

    def measure(settings: Settings) -> Measured:
        return _judged(family, variant, settings, answers[int(settings[MAX_TILES])], prices)

    calibration.write(
        variant,
        [one.point for one in sweep((replace(tiles, grid=tuple(points)), cap), base, measure, lambda settings: True)],
        hardware=hardware,
        watts=watts,
        metric="share of questions that are answered right",
        data={"source": "held-out pictures of each task", "seed": SEED, "tasks": tasks},
        held_out=held_out_of(runs, prices),
    )
    return variant.weights / TABLE_FILE


def _tasks(folder: Path) -> list[str]:
    """Those that the checkpoint was evaluated on and that still exist, or else all."""
    try:
        evaluated = msgspec.json.decode((folder / "evaluation.json").read_bytes())["tasks"]
        return sorted(task for task in evaluated if task in TASKS)
    except (OSError, KeyError, TypeError, msgspec.MsgspecError):
        return list(MEASURED)


def _ask(
    network: Any,
    tokenizer: Any,
    variant: Variant,
    choices: Sequence[int],
    examples: Sequence[Example],
    ledger: Ledger,
    on_progress: OnProgress,
) -> Iterator[Asked]:
    """About every picture once for each way that it is cut, in batches of one task."""
    seen: list[object] = [None] * len(examples)
    for most in choices:
        limits = TilingLimits.of(with_max_tiles(variant, most).io)
        grids = [[best_grid(image.height, image.width, limits) for image in one.images] for one in examples]
        places = [place for place, cut in enumerate(grids) if cut != seen[place]]
        seen = list(grids)
        batches = [tuple(places[start : start + _BATCH]) for start in range(0, len(places), _BATCH)]
        for done, batch in enumerate(batches, 1):
            ask = partial(_ask_together, network, tokenizer, examples, batch, most)
            yield ledger.keep(f"{most} tiles, pictures {batch[0]} to {batch[-1]}", Asked, ask)
            on_progress(f"pictures of at most {most} tiles", done, len(batches))


def _ask_together(network: Any, tokenizer: Any, examples: Sequence[Example], places: Sequence[int], most: int) -> Asked:
    told = answer(network, tokenizer, [examples[place] for place in places], max_tiles=most)
    return Asked(
        most,
        tuple(places),
        tuple(Answer(one.task, one.image_tokens, one.prompt_tokens, one.output_tokens, one.is_right) for one in told),
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


def _judged(
    family: Family,
    variant: Variant,
    settings: Settings,
    answers: Sequence[Answer],
    prices: Mapping[str, dict[int, Seconds]],
) -> Measured:
    """Answers cut off at the cap are wrong, those that ended before it are what they were. What a token costs is the
    same at each point."""
    assert family.work is not None
    cap = int(settings[MAX_TOKENS])
    right = [one.is_right and one.output_tokens <= cap for one in answers]
    by_task: dict[str, list[bool]] = defaultdict(list)
    for one, is_right in zip(answers, right, strict=True):
        by_task[one.task].append(is_right)
    images, prompt, length = np.mean(
        [(one.image_tokens, one.prompt_tokens, min(cap, one.output_tokens)) for one in answers], axis=0
    ).tolist()
    units = family.work.load()(variant, ChatTokens(prompt - images, images, length), {}).units
    point = Point(
        settings=dict(settings),
        seconds_per_unit={unit: dict(times) for unit, times in prices.items()},
        quality=share_quality(round_off(float(np.mean(right))), len(right)),
        figures={
            **{unit: round_off(units[unit]) for unit in ("image_tokens", "prompt_tokens", "output_tokens")},
            "right_by_task": {task: round_off(float(np.mean(ones))) for task, ones in by_task.items()},
        },
    )
    return Measured(point, batch_s(prices, units, ALONE))
