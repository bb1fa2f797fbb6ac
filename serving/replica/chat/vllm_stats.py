"""What a vLLM engine counts and the beat of its steps, through its own interface for stat loggers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, MultiModalCacheStats, SchedulerStats

from serving.replica.chat.base import EngineStats


@dataclass(slots=True)
class Beat:
    """What one engine has reported so far, and when it last did a step."""

    stats: EngineStats = field(default_factory=EngineStats)
    last_step_s: float = 0.0
    on_step: Callable[[], None] = lambda: None
    """Called when the outputs of a step are with their requests."""


class CountingStatLogger(StatLoggerBase):
    """Counts what vLLM reports. A factory: pass ``partial(CountingStatLogger, beat)``."""

    def __init__(self, beat: Beat, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._beat = beat
        self._config = vllm_config

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: MultiModalCacheStats | None = None,
        engine_idx: int = 0,
    ) -> None:
        """Called by vLLM on the event loop after each step."""
        stats = self._beat.stats
        if scheduler_stats is not None:  # from the engine process
            stats.running = scheduler_stats.num_running_reqs
            stats.waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            stats.kv_blocks_used = round(scheduler_stats.kv_cache_usage * stats.kv_blocks_total)
            self._beat.last_step_s = time.monotonic()
            if (details := scheduler_stats.iteration_details) is not None:
                stats.encoder_images += details.num_encoder_inputs
        if iteration_stats is not None:  # what this process makes of a step's outputs
            stats.prefill_tokens += iteration_stats.prompt_token_stats.computed
            stats.decode_tokens += iteration_stats.num_generation_tokens
            stats.preemptions += iteration_stats.num_preempted_reqs
        if mm_cache_stats is not None:
            stats.image_cache_hits += mm_cache_stats.hits
            stats.image_cache_misses += mm_cache_stats.queries - mm_cache_stats.hits
        self._beat.on_step()

    def log_engine_initialized(self) -> None:
        """The size of the KV cache is known now; one block is vLLM's own."""
        blocks: Any = self._config.cache_config.num_gpu_blocks
        self._beat.stats.kv_blocks_total = int(blocks or 1) - 1
