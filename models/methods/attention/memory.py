"""Bytes that thinned-out attention holds, and takes in a step, before there is any of it. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.methods.attention.adaspa_config import AdaSpaConfig, searches_for
from models.methods.attention.setting import AttentionKind, AttentionSetting
from models.methods.ras.config import predicted_bytes

FLOAT_BYTES = 4

_GATHERED_BYTES = 16 << 20
"""Most keys that tile masks put side by side in one call, if more than one frame's."""

_GATHERED_BLOCK_BYTES = 1 << 20
"""Most keys of chosen blocks that are put side by side in one call, where no kernel reads them in place."""

_SCORE_BYTES = 128 << 20
"""Most scores that AdaSpa's search holds at a time, on a GPU without its kernel."""

_BYTES_PER_PAIR = 64
"""Of a pair of blocks while it is weighed, sorted and chosen."""

_MIN_BLOCK, _MAX_BLOCK = 8, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Of one request: ``rows`` of the batch, ``tokens`` of each. ``patch_values``: numbers that come out for a token.
    ``itemsize``: bytes of a number of weights and activations."""

    num_layers: int
    num_heads: int
    head_dim: int
    tokens: int
    rows: int
    patch_values: int
    itemsize: int

    @property
    def width(self) -> int:
        """Of a token."""
        return self.num_heads * self.head_dim


def adaspa_config(setting: AttentionSetting, num_steps: int, num_tokens: int) -> AdaSpaConfig:
    """The paper's searches, scaled to the number of steps."""
    return AdaSpaConfig(
        sparsity=setting.amount, search_steps=searches_for(num_steps), block_tokens=block_tokens(num_tokens)
    )


def block_tokens(num_tokens: int) -> int:
    """64, as published, where that makes at least 16 blocks; of shorter clips a sixteenth, as a power of two."""
    return max(_MIN_BLOCK, min(_MAX_BLOCK, 1 << max(0, (num_tokens // 16).bit_length() - 1)))


def held_bytes(setting: AttentionSetting, num_steps: int, shape: AttentionShape) -> int:
    """Most that is held between steps."""
    if setting.kind is AttentionKind.ADASPA:
        config = adaspa_config(setting, num_steps, shape.tokens)
        return config.predicted_bytes(shape.num_layers, shape.tokens, shape.num_heads, shape.rows)
    if setting.kind is AttentionKind.RAS:
        return predicted_bytes(
            num_layers=shape.num_layers,
            num_tokens=shape.tokens,
            width=shape.width,
            patch_values=shape.patch_values,
            rows=shape.rows,
            itemsize=shape.itemsize,
        )
    return 0


def step_bytes(setting: AttentionSetting, shape: AttentionShape) -> int:
    """Most that a step takes on top of a dense one's activations."""
    if setting.kind is AttentionKind.ADASPA:
        return _search_bytes(setting, shape)
    if setting.kind is not AttentionKind.TILE:
        return 0
    frame = shape.rows * shape.tokens * shape.width * shape.itemsize // (setting.references + setting.others)
    gathered = frame * (setting.references + 1)
    return 2 * min(setting.others * gathered, max(gathered, _GATHERED_BYTES))


def _search_bytes(setting: AttentionSetting, shape: AttentionShape) -> int:
    """Scores of a few rows, the mass of all pairs of blocks with their order, and keys put side by side."""
    blocks = -(-shape.tokens // block_tokens(shape.tokens))
    heads = shape.rows * shape.num_heads
    scores = min(_SCORE_BYTES, FLOAT_BYTES * shape.tokens**2)
    one_row = math.ceil((1 - setting.amount) * shape.tokens) * shape.head_dim * shape.itemsize
    gathered = min(heads * blocks * one_row, max(one_row, _GATHERED_BLOCK_BYTES))
    return 3 * scores + heads * blocks * blocks * _BYTES_PER_PAIR + 2 * gathered
