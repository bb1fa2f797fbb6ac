"""What the torch engine needs of one variant of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from models.methods.samplers.base import Sampler
from models.parallel.forward import VideoTransformer
from serving.replica.video.base import Frames

EncodeText: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Prompts to embeddings (B, S, caption channels) and a mask (B, S), True = a token."""


@dataclass(frozen=True, kw_only=True)
class VideoWeights:
    """Networks in memory. ``decode`` turns latents (1, C, t, h, w), as the sampler leaves them, into frames.

    ``dtype``: of the transformer's weights and activations.
    ``count_tokens`` is of the tokenizer alone; ``max_text_tokens`` is S at most. ``sharded``: the transformer for a
    clip of so many tokens, where there are several ranks.
    """

    transformer: VideoTransformer
    dtype: torch.dtype
    encode_text: EncodeText
    count_tokens: Callable[[str], int]
    max_text_tokens: int
    make_sampler: Callable[[str, int], Sampler]
    decode: Callable[[Tensor], Frames]
    sharded: Callable[[int], VideoTransformer] | None = None

    def for_clip(self, num_tokens: int) -> VideoWeights:
        """With the transformer that a request of that size runs on."""
        return self if self.sharded is None else replace(self, transformer=self.sharded(num_tokens))
