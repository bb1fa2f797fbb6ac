"""How many bytes a request will hold, before it is admitted.

Legend: R rows of the request, S text tokens, L tokens, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.opensora.config import OpenSoraConfig

_ACTIVATION_COPIES = 12
"""Most tensors of (R, L, W) that live at a time in a block: the feed-forward's fourfold ones, or queries, keys and
values before and after their rotation, beside the residual stream and its norm."""

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


def predict(config: OpenSoraConfig, shape: RequestShape, attention_bytes: int) -> VideoMemory:
    """Bytes of one request alone; in a batch, activations add up."""
    numbers = torch.Size(shape.latents).numel()
    text = shape.rows * shape.text_tokens
    tokens = shape.rows * shape.num_tokens(config)
    output = shape.rows * numbers * (config.out_channels / config.in_channels)
    activations = _ACTIVATION_COPIES * tokens * config.width * shape.dtype.itemsize
    return VideoMemory(
        latents_bytes=2 * numbers * FLOAT_BYTES,
        text_bytes=text * (config.caption_channels * shape.dtype.itemsize + 1),
        attention_bytes=attention_bytes,
        activation_bytes=activations + text * config.width * shape.dtype.itemsize + int(3 * output * FLOAT_BYTES),
    )
