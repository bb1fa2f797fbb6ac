"""Chat engines on a small random model, and what tests ask of them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from models.families.texthawk2.prompt import PromptBuilder
from models.registry import find
from serving.config import StreamOptions
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason, TokenLogprob
from serving.replica.chat.base import ChatEngine, EngineDelta
from serving.replica.chat.checks import EngineSetup
from serving.replica.chat.setup import engine_environment
from tests.support.chat_models import MAX_MODEL_LEN

MAX_NUM_SEQS = 4
WAIT_S = 30.0
"""How long a test waits for what must happen; only a broken program comes near it."""
_IDS = count()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole choice."""

    text: str
    token_ids: tuple[int, ...]
    reason: FinishReason | None
    logprobs: tuple[TokenLogprob, ...]
    num_prompt_tokens: int
    num_cached_tokens: int


def make_request(
    prompts: PromptBuilder, text: str, images: Sequence[EngineImage] = (), **options: Any
) -> EngineRequest:
    """A user's turn: the images, then the text."""
    ids = prompts.build([("user", [*[None] * len(images), text])])
    defaults: dict[str, Any] = {
        "max_tokens": 24,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": None,
        "stop": (),
        "json_schema": None,
        "logprobs": None,
        "logit_bias": {},
        "cache_salt": "5a",
    }
    return EngineRequest(f"test-{next(_IDS)}", tuple(ids), tuple(images), **(defaults | options))


async def collect(engine: ChatEngine, request: EngineRequest) -> Answer:
    """The whole answer; checks what holds for every stream of deltas."""
    deltas: list[EngineDelta] = []
    await engine.run(request, deltas.append)
    assert all(delta.finish_reason is None for delta in deltas[:-1]), "something follows the end"
    assert deltas, "an answer has at least its end"
    assert deltas[-1].finish_reason is not None, "the stream stopped without an end"
    assert len({delta.num_prompt_tokens for delta in deltas}) == 1
    return Answer(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        deltas[-1].finish_reason,
        tuple(entry for delta in deltas for entry in delta.logprobs),
        deltas[-1].num_prompt_tokens,
        deltas[-1].num_cached_tokens,
    )


def holds_nothing(engine: ChatEngine) -> bool:
    """Whether the engine's own counters say that no request is left."""
    stats = engine.stats()
    return (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)


def torch_engine(folder: Path, **options: int) -> ChatEngine:
    """The plain engine on the model of a folder, built as its family builds it."""
    from serving.replica.chat.torch_engine import TorchEngine

    family, nano = find("texthawk2-nano")
    assert family.build is not None
    build = partial(family.build.load(), nano.with_weights(folder))
    return TorchEngine(_setup(folder, StreamOptions(**options)), PromptBuilder.from_dir(folder), build)


def vllm_setup(folder: Path) -> EngineSetup:
    """Small, so that a start is short and its bounds are met."""
    options = StreamOptions(
        max_num_seqs=MAX_NUM_SEQS,
        max_batched_tokens=128,
        kv_cache_mb=16,
        encoder_cache_tokens=1024,
        max_images=3,
        stuck_after_s=1.0,
    )
    return _setup(folder, options)


def _setup(folder: Path, options: StreamOptions) -> EngineSetup:
    return EngineSetup(model_id="texthawk2-test", folder=folder, max_model_len=MAX_MODEL_LEN, options=options)


@contextmanager
def vllm_environment(run_dir: Path) -> Iterator[None]:
    """The variables that a deployment gets, for as long as an engine lives in this process."""
    added = engine_environment(run_dir)
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # vLLM's own
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def engine_processes(pid: int | None = None) -> list[psutil.Process]:
    """vLLM's engine processes below ``pid``, this one by default."""
    return [child for child in psutil.Process(pid).children(recursive=True) if _is_engine(child)]


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "EngineCore" in " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):  # just ended
        return False
