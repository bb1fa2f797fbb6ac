"""vLLM as a chat engine: its ``AsyncLLM`` in this process, its engine core in a child process.

Nothing that a client sent reaches vLLM's own media code: images arrive here as tiles, keyed by the server's hash.

vLLM leaves each step's outputs in one collector per request and would wake a task for each. We are called once a step
instead, and hand on what every collector holds: nobody is woken here before the outbox of a gateway is.

vLLM does not say what it holds back for stop strings. So where the guard ends an answer, as many characters as the
longest stop string less one may be missing at its end.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
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
from vllm.v1.engine.output_processor import RequestOutputCollector

from models.contract import Grid, Prompts
from serving.config import StreamOptions
from serving.delivery.stream.wire import EngineImage, EngineRequest, FinishReason, Tiles, TokenLogprob
from serving.errors import EngineFailed, InvalidRequest
from serving.replica.chat.base import EngineDelta, EngineStats, Say
from serving.replica.chat.checks import EngineSetup, RequestChecks
from serving.replica.chat.schemas import SchemaGate, too_complex
from serving.replica.chat.vllm_ends import EndBoard
from serving.replica.chat.vllm_stats import Beat, CountingStatLogger
from serving.replica.chat.vllm_worker import seeded_arguments

ToImage = Callable[[Tiles, Grid], object]
_LOG = logging.getLogger(__name__)
_RETRY_AFTER_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
"""A request that is cancelled while it is handed over leaves vLLM's two image caches at odds. vLLM then refuses those
that come with the same image, until one has brought the data again; and that one may be cancelled, too."""
_SHUTDOWN_S = 5
_ENCODER_POLL_S = 1.0
_PROCESSORS = (
    "serving.replica.chat.vllm_ends:EndsToBoard",
    "serving.replica.chat.vllm_worker:SeededSampling",  # changes logits
)
_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class VllmEngine:
    """See the module's docstring. The process needs ``engine_environment``."""

    def __init__(self, setup: EngineSetup, prompts: Prompts, to_image: ToImage | None = None) -> None:
        """``to_image``: the family's part ``vllm_image``, if it has one."""
        self._setup = setup
        self._prompts = prompts
        self._to_image = to_image or (lambda tiles, grid: (tiles, grid))
        self._beat = Beat(on_step=self._hand_on)
        self._listeners: set[_Listener] = set()
        self._handler: asyncio.Task[None] | None = None
        self._llm: AsyncLLM | None = None
        self._checks: RequestChecks | None = None
        self._schemas: SchemaGate | None = None
        self._encoder_poll: asyncio.Task[None] | None = None
        self._running: set[str] = set()
        self._ends: EndBoard | None = None
        self._block_tokens = 1
        self._last_idle_s = 0.0

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._setup.max_model_len

    @property
    def kv_bytes(self) -> int:
        """As set aside at the start."""
        return self._setup.options.kv_cache_mb << 20

    def held_bytes(self, request: EngineRequest) -> int:
        """Prompt and longest answer, in whole blocks."""
        if self._checks is None:
            raise _dead()
        self._checks.check(request)
        num_blocks = -(-self._checks.num_tokens(request) // self._block_tokens)
        return num_blocks * self.kv_bytes // max(1, self._beat.stats.kv_blocks_total)

    async def start(self) -> None:
        """Start the engine process and load the model; takes seconds, off the event loop."""
        config = await asyncio.to_thread(_vllm_config, self._setup)
        vocab_size = config.model_config.get_vocab_size()
        self._checks = RequestChecks(self._setup, self._prompts, vocab_size)
        self._schemas = SchemaGate(self._setup.folder, vocab_size)
        llm: AsyncLLM = await asyncio.to_thread(
            AsyncLLM.from_vllm_config,
            config,
            stat_loggers=[partial(CountingStatLogger, self._beat)],
            disable_log_stats=True,  # of the periodic log lines; ours and Prometheus' loggers stay
        )
        self._llm = llm
        if self._setup.device == "cpu" and hasattr(os, "memfd_create"):
            self._ends = EndBoard(2 * self._setup.options.max_num_seqs)
        self._block_tokens = config.cache_config.block_size
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
        if self._ends is not None:
            self._ends.close()

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
        waited_s = time.monotonic() - max(self._beat.last_step_s, self._last_idle_s)
        if self._running and waited_s > self._setup.options.stuck_after_s:
            raise EngineFailed(f"the model's process has not moved for {waited_s:.0f} seconds; retry")

    async def run(self, request: EngineRequest, say: Say) -> None:
        """Generate one choice."""
        if self._llm is None or self._checks is None or self._llm.errored:
            raise _dead()
        self._checks.check(request)
        if request.json_schema is not None and self._schemas is not None:
            await self._schemas.check(request.json_schema)
        self._enter(request)
        finished = False
        try:
            await self._attempt(self._llm, request, say)
            finished = True
        except (VLLMError, ValueError) as error:
            raise _translated(error) from error
        finally:
            self._running.discard(request.request_id)
            if not finished:
                self._beat.stats.aborts += 1
                await self._abort(request)

    @property
    def sees_apart(self) -> bool:
        """No: the tower is in another process."""
        return False

    async def image_distance(self, one: EngineImage, other: EngineImage) -> float | None:
        """vLLM keeps its embeddings to itself."""
        return None

    def stats(self) -> EngineStats:
        """Counters as of the engine's last step."""
        return replace(self._beat.stats)

    def _enter(self, request: EngineRequest) -> None:
        if not self._running:
            self._last_idle_s = time.monotonic()
        self._running.add(request.request_id)
        assert self._checks is not None, "set by start"
        self._beat.stats.image_tokens += self._checks.image_tokens(request)

    async def _attempt(self, llm: AsyncLLM, request: EngineRequest, say: Say) -> None:
        row = self._ends.take() if self._ends is not None and request.tells_ends else None
        try:
            await self._attempts(llm, request, say, row)
        finally:
            if self._ends is not None and row is not None:
                self._ends.give_back(row)

    async def _attempts(self, llm: AsyncLLM, request: EngineRequest, say: Say, row: int | None) -> None:
        ends = {} if self._ends is None or row is None else self._ends.arguments(row, self._prompts.end_of_turn_id)
        params = _sampling_params(request, self._setup.device, ends)
        for pause_s in (*_RETRY_AFTER_S, None):
            listener = _Listener(request, say, None if row is None else self._ends, row or 0)
            if (prompt := await self._rendered(llm, request)) is not None:
                await self._listen(llm, listener, prompt, params)
            if listener.is_complete:
                if listener.had_enough:
                    await self._abort(request)
                return
            if listener.has_spoken or not request.images or pause_s is None:
                break
            await asyncio.sleep(pause_s)
        if request.json_schema is not None and prompt is not None:
            raise too_complex()
        raise EngineFailed("the model gave up on this request; retry")

    async def _rendered(self, llm: AsyncLLM, request: EngineRequest) -> Any:
        """What vLLM makes of a prompt; None where an image has left its cache between two looks at it."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids), "cache_salt": request.cache_salt}
        if request.images:
            prompt["multi_modal_data"] = {
                "image": [self._to_image(image.tiles, image.grid) for image in request.images]
            }
            prompt["multi_modal_uuids"] = {"image": [image.key for image in request.images]}
        try:
            (rendered,) = await llm.renderer.render_cmpl_async([prompt])
        except AssertionError:  # "Expected a cached item"
            return None
        return rendered

    async def _listen(self, llm: AsyncLLM, listener: _Listener, prompt: Any, params: SamplingParams) -> None:
        """Hand a request over, and wait until all of its answer has been said, or vLLM has given it up."""
        listener.collector = await llm.add_request(listener.request.request_id, prompt, params)
        if self._handler is not llm.output_handler:
            self._handler = llm.output_handler
            self._handler.add_done_callback(lambda _: self._hand_on(is_last=True))
        self._listeners.add(listener)
        try:
            listener.step()  # what came before we listened
            await listener.over
        finally:
            self._listeners.discard(listener)

    def _hand_on(self, is_last: bool = False) -> None:
        """A step is done; or there will be none any more."""
        for listener in tuple(self._listeners):
            listener.step()
            if is_last:
                listener.fail(_dead())

    async def _abort(self, request: EngineRequest) -> None:
        """vLLM aborts what is closed or cancelled, unless that happens while the request is being handed over."""
        if self._llm is not None and not self._llm.errored:
            await self._llm.abort(request.request_id)

    async def _poll_encoder(self) -> None:
        """The time of the vision tower is known in the engine process only: ask when images have gone through."""
        asked_at = 0
        while True:
            await asyncio.sleep(_ENCODER_POLL_S)
            if self._beat.stats.encoder_images == asked_at or self._llm is None or self._llm.errored:
                continue
            asked_at = self._beat.stats.encoder_images
            with suppress(VLLMError):
                self._beat.stats.encoder_seconds = max(await self._llm.collective_rpc("vireo_encoder_seconds"))


def _vllm_config(setup: EngineSetup) -> VllmConfig:
    options = setup.options
    arguments = AsyncEngineArgs(
        model=str(setup.folder),
        served_model_name=[setup.model_id],
        trust_remote_code=False,
        load_format="safetensors",
        generation_config="vllm",  # sampling is what the request says, never what a folder says
        dtype=options.dtype,
        seed=0,
        enforce_eager=options.enforce_eager,
        max_model_len=setup.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=max_batched_tokens(options),
        max_logprobs=setup.max_logprobs,
        kv_cache_memory_bytes=options.kv_cache_mb << 20,
        enable_prefix_caching=True,
        prefix_caching_hash_algo="sha256",
        limit_mm_per_prompt={"image": options.max_images},
        mm_processor_cache_gb=options.image_cache_mb / 1024,
        skip_mm_profiling=True,
        # Lazy, and with bounds on its own work, so that no schema can hold the engine up.
        structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
        worker_extension_cls="serving.replica.chat.vllm_worker.WorkerExtension",
        logits_processors=list(_PROCESSORS) if setup.device == "cpu" else None,
        enable_logging_iteration_details=True,  # reports encoder runs; the logger that would print them is off
        disable_log_stats=True,
    )
    config: VllmConfig = arguments.create_engine_config()
    # No engine argument sets this one. Its default, one step's tokens, would keep but one large image.
    config.scheduler_config.encoder_cache_size = max(options.encoder_cache_tokens, max_batched_tokens(options))
    return config


def max_batched_tokens(options: StreamOptions) -> int:
    """Of one step, which must be able to move every request on; as long goes a cancelled prefill on."""
    return max(options.max_batched_tokens, options.max_num_seqs)


def _sampling_params(request: EngineRequest, device: str, ends: dict[str, Any]) -> SamplingParams:
    schema, temperature, top_p, seed = request.json_schema, request.temperature, request.top_p, request.seed
    extra_args = ends
    if device == "cpu" and seed is not None and temperature > 0:
        extra_args = ends | seeded_arguments(seed, temperature, top_p)
        temperature, top_p, seed = 0.0, 1.0, None
    return SamplingParams(
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        extra_args=extra_args or None,
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


class _Listener:
    """Hands on what vLLM has made of one request."""

    def __init__(self, request: EngineRequest, say: Say, ends: EndBoard | None, row: int) -> None:
        """``ends``: where its row has the log-probabilities of the end; None: nobody asked."""
        self.request = request
        self._ends, self._row, self._num_tokens = ends, row, 0
        self.collector: RequestOutputCollector | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.has_spoken = self.is_complete = self.had_enough = False
        self._say = say
        self._text = ""

    def step(self) -> None:
        """Take what the collector holds, if anything. Never raises: it is called by vLLM."""
        if self.over.done():
            return
        try:
            output = None if self.collector is None else self.collector.get_nowait()
        except Exception:  # vLLM puts one there when it stops listening to its engine process
            self.fail(_dead())
            return
        try:
            if output is not None:
                self._take(output)
        except Exception as error:
            self.fail(error)

    def _take(self, output: RequestOutput) -> None:
        if output.outputs[0].finish_reason == "error":
            self.over.set_result(None)
            return
        delta = _delta(output, self.request.logprobs)
        if self._ends is not None:
            num = len(delta.token_ids)
            delta = delta._replace(log_p_ends=self._ends.read(self._row, self._num_tokens, num))
            self._num_tokens += num
        if self.request.json_schema is not None:
            self._text += delta.text
            _check_json(self.request, self._text, delta.finish_reason)
        self.has_spoken = True
        is_enough = bool(self._say(delta))
        if is_enough or delta.finish_reason is not None:
            self.is_complete = True
            self.had_enough = delta.finish_reason is None
            self.over.set_result(None)

    def fail(self, error: Exception) -> None:
        """Nothing more will be said."""
        if not self.over.done():
            self.over.set_exception(error)
            self.over.exception()  # seen, whoever has left meanwhile


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
