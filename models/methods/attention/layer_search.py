"""For each layer, the sparsest tile mask that keeps the model's output near that of dense attention.

    python -m models.methods.attention.layer_search FOLDER --samples samples.safetensors --max-loss 0.05 --out plan.json

Source: Efficient-vDiT, arXiv:2502.06155 (no official code found). Differs from the paper: the loss is
relative, mean square of the difference over mean square of the dense output, so that a bound means the same for every
model.
Layers are tried one at a time; the loss with all of them sparse is measured at the end and written beside.

``samples`` holds inputs of the transformer, best from real denoising: latents (B, C, T, H, W), timestep (B,), text
(B, S, caption) and, where there is padding, text_mask (B, S).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.methods.attention.base import SelfAttention
from models.methods.attention.dense import DENSE
from models.methods.attention.layer_plan import LayerPlan
from models.methods.attention.tile_attention import TileAttention, TilePlans
from models.methods.attention.tile_mask import TileMask

Run = Callable[[SelfAttention], Tensor]


def search_layers(
    run: Run,
    *,
    num_layers: int,
    grid: tuple[int, int, int],
    max_loss: float,
    references: Iterable[int] | None = None,
) -> LayerPlan:
    """``run`` gives the model's output on fixed inputs for an attention; ``references`` to try, by default any number.

    Raises: ValueError: a negative bound, no layers, or a run that is not finite.
    """
    if not max_loss >= 0 or num_layers < 1:
        raise ValueError(f"max_loss is {max_loss} and num_layers {num_layers}; need 0 or more, and at least 1")
    plans, dense = TilePlans(), run(DENSE)
    candidates = _candidates(grid[0], range(grid[0]) if references is None else references)

    def loss_of(masks: Sequence[TileMask | None]) -> float:
        return relative_loss(run(TileAttention(masks, grid, plans=plans)), dense)

    chosen = [_sparsest(loss_of, candidates, layer, num_layers, max_loss) for layer in range(num_layers)]
    masks, losses = zip(*chosen, strict=True)
    return LayerPlan(num_frames=grid[0], masks=masks, losses=losses, max_loss=max_loss, loss=loss_of(masks))


def relative_loss(output: Tensor, dense: Tensor) -> float:
    """Mean square of the difference over mean square of ``dense``.

    Raises: ValueError: the result is not finite.
    """
    loss = ((output.double() - dense.double()).square().mean() / dense.double().square().mean()).item()
    if not loss < float("inf"):
        raise ValueError(f"the loss of a mask is {loss}: the model's output is not finite, or is zero everywhere")
    return loss


def _candidates(num_frames: int, references: Iterable[int]) -> list[TileMask]:
    """Sparsest first; those that leave nothing out are dense and need no trial."""
    masks = (TileMask(num_frames=num_frames, references=number) for number in sorted(set(references)))
    return sorted((mask for mask in masks if mask.sparsity > 0), key=lambda mask: -mask.sparsity)


def _sparsest(
    loss_of: Callable[[Sequence[TileMask | None]], float],
    candidates: Sequence[TileMask],
    layer: int,
    num_layers: int,
    max_loss: float,
) -> tuple[TileMask | None, float]:
    for mask in candidates:
        loss = loss_of([mask if number == layer else None for number in range(num_layers)])
        if loss <= max_loss:
            return mask, loss
    return None, 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    from safetensors.torch import load_file

    from models.families.vdit.loading import load_transformer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="transformer, as published or as trained here")
    parser.add_argument("--samples", type=Path, required=True, help="inputs of the transformer, safetensors")
    parser.add_argument("--max-loss", type=float, default=0.05, help="bound on the loss of each layer")
    parser.add_argument("--references", type=int, nargs="*", help="numbers of reference frames to try; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, help="plan file to write")
    options = parser.parse_args(arguments)
    model = load_transformer(options.folder).to(options.device)
    samples = {name: tensor.to(options.device) for name, tensor in load_file(options.samples).items()}
    mask = samples["text_mask"].bool() if "text_mask" in samples else None

    @torch.inference_mode()
    def run(attention: SelfAttention) -> Tensor:
        inputs = samples["latents"], samples["timestep"], samples["text"], mask
        output: Tensor = model(*inputs, attention=attention)
        return output

    grid = model.config.grid(*samples["latents"].shape[2:])
    plan = search_layers(
        run,
        num_layers=model.config.num_layers,
        grid=grid,
        max_loss=options.max_loss,
        references=options.references,
    )
    plan.save(options.out)
    names = ", ".join("dense" if mask is None else mask.name for mask in plan.masks)
    print(f"{names}\nsparsity {plan.sparsity:.1%}, loss with all of them {plan.loss:.4f}; written to {options.out}")


if __name__ == "__main__":
    main()
