"""vLLM as a chat engine: its ``AsyncLLM`` in this process, its engine core in a child process.

Nothing that a client sent reaches vLLM's own media code: images arrive here as tiles, keyed by the server's hash.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError, VLLMError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from models.contract import Prompts
from serving.errors import EngineFailed, InvalidRequest
from serving.replica.chat.base import EngineDelta, EngineRequest, EngineStats
from serving.replica.chat.checks import RequestChecks
from serving.replica.chat.schemas import SchemaGate, too_complex
from serving.replica.chat.vllm_options import VllmOptions
from serving.replica.chat.vllm_sampling import seeded_arguments
from serving.replica.chat.vllm_stats import CountingStatLogger, VllmCounters
from serving.tasks.chat.domain import FinishReason, TokenLogprob

_LOG = logging.getLogger(__name__)
_RETRY_AFTER_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""A request that is cancelled while it is handed over leaves vLLM's two image caches at odds. vLLM then refuses those
that come with the same image, until one has brought the data again; and that one may be cancelled, too."""
_SHUTDOWN_S = 5
_ENCODER_POLL_S = 1.0
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class VllmEngine:
    """See the module's docstring. The process needs ``engine_environment``."""

    def __init__(self, options: VllmOptions, prompts: Prompts) -> None:
        self._options = options
        self._prompts = prompts
        self._counters = VllmCounters()
        self._llm: AsyncLLM | None = None
        self._checks: RequestChecks | None = None
        self._schemas: SchemaGate | None = None
        self._encoder_poll: asyncio.Task[None] | None = None
        self._encoder_seconds = 0.0
        self._image_tokens = 0
        self._aborts = 0
        self._running: set[str] = set()
        self._last_idle_s = 0.0

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._options.max_model_len

    async def start(self) -> None:
        """Start the engine process and load the model; takes seconds, off the event loop."""
        config = await asyncio.to_thread(_vllm_config, self._options)
        vocab_size = config.model_config.get_vocab_size()
        self._checks = RequestChecks(bounds=self._options, prompts=self._prompts, vocab_size=vocab_size)
        self._schemas = SchemaGate(self._options.model_dir, vocab_size)
        llm: AsyncLLM = await asyncio.to_thread(
            AsyncLLM.from_vllm_config,
            config,
            stat_loggers=[partial(CountingStatLogger, self._counters)],
            disable_log_stats=True,  # of the periodic log lines; ours and Prometheus' loggers stay
        )
        self._llm = llm
        if not all(await llm.collective_rpc("vireo_die_with", args=(os.getpid(),))):
            _LOG.warning("this platform cannot watch processes: if this one is killed, its engine process stays behind")
        self._encoder_poll = asyncio.create_task(self._poll_encoder())

    async def stop(self) -> None:
        """End the engine process."""
        llm, self._llm = self._llm, None
        if self._encoder_poll is not None:
            self._encoder_poll.cancel()
            with suppress(asyncio.CancelledError):
                await self._encoder_poll
            self._encoder_poll = None
        if self._schemas is not None:
            self._schemas.close()
        if llm is not None:
            await self._end(llm)

    async def _end(self, llm: AsyncLLM) -> None:
        """Requests in flight first, then the task that waits for steps, so that neither takes this for a crash."""
        if not llm.errored:
            await llm.abort(list(self._running))
        if llm.output_handler is not None:
            llm.output_handler.cancel()
            await asyncio.wait([llm.output_handler])
        await asyncio.to_thread(llm.shutdown, timeout=_SHUTDOWN_S)

    async def check_health(self) -> None:
        """Raises: EngineFailed: the engine process has ended, was not started, or has not moved for too long."""
        if self._llm is None or self._llm.errored:
            raise _dead()
        waited_s = time.monotonic() - max(self._counters.last_step_s, self._last_idle_s)
        if self._running and waited_s > self._options.stuck_after_s:
            raise EngineFailed(f"the model's process has not moved for {waited_s:.0f} seconds; retry")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineDelta, None]:
        """Generate one choice."""
        if self._llm is None or self._checks is None or self._llm.errored:
            raise _dead()
        self._checks.check(request)
        if request.json_schema is not None and self._schemas is not None:
            await self._schemas.check(request.json_schema)
        self._enter(request)
        finished, text = False, ""
        try:
            async with aclosing(self._attempts(self._llm, request)) as deltas:
                async for delta in deltas:
                    finished = delta.finish_reason is not None
                    if request.json_schema is not None:
                        text += delta.text
                        _check_json(request, text, delta.finish_reason)
                    yield delta
        except (VLLMError, ValueError) as error:
            raise _translated(error) from error
        finally:
            self._running.discard(request.request_id)
            if not finished:
                self._aborts += 1
                await self._abort(request)

    def stats(self) -> EngineStats:
        """Counters as of the engine's last step."""
        count = self._counters
        return EngineStats(
            running=count.running,
            waiting=count.waiting,
            kv_blocks_used=round(count.kv_usage * count.num_kv_blocks),
            kv_blocks_total=count.num_kv_blocks,
            prefill_tokens=count.prefill_tokens,
            decode_tokens=count.decode_tokens,
            image_tokens=self._image_tokens,
            encoder_seconds=self._encoder_seconds,
            encoder_images=count.encoder_images,
            image_cache_hits=count.image_hits,
            image_cache_misses=count.image_queries - count.image_hits,
            preemptions=count.preemptions,
            aborts=self._aborts,
            extra={
                "in_flight": len(self._running),
                "steps": count.steps,
                "prefix_query_tokens": count.prefix_queries,
                "prefix_hit_tokens": count.prefix_hits,
                "encoder_tokens": count.encoder_tokens,
            },
        )

    def _enter(self, request: EngineRequest) -> None:
        if not self._running:
            self._last_idle_s = time.monotonic()
        self._running.add(request.request_id)
        assert self._checks is not None, "set by start"
        self._image_tokens += self._checks.image_tokens(request)

    async def _attempts(self, llm: AsyncLLM, request: EngineRequest) -> AsyncGenerator[EngineDelta, None]:
        params, started = _sampling_params(request, self._options.device), False
        for pause_s in (*_RETRY_AFTER_S, None):
            try:
                (prompt,) = await llm.renderer.render_cmpl_async([_prompt(request)])
            except AssertionError:  # "Expected a cached item": the image left vLLM's cache between two looks at it
                if not request.images or pause_s is None:
                    raise EngineFailed("the model gave up on this request; retry") from None
                await asyncio.sleep(pause_s)
                continue
            outputs = llm.generate(prompt, params, request.request_id)
            async with aclosing(outputs):
                async for output in outputs:
                    if output.outputs[0].finish_reason == "error":
                        break
                    started = True
                    yield _delta(output, request.logprobs)
                else:
                    return
            if started or not request.images or pause_s is None:
                break
            await asyncio.sleep(pause_s)
        if request.json_schema is not None:
            raise too_complex()
        raise EngineFailed("the model gave up on this request; retry")

    async def _abort(self, request: EngineRequest) -> None:
        """vLLM aborts what is closed or cancelled, unless that happens while the request is being handed over."""
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort(request.request_id)

    async def _poll_encoder(self) -> None:
        """The time of the vision tower is known in the engine process only: ask when images have gone through."""
        asked_at = 0
        while True:
            await asyncio.sleep(_ENCODER_POLL_S)
            if self._counters.encoder_images == asked_at or self._llm is None or self._llm.errored:
                continue
            asked_at = self._counters.encoder_images
            with suppress(VLLMError):
                self._encoder_seconds = max(await self._llm.collective_rpc("vireo_encoder_seconds"))


def _vllm_config(options: VllmOptions) -> VllmConfig:
    arguments = AsyncEngineArgs(
        model=str(options.model_dir),
        served_model_name=[options.model_id],
        trust_remote_code=False,
        load_format="safetensors",
        generation_config="vllm",  # sampling is what the request says, never what a folder says
        dtype=options.dtype,
        seed=0,
        enforce_eager=options.enforce_eager,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_logprobs=options.max_logprobs,
        tensor_parallel_size=options.tensor_parallel_size,
        kv_cache_memory_bytes=options.kv_cache_bytes,
        enable_prefix_caching=options.enable_prefix_caching,
        prefix_caching_hash_algo="sha256",
        limit_mm_per_prompt={"image": options.max_images},
        mm_processor_cache_gb=options.image_cache_bytes / (1 << 30),
        skip_mm_profiling=True,
        # Lazy, and with bounds on its own work, so that no schema can hold the engine up.
        structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
        worker_extension_cls="serving.replica.chat.vllm_worker.WorkerExtension",
        logits_processors=["serving.replica.chat.vllm_sampling:SeededSampling"] if options.device == "cpu" else None,
        enable_logging_iteration_details=True,  # reports encoder runs; the logger that would print them is off
        disable_log_stats=True,
    )
    config: VllmConfig = arguments.create_engine_config()
    # No engine argument sets this one. Its default, one step's tokens, would keep but one large image.
    config.scheduler_config.encoder_cache_size = max(options.encoder_cache_tokens, options.max_num_batched_tokens)
    return config


def _prompt(request: EngineRequest) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids), "cache_salt": request.cache_salt}
    if request.images:
        prompt["multi_modal_data"] = {"image": [(image.tiles, image.grid) for image in request.images]}
        prompt["multi_modal_uuids"] = {"image": [image.key for image in request.images]}
    return prompt


def _sampling_params(request: EngineRequest, device: str) -> SamplingParams:
    schema, temperature, top_p, seed = request.json_schema, request.temperature, request.top_p, request.seed
    extra_args = None
    if device == "cpu" and seed is not None and temperature > 0:
        extra_args = seeded_arguments(seed, temperature, top_p)
        temperature, top_p, seed = 0.0, 1.0, None
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        extra_args=extra_args,
        stop=list(request.stop),
        logprobs=request.logprobs,
        logit_bias=dict(request.logit_bias) or None,
        structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
        output_kind=RequestOutputKind.DELTA,
    )


def _delta(output: RequestOutput, num_alternatives: int | None) -> EngineDelta:
    choice: CompletionOutput = output.outputs[0]
    if choice.finish_reason is not None and choice.finish_reason not in _REASONS:
        raise EngineFailed("the model gave up on this request; retry")
    return EngineDelta(
        text=choice.text,
        token_ids=tuple(choice.token_ids),
        finish_reason=None if choice.finish_reason is None else _REASONS[choice.finish_reason],
        logprobs=_logprobs(choice, num_alternatives),
        num_cached_tokens=output.num_cached_tokens or 0,
        num_prompt_tokens=len(output.prompt_token_ids or ()),
    )


def _logprobs(choice: CompletionOutput, num_alternatives: int | None) -> tuple[TokenLogprob, ...]:
    if choice.logprobs is None or num_alternatives is None:
        return ()
    found = []
    for token_id, entries in zip(choice.token_ids, choice.logprobs, strict=True):
        others = sorted(entries.values(), key=lambda entry: -entry.logprob)
        chosen = entries[token_id]
        top = tuple((entry.decoded_token or "", entry.logprob) for entry in others[:num_alternatives])
        found.append(TokenLogprob(chosen.decoded_token or "", chosen.logprob, top))
    return tuple(found)


def _check_json(request: EngineRequest, text: str, reason: FinishReason | None) -> None:
    """When its grammar library gives up on a schema, vLLM ends the text as if it were complete."""
    if reason is FinishReason.STOP and not request.stop:
        try:
            json.loads(text)
        except ValueError as error:
            raise too_complex() from error


def _dead() -> EngineFailed:
    return EngineFailed("the model's process ended; retry")


def _translated(error: VLLMError | ValueError) -> InvalidRequest | EngineFailed:
    if isinstance(error, EngineDeadError):
        return _dead()
    _LOG.warning("vLLM refused a request: %s", error)
    if isinstance(error, VLLMClientError | ValueError):
        return InvalidRequest("the model cannot run this request; simplify response_format or shorten the prompt")
    return EngineFailed("the model failed on this request; retry, or send another one")
