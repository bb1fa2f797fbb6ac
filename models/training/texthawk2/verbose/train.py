"""Trains texthawk2-nano-verbose from texthawk2-nano: first to see as that one does, then to answer at three lengths.

    python -m models.training.texthawk2.verbose.train --out .cache/texthawk2-nano-verbose

Each step draws new pictures and asks for each kind of answer about every one of them, so that a picture is encoded once
for all three. Interrupt it at will: the same command goes on from the last hundred steps.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from models.families.texthawk2.auto import register
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.identity import CHECKPOINTS
from models.training.average import follow
from models.training.log import LOG_FILE, TrainingLog
from models.training.optimizer import Optimizers
from models.training.stages import save_state, saved_state
from models.training.texthawk2.batches import IGNORE, Batch, Encoder, collate
from models.training.texthawk2.language_stage import load_model, padded
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.describing import KINDS, Kind, scene
from models.training.texthawk2.synth.fonts import Split
from models.training.texthawk2.verbose.slim import slim

STATE_FILE = "training_state.pt"
SIGHT_WEIGHT = 0.3
"""Of the distance from what the larger model makes of a picture, beside the loss of answers."""
AVERAGE_DECAY = 0.99
SAVE_EVERY = 100
_LOG_EVERY = 20
UNSEEN_PICTURES = 24
"""In each of two batches."""
_UNSEEN = 999
"""Seed of the pictures that are measured on; their fonts and words are held out besides."""

Batches = Mapping[Kind, Batch]
"""Of the same pictures in the same order; only the first kind's batch has their tiles."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a run this one. ``sight_steps``: of all ``steps`` the first, without answers."""

    steps: int = 1500
    sight_steps: int = 200
    pictures: int = 24
    lr: float = 1e-3
    seed: int = 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the log and the state")
    parser.add_argument("--from", dest="source", type=Path, default=CHECKPOINTS / "texthawk2-nano", help="larger model")
    for one in fields(Plan):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long, decaying by time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    plan = Plan(**{one.name: getattr(args, one.name) for one in fields(Plan)})
    torch.set_num_threads(args.threads)
    with Progress() as bar:
        task = bar.add_task("training", total=plan.steps)
        train(args.source, args.out, plan, args.minutes, lambda done: bar.update(task, completed=done))


def train(
    source: Path,
    out: Path,
    plan: Plan,
    minutes: float = 1e9,
    on_step: Callable[[int], object] = lambda done: None,
) -> None:
    """Train, or go on with an interrupted run, without the momentum that it had. ``out`` gets the averaged weights.

    Raises: ValueError: the interrupted run was of another plan.
    """
    register()
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    state = saved_state(out / STATE_FILE, asdict(plan))
    teacher, student, tokenizer = build_pair(source, plan.seed)
    average = copy.deepcopy(student).requires_grad_(False)
    first = 0
    if state is not None:
        student.load_state_dict(state["student"])
        average.load_state_dict(state["average"])
        first = state["step"]
    encoder = encoder_of(tokenizer, student)
    drawn = iter(DataLoader(Drawn(encoder, "train", plan, first), batch_size=None, num_workers=1))
    held_out = [draw(np.random.default_rng((_UNSEEN, part)), encoder, "test", UNSEEN_PICTURES) for part in range(2)]
    optimizers = Optimizers([student], muon_lr=plan.lr, adam_lr=plan.lr)
    log, recent, started_s = TrainingLog(out / LOG_FILE), defaultdict[str, list[float]](list), time.monotonic()
    done = first
    for step in range(first, plan.steps):
        progress = max(step / plan.steps, (time.monotonic() - started_s) / 60 / minutes)
        if progress >= 1:
            break
        found = losses(teacher, student, next(drawn), is_sight_only=step < plan.sight_steps)
        total_of(found).backward()  # type: ignore[no-untyped-call]
        optimizers.step(progress, step - first)
        follow(average, student, min(AVERAGE_DECAY, (step + 1) / (step + 10)))
        for name, loss in found.items():
            recent[name].append(float(loss.detach()))
        done = step + 1
        on_step(done)
        if done % _LOG_EVERY == 0:
            log.write(step=done, progress=progress, **{name: sum(ones) / len(ones) for name, ones in recent.items()})
            recent.clear()
        if done % SAVE_EVERY == 0:
            log.write(step=done, **measured(teacher, average, held_out))
            save(average, tokenizer, out)
            kept = {"student": student.state_dict(), "average": average.state_dict(), "step": done}
            save_state(out / STATE_FILE, asdict(plan), kept)
    log.write(step=done, **measured(teacher, average, held_out))
    save(average, tokenizer, out)


def build_pair(
    source: Path, seed: int
) -> tuple[TextHawk2ForConditionalGeneration, TextHawk2ForConditionalGeneration, Any]:
    """The larger model, the smaller one made of it, and the smaller one's tokenizer.

    Raises: ValueError: ``source`` is not texthawk2-nano or its like.
    """
    words, fewer_words = build_nano_tokenizer(CHINESE), build_nano_tokenizer("")
    teacher = load_model(source, words).eval().requires_grad_(False)

    def answer_some(model: TextHawk2ForConditionalGeneration) -> None:
        losses(model, model, draw(np.random.default_rng((seed, _UNSEEN)), encoder_of(words, model), "train", 16))

    return teacher, slim(teacher, words, fewer_words, answer_some), fewer_words


# -- pictures and questions ------------------------------------------------------------------------------------------


class Drawn(IterableDataset[Batches]):
    """What each step learns from, from the first step on, without end. A step's pictures depend on it and the seed."""

    def __init__(self, encoder: Encoder, split: Split, plan: Plan, first: int) -> None:
        self._encoder, self._split, self._plan, self._first = encoder, split, plan, first

    def __iter__(self) -> Iterator[Batches]:
        for step in count(self._first):
            yield draw(np.random.default_rng((self._plan.seed, step)), self._encoder, self._split, self._plan.pictures)


def encoder_of(tokenizer: Any, model: TextHawk2ForConditionalGeneration) -> Encoder:
    """Conversations to tokens, and pictures to as many tiles as the model takes."""
    return Encoder(tokenizer, model.config.max_tiles, model.config.max_tiles_side)


def draw(rng: np.random.Generator, encoder: Encoder, split: Split, number: int) -> Batches:
    """So many pictures, and for each kind of answer a question about every one."""
    scenes = [scene(rng, split) for _ in range(number)]
    found: dict[Kind, Batch] = {}
    for kind in KINDS:
        items = [encoder(one.example(rng, kind), image_first=rng.random() < 0.5) for one in scenes]
        batch = collate(items, pad_id=0)  # what stands behind an answer is not seen
        found[kind] = replace(batch, examples=[], tiles=batch.tiles.new_empty(0) if found else batch.tiles)
    return found


# -- what is learnt --------------------------------------------------------------------------------------------------


def losses(
    teacher: TextHawk2ForConditionalGeneration,
    student: TextHawk2ForConditionalGeneration,
    batches: Batches,
    *,
    is_sight_only: bool = False,
) -> dict[str, Tensor]:
    """Distance of the pictures' tokens from the teacher's, as a share of their variance, and cross-entropy by kind."""
    shown = batches[KINDS[0]]
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.cat(student.encode_images(shown.tiles, shown.grids))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = torch.cat(teacher.encode_images(shown.tiles, shown.grids)).float()
    found = {"sight": (images.float() - theirs).square().mean() / theirs.var()}
    if not is_sight_only:
        found |= {kind: answered(student, batch, images)[0] for kind, batch in batches.items()}
    return found


def total_of(found: Mapping[str, Tensor]) -> Tensor:
    """One loss of all; kinds of answers count alike."""
    answers = [loss for name, loss in found.items() if name != "sight"]
    return torch.stack(answers).mean() + SIGHT_WEIGHT * found["sight"] if answers else found["sight"]


def answered(model: TextHawk2ForConditionalGeneration, batch: Batch, images: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers' tokens, and which answers are right to the last one, (B,). ``images``: tokens of
    all pictures, one after another."""
    with torch.autocast("cpu", torch.bfloat16):
        embeds = model.get_input_embeddings()(batch.input_ids)
        places = batch.input_ids == model.config.image_token_id
        embeds = embeds.masked_scatter(places[..., None], images.to(embeds.dtype))
        hidden = model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        targets = batch.labels[:, 1:]
        asked = targets != IGNORE
        logits = model.language_model.lm_head(padded(hidden[:, :-1][asked])).float()[: int(asked.sum())]
    said = targets.clone()
    said[asked] = logits.argmax(-1)
    return nn.functional.cross_entropy(logits, targets[asked]), (said == targets).all(1)


@torch.no_grad()
def measured(
    teacher: TextHawk2ForConditionalGeneration, model: TextHawk2ForConditionalGeneration, held_out: Sequence[Batches]
) -> dict[str, float]:
    """On pictures that training never saw: distance from the teacher, and by kind of answer the loss and the share that
    greedy decoding gets right to the last token."""
    found = defaultdict[str, list[float]](list)
    for batches in held_out:
        shown = batches[KINDS[0]]
        for name, loss in losses(teacher, model, batches).items():
            found[f"unseen_{name}"].append(float(loss))
        with torch.autocast("cpu", torch.bfloat16):
            images = torch.cat(model.encode_images(shown.tiles, shown.grids))
        for kind, batch in batches.items():
            found[f"exact_{kind}"].append(float(answered(model, batch, images)[1].float().mean()))
    return {name: sum(values) / len(values) for name, values in found.items()}


def save(model: TextHawk2ForConditionalGeneration, tokenizer: Any, folder: Path) -> None:
    """A folder that the Auto classes load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
