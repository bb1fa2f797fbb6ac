"""What a chat replica's engine, and a gateway for it, read of the model; and the engine, built of vLLM or torch."""

from __future__ import annotations

from pathlib import Path

from models.contract import Family, Prompts, Variant
from models.registry import families
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.replica.chat.base import ChatEngine
from serving.replica.chat.fake_engine import BytePrompts, FakeChatEngine

_MIB = 1 << 20


def family_of(model: ResolvedModel[StreamOptions]) -> tuple[Family, Variant]:
    """Family and variant of a served chat model, the variant with its folder."""
    return families()[model.family], model.variant


def checkpoint_of(model: ResolvedModel[StreamOptions]) -> Path:
    """The folder with its weights.

    Raises: ConfigError: there are none; the message says what to do.
    """
    _, variant = family_of(model)
    folder = variant.weights
    if folder is None or not folder.is_dir():
        raise ConfigError(
            f"chat model {model.id} has no weights here: convert a checkpoint (`vireo convert {model.family}`) and set "
            f"its checkpoint_dir (--model {model.id}=FOLDER), or leave it out of models"
        )
    return folder


def context_of(model: ResolvedModel[StreamOptions]) -> int:
    """Most tokens of prompt and answer together."""
    _, variant = family_of(model)
    return model.options.max_model_len or int(variant.io.max_model_len)


def read_prompts(model: ResolvedModel[StreamOptions]) -> Prompts:
    """The model's prompt builder.

    Raises: ConfigError: its folder has no tokenizer that we can use.
    """
    family, variant = family_of(model)
    if model.options.engine == "fake":
        return BytePrompts(variant.io.tokens_per_tile)
    checkpoint_of(model)
    try:
        prompts: Prompts = family.part("prompts")(variant)
    except ValueError as error:
        raise ConfigError(f"chat model {model.id} cannot be used: {error}") from None
    return prompts


def build_engine(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    """The engine of the settings, not started.

    Raises: ConfigError: no weights, or no way to build it.
    """
    makers = {"vllm": _vllm, "torch": _torch, "fake": _fake}
    maker = makers.get(model.options.engine)
    if maker is None:
        raise ConfigError(f"engine {model.options.engine!r} of {model.id} is not decided; resolve the settings first")
    return maker(model)


def _vllm(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    from serving.replica.chat.vllm_engine import VllmEngine
    from serving.replica.chat.vllm_options import VllmOptions

    wanted = model.options
    options = VllmOptions(
        model_dir=checkpoint_of(model),
        model_id=model.id,
        device=model.device,
        dtype=wanted.dtype,
        max_model_len=context_of(model),
        max_num_seqs=wanted.max_num_seqs,
        max_num_batched_tokens=max(wanted.max_batched_tokens, wanted.max_num_seqs),
        kv_cache_bytes=wanted.kv_cache_mb * _MIB,
        image_cache_bytes=wanted.image_cache_mb * _MIB,
        encoder_cache_tokens=wanted.encoder_cache_tokens,
        max_images=wanted.max_images,
        enforce_eager=wanted.enforce_eager,
        stuck_after_s=wanted.stuck_after_s,
    )
    return VllmEngine(options, read_prompts(model))


def _torch(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    import torch

    from serving.replica.chat.torch_engine import TorchEngine, TorchOptions

    family, variant = family_of(model)
    build = family.build
    if build is None:
        raise ConfigError(f"{model.id} cannot be built in plain torch; set its engine to vllm")
    torch.set_num_threads(model.threads)
    options = TorchOptions(
        model_dir=checkpoint_of(model),
        max_model_len=context_of(model),
        device=model.device,
        max_num_seqs=model.options.max_num_seqs,
        max_images=model.options.max_images,
        encoder_cache_bytes=model.options.image_cache_mb * _MIB,
    )
    dtype = model.options.dtype
    return TorchEngine(options, read_prompts(model), lambda: build.load()(variant, model.device, dtype))


def _fake(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    _, variant = family_of(model)
    return FakeChatEngine(
        max_num_seqs=model.options.max_num_seqs,
        max_model_len=context_of(model),
        tokens_per_tile=variant.io.tokens_per_tile,
        step_s=0.005,
    )
