"""What a chat replica's engine, and a gateway for it, read of the model; and the engine, built of vLLM or torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from models.contract import Family, Prompts, Variant
from models.registry import family_for
from schedulers.guard.calibration import GuardCalibration
from serving.config import ResolvedModel, StreamOptions
from serving.errors import ConfigError
from serving.guard.calibrated import read_calibration
from serving.replica.chat.base import ChatEngine
from serving.replica.chat.checks import EngineSetup
from serving.replica.chat.fake_engine import BytePrompts, FakeChatEngine


def family_of(model: ResolvedModel[StreamOptions]) -> tuple[Family, Variant]:
    """Family and variant of a served chat model, the variant with its folder."""
    return family_for(model.family, model.variant), model.variant


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


def calibration_of(model: ResolvedModel[StreamOptions]) -> GuardCalibration | None:
    """What benign answers of its checkpoint are like; None where nobody has calibrated the guard for it.

    Raises: ConfigError: what lies there is of other weights, or no calibration.
    """
    _, variant = family_of(model)
    return None if variant.weights is None else read_calibration(variant.weights)


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


def _setup(model: ResolvedModel[StreamOptions]) -> EngineSetup:
    return EngineSetup(
        model_id=model.id,
        folder=checkpoint_of(model),
        device=model.device,
        max_model_len=context_of(model),
        options=model.options,
    )


def _vllm(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    from serving.replica.chat.vllm_engine import VllmEngine

    family, _ = family_of(model)
    to_image = family.part("vllm_image") if "vllm_image" in family.parts else None
    return VllmEngine(_setup(model), read_prompts(model), to_image)


def _torch(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    import torch

    from serving.replica.chat.torch_engine import TorchEngine

    family, variant = family_of(model)
    build = family.build
    if build is None:
        raise ConfigError(f"{model.id} cannot be built in plain torch; set its engine to vllm")
    torch.set_num_threads(model.threads)
    dtype = model.options.dtype
    return TorchEngine(_setup(model), read_prompts(model), lambda: build.load()(variant, model.device, dtype))


def _fake(model: ResolvedModel[StreamOptions]) -> ChatEngine:
    _, variant = family_of(model)
    return FakeChatEngine(
        max_num_seqs=model.options.max_num_seqs,
        max_model_len=context_of(model),
        tokens_per_tile=variant.io.tokens_per_tile,
        step_s=0.005,
    )


def engine_environment(run_dir: Path, device: Literal["cpu", "cuda"] = "cpu") -> dict[str, str]:
    """Variables for a process that hosts a vLLM engine (a deployment's ``runtime_env``); vLLM reads no other settings
    for these. ``run_dir`` keeps what vLLM finds out about models, which halves later starts.
    """
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker lives in the engine process: two processes instead of three
        "VLLM_PLUGINS": "vireo",
        "VLLM_CACHE_ROOT": str(run_dir / "vllm"),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    if device == "cpu":
        variables["TORCH_COMPILE_DISABLE"] = "1"  # else the first request with logprobs waits for a C++ compiler
        # A kernel is prepared, and kept with its memory, for every length of a prompt and number of tiles; the default
        # of 1,024 kernels is reached only after hours of growing.
        variables["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "128"
    return variables
