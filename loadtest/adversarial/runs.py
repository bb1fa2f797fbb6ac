"""Attacks as runs that can be interrupted: a folder each, with states, and at the end a PNG and a record a picture.

    OUT/MODEL/ATTACK/state-0.npz   how far the first batch is; the same command goes on
    OUT/MODEL/ATTACK/00.png        the longest picture that was found, 8 bits a channel
    OUT/MODEL/ATTACK/00.json       its ``Record``, written when its batch is done

Joules are CPU seconds of this process times ``watts``, an assumption that each record repeats (an estimate, as in
``vireo calibrate``); nothing is metered. Attack and victim run in one process and are timed apart.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from loadtest.adversarial.attack import Attack
from loadtest.adversarial.evading import bounds_of
from loadtest.adversarial.perturbation import Patch, as_pixels, quantised
from loadtest.adversarial.pictures import Case, stacked
from loadtest.adversarial.purifier import Purification
from loadtest.adversarial.recipes import RECIPES
from loadtest.adversarial.state import State
from loadtest.adversarial.victim import Answer, Pictures, Victim
from models.contract import OnProgress

WATTS = 6.0
"""Of a busy core, as in the tables of operating points."""
SAVE_EVERY_S = 30.0
JUDGED_COPIES = 4
_SHOWN_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``cap``: most tokens of an answer. ``every``: iterations between two looks at the answers. ``batch``: most
    pictures that are attacked together; a perturbation that all share is made in one batch whatever it is."""

    model: str
    attack: str
    iterations: int
    every: int = 10
    seed: int = 0
    cap: int = 512
    batch: int = 17
    watts: float = WATTS


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture. Tokens are those of greedy answers to the files, without the end.

    ``weights``: SHA-256 of the model's files. ``objective`` and ``step``: what was descended, and by how many grey
    levels at a time, in ``space``.
    ``losses``: the attack's, by iteration, while the picture was worked on; a black box's are minus its mean score.
    ``lengths``: (iteration, in the attack's own measure). ``attacker_j``: share of its batch's. ``clean_j`` and
    ``victim_j``: one answer alone. ``largest_change``: of a pixel, in grey levels. ``is_held_out``: the attack never
    saw this picture. ``purified_tokens``: of answers to copies as the guard purifies them, of attacks that know it.
    ``token_ids`` with ``log_p_ends``, and those of the clean picture: the answer's tokens, and the
    logarithm of the end's probability at each step, one more where the answer ended.
    """

    model: str
    weights: str
    attack: str
    objective: str
    step: float
    space: str
    task: str
    index: int
    question: str
    seed: int
    cap: int
    iterations: int
    num_queries: int
    batch: int
    watts: float
    energy_source: str
    attacker_cpu_s: float
    attacker_j: float
    clean_tokens: int
    tokens: int
    is_at_cap: bool
    is_clean_at_cap: bool
    clean_j: float
    victim_j: float
    largest_change: int
    is_held_out: bool
    losses: tuple[float, ...]
    lengths: tuple[tuple[int, float], ...]
    expected: str
    clean_text: str
    text: str
    purified_tokens: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    log_p_ends: tuple[float, ...] = ()
    clean_token_ids: tuple[int, ...] = ()
    clean_log_p_ends: tuple[float, ...] = ()

    @property
    def length(self) -> int:
        """Tokens with the end, where there was one, so that an empty answer is one token."""
        return self.tokens + (not self.is_at_cap)

    @property
    def clean_length(self) -> int:
        """``length`` of the clean picture's answer."""
        return self.clean_tokens + (not self.is_clean_at_cap)

    @property
    def amplification(self) -> float:
        """Length over that of the clean picture."""
        return self.length / self.clean_length


def wait_while(file: Path | None) -> None:
    """Until the file, if one is named, is gone."""
    while file is not None and file.exists():
        time.sleep(1.0)


def no_progress(what: str, done: int, total: int) -> None:
    """For who does not watch."""


def run(
    plan: Plan,
    victim: Victim,
    chosen: Sequence[Case],
    folder: Path,
    *,
    on_progress: OnProgress = no_progress,
    hold: Callable[[], None] = lambda: None,
) -> list[Record]:
    """Attack all pictures, a batch after another, from where the folder is. ``hold`` is called between iterations and
    may wait.

    A perturbation that all pictures share is made on every other one of them, and the rest is held out.
    """
    recipe = RECIPES[plan.attack]
    parts = batches(len(chosen), len(chosen) if recipe.space.is_shared else plan.batch)
    folder.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for number, part in enumerate(parts):

        def shifted(what: str, done: int, total: int, before: int = number) -> None:
            on_progress(what, before * total + done, len(parts) * total)

        apart = replace(plan, seed=plan.seed + number * len(chosen))  # else every batch would have the same noise
        records += _run_part(apart, victim, chosen, part, folder, state_file(number), shifted, hold)
    return sorted(records, key=lambda record: record.index)


def batches(count: int, most: int) -> list[range]:
    """Indices of ``count`` pictures in batches of at most ``most``, each with pictures from beginning to end."""
    number = -(-count // most)
    return [range(first, count, number) for first in range(number)]


def state_file(number: int) -> str:
    """Its name, of a batch."""
    return f"state-{number}.npz"


def _run_part(
    plan: Plan,
    victim: Victim,
    chosen: Sequence[Case],
    part: Sequence[int],
    folder: Path,
    file: str,
    on_progress: OnProgress,
    hold: Callable[[], None],
) -> list[Record]:
    recipe = RECIPES[plan.attack]
    made_on = part[:: 2 if recipe.space.is_shared else 1]
    prompts = {index: _prompt(victim, chosen[index]) for index in part}
    attack = Attack(
        victim=victim,
        recipe=recipe,
        clean=stacked([chosen[index] for index in made_on]),
        prompts=[prompts[index] for index in made_on],
        seed=plan.seed,
        max_tokens=plan.cap,
        every=plan.every,
        goals=bounds_of(plan.model, [chosen[index].question for index in made_on], plan.cap)
        if recipe.stays_under
        else None,
    )
    state, was_over = carried_out(attack, plan, folder / file, on_progress, hold)
    if was_over and all((folder / f"{index:02d}.json").is_file() for index in part):
        return [read_record(folder / f"{index:02d}.json") for index in part]
    everything = stacked([chosen[index] for index in part])
    best = _spread(recipe.space, state, everything) if isinstance(recipe.space, Patch) else state.best
    records = []
    for index, picture in zip(part, best, strict=True):
        record = _measured(plan, victim, state, chosen[index], index, made_on, prompts[index], picture)
        Image.fromarray(picture).save(folder / f"{index:02d}.png", optimize=True)
        (folder / f"{index:02d}.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
        records.append(record)
    return records


def _prompt(victim: Victim, case: Case) -> list[int]:
    return victim.prompt(case.question, *case.picture.shape[:2])


def carried_out(
    attack: Attack,
    plan: Plan,
    path: Path,
    on_progress: OnProgress = no_progress,
    hold: Callable[[], None] = lambda: None,
) -> tuple[State, bool]:
    """The state after ``plan.iterations``, from the file if there is one, which is kept up to date; and whether nothing
    was left to do.

    Raises: ValueError: the file is of another attack, or of other pictures.
    """
    state = State.load(path) if path.is_file() else attack.begin()
    if state.label != attack.label:
        raise ValueError(f"{path} is of another run ({state.label}); choose another folder, or remove it")
    saved_s, was_over = time.monotonic(), True
    on_progress(plan.attack, state.iteration, plan.iterations)
    while True:
        hold()
        if not attack.advance(state, plan.iterations):
            break
        was_over = False
        on_progress(plan.attack, state.iteration, plan.iterations)
        if time.monotonic() - saved_s > SAVE_EVERY_S:
            state.save(path)
            saved_s = time.monotonic()
    if not was_over:
        state.save(path)
    return state, was_over


def read_records(folder: Path) -> list[Record]:
    """Of all runs below a folder, in the order of their paths."""
    return [read_record(path) for path in sorted(folder.rglob("[0-9][0-9].json"))]


def read_record(path: Path) -> Record:
    """Raises: OSError, ValueError, TypeError: not a record."""
    plain = json.loads(path.read_text())
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return Record(**{**plain, "lengths": tuple(map(tuple, plain["lengths"]))})


def _spread(patch: Patch, state: State, clean: Pictures) -> Pictures:
    """The best patch on every picture."""
    return quantised(patch.pixels(as_pixels(clean), as_pixels(state.best[:1, -patch.side :, -patch.side :])))


def _measured(
    plan: Plan,
    victim: Victim,
    state: State,
    case: Case,
    index: int,
    made_on: Sequence[int],
    prompt: Sequence[int],
    picture: Pictures,
) -> Record:
    before, clean_s = _answered(victim, case.picture, prompt, plan.cap)
    after, victim_s = _answered(victim, picture, prompt, plan.cap)
    recipe = RECIPES[plan.attack]
    is_held_out, batch = index not in made_on, len(made_on)
    place = None if is_held_out else made_on.index(index)
    cpu_s = 0.0 if place is None else state.cpu_s / batch
    rows = [] if place is None else [row[place] for row in state.losses]
    losses = [round(loss, 6) for loss in rows if loss is not None]
    lengths = [] if place is None else [(at, round(row[place], 3)) for at, row in state.lengths]
    return Record(
        **{name: getattr(plan, name) for name in ("model", "attack", "seed", "cap", "watts")},
        weights=victim.weights,
        objective=recipe.objective,
        step=round(255 * recipe.step, 3),
        space=str(recipe.space),
        task=case.task,
        index=index,
        question=case.question,
        iterations=len(losses),
        num_queries=state.num_queries,
        purified_tokens=_purified_tokens(plan, victim, picture, prompt, index) if recipe.knows_guard else (),
        batch=batch,
        energy_source="estimate",
        attacker_cpu_s=round(cpu_s, 3),
        attacker_j=round(cpu_s * plan.watts, 3),
        clean_tokens=before.num_tokens,
        tokens=after.num_tokens,
        is_at_cap=not after.is_ended,
        is_clean_at_cap=not before.is_ended,
        clean_j=round(clean_s * plan.watts, 4),
        victim_j=round(victim_s * plan.watts, 4),
        largest_change=int(np.abs(picture.astype(np.int16) - case.picture).max()),
        is_held_out=is_held_out,
        losses=tuple(losses),
        lengths=tuple(lengths),
        expected=case.expected[:_SHOWN_CHARS],
        clean_text=_text(victim, before),
        text=_text(victim, after),
        token_ids=tuple(after.tokens),
        log_p_ends=_rounded(after.log_p_ends),
        clean_token_ids=tuple(before.tokens),
        clean_log_p_ends=_rounded(before.log_p_ends),
    )


def _purified_tokens(
    plan: Plan, victim: Victim, picture: Pictures, prompt: Sequence[int], index: int
) -> tuple[int, ...]:
    """Of draws that the attack never saw."""
    draw = random.Random(f"{plan.seed} {index} judged")
    height, width = picture.shape[:2]
    shown = np.stack([Purification.drawn(height, width, draw).bytes_of(picture) for _ in range(JUDGED_COPIES)])
    return tuple(one.num_tokens for one in victim.answer(shown, [prompt] * len(shown), max_tokens=plan.cap))


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)


def _answered(victim: Victim, picture: Pictures, prompt: Sequence[int], cap: int) -> tuple[Answer, float]:
    """A greedy answer, alone, and its CPU seconds."""
    started = time.process_time()
    (answer,) = victim.answer(picture[None], [prompt], max_tokens=cap)
    return answer, time.process_time() - started


def _text(victim: Victim, answer: Answer) -> str:
    """With special tokens, which a reader would not see."""
    return victim.prompts.decode(answer.tokens, skip_control=False)[:_SHOWN_CHARS]
