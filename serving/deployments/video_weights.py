"""Reads the weights of every variant of a video checkpoint, as the torch engine wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from models.samplers.base import Sampler
from models.samplers.make import make_sampler
from models.vdit.pipeline import VideoPipeline
from models.vdit.spec import VideoModelSpec
from serving.engines.video.weights import VideoWeights


@dataclass(frozen=True)
class LoadWeights:
    """Called once by each rank, on its engine's thread; picklable, for it travels to the ranks."""

    spec: VideoModelSpec
    device: str
    dtype: str

    def __call__(self) -> Mapping[str, VideoWeights]:
        """By variant. Raises: ValueError, OSError: the folder is not what the registry says."""
        variants = sorted({steps.variant for steps in self.spec.samplers.values()}, reverse=True)
        return {variant: self._read(variant) for variant in variants}

    def _read(self, variant: str) -> VideoWeights:
        dtype: torch.dtype = getattr(torch, self.dtype)
        pipeline = VideoPipeline.load(self.spec, variant, dtype)
        pipeline.transformer.to(self.device)
        pipeline.vae.to(self.device)
        pipeline.text.model.to(self.device)
        return VideoWeights(
            transformer=pipeline.transformer,
            dtype=dtype,
            encode_text=pipeline.text.encode,
            count_tokens=pipeline.text.count_tokens,
            max_text_tokens=pipeline.text.max_tokens,
            make_sampler=partial(_sampler, self.spec),
            decode=pipeline.decode,
        )


def _sampler(spec: VideoModelSpec, name: str, num_steps: int) -> Sampler:
    """Raises: ValueError: not one that this checkpoint was made for."""
    return make_sampler(name, num_steps, segments=spec.check_sampler(name, num_steps).multiple)
