"""A system that chats, as ``vireo up`` starts it: vLLM, two tenants, and bounds that tests can reach.

``ALPHA`` may see and bias probabilities, ``BETA`` may not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from models.families.texthawk2.prompt import PromptBuilder
from tests.support.chat_engines import engine_processes
from tests.support.system import MODEL, Metrics, System, running_system
from tests.support.waiting import wait_until

CHAT_MODEL = "texthawk2-nano"
ALPHA, BETA = "alpha-key-c77d0b14", "beta-key-2e90a1ff"
MAX_IMAGES = 8
MAX_OUTPUT_TOKENS = 1024
MAX_MODEL_LEN = 2048
_DEADLINE_S = 150.0
"""Longer than a replica takes to come back on a busy machine: what is sent again must live to see it."""
_START_S = 300.0
"""vLLM takes half a minute on two free cores, and looks at a model for longer where others want them, too."""


def _models(checkpoint: Path) -> list[dict[str, Any]]:
    options = {
        "engine": "vllm",
        "max_model_len": MAX_MODEL_LEN,
        "max_output_tokens": MAX_OUTPUT_TOKENS,
        "max_num_seqs": 8,
        "max_images": MAX_IMAGES,
        # The least: a long prompt takes many steps, so that tests find it half read.
        "max_batched_tokens": 64,
        "kv_cache_mb": 32,
        "image_cache_mb": 64,
    }
    return [{"id": MODEL}, {"id": CHAT_MODEL, "checkpoint_dir": str(checkpoint), "options": options}]


def _tenant(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "api_key_sha256": [hashlib.sha256(key.encode()).hexdigest()], **more}


@dataclass(frozen=True)
class EngineCounts:
    """What vLLM itself says, from one scrape. It is brought up to date with each engine step."""

    metrics: Metrics

    def _of(self, name: str) -> float:
        return self.metrics.total(f"vllm:{name}", model_name=CHAT_MODEL)

    @property
    def running(self) -> float:
        """Choices that have blocks of the KV cache."""
        return self._of("num_requests_running")

    @property
    def waiting(self) -> float:
        """Choices that have none yet."""
        return self._of("num_requests_waiting")

    @property
    def kv_usage(self) -> float:
        """Share of the KV cache in use, 0 to 1."""
        return self._of("kv_cache_usage_perc")

    @property
    def generated(self) -> float:
        """Tokens generated since the start."""
        return self._of("generation_tokens_total")

    @property
    def prompt(self) -> float:
        """Tokens of prompts that have been read to their end."""
        return self._of("prompt_tokens_total")

    @property
    def holds_nothing(self) -> bool:
        """Whether no choice is left, and no block of the KV cache."""
        return (self.running, self.waiting, self.kv_usage) == (0, 0, 0)


@dataclass(frozen=True)
class ChatSystem:
    """A running system that chats. ``checkpoint``: the folder that it serves."""

    system: System
    checkpoint: Path

    def client(self, key: str = ALPHA) -> openai.OpenAI:
        """The official client, which retries nothing here: what fails must show."""
        return openai.OpenAI(base_url=f"{self.system.http_url}/v1", api_key=key, max_retries=0, timeout=_DEADLINE_S)

    def engine(self) -> EngineCounts:
        """The engine's own counters."""
        return EngineCounts(self.system.metrics())

    def replica(self) -> psutil.Process:
        """The process of the newest chat replica."""
        return self.system.replicas(CHAT_MODEL)[-1]

    def engine_process(self) -> psutil.Process:
        """vLLM's process of that replica."""
        (process,) = engine_processes(self.replica().pid)
        return process

    def wait_idle(self) -> None:
        """Wait until nothing is left of what was asked, in the engine and everywhere.

        Raises: AssertionError: something stays.
        """
        wait_until(lambda: self.engine().holds_nothing, "nothing running, waiting or held in the engine")
        wait_until(lambda: self.system.in_flight() == 0, "in-flight gauge back to 0")

    def endless(self) -> dict[str, int]:
        """``logit_bias`` under which an answer ends at ``max_tokens`` and nowhere before."""
        prompts = PromptBuilder.from_dir(self.checkpoint)
        return {str(number): -100 for number in (prompts.end_of_turn_id, prompts.end_of_text_id)}


@contextmanager
def running_chat_system(checkpoint: Path, *settings: str) -> Iterator[ChatSystem]:
    """Start it, take it down."""
    tenants: list[Mapping[str, Any]] = [
        _tenant("alpha", ALPHA, allow_logprobs=True),
        _tenant("beta", BETA),
    ]
    with running_system(
        f"gateway.default_deadline_s={_DEADLINE_S}",
        *settings,
        models=_models(checkpoint),
        tenants=tenants,
        start_timeout_s=_START_S,
    ) as system:
        yield ChatSystem(system, checkpoint)
