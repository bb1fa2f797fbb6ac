"""Builds a chat replica's engine. Imports vLLM or torch, whichever the settings name."""

from __future__ import annotations

from typing import Any, cast

from models.registry import ChatModelSpec
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.replica.chat.base import ChatEngine
from serving.tasks.chat.models import checkpoint_of, context_of, spec_of

_MIB = 1 << 20


def build_engine(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    """The engine of the settings, not started.

    Raises: ConfigError: unknown model, or no weights.
    """
    spec = spec_of(model)
    makers = {"vllm": _vllm, "torch": _torch, "fake": _fake}
    maker = makers.get(model.options.engine)
    if maker is None:
        raise ConfigError(f"engine {model.options.engine!r} of {model.id} is not decided; resolve the settings first")
    return maker(model, spec)


def _vllm(model: ResolvedModel[StreamOptions], spec: ChatModelSpec) -> ChatEngine:
    from serving.replica.chat.vllm_engine import VllmEngine
    from serving.replica.chat.vllm_options import VllmOptions

    return VllmEngine(
        VllmOptions(
            model_dir=checkpoint_of(spec),
            model_id=spec.id,
            device=cast(Any, model.device),
            dtype=model.options.dtype,
            max_model_len=context_of(model, spec),
            max_num_seqs=model.options.max_num_seqs,
            max_num_batched_tokens=max(model.options.max_batched_tokens, model.options.max_num_seqs),
            kv_cache_bytes=model.options.kv_cache_mb * _MIB,
            image_cache_bytes=model.options.image_cache_mb * _MIB,
            encoder_cache_tokens=model.options.encoder_cache_tokens,
            max_images=model.options.max_images,
            enforce_eager=model.options.enforce_eager,
            stuck_after_s=model.options.stuck_after_s,
        )
    )


def _torch(model: ResolvedModel[StreamOptions], spec: ChatModelSpec) -> ChatEngine:
    import torch

    from serving.replica.chat.torch_engine import TorchEngine, TorchOptions

    torch.set_num_threads(model.threads)
    return TorchEngine(
        TorchOptions(
            model_dir=checkpoint_of(spec),
            max_model_len=context_of(model, spec),
            device=model.device,
            dtype=getattr(torch, model.options.dtype),
            max_num_seqs=model.options.max_num_seqs,
            max_images=model.options.max_images,
            encoder_cache_bytes=model.options.image_cache_mb * _MIB,
        )
    )


def _fake(model: ResolvedModel[StreamOptions], spec: ChatModelSpec) -> ChatEngine:
    from serving.replica.chat.fake_engine import FakeChatEngine

    return FakeChatEngine(
        max_num_seqs=model.options.max_num_seqs,
        max_model_len=context_of(model, spec),
        tokens_per_tile=spec.tokens_per_tile,
        step_s=0.005,
    )
