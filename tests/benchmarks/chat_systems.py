"""The two sides of bench_chat: vLLM's own OpenAI server, and Vireo around the same engine and the same folder."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.config import StreamOptions
from serving.replica.chat.checks import EngineSetup
from serving.replica.chat.setup import engine_environment
from tests.benchmarks.common import ROOT
from tests.benchmarks.gateway_systems import System
from tests.support.ports import free_ports

MODEL = "texthawk2-nano"
CHECKPOINT = ROOT / "models" / "checkpoints" / MODEL
_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ChatSetup:
    """What both sides have in common. ``settings`` are those of our chat deployment, the defaults unless changed."""

    model_dir: Path
    max_model_len: int
    settings: StreamOptions


def setup_of(model_dir: Path, max_model_len: int) -> ChatSetup:
    """Both sides serve ``model_dir`` with what a user gets who changes nothing."""
    settings = StreamOptions(engine="vllm", max_model_len=max_model_len)
    return ChatSetup(model_dir=model_dir, max_model_len=max_model_len, settings=settings)


def make_chat_systems(setup: ChatSetup, run_dir: Path) -> list[System]:
    """``bare`` and ``ours``, in the order of the table. Folders have short names: the path of a socket is bounded."""
    return [_bare(setup, run_dir / "b"), _ours(setup, run_dir / "o")]


def _ours(setup: ChatSetup, run_dir: Path) -> System:
    http, grpc = free_ports(2)
    options = {"engine": "vllm", "max_model_len": setup.max_model_len}
    models = [{"id": "dyn-perceiver-nano"}, {"id": MODEL, "checkpoint_dir": str(setup.model_dir), "options": options}]
    settings = [
        f"run_dir={run_dir}",
        "log_level=warning",
        f"models={json.dumps(models)}",
        "gateway.default_deadline_s=300",
    ]
    command = ["serving.cli", "up", "--no-check", "--port", str(http), "--grpc-port", str(grpc)]
    return System(
        name="ours",
        title="Vireo",
        commands=[[*command, *(word for setting in settings for word in ("--set", setting))]],
        ports={"http": http, "grpc": grpc},
        env={},
        run_dir=run_dir,
    )


def _bare(setup: ChatSetup, run_dir: Path) -> System:
    """The same engine options as words of a command line. The size of the encoder cache has none: it is left out."""
    (port,) = free_ports(1)
    chat = setup.settings
    arguments = {
        "host": "127.0.0.1",
        "port": port,
        "model": setup.model_dir,
        "served-model-name": MODEL,
        "load-format": "safetensors",
        "generation-config": "vllm",
        "dtype": chat.dtype,
        "seed": 0,
        "max-model-len": setup.max_model_len,
        "max-num-seqs": chat.max_num_seqs,
        "max-num-batched-tokens": max(chat.max_batched_tokens, chat.max_num_seqs),
        "max-logprobs": EngineSetup.max_logprobs,
        "kv-cache-memory-bytes": chat.kv_cache_mb * _MIB,
        "prefix-caching-hash-algo": "sha256",
        "limit-mm-per-prompt": json.dumps({"image": chat.max_images}),
        "mm-processor-cache-gb": chat.image_cache_mb / 1024,
    }
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    flags = ["enforce-eager", "skip-mm-profiling", "enable-prefix-caching", "disable-uvicorn-access-log"]
    words += [f"--{name}" for name in flags]
    return System(
        name="bare",
        title="bare vLLM server",
        commands=[["vllm.entrypoints.openai.api_server", *words]],
        ports={"http": port},
        env={**engine_environment(run_dir), **_malloc()},
        run_dir=run_dir,
        readiness_path="/health",
    )


def _malloc() -> dict[str, str]:
    """As serving/app.py sets for every replica: large buffers stay in the heap."""
    return {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)}


def write_random_folder(folder: Path, seed: int = 1) -> Path:
    """The nano model's shapes with random weights, large enough that answers vary with their input."""
    import torch

    from models.families.texthawk2.modeling import TextHawk2ForConditionalGeneration
    from models.families.texthawk2.tokenizer import build_nano_tokenizer
    from models.training.texthawk2.nano import nano_config
    from models.training.texthawk2.synth.charset import CHINESE

    tokenizer = build_nano_tokenizer(CHINESE)
    token = tokenizer.get_vocab()
    config = nano_config(
        vocab_size=len(tokenizer),
        image_id=token["<image>"],
        vision_start_id=token["<vision_start>"],
        vision_end_id=token["<vision_end>"],
        box_start_id=token["<box>"],
        eos_id=token["<|im_end|>"],
        pad_id=token["<|endoftext|>"],
    )
    config.text_config.initializer_range = 0.15
    torch.manual_seed(seed)
    TextHawk2ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_model_dir(run_dir: Path, *, is_random: bool) -> tuple[Path, str]:
    """The folder to serve and what it is. Raises: SystemExit: there is no checkpoint."""
    if is_random:
        return write_random_folder(run_dir / "model"), "random weights of the nano shape"
    if not (CHECKPOINT / "config.json").exists():
        sys.exit(f"{CHECKPOINT} is not there; give --random for random weights of the same shape")
    return CHECKPOINT, "texthawk2-nano"
