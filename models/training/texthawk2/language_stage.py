"""Second stage: the whole model learns to answer questions about rendered images.

Every step also shows some of the first stage's densely labelled tiles. They go on sharpening the tower, and they teach
the connector: from each token that it makes, a linear head names the characters of the token's 2x8 patches.

    python -m models.training.texthawk2.language_stage --vision .cache/nano/vision --out .cache/nano

The order that learns soonest: ``--tiles 0`` first (the connector's tokens name the characters that they cover), then
``--freeze vision`` (the language model reads them), then all; each goes on from the one before with ``--from``.

From shipped weights (``--from models/checkpoints/texthawk2-nano``) the training's own heads start fresh: first
``--freeze model``, which teaches them alone, or their gradients disturb what the model knows. After ``--tiles 0`` the
language model no longer knows what the connector says: ``align`` mends that, and a low rate (3e-4) keeps it.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from models.families.texthawk2.config import TextHawk2Config
from models.families.texthawk2.detection import DetectionHead
from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.families.texthawk2.tokens import BOX_TOKENS, COORDINATE_TOKENS
from models.families.texthawk2.vision import normalise, read_levels
from models.training.average import follow
from models.training.log import LOG_FILE, TrainingLog
from models.training.optimizer import Optimizers
from models.training.products import fast_products
from models.training.texthawk2.batches import IGNORE, Batch, Batches, Encoder
from models.training.texthawk2.coordinate_loss import answer_loss, overlaps, start_alike
from models.training.texthawk2.nano import config_for
from models.training.texthawk2.synth.charset import CHINESE
from models.training.texthawk2.synth.dense import COLUMNS, DENSE_CLASSES
from models.training.texthawk2.vision_stage import (
    DenseTiles,
    character_loss,
    name_patches,
    shares_by_kind,
    shown_again,
)
from models.training.texthawk2.windows import PlaceHead, WindowHead

HEADS_FILE = "heads.safetensors"
FIRST_COORDINATE = BOX_TOKENS.index(COORDINATE_TOKENS[0])
"""From the box's open tag to the first coordinate, in ids."""
CORNERS = (0, 1, 3, 4)
"""Where, after a box's open tag, its corners are predicted: a comma stands between them."""
FROZEN = ("tower", "vision", "model")
AVERAGE_DECAY = 0.995
KEPT_BATCHES = 40
_LARGER = [((rows, columns), rows * columns + 1) for rows, columns in ((2, 2), (1, 2), (1, 3), (2, 1), (2, 3), (3, 2))]
"""Grids of more than one tile, and how many tiles they take, the thumbnail included."""
DETECTION_WEIGHT = 1.0
DENSE_WEIGHT = 0.5


def main() -> None:
    """Command line."""
    train(build_parser().parse_args())


def build_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the log")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--vision", type=Path, help="start with the tower of this folder of the first stage")
    start.add_argument("--from", dest="source", type=Path, help="go on from this model: --out itself, or a shipped one")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this long, decaying by time")
    parser.add_argument("--tiles", type=int, default=40, help="tiles per step; 0: characters only")
    parser.add_argument("--dense-tiles", type=int, default=8, help="densely labelled tiles per step")
    parser.add_argument(
        "--freeze",
        choices=FROZEN,
        help="not trained: the tower; tower and connector (vision); all but the training's own heads (model)",
    )
    parser.add_argument("--tasks", type=_weight, nargs="+", help="shares of tasks, as word=0.3; those not named: none")
    parser.add_argument("--tiles-per-image", type=int, default=1000, help="larger images are left out")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--tower-lr", type=float, help="of the vision tower; default: the same")
    parser.add_argument("--final", type=float, default=0.05, help="share of the learning rate that is left at the end")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; twice, answers and dense tiles")
    parser.add_argument(
        "--shows",
        type=int,
        default=3,
        help="times that each densely labelled tile is shown; under --freeze vision, each batch of answers",
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers: pays on some processors")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def _weight(text: str) -> tuple[str, float]:
    task, _, share = text.partition("=")
    return task, float(share)


def build_model(tokenizer: Any) -> TextHawk2ForConditionalGeneration:
    """The nano model with fresh weights."""
    model = TextHawk2ForConditionalGeneration(config_for(tokenizer))
    first = tokenizer.convert_tokens_to_ids(COORDINATE_TOKENS[0])
    start_alike(cast(nn.Embedding, model.get_input_embeddings()), first)
    return model


def train(args: argparse.Namespace) -> None:
    """Train, measuring and writing the averaged weights every hundred steps, so that a run may be cut off anywhere."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    continue_log(args.source or args.vision, args.out)
    tokenizer = build_nano_tokenizer(CHINESE)
    model, heads = build_parts(args, tokenizer)
    model.to(args.device)
    heads.to(args.device)
    encoder = Encoder(tokenizer, model.config.max_tiles, model.config.max_tiles_side)
    pad_id = model.config.text_config.pad_token_id
    weights = dict(args.tasks) if args.tasks else None
    batches = Batches(encoder, pad_id, "train", args.tiles, args.seed, args.tiles_per_image, weights)
    loader = drawn(batches, args) if args.tiles else None
    if loader is not None and args.freeze == "vision":
        loader = looked_at(model, loader, args)
    dense = None if args.freeze == "vision" else dense_tiles(args)
    freeze(model, args.freeze)
    average = copy.deepcopy(model)
    if args.compile:
        compile_layers(model)
    unseen = Batches(encoder, pad_id, "test", args.tiles or 16, 999, args.tiles_per_image, weights)
    tiles, labels = next(iter(DenseTiles("test", 64, 99)))
    named_tiles = tiles.to(args.device), labels.to(args.device)
    held_out = [batch.to(args.device) for batch, _ in zip(unseen, range(6), strict=False)] if args.tiles else []
    optimizers = build_optimizers(args, model, heads)
    log, started_s = TrainingLog(args.out / LOG_FILE), time.monotonic()
    log.write(step=0, **measured(model, heads, held_out, named_tiles))
    recent: list[tuple[float, ...]] = []
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - started_s) / 60 / args.minutes)
        if progress >= 1:
            break
        batch = next(loader) if loader is not None else None
        recent.append(take_step(model, heads, batch, next(dense) if dense is not None else None))
        for optimizer in optimizers:
            optimizer.step(progress, step)
        follow(average, model, min(AVERAGE_DECAY, (step + 1) / (step + 10)))
        if step % 50 == 49:
            loss, box, named = (sum(values) / len(recent) for values in zip(*recent, strict=True))
            log.write(step=step + 1, progress=progress, loss=loss, box=box, dense=named)
            recent.clear()
        if step % 100 == 99:
            log.write(step=step + 1, **measured(average, heads, held_out, named_tiles))
            save(average, heads, tokenizer, args.out)
    log.write(step=step, **measured(average, heads, held_out, named_tiles))
    save(average, heads, tokenizer, args.out)


def freeze(model: TextHawk2ForConditionalGeneration, parts: str | None) -> None:
    """Leave some parts as they are (``FROZEN``; None: train all)."""
    model.requires_grad_(parts != "model")
    if parts:
        model.vision_tower.requires_grad_(False)
    if parts == "vision":
        model.connector.requires_grad_(False)


def compile_layers(model: TextHawk2ForConditionalGeneration) -> None:
    """Compile the layers in place, for a minute; names of weights stay.

    Attention is written out ("eager") so that the compiler fuses it: torch's CPU kernel for short sequences took a
    third of a step on AMD's EPYC. 1.25 times as many steps per hour there, 0.7 times on an Intel Xeon.
    """
    model.set_attn_implementation("eager")
    regions = [
        *model.vision_tower.encoder.layers,
        model.connector.query_proposal,
        *model.connector.resampler.layers,
        *model.language_model.model.layers,
    ]
    for region in regions:
        region.compile()


def continue_log(source: Path | None, out: Path) -> None:
    """Begin the log of ``out`` with that of what it goes on from."""
    earlier = source / LOG_FILE if source else None
    if earlier and earlier.exists() and not (out / LOG_FILE).exists():
        shutil.copy(earlier, out / LOG_FILE)


def build_parts(args: argparse.Namespace, tokenizer: Any) -> tuple[TextHawk2ForConditionalGeneration, nn.ModuleDict]:
    """The model and the heads that only training has: fresh, from the first stage, or from an earlier run.

    A shipped checkpoint is in half precision and has no heads: it is trained in full precision, its heads start fresh.
    """
    model = load_model(args.source, tokenizer) if args.source else build_model(tokenizer)
    characters = nn.Linear(model.config.vision_config.hidden_size, COLUMNS * len(DENSE_CLASSES))
    heads = nn.ModuleDict(
        {
            "detection": DetectionHead(model.config.text_config.hidden_size),
            "characters": characters,
            "windows": WindowHead(cast(TextHawk2Config, model.config), len(DENSE_CLASSES), COLUMNS),
            "places": PlaceHead(cast(TextHawk2Config, model.config)),
        }
    )
    if args.source and (args.source / HEADS_FILE).exists():
        heads.load_state_dict(load_file(args.source / HEADS_FILE), strict=False)
    elif args.vision:
        model.vision_tower.load_state_dict(load_file(args.vision / "vision.safetensors"))
        characters.load_state_dict(load_file(args.vision / "head.safetensors"))
    return model, heads


def load_model(folder: Path, tokenizer: Any) -> TextHawk2ForConditionalGeneration:
    """The model in ``folder``, in full precision.

    Raises:
        ValueError: it was trained with another vocabulary.
    """
    model = TextHawk2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    if words != tokenizer.get_vocab():
        raise ValueError(f"{folder} has {len(words)} tokens, other than training's {len(tokenizer)}; train anew")
    return model


def build_optimizers(
    args: argparse.Namespace, model: TextHawk2ForConditionalGeneration, heads: nn.ModuleDict
) -> list[Optimizers]:
    """One for the tower, which has learnt most of what it will, one for all that reads from it."""
    readers = [model.connector, model.language_model]
    optimizers = [Optimizers(readers, [heads], muon_lr=args.lr, adam_lr=args.lr, final=args.final)]
    if not args.freeze:
        lr = args.tower_lr or args.lr
        optimizers.append(Optimizers([model.vision_tower], muon_lr=lr, adam_lr=lr, final=args.final))
    return optimizers


def dense_tiles(args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of the first stage's tiles and labels, without end."""
    tiles = DenseTiles("train", args.dense_tiles, args.seed + 1, args.shows)
    loader = DataLoader(tiles, batch_size=None, num_workers=args.workers)
    return ((pixels.to(args.device), labels.to(args.device)) for pixels, labels in loader)


def drawn(batches: Batches, args: argparse.Namespace) -> Iterator[Batch]:
    """Batches on the device, without end."""
    return (batch.to(args.device) for batch in DataLoader(batches, batch_size=None, num_workers=args.workers))


def looked_at(
    model: TextHawk2ForConditionalGeneration, batches: Iterator[Batch], args: argparse.Namespace
) -> Iterator[Batch]:
    """Batches with the connector's tokens in place of tiles, each several times.

    Tower and connector are most of a step, and frozen they say the same of a picture every time.
    """

    @torch.no_grad()
    def look() -> Batch:
        batch = next(batches)
        with fast_products(batch.tiles.device.type):
            tokens = torch.cat(model.encode_images(batch.tiles, batch.grids))
        return replace(batch, tiles=batch.tiles[:0], examples=[], tokens=tokens)

    return shown_again(look, args.shows, np.random.default_rng(args.seed), KEPT_BATCHES)


def embedded(model: TextHawk2ForConditionalGeneration, batch: Batch) -> Tensor:
    """Token embeddings (B, L, width) with the pictures' in their places."""
    if batch.tokens is None:
        return model.embed(batch.input_ids, batch.tiles, batch.grids)  # type: ignore[arg-type]
    embeds: Tensor = model.get_input_embeddings()(batch.input_ids)
    return embeds.masked_scatter(
        (batch.input_ids == model.config.image_token_id)[..., None], batch.tokens.to(embeds.dtype)
    )


def take_step(
    model: TextHawk2ForConditionalGeneration,
    heads: nn.ModuleDict,
    batch: Batch | None,
    dense: tuple[Tensor, Tensor] | None,
) -> tuple[float, float, float]:
    """Forward and backward. Returns the losses of answers, boxes and characters."""
    loss = box_loss = dense_loss = torch.zeros((), device=model.device)
    if batch is not None:
        loss, box_loss, _ = losses(model, heads, batch)
    if dense is not None:
        dense_loss = dense_losses(model, heads, *dense)
    total = loss + DETECTION_WEIGHT * box_loss + DENSE_WEIGHT * dense_loss
    total.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), float(box_loss.detach()), float(dense_loss.detach())


def dense_losses(
    model: TextHawk2ForConditionalGeneration, heads: nn.ModuleDict, tiles: Tensor, labels: Tensor
) -> Tensor:
    """Characters named from the tower's patches, and again from the connector's tokens."""
    grids = dense_grids(len(tiles))
    with fast_products(tiles.device.type):
        levels = read_levels(model.vision_tower, normalise(tiles), model.config.vision_levels)
        named = name_patches(heads["characters"], levels[-1])
        tokens = torch.cat(model.connector(levels, grids))
        window_head = cast(WindowHead, heads["windows"])
        windows, expected = window_head(tokens), window_head.arrange(labels, grids)
    places = place_loss(heads, tokens, grids)
    return character_loss(named, labels) + character_loss(windows, expected) + places


def dense_grids(num_tiles: int) -> list[tuple[int, int]]:
    """Tiles as pictures of one tile, and two in five of them as larger ones, whose places the connector must know too.

    What stands for the thumbnail there is a tile as any other: tokens are made of their own tile alone.
    """
    grids: list[tuple[int, int]] = []
    left = 2 * num_tiles // 5
    for grid, count in _LARGER:
        if count <= left:
            grids.append(grid)
            left -= count
    return grids + [(1, 1)] * (num_tiles - sum(rows * columns + 1 for rows, columns in grids))


def place_loss(heads: nn.ModuleDict, tokens: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """L1 between where the connector's tokens (N, width) say that they are and where they are."""
    head = cast(PlaceHead, heads["places"])
    distance: Tensor = head(tokens.float()).float() - head.expected(grids).to(tokens.device)
    return distance.abs().mean()


def losses(
    model: TextHawk2ForConditionalGeneration, heads: nn.ModuleDict, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of the answers, L1 of boxes and places, and which answer tokens are right (B, L - 1)."""
    with fast_products(batch.input_ids.device.type):
        embeds = embedded(model, batch)
        hidden = model.language_model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        targets = batch.labels[:, 1:]
        asked = targets != IGNORE
        logits = model.language_model.lm_head(padded(hidden[:, :-1][asked])).float()[: int(asked.sum())]
        boxes = heads["detection"](hidden[batch.box_places[:, 0], batch.box_places[:, 1]]).float()
    loss = answer_loss(logits, targets[asked], model.config.box_start_token_id + FIRST_COORDINATE)
    box_loss = (boxes - batch.boxes).abs().mean() if len(batch.boxes) else loss.new_zeros(())
    box_loss = box_loss + place_loss(heads, embeds[batch.input_ids == model.config.image_token_id], batch.grids)
    said = targets.clone()
    said[asked] = logits.argmax(-1)
    return loss, box_loss, _judged(said, targets, batch.box_places)


def _judged(said: Tensor, targets: Tensor, box_places: Tensor) -> Tensor:
    """Which tokens are right (B, L - 1); a box's coordinates are, all four, when it overlaps the true one by half."""
    right = said == targets
    rows = box_places[:, :1]
    columns = box_places[:, 1:] + torch.tensor(CORNERS, device=box_places.device)
    shared = overlaps(said[rows, columns], targets[rows, columns])
    right[rows, columns] = (shared >= 0.5)[:, None]
    return right


def padded(rows: Tensor) -> Tensor:
    """Rows up to a multiple of 256: kernels are prepared, and kept, for every new shape."""
    return nn.functional.pad(rows, (0, 0, 0, -len(rows) % 256))


@torch.no_grad()
def measured(
    model: TextHawk2ForConditionalGeneration,
    heads: nn.ModuleDict,
    held_out: list[Batch],
    named_tiles: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """Exact matches of each task, and how well the connector's tokens name what they cover."""
    tiles, labels = named_tiles
    window_head = cast(WindowHead, heads["windows"])
    with fast_products(tiles.device.type):
        levels = read_levels(model.vision_tower, normalise(tiles), model.config.vision_levels)
        grids = [(1, 1)] * len(tiles)
        windows = window_head(torch.cat(model.connector(levels, grids))).argmax(-1)
    expected = window_head.arrange(labels, grids)
    named = shares_by_kind(windows == expected, expected)
    exact = exact_matches(model, heads, held_out) if held_out else {}
    return {**{f"tokens_{kind}": share for kind, share in named.items()}, **exact}


@torch.no_grad()
def exact_matches(
    model: TextHawk2ForConditionalGeneration, heads: nn.ModuleDict, batches: list[Batch]
) -> dict[str, float]:
    """Share of conversations of each task whose every answer token is the likeliest: what greedy decoding gives.

    A box counts as right at an IoU of 0.5.
    """
    outcomes: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        _, _, right = losses(model, heads, batch)
        for task, good in zip(batch.tasks, right.all(1).tolist(), strict=True):
            outcomes[task].append(float(good))
    return {f"exact_{task}": sum(values) / len(values) for task, values in sorted(outcomes.items())}


def save(model: TextHawk2ForConditionalGeneration, heads: nn.ModuleDict, tokenizer: Any, folder: Path) -> None:
    """A folder that the Auto classes load, and the training-only heads beside it."""
    model.save_pretrained(folder)
    save_file(heads.state_dict(), folder / HEADS_FILE)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
