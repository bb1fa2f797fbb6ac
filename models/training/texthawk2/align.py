"""Tokens of a connector that went on learning, turned into those that the language model learnt to read.

Trained on dense labels alone, tower and connector come to see more, and say it in other words: answers fall apart. A
linear function of what the connector says now tells much of what it said before (docs/experiments.md). Folded into its
last layer it costs nothing and loses nothing, and the language model begins where it was rather than anew.

    python -m models.training.texthawk2.align --from .cache/seen --to models/checkpoints/texthawk2-nano --out .cache/n
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
from models.families.texthawk2.tokenizer import build_nano_tokenizer
from models.training.texthawk2.batches import Batches, Encoder
from models.training.texthawk2.language_stage import build_parts, load_model, save
from models.training.texthawk2.synth.charset import CHINESE

RIDGE = 1e-5
"""Of the tokens' variance."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="whose tower and connector went on")
    parser.add_argument("--to", type=Path, required=True, help="whose language model is kept, as it was trained")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model of both")
    parser.add_argument("--batches", type=int, default=45, help="of 40 tiles, to fit with; a tenth of them is held out")
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    args.vision = None
    tokenizer = build_nano_tokenizer(CHINESE)
    model, heads = build_parts(args, tokenizer)
    before = load_model(args.to, tokenizer)
    encoder = Encoder(tokenizer, model.config.max_tiles, model.config.max_tiles_side)
    drawn = Batches(encoder, model.config.text_config.pad_token_id, "train", 40, args.seed)
    batches = [batch for batch, _ in zip(drawn, range(args.batches), strict=False)]
    now, then = (torch.cat([_tokens(one, batch.tiles, batch.grids) for batch in batches]) for one in (model, before))
    kept = len(now) * 9 // 10
    matrix, offset = linear_map(now[:kept], then[:kept])
    print(f"explained of held-out tokens: {explained(now[kept:] @ matrix.T + offset, then[kept:]):.3f}")
    compose(model.connector.out_proj, matrix, offset)
    model.language_model.load_state_dict(before.language_model.state_dict())
    save(model, heads, tokenizer, args.out)


@torch.no_grad()
def _tokens(model: TextHawk2ForConditionalGeneration, tiles: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    return torch.cat(model.encode_images(tiles, grids))


def linear_map(inputs: Tensor, outputs: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Matrix (d', d) and offset (d') of least squares from ``inputs`` (N, d) to ``outputs`` (N, d')."""
    x, y = inputs.double(), outputs.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    gram.diagonal().add_(ridge * len(x) * x.var())
    matrix = torch.linalg.solve(gram, x.T @ y).T
    return matrix.float(), (y_mean - matrix @ x_mean).float()


def explained(found: Tensor, expected: Tensor) -> float:
    """Share of the variance of ``expected`` (N, d) that ``found`` explains; negative where its mean would do better."""
    left = (found - expected).square().sum()
    return float(1 - left / (expected - expected.mean(0)).square().sum())


@torch.no_grad()
def compose(layer: nn.Linear, matrix: Tensor, offset: Tensor) -> None:
    """``layer`` becomes ``matrix`` after it, plus ``offset``."""
    layer.weight.copy_(matrix @ layer.weight)
    layer.bias.copy_(matrix @ layer.bias + offset)


if __name__ == "__main__":
    main()
