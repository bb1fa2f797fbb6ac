"""Video engines as tests use them: one without a model, one in torch with tiny random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.families.vdit.networks import Networks
from models.families.vdit.runner import VditRunner
from models.methods.ras.config import RasConfig
from serving.replica.job.engine import EngineOptions, JobEngine
from serving.replica.job.fake import FakePace, FakeRunner
from tests.support.clip_limits import clip_limits
from tests.support.video_models import (
    CAPTION_CHANNELS,
    decode_linearly,
    encode_words,
    tiny_transformer,
    words,
)

BAD_PROMPT = "a nan ball"
"""Every step of a request with this prompt fails."""

TINY = {"num_layers": 2, "num_heads": 2, "head_dim": 12, "caption_channels": CAPTION_CHANNELS}
LIMITS = clip_limits(TINY, width=48, height=32, frame_counts=(1, 5, 9), latent_channels=4)
OPTIONS = EngineOptions(family=LIMITS.family, variant=LIMITS.variant, stop_grace_s=5.0)


def fake_engine(**pace: Any) -> JobEngine:
    """Fails on ``BAD_PROMPT``."""
    made = FakePace(**{"fails": lambda request, step: request.prompt == BAD_PROMPT, **pace})
    return JobEngine(OPTIONS, lambda: FakeRunner(LIMITS.io, made))


def tiny_networks(**changes: Any) -> Networks:
    """Random numbers."""
    made = Networks(
        transformers={"teacher": tiny_transformer(seed=0), "student": tiny_transformer(seed=1)},
        encode_text=encode_words,
        count_tokens=words,
        decode=decode_linearly,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return replace(made, **changes)


def tiny_runner(ras: RasConfig | None = None, **changes: Any) -> VditRunner:
    """Of a variant that is like the nano model, and smaller."""
    return VditRunner(tiny_networks(**changes), LIMITS.variant, ras)


def torch_engine(**options: Any) -> JobEngine:
    """On the CPU."""
    return JobEngine(replace(OPTIONS, **options), tiny_runner)
