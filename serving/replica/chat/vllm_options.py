"""How vLLM is set up. Free of vLLM itself: the process that builds the graph reads this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """Settings of one engine.

    ``kv_cache_bytes`` is taken at start and never grows. ``image_cache_bytes`` bounds the tiles that the engine process
    keeps, ``encoder_cache_tokens`` the image tokens whose embeddings it keeps, so that a repeated image costs neither
    transport nor vision tower. ``max_num_batched_tokens`` bounds one step, and with it how long a cancelled prefill
    goes on. ``stuck_after_s``: with requests in flight, so long without a step means that the engine hangs.

    Raises:
        ValueError: a number is not positive, or no prompt could ever run.
    """

    model_dir: Path
    model_id: str
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_model_len: int
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    kv_cache_bytes: int = 256 * _MIB
    image_cache_bytes: int = 256 * _MIB
    encoder_cache_tokens: int = 16_384
    max_images: int = 16
    max_logprobs: int = 20
    enable_prefix_caching: bool = True
    enforce_eager: bool = True
    tensor_parallel_size: int = 1
    stuck_after_s: float = 120.0

    def __post_init__(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "kv_cache_bytes",
            "tensor_parallel_size",
        ):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if min(self.image_cache_bytes, self.encoder_cache_tokens, self.max_images, self.max_logprobs) < 0:
            raise ValueError("image_cache_bytes, encoder_cache_tokens, max_images and max_logprobs cannot be negative")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens {self.max_num_batched_tokens} is below max_num_seqs {self.max_num_seqs}: a "
                "step must be able to move every request on"
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
