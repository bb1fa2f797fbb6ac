"""Tiny video models with random weights, for tests of what surrounds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.families.vdit.config import OpenSoraConfig
from models.families.vdit.transformer import OpenSoraT2V
from models.io import ClipRequest
from serving.replica.job.base import Frames, JobInput

CAPTION_CHANNELS = 8


def clip_input(**changes: Any) -> JobInput:
    """A clip of 3 latent frames of 4 by 6 latent pixels."""
    values: dict[str, Any] = {
        "prompt": "a red ball", "negative_prompt": "", "num_frames": 9,
        "num_steps": 4, "guidance_scale": 3.0, "seed": 1, "sampler": "euler_ancestral", "attention": "dense", **changes,
    }  # fmt: skip
    steps, seed = values.pop("num_steps"), values.pop("seed")
    clip = ClipRequest(**{name: values.pop(name) for name in ("prompt", "negative_prompt", "num_frames")})
    return JobInput(request=clip, point={"num_inference_steps": steps, **values}, seed=seed, num_steps=steps)


def tiny_config(num_layers: int = 2) -> OpenSoraConfig:
    """Two heads of twelve."""
    return OpenSoraConfig(
        num_attention_heads=2, attention_head_dim=12, num_layers=num_layers, cross_attention_dim=24,
        caption_channels=CAPTION_CHANNELS, interpolation_scale_thw=(1.0, 1.0, 1.0),
    )  # fmt: skip


def tiny_transformer(config: OpenSoraConfig | None = None, seed: int = 0) -> OpenSoraT2V:
    """Random weights."""
    torch.manual_seed(seed)
    return OpenSoraT2V(config or tiny_config()).eval().requires_grad_(False)


def words(text: str) -> int:
    """Tokens: words, and an end."""
    return len(text.split()) + 1


def encode_words(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Each word's own random embedding, large, so that untrained weights heed it; padded to the longest. The word
    ``nan`` is not a number."""
    longest = max(map(words, prompts))
    text = torch.zeros(len(prompts), longest, CAPTION_CHANNELS)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        for column, word in enumerate([*prompt.split(), "</s>"]):
            generator = torch.Generator().manual_seed(int.from_bytes(word.encode()) % 2**31)
            text[row, column] = 30 * torch.randn(CAPTION_CHANNELS, generator=generator)
            if word == "nan":
                text[row, column] = torch.nan
            mask[row, column] = True
    return text, mask


def decode_linearly(latents: Tensor) -> Frames:
    """The first three channels, 4k + 1 frames, every latent pixel eight by eight pixels."""
    frames = latents[0, :3].permute(1, 2, 3, 0)
    index = torch.arange(4 * (len(frames) - 1) + 1).add(3).div(4, rounding_mode="floor")
    pixels = frames[index].repeat_interleave(8, 1).repeat_interleave(8, 2)
    return (pixels * 40 + 128).clamp(0, 255).to(torch.uint8).cpu().numpy().astype(np.uint8)
