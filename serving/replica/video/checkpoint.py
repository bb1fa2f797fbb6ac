"""A checkpoint folder into the weights that the torch engine runs."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.contract import Variant
from models.families.vdit.causal_vae import CausalVae
from models.families.vdit.family import TEACHER, found
from models.families.vdit.loading import load_transformer
from models.families.vdit.pipeline import VideoPipeline
from models.families.vdit.vae_tiling import tiled_decode
from models.methods.samplers.base import Sampler
from models.methods.samplers.make import make_sampler
from models.registry import find
from serving.replica.video.base import Frames
from serving.replica.video.weights import VideoWeights


def load_model(
    model_id: str, checkpoint_dir: Path | None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, VideoWeights]:
    """``load_variants`` by plain values, which travel to other processes. ``checkpoint_dir``: None for the packaged.

    Raises: ValueError, OSError.
    """
    variant = find(model_id)[1]
    return load_variants(variant if checkpoint_dir is None else variant.with_weights(checkpoint_dir), device, dtype)


def load_variants(variant: Variant, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, VideoWeights]:
    """Read every variant; they share autoencoder and text encoder.

    Raises: ValueError, OSError: missing, or of another model.
    """
    base = VideoPipeline.load(variant, TEACHER, dtype)
    pipelines = {TEACHER: base}
    for name in {made.weights for made in found(variant).io.samplers.values()} - {TEACHER}:
        assert variant.weights is not None, "the base was read from it"
        pipelines[name] = replace(base, transformer=load_transformer(variant.weights / name, dtype))
    for network in (base.vae, base.text.model):
        network.to(device)
    count = _counter(base)
    return {name: _weights(pipeline, count, torch.device(device), dtype) for name, pipeline in pipelines.items()}


def _weights(
    pipeline: VideoPipeline, count: Callable[[str], int], device: torch.device, dtype: torch.dtype
) -> VideoWeights:
    return VideoWeights(
        transformer=pipeline.transformer.to(device),
        dtype=dtype,
        encode_text=pipeline.text.encode,
        count_tokens=count,
        max_text_tokens=pipeline.variant.io.max_text_tokens,
        make_sampler=partial(_sampler, pipeline.variant),
        decode=partial(_decode, pipeline.vae, dtype),
    )


@torch.inference_mode()
def _decode(vae: CausalVae, dtype: torch.dtype, latents: Tensor) -> Frames:
    """As the pipeline does it; what is larger than a tile goes tile by tile."""
    pixels = tiled_decode(vae, latents.to(dtype) / vae.config.scale_factor)[0]
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def _sampler(variant: Variant, name: str, num_steps: int) -> Sampler:
    return make_sampler(name, num_steps, segments=variant.io.check_sampler(name, num_steps).multiple)


def _counter(pipeline: VideoPipeline) -> Callable[[str], int]:
    """Tokens of a prompt. A tokenizer of its own and a lock: encoding changes the settings of the other one, and
    admission, which counts, runs on another thread."""
    text = copy.copy(pipeline.text)
    text.tokenizer = copy.deepcopy(pipeline.text.tokenizer)
    lock = threading.Lock()

    def count(prompt: str) -> int:
        with lock:
            return text.count_tokens(prompt)

    return count
