"""Counters of a vLLM engine and the beat of its steps, through its own interface for stat loggers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats


@dataclass(slots=True)
class VllmCounters:
    """What one engine has reported so far. Gauges are those of its last step."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    num_kv_blocks: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    image_queries: int = 0
    image_hits: int = 0
    encoder_images: int = 0
    encoder_tokens: int = 0
    steps: int = 0
    last_step_s: float = 0.0
    on_step: Callable[[], None] = lambda: None
    """Called when the outputs of a step are with their requests."""

    def add_schedule(self, stats: SchedulerStats) -> None:
        """What the engine process reports with each step."""
        self.running = stats.num_running_reqs
        self.waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
        self.kv_usage = stats.kv_cache_usage
        self.prefix_queries += stats.prefix_cache_stats.queries
        self.prefix_hits += stats.prefix_cache_stats.hits
        self.steps += 1
        self.last_step_s = time.monotonic()
        if (details := stats.iteration_details) is not None:
            self.encoder_images += details.num_encoder_inputs
            self.encoder_tokens += details.num_encoder_output_tokens

    def add_iteration(self, stats: IterationStats) -> None:
        """What this process derives from a step's outputs."""
        self.prefill_tokens += stats.prompt_token_stats.computed
        self.decode_tokens += stats.num_generation_tokens
        self.preemptions += stats.num_preempted_reqs

    def add_images(self, stats: MultiModalCacheStats) -> None:
        """Look-ups of images in the processor cache."""
        self.image_queries += stats.queries
        self.image_hits += stats.hits


class CountingStatLogger(StatLoggerBase):
    """Adds what vLLM reports to ``counters``. A factory: pass ``partial(CountingStatLogger, counters)``."""

    def __init__(self, counters: VllmCounters, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._counters = counters
        self._config = vllm_config

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM on the event loop after each step."""
        if scheduler_stats is not None:
            self._counters.add_schedule(scheduler_stats)
        if iteration_stats is not None:
            self._counters.add_iteration(iteration_stats)
        if mm_cache_stats is not None:
            self._counters.add_images(mm_cache_stats)
        self._counters.on_step()

    def log_engine_initialized(self) -> None:
        """The size of the KV cache is known now; one block is vLLM's own."""
        blocks: Any = self._config.cache_config.num_gpu_blocks
        self._counters.num_kv_blocks = int(blocks or 1) - 1
