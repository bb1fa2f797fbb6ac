"""The vision tower, read at several depths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers import SiglipVisionModel


def normalise(tiles: Tensor, dtype: object = None) -> Tensor:
    """uint8 tiles (T, S, S, 3) to SigLIP's input (T, 3, S, S): ``x / 127.5 - 1``."""
    pixels = tiles.permute(0, 3, 1, 2)
    pixels = pixels.to(dtype) if dtype is not None else pixels.float()  # type: ignore[call-overload]
    return pixels / 127.5 - 1.0


def read_levels(tower: SiglipVisionModel, pixels: Tensor, levels: Sequence[int]) -> list[Tensor]:
    """Hidden states after each of ``levels`` layers, each (T, patches, width). Deeper layers are not run.

    Equal to ``tower(pixels, output_hidden_states=True).hidden_states[level]``; SigLIP's last norm is not applied.
    """
    hidden = tower.embeddings(pixels)
    kept: dict[int, Tensor] = {}
    for depth, layer in enumerate(tower.encoder.layers[: max(levels)], start=1):
        hidden = layer(hidden, None)
        if depth in levels:
            kept[depth] = hidden
    return [kept[level] for level in levels]
