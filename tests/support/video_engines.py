"""Video engines as tests use them: one without a model, one in torch with tiny random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from models.methods.samplers.make import make_sampler
from serving.replica.video.fake_engine import FakeVideoEngine, FakeVideoOptions
from serving.replica.video.torch_engine import TorchVideoEngine, TorchVideoOptions
from serving.replica.video.weights import VideoWeights
from tests.support.clip_limits import clip_limits
from tests.support.video_models import (
    MAX_TEXT_TOKENS,
    decode_linearly,
    encode_words,
    tiny_transformer,
    words,
)

BAD_PROMPT = "a nan ball"
"""Every step of a request with this prompt fails."""

LIMITS = clip_limits(width=48, height=32, frame_counts=(1, 5, 9))


def fake_engine(**options: object) -> FakeVideoEngine:
    """Fails on ``BAD_PROMPT``."""
    values: dict[str, object] = {
        "limits": LIMITS,
        "fails": lambda job_id, settings, step: settings.prompt == BAD_PROMPT,
    }
    return FakeVideoEngine(FakeVideoOptions(**{**values, **options}))  # type: ignore[arg-type]


def tiny_weights(seed: int = 0) -> VideoWeights:
    """Random numbers."""
    return VideoWeights(
        transformer=tiny_transformer(seed=seed),
        dtype=torch.float32,
        encode_text=encode_words,
        count_tokens=words,
        max_text_tokens=MAX_TEXT_TOKENS,
        make_sampler=make_sampler,
        decode=decode_linearly,
    )


def two_variants() -> Mapping[str, VideoWeights]:
    """As a checkpoint has them."""
    return {"teacher": tiny_weights(0), "student": tiny_weights(1)}


def torch_engine(**options: object) -> TorchVideoEngine:
    """On the CPU."""
    values = TorchVideoOptions(limits=LIMITS, stop_grace_s=5.0)
    return TorchVideoEngine(replace(values, **options), two_variants)  # type: ignore[arg-type]
