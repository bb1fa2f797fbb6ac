"""How many bytes a request will hold, before it is admitted.

Legend: R rows of the request, S text tokens, L tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.families.vdit.config import OpenSoraConfig

_TOKEN_COPIES = 15
"""Most tensors of (R, L, W) that live at a time: queries, keys and values while the last of them is rotated, beside the
residual stream and its norm. Measured at every operation; the feed-forward's fourfold ones stay below it."""

_POSITION_COPIES = 6
"""Likewise of (L, head dim) in float32: angles, cosines, sines."""

_ROW_COPIES, _TEXT_COPIES, _LATENT_COPIES = 24, 2, 6
"""Likewise of (R, W): the modulation of a block; of (R, S, W): the text and its keys and values; and of latents."""

FLOAT_BYTES = 4
"""Latents are float32, whatever the weights are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoMemory:
    """``activation_bytes`` are there during a step only; the rest from admission to release."""

    latents_bytes: int
    text_bytes: int
    attention_bytes: int
    activation_bytes: int

    @property
    def held_bytes(self) -> int:
        """Between steps."""
        return self.latents_bytes + self.text_bytes + self.attention_bytes

    @property
    def total_bytes(self) -> int:
        """At the peak."""
        return self.held_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestShape:
    """``latents`` (1, C, t, h, w); ``dtype`` is that of weights and activations."""

    latents: tuple[int, ...]
    rows: int
    text_tokens: int
    dtype: torch.dtype

    def num_tokens(self, config: OpenSoraConfig) -> int:
        """L."""
        frames, height, width = config.grid(*self.latents[2:])
        return frames * height * width


def predict(config: OpenSoraConfig, shape: RequestShape, attention_bytes: int, step_bytes: int = 0) -> VideoMemory:
    """Bytes of one request alone; in a batch, activations add up. ``attention_bytes`` are held, ``step_bytes`` added to
    a dense step's activations."""
    numbers = torch.Size(shape.latents).numel()
    text, tokens = shape.rows * shape.text_tokens, shape.num_tokens(config)
    copies = _TOKEN_COPIES * shape.rows * tokens + _ROW_COPIES * shape.rows + _TEXT_COPIES * text
    positions = _POSITION_COPIES * tokens * config.attention_head_dim * FLOAT_BYTES
    outputs = _LATENT_COPIES * shape.rows * numbers * FLOAT_BYTES * config.out_channels // config.in_channels
    return VideoMemory(
        latents_bytes=2 * numbers * FLOAT_BYTES,
        text_bytes=text * (config.caption_channels * shape.dtype.itemsize + 1),
        attention_bytes=attention_bytes,
        activation_bytes=copies * config.width * shape.dtype.itemsize + positions + outputs + step_bytes,
    )
