"""A checkpoint folder into the networks that the runner steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from models.contract import Variant
from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.family import TEACHER, found
from models.families.vdit.loading import load_transformer
from models.families.vdit.pipeline import Frames, VideoPipeline
from models.families.vdit.vae_tiling import tiled_decode
from models.parallel.forward import VideoTransformer

EncodeText: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Prompts to embeddings (B, S, caption channels) and a mask (B, S), True = a token."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """In memory. ``transformers`` by their weights: ``teacher``, ``student``; ``dtype`` is theirs. ``decode`` turns
    latents (1, C, t, h, w), as a sampler leaves them, into frames. ``count_tokens`` is of the tokenizer alone.
    """

    transformers: Mapping[str, VideoTransformer]
    encode_text: EncodeText
    count_tokens: Callable[[str], int]
    decode: Callable[[Tensor], Frames]
    dtype: torch.dtype
    device: torch.device


def load(variant: Variant, device: str = "cpu", random_weights: bool = False, dtype: str = "float32") -> Networks:
    """Read every transformer, the autoencoder and the text encoder.

    Raises: ValueError, OSError: missing, or of another model; random weights, of which there is no tokenizer.
    """
    if random_weights:
        raise ValueError(f"{variant.id} has no random weights: its text encoder comes with a tokenizer")
    kind, place = getattr(torch, dtype), torch.device(device)
    base = VideoPipeline.load(variant, TEACHER, kind)
    transformers = {TEACHER: base.transformer}
    for name in {made.weights for made in found(variant).io.samplers.values()} - {TEACHER}:
        assert variant.weights is not None, "the base was read from it"
        transformers[name] = load_transformer(variant.weights / name, kind)
    for network in (base.vae, base.text.model):
        network.to(place)
    return Networks(
        transformers={name: transformer.to(place) for name, transformer in transformers.items()},
        encode_text=base.text.encode,
        count_tokens=base.text.count_tokens,
        decode=partial(_decode, base.vae, kind),
        dtype=kind,
        device=place,
    )


@torch.inference_mode()
def _decode(vae: CausalVae, dtype: torch.dtype, latents: Tensor) -> Frames:
    """As the pipeline does it; what is larger than a tile goes tile by tile."""
    pixels = tiled_decode(vae, latents.to(dtype) / vae.config.scale_factor)[0]
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
