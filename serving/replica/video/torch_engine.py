"""A video transformer in torch, advanced step by step in whatever batches the scheduler picks.

    steps thread    run_step: the transformer
    side thread     admit: text encoder; snapshot, preview
    decode thread   decode: the VAE, off the critical path

All that a request holds is in its ``RequestState``; there is no other state but the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import structlog
import torch
from torch import Tensor

from models.methods.attention.setting import parse_attention
from serving.errors import EngineFailed, PromptTooLong, ServingError
from serving.replica.video.attention_maker import AttentionMaker
from serving.replica.video.base import Admitted, Frames, StepDone, StepOutcome
from serving.replica.video.batching import run_batch
from serving.replica.video.engine_thread import EngineThread
from serving.replica.video.memory import RequestShape, VideoMemory, predict
from serving.replica.video.preview import LatentColours
from serving.replica.video.request_state import Progress, RequestState, first_latents, read_snapshot, rows_of
from serving.replica.video.weights import VideoWeights
from serving.tasks.videos.domain import VideoSettings
from serving.tasks.videos.limits import ClipLimits

_log = structlog.get_logger(__name__)
_FAILED = "the model failed on this request; retry, or send another one"
_SPACE_STRIDE = 8

T = TypeVar("T")

Load: TypeAlias = Callable[[], Mapping[str, VideoWeights]]
"""Reads the weights of every variant; called once, on the engine's thread."""


@dataclass(frozen=True, kw_only=True)
class TorchVideoOptions:
    """``stuck_after_s``: a call that takes longer makes the engine unhealthy. ``stop_grace_s``: how long ``stop`` waits
    for a running one. ``retries_alone``: a batch that raises is run again one by one; not where several ranks must do
    the same."""

    limits: ClipLimits
    attention: AttentionMaker = field(default_factory=AttentionMaker)
    device: str = "cpu"
    stuck_after_s: float = 300.0
    stop_grace_s: float = 10.0
    retries_alone: bool = True


@dataclass(slots=True)
class VideoEngineStats:
    """Counters since the start. ``retried``: requests of a batch that failed, run again alone."""

    steps: int = 0
    batches: int = 0
    retried: int = 0
    failed: int = 0
    decodes: int = 0
    step_s: float = 0.0
    decode_s: float = 0.0
    text_s: float = 0.0


class TorchVideoEngine:
    """See the module."""

    def __init__(self, options: TorchVideoOptions, load: Load) -> None:
        self._options = options
        self._load = load
        self._device = torch.device(options.device)
        self._steps = EngineThread("vireo-video-steps")
        self._side = EngineThread("vireo-video-side")
        self._decodes = EngineThread("vireo-video-decode")
        self._weights: Mapping[str, VideoWeights] | None = None
        self._held: dict[str, RequestState] = {}
        self._colours: dict[str, LatentColours] = {}
        self.stats = VideoEngineStats()

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the weights on the engine's thread. Raises: EngineFailed."""
        try:
            self._weights = await self._steps.call(self._load)
        except ServingError:
            raise
        except Exception as error:
            _log.exception("the video model could not be loaded")
            raise EngineFailed("the video model could not be loaded") from error

    async def stop(self) -> None:
        """End the threads and drop everything."""
        for thread in (self._steps, self._side, self._decodes):
            await thread.stop(self._options.stop_grace_s)
        self._held.clear()
        self._colours.clear()
        self._weights = None

    def check_health(self) -> None:
        """Raises: EngineFailed: not loaded, stopped, or stuck in one call."""
        if self._weights is None:
            raise EngineFailed("the model is not loaded; retry")
        busy_s = max(thread.busy_s for thread in (self._steps, self._side, self._decodes))
        if busy_s > self._options.stuck_after_s:
            raise EngineFailed("the model is stuck; retry")

    # -- admission ---------------------------------------------------------------------------------------------------

    def check_settings(self, settings: VideoSettings) -> None:
        """Refuse what this checkpoint cannot do. Raises: UnsupportedVideo, PromptTooLong."""
        self._options.limits.check(settings)
        weights = self._of(settings)
        for name, text in (("prompt", settings.prompt), ("negative_prompt", settings.negative_prompt)):
            if (tokens := weights.count_tokens(text)) > weights.max_text_tokens:
                raise PromptTooLong(
                    f"{name} has {tokens} tokens; limit is {weights.max_text_tokens}; shorten it", param=name
                )

    def predicted_memory(self, settings: VideoSettings) -> VideoMemory:
        """By what it is for. Raises: ClientError."""
        self._options.limits.check(settings)
        setting = parse_attention(settings.attention)
        config, shape = self._of(settings).transformer.config, self._shape(settings)
        maker = self._options.attention
        attention_bytes = maker.predicted_bytes(setting, settings, config, shape)
        return predict(config, shape, attention_bytes, maker.step_bytes(setting, config, shape))

    def predicted_bytes(self, settings: VideoSettings) -> int:
        """Latents, text, caches and the activations of a step alone."""
        return self.predicted_memory(settings).total_bytes

    async def admit(self, job_id: str, settings: VideoSettings, snapshot: bytes | None = None) -> Admitted:
        """Encode the text and take the request. Raises: ClientError, EngineFailed."""
        self.check_settings(settings)
        started_s = time.perf_counter()
        state = await self._guarded(self._side, self._make_state, job_id, settings, snapshot)
        text_s = time.perf_counter() - started_s
        self.stats.text_s += text_s
        self._held[job_id] = state
        return Admitted(step=state.progress.step, held_bytes=state.held_bytes, text_s=text_s)

    @torch.inference_mode()
    def _make_state(self, job_id: str, settings: VideoSettings, snapshot: bytes | None) -> RequestState:
        weights = self._of(settings)
        sampler = weights.make_sampler(settings.sampler, settings.num_steps)
        shape = self._shape(settings)
        step = 0
        if snapshot is None:
            latents = first_latents(settings, shape.latents, sampler)
        else:
            step, latents = read_snapshot(snapshot, settings, shape.latents)
        latents = latents.to(self._device)
        text, mask = _trimmed(*weights.encode_text([settings.negative_prompt, settings.prompt][-shape.rows :]))
        setting = parse_attention(settings.attention)
        return RequestState(
            job_id=job_id,
            settings=settings,
            weights=weights.for_clip(self.num_tokens(settings)),
            sampler=sampler,
            text=text.to(self._device, weights.dtype),
            text_mask=mask.to(self._device, torch.bool),
            attention=self._options.attention.make(setting, settings, weights.transformer.config, shape),
            progress=Progress(step, latents, latents),
        )

    # -- steps -------------------------------------------------------------------------------------------------------

    def phase(self, job_id: str) -> Hashable:
        """See the protocol."""
        return self._find(job_id).phase

    async def run_step(self, job_ids: Sequence[str]) -> list[StepOutcome]:
        """One denoising step for each; a request that fails does not fail its batch."""
        found = [self._held.get(job_id) for job_id in job_ids]
        ready = [state for state in found if state is not None and not state.is_denoised]
        outcomes = iter(await self._steps.call(self._run, ready) if ready else [])
        return [
            EngineFailed("the model has no step left for this request")
            if state is None or state not in ready
            else next(outcomes)
            for state in found
        ]

    def _run(self, states: Sequence[RequestState]) -> list[StepOutcome]:
        """On the steps thread. A batch that fails is run again one by one: the one to blame must not take its
        neighbours along."""
        started_s = time.perf_counter()
        try:
            after = run_batch(states)
            self._synchronize()
        except Exception:
            _log.exception("a step failed", batch_size=len(states))
            if not self._options.retries_alone:
                raise
            if len(states) == 1:
                self.stats.failed += 1
                return [EngineFailed(_FAILED)]
            self.stats.retried += len(states)
            return [outcome for state in states for outcome in self._run([state])]
        elapsed_s = time.perf_counter() - started_s
        self.stats.batches += 1
        self.stats.step_s += elapsed_s
        return [self._accept(state, new, elapsed_s / len(states)) for state, new in zip(states, after, strict=True)]

    def _accept(self, state: RequestState, progress: Progress, compute_s: float) -> StepOutcome:
        if not bool(torch.isfinite(progress.latents).all()):
            self.stats.failed += 1
            return EngineFailed(_FAILED)
        state.progress = progress
        self.stats.steps += 1
        return StepDone(
            job_id=state.job_id,
            step=progress.step,
            compute_s=compute_s,
            sparsity=state.attention.sparsity,
            search_s=state.attention.search_s,
            held_bytes=state.held_bytes,
        )

    def _synchronize(self) -> None:
        """Wait for this step; not for a decode, which is on a stream of its own."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    # -- what comes of it --------------------------------------------------------------------------------------------

    async def decode(self, job_id: str) -> Frames:
        """Turn the finished latents into frames. Raises: EngineFailed."""
        state = self._find(job_id)
        if not state.is_denoised:
            raise EngineFailed("the model has steps left for this request")
        started_s = time.perf_counter()
        frames = await self._guarded(self._decodes, self._decode, state)
        self.stats.decodes += 1
        self.stats.decode_s += time.perf_counter() - started_s
        return frames

    def _decode(self, state: RequestState) -> Frames:
        if self._device.type != "cuda":
            return state.weights.decode(state.progress.latents)
        with torch.cuda.stream(torch.cuda.Stream(self._device)):  # type: ignore[no-untyped-call]
            return state.weights.decode(state.progress.latents)  # the steps thread has waited for these latents

    async def preview(self, job_id: str) -> Frames:
        """The middle frame of the present estimate, one pixel for each latent pixel."""
        return await self._guarded(self._side, self._preview, self._find(job_id))

    def _preview(self, state: RequestState) -> Frames:
        variant, latents = state.settings.variant, state.progress.clean
        if variant not in self._colours:
            self._colours[variant] = LatentColours.fitted(state.weights.decode, latents.shape[1], self._device)
        return self._colours[variant].picture(latents)

    async def snapshot(self, job_id: str) -> bytes:
        """Latents and step. Caches of the attention are not in it: after a resume, the next step is dense."""
        return await self._guarded(self._side, self._find(job_id).snapshot)

    def release(self, job_id: str) -> None:
        """Forget the request: nothing else refers to its tensors, but for a step or decode that runs."""
        self._held.pop(job_id, None)

    def holds(self, job_id: str) -> bool:
        """Whether the request is here."""
        return job_id in self._held

    def held_bytes(self) -> int:
        """Bytes of all requests."""
        return sum(state.held_bytes for state in list(self._held.values()))

    def num_tokens(self, settings: VideoSettings) -> int:
        """Of the clip, in the transformer."""
        shape = self._shape(settings)
        return math.prod(self._of(settings).transformer.config.grid(*shape.latents[2:]))

    # -- helpers -----------------------------------------------------------------------------------------------------

    async def _guarded(self, thread: EngineThread, function: Callable[..., T], *args: object) -> T:
        """No error of a library reaches the caller as it is."""
        try:
            return await thread.call(function, *args)
        except ServingError:
            raise
        except Exception as error:
            _log.exception("a call of the video model failed")
            raise EngineFailed(_FAILED) from error

    def _find(self, job_id: str) -> RequestState:
        if job_id not in self._held:
            raise EngineFailed("the model does not hold this request")
        return self._held[job_id]

    def _of(self, settings: VideoSettings) -> VideoWeights:
        if self._weights is None:
            raise EngineFailed("the model is not loaded; retry")
        return self._weights[settings.variant]

    def _shape(self, settings: VideoSettings) -> RequestShape:
        weights = self._of(settings)
        height, width = settings.height // _SPACE_STRIDE, settings.width // _SPACE_STRIDE
        texts = [settings.negative_prompt, settings.prompt][-rows_of(settings) :]
        return RequestShape(
            latents=(1, weights.transformer.config.in_channels, (settings.num_frames - 1) // 4 + 1, height, width),
            rows=rows_of(settings),
            text_tokens=max(map(weights.count_tokens, texts)),
            dtype=weights.dtype,
        )


def _trimmed(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the padding at the end that all rows have: (R, S, C) and (R, S)."""
    longest = int(mask.any(0).nonzero().max()) + 1
    return text[:, :longest].clone(), mask[:, :longest].clone()
