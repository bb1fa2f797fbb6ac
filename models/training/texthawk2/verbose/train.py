"""Trains texthawk2-nano-verbose from texthawk2-nano: first to see as that one does, then to answer at three lengths.

    python -m models.training.texthawk2.verbose.train --out .cache/texthawk2-nano-verbose

Each step draws new pictures. In the second phase it asks for each kind of answer about every one of them, so that a
picture is encoded once for all three; the tower, which has learnt to see by then, stays as it is. Interrupt it at will:
the same command goes on from the last fifty steps.
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
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from models.families.texthawk2.auto import register
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.identity import CHECKPOINTS
from models.training.average import follow
from models.training.log import LOG_FILE, TrainingLog
from models.training.optimizer import Optimizers
from models.training.products import fast_products
from models.training.stages import save_state, saved_state
from models.training.texthawk2.batches import IGNORE, Batch, Encoder, collate
from models.training.texthawk2.language_stage import load_model, padded
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.describing import KINDS, Kind, scene
from models.training.texthawk2.synth.fonts import Split
from models.training.texthawk2.verbose.slim import slim

STATE_FILE = "training_state.pt"
SAVE_EVERY = 50
UNSEEN_PICTURES = 24
"""In each of two batches."""
_AVERAGE_DECAY = 0.99
_LOG_EVERY = 10
_UNSEEN = 999
"""Seed of the pictures that are measured on; their fonts and words are held out besides."""

Model = TextHawk2ForConditionalGeneration
Batches = Mapping[Kind, Batch]
"""Of the same pictures in the same order; only the first kind's batch has their tiles."""
Losses = Callable[[Batches], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a run this one. ``sight_steps``: of all ``steps`` those of the first phase."""

    steps: int = 700
    sight_steps: int = 100
    pictures: int = 10
    lr: float = 2e-3
    seed: int = 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the log and the state")
    parser.add_argument("--from", dest="source", type=Path, default=CHECKPOINTS / "texthawk2-nano", help="larger model")
    for one in fields(Plan):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    parser.add_argument("--minutes", type=float, default=1e9, help="end the second phase by then, decaying by time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    plan = Plan(**{one.name: getattr(args, one.name) for one in fields(Plan)})
    torch.set_num_threads(args.threads)
    train(args.source, args.out, plan, args.minutes, lambda done: print(f"step {done} of {plan.steps}", flush=True))


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
    end_s = time.monotonic() + 60 * minutes
    register()
    torch.manual_seed(plan.seed)
    run = Run(source, out, plan, on_step)
    if run.done < plan.sight_steps:
        run.learn(run.sight, plan.sight_steps)
    if run.done == plan.sight_steps:  # the tower stays as it is from here on, without the noise of the last steps
        run.student.load_state_dict(run.average.state_dict())
    run.student.vision_tower.requires_grad_(False)
    if run.done < plan.steps:
        run.learn(run.answers, plan.steps, end_s)
    run.save()


class Run:
    """A training run: both models, the average of the smaller one, and how many steps are done."""

    def __init__(self, source: Path, out: Path, plan: Plan, on_step: Callable[[int], object]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._plan, self._on_step = out, plan, on_step
        self.teacher, self.student, self._tokenizer = build_pair(source, plan.seed)
        self.average: Model = copy.deepcopy(self.student).requires_grad_(False)
        self.done = 0
        if (state := saved_state(out / STATE_FILE, asdict(plan))) is not None:
            self.student.load_state_dict(state["student"])
            self.average.load_state_dict(state["average"])
            self.done = state["step"]
        self._encoder = encoder_of(self._tokenizer, self.student)
        self._log = TrainingLog(out / LOG_FILE)
        self._held_out = [
            draw(np.random.default_rng((_UNSEEN, part)), self._encoder, "test", UNSEEN_PICTURES) for part in range(2)
        ]

    def sight(self, batches: Batches) -> dict[str, Tensor]:
        """What the first phase learns."""
        return {"sight": sight_loss(self.teacher, self.student, batches)}

    def answers(self, batches: Batches) -> dict[str, Tensor]:
        """What the second phase learns."""
        images = encoded(self.student, batches)
        return {kind: answered(self.student, batch, images)[0] for kind, batch in batches.items()}

    def learn(self, losses: Losses, end: int, end_s: float = float("inf")) -> None:
        """One phase: up to step ``end``, or until ``end_s`` of the monotonic clock. The learning rate falls with it."""
        first, started_s = self.done, time.monotonic()
        optimizers = Optimizers([self.student], muon_lr=self._plan.lr, adam_lr=self._plan.lr, warmup=20)
        drawn = iter(DataLoader(Drawn(self._encoder, self._plan, first), batch_size=None, num_workers=1))
        recent = defaultdict[str, list[float]](list)
        for step in range(first, end):
            progress = max((step - first) / (end - first), (time.monotonic() - started_s) / (end_s - started_s))
            if progress >= 1:
                break
            found = losses(next(drawn))
            torch.stack(list(found.values())).mean().backward()  # type: ignore[no-untyped-call]
            optimizers.step(progress, step - first)
            follow(self.average, self.student, min(_AVERAGE_DECAY, (step - first + 1) / (step - first + 10)))
            self.done = step + 1
            self._on_step(self.done)
            for name, loss in found.items():
                recent[name].append(float(loss.detach()))
            if self.done % _LOG_EVERY == 0:
                means = {name: sum(ones) / len(ones) for name, ones in recent.items()}
                self._log.write(step=self.done, progress=progress, **means)
                recent.clear()
            if self.done % SAVE_EVERY == 0:
                self.save()

    def save(self) -> None:
        """Measure; write a folder that the Auto classes load, and what the next run goes on from."""
        self._log.write(step=self.done, **measured(self.teacher, self.average, self._held_out))
        self.average.save_pretrained(self._out)
        self._tokenizer.save_pretrained(self._out)
        kept = {"student": self.student.state_dict(), "average": self.average.state_dict(), "step": self.done}
        save_state(self._out / STATE_FILE, asdict(self._plan), kept)


def build_pair(source: Path, seed: int) -> tuple[Model, Model, Any]:
    """The larger model, the smaller one made of it, and the smaller one's tokenizer.

    Raises: ValueError: ``source`` is not texthawk2-nano or its like.
    """
    words, fewer_words = build_nano_tokenizer(CHINESE), build_nano_tokenizer("")
    teacher = load_model(source, words).requires_grad_(False)

    def answer_some(model: Model) -> None:
        batches = draw(np.random.default_rng((seed, _UNSEEN)), encoder_of(words, model), "train", 16)
        for batch in batches.values():
            answered(model, batch, encoded(model, batches))

    return teacher, slim(teacher, words, fewer_words, answer_some), fewer_words


# -- pictures and questions ------------------------------------------------------------------------------------------


class Drawn(IterableDataset[Batches]):
    """What each step learns from, from step ``first`` on, without end. A step's pictures depend on it and the seed."""

    def __init__(self, encoder: Encoder, plan: Plan, first: int) -> None:
        self._encoder, self._plan, self._first = encoder, plan, first

    def __iter__(self) -> Iterator[Batches]:
        for step in count(self._first):
            yield draw(np.random.default_rng((self._plan.seed, step)), self._encoder, "train", self._plan.pictures)


def encoder_of(tokenizer: Any, model: Model) -> Encoder:
    """Conversations to tokens, and pictures to as many tiles as the model takes."""
    return Encoder(tokenizer, model.config.max_tiles, model.config.max_tiles_side)


def draw(rng: np.random.Generator, encoder: Encoder, split: Split, number: int) -> Batches:
    """So many pictures, and for each kind of answer a question about every one."""
    scenes = [scene(rng, split) for _ in range(number)]
    found: dict[Kind, Batch] = {}
    for kind in KINDS:
        items = [encoder(one.example(rng, kind), image_first=rng.random() < 0.8) for one in scenes]
        batch = collate(items, pad_id=0)  # what stands behind an answer is not seen
        found[kind] = replace(batch, examples=[], tiles=batch.tiles.new_empty(0) if found else batch.tiles)
    return found


# -- what is learnt --------------------------------------------------------------------------------------------------


def encoded(model: Model, batches: Batches) -> Tensor:
    """Tokens of all pictures, one after another (N, width)."""
    shown = batches[KINDS[0]]
    with fast_products():
        return torch.cat(model.encode_images(shown.tiles, shown.grids))


def sight_loss(teacher: Model, student: Model, batches: Batches) -> Tensor:
    """Squared distance of the pictures' tokens from the teacher's, as a share of the variance of those."""
    with torch.no_grad():
        theirs = encoded(teacher, batches).float()
    distance: Tensor = (encoded(student, batches).float() - theirs).square().mean()
    return distance / theirs.var()


def answered(model: Model, batch: Batch, images: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the answers' tokens, and which answers are right to the last one, (B,). ``images``: tokens of
    all pictures, one after another."""
    with fast_products():
        embeds = model.get_input_embeddings()(batch.input_ids)
        places = batch.input_ids == model.config.image_token_id
        embeds = embeds.masked_scatter(places[..., None], images.to(embeds.dtype))
        hidden = model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        targets = batch.labels[:, 1:]
        asked = targets != IGNORE
        logits = model.language_model.lm_head(padded(hidden[:, :-1][asked])).float()[: int(asked.sum())]
    said = targets.clone()
    said[asked] = logits.detach().argmax(-1)
    return nn.functional.cross_entropy(logits, targets[asked]), (said == targets).all(1)


@torch.no_grad()
def measured(teacher: Model, model: Model, held_out: Sequence[Batches]) -> dict[str, float]:
    """On pictures that training never saw: distance from the teacher, and by kind of answer the loss and the share that
    greedy decoding gets right to the last token."""
    found = defaultdict[str, list[float]](list)
    for batches in held_out:
        found["unseen_sight"].append(float(sight_loss(teacher, model, batches)))
        images = encoded(model, batches)
        for kind, batch in batches.items():
            loss, right = answered(model, batch, images)
            found[f"unseen_{kind}"].append(float(loss))
            found[f"exact_{kind}"].append(float(right.float().mean()))
    return {name: sum(values) / len(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
